"""The marks on a class: what they find, in which order, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

import glowplug as gp
from glowplug.sdk.lifecycle import Moment, hooks_of, methods_of
from glowplug.types.errors import InvalidInput


class Base:
    @gp.enter(snap=True)
    def first(self) -> None: ...

    @gp.enter(snap=True)
    def replaced(self) -> None: ...

    @gp.method()
    def shared(self, value: int, *, scale: int = 1) -> int:
        """Scale a value."""
        return value * scale


class Derived(Base):
    def replaced(self) -> None: ...  # its mark is gone with the method it replaces

    @gp.enter(snap=True)
    def second(self) -> None: ...

    @gp.enter(snap=False)
    @gp.enter(snap=True)
    def both(self) -> None: ...

    @gp.before_snapshot()
    def close(self) -> None: ...

    @gp.exit()
    def leave(self) -> None: ...


def test_hooks_run_in_the_order_they_are_written_base_classes_first() -> None:
    assert hooks_of(Derived, Moment.ENTER_BEFORE_SNAPSHOT) == ["first", "second", "both"]
    assert hooks_of(Derived, Moment.ENTER_AFTER_RESTORE) == ["both"]
    assert hooks_of(Derived, Moment.BEFORE_SNAPSHOT) == ["close"]
    assert hooks_of(Derived, Moment.EXIT) == ["leave"]


def test_methods_are_inherited_and_called_as_usual() -> None:
    assert list(methods_of(Derived)) == ["shared"]
    assert Derived().shared(3, scale=2) == 6
    assert Derived().shared.local(3) == 3
    assert Derived.shared.__doc__ == "Scale a value."


def test_a_method_of_an_undeployed_class_cannot_be_called_remotely() -> None:
    with pytest.raises(InvalidInput, match="not part of an app") as caught:
        Derived().shared.remote(3)
    assert "@app.cls" in caught.value.remedy


def positional_only(self: Any, value: int, /) -> None: ...


def variable(self: Any, *values: int) -> None: ...


def no_self() -> None: ...


def generator(self: Any) -> Any:
    yield


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: gp.enter(lambda self: None),  # type: ignore[arg-type]
        lambda: gp.exit(lambda self: None),  # type: ignore[arg-type]
        lambda: gp.method(lambda self: None),  # type: ignore[arg-type]
        lambda: gp.enter(snap="yes"),  # type: ignore[arg-type]
        lambda: gp.enter(snap=True)(positional_only),
        lambda: gp.enter(snap=True)(no_self),
        lambda: gp.enter(snap=True)(generator),
        lambda: gp.enter(snap=True)(gp.method()(lambda self: None)),  # type: ignore[type-var]
        lambda: gp.method()(gp.enter(snap=True)(lambda self: None)),
        lambda: gp.method()(staticmethod(no_self)),  # type: ignore[arg-type]
        lambda: gp.method()(no_self),  # type: ignore[arg-type]
        lambda: gp.method()(positional_only),
        lambda: gp.method()(variable),
    ],
)
def test_marks_where_the_runner_could_not_call_are_refused(mistake: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        mistake()
    assert caught.value.remedy
