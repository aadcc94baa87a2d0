"""A meter of GPU-seconds and USD, per app and per pool: what was paid for, and what became of it.

Whoever knows intervals (the simulator; later, real machines) adds them up here. Uses of a machine's GPUs by
replicas are *serving* (at least one request in flight), *starting* and *idle* (ready, no request); what a
machine is paid for beyond that is *unallocated*: the buffer, and the minimum rental of what was given back. A
*parked* replica occupies no GPU, so its seconds cost nothing here and are no part of what is rented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from glowplug.types.errors import InvalidInput
from glowplug.types.usage import Use


class UseLine(BaseModel):
    """GPU-seconds and USD of one app, or of one pool. ``name`` is the app's or the pool's."""

    name: str
    serving_gpu_s: float
    starting_gpu_s: float
    idle_gpu_s: float
    parked_gpu_s: float
    serving_usd: float
    starting_usd: float
    idle_usd: float


class PoolLine(UseLine):
    """... and of a pool also what was rented, and what of it no replica had."""

    rented_gpu_s: float
    rented_usd: float
    unallocated_gpu_s: float
    unallocated_usd: float


class Economics(BaseModel):
    """All of it. ``utilisation``: serving over rented GPU-seconds (GPU allocation utilisation); None where
    nothing was rented.

    ``always_on_usd``: what it would have cost to keep the given number of GPUs for the whole time;
    ``saved_usd``: how much less was paid (negative: more).
    """

    apps: list[UseLine]
    pools: list[PoolLine]
    rented_gpu_s: float
    rented_usd: float
    serving_gpu_s: float
    utilisation: float | None
    always_on_usd: float
    saved_usd: float


@dataclass
class _Account:
    gpu_s: dict[Use, float] = field(default_factory=lambda: dict.fromkeys(Use, 0.0))
    usd: dict[Use, float] = field(default_factory=lambda: dict.fromkeys(Use, 0.0))
    rented_gpu_s: float = 0.0
    rented_usd: float = 0.0

    def line(self, name: str) -> UseLine:
        return UseLine(name=name, **self._uses())

    def pool_line(self, name: str) -> PoolLine:
        on_gpu = [use for use in Use if use is not Use.PARKED]
        return PoolLine(
            name=name,
            **self._uses(),
            rented_gpu_s=self.rented_gpu_s,
            rented_usd=self.rented_usd,
            unallocated_gpu_s=self.rented_gpu_s - math.fsum(self.gpu_s[use] for use in on_gpu),
            unallocated_usd=self.rented_usd - math.fsum(self.usd[use] for use in on_gpu),
        )

    def _uses(self) -> dict[str, float]:
        return {
            **{f"{use.value}_gpu_s": seconds for use, seconds in self.gpu_s.items()},
            **{f"{use.value}_usd": self.usd[use] for use in Use if use is not Use.PARKED},
        }


class Meter:
    """Adds up intervals. Amounts are checked: one NaN would make every sum after it useless."""

    def __init__(self) -> None:
        self._apps: dict[str, _Account] = {}
        self._pools: dict[str, _Account] = {}

    def add_use(self, app: str, pool: str, use: Use, gpu_s: float, usd: float) -> None:
        """A replica of ``app`` used GPUs of ``pool`` like this. Raises InvalidInput."""
        _check(gpu_s, usd)
        usd = 0.0 if use is Use.PARKED else usd
        for account in (self._of(self._apps, app), self._of(self._pools, pool)):
            account.gpu_s[use] += gpu_s
            account.usd[use] += usd

    def add_rent(self, pool: str, gpu_s: float, usd: float) -> None:
        """A machine of ``pool`` was paid for. Raises InvalidInput."""
        _check(gpu_s, usd)
        account = self._of(self._pools, pool)
        account.rented_gpu_s += gpu_s
        account.rented_usd += usd

    def report(self, always_on_usd: float = 0.0) -> Economics:
        """Everything so far, sorted by name."""
        pools = [account.pool_line(name) for name, account in sorted(self._pools.items())]
        rented_gpu_s = math.fsum(line.rented_gpu_s for line in pools)
        rented_usd = math.fsum(line.rented_usd for line in pools)
        serving_gpu_s = math.fsum(line.serving_gpu_s for line in pools)
        return Economics(
            apps=[account.line(name) for name, account in sorted(self._apps.items())],
            pools=pools,
            rented_gpu_s=rented_gpu_s,
            rented_usd=rented_usd,
            serving_gpu_s=serving_gpu_s,
            utilisation=serving_gpu_s / rented_gpu_s if rented_gpu_s > 0 else None,
            always_on_usd=always_on_usd,
            saved_usd=always_on_usd - rented_usd,
        )

    @staticmethod
    def _of(accounts: dict[str, _Account], name: str) -> _Account:
        return accounts.setdefault(name, _Account())


def always_on_usd(peak_gpus: Mapping[str, int], usd_per_gpu_h: Mapping[str, float], hours: float) -> float:
    """What keeping ``peak_gpus`` of each kind costs at on-demand prices, without ever scaling."""
    return math.fsum(gpus * usd_per_gpu_h[kind] * hours for kind, gpus in peak_gpus.items())


def _check(gpu_s: float, usd: float) -> None:
    if not (math.isfinite(gpu_s) and math.isfinite(usd) and gpu_s >= 0 and usd >= 0):
        raise InvalidInput(
            f"{gpu_s} GPU-seconds for {usd} USD cannot be metered.",
            remedy="Both are numbers that are not negative.",
        )
