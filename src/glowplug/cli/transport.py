"""One connection pool to one control plane, whose failures are all our own errors with a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, Unavailable

CONNECT_TIMEOUT_S = 5.0
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_FIRST_ERROR_STATUS = 400


class Transport:
    """Sends requests and explains failures. Its owner closes it."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("not an http address")
            self._http = httpx.Client(
                base_url=url,
                headers=self.headers,
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                # A company's proxy has no business between us and our own machine.
                trust_env=parts.hostname not in _LOOPBACK_HOSTS,
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise InvalidInput(
                f"{url!r} is not the address of a control plane, or the token is not one.",
                remedy="Write the address as http://HOST:PORT (--url, GLOWPLUG_URL), the token as one word.",
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        parameters: dict[str, Any],
        *,
        body: Any = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """The body of a good answer; parameters that are None are left out."""
        with self._failures_explained():
            answer = self._http.request(
                method,
                path,
                json=body,
                params=_without_none(parameters),
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
            self._check(answer)
            return answer.content

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        parameters: dict[str, Any],
        *,
        silence_s: float | None,
        body: Any = None,
    ) -> Iterator[httpx.Response]:
        """A good answer to be read bit by bit; ``silence_s`` is how long it may pause (None: for ever)."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        parameters = _without_none(parameters)
        with (
            self._failures_explained(),
            self._http.stream(method, path, json=body, params=parameters, timeout=timeout) as answer,
        ):
            self._check(answer)
            yield answer

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code < _FIRST_ERROR_STATUS:
            return
        answer.read()
        try:
            data = json.loads(answer.content)
        except ValueError:
            data = None
        if isinstance(data, dict) and "code" in data and "message" in data:
            raise GlowplugError.from_dict(data)
        raise GlowplugError(
            f"{self.url} answered {answer.status_code} {answer.reason_phrase} to "
            f"{answer.request.method} {answer.request.url.path}.",
            remedy="Is this a Glowplug of the same version? Check --url; `glowplug status` tells.",
        )

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(
                f"Nothing answers at {self.url}.",
                remedy="Start Glowplug with `glowplug up`, or correct --url or GLOWPLUG_URL.",
                reason=str(error),
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                f"{self.url} did not answer in time.",
                remedy="Look at control.log and agent.log in the state directory's logs folder.",
                stage="answer",
            ) from error
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The connection to {self.url} broke.",
                remedy="Try again; the control plane may be restarting.",
                reason=str(error),
            ) from error


def _without_none(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
