"""exec and shell through a real WebSocket, with pipes and with a real pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qsl

from .conftest import Glowplug, replica
from .fake_control import FakeControl

Start = Callable[..., "subprocess.Popen[bytes]"]


def test_exec_passes_on_input_output_and_the_exit_code(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica()]
    process = start_glowplug("exec", "chat", "--", "cat", "-n", "a b")
    output, errors = process.communicate(b"hello\n", timeout=60)
    assert output == b"ready\nhello\n"
    assert errors == b'{"type": "eof"}\n'
    assert process.returncode == 7
    assert parse_qsl(control.exec_query) == [
        ("command", "cat"), ("command", "-n"), ("command", "a b"), ("tty", "0"),
    ]  # fmt: skip


def test_a_command_that_does_not_read_its_input_is_heard(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica(id="deaf")]
    process = start_glowplug("exec", "deaf", "--", "head", "-1")
    output, errors = process.communicate(b"x" * 50_000_000, timeout=60)
    assert (output, errors, process.returncode) == (b"ready\n", b"", 7)


def test_exec_reads_a_plain_file(control: FakeControl, start_glowplug: Start, tmp_path: Path) -> None:
    control.replicas = [replica()]
    (tmp_path / "input").write_bytes(b"from a file\n")
    with (tmp_path / "input").open("rb") as file:
        process = start_glowplug("exec", "chat", "--", "cat", stdin=file)
        assert process.stdout is not None
        assert process.stdout.read() == b"ready\nfrom a file\n"
    assert process.wait(60) == 7


def test_exec_without_stdin_reads_nothing(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica()]
    process = start_glowplug("exec", "-n", "chat-vllm-aaaaaa", "--", "true")
    assert process.wait(60) == 7
    assert control.exec_frames[0] == {"type": "eof"}


def test_exec_in_an_ended_replica_is_an_error(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica(state="stopped")]
    result = glowplug("exec", "chat-vllm-aaaaaa", "--", "true")
    assert result.exit_code == 1
    assert "No running replica" in result.stderr


def test_what_the_agent_refuses_is_explained(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica(id="missing")]
    process = start_glowplug("exec", "missing", "--", "true")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.decode().splitlines() == ["Error: No replica missing.", "Remedy: glowplug ps"]


def test_ctrl_c_ends_an_exec_without_a_terminal(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica()]
    process = start_glowplug("exec", "chat", "--", "cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_shell_is_a_raw_terminal_that_is_given_back(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica()]
    ours, theirs = pty.openpty()
    try:
        set_size(ours, rows=40, columns=100)
        before = termios.tcgetattr(theirs)
        process = start_glowplug("shell", "chat", stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
        read_until(ours, b"ready")
        assert dict(parse_qsl(control.exec_query)) == {
            "command": "/bin/sh", "tty": "1", "rows": "40", "cols": "100",
        }  # fmt: skip
        os.write(ours, b"\x03")  # Ctrl-C is for the other side
        read_until(ours, b"\x03")
        set_size(ours, rows=50, columns=120)
        process.send_signal(signal.SIGWINCH)
        assert process.stderr is not None
        assert process.stderr.readline() == b'{"type": "resize", "rows": 50, "cols": 120}\n'
        os.write(ours, b"\x04")
        assert process.wait(60) == 7
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_shell_in_a_script_reads_its_input(control: FakeControl, start_glowplug: Start) -> None:
    control.replicas = [replica()]
    process = start_glowplug("shell", "chat", "--shell", "/bin/bash")
    output, _ = process.communicate(b"exit\n", timeout=60)
    assert output == b"ready\nexit\n"
    assert ("command", "/bin/bash") in parse_qsl(control.exec_query)


def set_size(descriptor: int, *, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(descriptor: int, wanted: bytes, timeout_s: float = 60) -> None:
    seen, deadline = b"", monotonic() + timeout_s
    while wanted not in seen:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - monotonic()))
        assert readable, f"only saw {seen!r}"
        seen += os.read(descriptor, 4096)
