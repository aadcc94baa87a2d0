"""A Dockerfile as an origin: buildah builds it, exactly as it would for anybody, and we read what it made.

We write no builder. The build runs as those of :mod:`glowplug.image.build` do, in the same storage, whose
cached layers make the next build of the same file quick; nothing else is left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from glowplug.image.buildah import Buildah, failure
from glowplug.image.host_access import CA_VARIABLES, PROXY_VARIABLES
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.oci_layout import LayoutOrigin
from glowplug.image.origin.oci_platform import Platform
from glowplug.image.origin.port import ContentSink
from glowplug.types.errors import InvalidInput, NotFound

TAG = "image"
_STEP = re.compile(r"STEP ([0-9]{1,5})/([0-9]{1,5}): (.*)")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REGISTRY = re.compile(r"[A-Za-z0-9.:\[\]-]{1,300}")
_SEARCHES = re.compile(r"^\s*unqualified-search-registries\s*=", re.MULTILINE)


class DockerfileOrigin:
    """An :class:`~glowplug.image.origin.port.Origin`: what a Dockerfile builds.

    ``storage`` is buildah's, as for :class:`~glowplug.image.buildah.Buildah`. ``plain_http_registries`` are
    those (``127.0.0.1:5000``) that FROM may pull from unencrypted.
    """

    def __init__(
        self,
        dockerfile: Path,
        context: Path,
        *,
        storage: Path,
        build_args: Mapping[str, str] | None = None,
        platform: Platform | None = None,
        plain_http_registries: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        limits: ArchiveLimits | None = None,
    ) -> None:
        """Raises InvalidInput for what no build could be started with."""
        self._dockerfile = dockerfile.absolute()
        self._context = context.absolute()
        self._storage = storage
        self._build_args = dict(build_args or {})
        self._platform = platform
        self._plain_http_registries = tuple(plain_http_registries)
        self._environ = os.environ if environ is None else environ
        self._limits = limits
        for name, value in self._build_args.items():
            if not _ARGUMENT.fullmatch(name) or "\0" in value:
                raise InvalidInput(f"{name[:100]!r} cannot be a build argument.", remedy="Write NAME=VALUE.")
        for registry in self._plain_http_registries:
            if not _REGISTRY.fullmatch(registry):
                raise InvalidInput(
                    f"{registry[:100]!r} is not a registry.", remedy="Write host or host:port."
                )

    def describe(self) -> str:
        """See :class:`~glowplug.image.origin.port.Origin`."""
        return f"Dockerfile {self._dockerfile}"

    def read(self, sink: ContentSink, job: Job) -> tuple[Tree, ImageConfig]:
        """See :class:`~glowplug.image.origin.port.Origin`.

        Raises InvalidInput for a step that fails, NotFound, SystemUnfit without buildah or root,
        ResourceExhausted.
        """
        if not self._dockerfile.is_file() or not self._context.is_dir():
            raise NotFound(
                f"There is no Dockerfile {self._dockerfile}, or no folder {self._context}.",
                remedy="Write dockerfile:PATH with the file, or with the folder that holds it.",
            )
        buildah = Buildah(self._storage, job.clock, _reaching(self._environ))
        with buildah.session(job):
            self._build(buildah, job)
            layout = buildah.scratch / "layout"
            stage = "taking the image from buildah"
            job.say(stage)
            # Not compressed: it is read once, from here.
            options = ["--quiet", "--format=oci", "--disable-compression"]
            buildah.ask(job, stage, "push", *options, self._tag, f"oci:{layout}:{TAG}")
            origin = LayoutOrigin(
                layout, TAG, scratch=buildah.scratch, platform=self._platform, limits=self._limits
            )
            return origin.read(sink, job)

    @property
    def _tag(self) -> str:
        """One per Dockerfile: a build takes the place of the one before."""
        key = f"{self._dockerfile}\0{self._context}\0{self._platform}"
        return f"localhost/glowplug-dockerfile:{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}"

    def _build(self, buildah: Buildah, job: Job) -> None:
        steps = _Steps(job)
        registries = buildah.scratch / "registries.conf"
        registries.write_text(self._registries(Path("/etc/containers/registries.conf")))
        options = ["--layers", "--force-rm", "--isolation=chroot", "--network=host", "--http-proxy=true"]
        options += [f"--build-arg={name}={value}" for name, value in self._build_args.items()]
        if self._platform is not None:
            options.append(f"--platform={self._platform}")
        if (logins := self._logins()).is_file():
            options.append(f"--authfile={logins}")
        ended = buildah.run(
            job,
            "building",
            *[f"--registries-conf={registries}", "bud", *options, f"--tag={self._tag}"],
            *[f"--file={self._dockerfile}", str(self._context)],
            on_line=steps.read,
        )
        if ended.exit_code != 0:
            raise failure(
                f"The Dockerfile's {steps.current} failed.",
                ended,
                kind=InvalidInput,
                remedy="The output of the step says why; change it and import again.",
                step=steps.current,
            )

    def _registries(self, of_host: Path) -> str:
        """The host's own settings; names without a registry are Docker Hub's unless those say otherwise."""
        text = of_host.read_text(errors="replace") if of_host.is_file() else ""
        first = "" if _SEARCHES.search(text) else 'unqualified-search-registries = ["docker.io"]\n'
        plain = "".join(
            f'\n[[registry]]\nlocation = "{registry}"\ninsecure = true\n'
            for registry in self._plain_http_registries
        )
        return f"{first}{text}\n{plain}"

    def _logins(self) -> Path:
        folder = self._environ.get("DOCKER_CONFIG") or f"{self._environ.get('HOME', '/root')}/.docker"
        return Path(folder, "config.json")


def _reaching(environ: Mapping[str, str]) -> dict[str, str]:
    """The host's proxies and certificates: the builder pulls what FROM names.

    Its steps get the proxies too, as Docker's do; neither becomes a part of the image.
    """
    wanted = {*PROXY_VARIABLES, *(name.upper() for name in PROXY_VARIABLES), CA_VARIABLES[0]}
    return {name: environ[name] for name in sorted(wanted) if name in environ}


class _Steps:
    """Follows buildah's output. A step's own output may look like it, so only the next step is believed."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._number = 0
        self._share = 0.0
        self.current = "first step"

    def read(self, line: str) -> None:
        """One line of output."""
        match = _STEP.fullmatch(line)
        if match and int(match[1]) == self._number + 1 <= int(match[2]):
            self._number += 1
            self._share = (self._number - 1) / int(match[2])
            self.current = f"step {match[1]}/{match[2]} ({match[3][:200]})"
        self._job.say(line, self._share)
