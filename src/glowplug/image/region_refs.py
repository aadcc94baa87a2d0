"""What the names of images stand for in a region: ``refs/<name>.json``, replaced by each push of the name.

It holds the image's digest, and the keys of the access traces beside it, so that a pull needs no listing.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass

from glowplug.chunks.object_keys import REFS_PREFIX
from glowplug.chunks.objects import WriteObjects
from glowplug.image.index.image_name import check_name, is_digest
from glowplug.types.errors import InvalidInput, NotFound

_log = logging.getLogger(__name__)

MAX_REF_BYTES = 64 << 10
MAX_TRACES = 64
TRACE_KEY = re.compile(r"[0-9a-f]{32}")
_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Ref:
    """What a name stands for in a region."""

    digest: str
    traces: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The content of ``refs/<name>.json``."""
        return json.dumps({"version": 1, "digest": self.digest, "traces": list(self.traces)}).encode()

    @classmethod
    def parse(cls, data: bytes, name: str) -> Ref:
        """Raises InvalidInput."""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as problem:
            raise _bad_ref(name, "is not JSON") from problem
        if not isinstance(fields, dict) or fields.get("version") != 1:
            raise _bad_ref(name, "is of another version")
        digest, traces = fields.get("digest"), fields.get("traces", [])
        if not isinstance(digest, str) or not is_digest(digest) or not isinstance(traces, list):
            raise _bad_ref(name, "names no image")
        sound = [key for key in traces[:MAX_TRACES] if isinstance(key, str) and TRACE_KEY.fullmatch(key)]
        return cls(digest, tuple(sound))


def ref_key(name: str) -> str:
    """The object that says what ``name`` stands for."""
    return f"{REFS_PREFIX}{name}.json"


def refs(objects: WriteObjects) -> dict[str, str]:
    """The digest that each name stands for, by name; damaged ones are logged and left out."""
    found = {}
    for info in objects.list(REFS_PREFIX):
        name = info.key.removeprefix(REFS_PREFIX).removesuffix(".json")
        try:
            check_name(name)
            found[name] = Ref.parse(objects.read_all(info.key, MAX_REF_BYTES, _READ_TIMEOUT_S), name).digest
        except NotFound:
            continue
        except InvalidInput as problem:
            _log.warning("%s", problem.message)
    return found


def _bad_ref(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"The region's ref {name!r} {why}.", remedy="Push the image under that name again.")
