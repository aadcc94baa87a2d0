"""Several copies of one snapshot, restored at the same moment: all must become ready and answer rightly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines import Engine
from live_session import LiveSession

from glowplug.types.errors import RuntimeFailed
from glowplug.types.replica import ReplicaState, ReplicaView, StartPath

_TIMEOUT_S = 300.0


def restore_at_once(session: LiveSession, engine: Engine, runtime: str, copies: int) -> dict[str, Any]:
    """Deploy with ``copies`` replicas wanted from the start, and time each until it is ready."""
    app = f"snap-{runtime}"
    spec = engine.spec(session, app, runtime, snapshot=True)
    (server,) = spec["servers"]
    session.wait_until_zero(app)
    server["scaling"] |= {"min_replicas": copies, "max_replicas": copies}
    session.deploy_spec(spec)
    ready: list[ReplicaView] = []

    def are_ready() -> bool:
        ready[:] = [view for view in session.replicas(app) if view.state is ReplicaState.READY]
        return len(ready) >= copies

    session.wait(are_ready, _TIMEOUT_S, f"{copies} replicas at once")
    base = f"/{app}/{server['name']}"
    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(lambda _: engine.ask(session.client, base), range(2 * copies)))
    session.deploy_spec(engine.spec(session, app, runtime, snapshot=True))
    session.stop(app)
    if wrong := [answer.text for answer in answers if not engine.is_right(answer.text)]:
        raise RuntimeFailed(f"Wrong answers from {copies} copies: {wrong}")
    if cold := [view.fallback_reason for view in ready if view.path is StartPath.COLD]:
        raise RuntimeFailed(f"{len(cold)} of {copies} copies were not restored: {cold}")
    first_s = min(view.created_at for view in ready)
    result = {
        "copies": copies,
        "all_ready_s": round(max(view.ready_at or 0.0 for view in ready) - first_s, 3),
        "each_ready_s": sorted(round((view.ready_at or 0.0) - view.created_at, 3) for view in ready),
        "memory_bytes": [view.memory_bytes for view in ready],
    }
    print(f"  {runtime}: {copies} at once, all ready after {result['all_ready_s']:.2f} s", flush=True)
    return result
