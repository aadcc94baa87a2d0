"""Whether this machine runs short of memory, as its kernel tells it: then replicas take a step down.

Short is: less than a twentieth available; or less than a fifth, and processes wait for memory. Waiting alone
says nothing: moving a replica's memory to swap is itself counted as waiting, and must not cause more of it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from glowplug.node.table import ReplicaTable
from glowplug.types.replica import MemoryView

_PERIOD_S = 1.0
_PROC = Path("/proc")
_SCARCE = 0.05
_TIGHT = 0.20
# A fifth of the last ten seconds in which something waited, or a twentieth in which everything did.
_SOME_WAITING_PERCENT = 20.0
_ALL_WAITING_PERCENT = 5.0


def read_memory(proc: Path = _PROC) -> MemoryView:
    """The reading of this moment. Without pressure-stall information (CONFIG_PSI) only room counts."""
    sizes = {
        name: int(kib) << 10
        for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    }
    waiting = _waiting_percent(proc / "pressure" / "memory")
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    some, everybody = waiting.get("some", 0.0), waiting.get("full", 0.0)
    is_waited_for = some >= _SOME_WAITING_PERCENT or everybody >= _ALL_WAITING_PERCENT
    return MemoryView(
        total_bytes=total,
        available_bytes=available,
        swap_free_bytes=sizes.get("SwapFree", 0),
        some_waiting_percent=some,
        all_waiting_percent=everybody,
        is_short=available < _SCARCE * total or (available < _TIGHT * total and is_waited_for),
    )


async def watch_memory(table: ReplicaTable, proc: Path = _PROC) -> None:
    """Tell the table's watchers how memory is, until cancelled."""
    while True:
        table.tell_memory(read_memory(proc))
        await asyncio.sleep(_PERIOD_S)


def _waiting_percent(file: Path) -> dict[str, float]:
    try:
        text = file.read_text()
    except OSError:  # CONFIG_PSI is not set, or psi=0
        return {}
    return {
        kind: float(percent) for kind, percent in re.findall(r"^(\w+) avg10=([\d.]+)", text, re.MULTILINE)
    }
