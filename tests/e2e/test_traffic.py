"""Requests that are many, large, abandoned or simultaneous, through the real router to real sandboxes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live, resident_bytes

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import StartPath

pytestmark = pytest.mark.sandbox

CALLERS = 1000
DEADLINE_S = 120.0
UPLOAD_BYTES = int(os.environ.get("GLOWPLUG_UPLOAD_BYTES", str(1 << 30)))
"""Any size will do: ten gigabytes take half a minute."""
CHUNK_BYTES = 1 << 20
MOST_GROWTH_BYTES = 64 << 20


# -- many --------------------------------------------------------------------------------------------


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """A thousand callers have a thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CALLERS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def ask_all_at_once(app: Deployed) -> list[tuple[int, str]]:
    """Status and identity of every answer."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def ask() -> tuple[int, str]:
            async with session.get(f"{app.live.url}{app.path}/") as answer:
                return answer.status, (await answer.json()).get("identity", "")

        return await asyncio.gather(*(ask() for _ in range(CALLERS)))


def requests_held(live: Live, app: Deployed) -> int:
    """How many requests ever waited for a replica of ``app``."""
    line = f'glowplug_requests_held_total{{app="{app.name}",server="web"}} '
    metrics = live.http.get("/metrics").text.splitlines()
    return int(float(next(text.removeprefix(line) for text in metrics if text.startswith(line))))


@pytest.mark.usefixtures("many_open_files")
async def test_a_thousand_requests_held_during_one_wake_up_are_all_answered(live: Live, apps: Apps) -> None:
    app = apps.deploy("--start-delay-s", "20", word="thousand", max_replicas=1, memory="1GiB", snapshot=False)
    answers = await ask_all_at_once(app)
    assert [status for status, _ in answers] == [200] * CALLERS
    assert len({identity for _, identity in answers}) == 1
    assert requests_held(live, app) == CALLERS
    assert len(live.cold_starts(app.name)) == 1


@pytest.mark.usefixtures("many_open_files")
async def test_a_thousand_requests_at_once_wake_a_server_from_its_snapshot(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="kilo", max_replicas=1, memory="1GiB")
    identity = app.ask()["identity"]
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    answers = await ask_all_at_once(app)
    assert [status for status, _ in answers] == [200] * CALLERS
    assert identity not in {identity for _, identity in answers}, "the copy is of the captured replica"
    assert len({identity for _, identity in answers}) == 1
    assert live.cold_starts(app.name)[0].path is StartPath.CPU_SNAPSHOT


# -- large -------------------------------------------------------------------------------------------


def test_a_large_upload_wakes_a_server_and_passes_through_in_bounded_memory(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="upload", snapshot=False)
    control = live.pid_of("control")
    before_bytes = resident_bytes(control)
    most_bytes = before_bytes

    def zeros() -> Iterator[bytes]:
        nonlocal most_bytes
        chunk, left = bytes(CHUNK_BYTES), UPLOAD_BYTES
        while left:
            most_bytes = max(most_bytes, resident_bytes(control))
            yield chunk[: min(left, CHUNK_BYTES)]
            left -= min(left, CHUNK_BYTES)

    connection = http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=DEADLINE_S)
    started = time.monotonic()
    connection.request("POST", f"{app.path}/sink", zeros(), {"Content-Length": str(UPLOAD_BYTES)})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    took_s = time.monotonic() - started
    growth_bytes = most_bytes - before_bytes
    print(f"{UPLOAD_BYTES / took_s / 1e6:.0f} MB/s, the router grew by {growth_bytes / 1e6:.1f} MB")
    assert (answer.status, body) == (200, {"bytes": UPLOAD_BYTES, "is_zero": True})
    assert growth_bytes < MOST_GROWTH_BYTES


# -- abandoned ---------------------------------------------------------------------------------------


def test_a_caller_who_goes_away_while_held_leaves_the_others_waiting(live: Live, apps: Apps) -> None:
    app = apps.deploy("--start-delay-s", "10", word="goner", snapshot=False)
    host, port = live.url.removeprefix("http://").split(":")
    with ThreadPoolExecutor(1) as pool:
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as gone:
            gone.sendall(f"GET {app.path}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            live.wait_for(lambda: live.server_status(app.name)["held"] == 1, "one held request")
            patient = pool.submit(app.ask)
            live.wait_for(lambda: live.server_status(app.name)["held"] == 2, "two held requests")
        live.wait_for(lambda: live.server_status(app.name)["held"] == 1, "the other one to be left")
        assert patient.result(DEADLINE_S)["version"] == "1"
    assert [record.outcome for record in live.cold_starts(app.name)] == [Outcome.ANSWERED]


def test_a_cold_start_that_nobody_waits_for_any_more_is_recorded_as_abandoned(live: Live, apps: Apps) -> None:
    windows = {"scaledown_window_s": 1, "parked_window_s": 0}
    app = apps.deploy("--start-delay-s", "10", word="alone", snapshot=False, **windows)
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as gone:
        gone.sendall(f"GET {app.path}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        live.wait_for(lambda: live.server_status(app.name)["held"] == 1, "one held request")
    live.wait_for(lambda: live.server_status(app.name)["held"] == 0, "nobody to wait")
    live.wait_until_zero(app.name)
    assert [record.outcome for record in live.cold_starts(app.name)] == [Outcome.ABANDONED]


# -- simultaneous ------------------------------------------------------------------------------------


def test_deployments_of_one_name_at_once_end_in_one_whole_version(live: Live, apps: Apps) -> None:
    name = apps.name("twice")
    files = {label: apps.write("--version", label, snapshot=False) for label in ("a", "b", "c")}
    with ThreadPoolExecutor(len(files)) as pool:

        def deploy(label: str) -> tuple[str, int, dict[str, Any]]:
            done = live.cli("deploy", str(files[label]), "--name", name, "--json", code=None)
            said = done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]
            return label, done.returncode, json.loads(said)

        results = list(pool.map(deploy, files))
    for _, code, said in results:
        assert code == 0 or (code == 1 and said["code"] == "conflict" and said["remedy"]), said
    labels = {said["version"]: label for label, code, said in results if code == 0}
    listed = live.listing("deployments", name)
    assert sorted(item["version"] for item in listed) == sorted(labels)
    active = [item["version"] for item in listed if item["active"]]
    assert active == [max(labels)]
    assert Deployed(live, name).ask()["version"] == labels[active[0]]
