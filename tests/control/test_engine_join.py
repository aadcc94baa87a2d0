"""Getting into the cluster of an engine by a join token, from the control plane beside it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.control.conftest import Control
from tests.control.second_node import VERSION, new_token

from glowplug.engine.ray.base import make_base
from glowplug.engine.ray.settings import RaySettings
from glowplug.identity.engine_join import accept_engine, engine_join_request
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import SealedAnswer
from glowplug.types.paths import IdentityDir

SETTINGS = RaySettings(address="10.0.0.1:6379", starts_head=True)
PATH = "/api/v1/engine/join"


@pytest.fixture
def files(tmp_path: Path) -> IdentityDir:
    return IdentityDir(tmp_path / "machine")


async def ask(control: Control, files: IdentityDir, token: str, **change: object) -> httpx.Response:
    """``change`` is what somebody changed on the way."""
    version = str(change.pop("version", VERSION))
    request = engine_join_request(files, JoinToken.parse(token), "10.0.0.2", version)
    answer = await control.client.post(PATH, json={**request.model_dump(mode="json"), **change})
    if answer.is_success:
        sealed = SealedAnswer.model_validate_json(answer.content)
        accept_engine(files, JoinToken.parse(token), request, sealed)
    return answer


async def test_who_has_a_join_token_gets_rays_own_token_sealed(control: Control, files: IdentityDir) -> None:
    make_base(control.state, SETTINGS, SystemClock())
    answer = await ask(control, files, await new_token(control))
    assert answer.status_code == 200, answer.text
    token = control.state.ray_token.read_text()
    assert token not in answer.text
    assert token in files.engine_base.read_text()
    authority = control.state.identity.engine.authority_certificate.read_text()
    assert files.authority_certificate.read_text() == authority


async def test_who_has_none_is_refused_and_counted(control: Control, files: IdentityDir) -> None:
    make_base(control.state, SETTINGS, SystemClock())
    good = await new_token(control)
    unknown = str(JoinToken.new("ab" * 32))
    refusals = [
        (await ask(control, files, unknown), 401),
        (await ask(control, files, good, host="10.0.0.66"), 401),
        (await ask(control, files, good, version="99.0.0"), 409),
    ]
    for answer, status in refusals:
        assert answer.status_code == status, answer.text
        assert answer.json()["remedy"]
    assert not files.engine_base.exists()
    assert await control.metric("glowplug_joins_refused_total") == len(refusals)


async def test_a_control_plane_that_started_no_engine_says_so(control: Control, files: IdentityDir) -> None:
    answer = await ask(control, files, await new_token(control))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "cluster up --engine ray" in answer.json()["remedy"]
