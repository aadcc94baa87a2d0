from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.snapshot.canary import MAX_KEPT_BODY_BYTES, BodyForm, CanaryAnswer, compare, record
from glowplug.types.spec import HttpCall

JSON = {"content-type": "application/json"}
EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}
CALL = HttpCall(path="/v1/completions")

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4)
    ),
    max_leaves=20,
)
json_bodies = st.dictionaries(st.text(max_size=6), json_values, max_size=5)


def answer_to(body: bytes, headers: dict[str, str] | None = None, call: HttpCall = CALL) -> CanaryAnswer:
    return record(call, 200, JSON if headers is None else headers, body)


def salted(value: Any, salt: int) -> Any:
    """The value with ignored keys added to every object."""
    if isinstance(value, dict):
        return {"created": salt, **{k: salted(v, salt) for k, v in value.items()}, "id": f"cmpl-{salt}"}
    if isinstance(value, list):
        return [salted(item, salt) for item in value]
    return value


@given(json_bodies)
def test_any_answer_equals_itself(value: Any) -> None:
    body = json.dumps(value).encode()
    assert compare(answer_to(body), 200, body) is None


@given(json_bodies, st.integers(), st.integers())
def test_ignored_keys_may_differ_at_any_depth(value: Any, first: int, second: int) -> None:
    one = json.dumps(salted(value, first)).encode()
    two = json.dumps(salted(value, second), indent=2).encode()
    assert compare(answer_to(one), 200, two) is None


@given(json_bodies, json_bodies)
def test_answers_are_equal_exactly_when_their_json_is(one: Any, two: Any) -> None:
    call = HttpCall(path="/", ignore=[])
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    reason = compare(answer_to(json.dumps(one).encode(), call=call), 200, json.dumps(two).encode())
    assert (reason is None) == same


@given(st.binary(), st.sampled_from(["", "application/json", "text/event-stream", "image/png"]))
def test_no_body_makes_recording_or_comparing_fail(body: bytes, content_type: str) -> None:
    answer = answer_to(body, {"content-type": content_type})
    assert compare(answer, 200, body) is None


@given(st.binary(min_size=1), st.data())
def test_a_flipped_byte_of_a_binary_body_is_noticed(body: bytes, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(body) - 1))
    flipped = bytearray(body)
    flipped[index] ^= data.draw(st.integers(1, 255))
    answer = answer_to(b"\xff" + body, {"content-type": "image/png"})
    assert answer.form is BodyForm.BYTES
    assert "BLAKE3" in (compare(answer, 200, b"\xff" + bytes(flipped)) or "")


@given(st.lists(json_bodies, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_equal_whatever_ends_their_lines(events: list[Any], line_end: str) -> None:
    def stream(salt: int, end: str) -> bytes:
        lines = [f"data: {json.dumps(salted(event, salt))}{end}{end}" for event in events]
        return "".join([*lines, f"data: [DONE]{end}{end}"]).encode()

    assert compare(answer_to(stream(1, "\n"), EVENTS), 200, stream(2, line_end)) is None


@pytest.mark.parametrize(
    ("captured", "now", "reason"),
    [
        (
            {"a": [{"text": "Paris"}]},
            {"a": [{"text": "Lyon"}]},
            'body.a[0].text is "Lyon" instead of "Paris"',
        ),
        ({"a": 1}, {"a": 1.0}, "body.a is 1.0 instead of 1"),
        ({"a": 1}, {"a": True}, "body.a is true instead of 1"),
        ({"a": 1}, {}, "body.a is missing"),
        ({}, {"a": 1}, "body.a is new"),
        ([1], [1, 2], "body has 2 items instead of 1"),
        ({"a": 0.1}, {"a": 0.10000000000000002}, "body.a is 0.10000000000000002 instead of 0.1"),
    ],
)
def test_the_reason_names_the_place_and_both_values(captured: Any, now: Any, reason: str) -> None:
    assert compare(answer_to(json.dumps(captured).encode()), 200, json.dumps(now).encode()) == reason


def test_another_status_is_a_difference() -> None:
    assert compare(answer_to(b"{}"), 500, b"{}") == "status 500 instead of 200"


def test_a_body_that_is_no_longer_json_is_a_difference() -> None:
    assert "no longer json" in (compare(answer_to(b"{}"), 200, b"<html>") or "")


def test_a_stream_that_lost_its_end_is_a_difference() -> None:
    answer = answer_to(b'data: {"t": "a"}\n\ndata: [DONE]\n\n', EVENTS)
    assert answer.form is BodyForm.EVENTS
    assert compare(answer, 200, b'data: {"t": "a"}\n\n') == "body has 1 items instead of 2"


def test_an_event_s_name_counts_and_its_transport_fields_do_not() -> None:
    answer = answer_to(b": hello\nid: 7\nretry: 5\nevent: delta\ndata: x\n\n", EVENTS)
    assert compare(answer, 200, b"id: 8\nevent: delta\ndata: x\n\n") is None
    assert compare(answer, 200, b"event: end\ndata: x\n\n") is not None


def test_data_that_is_json_differs_from_the_same_words_that_are_not() -> None:
    assert compare(answer_to(b'data: "x"\n\n', EVENTS), 200, b"data: x\n\n") is not None


def test_only_what_the_request_ignores_is_ignored() -> None:
    call = HttpCall(path="/", ignore=["took_ms"])
    answer = answer_to(b'{"took_ms": 4, "id": 1}', call=call)
    assert compare(answer, 200, b'{"took_ms": 9, "id": 1}') is None
    assert compare(answer, 200, b'{"took_ms": 4, "id": 2}') == "body.id is 2 instead of 1"


def test_a_big_body_is_kept_as_its_hash_only() -> None:
    body = json.dumps({"vector": [0.5] * MAX_KEPT_BODY_BYTES}).encode()
    answer = answer_to(body)
    assert answer.body_json is None
    assert answer.form is BodyForm.JSON
    assert compare(answer, 200, body.replace(b", ", b",")) is None
    assert "BLAKE3" in (compare(answer, 200, body.replace(b"0.5", b"0.6", 1)) or "")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"9" * 5000, b"[\xff]"])
def test_what_is_nearly_json_is_compared_byte_by_byte(body: bytes) -> None:
    answer = answer_to(body)
    assert answer.form is BodyForm.BYTES
    assert compare(answer, 200, body) is None
    assert compare(answer, 200, body + b" ") is not None


def test_hostile_bodies_after_a_restore_are_reasons_and_not_errors() -> None:
    for body in (b"[" * 100_000, b"\xff\xfe", b"", b'{"a": NaN}'):
        assert compare(answer_to(b'{"a": 1}'), 200, body) is not None
        assert compare(answer_to(b"data: x\n\n", EVENTS), 200, body) is not None


def test_long_values_are_cut_in_the_reason() -> None:
    reason = compare(answer_to(json.dumps({"t": "a" * 5000}).encode()), 200, b'{"t": "b"}')
    assert reason is not None
    assert len(reason) < 200
