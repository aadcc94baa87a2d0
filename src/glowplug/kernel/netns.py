"""Network namespaces without the ``ip`` command: made, given a name in the filesystem, and unnamed again.

A namespace lives as long as a descriptor, a name or a process holds it. One that only a descriptor of ours
holds is gone when this process ends, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

from glowplug.kernel import mounts

_CLONE_NEWNET = 0x4000_0000


def make(configure: Callable[[], None]) -> int:
    """A descriptor of a new namespace, which ``configure`` is run in: what it starts is inside too.

    The caller closes it. Raises OSError, or what ``configure`` raises.
    """
    made: list[int] = []
    failures: list[BaseException] = []

    def make_it() -> None:
        # In a thread of its own, which ends where it is: no way back is needed.
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"unshare: {os.strerror(number)}")
            configure()
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException as failure:  # noqa: BLE001 - raised below, in the thread that asked
            failures.append(failure)

    thread = threading.Thread(target=make_it, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]


def name(descriptor: int, path: Path) -> None:
    """Show the namespace at ``path``, where ``ip netns`` looks for it. Raises OSError, also if it exists."""
    _share(path.parent)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    try:
        mounts.bind(Path(f"/proc/self/fd/{descriptor}"), path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def unname(path: Path) -> None:
    """Undo :func:`name`; what is not there is fine. Raises OSError."""
    try:
        mounts.unmount(path, mounts.DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # no mount, or no such file
            raise
    path.unlink(missing_ok=True)


def _share(folder: Path) -> None:
    """As ``ip netns add`` does it: whoever copied our mounts sees names go too, and so keeps none alive."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # two at once would mount it on itself twice
        try:
            mounts.make_shared(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is no mount yet
                raise
            mounts.bind(folder, folder)
            mounts.make_shared(folder)
    finally:
        os.close(descriptor)
