"""Checks of programs and libraries: what is missing here can mostly be installed by ``doctor --fix``."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import sys
from pathlib import Path

from glowplug.cli.checks import Check, Finding, Fix, fail, ok, warn
from glowplug.cli.machine import Completed, Machine
from glowplug.runtime.criu import SERIES as CRIU_SERIES
from glowplug.snapshot.gpu.features import can, features_of
from glowplug.types.paths import TOOLS_DIR, StateDir

RUNSC = TOOLS_DIR / "runsc"
CRIU = TOOLS_DIR / "criu"
_OLDEST_RUNSC = "20240101"  # Debian 12's own, of 2022, cannot restore what it checkpoints
_TRY_S = 20.0


def tool_checks(state_root: Path) -> list[Check]:
    """Checks of what must or may be installed; images are mounted below ``state_root``."""
    return [
        Check(
            "runsc",
            "gVisor's runtime: isolates replicas, captures and restores their memory.",
            "glowplug doctor --fix installs Debian's backport into " + str(TOOLS_DIR),
            _runsc,
            Fix(installs_runsc=True),
        ),
        Check(
            "sandbox",
            "A sandbox with /bin/true was started to see whether runsc works on this kernel.",
            "Read what runsc says (found); in a container it needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.",
            _sandbox,
        ),
        _debian_tool("runc", "Optional: servers with runtime='runc', on the host's own kernel."),
        Check(
            "criu",
            "Optional: captures and restores the memory of servers with runtime='runc'.",
            f"scripts/setup_criu.sh builds CRIU {CRIU_SERIES} and puts it into {TOOLS_DIR}",
            _criu,
        ),
        _debian_tool("buildah", "Builds images for Image.debian_slim()."),
        _debian_tool("mmdebstrap", "Makes the base root filesystem for Image.debian_slim()."),
        _debian_tool("nft", "Optional, for filtering the traffic of replicas.", package="nftables"),
        _debian_tool("nginx", "Optional, for `glowplug zone-cache up`.", package="nginx-light"),
        Check(
            "image mounts",
            "Images are mounted before their content is here; each way of doing so was tried.",
            "Linux 6.12 or newer with CONFIG_EROFS_FS and CONFIG_FUSE_FS, the state directory on a disk; "
            "in a container: with CAP_SYS_ADMIN and /dev/fuse.",
            lambda machine: _image_mounts(machine, state_root),
        ),
        Check(
            "restores",
            "Three different snapshots that failed in a row make a node start servers cold only.",
            "Look at logs/agent.log, the disk (`dmesg`) and the runtime; one restore is tried by itself.",
            lambda machine: _restores(machine, state_root),
        ),
        Check(
            "gpu",
            "Optional: servers that ask for a GPU.",
            "Install NVIDIA's driver, 570 or newer, its container toolkit and glowplug[gpu]: docs/gpu.md.",
            _gpu,
        ),
        Check("python", "Glowplug itself.", "Python 3.11 or newer.", _python),
        Check(
            "matplotlib",
            "Optional: glowplug coldstarts --svg.",
            "pip install 'glowplug[plot]'",
            _matplotlib,
        ),
    ]


def find_runsc(machine: Machine) -> Path | None:
    """The one the agent will use: the named one, ours, any other (a distribution's own may be too old)."""
    named = machine.variable("GLOWPLUG_RUNSC")
    return machine.which(named) if named else machine.which(str(RUNSC)) or machine.which("runsc")


def start_sandbox(machine: Machine, runsc: Path, root: Path) -> Completed:
    """Run /bin/true in a sandbox without a network; ``root`` is a scratch folder for runsc's state."""
    return machine.run(
        [
            str(runsc), "--root", str(root), "--platform=systrap", "--network=none",
            "do", "/bin/true",
        ],
        _TRY_S,
    )  # fmt: skip


def _runsc(machine: Machine) -> Finding:
    path = find_runsc(machine)
    if path is None:
        return fail("not installed")
    done = machine.run([str(path), "--version"], _TRY_S)
    version = re.search(r"runsc version (\S+)", done.output)
    if not done.is_good or version is None:
        return fail(f"{path} does not run: {done.last_line}")
    found = f"{version[1]} at {path}"
    date = re.search(r"20\d{6}", version[1])
    if date is not None and date[0] < _OLDEST_RUNSC:
        return fail(f"{found}: too old")
    return ok(found)


def _sandbox(machine: Machine) -> Finding:
    path = find_runsc(machine)
    if path is None:
        return fail("no runsc to try")
    scratch = machine.run(["mktemp", "-d"], _TRY_S)
    if not scratch.is_good:
        return fail(f"no scratch folder: {scratch.last_line}")
    done = start_sandbox(machine, path, Path(scratch.last_line))
    machine.run(["rm", "-rf", scratch.last_line], _TRY_S)
    return ok("started and ended") if done.is_good else fail(done.last_line or f"exit code {done.code}")


def _criu(machine: Machine) -> Finding:
    named = machine.variable("GLOWPLUG_CRIU")
    path = machine.which(named) if named else machine.which(str(CRIU)) or machine.which("criu")
    if path is None:
        return warn("not installed")
    version = re.search(r"Version: (\S+)", machine.run([str(path), "--version"], _TRY_S).output)
    if version is None:
        return warn(f"{path} does not run")
    found = f"{version[1]} at {path}"
    if not version[1].startswith(f"{CRIU_SERIES}"):
        return warn(f"{found}: not the {CRIU_SERIES} that was tested")
    tried = machine.run([str(path), "check"], _TRY_S)
    return ok(found) if tried.is_good else warn(f"{found} does not work on this kernel: {tried.last_line}")


def _debian_tool(name: str, why: str, package: str | None = None) -> Check:
    def probe(machine: Machine) -> Finding:
        path = machine.which(name)
        return ok(str(path)) if path else warn("not installed")

    package = package or name
    return Check(name, why, f"apt-get install {package}", probe, Fix(packages=(package,)))


def _restores(machine: Machine, state_root: Path) -> Finding:
    try:
        record = json.loads(machine.read(StateDir(state_root).probation) or "{}")
        if not record.get("backoff_s"):
            return ok("this node restores")
        return warn(
            f"quarantined: {', '.join(record['failed'])} failed in a row; the last: {record['reason']}"
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        return warn(f"{StateDir(state_root).probation} is damaged; the agent begins anew with it")


def _image_mounts(machine: Machine, state_root: Path) -> Finding:
    support = machine.image_mounts(state_root)
    found = " ".join(support.explain())
    if not support.ways:
        return fail(found)
    return ok(found) if support.ways[0] == "lazy" else warn(found)


def _gpu(machine: Machine) -> Finding:
    found = machine.gpus()
    if isinstance(found, str):
        return warn(found) if found else ok("none: CPU only")
    devices = "; ".join(f"{device.chip}: {device.state}" for device in found.devices) or "none listed"
    features = ", ".join(feature.name for feature in features_of(found.driver)) or "no snapshots"
    hidden = machine.why_gpus_are_hidden()
    is_fit = all(device.is_fit for device in found.devices) and can(found.driver, "checkpoint") and not hidden
    words = f"{devices}; driver {found.driver}: {features}"
    return (ok if is_fit else warn)(f"{words}; {hidden}" if hidden else words)


def _python(machine: Machine) -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    return ok(found) if sys.version_info >= (3, 11) else fail(found)


def _matplotlib(machine: Machine) -> Finding:
    return ok("installed") if importlib.util.find_spec("matplotlib") else warn("not installed")
