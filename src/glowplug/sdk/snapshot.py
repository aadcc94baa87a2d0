"""How users say what a snapshot needs: requests that warm a server up and prove a restored copy right, and
hooks for plain commands that must do something before the freeze or after the thaw.
"""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glowplug.sdk import validation
from glowplug.types.errors import InvalidInput

METHODS = ("GET", "POST", "PUT")
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2")
WEIGHTS = ("keep", "stream")
_CALL = re.compile(r"\s*([A-Za-z]+)\s+(/\S*)(?:\s+(.*?))?\s*", re.DOTALL)
_PATH = re.compile(r"/\S*")
_CALL_REMEDY = 'Write \'GET /path\', \'POST /path {"json": 1}\' or gp.Request("POST", "/path", json={...}).'


@dataclass(frozen=True)
class Request:
    """One HTTP request to the server itself.

    ``ignore`` names JSON keys, at any depth, in which two right answers may differ (ids, times); when left
    out, those of the OpenAI API are ignored.
    """

    method: str
    path: str
    json: Any = None
    ignore: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInput(
                f"{self.method!r} is not a method a request can have.", remedy=f"Use {', '.join(METHODS)}."
            )
        path = validation.text(self.path, "a request's path")
        if not _PATH.fullmatch(path) or len(path) > validation.MAX_PATH_CHARACTERS:
            raise InvalidInput(
                f"A request's path cannot be {path!r}.", remedy="Start it with / and leave out spaces (%20)."
            )
        json_copy(self.json, f"the JSON body of {self.method} {path}")
        if self.ignore is not None:
            validation.texts(self.ignore, "ignore")

    @classmethod
    def parse(cls, call: object, what: str) -> Request:
        """A request from ``"GET /path"``, ``'POST /path {json}'``, ``"/path"`` or a Request."""
        if isinstance(call, Request):
            return call
        if not isinstance(call, str):
            raise InvalidInput(f"{what} cannot be {call!r}.", remedy=_CALL_REMEDY)
        if _PATH.fullmatch(call):
            return cls("GET", call)
        match = _CALL.fullmatch(call)
        if match is None:
            raise InvalidInput(f"{what} {call!r} is not a request.", remedy=_CALL_REMEDY)
        return cls(match[1], match[2], json=_parsed(match[3], what) if match[3] else None)

    def to_spec(self) -> dict[str, Any]:
        """The request as a specification's ``HttpCall``."""
        body = json_copy(self.json, "the JSON body")
        spec: dict[str, Any] = {"method": self.method, "path": self.path, "json_body": body}
        if self.ignore is not None:
            spec["ignore"] = list(self.ignore)
        return spec


@dataclass(frozen=True)
class Hook:
    """What to do to a plain command around a snapshot: exactly one of ``http``, ``signal``, ``command``."""

    http: str | Request | None = None
    signal: str | None = None
    command: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("http", "signal", "command") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInput(
                f"A hook does exactly one thing, not {len(given)}.",
                remedy='Give one of http="POST /path", signal="SIGHUP", command=["program", "argument"].',
            )
        self.to_spec()

    def to_spec(self) -> dict[str, Any]:
        """The hook's part of a specification."""
        if self.http is not None:
            return {"http": Request.parse(self.http, "a hook's http call").to_spec()}
        if self.signal is not None:
            if self.signal not in SIGNALS:
                raise InvalidInput(
                    f"A hook cannot send {self.signal!r}.", remedy=f"Use one of {', '.join(SIGNALS)}."
                )
            return {"signal": self.signal}
        return {"command": validation.command(self.command, "a hook's command")}


@dataclass(frozen=True)
class Snapshot:
    """How a server's memory is captured. ``snapshot=True`` is short for ``Snapshot()``.

    ``gpu=True``: that of its GPUs too; a server with ``gpu=`` is not captured without. It has to run in runc
    (``runtime="runc"`` or ``trusted=True``): docs/gpu.md.
    ``weights="stream"`` leaves what ``glowplug.weights.load_into`` filled out of the snapshot: every copy
    reads it again, in parallel, before it serves (docs/weights.md).
    """

    enabled: bool = True
    gpu: bool = field(default=False, kw_only=True)
    warmup: Sequence[str | Request] = field(default=(), kw_only=True)
    canary: Sequence[str | Request] = field(default=(), kw_only=True)
    before_snapshot: Hook | None = field(default=None, kw_only=True)
    after_restore: Hook | None = field(default=None, kw_only=True)
    secrets_in_snapshot: bool = field(default=False, kw_only=True)
    weights: str = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        self.to_spec()

    @classmethod
    def parse(cls, value: object) -> Snapshot:
        """A snapshot from ``True``, ``False`` or a Snapshot."""
        if isinstance(value, Snapshot):
            return value
        if isinstance(value, bool):
            return cls(enabled=value)
        raise InvalidInput(
            f"snapshot cannot be {value!r}.", remedy="Use True, False or gp.Snapshot(warmup=[...], ...)."
        )

    def to_spec(self) -> dict[str, Any]:
        """The ``SnapshotSpec``."""
        spec: dict[str, Any] = {"enabled": validation.boolean(self.enabled, "enabled")}
        if validation.boolean(self.gpu, "gpu"):
            spec["gpu"] = True
        for what, calls in (("warmup", self.warmup), ("canary", self.canary)):
            if isinstance(calls, str | Request) or not isinstance(calls, Sequence):
                raise InvalidInput(f"{what} must be a list of requests.", remedy=f"Write {what}=[...].")
            spec[what] = [Request.parse(call, what).to_spec() for call in calls]
        for what, hook in (("before_snapshot", self.before_snapshot), ("after_restore", self.after_restore)):
            if hook is None:
                continue
            if not isinstance(hook, Hook):
                raise InvalidInput(f"{what} must be a gp.Hook.", remedy='Write gp.Hook(signal="SIGHUP").')
            spec[what] = hook.to_spec()
        if validation.boolean(self.secrets_in_snapshot, "secrets_in_snapshot"):
            spec["secrets_in_snapshot"] = True
        if self.weights not in WEIGHTS:
            raise InvalidInput(
                f"weights cannot be {self.weights!r}.", remedy='Write weights="keep" or weights="stream".'
            )
        if self.weights != "keep":
            spec["weights"] = self.weights
        return spec


def json_copy(value: Any, what: str) -> Any:
    """A deep copy of ``value`` as plain JSON data. Raises InvalidInput for what JSON cannot carry."""
    try:
        return json_format.loads(json_format.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{what} is not JSON data: {error}.",
            remedy="Use dictionaries, lists, strings, finite numbers, True, False and None.",
        ) from error


def _parsed(body: str, what: str) -> Any:
    try:
        return json_format.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"The JSON body of {what} {body!r} is malformed: {error}.", remedy=_CALL_REMEDY
        ) from error
