"""The cluster's authority: what it issues, to whom, for how long; and what it does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from tests.identity.certificates import certify_node, certify_router, new_authority

from glowplug.identity.authority import CERTIFICATE_LIFE, Authority, fingerprint_of
from glowplug.identity.keys import is_due, load_or_create_key, signing_request
from glowplug.identity.membership import (
    accept,
    accept_router_certificate,
    is_renewal_due,
    join_request,
    read_membership,
)
from glowplug.identity.roles import CONTROL_URI, ROUTER_LIFE_S, require_control, require_router
from glowplug.identity.tokens import JoinToken
from glowplug.types.clock import ManualClock
from glowplug.types.cluster import CertificateAnswer, MembershipRecord
from glowplug.types.errors import InvalidInput, NotFound, SystemUnfit, Unauthorized
from glowplug.types.paths import IdentityDir

RECORD = MembershipRecord(
    name="beta", control_url="http://c", listen_host="0.0.0.0", listen_port=7443, advertise_host="b"
)


def names_in(certificate: str) -> tuple[list[str], list[str]]:
    """The DNS names and the URIs."""
    loaded = x509.load_pem_x509_certificate(certificate.encode())
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        names.get_values_for_type(x509.DNSName),
        names.get_values_for_type(x509.UniformResourceIdentifier),
    )


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    files = IdentityDir(tmp_path / "identity")
    clock = ManualClock()
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: Authority.open(files, clock).fingerprint, range(8)))
    assert len(set(opened)) == 1
    assert files.authority.stat().st_mode & 0o777 == 0o600
    assert files.root.stat().st_mode & 0o777 == 0o700
    assert fingerprint_of(files.authority_certificate.read_text()) == opened[0]
    assert sorted(path.name for path in files.root.iterdir()) == ["authority.pem", "ca.crt"]


def test_a_damaged_authority_is_said_to_be_and_not_made_anew(tmp_path: Path) -> None:
    files = IdentityDir(tmp_path)
    files.authority.write_text("no key")
    with pytest.raises(SystemUnfit, match="cannot be used"):
        Authority.open(files, ManualClock())
    assert files.authority.read_text() == "no key"


def test_a_nodes_certificate_has_its_name_and_its_role_and_controls_has_no_name(tmp_path: Path) -> None:
    files = IdentityDir(tmp_path)
    authority = new_authority(tmp_path)
    certify_node(authority, files, "beta")
    certify_router(authority, files, "beta")
    assert names_in(files.node_certificate.read_text()) == (["beta"], ["glowplug:node/beta"])
    assert names_in(files.router_certificate.read_text()) == ([], ["glowplug:router/beta"])
    assert names_in(files.control_certificate.read_text()) == ([], [CONTROL_URI])
    assert files.node_key.stat().st_mode & 0o777 == 0o600


def test_a_routers_certificate_is_good_for_hours_and_kept_only_if_it_is_ours(tmp_path: Path) -> None:
    files, others = IdentityDir(tmp_path / "ours"), IdentityDir(tmp_path / "others")
    authority = new_authority(tmp_path / "control")
    certify_node(authority, files, "beta")
    certify_router(authority, others, "gamma")
    of_another = CertificateAnswer(
        certificate=others.router_certificate.read_text(), authority=authority.certificate
    )
    with pytest.raises(Unauthorized, match="not for this machine's key"):
        accept_router_certificate(files, of_another)
    request = signing_request(load_or_create_key(files.node_key), "beta")
    made = authority.issue_to_router("beta", request).certificate
    accept_router_certificate(files, CertificateAnswer(certificate=made, authority=authority.certificate))
    loaded = x509.load_pem_x509_certificate(files.router_certificate.read_bytes())
    life = loaded.not_valid_after_utc - datetime.now(UTC)
    assert 0.9 * ROUTER_LIFE_S < life.total_seconds() <= ROUTER_LIFE_S


def test_whatever_a_request_says_of_itself_only_its_key_counts(tmp_path: Path) -> None:
    authority = new_authority(tmp_path)
    request = signing_request(load_or_create_key(tmp_path / "k"), CONTROL_URI)
    assert names_in(authority.issue_to_node("beta", request).certificate) == (
        ["beta"],
        ["glowplug:node/beta"],
    )


@pytest.mark.parametrize("name", ["", "-", "A", "a b", "a.b", "x" * 49, "glowplug:control", "api"])
def test_a_name_that_is_none_gets_no_certificate(tmp_path: Path, name: str) -> None:
    request = signing_request(load_or_create_key(tmp_path / "k"), "n")
    with pytest.raises(InvalidInput, match="node name"):
        new_authority(tmp_path).issue_to_node(name, request)


def test_a_request_that_is_none_or_of_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "beta")])
    other = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    good = signing_request(load_or_create_key(tmp_path / "k"), "n")
    lines = good.splitlines()
    broken = "\n".join([lines[0], lines[1][::-1], *lines[2:]])
    authority = new_authority(tmp_path)
    for request in ("", "x" * 4000, broken, other.public_bytes(serialization.Encoding.PEM).decode()):
        with pytest.raises(InvalidInput, match="no signing request"):
            authority.issue_to_node("beta", request)


def test_a_certificate_is_due_when_a_third_of_its_life_is_left_and_then_renewed(tmp_path: Path) -> None:
    clock, files = ManualClock(), IdentityDir(tmp_path)
    authority = new_authority(tmp_path, clock)
    certify_node(authority, files, "beta")
    first = files.control_certificate.read_text()
    assert not is_renewal_due(files, clock)
    clock.advance(CERTIFICATE_LIFE.total_seconds() / 2)
    assert not is_renewal_due(files, clock)
    authority.ensure_control_certificate()
    assert files.control_certificate.read_text() == first
    clock.advance(CERTIFICATE_LIFE.total_seconds() / 4)
    assert is_renewal_due(files, clock)
    authority.ensure_control_certificate()
    assert files.control_certificate.read_text() != first


def test_a_certificate_of_another_authority_or_key_is_due_at_once(tmp_path: Path) -> None:
    clock = ManualClock()
    ours, theirs = new_authority(tmp_path / "a", clock), new_authority(tmp_path / "b", clock)
    key, other = load_or_create_key(tmp_path / "k"), load_or_create_key(tmp_path / "l")
    certificate = theirs.issue_to_node("beta", signing_request(key, "beta")).certificate
    trusted = x509.load_pem_x509_certificate(theirs.certificate.encode())
    assert not is_due(certificate, key.public_key(), trusted, clock)
    assert is_due(certificate, other.public_key(), trusted, clock)
    trusted = x509.load_pem_x509_certificate(ours.certificate.encode())
    assert is_due(certificate, key.public_key(), trusted, clock)
    assert is_due("", key.public_key(), trusted, clock)


def test_who_joins_keeps_nothing_from_an_authority_that_the_token_is_not_of(tmp_path: Path) -> None:
    files = IdentityDir(tmp_path / "node")
    ours, theirs = new_authority(tmp_path / "a"), new_authority(tmp_path / "b")
    token = JoinToken.new(ours.fingerprint)
    request = join_request(files, token, RECORD, "0.1.0")
    forged = theirs.issue_to_node("beta", request.signing_request).certificate
    for authority in (theirs.certificate, ours.certificate):
        with pytest.raises(Unauthorized):
            accept(files, token, RECORD, CertificateAnswer(certificate=forged, authority=authority))
    assert read_membership(files) is None
    good = ours.issue_to_node("beta", request.signing_request).certificate
    accept(files, token, RECORD, CertificateAnswer(certificate=good, authority=ours.certificate))
    assert read_membership(files) == RECORD


def test_where_no_cluster_was_joined_nothing_is_due(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no certificate"):
        is_renewal_due(IdentityDir(tmp_path), ManualClock())


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": ()},
        {"subjectAltName": (("DNS", CONTROL_URI),)},
        {"subjectAltName": (("DNS", "beta"), ("URI", "glowplug:node/beta"))},
        {"subjectAltName": (("URI", "glowplug:node/glowplug:control"),)},
        {"subjectAltName": (("DNS", "glowplug:router/beta"), ("URI", "glowplug:node/glowplug:router/beta"))},
    ],
)
def test_only_controls_role_is_controls_and_a_nodes_opens_nothing(
    certificate: dict[str, object] | None,
) -> None:
    for require in (require_control, require_router):
        with pytest.raises(Unauthorized):
            require(certificate)
    require_control({"subjectAltName": (("URI", CONTROL_URI),)})
    require_router({"subjectAltName": (("URI", CONTROL_URI),)})
    router = {"subjectAltName": (("URI", "glowplug:router/beta"),)}
    require_router(router)
    with pytest.raises(Unauthorized):
        require_control(router)
