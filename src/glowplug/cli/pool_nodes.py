"""The control plane as the pools' planner knows it: over its API, like everything else."""

from __future__ import annotations

from glowplug.cli.session import Session
from glowplug.pool.planner.workforce import NodeToken, Work
from glowplug.types.cluster import NodeState
from glowplug.types.errors import NotFound, Unavailable

_ANSWER_S = 5.0
_HEARD = (NodeState.READY, NodeState.DRAINING)


class Nodes:
    """The nodes of the control plane that ``session`` finds: what runs on them is what they are worth."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def look(self) -> Work:
        """Replicas on each node, by what its agent says or what was placed there. Raises GlowplugError."""
        with self._session.client(_ANSWER_S) as client:
            nodes = client.nodes()
        return Work(
            {node.name: float(max(node.replicas, node.view.replicas if node.view else 0)) for node in nodes},
            heard=frozenset(node.name for node in nodes if node.state in _HEARD and node.is_reachable),
            drained=frozenset(node.name for node in nodes if node.state is NodeState.DRAINING),
            listed=frozenset(node.name for node in nodes),
        )

    def token(self, ttl_s: float) -> NodeToken:
        """A new join token."""
        with self._session.client(_ANSWER_S) as client:
            made = client.new_join_token(ttl_s)
        if made.token is None:
            raise Unavailable("The control plane made a token and does not tell it.", remedy="Same version?")
        return NodeToken(made.id, made.token)

    def revoke(self, token: NodeToken) -> None:
        """Nobody can join with it any more."""
        with self._session.client(_ANSWER_S) as client:
            client.revoke_join_token(token.id)

    def drain(self, node: str, *, undo: bool) -> None:
        """As `glowplug cluster drain`."""
        with self._session.client(_ANSWER_S) as client:
            client.drain_node(node, undo=undo)

    def remove(self, node: str) -> None:
        """As `glowplug cluster remove --force`; quiet for one that is not there."""
        with self._session.client(_ANSWER_S) as client:
            try:
                client.remove_node(node, force=True)
            except NotFound:
                return
