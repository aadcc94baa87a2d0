"""kmock's API server, in a thread of its own, so that what blocks can be tested against it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import kmock

from glowplug.engine.kubernetes.access import Access
from glowplug.engine.kubernetes.names import APPS, DAEMON_SETS, EVENTS, NODES, PODS, POOLS, REPLICAS, SECRETS

_RESOURCES = (APPS, DAEMON_SETS, EVENTS, NODES, PODS, POOLS, REPLICAS, SECRETS)
_ALSO = ("v1/namespaces", "apiextensions.k8s.io/v1/customresourcedefinitions")
_VERBS = ("get", "list", "watch", "create", "patch", "update", "delete")


class MockCluster:
    """Open when made; :meth:`close` it. ``access`` is the way there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kmock", daemon=True)
        self._thread.start()
        self._closing: asyncio.Event | None = None
        self._is_open = threading.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
        assert self._is_open.wait(60.0), "kmock did not start"
        self.access = Access(server=str(self.emulator.url).rstrip("/"))

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        async with kmock.KubernetesEmulator() as self.emulator, kmock.Server(self.emulator):
            for resource in (*_RESOURCES, *_ALSO):
                info = self.emulator.resources[resource]
                info.namespaced = resource not in (NODES, *_ALSO)
                info.verbs = set(_VERBS)
                # Status is written as a subresource, and read with the object.
                info.subresources = {"status"} if resource in (APPS, REPLICAS, POOLS) else set()
            self._is_open.set()
            await self._closing.wait()

    def close(self) -> None:
        """End it, and its thread."""
        closing = self._closing
        assert closing is not None
        self._loop.call_soon_threadsafe(closing.set)
        self._serving.result(60.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60.0)
        self._loop.close()

    def answer(self, method: str, path: str, status: int, body: Any) -> None:
        """From now on this is answered there."""

        async def answer() -> None:
            self.emulator[f"{method} {path}"] << status << body

        self._do(answer())

    def answer_pages(self, path: str, pages: list[list[str]]) -> None:
        """A list in pages of objects of these names."""

        async def answer() -> None:
            # The first rule that fits is the one: that without a mark comes last.
            for number, names in reversed(list(enumerate(pages))):
                following = str(number + 1) if number + 1 < len(pages) else ""
                body = {
                    "items": [{"metadata": {"name": name}} for name in names],
                    "metadata": {"continue": following},
                }
                mark = {"continue": str(number)} if number else {"limit": "500"}
                self.emulator[f"get {path}", kmock.params(mark)] << body

        self._do(answer())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60.0)
