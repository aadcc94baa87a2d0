"""What control planes of one database share of a cluster's keys."""

from __future__ import annotations

from pathlib import Path

from tests.identity.certificates import new_authority

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.database import Database
from glowplug.control.store import Store
from glowplug.identity.authority import fingerprint_of
from glowplug.identity.keys import load_or_create_key, signing_request
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import SystemClock
from glowplug.types.paths import IdentityDir


async def test_control_planes_of_one_database_are_of_the_authority_that_was_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'control.db'}"
    first_files, second_files = IdentityDir(tmp_path / "first"), IdentityDir(tmp_path / "second")
    other = new_authority(second_files.root)  # of an earlier life
    store, second_store = Store(Database(url)), Store(Database(url))
    try:
        first = ClusterKeys(first_files, store, SystemClock())
        token = JoinToken.parse((await first.new_token(60.0)).token or "")
        second = ClusterKeys(second_files, second_store, SystemClock())
        await second.contexts()
        key = load_or_create_key(second_files.node_key)
        answer, _ = await second.issue("b", signing_request(key, "b"))
    finally:
        await store.close()
        await second_store.close()
    assert other.fingerprint != token.authority
    assert fingerprint_of(answer.authority) == token.authority
    assert second_files.authority.read_text() == first_files.authority.read_text()
    assert second_files.authority_certificate.read_text() == first_files.authority_certificate.read_text()
