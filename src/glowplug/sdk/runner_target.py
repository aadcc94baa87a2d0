"""The user's class or function, as the runner sees it: hooks to run, methods to call with named arguments.

Promises: a wrong call is an InvalidInput that shows the signature; ``async`` methods run on one event loop
that lives as long as the replica, so that clients made in ``enter`` can be used in every call.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal

from glowplug.sdk import lifecycle
from glowplug.sdk.app import FUNCTION_METHOD
from glowplug.sdk.lifecycle import Moment
from glowplug.sdk.loader import import_file
from glowplug.sdk.remote import RemoteFunction
from glowplug.types.errors import InvalidInput, NotFound

Kind = Literal["cls", "function"]


class EventLoop:
    """One asyncio loop on a thread of its own, started by the first coroutine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end and return the result. How long that may take is the caller's own deadline."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started()).result()

    def iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        """The items of an async generator, as an ordinary generator."""
        try:
            while True:
                try:
                    item = self.run(_next_of(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if inspect.isasyncgen(items):
                self.run(_close(items))

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # Ends with the process: nothing waits for it once the last call was answered.
                threading.Thread(target=self._loop.run_forever, name="asyncio", daemon=True).start()
            return self._loop


async def _next_of(items: AsyncIterator[Any]) -> Any:
    return await anext(items)


async def _close(items: Any) -> None:
    await items.aclose()


class Target:
    """What the runner serves. Made by :meth:`load`; hooks run on the main thread, methods on any."""

    def __init__(
        self,
        methods: dict[str, tuple[Callable[..., Any], inspect.Signature]],
        hooks: dict[Moment, list[Callable[[], Any]]],
    ) -> None:
        self._methods = methods
        self._hooks = hooks
        self._loop = EventLoop()

    @classmethod
    def load(cls, file: Path, name: str, kind: Kind) -> Target:
        """Import the user's file and make the target. Raises what the user's code raises."""
        # Neighbouring modules are imported by name, now or inside a method later.
        sys.path.insert(0, str(file.parent))
        module = import_file(file, _module_name(file))
        found = getattr(module, name, None)
        if found is None:
            raise InvalidInput(f"{file} defines no {name!r}.", remedy="Define it at the file's top level.")
        return cls._of_class(found) if kind == "cls" else cls._of_function(found)

    @classmethod
    def _of_class(cls, found: Any) -> Target:
        if not isinstance(found, type):
            raise InvalidInput(f"{found!r} is not a class.", remedy="Decorate it with @app.cls(...) last.")
        instance = found()
        methods = {
            name: (method.function.__get__(instance, found), method.signature)
            for name, method in lifecycle.methods_of(found).items()
        }
        hooks = {
            moment: [getattr(instance, name) for name in lifecycle.hooks_of(found, moment)]
            for moment in Moment
        }
        return cls(methods, hooks)

    @classmethod
    def _of_function(cls, found: Any) -> Target:
        function = found.local if isinstance(found, RemoteFunction) else found
        signature = lifecycle.callable_signature(inspect.unwrap(found), skip_self=False)
        return cls({FUNCTION_METHOD: (function, signature)}, {})

    @property
    def method_names(self) -> list[str]:
        """What callers may call."""
        return sorted(self._methods)

    def run_hooks(self, moment: Moment) -> None:
        """Run every method marked for this moment, in order."""
        for hook in self._hooks.get(moment, []):
            result = hook()
            if inspect.iscoroutine(result):
                self._loop.run(result)

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The method's result: a value, or an iterator if it is a generator. Raises what it raises."""
        function, signature = self.method(name)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise InvalidInput(
                f"{name} was called with wrong arguments: {error}.",
                remedy=f"The signature is {name}{signature}.",
                method=name,
                signature=str(signature),
            ) from None
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = self._loop.run(_await(result))
        if isinstance(result, AsyncIterator):
            return self._loop.iterate(result)
        return result

    def method(self, name: str) -> tuple[Callable[..., Any], inspect.Signature]:
        """One method and its signature. Raises NotFound."""
        if name not in self._methods:
            raise NotFound(
                f"There is no method {name[:100]!r}.", remedy=f"Methods: {', '.join(self.method_names)}."
            )
        return self._methods[name]


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _module_name(file: Path) -> str:
    """The file's own name, so that child processes can import it too, unless that name is taken."""
    is_free = file.stem not in sys.modules and file.stem not in sys.stdlib_module_names
    return file.stem if file.stem.isidentifier() and is_free else f"glowplug_app_{file.stem}"
