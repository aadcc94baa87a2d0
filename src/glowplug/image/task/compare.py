"""``image diff``: two trees, name by name, without reading any content: chunks have names."""

from __future__ import annotations

import stat
from typing import Any

from glowplug.image.index.catalog import Catalog
from glowplug.image.index.tree import Inode, Tree
from glowplug.types.image import DiffTask
from glowplug.types.paths import StateDir


def diff(state: StateDir, task: DiffTask) -> dict[str, Any]:
    """``{"changes": [{"sign", "path", "what"}], "differing", "shared_bytes"}``; sign: ``+ - ~``."""
    catalog = Catalog(state)
    first, second = (catalog.get(catalog.resolve(name)) for name in (task.first, task.second))
    changes = compare(first.tree(), second.tree())
    here = {chunk.id for chunk in first.table()}
    return {
        "changes": changes[: task.limit],
        "differing": len(changes),
        "shared_bytes": sum(chunk.size_bytes for chunk in second.table() if chunk.id in here),
    }


def compare(first: Tree, second: Tree) -> list[dict[str, str]]:
    """What turns ``first`` into ``second``, in path order."""
    old, new = dict(first.walk()), dict(second.walk())
    changes = []
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            changes.append(_change("-", path, ""))
        elif path not in old:
            changes.append(_change("+", path, ""))
        elif what := differences(old[path], new[path]):
            changes.append(_change("~", path, ", ".join(what)))
    return changes


def differences(old: Inode, new: Inode) -> list[str]:
    """Words for all in which two inodes differ."""
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        return ["kind"]
    pairs = {
        "mode": (old.mode, new.mode),
        "owner": ((old.uid, old.gid), (new.uid, new.gid)),
        "time": (old.mtime_ns, new.mtime_ns),
        "attributes": (old.xattrs, new.xattrs),
        "size": (old.size_bytes, new.size_bytes),
        "content": (old.extents, new.extents),
        "target": (old.target, new.target),
        "device": (old.rdev, new.rdev),
    }
    return [word for word, (before, after) in pairs.items() if before != after]


def _change(sign: str, path: bytes, what: str) -> dict[str, str]:
    return {"sign": sign, "path": path.decode(errors="backslashreplace"), "what": what}
