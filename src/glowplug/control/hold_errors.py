"""What callers are told when no replica gets ready for them: the cause, the stage, the remedy."""

from __future__ import annotations

from glowplug.control.replica_entry import Replica
from glowplug.control.start_history import StartHistory
from glowplug.types.errors import DeadlineExceeded, ReplicaFailed
from glowplug.types.replica import ErrorInfo, Stage

_TAKEN_NAMES = frozenset({"message", "remedy", "self"})


def crash_loop(server: str, deployment_id: str, history: StartHistory) -> ReplicaFailed:
    """Starting keeps failing: the replica's own words, and when it is tried again."""
    error = history.error or ErrorInfo(code="replica_failed", message="No replica could be started.")
    details = {name: value for name, value in error.details.items() if name not in _TAKEN_NAMES}
    details.update(
        server=server,
        deployment_id=deployment_id,
        failed_starts=history.failed_starts,
        cause=error.code,
        retry_after_s=max(1, round(history.wait_s)),
    )
    return ReplicaFailed(error.message, remedy=error.remedy, **details)


def stuck(server: str, waited_s: float, live: list[Replica], history: StartHistory) -> DeadlineExceeded:
    """A caller's patience has run out: the stage that the newest start is in.

    While starts cannot even be asked for, one that is just being asked for once more is not news.
    """
    if history.problem is not None:
        live = [replica for replica in live if replica.accepted_at_s is not None]
    starting = [replica for replica in live if replica.is_starting]
    newest = max(starting or live, key=lambda replica: replica.view.created_at, default=None)
    if newest is None:
        problem = history.problem or (history.error.message if history.error else "none was accepted")
        return DeadlineExceeded(
            f"No replica of {server} got ready within {waited_s:.1f} s: stuck in stage allocate "
            f"({problem.rstrip('.')}).",
            remedy="Run glowplug status and glowplug doctor to see why no replica can be started.",
            stage=Stage.ALLOCATE.value,
            server=server,
        )
    if newest.is_starting:
        stage = (newest.view.stage or Stage.ALLOCATE).value
        message = f"No replica of {server} got ready within {waited_s:.1f} s: stuck in stage {stage}."
    else:
        stage = Stage.FIRST_ANSWER.value
        message = f"Replica {newest.id} is ready but took no connection for {waited_s:.1f} s (stage {stage})."
    return DeadlineExceeded(
        message,
        remedy=f"See its log (glowplug logs {newest.id}), or raise startup_timeout_s.",
        stage=stage,
        server=server,
        replica_id=newest.id,
    )
