"""Installing: apt's sources are understood, no half-installed file is left, and the real thing works."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.cli.apt_sources import AptSource, debian_mirror, parse_deb822, parse_one_line, read_sources
from glowplug.cli.install import _publish, install_runsc, parse_status
from glowplug.types.errors import SystemUnfit

DEB822 = """
# Debian
Types: deb deb-src
URIs: http://mirror.example/debian
  http://second.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_deb822_sources_are_understood() -> None:
    assert [source.uri for source in parse_deb822(DEB822)] == [
        "http://mirror.example/debian", "http://second.example/debian", "http://security.example/debian-security",
    ]  # fmt: skip


def test_one_line_sources_are_understood() -> None:
    text = "# deb http://x y z\ndeb [arch=amd64 signed-by=/k] http://m/debian bookworm main contrib # why\n"
    assert list(parse_one_line(text)) == [AptSource("http://m/debian", ("bookworm",), ("main", "contrib"))]


def test_the_mirror_is_debians_own_archive_whatever_else_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "aaa.list").write_text("deb http://browser.example/linux stable main\n")
    (folder / "debian.sources").write_text(DEB822)
    (folder / "off.sources.disabled").write_text(DEB822.replace("mirror", "disabled"))
    (tmp_path / "sources.list").write_text(
        "deb http://security.example/debian-security bookworm-security main\n"
    )
    assert debian_mirror(read_sources(tmp_path)) == "http://mirror.example/debian"


def test_a_machine_that_follows_stable_is_understood() -> None:
    sources = list(parse_one_line("deb http://m/debian stable main"))
    assert debian_mirror(sources) == "http://m/debian"


def test_a_machine_without_debian_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(SystemUnfit, match="No Debian package source"):
        debian_mirror(read_sources(tmp_path))


@given(st.text())
def test_no_text_breaks_the_source_readers(text: str) -> None:
    list(parse_deb822(text))
    list(parse_one_line(text))


@given(st.text())
def test_no_text_breaks_the_progress_reader(text: str) -> None:
    report = parse_status(text)
    assert report is None or 0 <= report[1] <= 1


def test_apts_progress_is_understood() -> None:
    assert parse_status("dlstatus:1:20.5:Retrieving file 1 of 3") == ("Retrieving file 1 of 3", 0.205)
    assert parse_status("pmstatus:runsc:60:Unpacking runsc (amd64)") == ("Unpacking runsc (amd64)", 0.6)
    assert parse_status("media-change:x") is None
    assert parse_status("pmerror:/var/cache/x.deb:nan:broken") is None


def test_a_binary_that_does_not_work_is_not_put_in_place(tmp_path: Path) -> None:
    binary, destination = tmp_path / "runsc", tmp_path / "bin" / "runsc"
    binary.write_text("#!/bin/sh\necho this kernel is too strange\nexit 128\n")
    with pytest.raises(SystemUnfit, match="this kernel is too strange"):
        _publish(binary, destination, tmp_path)
    assert list(destination.parent.iterdir()) == []


@pytest.mark.sandbox
def test_runsc_is_installed_for_real_and_works(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    destination = tmp_path / "bin" / "runsc"
    reports: list[str] = []
    install_runsc(lambda text, fraction: reports.append(text), destination)
    version = subprocess.run([destination, "--version"], capture_output=True, text=True, check=True).stdout
    assert "20240729" in version
    assert [entry.name for entry in destination.parent.iterdir()] == ["runsc"]
    assert reports[-1] == "trying it in a sandbox"
