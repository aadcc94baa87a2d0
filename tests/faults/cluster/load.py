"""Callers with a ledger: what can be repeated is asked until it is answered, the rest exactly once."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import httpx
from tests.faults.random_kills import unclean

DEADLINE_S = 120.0
_PAUSE_S = 0.1
_END_TIMEOUT_S = DEADLINE_S + 10.0


@dataclass
class Ledger:
    """Appended to by many threads, and read when these have ended. ``posted``: what became of it."""

    answered: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    posted: dict[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> list[str]:
        """Answers to posts that were errors."""
        return [told for told in self.posted.values() if told not in ("200", "broken")]


class Load:
    """``with Load(url, paths, word) as load``: asks and posts, all the time, until the block is left."""

    def __init__(self, url: str, paths: list[str], word: str, callers: int = 6) -> None:
        self.ledger = Ledger()
        self._url = url
        self._paths = paths
        self._word = word
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.set()
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a caller is still waiting"

    def wait_for_answers(self, more: int) -> None:
        """Until so many further requests were answered."""
        wanted, deadline_s = self.ledger.answered + more, time.monotonic() + DEADLINE_S
        while self.ledger.answered < wanted:
            assert time.monotonic() < deadline_s, f"no {more} answers came: {self.ledger}"
            self._leave.wait(_PAUSE_S)

    def _run(self, number: int) -> None:
        paths = itertools.islice(itertools.cycle(self._paths), number % len(self._paths), None)
        with httpx.Client(base_url=self._url, timeout=DEADLINE_S, trust_env=False) as client:
            for index, path in enumerate(paths):
                name = f"{self._word}.{number}.{index}"
                began_s = time.monotonic()
                if index % 3 == 2:
                    self._post(client, path, name)
                else:
                    self._get(client, f"{path}?{name}")
                self.ledger.slowest_s = max(self.ledger.slowest_s, time.monotonic() - began_s)
                if self._leave.wait(_PAUSE_S):
                    return

    def _get(self, client: httpx.Client, path: str) -> None:
        """As every HTTP client does: again when the connection fails, never when it was answered."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            try:
                answer = client.get(path)
            except httpx.TransportError:
                self._leave.wait(_PAUSE_S)
                continue
            if answer.status_code != 200:
                self.ledger.problems.append(f"GET {path}: {answer.status_code} {answer.text}")
            elif not path.endswith(answer.json()["asked"]):
                self.ledger.problems.append(f"GET {path} got the answer to {answer.json()['asked']}")
            else:
                self.ledger.answered += 1
            return
        self.ledger.problems.append(f"GET {path}: no answer in {DEADLINE_S:g} s")

    def _post(self, client: httpx.Client, path: str, name: str) -> None:
        try:
            answer = client.post(path, content=name)
        except httpx.TransportError:
            self.ledger.posted[name] = "broken"
            return
        if answer.status_code == 200:
            self.ledger.answered += 1
            self.ledger.posted[name] = "200"
            if answer.json()["did"] != name:
                self.ledger.problems.append(f"POST {name} got the answer to {answer.json()['did']}")
        else:
            self.ledger.posted[name] = f"{answer.status_code} {answer.text}"
            self.ledger.problems += unclean([self.ledger.posted[name]])
