"""Work that must stop the moment something else happens: the sandbox ends, or somebody asks to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Interrupted(Exception):
    """The event came before the work was done. The work was cancelled, and has ended."""


async def before(event: Coroutine[Any, Any, object], work: Coroutine[Any, Any, _Result]) -> _Result:
    """What ``work`` gives or raises, or Interrupted if ``event`` ends first. Neither runs on afterwards."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(event)
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        is_done = working.done()
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
    if not is_done:
        raise Interrupted
    return working.result()
