"""Runs in a process of its own: forks workers that use one SSD tier, and has them killed with SIGKILL.

One line in, one line out. ``random WORK SEED DELAY_S``: a worker does WORK until it is killed after DELAY_S.
``step WORK SEED NAME NUMBER``: a worker kills itself just before its NUMBER-th call of NAME, or finishes.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.ssd import SsdStore

PACK_BYTES = 2 << 20
BATCH = 40


def body_of(seed: int, number: int) -> bytes:
    """Content that the test can make again; sizes from a byte to 200 kB."""
    rng = random.Random(f"{seed} {number}")
    return rng.randbytes(rng.choice([rng.randint(1, 5000), rng.randint(1, 200_000)]))


def fill(store: SsdStore, seed: int) -> None:
    """Put, and now and then flush."""
    for number in range(BATCH):
        body = body_of(seed, number)
        store.put(Chunk.of(body), body)
        if number % 7 == 0:
            store.flush()
    store.flush()


def prune(store: SsdStore, seed: int) -> None:
    """Put, and remove half of everything."""
    fill(store, seed)
    store.prune(store.used_bytes() // 2)


def empty(store: SsdStore, seed: int) -> None:
    """Put more than a pack holds, and remove everything, in two goes."""
    fill(store, seed)
    fill(store, seed + 1_000_000)
    store.prune(store.used_bytes() // 2)
    store.prune(0)


WORK: dict[str, Callable[[SsdStore, int], None]] = {"fill": fill, "prune": prune, "empty": empty}


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def _random(root: Path, work: str, seed: int, delay_s: float) -> None:
    started_read, started_write = os.pipe()

    def run() -> None:
        os.write(started_write, b"x")
        store = SsdStore(root, pack_bytes=PACK_BYTES, commit_interval_s=0.005)
        for current in itertools.count(seed):
            WORK[work](store, current)

    pid = _fork(run)
    os.read(started_read, 1)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(started_read)
    os.close(started_write)


def _kill_before_call(name: str, wanted: int) -> None:
    """``name`` is ``module:Class.function`` or ``module:function``."""
    module_name, _, path = name.partition(":")
    owner: Any = importlib.import_module(module_name)
    *owners, function_name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, function_name)
    counter = itertools.count(1)

    def killing(*arguments: Any, **options: Any) -> Any:
        if next(counter) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, function_name, killing)


def _step(root: Path, work: str, seed: int, name: str, number: int) -> str:
    def run() -> None:
        _kill_before_call(name, number)
        with SsdStore(root, pack_bytes=PACK_BYTES, commit_interval_s=600.0) as store:
            WORK[work](store, seed)

    _, status = os.waitpid(_fork(run), 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def main(root: Path) -> None:
    """Serve commands until the input ends."""
    for line in sys.stdin:
        command, work, seed, *rest = line.split()
        if command == "random":
            _random(root, work, int(seed), float(rest[0]))
            answer = "killed"
        else:
            answer = _step(root, work, int(seed), rest[0], int(rest[1]))
        print(answer, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
