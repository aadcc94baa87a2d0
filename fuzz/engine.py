"""What all harnesses share: how one is run, and how inputs are made of something sound and changes to it.

    .venv/bin/python -m fuzz.fuzz_tar -max_total_time=60        all of them: make fuzz SECONDS=60

A harness has ``fuzz(data)``, which tells whether the code under test took the input and raises only for a
finding, and ``SOUND``, inputs that must be taken. It can be imported like any module, without atheris: the
tests give each one ``SOUND`` and changes of it (``tests/scripts/test_fuzz.py``), so that none of them rots.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple


def instrumented(name: str, *packages: str) -> AbstractContextManager[object]:
    """For a harness's imports: these packages are watched by the fuzzer if ``name`` is the program's."""
    if name != "__main__":
        return nullcontext()
    import atheris

    return atheris.instrument_imports(include=list(packages))  # type: ignore[no-any-return]


def run(fuzz: Callable[[bytes], bool]) -> None:
    """Fuzz, as libFuzzer's options on the command line say. Does not return."""
    import atheris

    def one_input(data: bytes) -> None:
        fuzz(data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


class Parser(NamedTuple):
    """One thing under test, and an input that it must take."""

    parse: Callable[[bytes], object]
    sound: bytes


def is_taken(data: bytes, parsers: Mapping[bytes, Parser], refusals: tuple[type[Exception], ...]) -> bool:
    """Give the input to one parser.

    Its first byte chooses (any other: the first) and what follows is parsed or, behind a capital letter, is
    changes to what is sound.
    """
    kind, rest = data[:1], data[1:]
    parser = parsers.get(kind.lower()) or next(iter(parsers.values()))
    try:
        parser.parse(changed(parser.sound, rest) if kind.isupper() else rest)
    except refusals:
        return False
    return True


def sound(parsers: Mapping[bytes, Parser]) -> list[bytes]:
    """Inputs for :func:`is_taken` that must be."""
    return [kind.upper() for kind in parsers]


def changed(sound: bytes, changes: bytes) -> bytes:
    """After changes of {position, length, bytes}: fuzzing starts inside the format."""
    data = bytearray(sound)
    at = 0
    while at + 3 <= len(changes) and data:
        place = int.from_bytes(changes[at : at + 2], "little") % len(data)
        length = changes[at + 2] % 8
        data[place : place + length] = changes[at + 3 : at + 3 + length]
        at += 3 + length
    return bytes(data)


def require(is_so: bool) -> None:
    """Raise for what was taken and is impossible."""
    if not is_so:
        raise AssertionError("what was taken is impossible")
