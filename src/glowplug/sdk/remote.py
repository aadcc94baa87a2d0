"""Calling a deployed function or method from Python as if it were here: ``.remote(...)`` and ``.map(...)``.

A :class:`RemoteFunction` is callable locally and remotely with one signature. Arguments are bound and turned
into JSON before anything is sent, so a wrong call fails here, with the signature. What the remote code
raised arrives as :class:`RemoteError`; what Glowplug itself says (overloaded, out of time, not there)
arrives as the same typed error that was raised on the node. Every wait has a deadline.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar
from urllib.parse import quote

from glowplug.sdk import validation
from glowplug.types.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")

URL_VARIABLE = "GLOWPLUG_URL"
DEFAULT_URL = "http://127.0.0.1:8080"
# A minute above the router's own default of 600 s, so that its error, which names the stage, comes first.
DEFAULT_DEADLINE_S = 660.0
MAX_DEADLINE_S = 7 * 86_400.0
MAX_CONCURRENCY = 1024


@dataclass(frozen=True)
class Address:
    """Whom to call: ``/{app}/{server}/{method}`` of a Glowplug router."""

    app: str
    server: str
    method: str = ""

    def with_method(self, method: str) -> Address:
        """The same server, another method."""
        return replace(self, method=method)

    @property
    def path(self) -> str:
        """The path on the router."""
        return f"/{self.app}/{self.server}/{quote(self.method)}"


class RemoteFunction(Generic[P, R]):
    """A function that runs here when called, and in a replica with ``.remote(...)`` or ``.map(...)``."""

    __name__: str

    def __init__(
        self,
        function: Callable[P, R],
        address: Address | None,
        signature: inspect.Signature,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        url: str | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._address = address
        self._signature = signature
        self._deadline_s = deadline_s
        self._url = url

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run here, in this process: a call is what it looks like."""
        return self._function(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run here, in this process."""
        return self._function(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run in a replica and return its result; a generator's results arrive one by one.

        Raises RemoteError for what the code raised, InvalidInput, Overloaded, Unavailable,
        DeadlineExceeded for what kept it from running.
        """
        from glowplug.sdk import remote_http

        url = self._url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        return remote_http.call(
            url, self._known_address().path, self._encode(*args, **kwargs), deadline_s=self._deadline_s
        )

    def map(
        self, items: Iterable[Any], *, concurrency: int = 8, deadline_s: float | None = None
    ) -> Iterator[Any]:
        """Call once per item (its only argument), several at a time; results come in the items' order.

        ``items`` is read only as far ahead as is being worked on. The first error ends the iteration.
        """
        validation.whole_number(concurrency, "concurrency", low=1, high=MAX_CONCURRENCY)
        caller = self if deadline_s is None else self.options(deadline_s=deadline_s)
        caller._known_address()
        return caller._map(iter(items), concurrency)

    def options(self, *, deadline_s: float | None = None, url: str | None = None) -> RemoteFunction[P, R]:
        """The same function with another deadline, or through another router."""
        if deadline_s is not None:
            validation.number(deadline_s, "deadline_s", low=0, high=MAX_DEADLINE_S, above_low=True)
        return RemoteFunction(
            self._function,
            self._address,
            self._signature,
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            url=self._url if url is None else url,
        )

    def __repr__(self) -> str:
        where = self._address.path if self._address else "not deployed"
        return f"<remote function {self._function.__qualname__} at {where}>"

    def _known_address(self) -> Address:
        if self._address is None:
            raise InvalidInput(
                f"{self._function.__qualname__} is not part of an app, so there is nothing to call.",
                remedy="Put @app.cls(...) above its class.",
            )
        return self._address

    def _encode(self, *args: Any, **kwargs: Any) -> bytes:
        call = f"{self._function.__name__}{self._signature}"
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(f"Wrong arguments: {error}.", remedy=f"The signature is {call}.") from None
        named = dict(bound.arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name, {})
        try:
            return json.dumps(named, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(
                f"The arguments of {call} cannot be sent as JSON: {error}.",
                remedy="Use dictionaries, lists, strings, finite numbers, True, False and None.",
            ) from error

    def _map(self, items: Iterator[Any], concurrency: int) -> Iterator[Any]:
        pending: deque[Future[Any]] = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="glowplug-map")
        try:
            for item in items:
                pending.append(pool.submit(self._whole_result, item))
                # Twice the workers: one slow head does not leave the others without work.
                if len(pending) >= 2 * concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Calls under way end by their own deadline; nobody waits here for results nobody wants.
            pool.shutdown(wait=False, cancel_futures=True)

    def _whole_result(self, item: Any) -> Any:
        result = self.remote(item)  # type: ignore[call-arg]
        return list(result) if isinstance(result, Iterator) else result
