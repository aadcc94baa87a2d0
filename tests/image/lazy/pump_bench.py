"""A pump between a kernel that is a socket and a Python side that hands back whatever comes to it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.image.lazy.blob_content import BlobContent

from glowplug.chunks.chunk import ALIGN_BYTES, aligned
from glowplug.chunks.ssd_packs import Location
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy.blob import NOWHERE, VERIFIED, place_word
from glowplug.image.lazy.fuse_protocol import REQUEST_BUFFER_BYTES, Opcode
from glowplug.image.lazy.fuse_pump import FusePump, Notice

NODE = 1 << 40
PATIENCE_S = 20.0
HANDED_ON = b"handed on"
_SO_SNDBUFFORCE = 32
_ANSWER = struct.Struct("<IiQ")


def request_of(opcode: int, body: bytes, unique: int = 7, node: int = NODE) -> bytes:
    """A request as the kernel sends it."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


def read_request(offset: int, size: int, unique: int = 7, node: int = NODE) -> bytes:
    """READ."""
    return request_of(Opcode.READ, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0), unique, node)


class SharedBlob:
    """What a pump shares of a blob."""

    def __init__(self, table: ChunkTable, node: int = NODE) -> None:
        self.node = node
        self.table = table
        self.places = array("q", [NOWHERE]) * len(table)
        self.touched = bytearray(len(table))
        self.answered = array("Q", (0, 0))


def shared(content: BlobContent, node: int = NODE) -> SharedBlob:
    """A blob of which nothing is here."""
    return SharedBlob(ChunkTable(bytearray(content.packed_table)), node)


class PumpBench:
    """See the module."""

    def __init__(self, packs: Path, threads: int = 2) -> None:
        self._packs = packs
        packs.mkdir()
        self._kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._device.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 << 20)
        self._kernel.settimeout(PATIENCE_S)
        self.pump = FusePump(self._device.fileno(), packs, threads)
        self.notices: list[Notice] = []
        self._threads = [threading.Thread(target=task) for task in (self._hand_back, self._follow)]
        for thread in self._threads:
            thread.start()

    def serve(
        self, content: BlobContent, *, node: int = NODE, pack: int = 1, is_verified: bool = True
    ) -> SharedBlob:
        """Of its chunks, every other follows the one before it in the pack as in the blob."""
        blob = shared(content, node)
        offset = ALIGN_BYTES
        with self.pack(pack).open("wb") as file:
            for index, body in enumerate(content.bodies):
                file.seek(offset)
                file.write(
                    body + b"\xff" * (aligned(len(body)) - len(body))
                )  # not zeros, as padding should be
                blob.places[index] = place_word(Location(pack, offset)) | (VERIFIED if is_verified else 0)
                offset += aligned(len(body)) + index % 2 * ALIGN_BYTES
        self.pump.attach(blob)
        return blob

    def pack(self, number: int) -> Path:
        """The file of a pack."""
        return self._packs / f"{number:08d}.pack"

    def ask(self, packet: bytes) -> bytes | None:
        """The answer; None if the request was handed on, unchanged. Either happens once, or this fails."""
        return self.ask_at_once([packet])[0]

    def ask_at_once(self, packets: Sequence[bytes]) -> list[bytes | None]:
        """:meth:`ask` for each of these, all before the first answer is looked at; their numbers differ."""
        for packet in packets:
            self._kernel.send(packet)
        answers: dict[bytes, bytes | None] = {}
        for _ in packets:
            answer = self._kernel.recv(1 << 21)
            if answer.startswith(HANDED_ON):
                packet = answer.removeprefix(HANDED_ON)
                assert packet in packets
                answers[packet[8:16]] = None
            else:
                length, error, _ = _ANSWER.unpack_from(answer)
                assert (length, error) == (len(answer), 0)
                answers[answer[8:16]] = answer[_ANSWER.size :]
        return [answers[packet[8:16]] for packet in packets]

    def open_packs(self) -> list[str]:
        """What this process has open of the folder of packs."""
        found = []
        for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, one of which is gone by now
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        return [path for path in found if path.startswith(str(self._packs))]

    def read(self, offset: int, size: int, node: int = NODE) -> bytes | None:
        """:meth:`ask` for a range of a blob."""
        return self.ask(read_request(offset, size, node=node))

    def end(self) -> None:
        """End the connection and wait for every thread."""
        self._kernel.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self.pump.close()
        self._device.close()

    def _hand_back(self) -> None:
        buffer = bytearray(REQUEST_BUFFER_BYTES)
        try:
            while size := self.pump.receive(buffer):
                with suppress(BrokenPipeError):  # the kernel has ended first
                    os.write(self._device.fileno(), HANDED_ON + buffer[:size])
        except OSError as problem:
            if problem.errno != errno.ECONNRESET:  # the kernel has ended with an answer unread
                raise

    def _follow(self) -> None:
        for notice in self.pump.notices():
            self.notices.append(notice)  # one by one: extend() takes the next before it keeps the last
