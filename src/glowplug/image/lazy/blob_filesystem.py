"""The daemon's FUSE filesystem: one folder, and in it one file per image, named by the image's digest.

It keeps nothing in memory that a request needs: a file's number and attributes follow from its digest, so
a new server answers what the kernel asked the old one. Names that are not there are never remembered by the
kernel, since an image may come any moment; those that are, are fixed by their digest.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from functools import partial

from glowplug.image.lazy import fuse_protocol as protocol
from glowplug.image.lazy.attached import AttachedBlobs
from glowplug.image.lazy.blob import DIGEST, Blob, node_of
from glowplug.image.lazy.blob_server import BlobServer
from glowplug.image.lazy.fuse_protocol import ROOT_NODE, Attributes, DirectoryEntry, Opcode, OpenFlag
from glowplug.image.lazy.fuse_pump import Notice
from glowplug.image.lazy.fuse_session import Handler, Part, Request
from glowplug.types.errors import GlowplugError, NotFound

_log = logging.getLogger(__name__)

_VALID_S = 3600
_FOLDER = Attributes(inode=ROOT_NODE, mode=stat.S_IFDIR | 0o500, links=2)


class BlobFilesystem:
    """Handlers for :class:`~glowplug.image.lazy.fuse_session.FuseSession`."""

    def __init__(self, blobs: AttachedBlobs, server: BlobServer) -> None:
        self._blobs = blobs
        self._server = server

    def handlers(self) -> dict[int, Handler]:
        """What it can answer; the rest (attributes, locks, writing) it does not have."""
        return {
            Opcode.LOOKUP: self._look_up,
            Opcode.GETATTR: self._get_attributes,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.RELEASE: Request.answer,
            Opcode.OPENDIR: self._open_folder,
            Opcode.READDIR: self._read_folder,
            Opcode.RELEASEDIR: Request.answer,
            Opcode.STATFS: self._get_sizes,
        }

    def follow(self, notices: Iterable[Notice]) -> None:
        """Note reads that were answered before they came here, as long as there are any."""
        for node, first, last in notices:
            try:
                self._server.noticed(self._blobs.of_node(node), first, last)
            except Exception as problem:  # noqa: BLE001 - it costs this notice, not those that follow
                _log.warning("a read of node %#x is missing from its trace: %r", node, problem)

    def _look_up(self, request: Request) -> None:
        name = protocol.parse_name(request.body).decode(errors="replace")
        if request.node != ROOT_NODE or not DIGEST.fullmatch(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        blob = self._blobs.attach(name)
        request.answer(protocol.pack_entry(blob.node, _attributes(blob), _VALID_S))

    def _get_attributes(self, request: Request) -> None:
        attributes = _FOLDER if request.node == ROOT_NODE else _attributes(self._file(request))
        request.answer(protocol.pack_attributes(attributes, _VALID_S))

    def _open(self, request: Request) -> None:
        if protocol.parse_open_flags(request.body) & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._file(request)
        request.answer(protocol.pack_open(0, OpenFlag.KEEP_CACHE | OpenFlag.NO_FLUSH))

    def _read(self, request: Request) -> None:
        asked = protocol.parse_read(request.body)
        blob = self._file(request)
        self._server.read(blob, asked.offset, asked.size, request.scratch, partial(_answer, request))

    def _open_folder(self, request: Request) -> None:
        if request.node != ROOT_NODE:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        request.answer(protocol.pack_open(0, 0))

    def _read_folder(self, request: Request) -> None:
        asked = protocol.parse_read(request.body)
        names = [(".", ROOT_NODE, stat.S_IFDIR), ("..", ROOT_NODE, stat.S_IFDIR)]
        names += [(digest, node_of(digest), stat.S_IFREG) for digest in self._blobs.names()]
        entries = (
            DirectoryEntry(inode, position, kind, name.encode())
            for position, (name, inode, kind) in enumerate(names, start=1)
            if position > asked.offset
        )
        request.answer(protocol.pack_directory(entries, asked.size))

    def _get_sizes(self, request: Request) -> None:
        request.answer(protocol.pack_statfs(blocks=0, files=len(self._blobs.all())))

    def _file(self, request: Request) -> Blob:
        try:
            return self._blobs.of_node(request.node)
        except NotFound as problem:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from problem


def _answer(request: Request, outcome: Sequence[Part] | GlowplugError) -> None:
    if isinstance(outcome, GlowplugError):
        request.fail(errno.EIO)
    else:
        request.answer(*outcome)


def _attributes(blob: Blob) -> Attributes:
    return Attributes(inode=blob.node, mode=stat.S_IFREG | 0o400, size_bytes=blob.size_bytes)
