"""Whether anything at all still has a file open: a process, a loop device, or a mount in any namespace.

A mount that we took away lives on in every container that has a copy of it, and with it the filesystem that
reads our packs. There is no list of those. But the filesystem keeps its index file open, and the kernel
grants a write lease only on a file that nobody else has open: no lease, still in use.
"""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

_SET_SIGNAL = 10  # F_SETSIG


def is_open_elsewhere(path: Path) -> bool:
    """Whether anybody has the regular file ``path`` open. True also where that cannot be found out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # Whoever opens it in the next microsecond makes the kernel tell us, by SIGIO, which ends a process.
        fcntl.fcntl(descriptor, _SET_SIGNAL, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # EAGAIN: it is open; others: a filesystem without leases
        return True
    else:
        return False
    finally:
        os.close(descriptor)
