"""Where a replica is placed: the stated score, case by case, and what holds whatever the nodes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.control.holdings import Holdings
from glowplug.control.placement import Candidate, Wish, rank
from glowplug.types.replica import HeldSnapshot, NodeHoldings

GIB = 1 << 30
WISH = Wish("chat", "llm", "im-1", memory_bytes=2 * GIB)
GPU_WISH = replace(WISH, gpu="H100", gpu_count=1)
H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


def node(name: str, **fields: Any) -> Candidate:
    """A node with room."""
    return Candidate(name, **{"memory_bytes": 16 * GIB, "free_memory_bytes": 8 * GIB, **fields})


def holding(
    *,
    snapshot: bool = False,
    machine: str = "m1",
    here: float = 1.0,
    in_region: bool = False,
    image: int | None = None,
    of: str = "chat/llm",
    image_id: str = "im-1",
) -> Holdings:
    held = HeldSnapshot(
        id="sn-1", servers=[of], image_id=image_id, machine="m1", bytes=1000, here_bytes=int(1000 * here),
        is_in_region=in_region,
    )  # fmt: skip
    images = {} if image is None else {"im-1": image}
    return Holdings(NodeHoldings(machine=machine, snapshots=[held] if snapshot else [], images=images))


def order(wish: Wish, *nodes: Candidate) -> list[str]:
    return [score.node for score in rank(wish, nodes) if score.why_not is None]


def test_the_warmest_node_comes_first() -> None:
    nodes = [
        node("a-nothing", holdings=holding()),
        node("b-image", holdings=holding(machine="other", image=1)),
        node("c-region", holdings=holding()),
        node("d-here", holdings=holding(snapshot=True, in_region=True)),
    ]
    assert order(WISH, *nodes) == ["d-here", "a-nothing", "c-region", "b-image"], (
        "the region is near to all of m1"
    )
    images = [node.holdings.images.get("im-1") for node in nodes]
    without_region = [
        replace(node, holdings=holding(snapshot=node.name == "d-here", image=image))
        for node, image in zip(nodes, images, strict=True)
    ]
    assert order(WISH, *without_region) == ["d-here", "b-image", "a-nothing", "c-region"]


def test_an_image_that_was_just_made_counts_before_the_node_tells_of_it() -> None:
    assert order(WISH, node("a"), node("b", has_image=True)) == ["b", "a"]


def test_a_snapshot_that_does_not_fit_the_machine_is_none() -> None:
    fits, other = (
        node("a", holdings=holding(snapshot=True, machine="m2")),
        node("b", holdings=holding(image=1)),
    )
    assert order(WISH, fits, other) == ["b", "a"]


@pytest.mark.parametrize("holdings", [
    holding(snapshot=True, of="chat/other"), holding(snapshot=True, image_id="im-older"),
])  # fmt: skip
def test_a_snapshot_of_another_server_or_image_is_none(holdings: Holdings) -> None:
    assert order(WISH, node("a", holdings=holdings), node("b", holdings=holding(image=1))) == ["b", "a"]


def test_of_two_with_the_snapshot_the_one_that_has_more_of_it_comes_first() -> None:
    partly, wholly = holding(snapshot=True, here=0.2), holding(snapshot=True, here=0.9)
    assert order(WISH, node("a", holdings=partly), node("b", holdings=wholly)) == ["b", "a"]


def test_of_equals_the_one_with_more_memory_free_comes_first() -> None:
    assert order(WISH, node("a", free_memory_bytes=3 * GIB), node("b", free_memory_bytes=9 * GIB)) == [
        "b",
        "a",
    ]


def test_gpus_are_packed_and_nodes_with_gpus_kept_for_who_needs_them() -> None:
    whole, begun = node("a", gpus=[H100] * 4), node("b", gpus=[H100] * 4, gpus_used=2)
    plain = node("c")
    assert order(GPU_WISH, whole, begun, plain)[:2] == ["b", "a"]
    assert order(WISH, whole, begun, plain)[0] == "c"


def test_copies_are_spread_over_what_fails_together() -> None:
    east = [node(name, labels={"zone": "east"}) for name in ("a", "b")]
    west = node("c", labels={"zone": "west"})
    busy = replace(east[0], copies=2)
    assert order(WISH, busy, east[1], west) == ["c", "a", "b"]
    by_rack = [node("a", labels={"rack": "1"}, copies=1), node("b", labels={"rack": "2"})]
    assert order(WISH, *by_rack) == ["b", "a"]
    alone = [node("a", copies=1), node("b")]
    assert order(WISH, *alone) == ["b", "a"]


def test_a_snapshot_here_is_worth_two_copies_beside_and_not_four() -> None:
    warm, cold = holding(snapshot=True, in_region=True), holding()
    for copies, first in ((2, "a"), (4, "b")):
        assert order(WISH, node("a", holdings=warm, copies=copies), node("b", holdings=cold))[0] == first


def test_of_equals_the_one_whose_cores_have_less_to_do_comes_first() -> None:
    assert order(WISH, node("a", starting=1), node("b")) == ["b", "a"]
    assert order(WISH, node("a", starting=9, cpus=4), node("b", starting=9, cpus=8)) == ["b", "a"]
    assert order(WISH, node("a", starting=900, cpus=2), node("b", starting=800, cpus=2)) == ["b", "a"]


@pytest.mark.parametrize("cpus", [2, 64])
def test_a_start_goes_elsewhere_to_fetch_once_three_others_share_each_core(cpus: int) -> None:
    cold = node("b", cpus=cpus, holdings=holding())
    warm = node("a", cpus=cpus, holdings=holding(snapshot=True, in_region=True))
    for starting, first in ((0, "a"), (3 * cpus - 1, "a"), (3 * cpus + 1, "b")):
        assert order(WISH, replace(warm, starting=starting), cold)[0] == first


def test_no_queue_outweighs_a_snapshot_that_cannot_be_fetched() -> None:
    only = node("a", starting=1000, cpus=1, holdings=holding(snapshot=True))
    assert order(WISH, only, node("b", holdings=holding(image=1)))[0] == "a"


def test_what_a_start_under_way_fetches_is_as_good_as_here() -> None:
    warm = node("a", copies=1, starting=1, holdings=holding(snapshot=True, in_region=True))
    fetching = node("b", copies=1, starting=1, is_fetching=True, holdings=holding())
    first, second = (score.parts for score in rank(WISH, [warm, fetching]))
    assert first == second
    partly = replace(warm, is_fetching=True, holdings=holding(snapshot=True, here=0.1, in_region=True))
    assert rank(WISH, [partly])[0].parts["cached"] == 10.0
    building = node("c", is_fetching=True, holdings=holding())
    assert rank(WISH, [building])[0].parts["heat"] == 20.0, "of what is nowhere, the image comes"


# -- bursts --------------------------------------------------------------------------------------------------


def burst(wish: Wish, nodes: list[Candidate], count: int) -> Counter[str]:
    """So many starts at once: none is ready, and no node tells anything, before all are placed."""
    placed: Counter[str] = Counter()
    for _ in range(count):
        chosen = order(wish, *nodes)[0]
        placed[chosen] += 1
        nodes = [_with_another(wish, one) if one.name == chosen else one for one in nodes]
    return placed


def _with_another(wish: Wish, node: Candidate) -> Candidate:
    free_bytes = node.free_memory_bytes
    return replace(
        node, copies=node.copies + 1, starting=node.starting + 1, is_fetching=True,
        free_memory_bytes=None if free_bytes is None else free_bytes - wish.memory_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("cpus", [1, 2, 8, 64])
def test_a_burst_is_spread_evenly_though_one_node_is_warm(cpus: int) -> None:
    warm = node("n1", cpus=cpus, holdings=holding(snapshot=True, in_region=True))
    cold = [node(f"n{n}", cpus=cpus, holdings=holding()) for n in (2, 3, 4)]
    light = replace(WISH, memory_bytes=GIB // 16)
    placed = burst(light, [warm, *cold], 100)
    assert min(placed.values()) >= 24, placed
    first = burst(light, [warm, *cold], 2)
    assert first == {"n1": 2}, "two starts are no burst: they go where the heat is"


def test_a_burst_follows_the_cores_that_there_are() -> None:
    small, large = node("a", cpus=4, holdings=holding()), node("b", cpus=12, holdings=holding())
    placed = burst(replace(WISH, memory_bytes=GIB // 16), [small, large], 96)
    assert 65 <= placed["b"] <= 75, placed


def test_a_burst_fills_no_node_while_another_has_room() -> None:
    warm = node("a", cpus=64, free_memory_bytes=4 * GIB, holdings=holding(snapshot=True, in_region=True))
    cold = node("b", cpus=2, memory_bytes=64 * GIB, free_memory_bytes=64 * GIB, holdings=holding())
    assert burst(WISH, [warm, cold], 20) == {"a": 2, "b": 18}


def test_a_burst_of_what_only_one_node_can_restore_stays_there_but_for_a_few() -> None:
    warm = node("a", cpus=2, holdings=holding(snapshot=True))
    cold = [node(name, cpus=2, holdings=holding(image=1)) for name in "bcd"]
    placed = burst(replace(WISH, memory_bytes=GIB // 16), [warm, *cold], 100)
    assert placed["a"] >= 80, placed


@pytest.mark.parametrize(("wish", "full"), [
    (WISH, node("a", free_memory_bytes=GIB, holdings=holding(snapshot=True))),
    (GPU_WISH, node("a", gpus=[H100], gpus_used=1)),
    (GPU_WISH, node("a", gpus=[L4])),
    (GPU_WISH, node("a")),
])  # fmt: skip
def test_a_full_node_comes_after_one_with_room_and_says_what_it_lacks(wish: Wish, full: Candidate) -> None:
    scores = rank(wish, [full, node("b", gpus=[H100])])
    assert [score.node for score in scores] == ["b", "a"]
    assert scores[1].why_full


def test_what_a_node_has_is_not_judged_before_it_was_asked() -> None:
    unknown = node("a", memory_bytes=0, free_memory_bytes=None)
    assert rank(GPU_WISH, [unknown])[0].why_full is None


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.text("abcdefgh", min_size=1, max_size=4),
        why_not=st.sampled_from([None, None, None, "draining", "unreachable", "lost"]),
        labels=st.dictionaries(st.sampled_from(["zone", "rack"]), st.sampled_from(["1", "2"]), max_size=2),
        memory_bytes=st.integers(0, 64 * GIB),
        free_memory_bytes=st.none() | st.integers(-GIB, 64 * GIB),
        gpus=st.lists(st.sampled_from([H100, L4]), max_size=8),
        gpus_used=st.integers(0, 8),
        holdings=st.builds(
            NodeHoldings,
            machine=st.sampled_from(["", "m1", "m2"]),
            snapshots=st.lists(
                st.builds(
                    HeldSnapshot,
                    id=st.just("sn"),
                    servers=st.just(["chat/llm"]),
                    image_id=st.sampled_from(["im-1", "im-2"]),
                    machine=st.sampled_from(["m1", "m2"]),
                    bytes=st.integers(0, 9),
                    here_bytes=st.integers(0, 12),
                    is_in_region=st.booleans(),
                ),
                max_size=3,
            ),
            images=st.dictionaries(st.sampled_from(["im-1", "im-2"]), st.integers(0, 9), max_size=2),
        ).map(Holdings),
        copies=st.integers(0, 9),
        starting=st.integers(0, 30),
        cpus=st.sampled_from([0.0, 0.5, 2.0, 64.0]),
        is_fetching=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.name,
)


@given(CANDIDATES, st.sampled_from([WISH, GPU_WISH]), st.randoms())
def test_whatever_the_nodes_are(candidates: list[Candidate], wish: Wish, random: Any) -> None:
    scores = rank(wish, candidates)
    assert sorted(s.node for s in scores) == sorted(c.name for c in candidates), "every node is told"
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert rank(wish, shuffled) == scores, "the order of the nodes decides nothing"
    refused = {c.name for c in candidates if c.why_not}
    assert {s.node for s in scores if s.why_not} == refused
    usable = [s for s in scores if s.why_not is None]
    assert scores[: len(usable)] == usable, "who gets nothing comes last"
    with_room = [s for s in usable if s.why_full is None]
    assert usable[: len(with_room)] == with_room, "never a full one while another has room"
    totals = [s.total for s in with_room]
    assert totals == sorted(totals, reverse=True)
    assert all(-80 <= s.total <= 93 for s in usable)


@given(st.lists(st.booleans(), min_size=2, max_size=6), st.integers(1, 64), st.integers(6, 20))
def test_whoever_is_warm_a_burst_over_equal_nodes_is_even(warm: list[bool], cpus: int, each: int) -> None:
    nodes = [
        node(f"n{number}", cpus=cpus, holdings=holding(snapshot=is_warm, in_region=True))
        for number, is_warm in enumerate(warm)
    ]
    placed = burst(replace(WISH, memory_bytes=1), nodes, each * len(nodes))
    assert max(placed.values()) - min(placed[one.name] for one in nodes) <= 1, placed
