"""Serving one ``/dev/fuse`` descriptor: threads that read requests and call whoever handles them.

A request is answered once, from any thread, then or later. What a handler raises becomes the request's error
(EIO where nothing better is known) and never ends the thread: whoever waits on the kernel waits for an
answer. The session keeps no state about the filesystem, so another process can go on with the descriptor.

INTERRUPT is ignored, as the protocol allows: the reads served here end within their own deadlines, and one
cut short would surface as an I/O error in an application that merely got a signal.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from glowplug.image.lazy import fuse_protocol as protocol
from glowplug.image.lazy.fuse_protocol import MAX_READ_BYTES, REQUEST_BUFFER_BYTES, Opcode
from glowplug.types.errors import GlowplugError, InvalidInput

_log = logging.getLogger(__name__)

_ENDED = (errno.ENODEV, errno.ECONNABORTED)  # unmounted; aborted
_RETRIED = (errno.EINTR, errno.EAGAIN, errno.ENOENT)  # ENOENT: the request was withdrawn
_UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})

Part = bytes | bytearray | memoryview


class Scratch:
    """A thread's own room for the content of answers: two buffers, which cost memory once they are used.

    Aligned to pages, as reads past the page cache ask for.
    """

    __slots__ = ("answer", "chunk")

    def __init__(self) -> None:
        self.answer = memoryview(mmap.mmap(-1, MAX_READ_BYTES))
        self.chunk = memoryview(mmap.mmap(-1, MAX_READ_BYTES))


class Request:
    """One question of the kernel. ``body`` and ``scratch`` are the handler's only until it returns."""

    __slots__ = ("_descriptor", "body", "gid", "node", "opcode", "pid", "scratch", "uid", "unique")

    def __init__(self, descriptor: int, header: protocol.Header, body: memoryview, scratch: Scratch) -> None:
        self._descriptor = descriptor
        _, self.opcode, self.unique, self.node, self.uid, self.gid, self.pid = header
        self.body = body
        self.scratch = scratch

    def answer(self, *parts: Part) -> None:
        """Answer with ``parts`` one after the other. Buffers may be used again when this returns."""
        head = protocol.pack_answer_header(self.unique, sum(map(len, parts)))
        try:
            os.writev(self._descriptor, (head, *parts))
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, *_ENDED):
                _log.error("an answer of kind %d was refused: %s", self.opcode, problem)
                self.fail(errno.EIO)

    def fail(self, code: int) -> None:
        """Answer with an error number."""
        try:
            os.write(self._descriptor, protocol.pack_error(self.unique, code))
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, *_ENDED):
                _log.error("an error answer of kind %d was refused: %s", self.opcode, problem)


Handler = Callable[[Request], None]

Receive = Callable[[bytearray], int]
"""Wait for the next request, put it into the buffer and return its length; 0: there will be none."""


class FuseSession:
    """Reads requests from ``descriptor`` and hands each to the handler of its kind; a kind without is ENOSYS.

    INIT, DESTROY and forgetting are done here. ``on_ready`` is called when the kernel has heard our INIT;
    ``receive`` is where requests come from if somebody else reads them from the descriptor first.
    The descriptor is the caller's: it is not closed here.
    """

    def __init__(
        self,
        descriptor: int,
        handlers: Mapping[int, Handler],
        *,
        threads: int = 4,
        flags: int = protocol.DEFAULT_FLAGS,
        on_ready: Callable[[], None] | None = None,
        receive: Receive | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._receive: Receive = receive or (lambda buffer: os.readv(descriptor, (buffer,)))
        self._handlers: dict[int, Handler] = {
            Opcode.INIT: self._init,
            Opcode.DESTROY: Request.answer,
            **handlers,
        }
        self._flags = flags
        self._on_ready = on_ready
        self._ended = threading.Event()
        self._threads: Sequence[threading.Thread] = [
            threading.Thread(target=self._serve, name=f"fuse-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start reading."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the filesystem is unmounted, or cannot be served any more; False if it still is then."""
        return self._ended.wait(timeout_s)

    def ask_again(self) -> bool:
        """Have the kernel send again what an earlier server of this descriptor read and did not answer.

        False where the kernel cannot do that (before 6.9): such requests then wait until it is unmounted.
        """
        try:
            os.write(self._descriptor, protocol.RESEND_NOTICE)
        except OSError as problem:
            _log.warning("requests of the server before this one cannot be asked for again: %s", problem)
            return False
        return True

    def _serve(self) -> None:
        try:
            self._read_requests()
        except Exception:  # noqa: BLE001 - the session ends, so that another server can take its place
            _log.exception("a thread that reads requests failed, so the session ends")
        finally:
            self._ended.set()

    def _read_requests(self) -> None:
        buffer = bytearray(REQUEST_BUFFER_BYTES)
        view = memoryview(buffer)
        scratch = Scratch()
        while not self._ended.is_set():
            try:
                received = self._receive(buffer)
            except OSError as problem:
                if problem.errno in _RETRIED:
                    continue
                if problem.errno not in _ENDED:
                    _log.error("requests cannot be read any more: %s", problem)
                return
            if received == 0:
                return
            self._dispatch(view, received, scratch)

    def _dispatch(self, view: memoryview, received: int, scratch: Scratch) -> None:
        try:
            header = protocol.parse_header(view, received)
        except InvalidInput as problem:
            _log.error("%s", problem)  # without a name there is nothing to answer
            return
        if header.opcode in _UNANSWERED:
            return
        request = Request(self._descriptor, header, view[protocol.HEADER_BYTES : received], scratch)
        handler = self._handlers.get(header.opcode)
        if handler is None:
            request.fail(errno.ENOSYS)
            return
        try:
            handler(request)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the kernel waits for an answer
            request.fail(error_number(problem))

    def _init(self, request: Request) -> None:
        asked = protocol.parse_init(request.body)
        request.answer(protocol.pack_init(asked, self._flags))
        if self._on_ready is not None:
            self._on_ready()


def error_number(problem: Exception) -> int:
    """The error number that stands for ``problem``; what is not foreseen is logged with its origin."""
    if isinstance(problem, OSError) and problem.errno:
        return problem.errno
    if isinstance(problem, GlowplugError):
        code = problem.details.get("errno")
        return code if isinstance(code, int) and 0 < code < 4096 else errno.EIO
    _log.error("a request failed unexpectedly", exc_info=problem)
    return errno.EIO
