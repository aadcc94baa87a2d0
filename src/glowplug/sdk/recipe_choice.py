"""Which recipe a command gets, and what becomes of a server's keywords with it.

What the user says is never overruled: a recipe fills in what was left out, variable by variable in ``env``
and part by part in ``snapshot``. Everything it does fill in is listed, so that commands can show it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glowplug.sdk import validation
from glowplug.sdk.image import Image
from glowplug.sdk.recipe import Recipe, Variant
from glowplug.sdk.recipe_table import known_recipes
from glowplug.sdk.snapshot import Hook, Request, Snapshot
from glowplug.sdk.volume import Volume
from glowplug.types.errors import InvalidInput

AUTO = "auto"
NONE = "none"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SNAPSHOT_PARTS = ("warmup", "canary", "before_snapshot", "after_restore")
_ROUND_TO_BYTES = 64 << 20


@dataclass(frozen=True)
class Applied:
    """A recipe, and each keyword it filled in, in words."""

    recipe: str
    engine: str
    settings: Mapping[str, str]

    def __str__(self) -> str:
        filled_in = ", ".join(f"{name} {words}" for name, words in self.settings.items())
        return f"Recipe {self.recipe}: {filled_in or 'everything was said already'}."


def choose_recipe(command: Sequence[str], choice: object) -> Recipe | None:
    """The recipe that ``choice`` (``"auto"``, a name, ``"none"``, None or a Recipe) means for ``command``."""
    if choice is None or choice == NONE:
        return None
    if isinstance(choice, Recipe):
        return choice
    recipes = known_recipes()
    if choice == AUTO:
        return next((recipe for recipe in recipes if recipe.recognises(command)), None)
    found = next((recipe for recipe in recipes if recipe.name == choice), None)
    if found is None:
        raise InvalidInput(
            f"There is no recipe {choice!r}.",
            remedy=f"Use {AUTO}, {NONE} or one of {', '.join(recipe.name for recipe in recipes)}.",
        )
    return found


def apply_recipe(
    recipe: Recipe, command: Sequence[str], given: Mapping[str, Any]
) -> tuple[dict[str, Any], Applied]:
    """The keywords of a server with what ``recipe`` adds to those ``given``. Raises InvalidInput."""
    recipe.check_host(command)
    variants = [variant for variant in recipe.variants if variant.is_meant_by(command)]
    models = _models(recipe, command, given)
    env = dict(recipe.env)
    for variant in variants:
        env |= variant.env
    env |= models.env
    defaults = {
        "port": recipe.port_of(command),
        "ready": recipe.ready,
        "cpus": recipe.cpus,
        "memory": _memory_bytes(recipe, models),
        "startup_timeout_s": recipe.startup_timeout_s,
    }
    filled = {name: value for name, value in defaults.items() if value is not None and name not in given}
    said_env = validation.environment(given.get("env", {}), "env")
    more_env = {name: value for name, value in env.items() if name not in said_env}
    snapshot, parts = _snapshot(recipe, variants, given.get("snapshot", True))
    keywords = {**given, **filled, "snapshot": snapshot, "env": {**more_env, **said_env}}
    if models.volumes:
        keywords["volumes"] = {**models.volumes, **given.get("volumes", {})}
    settings = {name: _in_words(name, value) for name, value in (filled | parts).items()}
    if more_env:
        settings["env"] = " ".join(f"{name}={value}" for name, value in more_env.items())
    if models.volumes:
        settings["shows"] = " ".join(models.volumes)
    return keywords, Applied(recipe.name, recipe.engine, settings)


@dataclass(frozen=True)
class _Models:
    """The models a command names that lie on this machine, and what makes its container find them."""

    volumes: Mapping[str, Volume]
    env: Mapping[str, str]
    weights_bytes: int


def _models(recipe: Recipe, command: Sequence[str], given: Mapping[str, Any]) -> _Models:
    """Only for images that are the node's own files: in any other image a path means one inside."""
    volumes: dict[str, Volume] = {}
    env: dict[str, str] = {}
    weights_bytes = 0
    image = given.get("image", Image.host_python())
    said_volumes = given.get("volumes", {})
    if not isinstance(image, Image) or image.kind != "host_python" or not isinstance(said_volumes, Mapping):
        return _Models({}, {}, 0)
    shown = [str(path) for path in said_volumes] + [remote for _, remote in image.local_dirs]
    hub = _hub_cache()
    for model in dict.fromkeys(recipe.models_of(command)):
        path = Path(model)
        if _HUB_NAME.fullmatch(model) and not path.exists():
            path = hub / f"models--{model.replace('/', '--')}"
            if path.is_dir():
                env = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        if not path.is_absolute() or not path.exists():
            continue
        weights_bytes += _size_bytes(path)
        folder = path if path.is_dir() else path.parent  # where the model's other files are, too
        if folder != Path("/") and not any(path.is_relative_to(known) for known in shown):
            volumes[str(folder)] = Volume(folder, read_only=True)
    return _Models(volumes, env, weights_bytes)


def _hub_cache() -> Path:
    """Where Hugging Face's library keeps models on this machine (its own rules)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser().absolute()


def _size_bytes(model: Path) -> int:
    """A model's size: of its file, or of the files of its folder (in a hub's cache, of its blobs)."""
    blobs = model / "blobs"
    folder = blobs if blobs.is_dir() else model
    files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else [model]
    return sum(file.stat().st_size for file in files)


def _memory_bytes(recipe: Recipe, models: _Models) -> int | None:
    if recipe.memory_bytes is None:
        return None
    exact = recipe.memory_bytes + models.weights_bytes
    return -(-exact // _ROUND_TO_BYTES) * _ROUND_TO_BYTES


def _snapshot(
    recipe: Recipe, variants: Sequence[Variant], given: bool | Snapshot
) -> tuple[bool | Snapshot, dict[str, Any]]:
    """The snapshot's parts that were left out, filled in; and which these are."""
    snapshot = Snapshot.parse(given)
    if not snapshot.enabled:
        return given, {}
    parts: dict[str, Any] = {"warmup": recipe.warmup, "canary": recipe.canary}
    for variant in variants:
        for name in _SNAPSHOT_PARTS:
            if getattr(variant, name) is not None:
                parts[name] = getattr(variant, name)
    parts = {name: value for name, value in parts.items() if value and not getattr(snapshot, name)}
    return replace(snapshot, **parts), parts


def _in_words(name: str, value: Any) -> str:
    if name == "memory":
        return f"{value / (1 << 30):.3g}GiB"
    if name == "startup_timeout_s":
        return f"{value:g}"
    if isinstance(value, Hook):
        return _call(Request.parse(value.http, "http")) if value.http else str(value.signal or value.command)
    if isinstance(value, tuple):
        return " ".join(_call(request) for request in value)
    return f"{value}"


def _call(request: Request) -> str:
    return f"{request.method} {request.path}"
