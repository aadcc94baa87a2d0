"""What the DaemonSet runs on each machine: ``python -m glowplug.engine.kubernetes``.

The machine joins, each time that its pod starts, as its address is another one each time; then agent, gateway
and router run in the foreground until the pod ends. What it is told comes from the environment that the chart
sets. A control plane that is away is waited for: in a pod that has just begun there is nothing yet that could
serve.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from glowplug.engine import embedded
from glowplug.engine.join import Wanted, join
from glowplug.engine.kubernetes.access import find_access
from glowplug.engine.kubernetes.api import KubernetesApi
from glowplug.engine.kubernetes.names import ENGINE_LABEL, NODES, node_name
from glowplug.engine.launch import Beside
from glowplug.engine.record import Role
from glowplug.types.cluster import MembershipRecord
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound
from glowplug.types.paths import StateDir

log = logging.getLogger(__name__)

JOIN_DEADLINE_S = 600.0
_RETRY_S = 3.0
_TOPOLOGY = {"zone": "topology.kubernetes.io/zone", "region": "topology.kubernetes.io/region"}
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_FINAL = (InvalidInput, Conflict)


def run_machine(environment: Mapping[str, str]) -> int:
    """Join and serve. Returns the exit code of what served. Raises what no waiting helps against."""
    state = StateDir.from_environment()
    record = _joined(state, environment)

    def announce(_address: embedded.Address) -> None:
        log.info("this machine is node %s of the cluster at %s", record.name, record.control_url)
        if record.serve is not None:
            log.info("its router serves all apps at %s", record.serve)

    where = (state, record.listen_host, record.listen_port)
    router = Beside(record.serve) if record.serve else None
    return embedded.run_foreground(*where, on_ready=announce, role=Role.NODE, beside=router)


def _joined(state: StateDir, environment: Mapping[str, str]) -> MembershipRecord:
    machine = _given(environment, "GLOWPLUG_MACHINE")
    address = _given(environment, "GLOWPLUG_CONTROL")
    token_file = Path(_given(environment, "GLOWPLUG_JOIN_TOKEN_FILE"))
    wanted = Wanted(
        name=node_name(machine),
        listen=environment.get("GLOWPLUG_LISTEN", "0.0.0.0:7443"),
        advertise=_given(environment, "GLOWPLUG_ADVERTISE"),
        labels={ENGINE_LABEL: "kubernetes", **labels_of(machine)},
        serve=environment.get("GLOWPLUG_SERVE"),
    )

    def attempt() -> MembershipRecord:
        return join(state, address, _token(token_file), wanted)

    return until_joined(attempt, time.monotonic, time.sleep)


def until_joined(
    attempt: Callable[[], MembershipRecord],
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> MembershipRecord:
    """Try again while it may pass: no token yet, nobody there, a token that is being renewed."""
    deadline_s = monotonic() + JOIN_DEADLINE_S
    said = ""
    while True:
        try:
            return attempt()
        except GlowplugError as error:
            if isinstance(error, _FINAL) or monotonic() >= deadline_s:
                raise
            if error.message != said:
                log.warning("this machine has not joined yet: %s", error)
                said = error.message
        sleep(_RETRY_S)


def labels_of(machine: str) -> dict[str, str]:
    """Where the machine is, as far as Kubernetes tells: copies are spread over zones."""
    try:
        with KubernetesApi(find_access()) as api:
            labels = api.get(NODES, machine)["metadata"].get("labels") or {}
    except GlowplugError as error:
        log.warning("the zone of this machine is not known: %s", error)
        return {}
    found = {ours: str(labels.get(theirs, "")) for ours, theirs in _TOPOLOGY.items()}
    return {name: value for name, value in found.items() if _LABEL_VALUE.fullmatch(value)}


def _token(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except OSError:
        text = ""
    if not text:
        raise NotFound(
            "There is no join token yet.",
            remedy="The operator writes it into the chart's Secret: see its log.",
            path=str(file),
        )
    return text


def _given(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InvalidInput(f"{name} is not set.", remedy="The chart's DaemonSet sets it.")
    return value
