from __future__ import annotations

from pathlib import Path

import pytest

from glowplug.image.apt import debian_sources, reaching_options


@pytest.fixture
def etc_apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_both_formats_of_sources_are_read(etc_apt: Path) -> None:
    (etc_apt / "sources.list").write_text(
        "# comment\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib #\n"
        "# why\n"
        "deb-src http://mirror.invalid/debian bookworm main\n"
    )
    (etc_apt / "sources.list.d" / "debian.sources").write_text(
        "Types: deb deb-src\n# comment\nURIs: https://sec.invalid/debian-security\n"
        "Suites: bookworm-security\n"
        "Components: main\n non-free\nSigned-By: /k.gpg\n\nTypes: deb\nEnabled: no\n"
        "URIs: https://off.invalid\nSuites: bookworm\nComponents: main\n"
    )
    assert debian_sources(etc_apt) == [
        "deb http://mirror.invalid/debian bookworm main contrib",
        "deb https://sec.invalid/debian-security bookworm-security main non-free",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "deb https://apt.invalid/postgresql bookworm-pgdg main",
        "deb https://download.invalid/docker bookworm stable",
        "deb https://mirror.invalid/ubuntu noble main",
        "deb file:/srv/mirror bookworm main",
        "deb cdrom:[Debian]/ bookworm main",
        "nonsense",
    ],
)
def test_sources_that_are_not_debian_over_http_are_left_out(etc_apt: Path, line: str) -> None:
    (etc_apt / "sources.list").write_text(line + "\n")
    assert debian_sources(etc_apt) == []


def test_files_that_apt_itself_ignores_are_ignored(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "off.list.disabled").write_text(
        "deb http://m.invalid/debian bookworm main\n"
    )
    assert debian_sources(etc_apt) == []


def test_only_options_about_reaching_a_mirror_are_passed_on() -> None:
    for option in reaching_options():
        assert option.startswith("Acquire::")
        assert "IndexTargets" not in option
