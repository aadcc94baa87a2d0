"""What an engine asks of the control plane: its nodes, tokens to join with, to drain and remove one."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from glowplug.control.messages import NodeStatus
from glowplug.kernel.http_client import HttpClient
from glowplug.types.cluster import JoinTokenView
from glowplug.types.errors import GlowplugError, Unavailable

ANSWER_TIMEOUT_S = 10.0
_NODES = TypeAdapter(list[NodeStatus])


class ControlApi:
    """A client of one control plane. Every call raises Unavailable when it does not answer in time."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._words = _Words(url)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = HttpClient(url, self._words, timeout_s=timeout_s, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def nodes(self) -> dict[str, NodeStatus]:
        """The cluster's nodes by name, the control plane's own among them: it has no address."""
        content = self._ask("GET", "/nodes")
        try:
            return {node.name: node for node in _NODES.validate_json(content)}
        except ValidationError as error:
            raise self._words.misunderstood(error) from error

    def new_join_token(self, ttl_s: float) -> JoinTokenView:
        """A token to join with, which is in this answer and nowhere else."""
        content = self._ask("POST", "/join-tokens", {"ttl_s": ttl_s})
        try:
            return JoinTokenView.model_validate_json(content)
        except ValidationError as error:
            raise self._words.misunderstood(error) from error

    def revoke_join_token(self, token_id: str) -> None:
        """Let nobody join with it any more. Raises NotFound when nobody can."""
        self._ask("DELETE", f"/join-tokens/{quote(token_id, safe='')}")

    def drain(self, name: str) -> None:
        """Place nothing new on a node, and move what runs there. Raises NotFound."""
        self._ask("POST", f"/nodes/{quote(name, safe='')}/drain")

    def remove(self, name: str, *, force: bool) -> None:
        """Take a node out. Raises NotFound, and Conflict without ``force`` while something runs there."""
        self._ask("DELETE", f"/nodes/{quote(name, safe='')}", {"force": "true"} if force else None)

    def _ask(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> bytes:
        return self._http.request(method, f"/api/v1{path}", parameters)


class _Words:
    """For the log of an engine, which goes on by itself."""

    def __init__(self, url: str) -> None:
        self._url = url

    def no_answer(self, error: httpx.HTTPError) -> GlowplugError:
        """Its supervisor sees to it."""
        return Unavailable(
            f"The control plane at {self._url} does not answer.",
            remedy="Its supervisor starts it again; see control.log in the state directory.",
            cause=f"{type(error).__name__}: {error}",
        )

    def refused(self, answer: httpx.Response) -> GlowplugError:
        """In the control plane's own words."""
        try:
            return GlowplugError.from_dict(json.loads(answer.content))
        except (ValueError, AttributeError) as error:
            return self.misunderstood(error)

    def misunderstood(self, error: Exception) -> Unavailable:
        """An answer that is none of a control plane's."""
        return Unavailable(
            f"What answers at {self._url} is no control plane of this version.",
            remedy="Check the address, and the versions.",
            cause=str(error)[:300],
        )
