"""A machine's own side of being a node: what it asks for, what it keeps, and its next certificate in time."""

from __future__ import annotations

from cryptography import x509
from pydantic import ValidationError

from glowplug.identity.authority import fingerprint_of
from glowplug.identity.files import replace_file
from glowplug.identity.keys import is_due, is_for, load_or_create_key, signing_request
from glowplug.identity.tokens import JoinToken, prove
from glowplug.types.clock import Clock
from glowplug.types.cluster import CertificateAnswer, JoinRequest, MembershipRecord, RenewalRequest
from glowplug.types.errors import NotFound, SystemUnfit, Unauthorized
from glowplug.types.paths import IdentityDir


def join_request(
    files: IdentityDir, token: JoinToken, record: MembershipRecord, glowplug: str
) -> JoinRequest:
    """What to send to become the node that ``record`` describes. Makes its key on first use."""
    key = load_or_create_key(files.node_key)
    request = JoinRequest(
        token_id=token.id,
        name=record.name,
        host=record.advertise_host,
        port=record.listen_port,
        glowplug=glowplug,
        labels=record.labels,
        signing_request=signing_request(key, record.name),
    )
    return request.model_copy(update={"proof": prove(token.proof_key, request.proven())})


def accept(files: IdentityDir, token: JoinToken, record: MembershipRecord, answer: CertificateAnswer) -> None:
    """Keep what control answered. Raises Unauthorized unless it is of the cluster that the token is of."""
    if fingerprint_of(answer.authority) != token.authority:
        raise Unauthorized(
            "Who answered is not the control plane that this join token is of.",
            remedy="Check the address; somebody may be between you and the control plane.",
        )
    _check_is_ours(files, answer.certificate, answer.authority)
    replace_file(files.authority_certificate, answer.authority)
    replace_file(files.node_certificate, answer.certificate)
    replace_file(files.membership, record.model_dump_json(indent=1))


def read_membership(files: IdentityDir) -> MembershipRecord | None:
    """Which cluster this machine is of; None if it never joined one. Raises SystemUnfit."""
    try:
        return MembershipRecord.model_validate_json(files.membership.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise SystemUnfit(
            f"{files.membership} cannot be read.", remedy="Remove it and join the cluster again."
        ) from error


def renewal_request(files: IdentityDir, name: str) -> RenewalRequest:
    """What to send for the next certificate."""
    key = load_or_create_key(files.node_key)
    return RenewalRequest(name=name, signing_request=signing_request(key, name))


def is_renewal_due(files: IdentityDir, clock: Clock) -> bool:
    """Whether it is time to ask. Raises NotFound where no cluster was joined."""
    try:
        certificate = files.node_certificate.read_text()
        authority = x509.load_pem_x509_certificate(files.authority_certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise NotFound(
            "This machine has no certificate of a cluster.", remedy="Join one: `glowplug cluster join`."
        ) from error
    return is_due(certificate, load_or_create_key(files.node_key).public_key(), authority, clock)


def accept_renewal(files: IdentityDir, answer: CertificateAnswer) -> None:
    """Keep the next certificate. Raises Unauthorized unless it is the known authority's, for our key."""
    _check_is_ours(files, answer.certificate, files.authority_certificate.read_text())
    replace_file(files.node_certificate, answer.certificate)


def accept_router_certificate(files: IdentityDir, answer: CertificateAnswer) -> None:
    """Keep the router's next certificate. Raises Unauthorized as :func:`accept_renewal`."""
    _check_is_ours(files, answer.certificate, files.authority_certificate.read_text())
    replace_file(files.router_certificate, answer.certificate)


def _check_is_ours(files: IdentityDir, certificate: str, authority: str) -> None:
    key = load_or_create_key(files.node_key).public_key()
    if not is_for(certificate, key, x509.load_pem_x509_certificate(authority.encode())):
        raise Unauthorized(
            "The certificate that came is not for this machine's key, or not of this cluster.",
            remedy="Check the address; somebody may be between you and the control plane.",
        )
