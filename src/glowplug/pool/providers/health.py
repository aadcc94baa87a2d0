"""Is a machine fit to take work? A set of commands, each with a judge, run where the machine is.

A machine without a GPU (kind ``cpu``) must answer; one with GPUs must have the right ones, all of their PCIe
lanes, no uncorrectable memory errors, no fatal Xid in its kernel's log, nothing that the driver wants done
about them, and must pass a burn-in: NVIDIA's own diagnosis where it is installed, and a process whose device
memory is suspended and resumed where Glowplug is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glowplug.pool.providers.port import Verdict
from glowplug.pool.providers.shell import Ran, Shell
from glowplug.types.errors import GlowplugError

NO_GPU = "cpu"
"""The kind of pools whose machines have no GPU."""
FATAL_XIDS = {
    48: "double-bit memory error", 61: "internal microcontroller", 62: "internal microcontroller",
    63: "a memory row is to be remapped", 64: "remapping a memory row failed", 74: "NVLink",
    79: "a GPU has fallen off the bus", 92: "many single-bit memory errors", 94: "contained memory error",
    95: "uncontained memory error", 119: "GPU system processor timed out",
    120: "GPU system processor failed", 140: "unrecovered memory error",
}  # fmt: skip
"""By NVIDIA's "XID Errors" catalogue, those of the hardware; 13, 31, 43, 45 are applications' own faults."""
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")
_QUERY = "index,name,pcie.link.width.current,pcie.link.width.max,ecc.errors.uncorrected.volatile.total"


@dataclass(frozen=True)
class Wanted:
    """What the machine should be: so many GPUs of a kind."""

    gpu: str
    gpus: int


@dataclass(frozen=True)
class Check:
    """One command. ``judge`` says what is wrong, or nothing. ``needs``: a program without which it is left
    out.
    """

    name: str
    command: str
    judge: Callable[[Ran, Wanted], str]
    needs: str | None = None
    is_of_gpus: bool = True


class ShellInspector:
    """Runs the checks on a machine until one finds something."""

    def __init__(
        self, shell_of: Callable[[str, str], Shell], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._shell_of = shell_of
        self._monotonic = monotonic

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        """All checks within ``timeout_s``, or unfit."""
        shell, wanted = self._shell_of(machine, address), Wanted(gpu, gpus)
        deadline_s = self._monotonic() + timeout_s
        left_out = []
        for check in CHECKS:
            if check.is_of_gpus and gpu == NO_GPU:
                continue
            try:
                if check.needs is not None and not self._has(shell, check.needs, deadline_s):
                    left_out.append(check.name)
                    continue
                problem = check.judge(shell.run(check.command, self._left_s(deadline_s)), wanted)
            except GlowplugError as error:
                problem = error.message
            if problem:
                return Verdict(False, f"{check.name}: {problem}")
        return Verdict(True, f"not checked: {', '.join(left_out)}" if left_out else "")

    def _has(self, shell: Shell, program: str, deadline_s: float) -> bool:
        return shell.run(f"command -v {program}", self._left_s(deadline_s)).code == 0

    def _left_s(self, deadline_s: float) -> float:
        return max(deadline_s - self._monotonic(), 0.1)


def _answers(ran: Ran, _wanted: Wanted) -> str:
    return "" if ran.code == 0 else f"`true` ends with {ran.code}"


def _has_the_gpus(ran: Ran, wanted: Wanted) -> str:
    if ran.code != 0:
        return _words(ran) or "nvidia-smi fails"
    found = [[cell.strip() for cell in line.split(",")] for line in ran.out.strip().splitlines()]
    if len(found) != wanted.gpus:
        return f"{len(found)} GPUs, not {wanted.gpus}"
    for row in found:
        if len(row) != _QUERY.count(",") + 1:
            return f"nvidia-smi says {','.join(row)!r}"
        index, name, width, most, errors = row
        if not is_of_kind(name, wanted.gpu):
            return f"GPU {index} is {name}, not {wanted.gpu}"
        if width.isdigit() and most.isdigit() and int(width) < int(most):
            return f"GPU {index} has {width} of {most} PCIe lanes"
        if errors.isdigit() and int(errors) > 0:
            return f"GPU {index} has {errors} uncorrectable memory errors"
    return ""


def is_of_kind(name: str, kind: str) -> bool:
    """Whether the driver's name of a GPU is of a kind as clouds call it: ``A100-80GB``, ``RTX4090``."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return all(part in plain for part in re.split(r"[^a-z0-9]+", kind.lower()) if part)


def _has_no_fatal_xid(ran: Ran, _wanted: Wanted) -> str:
    for where, number in _XID.findall(ran.out):
        if int(number) in FATAL_XIDS:
            return f"Xid {number} at {where}: {FATAL_XIDS[int(number)]}"
    return ""


def _driver_is_content(ran: Ran, _wanted: Wanted) -> str:
    found = _json(ran)
    if found is None:
        return _words(ran) or "`glowplug gpu ls` lists no GPU"
    problems = [
        f"GPU {device.get('index')}: {device['problem']}"
        for device in found.get("devices", ())
        if isinstance(device, dict) and device.get("problem")
    ]
    return "; ".join(problems)


def _ends_well(ran: Ran, _wanted: Wanted) -> str:
    return "" if ran.code == 0 else _words(ran) or f"it ends with {ran.code}"


def _json(ran: Ran) -> dict[str, Any] | None:
    try:
        found = json.loads(ran.out)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _words(ran: Ran) -> str:
    lines = (ran.err.strip() or ran.out.strip()).splitlines()
    return lines[-1][:300] if lines else ""


CHECKS = (
    Check("answer", "true", _answers, is_of_gpus=False),
    Check("gpus", f"nvidia-smi --query-gpu={_QUERY} --format=csv,noheader,nounits", _has_the_gpus),
    Check("xid", "dmesg 2>/dev/null | grep -F 'NVRM: Xid' | tail -n 100", _has_no_fatal_xid),
    Check("driver", "glowplug gpu ls --json", _driver_is_content, needs="glowplug"),
    Check("suspend", "glowplug gpu check --json", _ends_well, needs="glowplug"),
    Check("burn-in", "dcgmi diag -r 1", _ends_well, needs="dcgmi"),
)
"""In this order: the cheap ones first."""
