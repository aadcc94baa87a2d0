"""Runs in a process of its own: forks workers that use a store, and has them killed with SIGKILL.

One line in, one line out. ``random NUMBER DELAY_S``: a worker commits NUMBER, NUMBER + 1, .. until it is
killed after DELAY_S. ``step OPERATION NUMBER EVENT``: a worker kills itself just before the EVENT-th thing it
asks the filesystem, so that counting EVENT up visits every state the disk can be left in.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.snapshot.folder_content import FolderContent

from glowplug.snapshot import ManifestDraft, SnapshotKey, SnapshotStore
from glowplug.types.paths import StateDir

KEY = SnapshotKey({"image": "im-1"})
FILE_NAMES = ("checkpoint.img", "pages.img", "pages_meta.img")
_FILESYSTEM_EVENTS = ("open", "os.", "shutil.", "fcntl.", "tempfile.")


def commit(store: SnapshotStore, number: int) -> None:
    """Capture a generation whose every part says ``number``."""
    with store.begin(KEY) as staging:
        for name in FILE_NAMES:
            (staging.path / name).write_text(str(number) * 5000)
        staging.commit(ManifestDraft(app="chat", server="vllm", deployment=str(number)))


def count_failure(store: SnapshotStore, number: int) -> None:
    """Rewrite the status."""
    store.record_restore(KEY.id, ok=False, reason=f"failure {number}")


def remove(store: SnapshotStore, _number: int) -> None:
    """Remove the snapshot."""
    store.remove(KEY.id)


OPERATIONS: dict[str, Callable[[SnapshotStore, int], None]] = {
    "commit": commit,
    "count_failure": count_failure,
    "remove": remove,
}


def _kill_before_event(wanted: int) -> None:
    counter = itertools.count(1)

    def hook(event: str, _arguments: object) -> None:
        if event.startswith(_FILESYSTEM_EVENTS) and next(counter) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def _random(store: SnapshotStore, number: int, delay_s: float) -> None:
    started_read, started_write = os.pipe()

    def work() -> None:
        os.write(started_write, b"x")
        for current in itertools.count(number):
            commit(store, current)

    pid = _fork(work)
    os.read(started_read, 1)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(started_read)
    os.close(started_write)


def _step(store: SnapshotStore, operation: str, number: int, event: int) -> str:
    def work() -> None:
        _kill_before_event(event)
        OPERATIONS[operation](store, number)

    _, status = os.waitpid(_fork(work), 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def main(root: Path) -> None:
    """Serve commands until the input ends."""
    state = StateDir(root)
    store = SnapshotStore(state, FolderContent(state.root / "content"))
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "random":
            _random(store, int(arguments[0]), float(arguments[1]))
            answer = "killed"
        else:
            answer = _step(store, arguments[0], int(arguments[1]), int(arguments[2]))
        print(answer, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
