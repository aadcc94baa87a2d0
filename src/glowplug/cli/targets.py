"""What users point at: a replica by its id, an app, or one server of an app as ``APP/SERVER``."""

from __future__ import annotations

from dataclasses import dataclass

from glowplug.types.errors import NotFound
from glowplug.types.replica import Purpose, ReplicaView


@dataclass(frozen=True)
class ServerTarget:
    """An app, or one of its servers."""

    app: str
    server: str | None = None

    @classmethod
    def parse(cls, text: str) -> ServerTarget:
        """``APP`` or ``APP/SERVER``."""
        app, slash, server = text.partition("/")
        return cls(app, server if slash else None)

    def matches(self, replica: ReplicaView) -> bool:
        """Whether ``replica`` is a copy of it."""
        return replica.app == self.app and self.server in (None, replica.server)

    def __str__(self) -> str:
        return f"{self.app}/{self.server}" if self.server else self.app


def find_replica(replicas: list[ReplicaView], target: str, *, running: bool = False) -> ReplicaView:
    """The replica called ``target``, or the newest serving one of that app or server. Raises NotFound.

    Living replicas come before ended ones; with ``running`` ended ones do not count.
    """
    exact = next((replica for replica in replicas if replica.id == target), None)
    if exact is not None and not (running and exact.state.is_final):
        return exact
    server = ServerTarget.parse(target)
    candidates = [
        replica
        for replica in replicas
        if server.matches(replica)
        and replica.purpose is Purpose.SERVE
        and not (running and replica.state.is_final)
    ]
    if not candidates:
        raise NotFound(
            f"No {'running ' if running else ''}replica is called {target!r}, or belongs to an app or server "
            "of that name.",
            remedy="`glowplug ps --all` lists them. A server scaled to zero has none until it is called.",
            target=target,
        )
    return max(candidates, key=lambda replica: (not replica.state.is_final, replica.created_at))
