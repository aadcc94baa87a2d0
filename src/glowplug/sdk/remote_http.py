"""One call to a router over HTTP, with the standard library alone.

A connection per call: simple, and on a loopback far cheaper than the call. The caller gets the decoded
result, an iterator of results for a streaming method, or a typed error; never a half-read answer.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from glowplug.sdk.remote_error import RemoteError
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, Unavailable

MAX_ANSWER_BYTES = 1 << 30
STREAM_TYPE = "application/x-ndjson"
_READ_BYTES = 1 << 20


def call(url: str, path: str, body: bytes, *, deadline_s: float) -> Any:
    """POST ``body`` to ``path`` of the router at ``url``. For a stream, the deadline holds for each item."""
    exchange = _Exchange(url, path, deadline_s)
    is_stream = False
    try:
        exchange.send(body)
        is_stream = exchange.status == 200 and exchange.content_type == STREAM_TYPE
        if is_stream:
            return ResultStream(exchange)
        return _decode(exchange.status, b"".join(exchange.pieces()), path)
    finally:
        if not is_stream:
            exchange.close()


class _Exchange:
    """One request and its answer: owns the connection; every wait takes what is left of the deadline."""

    def __init__(self, url: str, path: str, deadline_s: float) -> None:
        self._connection, prefix = _connection(url)
        self._url = url
        self.path = path
        self._target = prefix + path
        self._deadline_s = deadline_s
        self._response: http.client.HTTPResponse | None = None
        self.restart_deadline()

    @property
    def status(self) -> int:
        """The answer's status."""
        return self._answer.status

    @property
    def content_type(self) -> str:
        """The answer's media type, without parameters."""
        return (self._answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()

    @property
    def _answer(self) -> http.client.HTTPResponse:
        assert self._response is not None, "send() comes first"  # noqa: S101 - our own order of calls
        return self._response

    def restart_deadline(self) -> None:
        """Count the deadline from now on."""
        self._end_s = time.monotonic() + self._deadline_s

    def send(self, body: bytes) -> None:
        """Send the request and wait for the answer's head."""
        headers = {"Content-Type": "application/json", "Accept": f"application/json, {STREAM_TYPE}"}
        try:
            self._connection.timeout = self._left_s()
            self._connection.connect()
            # Held on to: http.client forgets the socket when the answer says "Connection: close".
            self._socket = self._connection.sock
            self._socket.settimeout(self._left_s())
            try:
                self._connection.request("POST", self._target, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # It stopped reading, for a reason (413) that it may have sent before that.
                self._response = http.client.HTTPResponse(self._socket, method="POST")
                self._socket.settimeout(self._left_s())
                self._response.begin()
            else:
                self._socket.settimeout(self._left_s())
                self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: odd host names
            raise self._failure(error) from error

    def pieces(self) -> Iterator[bytes]:
        """The answer's body as it arrives; raises if it ends too early."""
        total_bytes = 0
        try:
            while not self._answer.isclosed() and self._answer.length != 0:
                self._socket.settimeout(self._left_s())
                piece = self._answer.read1(_READ_BYTES)
                if not piece:
                    break
                total_bytes += len(piece)
                if total_bytes > MAX_ANSWER_BYTES and self.content_type != STREAM_TYPE:
                    raise GlowplugError(
                        f"The answer of {self.path} is larger than 1 GiB.",
                        remedy="Return less, or stream it from a generator.",
                    )
                yield piece
            # read1() reports a body cut short by ending early, and leaves what is missing in `length`.
            if self._answer.length:
                raise http.client.IncompleteRead(b"", self._answer.length)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error

    def lines(self) -> Iterator[bytes]:
        """The answer's body, line by line, each without its newline. The deadline holds for each line."""
        if not self._answer.chunked and self._answer.length is None:
            # Only its sender's silence would tell that it is over, and a broken connection is silent too.
            raise self._failure(http.client.HTTPException("a stream that does not say where it ends"))
        rest = bytearray()
        for piece in self.pieces():
            start = len(rest)
            rest += piece
            if len(rest) > MAX_ANSWER_BYTES:
                raise GlowplugError(f"One result of {self.path} is larger than 1 GiB.", remedy="Yield less.")
            # Only the new part can hold the first newline: a long line is not searched again and again.
            while (end := rest.find(b"\n", start)) >= 0:
                line = bytes(rest[:end])
                del rest[: end + 1]
                start = 0
                yield line
                self.restart_deadline()
        if rest:
            yield bytes(rest)

    def close(self) -> None:
        """Give the connection back. May be called twice."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _left_s(self) -> float:
        left = self._end_s - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _failure(self, error: Exception) -> GlowplugError:
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(
                f"{self.path} did not answer within {self._deadline_s:g} s.",
                remedy="Give it longer with .options(deadline_s=...), or look at `glowplug ps` and `logs`.",
                stage="remote_call",
                deadline_s=self._deadline_s,
            )
        if isinstance(error, ConnectionRefusedError):
            return Unavailable(
                f"Nothing listens at {self._url}.",
                remedy="Start Glowplug with `glowplug up`, or set GLOWPLUG_URL to where it runs.",
                url=self._url,
            )
        return Unavailable(
            f"The connection to {self._url} failed during {self.path}: {error or type(error).__name__}.",
            remedy="Check GLOWPLUG_URL and `glowplug status`, then call again.",
            url=self._url,
        )


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.scheme not in ("http", "https"):
        raise InvalidInput(
            f"{url!r} is not the address of a router.", remedy="Set GLOWPLUG_URL to http://HOST:PORT."
        )
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port), parts.path.rstrip("/")


class ResultStream(Iterator[Any]):
    """What a generator in a replica yields, as it yields it. Owns the connection until its end or close()."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._lines = exchange.lines()

    def __next__(self) -> Any:
        try:
            return _decode(200, next(self._lines), self._exchange.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening; the replica notices and ends the generator. May be called twice."""
        self._exchange.close()

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _decode(status: int, body: bytes, path: str) -> Any:
    """The result inside an answer, or the error it tells."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict):
        if data.get("code") == RemoteError.code:
            # The called code itself called another replica: its error comes through as it was.
            nested = GlowplugError.from_dict(data)
            raise RemoteError(nested.message, remedy=nested.remedy, **nested.details)
        if status == 200 and "result" in data:
            return data["result"]
        if isinstance(error := data.get("error"), dict):
            raise _remote_error(error)
        if "code" in data and "message" in data:
            raise GlowplugError.from_dict(data)
    start = body[:200].decode(errors="replace")
    raise RemoteError(
        f"{path} answered {status} with something other than a result: {start!r}.",
        remedy="Is it a class or function deployed with Glowplug? Look at `glowplug logs`.",
        type=f"HTTP {status}",
    )


def _remote_error(error: dict[str, Any]) -> RemoteError:
    kind = str(error.get("type", "Exception"))
    return RemoteError(
        f"{kind}: {error.get('message', '')}", type=kind, traceback=str(error.get("traceback", ""))
    )
