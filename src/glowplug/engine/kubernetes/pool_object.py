"""A Pool as it lies in the API server: what its user wants of it, and what we have said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from glowplug.engine.kubernetes.app_object import malformed
from glowplug.engine.kubernetes.names import POOLS
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.engine.kubernetes.objects import PoolObject, PoolStatusObject
from glowplug.types.errors import InvalidInput


@dataclass(frozen=True)
class _Told:
    name: str
    namespace: str
    generation: int
    status: PoolStatusObject

    def tell(self, api: ObjectApi, status: PoolStatusObject) -> bool:
        """Say this of it; whether that is news."""
        if status == self.status:
            return False
        api.patch(POOLS, self.name, {"status": status.patch()}, self.namespace, subresource="status")
        return True


@dataclass(frozen=True)
class FoundPool(_Told):
    """One that can be filled."""

    spec: PoolObject


@dataclass(frozen=True)
class MalformedPool(_Told):
    """One that its schema let pass, and that cannot be meant: it stays as it is."""

    problem: InvalidInput


def found_pools(bodies: Sequence[Object], namespace: str) -> tuple[list[FoundPool], list[MalformedPool]]:
    """Whatever is in their status that we have not written is left out."""
    good: list[FoundPool] = []
    bad: list[MalformedPool] = []
    for body in bodies:
        name, generation = body["metadata"]["name"], int(body["metadata"].get("generation", 1))
        status = _status(body)
        try:
            spec = PoolObject.model_validate(body.get("spec") or {})
        except ValidationError as error:
            bad.append(MalformedPool(name, namespace, generation, status, malformed(error)))
        else:
            good.append(FoundPool(name, namespace, generation, status, spec))
    return good, bad


def _status(body: Object) -> PoolStatusObject:
    try:
        return PoolStatusObject.model_validate(body.get("status") or {})
    except ValidationError:
        return PoolStatusObject()  # by hand, or by an older version: it is written anew
