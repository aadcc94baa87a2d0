"""What a deployment *is*: the immutable description that the SDK produces and every room reads.

Everything here crosses process boundaries as JSON, is validated on arrival, refuses unknown fields, and
carries a version. A secret's *value* is never part of a specification: only its name is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from glowplug.types.ids import NAME_PATTERN

MAX_WORD_BYTES = (128 << 10) - 1
"""What the kernel takes of one argument or NAME=value (execve(2))."""
MAX_WORDS_BYTES = 1 << 20
"""Of a server's command and environment together. The kernel takes 2 MiB; its secrets come on top."""
MAX_VARIABLES = 1000
MAX_JSON_DEPTH = 64


def _checked_environment(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(f"environment variable {name[:64]!r} is not well formed")
        if _bytes_of((name, value)) >= MAX_WORD_BYTES:
            raise ValueError(f"environment variable {name[:64]!r} is longer than {MAX_WORD_BYTES} bytes")
    return env


def _checked_words(words: list[str]) -> list[str]:
    for word in words:
        if "\0" in word or _bytes_of((word,)) > MAX_WORD_BYTES:
            raise ValueError(f"a word of it holds a NUL, or more than {MAX_WORD_BYTES} bytes")
    return words


def _checked_json(value: Any) -> Any:
    """Deeper values break whoever reads them by recursion, on this machine or another."""
    level, depth = [value], 0
    while level:
        if any(isinstance(inner, float) and not math.isfinite(inner) for inner in level):
            raise ValueError("it holds a number that is not finite")
        level = [inner for outer in level for inner in _inside(outer)]
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _bytes_of(words: Iterable[str]) -> int:
    return sum(len(word.encode("utf-8", "surrogatepass")) + 1 for word in words)


AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=4096)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Environment = Annotated[dict[str, str], AfterValidator(_checked_environment)]
Words = Annotated[list[str], AfterValidator(_checked_words)]
Json = Annotated[Any, AfterValidator(_checked_json)]


class Spec(BaseModel):
    """Base of all specifications: frozen, strict about unknown fields, comparable by digest.

    Numbers are finite: JSON has no others, so others would not come back as they were written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal specifications have equal digests."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class LocalDir(Spec):
    """A host folder placed, read-only, at ``remote_path`` of an image (a bind, not a copy)."""

    local_path: AbsolutePath
    remote_path: AbsolutePath


class BuildStep(Spec):
    """One step of :class:`BuildImage`. ``apt``/``pip``: package names; ``run``: shell lines."""

    op: Literal["apt", "pip", "run"]
    args: list[str] = Field(min_length=1)


class DirectoryImage(Spec):
    """A root filesystem that already lies in a folder on the node."""

    kind: Literal["directory"] = "directory"
    path: AbsolutePath
    env: dict[str, str] = {}
    workdir: AbsolutePath = "/"
    local_dirs: list[LocalDir] = []


class HostPythonImage(Spec):
    """The node's own /usr plus a virtual environment, bound read-only: nothing is copied or built.

    ``venv`` None means the node's system Python.
    """

    kind: Literal["host_python"] = "host_python"
    venv: AbsolutePath | None = None
    env: dict[str, str] = {}
    workdir: AbsolutePath = "/"
    local_dirs: list[LocalDir] = []


class BuildImage(Spec):
    """A Debian root filesystem built on the node by an existing builder (buildah)."""

    kind: Literal["build"] = "build"
    python: str = Field(default="3.11", pattern=r"^3\.\d+$")
    steps: list[BuildStep] = []
    env: dict[str, str] = {}
    workdir: AbsolutePath = "/"
    local_dirs: list[LocalDir] = []


class RegistryImage(Spec):
    """An OCI image in a registry: ``ref`` as Docker writes it. ``insecure``: without TLS."""

    kind: Literal["registry"] = "registry"
    ref: str = Field(min_length=1, max_length=1024)
    insecure: bool = False
    env: dict[str, str] = {}
    workdir: AbsolutePath | None = None
    local_dirs: list[LocalDir] = []


class DockerfileImage(Spec):
    """An image built on the node from a Dockerfile and the folder that it copies from."""

    kind: Literal["dockerfile"] = "dockerfile"
    path: AbsolutePath
    context_dir: AbsolutePath
    build_args: dict[str, str] = {}
    env: dict[str, str] = {}
    workdir: AbsolutePath | None = None
    local_dirs: list[LocalDir] = []


class NamedImage(Spec):
    """An image that was imported under this name (or has this digest), here or in the region."""

    kind: Literal["named"] = "named"
    name: str = Field(min_length=1, max_length=200)
    env: dict[str, str] = {}
    workdir: AbsolutePath | None = None
    local_dirs: list[LocalDir] = []


ImageSpec = Annotated[
    DirectoryImage | HostPythonImage | BuildImage | RegistryImage | DockerfileImage | NamedImage,
    Field(discriminator="kind"),
]


class Resources(Spec):
    """What one replica may use. ``gpu`` names a chip (``"H100"``, ``"H100:2"``); None means no GPU."""

    cpus: float = Field(default=1.0, gt=0, le=1024)
    memory_bytes: int = Field(default=4 << 30, ge=32 << 20)
    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+(:\d+)?$")

    @property
    def gpu_count(self) -> int:
        """How many GPUs a replica needs."""
        if self.gpu is None:
            return 0
        return int(self.gpu.partition(":")[2] or 1)

    @property
    def gpu_chip(self) -> str:
        """The chip that it names, such as ``H100``; "" without a GPU."""
        return (self.gpu or "").partition(":")[0]


class HttpCall(Spec):
    """One HTTP request to the replica itself: a warm-up, a canary, a hook.

    ``ignore`` names JSON object keys, at any depth, whose values may differ between two right answers
    (ids, times); it matters for canaries only.
    """

    method: Literal["GET", "POST", "PUT"] = "GET"
    path: str = Field(pattern=r"^/[^\s]*$", max_length=4096)
    json_body: Json = None
    ignore: list[str] = ["id", "created", "system_fingerprint"]


class Hook(Spec):
    """What to do to a plain command around a snapshot: one of an HTTP call, a signal, a command inside."""

    http: HttpCall | None = None
    signal: Literal["SIGHUP", "SIGUSR1", "SIGUSR2"] | None = None
    command: Words | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Hook:
        if sum(x is not None for x in (self.http, self.signal, self.command)) != 1:
            raise ValueError("a hook is exactly one of http, signal, command")
        return self


class SnapshotSpec(Spec):
    """How a server's memory is captured and how a restored copy is proved right.

    ``gpu``: that of its GPUs too (docs/gpu.md). Without it a server that uses a GPU is never captured.
    ``weights``: those that ``glowplug.weights`` loaded are part of the memory (``keep``), or are let go
    before it is captured and read again by every copy (``stream``).
    """

    enabled: bool = True
    gpu: bool = False
    warmup: list[HttpCall] = []
    canary: list[HttpCall] = []
    before_snapshot: Hook | None = None
    after_restore: Hook | None = None
    secrets_in_snapshot: bool = False
    weights: Literal["keep", "stream"] = "keep"


class Scaling(Spec):
    """How many replicas, and when. ``target_concurrency``: requests one replica is meant to serve at once.

    Idle for ``scaledown_window_s`` a replica is parked (frozen), for ``parked_window_s`` more it is stopped;
    0 parks none. Five minutes by default: most servers that are asked again are asked within them, and it
    costs nothing but memory that nobody else asks for: where that is short, parked replicas make way.
    ``parked_memory``: ``keep`` what it holds in memory until that is short, or move it to ``swap`` at once.
    """

    min_replicas: int = Field(default=0, ge=0, le=1000)
    max_replicas: int = Field(default=4, ge=1, le=1000)
    buffer_replicas: int = Field(default=0, ge=0, le=1000)
    scaledown_window_s: float = Field(default=60.0, ge=0)
    parked_window_s: float = Field(default=300.0, ge=0)
    parked_memory: Literal["keep", "swap"] = "keep"
    target_concurrency: int = Field(default=16, ge=1, le=100_000)

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})"
            )
        return self


class VolumeSpec(Spec):
    """A host folder shown to every replica at ``mount_path``."""

    host_path: AbsolutePath
    mount_path: AbsolutePath
    read_only: bool = False


class CodeSpec(Spec):
    """User code run by our runner: the folder ``local_dir`` is bound at /app; ``module`` is a file in it.

    ``code_digest`` covers the folder's Python files, so that changed code is another snapshot key.
    """

    local_dir: AbsolutePath
    module: str = Field(pattern=r"^[^/\x00]+\.py$")
    target: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    target_kind: Literal["cls", "function"]
    code_digest: str


class ServerSpec(Spec):
    """One server of an app: a command that listens on ``port``, and everything needed to run copies of it.

    ``runtime``: gVisor (``runsc``), the host's own kernel (``runc``), or ``auto``: runc if the server is
    ``trusted`` and the node has it, else runsc.
    """

    version: Literal[1] = 1
    name: Name
    image: ImageSpec
    command: Words = Field(min_length=1)
    port: int = Field(default=8000, ge=1, le=65535)
    ready: HttpCall = HttpCall(path="/")
    env: Environment = {}
    secrets: list[str] = []
    volumes: list[VolumeSpec] = []
    code: CodeSpec | None = None
    runtime: Literal["auto", "runsc", "runc"] = "auto"
    trusted: bool = False
    resources: Resources = Resources()
    scaling: Scaling = Scaling()
    snapshot: SnapshotSpec = SnapshotSpec()
    startup_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    request_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    max_held_requests: int = Field(default=2048, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _can_be_started(self) -> ServerSpec:
        variables = {**self.image.env, **self.env}
        if len(variables) > MAX_VARIABLES:
            raise ValueError(f"{len(variables)} environment variables, of at most {MAX_VARIABLES}")
        size_bytes = _bytes_of(self.command) + _bytes_of(variables) + _bytes_of(variables.values())
        if size_bytes > MAX_WORDS_BYTES:
            raise ValueError(
                f"its command and environment have {size_bytes} bytes, of at most {MAX_WORDS_BYTES}: "
                "put data into the image or a volume"
            )
        return self

    @model_validator(mode="after")
    def _no_contradiction(self) -> ServerSpec:
        if self.trusted and self.runtime == "runsc":
            raise ValueError('trusted=True changes nothing with runtime="runsc"; leave one of them out')
        if self.snapshot.gpu and self.resources.gpu is None:
            raise ValueError("snapshot.gpu needs a server that uses a GPU: name one with resources.gpu")
        if self.snapshot.gpu and not (self.trusted or self.runtime == "runc"):
            raise ValueError('snapshot.gpu needs runtime="runc", or trusted=True (docs/gpu.md)')
        return self

    @property
    def why_no_snapshot(self) -> str:
        """Why no copy of it is made from memory; "" if copies are."""
        if not self.snapshot.enabled:
            return "snapshots are disabled for this server"
        if self.resources.gpu is not None and not self.snapshot.gpu:
            return "snapshots are disabled for this server: it has gpu=, and no Snapshot(gpu=True)"
        return ""


class AppSpec(Spec):
    """A whole app: the unit of deployment, versioning and rollback."""

    version: Literal[1] = 1
    name: Name
    servers: list[ServerSpec] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _unique_names(self) -> AppSpec:
        names = [server.name for server in self.servers]
        if len(set(names)) != len(names):
            raise ValueError(f"two servers of app {self.name!r} have one name: {sorted(names)}")
        return self

    def server(self, name: str) -> ServerSpec | None:
        """The server called ``name``, or None."""
        return next((server for server in self.servers if server.name == name), None)
