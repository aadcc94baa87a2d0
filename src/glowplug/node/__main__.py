"""``python -m glowplug.node``: run the agent of this machine.

SIGTERM leaves the replicas running for the next agent; SIGINT stops them first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import uvicorn

from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.image.node_images import NodeImages, open_images
from glowplug.image.node_store import open_region
from glowplug.kernel.exclusive import exclusive
from glowplug.node.agent import Agent
from glowplug.node.api import make_app
from glowplug.node.gpus import Gpus
from glowplug.node.runtimes import Runtimes
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.node.snapshot_publishing import SnapshotPublishing
from glowplug.node.snapshot_search import SnapshotSearch, wait_from_environment
from glowplug.observe.metrics import Metrics
from glowplug.snapshot.expiry import ttl_from_environment
from glowplug.snapshot.per_server import kept_from_environment
from glowplug.snapshot.region import RegionSnapshots
from glowplug.snapshot.sealing.content import SealedContent
from glowplug.snapshot.sealing.keys import KeyRing, forget_variable
from glowplug.snapshot.sealing.manifests import Manifests
from glowplug.snapshot.sealing.memory_folder import remove_memory_folders
from glowplug.snapshot.sharing import Sharing
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import SystemClock
from glowplug.types.errors import Conflict, GlowplugError
from glowplug.types.paths import StateDir

_LEAVE_DEADLINE_S = 5
# Longer than the control plane keeps an idle connection (node/client.py), so that it hangs up first.
_KEEP_ALIVE_S = 75
# Blocking calls of the API: listings, image builds, hooks. asyncio's own default is six on two processors.
_THREADS = 32
_SWEEP_EVERY_S = 60.0
_LOG = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: we decide what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    """Run until told to leave; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m glowplug.node", description=__doc__)
    parser.add_argument("--state", type=Path, default=StateDir.from_environment().root)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    state = StateDir(arguments.state.absolute())
    try:
        with _only_agent(state):
            asyncio.run(_serve(state))
    except GlowplugError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(state: StateDir) -> None:
    keys = KeyRing.from_environment()
    forget_variable(os.environ)
    images = await asyncio.to_thread(open_images, state)
    metrics, clock, manifests = Metrics(), SystemClock(), Manifests(keys)
    await asyncio.to_thread(remove_memory_folders, state.unsealed)
    content = images.files if keys is None else SealedContent(images.files, keys, state.unsealed)
    snapshots = SnapshotStore(state, content, manifests=manifests)
    region = functools.cache(lambda: RegionSnapshots(open_region(state).objects, manifests))
    moves = SnapshotMoves(snapshots, images.files, region, clock)
    wait_s = wait_from_environment()
    sharing = Sharing.from_environment() if RemoteSettings.from_environment().region_url else Sharing.OFF
    agent = Agent(
        state=state,
        runtimes=await asyncio.to_thread(Runtimes.find, state),
        images=images.mounter,
        snapshots=snapshots,
        metrics=metrics,
        clock=clock,
        version=version("glowplug"),
        gpus=await asyncio.to_thread(Gpus, metrics.registry, clock),
        search=None
        if sharing is Sharing.OFF
        else SnapshotSearch(moves.bring, clock, metrics.count_search, wait_s),
        publishing=SnapshotPublishing(moves, metrics.count_push) if sharing is Sharing.PUSH else None,
        snapshot_ttl_s=ttl_from_environment(),
        snapshots_per_server=kept_from_environment(),
    )
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="api"))
    images.in_use = agent.images_in_use
    leaving: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _leave, leaving, number)
    await agent.open()
    preparing = asyncio.create_task(asyncio.to_thread(_prepare_to_fetch, images, region, sharing))
    state.agent_socket.unlink(missing_ok=True)
    config = uvicorn.Config(
        make_app(agent, images, moves),
        uds=str(state.agent_socket),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LEAVE_DEADLINE_S,
        ws_ping_interval=None,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    serving.add_done_callback(lambda _task: _leave(leaving, signal.SIGTERM))
    sweeping = asyncio.create_task(_sweep_images(images))
    stop_replicas = await leaving is signal.SIGINT
    sweeping.cancel()
    await preparing  # else a daemon might be started after the last one was stopped
    await agent.close(stop_replicas=stop_replicas)
    server.should_exit = True
    await serving
    await asyncio.to_thread(_leave_images, images, everything=stop_replicas)


async def _sweep_images(images: NodeImages) -> None:
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        try:
            await asyncio.to_thread(images.sweep)
        except (GlowplugError, OSError):
            _LOG.exception("sweeping up after images failed")


def _prepare_to_fetch(images: NodeImages, region: Callable[[], object], sharing: Sharing) -> None:
    """What the first restore from the region would otherwise wait for: 0.2 s, or 1 s on a cold disk."""
    if sharing is Sharing.OFF:
        return
    try:
        region()
        images.prepare()
    except GlowplugError as problem:
        _LOG.warning("not ready to restore from the region: %s", problem)


def _leave_images(images: NodeImages, *, everything: bool) -> None:
    """Replicas that go on need their mounts; when none is left, none of them is left either."""
    if everything:
        images.release_all()
    images.close()


def _leave(leaving: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not leaving.done():
        leaving.set_result(number)


@contextlib.contextmanager
def _only_agent(state: StateDir) -> Iterator[None]:
    """Hold the lock of the state directory. Raises Conflict when another agent has it."""
    state.create()
    taken = Conflict(f"Another node agent runs on {state.root}.", remedy="`glowplug down` stops it.")
    with exclusive(state.run / "agent.lock", taken):
        yield


if __name__ == "__main__":
    sys.exit(main())
