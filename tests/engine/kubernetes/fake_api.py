"""An API server in memory: what of its behaviour our own code depends on, and nothing else.

Versions and generations, the status as a subresource, label selectors, finalizers, conflicts; and it can be
away. Calls may come from several threads.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from glowplug.engine.kubernetes.object_api import Object
from glowplug.types.errors import Conflict, GlowplugError, NotFound

Key = tuple[str, str | None, str]
P = ParamSpec("P")
T = TypeVar("T")


def alone(call: Callable[Concatenate[FakeApi, P], T]) -> Callable[Concatenate[FakeApi, P], T]:
    """One call at a time."""

    @functools.wraps(call)
    def alone(self: FakeApi, *arguments: P.args, **named: P.kwargs) -> T:
        with self.lock:
            return call(self, *arguments, **named)

    return alone


class FakeApi:
    """An ObjectApi. ``away`` is raised by every call while it is set; ``writes`` are calls that change."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[Key, Object] = {}
        self.away: GlowplugError | None = None
        self.writes: list[tuple[str, str, str]] = []
        self._versions = itertools.count(1)

    # -- the port --------------------------------------------------------------------------------------------

    @alone
    def list(self, resource: str, namespace: str | None = None, *, labels: str = "") -> list[Object]:
        self._check()
        wanted = dict(part.split("=", 1) for part in labels.split(",") if part)
        return [
            copy.deepcopy(one)
            for (kind, place, _), one in self.objects.items()
            if kind == resource
            and (namespace is None or place == namespace)
            and wanted.items() <= (one["metadata"].get("labels") or {}).items()
        ]

    @alone
    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        self._check()
        return copy.deepcopy(self._at(resource, namespace, name))

    @alone
    def create(self, resource: str, body: Mapping[str, Any], namespace: str | None = None) -> Object:
        self._check()
        made = copy.deepcopy(dict(body))
        name = made["metadata"]["name"]
        self.writes.append(("create", resource, name))
        if (resource, namespace, name) in self.objects:
            raise Conflict(f"{name} already exists")
        made.pop("status", None)
        made["metadata"] = {**made["metadata"], "generation": 1, "namespace": namespace}
        return copy.deepcopy(self._put((resource, namespace, name), made))

    @alone
    def patch(
        self,
        resource: str,
        name: str,
        body: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        self._check()
        self.writes.append(("patch", f"{resource}/{subresource}".rstrip("/"), name))
        there = self._at(resource, namespace, name)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version not in (None, there["metadata"]["resourceVersion"]):
            raise Conflict(f"{name} has been modified")
        change = {key: value for key, value in body.items() if (key == "status") == (subresource == "status")}
        changed = _merged(there, change)
        if changed.get("spec") != there.get("spec"):
            changed["metadata"]["generation"] = there["metadata"].get("generation", 1) + 1
        key = (resource, namespace, name)
        if changed["metadata"].get("deletionTimestamp") and not changed["metadata"].get("finalizers"):
            return self.objects.pop(key)
        return copy.deepcopy(self._put(key, changed))

    @alone
    def delete(self, resource: str, name: str, namespace: str | None = None) -> None:
        self._check()
        self.writes.append(("delete", resource, name))
        self.objects.pop((resource, namespace, name), None)

    # -- for tests -------------------------------------------------------------------------------------------

    @alone
    def put(self, resource: str, body: Object, namespace: str | None = None) -> Object:
        """As somebody else makes it, status and all."""
        body = copy.deepcopy(body)
        body["metadata"].setdefault("generation", 1)
        if namespace is not None:
            body["metadata"]["namespace"] = namespace
        return self._put((resource, namespace, body["metadata"]["name"]), body)

    def written(self, kind: str, resource: str) -> list[str]:
        """The names of what was written so."""
        return [name for verb, where, name in self.writes if (verb, where) == (kind, resource)]

    def _put(self, key: Key, body: Object) -> Object:
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[key] = body
        return body

    def _at(self, resource: str, namespace: str | None, name: str) -> Object:
        found = self.objects.get((resource, namespace, name))
        if found is None:
            raise NotFound(f"{resource} {name} not found")
        return found

    def _check(self) -> None:
        if self.away is not None:
            raise self.away


def _merged(there: Any, change: Any) -> Any:
    if not isinstance(change, Mapping):
        return copy.deepcopy(change)
    made = dict(copy.deepcopy(there)) if isinstance(there, Mapping) else {}
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made
