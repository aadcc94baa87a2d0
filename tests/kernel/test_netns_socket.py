"""Sockets in a real network namespace."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glowplug.kernel.netns_socket import NamespaceSockets

SERVER = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 7000))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"from inside")
    connection.close()
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    """The namespace file of a process that serves port 7000 inside it."""
    if os.geteuid() != 0:
        pytest.skip("making a network namespace needs root")
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    yield f"/proc/{process.pid}/ns/net"
    process.kill()
    process.wait()
    process.stdout.close()


def home() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def test_a_socket_opened_inside_reaches_what_listens_inside_and_we_stay_at_home(namespace: str) -> None:
    before = home()
    with NamespaceSockets(namespace) as sockets, sockets.open(socket.AF_INET) as opened:
        assert home() == before
        opened.settimeout(60)
        opened.connect(("127.0.0.1", 7000))
        assert opened.recv(100) == b"from inside"
    with socket.socket() as outside, pytest.raises(ConnectionRefusedError):
        outside.connect(("127.0.0.1", 7000))


def test_a_failing_socket_call_leaves_us_at_home(namespace: str) -> None:
    before = home()
    with NamespaceSockets(namespace) as sockets:
        with pytest.raises(OSError, match=r"."):
            sockets.open(socket.AF_INET, 12345)
        assert home() == before


def test_no_descriptor_is_left(namespace: str) -> None:
    gc.collect()  # what earlier tests left open is closed now, and not in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    with NamespaceSockets(namespace) as sockets:
        for _ in range(50):
            sockets.open(socket.AF_INET).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_namespace_that_is_gone_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        NamespaceSockets("/proc/0/ns/net")


def test_a_file_that_is_no_namespace_is_an_os_error_and_we_stay_at_home(tmp_path: Path) -> None:
    file = tmp_path / "netns"
    file.write_text("")
    before = home()
    with NamespaceSockets(str(file)) as sockets, pytest.raises(OSError, match="setns"):
        sockets.open(socket.AF_INET)
    assert home() == before


def test_not_being_able_to_return_home_is_fatal(namespace: str) -> None:
    script = f"""
import os, socket
from glowplug.kernel.netns_socket import NamespaceSockets
class Lost(NamespaceSockets):
    def _enter(self, fd):
        if self.calls:
            raise OSError("no way back")
        self.calls = 1
        super()._enter(fd)
    calls = 0
Lost({namespace!r}).open(socket.AF_INET)
"""
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert died.returncode == -6
    assert "cannot return to our own network namespace" in died.stderr


def test_without_a_namespace_sockets_are_ordinary() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        NamespaceSockets(None) as sockets,
        sockets.open(socket.AF_INET) as opened,
    ):
        opened.settimeout(60)
        opened.connect(server.getsockname())
