"""A control plane whose machine is a node, too: its supervisor keeps a gateway beside it."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import pytest

from glowplug.engine import embedded
from glowplug.engine.join import own_node
from glowplug.engine.launch import Beside, Commands
from glowplug.engine.processes import processes_of
from glowplug.identity.membership import read_membership
from glowplug.types.errors import Conflict, InvalidInput
from glowplug.types.paths import StateDir

from .conftest import HERE, eventually
from .test_node_role import gateway_pid

COMMANDS = Commands(agent=(sys.executable, str(HERE / "stand_in_agent.py")))


@pytest.mark.nightly
def test_up_keeps_a_gateway_beside_the_control_plane(state: StateDir) -> None:
    beside = Beside("127.0.0.1:0", ("alpha", "127.0.0.1:7443"))
    up = partial(embedded.up, state, port=0, commands=COMMANDS, timeout_s=60)
    address = up(beside=beside)
    assert embedded.status(state).is_up
    record = read_membership(state.identity)
    assert record is not None
    assert (record.name, record.control_url) == ("alpha", address.url)
    assert up() == up(beside=beside) == address
    with pytest.raises(Conflict, match="already runs"):
        up(beside=Beside("127.0.0.1:1", beside.node))
    killed = gateway_pid(state)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: gateway_pid(state) not in (0, killed))
    assert embedded.down(state, commands=COMMANDS)
    assert processes_of(state) == []


def test_where_a_machine_is_reached_must_be_known() -> None:
    with pytest.raises(InvalidInput, match="--advertise"):
        own_node("0.0.0.0:7443", None, "alpha")
    assert own_node("0.0.0.0:7443", "10.0.0.1", "alpha").node == ("alpha", "10.0.0.1:7443")
    assert own_node("[::1]:7443", None, "alpha") == Beside("[::1]:7443", ("alpha", "[::1]:7443"))
    with pytest.raises(InvalidInput):
        own_node("10.0.0.1:7443", None, "No Name")
