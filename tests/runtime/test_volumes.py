"""What a server holds in a folder of the host's when its memory is taken, and what became of it meanwhile.

The image is the host's no more than the memory image is: nobody changes it. A volume is.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.conftest import RUNTIMES, OrphanReaper, sandboxes_of_runc, sandboxes_of_runsc
from tests.runtime.sandboxes import COUNTER, Sandboxes, ask, eventually, failure

from glowplug.runtime.port import Sandbox, SandboxMount
from glowplug.types.errors import GlowplugError, RuntimeFailed

pytestmark = pytest.mark.sandbox

# Answers with what an open file and its mapping hold.
OPEN_FILE = """
import mmap, socketserver
opened = open("/data/open", "rb")
mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        opened.seek(0)
        self.request.sendall(opened.read() + b" " + mapped[:])
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
# Answers with what a function of a library says.
LIBRARY = """
import ctypes, socketserver
library = ctypes.CDLL("/data/library.so")
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(str(library.answer()).encode())
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
# Says how a connection to somebody on the host went.
TO_THE_HOST = """
import socket
host = socket.socket(socket.AF_UNIX)
try:
    host.connect("/data/listening")
    print("connected", flush=True)
except OSError as error:
    print("not connected:", error, flush=True)
"""
# Answers with what comes through a socket in the volume, at which it listens itself.
LISTENING = """
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind("/data/listening")
listener.listen()
server = socket.create_server(("0.0.0.0", 8000))
while True:
    connection, _ = server.accept()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/data/listening")
        accepted, _ = listener.accept()
        accepted.sendall(b"through a name")
        connection.sendall(client.recv(99))
    accepted.close()
    connection.close()
"""


@pytest.fixture(params=RUNTIMES)
def sandboxes(request: pytest.FixtureRequest, folder: Path, reaper: OrphanReaper) -> Iterator[Sandboxes]:
    """Sandboxes of either runtime."""
    if request.param == "runc":
        with sandboxes_of_runc(folder) as made:
            yield made
    else:
        with sandboxes_of_runsc(folder, request.getfixturevalue("runsc_binary")) as made:
            yield made


in_runsc = pytest.mark.parametrize("sandboxes", ["runsc"], indirect=True)
in_runc = pytest.mark.parametrize("sandboxes", ["runc"], indirect=True)


def _mounts(folder: Path, *, read_only: bool = True) -> tuple[SandboxMount, ...]:
    return SandboxMount(Path("/usr"), "/usr"), SandboxMount(folder / "data", "/data", read_only)


@pytest.fixture
def data(folder: Path) -> Path:
    """The folder that is mounted."""
    (folder / "data").mkdir()
    return folder / "data"


def _captured(sandboxes: Sandboxes, folder: Path, program: str) -> tuple[Sandbox, Path]:
    """A container that was checkpointed while it ran ``program``, and its image."""
    original, _ = sandboxes.run("python3", "-c", program, mounts=_mounts(folder))
    eventually(lambda: ask(original), "it answers")
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    return original, folder / "image"


def _assert_refused(error: GlowplugError | None, *words: str) -> None:
    assert isinstance(error, RuntimeFailed), repr(error)
    assert "\n" not in error.message
    assert not words or any(word in error.message for word in words), error.message
    assert error.remedy


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["file", "folder", "mount"])
def test_an_open_file_that_is_gone_is_refused_in_one_readable_line(
    sandboxes: Sandboxes, folder: Path, data: Path, missing: str
) -> None:
    (data / "open").write_text("content")
    original, image = _captured(sandboxes, folder, OPEN_FILE)
    mounts = _mounts(folder)
    match missing:
        case "file":
            (data / "open").unlink()
        case "folder":
            data.rename(folder / "elsewhere")
        case "mount":
            mounts = mounts[:1]
    _assert_refused(failure(lambda: sandboxes.restore(original, image, mounts=mounts)))


@in_runc
def test_an_open_file_whose_size_changed_is_refused(sandboxes: Sandboxes, folder: Path, data: Path) -> None:
    (data / "open").write_text("content")
    original, image = _captured(sandboxes, folder, OPEN_FILE)
    (data / "open").write_text("other content")
    _assert_refused(failure(lambda: sandboxes.restore(original, image, mounts=_mounts(folder))), "size")


def test_an_open_or_mapped_file_that_changed_is_not_noticed_and_read_anew(
    sandboxes: Sandboxes, folder: Path, data: Path
) -> None:
    """Why libraries belong into the image, whose id is part of the key, and not into a volume."""
    (data / "open").write_text("content")
    original, image = _captured(sandboxes, folder, OPEN_FILE)
    (data / "open").write_text("changed")
    copy = sandboxes.restore(original, image, mounts=_mounts(folder))
    eventually(lambda: ask(copy) == "changed changed")


def _build(library: Path, answer: int, build_id: str) -> None:
    """A library whose size does not depend on what it answers."""
    source = f"int answer(void) {{ return {answer}; }}".encode()
    options = ["-shared", "-fPIC", "-O1", f"-Wl,--build-id={build_id}", "-x", "c", "-", "-o", str(library)]
    subprocess.run(["cc", *options], input=source, check=True)


@in_runc
@pytest.mark.parametrize("build_id", ["sha1", "none"])
def test_a_mapped_library_that_changed_is_refused_if_it_has_a_build_id(
    sandboxes: Sandboxes, folder: Path, data: Path, build_id: str
) -> None:
    _build(data / "library.so", 1, build_id)
    size_bytes = (data / "library.so").stat().st_size
    original, image = _captured(sandboxes, folder, LIBRARY)
    _build(data / "library.so", 2, build_id)
    assert (data / "library.so").stat().st_size == size_bytes
    if build_id == "none":
        copy = sandboxes.restore(original, image, mounts=_mounts(folder))
        eventually(lambda: ask(copy) == "2", "it runs what is there now")
    else:
        error = failure(lambda: sandboxes.restore(original, image, mounts=_mounts(folder)))
        _assert_refused(error, "build-id", "build-ID")


# -- Unix sockets --------------------------------------------------------------------------------------------


def test_a_listening_socket_in_a_volume_listens_in_a_copy(
    sandboxes: Sandboxes, folder: Path, data: Path
) -> None:
    """gVisor keeps it to itself, as it is not given `--host-uds`: one of the host's it could not save."""
    mounts = _mounts(folder, read_only=False)
    original, _ = sandboxes.run("python3", "-c", LISTENING, mounts=mounts, host_changes_volumes=True)
    eventually(lambda: ask(original) == "through a name")
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    copy = sandboxes.restore(original, folder / "image", mounts=mounts, host_changes_volumes=True)
    eventually(lambda: ask(copy) == "through a name")
    is_hosts = sandboxes.runtime.identity().name == "runc"
    assert (data / "listening").exists() is is_hosts


@pytest.fixture
def host_socket(data: Path) -> Iterator[Path]:
    """Somebody on the host who listens there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "listening"))
        listener.listen()
        yield data / "listening"


@in_runc
def test_a_connection_to_a_socket_of_the_hosts_in_a_volume_is_refused_and_the_application_lives_on(
    sandboxes: Sandboxes, folder: Path, host_socket: Path
) -> None:
    original, _ = sandboxes.run("python3", "-c", TO_THE_HOST + COUNTER, mounts=_mounts(folder))
    eventually(lambda: ask(original))
    assert original.log.read_text().startswith("connected")
    (folder / "image").mkdir()
    _assert_refused(failure(lambda: sandboxes.runtime.checkpoint(original.id, folder / "image")), "unix")
    assert ask(original)


@in_runsc
def test_a_socket_of_the_hosts_in_a_volume_cannot_be_connected_to_in_runsc(
    sandboxes: Sandboxes, folder: Path, host_socket: Path
) -> None:
    original, _ = sandboxes.run("python3", "-c", TO_THE_HOST + COUNTER, mounts=_mounts(folder))
    eventually(lambda: ask(original))
    assert original.log.read_text().startswith("not connected: ")
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    copy = sandboxes.restore(original, folder / "image", mounts=_mounts(folder))
    eventually(lambda: ask(copy), "having tried does no harm")
