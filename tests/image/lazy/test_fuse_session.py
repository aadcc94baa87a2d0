"""A session answers every request once, whatever its handlers do. The kernel is played by a socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from glowplug.image.lazy import fuse_protocol as protocol
from glowplug.image.lazy.fuse_protocol import Opcode
from glowplug.image.lazy.fuse_session import FuseSession, Request
from glowplug.types.errors import InvalidInput, NotFound, Unavailable

PATIENCE_S = 60.0


class Kernel:
    """The other end of the descriptor: packets, as of /dev/fuse."""

    def __init__(self) -> None:
        self._socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_S)

    def send(self, opcode: int, body: bytes = b"", unique: int = 7) -> None:
        head = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 0, 0, 0)
        self._socket.send(head + body)

    def send_raw(self, packet: bytes) -> None:
        self._socket.send(packet)

    def receive(self) -> tuple[int, int, bytes]:
        """Error number, the request's name, and the body."""
        packet = self._socket.recv(1 << 21)
        length, error, unique = struct.unpack_from("<IiQ", packet)
        assert length == len(packet)
        return -error, unique, packet[16:]

    def ask(self, opcode: int, body: bytes = b"") -> tuple[int, bytes]:
        self.send(opcode, body)
        error, unique, answer = self.receive()
        assert unique == 7
        return error, answer

    def close(self) -> None:
        self._socket.close()


def _raising(problem: Exception) -> object:
    def handler(_request: Request) -> None:
        raise problem

    return handler


HANDLERS = {
    Opcode.STATFS: lambda request: request.answer(b"one", memoryview(b" two")),
    Opcode.LOOKUP: _raising(FileNotFoundError(errno.ENOENT, "no")),
    Opcode.GETATTR: _raising(NotFound("no", errno=errno.ESTALE)),
    Opcode.READLINK: _raising(Unavailable("no")),
    Opcode.OPEN: _raising(ZeroDivisionError()),
    Opcode.RELEASE: _raising(OSError()),
    Opcode.GETXATTR: lambda request: protocol.parse_get_xattr(request.body),
}


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    session = FuseSession(kernel.device.fileno(), HANDLERS, threads=2)
    session.start()
    yield kernel
    kernel.close()
    assert session.wait(PATIENCE_S)
    kernel.device.close()


def test_an_answer_is_its_parts_one_after_the_other(kernel: Kernel) -> None:
    assert kernel.ask(Opcode.STATFS) == (0, b"one two")


@pytest.mark.parametrize(
    ("opcode", "code"),
    [
        (Opcode.LOOKUP, errno.ENOENT),
        (Opcode.GETATTR, errno.ESTALE),
        (Opcode.READLINK, errno.EIO),
        (Opcode.OPEN, errno.EIO),
        (Opcode.RELEASE, errno.EIO),
        (Opcode.GETXATTR, errno.EINVAL),
        (Opcode.READ, errno.ENOSYS),
        (99_999, errno.ENOSYS),
    ],
)
def test_what_a_handler_raises_is_the_requests_error(kernel: Kernel, opcode: int, code: int) -> None:
    assert kernel.ask(opcode) == (code, b"")
    assert kernel.ask(Opcode.STATFS)[0] == 0


def test_init_agrees_on_a_version(kernel: Kernel) -> None:
    error, body = kernel.ask(Opcode.INIT, struct.pack("<IIII", 7, 41, 1 << 20, 0xFFFFFFFF) + bytes(48))
    assert (error, struct.unpack_from("<II", body)) == (0, (7, 38))


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT])
def test_what_wants_no_answer_gets_none(kernel: Kernel, opcode: int) -> None:
    kernel.send(opcode, bytes(16), unique=1)
    kernel.send(Opcode.STATFS, unique=2)
    assert kernel.receive()[1] == 2


@pytest.mark.parametrize("packet", [b"x", bytes(39), b"\xff" * 40, bytes(1000)])
def test_a_malformed_request_ends_nothing(kernel: Kernel, packet: bytes) -> None:
    kernel.send_raw(packet)
    assert kernel.ask(Opcode.STATFS) == (0, b"one two")


def test_the_resend_notice_has_no_name(kernel: Kernel) -> None:
    session = FuseSession(kernel.device.fileno(), {})
    assert session.ask_again()
    assert kernel.receive() == (-protocol.NOTIFY_RESEND, 0, b"")


def test_a_kernel_that_cannot_resend_is_survived() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        assert not FuseSession(descriptor, {}).ask_again()
    finally:
        os.close(descriptor)


def test_a_kernel_that_is_too_old_is_refused(kernel: Kernel) -> None:
    assert kernel.ask(Opcode.INIT, struct.pack("<IIII", 7, 19, 0, 0))[0] == errno.EIO
    with pytest.raises(InvalidInput):
        protocol.pack_init(protocol.InitAsked(7, 19, 0, 0), 0)
