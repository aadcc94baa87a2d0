"""What a running copy looks like from outside: its states, its view, and the node agent's messages.

These are the contract between the control plane and the node agent (see ``docs/architecture.md``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glowplug.types.errors import GlowplugError
from glowplug.types.spec import ImageSpec, ServerSpec

# A machine that was taken over says what it likes: what others calculate with or write down is bounded.
_MOST = 1 << 62
_MAX_GPUS = 1024
Count = Annotated[int, Field(ge=0, le=_MOST)]
Word = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""An id or a name, as one line of a log shows it."""
Tiers = Annotated[dict[Word, Count], Field(max_length=16)]
ReplicaId = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Message(BaseModel):
    """Base of everything processes tell each other: unknown fields are ignored, so old and new can talk.

    Numbers are finite: with others, nothing that is calculated means anything.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ReplicaState(StrEnum):
    """The life of a replica. Arrows: starting -> ready -> draining -> stopped; any -> failed.

    Ready and parked (frozen, its memory kept or swapped out) may follow each other any number of times.
    """

    STARTING = "starting"
    READY = "ready"
    PARKED = "parked"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Nothing of it runs any more."""
        return self in (ReplicaState.STOPPED, ReplicaState.FAILED)


class Purpose(StrEnum):
    """Why a replica exists: to serve callers, or to be captured (it never sees a caller)."""

    SERVE = "serve"
    CAPTURE = "capture"


class StartPath(StrEnum):
    """How a replica came to life, coldest first."""

    COLD = "cold"
    CPU_SNAPSHOT = "cpu_snapshot"
    GPU_SNAPSHOT = "gpu_snapshot"
    PARKED = "parked"


class Stage(StrEnum):
    """The stages of a cold start, in order."""

    ALLOCATE = "allocate"
    MOUNT = "mount"
    HOST_INIT = "host_init"
    DEVICE_INIT = "device_init"
    FIRST_ANSWER = "first_answer"


class Endpoint(Message):
    """Where a replica answers: ``host:port`` inside the network namespace file ``netns`` (None: our own)."""

    netns: str | None = None
    host: str
    port: int


class ErrorInfo(Message):
    """A :class:`~glowplug.types.errors.GlowplugError` as JSON."""

    code: str
    message: str
    remedy: str = ""
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, error: GlowplugError) -> ErrorInfo:
        """This error."""
        return cls.model_validate(error.to_dict())


class ReplicaView(Message):
    """Everything the agent tells about one replica. Times are Unix seconds; stages map to seconds.

    ``memory_bytes`` is what its cgroup is charged; ``proportional_bytes`` counts each page of its processes
    by its share (PSS), so that a page which several copies share counts once in all.
    ``gpus`` are the UUIDs of those that it was given, and ``device_bytes`` is what it holds of their memory.
    Of two views of one replica the one with the larger ``revision`` is newer, whichever came first.
    ``suspended_bytes`` of device memory lie in its own memory while it is parked: then it has no GPU.
    ``node`` is what the control plane calls its node, where there are several; the agent does not say.
    """

    id: ReplicaId
    node: str | None = None
    revision: Count = 0
    app: Word
    server: Word
    deployment_id: Word
    purpose: Purpose = Purpose.SERVE
    runtime: Word = "runsc"
    state: ReplicaState
    stage: Stage | None = None
    path: StartPath = StartPath.COLD
    stages_s: dict[Stage, float] = {}
    endpoint: Endpoint | None = None
    created_at: float
    ready_at: float | None = None
    parked_at: float | None = None
    is_pushed_out: bool = False
    ended_at: float | None = None
    pid: int | None = None
    memory_bytes: Count | None = None
    proportional_bytes: Count | None = None
    swapped_bytes: Count | None = None
    gpus: Annotated[list[Word], Field(max_length=_MAX_GPUS)] = []
    device_bytes: Count | None = None
    suspended_bytes: Count | None = None
    exit_code: int | None = None
    snapshot_id: Word | None = None
    restored_bytes: Count = 0
    mounted_as: Word | None = None
    image_bytes_by_tier: Tiers = {}
    image_chunks_by_tier: Tiers = {}
    snapshot_bytes_by_tier: Tiers = {}
    snapshot_chunks_by_tier: Tiers = {}
    fallback_reason: str | None = None
    error: ErrorInfo | None = None


class StartReplica(Message):
    """Ask an agent for one more copy. ``secrets`` maps names to values; it is never written to a log."""

    replica_id: str
    app: str
    deployment_id: str
    server: ServerSpec
    image_id: str
    secrets: dict[str, str] = Field(default={}, repr=False)


class NodeView(Message):
    """A machine: what it has, what is taken, what its runtimes are.

    ``quarantine`` says why it restores nothing.
    """

    name: Word
    agent_pid: Count
    version: Word
    cpus: float = Field(ge=0, le=1_000_000)
    cpus_used: float = Field(ge=0)
    memory_bytes: Count
    memory_used_bytes: Count
    gpus: Annotated[list[Word], Field(max_length=_MAX_GPUS)] = []
    gpus_used: int = Field(default=0, ge=0, le=_MAX_GPUS)
    runtime: str = Field(max_length=1000)
    replicas: Count = 0
    quarantine: str | None = None


MAX_HELD = 256
"""So many snapshots, and so many images, a node tells of at most: those used last."""
HOLDINGS_FRESH_S = 5.0
"""What a node tells that it holds was so at most this long before it was asked."""


class HeldSnapshot(Message):
    """A good snapshot that a node has: of which servers (``app/server``) and image, and how much is here.

    ``machine`` names the kind of machine that it can be restored on; nodes of one kind say the same of
    themselves.
    """

    id: Word
    servers: list[Word] = []
    image_id: Word = ""
    machine: Word = ""
    bytes: Count = 0
    here_bytes: Count = 0
    is_in_region: bool = False


class NodeHoldings(Message):
    """What a node has that makes a start there quicker: snapshots, and images by id with their bytes here."""

    machine: Word = ""
    snapshots: list[HeldSnapshot] = Field(default=[], max_length=MAX_HELD)
    images: dict[Word, Count] = Field(default={}, max_length=MAX_HELD)


class BuildRequest(Message):
    """Make an image ready on a node."""

    image: ImageSpec


class ImageView(Message):
    """An image a node holds. ``bytes`` counts its content (0 for bound host folders)."""

    id: str
    kind: str
    spec: ImageSpec
    bytes: int = 0
    created_at: float = 0.0
    in_use: bool = False
    digest: str | None = None


class BuildEvent(Message):
    """One line of a build's progress stream; the last one holds ``image`` or ``error``."""

    text: str = ""
    fraction: float | None = None
    image: ImageView | None = None
    error: ErrorInfo | None = None


class SnapshotStatus(StrEnum):
    """Whether a snapshot may be restored. Opted out: it could be, but a cold start is as fast.

    Locked: it is sealed with a key that the node was not given.
    """

    CAPTURING = "capturing"
    GOOD = "good"
    QUARANTINED = "quarantined"
    OPTED_OUT = "opted_out"
    LOCKED = "locked"


class SnapshotGpu(Message):
    """A GPU of the machine that a snapshot was captured on: the replica's own if ``is_given``, which held so
    much of its memory. A restore needs one of the same chip and memory for each (docs/gpu.md)."""

    uuid: str
    chip: str
    memory_bytes: int
    is_given: bool = False
    held_bytes: int = 0


class SnapshotView(Message):
    """A snapshot a node holds. ``key`` names what must match, ``key_fields`` spells it out.

    ``canary`` says in words what a copy must answer as the captured replica did. ``content`` is the digest
    of its files; ``here_bytes`` of them are on the node's disk, and ``deduplicated_bytes`` were before it was
    captured. ``app`` and ``server`` are whose replica was captured, maybe on another node; ``used_by`` are
    the servers (``app/server``) that were restored from it on this one, the latest first. ``sealed_with`` is
    the id of the key that it is sealed with. ``used_at`` is when a restore was last tried here, or when it
    came; None for one that cannot be read. ``gpus`` are those of the machine, if device memory was captured.
    """

    id: str
    app: str
    server: str
    used_by: list[str] = []
    status: SnapshotStatus
    bytes: int = 0
    content: str = ""
    sealed_with: str | None = None
    here_bytes: int = 0
    deduplicated_bytes: int = 0
    is_in_region: bool = False
    created_at: float = 0.0
    used_at: float | None = None
    capture_s: float | None = None
    frozen_s: float | None = None
    key: str
    key_fields: dict[str, str] = {}
    canary: list[str] = []
    gpus: list[SnapshotGpu] = []
    restores: int = 0
    failures: int = 0
    reason: str | None = None

    @property
    def servers(self) -> list[str]:
        """Whose it is, as ``app/server``: who uses it here, or else who was captured."""
        return self.used_by or [f"{self.app}/{self.server}"]

    def is_of(self, app: str) -> bool:
        """Whether a server of this app was captured, or uses it here."""
        return app == self.app or any(user.startswith(f"{app}/") for user in self.used_by)


class Heat(StrEnum):
    """How hot a server is, hottest first: what its next request will be answered from."""

    RUNNING = "running"
    PARKED = "parked"
    SNAPSHOT = "snapshot"
    REGION = "region"
    IMAGE = "image"


class HeatView(Message):
    """The rung of the ladder that a server stands on; of one at zero, what its next start finds on a node.

    ``region``: the node knows the snapshot, whose bytes are not all on its disk. ``image``: a cold start, for
    this ``reason``, unless the region knows a snapshot that the node has not heard of.
    """

    heat: Heat
    snapshot_id: str | None = None
    reason: str | None = None


class MemoryView(Message):
    """A node's memory: what is free of it and of swap, and how much of the last 10 s went in waiting for it.

    The waiting is pressure-stall information, in percent; 0 where the kernel does not tell.
    """

    total_bytes: Count
    available_bytes: Count
    swap_free_bytes: Count = 0
    some_waiting_percent: float = 0.0
    all_waiting_percent: float = 0.0
    is_short: bool = False


class ReplicaEvent(Message):
    """One line of the agent's watch stream. ``sync`` lines list what exists; ``synced`` ends that list.

    ``memory`` lines come each second while memory is short, and once when it no longer is.
    """

    type: Literal["sync", "synced", "change", "heartbeat", "memory"]
    replica: ReplicaView | None = None
    memory: MemoryView | None = None
