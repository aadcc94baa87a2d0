from __future__ import annotations

import threading

import pytest
from tests.image.origin.origin_kit import a_job

from glowplug.image.job import Job
from glowplug.image.origin.progress import Meter
from glowplug.image.origin.workers import Workers
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, Unavailable

MB = 1_000_000


def test_a_meter_tells_how_far_and_how_fast() -> None:
    said: list[tuple[str, float | None]] = []
    clock = ManualClock()
    job = Job(lambda text, fraction: said.append((text, fraction)), clock, clock.monotonic() + 100)
    meter = Meter(job, "reading files", 4000 * MB)
    clock.advance(2)
    meter.add(1000 * MB)
    assert said == [("reading files: 1,000 of 4,000 MB, 500 MB/s", 0.25)]


def test_a_meter_speaks_a_few_times_a_second_at_most() -> None:
    said: list[str] = []
    clock = ManualClock()
    job = Job(lambda text, _: said.append(text), clock, clock.monotonic() + 100)
    meter = Meter(job, "reading")
    for _ in range(1000):
        clock.advance(0.001)
        meter.add(MB)
    assert 3 <= len(said) <= 4
    assert said[1].endswith("MB, 1,000 MB/s")


def test_a_meter_of_nothing_and_one_that_was_told_too_little_stay_sound() -> None:
    said: list[float | None] = []
    clock = ManualClock()
    job = Job(lambda _, fraction: said.append(fraction), clock, clock.monotonic() + 100)
    for total_bytes, done_bytes in ((0, 0), (1, 500)):
        meter = Meter(job, "reading", total_bytes)
        clock.advance(1)
        meter.add(done_bytes)
    assert said == [None, 1.0]


def test_a_meter_stops_a_job_that_is_out_of_time() -> None:
    clock = ManualClock()
    meter = Meter(Job(lambda _text, _fraction: None, clock, clock.monotonic() + 5), "reading")
    clock.advance(6)
    with pytest.raises(DeadlineExceeded, match="while reading"):
        meter.add(1)


def test_workers_give_every_result_also_of_tasks_that_came_later() -> None:
    with Workers[int](3, a_job(), "counting") as workers:
        workers.submit(lambda: 1)
        got = []
        for result in workers.results():
            got.append(result)
            if result < 50:
                workers.submit(lambda result=result: result + 1)  # type: ignore[misc]
    assert got == list(range(1, 51))


def test_workers_hand_on_what_a_task_raises_and_drop_the_rest() -> None:
    started: list[int] = []

    def fail() -> int:
        started.append(1)
        raise ValueError("no")

    with Workers[int](1, a_job(), "failing") as workers:
        for _ in range(100):
            workers.submit(fail)
        with pytest.raises(ValueError, match="no"):
            next(workers.results())
    assert 1 <= len(started) <= 100


def test_workers_heed_a_cancelled_job() -> None:
    job = a_job()
    release = threading.Event()
    with Workers[bool](1, job, "waiting") as workers:
        workers.submit(lambda: release.wait(60))
        job.cancelled.set()
        with pytest.raises(Unavailable):
            next(workers.results())
        release.set()
