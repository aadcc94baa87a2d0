"""What it costs that one of three zone caches is killed under reads: latencies before, just after, later.

    .venv/bin/python benchmarks/image/bench_zone.py --seconds 10

Three nginx as shipped, which have everything, before a store 20 ms away; four readers read 1 MiB at random
places, and every byte is compared. Needs nginx and a C compiler. Exits with 1 if a read failed or was wrong;
latencies are not judged. Writes zone.json (all samples) and zone.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))

import report
from delayed_store import serving
from native_tools import NativeTools

from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.zone import ZoneObjects
from glowplug.chunks.zone_cache import ZoneCache, processes
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError

CACHES = 3
READERS = 4
READ_BYTES = 1 << 20
PACK_BYTES = 128 << 20
PACK = f"packs/ab/ab{'0' * 62}"
LATENCY_MS = 20.0
JUST_AFTER_S = 2.0
TIMEOUT_S = 30.0


class Readers:
    """Threads that read at random places. ``seen``: when each read ended, and what it took."""

    def __init__(self, zone: ZoneObjects, content: bytes) -> None:
        self.seen: list[tuple[float, float]] = []
        self.wrong: list[str] = []
        self._zone = zone
        self._content = content
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(READERS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            at = chance.randrange(len(self._content) - READ_BYTES)
            started_s = time.monotonic()
            try:
                found = self._zone.read(PACK, at, READ_BYTES, TIMEOUT_S)
            except GlowplugError as problem:
                self.wrong.append(problem.message)
                continue
            ended_s = time.monotonic()
            self.seen.append((ended_s, ended_s - started_s))
            if found != self._content[at : at + READ_BYTES]:
                self.wrong.append(f"wrong bytes at {at}")

    def took_s(self, first_s: float, last_s: float) -> list[float]:
        """What the reads took that ended between these times."""
        return [took_s for ended_s, took_s in self.seen if first_s <= ended_s < last_s]


@contextmanager
def three_caches(folder: Path, origin_url: str) -> Iterator[list[ZoneCache]]:
    with ExitStack() as held:
        caches = []
        for number in range(CACHES):
            listen, place = f"127.0.0.1:{_free_port()}", folder / f"cache-{number}"
            made = ZoneCache(origin_url, listen, place, 1 << 30, min_free_bytes=1 << 20)
            made.up()
            held.callback(made.down)
            caches.append(made)
        yield caches


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="glowplug-bench-zone-", dir="/var/tmp"))
    folder.chmod(0o755)  # nginx's workers are another user's
    try:
        return measure(folder, options.seconds, options.output)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, seconds: float, output: Path) -> int:
    content = random.Random(1).randbytes(PACK_BYTES)
    (folder / "store" / PACK).parent.mkdir(parents=True)
    (folder / "store" / PACK).write_bytes(content)
    machine = report.machine()
    with ExitStack() as held:
        tools = NativeTools(folder / "tools")
        store = held.enter_context(serving(tools, folder / "store", LATENCY_MS))
        caches = held.enter_context(three_caches(folder, store.url))
        region = HttpObjects(store.url)
        held.callback(region.close)
        zone = ZoneObjects([f"http://{cache.status().listen}" for cache in caches], region)
        held.callback(zone.close)
        for at in range(0, PACK_BYTES, READ_BYTES):  # so that the caches have it
            zone.read(PACK, at, READ_BYTES, TIMEOUT_S)
        with Readers(zone, content) as readers:
            began_s = time.monotonic()
            time.sleep(seconds)
            killed_s = time.monotonic()
            processes.end(
                processes.of_folder(caches[0].folder), signal.SIGKILL, TIMEOUT_S, SystemClock().monotonic
            )
            time.sleep(seconds)
            back_s = time.monotonic()
            caches[0].up()
            time.sleep(seconds)
            ended_s = time.monotonic()
        phases = {
            "all three": readers.took_s(began_s, killed_s),
            f"the {JUST_AFTER_S:g} s after one was killed": readers.took_s(killed_s, killed_s + JUST_AFTER_S),
            "later, with two": readers.took_s(killed_s + JUST_AFTER_S, back_s),
            "when it was back": readers.took_s(back_s, ended_s),
        }
    rows = [
        [name, len(found), *(f"{1000 * value_s:.1f} ms" for value_s in _quantiles(found))]
        for name, found in phases.items()
    ]
    lines = [f"One of {CACHES} zone caches killed under {READERS} readers of 1 MiB: {machine}", ""]
    lines += report.table(("", "reads", "p50", "p99", "p100"), rows)
    lines += ["", f"{len(readers.wrong)} reads failed or were wrong. {zone.counters}"]
    result = {"machine": machine, "phases_s": phases, "wrong": readers.wrong}
    report.write(output, "zone", result, lines)
    return 1 if readers.wrong else 0


def _quantiles(found_s: list[float]) -> list[float]:
    told = report.quantiles(found_s)
    return [told["p50"], told["p99"], told["p100"]]


if __name__ == "__main__":
    sys.exit(main())
