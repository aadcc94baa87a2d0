"""Which node a replica is started on: a score, so that it can be stated, shown and argued about.

A node that is draining, unreachable or lost gets nothing. One that has no room as far as is known comes after
every one that has. Of the others the highest sum wins, of equal ones the first by name:

=======  ======  ===================================================================================
part     points  for
=======  ======  ===================================================================================
heat     0..60   60: a snapshot of this server is on its disk; 40: one that fits this kind of
                 machine is in the region, or its zone; 20: the image is here; 0: nothing is. What
                 a start of this version that is under way there fetches counts as here
cached   0..10   the share of the snapshot's (or else the image's) bytes that is here; all of it
                 where a start under way fetches it
machine  0, 5    5: a snapshot of this server that is known somewhere fits this kind of machine
memory   0..10   the share of its memory that is free when the replica is there
packing  0..8    GPUs: the share of the node's that is taken then, so that whole nodes stay free
                 for who needs many; a server without: 8 where there are no GPUs to keep free
spread   -40..0  -8 for each copy of this server in the same failure domain (label ``zone``, else
                 ``rack``, else the node itself)
starts   -40..0  -40 times the share of its core that a start loses there to those under way
=======  ======  ===================================================================================

Of a burst each start is weighed with those before it: they take cores and memory before their node tells of
it. With ``n`` starts under way on ``c`` cores, each of which keeps one busy, a further one gets a core's
``c / (c + n)``, and loses ``n / (c + n)``. A fetch costs 30 points (from region to disk, and all of it
cached), so a start goes elsewhere to fetch what is here once three others share each core here, or sooner
where copies are to be spread. Later ones find that fetch under way, so the rest of a burst follows cores and
memory. Busy cores alone never outweigh a snapshot that is in no region (40 points): a start without one takes
longer than most queues for it.

Parked copies are not in it: they are woken before anything is placed (:mod:`glowplug.control.ladder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from glowplug.control.holdings import NOTHING, Holdings
from glowplug.types.chips import is_called
from glowplug.types.replica import HeldSnapshot

HEAT_SNAPSHOT_HERE = 60.0
HEAT_SNAPSHOT_NEAR = 40.0
HEAT_IMAGE_HERE = 20.0
_CACHED = 10.0
_MACHINE = 5.0
_MEMORY = 10.0
_PACKING = 8.0
_SPREAD = -8.0
_SPREAD_MOST = -40.0
_STARTS = -40.0
_DOMAIN_LABELS = ("zone", "rack")


@dataclass(frozen=True)
class Wish:
    """What is to be placed. ``gpu`` is a chip's name, empty for none."""

    app: str
    server: str
    image_id: str
    memory_bytes: int = 0
    gpu: str = ""
    gpu_count: int = 0

    @property
    def name(self) -> str:
        """``app/server``, as snapshots are told to be of."""
        return f"{self.app}/{self.server}"


@dataclass(frozen=True)
class Candidate:
    """A node as far as it is known. ``why_not`` says why nothing may be placed there; None for yes.

    ``free_memory_bytes`` is None where nobody asked the node yet. ``gpus`` are the names of its chips, of
    which ``gpus_used`` are taken. Both count what starts under way will take.
    """

    name: str
    why_not: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    memory_bytes: int = 0
    free_memory_bytes: int | None = None
    gpus: Sequence[str] = ()
    gpus_used: int = 0
    holdings: Holdings = NOTHING
    has_image: bool = False
    """The image was made ready there; ``holdings``, which are seconds old, may not know yet."""
    copies: int = 0
    """Of this server, on this node."""
    starting: int = 0
    """Starts under way there, of any server."""
    is_fetching: bool = False
    """One of them is of this very version, or ended too lately for ``holdings`` to tell what it fetched."""

    @property
    def domain(self) -> tuple[str, str]:
        """What fails together with it."""
        for label in _DOMAIN_LABELS:
            if label in self.labels:
                return label, self.labels[label]
        return "node", self.name


@dataclass(frozen=True)
class Score:
    """What became of one node. ``parts`` are those of the table above."""

    node: str
    parts: Mapping[str, float] = field(default_factory=dict)
    why_not: str | None = None
    why_full: str | None = None

    @property
    def total(self) -> float:
        """The sum."""
        return sum(self.parts.values())

    @property
    def order(self) -> tuple[bool, bool, float, str]:
        """Best first."""
        return (self.why_not is not None, self.why_full is not None, -self.total, self.node)


def rank(wish: Wish, candidates: Iterable[Candidate]) -> list[Score]:
    """Every node's score, best first; those that get nothing are last, and say why. Decides by this alone."""
    nodes = list(candidates)
    name = wish.name
    held = [node.holdings.of(name, wish.image_id) for node in nodes]
    known = _Known.of([snapshot for here in held for snapshot in here])
    copies: dict[tuple[str, str], int] = {}
    for node in nodes:
        copies[node.domain] = copies.get(node.domain, 0) + node.copies
    scores = [
        _score(wish, node, here, known, copies[node.domain]) for node, here in zip(nodes, held, strict=True)
    ]
    return sorted(scores, key=lambda score: score.order)


@dataclass(frozen=True)
class _Known:
    """Kinds of machines that some snapshot of the server fits, and that one in the region fits."""

    machines: frozenset[str]
    in_region: frozenset[str]

    @classmethod
    def of(cls, snapshots: Sequence[HeldSnapshot]) -> _Known:
        return cls(
            frozenset(snapshot.machine for snapshot in snapshots),
            frozenset(snapshot.machine for snapshot in snapshots if snapshot.is_in_region),
        )


def _score(
    wish: Wish, node: Candidate, here: Sequence[HeldSnapshot], known: _Known, copies_near: int
) -> Score:
    if node.why_not is not None:
        return Score(node.name, why_not=node.why_not)
    heat, cached = _heat(wish, node, here, known)
    parts = {
        "heat": heat,
        "cached": _CACHED * cached,
        "machine": _MACHINE * (bool(node.holdings.machine) and node.holdings.machine in known.machines),
        "memory": _MEMORY * _memory_left(wish, node),
        "packing": _PACKING * _packing(wish, node),
        "spread": max(_SPREAD * copies_near, _SPREAD_MOST),
        "starts": _STARTS * node.starting / (node.starting + max(node.cpus, 1.0)),
    }
    rounded = {name: round(points, 2) + 0.0 for name, points in parts.items()}  # no "-0"
    return Score(node.name, rounded, why_full=_full(wish, node))


def _heat(wish: Wish, node: Candidate, here: Sequence[HeldSnapshot], known: _Known) -> tuple[float, float]:
    """Points, and the share of the bytes that they are about which is here."""
    machine = node.holdings.machine
    fitting = [snapshot for snapshot in here if snapshot.machine == machine]
    if fitting:
        share = max(_share(snapshot.here_bytes, snapshot.bytes) for snapshot in fitting)
        return HEAT_SNAPSHOT_HERE, 1.0 if node.is_fetching else share
    if machine in known.in_region:
        return (HEAT_SNAPSHOT_HERE, 1.0) if node.is_fetching else (HEAT_SNAPSHOT_NEAR, 0.0)
    has_image = node.is_fetching or node.has_image or wish.image_id in node.holdings.images
    return (HEAT_IMAGE_HERE, 1.0) if has_image else (0.0, 0.0)


def _memory_left(wish: Wish, node: Candidate) -> float:
    if node.free_memory_bytes is None or not node.memory_bytes:
        return 0.0
    return min(max(node.free_memory_bytes - wish.memory_bytes, 0) / node.memory_bytes, 1.0)


def _packing(wish: Wish, node: Candidate) -> float:
    if not wish.gpu_count:
        return 0.0 if node.gpus else 1.0
    return min((node.gpus_used + wish.gpu_count) / len(node.gpus), 1.0) if node.gpus else 0.0


def _full(wish: Wish, node: Candidate) -> str | None:
    """Why it has no room, as far as is known: its agent has the last word."""
    if node.free_memory_bytes is None:
        return None
    if wish.memory_bytes > node.free_memory_bytes:
        return f"{node.free_memory_bytes >> 20} MiB of memory are free, {wish.memory_bytes >> 20} are needed"
    if wish.gpu_count:
        alike = sum(1 for chip in node.gpus if is_called(chip, wish.gpu))
        # Which of them are taken is the agent's to know: as many as can be might be others.
        free = min(alike, len(node.gpus) - node.gpus_used)
        if free < wish.gpu_count:
            return f"{max(free, 0)} GPUs ({wish.gpu}) are free, {wish.gpu_count} are needed"
    return None


def _share(part_bytes: int, whole_bytes: int) -> float:
    return min(part_bytes / whole_bytes, 1.0) if whole_bytes else 1.0
