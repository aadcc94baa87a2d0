"""A fake control plane for each test, the command line in this process and as a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from glowplug.cli.main import app

from .fake_control import FakeControl, serving

Glowplug = Callable[..., Result]


@pytest.fixture
def control() -> Iterator[FakeControl]:
    with serving(FakeControl()) as fake:
        yield fake


@pytest.fixture
def glowplug(control: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Glowplug:
    """Run the command line against the fake control plane; the result has exit_code, stdout, stderr."""
    monkeypatch.setenv("GLOWPLUG_URL", control.url)
    monkeypatch.setenv("GLOWPLUG_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("GLOWPLUG_TOKEN", raising=False)

    def invoke(*words: str, **options: Any) -> Result:
        return CliRunner().invoke(app, list(words), catch_exceptions=False, **options)

    return invoke


@pytest.fixture
def start_glowplug(control: FakeControl, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command line as a process of its own; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, "-m", "glowplug.cli", *words],
            env={**os.environ, "GLOWPLUG_URL": control.url, "GLOWPLUG_STATE": str(tmp_path / "state")},
            **{**streams, **options},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def replica(**changes: Any) -> dict[str, Any]:
    return {
        "id": "chat-vllm-aaaaaa", "app": "chat", "server": "vllm", "deployment_id": "chat-v1",
        "state": "ready", "path": "cpu_snapshot", "created_at": 1_000.0, "ready_at": 1_001.39,
        "memory_bytes": 1_960_000_000,
        **changes,
    }  # fmt: skip


def deployment(**changes: Any) -> dict[str, Any]:
    return {
        "id": "chat-v1", "app": "chat", "version": 1, "active": True, "created_at": 1_000.0,
        "servers": ["vllm"], "urls": {"vllm": "/chat/vllm"}, "spec_digest": "0" * 64, **changes,
    }  # fmt: skip


def snapshot(**changes: Any) -> dict[str, Any]:
    return {
        "id": "sn-1", "app": "chat", "server": "vllm", "status": "good", "bytes": 1_960_000_000,
        "created_at": 1_000.0, "capture_s": 5.4, "key": "sn-1", "key_fields": {"cpu": "epyc"}, **changes,
    }  # fmt: skip


def cold_start(**changes: Any) -> dict[str, Any]:
    return {
        "id": "cs-1", "app": "chat", "server": "vllm", "deployment_id": "chat-v1", "node": "n",
        "replica_id": "chat-vllm-aaaaaa", "path": "cold", "outcome": "answered", "started_at": 1_000.0,
        "total_s": 92.0, "stages_s": {"allocate": 0.1, "mount": 0.1, "host_init": 90.0, "first_answer": 1.8},
        **changes,
    }  # fmt: skip
