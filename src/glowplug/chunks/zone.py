"""A zone: ordinary HTTP caches between many nodes and one region. A broken one costs latency only.

Each stripe of an object belongs to one cache (:mod:`glowplug.chunks.zone_ring`); the next in order, and at
the end the region itself, are asked when it fails, or beside it when it is slower than usual or next to
nothing comes (:mod:`glowplug.chunks.pace`). A cache that keeps failing is left alone for a while. What comes
is checked in length here and by hash where it is used, so a cache can be wrong, but never makes a node wrong.

Whoever can reach a zone's caches can read what they hold: where the region is private, nodes pass a signature
through for the caches to fetch with, and the caches answer from what they have without asking for one.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

from glowplug.chunks.http_address import Resolver
from glowplug.chunks.http_server import Answer, HttpServer, Request, Wanted
from glowplug.chunks.object_keys import is_mutable
from glowplug.chunks.objects import Objects
from glowplug.chunks.pace import LEAST_BYTES_PER_S, PATIENCE_S, Meter
from glowplug.chunks.zone_health import Counting, Patience, ServerHealth, ZoneCounters
from glowplug.chunks.zone_race import Alarm, Candidate, Race
from glowplug.chunks.zone_ring import Part, Ring
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound

SERVERS_ASKED = 2
LATE_S = PATIENCE_S[0]
"""If next to nothing comes for this long the next one is asked whatever second requests cost; a quarter of a
shorter timeout."""

HELPERS = 64
SIGNATURE_S = 3600.0
_SIGNATURES_KEPT = 4096
_Bytes = bytes | memoryview
_HITS = frozenset({"HIT", "STALE", "UPDATING", "REVALIDATED"})


class ZoneObjects:
    """See :class:`glowplug.chunks.objects.Objects`. :meth:`close` it when done."""

    def __init__(
        self,
        servers: Sequence[str],
        region: Objects | None = None,
        *,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``region`` is what stands behind the caches. Raises InvalidInput for a bad URL, or no server."""
        if not servers or len(set(servers)) != len(servers):
            raise InvalidInput(
                "A zone needs at least one server, and each only once.",
                remedy="List the zone's caches in GLOWPLUG_ZONE.",
            )
        self._clock = clock or SystemClock()
        resolver = Resolver(self._clock)
        self._servers = [HttpServer(url, self._clock, resolver, tls) for url in servers]
        self._health = [ServerHealth(self._clock) for _ in self._servers]
        self._ring = Ring([str(server) for server in self._servers])
        self._region = region
        self._signatures = _Signatures(region, self._clock)
        self._patience = Patience()
        self._counting = Counting()
        self._helpers = ThreadPoolExecutor(HELPERS, "glowplug-zone")
        self._alarm = Alarm(self._clock, "glowplug-zone-alarm")

    @property
    def tier(self) -> str:
        """``zone``."""
        return "zone"

    @property
    def counters(self) -> ZoneCounters:
        """What it did so far."""
        return self._counting.snapshot()

    @property
    def skipped_servers(self) -> list[str]:
        """Those that are being left alone."""
        pairs = zip(self._servers, self._health, strict=True)
        return [str(server) for server, health in pairs if health.is_skipped]

    @property
    def meters(self) -> Sequence[Meter]:
        """See :class:`glowplug.chunks.objects.MeteredObjects`; what the region gives, it counts itself."""
        return [server.meter for server in self._servers]

    def close(self) -> None:
        """Drop what is idle or under way. May be called twice."""
        self._alarm.close()
        self._helpers.shutdown(wait=False, cancel_futures=True)
        for server in self._servers:
            server.close()

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes | memoryview:
        """See :class:`glowplug.chunks.objects.Objects`."""
        deadline_s = self._clock.monotonic() + timeout_s
        if size_bytes <= 0 or start < 0:
            raise InvalidInput(f"{size_bytes} bytes from {start} are no range.", remedy="Ask for a byte.")
        first, *others = self._ring.parts(key, start, size_bytes)
        helped = [self._helpers.submit(self._read_part, key, part, deadline_s) for part in others]
        data = self._read_part(key, first, deadline_s)
        try:
            rest = [part.result(max(0.0, deadline_s - self._clock.monotonic())) for part in helped]
        except TimeoutError as late:
            raise _late(key) from late
        return b"".join((data, *rest)) if rest else data

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        """See :class:`glowplug.chunks.objects.Objects`. What may change never comes from a cache."""
        deadline_s = self._clock.monotonic() + timeout_s
        if is_mutable(key) and self._region is not None:
            return self._region.read_all(key, limit_bytes, timeout_s)
        wanted = Wanted(key, 0, limit_bytes, is_whole=True, query=self._signatures.query(key))
        return bytes(self._race(wanted, self._ring.order(key, 0), deadline_s))

    def _read_part(self, key: str, part: Part, deadline_s: float) -> _Bytes:
        wanted = Wanted(key, part.start, part.size_bytes, query=self._signatures.query(key))
        return self._race(wanted, part.order, deadline_s)

    def _race(self, wanted: Wanted, order: Sequence[int], deadline_s: float) -> _Bytes:
        started_s = self._clock.monotonic()
        race = Race(self._candidates(wanted, order), deadline_s, self._clock)
        # Alarms outlive what they were set for; by a weak reference they do not keep its bytes.
        late_s = min(LATE_S, (deadline_s - started_s) / 4)
        self._alarm.set(
            min(self._patience.hedge_after_s, late_s), partial(self._hedge, weakref.ref(race), late_s)
        )
        data = race.run()
        self._patience.took(self._clock.monotonic() - started_s)
        self._counting.add(reads=1, read_bytes=len(data))
        return data

    def _hedge(self, reference: weakref.ref[Race[_Bytes]], late_s: float) -> None:
        """A read takes longer than usual: ask the next one beside, if second requests may be made now."""
        race = reference()
        if race is not None and not race.is_over:
            if self._patience.may_hedge():
                self._join(race)
            self._watch(race, late_s)

    def _watch(self, race: Race[_Bytes], late_s: float) -> None:
        look = partial(self._ask_if_stalled, weakref.ref(race), race.received_bytes, late_s)
        self._alarm.set(late_s, look)

    def _ask_if_stalled(self, reference: weakref.ref[Race[_Bytes]], before_bytes: int, late_s: float) -> None:
        """If whoever was asked brought next to nothing meanwhile: ask the next one, come what may."""
        race = reference()
        if race is not None and not race.is_over:
            if race.received_bytes - before_bytes < LEAST_BYTES_PER_S * late_s:
                self._join(race)
            self._watch(race, late_s)

    def _join(self, race: Race[_Bytes]) -> None:
        self._counting.add(hedges=1)
        with contextlib.suppress(RuntimeError):  # it was closed meanwhile
            self._helpers.submit(race.join)

    def _candidates(self, wanted: Wanted, order: Sequence[int]) -> Iterator[Candidate[_Bytes]]:
        asked = 0
        for position in order:
            if asked < SERVERS_ASKED and self._health[position].may_ask():
                asked += 1
                request = self._servers[position].request(wanted, PATIENCE_S[-1])
                yield _FromServer(request, self._health[position], self._counting)
        if self._region is not None:
            yield _FromRegion(self._region, wanted, self._counting, self._clock)
        elif not asked:
            # Nobody is left: those who failed lately are better than nobody.
            yield from (
                _FromServer(
                    self._servers[position].request(wanted, PATIENCE_S[-1]),
                    self._health[position],
                    self._counting,
                )
                for position in order[:SERVERS_ASKED]
            )


class _FromServer:
    """A cache server as a candidate: its health and the counters learn how it went."""

    def __init__(self, request: Request, health: ServerHealth, counting: Counting) -> None:
        self._request = request
        self._health = health
        self._counting = counting
        self._is_called_off = False

    @property
    def received_bytes(self) -> int:
        return self._request.received_bytes

    def run(self, deadline_s: float) -> _Bytes:
        try:
            answer = self._request.run(deadline_s)
        except NotFound:
            self._health.answered()  # as the region told it
            raise
        except GlowplugError:
            if not self._is_called_off:
                self._counting.add(failures=1, skips=int(self._health.failed()))
            raise
        if not self._is_called_off:
            self._health.answered()
        self._count_cache(answer)
        return answer.data

    def _count_cache(self, answer: Answer) -> None:
        if answer.cache_status:
            is_hit = answer.cache_status.upper() in _HITS
            self._counting.add(hits=int(is_hit), misses=int(not is_hit))

    def cancel(self) -> None:
        self._is_called_off = True
        self._request.cancel()

    def lost(self) -> None:
        self._counting.add(hedges_won=1, skips=int(self._health.failed()))


class _FromRegion:
    """The region as the last candidate. What stalls there it notices itself."""

    received_bytes = 0

    def __init__(self, region: Objects, wanted: Wanted, counting: Counting, clock: Clock) -> None:
        self._region = region
        self._wanted = wanted
        self._counting = counting
        self._clock = clock

    def run(self, deadline_s: float) -> _Bytes:
        wanted, left_s = self._wanted, deadline_s - self._clock.monotonic()
        self._counting.add(region_reads=1)
        if wanted.is_whole:
            return self._region.read_all(wanted.key, wanted.size_bytes, left_s)
        return self._region.read(wanted.key, wanted.start, wanted.size_bytes, left_s)

    def cancel(self) -> None:
        """It ends by itself, at the deadline."""

    def lost(self) -> None:
        """No harm done."""


class _Signatures:
    """Queries that let a cache fetch from a private region, each made once and used for half its life."""

    def __init__(self, region: Objects | None, clock: Clock) -> None:
        self._sign = getattr(region, "sign", None)
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def query(self, key: str) -> str:
        """The query to append; empty if the region needs none."""
        if self._sign is None:
            return ""
        now_s = self._clock.monotonic()
        with self._lock:
            made_s, query = self._kept.get(key, (0.0, ""))
        if query and now_s - made_s < SIGNATURE_S / 2:
            return query
        signed = self._sign(key, SIGNATURE_S)
        if signed is None:
            self._sign = None
            return ""
        query = urlsplit(str(signed)).query
        with self._lock:
            self._kept[key] = (now_s, query)
            if len(self._kept) > _SIGNATURES_KEPT:
                self._kept.popitem(last=False)
        return query


def _late(key: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The zone did not give all of {key} in time.",
        remedy="Look at the zone's servers and the network.",
        stage="zone",
    )
