"""What the loop reads from files: prices, and requests of the past. Read again when a file has changed.

A file that cannot be used any more does not stop the loop: what it said last stands, and the problem is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from glowplug.pool.forecast.series import DemandSeries, Floats, read_requests
from glowplug.pool.market.prices import PriceBook
from glowplug.pool.plan_file import DemandEntry, PlanFile
from glowplug.pool.planner.live import LiveDemand
from glowplug.pool.planning import demand_until, load_prices
from glowplug.types.errors import GlowplugError

_Requests = tuple[Floats, Floats]
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Prices, and demand in the order of the file's entries. ``waiting_slot_s``: the work that waits there,
    as far as it is known. ``problems``: what could not be read, why.
    """

    prices: PriceBook
    demand: tuple[DemandSeries, ...]
    waiting_slot_s: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()


class InputSource(Protocol):
    """Where prices and demand come from."""

    def read(self, now_s: float) -> Inputs:
        """As known at Unix time ``now_s``. Raises GlowplugError while nothing was ever read."""
        ...


class FileInputs:
    """The files that a pool file names, relative to ``folder``; and ``live``, for entries that want that."""

    def __init__(self, file: PlanFile, folder: Path, live: LiveDemand | None = None) -> None:
        self._file = file
        self._folder = folder
        self._live = live
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._prices: PriceBook | None = None
        self._requests: dict[int, _Requests] = {}
        self._problems: dict[str, str] = {}

    def read(self, now_s: float) -> Inputs:
        """See :class:`InputSource`."""
        sources = [self._folder / source.file for source in self._file.prices]
        if self._has_changed(sources) or self._prices is None:
            self._prices = self._kept("prices", self._load_prices, self._prices)
        demand, waiting_slot_s = [], []
        for place, entry in enumerate(self._file.demand):
            if entry.live is not None and self._live is not None:
                demand.append(self._live.series(place, now_s))
                waiting_slot_s.append(self._live.waiting_slot_s(place))
            else:
                demand.append(self._demand(place, entry, now_s))
                waiting_slot_s.append(0.0)
        problems = list(self._problems.values())
        if self._live is not None and self._live.problem:
            problems.append(self._live.problem)
        return Inputs(self._prices, tuple(demand), tuple(waiting_slot_s), tuple(problems))

    def _load_prices(self) -> PriceBook:
        remarks: list[str] = []
        prices = load_prices(self._file, self._folder, remarks)
        if remarks:
            self._problems["rows"] = "; ".join(remarks)
        else:
            self._problems.pop("rows", None)
        return prices

    def _demand(self, place: int, entry: DemandEntry, now_s: float) -> DemandSeries:
        log = entry.requests
        if log is None:
            return demand_until(entry, np.empty(0), np.empty(0), now_s)
        file = self._folder / log.file

        def load() -> _Requests:
            return read_requests(file, log.prefill_tokens_per_s, log.decode_tokens_per_s)

        if self._has_changed([file]) or place not in self._requests:
            self._requests[place] = self._kept(str(log.file), load, self._requests.get(place))
        return demand_until(entry, *self._requests[place], now_s)

    def _has_changed(self, files: list[Path]) -> bool:
        changed = False
        for file in files:
            try:
                found = file.stat()
                stamp = (found.st_mtime_ns, found.st_size)
            except OSError:
                stamp = (0, 0)
            changed |= self._stamps.get(file) != stamp
            self._stamps[file] = stamp
        return changed

    def _kept(self, name: str, load: Callable[[], _Loaded], before: _Loaded | None) -> _Loaded:
        try:
            loaded = load()
        except GlowplugError as problem:
            if before is None:
                raise
            self._problems[name] = f"{problem.message} What it said before stands."
            return before
        self._problems.pop(name, None)
        return loaded
