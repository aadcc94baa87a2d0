"""The whole filesystem through FUSE, for kernels without EROFS and for people who are not root.

Serves what the EROFS index says, names and attributes included, so it looks the same; it is only slower,
because each first lookup comes to this process. The kernel is told to keep all answers, names that are not
there among them: an image never changes.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

from glowplug.image.index.tree import MAX_NAME_BYTES
from glowplug.image.lazy import fuse_protocol as protocol
from glowplug.image.lazy.blob import Blob
from glowplug.image.lazy.blob_server import BlobServer
from glowplug.image.lazy.fuse_protocol import Attributes, DirectoryEntry, InitFlag, Opcode
from glowplug.image.lazy.fuse_session import Part, Request
from glowplug.image.lazy.plain_nodes import PlainNodes, Span
from glowplug.types.errors import GlowplugError

VALID_S = 3600
FLAGS = (
    protocol.DEFAULT_FLAGS
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.POSIX_ACL
)
_NO_FILE = Attributes(inode=0, mode=0)
_ROOT_USER = 0
_XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")

Outcome = Sequence[Part] | GlowplugError
"""What a read of the blob comes to. Its parts are the receiver's only until it returns."""


class PlainFilesystem:
    """Answers requests about one image. Without state: any number of threads may call its handlers.

    OPEN and OPENDIR are left without a handler. The kernel takes that for "nothing to do, keep the cache",
    and from then on opens files without asking.
    """

    def __init__(self, nodes: PlainNodes, blob: Blob, server: BlobServer) -> None:
        self._nodes = nodes
        self._blob = blob
        self._server = server

    def handlers(self) -> Mapping[int, Callable[[Request], None]]:
        """By opcode, for a session."""
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._get_attributes,
            Opcode.READLINK: self._read_link,
            Opcode.READ: self._read,
            Opcode.READDIR: self._read_folder,
            Opcode.READDIRPLUS: self._read_folder_plus,
            Opcode.GETXATTR: self._get_xattr,
            Opcode.LISTXATTR: self._list_xattrs,
            Opcode.STATFS: self._statfs,
        }

    def _lookup(self, request: Request) -> None:
        name = protocol.parse_name(request.body)
        if len(name) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "longer than a name can be")
        node = self._folder(request.node).get(name)
        if node is None:  # node 0: there is none, and the kernel may remember that
            request.answer(protocol.pack_entry(0, _NO_FILE, VALID_S))
        else:
            request.answer(protocol.pack_entry(node, self._nodes.attributes[node], VALID_S))

    def _get_attributes(self, request: Request) -> None:
        request.answer(protocol.pack_attributes(self._attributes(request.node), VALID_S))

    def _read_link(self, request: Request) -> None:
        target = self._nodes.targets.get(request.node)
        if target is None:
            raise OSError(errno.EINVAL, "not a link")
        request.answer(target)

    def _read(self, request: Request) -> None:
        asked = protocol.parse_read(request.body)
        self._attributes(request.node)
        spans = list(self._nodes.spans(request.node, asked.offset, asked.size))
        if not spans:
            request.answer()
        elif len(spans) == 1 and spans[0].start is not None:
            self._read_blob(request, spans[0].start, spans[0].size_bytes, partial(_answer, request))
        else:
            self._gather(request, spans)

    def _gather(self, request: Request, spans: list[Span]) -> None:
        gathering = _Gathering(request, spans)
        at = 0
        for span in spans:
            if span.start is not None:
                self._read_blob(request, span.start, span.size_bytes, partial(gathering.take, at))
            at += span.size_bytes
        gathering.take(at, ())

    def _read_blob(
        self, request: Request, start: int, size_bytes: int, done: Callable[[Outcome], None]
    ) -> None:
        self._server.read(self._blob, start, size_bytes, request.scratch, done)

    def _read_folder(self, request: Request) -> None:
        asked = protocol.parse_read(request.body)
        entries = (entry for entry, _ in self._entries(request.node, asked.offset))
        request.answer(protocol.pack_directory(entries, asked.size))

    def _read_folder_plus(self, request: Request) -> None:
        asked = protocol.parse_read(request.body)
        entries = self._entries(request.node, asked.offset)
        request.answer(protocol.pack_directory_plus(entries, VALID_S, asked.size))

    def _entries(self, node: int, offset: int) -> Iterator[tuple[DirectoryEntry, Attributes]]:
        """From position ``offset`` on: 0 is the folder itself, 1 the one above, then its names in order."""
        names = self._folder(node).items()
        dots = ((b".", node), (b"..", self._nodes.parents[node]))
        for position, (name, child) in enumerate(islice(chain(dots, names), offset, None), start=offset):
            attributes = self._nodes.attributes[child]
            yield DirectoryEntry(child, position + 1, attributes.mode, name), attributes

    def _get_xattr(self, request: Request) -> None:
        room_bytes, name = protocol.parse_get_xattr(request.body)
        self._attributes(request.node)
        value = self._nodes.xattrs.get(request.node, {}).get(name)
        if value is None:
            raise OSError(_why_absent(name), "no such attribute")
        _answer_sized(request, value, room_bytes)

    def _list_xattrs(self, request: Request) -> None:
        room_bytes = protocol.parse_list_xattr(request.body)
        self._attributes(request.node)
        names = self._nodes.xattrs.get(request.node, {})
        shown = [n for n in names if request.uid == _ROOT_USER or not n.startswith(b"trusted.")]
        _answer_sized(request, b"".join(name + b"\0" for name in shown), room_bytes)

    def _statfs(self, request: Request) -> None:
        blocks = max(1, self._nodes.table.blob_bytes // 4096)
        request.answer(protocol.pack_statfs(blocks, len(self._nodes.attributes)))

    def _folder(self, node: int) -> dict[bytes, int]:
        found = self._nodes.children.get(node)
        if found is None:
            self._attributes(node)
            raise OSError(errno.ENOTDIR, "not a folder")
        return found

    def _attributes(self, node: int) -> Attributes:
        found = self._nodes.attributes.get(node)
        if found is None:
            raise OSError(errno.ESTALE, "no such node")
        return found


class _Gathering:
    """A read that takes several parts of the blob, or holes; answered when the last part is here."""

    def __init__(self, request: Request, spans: list[Span]) -> None:
        self._request = request
        self._answer = bytearray(sum(span.size_bytes for span in spans))  # holes are right already
        self._missing = 1 + sum(span.start is not None for span in spans)
        self._problem: GlowplugError | None = None
        self._lock = threading.Lock()

    def take(self, at: int, outcome: Outcome) -> None:
        """One part is there, or is not to be had. Called once more, for nothing, when all were asked for."""
        if not isinstance(outcome, GlowplugError):
            for part in outcome:
                self._answer[at : at + len(part)] = part
                at += len(part)
        with self._lock:
            if isinstance(outcome, GlowplugError):
                self._problem = outcome
            self._missing -= 1
            is_last = self._missing == 0
        if is_last:
            _answer(self._request, self._problem or (self._answer,))


def _answer(request: Request, outcome: Outcome) -> None:
    if isinstance(outcome, GlowplugError):
        request.fail(errno.EIO)
    else:
        request.answer(*outcome)


def _why_absent(name: bytes) -> int:
    """As the kernel's own filesystems have it."""
    for prefix in _XATTR_PREFIXES:
        if name.startswith(prefix):
            return errno.EINVAL if name == prefix else errno.ENODATA
    return errno.ENODATA if name in _ACLS else errno.EOPNOTSUPP


def _answer_sized(request: Request, value: bytes, room_bytes: int) -> None:
    if room_bytes == 0:
        request.answer(protocol.pack_xattr_size(len(value)))
    elif len(value) > room_bytes:
        raise OSError(errno.ERANGE, "more than there is room for")
    else:
        request.answer(value)
