"""A :class:`BuildImage` written as a Containerfile, the format that existing builders read.

Steps come from outside. Package names are checked, everything is quoted, and instructions are written in
their JSON form, so that no step can add an instruction, whatever it holds.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

from glowplug.image.command import clean
from glowplug.image.host_access import FOLDER
from glowplug.image.inside import DEFAULT_ENVIRONMENT, environment_of, put_first
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import BuildImage, BuildStep

DEBIAN_PYTHON = "3.11"
VENV = "/opt/venv"
# No file of a built image is newer than this (2020-01-01), and Python compiles to files that are checked by
# hash instead of by time: two builds that differ by one package then share all other bytes.
SOURCE_DATE_EPOCH = 1_577_836_800
MAX_STEPS = 100
MAX_TITLE_CHARACTERS = 200
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_APT_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+~:-]+)?")


@dataclass(frozen=True)
class Instruction:
    """One step of the Containerfile: how to call it, and its shell script (None: not a RUN)."""

    title: str
    script: str | None = None
    is_from_user: bool = False


def instructions(spec: BuildImage) -> list[Instruction]:
    """The steps in order, numbered from 1 as builders number them. Raises InvalidInput for bad ones."""
    if spec.python != DEBIAN_PYTHON:
        raise InvalidInput(
            f"Python {spec.python} cannot be built into a Debian 12 image: it comes with {DEBIAN_PYTHON}.",
            remedy=f"Use python={DEBIAN_PYTHON!r}; or use Image.host_python(venv=..) or "
            f"Image.from_directory(..) with an interpreter of version {spec.python}.",
            python=spec.python,
        )
    if len(spec.steps) > MAX_STEPS:
        raise InvalidInput(
            f"The image has {len(spec.steps)} steps; {MAX_STEPS} are allowed.",
            remedy="Join commands with && in one step.",
        )
    first = [
        Instruction("base system"),
        Instruction(f"virtual environment {VENV}", _script(spec, f"python3 -m venv {VENV}")),
    ]
    return first + [_instruction(spec, step) for step in spec.steps]


def built_environment(spec: BuildImage) -> dict[str, str]:
    """What processes in the image find set: the virtual environment is active."""
    env = environment_of({**DEFAULT_ENVIRONMENT, "VIRTUAL_ENV": VENV}, spec.env)
    return {**env, "PATH": put_first(env["PATH"], f"{VENV}/bin")}


def containerfile(base: str, steps: list[Instruction]) -> str:
    """The text of the Containerfile that starts from the image ``base``."""
    scripts = [step.script for step in steps if step.script is not None]
    lines = [f"FROM {base}", *(f"RUN {json.dumps(['/bin/sh', '-c', script])}" for script in scripts)]
    return "".join(f"{line}\n" for line in lines)


def _instruction(spec: BuildImage, step: BuildStep) -> Instruction:
    if any("\0" in argument for argument in step.args):
        raise InvalidInput(f"A {step.op} step holds a null character.", remedy="Remove it.")
    words = " ".join(" ".join(step.args).split())
    title = clean(f"{step.op} {words}".encode(errors="replace"))[:MAX_TITLE_CHARACTERS]
    match step.op:
        case "apt":
            script = _apt_script(step)
        case "pip":
            script = _pip_script(step)
        case "run":
            workdir = shlex.quote(spec.workdir)
            script = f"mkdir -p {workdir}\ncd {workdir}\n" + "\n".join(step.args)
    return Instruction(title, _script(spec, script), is_from_user=True)


def _apt_script(step: BuildStep) -> str:
    for package in step.args:
        if not _APT_PACKAGE.fullmatch(package):
            raise InvalidInput(
                f"{package!r} is not the name of a Debian package.",
                remedy="Write name, name=version or name:architecture; options go into run_commands().",
                package=package,
            )
    packages = shlex.join(step.args)
    return (
        "apt-get update -q\n"
        f"apt-get install -q -y -o Dpkg::Use-Pty=0 --no-install-recommends {packages}\n"
        "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb"
    )


def _pip_script(step: BuildStep) -> str:
    for requirement in step.args:
        if requirement.lstrip().startswith("-") or not requirement.strip():
            raise InvalidInput(
                f"{requirement!r} is not a Python requirement.",
                remedy="Write name, name==version or a URL; options go into run_commands().",
                requirement=requirement,
            )
    return f"pip install --no-cache-dir --progress-bar off {shlex.join(step.args)}"


def _script(spec: BuildImage, body: str) -> str:
    """``body`` under the image's own environment, with what the host lends on top while it builds."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(_env(spec).items()))
    return f"set -e\nexport SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}\n{exports}. {FOLDER}/env\n{body}"


def _env(spec: BuildImage) -> dict[str, str]:
    for name in spec.env:
        if not _SHELL_NAME.fullmatch(name):
            raise InvalidInput(
                f"The environment variable {name!r} cannot be set while an image is built.",
                remedy="Use letters, digits and underscores, or set it on the server instead of the image.",
                name=name,
            )
    return built_environment(spec)
