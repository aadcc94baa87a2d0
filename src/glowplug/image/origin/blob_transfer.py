"""One blob from a server into a file: resumed where the connection broke, hashed on the way.

Promises: returns only when the file holds exactly the blob. A server that ignores ranges costs a start from
the beginning, one that sends other bytes is asked once more and then refused.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import IO

import urllib3

from glowplug.image.job import Job
from glowplug.image.origin.digest import Digest
from glowplug.image.origin.http_answers import read_piece
from glowplug.image.origin.http_session import Interrupted, Session, Watch
from glowplug.image.origin.retries import Patience
from glowplug.types.errors import InvalidInput, ResourceExhausted

WORTHWHILE_BYTES = 1 << 20  # less than this between two failures is no progress
MAX_DAMAGED = 2
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

Opener = Callable[[Session, Mapping[str, str], Job], urllib3.BaseHTTPResponse]
"""Asks for a blob with these headers: an answer of status 200 or 206, or an error."""


class BlobTransfer:
    """Fills ``target`` with the blob ``digest`` of ``size_bytes``. May be run once."""

    def __init__(self, digest: Digest, size_bytes: int, target: IO[bytes], what: str) -> None:
        self._digest = digest
        self._size_bytes = size_bytes
        self._target = target
        self._what = what
        self._damaged = 0
        self._hasher = digest.hasher()
        self.received_bytes = 0

    def run(self, open_blob: Opener, session: Session, patience: Patience, job: Job) -> None:
        """Raises InvalidInput (wrong bytes), Unavailable, DeadlineExceeded, ResourceExhausted."""
        stage = f"fetching {self._what}"
        while not self._is_done():
            before = self.received_bytes
            try:
                with Watch(session, job, stage, is_long=True) as watch:
                    self._continue(open_blob, session, watch, job)
            except Interrupted as problem:
                session.close()
                if self.received_bytes - before >= WORTHWHILE_BYTES:
                    patience.progressed()
                patience.after(problem, job, stage)

    def _continue(self, open_blob: Opener, session: Session, watch: Watch, job: Job) -> None:
        start = self.received_bytes
        response = open_blob(session, {"Range": f"bytes={start}-"} if start else {}, job)
        watch.begin()
        if response.status == 206:
            self._check_range(response.headers.get("Content-Range", ""), start)
        elif start:
            self._restart()
        self._check_length(response)
        while data := read_piece(response):
            watch.moved(len(data))
            self._keep(data)
        if self.received_bytes < self._size_bytes:
            raise Interrupted(
                f"The server ended early while sending {self._what}.", remedy="Try again later."
            )

    def _keep(self, data: bytes) -> None:
        if self.received_bytes + len(data) > self._size_bytes:
            raise self._wrong_size("more")
        self._hasher.update(data)
        try:
            self._target.write(data)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceExhausted(
                "The disk is full while fetching an image.", remedy="Make room and try again."
            ) from problem
        self.received_bytes += len(data)

    def _is_done(self) -> bool:
        if self.received_bytes < self._size_bytes:
            return False
        if self._hasher.hexdigest() == self._digest.hex:
            return True
        self._damaged += 1
        if self._damaged >= MAX_DAMAGED or not self._size_bytes:
            self._digest.compare(self._hasher.hexdigest(), self._what)
        self._restart()
        return False

    def _restart(self) -> None:
        self._target.seek(0)
        self._target.truncate()
        self._hasher = self._digest.hasher()
        self.received_bytes = 0

    def _check_length(self, response: urllib3.BaseHTTPResponse) -> None:
        text = response.headers.get("Content-Length", "")
        if text.isascii() and text.isdigit() and int(text[:20]) != self._size_bytes - self.received_bytes:
            raise self._wrong_size(text[:20])

    def _check_range(self, header: str, start: int) -> None:
        match = _CONTENT_RANGE.fullmatch(header)
        if match is None or int(match[1]) != start or match[3] not in (str(self._size_bytes), "*"):
            self._restart()
            raise Interrupted(f"The server sent another part of {self._what} than was asked for.")

    def _wrong_size(self, got: str) -> InvalidInput:
        return InvalidInput(
            f"The server has {got} bytes for {self._what}, not the {self._size_bytes} of its manifest.",
            remedy="It is damaged or was replaced: push the image again.",
        )
