from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from glowplug.image.origin.docker_credentials import Credentials, find_credentials
from glowplug.types.errors import InvalidInput, SystemUnfit, Unauthorized


def home_with(folder: Path, config: object) -> dict[str, str]:
    (folder / ".docker").mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / ".docker" / "config.json").write_text(text)
    return {"HOME": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}


def auth(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


def helper(folder: Path, script: str) -> None:
    path = folder / "docker-credential-x"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("key", ["r.example:5000", "https://r.example:5000", "https://r.example:5000/v2/"])
def test_an_entry_is_found_however_its_key_is_written(tmp_path: Path, key: str) -> None:
    environ = home_with(tmp_path, {"auths": {"r.example": auth("a:b"), key: auth("me:pass:word")}})
    assert find_credentials("r.example:5000", environ) == Credentials("me", "pass:word")
    assert find_credentials("other.example", environ) is None


def test_the_entry_of_docker_hub_has_an_address_of_its_own(tmp_path: Path) -> None:
    environ = home_with(tmp_path, {"auths": {"https://index.docker.io/v1/": auth("me:hub")}})
    assert find_credentials("docker.io", environ) == Credentials("me", "hub")
    assert find_credentials("index.docker.io.example.com", environ) is None


def test_the_folder_can_be_set(tmp_path: Path) -> None:
    home_with(tmp_path, {"auths": {"r.example": {"username": "u", "password": "p"}}})
    environ = {"HOME": "/nowhere", "DOCKER_CONFIG": str(tmp_path / ".docker")}
    assert find_credentials("r.example", environ) == Credentials("u", "p")
    assert find_credentials("r.example", {"HOME": "/nowhere"}) is None


def test_refresh_tokens_come_from_the_file_and_from_helpers(tmp_path: Path) -> None:
    environ = home_with(tmp_path, {"auths": {"r.example": {"identitytoken": "t"}}})
    expected = Credentials("<token>", "", "t")
    assert find_credentials("r.example", environ) == expected
    helper(tmp_path, """echo '{"Username": "<token>", "Secret": "t"}'""")
    environ = home_with(tmp_path, {"credHelpers": {"r.example": "x"}})
    assert find_credentials("r.example", environ) == expected


def test_a_store_that_has_nothing_is_no_error(tmp_path: Path) -> None:
    helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1")
    environ = home_with(tmp_path, {"credsStore": "x", "auths": {"r.example": auth("from:file")}})
    assert find_credentials("other.example", environ) is None
    assert find_credentials("r.example", environ) == Credentials("from", "file")


@pytest.mark.parametrize(
    ("script", "kind"),
    [("echo locked >&2; exit 1", Unauthorized), ("echo nonsense", SystemUnfit), ("echo '[]'", SystemUnfit)],
)
def test_a_helper_that_fails_is_an_error_and_no_login_without_password(
    tmp_path: Path, script: str, kind: type[Exception]
) -> None:
    helper(tmp_path, script)
    with pytest.raises(kind):
        find_credentials("r.example", home_with(tmp_path, {"credHelpers": {"r.example": "x"}}))


def test_a_helper_that_is_not_installed_or_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemUnfit, match="docker-credential-missing"):
        find_credentials("r.example", home_with(tmp_path, {"credHelpers": {"r.example": "missing"}}))
    with pytest.raises(InvalidInput, match="impossible helper"):
        find_credentials("r.example", home_with(tmp_path, {"credHelpers": {"r.example": "x/../../sh"}}))


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"auths": 1}', '{"auths": {"r.example": {"auth": "%%"}}}', '{"auths": {"r.example": 5}}',
     '{"auths": {"r.example": {"auth": "bm9jb2xvbg=="}}}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_does_not_quote_it(tmp_path: Path, config: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        find_credentials("r.example", home_with(tmp_path, config))
    assert "bm9jb2xvbg" not in f"{caught.value} {caught.value.details}"


def test_passwords_do_not_show_in_what_is_printed() -> None:
    assert "secret" not in repr(Credentials("me", "secret", "secret"))
