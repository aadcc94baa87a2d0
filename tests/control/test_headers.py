"""Which headers cross the router."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.control.headers import first, request_headers, response_headers
from glowplug.types.errors import InvalidInput

HOP = ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-authorization"]
names = st.text("abcdefghij-", min_size=1, max_size=12).map(lambda name: f"x{name}")
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
raw_headers = st.lists(
    st.tuples(st.one_of(names, st.sampled_from(HOP)), values).map(
        lambda pair: (pair[0].encode(), pair[1].encode())
    ),
    max_size=20,
)


def forwarded(raw: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return list(request_headers(raw, peer="192.0.2.1", scheme="http", prefix="/a/b").items())


@given(raw_headers)
def test_end_to_end_headers_pass_in_order_and_hop_by_hop_headers_never(
    raw: list[tuple[bytes, bytes]],
) -> None:
    named = {t.strip().lower() for n, v in raw if n == b"connection" for t in v.decode().split(",")}
    kept = [(n.decode(), v.decode()) for n, v in raw if n.decode() not in HOP and n.decode() not in named]
    assert forwarded(raw)[: len(kept)] == kept
    assert not {name for name, _ in forwarded(raw)} & set(HOP)
    back = response_headers([(n.upper(), v) for n, v in raw], status=200)
    assert [(n.lower().decode(), v.decode()) for n, v in back] == kept


@pytest.mark.parametrize("name", [b"content-length", b"host"])
def test_connection_cannot_drop_what_frames_a_message(name: bytes) -> None:
    assert (name.decode(), "5") in forwarded([(b"connection", name), (name, b"5")])


def test_forwarding_headers_are_extended_never_replaced() -> None:
    raw = [
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"x-forwarded-prefix", b"/out/"),
        (b"x-forwarded-proto", b"https"),
    ]
    assert dict(forwarded(raw)) == {
        "x-forwarded-for": "10.0.0.1, 192.0.2.1",
        "x-forwarded-prefix": "/out/a/b",
        "x-forwarded-proto": "https",
    }


def test_values_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(InvalidInput):
        forwarded([(b"x", b"\xff")])


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_promise_none(status: int) -> None:
    assert response_headers([(b"Content-Length", b"5"), (b"ETag", b"x")], status=status) == [(b"ETag", b"x")]


def test_first_finds_the_first() -> None:
    assert first([(b"a", b"1"), (b"b", b"2"), (b"b", b"3")], b"b") == b"2"
    assert first([], b"b") is None
