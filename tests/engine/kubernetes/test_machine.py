"""What the DaemonSet runs: join as this machine, with what the chart says, and wait while it may pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.kubernetes.mock_cluster import MockCluster

from glowplug.engine.kubernetes import machine
from glowplug.engine.kubernetes.machine import JOIN_DEADLINE_S, labels_of, run_machine, until_joined
from glowplug.engine.launch import Beside
from glowplug.engine.record import Role
from glowplug.types.clock import ManualClock
from glowplug.types.cluster import MembershipRecord
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound, Unauthorized, Unavailable
from glowplug.types.paths import StateDir

RECORD = MembershipRecord(
    name="n1",
    control_url="http://control",
    listen_host="0.0.0.0",
    listen_port=7443,
    advertise_host="10.0.0.1",
)


def attempts(clock: ManualClock, *outcomes: GlowplugError | MembershipRecord) -> MembershipRecord:
    """What comes of it when joining ends so and so."""
    remaining = iter(outcomes)

    def attempt() -> MembershipRecord:
        outcome = next(remaining)
        if isinstance(outcome, GlowplugError):
            raise outcome
        return outcome

    return until_joined(attempt, clock.monotonic, clock.advance)


def test_what_may_pass_is_waited_for(clock: ManualClock) -> None:
    passing = (NotFound("No token yet."), Unavailable("Away."), Unauthorized("The token is over."))
    assert attempts(clock, *passing, *passing, RECORD) == RECORD


@pytest.mark.parametrize("error", [Conflict("Another version."), InvalidInput("No name.")])
def test_what_does_not_pass_is_said_at_once(clock: ManualClock, error: GlowplugError) -> None:
    with pytest.raises(type(error)):
        attempts(clock, error)


def test_nobody_waits_for_ever(clock: ManualClock) -> None:
    began_s = clock.monotonic()
    with pytest.raises(Unavailable):
        attempts(clock, *[Unavailable("Away.") for _ in range(1000)])
    assert JOIN_DEADLINE_S <= clock.monotonic() - began_s < JOIN_DEADLINE_S + 10.0


@pytest.fixture
def kubeconfig(cluster: MockCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "config"
    file.write_text(
        "{current-context: x, contexts: [{name: x, context: {cluster: x, user: x}}], "
        f"clusters: [{{name: x, cluster: {{server: '{cluster.access.server}'}}}}], "
        "users: [{name: x, user: {}}]}"
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    return file


def test_zone_and_region_are_what_kubernetes_says(cluster: MockCluster, kubeconfig: Path) -> None:
    labels = {"topology.kubernetes.io/zone": "eu-1a", "topology.kubernetes.io/region": "not / usable"}
    cluster.answer("get", "/api/v1/nodes/n1", 200, {"metadata": {"name": "n1", "labels": labels}})
    assert labels_of("n1") == {"zone": "eu-1a"}
    assert labels_of("nobody") == {}


def test_a_machine_joins_as_the_chart_says_and_serves(
    cluster: MockCluster, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[object] = []
    served: list[object] = []

    def join(state: StateDir, address: str, token: str, wanted: object) -> MembershipRecord:
        joined.extend([state.root, address, token, wanted])
        return RECORD

    def run_foreground(state: StateDir, host: str, port: int, **options: object) -> int:
        served.extend([host, port, options["role"], options["beside"]])
        return 7

    monkeypatch.setattr(machine, "join", join)
    monkeypatch.setattr(machine.embedded, "run_foreground", run_foreground)
    monkeypatch.setenv("GLOWPLUG_STATE", str(tmp_path / "state"))
    (tmp_path / "token").write_text("gpj1.x\n")
    environment = {
        "GLOWPLUG_MACHINE": "ip-10-0-0-1.internal",
        "GLOWPLUG_CONTROL": "http://control:8080",
        "GLOWPLUG_ADVERTISE": "10.0.0.1",
        "GLOWPLUG_JOIN_TOKEN_FILE": str(tmp_path / "token"),
    }
    assert run_machine(environment) == 7
    root, address, token, wanted = joined
    assert (root, address, token) == (tmp_path / "state", "http://control:8080", "gpj1.x")
    assert isinstance(wanted, machine.Wanted)
    assert wanted.name is not None
    assert wanted.name.startswith("ip-10-0-0-1-")
    assert (wanted.advertise, wanted.labels) == ("10.0.0.1", {"engine": "kubernetes"})
    assert wanted.serve is None
    assert served == ["0.0.0.0", 7443, Role.NODE, None]
    del environment["GLOWPLUG_MACHINE"]
    with pytest.raises(InvalidInput, match="GLOWPLUG_MACHINE"):
        run_machine(environment)


@pytest.mark.parametrize(("serve", "beside"), [("0.0.0.0:8080", Beside("0.0.0.0:8080")), ("off", None)])
def test_its_router_serves_where_the_chart_says(
    cluster: MockCluster,
    kubeconfig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serve: str,
    beside: Beside | None,
) -> None:
    def join(_state: StateDir, _address: str, _token: str, wanted: machine.Wanted) -> MembershipRecord:
        return RECORD.model_copy(update={"serve": None if wanted.serve == "off" else wanted.serve})

    served: list[object] = []
    monkeypatch.setattr(machine, "join", join)
    monkeypatch.setattr(
        machine.embedded, "run_foreground", lambda *_, **options: served.append(options["beside"]) or 0
    )
    monkeypatch.setenv("GLOWPLUG_STATE", str(tmp_path / "state"))
    (tmp_path / "token").write_text("gpj1.x")
    run_machine(
        {
            "GLOWPLUG_MACHINE": "n1",
            "GLOWPLUG_CONTROL": "http://control:8080",
            "GLOWPLUG_ADVERTISE": "10.0.0.1",
            "GLOWPLUG_JOIN_TOKEN_FILE": str(tmp_path / "token"),
            "GLOWPLUG_SERVE": serve,
        }
    )
    assert served == [beside]
