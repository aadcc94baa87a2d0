"""`glowplug.hooks` by itself: nothing happens outside Glowplug; inside, every process answers for itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glowplug import hooks

INSIDE = """
import os, sys, time
from pathlib import Path
from glowplug import hooks
hooks._TOLD = Path(sys.argv[1])
said = lambda word: lambda: print(word, os.getpid(), os.environ.get("TOKEN"), flush=True)
hooks.before_snapshot(said("opened first"))
hooks.before_snapshot(said("opened last"))
hooks.after_restore(said("restored"))
if os.fork() == 0:
    hooks.after_restore(lambda: 1 / 0)
print(os.getpid(), hooks._registry._server.server_address[1], flush=True)
sys.stdin.read()
"""


def ask(port: int, moment: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/.glowplug/hooks/{moment}", b"")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process, and a child that it forked, which believe that they run in a container of ours."""
    told = {"replica_id": "web-1", "env": {"A": "1"}, "secrets": {"TOKEN": "fresh"}}
    (tmp_path / "env.json").write_text(json.dumps(told))
    command = [sys.executable, "-c", INSIDE, str(tmp_path / "env.json")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin
            process.stdin.close()


def test_a_process_and_its_forked_child_are_asked_each_for_itself(inside: subprocess.Popen[str]) -> None:
    assert inside.stdout
    lines = [inside.stdout.readline().split() for _ in range(2)]
    (parent, parent_port), (child, child_port) = sorted(lines, key=lambda line: line[0] != str(inside.pid))
    assert parent == str(inside.pid)
    assert ask(int(parent_port), "before_snapshot")[0] == 200
    assert [inside.stdout.readline().split() for _ in range(2)] == [
        ["opened", "last", parent, "None"],
        ["opened", "first", parent, "None"],
    ]
    assert ask(int(parent_port), "after_restore")[0] == 200
    assert inside.stdout.readline().split() == ["restored", parent, "fresh"]
    status, answer = ask(int(child_port), "after_restore")
    assert status == 500
    assert "ZeroDivisionError" in answer["error"]
    assert inside.stdout.readline().split() == ["restored", child, "fresh"]
    assert ask(int(parent_port), "lunch")[0] == 404


def test_outside_of_glowplug_registering_neither_listens_nor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = hooks._Registry()
    monkeypatch.setattr(hooks, "_registry", registry)

    @hooks.after_restore
    def broken() -> None:
        raise AssertionError("nobody runs this")

    assert hooks.before_snapshot(broken) is broken
    assert registry._server is None
    with pytest.raises(TypeError, match="is not a function"):
        hooks.after_restore(None)  # type: ignore[type-var]


async def test_an_async_hook_runs_on_the_loop_that_it_was_registered_on() -> None:
    registry = hooks._Registry()
    home, seen = asyncio.get_running_loop(), []

    async def close_pool() -> None:
        seen.append(asyncio.get_running_loop())

    registry.add("before_snapshot", close_pool)
    await asyncio.to_thread(registry.run, "before_snapshot")
    assert seen == [home]


def test_an_async_hook_without_a_loop_gets_one() -> None:
    registry, seen = hooks._Registry(), []

    async def close_pool() -> None:
        seen.append("closed")

    registry.add("before_snapshot", close_pool)
    registry.run("before_snapshot")
    assert seen == ["closed"]


def test_reseeding_changes_the_generators_given_and_refuses_what_is_none() -> None:
    own = random.Random(1)
    random.seed(1)
    expected = random.Random(1).random()
    hooks.reseed(own)
    assert own.random() != expected
    assert random.random() != expected
    assert len(ssl.RAND_bytes(4)) == 4
    with pytest.raises(TypeError, match="no random generator"):
        hooks.reseed("dice")


def test_a_copy_of_the_file_works_where_the_package_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "vendored.py").write_text(Path(hooks.__file__).read_text())
    program = "import vendored; vendored.after_restore(vendored.reseed); vendored.reseed(); print('fine')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '{tmp_path}'); {program}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
        check=True,
    )
    assert done.stdout == "fine\n"
