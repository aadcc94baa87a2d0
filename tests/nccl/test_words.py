"""What crosses the connection between ranks: a contract (``docs/nccl.md``)."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.nccl.line import Line
from glowplug.nccl.words import Deadlines, Reply, Request, Step, from_line, to_line
from glowplug.types.errors import DeadlineExceeded, InvalidInput, ReplicaFailed

REQUESTS = st.builds(
    Request,
    token=st.text(),
    step=st.sampled_from(Step),
    deadline_s=st.floats(0.001, 1e6),
    error=st.none() | st.fixed_dictionaries({"code": st.text(), "message": st.text()}),
)


@given(REQUESTS)
def test_a_request_arrives_as_it_was_sent(request: Request) -> None:
    assert Request.from_message(from_line(to_line(request.to_message()))) == request


@given(st.integers(1, 65_535), st.integers(0))
def test_a_rebuild_says_where_and_for_the_how_many_th_time(port: int, generation: int) -> None:
    sent = Request("token", Step.REBUILD, 1.0, port, generation)
    assert Request.from_message(from_line(to_line(sent.to_message()))) == sent


def test_an_error_arrives_as_the_error_that_it_was() -> None:
    sent = Reply(3, error=ReplicaFailed("It ended.", remedy="Look.", rank=3, ports=[1, 2]))
    received = Reply.from_message(from_line(to_line(sent.to_message())))
    assert isinstance(received.error, ReplicaFailed)
    assert received.error.to_dict() == sent.error.to_dict()  # type: ignore[union-attr]


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_whatever_else_is_sent_is_an_error_with_a_remedy(line: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        Request.from_message(from_line(line))
    assert caught.value.remedy


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=3)
FIELDS = st.sampled_from(["token", "step", "deadline_s", "port", "rank", "result", "error"])


@given(st.dictionaries(FIELDS, JSON))
def test_messages_with_fields_of_another_kind_are_refused_or_understood(message: dict[str, object]) -> None:
    for kind in (Request, Reply):
        with contextlib.suppress(InvalidInput):  # nothing else may be raised
            kind.from_message(message)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "1", None])
def test_a_deadline_is_a_number_of_seconds(value: object) -> None:
    with pytest.raises(InvalidInput, match="hold_s"):
        Deadlines(hold_s=value)  # type: ignore[arg-type]


def test_the_deadlines_of_a_preparation_and_of_a_resumption_fit_into_a_hook() -> None:
    each = Deadlines()
    assert each.hold_s + each.release_s + each.rebuild_s + each.verify_s + each.open_s < 60
    assert each.gap_s > max(each.release_s, each.rebuild_s, each.verify_s)


def test_a_line_is_waited_for_put_together_and_limited() -> None:
    here, there = socket.socketpair()
    line = Line(here)
    with pytest.raises(DeadlineExceeded):
        line.receive(0.05)
    there.sendall(b'{"version": 1, "ra')
    with pytest.raises(DeadlineExceeded):
        line.receive(0.05)
    there.sendall(b'nk": 1}\n{"version": 1}\n')
    assert line.receive(30.0) == {"version": 1, "rank": 1}
    assert line.receive(30.0) == {"version": 1}
    there.close()
    assert line.receive(30.0) is None
    line.close()


def test_a_line_without_an_end_is_refused() -> None:
    here, there = socket.socketpair()
    sender = threading.Thread(target=_send_for_ever, args=(there,))
    sender.start()
    line = Line(here)
    with pytest.raises(InvalidInput, match="longer than"):
        line.receive(60.0)
    line.close()
    sender.join(60.0)
    there.close()


def _send_for_ever(there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            there.sendall(b"x" * 50_000)
