"""Tables in files: CSV and JSON, also compressed, from anywhere. Whatever is in them, the worst is
InvalidInput.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glowplug.types.errors import InvalidInput

MAX_FILE_BYTES = 128 << 20
_SEVENTH_DIGIT = re.compile(r"(\.\d{6})\d+")
Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """``rows``: line (or place in a JSON list, from 1) and values by column; a missing value is empty."""

    columns: list[str]
    rows: list[tuple[int, Row]]


def read_table(path: Path) -> Table:
    """Read a CSV file with a header, or a JSON list of objects (``.json``); ``.gz`` of either. Raises
    InvalidInput.
    """
    text = _text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return _json_table(path, text)
    reader = csv.DictReader(io.StringIO(text, newline=None), restval="", restkey="_more")
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        return Table(columns, list(_numbered(reader)))
    except csv.Error as problem:
        raise InvalidInput(
            f"{path}, line {reader.line_num}: {problem}.", remedy="Mend or remove the line.", file=str(path)
        ) from problem


def moment_s(text: str) -> float:
    """CSV with a header, or a JSON list of objects (``.json``); ``.gz`` of either. Raises InvalidInput."""
    try:
        seconds = float(text)
    except ValueError:
        # Some traces have seven digits of a second, datetime takes six.
        moment = datetime.fromisoformat(_SEVENTH_DIGIT.sub(r"\1", text.strip()))
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no moment")
    return seconds


def _numbered(reader: csv.DictReader[str]) -> Iterator[tuple[int, Row]]:
    for row in reader:
        yield reader.line_num, row


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InvalidInput(
                f"{path} is larger than {MAX_FILE_BYTES} bytes.", remedy="Split it.", file=str(path)
            )
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"{path} cannot be read: {problem}.",
            remedy="Give a CSV or JSON file in UTF-8, or a .gz of one.",
            file=str(path),
        ) from problem


def _json_table(path: Path, text: str) -> Table:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InvalidInput(
            f"{path} is not JSON: {problem}.", remedy="Write a list of objects.", file=str(path)
        ) from problem
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidInput(f"{path} is no list of objects.", remedy="Write [{..}, {..}].", file=str(path))
    columns = sorted({str(name) for item in found for name in item})
    rows = [{name: "" if value is None else str(value) for name, value in item.items()} for item in found]
    return Table(columns, list(enumerate(rows, start=1)))
