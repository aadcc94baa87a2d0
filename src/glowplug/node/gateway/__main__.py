"""``python -m glowplug.node.gateway``: this node's gateway, a process of its own beside the agent.

Of its own, so that an agent that dies takes no request along: what was let through stays connected, and what
comes meanwhile is let through to the replicas all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import uvloop

from glowplug.identity.contexts import gateway_context
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.renewal import keep_certificate
from glowplug.node.gateway.server import Gateway
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, SystemUnfit
from glowplug.types.paths import IdentityDir, StateDir

log = logging.getLogger("glowplug.node.gateway")

_BACKLOG = 1024
_TELL_EVERY_S = 5.0
_AWAIT_S = 60.0
_LOOK_S = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m glowplug.node.gateway", description=__doc__)
    parser.add_argument("--state", type=Path, default=StateDir.from_environment().root)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen", metavar="HOST:PORT", help="where to listen")
    where.add_argument("--fd", type=int, help="inherited listening socket")
    parser.add_argument(
        "--await-certificate", action="store_true", help="control on this machine is about to make it"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        listener = _listen(options.listen) if options.fd is None else socket.socket(fileno=options.fd)
        with listener:
            state = StateDir(options.state.absolute())
            if options.await_certificate:
                _await_certificate(state.identity)
            uvloop.run(_serve(state, listener))
    except GlowplugError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(state: StateDir, listener: socket.socket) -> None:
    clock = SystemClock()
    counts = GatewayCounts(clock)
    context = gateway_context(state.identity)
    leaving = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    jobs = [
        Gateway(state, listener, context, counts).run(),
        keep_certificate(state.identity, context, clock),
        _tell(counts, state.gateway_metrics),
    ]
    parts = [asyncio.ensure_future(job) for job in jobs]
    told = asyncio.ensure_future(leaving.wait())
    log.info("listening on %s port %s", *listener.getsockname()[:2])
    try:
        await asyncio.wait([*parts, told], return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            if part.done():
                part.result()  # a bug: the supervisor starts us again
    finally:
        for task in (*parts, told):
            task.cancel()
        await asyncio.gather(*parts, told, return_exceptions=True)


def _await_certificate(files: IdentityDir) -> None:
    """Until control has made it, which it does once its database answers; a bounded while."""
    deadline_s = time.monotonic() + _AWAIT_S
    while not files.node_certificate.exists() and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)


async def _tell(counts: GatewayCounts, path: Path) -> None:
    while True:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(counts.write, path)
        await asyncio.sleep(_TELL_EVERY_S)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        raise SystemUnfit(
            f"Cannot listen on {address}: {error}.", remedy="Write HOST:PORT of this machine."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
