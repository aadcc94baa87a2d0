"""Which headers cross the router, in both directions. Pure functions on what HTTP gave us.

Hop-by-hop headers (RFC 9110, 7.6.1) end here, and so does the mark by which the agent tells its own probes;
everything else passes byte for byte, in order. A ``Connection`` header may name more headers to drop, but not
those that frame or address a message: dropping them on a client's word would let it smuggle a second request
into the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multidict import CIMultiDict

from glowplug.types.errors import InvalidInput

RawHeaders = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {b"expect", b"x-forwarded-for", b"x-forwarded-prefix", b"x-glowplug-probe"}
_WEBSOCKET_HANDSHAKE = frozenset(
    {
        b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
        b"sec-websocket-protocol", b"content-length",
    }
)  # fmt: skip
_ESSENTIAL = frozenset({b"host", b"content-length", b"transfer-encoding"})


def request_headers(
    raw: RawHeaders, *, peer: str, scheme: str, prefix: str, is_websocket: bool = False
) -> CIMultiDict[str]:
    """The headers of the request to a replica. Raises InvalidInput for a value that is not UTF-8."""
    dropped = _NOT_FORWARDED | _WEBSOCKET_HANDSHAKE if is_websocket else _NOT_FORWARDED
    named = _named_by_connection(raw)
    forwarded_for = peer
    forwarded_prefix = prefix
    has_proto = False
    headers: list[tuple[str, str]] = []
    try:
        for name, value in raw:
            if name not in dropped and name not in named:
                headers.append((name.decode("ascii"), value.decode("utf-8")))
                has_proto = has_proto or name == b"x-forwarded-proto"
            elif name == b"x-forwarded-for":
                forwarded_for = f"{value.decode('utf-8')}, {peer}"
            elif name == b"x-forwarded-prefix":
                forwarded_prefix = value.decode("utf-8").rstrip("/") + prefix
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "A request header is not UTF-8.", remedy="Send header values as ASCII or UTF-8."
        ) from error
    headers.append(("x-forwarded-for", forwarded_for))
    headers.append(("x-forwarded-prefix", forwarded_prefix))
    if not has_proto:
        headers.append(("x-forwarded-proto", scheme))
    return CIMultiDict(headers)


def response_headers(raw: RawHeaders, *, status: int) -> list[tuple[bytes, bytes]]:
    """The headers of the answer to the caller: all but hop-by-hop ones.

    204 and 304 have no body, so a Content-Length would promise bytes that never come.
    """
    named = _named_by_connection(raw, lower=True)
    bodiless = status in (204, 304)
    kept = []
    for name, value in raw:
        lowered = name.lower()
        if lowered in _HOP_BY_HOP or lowered in named or (bodiless and lowered == b"content-length"):
            continue
        kept.append((name, value))
    return kept


def first(raw: RawHeaders, name: bytes) -> bytes | None:
    """The first value of ``name`` (lower case), or None."""
    return next((value for key, value in raw if key == name), None)


def _named_by_connection(raw: RawHeaders, *, lower: bool = False) -> frozenset[bytes]:
    values = [v for n, v in raw if (n.lower() if lower else n) == b"connection"]
    if not values:
        return frozenset()
    return frozenset(_tokens(values)) - _ESSENTIAL


def _tokens(values: Iterable[bytes]) -> Iterable[bytes]:
    for value in values:
        for token in value.split(b","):
            yield token.strip().lower()
