"""The small parts of the engine ``ray``: the keeper on a machine, deadlines, settings, Ray's commands."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.identity.certificates import certify_node, new_authority

from glowplug.engine import embedded
from glowplug.engine.launch import Commands
from glowplug.engine.ray import head
from glowplug.engine.ray.agent import AgentSettings, JoinOrder
from glowplug.engine.ray.base import make_base
from glowplug.engine.ray.deadline import DeadlineThread
from glowplug.engine.ray.keeper import AgentKeeper
from glowplug.engine.ray.settings import RaySettings, base_environment, joining_environment, ray_token
from glowplug.engine.record import Role, is_supervised
from glowplug.identity.engine_join import read_base
from glowplug.identity.files import replace_file
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import MembershipRecord
from glowplug.types.errors import Conflict, InvalidInput, NotFound, SystemUnfit, Unavailable
from glowplug.types.paths import StateDir

from .conftest import HERE, eventually

TOKEN = f"gpj1.{'ab' * 32}.{'s' * 43}"
STARTER = (sys.executable, str(HERE / "stand_in_starter.py"))
COMMANDS = Commands(agent=(sys.executable, str(HERE / "stand_in_agent.py")))


# -- the keeper ----------------------------------------------------------------------------------------------


@pytest.fixture
def settings(state: StateDir) -> AgentSettings:
    return AgentSettings(
        name="ray-one",
        folder=str(state.root),
        control_url="http://10.0.0.1:8080",
        advertise="10.0.0.2",
        gateway_port=7443,
        environment={"GLOWPLUG_REGION": "/region", "HOME": "/elsewhere"},
    )


@pytest.fixture
def keeper(settings: AgentSettings) -> Iterator[AgentKeeper]:
    keeper = AgentKeeper(settings, starter=STARTER, look_s=0.05)
    yield keeper
    keeper.close()


def starts(state: StateDir) -> list[dict[str, Any]]:
    file = state.root / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def join(state: StateDir, name: str = "ray-one") -> None:
    """What the state directory of a machine that has joined has in it."""
    state.create()
    record = MembershipRecord(
        name=name, control_url="http://10.0.0.1:8080", listen_host="127.0.0.1", listen_port=7443,
        advertise_host="10.0.0.2",
    )  # fmt: skip
    state.identity.root.mkdir(exist_ok=True)
    replace_file(state.identity.membership, record.model_dump_json())


def test_a_machine_joins_with_a_token_that_no_listing_of_processes_shows(
    state: StateDir, keeper: AgentKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "rays-own")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keeper.join(JoinOrder(TOKEN))
    eventually(lambda: starts(state) and not keeper.report().is_busy)
    (start,) = starts(state)
    assert json.loads(start["order"]) == {
        "token": TOKEN, "control_url": "http://10.0.0.1:8080", "name": "ray-one", "advertise": "10.0.0.2",
        "gateway_port": 7443, "labels": {}, "serve": None,
    }  # fmt: skip
    assert not any(TOKEN in word for word in (*start["argv"], *start["environment"].values()))
    assert not {"RAY_AUTH_TOKEN", "OMP_NUM_THREADS"} & start["environment"].keys()
    assert start["environment"]["GLOWPLUG_REGION"] == "/region"
    assert start["environment"]["HOME"] != "/elsewhere", "what the machine says itself counts"
    assert TOKEN not in repr(JoinOrder(TOKEN))
    assert keeper.report().problem is None


def test_where_a_router_listens_is_said_by_the_machine_itself_or_else_by_the_control_plane(
    state: StateDir, settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = AgentKeeper(replace(settings, serve="0.0.0.0:8081"), starter=STARTER, look_s=0.05)
    try:
        for number, (own, serve) in enumerate({"": "0.0.0.0:8081", "off": "off"}.items(), 1):
            monkeypatch.setenv("GLOWPLUG_SERVE", own)
            keeper.join(JoinOrder(TOKEN))
            eventually(lambda number=number: len(starts(state)) == number)
            assert json.loads(starts(state)[-1]["order"])["serve"] == serve
    finally:
        keeper.close()


def test_an_order_of_an_actor_of_an_older_version_says_nothing_of_a_router(state: StateDir) -> None:
    order = {
        "control_url": "http://127.0.0.1:1", "token": "no-token", "name": "ray-one", "advertise": "127.0.0.1",
        "gateway_port": 0, "labels": {},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "glowplug.engine.ray.starter", "--state", str(state.root)],
        input=json.dumps(order), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    problem = json.loads(done.stdout)["error"]
    assert "token" in problem["message"], "it got as far as that"
    assert done.returncode == 1


def test_why_a_machine_could_not_join_is_told(state: StateDir, keeper: AgentKeeper) -> None:
    refused = Conflict("Another machine is called 'ray-one'.", remedy="Remove it.")
    (state.root / "fails").write_text(json.dumps({"error": refused.to_dict()}))
    keeper.join(JoinOrder(TOKEN))
    eventually(lambda: keeper.report().problem)
    assert keeper.report().problem == refused.to_dict()
    (state.root / "fails").write_text("Traceback")
    keeper.join(JoinOrder(TOKEN))
    eventually(lambda: (problem := keeper.report().problem) and problem["code"] == "internal")


def test_a_machine_that_has_joined_is_started_whenever_nothing_runs(
    state: StateDir, keeper: AgentKeeper
) -> None:
    assert keeper.report().node is None
    join(state)
    eventually(lambda: len(starts(state)) >= 2)
    assert {start["order"] for start in starts(state)} == {""}
    assert (keeper.report().node, keeper.report().is_kept) == ("ray-one", False)


def test_a_machine_that_does_not_start_is_tried_less_often(state: StateDir, keeper: AgentKeeper) -> None:
    state.create()
    (state.root / "fails").write_text(json.dumps({"error": NotFound("No gVisor.").to_dict()}))
    join(state)
    eventually(lambda: keeper.report().problem)
    time.sleep(0.5)
    assert len(starts(state)) <= 2


def test_what_is_stopped_is_not_started_again_until_it_is_to_join(
    state: StateDir, keeper: AgentKeeper
) -> None:
    keeper.stop()
    join(state)
    time.sleep(0.5)
    assert starts(state) == []
    keeper.join(JoinOrder(TOKEN))
    eventually(lambda: starts(state))


def test_a_keeper_adopts_what_runs_and_ends_it(
    state: StateDir, settings: AgentSettings, tmp_path: Path
) -> None:
    state.create()
    certify_node(new_authority(tmp_path), state.identity, "ray-one")
    join(state)
    embedded.up(state, port=0, role=Role.NODE, commands=COMMANDS, timeout_s=60)
    keeper = AgentKeeper(settings, starter=STARTER, look_s=0.05)
    try:
        assert keeper.report().is_kept
        time.sleep(0.3)
        assert starts(state) == []
        keeper.stop()
        assert not is_supervised(state)
        assert not keeper.report().is_kept
    finally:
        keeper.close()


def test_a_state_directory_of_the_control_plane_is_left_alone(
    state: StateDir, settings: AgentSettings
) -> None:
    from .conftest import stand_ins

    embedded.up(state, port=0, commands=stand_ins(), timeout_s=60)
    keeper = AgentKeeper(settings, starter=STARTER, look_s=0.05)
    try:
        report = keeper.report()
        assert report.problem is not None
        assert "--node-state" in report.problem["remedy"]
        keeper.stop()
        assert is_supervised(state)
    finally:
        keeper.close()


# -- deadlines -----------------------------------------------------------------------------------------------


def test_a_call_that_hangs_is_given_up_and_those_behind_it_too() -> None:
    thread, gate, made = DeadlineThread("Ray"), threading.Event(), []
    assert thread.call("adding", lambda: 1 + 1, 60.0) == 2
    with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s: waiting"):
        thread.call("waiting", gate.wait, 0.1)
    with pytest.raises(Unavailable, match="behind it"):
        thread.call("behind it", lambda: made.append("never"), 0.1)
    assert thread.stuck_s > 0.1
    gate.set()
    assert thread.call("adding", lambda: 2 + 2, 60.0) == 4
    assert made == []
    assert thread.stuck_s == 0.0


def test_errors_of_a_call_are_its_callers_even_if_they_are_timeouts() -> None:
    thread = DeadlineThread("Ray")

    def fail(error: Exception) -> None:
        raise error

    for error in (TimeoutError("its own"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)):
            thread.call("failing", lambda error=error: fail(error), 60.0)  # type: ignore[misc]


# -- settings and commands -----------------------------------------------------------------------------------


def test_settings_survive_their_file_and_a_broken_file_is_said_to_be(state: StateDir) -> None:
    state.create()
    with pytest.raises(NotFound, match="No engine"):
        RaySettings.load(state)
    settings = RaySettings(address="10.0.0.1:6379", starts_head=True, only={"pool": "gpu"}, gateway_port=0)
    settings.save(state)
    assert RaySettings.load(state) == settings
    state.engine_settings.write_text('{"version": 2}')
    with pytest.raises(SystemUnfit, match="cannot be read"):
        RaySettings.load(state)


def test_a_cluster_of_ours_has_a_token_and_another_ones_environment_is_left_alone(state: StateDir) -> None:
    state.create()
    file = ray_token(state)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text()) == 64
    assert ray_token(state).read_text() == file.read_text()
    ours = {"RAY_AUTH_TOKEN": "other", "PATH": "/bin"}
    RaySettings(address="10.0.0.1:6379", starts_head=True).prepare(ours, state)
    assert ours["RAY_AUTH_TOKEN_PATH"] == str(file)
    assert (ours["RAY_AUTH_MODE"], ours["PATH"], "RAY_AUTH_TOKEN" in ours) == ("token", "/bin", False)
    assert ours["RAY_USE_TLS"] == "1"
    others = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "other"}
    RaySettings(address="auto", starts_head=False).prepare(others, state)
    assert others == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "other"}


def test_a_machine_of_a_cluster_of_ours_is_certified_before_rays_head_is_started(state: StateDir) -> None:
    state.create()
    settings = RaySettings(address="10.0.0.1:6379", starts_head=True)
    make_base(state, settings, SystemClock())
    base = read_base(state.identity.engine)
    assert (base.address, base.host) == ("10.0.0.1:6379", "10.0.0.1")
    assert base.token == ray_token(state).read_text()
    files = state.identity.engine
    told = base_environment(files, base.token, None)
    settings.prepare(own := {}, state)
    for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"):
        assert own[name] == told[name]
        assert Path(told[name]).read_text().startswith("-----BEGIN")
    authority = files.authority_certificate.read_text()
    make_base(state, settings.model_copy(update={"address": "10.0.0.9:6379"}), SystemClock())
    assert files.authority_certificate.read_text() == authority, "machines that joined go on"


def test_ray_is_started_where_it_was_said_and_its_token_is_no_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = head.head_command("10.0.0.1:6400")
    assert {"--head", "--block", "--node-ip-address=10.0.0.1", "--port=6400"} < set(command)
    joining = head.join_command("10.0.0.1:6400", "10.0.0.2", blocks=False)
    assert {"--address=10.0.0.1:6400", "--node-ip-address=10.0.0.2"} < set(joining)
    assert "--block" not in joining
    assert joining_environment("t").items() >= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}.items()
    assert joining_environment("t", "off")["GLOWPLUG_SERVE"] == "off"
    assert "GLOWPLUG_SERVE" not in joining_environment("t")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    told = joining_environment(None)
    assert (told["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in told) == ("disabled", False)


@pytest.mark.parametrize(
    "address", ["", "10.0.0.1", "ray://10.0.0.1:10001", "10.0.0.1:x", "a:1/x", "a:99999"]
)
def test_what_is_no_address_of_a_ray_cluster_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="not the address of a Ray cluster"):
        head.split_address(address)
    assert head.split_address("[fd00::1]:6379") == ("fd00::1", 6379)
