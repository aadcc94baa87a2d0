"""Callers as they are in the wild: many at once, each with the retry policy every HTTP client has.

A caller repeats a GET when the *connection* fails, never when it was answered; every request has a deadline.
No two requests are the same, and the server says what it was asked: an answer to somebody else is noticed.
What is posted is posted exactly once, whatever becomes of it.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

REQUEST_DEADLINE_S = 60.0
_PAUSE_AFTER_ERROR_S = 0.1
_PAUSE_BETWEEN_REQUESTS_S = 0.02
_END_PATIENCE_S = 10.0


@dataclass
class Told:
    """What the callers saw. Lists are appended to by many threads, and read when these have ended.

    ``posted``: by the name of what was posted ``200``, ``broken``, or the status and text of a refusal.
    """

    answers: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    broken_connections: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    posted: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0

    @property
    def refused_posts(self) -> list[str]:
        """Answers to posts that were errors."""
        return [told for told in self.posted.values() if told not in ("200", "broken")]


class Clients:
    """``with Clients(url, paths) as clients``: callers that ask, all the time, until the block is left.

    ``posts_every``: of so many requests of a caller the last is a POST of a name, of which the server says
    that it ``did`` it; 0 for none.
    """

    def __init__(
        self,
        url: str,
        paths: list[str],
        count: int = 20,
        pause_s: Callable[[], float] = lambda: _PAUSE_BETWEEN_REQUESTS_S,
        *,
        posts_every: int = 0,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> None:
        self.told = Told()
        self._word = secrets.token_hex(4)
        self._posts_every = posts_every
        self._deadline_s = deadline_s
        self._pause_s = pause_s
        self._url = url
        self._paths = paths
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._ask_all_the_time, args=(n,)) for n in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.set()
        deadline = time.monotonic() + self._deadline_s + _END_PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a caller is still waiting"

    def wait_for_answers(self, more: int) -> None:
        """Until so many further requests were answered."""
        wanted = len(self.told.answers) + more
        deadline = time.monotonic() + self._deadline_s
        while len(self.told.answers) < wanted:
            assert time.monotonic() < deadline, f"no {more} answers came: {self.told.refusals[-3:]}"
            self._leave.wait(_PAUSE_BETWEEN_REQUESTS_S)

    def _ask_all_the_time(self, number: int) -> None:
        paths = itertools.islice(itertools.cycle(self._paths), number % len(self._paths), None)
        with httpx.Client(base_url=self._url, timeout=self._deadline_s, trust_env=False) as client:
            for index, path in enumerate(paths, 1):
                began_s = time.monotonic()
                if self._posts_every and index % self._posts_every == 0:
                    self._post(client, path, f"{self._word}.{number}.{index}")
                else:
                    mark = "&" if "?" in path else "?"
                    self._ask(client, f"{path}{mark}caller={number}&request={index}")
                self.told.slowest_s = max(self.told.slowest_s, time.monotonic() - began_s)
                if self._leave.wait(self._pause_s()):
                    return

    def _post(self, client: httpx.Client, path: str, name: str) -> None:
        try:
            answer = client.post(path, content=name)
        except httpx.TransportError:
            self.told.posted[name] = "broken"
            return
        if answer.status_code != 200:
            self.told.posted[name] = f"{answer.status_code} {answer.text}"
            return
        self.told.posted[name] = "200"
        self.told.answers.append(answer.json())
        if answer.json()["did"] != name:
            self.told.wrong.append(f"POST {name} was answered with {answer.text}")

    def _ask(self, client: httpx.Client, path: str) -> None:
        deadline = time.monotonic() + self._deadline_s
        while time.monotonic() < deadline:
            try:
                answer = client.get(path)
            except httpx.TransportError as error:
                self.told.broken_connections.append(repr(error))
                self._leave.wait(_PAUSE_AFTER_ERROR_S)
                continue
            if answer.status_code == 200:
                self._take(path, answer.json())
            else:
                self.told.refusals.append(f"{answer.status_code} {answer.text}")
            return
        self.told.unanswered.append(path)

    def _take(self, path: str, answer: dict[str, Any]) -> None:
        self.told.answers.append(answer)
        if not path.endswith(answer["asked"]):
            self.told.wrong.append(f"{path} was answered with {answer}")
