"""The words that mark a class's methods: what callers may call, and what runs at which moment of its life.

Marks change nothing about how the class behaves in ordinary Python: an instance is an ordinary object, its
methods are called as usual. They promise to refuse at once what the runner in the container could not call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from glowplug.sdk.remote import Address, RemoteFunction
from glowplug.types.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

ADDRESS_ATTRIBUTE = "__glowplug_address__"
_MOMENTS_ATTRIBUTE = "__glowplug_moments__"


class Moment(Enum):
    """When a marked method runs."""

    ENTER_BEFORE_SNAPSHOT = "enter(snap=True)"
    ENTER_AFTER_RESTORE = "enter(snap=False)"
    BEFORE_SNAPSHOT = "before_snapshot()"
    EXIT = "exit()"


def enter(misplaced: None = None, /, *, snap: bool = False) -> Callable[[F], F]:
    """Run when a replica starts. ``snap=True``: once, before the snapshot, so its result is captured.

    ``snap=False``: in every replica before its first call, also in each restored copy: connections,
    secrets, fresh randomness.
    """
    _refuse_bare(misplaced, "enter(snap=True)")
    if not isinstance(snap, bool):
        raise InvalidInput(f"snap cannot be {snap!r}.", remedy="Write @gp.enter(snap=True) or snap=False.")
    return _marker(Moment.ENTER_BEFORE_SNAPSHOT if snap else Moment.ENTER_AFTER_RESTORE)


def before_snapshot(misplaced: None = None, /) -> Callable[[F], F]:
    """Run right before the memory is captured: close connections, drop caches."""
    _refuse_bare(misplaced, "before_snapshot()")
    return _marker(Moment.BEFORE_SNAPSHOT)


def exit(misplaced: None = None, /) -> Callable[[F], F]:  # noqa: A001 - read as gp.exit
    """Run when the replica is told to stop, after the last call was answered."""
    _refuse_bare(misplaced, "exit()")
    return _marker(Moment.EXIT)


def method(misplaced: None = None, /) -> Callable[[Callable[Concatenate[Any, P], R]], Method[P, R]]:
    """Callers may call this method, over HTTP or with ``.remote(...)``."""
    _refuse_bare(misplaced, "method()")
    return Method


class Method(Generic[P, R]):
    """What ``@gp.method()`` puts into the class: read from an instance, it is a RemoteFunction."""

    def __init__(self, function: Callable[Concatenate[Any, P], R]) -> None:
        if not inspect.isfunction(function) or getattr(function, _MOMENTS_ATTRIBUTE, None):
            raise InvalidInput(
                f"@gp.method() cannot mark {function!r}.",
                remedy="Put it alone above a plain `def` or `async def` of the class.",
            )
        self.function: Callable[..., Any] = function
        self.signature = callable_signature(function, skip_self=True)
        self.__doc__ = function.__doc__
        self._name = function.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> RemoteFunction[P, R]:
        cls = owner if owner is not None else type(instance)
        address: Address | None = getattr(cls, ADDRESS_ATTRIBUTE, None)
        bound = self.function if instance is None else self.function.__get__(instance, cls)
        return RemoteFunction(bound, address and address.with_method(self._name), self.signature)


def callable_signature(function: Callable[..., Any], *, skip_self: bool) -> inspect.Signature:
    """The signature callers see. Raises InvalidInput for parameters that JSON's named values cannot fill."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if skip_self:
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise InvalidInput(
                f"{function.__qualname__} takes no self.", remedy="Add self as first parameter."
            )
        parameters = parameters[1:]
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise InvalidInput(
                f"Parameter {parameter.name!r} of {function.__qualname__} cannot be given by name.",
                remedy="Calls arrive as a JSON object of named arguments: leave out * and /.",
            )
    return signature.replace(parameters=parameters)


def methods_of(cls: type) -> dict[str, Method[..., Any]]:
    """The methods callers may call, by name, base classes first."""
    return {name: value for name, value in _members(cls).items() if isinstance(value, Method)}


def hooks_of(cls: type, moment: Moment) -> list[str]:
    """The names of the methods to run at ``moment``, in the order they are written, base classes first."""
    functions = {name: value for name, value in _members(cls).items() if inspect.isfunction(value)}
    return [name for name, value in functions.items() if moment in getattr(value, _MOMENTS_ATTRIBUTE, ())]


def _members(cls: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for klass in reversed(cls.__mro__):
        members.update(vars(klass))
    return members


def _marker(moment: Moment) -> Callable[[F], F]:
    def mark(function: F) -> F:
        if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
            raise InvalidInput(
                f"@gp.{moment.value} cannot mark {function!r}.",
                remedy="Put it above a plain `def` or `async def` of the class.",
            )
        try:
            inspect.signature(function).bind(None)
        except TypeError:
            raise InvalidInput(
                f"{function.__qualname__}, marked @gp.{moment.value}, must take self and nothing else.",
                remedy="Read settings from os.environ or from the class.",
            ) from None
        setattr(function, _MOMENTS_ATTRIBUTE, {*getattr(function, _MOMENTS_ATTRIBUTE, ()), moment})
        return function

    return mark


def _refuse_bare(misplaced: object, usage: str) -> None:
    if misplaced is not None:
        name = usage.partition("(")[0]
        raise InvalidInput(f"@gp.{name} needs parentheses.", remedy=f"Write @gp.{usage}.")
