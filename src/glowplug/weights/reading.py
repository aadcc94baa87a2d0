"""Reading many blocks at once: threads that take one after the other, and somebody who waits for tensors.

What becomes of a block's bytes is the *landing*'s business: :class:`HostLanding` reads them straight into
the tensors' own memory, without a copy in between; :mod:`glowplug.weights.staging` reads them into pinned
buffers and has the device fetch them from there, while the next are read.

Promises: tensors become whole in about the order of the plan; no more than ``ahead_bytes`` lie read and not
yet fetched by whoever waits; an error of any thread is raised where somebody waits; a reader that is closed
leaves no thread and no descriptor behind, unless the kernel holds a thread in a read that never ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput
from glowplug.weights.files import unreadable
from glowplug.weights.plan import BLOCK_BYTES, Block

_CLOSE_S = 10.0


def _default_threads() -> int:
    """Reads wait for the disk more than for the processor, so two cores still want several."""
    return max(4, min(16, os.cpu_count() or 1))


@dataclass(frozen=True)
class Reading:
    """How files are read.

    ``ahead_bytes`` bounds what :func:`glowplug.weights.iterate` holds that nobody took yet; ``stall_s`` is
    how long nothing may arrive before DeadlineExceeded.
    """

    threads: int = 0
    block_bytes: int = BLOCK_BYTES
    ahead_bytes: int = 1 << 30
    stall_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("threads", "block_bytes", "ahead_bytes"):
            value = getattr(self, name)
            if type(value) is not int or not (0 if name == "threads" else 1) <= value <= 1 << 50:
                raise InvalidInput(f"{name} cannot be {value!r}.", remedy="Use a positive whole number.")
        if not 0 < self.stall_s < float("inf"):
            raise InvalidInput(f"stall_s cannot be {self.stall_s!r}.", remedy="Use a number of seconds.")

    @property
    def thread_count(self) -> int:
        """How many threads read; 0 means as many as this machine can use."""
        return self.threads or _default_threads()


class Lander(Protocol):
    """One thread's part of a landing; it is used by that thread only."""

    def take(self, descriptor: int, block: Block) -> list[Block]:
        """Read a block; those that have arrived for good since the last call, this one or earlier ones.

        Raises OSError, or EOFError when the file ends inside the block.
        """
        ...

    def drain(self) -> list[Block]:
        """Wait until all have arrived; those that were not told of yet."""
        ...


class HostLanding:
    """Into host memory. ``view_of`` gives the writable bytes of a tensor, by its number; threads share it."""

    def __init__(self, view_of: Callable[[int], memoryview]) -> None:
        self._view_of = view_of

    def lander(self) -> Lander:
        """There is nothing that a thread has of its own."""
        return self

    def take(self, descriptor: int, block: Block) -> list[Block]:
        """See :class:`Lander`. One call of the kernel, unless it returns early."""
        views = [
            self._view_of(piece.tensor)[piece.offset : piece.offset + piece.length] for piece in block.pieces
        ]
        read_into(descriptor, views, block)
        return [block]

    def drain(self) -> list[Block]:
        """Nothing is ever under way between calls."""
        return []


class Landing(Protocol):
    """Where blocks go."""

    def lander(self) -> Lander:
        """A part for one more thread; called in that thread."""
        ...


def read_into(descriptor: int, views: list[memoryview], block: Block) -> None:
    """Fill ``views`` with the block's bytes. Raises OSError, or EOFError when the file ends before."""
    # All of the block is asked for at once: by itself the kernel reads a few hundred kB ahead.
    os.posix_fadvise(descriptor, block.offset, block.length, os.POSIX_FADV_WILLNEED)
    offset, left = block.offset, block.length
    while left:
        count = os.preadv(descriptor, views, offset)
        if not count:
            raise EOFError(offset)
        offset += count
        left -= count
        while left and count:
            used = min(count, len(views[0]))
            views[0] = views[0][used:]
            count -= used
            if not views[0]:
                views.pop(0)


class BlockReader:
    """Reads ``blocks`` of ``paths`` in a ``with``; :meth:`wait` there for one tensor after the other.

    ``sizes_bytes``: of every tensor, by its number.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes_bytes: Sequence[int],
        blocks: Sequence[Block],
        landing: Landing,
        reading: Reading,
    ) -> None:
        self._paths = paths
        self._sizes_bytes = sizes_bytes
        self._blocks = blocks
        self._landing = landing
        self._reading = reading
        self._change = threading.Condition()
        self._left_bytes = list(sizes_bytes)
        self._next_block = 0
        self._begun_bytes = 0
        self._taken_bytes = 0
        self._awaited = -1
        self._error: Exception | None = None
        self._is_closed = False
        self._moved_at = time.monotonic()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for number in range(min(self._reading.thread_count, len(self._blocks))):
            thread = threading.Thread(target=self._work, name=f"glowplug-weights-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        deadline = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def wait(self, tensor: int) -> None:
        """Until the tensor of this number is whole; call it once for each, in order.

        Raises InvalidInput (the file became shorter), Unavailable (it cannot be read), DeadlineExceeded.
        """
        with self._change:
            self._awaited = max(self._awaited, tensor)
            self._moved_at = time.monotonic()
            self._change.notify_all()
            while self._left_bytes[tensor] and self._error is None:
                stalled_s = time.monotonic() - self._moved_at
                if stalled_s >= self._reading.stall_s:
                    self._error = self._stalled()
                else:
                    self._change.wait(self._reading.stall_s - stalled_s)
            if self._error is not None:
                raise self._error
            self._taken_bytes += self._sizes_bytes[tensor]
            self._change.notify_all()

    def _work(self) -> None:
        descriptors: dict[int, int] = {}
        lander: Lander | None = None
        block: Block | None = None
        try:
            lander = self._landing.lander()
            while True:
                block = self._take_next(waits=False)
                if block is None:
                    # What is under way may be what is waited for, before there is room for more.
                    self._arrived(lander.drain())
                    block = self._take_next(waits=True)
                if block is None:
                    return
                if block.file not in descriptors:
                    # Of each thread's own: the kernel's read-ahead is kept by open file.
                    flags = os.O_RDONLY | os.O_CLOEXEC
                    descriptors[block.file] = os.open(self._paths[block.file], flags)
                self._arrived(lander.take(descriptors[block.file], block))
        except Exception as error:  # noqa: BLE001 - raised where somebody waits
            self._fail(error, block)
        finally:
            if lander is not None:
                with contextlib.suppress(Exception):  # an error was told above
                    lander.drain()  # nothing may be written to tensors any more that somebody drops now
            for descriptor in descriptors.values():
                os.close(descriptor)

    def _take_next(self, *, waits: bool) -> Block | None:
        """The next block as soon as there is room for it; None at the end, or instead of waiting."""
        with self._change:
            while not self._is_closed and self._error is None and self._next_block < len(self._blocks):
                block = self._blocks[self._next_block]
                has_room = self._begun_bytes - self._taken_bytes < self._reading.ahead_bytes
                if has_room or block.pieces[0].tensor <= self._awaited:
                    self._next_block += 1
                    self._begun_bytes += block.length
                    return block
                if not waits:
                    return None
                self._change.wait(self._reading.stall_s)
            return None

    def _arrived(self, blocks: list[Block]) -> None:
        if not blocks:
            return
        with self._change:
            for block in blocks:
                for piece in block.pieces:
                    self._left_bytes[piece.tensor] -= piece.length
            self._moved_at = time.monotonic()
            self._change.notify_all()

    def _fail(self, error: Exception, block: Block | None) -> None:
        known: Exception = error
        if block is not None and isinstance(error, EOFError):
            known = InvalidInput(
                f"{self._paths[block.file]} became shorter while it was read.",
                remedy="Let nobody write to a model that is in use: put a new one beside it.",
                file=str(self._paths[block.file]),
            )
        elif block is not None and isinstance(error, OSError):
            known = unreadable(self._paths[block.file], error, block.offset)
        with self._change:
            self._error = self._error or known
            self._change.notify_all()

    def _stalled(self) -> GlowplugError:
        number = min(max(self._next_block - 1, 0), len(self._blocks) - 1)
        block = self._blocks[number]
        return DeadlineExceeded(
            f"No bytes of the weights came for {self._reading.stall_s:g} s: {self._paths[block.file]}, "
            f"near byte {block.offset}.",
            remedy="Look into the node's log: a disk, or the store that the image is fetched from, hangs.",
            stage="weights",
            file=str(self._paths[block.file]),
        )
