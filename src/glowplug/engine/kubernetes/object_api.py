"""The objects of an API server of Kubernetes, as the few calls that we make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Object = dict[str, Any]
"""Any object of Kubernetes, as JSON."""


class ObjectApi(Protocol):
    """Resources are written ``v1/nodes``, ``apps/v1/daemonsets``. Calls block, and have deadlines.

    All raise Unavailable when nothing answers, else what the answer stands for: NotFound, Conflict,
    InvalidInput, Unauthorized, Overloaded, with the API server's own words.
    """

    def list(self, resource: str, namespace: str | None = None, *, labels: str = "") -> list[Object]:
        """All objects, of all namespaces if none is named; ``labels`` is a selector."""
        ...

    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        """One object."""
        ...

    def create(self, resource: str, body: Mapping[str, Any], namespace: str | None = None) -> Object:
        """Make it; returns it as it is then. Conflict when there is one."""
        ...

    def patch(
        self,
        resource: str,
        name: str,
        body: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        """Change these fields, as a merge patch does: ``None`` removes."""
        ...

    def delete(self, resource: str, name: str, namespace: str | None = None) -> None:
        """Remove it; one that is not there is fine."""
        ...
