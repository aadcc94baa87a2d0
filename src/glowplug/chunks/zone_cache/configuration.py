"""The configuration of a zone's nginx: a template, filled with nothing that was not checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from glowplug.chunks.http_address import HttpAddress
from glowplug.types.errors import InvalidInput

SLICE_BYTES = 1 << 20
CA_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_KEYS_PER_MEBIBYTE = 8000  # nginx's documentation of keys_zone
_LISTEN = re.compile(r"(?:(\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+\]|\*):)?(\d{1,5})")
_FOLDER = re.compile(r"(/[A-Za-z0-9._@+=,-]+)+")
LEAST_BYTES = 64 << 20


@dataclass(frozen=True)
class CacheSettings:
    """What distinguishes one zone cache from another."""

    origin: HttpAddress
    listen: str
    folder: Path
    max_bytes: int
    min_free_bytes: int
    user: str | None
    workers: int

    def __post_init__(self) -> None:
        """Raises InvalidInput for what has no place in a configuration."""
        found = _LISTEN.fullmatch(self.listen)
        if not found or not 0 < int(found[2]) < 65536:
            raise InvalidInput(
                f"{self.listen[:100]!r} is nothing to listen on.", remedy="Use PORT, or ADDRESS:PORT."
            )
        if not _FOLDER.fullmatch(str(self.folder)) or ".." in self.folder.parts:
            raise InvalidInput(
                f"{str(self.folder)!r} cannot be the folder of a zone cache.",
                remedy="Use an absolute path of letters, digits and . _ @ + = , - only.",
            )
        if self.max_bytes < LEAST_BYTES:
            raise InvalidInput(
                f"A zone cache of {self.max_bytes} bytes holds next to nothing.",
                remedy=f"Give it {LEAST_BYTES >> 20} MiB or more.",
            )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.listen.rpartition(":")[2])

    def files(self) -> dict[str, str]:
        """The configuration, by file name."""
        keys = self.max_bytes // SLICE_BYTES
        origin = self.origin
        main = _template("nginx.conf").substitute(
            folder=self.folder,
            workers=self.workers,
            user_line=f"user {self.user};" if self.user else "",
            keys_mebibytes=max(10, 2 * keys // _KEYS_PER_MEBIBYTE),
            max_bytes=self.max_bytes,
            min_free_bytes=self.min_free_bytes,
            origin_server=f"{origin.host_in_url}:{origin.port}",
            origin_host=origin.netloc,
            origin_scheme=origin.scheme,
            origin_prefix=origin.prefix,
            listen=self.listen,
            tls_lines=_tls_lines(origin),
        )
        return {"nginx.conf": main, "cached.conf": _template("cached.conf").template}


def _template(name: str) -> Template:
    return Template(resources.files(__package__).joinpath(f"{name}.template").read_text("utf-8"))


def _tls_lines(origin: HttpAddress) -> str:
    if not origin.is_tls:
        return ""
    # What comes is verified by hash; it is the signature going there that must not reach anybody else.
    return "\n".join(
        (
            "    proxy_ssl_server_name on;",
            f'    proxy_ssl_name "{origin.host}";',
            "    proxy_ssl_verify on;",
            "    proxy_ssl_verify_depth 4;",
            f'    proxy_ssl_trusted_certificate "{CA_CERTIFICATES}";',
            "    proxy_ssl_session_reuse on;",
        )
    )
