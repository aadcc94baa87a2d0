"""moto's S3 server, with ranges at the price of what is asked for.

    python scripts/s3_server.py -H 127.0.0.1 -p PORT

moto reads and copies all of an object, under a lock, for each range of it (``FakeKey.value``, moto 5.2): of a
pack of 64 MiB that is 64 times what a zone cache asks for at a time. Here an object's bytes are kept and
sliced, as a store that is worth measuring does.
"""

from __future__ import annotations

import sys

from moto.s3.models import FakeKey
from moto.server import main

_read_whole = FakeKey.value


def _value(self: FakeKey) -> bytes:
    if "kept_value" not in self.__dict__:
        self.__dict__["kept_value"] = _read_whole.fget(self)
    kept: bytes = self.__dict__["kept_value"]
    return kept


def _set_value(self: FakeKey, new_value: bytes) -> None:
    self.__dict__.pop("kept_value", None)
    _read_whole.fset(self, new_value)


FakeKey.value = property(_value, _set_value)

if __name__ == "__main__":
    main(sys.argv[1:])
