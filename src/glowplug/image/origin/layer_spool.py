"""Layers on their way from a server: several are fetched at once, ahead of the one that is being applied.

They lie in files without a name in a scratch folder, so that nothing of them is left whatever ends this
process, and no more than :data:`AHEAD` of them at a time beside the one that is read.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from glowplug.image.job import Job
from glowplug.image.origin.oci_manifest import Descriptor
from glowplug.image.origin.port import ByteStream
from glowplug.types.errors import ResourceExhausted

AHEAD = 4
_POLL_S = 0.2

Fetch = Callable[[Descriptor, IO[bytes], Job], None]
"""Fills a file with a blob. Runs in a thread of its own, and heeds the job that it is given."""


@contextmanager
def spooled(
    descriptors: Sequence[Descriptor], fetch: Fetch, scratch: Path, job: Job
) -> Iterator[Iterator[ByteStream]]:
    """The blobs in order, each to be read before the next is asked for; fetching ends with the block."""
    scratch.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    # Only the caller's thread talks to the caller.
    quiet = replace(job, cancelled=stop, progress=lambda _text, _fraction: None)
    started: deque[Future[IO[bytes]]] = deque()
    threads = ThreadPoolExecutor(AHEAD, thread_name_prefix="layers")
    try:
        yield _in_order(
            descriptors, started, lambda blob: threads.submit(_spool, blob, fetch, scratch, quiet), job
        )
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)
        for unread in started:
            if not unread.cancelled() and unread.exception() is None:
                unread.result().close()


def _in_order(
    descriptors: Sequence[Descriptor],
    started: deque[Future[IO[bytes]]],
    start: Callable[[Descriptor], Future[IO[bytes]]],
    job: Job,
) -> Iterator[ByteStream]:
    waiting = deque(descriptors)
    for number in range(1, len(descriptors) + 1):
        while waiting and len(started) < AHEAD:
            started.append(start(waiting.popleft()))
        current = started[0]
        stage = f"fetching layer {number} of {len(descriptors)}"
        if not current.done():
            job.say(stage)
        while not current.done():
            job.check(stage)
            wait_for([current], timeout=_POLL_S)
        with current.result() as file:
            started.popleft()
            yield file


def _spool(blob: Descriptor, fetch: Fetch, scratch: Path, job: Job) -> IO[bytes]:
    free_bytes = shutil.disk_usage(scratch).free
    if blob.size_bytes > free_bytes:
        raise ResourceExhausted(
            f"A layer of {blob.size_bytes} bytes does not fit on the disk of {scratch}.",
            remedy="Make room, and try again.",
            free_bytes=free_bytes,
        )
    file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
    try:
        fetch(blob, file, job)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
