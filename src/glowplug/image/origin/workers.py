"""A few threads for one stage of a job, heeding its deadline: what is handed in comes out as it is done."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from glowplug.image.job import Job

T = TypeVar("T")
_POLL_S = 0.1


class Workers(Generic[T]):
    """A context manager; leaving the block drops what was not begun and waits for what was."""

    def __init__(self, count: int, job: Job, stage: str) -> None:
        self._job = job
        self._stage = stage
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="image-origin")
        self._done: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self._outstanding = 0

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Callable[[], T]) -> None:
        """Have it done. Also while iterating over :meth:`results`."""
        self._outstanding += 1
        self._pool.submit(task).add_done_callback(self._done.put)

    def results(self) -> Iterator[T]:
        """Every task's result, until none is left. Raises what a task raised, or as :meth:`Job.check`."""
        while self._outstanding:
            self._job.check(self._stage)
            try:
                future = self._done.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._outstanding -= 1
            yield future.result()
