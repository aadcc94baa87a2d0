"""The kernel's mount calls, which Python does not have: a new filesystem, its removal, and what refused it.

The API of file descriptors (``fsopen`` and on, Linux 5.2) instead of ``mount(2)``: it takes any number of
devices where option strings end at one page (about 117 of them), and it has a log that says why it refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from glowplug.types.errors import Conflict, InvalidInput, SystemUnfit

# Numbers that are the same on every architecture (include/uapi/asm-generic/unistd.h).
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432

_SET_FLAG = 0
_SET_STRING = 1
_CREATE = 6
_CLOSE_ON_EXEC = 1
_CLONE = 1
_READ_ONLY = 0x1
_NO_DEVICES = 0x4  # an image's device nodes are data; a runtime brings its own /dev
_EMPTY_PATH = 0x4
_HERE = -100  # AT_FDCWD
_DETACH = 2
_NO_FOLLOW = 8
_LONGEST_VALUE_BYTES = 255  # fsconfig takes 256 with the closing zero
_LOG_BYTES = 4096
_LOG_LINES = 16


class MountRefused(SystemUnfit):
    """The kernel did not mount it; ``details['errno']`` is why, the message has the kernel's own words."""

    code = "mount_refused"


@dataclass(frozen=True)
class Option:
    """A mount option: ``value`` None is a flag."""

    name: str
    value: str | None = None


def mount(filesystem: str, options: Sequence[Option], target: Path) -> None:
    """Mount a new instance read-only at the folder ``target``. Raises MountRefused."""
    try:
        with _new_mount(filesystem, options) as mounted:
            _call(_MOVE_MOUNT, mounted, b"", _HERE, bytes(target), _EMPTY_PATH)
    except OSError as problem:
        raise _refused(f"{filesystem} cannot be mounted at {target}", problem, path=str(target)) from problem


@contextmanager
def detached_root(filesystem: str, options: Sequence[Option]) -> Iterator[int]:
    """The root, as a descriptor, of a new read-only instance that is mounted nowhere. Raises MountRefused.

    No other process sees it, and none has to clean it up: it lives as long as this descriptor and whatever
    is opened below it do.
    """
    with ExitStack() as owned:
        try:
            root = owned.enter_context(_new_mount(filesystem, options))
        except OSError as problem:
            raise _refused(f"{filesystem} cannot be mounted", problem) from problem
        yield root


def bind(source: Path, target: Path) -> None:
    """Show what is mounted at ``source`` at the folder ``target`` too. Raises MountRefused."""
    try:
        copy = _call(_OPEN_TREE, _HERE, bytes(source), _CLONE | os.O_CLOEXEC)
        try:
            _call(_MOVE_MOUNT, copy, b"", _HERE, bytes(target), _EMPTY_PATH)
        finally:
            os.close(copy)
    except OSError as problem:
        raise MountRefused(
            f"{source} cannot be shown at {target}: {problem.strerror}.",
            remedy="Run as root, and name a folder that exists.",
            errno=problem.errno,
            path=str(target),
        ) from problem


def unmount(target: Path) -> bool:
    """Unmount the topmost mount at ``target``: False if there is none. Raises Conflict while it is in use."""
    code = _umount(target, _NO_FOLLOW)
    if code == errno.EBUSY:
        raise in_use(target)
    return _was_mounted(target, code)


def detach(target: Path) -> bool:
    """Take the topmost mount off ``target`` at once; whoever uses it keeps it. False if there is none."""
    return _was_mounted(target, _umount(target, _NO_FOLLOW | _DETACH))


def in_use(target: Path) -> Conflict:
    """The error of a mount that cannot be taken away now."""
    return Conflict(
        f"{target} is in use and stays mounted.",
        remedy="End what uses it (`fuser -vm` tells) and try again.",
        path=str(target),
    )


def _was_mounted(target: Path, code: int) -> bool:
    if code in (errno.EINVAL, errno.ENOENT):  # no mount point; not even a folder
        return False
    if code:
        raise MountRefused(
            f"{target} cannot be unmounted: {os.strerror(code)}.",
            remedy="Run as root.",
            errno=code,
            path=str(target),
        )
    return True


def _umount(target: Path, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.umount2(bytes(target), flags) == 0 else ctypes.get_errno()


@contextmanager
def _new_mount(filesystem: str, options: Sequence[Option]) -> Iterator[int]:
    """A new instance, attached to no folder yet. Raises InvalidInput; OSError with the kernel's own words."""
    for option in options:
        if option.value is not None and len(os.fsencode(option.value)) > _LONGEST_VALUE_BYTES:
            raise InvalidInput(
                f"The kernel takes no path longer than {_LONGEST_VALUE_BYTES} bytes here: {option.value}.",
                remedy="Choose a shorter state directory (GLOWPLUG_STATE).",
                path=option.value,
            )
    context = _call(_FSOPEN, filesystem.encode(), _CLOSE_ON_EXEC)
    try:
        _configure(context, options)
        mounted = _call(_FSMOUNT, context, _CLOSE_ON_EXEC, _READ_ONLY | _NO_DEVICES)
    finally:
        os.close(context)
    try:
        yield mounted
    finally:
        os.close(mounted)


def _refused(what: str, problem: OSError, **details: str) -> MountRefused:
    words = f" ({problem.filename})" if problem.filename else ""
    return MountRefused(
        f"{what}: {problem.strerror}{words}.",
        remedy="`glowplug doctor` tells which ways of mounting work here, and why others do not.",
        errno=problem.errno,
        **details,
    )


def _configure(context: int, options: Sequence[Option]) -> None:
    try:
        for option in options:
            kind = _SET_FLAG if option.value is None else _SET_STRING
            value = None if option.value is None else os.fsencode(option.value)
            _call(_FSCONFIG, context, kind, option.name.encode(), value, 0)
        _call(_FSCONFIG, context, _SET_FLAG, b"ro", None, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, _log(context)) from problem


def _log(context: int) -> str:
    """What the kernel noted in the filesystem context: one message a read, ``e words`` for errors."""
    words = []
    for _ in range(_LOG_LINES):
        try:
            words.append(os.read(context, _LOG_BYTES).decode(errors="replace").strip())
        except OSError:  # ENODATA: no more
            break
    return "; ".join(words)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # As longs: what a variable argument list takes for granted on some architectures.
    wide = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    done: int = libc.syscall(ctypes.c_long(number), *wide)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done
