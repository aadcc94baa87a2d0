"""A search in the region costs a start little, whatever the region does, and is not made in vain again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from tests.snapshot.conftest import Capture, capture, clock, make_key, state, store  # noqa: F401

from glowplug.node.snapshot_search import ABSENT_S, FAILED_S, SearchOutcome, SnapshotSearch
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, SnapshotInvalid, Unavailable

Answer = Snapshot | Exception | None


class Searching:
    """A search whose region answers what it is told to, and what became of it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.outcomes: list[SearchOutcome] = []
        self.asked: list[str] = []
        self.answer: Callable[[], Answer] = lambda: None
        self.search = SnapshotSearch(self._bring, self.clock, self.outcomes.append, wait_s=10.0)

    def _bring(self, key: SnapshotKey) -> Snapshot | None:
        self.asked.append(key.id)
        answer = self.answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def searching() -> Iterator[Searching]:
    searching = Searching()
    yield searching
    searching.search.close()


def test_what_the_region_has_is_found(searching: Searching, capture: Capture) -> None:  # noqa: F811
    snapshot = capture()
    searching.answer = lambda: snapshot
    assert searching.search.find(make_key()) is snapshot
    assert searching.outcomes == [SearchOutcome.FOUND]


def test_what_is_not_there_is_asked_for_again_only_after_a_while(searching: Searching) -> None:
    key = make_key()
    assert searching.search.find(key) is None
    assert searching.search.find(key) is None
    assert searching.search.find(make_key("im-2")) is None, "another key is another question"
    searching.clock.advance(ABSENT_S)
    assert searching.search.find(key) is None
    assert searching.asked.count(key.id) == 2
    assert searching.outcomes[1] is SearchOutcome.SKIPPED


@pytest.mark.parametrize("kind", [Unavailable, DeadlineExceeded])
def test_a_failing_region_is_left_alone_by_all_servers(
    searching: Searching, kind: type[GlowplugError]
) -> None:
    searching.answer = lambda: kind("It is down.")
    with pytest.raises(kind, match="was asked for a snapshot: It is down"):
        searching.search.find(make_key())
    assert searching.search.find(make_key("im-2")) is None
    assert searching.outcomes == [SearchOutcome.FAILED, SearchOutcome.SKIPPED]
    searching.clock.advance(FAILED_S)
    searching.answer = lambda: None
    searching.search.find(make_key("im-2"))
    assert searching.outcomes[-1] is SearchOutcome.ABSENT


def test_a_bad_snapshot_there_is_not_asked_for_at_every_start(searching: Searching) -> None:
    searching.answer = lambda: SnapshotInvalid("It is damaged.")
    with pytest.raises(SnapshotInvalid):
        searching.search.find(make_key())
    assert searching.search.find(make_key()) is None
    searching.answer = lambda: None
    searching.search.find(make_key("im-2"))
    assert searching.outcomes[-1] is SearchOutcome.ABSENT, "the region itself is fine"


def test_a_bug_is_an_error_with_a_name(searching: Searching) -> None:
    searching.answer = lambda: OSError("disk on fire")
    with pytest.raises(Unavailable, match="disk on fire"):
        searching.search.find(make_key())


def test_a_slow_region_is_not_waited_for_and_its_answer_is_not_lost() -> None:
    begun, answered, over = threading.Event(), threading.Event(), threading.Event()

    def bring(_key: SnapshotKey) -> None:
        begun.set()
        answered.wait(30)
        over.set()

    outcomes: list[SearchOutcome] = []
    search = SnapshotSearch(bring, ManualClock(), outcomes.append, wait_s=0.01)
    with pytest.raises(DeadlineExceeded):
        search.find(make_key())
    assert begun.wait(30)
    assert search.find(make_key()) is None, "nobody else waits for it"
    answered.set()
    assert over.wait(30), "it goes on in the background"
    assert outcomes == [SearchOutcome.LATE, SearchOutcome.SKIPPED]
    search.close()


def test_several_starts_of_one_server_ask_once(searching: Searching) -> None:
    gate = threading.Event()

    def answer() -> None:
        gate.wait(30)

    searching.answer = answer
    threads = [threading.Thread(target=searching.search.find, args=(make_key(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(30)
    assert len(searching.asked) == 1
    assert len(searching.outcomes) == 8
