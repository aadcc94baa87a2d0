"""A connection pool to one HTTP server, whose failures are all errors of ours.

Who asks says in whose words: what helps depends on who was asked, and on who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ssl import SSLContext
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import httpx

from glowplug.types.errors import GlowplugError, InvalidInput

CONNECT_TIMEOUT_S = 5.0
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Words(Protocol):
    """What to tell of a failure. Duty: return the error, which is raised then; raise none."""

    def no_answer(self, error: httpx.HTTPError) -> GlowplugError:
        """Nothing, or not all of it, came back."""
        ...

    def refused(self, answer: httpx.Response) -> GlowplugError:
        """The answer, read whole, is none of success."""
        ...


class HttpClient:
    """For several threads. Close it, or use it in a ``with``.

    ``headers`` go with every request. ``is_proxied``: through the proxy that the environment names; by
    default so to every host but this one. Raises InvalidInput for what is no address, or no header.
    """

    def __init__(
        self,
        url: str,
        words: Words,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        tls: SSLContext | None = None,
        is_proxied: bool | None = None,
    ) -> None:
        self.url = url
        self._words = words
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("neither http:// nor https://")
            # A company's proxy has no business between us and our own machine.
            is_far = parts.hostname not in _LOOPBACK_HOSTS
            self._http = httpx.Client(
                base_url=url,
                headers=dict(headers or {}),
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                trust_env=is_far if is_proxied is None else is_proxied,
                verify=True if tls is None else tls,
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise InvalidInput(
                f"{url!r} is not the address of an HTTP server, or what is sent to it no header: {error}.",
                remedy="Write the address as http://HOST:PORT.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """The body of a good answer. ``body`` is sent as JSON; parameters that are None are left out."""
        with self._explained():
            answer = self._http.request(
                method,
                path,
                json=body,
                params=_without_none(parameters or {}),
                headers=dict(headers or {}),
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
            self._check(answer)
            return answer.content

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        silence_s: float | None,
        body: Any = None,
    ) -> Iterator[httpx.Response]:
        """A good answer to be read bit by bit; ``silence_s`` is how long it may pause (None: for ever)."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        params = _without_none(parameters or {})
        with (
            self._explained(),
            self._http.stream(method, path, json=body, params=params, timeout=timeout) as answer,
        ):
            self._check(answer)
            yield answer

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            answer.read()
            raise self._words.refused(answer)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise self._words.no_answer(error) from error


def _without_none(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
