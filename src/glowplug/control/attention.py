"""What the reconciler should look at soon: servers that something happened to.

With thousands of replicas a look at everything takes longer than a request should wait for its replica to be
asked for. So what happens says whom it concerns, and these are looked at first.
"""

from __future__ import annotations

from collections.abc import Callable


class Attention:
    """Collects until somebody takes. ``on_paid`` is called each time."""

    def __init__(self) -> None:
        self.on_paid: Callable[[], None] = lambda: None
        self.is_to_all = False
        """Something happened that may concern every server."""
        self._servers: dict[tuple[str, str], None] = {}

    def pay(self, app: str, server: str) -> None:
        """Something happened to this server, or to a replica that is called after it."""
        self._servers[app, server] = None
        self.on_paid()

    def pay_to_all(self) -> None:
        """Something happened to many."""
        self.is_to_all = True
        self.on_paid()

    def take(self) -> list[tuple[str, str]]:
        """Apps and servers, the first first; they are looked at now."""
        taken, self._servers = list(self._servers), {}
        return taken

    def take_all(self) -> None:
        """Everything is looked at now."""
        self.is_to_all = False
        self._servers.clear()
