"""What goes wrong while a restore's bytes come costs a cold start at most, and never a wrong answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.chunks.servers import Conversation, HttpServer, http_server
from tests.e2e.live import Live
from tests.e2e.tcp_proxy import tcp_proxy
from tests.e2e.test_moving_snapshots import deploy
from tests.runtime.conftest import RUNC_BY_NIGHT

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]

FAULT_AFTER_BYTES = 4 << 20
"""Of packs: the restore has begun by then, and needs a good deal more."""


@dataclass
class FolderServer:
    """A region's folder over HTTP; from some byte on, packs are answered by ``fault``."""

    folder: Path
    fault: Callable[[Conversation, bytes], None] | None = None
    given_bytes: int = 0
    was_faulty: threading.Event = field(default_factory=threading.Event)

    def __call__(self, conversation: Conversation) -> None:
        path = self.folder / conversation.target.lstrip("/")
        if not path.is_file():
            conversation.answer("404 Not Found")
            return
        content = path.read_bytes()
        is_pack = path.is_relative_to(self.folder / "packs") and not path.suffix
        if is_pack and self.fault is not None and self.given_bytes >= FAULT_AFTER_BYTES:
            self.was_faulty.set()
            self.fault(conversation, content)
            return
        start, end = conversation.wanted
        if is_pack:
            self.given_bytes += end - start
        conversation.give(content)


def hang_up(conversation: Conversation, content: bytes) -> None:
    conversation.connection.close()


def cut_off(conversation: Conversation, content: bytes) -> None:
    start, end = conversation.wanted
    told = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    conversation.answer("206 Partial Content", content[start : (start + end) // 2], told, length=end - start)
    conversation.connection.close()


def lie(conversation: Conversation, content: bytes) -> None:
    start, end = conversation.wanted
    conversation.give(content[:start] + bytes(byte ^ 1 for byte in content[start:end]) + content[end:])


@pytest.fixture(scope="module", params=RUNC_BY_NIGHT)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> tuple[Path, Path]:
    """A region with a snapshot, and the folder whose server it is of."""
    region, folder = tmp_path_factory.mktemp("region"), tmp_path_factory.mktemp("app")
    with Live(GLOWPLUG_REGION=str(region)) as live:
        name = deploy(live, folder, runtime)
        live.get(f"/{name}/web/who")
        live.cli("snapshot", "push", live.wait_for_snapshot(name).id)
    return region, folder


@pytest.fixture
def server(captured: tuple[Path, Path]) -> Iterator[HttpServer]:
    with http_server(FolderServer(captured[0])) as server:
        yield server


@pytest.mark.parametrize(
    "fault",
    [pytest.param(hang_up, marks=pytest.mark.nightly), cut_off, pytest.param(lie, marks=pytest.mark.nightly)],
)
def test_a_network_that_fails_on_the_way_costs_a_cold_start(
    captured: tuple[Path, Path],
    server: HttpServer,
    runtime: str,
    fault: Callable[[Conversation, bytes], None],
) -> None:
    region, folder = captured
    server.behaviour = failing = FolderServer(region, fault)
    with Live(GLOWPLUG_REGION=server.url) as live:
        name = deploy(live, folder, runtime)
        assert live.get(f"/{name}/web/who")["restored"] is False
        assert failing.was_faulty.is_set()
        (record,) = live.cold_starts(name)
        assert (record.fallback_reason or "").startswith("restore of sn-")
        (snapshot,) = live.listing("snapshot", "ls")
        assert snapshot["status"] == "good"
        assert snapshot["failures"] == (fault is lie), "what is not answered says nothing about it"
        assert ("the region sen" in (record.fallback_reason or "")) == (fault is not lie)
        server.behaviour = FolderServer(region)
        live.cli("snapshot", "pull", "--content", snapshot["id"])
        live.rest(name)
        live.restored(name)  # the network is back
        live.cli("snapshot", "verify", snapshot["id"])


@pytest.mark.parametrize("victim", [pytest.param("worker", marks=pytest.mark.nightly), "holder"])
def test_a_daemon_killed_on_the_way_costs_a_cold_start_at_most(
    captured: tuple[Path, Path], server: HttpServer, runtime: str, victim: str
) -> None:
    region, folder = captured
    with Live(GLOWPLUG_REGION=server.url) as live:
        killed = threading.Lock()

        def kill(conversation: Conversation, content: bytes) -> None:
            if killed.acquire(blocking=False):
                os.kill(live.daemon_pid(victim), signal.SIGKILL)
            conversation.give(content)

        name = deploy(live, folder, runtime)
        server.behaviour = FolderServer(region, kill)
        live.get(f"/{name}/web/who")
        assert killed.locked()
        live.rest(name)
        live.restored(name)
        live.cli("snapshot", "verify", live.listing("snapshot", "ls")[0]["id"])


@pytest.mark.parametrize(
    ("silent_after_bytes", "bytes_per_s"),
    [(FAULT_AFTER_BYTES, None), pytest.param(None, 500e3, marks=pytest.mark.nightly)],
    ids=["silent", "slow"],
)
def test_a_region_that_falls_silent_or_crawls_costs_seconds_and_is_left_alone_for_a_while(
    captured: tuple[Path, Path],
    server: HttpServer,
    runtime: str,
    silent_after_bytes: int | None,
    bytes_per_s: float | None,
) -> None:
    region, folder = captured
    server.behaviour = FolderServer(region)
    with tcp_proxy(server.port) as proxy, Live(GLOWPLUG_REGION=proxy.url) as live:
        name = deploy(live, folder, runtime)
        proxy.silent_after_bytes, proxy.bytes_per_s = silent_after_bytes, bytes_per_s
        began_s = time.monotonic()
        assert live.get(f"/{name}/web/who")["restored"] is False
        assert time.monotonic() - began_s < 30, "each read alone took 30 s to fail"
        assert 'glowplug_fallbacks_total{reason_class="region"} 1.0' in live.http.get("/metrics").text
        live.rest(name)  # at once: the region is left alone for half a minute
        assert live.get(f"/{name}/web/who")["restored"] is False
        again, record = live.cold_starts(name)
        assert " failed: the region sen" in (record.fallback_reason or "")
        assert "a moment ago" in (again.fallback_reason or "")
        (snapshot,) = live.listing("snapshot", "ls")
        assert (snapshot["status"], snapshot["failures"]) == ("good", 0), "it is not the snapshot's fault"
        proxy.silent_after_bytes, proxy.bytes_per_s = None, None
        pull = ("snapshot", "pull", "--content", snapshot["id"])
        live.wait_for(lambda: "Pulled" in live.cli(*pull, code=None).stderr or None, "the pull")
        live.rest(name)
        live.restored(name)  # all of it is here by now
