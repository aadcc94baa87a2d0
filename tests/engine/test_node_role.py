"""A machine that is a node: its supervisor keeps a gateway in front of the agent, and no control plane."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
from tests.identity.certificates import certify_node, new_authority

from glowplug.cli.session import Session
from glowplug.engine import embedded
from glowplug.engine.launch import Beside, Commands
from glowplug.engine.processes import processes_of
from glowplug.engine.record import Role
from glowplug.identity.contexts import TUNNEL_PROTOCOL, control_context
from glowplug.types.cluster import MembershipRecord
from glowplug.types.errors import Conflict, Unavailable
from glowplug.types.paths import IdentityDir, StateDir
from glowplug.types.tunnel import check_answer, opening

from .conftest import HERE, eventually

# The real gateway: it is small. The agent is a stand-in.
COMMANDS = Commands(agent=(sys.executable, str(HERE / "stand_in_agent.py")))


def gateway_pid(state: StateDir) -> int:
    found = [process.pid for process in processes_of(state) if "glowplug.node.gateway" in process.argv]
    return found[0] if found else 0


async def is_refused_by_name(control: IdentityDir, address: embedded.Address) -> bool:
    """Whether a gateway answers, and knows no such replica."""
    context = control_context(control, [TUNNEL_PROTOCOL])
    reader, writer = await asyncio.open_connection(
        address.reached_at, address.port, ssl=context, server_hostname="beta"
    )
    writer.write(opening("nobody"))
    try:
        with pytest.raises(Exception, match="No replica nobody"):
            check_answer(await reader.readline())
    finally:
        writer.close()
    return True


def test_up_keeps_agent_and_gateway_and_down_ends_both(state: StateDir, tmp_path: Path) -> None:
    state.create()
    control = IdentityDir(tmp_path)
    certify_node(new_authority(tmp_path), state.identity, "beta")
    address = embedded.up(state, port=0, role=Role.NODE, commands=COMMANDS, timeout_s=60)
    assert address.role is Role.NODE
    assert embedded.status(state).is_up
    assert asyncio.run(is_refused_by_name(control, address))

    killed = gateway_pid(state)
    os.kill(killed, signal.SIGKILL)
    # Its listening socket is the supervisor's: who comes meanwhile waits.
    assert asyncio.run(is_refused_by_name(control, address))
    assert gateway_pid(state) not in (0, killed)

    with pytest.raises(Conflict, match="a node of a cluster"):
        embedded.up(state, port=0, commands=COMMANDS)
    with pytest.raises(Unavailable, match="control plane is elsewhere"):
        Session(state).find_url()
    assert embedded.down(state, commands=COMMANDS)
    assert processes_of(state) == []


def router_pid(state: StateDir) -> int:
    found = [process.pid for process in processes_of(state) if "glowplug.control.edge" in process.argv]
    return found[0] if found else 0


@pytest.mark.nightly
def test_up_keeps_a_router_beside_the_gateway_and_its_socket(state: StateDir, tmp_path: Path) -> None:
    state.create()
    certify_node(new_authority(tmp_path), state.identity, "beta")
    record = MembershipRecord(
        name="beta", control_url="http://127.0.0.1:1", listen_host="127.0.0.1", listen_port=7443,
        advertise_host="127.0.0.1",
    )  # fmt: skip
    state.identity.membership.write_text(record.model_dump_json())
    up = partial(
        embedded.up,
        state,
        port=0,
        role=Role.NODE,
        beside=Beside("127.0.0.1:0"),
        commands=COMMANDS,
        timeout_s=60,
    )
    address = up()
    assert address.router_url is not None
    assert up() == address, "it runs already"
    killed = router_pid(state)
    os.kill(killed, signal.SIGKILL)
    # Its listening socket is the supervisor's: who comes meanwhile waits.
    assert httpx.get(f"{address.router_url}/healthz", timeout=60, trust_env=False).json()["role"] == "router"
    assert router_pid(state) not in (0, killed)
    assert gateway_pid(state)
    assert embedded.down(state, commands=COMMANDS)
    assert processes_of(state) == []


def test_a_gateway_without_a_certificate_is_said_to_be_the_problem(state: StateDir) -> None:
    with pytest.raises(Exception, match="gateway did not answer") as raised:
        embedded.up(state, port=0, role=Role.NODE, commands=COMMANDS, timeout_s=3)
    assert any("certificate" in line for line in raised.value.details["tail"])  # type: ignore[attr-defined]
    eventually(lambda: processes_of(state) == [])
