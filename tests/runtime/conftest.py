"""Real namespaces, cgroups and sandboxes; orphans are reaped here, as the supervisor does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.sandboxes import Sandboxes, eventually

from glowplug.runtime.criu import find_criu
from glowplug.runtime.runc import Runc, find_runc
from glowplug.runtime.runsc import Runsc, find_runsc
from glowplug.types.errors import SystemUnfit

RUNTIMES = ["runsc", "runc"]
RUNC_BY_NIGHT = ["runsc", pytest.param("runc", marks=pytest.mark.nightly)]
"""For tests of both that take long, or prove little more in the other: a test run does them in one."""

_PR_SET_CHILD_SUBREAPER = 36


class OrphanReaper:
    """Makes this process the parent of orphaned sandboxes, and waits for those; nothing else's children."""

    def __init__(self) -> None:
        self.exit_codes: dict[int, int] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._reap, daemon=True)

    def __enter__(self) -> OrphanReaper:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def exit_code(self, pid: int) -> int:
        """How ``pid`` ended, once it has."""
        eventually(lambda: pid in self.exit_codes, f"process {pid} ends")
        return self.exit_codes[pid]

    def _reap(self) -> None:
        while not self._is_over.wait(0.005):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                self._reap_one(int(child))

    def _reap_one(self, pid: int) -> None:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        name, state = fields.partition("(")[2].rpartition(")")[0], fields.rpartition(")")[2].split()[0]
        # runsc re-executes itself as "exe"; what runc leaves lives in a pid namespace of its own.
        if state == "Z" and (name == "exe" or _is_in_pid_namespace(pid)):
            with contextlib.suppress(ChildProcessError):  # whoever started it was quicker
                got, status = os.waitpid(pid, os.WNOHANG)
                if got:
                    self.exit_codes[pid] = os.waitstatus_to_exitcode(status)


def _is_in_pid_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in status.splitlines())


@pytest.fixture(scope="session")
def runsc_binary() -> Path:
    """The installed runsc; tests that need it are skipped where there is none, or no root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        return find_runsc()
    except SystemUnfit as error:
        pytest.skip(error.message)


def require_runc() -> None:
    """Skips where there is no root, no runc or no CRIU: `make services` gets both."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        find_runc()
        find_criu()
    except SystemUnfit as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def reaper() -> Iterator[OrphanReaper]:
    with OrphanReaper() as reaper:
        yield reaper


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gpt-") as name:
        yield Path(name)


@contextlib.contextmanager
def sandboxes_of_runsc(folder: Path, binary: Path) -> Iterator[Sandboxes]:
    """Sandboxes of runsc; nothing of any of them is left afterwards."""
    made = Sandboxes(folder, Runsc(folder / "runsc", binary))
    yield made
    made.remove_all()
    assert not list((folder / "runsc").glob("*")), "the runtime's state folder is not empty"


@contextlib.contextmanager
def sandboxes_of_runc(folder: Path) -> Iterator[Sandboxes]:
    """Sandboxes of runc; nothing of any of them is left afterwards."""
    require_runc()
    made = Sandboxes(folder, Runc(folder / "runc"))
    yield made
    made.remove_all()
    assert not list((folder / "runc").glob("*/*")), "the runtime's state folder is not empty"
    assert str(folder) not in Path("/proc/self/mountinfo").read_text(), "something is still mounted"


@pytest.fixture
def sandboxes(folder: Path, runsc_binary: Path, reaper: OrphanReaper) -> Iterator[Sandboxes]:
    """What a runtime adapter is tried with: the one installed here."""
    with sandboxes_of_runsc(folder, runsc_binary) as made:
        yield made
