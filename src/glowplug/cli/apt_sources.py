"""Where this machine gets Debian packages from, read from its own configuration.

Companies have their own mirrors; we name none. Both of apt's formats are understood, deb822 (``*.sources``)
and one line each (``*.list``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glowplug.types.errors import SystemUnfit

_CODENAMES = ("bookworm", "trixie", "forky", "sid")
_MOVING_NAMES = ("oldstable", "stable", "testing", "unstable")
_APT_NO = ("no", "false", "without", "off", "disable", "0")


@dataclass(frozen=True)
class AptSource:
    """One archive: where it is, which suites and components of it are used."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]

    def serves(self, names: tuple[str, ...]) -> bool:
        """Whether it has the main component of one of the releases ``names``."""
        return "main" in self.components and any(suite in names for suite in self.suites)


def read_sources(etc_apt: Path = Path("/etc/apt")) -> list[AptSource]:
    """All sources of the machine, in apt's order."""
    folder = etc_apt / "sources.list.d"
    files = [etc_apt / "sources.list", *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    found: list[AptSource] = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".list":
            found += parse_one_line(text)
        elif file.suffix == ".sources":
            found += parse_deb822(text)
    return found


def debian_mirror(sources: list[AptSource]) -> str:
    """The address of the machine's Debian archive, the one that also holds the backports.

    Raises SystemUnfit when none is configured.
    """
    # Codenames first: third parties like to call their only suite "stable".
    archives = [s.uri for names in (_CODENAMES, _MOVING_NAMES) for s in sources if s.serves(names)]
    mirror = next(iter(archives), None)
    if mirror is None:
        raise SystemUnfit(
            "No Debian package source is configured on this machine.",
            remedy="Add one in /etc/apt/sources.list.d, or install the piece by hand (`glowplug doctor`).",
        )
    return mirror


def parse_one_line(text: str) -> Iterator[AptSource]:
    """``deb [options] URI SUITE COMPONENT...``, one per line."""
    for line in text.splitlines():
        content = line.partition("#")[0].strip()
        match = re.fullmatch(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)", content)
        if match:
            yield AptSource(match[1], (match[2],), tuple(match[3].split()))


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Paragraphs of ``Field: value`` with continuation lines."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = _fields(paragraph)
        enabled = " ".join(fields.get("enabled", ["yes"])).lower()
        if enabled in _APT_NO or "deb" not in fields.get("types", []):
            continue
        for uri in fields.get("uris", []):
            yield AptSource(uri, tuple(fields.get("suites", [])), tuple(fields.get("components", [])))


def _fields(paragraph: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in paragraph.splitlines():
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t"):
            if current is not None:
                current += line.split()
        elif colon:
            current = fields.setdefault(name.strip().lower(), [])
            current += value.split()
    return fields
