"""What a snapshot says about itself, in a form that proves it was not altered.

``manifest.json`` names every file with its length and hash, the content that they are kept as, the key, the
canary's answers and how the capture went. It holds a hash of itself and exists in exactly one encoding, so a
single changed byte, anywhere, is noticed. The format is a written contract with a test vector:
``docs/snapshot-format.md``. Reading treats the bytes as hostile and raises SnapshotInvalid, never anything
else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from glowplug.snapshot.canary import CanaryAnswer
from glowplug.snapshot.canonical import blake3_hex, canonical_json, parse_json
from glowplug.snapshot.key import SnapshotKey
from glowplug.types.errors import SnapshotInvalid
from glowplug.types.replica import SnapshotGpu

FORMAT: Final = 2
MANIFEST_NAME = "manifest.json"
STATUS_NAME = "status.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 1024
MAX_GPUS = 64

SNAPSHOT_ID_PATTERN = r"^sn-[0-9a-f]{16}$"

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Part):
    """One file: its length and the BLAKE3 of its content."""

    bytes: int = Field(ge=0)
    blake3: Digest


class CaptureTimings(_Part):
    """How the capture went: ``capture_s`` in all, of which the replica stood still for ``frozen_s``.

    ``cold_s`` is how long its cold start took before, None if nobody measured it: what a restore has to beat.
    """

    capture_s: Seconds = 0.0
    frozen_s: Seconds = 0.0
    cold_s: Seconds | None = None


class CapturedGpu(_Part):
    """A GPU that was in the machine. The captured replica had it if ``is_given``, and held so much of it."""

    uuid: str = Field(pattern=r"^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    chip: str = Field(max_length=256)
    memory_bytes: int = Field(ge=0)
    is_given: bool = False
    held_bytes: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class ManifestDraft:
    """What whoever captured knows; key, files and integrity are added when it is sealed, the time if None."""

    app: str
    server: str
    deployment: str
    canary: list[CanaryAnswer] = field(default_factory=list)
    hook_ports: list[int] = field(default_factory=list)
    gpus: list[CapturedGpu] = field(default_factory=list)
    timings: CaptureTimings = field(default_factory=CaptureTimings)
    tools: dict[str, str] = field(default_factory=dict)
    created_at: float | None = None


class Manifest(_Part):
    """A parsed manifest: everything but the integrity hash, which only exists in the encoding."""

    format: Literal[2] = FORMAT
    id: str = Field(pattern=SNAPSHOT_ID_PATTERN)
    app: str = Field(max_length=256)
    server: str = Field(max_length=256)
    deployment: str = Field(max_length=256)
    key: dict[str, str]
    created_at: Seconds
    files: dict[FileName, FileEntry] = Field(min_length=1, max_length=MAX_FILES)
    content: Digest
    deduplicated_bytes: int = Field(default=0, ge=0)
    canary: list[CanaryAnswer] = []
    hook_ports: list[Port] = []
    gpus: list[CapturedGpu] = Field(default=[], max_length=MAX_GPUS)
    timings: CaptureTimings = CaptureTimings()
    tools: dict[str, str] = {}

    @property
    def gpu_views(self) -> list[SnapshotGpu]:
        """Its GPUs, as the agent's API tells of them."""
        return [SnapshotGpu.model_validate(gpu.model_dump()) for gpu in self.gpus]

    @field_validator("files")
    @classmethod
    def _not_our_own(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if reserved := sorted({MANIFEST_NAME, STATUS_NAME} & files.keys()):
            raise ValueError(f"file names {reserved} are reserved")
        return files

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def snapshot_key(self) -> SnapshotKey:
        """The key this snapshot was captured under."""
        return SnapshotKey(self.key)

    @property
    def canary_words(self) -> list[str]:
        """What each canary asks, and where it comes from, for people."""
        done_before = self.key.get("snapshot", "")
        is_declared = '"canary":[]' not in done_before
        words = []
        for answer in self.canary:
            request = canonical_json(answer.request.model_dump(mode="json")).decode("ascii")
            origin = "recorded at warm-up" if request in done_before else "the ready call"
            words.append(
                f"{answer.request.method} {answer.request.path} ({'declared' if is_declared else origin})"
            )
        return words

    def encode(self) -> bytes:
        """The one encoding: canonical JSON with ``integrity``, and a newline."""
        content = self.model_dump()
        if self.timings.cold_s is None:
            del content["timings"]["cold_s"]
        if not self.gpus:
            del content["gpus"]
        return canonical_json({**content, "integrity": blake3_hex(canonical_json(content))}) + b"\n"

    @classmethod
    def decode(cls, raw: bytes, snapshot_id: str) -> Manifest:
        """Read hostile bytes found where ``snapshot_id`` should be. Raises SnapshotInvalid."""
        if len(raw) > MAX_MANIFEST_BYTES:
            raise invalid(snapshot_id, f"is larger than {MAX_MANIFEST_BYTES} bytes")
        try:
            data = parse_json(raw)
        except ValueError as error:
            raise invalid(snapshot_id, f"is not JSON (cut off or altered): {str(error)[:200]}") from error
        if not isinstance(data, dict):
            raise invalid(snapshot_id, "is not a JSON object")
        _check_format(data, snapshot_id)
        _check_integrity(data, raw, snapshot_id)
        data.pop("integrity")
        try:
            manifest = cls.model_validate(data)
        except ValidationError as error:
            raise invalid(snapshot_id, f"has wrong content: {_first_problem(error)}") from error
        _check_ids(manifest, snapshot_id)
        return manifest


def invalid(snapshot_id: str, problem: str, *, file: str = MANIFEST_NAME) -> SnapshotInvalid:
    """The error for a snapshot whose ``file`` has a ``problem``, with the way out."""
    return SnapshotInvalid(
        f"Snapshot {snapshot_id}: {file} {problem}.",
        remedy=f"Run `glowplug snapshot rm {snapshot_id}`; the next cold start captures it anew.",
        snapshot_id=snapshot_id,
        file=file,
        problem=problem,
    )


def _check_format(data: dict[str, Any], snapshot_id: str) -> None:
    found = data.get("format")
    if type(found) is not int or found != FORMAT:
        raise invalid(snapshot_id, f"has format {str(found)[:40]}, and this Glowplug reads {FORMAT} only")


def _check_integrity(data: dict[str, Any], raw: bytes, snapshot_id: str) -> None:
    content = {name: value for name, value in data.items() if name != "integrity"}
    if data.get("integrity") != blake3_hex(canonical_json(content)):
        raise invalid(snapshot_id, "was altered: its integrity hash does not match its content")
    if canonical_json(data) + b"\n" != raw:
        raise invalid(snapshot_id, "was altered: it is not in canonical form")


def _check_ids(manifest: Manifest, snapshot_id: str) -> None:
    if manifest.id != manifest.snapshot_key.id:
        raise invalid(snapshot_id, f"has id {manifest.id}, but its key makes {manifest.snapshot_key.id}")
    if manifest.id != snapshot_id:
        raise invalid(snapshot_id, f"belongs to snapshot {manifest.id}")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return f"{where}: {first['msg'][:200]}"
