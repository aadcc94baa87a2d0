"""The keywords of ``@app.server``, ``@app.cls`` and ``@app.function``, and what they become.

The typed dictionaries are what editors and mypy show; the functions turn them into the parts of a
``ServerSpec``. A server's port, readiness and snapshot are always written down; of resources, scaling and
timeouts only what the user said is, and everything else is the specification's default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from glowplug.sdk import validation
from glowplug.sdk.image import Image
from glowplug.sdk.secret import Secret
from glowplug.sdk.snapshot import Request, Snapshot
from glowplug.sdk.volume import Volume
from glowplug.types.errors import InvalidInput

if TYPE_CHECKING:
    from glowplug.sdk.recipe import Recipe

DEFAULT_PORT = 8000
RUNTIMES = ("auto", "runsc", "runc")
PARKED_MEMORY = ("keep", "swap")
DEFAULT_READY = "/"
# The specification's own default; needed to tell whether min_replicas alone contradicts it.
DEFAULT_MAX_REPLICAS = 4
_GPU = re.compile(r"[A-Za-z0-9-]+(:[1-9]\d{0,2})?", re.ASCII)


class ReplicaOptions(TypedDict, total=False):
    """What a replica may use, how many there are, how long they may take, what separates it from the host.

    ``runtime``: ``"runsc"`` (gVisor), ``"runc"`` (the host's own kernel: faster, less of a wall) or
    ``"auto"``: runc, where the node has it, for code that you vouch for with ``trusted=True``, else runsc.

    Idle for ``scaledown_window_s`` a replica is parked (frozen: the next request wakes it within a tenth of a
    second), and after ``parked_window_s`` more it is stopped; 0 stops it at once. ``parked_memory="swap"``
    moves what a parked one holds to the node's swap at once instead of when memory is short.
    """

    gpu: str | None
    cpus: float
    memory: int | str
    secrets: Sequence[Secret]
    volumes: Mapping[str, Volume]
    min_replicas: int
    max_replicas: int
    buffer_replicas: int
    scaledown_window_s: float
    parked_window_s: float
    parked_memory: str
    target_concurrency: int
    startup_timeout_s: float
    request_timeout_s: float
    max_held_requests: int
    runtime: str
    trusted: bool


class CodeOptions(ReplicaOptions, total=False):
    """Keywords of ``@app.cls`` and ``@app.function``.

    ``image`` defaults to the node's own Python. ``target_concurrency`` is how many calls one replica is
    meant to serve at once: they run in threads.
    """

    image: Image
    snapshot: bool | Snapshot
    env: Mapping[str, str]
    name: str


class ServerOptions(CodeOptions, total=False):
    """Keywords of ``@app.server``: where the command listens, and how to see that it is ready.

    ``recipe`` fills in what is left out, by the engine that the command starts (docs/engines.md): ``"auto"``
    recognises it, a name or a Recipe says which, ``"none"`` leaves everything as it is.
    """

    port: int
    ready: str | Request
    recipe: str | Recipe | None


def check_keywords(given: Mapping[str, Any], known: type, usage: str) -> None:
    """Raise InvalidInput for a keyword that does not exist, with the one that was probably meant."""
    names = sorted(known.__annotations__)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise InvalidInput(
                f"{usage} has no keyword {name!r}.", remedy=f"{hint}It knows {', '.join(names)}."
            )


def describe(options: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The options as parts of a ``ServerSpec``, and the values of their secrets."""
    image = options.get("image", Image.host_python())
    if not isinstance(image, Image):
        raise InvalidInput(f"image cannot be {image!r}.", remedy="Use gp.Image.debian_slim(), for example.")
    spec: dict[str, Any] = {"image": image.to_spec(folder)}
    spec["port"] = validation.whole_number(options.get("port", DEFAULT_PORT), "port", low=1, high=65535)
    spec["ready"] = Request.parse(options.get("ready", DEFAULT_READY), "ready").to_spec()
    spec["snapshot"] = Snapshot.parse(options.get("snapshot", True)).to_spec()
    readers: dict[str, Callable[[Any], Any]] = {
        "env": lambda value: validation.environment(value, "env"),
        "volumes": lambda value: _volumes(value, folder),
        "startup_timeout_s": lambda value: _timeout(value, "startup_timeout_s"),
        "request_timeout_s": lambda value: _timeout(value, "request_timeout_s"),
        "max_held_requests": lambda value: validation.whole_number(
            value, "max_held_requests", low=1, high=1_000_000
        ),
        "runtime": _runtime,
        "trusted": lambda value: validation.boolean(value, "trusted"),
    }
    spec |= {name: read(options[name]) for name, read in readers.items() if name in options}
    spec |= {"resources": _resources(options), "scaling": _scaling(options)}
    secrets = _secrets(options.get("secrets", ()), folder)
    spec["secrets"] = sorted(secrets)
    both = sorted(secrets.keys() & spec.get("env", {}).keys())
    if both:
        raise InvalidInput(
            f"{', '.join(both)} is both in env and a secret.", remedy="Keep it in one of the two."
        )
    if spec.get("trusted") and spec.get("runtime") == "runsc":
        raise InvalidInput(
            'trusted=True changes nothing with runtime="runsc".', remedy="Leave one of them out."
        )
    if spec["snapshot"].get("gpu"):
        _check_gpu_snapshot(spec)
    return spec, secrets


def _check_gpu_snapshot(spec: Mapping[str, Any]) -> None:
    if "gpu" not in spec["resources"]:
        raise InvalidInput(
            "Snapshot(gpu=True) is for servers that use a GPU.",
            remedy='Name one with gpu="H100", or leave it out.',
        )
    if not spec.get("trusted") and spec.get("runtime") != "runc":
        raise InvalidInput(
            "GPU memory can be captured in runc only (docs/gpu.md says what gVisor lacks).",
            remedy='Write runtime="runc", or trusted=True.',
        )


def _resources(options: Mapping[str, Any]) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if "cpus" in options:
        resources["cpus"] = validation.number(options["cpus"], "cpus", low=0, high=1024, above_low=True)
    if "memory" in options:
        resources["memory_bytes"] = validation.memory_bytes(options["memory"])
    gpu = options.get("gpu")
    if gpu is not None:
        if not isinstance(gpu, str) or not _GPU.fullmatch(gpu):
            raise InvalidInput(f"gpu cannot be {gpu!r}.", remedy='Write gpu="H100" or gpu="H100:2".')
        resources["gpu"] = gpu
    return resources


def _scaling(options: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {
        "min_replicas": (0, 1000), "max_replicas": (1, 1000), "buffer_replicas": (0, 1000),
        "target_concurrency": (1, 100_000),
    }  # fmt: skip
    scaling: dict[str, Any] = {
        name: validation.whole_number(options[name], name, low=low, high=high)
        for name, (low, high) in bounds.items()
        if name in options
    }
    for name in ("scaledown_window_s", "parked_window_s"):
        if name in options:
            scaling[name] = validation.number(options[name], name, low=0, high=366 * 86_400)
    if "parked_memory" in options:
        scaling["parked_memory"] = _parked_memory(options["parked_memory"])
    minimum = scaling.get("min_replicas", 0)
    if "max_replicas" not in scaling and minimum > DEFAULT_MAX_REPLICAS:
        # Somebody who asks for 8 replicas to be kept, and says no more, means 8.
        scaling["max_replicas"] = minimum
    if minimum > (maximum := scaling.get("max_replicas", DEFAULT_MAX_REPLICAS)):
        raise InvalidInput(
            f"min_replicas ({minimum}) is above max_replicas ({maximum}).",
            remedy="Raise max_replicas or lower min_replicas.",
        )
    return scaling


def _runtime(value: object) -> str:
    if value not in RUNTIMES:
        raise InvalidInput(
            f"runtime cannot be {value!r}.",
            remedy='Write runtime="runsc", "runc" or "auto" (docs/runtimes.md).',
        )
    return str(value)


def _parked_memory(value: object) -> str:
    if value not in PARKED_MEMORY:
        raise InvalidInput(
            f"parked_memory cannot be {value!r}.",
            remedy='Write parked_memory="keep" or "swap" (docs/node.md).',
        )
    return str(value)


def _timeout(value: object, what: str) -> float:
    return validation.number(value, what, low=0, high=86_400, above_low=True)


def _volumes(volumes: object, folder: Path) -> list[dict[str, Any]]:
    if not isinstance(volumes, Mapping):
        raise InvalidInput(
            "volumes must be a dictionary.", remedy='Write volumes={"/models": gp.Volume("/srv/models")}.'
        )
    specs: list[dict[str, Any]] = []
    for mount_path, volume in volumes.items():
        if not isinstance(volume, Volume):
            raise InvalidInput(
                f"The volume at {mount_path!r} cannot be {volume!r}.",
                remedy='Write gp.Volume("/srv/models").',
            )
        spec = volume.to_spec(
            os.fspath(mount_path) if isinstance(mount_path, os.PathLike) else mount_path, folder
        )
        if any(spec["mount_path"] == other["mount_path"] for other in specs):
            raise InvalidInput(
                f"Two volumes are mounted at {spec['mount_path']}.", remedy="Give each its own path."
            )
        specs.append(spec)
    return specs


def _secrets(secrets: object, folder: Path) -> dict[str, str]:
    if isinstance(secrets, Secret | str | Mapping) or not isinstance(secrets, Sequence):
        raise InvalidInput("secrets must be a list.", remedy='Write secrets=[gp.Secret.from_env("NAME")].')
    values: dict[str, str] = {}
    for secret in secrets:
        if not isinstance(secret, Secret):
            raise InvalidInput(
                f"secrets cannot hold a {type(secret).__name__}.",
                remedy='Write gp.Secret.from_env("NAME") or gp.Secret.from_dict({...}).',
            )
        merge_secrets(values, secret.resolve(folder))
    return values


def merge_secrets(into: dict[str, str], values: Mapping[str, str]) -> None:
    """Add ``values`` to ``into``. Raises InvalidInput if one name would have two values."""
    for name, value in values.items():
        if into.setdefault(name, value) != value:
            raise InvalidInput(
                f"The secret {name!r} has two different values in one app.",
                remedy="Give the two different names.",
            )
