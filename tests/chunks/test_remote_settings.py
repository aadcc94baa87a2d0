"""Which region and zone a machine belongs to: said once, checked before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.remote_settings import RemoteSettings
from glowplug.chunks.zone import ZoneObjects
from glowplug.types.errors import InvalidInput


def settings(region: str = "", zone: str = "", ssd: str = "") -> RemoteSettings:
    return RemoteSettings.from_environment(
        {"GLOWPLUG_REGION": region, "GLOWPLUG_ZONE": zone, "GLOWPLUG_SSD_BYTES": ssd}
    )


def test_a_machine_on_its_own_has_neither_region_nor_zone() -> None:
    alone = RemoteSettings.from_environment({})
    assert alone == settings() == RemoteSettings()
    assert alone.region() is None
    assert alone.tiers() == []


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("200G", 200 << 30),
        ("1.5T", 3 << 39),
        ("500 MiB", 500 << 20),
        ("64mb", 64 << 20),
        ("107374182400", 100 << 30),
    ],
)
def test_the_budget_is_a_size(text: str, size_bytes: int) -> None:
    assert settings(ssd=text).ssd_budget_bytes == size_bytes


@pytest.mark.parametrize("text", ["lots", "-5G", "1e9", "10", "0", "10K", "5X", "1G2", "9" * 30])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="GLOWPLUG_SSD_BYTES"):
        settings(ssd=text)


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket/prefix", "az://container/x", "/some/folder", "file:///x",
                                 "https://cdn.example/images"])  # fmt: skip
def test_a_region_is_a_bucket_a_folder_or_a_server(url: str) -> None:
    assert settings(region=f" {url} ").region_url == url


@pytest.mark.parametrize(
    "url", ["bucket", "s3://", "ftp://x", "./folder", "http://", "http://h/?x", "file://host"]
)
def test_a_region_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="GLOWPLUG_REGION") as caught:
        settings(region=url)
    assert caught.value.remedy


def test_a_zone_is_a_list_of_servers() -> None:
    assert settings(zone="http://a:1, http://b,").zone_urls == ("http://a:1", "http://b")


@pytest.mark.parametrize("urls", ["a:1", "http://a http://b", "s3://b", "http://a,http://a", "http://u:p@a"])
def test_a_zone_that_is_none_is_refused(urls: str) -> None:
    with pytest.raises(InvalidInput, match="GLOWPLUG_ZONE"):
        settings(zone=urls)


def test_the_zone_is_asked_before_the_region(tmp_path: Path) -> None:
    zone, region = settings(region=str(tmp_path), zone="http://127.0.0.1:1").tiers()
    assert isinstance(zone, ZoneObjects)
    assert isinstance(region, ObstoreObjects)
    zone.close()
    region.close()


def test_a_region_behind_http_is_only_read(tmp_path: Path) -> None:
    (region,) = settings(region="http://127.0.0.1:1/x").tiers()
    assert isinstance(region, HttpObjects)
    region.close()


def test_indexes_of_packs_are_kept_below_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOWPLUG_STATE", str(tmp_path / "state"))
    region = settings(region=str(tmp_path / "region")).region()
    assert region is not None
    with region.pushing():
        pass
    region.close()
