"""Demand as the router has it right now: requests in flight, waiting and ended, from the control plane's
metrics.

Read every second; what they need (``forecast.offered``: a line of requests is not the room that they need) is
kept as the most in each step, and written down, so that a restart knows yesterday. While the control plane
does not answer, demand is taken to be what it was: a hole would look like quiet hours.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from glowplug.pool.forecast.offered import OfferedLoad, Trust, put_right
from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.plan_file import LiveRequests, PlanFile
from glowplug.types.errors import GlowplugError, SystemUnfit, Unavailable

RECORD_NAME = "demand.jsonl"
_SAMPLES = {
    "glowplug_in_flight_requests": "in_flight",
    "glowplug_held_requests": "waiting",
    "glowplug_requests_total": "ended",
}
_GAUGES = ("glowplug_in_flight_requests", "glowplug_held_requests")
_EVERY_S = 1.0
_KEPT_S = 30 * 86_400.0
_log = logging.getLogger(__name__)


@dataclass
class RequestCounts:
    """Requests in flight and waiting now, and those that ended since the control plane began."""

    in_flight: float = 0.0
    waiting: float = 0.0
    ended: float = 0.0


class _Steps:
    """The most slots in each step, from step number ``first`` on, without holes."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.first = 0
        self.slots: list[float] = []
        self._guesses: set[int] = set()

    def add(self, at_s: float, slots: float, trust: Trust = Trust.KNOWN) -> list[tuple[int, float]]:
        """Take in a reading; returns steps, by number, that are settled by it: over, and no guess. One of
        before the last step is left out: the clock was set back.
        """
        number = math.floor(at_s / self.step_s)
        if not self.slots:
            self.first, self.slots = number, [slots]
            self._guesses = {number} if trust is Trust.GUESS else set()
            return []
        last = self.first + len(self.slots) - 1
        if number < last:
            return []
        settled = self._put_right(slots) if trust is Trust.KNOWN else {}
        if number == last:
            self.slots[-1] = max(self.slots[-1], slots)
        else:
            if last not in self._guesses:
                settled[last] = self.slots[-1]
            self._append(number, slots)
        if trust is Trust.GUESS:
            self._guesses.add(number)
        return sorted((step, most) for step, most in settled.items() if step < number)

    def _put_right(self, known: float) -> dict[int, float]:
        found = {}
        for number in self._guesses:
            place = number - self.first
            if place >= 0:
                found[number] = self.slots[place] = put_right(self.slots[place], known)
        self._guesses = set()
        return found

    def _append(self, number: int, slots: float) -> None:
        """The step ``number``; those between are taken to be as the last."""
        most = math.ceil(_KEPT_S / self.step_s)
        hole = min(number - (self.first + len(self.slots)), most)
        self.slots += [self.slots[-1]] * hole + [slots]
        self.first = number - len(self.slots) + 1
        if len(self.slots) > most:
            self.first += len(self.slots) - most
            del self.slots[:-most]


class LiveDemand:
    """The demand of every entry that has ``live``. ``fetch`` returns the control plane's metrics as text, or
    raises GlowplugError. :meth:`series` may be asked from another thread than the one that samples.
    """

    def __init__(
        self, file: PlanFile, fetch: Callable[[], str], wall: Callable[[], float], folder: Path
    ) -> None:
        self._entries: dict[int, LiveRequests] = {
            place: entry.live for place, entry in enumerate(file.demand) if entry.live is not None
        }
        self._names = {
            place: f"{file.demand[place].gpu} x{file.demand[place].gpus}" for place in self._entries
        }
        self._fetch = fetch
        self._wall = wall
        self._record = folder / RECORD_NAME
        self._lock = threading.Lock()
        self._steps = {place: _Steps(entry.step_s) for place, entry in self._entries.items()}
        self._loads = {place: OfferedLoad(file.demand[place].wait_s) for place in self._entries}
        self.problem = ""
        """Why the last reading failed; empty if it did not."""
        self._load()

    def sample(self) -> None:
        """One reading. What fails is kept in :attr:`problem`."""
        try:
            counts = requests_now(self._fetch())
            self._take(counts)
        except GlowplugError as failure:
            if not self.problem:
                _log.warning("demand cannot be read: %s", failure)
            self.problem = f"Demand cannot be read, and is taken to be as it was: {failure.message}"
        else:
            self.problem = ""

    def run(self, ended: threading.Event) -> None:
        """Read every second, until ``ended``; return at once if no entry wants it."""
        while self._entries and not ended.wait(_EVERY_S):
            self.sample()

    def series(self, place: int, now_s: float) -> DemandSeries:
        """The demand of an entry so far; until now, if the last reading is old."""
        with self._lock:
            steps = self._steps[place]
            if not steps.slots:
                return DemandSeries(now_s, steps.step_s, np.empty(0))
            missing = math.floor(now_s / steps.step_s) - (steps.first + len(steps.slots))
            held = [steps.slots[-1]] * min(max(missing, 0), math.ceil(_KEPT_S / steps.step_s))
            return DemandSeries(steps.first * steps.step_s, steps.step_s, np.array(steps.slots + held))

    def waiting_slot_s(self, place: int) -> float:
        """For how long one slot of an entry would work on what waited at the last reading."""
        with self._lock:
            return self._loads[place].waiting_work_s / self._entries[place].requests_per_slot

    def _take(self, counts: Mapping[str, RequestCounts]) -> None:
        now_s = self._wall()
        lines = []
        with self._lock:
            for place, entry in self._entries.items():
                found = [counts[app] for app in entry.apps if app in counts]
                requests = self._loads[place].read(
                    now_s,
                    sum(one.in_flight for one in found),
                    sum(one.waiting for one in found),
                    sum(one.ended for one in found),
                )
                steps, slots = self._steps[place], math.ceil(requests / entry.requests_per_slot - 1e-9)
                for number, most in steps.add(now_s, slots, self._loads[place].trust):
                    lines.append({"at_s": number * steps.step_s, "of": self._names[place], "slots": most})
        if lines:
            self._write("".join(json.dumps(line) + "\n" for line in lines), "a")

    def _write(self, text: str, mode: str) -> None:
        try:
            with self._record.open(mode) as file:
                file.write(text)
        except OSError as problem:
            raise SystemUnfit(
                f"Demand cannot be written down in {self._record}: {problem}.",
                remedy="Check the disk and who may write there.",
            ) from problem

    def _load(self) -> None:
        """What was written down; lines that are torn, or of no entry any more, are left out and not kept."""
        if not self._record.exists():
            return
        places = {name: place for place, name in self._names.items()}
        kept = []
        for line in self._record.read_text(errors="replace").splitlines():
            try:
                found = json.loads(line)
                place, at_s, slots = places[found["of"]], float(found["at_s"]), float(found["slots"])
            except (ValueError, KeyError, TypeError):
                continue
            if self._wall() - _KEPT_S <= at_s <= self._wall() and 0 <= slots < math.inf:
                # The middle of the step: its start, divided and multiplied, may be of the one before.
                self._steps[place].add(at_s + self._steps[place].step_s / 2, slots)
                kept.append(line + "\n")
        self._write("".join(kept), "w")


def requests_now(metrics: str) -> dict[str, RequestCounts]:
    """By ``APP`` and by ``APP/SERVER``. Raises Unavailable for what are no metrics of ours."""
    counts: dict[str, RequestCounts] = {}
    try:
        families = list(text_string_to_metric_families(metrics))
    except (ValueError, KeyError, IndexError) as problem:
        raise Unavailable(
            f"The control plane's metrics cannot be read: {problem}.",
            remedy="Is it Glowplug at that address?",
        ) from problem
    if not any(family.name in _GAUGES for family in families):
        raise Unavailable(
            "There are no requests in the control plane's metrics.", remedy="Is it Glowplug at that address?"
        )
    for sample in (sample for family in families for sample in family.samples):
        what = _SAMPLES.get(sample.name)
        if what is None or not (math.isfinite(sample.value) and sample.value >= 0):
            continue
        app, server = sample.labels.get("app", ""), sample.labels.get("server", "")
        for name in (app, f"{app}/{server}"):
            count = counts.setdefault(name, RequestCounts())
            setattr(count, what, getattr(count, what) + sample.value)
    return counts
