"""The doctor: on this machine for real, and on machines that are ill."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from glowplug.cli.checks import Check, Level, run_checks
from glowplug.cli.checks_kernel import kernel_checks
from glowplug.cli.checks_tools import RUNSC, tool_checks
from glowplug.cli.machine import Completed, LocalMachine
from glowplug.image.lazy.probe import WAYS, MountSupport, Trial
from glowplug.snapshot.gpu.inventory import Device, Inventory

from .conftest import Glowplug

RUNSC_SAYS = "/usr/bin/runsc --version"
CRIU_SAYS = "/usr/bin/criu --version"
V1_MOUNTS = "".join(
    f"cgroup /sys/fs/cgroup/{name} cgroup rw,{name} 0 0\n" for name in ("cpu", "memory", "pids")
)
NO_V2 = {"/sys/fs/cgroup/cgroup.controllers": ""}


class PaperMachine:
    """A machine described in a test; as described by default it is fit."""

    def __init__(self) -> None:
        self.programs = {
            name: f"/usr/bin/{name}"
            for name in ("ip", "buildah", "mmdebstrap", "nft", "nginx", "runsc", "runc", "criu")
        }
        self.files = {
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
            "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   16777216 kB\n",
        }
        self.answers = {
            "/usr/bin/runsc --version": Completed(0, "runsc version 0.0~20240729.0\nspec: 1.0"),
            CRIU_SAYS: Completed(0, "Version: 4.2.1\n"),
            "mktemp": Completed(0, "/scratch"),
        }
        self.variables: dict[str, str] = {}
        self.user = 0
        self.uname = ("Linux", "6.1.0-18-amd64", "x86_64")
        self.files_limit = 1_048_576
        self.free = 100 << 30
        self.writable = True
        self.refused_mounts: set[str] = set()
        self.inventory: Inventory | str = ""
        self.hidden = ""

    def gpus(self) -> Inventory | str:
        return self.inventory

    def why_gpus_are_hidden(self) -> str:
        return self.hidden

    def image_mounts(self, state_root: Path) -> MountSupport:
        return MountSupport(
            trials=[Trial(way=way, refusal="No." if way in self.refused_mounts else "") for way in WAYS]
        )

    def run(self, command: list[str], timeout_s: float) -> Completed:
        line = " ".join(command)
        found = [answer for start, answer in self.answers.items() if line.startswith(start)]
        return found[0] if found else Completed(0, "fine")

    def which(self, name: str) -> Path | None:
        return Path(self.programs[name]) if name in self.programs else None

    def variable(self, name: str) -> str | None:
        return self.variables.get(name)

    def read(self, path: Path) -> str | None:
        return self.files.get(str(path))

    def is_writable(self, path: Path) -> bool:
        return self.writable

    def free_bytes(self, path: Path) -> int:
        return self.free

    def user_id(self) -> int:
        return self.user

    def kernel(self) -> tuple[str, str, str]:
        return self.uname

    def open_files_limit(self) -> int:
        return self.files_limit


def all_checks() -> list[Check]:
    return [*kernel_checks(Path("/state")), *tool_checks(Path("/state"))]


def level_of(machine: PaperMachine, name: str) -> Level:
    (result,) = [result for result in run_checks(all_checks(), machine) if result.check.name == name]
    return result.finding.level


def test_a_fit_machine_has_no_complaint() -> None:
    levels = {r.check.name: r.finding.level for r in run_checks(all_checks(), PaperMachine())}
    assert {name for name, level in levels.items() if level is not Level.OK} <= {"matplotlib"}


def test_every_check_says_why_it_matters_and_how_to_get_it() -> None:
    for check in all_checks():
        assert check.why.endswith(".")
        assert len(check.get) > 10
    assert len({check.name for check in all_checks()}) == len(all_checks())


def ill(**changes: object) -> PaperMachine:
    machine = PaperMachine()
    for name, value in changes.items():
        current = getattr(machine, name)
        setattr(machine, name, {**current, **value} if isinstance(value, dict) else value)
    return machine


def gpus(driver: str, **changes: Any) -> Inventory:
    device: dict[str, Any] = {
        "index": 0, "uuid": "GPU-0", "chip": "H100", "memory_bytes": 80 << 30, "free_bytes": 80 << 30,
        "is_persistent": True, "is_mig": False,
    }  # fmt: skip
    return Inventory(driver=driver, cuda="13.0", devices=[Device(**{**device, **changes})])


def without(program: str) -> PaperMachine:
    machine = PaperMachine()
    del machine.programs[program]
    return machine


@pytest.mark.parametrize(
    ("machine", "name", "level"),
    [
        (ill(uname=("Linux", "4.19.0", "x86_64")), "kernel", Level.FAIL),
        (ill(uname=("Darwin", "23.0", "arm64")), "kernel", Level.FAIL),
        (ill(uname=("Linux", "strange", "x86_64")), "kernel", Level.FAIL),
        (ill(uname=("Linux", "6.1", "riscv64")), "kernel", Level.FAIL),
        (ill(user=1000), "root", Level.FAIL),
        (ill(files=NO_V2), "cgroups", Level.FAIL),
        (ill(files={**NO_V2, "/proc/mounts": V1_MOUNTS}), "cgroups", Level.OK),
        (without("ip"), "ip", Level.FAIL),
        (ill(answers={"unshare -n ip link": Completed(2, "no")}), "network namespaces", Level.FAIL),
        (ill(answers={"unshare -n test": Completed(1, "")}), "/proc/sys/net", Level.OK),
        (ill(answers={"unshare -n -m": Completed(1, "denied")}), "/proc/sys/net", Level.FAIL),
        (ill(files_limit=20_000), "open files", Level.OK),
        (ill(files_limit=20_000, answers={"prlimit": Completed(1, "")}), "open files", Level.WARN),
        (ill(files_limit=1024, answers={"prlimit": Completed(1, "")}), "open files", Level.FAIL),
        (ill(files={"/proc/meminfo": "MemAvailable: 2097152 kB"}), "memory", Level.WARN),
        (ill(files={"/proc/meminfo": "MemAvailable: 100 kB"}), "memory", Level.FAIL),
        (ill(files={"/proc/meminfo": ""}), "memory", Level.WARN),
        (ill(files={"/proc/meminfo": ""}), "swap", Level.OK),
        (ill(files={"/proc/meminfo": "SwapFree: 2097152 kB"}), "swap", Level.OK),
        (ill(free=1 << 30), "disk", Level.FAIL),
        (ill(free=5 << 30), "disk", Level.WARN),
        (ill(writable=False), "disk", Level.FAIL),
        (without("runsc"), "runsc", Level.FAIL),
        (without("runsc"), "sandbox", Level.FAIL),
        (ill(answers={RUNSC_SAYS: Completed(0, "runsc version 0.0~20221219.0")}), "runsc", Level.FAIL),
        (ill(answers={RUNSC_SAYS: Completed(None, "killed")}), "runsc", Level.FAIL),
        (ill(answers={"/usr/bin/runsc --root": Completed(128, "no ptrace")}), "sandbox", Level.FAIL),
        (ill(variables={"GLOWPLUG_RUNSC": "/nowhere/runsc"}), "runsc", Level.FAIL),
        (without("runc"), "runc", Level.WARN),
        (without("criu"), "criu", Level.WARN),
        (ill(answers={CRIU_SAYS: Completed(0, "Version: 3.17.1")}), "criu", Level.WARN),
        (ill(answers={CRIU_SAYS: Completed(None, "killed")}), "criu", Level.WARN),
        (ill(answers={"/usr/bin/criu check": Completed(1, "no")}), "criu", Level.WARN),
        (ill(variables={"GLOWPLUG_CRIU": "/nowhere/criu"}), "criu", Level.WARN),
        (without("buildah"), "buildah", Level.WARN),
        (without("mmdebstrap"), "mmdebstrap", Level.WARN),
        (ill(refused_mounts={"lazy"}), "image mounts", Level.WARN),
        (ill(refused_mounts={"lazy", "loop", "plain_fuse"}), "image mounts", Level.FAIL),
        (ill(inventory=gpus("580.82.07")), "gpu", Level.OK),
        (ill(inventory=gpus("555.42.06")), "gpu", Level.WARN),
        (ill(inventory=gpus("580.82.07", problem="it must be reset")), "gpu", Level.WARN),
        (ill(inventory=gpus("580.82.07", is_mig=True)), "gpu", Level.WARN),
        (ill(inventory=gpus("580.82.07"), hidden="Nothing describes them."), "gpu", Level.WARN),
        (ill(inventory="NVML does not answer"), "gpu", Level.WARN),
    ],
)  # fmt: skip
def test_what_is_missing_is_noticed(machine: PaperMachine, name: str, level: Level) -> None:
    assert level_of(machine, name) is level


def test_the_doctor_names_the_gpus_and_what_their_driver_can_do() -> None:
    machine = ill(inventory=gpus("580.82.07"))
    [check] = [check for check in all_checks() if check.name == "gpu"]
    assert check.probe(machine).found == "H100: ok; driver 580.82.07: checkpoint, device_map"


def test_our_own_runsc_comes_before_the_distributions() -> None:
    machine = ill(
        programs={str(RUNSC): str(RUNSC)},
        answers={
            str(RUNSC): Completed(0, "runsc version 9"),
            "/usr/bin/runsc --version": Completed(0, "old"),
        },
    )
    assert level_of(machine, "runsc") is Level.OK


@pytest.mark.sandbox
def test_the_doctor_examines_this_machine(glowplug: Glowplug) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    result = glowplug("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["kernel"]["level"] == "ok"
    assert findings["network namespaces"]["level"] == "ok"
    assert (result.exit_code == 1) == any(finding["level"] == "fail" for finding in findings.values())
    assert all(
        set(finding) == {"name", "level", "found", "why", "get", "fixable"} for finding in findings.values()
    )


def test_a_failing_doctor_says_what_is_not_fit(glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOWPLUG_RUNSC", "/nowhere/runsc")
    result = glowplug("doctor")
    assert result.exit_code == 1
    assert "FAIL  runsc: not installed" in result.stdout
    assert "Not fit yet: runsc, sandbox" in result.stdout
    assert "glowplug doctor --fix" in result.stdout


def test_questions_to_a_real_machine_never_raise_and_never_wait() -> None:
    machine = LocalMachine()
    assert machine.run(["/nowhere/program"], 1).code is None
    assert machine.run(["sleep", "60"], 0.1).code is None
    assert machine.read(Path("/nowhere/file")) is None
    assert machine.free_bytes(Path("/nowhere/at/all")) > 0
    assert machine.which("no-such-program") is None


def test_a_quarantined_node_is_told_with_what_failed(tmp_path: Path) -> None:
    machine = PaperMachine()
    [check] = [check for check in tool_checks(tmp_path) if check.name == "restores"]
    assert check.probe(machine).level is Level.OK
    record = {
        "format": 1,
        "failed": ["sn-a", "sn-b", "sn-c"],
        "reason": "EOF",
        "backoff_s": 60,
        "trial_at": 9,
    }
    machine.files[str(tmp_path / "restores.json")] = json.dumps(record)
    finding = check.probe(machine)
    assert finding.level is Level.WARN
    assert "sn-a, sn-b, sn-c failed in a row; the last: EOF" in finding.found
    machine.files[str(tmp_path / "restores.json")] = "[1"
    assert check.probe(machine).level is Level.WARN
