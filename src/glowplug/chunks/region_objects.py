"""A region's bucket through obstore: S3, Google Cloud Storage, Azure, or a folder.

obstore's Rust core does the requests, their retries (5xx, 429, connections that break; with backoff) and the
parallel parts of large uploads. What it does not do is done here: a deadline over the whole call, answers of
the length asked for and never more memory than that, errors in our words. Credentials come from where each
cloud's own tools look for them (``AWS_ACCESS_KEY_ID`` .., ``GOOGLE_APPLICATION_CREDENTIALS``,
``AZURE_STORAGE_*``). Other servers are named by ``AWS_ENDPOINT_URL``, ``GOOGLE_BASE_URL`` and
``AZURE_STORAGE_ENDPOINT``.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import re
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url
from typing_extensions import Buffer

from glowplug.chunks.loop_thread import LoopThread
from glowplug.chunks.object_keys import CLOUDS, absent, check_key, wrong_answer
from glowplug.chunks.objects import ObjectInfo
from glowplug.chunks.pace import LEAST_BYTES_PER_S, PATIENCE_S, Attempts, Meter, Pace, Stalled
from glowplug.types.clock import SystemClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound, Unavailable

Result = TypeVar("Result")

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
LIST_TIMEOUT_S = 60.0
DELETE_TIMEOUT_S = 120.0
_PIECE_BYTES = LEAST_BYTES_PER_S  # so that whoever keeps the least pace is seen to; 0.5 ms more per MiB
_DELETED_AT_ONCE = 1000  # what S3's DeleteObjects takes
_QUERY = re.compile(r"\?[^\s\"']*")  # of a signed URL: it is a credential
# Of each cloud: obstore's option, and the environment variables that it reads. What is named there is spoken
# to as its URL says, anything else never without TLS.
_S3_ENDPOINT = ("endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AZURE_ENDPOINT = ("endpoint", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_ENDPOINTS = {"s3": _S3_ENDPOINT, "s3a": _S3_ENDPOINT, "gs": ("base_url", "GOOGLE_BASE_URL")}
_RETRIES: dict[str, Any] = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}


class ObstoreObjects:
    """A bucket, or a prefix of one, or a folder. See :class:`glowplug.chunks.objects.WriteObjects`."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None, *, tier: str = "region") -> None:
        """``options`` are obstore's for that cloud. Raises InvalidInput for a URL that is none of these."""
        self._tier = tier
        self.url = url
        # What stalls is noticed here; an upload hears nothing until its part has arrived.
        self._reads = _store(url, options, {"timeout": timedelta(seconds=300)})
        self._writes = _store(url, options, {"timeout": timedelta(seconds=300)})
        self._loop = LoopThread("glowplug-region")
        self._clock = SystemClock()
        self._meter = Meter()

    @property
    def tier(self) -> str:
        """``region``."""
        return self._tier

    @property
    def meters(self) -> Sequence[Meter]:
        """See :class:`glowplug.chunks.objects.MeteredObjects`."""
        return (self._meter,)

    def close(self) -> None:
        """Drop what is under way. May be called twice."""
        self._loop.close()

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        """See :class:`glowplug.chunks.objects.Objects`."""
        return self._run(key, self._read(check_key(key), start, size_bytes), timeout_s)

    async def _read(self, key: str, start: int, size_bytes: int) -> bytes:
        if size_bytes <= 0 or start < 0:
            raise InvalidInput(f"{size_bytes} bytes from {start} are no range.", remedy="Ask for a byte.")
        if self._is_folder:  # obstore streams files in small pieces, at twenty times the cost of one read
            data = bytes(await obstore.get_range_async(self._reads, key, start=start, length=size_bytes))
            self._meter.add(received_bytes=len(data))
            return self._of_length(key, data, size_bytes)
        attempts, pieces = Attempts(), list[bytes]()
        while True:
            came = sum(map(len, pieces))
            try:
                await self._add_range(key, start + came, start + size_bytes, pieces, attempts.patience_s)
            except Stalled:
                self._meter.add(stalls=1)
                if not attempts.may_repeat(sum(map(len, pieces)) - came):
                    raise
            else:
                return self._of_length(key, b"".join(pieces), size_bytes)

    async def _add_range(
        self, key: str, start: int, end: int, pieces: builtins.list[bytes], patience_s: float
    ) -> None:
        """Get from ``start`` to ``end``, and add what comes to ``pieces``. Raises Stalled."""
        pace = Pace(self._clock, patience_s, self._meter)
        result = await self._before(
            patience_s, obstore.get_async(self._reads, key, options={"range": (start, end)})
        )
        if tuple(result.range) != (start, end):
            raise wrong_answer(key, self._tier, f"it gave bytes {result.range}, not {(start, end)}")
        await self._collect(key, result, end - start, pieces, pace)

    async def _before(self, patience_s: float, work: Awaitable[Result]) -> Result:
        """What ``work`` gives. Raises Stalled if nothing comes within the patience."""
        try:
            async with asyncio.timeout(patience_s):
                return await work
        except TimeoutError as late:
            raise Stalled(self._tier, patience_s) from late

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        """See :class:`glowplug.chunks.objects.Objects`."""
        return self._run(key, self._read_all(check_key(key), limit_bytes), timeout_s)

    async def _read_all(self, key: str, limit_bytes: int) -> bytes:
        result = await self._before(PATIENCE_S[-1], obstore.get_async(self._reads, key))
        size_bytes = result.meta["size"]
        if size_bytes > limit_bytes:
            raise wrong_answer(key, self._tier, f"it is {size_bytes} bytes long, more than {limit_bytes}")
        pieces: builtins.list[bytes] = []
        await self._collect(key, result, size_bytes, pieces, Pace(self._clock, PATIENCE_S[-1], self._meter))
        return self._of_length(key, b"".join(pieces), size_bytes)

    def _of_length(self, key: str, data: bytes, size_bytes: int) -> bytes:
        if len(data) != size_bytes:
            raise wrong_answer(key, self._tier, f"it gave {len(data)} bytes, not {size_bytes}")
        return data

    async def _collect(
        self, key: str, result: obstore.GetResult, size_bytes: int, pieces: builtins.list[bytes], pace: Pace
    ) -> None:
        """Add the answer's body to ``pieces``, as far as it comes. Raises Stalled."""
        stream = aiter(result.stream(min_chunk_size=_PIECE_BYTES))
        left_bytes = size_bytes
        while (piece := await self._before(pace.patience_s, anext(stream, None))) is not None:
            pace.got(len(piece))
            left_bytes -= len(piece)
            if left_bytes < 0:
                raise wrong_answer(key, self._tier, f"it gave more than {size_bytes} bytes")
            pieces.append(bytes(piece))
            if left_bytes and pace.is_stalled:
                raise Stalled(self._tier, pace.patience_s)
        if left_bytes:
            raise wrong_answer(key, self._tier, f"it gave {left_bytes} bytes fewer than {size_bytes}")

    def write(self, key: str, data: Buffer | Path, timeout_s: float) -> None:
        """See :class:`glowplug.chunks.objects.WriteObjects`."""
        check_key(key)
        content = data if isinstance(data, Path) else memoryview(data)
        try:
            self._run(key, self._write(key, content), timeout_s)
        except NotFound as problem:
            raise Unavailable(
                f"{self._tier} has no such bucket or container.", remedy="Create it first.", key=key
            ) from problem
        if isinstance(self._writes, LocalStore):
            _sync(Path(str(self._writes.prefix)) / key)

    async def _write(self, key: str, content: Path | memoryview) -> None:
        await obstore.put_async(
            self._writes, key, content, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See :class:`glowplug.chunks.objects.WriteObjects`."""
        check_key(prefix)
        found = self._listed(prefix)
        # A folder is listed as the disk has it, buckets by key.
        return iter(sorted(found, key=lambda info: info.key)) if self._is_folder else found

    def _listed(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = obstore.list(self._reads, prefix, chunk_size=1000)
        while page := self._run(prefix, _next_page(pages), LIST_TIMEOUT_S):
            for found in page:
                yield ObjectInfo(found["path"], found["size"])

    @property
    def _is_folder(self) -> bool:
        return isinstance(self._reads, LocalStore)

    def delete(self, keys: Collection[str]) -> None:
        """See :class:`glowplug.chunks.objects.WriteObjects`."""
        listed = [check_key(key) for key in keys]
        for first in range(0, len(listed), _DELETED_AT_ONCE):
            batch = listed[first : first + _DELETED_AT_ONCE]
            self._run(batch[0], self._delete(batch), DELETE_TIMEOUT_S)

    async def _delete(self, keys: builtins.list[str]) -> None:
        try:
            await obstore.delete_async(self._writes, keys)
        except FileNotFoundError:  # some clouds mind what is not there, and stop at it
            for key in keys:
                try:
                    await obstore.delete_async(self._writes, key)
                except FileNotFoundError:
                    continue

    def sign(self, key: str, expires_s: float) -> str | None:
        """A URL that lets anybody GET this object for a while; None where there is no such thing."""
        check_key(key)
        store = self._reads
        if not isinstance(store, (S3Store, GCSStore, AzureStore)):
            return None

        async def signed() -> str:
            return await obstore.sign_async(store, "GET", key, timedelta(seconds=expires_s))

        return self._run(key, signed(), LIST_TIMEOUT_S)

    def origin_url(self) -> str | None:
        """Where a zone's caches fetch from, by HTTP; None for a folder."""
        signed = self.sign("x", 60.0)
        return None if signed is None else signed.partition("?")[0].removesuffix("/x")

    def _run(self, key: str, work: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
        try:
            return self._loop.run(work, max(0.0, timeout_s))
        except TimeoutError as late:
            raise DeadlineExceeded(
                f"{self._tier} did not finish with {key} within {timeout_s:g} s.",
                remedy="Look at the network, and at what the region's provider reports.",
                stage=self._tier,
            ) from late
        except (exceptions.BaseError, OSError, ValueError) as problem:
            raise self._in_our_words(key, problem) from problem

    def _in_our_words(self, key: str, problem: Exception) -> GlowplugError:
        said = _QUERY.sub("?..", str(problem).partition("\n")[0])[:300]
        if isinstance(problem, FileNotFoundError):
            return absent(key, self._tier)
        if isinstance(problem, exceptions.NotSupportedError) or "416 Range" in said:
            return wrong_answer(key, self._tier, said)
        if isinstance(
            problem, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
        ):
            remedy = "Check the credentials in the environment and what they may do in this bucket."
        else:
            remedy = "Check GLOWPLUG_REGION, that the bucket exists, and the network."
        return Unavailable(f"{self._tier} failed with {key}: {said}", remedy=remedy, key=key)


def is_bucket_or_folder(url: str) -> bool:
    """It is a URL that :class:`ObstoreObjects` takes."""
    return url.startswith("/") or urlsplit(url).scheme in CLOUDS | {"file"}


def _store(url: str, options: Mapping[str, str] | None, client: dict[str, Any]) -> ObjectStore:
    if not is_bucket_or_folder(url):
        raise _bad_url(url, "it is none of these")
    try:
        if url.startswith(("/", "file:")):
            folder = Path(urlsplit(url).path if url.startswith("file:") else url)
            if not folder.is_absolute():
                raise _bad_url(url, "it is no absolute path")
            return LocalStore(folder, mkdir=True)
        is_plain = _endpoint(url, options or {}).startswith("http://")
        client |= {"connect_timeout": timedelta(seconds=5), "allow_http": is_plain}
        config: Any = dict(options or {})
        return from_url(url, config=config, client_options=client, retry_config=_RETRIES)  # type: ignore[arg-type, no-any-return, call-overload, unused-ignore]
    except (exceptions.BaseError, OSError, ValueError) as problem:
        raise _bad_url(url, str(problem).partition("\n")[0]) from problem


def _endpoint(url: str, options: Mapping[str, str]) -> str:
    """The server that was named in place of the cloud's own; empty if none was."""
    option, *variables = _ENDPOINTS.get(urlsplit(url).scheme, _AZURE_ENDPOINT)
    named = [options.get(option, ""), *(os.environ.get(variable, "") for variable in variables)]
    return next(filter(None, named), "")


async def _next_page(pages: Any) -> builtins.list[Any]:
    try:
        return list(await anext(pages))
    except StopAsyncIteration:
        return []


def _sync(path: Path) -> None:
    """Folders only: obstore renames a finished file into place, but nothing of it need be on disk yet."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _bad_url(url: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{url!r} cannot be a region: {why}.",
        remedy="Use s3://bucket/prefix, gs://.., az://.., https://.., file:///.. or a folder's path.",
    )
