"""The way into an engine's cluster: only for who has the join token, and only from who knows it."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from tests.identity.certificates import certify_node, new_authority

from glowplug.identity.authority import Authority
from glowplug.identity.engine_join import accept_engine, engine_join_request, read_base, seal
from glowplug.identity.tokens import JoinToken, is_proven
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import EngineAnswer, EngineJoinRequest, SealedAnswer
from glowplug.types.errors import NotFound, SystemUnfit, Unauthorized
from glowplug.types.paths import IdentityDir

TOKEN = JoinToken.new("ab" * 32)


@pytest.fixture
def files(tmp_path: Path) -> IdentityDir:
    return IdentityDir(tmp_path / "machine")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(IdentityDir(tmp_path / "engine"), SystemClock())


def answered(authority: Authority, request: EngineJoinRequest, token: JoinToken = TOKEN) -> SealedAnswer:
    issued = authority.issue_to_host(request.host, request.signing_request)
    answer = EngineAnswer(
        engine="ray", address="10.0.0.1:6379", token="rays-own", certificate=issued.certificate,
        authority=authority.certificate,
    )  # fmt: skip
    return seal(token.proof_key, request, answer)


def test_a_machine_gets_the_address_the_token_and_a_certificate_for_where_it_is(
    files: IdentityDir, authority: Authority
) -> None:
    request = engine_join_request(files, TOKEN, "10.0.0.2", "0.1.0")
    assert is_proven(TOKEN.proof_key, request.proven(), request.proof)
    answer = answered(authority, request)
    assert b"rays-own" not in base64.b64decode(answer.sealed)
    base = accept_engine(files, TOKEN, request, answer)
    assert (base.address, base.token, base.host) == ("10.0.0.1:6379", "rays-own", "10.0.0.2")
    assert read_base(files) == base
    assert files.engine_base.stat().st_mode & 0o777 == 0o600
    certificate = x509.load_pem_x509_certificate(files.node_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(one) for one in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "10.0.0.2"}
    ssl.create_default_context(cafile=str(files.authority_certificate)).load_cert_chain(
        str(files.node_certificate), str(files.node_key)
    )


def test_a_machine_with_a_host_name_is_certified_by_it(files: IdentityDir, authority: Authority) -> None:
    request = engine_join_request(files, TOKEN, "head.example", "0.1.0")
    accept_engine(files, TOKEN, request, answered(authority, request))
    certificate = x509.load_pem_x509_certificate(files.node_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "head.example" in names.get_values_for_type(x509.DNSName)


def test_an_answer_of_who_does_not_know_the_token_is_refused_and_changes_nothing(
    files: IdentityDir, authority: Authority
) -> None:
    request = engine_join_request(files, TOKEN, "10.0.0.2", "0.1.0")
    good = answered(authority, request)
    bits = bytearray(base64.b64decode(good.sealed))
    bits[-1] ^= 1
    of_another_request = answered(authority, engine_join_request(files, TOKEN, "10.0.0.3", "0.1.0"))
    for answer in (
        answered(authority, request, JoinToken.new("ab" * 32)),
        SealedAnswer(sealed=base64.b64encode(bytes(bits)).decode()),
        SealedAnswer(sealed=""), SealedAnswer(sealed="no base64"),
        of_another_request,
    ):  # fmt: skip
        with pytest.raises(Unauthorized, match="is not the control plane that this join token is of"):
            accept_engine(files, TOKEN, request, answer)
    assert not files.engine_base.exists()
    assert not files.node_certificate.exists()


def test_a_certificate_for_another_key_is_refused(
    files: IdentityDir, authority: Authority, tmp_path: Path
) -> None:
    request = engine_join_request(files, TOKEN, "10.0.0.2", "0.1.0")
    other = engine_join_request(IdentityDir(tmp_path / "other"), TOKEN, "10.0.0.2", "0.1.0")
    issued = authority.issue_to_host("10.0.0.2", other.signing_request)
    answer = EngineAnswer(
        engine="ray", address="10.0.0.1:6379", token="t", certificate=issued.certificate,
        authority=authority.certificate,
    )  # fmt: skip
    with pytest.raises(Unauthorized):
        accept_engine(files, TOKEN, request, seal(TOKEN.proof_key, request, answer))


def test_a_node_of_the_cluster_is_nobody_to_the_engine(authority: Authority, tmp_path: Path) -> None:
    cluster = new_authority(tmp_path / "control")
    node = IdentityDir(tmp_path / "node")
    certify_node(cluster, node, "beta")
    certificate = x509.load_pem_x509_certificate(node.node_certificate.read_bytes())
    of_the_engine = x509.load_pem_x509_certificate(authority.certificate.encode())
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(of_the_engine)


def test_a_machine_that_has_no_way_in_says_so(files: IdentityDir) -> None:
    with pytest.raises(NotFound, match="no engine's cluster"):
        read_base(files)
    files.root.mkdir()
    files.engine_base.write_text("{")
    with pytest.raises(SystemUnfit, match="cannot be read"):
        read_base(files)
