"""What the machines of a Ray cluster are called as nodes, and which labels they keep."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from glowplug.engine.ray.cluster import RayNode
from glowplug.engine.ray.settings import NODE_WORD
from glowplug.types.cluster import MAX_LABELS, Labels
from glowplug.types.ids import name_from_identifier

_MOST_CHARACTERS = 44
_ONE_LABEL = TypeAdapter(Labels)
_RAYS_OWN = "ray.io/"
_ZONE_OF_RAY = "ray.io/availability-zone"


def node_name(node: RayNode) -> str:
    """Made of what it is called in Ray, by default its address: the same after each ``ray start``."""
    return f"ray-{name_from_identifier(node.name)[:_MOST_CHARACTERS].strip('-')}"


def folder(template: str, name: str) -> str:
    """The state directory of the agent on the node ``name``."""
    return template.replace(NODE_WORD, name)


def labels(node: RayNode) -> dict[str, str]:
    """Its own labels, as far as a node of ours may have such; Ray's zone is ours, too."""
    own = {name: value for name, value in node.labels.items() if not name.startswith(_RAYS_OWN)}
    if zone := node.labels.get(_ZONE_OF_RAY):
        own.setdefault("zone", zone)
    kept = {name: value for name, value in sorted(own.items()) if _is_allowed(name, value)}
    return dict(list(kept.items())[:MAX_LABELS])


def is_chosen(node: RayNode, only: Mapping[str, str]) -> bool:
    """Whether it has all these labels."""
    return all(node.labels.get(name) == value for name, value in only.items())


def _is_allowed(name: str, value: str) -> bool:
    try:
        _ONE_LABEL.validate_python({name: value})
    except ValidationError:
        return False
    return True
