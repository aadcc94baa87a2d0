"""Demand as it was: slots needed at most in each step of time, from a log of requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glowplug.pool.forecast.offered import patient_need
from glowplug.pool.tables import moment_s, read_table
from glowplug.types.errors import InvalidInput

Floats = NDArray[np.float64]
MAX_STEPS = 5_000_000


@dataclass(frozen=True, eq=False)
class DemandSeries:
    """``slots[i]``: the most that were needed at once from ``start_s + i * step_s`` (Unix time) on, for
    ``step_s``.
    """

    start_s: float
    step_s: float
    slots: Floats

    def until(self, at_s: float) -> DemandSeries:
        """Only the steps that are over at ``at_s``."""
        steps = int(np.clip((at_s - self.start_s) // self.step_s, 0, len(self.slots)))
        return DemandSeries(self.start_s, self.step_s, self.slots[:steps])


def slots_needed(
    starts_s: Floats,
    durations_s: Floats,
    step_s: float,
    requests_per_slot: int,
    until_s: float | None = None,
    wait_s: float = 0.0,
) -> DemandSeries:
    """Slots for requests that come at ``starts_s`` and take ``durations_s``, ``requests_per_slot`` at once
    in each, if each may wait for ``wait_s``.

    Steps are multiples of ``step_s`` since 1970, so that they line up from day to day. Raises InvalidInput.
    """
    if not (0 < step_s <= 86_400 and requests_per_slot >= 1):
        raise InvalidInput(
            "A step is at most a day, and a slot takes at least one request.", remedy="Change it."
        )
    bad = ~(np.isfinite(starts_s) & np.isfinite(durations_s)) | (durations_s < 0)
    if bad.any() or not len(starts_s):
        raise InvalidInput(
            f"{int(bad.sum())} of {len(starts_s)} requests have no time or a negative duration.",
            remedy="Each request has a start and a duration, in seconds.",
        )
    first_s = math.floor(starts_s.min() / step_s) * step_s
    last_s = max(float((starts_s + durations_s).max()), until_s or 0.0)
    steps = int((last_s - first_s) // step_s) + 1
    if steps > MAX_STEPS:
        raise InvalidInput(
            f"The requests span {last_s - first_s:.0f} s: {steps} steps of {step_s:g} s.",
            remedy="Is one of their times wrong? Or choose a longer step.",
        )
    times_s = np.concatenate((starts_s, starts_s + durations_s))
    changes = np.concatenate((np.ones(len(starts_s)), -np.ones(len(starts_s))))
    # Of what happens at once, what ends comes first: a slot that gets free is taken again.
    order = np.lexsort((changes, times_s))
    running = np.cumsum(changes[order])
    # What ends where a step ends is of that step, and not of the next.
    steps_from_first = (times_s[order] - first_s) / step_s
    place = np.where(changes[order] > 0, np.floor(steps_from_first), np.ceil(steps_from_first) - 1)
    place = np.maximum(place, 0).astype(np.int64)
    most = np.zeros(steps)
    np.maximum.at(most, place, running)
    # A step in which nothing changes needs what ran at the end of the step before; so do those where less
    # follows.
    at_end = np.zeros(steps)
    last_of_step = np.append(place[1:] != place[:-1], True)
    at_end[place[last_of_step]] = running[last_of_step]
    filled = np.zeros(steps, dtype=np.int64)
    filled[place[last_of_step]] = place[last_of_step]
    carried = at_end[np.maximum.accumulate(filled)]
    most[1:] = np.maximum(most[1:], carried[:-1])
    if wait_s > 0:
        patient = _patient(starts_s - first_s, durations_s, step_s, steps, wait_s)
        # However patient they are: whoever comes needs a place.
        most = np.minimum(most, np.maximum(patient, 1.0))
    return DemandSeries(first_s, step_s, np.ceil(most / requests_per_slot - 1e-9))


def _patient(since_s: Floats, durations_s: Floats, step_s: float, steps: int, wait_s: float) -> Floats:
    """Requests at once in each step, if they may wait: by the second, where that is not too fine."""
    ticks = max(1, min(round(step_s), MAX_STEPS // steps))
    tick_s = step_s / ticks
    place = np.minimum((since_s / tick_s).astype(np.int64), steps * ticks - 1)
    work_s = np.bincount(place, durations_s, minlength=steps * ticks).astype(np.float64)
    return np.asarray(patient_need(work_s, tick_s, wait_s).reshape(steps, ticks).max(axis=1))


def read_requests(
    path: Path, prefill_tokens_per_s: float, decode_tokens_per_s: float
) -> tuple[Floats, Floats]:
    """Starts (Unix s) and durations (s) from a CSV file, ``.gz`` too. Raises InvalidInput.

    Columns ``at`` (Unix seconds or a date and time) and ``duration_s``; or ``TIMESTAMP``, ``ContextTokens``,
    ``GeneratedTokens`` as in Azure's traces of LLM inference, from which durations follow by the two speeds.
    """
    table = read_table(path)
    columns = set(table.columns)
    is_azure = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= columns
    if not is_azure and not {"at", "duration_s"} <= columns:
        raise InvalidInput(
            f"{path} is no log of requests: its columns are {', '.join(table.columns[:20]) or 'none'}.",
            remedy="Give columns at, duration_s; or TIMESTAMP, ContextTokens, GeneratedTokens.",
            file=str(path),
        )
    starts_s, durations_s = [], []
    for line, row in table.rows:
        try:
            if is_azure:
                starts_s.append(moment_s(row["TIMESTAMP"]))
                prefill_s = float(row["ContextTokens"]) / prefill_tokens_per_s
                durations_s.append(prefill_s + float(row["GeneratedTokens"]) / decode_tokens_per_s)
            else:
                starts_s.append(moment_s(row["at"]))
                durations_s.append(float(row["duration_s"]))
        except (TypeError, ValueError) as problem:
            raise InvalidInput(
                f"{path}, line {line}: {problem}.",
                remedy="A history with a hole would look like quiet hours: mend or remove the line.",
                file=str(path),
            ) from problem
    return np.array(starts_s), np.array(durations_s)
