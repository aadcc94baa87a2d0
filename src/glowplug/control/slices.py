"""Long work in an event loop that others share: cut into slices of a few milliseconds."""

from __future__ import annotations

import asyncio

SLICE_S = 0.002


class Slices:
    """Call :meth:`rest` between any two steps of the work."""

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self._over_at_s = 0.0

    async def rest(self) -> bool:
        """Let others go on, if a slice is over; whether it was."""
        loop = asyncio.get_running_loop()
        is_over = loop.time() >= self._over_at_s
        if is_over:
            await asyncio.sleep(0)
            self._over_at_s = loop.time() + self._slice_s
        return is_over
