"""Let the kernel merge identical pages of copies, but only while there is something to merge.

The kernel's scanner (KSM, ``/sys/kernel/mm/ksm``) takes processor time for as long as it is on, and what it
merged stays merged when it is off. So it is switched on after new copies have come, and off again once whole
scans find nothing more, or after a limit. Whose pages it looks at is decided where copies are made
(:attr:`~glowplug.runtime.port.Sandbox.merges_pages`): processes that did not ask for it are not touched.

The host's own settings are put back (:mod:`glowplug.node.host_settings`); a host that runs the scanner itself
is left alone.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path

from glowplug.node.host_settings import HostSettings, read_setting
from glowplug.types.clock import Clock

KSM = Path("/sys/kernel/mm/ksm")
_PR_GET_MEMORY_MERGE = 68
_OFF, _ON = 0, 1
# 600 MB/s or so for a sixth of a processor (measured on 800 MB); the default is 20 MB/s.
_SETTINGS = {"pages_to_scan": 4000, "sleep_millisecs": 20}
# A page is merged in the second scan that finds it unchanged, and the first one may be half over.
_FEWEST_SCANS = 3
_LEAST_GAIN = 0.01
_LONGEST_S = 600.0

logger = logging.getLogger(__name__)


def is_possible(ksm: Path = KSM) -> bool:
    """Whether this kernel merges the pages of processes that ask for it (Linux 6.4, CONFIG_KSM)."""
    libc = ctypes.CDLL(None, use_errno=True)
    return (ksm / "run").exists() and libc.prctl(_PR_GET_MEMORY_MERGE, 0, 0, 0, 0) >= 0


@dataclass(frozen=True)
class _Progress:
    """How far the scanner had come when it last finished a whole scan."""

    since_s: float
    scans_before: int
    scans: int = 0
    merged: int = 0


class PageMerging:
    """Owner of the scanner's switch. ``record`` holds the host's own settings while they are changed.

    Not for several threads. A file of the kernel's that cannot be read or written raises OSError.
    """

    def __init__(self, record: Path, clock: Clock, ksm: Path = KSM) -> None:
        self._settings = HostSettings(record)
        self._clock = clock
        self._ksm = ksm
        self._is_wanted = False
        self._progress: _Progress | None = None

    def want(self) -> None:
        """There are new copies whose pages may be merged. May be called from any thread."""
        self._is_wanted = True

    def step(self) -> None:
        """Switch on or off as needed; to be called every few seconds."""
        if self._progress is not None:
            self._progress = self._continued(self._progress)
        elif self._is_wanted and self._read("run") == _OFF:
            self._switch_on()
            self._progress = self._begun()

    def put_back(self) -> None:
        """Give the host its own settings again, if we or a killed predecessor changed them."""
        self._progress = None
        self._settings.put_back()

    def _continued(self, last: _Progress) -> _Progress | None:
        """The progress now, or None when there is nothing more to be had and the switch is off."""
        if self._is_wanted:  # more copies came: as many scans again
            return self._begun()
        scans = self._read("full_scans") - last.scans_before
        if scans == last.scans and self._clock.monotonic() - last.since_s < _LONGEST_S:
            return last
        merged = self._read("pages_sharing")
        gain = merged - last.merged
        is_over = self._clock.monotonic() - last.since_s >= _LONGEST_S
        if is_over or (scans >= _FEWEST_SCANS and gain <= _LEAST_GAIN * merged):
            self.put_back()
            logger.info("%d pages of copies are shared now, after %d scans", merged, scans)
            return None
        return _Progress(last.since_s, last.scans_before, scans, merged)

    def _begun(self) -> _Progress:
        self._is_wanted = False
        return _Progress(self._clock.monotonic(), self._read("full_scans"))

    def _switch_on(self) -> None:
        values = {**_SETTINGS, "run": _ON}
        self._settings.change({self._ksm / name: str(value) for name, value in values.items()})

    def _read(self, name: str) -> int:
        return int(read_setting(self._ksm / name))
