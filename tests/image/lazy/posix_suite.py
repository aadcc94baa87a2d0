"""All cases: those of the neighbouring modules, and those about running programs and about refusals."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.image.lazy.posix_content import CONTENT
from tests.image.lazy.posix_metadata import METADATA
from tests.image.lazy.posix_observe import TIMEOUT_S, Case, Observation, open_and_close, outcome
from tests.image.lazy.posix_tree import LONG_NAME, ODD_NAME

NOBODY = 65534


# --- running things ---


def _run(arguments: list[Path | str], **options: object) -> tuple[int, str]:
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options
    )  # type: ignore[call-overload]
    return done.returncode, done.stdout


def programs_and_scripts_run_from_it(root: Path) -> Observation:
    return (
        _run([root / "bin/true"]),
        _run([root / "bin/echo", "from the mount"]),
        _run([root / "bin/script.sh", "well"]),
        outcome(lambda: _run([root / "hello.txt"])),
        outcome(lambda: _run([root / "nested"])),
    )


def permissions_hold_for_others(root: Path) -> Observation:
    """As somebody who is neither root nor the owner."""

    def attempt() -> bytes:
        seen = [
            outcome(lambda: open_and_close(root / "bin/locked")),
            outcome(lambda: open_and_close(root / "hello.txt")),
            outcome(lambda: open_and_close(root / "big.bin")),
            outcome(lambda: os.access(root / "bin/locked", os.R_OK)),
            outcome(lambda: os.access(root / "bin/true", os.X_OK)),
            outcome(lambda: os.access(root / "hello.txt", os.X_OK)),
            outcome(lambda: len(_names(root / "sticky"))),
        ]
        return repr(seen).encode()

    return as_user(NOBODY, attempt)


def the_acl_lets_its_user_in(root: Path) -> Observation:
    return [as_user(user, lambda: outcome(lambda: open_and_close(root / "big.bin"))) for user in (1234, 1235)]


def as_user(user: int, act: Callable[[], object]) -> str:
    """``repr`` of what ``act`` returns in a child process of that user, without groups."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.write(writer, repr(act()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode()
    os.waitpid(child, 0)
    return answer


# --- what it must refuse ---


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def every_way_to_write_is_refused(root: Path) -> Observation:
    file, folder, new = root / "hello.txt", root / "nested", root / "new"
    seen = {
        "open to write": outcome(lambda: open_and_close(file, os.O_WRONLY)),
        "open to read and write": outcome(lambda: open_and_close(file, os.O_RDWR)),
        "open to append": outcome(lambda: open_and_close(file, os.O_WRONLY | os.O_APPEND)),
        "open and truncate": outcome(lambda: open_and_close(file, os.O_WRONLY | os.O_TRUNC)),
        "create": outcome(lambda: open_and_close(new, os.O_WRONLY | os.O_CREAT)),
        "create exclusively": outcome(lambda: open_and_close(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
        "create what is there": outcome(lambda: open_and_close(file, os.O_RDONLY | os.O_CREAT)),
        "create what is there exclusively": outcome(lambda: open_and_close(file, os.O_CREAT | os.O_EXCL)),
        "temporary file": outcome(lambda: open_and_close(folder, os.O_TMPFILE | os.O_RDWR)),
        "mkdir": outcome(lambda: new.mkdir()),
        "mkdir over something": outcome(lambda: folder.mkdir()),
        "mkfifo": outcome(lambda: os.mkfifo(new)),
        "mknod": outcome(lambda: os.mknod(new, stat.S_IFREG | 0o600)),
        "symlink": outcome(lambda: new.symlink_to("x")),
        "link": outcome(lambda: os.link(file, new)),
        "unlink": outcome(lambda: file.unlink()),
        "rmdir": outcome(lambda: folder.rmdir()),
        "rename": outcome(lambda: file.rename(new)),
        "rename over": outcome(lambda: file.rename(root / "empty")),
        "chmod": outcome(lambda: file.chmod(0o777)),
        "chown": outcome(lambda: os.chown(file, 1, 1)),
        "lchown": outcome(lambda: os.chown(root / "links/dangling", 1, 1, follow_symlinks=False)),
        "utime": outcome(lambda: os.utime(file, (1, 1))),
        "truncate": outcome(lambda: os.truncate(file, 1)),
        "setxattr": outcome(lambda: os.setxattr(file, "user.new", b"x")),
        "removexattr": outcome(lambda: os.removexattr(file, "user.short")),
        "access": outcome(lambda: os.access(file, os.W_OK)),
        "write through a reader": outcome(lambda: _write_through_a_reader(file)),
        "fallocate through a reader": outcome(lambda: _allocate_through_a_reader(file)),
    }
    assert {seen[name] for name in ("unlink", "mkdir", "open to write", "chmod", "setxattr")} == {"EROFS"}
    return seen


def _write_through_a_reader(file: Path) -> object:
    with file.open("rb") as reader:
        return os.pwrite(reader.fileno(), b"x", 0)


def _allocate_through_a_reader(file: Path) -> object:
    with file.open("rb") as reader:
        return os.posix_fallocate(reader.fileno(), 0, 10)


def bad_paths_get_the_right_errors(root: Path) -> Observation:
    too_long = os.fsdecode(LONG_NAME + b"x")
    return {
        "loop": outcome(lambda: (root / "links/loop-a").stat()),
        "link to itself": outcome(lambda: (root / "links/self").stat()),
        "dangling": outcome(lambda: (root / "links/dangling").stat()),
        "missing": outcome(lambda: (root / "missing").stat()),
        "missing folder": outcome(lambda: (root / "missing/file").stat()),
        "below a file": outcome(lambda: (root / "hello.txt/file").stat()),
        "name too long": outcome(lambda: (root / too_long).stat()),
        "longest name": outcome(lambda: (root / os.fsdecode(LONG_NAME)).stat()),
        "path too long": outcome(lambda: open_and_close(bytes(root) + b"/." * 2100)),
        "odd bytes": outcome(lambda: open_and_close(bytes(root / "links") + b"/" + ODD_NAME)),
        "other odd bytes": outcome(lambda: open_and_close(bytes(root / "links") + b"/" + ODD_NAME + b"\xff")),
        "not following": outcome(lambda: open_and_close(root / "links/relative", os.O_NOFOLLOW)),
        "not a folder": outcome(lambda: open_and_close(root / "hello.txt", os.O_DIRECTORY)),
        "path only": outcome(lambda: open_and_close(root / "links/self", os.O_PATH | os.O_NOFOLLOW)),
        "listing a file": outcome(lambda: _names(root / "hello.txt")),
        "a device": outcome(lambda: open_and_close(root / "special/null")),
        "a socket": outcome(lambda: open_and_close(root / "special/socket")),
        "a fifo nobody writes to": outcome(lambda: open_and_close(root / "special/fifo", os.O_NONBLOCK)),
        "empty name": outcome(lambda: open_and_close(b"")),
    }


BEHAVIOUR: list[Case] = [
    programs_and_scripts_run_from_it,
    permissions_hold_for_others,
    the_acl_lets_its_user_in,
    every_way_to_write_is_refused,
    bad_paths_get_the_right_errors,
]

CASES: list[Case] = METADATA + CONTENT + BEHAVIOUR
