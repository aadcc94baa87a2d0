"""What must be equal for a memory image to be restorable and right: the snapshot key.

A snapshot is addressed by its key, so a changed image, command, runtime or processor simply finds no
snapshot and starts cold, with a reason, instead of crashing or answering from stale memory. A key holds the
*names* of secrets, never their values. The fields and their encoding are a written contract:
``docs/snapshot-format.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from glowplug.snapshot.canonical import blake3_hex, canonical_json
from glowplug.snapshot.gpu.inventory import Inventory
from glowplug.types.errors import InvalidInput, SystemUnfit
from glowplug.types.identity import RuntimeIdentity
from glowplug.types.key_fields import KEY_FIELD_WORDS
from glowplug.types.spec import ServerSpec

FIELD_NAMES = tuple(KEY_FIELD_WORDS)
"""Every field of a key, in the order differences are told in."""

NONE = "none"
"""The value of a field that does not apply, such as the GPU of a server that uses none."""

Difference = tuple[str, str, str]
"""``(field, ours, theirs)``."""

_SHOWN_CHARACTERS = 60
_SHOWN_BEFORE = 20
_SHOWN_FEATURES = 12


@dataclass(frozen=True)
class MachineIdentity:
    """The machine as far as a memory image depends on it."""

    cpu_model: str
    cpu_features: str
    kernel: str
    gpu_chip: str = NONE
    gpu_driver: str = NONE

    @classmethod
    def read(cls, proc: Path = Path("/proc"), gpus: Inventory | None = None) -> MachineIdentity:
        """Ask the kernel. Raises SystemUnfit when it does not say what the processor can do."""
        model, features = _read_cpu(proc / "cpuinfo")
        return cls(
            cpu_model=model,
            cpu_features=" ".join(features),
            kernel=_read_kernel(proc / "sys/kernel/osrelease"),
            gpu_chip=_gpu_chips(gpus) if gpus else NONE,
            gpu_driver=gpus.driver if gpus else NONE,
        )


@dataclass(frozen=True)
class SnapshotKey:
    """The fields that must match, and the id made of them. Equal fields have equal ids."""

    fields: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def compute(
        cls,
        server: ServerSpec,
        image_id: str,
        runtime: RuntimeIdentity,
        machine: MachineIdentity,
        *,
        secrets_scope: str = "",
    ) -> SnapshotKey:
        """The key of ``server`` here and now.

        ``secrets_scope`` names whose secret *values* a capture would hold (an app and the version of its
        secrets). It is needed only with ``secrets_in_snapshot``, and InvalidInput is raised without it:
        otherwise two apps that differ in nothing else would restore each other's secrets.
        """
        try:
            values = cls._values(server, image_id, runtime, machine, secrets_scope)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidInput(
                f"Server {server.name!r} cannot be given a snapshot key: {str(error)[:200]}.",
                remedy="Keep to plain JSON (no NaN, no deep nesting) in its warm-up and canary requests.",
                server=server.name,
            ) from error
        return cls({name: values[name] for name in FIELD_NAMES})

    @staticmethod
    def _values(
        server: ServerSpec,
        image_id: str,
        runtime: RuntimeIdentity,
        machine: MachineIdentity,
        secrets_scope: str,
    ) -> dict[str, str]:
        uses_gpu = server.resources.gpu is not None
        return {
            "image": image_id,
            "command": _text(server.command),
            "port": str(server.port),
            "env": _text(server.env),
            "secrets": _secrets_field(server, secrets_scope),
            "code": _code_field(server),
            "volumes": _text([volume.model_dump(mode="json") for volume in server.volumes]),
            "snapshot": _snapshot_field(server),
            "resources": _text(server.resources.model_dump(mode="json")),
            "runtime": f"{runtime.name} {runtime.version}",
            "runtime_flags": _text(list(runtime.flags)),
            "cpu_model": machine.cpu_model,
            "cpu_features": machine.cpu_features,
            "kernel": machine.kernel,
            "gpu_chip": machine.gpu_chip if uses_gpu else NONE,
            "gpu_driver": machine.gpu_driver if uses_gpu else NONE,
        }

    @property
    def digest(self) -> str:
        """BLAKE3 (64 hex digits) of the canonical JSON of the fields."""
        return blake3_hex(canonical_json(dict(self.fields)))

    @property
    def id(self) -> str:
        """``sn-`` and the first 16 hex digits of :attr:`digest`."""
        return f"sn-{self.digest[:16]}"

    def difference(self, other_fields: Mapping[str, str]) -> list[Difference]:
        """``(field, ours, theirs)`` for every field that differs, in the documented order.

        A field only one side has (another version wrote it) is empty on the other, and comes last.
        """
        known = [name for name in FIELD_NAMES if name in self.fields or name in other_fields]
        unknown = sorted((set(self.fields) | set(other_fields)) - set(FIELD_NAMES))
        pairs = [(name, self.fields.get(name, ""), other_fields.get(name, "")) for name in known + unknown]
        return [pair for pair in pairs if pair[1] != pair[2]]


def explain_differences(differences: Sequence[Difference]) -> str:
    """One line for people: ``kernel is 6.18, was 6.12; image is ..``.

    Long values are cut to where they differ; of processor features only those that differ are named.
    """
    return "; ".join(_explain(*difference) for difference in differences)


def _explain(name: str, ours: str, theirs: str) -> str:
    if name == "cpu_features":
        here, there = set(ours.split()), set(theirs.split())
        changes = {"lacks": there - here, "also has": here - there}
        return f"{name} " + ", ".join(f"{verb} {_listed(names)}" for verb, names in changes.items() if names)
    shown_ours, shown_theirs = _cut_to_the_difference(ours, theirs)
    return f"{name} is {shown_ours or '(absent)'}, was {shown_theirs or '(absent)'}"


def _listed(features: set[str]) -> str:
    words = sorted(features)
    more = f" and {len(words) - _SHOWN_FEATURES} more" if len(words) > _SHOWN_FEATURES else ""
    return " ".join(words[:_SHOWN_FEATURES]) + more


def _cut_to_the_difference(ours: str, theirs: str) -> tuple[str, str]:
    if max(len(ours), len(theirs)) <= _SHOWN_CHARACTERS:
        return ours, theirs
    start = max(len(commonpath([ours, theirs])) - _SHOWN_BEFORE, 0)
    return _cut(ours, start), _cut(theirs, start)


def _cut(value: str, start: int) -> str:
    end = start + _SHOWN_CHARACTERS
    return (".." if start else "") + value[start:end] + (".." if end < len(value) else "")


def _text(value: object) -> str:
    return canonical_json(value).decode("ascii")


def _secrets_field(server: ServerSpec, secrets_scope: str) -> str:
    names = sorted(set(server.secrets))
    if not (server.snapshot.secrets_in_snapshot and names):
        return _text(names)
    if not secrets_scope:
        raise InvalidInput(
            f"The snapshot of server {server.name!r} would hold secret values, but nobody said whose.",
            remedy="Turn secrets_in_snapshot off, or compute the key with secrets_scope (app and version).",
            server=server.name,
        )
    return _text({"names": names, "captured_for": secrets_scope})


def _code_field(server: ServerSpec) -> str:
    code = server.code
    if code is None:
        return NONE
    return f"{code.target_kind} {code.module}:{code.target} {code.code_digest}"


def _snapshot_field(server: ServerSpec) -> str:
    """What is done to a replica before it is frozen; the canary too: it is asked then, and warms caches."""
    spec = server.snapshot
    field: dict[str, object] = {
        "warmup": [call.model_dump(mode="json") for call in spec.warmup],
        "canary": [call.model_dump(mode="json") for call in spec.canary],
        "before_snapshot": spec.before_snapshot and spec.before_snapshot.model_dump(mode="json"),
        "secrets_in_snapshot": spec.secrets_in_snapshot,
    }
    if spec.gpu:  # left out by default, as the next: older snapshots keep their keys
        field["gpu"] = True
    if spec.weights != "keep":
        field["weights"] = spec.weights
    return _text(field)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SystemUnfit(
            f"Cannot read {path}: {error.strerror}.",
            remedy="Glowplug needs a Linux machine with /proc mounted.",
            path=str(path),
        ) from error


def _read_cpu(path: Path) -> tuple[str, list[str]]:
    """The model's name, and the features that *every* core has (big and little cores differ)."""
    text = _read_text(path)
    models = re.findall(r"^(?:model name|CPU part)\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    cores = [set(line.split()) for line in re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)]
    features = sorted(set.intersection(*cores)) if cores else []
    if not features:
        raise SystemUnfit(
            f"{path} does not list the processor's features, so no snapshot could be matched to it.",
            remedy="Run on an x86-64 or arm64 Linux, or turn snapshots off for this server.",
            path=str(path),
        )
    return " + ".join(sorted(set(models))) or "unnamed", features


def _read_kernel(path: Path) -> str:
    release = _read_text(path).strip()
    found = re.match(r"\d+\.\d+", release)
    return found.group() if found else release


def _gpu_chips(gpus: Inventory) -> str:
    """Their names and memory; several kinds joined, for a replica may get any of them."""
    chips = sorted({f"{device.chip} ({device.memory_bytes} bytes)" for device in gpus.devices})
    return " + ".join(chips) or NONE
