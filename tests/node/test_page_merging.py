"""The switch of the kernel's page merging: on while it pays, and the host's own settings afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from glowplug.node.page_merging import PageMerging
from glowplug.types.clock import ManualClock

HOSTS_OWN = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 50}


@dataclass
class Host:
    """The kernel's files, as a folder that the test plays the scanner in."""

    ksm: Path
    record: Path
    clock: ManualClock

    def agent(self) -> PageMerging:
        return PageMerging(self.record, self.clock, self.ksm)

    def show(self, **values: int) -> None:
        for name, value in values.items():
            (self.ksm / name).write_text(f"{value}\n")

    @property
    def settings(self) -> dict[str, int]:
        return {name: int((self.ksm / name).read_text()) for name in HOSTS_OWN}

    @property
    def is_on(self) -> bool:
        return self.settings["run"] == 1


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path / "ksm", tmp_path / "record.json", ManualClock())
    made.ksm.mkdir()
    made.show(**HOSTS_OWN, full_scans=7, pages_sharing=0)
    return made


def test_nothing_is_switched_on_without_copies(host: Host) -> None:
    host.agent().step()
    assert host.settings == HOSTS_OWN
    assert not host.record.exists()


def test_it_is_on_while_scans_find_more_and_then_the_host_has_its_own_settings(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    assert host.is_on
    for scans, merged in ((8, 0), (9, 500), (10, 1000), (11, 2000)):
        host.show(full_scans=scans, pages_sharing=merged)
        merging.step()
        assert host.is_on, (scans, merged)
    host.show(full_scans=12, pages_sharing=2010)
    merging.step()
    assert host.settings == HOSTS_OWN
    assert not host.record.exists()


def test_the_middle_of_a_scan_tells_nothing(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    host.show(full_scans=10, pages_sharing=1000)
    for _ in range(5):
        merging.step()
        assert host.is_on


def test_it_ends_where_nothing_can_be_merged(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    host.show(full_scans=10)
    merging.step()
    assert host.settings == HOSTS_OWN


def test_it_ends_after_its_limit_however_slow_the_scanner_is(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    host.clock.advance(599)
    merging.step()
    assert host.is_on
    host.clock.advance(2)
    merging.step()
    assert host.settings == HOSTS_OWN


def test_new_copies_are_scanned_as_often_as_the_first_ones(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    host.show(full_scans=9, pages_sharing=1000)
    merging.want()
    merging.step()
    host.show(full_scans=11)
    merging.step()
    assert host.is_on
    host.show(full_scans=12)
    merging.step()
    assert not host.is_on


def test_a_host_that_merges_by_itself_is_left_alone_until_it_stops(host: Host) -> None:
    host.show(run=1)
    merging = host.agent()
    merging.want()
    merging.step()
    assert host.settings == HOSTS_OWN | {"run": 1}
    host.show(run=0)
    merging.step()
    assert host.is_on


def test_the_successor_of_a_killed_agent_puts_the_hosts_settings_back(host: Host) -> None:
    killed = host.agent()
    killed.want()
    killed.step()
    assert host.is_on
    host.agent().put_back()
    assert host.settings == HOSTS_OWN
    host.agent().put_back()
    assert host.settings == HOSTS_OWN


def test_what_somebody_switched_meanwhile_is_not_undone(host: Host) -> None:
    merging = host.agent()
    merging.want()
    merging.step()
    host.show(run=2)
    merging.put_back()
    assert host.settings["run"] == 2
    assert not host.record.exists()


def test_a_record_of_an_earlier_boot_or_a_torn_one_is_thrown_away(host: Host) -> None:
    host.show(run=1)
    for text in (json.dumps({"boot_id": "another", "settings": HOSTS_OWN}), "{", "[]"):
        host.record.write_text(text)
        host.agent().put_back()
        assert host.settings == HOSTS_OWN | {"run": 1}
        assert not host.record.exists()
