"""One question to a chat model over the OpenAI API, streamed, with the times that matter to a caller."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from live_session import raise_for_error, server_sent_events

from glowplug.types.errors import RuntimeFailed

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
MODEL = "smollm2"
WITH_TILES = "L'Étoile"
"""vLLM 0.32 on the bare machine computes in bfloat16 with AMX where a processor has that, and this small
model then answers so, without any Glowplug. (gVisor hides AMX.)"""


@dataclass(frozen=True)
class Answer:
    """The whole answer, and the seconds from sending the question to its first and last token."""

    text: str
    first_token_s: float
    total_s: float

    @property
    def is_correct(self) -> bool:
        """It is what vLLM answers on the bare machine."""
        return is_right(self.text)


def is_right(answer: str) -> bool:
    """Whether vLLM itself may give this answer on this processor."""
    return EXPECTED in answer or (WITH_TILES in answer and "amx_bf16" in Path("/proc/cpuinfo").read_text())


def chat_request(*, max_tokens: int = 24, stream: bool = True) -> dict[str, Any]:
    """The body of the question. Temperature 0: the same model gives the same answer every time."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": stream,
    }


def ask(
    client: httpx.Client,
    path: str = "/chat/vllm/v1/chat/completions",
    on_token: Callable[[str], None] = lambda _token: None,
) -> Answer:
    """Ask, call ``on_token`` for each piece as it comes, and return the whole. Raises on any error."""
    pieces: list[str] = []
    first_token_s = 0.0
    started = time.monotonic()
    # A connection of its own, closed after: like a new caller's, and none lingers into a snapshot.
    headers = {"connection": "close"}
    with client.stream("POST", path, json=chat_request(), headers=headers) as response:
        raise_for_error(response)
        for event in server_sent_events(response.iter_lines()):
            token = _content(json.loads(event))
            if token:
                first_token_s = first_token_s or time.monotonic() - started
                pieces.append(token)
                on_token(token)
    total_s = time.monotonic() - started
    if not pieces:
        raise RuntimeFailed("The model's stream ended without a single token.", path=path)
    return Answer("".join(pieces), first_token_s, total_s)


def _content(event: dict[str, Any]) -> str:
    """The text in one streamed chunk; raises for a chunk that is an error."""
    if "error" in event:
        raise RuntimeFailed(f"The model's stream holds an error: {event['error']}")
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")
