"""Glowplug on a real Ray: two machines and a head, each raylet in a network of its own."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.e2e.cluster import nodes, wait_for_state
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.e2e.ray_machines import RayLive, on_ray, pids_that_mention, ray_head, ray_machines
from tests.ports import free_port

from glowplug.engine.ray.head import head_command, split_address
from glowplug.engine.ray.settings import RaySettings
from glowplug.identity.tokens import JoinToken
from glowplug.types.paths import IdentityDir

_CPUS = float(os.cpu_count() or 1)
"""A whole machine's: of less two would fit one."""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: make ray"),
]


def logs_of_ray() -> str:
    """All that Ray has written down of the session that began last."""
    logs = Path("/tmp/ray/session_latest/logs")
    return "".join(path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file())


def test_a_cluster_on_ray_from_its_first_machine_to_its_last(tmp_path: Path) -> None:
    with on_ray(1) as (live, (beta,)):
        wrong = ("--token", str(JoinToken.new("ab" * 32)), "--advertise", beta.there)
        control = f"{beta.here}:{live.url.rpartition(':')[2]}"
        refused = beta.cli("cluster", "join", control, "--engine", "ray", *wrong, code=1)
        assert "join token is over, was revoked, or is of another cluster" in refused.stderr
        print(f"a machine joined within {beta.join_cluster(live):.1f} s")
        assert beta.agents() == 1
        assert not _lets_in(live.address, None)
        assert not _lets_in(live.address, beta.state.identity), "a node's certificate opens no Ray"
        assert _lets_in(live.address, beta.state.identity.engine)
        assert "gpj1." not in logs_of_ray()
        live.wait_for(lambda: not live.listing("cluster", "token", "--list"), "its token to be revoked")

        apps = Apps(live, tmp_path)
        app = apps.deploy(word="ray", snapshot=False)
        live.wait_for(lambda: list(beta.state.images.glob("*/image.json")), "its image on the other machine")
        apps.deploy(name=app.name, snapshot=False, min_replicas=2, max_replicas=2)
        live.wait_for(
            lambda: {one.node for one in live.ready(app.name)} == set(_names(live)), "one replica on each"
        )
        _is_answered_by(live, app.name, 2)
        assert beta.ask(f"/{app.name}/web/who")["replica_id"]
        assert nodes(live)[beta.name]["router"]["address"] == "127.0.0.1:8080"

        supervisor = beta.supervisor_pid()
        beta.kill_actor()
        beta.kill_raylet()
        _is_answered_by(live, app.name, 2)
        live.wait_for(lambda: "Ray has lost it" in live.cli("cluster", "status").stdout, "Ray to notice")
        assert "its agent runs on" in live.cli("cluster", "status").stdout
        assert nodes(live)[beta.name]["state"] == "ready"

        beta.start_ray_again()
        live.wait_for(lambda: _states(live).count("running") == 2, "the new actor to adopt the agent")
        assert beta.supervisor_pid() == supervisor
        assert nodes(live)[beta.name]["state"] == "ready"

        beta.cut()
        assert wait_for_state(live, beta.name, "unreachable") < 30.0
        assert beta.ask(f"/{app.name}/web/who")["replica_id"], "its router knows the replica beside it"
        wait_for_state(live, beta.name, "lost")
        assert "silent for" in live.cli("cluster", "status").stdout
        assert live.get(f"/{app.name}/web/who")
        beta.mend()
        wait_for_state(live, beta.name, "ready")

        live.remove(apps.names)
        port = live.address.rpartition(":")[2]
        live.cli("cluster", "down", timeout_s=240.0)
        assert beta.agents() == 0
        live.wait_for(lambda: not pids_that_mention(f"gcs_server_port={port}"), "Ray's head to end")


def test_the_head_of_ray_may_die_and_nobody_notices(tmp_path: Path) -> None:
    with on_ray(1) as (live, (beta,)):
        beta.join_cluster(live, "--serve", "0.0.0.0:8090")
        live.wait_for(
            lambda: (nodes(live)[beta.name]["router"] or {}).get("address") == "0.0.0.0:8090", "its router"
        )
        supervisor = beta.supervisor_pid()
        port = live.address.rpartition(":")[2]
        (gcs,) = pids_that_mention(f"gcs_server_port={port}")
        os.kill(gcs, signal.SIGKILL)
        live.wait_for(lambda: pids_that_mention(f"gcs_server_port={port}"), "a new head")
        beta.stop_ray()
        beta.start_ray_again()
        live.wait_for(lambda: _states(live).count("running") == 2, "the agent to be kept again", 200.0)
        assert beta.supervisor_pid() == supervisor
        assert nodes(live)[beta.name]["state"] == "ready"
        # A machine that is taken out by hand ends its agent, and gets none again.
        live.cli("cluster", "remove", beta.name, "--force")
        live.wait_for(lambda: beta.agents() == 0, "its agent to end")
        live.wait_for(lambda: _states(live) == ["pending", "running"], "it to be listed as released")
        assert "released" in live.cli("cluster", "status").stdout
        assert beta.agents() == 0


def test_the_planner_asks_ray_for_machines_and_gives_them_back(tmp_path: Path) -> None:
    with on_ray(1) as (live, (beta,)):
        beta.join_cluster(live)
        own = socket.gethostname()
        _plan(live, tmp_path, floor=2)
        assert _asked_of_ray(live) == [{"CPU": _CPUS}] * 2
        planned = live.listing("pool", "status")["machines"]
        assert {one["address"]: one["state"] for one in planned} == {own: "ready", beta.name: "ready"}

        _plan(live, tmp_path, floor=0)
        live.wait_for(lambda: beta.agents() == 0, "its agent to end")
        assert _asked_of_ray(live) == []
        assert set(nodes(live)) == {"here"}

        # Ray would add nothing for what an idle machine holds: that one is taken again.
        _plan(live, tmp_path, floor=2)
        live.wait_for(lambda: beta.name in nodes(live), f"{beta.name} to be taken again")
        wait_for_state(live, beta.name, "ready")
        assert beta.agents() == 1


def test_a_ray_cluster_that_is_there_already_and_encrypts_is_left_as_it_is(tmp_path: Path) -> None:
    token = "ab" * 32
    live = RayLive(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    with ExitStack() as owned:
        (beta,) = owned.enter_context(ray_machines(live, 1))
        live.environment |= rays_own_tls(tmp_path, beta.here, beta.there, "127.0.0.1")
        address = f"{beta.here}:{free_port()}"
        head = ray_head(head_command(address), live, tmp_path / "head.log")
        owned.callback(head.wait, 60)
        owned.callback(head.terminate)
        beta.start_ray(address, token)
        folder = beta.state.root.parent
        live.options = ("--address", address, "--node-state", f"{folder}/{{node}}", "--timeout", "200")
        live.options += ("--serve", "off")
        with live:
            live.wait_for(lambda: beta.name in nodes(live), f"{beta.name} to join")
            wait_for_state(live, beta.name, "ready")
            assert (nodes(live)[beta.name]["router"] or {}).get("state") in (None, "absent")
            live.cli("cluster", "down", timeout_s=240.0)
            assert beta.agents() == 0
        assert head.poll() is None
        assert beta.pid_here("raylet")
        with pytest.raises(AssertionError, match="no ray::AgentActor"):
            beta.kill_actor()


def rays_own_tls(folder: Path, *addresses: str) -> dict[str, str]:
    """One certificate for all machines, as Ray's environment names it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ray")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), *(x509.IPAddress(ip_address(one)) for one in addresses)]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / "ray.crt", folder / "ray.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return {
        "RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": str(pem), "RAY_TLS_SERVER_KEY": str(key_pem),
        "RAY_TLS_CA_CERT": str(pem),
    }  # fmt: skip


def _lets_in(address: str, shown: IdentityDir | None) -> bool:
    """Whether Ray's head talks to who shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if shown is not None:
        context.load_cert_chain(str(shown.node_certificate), str(shown.node_key))
    try:
        with (
            socket.create_connection(split_address(address), 30) as plain,
            context.wrap_socket(plain) as connection,
        ):
            return connection.recv(1) != b""  # HTTP/2's first frame, or the refusal of our certificate
    except (ssl.SSLError, ConnectionError):
        return False


def _plan(live: Live, folder: Path, floor: int) -> None:
    """``glowplug pool run``, for as long as it takes to ask and to give back."""
    file = folder / "pool.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "horizon": {"periods": 6, "first_s": 15, "last_s": 600, "length_s": 900},
                "budget_usd_per_h": 10.0,
                "pools": [
                    {
                        "cloud": "ray", "region": "here", "machine": "any", "purchase": "on_demand",
                        "quota": 2, "gpu": "cpu", "gpus": 1, "price_usd_per_h": 1.0, "lead_time_s": 1.0,
                        "interruptions_per_h": 0.0, "min_rental_s": 0.0,
                    }
                ],
                "demand": [{"gpu": "cpu", "floor": floor}],
                "run": {
                    "fleet": "test", "every_s": 3.0, "release_after_s": 0.0, "drain_s": 0.0,
                    "providers": {"ray": {"kind": "engine", "machines": {"any": {"cpus": _CPUS}}}},
                },
            }
        )
    )  # fmt: skip
    live.cli("pool", "run", str(file), "--steps", "10")


def _asked_of_ray(live: Live) -> object:
    """What Ray's autoscaler is to have room for, as Ray has it."""
    settings = RaySettings.load(live.state)
    settings.prepare(environment := dict(live.environment), live.state)
    script = (
        "import ray, sys; from ray.experimental.internal_kv import _internal_kv_get as get; "
        "ray.init(address=sys.argv[1], log_to_driver=False); "
        "print(get(b'autoscaler_resource_request').decode())"
    )
    argv = [sys.executable, "-c", script, settings.address]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _names(live: Live) -> list[str]:
    return [node["name"] for node in live.get("/api/v1/nodes")]


def _states(live: Live) -> list[str]:
    """What the engine says of the machines that are not gone."""
    told = json.loads(live.state.engine_status.read_text())
    return sorted(one["state"] for one in told["machines"] if one["state"] != "gone")


def _is_answered_by(live: Live, app: str, count: int) -> None:
    """Requests at the same time go to several replicas."""

    def ask(_: int) -> str:
        return str(live.get(f"/{app}/web/slow?seconds=0.3")["replica_id"])

    def have_all_answered() -> bool:
        with ThreadPoolExecutor(count) as pool:
            return len(set(pool.map(ask, range(count)))) == count

    live.wait_for(have_all_answered, f"answers of {count} replicas")
