"""HTTP with servers that may do anything: whatever they do, a wait for them ends.

Timeouts of single reads do not help against a server that sends one byte a second. So each exchange has a
:class:`Watch` beside it, a thread that cuts the connection underneath when the answer comes too slowly, when
its job ran out of time or when nobody wants it any more: in the middle of a TLS handshake as in a body.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError

from glowplug.image.job import Job
from glowplug.types.errors import GlowplugError, InvalidInput, Unavailable

USER_AGENT = "glowplug"
WATCH_TICK_S = 0.1
MAX_URL_CHARACTERS = 16 << 10  # signed URLs of clouds have some thousand


@dataclass(frozen=True)
class Pace:
    """How slow a server may be. An answer's first bytes, and small answers as a whole, take ``answer_s``."""

    connect_s: float = 10.0
    answer_s: float = 30.0
    minimum_bytes_per_s: float = 16 << 10
    window_s: float = 20.0  # over which the rate is taken


class Interrupted(Unavailable):
    """An exchange that did not work, and may the next time; ``retry_after_s`` if the server says when."""

    retry_after_s: float = 0.0


class Session:
    """One thread's connections, kept alive between requests. Only :meth:`cut` is for other threads."""

    def __init__(self, environ: Mapping[str, str], pace: Pace) -> None:
        self.pace = pace
        self._environ = environ
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._lines: list[socket.socket] = []
        self._lock = threading.Lock()

    def another(self) -> Session:
        """The same for another thread."""
        return Session(self._environ, self.pace)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """One request, whatever its answer; no redirect is followed. Raises Interrupted."""
        try:
            return self._manager(url).urlopen(
                method,
                url,
                body=body,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except LocationValueError as problem:
            raise _not_an_address(url) from problem
        except (HTTPError, OSError) as problem:
            raise interrupted(url, problem) from problem

    def cut(self) -> None:
        """Break every connection: who waits for one gets an error at once."""
        with self._lock:
            for line in self._lines:
                with contextlib.suppress(OSError):  # the other side was faster
                    line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections."""
        for manager in self._managers.values():
            manager.clear()
        with self._lock:
            for line in self._lines:
                line.close()
            self._lines.clear()

    def hold(self, connected: socket.socket) -> None:
        """Keep a second handle on a connection: TLS will take over the first."""
        with self._lock:
            self._lines.append(socket.socket(fileno=os.dup(connected.fileno())))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = proxy_for(url, self._environ)
        if proxy not in self._managers:
            timeout = urllib3.Timeout(connect=self.pace.connect_s, read=self.pace.answer_s)
            manager = (
                urllib3.ProxyManager(proxy, timeout=timeout, proxy_headers=_proxy_headers(proxy))
                if proxy
                else urllib3.PoolManager(timeout=timeout)
            )
            pools: Any = {"http": partial(_HttpPool, self), "https": partial(_HttpsPool, self)}
            manager.pool_classes_by_scheme = pools
            self._managers[proxy] = manager
        return self._managers[proxy]


class Watch:
    """Cuts the session's connections when the exchange inside the ``with`` block goes on for too long."""

    def __init__(self, session: Session, job: Job, stage: str, *, is_long: bool) -> None:
        """``is_long``: once its first bytes came, only the rate of the answer is limited."""
        self._session = session
        self._job = job
        self._stage = stage
        self._is_long = is_long
        self._has_begun = False
        self._bytes = 0
        self._window_s = 0.0
        self._finished = threading.Event()
        self._reason: GlowplugError | None = None
        self._thread = threading.Thread(target=self._run, name="http-watch", daemon=True)

    def begin(self) -> None:
        """The answer's head is here."""
        self._has_begun = self._is_long

    def moved(self, size_bytes: int) -> None:
        """This many bytes came."""
        self._bytes += size_bytes

    def __enter__(self) -> Self:
        self._job.check(self._stage)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
        # A head that was cut reads as a head that ended: what came of it is not to be trusted.
        if self._reason is not None and (error is None or isinstance(error, GlowplugError)):
            raise self._reason from error

    def _run(self) -> None:
        start_s = since_s = self._job.clock.monotonic()
        has_begun, counted = False, 0
        pace = self._session.pace
        while not self._finished.wait(WATCH_TICK_S):
            now_s = self._job.clock.monotonic()
            if self._has_begun and (not has_begun or now_s - since_s >= pace.window_s):
                is_slow = has_begun and self._bytes - counted < pace.minimum_bytes_per_s * pace.window_s
                has_begun, since_s, counted = True, now_s, self._bytes
            else:
                is_slow = not self._has_begun and now_s - start_s >= pace.answer_s
            if is_slow:
                self._reason = Interrupted(
                    f"The server is too slow while {self._stage}.", remedy="Check it, and the network to it."
                )
            try:
                self._job.check(self._stage)
            except GlowplugError as over:
                self._reason = over
            if self._reason is not None:
                self._session.cut()


class _LineMixin:
    def __init__(self, session: Session, *args: Any, **options: Any) -> None:
        self._session = session
        super().__init__(*args, **options)

    def _new_conn(self) -> socket.socket:
        # Where urllib3 lets its own SOCKS support in, too.
        line: socket.socket = super()._new_conn()  # type: ignore[misc]
        self._session.hold(line)
        return line


class _HttpLine(_LineMixin, HTTPConnection):
    pass


class _HttpsLine(_LineMixin, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    def __init__(self, session: Session, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ConnectionCls = partial(_HttpLine, session)  # type: ignore[assignment]


class _HttpsPool(urllib3.HTTPSConnectionPool):
    def __init__(self, session: Session, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ConnectionCls = partial(_HttpsLine, session)  # type: ignore[assignment]


def interrupted(url: str, problem: Exception) -> Interrupted:
    """The error for a connection that broke. Only the address is told: the rest of a URL may be secret."""
    return Interrupted(
        f"{urlsplit(url).netloc or 'The server'} cannot be read: {type(problem).__name__}.",
        remedy="Check the address, the network and the proxy settings.",
        reason=str(problem)[:300],
    )


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """The proxy that the environment names for ``url``; empty: none. Raises InvalidInput for SOCKS."""
    parts = urlsplit(url)
    settings = {name.lower(): value for name, value in environ.items() if name.lower() in _PROXY_NAMES}
    if not parts.hostname or _is_exempt(parts.hostname, settings.get("no_proxy", "")):
        return ""
    proxy = settings.get(f"{parts.scheme}_proxy") or settings.get("all_proxy") or ""
    if not proxy:
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.lower().startswith(("http://", "https://")):
        raise InvalidInput(
            f"The environment names a {proxy.partition(':')[0][:20]} proxy, which cannot be used here.",
            remedy="Set http_proxy and https_proxy to an HTTP proxy, or no_proxy to the registry's name.",
        )
    return proxy


def _is_exempt(host: str, no_proxy: str) -> bool:
    """As curl reads ``no_proxy``: names, each with all below it, and networks; ``*`` is everything."""
    words = [word.strip().lower().lstrip(".") for word in no_proxy.split(",")]
    if any(word == "*" or (word and (host == word or host.endswith(f".{word}"))) for word in words):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or any(address in network for network in _networks(words))


def _networks(words: list[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for word in words:
        with contextlib.suppress(ValueError):  # a name
            yield ipaddress.ip_network(word, strict=False)


_PROXY_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urllib3.util.parse_url(proxy)
    return dict(urllib3.make_headers(proxy_basic_auth=parts.auth)) if parts.auth else {}


def _not_an_address(url: str) -> InvalidInput:
    return InvalidInput(
        f"{url[:100]!r} is not an address.", remedy="Check the image's name and its registry."
    )
