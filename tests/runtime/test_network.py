"""Network namespaces of replicas, made for real."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glowplug.runtime.network import GATEWAY_ADDRESS, REPLICA_ADDRESS, ReplicaNetwork, SpareNetworks
from glowplug.types.errors import RuntimeFailed, SystemUnfit

pytestmark = pytest.mark.sandbox


@pytest.fixture
def network() -> Iterator[ReplicaNetwork]:
    network = ReplicaNetwork(f"gpt-{secrets.token_hex(4)}")
    yield network
    network.remove()


def _inside(network: ReplicaNetwork, *args: str) -> str:
    argv = ["ip", "-n", network.name, *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _host_links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def test_only_the_replicas_side_has_an_address_before_a_sandbox_takes_it(network: ReplicaNetwork) -> None:
    network.create()
    addresses = _inside(network, "-o", "-4", "addr")
    assert REPLICA_ADDRESS in addresses
    assert GATEWAY_ADDRESS not in addresses


def test_the_gateway_gets_its_address_afterwards_and_twice_is_fine(network: ReplicaNetwork) -> None:
    network.create()
    network.open_gateway()
    network.open_gateway()
    assert _inside(network, "-o", "-4", "addr").count(f"{GATEWAY_ADDRESS}/30") == 1
    routes = _inside(network, "-4", "route").splitlines()
    assert [(route.split()[0], route.split()[2]) for route in routes] == [
        ("10.99.0.0/30", "eth0"),
        ("10.99.0.0/30", "gw0"),
    ]


def test_nothing_is_added_to_the_hosts_own_network(network: ReplicaNetwork) -> None:
    before = _host_links()
    network.create()
    assert _host_links() == before


def test_making_it_again_makes_it_afresh(network: ReplicaNetwork) -> None:
    network.create()
    network.open_gateway()
    network.create()
    assert GATEWAY_ADDRESS not in _inside(network, "-o", "-4", "addr")


def test_removal_is_complete_and_may_be_repeated(network: ReplicaNetwork) -> None:
    network.create()
    network.remove()
    network.remove()
    assert not network.path.exists()


def test_names_are_kept_in_one_mount_however_many_there_were(network: ReplicaNetwork) -> None:
    network.create()
    before = _mounts_in_netns()
    for _ in range(5):
        network.remove()
        network.create()
    assert _mounts_in_netns() == before


def _mounts_in_netns() -> int:
    return Path("/proc/self/mountinfo").read_text().count(" /run/netns")


def test_many_are_made_at_once_with_the_same_addresses() -> None:
    networks = [ReplicaNetwork(f"gpt-{secrets.token_hex(4)}") for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda network: network.create(), networks))
        assert all(REPLICA_ADDRESS in _inside(network, "-o", "-4", "addr") for network in networks)
    finally:
        for network in networks:
            network.remove()


def test_a_namespace_that_is_gone_is_a_typed_error(network: ReplicaNetwork) -> None:
    with pytest.raises(RuntimeFailed, match="gateway"):
        network.open_gateway()


def test_a_machine_without_ip_is_unfit(network: ReplicaNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemUnfit, match="`ip`"):
        network.create()


def test_a_spare_is_like_a_new_one_and_is_used_once(network: ReplicaNetwork) -> None:
    spares = SpareNetworks(1)
    other = ReplicaNetwork(f"gpt-{secrets.token_hex(4)}")
    try:
        spares.fill()
        network.create(spares)
        other.create(spares)  # none is left
        network.open_gateway()
        assert _inside(network, "-o", "link").count("link/ether 02:00:0a:63:00") == 2
        assert GATEWAY_ADDRESS not in _inside(other, "-o", "-4", "addr")
    finally:
        other.remove()
        spares.close()


def test_with_a_spare_no_process_is_needed(network: ReplicaNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    spares = SpareNetworks(1)
    spares.fill()
    monkeypatch.setenv("PATH", "/nowhere")
    network.create(spares)
    network.open_gateway()
    network.remove()
    with pytest.raises(SystemUnfit, match="`ip`"):
        network.create(spares)
