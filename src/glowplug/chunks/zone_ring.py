"""Which cache server holds which part of which object: rendezvous hashing, so that all nodes agree.

Every node computes the same order of servers for a stripe, from their addresses alone. When a server leaves,
only its stripes move, and they spread over all the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import blake3

STRIPE_BYTES = 4 << 20
"""A range read of at most as much touches two stripes, mostly one. A multiple of what nginx slices by."""


@dataclass(frozen=True)
class Part:
    """A piece of a range that lies in one stripe, or in neighbours with the same first server."""

    start: int
    size_bytes: int
    order: tuple[int, ...]  # positions of servers, the owner first


class Ring:
    """The servers of a zone. Immutable."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` tell servers apart; their order does not matter for who owns what."""
        self._names = [name.encode() for name in names]

    def order(self, key: str, stripe: int) -> tuple[int, ...]:
        """Positions of all servers, the stripe's owner first."""
        if len(self._names) == 1:
            return (0,)
        what = f"\0{key}\0{stripe}".encode()
        scores = [blake3.blake3(name + what).digest(8) for name in self._names]
        return tuple(sorted(range(len(scores)), key=scores.__getitem__))

    def parts(self, key: str, start: int, size_bytes: int) -> Iterator[Part]:
        """The range cut where its owner changes, in order."""
        end = start + size_bytes
        order = self.order(key, start // STRIPE_BYTES)
        at = start
        for stripe in range(start // STRIPE_BYTES + 1, (end - 1) // STRIPE_BYTES + 1):
            following = self.order(key, stripe)
            if following[0] != order[0]:
                yield Part(at, stripe * STRIPE_BYTES - at, order)
                at, order = stripe * STRIPE_BYTES, following
        yield Part(at, end - at, order)
