"""What Glowplug is compared with, each set up so that it does its best."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from delayed_store import DelayedStore, download
from machine import unmount
from native_tools import NativeTools

from glowplug.image.lazy.erofs_mount import mount_erofs

START_TIMEOUT_S = 20.0


@contextmanager
def squashfuse(image: Path, target: Path) -> Iterator[Path]:
    """A local squashfs through FUSE, with the low-level interface (the faster of Debian's two programs)."""
    command = ["squashfuse_ll", "-f", "-o", "allow_other,dev,suid", str(image), str(target)]
    with _served(command, target):
        yield target


@contextmanager
def whole_files(
    tools: NativeTools, tree: Path, store: DelayedStore, cache: Path, target: Path
) -> Iterator[Path]:
    """Each file fetched whole when it is first opened; see the program."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    command = [str(tools.whole_file_fuse), str(tree), str(store.port), str(cache), str(target)]
    with _served(command, target):
        yield target
    shutil.rmtree(cache)


@contextmanager
def whole_image(store: DelayedStore, name: str, into: Path, target: Path) -> Iterator[Path]:
    """All of an image downloaded, then mounted as it is: nothing is unpacked."""
    target.mkdir(parents=True, exist_ok=True)
    into.unlink(missing_ok=True)
    download(store, name, into)
    mount_erofs(into, [], target, directio=False)
    try:
        yield target
    finally:
        unmount(target)
        into.unlink()


@contextmanager
def _served(command: list[str], target: Path) -> Iterator[None]:
    target.mkdir(parents=True, exist_ok=True)
    before = target.stat().st_dev
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while target.stat().st_dev == before:
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{command[0]} did not start: {_last_words(server)}")
            time.sleep(0.002)
        yield
    finally:
        if target.stat().st_dev != before:
            unmount(target)
        server.kill()
        server.wait()


def _last_words(server: subprocess.Popen[bytes]) -> str:
    server.kill()
    return server.communicate(timeout=START_TIMEOUT_S)[1].decode(errors="replace")[-1000:]
