"""Lend a build the host's ways to reach packages, without leaving a trace of them in the image.

Companies sit behind proxies with certificates of their own, and keep package indexes with passwords in
``pip.conf``. So the host's settings (pip, proxies, CA bundle, apt) are written into a folder that is
bound into the build while it runs, and read there by the first words of every step: they are neither in
the image, nor in the builder's layers or their history, nor part of what makes a cached layer stale.
"""

from __future__ import annotations

import configparser
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = "/run/glowplug-build"
"""Where a build sees the settings; ``env`` in it is meant to be read by a shell."""
LENT_FOLDER = "/run/glowplug-lent"
"""Beside it: local folders that pip looks for packages in, one numbered folder each."""

CA_BUNDLES = ("ssl/certs/ca-certificates.crt", "pki/tls/certs/ca-bundle.crt")
CA_VARIABLES = (
    "SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
# How to reach packages; options that say how to install them (target, user, prefix ..) stay out.
PIP_OPTIONS = (
    "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "TRUSTED_HOST", "PROXY", "CERT", "CLIENT_CERT",
    "DEFAULT_TIMEOUT", "TIMEOUT", "RETRIES", "CONSTRAINT", "PREFER_BINARY", "DISABLE_PIP_VERSION_CHECK",
)  # fmt: skip


@dataclass
class HostAccess:
    """The folder being filled, and the other host folders to bind (source -> place in the build)."""

    folder: Path
    etc: Path = Path("/etc")
    volumes: dict[Path, str] = field(default_factory=dict)

    def write(self, environ: Mapping[str, str], apt_options: list[str]) -> None:
        """Fill the folder from the host's environment, pip configuration and apt options."""
        self.folder.mkdir(mode=0o700)
        self.volumes[self.folder] = FOLDER
        variables = {"DEBIAN_FRONTEND": "noninteractive", "APT_CONFIG": f"{FOLDER}/apt.conf"}
        for name in (*PROXY_VARIABLES, *(name.upper() for name in PROXY_VARIABLES)):
            if name in environ:
                variables[name] = environ[name]
        for name, value in pip_settings(environ, self.etc).items():
            variables[name] = " ".join(self._lend(name, word) for word in value.split())
        bundle = self._ca_bundle(environ)
        if bundle is not None:
            variables = {**dict.fromkeys(CA_VARIABLES, self._copy(bundle)), **variables}
        netrc = Path(environ.get("NETRC") or Path(environ.get("HOME", "/root"), ".netrc"))
        if netrc.is_file():
            variables["NETRC"] = self._copy(netrc)
        self._write_apt(apt_options, variables.get("SSL_CERT_FILE"))
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())]
        (self.folder / "env").write_text("".join(lines))

    def _write_apt(self, options: list[str], bundle: str | None) -> None:
        lines = [f'Acquire::https::CaInfo "{bundle}";'] if bundle else []
        for option in options:
            name, _, value = option.rstrip(";").partition(" ")
            lines.append(f'{name} "{self._lend(name, value.strip(chr(34)))}";')
        (self.folder / "apt.conf").write_text("".join(f"{line}\n" for line in lines))

    def _ca_bundle(self, environ: Mapping[str, str]) -> Path | None:
        # PIP_CERT is for pip alone: it may be the certificate of one index.
        named = [environ[name] for name in CA_VARIABLES if name != "PIP_CERT" and environ.get(name)]
        candidates = [*(Path(name) for name in named), *(self.etc / name for name in CA_BUNDLES)]
        return next((path for path in candidates if path.is_file()), None)

    def _lend(self, name: str, word: str) -> str:
        """``word`` as the build must say it: host files are copied in, host folders bound."""
        is_url = word.startswith("file://")
        if not is_url and not word.startswith("/"):
            return word
        path = Path(unquote(urlsplit(word).path) if is_url else word)
        if path.is_file():
            inside = self._copy(path)
        elif path.is_dir():
            inside = self._bind(path, is_index=name.endswith("INDEX_URL"))
        else:
            return word
        return f"file://{inside}" if is_url else inside

    def _copy(self, path: Path) -> str:
        name = f"{len(list(self.folder.iterdir()))}-{path.name}"
        shutil.copyfile(path, self.folder / name)
        return f"{FOLDER}/{name}"

    def _bind(self, path: Path, *, is_index: bool) -> str:
        # The files of an index usually lie beside it, and its pages name them by ../..
        source = path.parent if is_index and path.parent != Path("/") else path
        place = self.volumes.setdefault(source, f"{LENT_FOLDER}/{len(self.volumes)}")
        return place if source == path else f"{place}/{path.name}"


def pip_settings(environ: Mapping[str, str], etc: Path) -> dict[str, str]:
    """The host's pip settings about reaching packages, as the variables ``PIP_*`` that say the same."""
    settings: dict[str, str] = {}
    for path in _pip_files(environ, etc):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # pip refuses such a file too, so the host's own pip never used it.
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                for key, value in parser.items(section):
                    settings[key.upper().replace("-", "_")] = " ".join(value.split())
    variables = {f"PIP_{name}": value for name, value in settings.items()} | dict(environ)
    names = [f"PIP_{option}" for option in PIP_OPTIONS]
    return {name: variables[name] for name in names if variables.get(name)}


def _pip_files(environ: Mapping[str, str], etc: Path) -> Iterator[Path]:
    """pip's configuration files, later ones winning (as ``pip config debug`` lists them)."""
    home = Path(environ.get("HOME", "/root"))
    yield etc / "xdg" / "pip" / "pip.conf"
    yield etc / "pip.conf"
    yield home / ".pip" / "pip.conf"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    if environ.get("PIP_CONFIG_FILE"):
        yield Path(environ["PIP_CONFIG_FILE"])
