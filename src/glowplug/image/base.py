"""The Debian root filesystem that every built image starts from: made by mmdebstrap, once per node."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from glowplug.image.apt import SUITE, debian_sources, reaching_options
from glowplug.image.buildah import Buildah, failure
from glowplug.image.command import stream
from glowplug.image.containerfile import SOURCE_DATE_EPOCH
from glowplug.image.host_access import PROXY_VARIABLES
from glowplug.image.inside import DEFAULT_PATH
from glowplug.image.job import Job

RECIPE_VERSION = 2
PACKAGES = ("ca-certificates", "python3", "python3-venv")
# A server needs neither; later apt steps inherit it.
EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
KEPT = ("/usr/share/doc/*/copyright",)
HOOKS = (
    # How this machine reaches its mirrors is not the image's business.
    'rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
    # Installing a package must not start its service: there is no init during a build.
    'printf "#!/bin/sh\\nexit 101\\n" > "$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"',
)


def recipe() -> dict[str, object]:
    """Everything that decides what the base holds, apart from Debian's own updates."""
    return {
        "version": RECIPE_VERSION,
        "suite": SUITE,
        "machine": platform.machine(),
        "packages": list(PACKAGES),
        "excluded": [*EXCLUDED, *KEPT],
        "hooks": list(HOOKS),
    }


def base_name() -> str:
    """The base's name in the builder's storage."""
    key = hashlib.sha256(json.dumps(recipe(), sort_keys=True).encode()).hexdigest()[:16]
    return f"localhost/glowplug-base:{key}"


def ensure_base(buildah: Buildah, job: Job, environ: Mapping[str, str]) -> str:
    """Make the base unless the storage has it; returns its name. Call within the storage's session."""
    name = base_name()
    if buildah.has_image(job, name):
        return name
    archive = buildah.scratch / "base.tar"
    _make_archive(archive, buildah.scratch, job, environ)
    stage = "importing the base system"
    job.say(stage)
    container = buildah.ask(job, stage, "from", "scratch")
    buildah.ask(job, stage, "add", "--quiet", container, str(archive), "/")
    buildah.ask(job, stage, "commit", "--quiet", container, name)
    buildah.ask(job, stage, "rm", container)
    archive.unlink()
    return name


def _make_archive(archive: Path, scratch: Path, job: Job, environ: Mapping[str, str]) -> None:
    stage = f"making a Debian {SUITE} base system (once per node)"
    job.say(stage)
    arguments = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    arguments += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    arguments += [f"--dpkgopt=path-include={pattern}" for pattern in KEPT]
    arguments += [f"--customize-hook={hook}" for hook in HOOKS]
    if options := reaching_options():
        (scratch / "apt.conf").write_text("".join(f"{option}\n" for option in options))
        arguments.append(f"--aptopt={scratch / 'apt.conf'}")
    arguments += [SUITE, str(archive)]
    if sources := debian_sources():
        (scratch / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        arguments.append(str(scratch / "sources.list"))
    else:
        job.say(f"note: this machine has no apt sources for {SUITE}; using mmdebstrap's own default mirror")
    proxies = {name: value for name, value in environ.items() if name.lower() in PROXY_VARIABLES}
    ended = stream(
        arguments,
        job,
        stage=stage,
        environment={
            **proxies,
            "PATH": DEFAULT_PATH,
            "TMPDIR": str(scratch),
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
        },
        on_line=lambda line: job.say(line.removeprefix("I: ")),
    )
    if ended.exit_code != 0:
        raise failure(
            "mmdebstrap could not make the base system.",
            ended,
            remedy="Check that this machine reaches its Debian mirror (apt-get update).",
        )
