"""While memory is restored the kernel may give it in pieces of up to 64 KiB instead of 4.

A restore is mostly page faults: half a million for 2 GB. Linux 6.8 and later can answer one with a larger
piece (multi-size THP, Documentation/admin-guide/mm/transhuge.rst), with a switch per size for anonymous
memory, which is CRIU's, and one for shared memory, which is gVisor's. Pieces of 2 MiB are worse than none
(docs/benchmarks.md). The switches hold for the whole host, so they are on only while something is being
restored, and a size that the host's owner has switched to anything but ``never`` is left alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glowplug.node.host_settings import HostSettings, read_setting

THP = Path("/sys/kernel/mm/transparent_hugepage")
SIZES_KIB = (16, 32, 64)
"""From the largest down, whatever fits into a mapping and can be had at once is given."""

_SWITCHES = ("enabled", "shmem_enabled")

logger = logging.getLogger(__name__)


class LargePages:
    """Owner of these switches. ``record`` holds the host's own settings while they are changed.

    May be used from several threads. Without the switches, or if the kernel refuses, it does nothing.
    """

    def __init__(self, record: Path, thp: Path = THP) -> None:
        self._settings = HostSettings(record)
        self._thp = thp
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def given(self) -> Iterator[None]:
        """Larger pieces for everybody who asks for memory in this block."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._switch_on()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self.put_back()

    def put_back(self) -> None:
        """Give the host its own settings again, if we or a killed predecessor changed them."""
        try:
            self._settings.put_back()
        except OSError as problem:
            logger.warning("the host's sizes of pages were not put back: %s", problem)

    def _switch_on(self) -> None:
        wanted = {}
        for size_kib in SIZES_KIB:
            for switch in _SWITCHES:
                file = self._thp / f"hugepages-{size_kib}kB" / switch
                with suppress(OSError):  # an older kernel, or another architecture
                    if read_setting(file) == "never":
                        wanted[file] = "always"
        try:
            if wanted:
                self._settings.change(wanted)
        except OSError as problem:
            logger.warning("memory is restored in pieces of 4 KiB: %s", problem)
