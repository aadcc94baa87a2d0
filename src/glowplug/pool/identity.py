"""What names a pool: machines that are alike, in one place, rented one way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Purchase(StrEnum):
    """How machines are paid for."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"
    OWN = "own"


@dataclass(frozen=True, order=True)
class PoolId:
    """One pool. ``region`` is as fine as prices and supply differ: a zone where a cloud sells by zone."""

    cloud: str
    region: str
    machine: str
    purchase: Purchase

    def __str__(self) -> str:
        return f"{self.cloud}/{self.region}/{self.machine}/{self.purchase.value}"
