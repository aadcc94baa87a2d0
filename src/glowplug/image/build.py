"""``Image.debian_slim().apt_install().pip_install().run_commands()``: built by buildah, kept as an index.

We write no builder: mmdebstrap makes the base, buildah runs the steps and caches one layer per step, and
the result is copied out and imported, so that a finished image depends on no builder and no cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glowplug.image.apt import reaching_options
from glowplug.image.base import base_name, ensure_base, recipe
from glowplug.image.buildah import Buildah, failure
from glowplug.image.containerfile import (
    SOURCE_DATE_EPOCH,
    VENV,
    Instruction,
    built_environment,
    containerfile,
    instructions,
)
from glowplug.image.host_access import FOLDER, LENT_FOLDER, HostAccess
from glowplug.image.job import Job
from glowplug.image.skeleton import add_mount_point, in_root, make_empty_files
from glowplug.image.source import Prepared, make_overlay_folders
from glowplug.image.task_runner import TaskRunner
from glowplug.types.errors import InvalidInput, RuntimeFailed
from glowplug.types.image import ImportTask
from glowplug.types.spec import BuildImage

STEPS_SHARE = 0.9  # of the progress bar; the rest is copying the result out and importing it
IMPORT_STARTS = 0.93
_STEP = re.compile(r"STEP (\d+)/(\d+): ")


class StepReader:
    """Follows buildah's output: which step it is at, how far that is.

    A step's own output may look like buildah's, so only the step that must come next is believed.
    """

    def __init__(self, steps: list[Instruction], job: Job) -> None:
        self._steps = steps
        self._job = job
        self._number = 0

    @property
    def current(self) -> Instruction:
        """The step begun last."""
        return self._steps[max(self._number, 1) - 1]

    def read(self, line: str) -> None:
        """One line of output."""
        match = _STEP.match(line)
        total = len(self._steps)
        if match and (int(match[1]), int(match[2])) == (self._number + 1, total):
            self._number += 1
            line = f"step {self._number}/{total}: {self.current.title}"
        self._job.say(line, STEPS_SHARE * max(self._number - 1, 0) / total)


@dataclass(frozen=True)
class BuildSource:
    """A build whose steps were found well formed. Made by :func:`look_at_build`."""

    spec: BuildImage
    steps: list[Instruction]
    buildah: Buildah
    environ: Mapping[str, str]
    tasks: TaskRunner

    @property
    def tag(self) -> str:
        """The built image's name in the builder's storage: equal steps share it."""
        text = containerfile(base_name(), self.steps)
        return f"localhost/glowplug-image:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def identity(self) -> dict[str, object]:
        """The base's recipe and the steps; not the day they ran: what is built stays as it is."""
        steps = [step.model_dump(mode="json") for step in self.spec.steps]
        return {"recipe": recipe(), "python": self.spec.python, "steps": steps}

    def prepare(self, folder: Path, job: Job) -> Prepared:
        """Build, and import the result: the index holds everything, ``folder`` only mount points."""
        root = folder / "built"
        with self.buildah.session(job):
            base = ensure_base(self.buildah, job, self.environ)
            self._build(base, job)
            self._export(root, job)
        for place in (FOLDER, LENT_FOLDER):
            lent = in_root(root, Path(place))
            if lent.exists():
                shutil.rmtree(lent)
        make_empty_files(root)
        for place in ("/.glowplug/lib", "/app", "/run/glowplug", self.spec.workdir):
            add_mount_point(root, Path(place), is_folder=True)
        job.say("importing the built image", IMPORT_STARTS)
        result = self.tasks.run(
            ImportTask(source=str(root), clamp_to_s=SOURCE_DATE_EPOCH), job.part(IMPORT_STARTS, 1.0)
        )
        shutil.rmtree(root)
        make_overlay_folders(folder)
        return Prepared(
            env=built_environment(self.spec),
            python=f"{VENV}/bin/python",
            digest=result["digest"],
            content_bytes=result["content_bytes"],
            workdir=self.spec.workdir,
        )

    def _build(self, base: str, job: Job) -> None:
        context = self.buildah.scratch / "context"
        context.mkdir()
        (context / "Containerfile").write_text(containerfile(base, self.steps))
        access = HostAccess(self.buildah.scratch / "access")
        access.write(self.environ, reaching_options())
        volumes = [f"--volume={source}:{place}:ro" for source, place in access.volumes.items()]
        reader = StepReader(self.steps, job)
        options = ["--layers", "--force-rm", "--pull=never", "--isolation=chroot", "--network=host"]
        ended = self.buildah.run(
            job,
            "building",
            *["bud", *options, "--http-proxy=false", *volumes, f"--tag={self.tag}", str(context)],
            on_line=reader.read,
        )
        if ended.exit_code != 0:
            step = reader.current
            raise failure(
                f"The image's step `{step.title}` failed.",
                ended,
                kind=InvalidInput if step.is_from_user else RuntimeFailed,
                remedy="The output of the step says why; change the step and deploy again.",
                step=step.title,
            )

    def _export(self, root: Path, job: Job) -> None:
        stage = "copying the image out"
        job.say(stage, STEPS_SHARE)
        root.mkdir()
        self.buildah.copy_out(job, stage, self.tag, root)


def look_at_build(
    spec: BuildImage, buildah: Buildah, environ: Mapping[str, str], tasks: TaskRunner
) -> BuildSource:
    """Check the steps; raises InvalidInput telling what is wrong with one."""
    return BuildSource(spec, instructions(spec), buildah, environ, tasks)
