"""``Image.from_registry``, ``from_dockerfile``, ``from_name``: images that are indexes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glowplug.image.index.catalog import Catalog
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.inside import DEFAULT_ENVIRONMENT, environment_of
from glowplug.image.job import Job
from glowplug.image.local_dirs import content_digest, real_folder
from glowplug.image.source import Prepared, make_overlay_folders
from glowplug.image.task_runner import TaskRunner
from glowplug.types.errors import InvalidInput, NotFound
from glowplug.types.image import DescribeTask, ImportTask, PullTask, ResolveTask
from glowplug.types.spec import DockerfileImage, NamedImage, RegistryImage

IndexedImage = RegistryImage | DockerfileImage | NamedImage


@dataclass(frozen=True)
class IndexedSource:
    """An index that is here (``image`` names it), or the import that makes it."""

    spec: IndexedImage
    is_of: Mapping[str, object]
    obtain: ImportTask | str
    tasks: TaskRunner

    def identity(self) -> dict[str, object]:
        """The digest of what it is made of."""
        return dict(self.is_of)

    def prepare(self, folder: Path, job: Job) -> Prepared:
        """Import it unless that was done; then ask it what a container needs to know."""
        image = self.obtain
        if isinstance(image, ImportTask):
            image = str(self.tasks.run(image, job.part(0.0, 0.95))["digest"])
        facts = self.tasks.run(DescribeTask(image=image), job.part(0.95, 1.0))
        config = ImageConfig.model_validate(facts["config"])
        make_overlay_folders(folder)
        return Prepared(
            env=environment_of({**DEFAULT_ENVIRONMENT, **config.env}, self.spec.env),
            python=facts["python"],
            digest=facts["digest"],
            content_bytes=facts["content_bytes"],
            workdir=self.spec.workdir or config.workdir or "/",
        )


def look_at_named(spec: NamedImage, catalog: Catalog, tasks: TaskRunner, job: Job) -> IndexedSource:
    """Find the index here, else fetch it from the region (a few MB). Raises NotFound."""
    try:
        digest = catalog.resolve(spec.name)
    except NotFound:
        digest = str(tasks.run(PullTask(image=spec.name), job)["digest"])
    return IndexedSource(spec, {"digest": digest}, digest, tasks)


def look_at_registry(spec: RegistryImage, tasks: TaskRunner, job: Job) -> IndexedSource:
    """Ask the registry what the reference stands for now. Raises what the registry's client raises."""
    source = f"docker://{spec.ref}"
    resolved: dict[str, Any] = tasks.run(ResolveTask(source=source, insecure=spec.insecure), job)
    pinned = f"docker://{resolved['pinned']}"
    return IndexedSource(
        spec,
        {"manifest": resolved["manifest"], "platform": resolved["platform"]},
        ImportTask(source=pinned, insecure=spec.insecure),
        tasks,
    )


def look_at_dockerfile(spec: DockerfileImage, tasks: TaskRunner) -> IndexedSource:
    """Read the Dockerfile and look over its context. Raises InvalidInput for what is not there."""
    context = real_folder(spec.context_dir, "build context")
    try:
        text = Path(spec.path).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"The Dockerfile {spec.path} cannot be read on this node: {error.strerror}.",
            remedy="Name a file that exists on the machine that runs the replicas.",
            path=spec.path,
        ) from error
    return IndexedSource(
        spec,
        {
            "dockerfile": hashlib.sha256(text).hexdigest(),
            "context": content_digest(context),
            "build_args": spec.build_args,
        },
        ImportTask(source=f"dockerfile:{spec.path}", context_dir=str(context), build_args=spec.build_args),
        tasks,
    )
