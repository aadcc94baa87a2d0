"""Looking at, and reaching into, the processes of a container from the host, through ``/proc``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import threading
from itertools import chain
from pathlib import Path

from glowplug.runtime import criu
from glowplug.types.errors import RuntimeFailed

_CLONE_NEWUTS = 0x0400_0000


def check_one_tree(pids: list[int], sandbox_id: str) -> None:
    """Raise RuntimeFailed for what CRIU passes over in silence: processes not descended from the first one.

    Only ``exec`` makes them: an orphan inside becomes the first one's child.
    """
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            is_first = status["NSpid"].split()[-1] == "1"
            if not is_first and int(status["PPid"]) not in pids:
                raise RuntimeFailed(
                    f"Process {pid} was started in {sandbox_id} by exec: it would be missing in every copy.",
                    remedy="End what was started by `glowplug exec` or a hook first.",
                    sandbox=sandbox_id,
                    pid=pid,
                )


def drops_termination(pid: int) -> bool:
    """Whether the kernel would drop a SIGTERM because the first process of a container has no handler for it.

    It would end any other process (pid_namespaces(7)).
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended
        return False
    masks = re.findall(r"^Sig(?:Blk|Ign|Cgt):\s*([0-9a-f]+)$", status, re.MULTILINE)
    return not any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def outside_files(pids: list[int], log: Path) -> list[criu.OutsideFile]:
    """Under which names (one for each mount it was reached by) the processes have the file ``log`` open."""
    wanted = log.stat()
    found = set()
    for descriptor in chain.from_iterable(map(_descriptors, pids)):
        with contextlib.suppress(OSError):  # it was closed
            status = descriptor.stat()
            if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                info = (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text()
                mount_id = re.search(r"^mnt_id:\s*(\d+)", info, re.MULTILINE)
                if mount_id is not None:
                    found.add(criu.OutsideFile(int(mount_id[1]), wanted.st_ino))
    return sorted(found)


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended
        return []


def set_hostname(pid: int, hostname: str) -> None:
    """Set the host name of the namespace that the process ``pid`` lives in; never that of the host.

    Raises RuntimeFailed. A process that has ended has no name to set.
    """
    failures: list[OSError] = []

    def set_it() -> None:
        # In a thread of its own, which ends where it is: no way back is needed.
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            descriptor = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_ino == Path("/proc/thread-self/ns/uts").stat().st_ino:
                    return
                if libc.setns(descriptor, _CLONE_NEWUTS) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                socket.sethostname(hostname)
            finally:
                os.close(descriptor)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=set_it, name="hostname")
    thread.start()
    thread.join()
    if failures and Path(f"/proc/{pid}").exists():
        raise RuntimeFailed(f"The host name of process {pid} cannot be set: {failures[0]}")
