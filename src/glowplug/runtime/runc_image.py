"""A memory image of runc: CRIU's files, what the container had written, and a description of the whole.

The description is written last and holds the size of every file: an image without it, or of other sizes, is
not whole, and CRIU does not always notice.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from glowplug.runtime import criu
from glowplug.types.errors import RuntimeFailed

FILES_ARCHIVE = "files.tar"
DESCRIPTION = "runc.json"
_DESCRIPTION_VERSION = 1


def check_empty(image: Path, sandbox_id: str) -> None:
    """Raise RuntimeFailed if there is anything in the folder: CRIU would write over another image."""
    if any(image.iterdir()):
        raise RuntimeFailed(
            f"{image} is not empty: a memory image already exists there.",
            remedy="Give each checkpoint a folder of its own.",
            sandbox=sandbox_id,
        )


def write_description(image: Path, outside: list[criu.OutsideFile]) -> None:
    """Make the files in ``image`` a whole image, whose memory refers to the files ``outside`` of the host."""
    described = {
        "version": _DESCRIPTION_VERSION,
        "outside": [asdict(file) for file in outside],
        "bytes": {file.name: file.stat().st_size for file in sorted(image.iterdir())},
    }
    (image / DESCRIPTION).write_text(json.dumps(described))


def read_description(image: Path, sandbox_id: str) -> list[criu.OutsideFile]:
    """Which files of the host the memory refers to. Raises RuntimeFailed if the image is not whole.

    CRIU 4.2 does not notice that ``pages-*.img`` is too short: it reads beyond the end for ever.
    """
    try:
        described = json.loads((image / DESCRIPTION).read_text())
        if described["version"] != _DESCRIPTION_VERSION:
            raise ValueError(f"version {described['version']}")
        for name, size in described["bytes"].items():
            found = (image / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
        return [criu.OutsideFile(int(file["mount_id"]), int(file["inode"])) for file in described["outside"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RuntimeFailed(
            f"{image} is no memory image of runc, or not a whole one: {error!s:.200}",
            remedy="The snapshot is damaged or of another version: it is captured anew.",
            sandbox=sandbox_id,
        ) from error
