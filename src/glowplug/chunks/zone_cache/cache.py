"""Runs one zone cache in a folder of its own: its configuration, its content, its pid, its error log.

``up`` may be called again at any time: a cache that runs takes over a changed configuration without losing a
request, one that died is started, and what a killed one left behind is ended first. The content survives.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from glowplug.chunks.http_address import HttpAddress
from glowplug.chunks.zone_cache import processes
from glowplug.chunks.zone_cache.configuration import CacheSettings
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import Conflict, DeadlineExceeded, InvalidInput, SystemUnfit

NGINX_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
START_TIMEOUT_S = 20.0
QUIT_TIMEOUT_S = 10.0
MIN_FREE_BYTES = 1 << 30
SERVICE_USER = "www-data"
_CHECK_TIMEOUT_S = 20.0
_POLL_S = 0.02
_LAST_WORDS = 600


@dataclass(frozen=True)
class ZoneCacheStatus:
    """``pid`` is None while it does not run; ``cached_bytes`` is what its content takes on disk."""

    pid: int | None
    is_answering: bool
    listen: str
    origin: str
    folder: Path
    cached_bytes: int
    max_bytes: int


class ZoneCache:
    """One nginx that caches the region at ``origin_url`` (``Region.origin_url``) in ``folder``."""

    def __init__(
        self,
        origin_url: str,
        listen: str,
        folder: Path,
        max_bytes: int,
        *,
        min_free_bytes: int = MIN_FREE_BYTES,
        user: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``user`` is who the workers run as when we are root (``www-data`` if that may write there).

        Raises InvalidInput for anything that cannot be put into a configuration.
        """
        self._clock = clock or SystemClock()
        self._started: subprocess.Popen[bytes] | None = None
        self._settings = CacheSettings(
            HttpAddress.parse(origin_url),
            listen,
            Path(os.path.realpath(folder)),
            max_bytes,
            min_free_bytes,
            _service_user(user),
            min(os.cpu_count() or 1, 8),
        )

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self._settings.folder

    def up(self, timeout_s: float = START_TIMEOUT_S) -> ZoneCacheStatus:
        """Start it, or make the running one take over the configuration; returns once it answers.

        Raises SystemUnfit (no nginx, or one that cannot be used), Conflict (the port is taken) or
        DeadlineExceeded, each with what to do.
        """
        nginx = _find_nginx()
        deadline_s = self._clock.monotonic() + timeout_s
        self._prepare_folder()
        self._check_configuration(nginx)
        master = processes.master_of(self.folder)
        if master is not None:
            os.kill(master, signal.SIGHUP)
            self._wait_until_it_answers(None, deadline_s)
            return self.status()
        self._end(processes.of_folder(self.folder), signal.SIGKILL, QUIT_TIMEOUT_S)
        self._require_free_port()
        self._started = subprocess.Popen(
            self._command(nginx), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, close_fds=True,
        )  # fmt: skip
        self._wait_until_it_answers(self._started, deadline_s)
        return self.status()

    def down(self, timeout_s: float = QUIT_TIMEOUT_S) -> None:
        """Stop it: requests under way are finished if that takes no longer than ``timeout_s``.

        What does not run is no error.
        """
        master = processes.master_of(self.folder)
        if master is not None:
            self._end([master], signal.SIGQUIT, timeout_s)
        if not self._end(processes.of_folder(self.folder), signal.SIGKILL, QUIT_TIMEOUT_S):
            raise DeadlineExceeded(
                f"The zone cache in {self.folder} does not end.",
                remedy="Look for a disk that hangs (`dmesg`).",
            )
        (self.folder / "nginx.pid").unlink(missing_ok=True)

    def status(self) -> ZoneCacheStatus:
        """How it is right now."""
        return ZoneCacheStatus(
            pid=processes.master_of(self.folder),
            is_answering=self._is_answering(),
            listen=self._settings.listen,
            origin=str(self._settings.origin),
            folder=self.folder,
            cached_bytes=_bytes_below(self.folder / "cache"),
            max_bytes=self._settings.max_bytes,
        )

    def _end(self, pids: list[int], number: signal.Signals, timeout_s: float) -> bool:
        have_ended = processes.end(pids, number, timeout_s, self._clock.monotonic)
        if self._started is not None:
            self._started.poll()  # a child of ours leaves a zombie until somebody looks
        return have_ended

    def _prepare_folder(self) -> None:
        try:
            for folder in (self.folder, self.folder / "cache", self.folder / "temp"):
                folder.mkdir(parents=True, exist_ok=True)
            for name, text in self._settings.files().items():
                (self.folder / name).write_text(text)
        except OSError as problem:
            raise InvalidInput(
                f"The zone cache cannot use {self.folder}: {problem.strerror}.",
                remedy="Choose a folder on a disk with room that you may write to.",
            ) from problem
        if self._settings.user is not None:
            self._hand_over_to(self._settings.user)

    def _hand_over_to(self, user: str) -> None:
        for folder in (self.folder / "cache", self.folder / "temp"):
            shutil.chown(folder, user)
        can_write = subprocess.run(
            ["test", "-w", self.folder / "cache"], user=user, extra_groups=[], cwd="/", check=False,
            timeout=_CHECK_TIMEOUT_S,
        )  # fmt: skip
        if can_write.returncode != 0:
            raise InvalidInput(
                f"The user {user}, as whom nginx works, cannot get to {self.folder}.",
                remedy="Choose a folder that every user may enter, such as /var/cache/glowplug-zone.",
            )

    def _command(self, nginx: str) -> list[str]:
        prefix = f"{self.folder}/"
        return [nginx, "-p", prefix, "-c", f"{prefix}nginx.conf", "-e", f"{prefix}error.log"]

    def _check_configuration(self, nginx: str) -> None:
        try:
            checked = subprocess.run(
                [*self._command(nginx), "-t", "-q"], capture_output=True, cwd=self.folder, check=False,
                timeout=_CHECK_TIMEOUT_S,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise _unfit(f"it could not be run: {problem}") from problem
        if checked.returncode != 0:
            raise _unfit(f"it says: {checked.stderr.decode(errors='replace')[-_LAST_WORDS:].strip()}")

    def _require_free_port(self) -> None:
        host, _, port = self._settings.listen.rpartition(":")
        address = (host.strip("[]").replace("*", ""), int(port))
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as problem:
                raise Conflict(
                    f"A zone cache cannot listen on {self._settings.listen}: {problem.strerror}.",
                    remedy="Stop what listens there (`ss -ltnp`), or give another address or port.",
                ) from problem

    def _wait_until_it_answers(self, started: subprocess.Popen[bytes] | None, deadline_s: float) -> None:
        while not self._is_answering():
            if started is not None and started.poll() is not None:
                raise _unfit(f"it ended at once: {self._last_words()}")
            if self._clock.monotonic() >= deadline_s:
                raise DeadlineExceeded(
                    f"The zone cache on {self._settings.listen} does not answer: {self._last_words()}",
                    remedy=f"Look into {self.folder}/error.log.",
                    stage="zone-cache",
                )
            time.sleep(_POLL_S)

    def _is_answering(self) -> bool:
        if processes.master_of(self.folder) is None:
            return False
        host = self._settings.listen.rpartition(":")[0].strip("[]")
        address = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        try:
            with socket.create_connection((address, self._settings.port), timeout=1.0) as probe:
                probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return probe.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def _last_words(self) -> str:
        try:
            text = (self.folder / "error.log").read_text(errors="replace")
        except OSError:
            return "it wrote no log."
        return text[-_LAST_WORDS:].strip()


def _service_user(asked: str | None) -> str | None:
    """As whom nginx's workers run; None when we are not root: then as whoever we are."""
    if os.geteuid() != 0:
        return None
    user = asked or SERVICE_USER
    try:
        return pwd.getpwnam(user).pw_name
    except KeyError as absent:
        raise InvalidInput(
            f"There is no user {user!r} on this machine.", remedy="Name another one for the zone cache."
        ) from absent


def _find_nginx() -> str:
    found = shutil.which("nginx", path=NGINX_PLACES)
    if found is None:
        raise SystemUnfit("nginx is not installed.", remedy="Install it: `apt-get install nginx-light`.")
    built = subprocess.run([found, "-V"], capture_output=True, check=False, timeout=_CHECK_TIMEOUT_S)
    if b"http_slice_module" not in built.stderr:
        raise _unfit("it was built without its slice module")
    return found


def _unfit(why: str) -> SystemUnfit:
    return SystemUnfit(
        f"nginx cannot serve as a zone cache: {why}.",
        remedy="Use Debian's nginx (`apt-get install nginx-light`), and check the origin's host name.",
    )


def _bytes_below(folder: Path) -> int:
    """Room taken on disk. What vanishes meanwhile counts as nothing."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(directory) / name).st_blocks * 512
    return total
