"""Verdicts on machines: from what commands say on real shells, and from recorded words of GPU machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glowplug.pool.providers.health import ShellInspector, is_of_kind
from glowplug.pool.providers.port import Verdict
from glowplug.pool.providers.shell import LocalShell, Ran, Shell, SshShell
from glowplug.types.errors import DeadlineExceeded, Unavailable

GOOD = "0, NVIDIA A100-SXM4-80GB, 16, 16, 0\n1, NVIDIA A100-SXM4-80GB, 16, 16, 0\n"


class Recorded:
    """Simulated: answers commands by what was recorded of such machines; no other command exists."""

    def __init__(self, smi: str = GOOD, dmesg: str = "", **programs: Ran) -> None:
        self._smi, self._dmesg, self._programs = smi, dmesg, programs

    def run(self, command: str, timeout_s: float) -> Ran:
        if command == "true":
            return Ran(0, "", "")
        if command.startswith("command -v "):
            return Ran(0 if command.split()[-1] in self._programs else 1, "", "")
        if command.startswith("nvidia-smi"):
            return Ran(0, self._smi, "")
        if command.startswith("dmesg"):
            return Ran(0, self._dmesg, "")
        return self._programs[command.split()[0]]


def verdict(shell: Shell, gpu: str = "A100-80GB", gpus: int = 2) -> Verdict:
    return ShellInspector(lambda _machine, _address: shell).inspect("m", "host", gpu, gpus, 20.0)


def test_a_machine_with_all_it_should_have_is_fit_and_what_was_not_checked_is_said() -> None:
    assert verdict(Recorded()) == Verdict(True, "not checked: driver, suspend, burn-in")
    well = Ran(0, '{"devices": [{"index": 0, "problem": ""}]}', "")
    assert verdict(Recorded(glowplug=well, dcgmi=Ran(0, "", ""))) == Verdict(True)


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        (Recorded(smi=GOOD.splitlines()[0]), "1 GPUs, not 2"),
        (Recorded(smi=GOOD.replace("1, NVIDIA A100-SXM4-80GB", "1, NVIDIA L4")), "GPU 1 is NVIDIA L4"),
        (Recorded(smi=GOOD.replace("16, 16, 0\n1", "8, 16, 0\n1")), "GPU 0 has 8 of 16 PCIe lanes"),
        (Recorded(smi=GOOD.replace("16, 16, 0\n1", "16, 16, 3\n1")), "3 uncorrectable memory errors"),
        (Recorded(smi="nonsense\nnonsense\n"), "nvidia-smi says"),
        (
            Recorded(dmesg="[1.0] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus."),
            "Xid 79 at PCI:0000:3b:00",
        ),
        (
            Recorded(glowplug=Ran(0, '{"devices": [{"index": 1, "problem": "it must be reset"}]}', "")),
            "GPU 1: it must be reset",
        ),
        (Recorded(glowplug=Ran(0, "null", "")), "null"),
        (Recorded(dcgmi=Ran(226, "", "Memory: Fail")), "burn-in: Memory: Fail"),
    ],
)
def test_each_thing_that_is_wrong_is_named(shell: Shell, words: str) -> None:
    found = verdict(shell)
    assert not found.is_fit
    assert words in found.reason


def test_an_applications_own_xid_is_no_fault_of_the_machine() -> None:
    words = "[1.0] NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python, MMU Fault"
    assert verdict(Recorded(dmesg=words)).is_fit


@pytest.mark.parametrize(
    ("name", "kind", "is_one"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB", True),
        ("NVIDIA A100-SXM4-40GB", "A100-80GB", False),
        ("NVIDIA GeForce RTX 4090", "RTX4090", True),
        ("NVIDIA L4", "L4", True),
        ("Tesla V100-SXM2-16GB", "V100", True),
        ("NVIDIA H200", "H100", False),
    ],
)
def test_kinds_as_clouds_and_drivers_call_them(name: str, kind: str, is_one: bool) -> None:
    assert is_of_kind(name, kind) is is_one


def test_this_machine_without_a_gpu_is_fit_for_a_pool_without() -> None:
    assert verdict(LocalShell(), gpu="cpu", gpus=1).is_fit


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has a GPU")
def test_this_machine_without_a_gpu_is_unfit_for_a_pool_with_one() -> None:
    found = verdict(LocalShell())
    assert not found.is_fit
    assert found.reason.startswith("gpus: ")


def test_a_command_that_hangs_makes_the_machine_unfit_in_time() -> None:
    with pytest.raises(DeadlineExceeded):
        LocalShell().run("sleep 60", 0.2)


def test_a_machine_that_cannot_be_reached_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'Connection refused' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    shell = SshShell("nowhere.invalid", "root", 22)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(Unavailable, match="Connection refused"):
            shell.run("true", 60.0)
        assert "cannot be reached by SSH" in verdict(shell).reason
