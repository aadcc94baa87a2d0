"""What the runner answers: calls of the user's methods, and the agent's three control endpoints.

The user's code may raise anything; it becomes ``{"error": {"type", "message", "traceback"}}`` and a line in
the log, never a broken connection. What Glowplug itself refuses is a typed error with a remedy. Requests that
came through the router (it marks them) reach the methods only: a caller from outside cannot activate a
replica, nor pass for the agent's probe.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from glowplug.sdk.app import READY_PATH
from glowplug.sdk.runner_activation import Activation, Phases
from glowplug.sdk.runner_http import Handler
from glowplug.sdk.runner_main_thread import MainThread
from glowplug.sdk.runner_target import Target
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unavailable

CONTROL_PREFIX = "/.glowplug/"
PROBE_HEADER = "x-glowplug-probe"
ROUTER_HEADER = "x-forwarded-for"  # the router adds it to every request, the agent to none
MAX_TRACEBACK_CHARACTERS = 16_000


class Service:
    """The state behind the routes: nothing before the target is loaded, then its phases."""

    def __init__(self, main_thread: MainThread) -> None:
        self.main_thread = main_thread
        self.target: Target | None = None
        self.phases: Phases | None = None

    def set_ready(self, target: Target, phases: Phases) -> None:
        """``enter(snap=True)`` is done: calls may come."""
        self.phases = phases
        self.target = target


def handler_for(service: Service) -> type[Handler]:
    """A connection handler that answers for ``service``."""

    class RunnerHandler(Handler):
        def answer(self) -> None:
            _Answer(self, service).send()

    return RunnerHandler


class _Answer:
    def __init__(self, handler: Handler, service: Service) -> None:
        self._handler = handler
        self._service = service

    def send(self) -> None:
        body = self._handler.read_body()
        if body is None:
            return
        path = urlsplit(self._handler.path).path
        if path.startswith(CONTROL_PREFIX):
            self._control(path, body)
        elif self._allows("POST"):
            self._call(unquote(path[1:]), body)

    def _control(self, path: str, body: bytes) -> None:
        routes: dict[str, tuple[str, Callable[[bytes], Any]]] = {
            READY_PATH: ("GET", self._ready),
            f"{CONTROL_PREFIX}before_snapshot": ("POST", self._before_snapshot),
            f"{CONTROL_PREFIX}activate": ("POST", self._activate),
        }
        if path not in routes or self._is_from_outside:
            raise NotFound(f"There is no {path[:100]}.", remedy="Call POST /METHOD.")
        method, route = routes[path]
        if not self._allows(method):
            return
        status, answer = _attempt(lambda: route(body))
        self._handler.send_json(status, answer)

    def _ready(self, _body: bytes) -> dict[str, Any]:
        target, _ = self._loaded()
        # The same before and after a restore: without a declared canary, this answer is the canary.
        return {"ready": True, "methods": target.method_names}

    def _before_snapshot(self, _body: bytes) -> dict[str, Any]:
        _, phases = self._loaded()
        self._service.main_thread.run(phases.before_snapshot, "before_snapshot")
        # An open connection cannot be captured: this one ends with its answer, idle ones now.
        self._handler.close_connection = True
        self._handler.server.close_others()
        return {"done": True}

    def _activate(self, body: bytes) -> dict[str, Any]:
        activation = Activation.parse(_json_object(body))
        _, phases = self._loaded()
        ran = self._service.main_thread.run(lambda: phases.activate(activation), "activate")
        return {"activated": True, "ran": ran}

    def _call(self, name: str, body: bytes) -> None:
        target, phases = self._loaded()
        target.method(name)
        is_probe = self._handler.headers.get(PROBE_HEADER) == "1" and not self._is_from_outside
        if not phases.is_activated and not is_probe:
            raise Unavailable(
                "This replica has not been activated yet.",
                remedy="Call through the router, which waits until a replica is ready.",
                stage="activate",
            )
        arguments = _json_object(body)
        status, result = _attempt(lambda: _Result.of(target.call(name, arguments), name))
        if not isinstance(result, _Result):
            self._handler.send_json(status, result)
        elif result.lines is not None:
            self._handler.send_lines(result.lines)
        else:
            self._handler.send_bytes(200, result.body)

    @property
    def _is_from_outside(self) -> bool:
        return ROUTER_HEADER in self._handler.headers

    def _loaded(self) -> tuple[Target, Phases]:
        if self._service.target is None or self._service.phases is None:
            raise Unavailable(
                "enter(snap=True) is still running.", remedy="Wait and ask again.", stage="enter"
            )
        return self._service.target, self._service.phases

    def _allows(self, method: str) -> bool:
        if self._handler.command == method:
            return True
        error = InvalidInput(f"{self._handler.command} is not possible here.", remedy=f"Use {method}.")
        self._handler.send_json(405, error.to_dict(), headers=(("Allow", method),))
        return False


class _Result:
    """A method's result, encoded: one body, or lines still to come."""

    def __init__(self, body: bytes = b"", lines: Generator[bytes] | None = None) -> None:
        self.body = body
        self.lines = lines

    @classmethod
    def of(cls, value: Any, method: str) -> _Result:
        if not isinstance(value, Iterator):
            return cls(body=_encode(value, method))
        # The first item is computed before the head is sent: its failure is a 500, not a broken stream.
        try:
            first = _encode(next(value), method)
        except StopIteration:
            return cls(lines=(line for line in list[bytes]()))
        except BaseException:
            _close(value)
            raise
        return cls(lines=_lines(first, value, method))


def _lines(first: bytes, rest: Iterator[Any], method: str) -> Generator[bytes]:
    try:
        yield first + b"\n"
        while True:
            status, line = _attempt(lambda: _encode(next(rest), method), end=StopIteration)
            if line is None:
                return
            yield (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            if status != 200:
                return
    finally:
        # Also when the client went away: the user's `finally` blocks run now, not at some later collection.
        _close(rest)


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()


def _attempt(work: Callable[[], Any], end: type[BaseException] | tuple[()] = ()) -> tuple[int, Any]:
    """Run the user's code: 200 and what it returned, or a status and a JSON error. ``end`` means None."""
    try:
        return 200, work()
    except end:
        return 200, None
    except _Unserialisable as error:
        return 500, _error("UnserialisableResult", str(error), "")
    except GlowplugError as error:
        return error.http_status, error.to_dict()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what the user's code raises is its caller's
        text = _user_traceback(error)
        print(text, file=sys.stderr, end="", flush=True)
        return 500, _error(type(error).__name__, _message(error), text[-MAX_TRACEBACK_CHARACTERS:])


def _error(kind: str, message: str, trace: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "traceback": trace}}


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__; its failure must not hide the error itself
        return "(its message cannot be shown)"


def _user_traceback(error: BaseException) -> str:
    """The traceback from the user's code on: the runner's own frames in front of it tell nobody anything."""
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == Path(__file__).parent:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))


class _Unserialisable(Exception):
    pass


def _encode(value: Any, method: str) -> bytes:
    try:
        return json.dumps({"result": value}, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _Unserialisable(
            f"What {method} returned is not JSON data: {error}. Return dictionaries, lists, strings, finite "
            "numbers, True, False or None (for arrays: .tolist())."
        ) from error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"The body is not JSON: {error}.", remedy='Send a JSON object of named arguments: {"name": 1}.'
        ) from None
    if not isinstance(data, dict):
        raise InvalidInput(
            f"The body is JSON, but {type(data).__name__} instead of an object.",
            remedy='Send a JSON object of named arguments: {"name": 1}.',
        )
    return data
