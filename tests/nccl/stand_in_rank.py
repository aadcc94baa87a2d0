"""A rank without PyTorch: the real member, gate and connections; its groups only note what they are asked.

    python stand_in_rank.py RANK TOKEN DEADLINES_JSON FAULT_JSON

Prints its port, then one line of JSON for every line on its standard input: ``knock`` comes to the gate and
says within 0.2 s how that went (``open``, ``waiting``, or an error's code); ``look`` tells what was asked.
FAULT is ``{"step": how}``, how being die, hang, raise, or wrong (another census); ``{"busy": "2"}`` is
busy twice, ``{"device": "0"}`` holds device memory, which ``look`` checks.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from glowplug.nccl.gate import Gate
from glowplug.nccl.member import Member
from glowplug.nccl.words import Deadlines
from glowplug.snapshot.gpu.trial_process import DeviceNoise
from glowplug.types.errors import Conflict, GlowplugError

HANG_S = 60.0
NOISE_BYTES = 256 << 10


class StandInGroups:
    """Implements the port ``Groups``."""

    def __init__(self, faults: dict[str, str]) -> None:
        self.asked: list[str] = []
        self._faults = faults
        self.busy_times = int(faults.pop("busy", "0"))
        device = faults.pop("device", None)
        self._noise = None if device is None else DeviceNoise(int(device), NOISE_BYTES)

    def is_whole(self) -> bool:
        return self._noise is None or self._noise.is_whole()

    def census(self, deadline_s: float) -> dict[str, Any]:
        self._strike("hold")
        if self.busy_times:
            self.busy_times -= 1
            raise Conflict("A collective is in flight.", is_busy=True)
        begun = 8 if self._faults.get("hold") == "wrong" else 7
        return {"world": {"begun": begun, "ranks": [0, 1, 2]}}

    def release(self, deadline_s: float) -> None:
        self._strike("release")

    def rebuild(self, port: int, generation: int, deadline_s: float) -> None:
        self.asked.append(f"generation {generation} at {port}")
        self._strike("rebuild")

    def verify(self, deadline_s: float) -> None:
        self._strike("verify")

    def settled(self) -> None:
        self._strike("open")

    def _strike(self, step: str) -> None:
        self.asked.append(step)
        how = self._faults.get(step)
        if how == "die":
            os._exit(9)
        if how == "hang":
            time.sleep(HANG_S)
        if how == "raise":
            self._faults.pop(step)  # once: what leads back is asked to work
            raise RuntimeError(f"no {step}")


def knock(gate: Gate) -> str:
    said = ["waiting"]

    def come() -> None:
        try:
            with gate.passing():
                said[0] = "open"
        except GlowplugError as error:
            said[0] = error.code

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    thread.join(0.2)
    return said[0]


def main() -> None:
    rank, token, deadlines, faults = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the driver prints is no answer
    groups, gate = StandInGroups(json.loads(faults)), Gate()
    member = Member(int(rank), groups, gate, Deadlines(**json.loads(deadlines)))
    member.token = token
    print(member.port, file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "knock":
            said: dict[str, Any] = {"gate": knock(gate)}
        else:
            said = {"asked": groups.asked, "whole": groups.is_whole()}
        print(json.dumps({**said, "state": member.state}), file=answers, flush=True)


if __name__ == "__main__":
    main()
