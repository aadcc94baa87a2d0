"""The control plane's own periods and limits in one place, so that tests can shorten them and readers find
them.

What a user may choose (timeouts, queue length, scaling) is part of the specification, not of this.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """How long the control plane waits for what. All in seconds."""

    tick_s: float = 0.25
    """The reconciler looks at everything at least this often; events wake it earlier."""
    suspect_refused_s: float = 1.0
    """A replica that refused a connection is avoided this long, unless the watch says something sooner."""
    suspect_broken_s: float = 0.25
    """The same after a connection broke: shorter, because one bad request must not close the shop."""
    failed_starts_limit: int = 2
    """So many starts in a row that never got ready are a crash loop: waiting callers are told."""
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    held_backoff_max_s: float = 4.0
    """Where a start worked before, callers are held meanwhile: the next one comes within this time."""
    hold_slack_s: float = 10.0
    """Beyond startup_timeout_s a held request waits this long: one back-off and the way through the agent."""
    early_death_s: float = 10.0
    """A replica that dies younger than this after it was ready delays its successor."""
    stop_grace_s: float = 10.0
    """What a stopped replica gets between SIGTERM and SIGKILL."""
    relief_step_s: float = 2.0
    """While a node's memory is short, one replica on it goes down a step in this time: it must show first."""
    reconnect_first_s: float = 0.1
    reconnect_max_s: float = 2.0
    """Waits between attempts to reach an agent that does not answer."""
    node_silent_s: float = 3.0
    """Another machine that said nothing for so long is unreachable; its agent says something each second."""
    node_lost_s: float = 6.0
    """After so much silence it is lost: what ran there is started elsewhere."""
    router_beat_s: float = 0.5
    """Routers are told, and tell, something at least this often; what has changed goes out at once."""
    router_patience_s: float = 60.0
    """A router that cannot be asked may be sending requests: replicas wait so long for it before they go."""
    node_look_s: float = 2.0
    """How often nodes are asked what they have, where there are several to choose from."""
    node_looks_per_s: float = 20.0
    """All nodes together are asked so often at most: a hundred of them every 5 s each."""
    find_members_s: float = 2.0
    """How often the leader looks who else of its database has written itself down as a node."""
    image_retry_s: float = 30.0
    """A node that could not make an image ready is asked again after this time."""
    lease_s: float = 4.0
    """Without a sign of the leader for so long the next candidate leads: with what that takes, in 5 s."""
    lease_renew_s: float = 1.0
    lease_look_s: float = 0.5
    """A candidate sees at least this soon that the lease was given up."""
    lease_grace_s: float = 2.5
    """A database that was away is back: the leader, which tries all the time, has so long to renew first."""

    def backoff_s(self, failures: int) -> float:
        """The wait after that many failures in a row (1 or more)."""
        return float(min(self.backoff_first_s * 2 ** min(failures - 1, 16), self.backoff_max_s))
