"""What a container needs to use the GPUs, as the node itself describes it: the Container Device Interface.

NVIDIA's container toolkit writes such a file (``nvidia-ctk cdi generate``): device nodes, the driver's
libraries, which must be those of the kernel module, and hooks that make a container find them. Any other
program may write one too. https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

import importlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.runtime.port import ContainerEdits, DeviceNode, SandboxMount
from glowplug.types.errors import SystemUnfit

FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
GPU = "nvidia.com/gpu"
ALL = "all"
"""NVIDIA's name for the device that is all of them."""
_REMEDY = "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` (NVIDIA's container toolkit) writes one."


class _Part(BaseModel):
    """Fields that we do not know are for others."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class _Node(_Part):
    path: str
    host_path: str = Field(default="", alias="hostPath")
    permissions: str = "rw"


class _Mount(_Part):
    host_path: str = Field(alias="hostPath")
    container_path: str = Field(alias="containerPath")
    options: list[str] = []


class _Hook(_Part):
    name: str = Field(alias="hookName")
    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class _Edits(_Part):
    env: list[str] = []
    nodes: list[_Node] = Field(default=[], alias="deviceNodes")
    mounts: list[_Mount] = []
    hooks: list[_Hook] = []


class _Device(_Part):
    name: str
    edits: _Edits = Field(default=_Edits(), alias="containerEdits")


class _File(_Part):
    kind: str
    devices: list[_Device] = []
    edits: _Edits = Field(default=_Edits(), alias="containerEdits")


def cdi_folders() -> Sequence[Path]:
    """``GLOWPLUG_CDI`` (folders, separated by colons), or the usual ones. The first file counts."""
    named = os.environ.get("GLOWPLUG_CDI")
    return tuple(map(Path, named.split(":"))) if named else FOLDERS


def describes_gpus(folders: Sequence[Path]) -> bool:
    """Whether there is such a file at all; it may still be unusable."""
    return any(GPU in path.read_text(errors="replace") for path in _files(folders))


def read_gpu_edits(folders: Sequence[Path]) -> ContainerEdits:
    """What a container gets to see all GPUs of this node.

    Raises SystemUnfit if nothing describes them, or what does cannot be used.
    """
    for path in _files(folders):
        described = _parsed(path)
        if described is not None and described.kind == GPU:
            return _merged(path, described)
    where = " or ".join(str(folder) for folder in folders)
    raise SystemUnfit(f"Nothing in {where} describes this node's GPUs to containers.", remedy=_REMEDY)


def _files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in _READERS]


def _parsed(path: Path) -> _File | None:
    """None for a file of another kind of device."""
    try:
        content = _READERS[path.suffix](path.read_text())
        if not isinstance(content, dict) or content.get("kind") != GPU:
            return None
        return _File.model_validate(content)
    except (OSError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SystemUnfit(f"{path} cannot be read: {first:.200}", remedy=_REMEDY) from error


def _yaml(text: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise SystemUnfit("PyYAML is not installed.", remedy="pip install 'glowplug[gpu]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error


_READERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": _yaml, ".yml": _yaml}


def _merged(path: Path, described: _File) -> ContainerEdits:
    """The file's own edits, and those of the device that is all of them, or else of every device."""
    devices = [device for device in described.devices if device.name == ALL] or described.devices
    edits = [described.edits, *(device.edits for device in devices)]
    nodes = {node.path: _node(path, node) for one in edits for node in one.nodes}
    mounts = {
        mount.container_path: SandboxMount(
            Path(mount.host_path), mount.container_path, read_only="ro" in mount.options
        )
        for one in edits
        for mount in one.mounts
    }
    hooks: dict[str, list[dict[str, Any]]] = {}
    for hook in [hook for one in edits for hook in one.hooks]:
        told = hook.model_dump(exclude={"name"}, exclude_none=True)
        if told not in hooks.setdefault(hook.name, []):
            hooks[hook.name].append(told)
    env = dict(entry.partition("=")[::2] for one in edits for entry in one.env)
    return ContainerEdits(env, tuple(mounts.values()), tuple(nodes.values()), hooks)


def _node(path: Path, node: _Node) -> DeviceNode:
    source = Path(node.host_path or node.path)
    try:
        status = source.stat()
    except OSError as error:
        raise SystemUnfit(f"{path} names {source}: {error.strerror}.", remedy=_REMEDY) from error
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    number = status.st_rdev
    return DeviceNode(source, node.path, kind, os.major(number), os.minor(number), node.permissions)
