"""Network namespaces of replicas, made for real."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from glowplug.runtime.network import GATEWAY_ADDRESS, REPLICA_ADDRESS, ReplicaNetwork
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
    assert _inside(network, "-o", "-4", "addr").count(GATEWAY_ADDRESS) == 1


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
    with pytest.raises(RuntimeFailed, match=r"ip .* failed"):
        network.open_gateway()


def test_a_machine_without_ip_is_unfit(network: ReplicaNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemUnfit, match="`ip`"):
        network.create()
