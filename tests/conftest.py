"""What all tests share: the same start, whoever starts them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.swap_file import without_swap_file

# A job that a shell put in the background inherits SIGINT ignored, and hands that on to every program it
# starts; the programs under test are to be interrupted as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, to be drawn or to be tried, says more about the machine than about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)


LONGEST = ("faults", "test_vllm.py", "test_crashes.py", "test_build.py", "test_gloo.py", "test_ranks.py")
"""Folders and files that take minutes."""


@pytest.fixture
def no_swap() -> Iterator[None]:
    """What is to run out of memory must find no swap that another worker's test has switched on."""
    with without_swap_file():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with one in the end."""
    items.sort(key=lambda item: not {item.path.name, item.path.parent.name} & set(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``: what one worker mounts, and whatever copies it (a container does), is not the other's.

    Else a container that the other worker starts keeps our mounts in use for a moment longer than we do.
    """
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS) or libc.mount(
            b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None
        ):
            raise OSError(ctypes.get_errno(), "a worker's own mounts cannot be had")
