"""Names that nobody in his right mind gives, and every call of an API that takes one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

HOSTILE_NAMES = (
    "..", ".", "../../etc/passwd", "..\\..\\etc", "a\0b", "a\nb", "web\n", "-rf", "a b", "a;b", "%2e%2e%2f",
    "é", "\u2028", "\ufffd\U0001f525", "'; DROP TABLE nodes; --", "{name}", "x" * 2000,
)  # fmt: skip
FEW_HOSTILE_NAMES = ("..", "../../etc/passwd", "a\0b", "web\n", "\u2028", "x" * 2000)
"""Of each sort one, for calls that take their time."""
_METHODS = ("get", "post", "delete", "put", "patch")


def quoted(name: str) -> str:
    """As one part of a path, with nothing that a client would tidy up."""
    return quote(name, safe="").replace(".", "%2E")


def code_of(answer: httpx.Response) -> str:
    """The code of the typed error that this is, or that a stream of events ends with."""
    is_stream = answer.headers["content-type"].startswith("application/x-ndjson")
    told = json.loads(answer.text.splitlines()[-1])["error"] if is_stream else answer.json()
    assert is_stream or 400 <= answer.status_code < 500, f"{answer.status_code}: {answer.text[:300]}"
    assert told["message"]
    assert told["remedy"]
    assert len(answer.text) < 8192
    return str(told["code"])


def calls_with(openapi: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Method and path, with ``{name}`` wherever something is named, of all calls that name something."""
    for path, methods in openapi["paths"].items():
        if "{" in path:
            for method in methods.keys() & set(_METHODS):
                yield method.upper(), re.sub(r"{[^}]*}", "{name}", path)
