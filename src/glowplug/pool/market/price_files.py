"""Price files: SkyPilot's catalogues, a price history of Google Cloud, and a plain form of our own (CSV,
JSON).

A row that is no offer is refused with a reason and the rest is kept. A file of another form, or without one
usable row, is an error that says what was looked for: a renamed column must not look like an empty market.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.gcp_machines import gpus_of
from glowplug.pool.market.prices import Offer, Refusal, price_problem
from glowplug.pool.tables import Row, moment_s, read_table
from glowplug.types.errors import InvalidInput

_Read = Callable[[Row, str, float], Iterator[Offer]]


class PriceFormat(StrEnum):
    """The forms we read."""

    SKYPILOT = "skypilot"
    GCP_HISTORY = "gcp-history"
    PLAIN = "plain"


@dataclass(frozen=True)
class PriceFile:
    """What a file said. ``refused`` are the rows that were no offers."""

    offers: list[Offer]
    refused: list[Refusal]
    form: PriceFormat


@dataclass(frozen=True)
class _Form:
    columns: frozenset[str]
    read: _Read


def read_prices(path: Path, cloud: str) -> PriceFile:
    """Read a file (``.gz`` too) whose form its columns tell. Raises InvalidInput.

    ``cloud`` is whose it is, where it does not say. Prices without a date hold since the file was written.
    """
    table = read_table(path)
    form = next((form for form, spec in _FORMS.items() if spec.columns <= set(table.columns)), None)
    if form is None:
        raise InvalidInput(
            f"{path} is no price file: its columns are {', '.join(table.columns[:20]) or 'none'}.",
            remedy="Columns of "
            + "; of ".join(f"{form}: {', '.join(sorted(spec.columns))}" for form, spec in _FORMS.items())
            + ". Was a column renamed?",
            file=str(path),
        )
    at_s = path.stat().st_mtime
    offers: list[Offer] = []
    refused: list[Refusal] = []
    for line, row in table.rows:
        try:
            for offer in _FORMS[form].read(row, cloud, at_s):
                problem = price_problem(offer.usd_per_h, offer.gpus)
                if problem:
                    refused.append(Refusal(line, f"{offer.pool}: {problem}"))
                else:
                    offers.append(offer)
        except ValueError as problem:
            refused.append(Refusal(line, str(problem)))
    if not offers:
        raise InvalidInput(
            f"{path} has no usable price.",
            remedy="See what is wrong with its rows.",
            file=str(path),
            rows=[f"line {refusal.line}: {refusal.why}" for refusal in refused[:10]],
        )
    return PriceFile(offers, refused, form)


def _number(row: Row, column: str) -> float:
    text = (row.get(column) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{column} is {text!r}, not a number") from None


def _count(row: Row, column: str) -> int:
    number = _number(row, column)
    if not (math.isfinite(number) and number == int(number) and 1 <= number <= 1024):
        raise ValueError(f"{column} is {number:g}, not a number of whole GPUs")
    return int(number)


def _word(row: Row, column: str) -> str:
    text = (row.get(column) or "").strip()
    if not text or len(text) > 200:
        raise ValueError(f"{column} is {'empty' if not text else 'too long'}")
    return text


def _skypilot(row: Row, cloud: str, at_s: float) -> Iterator[Offer]:
    if not (row.get("AcceleratorName") or "").strip():
        return  # machines without a GPU are most of a catalogue, and none of our business
    region = (row.get("AvailabilityZone") or "").strip() or _word(row, "Region")
    machine, gpu, gpus = (
        _word(row, "InstanceType"),
        _word(row, "AcceleratorName"),
        _count(row, "AcceleratorCount"),
    )
    for column, purchase in (("Price", Purchase.ON_DEMAND), ("SpotPrice", Purchase.SPOT)):
        if (row.get(column) or "").strip():
            yield Offer(PoolId(cloud, region, machine, purchase), gpu, gpus, _number(row, column), at_s)


def _gcp_history(row: Row, cloud: str, at_s: float) -> Iterator[Offer]:
    machine = _word(row, "machine")
    gpu, gpus = gpus_of(machine)
    region, since_s = _word(row, "region"), moment_s(_word(row, "date"))
    for column, purchase in (("hour", Purchase.ON_DEMAND), ("hour_spot", Purchase.SPOT)):
        if (row.get(column) or "").strip():
            yield Offer(PoolId(cloud, region, machine, purchase), gpu, gpus, _number(row, column), since_s)


def _plain(row: Row, cloud: str, at_s: float) -> Iterator[Offer]:
    purchase = _word(row, "purchase")
    if purchase not in list(Purchase):
        raise ValueError(f"purchase is {purchase!r}, not one of {', '.join(Purchase)}")
    at = (row.get("at") or "").strip()
    pool = PoolId(
        (row.get("cloud") or "").strip() or cloud,
        _word(row, "region"),
        _word(row, "machine"),
        Purchase(purchase),
    )
    yield Offer(
        pool, _word(row, "gpu"), _count(row, "gpus"), _number(row, "usd_per_h"), moment_s(at) if at else at_s
    )


_FORMS = {
    PriceFormat.SKYPILOT: _Form(
        frozenset({"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"}),
        _skypilot,
    ),
    PriceFormat.GCP_HISTORY: _Form(
        frozenset({"date", "machine", "region", "hour", "hour_spot"}), _gcp_history
    ),
    PriceFormat.PLAIN: _Form(
        frozenset({"region", "machine", "purchase", "gpu", "gpus", "usd_per_h"}), _plain
    ),
}
