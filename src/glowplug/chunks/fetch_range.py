"""Reads one range of a pack through the tiers, nearest first, and yields only chunks that were verified.

A tier that is down, slow or lacks the object costs a fallback to the next one. A chunk that came wrong is
asked for again, alone: from each tier behind the one that gave it, then once more from the first (whose copy
may have been fetched afresh by then). Nothing unverified leaves this module.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glowplug.chunks.chunk import Chunk, ChunkMissing
from glowplug.chunks.fetch_stats import Counters
from glowplug.chunks.objects import MeteredObjects, Objects
from glowplug.chunks.pace import Meter
from glowplug.chunks.placement import PackRange
from glowplug.chunks.run import Run
from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, NotFound, Unavailable

_log = logging.getLogger(__name__)

_LOG_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Came:
    """Verified chunks, which came together, with their indices in the blob."""

    indices: Sequence[int]
    run: Run


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk that no tier gave."""

    index: int
    error: GlowplugError


class LogLimit:
    """Warns of each kind of trouble once a second at most: a tier that is down fails thousands of reads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str) -> None:
        """Log ``text``, unless one of its kind just was; those kept back are counted in the next."""
        now_s = self._clock.monotonic()
        with self._lock:
            last_s, kept_back = self._kinds.get(kind, (-math.inf, 0))
            if now_s - last_s < _LOG_PAUSE_S:
                self._kinds[kind] = (last_s, kept_back + 1)
                return
            self._kinds[kind] = (now_s, 0)
        _log.warning("%s%s", text, f" ({kept_back} more like it)" if kept_back else "")


class RangeReader:
    """The tiers of a machine in the order to ask them. Safe to use from many threads."""

    def __init__(self, tiers: Sequence[Objects], clock: Clock) -> None:
        self._tiers = tuple(tiers)
        self._clock = clock
        self._log_limit = LogLimit(clock)

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Labels of the tiers, in the order they are asked."""
        return tuple(tier.tier for tier in self._tiers)

    @property
    def meters(self) -> list[Meter]:
        """Of those tiers that have some."""
        return [meter for tier in self._tiers if isinstance(tier, MeteredObjects) for meter in tier.meters]

    def read(
        self,
        wanted: PackRange,
        chunks: Sequence[Chunk],
        first_index: int | None,
        deadline_s: float,
        counters: Sequence[Counters],
    ) -> Iterator[Came | Failed]:
        """What becomes of each of the range's chunks, once: of ``first_index`` as soon as it is known.

        ``chunks`` are the range's in its order; ``deadline_s`` is on the clock's monotonic time; all of
        ``counters`` are told what was done.
        """
        asking = _Asking(self._tiers, self._clock, self._log_limit, deadline_s, counters)
        problems: list[_Problem] = []
        answer = asking.first_answer(wanted, problems)
        if answer is None:
            for index, chunk in zip(wanted.indices, chunks, strict=True):
                yield Failed(index, _failure(chunk, problems))
            return
        position, data = answer
        bad: list[int] = []
        for numbers in _turns(wanted, first_index):
            part = wanted.only(numbers)
            came, wrong = asking.open(position, part, data, [chunks[number] for number in numbers])
            bad += [numbers[number] for number in wrong]
            if came.indices:
                yield came
        del data, came  # what follows may take long
        for number in bad:
            yield asking.alone(position, wanted.alone(number), chunks[number])


def _turns(wanted: PackRange, first_index: int | None) -> list[Sequence[int]]:
    """The numbers of the range's chunks, in the order to look at them, together where nobody waits."""
    numbers = range(len(wanted.indices))
    if first_index is None or len(numbers) == 1:
        return [numbers]
    first = wanted.indices.index(first_index)
    return [[first], [number for number in numbers if number != first]]


_Problem = tuple[str, GlowplugError]
"""A tier, and what it did wrong."""


class _Asking:
    """One range's dealings with the tiers, within one deadline."""

    def __init__(
        self,
        tiers: tuple[Objects, ...],
        clock: Clock,
        log_limit: LogLimit,
        deadline_s: float,
        counters: Sequence[Counters],
    ) -> None:
        self._tiers = tiers
        self._clock = clock
        self._log_limit = log_limit
        self._deadline_s = deadline_s
        self._counters = counters

    def first_answer(
        self, wanted: PackRange, problems: list[_Problem]
    ) -> tuple[int, bytes | memoryview] | None:
        """The position of the first tier that gives the range, and the range."""
        for position in range(len(self._tiers)):
            shares = len(self._tiers) - position
            data = self._ask(position, wanted, shares, problems, is_fallback=position > 0)
            if data is not None:
                return position, data
        return None

    def alone(self, bad_position: int, wanted: PackRange, chunk: Chunk) -> Came | Failed:
        """A chunk that one tier gave wrong: from those behind it, then from the first once more."""
        problems = [self._invalid(bad_position, chunk)]
        positions = [*range(bad_position + 1, len(self._tiers)), 0]
        for turn, position in enumerate(positions):
            data = self._ask(position, wanted, len(positions) - turn, problems, is_fallback=True)
            if data is None:
                continue
            came, wrong = self.open(position, wanted, data, (chunk,))
            if not wrong:
                return came
            problems.append(self._invalid(position, chunk))
        return Failed(wanted.indices[0], _failure(chunk, problems))

    def open(
        self, position: int, wanted: PackRange, data: bytes | memoryview, chunks: Sequence[Chunk]
    ) -> tuple[Came, list[int]]:
        """The chunks of a range that are right in its bytes, and the numbers of the others; counted."""
        tier = self._tiers[position].tier
        run = wanted.open(data, chunks)
        wrong = run.wrong()
        self._count(tier, chunks=len(chunks) - len(wrong), invalid=len(wrong))
        if not wrong:
            return Came(wanted.indices, run), []
        for number in wrong:
            self._log_limit.warn(f"{tier} invalid", chunks[number].invalid(tier).message)
        right = sorted(set(range(len(chunks))).difference(wrong))
        return Came([wanted.indices[number] for number in right], run.only(right)), wrong

    def _invalid(self, position: int, chunk: Chunk) -> _Problem:
        tier = self._tiers[position].tier
        return tier, chunk.invalid(tier)

    def _count(self, tier: str, **counts: int) -> None:
        for counter in self._counters:
            counter.add_tier(tier, **counts)

    def _ask(
        self, position: int, wanted: PackRange, shares: int, problems: list[_Problem], *, is_fallback: bool
    ) -> bytes | memoryview | None:
        """One request, which may take its share of the time that is left; None if it failed."""
        tier = self._tiers[position]
        left_s = self._deadline_s - self._clock.monotonic()
        if left_s <= 0:
            problems.append((tier.tier, _late(wanted)))
            return None
        try:
            data = _exactly(tier, wanted, left_s / shares)
        except GlowplugError as problem:
            self._log_limit.warn(tier.tier, f"{tier.tier} could not give {wanted.key}: {problem.message}")
            problems.append((tier.tier, problem))
            self._count(tier.tier, requests=1, errors=1, fallbacks=int(is_fallback))
            return None
        self._count(tier.tier, requests=1, transferred_bytes=len(data), fallbacks=int(is_fallback))
        return data


def _exactly(tier: Objects, wanted: PackRange, timeout_s: float) -> bytes | memoryview:
    """What ``tier`` gives for the range. Raises GlowplugError only, whatever is wrong with the tier."""
    try:
        data = tier.read(wanted.key, wanted.start, wanted.size_bytes, timeout_s)
    except GlowplugError:
        raise
    except Exception as bug:  # a bug in one tier must not take the next one with it
        _log.exception("%s failed in a way it should not", tier.tier)
        raise Unavailable(f"{tier.tier} failed: {bug!r}.", remedy="Please report this.") from bug
    if len(data) != wanted.size_bytes:
        raise Unavailable(
            f"{tier.tier} gave {len(data)} bytes instead of {wanted.size_bytes}.",
            remedy="Look at what serves it: an answer was cut off or is not the range asked for.",
        )
    return data


def _failure(chunk: Chunk, problems: Sequence[_Problem]) -> GlowplugError:
    """Why ``chunk`` could not be had, from what the tiers said; an error of its own for each chunk."""
    name = chunk.id.hex()
    if not problems:
        return Unavailable(
            f"Chunk {name[:16]} is not on this machine and there is nowhere to fetch it from.",
            remedy="Set GLOWPLUG_REGION (and GLOWPLUG_ZONE), then start the blob daemon again.",
            chunk=name,
        )
    last = problems[-1][1]
    kind = ChunkMissing if type(last) is NotFound else type(last)
    said = " ".join(f"{tier}: {problem.message}" for tier, problem in problems)
    return kind(
        f"Chunk {name[:16]} could not be fetched. {said}",
        remedy=last.remedy,
        chunk=name,
        tiers=[tier for tier, _ in problems],
    )


def _late(wanted: PackRange) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"No time was left to ask for {wanted.key}.",
        remedy="Look at the latency of the zone and the region, and at what they log.",
        stage="fetch",
    )
