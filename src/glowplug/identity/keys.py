"""Keys of the parts of a cluster, their signing requests, and when a certificate is due to be renewed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from glowplug.identity.files import create_file
from glowplug.types.clock import Clock
from glowplug.types.errors import SystemUnfit

_RENEW_WITH_LIFE_LEFT = 1 / 3


def load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in ``path`` (mode 0600), made on first use. Raises SystemUnfit, OSError."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        create_file(path, private.decode())
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
    except ValueError as error:
        raise _unusable(path) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise _unusable(path)
    return loaded


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A request (PEM) that proves that its sender has the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key, in hex: by it control knows a node again."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def is_for(certificate: str, key: ec.EllipticCurvePublicKey, authority: x509.Certificate) -> bool:
    """Whether this certificate (PEM) is the authority's, and for this key."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.encode())
        loaded.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    found = loaded.public_key()
    return isinstance(found, ec.EllipticCurvePublicKey) and key_fingerprint(found) == key_fingerprint(key)


def is_due(
    certificate: str, key: ec.EllipticCurvePublicKey, authority: x509.Certificate, clock: Clock
) -> bool:
    """Whether there should be another one: it is not for this key, or two thirds of its life are over."""
    if not is_for(certificate, key, authority):
        return True
    loaded = x509.load_pem_x509_certificate(certificate.encode())
    life = loaded.not_valid_after_utc - loaded.not_valid_before_utc
    left = loaded.not_valid_after_utc - datetime.fromtimestamp(clock.wall(), UTC)
    return left < life * _RENEW_WITH_LIFE_LEFT


def _unusable(path: Path) -> SystemUnfit:
    return SystemUnfit(
        f"The key {path} cannot be read.",
        remedy="Restore it from a copy, or remove the file and join the cluster again.",
    )
