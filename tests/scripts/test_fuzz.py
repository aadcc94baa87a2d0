"""The fuzzers' harnesses, a little: each takes what is sound, and a few hundred changes of it find nothing.

``make fuzz`` does it for as long as one likes, led by what code is reached.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
CHANGES = 40  # of each sound input

HARNESSES = sorted(path.stem for path in FUZZ.glob("fuzz_*.py"))


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"fuzz.{request.param}")


def test_a_harness_takes_what_is_sound(harness: ModuleType) -> None:
    assert [data[:1] for data in harness.SOUND if not harness.fuzz(data)] == []


def test_changes_of_what_is_sound_find_nothing(harness: ModuleType) -> None:
    generator = random.Random(harness.__name__)
    for data in harness.SOUND:
        for _ in range(CHANGES):
            harness.fuzz(_changed(data, generator))


def test_noise_finds_nothing(harness: ModuleType) -> None:
    generator = random.Random(harness.__name__)
    harness.fuzz(b"")
    for _ in range(CHANGES):
        harness.fuzz(generator.randbytes(generator.randrange(1, 200)))


def _changed(data: bytes, generator: random.Random) -> bytes:
    """With bits flipped, cut off, or with changes behind it, as harnesses understand them."""
    changed = bytearray(data)
    kind = generator.randrange(3)
    if kind == 0 and len(changed) > 1:
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(1, len(changed))] ^= 1 << generator.randrange(8)
    elif kind == 1 and len(changed) > 1:
        del changed[generator.randrange(1, len(changed)) :]
    else:
        changed += generator.randbytes(generator.randrange(4, 40))
    return bytes(changed)
