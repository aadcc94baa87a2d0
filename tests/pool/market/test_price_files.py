"""Price files of three forms: what is read, what is refused with a reason, what is an error."""

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.gcp_machines import gpus_of
from glowplug.pool.market.price_files import PriceFormat, read_prices
from glowplug.types.errors import InvalidInput

# Rows in the form of skypilot-org/skypilot-catalog, as read on 2026-07-30.
SKYPILOT = """InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region
1B300.30V,B300,1,6.99,2.447,FIN-03
2H200.141S.88V,H200,2,6.78,2.373,FIN-02
lambdalabs_H100-sxm5x8,H100,8,31.92,,saltlakecity-usa-1
cpu.8V,,,0.4,0.1,FIN-01
"""
GCP = """date,commit,machine,region,hour,hour_spot
2023-11-09,01c920c,a2-highgpu-2g,us-central1,7.2,2.9
2023-11-16,01c920c,a2-highgpu-2g,us-central1,7.3,3.0
2026-07-30,fd66b26,g4-standard-6,us-west3,0.6,0.2
"""
EXAMPLES = Path(__file__).parents[3] / "examples" / "pools"


def written(folder: Path, text: str, name: str = "prices.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_skypilot_catalogue_gives_an_offer_for_each_price(tmp_path: Path) -> None:
    path = written(tmp_path, SKYPILOT)
    os.utime(path, (1_000.0, 1_000.0))
    found = read_prices(path, "verda")
    assert found.form is PriceFormat.SKYPILOT
    assert found.refused == []
    assert len(found.offers) == 5
    spot = next(
        offer for offer in found.offers if offer.gpu == "H200" and offer.pool.purchase is Purchase.SPOT
    )
    assert spot.pool == PoolId("verda", "FIN-02", "2H200.141S.88V", Purchase.SPOT)
    assert (spot.gpus, spot.usd_per_h, spot.at_s) == (2, 2.373, 1_000.0)


def test_a_catalogue_by_zones_gives_pools_by_zones(tmp_path: Path) -> None:
    text = SKYPILOT.splitlines()[0] + ",AvailabilityZone\nm,A100,1,3,1,us-east-1,us-east-1b\n"
    assert {offer.pool.region for offer in read_prices(written(tmp_path, text), "aws").offers} == {
        "us-east-1b"
    }


def test_a_price_history_keeps_its_dates_and_refuses_fractions_of_gpus(tmp_path: Path) -> None:
    found = read_prices(written(tmp_path, GCP), "gcp")
    assert found.form is PriceFormat.GCP_HISTORY
    assert len(found.offers) == 4
    assert [refusal.line for refusal in found.refused] == [4]
    assert "fraction of a GPU" in found.refused[0].why
    assert found.offers[0].at_s == 1_699_488_000.0  # 2023-11-09 00:00 UTC
    assert (found.offers[0].gpu, found.offers[0].gpus) == ("A100", 2)


def test_plain_csv_and_json_say_the_same_compressed_too(tmp_path: Path) -> None:
    row = {"cloud": "own", "region": "r", "machine": "m", "purchase": "own", "gpu": "H100", "gpus": 8,
           "usd_per_h": 2.5, "at": "2026-01-01T00:00:00+01:00"}  # fmt: skip
    csv_text = ",".join(row) + "\n" + ",".join(str(value) for value in row.values()) + "\n"
    packed = tmp_path / "prices.csv.gz"
    packed.write_bytes(gzip.compress(csv_text.encode()))
    from_csv = read_prices(packed, "x")
    from_json = read_prices(written(tmp_path, json.dumps([row]), "prices.json"), "x")
    assert from_csv.offers == from_json.offers
    assert from_csv.offers[0].at_s == 1_767_222_000.0


@pytest.mark.parametrize(
    ("price", "why"),
    [("nan", "not a price"), ("-1", "does not cost"), ("0", "does not cost"), ("1e9", "absurd"),
     ("inf", "not a price"), ("free", "not a number"), ("", None)],
)  # fmt: skip
def test_a_price_that_cannot_be_is_refused_and_the_rest_is_kept(
    tmp_path: Path, price: str, why: str | None
) -> None:
    found = read_prices(written(tmp_path, SKYPILOT + f"bad,H100,1,{price},,FIN-01\n"), "verda")
    assert len(found.offers) == 5
    assert [why in refusal.why for refusal in found.refused] == ([True] if why else [])


@pytest.mark.parametrize("count", ["0", "0.5", "-1", "many", "1e99", "nan"])
def test_a_number_of_gpus_that_cannot_be_is_refused(tmp_path: Path, count: str) -> None:
    found = read_prices(written(tmp_path, SKYPILOT + f"bad,H100,{count},1,,FIN-01\n"), "verda")
    assert [refusal.line for refusal in found.refused] == [6]


def test_a_renamed_column_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="OnDemandPrice") as caught:
        read_prices(written(tmp_path, SKYPILOT.replace(",Price,", ",OnDemandPrice,")), "verda")
    assert "Price" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "\n\n", "InstanceType\nx\n", "\x00\x00", SKYPILOT.splitlines()[0]])
def test_a_file_without_prices_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput):
        read_prices(written(tmp_path, text), "verda")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("p.csv", b"\xff\xfe\x00"),
        ("p.csv.gz", b"no gzip"),
        ("p.json", b"{"),
        ("p.json", b'{"a": 1}'),
        ("p.json", b"[1]"),
    ],
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput):
        read_prices(tmp_path / name, "verda")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_prices(tmp_path / "nothing.csv", "verda")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_rows_are_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, rows: str
) -> None:
    path = tmp_path_factory.mktemp("prices") / "prices.csv"
    path.write_text(SKYPILOT + rows, encoding="utf-8", errors="surrogatepass")
    with suppress(InvalidInput):
        assert len(read_prices(path, "verda").offers) >= 4


def test_the_example_is_read_whole() -> None:
    found = read_prices(EXAMPLES / "gcp_prices_2023_11.csv", "gcp")
    assert (len(found.offers), found.refused) == (112, [])


@pytest.mark.parametrize(
    ("machine", "gpus"),
    [("a3-highgpu-8g", ("H100", 8)), ("a2-megagpu-16g", ("A100", 16)), ("g2-standard-24", ("L4", 2)),
     ("a2-ultragpu-1g", ("A100-80GB", 1)), ("g4-standard-384", ("RTXPRO6000", 8))],
)  # fmt: skip
def test_machine_types_have_their_gpus(machine: str, gpus: tuple[str, int]) -> None:
    assert gpus_of(machine) == gpus


@pytest.mark.parametrize("machine", ["n1-standard-8", "g2-standard-7", "a9-highgpu-8g", ""])
def test_other_machine_types_are_unknown(machine: str) -> None:
    with pytest.raises(ValueError, match="no machine type"):
        gpus_of(machine)
