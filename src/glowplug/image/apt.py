"""How this machine reaches Debian's packages: its mirrors and proxies, so that builds go the same way."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from glowplug.types.errors import RuntimeFailed

SUITE = "bookworm"
SUITES = frozenset({SUITE, f"{SUITE}-updates", f"{SUITE}-security"})
COMPONENTS = frozenset({"main", "contrib", "non-free", "non-free-firmware"})
ANSWER_TIMEOUT_S = 30.0
# What concerns reaching a mirror, as opposed to what to download from it.
_REACHING = re.compile(
    r"Acquire::((https?|ftp)::[\w:.-]+|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]) \"[^\"]+\";"
)
# Scripts that choose a proxy, and sockets of the host, are not there during a build.
_UNREACHABLE = re.compile(r"Acquire::https?::(Proxy-Auto-Detect|ProxyAutoDetect|User-Agent)", re.IGNORECASE)


def debian_sources(etc_apt: Path = Path("/etc/apt")) -> list[str]:
    """Lines for a ``sources.list``: what the machine's own sources say about the suites we build from."""
    found: dict[str, None] = {}
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        entries = _stanzas(text) if path.suffix == ".sources" else _one_liners(text)
        for uri, suite, components in entries:
            wanted = [component for component in components if component in COMPONENTS]
            if uri.startswith(("http://", "https://")) and suite in SUITES and "main" in wanted:
                found[f"deb {uri} {suite} {' '.join(wanted)}"] = None
    return list(found)


def reaching_options() -> list[str]:
    """Lines of ``apt.conf`` that say how this machine reaches its mirrors."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=ANSWER_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise RuntimeFailed(
            f"apt's configuration cannot be read: {problem}.", remedy="Run `apt-config dump` to see why."
        ) from problem
    return [
        line
        for line in dump.stdout.splitlines()
        if _REACHING.fullmatch(line) and not _UNREACHABLE.match(line)
    ]


def _one_liners(text: str) -> Iterator[tuple[str, str, list[str]]]:
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)(#.*)?", line)
        if match:
            yield match[2], match[3], match[4].split()


def _stanzas(text: str) -> Iterator[tuple[str, str, list[str]]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        is_enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if not is_enabled or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split()
