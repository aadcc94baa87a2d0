"""Tiers and an SSD whose every move a test decides: what they hold, when they answer, what they answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import blake3
from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch import Done, Fetcher, Outcome, RemoteBlob
from glowplug.chunks.pack import Encoding, pack_key
from glowplug.chunks.placement import Place, Placement
from glowplug.chunks.run import Run
from glowplug.chunks.ssd_packs import place_of
from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import DeadlineExceeded, GlowplugError, NotFound, ResourceExhausted

MakeFetcher = Callable[..., Fetcher]
"""Makes a fetcher from an SSD tier, the tiers behind it and options; it is closed when the test is over."""

PATIENCE_S = 60.0
"""How long a test waits for something that should have happened long ago."""


@dataclass
class MadeBlob:
    """A blob, its chunks' bytes, and the packs it lies in."""

    remote: RemoteBlob
    contents: list[bytes]
    packs: dict[str, bytes]

    def is_at(self, request: Request) -> int:
        """The index of the chunk that a request starts with."""
        for index in range(len(self.contents)):
            place = self.placement.place(index)
            if (pack_key(place.pack_id), place.offset) == (request.key, request.start):
                return index
        raise AssertionError(request)

    @property
    def placement(self) -> Placement:
        placement = self.remote.placement
        assert placement is not None
        return placement


def make_blob(sizes: Iterable[int], *, seed: int = 0, chunks_per_pack: int = 1 << 16) -> MadeBlob:
    rng = random.Random(seed)
    contents = [rng.randbytes(size) for size in sizes]
    packs: dict[str, bytes] = {}
    places: list[Place] = []
    for start in range(0, len(contents), chunks_per_pack):
        bodies = contents[start : start + chunks_per_pack]
        pack = b"".join(bodies)
        pack_id = blake3.blake3(pack).digest()
        packs[pack_key(pack_id)] = pack
        offset = 0
        for body in bodies:
            places.append(Place(pack_id, offset, len(body), Encoding.RAW))
            offset += len(body)
    table = ChunkTable(ChunkTable.pack(map(Chunk.of, contents)))
    return MadeBlob(RemoteBlob(table, Placement(Placement.pack(places))), contents, packs)


def far_apart(count: int, *, seed: int = 0, size: int = 1000) -> MadeBlob:
    """Chunks that no request can join: each lies in a pack of its own."""
    return make_blob([size] * count, seed=seed, chunks_per_pack=1)


@dataclass(eq=False)
class Request:
    """One read that a tier was asked for."""

    key: str
    start: int
    size_bytes: int
    go: threading.Event = field(default_factory=threading.Event)


def starts_of(blob: MadeBlob, requests: Iterable[Request]) -> list[int]:
    """The indices of the chunks that these start with."""
    return [blob.is_at(request) for request in requests]


class FakeTier:
    """Objects in memory. ``hold`` makes requests wait for ``release``; ``answer`` may replace any answer."""

    def __init__(self, tier: str, packs: dict[str, bytes]) -> None:
        self.tier = tier
        self.packs = dict(packs)
        self.requests: list[Request] = []
        self.answer: Callable[[Request, bytes], bytes] = lambda _request, data: data
        self.is_holding = False
        self._changed = threading.Condition()

    def hold(self) -> None:
        self.is_holding = True

    def release(self, *requests: Request) -> None:
        """Let these go on, or all, now and in the future."""
        with self._changed:
            if not requests:
                self.is_holding = False
            for request in requests or self.requests:
                request.go.set()

    def wait_for_requests(self, count: int) -> list[Request]:
        """The first ``count`` requests, once that many have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE_S), self.requests
            return self.requests[:count]

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        request = Request(key, start, size_bytes)
        with self._changed:
            is_held = self.is_holding
            self.requests.append(request)
            self._changed.notify_all()
        if is_held and not request.go.wait(min(timeout_s, PATIENCE_S)):
            raise DeadlineExceeded(f"{self.tier} did not answer.")
        if key not in self.packs:
            raise NotFound(f"{key} is not in {self.tier}.")
        return self.answer(request, self.packs[key][start : start + size_bytes])

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        raise NotImplementedError


class FakeSsd:
    """A store in memory; ``is_full`` makes every put fail, ``breakdown`` everything."""

    tier = "ssd"

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.is_full = False
        self.breakdown: Exception | None = None
        self.when_asked: Callable[[], None] = lambda: None  # called before `missing` answers

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        self._work()
        if chunk.id not in self.chunks:
            raise chunk.missing(self.tier)
        return self.chunks[chunk.id]

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        self._work()
        self.when_asked()
        return [chunk for chunk in dict.fromkeys(chunks) if chunk.id not in self.chunks]

    def put(self, chunk: Chunk, data: Buffer) -> None:
        self._work()
        chunk.verify(data, self.tier)
        if self.is_full:
            raise ResourceExhausted("The disk is full.")
        self.chunks[chunk.id] = bytes(data)

    def put_verified(self, run: Run) -> list[int | None]:
        for number, chunk in enumerate(run.chunks):
            self.put(chunk, run.body(number))
        return [place_of(1, 4096 * number) for number in range(len(run.chunks))]

    def flush(self) -> None:
        self._work()

    def _work(self) -> None:
        if self.breakdown is not None:
            raise self.breakdown


class Asker:
    """Collects what its ``done``s are called with."""

    def __init__(self) -> None:
        self.outcomes: dict[object, Outcome] = {}
        self.order: list[object] = []
        self.twice: list[object] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def done(self, name: object) -> Done:
        """A callback whose outcome is ``outcomes[name]``."""

        def take(outcome: Outcome) -> None:
            with self._changed:
                if name in self.outcomes:
                    self.twice.append(name)
                self.outcomes[name] = outcome if isinstance(outcome, GlowplugError) else bytes(outcome)
                self.order.append(name)
                self.threads.add(threading.current_thread().name)
                self._changed.notify_all()

        return take

    def wait(self, *names: object) -> list[Outcome]:
        """What these were answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= set(self.outcomes), PATIENCE_S), self.outcomes
            return [self.outcomes[name] for name in names]

    def wait_for_count(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, PATIENCE_S), (
                count,
                len(self.outcomes),
            )
