"""Simulated machines that stand: real namespaces, real commands in them, and nothing left of them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.hosted import HostedInspector, HostedProvider
from glowplug.pool.providers.namespaces import NamespaceHosts
from glowplug.pool.providers.port import MachineState, Order, Sighting
from glowplug.pool.providers.simulated import Market, SimulatedProvider
from glowplug.types.errors import DeadlineExceeded, NotFound, ResourceExhausted

POOL = PoolId("here", "r", "m", Purchase.SPOT)
CALL_S = 60.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")


@pytest.fixture
def network() -> IPv4Network:
    """Of its own: several tests run at once."""
    block = secrets.randbelow(1 << 13) * 8
    return IPv4Network(f"10.217.{block >> 8}.{block & 255}/29")


@pytest.fixture
def hosts(tmp_path: Path, network: IPv4Network) -> Iterator[NamespaceHosts]:
    found = NamespaceHosts(tmp_path / "m-here", network)
    yield found
    for machine in found.running():
        found.end(machine)
    assert not Path(f"/sys/class/net/{found.bridge}").exists()


def pings(hosts: NamespaceHosts, machine: str, address: str) -> bool:
    """Whether a TCP connection from the machine to a closed port of ``address`` is refused, as by a host."""
    script = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/9' 2>&1 || :"
    return "refused" in hosts.shell_of(machine, "").run(script, CALL_S).out


def test_a_machine_has_an_address_a_state_directory_and_a_cable_of_its_own(hosts: NamespaceHosts) -> None:
    first, second = hosts.start("here-1"), hosts.start("here-2")
    assert first != second
    assert hosts.start("here-1") == first, "it stands"
    shell = hosts.shell_of("here-1", first)
    script = "read -r word; echo $word; ip -4 -o addr show eth0; echo $GLOWPLUG_STATE; command -v glowplug"
    ran = shell.run(script, CALL_S, "hi\n")
    word, interface, state = ran.out.splitlines()[:3]
    assert (ran.code, word) == (0, "hi")
    assert f" {first}/29 " in interface
    assert state.endswith("/here-1/s")
    assert pings(hosts, "here-1", second)
    assert pings(hosts, "here-1", str(hosts.gateway)), "there is the control plane"
    hosts.end("here-1")
    hosts.end("here-1")
    with pytest.raises(NotFound):
        hosts.shell_of("here-1", first)
    assert hosts.running() == ["here-2"]


def test_another_process_finds_them_and_mends_what_was_half_made(
    hosts: NamespaceHosts, tmp_path: Path, network: IPv4Network
) -> None:
    address = hosts.start("here-1")
    again = NamespaceHosts(tmp_path / "m-here", network)
    assert (again.running(), again.start("here-1")) == (["here-1"], address)
    (tmp_path / "m-here" / "here-1" / "host.json").unlink()
    assert again.start("here-1") == address, "its namespace is made anew"
    (tmp_path / "m-here" / "here-3").mkdir()
    again.end("here-3")
    assert again.running() == ["here-1"]


def test_when_all_addresses_are_given_out_it_says_so(hosts: NamespaceHosts) -> None:
    for number in range(5):  # of eight: the network's, ours, and that of all
        hosts.start(f"here-{number}")
    with pytest.raises(ResourceExhausted, match="given out"):
        hosts.start("here-9")
    hosts.end("here-9")


def provider(hosts: NamespaceHosts) -> tuple[SimulatedProvider, HostedProvider]:
    paper = SimulatedProvider("here", time.time, Market(lead_time_s=0.2, lead_time_spread=0.0))
    return paper, HostedProvider(paper, hosts)


def until_up(hosted: HostedProvider) -> Sighting:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for sighting in hosted.machines("test", CALL_S):
            if sighting.state is MachineState.UP:
                return sighting
        time.sleep(0.05)
    raise AssertionError("not up")


def test_a_machine_stands_while_it_is_up_and_its_check_runs_on_it(hosts: NamespaceHosts) -> None:
    paper, hosted = provider(hosts)
    hosted.request(Order("test-0123abcd-1", "test", POOL, "cpu", 1), CALL_S)
    assert hosts.running() == []
    found = until_up(hosted)
    assert hosts.running() == [found.machine]
    inspector = HostedInspector(paper, hosts)
    assert inspector.inspect(found.machine, found.address, "cpu", 1, CALL_S).is_fit
    hosted.terminate(found.machine, CALL_S)
    assert hosts.running() == []
    assert not inspector.inspect(found.machine, found.address, "cpu", 1, CALL_S).is_fit
    assert [one.state for one in hosted.machines("test", CALL_S)] == [MachineState.GONE]


def test_one_that_is_taken_away_or_forgotten_is_unmade_with_what_runs_there(
    hosts: NamespaceHosts, tmp_path: Path
) -> None:
    paper, hosted = provider(hosts)
    hosted.request(Order("test-0123abcd-1", "test", POOL, "cpu", 1), CALL_S)
    found = until_up(hosted)
    hosts.start("of-another-life")
    paper.take(found.machine)
    (gone,) = hosted.machines("test", CALL_S)
    assert (gone.state, hosts.running()) == (MachineState.GONE, [])


def test_one_that_cannot_be_ended_silences_no_other_and_is_tried_again(
    hosts: NamespaceHosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, hosted = provider(hosts)
    hosted.request(Order("test-0123abcd-1", "test", POOL, "cpu", 1), CALL_S)
    found = until_up(hosted)
    hosts.start("of-another-life")
    busy = tmp_path / "m-here" / "of-another-life" / "busy"
    busy.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", busy], check=True)
    try:
        assert hosted.machines("test", CALL_S) == [found]
        assert "of-another-life cannot be ended" in caplog.text
        assert "of-another-life" in hosts.running()
    finally:
        subprocess.run(["umount", busy], check=True)
    assert hosted.machines("test", CALL_S) == [found]
    assert hosts.running() == [found.machine]


def test_a_listing_that_takes_long_ends_nothing_that_came_up_meanwhile(
    hosts: NamespaceHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, hosted = provider(hosts)
    hosted.request(Order("test-0123abcd-1", "test", POOL, "cpu", 1), CALL_S)
    looks, let_go = threading.Event(), threading.Event()
    running = hosts.running

    def slowly() -> list[str]:
        looks.set()
        assert let_go.wait(CALL_S)
        return running()

    with monkeypatch.context() as patched:
        patched.setattr(hosts, "running", slowly)
        first = threading.Thread(target=hosted.machines, args=("test", CALL_S))
        first.start()
        assert looks.wait(CALL_S)
    try:
        with pytest.raises(DeadlineExceeded, match="Another listing"):
            hosted.machines("test", 0.5)  # it would be up by now
    finally:
        let_go.set()
        first.join(CALL_S)
    found = until_up(hosted)
    assert running() == [found.machine]


def test_what_runs_on_a_machine_does_not_outlive_a_command_that_takes_too_long(hosts: NamespaceHosts) -> None:
    shell = hosts.shell_of("here-1", hosts.start("here-1"))
    mark = f"7{secrets.randbelow(10**6):06}"
    with pytest.raises(DeadlineExceeded):
        shell.run(f"sleep {mark}", 0.5)
    found = subprocess.run(["pgrep", "-f", f"^sleep {mark}"], capture_output=True, text=True, check=False)
    assert found.stdout == ""
