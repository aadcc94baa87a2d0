"""What a server of your own does around a snapshot: ``from glowplug import hooks``.

    pool = connect()
    hooks.before_snapshot(lambda: pool.close())
    hooks.after_restore(hooks.reseed)
    hooks.after_restore(reconnect)

Inside a container that Glowplug started, the first registration opens a small HTTP port; the node agent finds
it by itself, runs the functions through it, and waits for the answer: memory is captured only after every
``before_snapshot`` function returned, and a copy serves only after every ``after_restore`` function did.
Anywhere else nothing listens, nothing runs, and registering costs nothing. Every process that registers, and
every child it forks, is asked for itself.

One file, standard library only: where this package is not installed, a copy of the file does the same.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import HTTPServer

__all__ = ["FIRST_PORT", "PORTS", "after_restore", "before_snapshot", "reseed", "return_free_memory"]

FIRST_PORT = 21_700
PORTS = 32
"""Each process takes the first free port of this range. Below those that the kernel gives to clients."""

_TOLD = Path("/run/glowplug/env.json")
_BEFORE_SNAPSHOT = "before_snapshot"
_AFTER_RESTORE = "after_restore"
_REQUEST_TIMEOUT_S = 10.0

Function = TypeVar("Function", bound="Callable[[], Any]")


def before_snapshot(function: Function) -> Function:
    """Run ``function`` right before memory is captured: close connections, drop caches.

    Last registered, first run, so that what was opened last is closed first. It runs on a thread of its own;
    an ``async`` function registered on a running loop runs there. If it raises, nothing is captured.
    """
    _registry.add(_BEFORE_SNAPSHOT, function)
    return function


def after_restore(function: Function) -> Function:
    """Run ``function`` in every restored copy before it serves: reseed, reconnect, read what is new.

    First registered, first run. ``os.environ`` already holds the copy's own environment and secrets. It does
    not run at a cold start: call it yourself there. If it raises, the copy is given up for a cold start.
    """
    _registry.add(_AFTER_RESTORE, function)
    return function


def reseed(*generators: Any) -> None:
    """Fresh randomness for ``random``, OpenSSL, NumPy and torch, where they are loaded.

    Copies of one snapshot would otherwise draw the same numbers. ``os.urandom``, ``secrets`` and ``uuid4``
    ask the kernel and always differ. ``generators`` are your own that shall differ too: ``random.Random``,
    NumPy's ``Generator`` and ``RandomState``, ``torch.Generator``. Raises TypeError for anything else.
    """
    random.seed(os.urandom(32))
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        # Makes the primary generator read the kernel's entropy again; those of threads follow it.
        ssl.RAND_add(os.urandom(64), 64.0)
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    if numpy_random is not None:
        numpy_random.seed(list(os.urandom(64)))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(_torch_seed())
    for generator in generators:
        _reseed_one(generator)


def return_free_memory() -> None:
    """Give freed pages back to the system: what is not there need not be captured, nor read at a restore.

    Done by itself after the last ``before_snapshot`` function.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)


def _reseed_one(generator: Any) -> None:
    if hasattr(generator, "manual_seed"):
        generator.manual_seed(_torch_seed())
    elif hasattr(generator, "bit_generator"):
        bits = generator.bit_generator
        bits.state = type(bits)(int.from_bytes(os.urandom(32), "big")).state
    elif isinstance(generator, random.Random):
        generator.seed(os.urandom(32))
    elif type(generator).__name__ == "RandomState":
        generator.seed(list(os.urandom(64)))
    else:
        raise TypeError(f"{generator!r} is no random generator that can be reseeded")


def _torch_seed() -> int:
    """63 bits: what torch accepts as a positive seed."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class _Registered:
    """A function, and the event loop that was running where it was registered."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def run(self) -> None:
        result = self._function()
        if not asyncio.iscoroutine(result):
            return
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(result, self._loop).result()
        else:
            asyncio.run(result)


class _Registry:
    """The functions of this process, and the port through which they are run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._functions: dict[str, list[_Registered]] = {_BEFORE_SNAPSHOT: [], _AFTER_RESTORE: []}
        self._server: HTTPServer | None = None
        self._has_listened = False

    def add(self, moment: str, function: Callable[[], Any]) -> None:
        if not callable(function):
            raise TypeError(f"{function!r} is not a function")
        with self._lock:
            self._functions[moment].append(_Registered(function))
            if not self._has_listened and _TOLD.exists():
                self._has_listened = True  # once, also without a free port: a fork must not add up
                self._listen()
                os.register_at_fork(after_in_child=self._after_fork)

    def run(self, moment: str) -> None:
        """Raises what the functions raise."""
        with self._lock:
            functions = list(self._functions[moment])
        if moment == _BEFORE_SNAPSHOT:
            functions.reverse()
        else:
            _take_environment()
        for function in functions:
            function.run()
        if moment == _BEFORE_SNAPSHOT:
            return_free_memory()

    def _listen(self) -> None:
        self._server = _open_server(self)
        if self._server is None:
            print(
                f"glowplug.hooks: no port of {FIRST_PORT}-{FIRST_PORT + PORTS - 1} is free", file=sys.stderr
            )
            return
        threading.Thread(target=_serve, args=(self._server,), name="glowplug-hooks", daemon=True).start()

    def _after_fork(self) -> None:
        """The child has the functions, but neither the thread nor a port of its own."""
        self._lock = threading.Lock()
        if self._server is not None:
            self._server.socket.close()
        self._listen()


def _take_environment() -> None:
    """What a cold start would have found: this copy's environment, secrets and host name."""
    told = json.loads(_TOLD.read_text())
    os.environ.update({"HOSTNAME": told["replica_id"], **told["env"], **told["secrets"]})


def _open_server(registry: _Registry) -> HTTPServer | None:
    # Only here: it takes 20 ms to import, which a process outside Glowplug should not pay.
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            self._answer(200, {"glowplug_hooks": 1, "pid": os.getpid()})

        def do_POST(self) -> None:
            moment = self.path.rpartition("/")[2]
            if moment not in (_BEFORE_SNAPSHOT, _AFTER_RESTORE):
                self._answer(404, {"error": "no such moment"})
                return
            try:
                registry.run(moment)
            except BaseException:  # noqa: BLE001 - whatever a hook raises is for the agent to tell
                text = traceback.format_exc()
                print(text, file=sys.stderr, flush=True)
                self._answer(500, {"error": text})
            else:
                self._answer(200, {"glowplug_hooks": 1})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """The log is the server's own."""

    class Server(HTTPServer):
        def server_bind(self) -> None:
            # Without HTTPServer's look-up of the host's name, which may ask a name server.
            self.socket.bind(self.server_address)

    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return Server(("0.0.0.0", port), Handler)
        except OSError:
            continue
    return None


def _serve(server: HTTPServer) -> None:
    """One request after the other, asleep in between: `serve_forever` would wake twice a second."""
    while True:
        server.handle_request()


_registry = _Registry()
