"""The real Ray. The only module that imports it, and late: a quarter of a second and 100 MB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from glowplug.engine.ray.actor import AgentActor
from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.engine.ray.cluster import RayNode
from glowplug.engine.ray.deadline import DeadlineThread
from glowplug.engine.ray.settings import NAMESPACE
from glowplug.types.errors import GlowplugError, SystemUnfit, Unavailable

T = TypeVar("T")

CONNECT_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 8.0
REPORT_TIMEOUT_S = 5.0
_DRAIN_TIMEOUT_S = 30.0
_A_LITTLE = 0.001
_CHIP = "accelerator_type:"


def actor_name(node_id: str) -> str:
    """What the actor of a Ray node is called, in the namespace ``glowplug``."""
    return f"glowplug-agent-{node_id}"


class ConnectedRay:
    """See :class:`~glowplug.engine.ray.cluster.RayCluster`. One per process, as Ray's driver is."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._thread = DeadlineThread("Ray")
        self._own: str | None = None
        self._addresses: dict[str, str] = {}

    @property
    def stuck_s(self) -> float:
        """How long a call that was given up has been under way."""
        return self._thread.stuck_s

    def close(self) -> None:
        """Leave the cluster. Actors are detached: they stay."""
        if self._own is not None:
            self._own = None
            self._thread.call("leaving", lambda: _ray().shutdown(), CALL_TIMEOUT_S)

    def own_node(self) -> str:
        """The id of the Ray node on this machine; connects first."""
        if self._own is None:
            self._own = self._ask("connecting", self._connect, CONNECT_TIMEOUT_S)
        return self._own

    def nodes(self) -> list[RayNode]:
        """All that Ray tells of, dead ones too."""
        self.own_node()
        rows = self._ask("its nodes", lambda: list(_ray().nodes()))
        found = [_node(row) for row in rows]
        self._addresses = {node.id: node.address for node in found}
        return found

    def reports(self, wanted: Mapping[str, AgentSettings]) -> dict[str, AgentReport | GlowplugError]:
        """What the actors on these nodes say; those that are missing are made, with these settings."""
        self.own_node()
        patience_s = REPORT_TIMEOUT_S + CALL_TIMEOUT_S
        return self._ask("its agents", lambda: self._reports(wanted), patience_s)

    def join(self, node_id: str, order: JoinOrder) -> None:
        """Have the actor join. Returns when it knows, not when it has."""
        self.own_node()

        def join() -> None:
            handle = _ray().get_actor(actor_name(node_id), namespace=NAMESPACE)
            _ray().get(handle.join.remote(order), timeout=REPORT_TIMEOUT_S)

        self._ask("an agent that is to join", join)

    def stop_agents(self, node_ids: Sequence[str], timeout_s: float) -> dict[str, GlowplugError | None]:
        """End these agents, all at once; what kept some from ending. Actors stay."""
        self.own_node()
        patience_s = timeout_s + CALL_TIMEOUT_S
        return self._ask("agents that are to end", lambda: self._stop(node_ids, timeout_s), patience_s)

    def kill_actor(self, node_id: str) -> None:
        """Let the actor end, for good. What it started goes on. Quiet where there is none."""
        self.own_node()

        def kill() -> None:
            try:
                handle = _ray().get_actor(actor_name(node_id), namespace=NAMESPACE)
            except ValueError:
                return
            _ray().kill(handle, no_restart=True)

        self._ask("an actor that is to end", kill)

    def request(self, bundles: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> None:
        """All that the autoscaler is to have room for, from now on; each on a node with these labels."""
        self.own_node()

        def request() -> None:
            from ray.autoscaler.sdk import request_resources

            selectors = [dict(labels) for _ in bundles] if labels and bundles else None
            request_resources(bundles=[dict(one) for one in bundles], bundle_label_selectors=selectors)

        self._ask("its autoscaler", request)

    def drain(self, node_id: str, why: str) -> None:
        """The node is about to leave: Ray puts nothing new there. It cannot be taken back."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self._address,
            "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DRAIN_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _away(f"`ray drain-node` did not end within {_DRAIN_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            raise _away(done.stderr.strip()[-300:] or f"`ray drain-node`: exit code {done.returncode}")

    # -- on Ray's thread -------------------------------------------------------------------------------------

    def _connect(self) -> str:
        ray = _ray()
        if not ray.is_initialized():
            ray.init(
                address=self._address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
        return str(ray.get_runtime_context().get_node_id())

    def _reports(self, wanted: Mapping[str, AgentSettings]) -> dict[str, AgentReport | GlowplugError]:
        ray = _ray()
        found: dict[str, AgentReport | GlowplugError] = {}
        asked = {}
        for node_id, settings in wanted.items():
            try:
                asked[node_id] = self._actor(node_id, settings).report.remote()
            except _failures() as error:
                found[node_id] = _away(_first_line(error))
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=REPORT_TIMEOUT_S)
        return found | {node_id: _answer(reference) for node_id, reference in asked.items()}

    def _actor(self, node_id: str, settings: AgentSettings) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A little of what every node has of itself: it is bound to this node, and the autoscaler sees a node
        # in use.
        of_the_node = f"node:{self._addresses.get(node_id, settings.advertise)}"
        return (
            _ray()
            .remote(AgentActor)
            .options(
                name=actor_name(node_id),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources={of_the_node: _A_LITTLE},
                max_restarts=-1,
                max_concurrency=4,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(settings)
        )

    def _stop(self, node_ids: Sequence[str], timeout_s: float) -> dict[str, GlowplugError | None]:
        ray = _ray()
        ended: dict[str, GlowplugError | None] = {}
        asked = {}
        for node_id in node_ids:
            try:
                handle = ray.get_actor(actor_name(node_id), namespace=NAMESPACE)
            except ValueError:
                ended[node_id] = None  # none was ever made, or it was killed after its agent had ended
                continue
            asked[node_id] = handle.stop.remote()
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
        for node_id, reference in asked.items():
            answer = _answer(reference)
            ended[node_id] = answer if isinstance(answer, GlowplugError) else None
        return ended

    def _ask(self, what: str, function: Callable[[], T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        try:
            return self._thread.call(what, function, timeout_s)
        except _failures() as error:
            raise _away(f"{what}: {_first_line(error)}") from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SystemUnfit(
            "Ray is not installed here.", remedy="Install it with Glowplug: pip install 'glowplug[ray]'."
        ) from error
    return ray


def _failures() -> tuple[type[Exception], ...]:
    """What Ray raises when it is away or in trouble; its own errors only, once it could be loaded."""
    errors = sys.modules.get("ray.exceptions")
    known = (errors.RayError,) if errors is not None else ()
    return (*known, ConnectionError, OSError, RuntimeError, ValueError)


def _answer(reference: Any) -> Any:
    """What came of a call, or why nothing did."""
    ray = _ray()
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return _away("the actor does not answer")
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, GlowplugError) else _away(_first_line(error))
    except ray.exceptions.RayError as error:
        return _away(_first_line(error))


def _away(words: str) -> Unavailable:
    return Unavailable(
        f"Ray: {words}.",
        remedy="Is its head up (`ray status`), and is Glowplug of this version installed on all its nodes?",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _node(row: Mapping[str, Any]) -> RayNode:
    resources = row.get("Resources") or {}
    chips = [name.removeprefix(_CHIP) for name in resources if name.startswith(_CHIP)]
    return RayNode(
        id=row["NodeID"],
        name=row.get("NodeName") or row["NodeManagerAddress"],
        address=row["NodeManagerAddress"],
        is_alive=bool(row["Alive"]),
        why=str(row.get("DeathReasonMessage") or "")[:300],
        cpus=float(resources.get("CPU", 0.0)),
        memory_bytes=int(resources.get("memory", 0)),
        gpus=int(resources.get("GPU", 0)),
        gpu_chip=chips[0] if chips else None,
        labels=dict(row.get("Labels") or {}),
    )
