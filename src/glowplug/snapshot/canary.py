"""Proof that a restored replica still thinks the same: one answer recorded, one answer compared.

A canary's answer is *reduced* to what must be equal and then compared exactly: JSON without the ignored
keys (ids, times), server-sent events one by one, anything else byte by byte. Numbers are compared as
written: a restored copy runs the same instructions on the same memory, so there is no tolerance to grant.
A streamed answer is compared by its events, not its text: a server that cuts one answer into events
differently each time needs a canary that does not stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from glowplug.snapshot.canonical import blake3_hex, canonical_json, parse_json
from glowplug.types.spec import HttpCall

MAX_KEPT_BODY_BYTES = 64 << 10
"""Bigger reduced bodies are kept as their hash only, so that a manifest stays small."""

_SHOWN_CHARACTERS = 80
_LINE_END = re.compile(r"\r\n|\n|\r")


class BodyForm(StrEnum):
    """How a body is read before it is compared."""

    JSON = "json"
    EVENTS = "events"
    BYTES = "bytes"


class CanaryAnswer(BaseModel):
    """What the captured replica answered. ``body_blake3`` decides; ``body_json`` tells what differs.

    For ``json`` and ``events`` the hash is of the canonical JSON of the reduced body, for ``bytes`` of the
    body itself. ``body_json`` is None where the reduced body is too big to keep, or not JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: HttpCall
    status: int = Field(strict=True, ge=100, le=999)
    content_type: str
    form: BodyForm
    body_json: Any = None
    body_blake3: str = Field(pattern=r"^[0-9a-f]{64}$")


def record(request: HttpCall, status: int, headers: Mapping[str, str], body: bytes) -> CanaryAnswer:
    """Note an answer. ``headers`` in any case; ``body`` with its content encoding already undone."""
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    form, reduced = _classify(body, content_type, request.ignore)
    if form is BodyForm.BYTES:
        kept, compared = None, body
    else:
        compared = canonical_json(reduced)
        kept = reduced if len(compared) <= MAX_KEPT_BODY_BYTES else None
    return CanaryAnswer(
        request=request,
        status=status,
        content_type=content_type,
        form=form,
        body_json=kept,
        body_blake3=blake3_hex(compared),
    )


def compare(answer: CanaryAnswer, status: int, body: bytes) -> str | None:
    """None if ``status`` and ``body`` equal the recorded ``answer``, otherwise what differs, in a line."""
    if status != answer.status:
        return f"status {status} instead of {answer.status}"
    if answer.form is BodyForm.BYTES:
        digest = blake3_hex(body)
        return None if digest == answer.body_blake3 else _hashes_differ(answer, digest)
    try:
        reduced = _reduce(body, answer.form, answer.request.ignore)
    except ValueError as error:
        return f"the body is no longer {answer.form.value}: {error}"
    digest = blake3_hex(canonical_json(reduced))
    if digest == answer.body_blake3:
        return None
    if answer.body_json is None:
        return _hashes_differ(answer, digest)
    return _difference("body", answer.body_json, reduced) or _hashes_differ(answer, digest)


def _classify(body: bytes, content_type: str, ignore: list[str]) -> tuple[BodyForm, Any]:
    """The most exact reading that fits. Bare numbers and words count as JSON only when declared so."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        try:
            return BodyForm.EVENTS, _reduce(body, BodyForm.EVENTS, ignore)
        except ValueError:
            return BodyForm.BYTES, None
    try:
        reduced = _reduce(body, BodyForm.JSON, ignore)
    except ValueError:
        return BodyForm.BYTES, None
    if isinstance(reduced, dict | list) or kind.endswith("json"):
        return BodyForm.JSON, reduced
    return BodyForm.BYTES, None


def _reduce(body: bytes, form: BodyForm, ignore: list[str]) -> Any:
    ignored = frozenset(ignore)
    if form is BodyForm.EVENTS:
        return _reduce_events(body.decode("utf-8"), ignored)
    return _without(parse_json(body), ignored)


def _without(value: Any, ignored: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, ignored) for name, item in value.items() if name not in ignored}
    if isinstance(value, list):
        return [_without(item, ignored) for item in value]
    return value


def _reduce_events(text: str, ignored: frozenset[str]) -> list[dict[str, Any]]:
    """Name and data of each event. Comments, ``id`` and ``retry`` are transport, not answer.

    An unfinished last event counts: a stream that was cut differs from one that was not.
    """
    events: list[dict[str, Any]] = []
    name, data = "", list[str]()
    for line in [*_LINE_END.split(text.removeprefix("\ufeff")), ""]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if name or data:
                events.append(_reduce_event(name, "\n".join(data), ignored))
            name, data = "", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
    return events


def _reduce_event(name: str, data: str, ignored: frozenset[str]) -> dict[str, Any]:
    try:
        return {"event": name, "json": _without(parse_json(data.encode()), ignored)}
    except ValueError:
        return {"event": name, "text": data}


def _difference(where: str, captured: Any, now: Any) -> str | None:
    """The first place at which two JSON values differ. Kinds matter: 1, 1.0, "1" and true are four things."""
    if isinstance(captured, dict) and isinstance(now, dict):
        for name in sorted(captured.keys() | now.keys()):
            if name not in now:
                return f"{where}.{name} is missing"
            if name not in captured:
                return f"{where}.{name} is new"
            if found := _difference(f"{where}.{name}", captured[name], now[name]):
                return found
        return None
    if isinstance(captured, list) and isinstance(now, list):
        for index, (ours, theirs) in enumerate(zip(captured, now, strict=False)):
            if found := _difference(f"{where}[{index}]", ours, theirs):
                return found
        if len(captured) != len(now):
            return f"{where} has {len(now)} items instead of {len(captured)}"
        return None
    if canonical_json(captured) == canonical_json(now):
        return None
    return f"{where} is {_short(now)} instead of {_short(captured)}"


def _short(value: Any) -> str:
    text = canonical_json(value).decode("ascii")
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + ".."


def _hashes_differ(answer: CanaryAnswer, digest: str) -> str:
    return f"the body's BLAKE3 is {digest[:16]}.. instead of {answer.body_blake3[:16]}.."
