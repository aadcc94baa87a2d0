"""Which GPUs are in Google Cloud's machine types, for price histories that name the machine only.

Kinds are named as SkyPilot's catalogues name them. Source: Google's page "GPU machine types".
"""

from __future__ import annotations

import re

_BY_COUNT = {"a2-highgpu": "A100", "a2-megagpu": "A100", "a2-ultragpu": "A100-80GB", "a3-highgpu": "H100",
             "a3-megagpu": "H100-MEGA"}  # fmt: skip
_G2_L4S = {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}
_G4_VCPUS_PER_GPU = 48


def gpus_of(machine: str) -> tuple[str, int]:
    """Kind and number of the GPUs of a machine type. Raises ValueError for one we do not know, or with part
    of one.
    """
    if match := re.fullmatch(r"(a[23]-\w+)-(\d+)g", machine):
        kind = _BY_COUNT.get(match[1])
        if kind:
            return kind, int(match[2])
    if match := re.fullmatch(r"g2-standard-(\d+)", machine):
        count = _G2_L4S.get(int(match[1]))
        if count:
            return "L4", count
    if match := re.fullmatch(r"g4-standard-(\d+)", machine):
        count, rest = divmod(int(match[1]), _G4_VCPUS_PER_GPU)
        if rest:
            raise ValueError(f"{machine} has a fraction of a GPU")
        return "RTXPRO6000", count
    raise ValueError(f"{machine!r} is no machine type whose GPUs we know")
