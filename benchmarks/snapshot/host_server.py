"""The bare host's cold start: the same command, the same question, and nothing of ours in between.

The server runs in a network and process namespace of its own, so that its port is free and nothing of it
outlives the measurement; neither costs anything once made.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from chat import Answer

from glowplug.types.errors import DeadlineExceeded, RuntimeFailed

_CLONE_NEWNET = 0x4000_0000
_START_TIMEOUT_S = 600.0
_POLL_S = 0.01
_ISOLATED = (
    "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
    "sh", "-c", 'ip link set lo up && exec "$@"', "sh",
)  # fmt: skip


def cold_start(spec: dict[str, Any], ask: Callable[[httpx.Client, str], Answer]) -> Answer:
    """Start the one server of ``spec`` and ask it; the answer's times count from the start.

    Raises RuntimeFailed if the server ends, DeadlineExceeded if it does not become ready.
    """
    (server,) = spec["servers"]
    with tempfile.TemporaryDirectory(prefix="glowplug-host-", dir="/var/tmp") as scratch:
        started = time.monotonic()
        with _running(server, Path(scratch)) as process, _inside(process) as thread:
            try:
                return thread.submit(_ask_when_ready, server, ask, process, started).result()
            except RuntimeFailed as failure:
                said = (Path(scratch) / "log").read_text(errors="replace")
                raise RuntimeFailed(f"{failure.message} It said: {said[-2000:]}") from failure


def _ask_when_ready(
    server: dict[str, Any],
    ask: Callable[[httpx.Client, str], Answer],
    process: subprocess.Popen[bytes],
    started: float,
) -> Answer:
    url = f"http://127.0.0.1:{server['port']}"
    with httpx.Client(base_url=url, timeout=httpx.Timeout(60.0), trust_env=False) as client:
        _wait_ready(client, server["ready"], process, started + _START_TIMEOUT_S)
        ready_s = time.monotonic() - started
        answer = ask(client, "")
    return Answer(answer.text, ready_s + answer.first_token_s, ready_s + answer.total_s)


def _wait_ready(
    client: httpx.Client, ready: dict[str, Any], process: subprocess.Popen[bytes], deadline: float
) -> None:
    while True:
        try:
            if client.request(ready["method"], ready["path"], json=ready["json_body"]).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise RuntimeFailed(f"The server on the host ended with exit code {process.returncode}.")
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"The server on the host was not ready in {_START_TIMEOUT_S:.0f} s.")
        time.sleep(_POLL_S)


@contextmanager
def _running(server: dict[str, Any], scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process tree, which is killed at the end. It finds every cache of its own empty."""
    venv = server["image"].get("venv")
    path = os.environ["PATH"] if venv is None else f"{venv}/bin:{os.environ['PATH']}"
    places = {"HOME": str(scratch), "TMPDIR": str(scratch), "VLLM_RPC_BASE_PATH": str(scratch)}
    process = subprocess.Popen(
        [*_ISOLATED, *(_on_host(word, server.get("volumes", [])) for word in server["command"])],
        env={"PATH": path, "LANG": "C.UTF-8", **server.get("env", {}), **places},
        stdin=subprocess.DEVNULL,
        stdout=(scratch / "log").open("wb"),
        stderr=subprocess.STDOUT,
        cwd=scratch,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()  # with its first child the whole process namespace ends
        process.wait()


def _on_host(word: str, volumes: list[dict[str, Any]]) -> str:
    """A path inside a volume as the host spells it; other words as they are."""
    for volume in volumes:
        if word == volume["mount_path"] or word.startswith(volume["mount_path"] + "/"):
            return str(volume["host_path"] + word.removeprefix(volume["mount_path"]))
    return word


@contextmanager
def _inside(process: subprocess.Popen[bytes]) -> Iterator[ThreadPoolExecutor]:
    """A thread whose sockets live in the network namespace of ``process``."""
    namespace = Path(f"/proc/{process.pid}/ns/net")
    home = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + 10.0
    while namespace.readlink() == home:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("The server's network namespace was not made in 10 s.")
        time.sleep(0.001)

    def step_in() -> None:
        with namespace.open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    with ThreadPoolExecutor(1, initializer=step_in) as thread:
        yield thread
