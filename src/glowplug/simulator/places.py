"""How long replicas that are wanted wait for a machine to start on."""

from __future__ import annotations

from collections import deque


class PlaceWaits:
    """Of one app. ``seconds``: of every replica that was placed since ``from_s``, in order; 0 for one that
    found room at once.
    """

    def __init__(self, from_s: float) -> None:
        self.seconds: list[float] = []
        self._from_s = from_s
        self._since_s: deque[float] = deque()

    def placed(self, now_s: float) -> None:
        """One has its place: the one that has waited for longest, if any has."""
        since_s = self._since_s.popleft() if self._since_s else now_s
        if now_s >= self._from_s:
            self.seconds.append(now_s - since_s)

    def missing(self, count: int, now_s: float) -> None:
        """So many have none now. Who is not wanted any more is who has waited least."""
        while len(self._since_s) > count:
            self._since_s.pop()
        while len(self._since_s) < count:
            self._since_s.append(now_s)
