"""What a tenant reaches from inside a replica: itself. What a name that a caller sends leads to: nothing.

One replica tries everything (``servers/escapes.py``) beside another one; each test looks at one kind of try.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.hostile import HOSTILE_NAMES, calls_with, code_of, quoted
from tests.node.live_agent import SERVERS, LiveAgent, live_agent
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc

from glowplug.runtime.bundle import CAPABILITIES

pytestmark = pytest.mark.sandbox

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": f"id-{secrets.token_hex(8)}",
    "AWS_SECRET_ACCESS_KEY": f"key-{secrets.token_hex(8)}",
    "GLOWPLUG_DATABASE_URL": f"postgresql://glowplug:{secrets.token_hex(8)}@db.invalid/glowplug",
}
"""What an agent's environment may hold."""
OWN_VARIABLES = {"PATH", "HOME", "LANG", "HOSTNAME", "PYTHONPATH", "GLOWPLUG_TEST_TENANT", "LC_CTYPE"}
NUMBERS = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6,
    "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_SYS_CHROOT": 18,
}  # fmt: skip
"""linux/capability.h"""


@dataclass
class Listeners:
    """On a port of every address of this machine, and under an abstract name: both accept whoever comes."""

    stack: ExitStack
    port: int = 0
    abstract: str = field(default_factory=lambda: f"gpt-{secrets.token_hex(4)}")
    callers: list[object] = field(default_factory=list)

    def open(self) -> None:
        everywhere = self.stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        self.port = everywhere.getsockname()[1]
        named = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(b"\0" + self.abstract.encode())
        named.listen()
        for listener in (everywhere, named):
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:  # closed
                return
            self.callers.append(address)
            connection.close()


def own_addresses() -> list[str]:
    """All IPv4 addresses of this machine."""
    shown = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    return ["127.0.0.1", *(address for address in shown if ":" not in address)]


@pytest.fixture(scope="module")
def listeners() -> Iterator[Listeners]:
    with ExitStack() as stack:
        listeners = Listeners(stack)
        listeners.open()
        yield listeners


@pytest.fixture(scope="module")
def tenants(fit_machine: None) -> Iterator[LiveAgent]:
    """An agent that was started with credentials in its environment."""
    with pytest.MonkeyPatch.context() as environment, tempfile.TemporaryDirectory(prefix="gpn-") as folder:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        with live_agent(Path(folder)) as agent:
            yield agent


@pytest.fixture(scope="module", params=RUNC_BY_NIGHT)
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "runc":
        require_runc()
    return str(request.param)


@pytest.fixture(scope="module")
def attempts(tenants: LiveAgent, listeners: Listeners, runtime: str) -> dict[str, Any]:
    """What a replica got of all it tried, while another one of the same app listened on port 9000."""
    tenants.runtime = runtime
    command = ("python3", "/servers/escapes.py")
    sister = tenants.start(tenants.server(*command, port=9000, env={"PORT": "9000"}))
    tenant = tenants.start(tenants.server(*command, env={"GLOWPLUG_TEST_TENANT": "1"}))
    query = {
        "port": listeners.port, "host": [*own_addresses(), "10.99.0.1"],
        "agent": str(tenants.state.agent_socket), "abstract": listeners.abstract, "sister": 9000,
    }  # fmt: skip
    told = tenants.ask(tenant, f"/attempts?{urlencode(query, doseq=True)}")
    assert tenants.ask(sister) == tenants.ask(tenant) == "hello", "both serve on"
    return dict(told)


def nothing(of: dict[str, object]) -> bool:
    return bool(of) and not any(of.values())


def test_the_listeners_can_be_reached_from_the_machine_itself(listeners: Listeners) -> None:
    """Else the refusals below would prove nothing."""
    for address in own_addresses():
        socket.create_connection((address, listeners.port), timeout=10).close()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(b"\0" + listeners.abstract.encode())


def test_no_port_of_its_machine_is_reached(attempts: dict[str, Any]) -> None:
    """The control API, a gateway, a zone cache, a database: all are ports of the machine."""
    assert nothing(attempts["host"]), attempts["host"]


def test_the_metadata_address_is_not_reached(attempts: dict[str, Any]) -> None:
    assert nothing(attempts["metadata"]), attempts["metadata"]


def test_nothing_outside_is_reached_and_no_name_resolves(attempts: dict[str, Any]) -> None:
    assert nothing(attempts["outside"]), attempts["outside"]
    assert attempts["names"] is None


def test_another_replicas_port_is_not_reached(attempts: dict[str, Any]) -> None:
    assert nothing(attempts["sister"]), attempts["sister"]


def test_neither_the_agents_socket_nor_an_abstract_one_is_reached(attempts: dict[str, Any]) -> None:
    assert nothing(attempts["agent"]), attempts["agent"]
    assert attempts["abstract"] is None


def test_no_credential_of_its_node_is_in_any_environment(attempts: dict[str, Any]) -> None:
    assert set(attempts["environment"]) <= OWN_VARIABLES
    seen = " ".join(attempts["environments"])
    assert not [name for name, value in CREDENTIALS.items() if value in seen]


def test_only_its_own_processes_are_seen(attempts: dict[str, Any]) -> None:
    assert 1 <= len(attempts["processes"]) <= 3
    assert all("escapes.py" in shown for shown in attempts["processes"] if shown), attempts["processes"]


def test_what_is_the_machines_cannot_be_written(attempts: dict[str, Any]) -> None:
    assert nothing(attempts["read-only"]), attempts["read-only"]
    assert not [
        path for path in (Path("/usr"), Path("/usr/bin"), SERVERS) if (path / "left-by-a-tenant").exists()
    ]


def test_no_power_is_had_or_gained(attempts: dict[str, Any]) -> None:
    allowed = sum(1 << NUMBERS[name] for name in CAPABILITIES)
    assert not {name: value for name, value in attempts["capabilities"].items() if value & ~allowed}
    gained = {name: what for name, what in attempts["powers"].items() if what is not None}
    assert gained == {}


def test_the_kernel_is_another_or_its_files_are_closed(attempts: dict[str, Any], runtime: str) -> None:
    """Under gVisor they are those of the sandbox's own kernel, which may do with them what it likes."""
    assert attempts["memory of the host"] == []
    if runtime == "runsc":
        assert attempts["kernel release"] != os.uname().release
        return
    assert nothing(attempts["kernel"]), attempts["kernel"]
    assert nothing(attempts["namespaces"]), attempts["namespaces"]
    assert (attempts["no new privileges"], attempts["seccomp"]) == ("1", "2")


# -- the agent's API -----------------------------------------------------------------------------------------


def test_a_hostile_name_in_any_path_of_the_agents_api_is_refused_with_a_typed_error(
    tenants: LiveAgent,
) -> None:
    calls = list(calls_with(tenants.client.get("/openapi.json").json()))
    assert len(calls) > 10
    before = kept(tenants)
    for method, path in calls:
        for name in HOSTILE_NAMES:
            where = path.format(name=quoted(name))
            code = code_of(tenants.client.request(method, where))
            assert code in ("not_found", "invalid_input"), f"{method} {where[:100]}: {code}"
    assert kept(tenants) == before


def kept(agent: LiveAgent) -> list[str]:
    state = agent.state
    return sorted(
        str(path) for folder in (state.images, state.indexes, state.snapshots) for path in folder.rglob("*")
    )


def test_a_volume_that_holds_the_agents_socket_is_refused(tenants: LiveAgent) -> None:
    for folder in (tenants.state.run, tenants.state.root, tenants.state.root.parent):
        view = tenants.fail(tenants.server(volumes=[{"host_path": str(folder), "mount_path": "/mnt"}]))
        assert view["error"]["code"] == "invalid_input"
        assert "the agent's socket" in view["error"]["message"]
