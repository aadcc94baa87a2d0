"""Where an HTTP server of objects is: a checked URL, and its addresses within a deadline."""

from __future__ import annotations

import re
import socket
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from urllib.parse import urlsplit

from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, Unavailable

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_PATH = re.compile(r"(/[A-Za-z0-9._~+@=-]+)*/?")
_LOGIN = re.compile(r"//[^/]*@")
_REMEMBERED_S = 60.0

Address = tuple[socket.AddressFamily, tuple[str, int]]


@dataclass(frozen=True)
class HttpAddress:
    """``scheme://host:port/prefix`` in parts that are safe to put into a request or a configuration."""

    scheme: str
    host: str
    port: int
    prefix: str  # empty, or starts with a slash and does not end in one

    @classmethod
    def parse(cls, url: str) -> HttpAddress:
        """Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as problem:
            raise _bad_url(url, str(problem)) from problem
        if parts.scheme not in ("http", "https"):
            raise _bad_url(url, "it does not start with http:// or https://")
        if parts.username is not None or parts.query or parts.fragment:
            raise _bad_url(url, "it holds more than a host, a port and a path")
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(parts.path) or ".." in parts.path:
            raise _bad_url(url, "its host or path holds characters that do not belong there")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, host, port or default, parts.path.rstrip("/"))

    @property
    def is_tls(self) -> bool:
        """It is spoken to encrypted."""
        return self.scheme == "https"

    @property
    def host_in_url(self) -> str:
        """The host as URLs and configurations write it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def netloc(self) -> str:
        """The host, and the port unless it is the scheme's own: the ``Host`` header."""
        host = self.host_in_url
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


class Resolver:
    """Looks names up without ever taking longer than it may: a lookup that hangs is left behind.

    One lookup per name at a time; what it finds is remembered for a minute. Safe to use from many threads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], tuple[float, Future[list[Address]]]] = {}

    def resolve(self, host: str, port: int, deadline_s: float) -> list[Address]:
        """At least one address. Raises Unavailable, or TimeoutError at the deadline."""
        lookup = self._lookup(host, port)
        try:
            return lookup.result(max(0.0, deadline_s - self._clock.monotonic()))
        except FutureTimeout as late:
            raise TimeoutError(f"looking up {host}") from late
        except OSError as problem:
            self._forget(host, port, lookup)
            raise Unavailable(
                f"{host} cannot be looked up: {problem}.", remedy="Check its name and this machine's DNS."
            ) from problem

    def _lookup(self, host: str, port: int) -> Future[list[Address]]:
        with self._lock:
            started_s, lookup = self._lookups.get((host, port), (0.0, None))
            if lookup is None or (lookup.done() and self._clock.monotonic() - started_s > _REMEMBERED_S):
                lookup = Future()
                self._lookups[host, port] = (self._clock.monotonic(), lookup)
                threading.Thread(
                    target=_look_up, args=(host, port, lookup), name="glowplug-lookup", daemon=True
                ).start()
            return lookup

    def _forget(self, host: str, port: int, lookup: Future[list[Address]]) -> None:
        with self._lock:
            if self._lookups.get((host, port), (0.0, None))[1] is lookup:
                del self._lookups[host, port]


def _look_up(host: str, port: int, lookup: Future[list[Address]]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        lookup.set_result([(family, (str(name[0]), int(name[1]))) for family, _, _, _, name in found])
    except (OSError, UnicodeError) as problem:
        lookup.set_exception(OSError(str(problem)))


def _bad_url(url: str, why: str) -> InvalidInput:
    shown = _LOGIN.sub("//..@", url)[:200]
    return InvalidInput(
        f"{shown!r} is not the address of an HTTP server of objects: {why}.",
        remedy="Use http://HOST[:PORT][/PATH] or https://..",
    )
