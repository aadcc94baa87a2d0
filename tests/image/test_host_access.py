from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from glowplug.image.host_access import FOLDER, LENT_FOLDER, HostAccess, pip_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for folder in (".config/pip", ".pip", "etc"):
        (home / folder).mkdir(parents=True)
    return home


def variables_of(folder: Path) -> dict[str, str]:
    """What a shell has set after reading the file, as a build's steps do."""
    shown = subprocess.run(
        ["env", "-i", "/bin/sh", "-c", f". {folder}/env; /usr/bin/env -0"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(entry.split("=", 1) for entry in shown.stdout.split("\0") if entry)


def test_settings_of_pip_are_merged_as_pip_does(home: Path) -> None:
    (home / "etc" / "pip.conf").write_text("[global]\ntimeout = 1\nretries = 2\n")
    (home / ".pip" / "pip.conf").write_text("not an ini file")
    (home / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://user:pass@index.invalid/simple\ntimeout = 5\ntarget = /nowhere\n"
        "[install]\nextra-index-url =\n  https://one.invalid\n  https://two.invalid\n"
    )
    settings = pip_settings({"HOME": str(home), "PIP_TIMEOUT": "9", "PIP_USER": "1"}, home / "etc")
    assert settings["PIP_INDEX_URL"] == "https://user:pass@index.invalid/simple"
    assert settings["PIP_EXTRA_INDEX_URL"] == "https://one.invalid https://two.invalid"
    assert settings["PIP_TIMEOUT"] == "9"
    assert settings["PIP_RETRIES"] == "2"
    assert "PIP_TARGET" not in settings
    assert "PIP_USER" not in settings


def test_local_files_are_copied_in_and_local_folders_are_bound(tmp_path: Path, home: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "pypi" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    (tmp_path / "ca.crt").write_text("a certificate")
    access = HostAccess(tmp_path / "access", etc=home / "etc")
    access.write(
        {
            "HOME": str(home),
            "PIP_FIND_LINKS": f"{wheels} https://links.invalid",
            "PIP_INDEX_URL": f"file://{index}",
            "SSL_CERT_FILE": str(tmp_path / "ca.crt"),
            "https_proxy": "http://proxy.invalid:3128",
            "AWS_SECRET_ACCESS_KEY": "not for builds",
        },
        [],
    )
    variables = variables_of(access.folder)
    where = access.volumes[wheels]
    assert where.startswith(LENT_FOLDER)
    assert variables["PIP_FIND_LINKS"] == f"{where} https://links.invalid"
    assert variables["PIP_INDEX_URL"] == f"file://{access.volumes[index.parent]}/simple"
    assert variables["https_proxy"] == "http://proxy.invalid:3128"
    assert "AWS_SECRET_ACCESS_KEY" not in variables
    inside = variables["PIP_CERT"].removeprefix(f"{FOLDER}/")
    assert (access.folder / inside).read_text() == "a certificate"
    assert access.volumes[access.folder] == FOLDER


def test_values_with_shell_characters_are_only_values(tmp_path: Path, home: Path) -> None:
    access = HostAccess(tmp_path / "access", etc=home / "etc")
    access.write({"HOME": str(home), "https_proxy": "x'; touch /oops; '$(id)"}, [])
    assert variables_of(access.folder)["https_proxy"] == "x'; touch /oops; '$(id)"


def test_apt_learns_the_hosts_proxy_and_certificates(tmp_path: Path, home: Path) -> None:
    (tmp_path / "key.pem").write_text("a key")
    access = HostAccess(tmp_path / "access", etc=home / "etc")
    access.write(
        {"HOME": str(home)},
        [
            'Acquire::http::Proxy "http://proxy.invalid:3128";',
            f'Acquire::https::SslKey "{tmp_path / "key.pem"}";',
        ],
    )
    lines = (access.folder / "apt.conf").read_text().splitlines()
    assert 'Acquire::http::Proxy "http://proxy.invalid:3128";' in lines
    assert any(line.startswith(f'Acquire::https::SslKey "{FOLDER}/') for line in lines)


def test_only_root_can_read_what_is_lent(tmp_path: Path, home: Path) -> None:
    access = HostAccess(tmp_path / "access", etc=home / "etc")
    access.write({"HOME": str(home)}, [])
    assert access.folder.stat().st_mode & 0o077 == 0


def test_pips_own_certificates_win_over_the_machines(tmp_path: Path, home: Path) -> None:
    for name in ("pip.crt", "machine.crt"):
        (tmp_path / name).write_text(name)
    access = HostAccess(tmp_path / "access", etc=home / "etc")
    environ = {
        "HOME": str(home),
        "PIP_CERT": str(tmp_path / "pip.crt"),
        "CURL_CA_BUNDLE": str(tmp_path / "machine.crt"),
    }
    access.write(environ, [])
    variables = variables_of(access.folder)
    assert variables["PIP_CERT"].endswith("pip.crt")
    assert variables["SSL_CERT_FILE"].endswith("machine.crt")
