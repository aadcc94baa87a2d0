"""Print what a vLLM wheel requires, one requirement a line, less what the CPU demo must not install.

PyTorch is left out because the caller asks for it itself (the wheel pins a ``+cpu`` build that only one
index carries); torchaudio, torchvision and torchcodec because text models never import them and their
builds would have to match PyTorch's.

    python vllm_requirements.py WHEEL > requirements.txt
"""

from __future__ import annotations

import re
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ONLY_WITH_EXTRA = re.compile(r";.*\bextra\s*==")


def requirements(wheel: Path) -> list[str]:
    """The wheel's unconditional requirements, markers kept, without :data:`LEFT_OUT`."""
    with zipfile.ZipFile(wheel) as archive:
        metadata_name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    kept = []
    for requirement in metadata.get_all("Requires-Dist", []):
        name = _NAME.match(requirement)
        if name is None or _ONLY_WITH_EXTRA.search(requirement):
            continue
        if name.group().lower() not in LEFT_OUT:
            kept.append(requirement)
    return kept


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} WHEEL")
    sys.stdout.writelines(f"{line}\n" for line in requirements(Path(sys.argv[1])))
