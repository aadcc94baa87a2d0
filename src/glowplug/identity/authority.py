"""The cluster's certificate authority: ECDSA P-256, made on first use, in the state directory of control.

It says which key belongs to which node and which to control, for thirty days at a time; whoever has its file
can be anybody in the cluster. Of a signing request only the key counts: names and roles are control's to
give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from glowplug.identity.files import create_file, replace_file
from glowplug.identity.keys import is_due, key_fingerprint, load_or_create_key
from glowplug.identity.roles import CONTROL_URI, ROUTER_LIFE_S, check_node_name, node_uri, router_uri
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, SystemUnfit
from glowplug.types.paths import IdentityDir

_AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=30)
# Clocks of a cluster differ: a certificate is valid a little before it was made.
_CLOCK_TOLERANCE = timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate (PEM), and the fingerprint of the key it is for."""

    certificate: str
    key_fingerprint: str


class Authority:
    """Issues certificates. :meth:`open` loads it, or makes it."""

    def __init__(
        self, files: IdentityDir, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock
    ) -> None:
        self._files = files
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @classmethod
    def open(cls, files: IdentityDir, clock: Clock) -> Authority:
        """Load the authority, or make it; two who make it at once end up with one. Raises SystemUnfit."""
        try:
            if not files.authority.exists():
                create_file(files.authority, _new_authority(clock))
            pem = files.authority.read_bytes()
            key = serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("its key is not on an elliptic curve")
            text = _pem(certificate)
            if not files.authority_certificate.exists() or files.authority_certificate.read_text() != text:
                replace_file(files.authority_certificate, text)
        except (OSError, ValueError) as error:
            raise SystemUnfit(
                f"The cluster's certificate authority {files.authority} cannot be used: {error}.",
                remedy="Restore it from a copy. Without it every node has to join anew.",
            ) from error
        return cls(files, key, certificate, clock)

    @property
    def certificate(self) -> str:
        """Its own certificate, as PEM."""
        return _pem(self._certificate)

    @property
    def pem(self) -> str:
        """Its key and its certificate: whoever has this is the authority."""
        return self._files.authority.read_text()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in hex: what join tokens begin with."""
        return fingerprint_of(self.certificate)

    def issue_to_node(self, name: str, signing_request: str) -> Issued:
        """A certificate for the node ``name`` and the key that signed the request. Raises InvalidInput."""
        check_node_name(name)
        key = _key_of(signing_request)
        names: list[x509.GeneralName] = [
            x509.DNSName(name),
            x509.UniformResourceIdentifier(node_uri(name)),
        ]
        return Issued(_pem(self._issue(f"node {name}", key, names)), key_fingerprint(key))

    def issue_to_router(self, name: str, signing_request: str) -> Issued:
        """As :meth:`issue_to_node`, for the router on that node; good for hours."""
        check_node_name(name)
        key = _key_of(signing_request)
        role = [x509.UniformResourceIdentifier(router_uri(name))]
        issued = self._issue(f"router {name}", key, role, timedelta(seconds=ROUTER_LIFE_S))
        return Issued(_pem(issued), key_fingerprint(key))

    def issue_to_host(self, host: str, signing_request: str) -> Issued:
        """For a machine that others reach at ``host``; good as long as the authority: Ray reads it once."""
        key = _key_of(signing_request)
        names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
        issued = self._issue("machine", key, names, _AUTHORITY_LIFE)
        return Issued(_pem(issued), key_fingerprint(key))

    def ensure_control_certificate(self) -> None:
        """Write control's key and certificate unless they are there and good for long. Raises OSError."""
        key = load_or_create_key(self._files.control_key)
        try:
            current = self._files.control_certificate.read_text()
        except FileNotFoundError:
            current = ""
        if is_due(current, key.public_key(), self._certificate, self._clock):
            role = [x509.UniformResourceIdentifier(CONTROL_URI)]
            certificate = self._issue("control", key.public_key(), role)
            replace_file(self._files.control_certificate, _pem(certificate))

    def _issue(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        life: timedelta = CERTIFICATE_LIFE,
    ) -> x509.Certificate:
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(subject, key, self._clock, life)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(_issuer(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def fingerprint_of(certificate: str) -> str:
    """SHA-256 of a certificate (PEM), in hex. Raises InvalidInput."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise InvalidInput(
            "This is no certificate.", remedy="Is the address that of a control plane?"
        ) from error
    return hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest()


def _new_authority(clock: Clock) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = "glowplug cluster authority"
    certificate = (
        _builder(subject, key.public_key(), clock, _AUTHORITY_LIFE)
        .issuer_name(_named(subject))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(_issuer(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode() + _pem(certificate)


def _builder(
    subject: str, key: ec.EllipticCurvePublicKey, clock: Clock, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(clock.wall(), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(subject))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_of(signing_request: str) -> ec.EllipticCurvePublicKey:
    refused = InvalidInput(
        "This is no signing request for a key on the curve P-256.",
        remedy="Use `glowplug cluster join` of the same version.",
    )
    try:
        request = x509.load_pem_x509_csr(signing_request.encode())
        is_signed = request.is_signature_valid
        key = request.public_key()
    except Exception as error:
        raise refused from error
    if not (is_signed and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise refused
    return key
