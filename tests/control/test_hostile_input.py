"""What callers may send and nobody means: refused in few words, typed and logged; nothing has changed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.control.conftest import Control, app_spec, running_control, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import SecondNode, nodes, second_node
from tests.hostile import FEW_HOSTILE_NAMES, HOSTILE_NAMES, calls_with, code_of, quoted

from glowplug.control.peer_user import user_of
from glowplug.types.errors import InvalidInput
from glowplug.types.ids import check_name
from glowplug.types.paths import StateDir

SHORT_BYTES = 8192
JSON = {"content-type": "application/json"}
NOBODY = 65_534
PYTHON = os.path.realpath(sys.executable)
"""A virtual environment's may lie where nobody else comes."""


@pytest.fixture
async def beta() -> AsyncIterator[SecondNode]:
    async with second_node() as node:
        yield node


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def deployment(**fields: Any) -> bytes:
    return json.dumps({"app": app_spec(server_spec(**fields))}).encode()


def canary(body: Any) -> dict[str, Any]:
    return {"canary": [{"method": "POST", "path": "/", "json_body": body}]}


OVERSIZED = {
    "10 MB in one variable": deployment(env={"A": "x" * (10 << 20)}),
    "10 MB in many": deployment(env={f"A{n}": "x" * 100_000 for n in range(100)}),
    "100,000 variables": deployment(env={f"A{n}": "" for n in range(100_000)}),
    "10 MB of a command": deployment(command=["x" * 1000] * 10_000),
    "a command with a NUL": deployment(command=["a\0b"]),
    "a name of 1 MB": deployment(**{"x" * (1 << 20): 1}),
    "a path of 1 MB": deployment(volumes=[{"host_path": "/" + "x" * (1 << 20), "mount_path": "/x"}]),
    "1,000 servers": json.dumps({"app": app_spec(*(server_spec(f"s{n}") for n in range(1000)))}).encode(),
    "deep JSON": deployment(snapshot=canary(nested(200))),
    "JSON that is too deep to be read": b'{"app": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number that is none": deployment(scaling={"scaledown_window_s": float("nan")}),
    "an infinite number": deployment(scaling={"scaledown_window_s": float("inf")}),
    "an infinite number inside": deployment(snapshot=canary([float("inf")])),
    "an endless number": deployment(resources={"memory_bytes": 7777}).replace(b"7777", b"7" * 5000),
    "no JSON": b"\xff\xfe\x00",
    "not an object": b"[]",
    "nothing": b"",
}


async def test_what_is_too_much_is_refused_in_few_words_and_nothing_is_deployed(
    control: Control, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    for what, body in OVERSIZED.items():
        answer = await control.client.post("/api/v1/deployments", content=body, headers=JSON)
        assert (answer.status_code, len(answer.content) < SHORT_BYTES) == (400, True), (
            f"{what}: {answer.text[:300]}"
        )
        assert (answer.json()["code"], bool(answer.json()["remedy"])) == ("invalid_input", True), what
    large = {f"S{n}": "x" * 60_000 for n in range(20)}
    asked = json.dumps({"app": app_spec(server_spec(secrets=list(large))), "secrets": large}).encode()
    answer = await control.client.post("/api/v1/deployments", content=asked, headers=JSON)
    assert (answer.status_code, "1171 KiB" in answer.json()["message"]) == (400, True), answer.text[:300]
    assert (await control.get("/api/v1/deployments")).json() == []
    assert agent.builds == 0
    assert "refused POST '/api/v1/deployments'" in caplog.text


async def test_the_largest_specification_that_is_allowed_is_deployed(control: Control) -> None:
    env = {f"A{n}": "x" * 900 for n in range(1000)}
    spec = server_spec(env=env, snapshot=canary(nested(60)), scaling={"scaledown_window_s": 1e300})
    assert (await control.deploy(app_spec(spec)))["deployment"]
    assert (await control.get("/shop/web/")).status_code == 200, "the agent was given it, too"


async def test_a_hostile_name_in_any_path_is_refused_with_a_typed_error(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    calls = list(calls_with((await control.get("/openapi.json")).json()))
    assert len(calls) > 15
    for method, path in calls:
        for name in FEW_HOSTILE_NAMES:
            where = path.format(name=quoted(name))
            code = code_of(await control.client.request(method, where))
            assert code in ("not_found", "invalid_input"), f"{method} {where[:100]}: {code}"
    for name in FEW_HOSTILE_NAMES:
        code = code_of(await control.get(f"/{quoted(name)}/{quoted(name)}/"))
        assert code in ("not_found", "invalid_input"), f"the router: {name[:100]!r}"
    assert (await control.get("/shop/web/")).status_code == 200
    assert agent.stops == []


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "Web", "api", ""])
def test_what_is_no_name_is_none(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name, "app")


MALFORMED_JOINS: list[bytes] = [
    b"", b"[]", b"{}", b"\xff", b"[" * 50_000, b'{"name": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b'{"token_id": "' + b"0" * 60_000 + b'"}', b"x" * (65 << 10),
]  # fmt: skip


async def test_a_malformed_request_to_join_is_refused_logged_and_counted(
    control: Control, beta: SecondNode, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/api/v1/nodes/join", "/api/v1/nodes/renew", "/api/v1/engine/join"):
        for body in MALFORMED_JOINS:
            answer = await control.client.post(path, content=body, headers=JSON)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input"), body[:40]
    assert len(await nodes(control)) == 1
    assert "refused POST '/api/v1/nodes/join'" in caplog.text
    assert await control.metric("glowplug_joins_refused_total") >= 6


async def test_a_nodes_certificate_is_nothing_to_the_api(
    control: Control, beta: SecondNode, caplog: pytest.LogCaptureFixture
) -> None:
    await beta.join(control)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(beta.state.identity.node_certificate, beta.state.identity.node_key)
    port = int(control.url.rpartition(":")[2])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, ssl_handshake_timeout=30)
    caplog.set_level(logging.WARNING)
    elsewhere = {"x-forwarded-for": "192.0.2.1"}
    for method, path in (
        ("GET", "/api/v1/status"),
        ("POST", "/api/v1/join-tokens"),
        ("DELETE", "/api/v1/nodes/beta"),
    ):
        answer = await control.client.request(method, path, headers=elsewhere)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "who asked for '/api/v1/status'" in caplog.text
    assert (await nodes(control))["beta"]["state"] == "ready"


# -- users of the machine ------------------------------------------------------------------------------------

AS_NOBODY = """
import json, socket, sys, urllib.error, urllib.request
from pathlib import Path

root, url, agent = sys.argv[1:]

def got(attempt):
    try:
        return str(attempt())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["code"]
    except OSError as error:
        return type(error).__name__

def post(path):
    return urllib.request.urlopen(urllib.request.Request(url + path, b"{}", method="POST")).status

print(json.dumps({
    "list": got(lambda: list(Path(root).iterdir())),
    **{name: got((Path(root) / name).read_bytes) for name in ("token", "control.db", "control-id")},
    "agent": got(lambda: socket.socket(socket.AF_UNIX).connect(agent)),
    "status": got(lambda: urllib.request.urlopen(url + "/api/v1/status").status),
    "metrics": got(lambda: urllib.request.urlopen(url + "/metrics").status),
    "token of a node": got(lambda: post("/api/v1/join-tokens")),
    "health": got(lambda: urllib.request.urlopen(url + "/healthz").status),
}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_another_user_of_the_machine_gets_nothing_but_what_everybody_gets() -> None:
    with tempfile.TemporaryDirectory(prefix="gp-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - what is in it is asked for here
        state = StateDir(Path(folder) / "state")
        state.create()
        agent = FakeAgent(state.agent_socket)
        await agent.open()
        async with running_control(state) as control:
            argv = [
                PYTHON,
                "-I",
                "-c",
                AS_NOBODY,
                str(state.root),
                control.url,
                str(state.agent_socket),
            ]
            done = await asyncio.to_thread(
                subprocess.run, argv, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True,
                text=True, timeout=60, check=False, cwd="/",
            )  # fmt: skip
        await agent.close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "list": "PermissionError", "token": "PermissionError", "control.db": "PermissionError",
        "control-id": "PermissionError", "agent": "PermissionError", "status": "unauthorized",
        "metrics": "unauthorized", "token of a node": "unauthorized", "health": "200",
    }  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_kernel_tells_whose_the_other_end_is_until_it_is_closed(host: str) -> None:
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, socket.create_connection((host, listener.getsockname()[1])) as caller:
        accepted, peer = listener.accept()
        with accepted:
            own = accepted.getsockname()[:2]
            assert user_of(peer[:2], own) == os.geteuid()
            assert user_of((peer[0], 1), own) is None
            caller.close()
            assert user_of(peer[:2], own) is None, "nobody holds it: it is not root's"
