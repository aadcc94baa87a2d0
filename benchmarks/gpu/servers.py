"""A model server as run.py sees it: started, asked, captured with CRIU and restored, killed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.runtime import criu
from glowplug.types.errors import DeadlineExceeded, GlowplugError, RuntimeFailed

SERVER = Path(__file__).with_name("model_server.py")
START_S = 1800.0
ANSWER_S = 120.0
CRIU_S = 600.0
SEEDS = range(4)


@dataclass(frozen=True)
class Kind:
    """What is started: a model of some size on some device, by some Python that has PyTorch."""

    python: str
    weights: Path
    gigabytes: float
    device: str
    compiles: bool


class Server:
    """One process. ``cold_s`` is from its start to its first answer to us, ``stages`` what it says of it."""

    def __init__(self, kind: Kind, work: Path) -> None:
        self.kind = kind
        self._work = work
        self._port = _free_port()
        self._compiled = work / f"inductor-{self._port}"
        self.pid = 0
        self.cold_s = 0.0
        self.stages: dict[str, float] = {}
        self.device_bytes = 0
        self.answers: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Server:
        """A cold start: nothing that was compiled before is there. Raises RuntimeFailed, DeadlineExceeded."""
        began = time.monotonic()
        log = self._work / f"server-{self._port}.log"
        self._process = self._spawn(log)
        self.pid = self._process.pid
        try:
            self.answers = [await self._first_answer(began + START_S, log)]
            self.cold_s = time.monotonic() - began
            self.answers += [await self.ask(seed) for seed in SEEDS[1:]]
            told = await asyncio.to_thread(_get, self._port, "/stages")
        except BaseException:
            self.end()
            raise
        self.stages, self.device_bytes = told["stages"], told["device_bytes"]
        return self

    async def ask(self, seed: int = 0) -> str:
        """The digest of one answer. Raises RuntimeFailed or DeadlineExceeded."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return str((await asyncio.to_thread(_get, self._port, f"/answer?seed={seed}"))["sha256"])
        except TimeoutError as error:
            raise DeadlineExceeded(f"The server {self.pid} does not answer.", stage="answer") from error
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeFailed(f"The server {self.pid} does not answer: {error or type(error)}.") from error

    async def is_right(self) -> bool:
        """Whether all its answers are those that it gave when it was new, bit for bit."""
        return [await self.ask(seed) for seed in SEEDS] == self.answers

    async def dump(self, image: Path) -> int:
        """Write its memory to ``image`` and end it; bytes. Its device memory must be on the host by now."""
        await asyncio.to_thread(image.mkdir, parents=True)
        await self._criu("dump", image, "--tree", str(self.pid))
        await asyncio.to_thread(self.reap)
        return await asyncio.to_thread(_size_bytes, image)

    async def restore(self, image: Path) -> None:
        """Be the process of ``image`` again, as a child of ours once CRIU has ended."""
        self._process = None
        await self._criu("restore", image, "--restore-detached")

    def kill(self) -> None:
        """SIGKILL, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Wait until it is gone: its pid must be free before it is restored."""
        deadline = time.monotonic() + ANSWER_S
        while _is_alive(self.pid):
            with contextlib.suppress(ChildProcessError):  # restored ones are ours as well: see run.py
                os.waitpid(self.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"Process {self.pid} does not end.", stage="kill")
            time.sleep(0.002)
        if self._process is not None:
            self._process.returncode = -signal.SIGKILL  # it was waited for here

    def end(self) -> None:
        """Kill it, if it is there at all, and remove what was compiled for it."""
        if self.pid:
            self.kill()
        shutil.rmtree(self._compiled, ignore_errors=True)

    def _spawn(self, log: Path) -> subprocess.Popen[bytes]:
        arguments = {"port": self._port, "device": self.kind.device, "weights": self.kind.weights}
        command = [self.kind.python, "-P", str(SERVER), "--gigabytes", str(self.kind.gigabytes)]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(self._compiled),
            "TRITON_CACHE_DIR": str(self._compiled / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of workers: they would be part of every capture
        }
        environment.pop("PYTHONPATH", None)  # the controller's packages are another Python's
        with log.open("wb") as output:
            return subprocess.Popen(
                [*command, *([] if self.kind.compiles else ["--no-compile"])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # CRIU takes it for the root of its own session
                env=environment,
            )

    async def _first_answer(self, deadline: float, log: Path) -> str:
        while True:
            with contextlib.suppress(GlowplugError):
                return await self.ask(0)
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeFailed(
                    f"The model server ended with {self._process.returncode}: {_end_of(log)}",
                    remedy="See its log.",
                    log=str(log),
                )
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"The model server was not ready in {START_S:g} s.", stage="start")
            await asyncio.sleep(0.005)

    async def _criu(self, action: str, image: Path, *arguments: str) -> None:
        log = f"{action}.log"
        options = image.with_suffix(".conf")
        options.write_text(criu.dump_options(()))
        command = [str(criu.find_criu()), action, "--config", str(options), "--images-dir", str(image)]
        command += ["--work-dir", str(image.parent), "--log-file", log, "-v2", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(CRIU_S):
                code = await process.wait()
        except TimeoutError as error:
            process.kill()
            raise DeadlineExceeded(f"criu {action} took longer than {CRIU_S:g} s.", stage=action) from error
        if code != 0:
            said = (image.parent / log).read_text(errors="replace")
            errors = [line for line in said.splitlines() if "Error (" in line]
            raise RuntimeFailed(
                f"criu {action} failed with {code}: {(errors or said.splitlines() or ['no word'])[0]}",
                remedy="Run as root, with CRIU 4.2 or newer (scripts/setup_criu.sh).",
                said=errors[-10:],
            )


def drop_from_page_cache(folder: Path) -> None:
    """What a restore reads next comes from the disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _get(port: int, path: str) -> dict[str, Any]:
    """On a connection that ends with the answer: nothing is open when memory is captured."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{path} was answered with {response.status}")
        answer: dict[str, Any] = json.loads(content)
        return answer
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
