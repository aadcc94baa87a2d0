"""A log file that cannot fill the disk: bytes go in, the newest few files stay."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_FILE_BYTES = 10 * 1000 * 1000
MAX_FILES = 3
_TAIL_BLOCK_BYTES = 64 * 1024


class RotatingLog:
    """Appends to ``path``; once it holds ``max_bytes`` it becomes ``path.1``, ``.1`` becomes ``.2``...

    At most ``max_files`` files exist. Rotation happens between lines where the writer sends whole lines.
    A full disk loses log lines, never the process that writes them.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self.lost_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._size_bytes = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append ``data``, rotating first when it would not fit."""
        try:
            if self._size_bytes and self._size_bytes + len(data) > self._max_bytes:
                self._rotate()
            self._file.write(data)
            self._size_bytes += len(data)
        except OSError:
            self.lost_bytes += len(data)

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._max_files - 1, 0, -1):
            source = self._path if number == 1 else self._numbered(number - 1)
            with suppress(FileNotFoundError):
                source.replace(self._numbered(number))
        self._file = self._path.open("wb", buffering=0)
        self._size_bytes = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a log, from its last 64 KiB; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BLOCK_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]
