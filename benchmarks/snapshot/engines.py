"""The engines whose starts are measured: which example deploys them, what is asked, what a right answer is.

Every answer is complete before its clock stops, and is compared: with what it has to say where that is known
(a capital, a count of primes), and always with the first answer of the run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from chat import Answer, ask, is_right
from live_session import EXAMPLES, LiveSession, raise_for_error

from glowplug.types.errors import NotFound

CHAT = "/v1/chat/completions"
SCALEDOWN_WINDOW_S = 1.0


def _fetch(path: str) -> Callable[[httpx.Client, str], Answer]:
    """A question that is a GET of ``path``, answered in one piece."""

    def ask_once(client: httpx.Client, base: str) -> Answer:
        started = time.monotonic()
        response = client.get(base + path, headers={"connection": "close"})
        raise_for_error(response)
        seconds = time.monotonic() - started
        return Answer(response.text, seconds, seconds)

    return ask_once


def _chat(client: httpx.Client, base: str) -> Answer:
    return ask(client, base + CHAT)


def _unchanged(command: list[str]) -> list[str]:
    return command


def _compiled(command: list[str]) -> list[str]:
    """With torch.compile, which vLLM uses unless told not to."""
    return [word for word in command if word != "--enforce-eager"]


@dataclass(frozen=True)
class Engine:
    """One engine. ``is_right`` knows what the answer must say; ``wanted`` are the speed-ups promised."""

    name: str
    example: str
    ask: Callable[[httpx.Client, str], Answer]
    is_right: Callable[[str], bool]
    wanted: Mapping[str, float] = field(default_factory=dict)
    """Least ratio by figure: ``p50`` and ``p99`` against the runtime's own cold start, ``host_p50``."""
    command: Callable[[list[str]], list[str]] = _unchanged
    memory_bytes: int | None = None

    def spec(self, session: LiveSession, app: str, runtime: str, *, snapshot: bool) -> dict[str, Any]:
        """What to deploy as ``app``. Raises NotFound if this version has no such example."""
        file = EXAMPLES / self.example
        if not file.exists():
            raise NotFound(f"{self.name} has no {file}.", remedy="Take another --engine.")
        spec = copy.deepcopy(session.load_spec(file))
        spec["name"] = app
        (server,) = spec["servers"]
        server["runtime"] = runtime
        server["command"] = self.command(server["command"])
        server["scaling"] |= {"scaledown_window_s": SCALEDOWN_WINDOW_S, "parked_window_s": 0.0}
        server["scaling"]["max_replicas"] = 1
        server["snapshot"]["enabled"] = snapshot
        if self.memory_bytes is not None:
            server["resources"]["memory_bytes"] = self.memory_bytes
        return spec


_EAGER_PROMISE = {"p50": 25.0, "p99": 15.0, "host_p50": 15.0}
ENGINES = {
    engine.name: engine
    for engine in (
        # Less than the example's, so that four copies are given room on 24 GiB; it uses 2.
        Engine(
            "vllm",
            "chat_vllm.py",
            _chat,
            is_right,
            _EAGER_PROMISE,
            memory_bytes=5 << 30,
        ),
        Engine("vllm-compile", "chat_vllm.py", _chat, is_right, {"p50": 50.0}, _compiled),
        # Its kernels are stubs on the CPU (PyTorch computes), its weights are real.
        Engine("sglang", "chat_sglang.py", _chat, is_right, _EAGER_PROMISE),
        Engine("torch", "torch_server.py", _fetch("/"), lambda text: float(text) > 0),
        Engine("light", "runc_server.py", _fetch("/?below=1000000"), lambda text: text.strip() == "78498"),
    )
}
