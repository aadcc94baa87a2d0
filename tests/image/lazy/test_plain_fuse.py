"""The whole filesystem through FUSE: content from the blob, bad questions, people who are not root."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import needs
from tests.image.lazy.small_image import needs_root, write_small_image

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.lazy.fuse_protocol import Opcode
from glowplug.image.lazy.fuse_session import FuseSession, Scratch
from glowplug.image.lazy.plain_fuse import Outcome, PlainFilesystem
from glowplug.image.lazy.plain_nodes import PlainNodes
from glowplug.types.errors import Unavailable

ROOT = 1


# --- content ---

_KINDS = st.lists(st.sampled_from(["data", "same", "hole"]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    slots=_KINDS,
    last_bytes=st.integers(1, CHUNK_BYTES),
    reads=st.lists(st.tuples(st.integers(0, 6 * CHUNK_BYTES), st.integers(0, 2 * CHUNK_BYTES)), max_size=8),
)
def test_the_parts_of_a_read_make_up_the_files_content(
    slots: list[str], last_bytes: int, reads: list[tuple[int, int]]
) -> None:
    bodies: list[bytes | None] = []
    for number, kind in enumerate(slots):
        size = last_bytes if number == len(slots) - 1 else CHUNK_BYTES
        fill = number + 1 if kind == "data" else 200
        bodies.append(None if kind == "hole" else bytes([fill]) * (size - 1) + b"$")
    size_bytes = max(0, len(slots) - 1) * CHUNK_BYTES + (last_bytes if slots else 0)
    extents = tuple(
        Extent(number * CHUNK_BYTES, (Chunk.of(body),))
        for number, body in enumerate(bodies)
        if body is not None
    )
    file = Inode(mode=stat.S_IFREG | 0o644, size_bytes=size_bytes, extents=extents)
    tree = Tree(Inode(mode=stat.S_IFDIR | 0o755, children={b"file": file}))
    table = ChunkTable(write_index(tree)[1])
    by_id = {Chunk.of(body).id: body for body in bodies if body is not None}
    blob = b"".join(by_id[chunk.id].ljust(aligned(chunk.size_bytes), b"?") for chunk in table)
    content = b"".join((body or b"").ljust(CHUNK_BYTES, b"\0") for body in bodies)[:size_bytes]
    nodes = PlainNodes.of(tree, table)
    node = nodes.children[ROOT][b"file"]
    for offset, wanted in reads:
        got = b"".join(
            bytes(span.size_bytes) if span.start is None else blob[span.start : span.start + span.size_bytes]
            for span in nodes.spans(node, offset, wanted)
        )
        assert got == content[offset : offset + wanted]


# --- questions that the kernel asks, or never would ---


class FakeServer:
    """Reads of a blob that is a file; those of parts in ``broken`` fail."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self.broken: tuple[int, int] | None = None

    def read(self, _blob: object, offset: int, size: int, _scratch: Scratch, done: object) -> None:
        outcome: Outcome = (
            self._blob[offset : offset + size // 2],
            self._blob[offset + size // 2 : offset + size],
        )
        if self.broken is not None and offset < self.broken[1] and offset + size > self.broken[0]:
            outcome = Unavailable("not to be had")
        assert callable(done)
        done(outcome)


class Asked:
    """A filesystem of a few files, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.files = {"a": b"alpha" * 100, "large": os.urandom(3 * CHUNK_BYTES + 99)}
        image = write_small_image(folder, self.files)
        self.server = FakeServer(image.blob.read_bytes())
        self.nodes = PlainNodes.of(image.tree, image.table)
        filesystem = PlainFilesystem(self.nodes, None, self.server)  # type: ignore[arg-type]
        self._kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._kernel.settimeout(60)
        self._ours = ours
        self._session = FuseSession(ours.fileno(), filesystem.handlers(), threads=1)
        self._session.start()

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """The error number, and what came with it."""
        head = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 7, node, 0, 0, 0, 0, 0)
        self._kernel.sendall(head + body)
        answer = self._kernel.recv(2 << 20)
        length, error, unique = struct.unpack_from("<IiQ", answer)
        assert (length, unique) == (len(answer), 7)
        return -error, answer[16:]

    def read(self, name: str, offset: int, size: int) -> tuple[int, bytes]:
        node = self.nodes.children[ROOT][name.encode()]
        return self.ask(Opcode.READ, node, read_body(offset, size))

    def close(self) -> None:
        self._kernel.close()
        assert self._session.wait(60)
        self._ours.close()


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    asked = Asked(tmp_path)
    yield asked
    asked.close()


def test_a_read_over_several_chunks_is_put_together(asked: Asked) -> None:
    assert asked.read("large", CHUNK_BYTES - 10, 1000) == (0, asked.files["large"][CHUNK_BYTES - 10 :][:1000])
    assert asked.read("large", 3 * CHUNK_BYTES, CHUNK_BYTES) == (0, asked.files["large"][3 * CHUNK_BYTES :])
    assert asked.read("a", 0, 4096) == (0, asked.files["a"])
    assert asked.read("a", 5000, 4096) == (0, b"")


def test_a_part_that_is_not_to_be_had_fails_that_read_only(asked: Asked) -> None:
    asked.server.broken = (0, 4096)
    assert asked.read("a", 0, 100) == (errno.EIO, b"")
    assert asked.read("large", 2 * CHUNK_BYTES, 100)[0] == 0


def test_folders_are_read_in_pieces_of_any_size(asked: Asked) -> None:
    for room in (40, 64, 4096):
        names, offset = [], 0
        while (answer := asked.ask(Opcode.READDIR, ROOT, read_body(offset, room)))[1]:
            _, offset, length, _ = struct.unpack_from("<QQII", answer[1])
            names.append(answer[1][24 : 24 + length])
            if room == 4096:
                break
        assert names == [b".", b"..", b"a", b"large"][: len(names)]
    assert asked.ask(Opcode.READDIR, ROOT, read_body(1 << 40, 4096)) == (0, b"")


def test_a_name_that_is_not_there_may_be_remembered(asked: Asked) -> None:
    error, answer = asked.ask(Opcode.LOOKUP, ROOT, b"missing\0")
    node, _, valid_s = struct.unpack_from("<QQQ", answer)
    assert (error, node, valid_s) == (0, 0, 3600)


@pytest.mark.parametrize(
    ("opcode", "on", "body", "expected"),
    [
        (Opcode.GETATTR, "nobody", b"", errno.ESTALE),
        (Opcode.LOOKUP, "nobody", b"x\0", errno.ESTALE),
        (Opcode.READ, "nobody", read_body(0, 10), errno.ESTALE),
        (Opcode.READDIR, "nobody", read_body(0, 10), errno.ESTALE),
        (Opcode.LISTXATTR, "nobody", struct.pack("<II", 0, 0), errno.ESTALE),
        (Opcode.LOOKUP, "a", b"x\0", errno.ENOTDIR),
        (Opcode.READDIR, "a", read_body(0, 10), errno.ENOTDIR),
        (Opcode.READLINK, "a", b"", errno.EINVAL),
        (Opcode.LOOKUP, "root", b"no end", errno.EINVAL),
        (Opcode.LOOKUP, "root", b"", errno.EINVAL),
        (Opcode.LOOKUP, "root", b"n" * 256 + b"\0", errno.ENAMETOOLONG),
        (Opcode.READ, "a", b"short", errno.EINVAL),
        (Opcode.READ, "a", read_body(1 << 63, 10), errno.EINVAL),
        (Opcode.READ, "a", read_body(0, (1 << 20) + 1), errno.EINVAL),
        (Opcode.GETXATTR, "a", struct.pack("<II", 0, 0) + b"user.none\0", errno.ENODATA),
        (Opcode.GETXATTR, "a", struct.pack("<II", 0, 0), errno.EINVAL),
        (4711, "root", b"", errno.ENOSYS),
        (Opcode.OPEN, "a", struct.pack("<II", 0, 0), errno.ENOSYS),
    ],
)
def test_bad_questions(asked: Asked, opcode: int, on: str, body: bytes, expected: int) -> None:
    node = {"nobody": 1 << 50, "root": ROOT, "a": asked.nodes.children[ROOT][b"a"]}[on]
    assert asked.ask(opcode, node, body) == (expected, b"")
    assert asked.read("a", 0, 5) == (0, b"alpha")


# --- people who are not root ---

_AS_NOBODY = """
import os, sys
from pathlib import Path
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
from tests.image.lazy.node import MountingNode, contents, make_files
base = Path(sys.argv[1])
original = make_files(base / "original")
node = MountingNode(base)
def no_daemon():
    raise AssertionError("a daemon needs root")
node.daemon = no_daemon
folder = node.add_image(original)
mounts = node.mounts()
mounted = mounts.mount(folder.digest)
assert (mounted.kind, mounted.is_new) == ("plain_fuse", True), mounted
assert contents(mounted.path) == contents(original)
assert not mounts.mount(folder.digest).is_new
with (mounted.path / "large").open("rb"):
    try:
        mounts.unmount(folder.digest)
    except Exception as busy:
        assert "in use" in str(busy), busy
    else:
        raise AssertionError("unmounted while in use")
mounts.unmount(folder.digest)
assert mounts.mounted() == [] and node.ssd.pins() == []
node.ssd.close()
print("all is well")
"""


@needs_root
def test_somebody_who_is_not_root_mounts_by_fusermount() -> None:
    needs.programs("fusermount3")
    with tempfile.TemporaryDirectory(prefix="glowplug-nobody-", dir="/var/tmp") as base:
        device = Path(base) / "fuse"
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(10, 229))
        device.chmod(0o666)  # as udev makes it; minimal systems have it for root only
        os.chown(base, 65534, 65534)
        script = f'mount --bind "{device}" /dev/fuse && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
             sys.executable, "-W", "ignore", "-c", _AS_NOBODY, base],
            capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert done.stdout == "all is well\n", done.stderr[-3000:]
