"""Waits for a place: who has waited longest is placed first, and who is not wanted is not counted."""

from glowplug.simulator.places import PlaceWaits


def test_who_finds_room_at_once_waits_for_nothing() -> None:
    places = PlaceWaits(0.0)
    places.placed(5.0)
    assert places.seconds == [0.0]


def test_the_longest_waiting_is_placed_first() -> None:
    places = PlaceWaits(0.0)
    places.missing(1, 10.0)
    places.missing(3, 20.0)
    places.placed(30.0)
    places.placed(50.0)
    places.missing(1, 50.0)
    places.placed(60.0)
    assert places.seconds == [20.0, 30.0, 40.0]


def test_who_is_not_wanted_any_more_is_the_last_that_came_and_is_not_counted() -> None:
    places = PlaceWaits(0.0)
    places.missing(1, 10.0)
    places.missing(2, 20.0)
    places.missing(1, 25.0)
    places.placed(30.0)
    places.missing(0, 30.0)
    assert places.seconds == [20.0]


def test_what_happens_before_it_counts_is_not_counted() -> None:
    places = PlaceWaits(100.0)
    places.missing(1, 10.0)
    places.placed(99.0)
    places.missing(1, 99.0)
    places.placed(100.0)
    assert places.seconds == [1.0]
