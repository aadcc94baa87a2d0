"""The API server as the few calls that we need, with deadlines and with errors of our own.

No client library: five verbs on JSON are a page of code with the HTTP client that is here anyway, and nothing
that is generated of two thousand kinds has to be loaded for three.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from glowplug.engine.kubernetes.access import Access
from glowplug.engine.kubernetes.object_api import Object
from glowplug.kernel.http_client import HttpClient
from glowplug.types.errors import (
    Conflict,
    GlowplugError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)

REQUEST_TIMEOUT_S = 15.0
_PAGE = 500
_MAX_PAGES = 200
_MERGE_PATCH = "application/merge-patch+json"
_SHOWN_CHARACTERS = 500
_KINDS: dict[int, tuple[type[GlowplugError], str]] = {
    400: (InvalidInput, "Correct the object."),
    401: (Unauthorized, "The token or certificate is not known there (any more)."),
    403: (Unauthorized, "The service account needs this right: see the RBAC table in docs/kubernetes.md."),
    404: (NotFound, "Are the custom resource definitions installed? They are in the chart's folder crds."),
    409: (Conflict, "Somebody else changed it: it is tried again with what is there now."),
    410: (Conflict, "The list changed too much meanwhile: it is tried again."),
    413: (InvalidInput, "The object is too large."),
    422: (InvalidInput, "Correct the named fields."),
    429: (Overloaded, "The API server has too much to do: it is tried again later."),
}


class KubernetesApi:
    """An ObjectApi over one connection pool, for several threads. Close it, or use it in a ``with``."""

    def __init__(self, access: Access, *, on_write: Callable[[str], None] = lambda _resource: None) -> None:
        self.access = access
        self._on_write = on_write
        self._http = HttpClient(
            access.server,
            _Words(access.server),
            timeout_s=REQUEST_TIMEOUT_S,
            tls=access.tls() if access.server.startswith("https") else None,
            is_proxied=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def list(self, resource: str, namespace: str | None = None, *, labels: str = "") -> list[Object]:
        """All objects, page by page; ``labels`` is a selector."""
        path = _path(resource, namespace)
        found: list[Object] = []
        following = ""
        for _ in range(_MAX_PAGES):
            parameters = {"limit": str(_PAGE), "labelSelector": labels, "continue": following}
            answer = self._call("GET", path, parameters={k: v for k, v in parameters.items() if v})
            found += answer.get("items") or []
            following = (answer.get("metadata") or {}).get("continue") or ""
            if not following:
                return found
        raise Unavailable(
            f"There are more than {_PAGE * _MAX_PAGES} {resource}.",
            remedy="Something makes them without end.",
        )

    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        """One object."""
        return self._call("GET", _path(resource, namespace, name))

    def create(self, resource: str, body: Mapping[str, Any], namespace: str | None = None) -> Object:
        """Make it; returns it as it is then. Conflict when there is one."""
        self._on_write(resource)
        return self._call("POST", _path(resource, namespace), body=body)

    def patch(
        self,
        resource: str,
        name: str,
        body: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        """Change these fields (a merge patch); Conflict if ``body`` names a version that is not the last."""
        self._on_write(resource)
        path = _path(resource, namespace, name) + (f"/{subresource}" if subresource else "")
        return self._call("PATCH", path, body=body, content_type=_MERGE_PATCH)

    def delete(self, resource: str, name: str, namespace: str | None = None) -> None:
        """Remove it; one that is not there is fine."""
        self._on_write(resource)
        try:
            self._call("DELETE", _path(resource, namespace, name))
        except NotFound:
            return

    def _call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Accept": "application/json"}
        token = self.access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = content_type
        content = self._http.request(method, path, parameters, body=body, headers=headers)
        try:
            found = json.loads(content)
        except ValueError as error:
            raise Unavailable(
                f"The answer of {self.access.server} is not JSON.",
                remedy="Is it an API server of Kubernetes?",
            ) from error
        if not isinstance(found, dict):
            raise Unavailable(
                f"{self.access.server} is no API server of Kubernetes.", remedy="See KUBECONFIG."
            )
        return found


def _path(resource: str, namespace: str | None, name: str | None = None) -> str:
    group, _, plural = resource.rpartition("/")
    root = f"/apis/{group}" if "/" in group else f"/api/{group}"
    parts = [
        root,
        *(["namespaces", quote(namespace, safe="")] if namespace is not None else []),
        plural,
        *([quote(name, safe="")] if name is not None else []),
    ]
    return "/".join(parts)


class _Words:
    """For the log of an operator, which goes on by itself."""

    def __init__(self, server: str) -> None:
        self._server = server

    def no_answer(self, error: httpx.HTTPError) -> GlowplugError:
        """It is tried again."""
        return Unavailable(
            f"The API server of Kubernetes at {self._server} does not answer.",
            remedy="Replicas that are warm do not need it; it is tried again.",
            cause=f"{type(error).__name__}: {error}",
        )

    def refused(self, answer: httpx.Response) -> GlowplugError:
        """What it says, as what the caller can do about it."""
        try:
            message = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            message = answer.reason_phrase
        kind, remedy = _KINDS.get(answer.status_code, (Unavailable, "It is tried again."))
        return kind(
            f"Kubernetes: {message[:_SHOWN_CHARACTERS]}",
            remedy=remedy,
            status=answer.status_code,
            asked=f"{answer.request.method} {answer.request.url.path}",
        )
