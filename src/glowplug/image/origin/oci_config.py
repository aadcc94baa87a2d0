"""An OCI image's configuration: what a container starts with, and what its layers are once unpacked."""

from __future__ import annotations

import posixpath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glowplug.image.index.manifest import ImageConfig
from glowplug.image.origin.digest import Digest
from glowplug.image.origin.oci_manifest import MAX_LAYERS
from glowplug.image.origin.oci_platform import Platform
from glowplug.types.errors import InvalidInput

MAX_CONFIG_BYTES = 8 << 20  # the history of long Dockerfiles is in it; as containerd
# The settings become part of our own manifest, which is limited to 1 MiB.
MAX_SETTINGS_BYTES = 512 << 10


class _Part(BaseModel):
    # Builders write null for what is empty.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Settings(_Part):
    env: list[str] | None = Field(default=None, alias="Env")
    entrypoint: list[str] | None = Field(default=None, alias="Entrypoint")
    cmd: list[str] | None = Field(default=None, alias="Cmd")
    working_dir: str | None = Field(default=None, alias="WorkingDir")
    user: str | None = Field(default=None, alias="User")
    labels: dict[str, str] | None = Field(default=None, alias="Labels")


class _Layers(_Part):
    type: str = "layers"
    diff_ids: list[str] | None = Field(default=None, max_length=MAX_LAYERS)


class OciConfig(_Part):
    """The document that a manifest's ``config`` points at."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    settings: _Settings | None = Field(default=None, alias="config")
    rootfs: _Layers = _Layers()

    @classmethod
    def parse(cls, data: bytes) -> OciConfig:
        """Read it. Raises InvalidInput."""
        if len(data) > MAX_CONFIG_BYTES:
            raise _refused(f"it is longer than {MAX_CONFIG_BYTES} bytes")
        try:
            config = cls.model_validate_json(data)
        except ValidationError as problem:
            first = problem.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:200]
            raise _refused(f"{place or 'it'}: {first['msg'][:200]}") from problem
        if config.rootfs.type != "layers":
            raise _refused("its root filesystem is not made of layers")
        return config

    @property
    def diff_ids(self) -> list[Digest]:
        """The digests of the layers' tar archives once decompressed, lowest first. Raises InvalidInput."""
        return [Digest.parse(text) for text in self.rootfs.diff_ids or ()]

    def check_platform(self, wanted: Platform) -> None:
        """Raise InvalidInput if the image says that it is for another platform."""
        if not self.os or not self.architecture:
            return
        mine = Platform(self.os, self.architecture, self.variant or "")
        if wanted.suitability(mine) is None:
            raise InvalidInput(
                f"The image is for {mine}, not for {wanted}.",
                remedy=f"Choose an image for {wanted}; or say --platform {mine} to import it all the same.",
            )

    def image_config(self) -> ImageConfig:
        """The settings in our own words. Raises InvalidInput for what no process could be started with."""
        settings = self.settings or _Settings()
        config = ImageConfig(
            env=dict(_variable(text) for text in settings.env or ()),
            entrypoint=settings.entrypoint or [],
            cmd=settings.cmd or [],
            workdir=_absolute(settings.working_dir or "/"),
            user=settings.user or "",
            labels=settings.labels or {},
            architecture=self.architecture or Platform.here().architecture,
        )
        text = config.model_dump_json()
        if len(text.encode()) > MAX_SETTINGS_BYTES:
            raise _refused(f"its settings are longer than {MAX_SETTINGS_BYTES} bytes")
        words = (
            *config.env,
            *config.env.values(),
            *config.entrypoint,
            *config.cmd,
            config.workdir,
            config.user,
        )
        if any("\0" in word for word in words):
            raise _refused("its settings hold a null character")
        return config


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise _refused(f"{text[:100]!r} is not an environment variable")
    return name, value


def _absolute(workdir: str) -> str:
    return posixpath.join("/", workdir)


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        f"This image's configuration cannot be used: {why}.",
        remedy="It is damaged, or not of a container image: build and push the image again.",
    )
