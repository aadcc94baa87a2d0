"""Machines of one's own by a real SSH server: reached, checked, lost when it ends; and what is refused."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.pool.planner.test_joining import Machine, Nodes
from tests.ports import free_port

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.planner.joining import NodeJoiner
from glowplug.pool.providers.health import ShellInspector
from glowplug.pool.providers.own import OwnProvider
from glowplug.pool.providers.port import MachineState, Order, RequestRefused
from glowplug.pool.run_settings import JoinSettings, OwnEntry, OwnMachine
from glowplug.types.errors import SystemUnfit, Unavailable

SSHD = Path("/usr/sbin/sshd")
POOL = PoolId("own", "rack-1", "box", Purchase.OWN)
CALL_S = 60.0

needs_sshd = pytest.mark.skipif(
    not (SSHD.exists() and os.geteuid() == 0 and shutil.which("ssh")),
    reason="needs root and OpenSSH's server",
)


def order(number: int, avoid: tuple[str, ...] = ()) -> Order:
    return Order(f"test-0123abcd-{number}", "test", POOL, "cpu", 1, avoid)


def entry(folder: Path, port: int, *hosts: str) -> OwnEntry:
    machines = tuple(OwnMachine(host=host, region="rack-1", machine="box", port=port) for host in hosts)
    return OwnEntry(
        kind="own", machines=machines, ssh_key=folder / "client", known_hosts=folder / "known_hosts"
    )


@contextmanager
def ssh_server(folder: Path, port: int) -> Iterator[None]:
    """OpenSSH's, on this machine, for the key in ``folder``."""
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "client"):
        if not (folder / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
            )
    kind, key, *_comment = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    options = [
        f"ListenAddress=127.0.0.1:{port}", f"HostKey={folder / 'host'}", "StrictModes=no", "UsePAM=no",
        f"AuthorizedKeysFile={folder / 'authorized'}", "PermitRootLogin=prohibit-password", "PidFile=none",
    ]  # fmt: skip
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", "/dev/null", *(f"-o{option}" for option in options)],
        stderr=(folder / "sshd.log").open("ab"),
    )
    try:
        deadline_s = time.monotonic() + 60
        while not answers(port):
            assert server.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(60)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 10.0).close()
    except OSError:
        return False
    return True


@needs_sshd
def test_a_machine_is_reached_checked_and_not_listed_any_more_when_it_is_gone(tmp_path: Path) -> None:
    port = free_port()
    own = OwnProvider("own", entry(tmp_path, port, "127.0.0.1"), tmp_path / "own.json")
    own.request(order(1), CALL_S)
    (waiting,) = own.machines("test", CALL_S)
    assert waiting.state is MachineState.STARTING
    with ssh_server(tmp_path, port):
        (found,) = own.machines("test", CALL_S)
        assert (found.state, found.address, found.hardware) == (MachineState.UP, "127.0.0.1", "127.0.0.1")
        shell = own.shell_of(found.machine, found.address)
        assert shell.run("echo $((6 * 7)); exit 3", CALL_S).out == "42\n"
        inspector = ShellInspector(own.shell_of)
        assert inspector.inspect(found.machine, found.address, "cpu", 1, CALL_S).is_fit
        if not Path("/proc/driver/nvidia/version").exists():
            assert inspector.inspect(found.machine, found.address, "L4", 1, CALL_S).reason.startswith(
                "gpus: "
            )
    assert own.machines("test", CALL_S) == []
    assert not ShellInspector(own.shell_of).inspect(found.machine, "127.0.0.1", "cpu", 1, CALL_S).is_fit


@needs_sshd
def test_a_machine_becomes_a_node_over_ssh_and_its_token_goes_in_by_standard_input(tmp_path: Path) -> None:
    port = free_port()
    own = OwnProvider("own", entry(tmp_path, port, "127.0.0.1"), tmp_path / "own.json")
    own.request(order(1), CALL_S)
    cluster, machine = Nodes(), Machine(tmp_path)
    cluster.heard.add(order(1).id)
    joining = JoinSettings(
        control="10.0.0.1:8080", boot=f"PATH={tmp_path}:$PATH; GLOWPLUG_STATE={tmp_path}/state"
    )
    with ssh_server(tmp_path, port):
        (found,) = own.machines("test", CALL_S)
        shell = own.shell_of(found.machine, found.address)
        NodeJoiner(joining, cluster).join(shell, found.order, found.pool, {})
        NodeJoiner(joining, cluster).leave(lambda: shell, found.order)
    labels = "--label pool=own.rack-1.box.own --label zone=own.rack-1"
    assert machine.calls == [
        "down token=gpj1.secret",
        f"cluster join 10.0.0.1:8080 --name test-0123abcd-1 {labels} token=gpj1.secret",
    ], "without its boot the machine has no glowplug that could end"
    assert cluster.removed == [found.order]


@needs_sshd
def test_a_host_whose_key_is_not_known_is_not_trusted(tmp_path: Path) -> None:
    port = free_port()
    own = OwnProvider("own", entry(tmp_path, port, "127.0.0.1"), tmp_path / "own.json")
    with ssh_server(tmp_path, port):
        (tmp_path / "known_hosts").write_text("")
        with pytest.raises(Unavailable, match="cannot be reached by SSH"):
            own.shell_of("", "127.0.0.1").run("true", CALL_S)


def test_hardware_to_avoid_is_not_given_out_and_the_refusal_says_so(tmp_path: Path) -> None:
    own = OwnProvider("own", entry(tmp_path, 1, "127.0.0.1", "127.0.0.2"), tmp_path / "own.json")
    own.request(order(1, avoid=("127.0.0.1",)), CALL_S)
    (found,) = own.machines("test", CALL_S)
    assert found.address == "127.0.0.2"
    with pytest.raises(RequestRefused, match=r"of 2 machines none is free \(1 were found unfit\)"):
        own.request(order(2, avoid=("127.0.0.1",)), CALL_S)


def test_a_machine_that_left_the_list_is_not_listed(tmp_path: Path) -> None:
    OwnProvider("own", entry(tmp_path, 1, "127.0.0.1"), tmp_path / "own.json").request(order(1), CALL_S)
    assert (
        OwnProvider("own", entry(tmp_path, 1, "127.0.0.2"), tmp_path / "own.json").machines("test", 5.0) == []
    )


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', '{"claims": [{"host": 3}]}'])
def test_a_file_of_claims_that_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(SystemUnfit, match="cannot be used"):
        OwnProvider("own", entry(tmp_path, 1, "127.0.0.1"), tmp_path / "own.json")
