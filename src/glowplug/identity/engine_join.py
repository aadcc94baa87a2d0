"""How a machine gets into the cluster of an engine that we started: its certificate there, and the token.

The engine (Ray) has an authority of its own: a certificate of it opens no gateway, and a node's opens no Ray.
Who joins proves that it has a join token, as a node does. The answer is sealed with a key that is made of the
same token, so that it may cross a network that others read, and nobody else can have made it.
"""

from __future__ import annotations

import base64
import os

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import ValidationError

from glowplug.identity.files import replace_file
from glowplug.identity.keys import is_for, load_or_create_key, signing_request
from glowplug.identity.tokens import JoinToken, prove
from glowplug.types.cluster import EngineAnswer, EngineBase, EngineJoinRequest, SealedAnswer
from glowplug.types.errors import NotFound, SystemUnfit, Unauthorized
from glowplug.types.paths import IdentityDir

_NONCE_BYTES = 12
_KEY_BYTES = 32
_PURPOSE = b"glowplug engine join answer"


def engine_join_request(files: IdentityDir, token: JoinToken, host: str, glowplug: str) -> EngineJoinRequest:
    """What to send to get in as the machine at ``host``. Makes its key there on first use."""
    key = load_or_create_key(files.node_key)
    request = EngineJoinRequest(
        token_id=token.id, host=host, glowplug=glowplug, signing_request=signing_request(key, host)
    )
    return request.model_copy(update={"proof": prove(token.proof_key, request.proven())})


def seal(proof_key: str, request: EngineJoinRequest, answer: EngineAnswer) -> SealedAnswer:
    """The answer, for who has the join token and asked this."""
    nonce = os.urandom(_NONCE_BYTES)
    text = answer.model_dump_json().encode()
    sealed = nonce + AESGCM(_key(proof_key)).encrypt(nonce, text, request.proof.encode())
    return SealedAnswer(sealed=base64.b64encode(sealed).decode())


def accept_engine(
    files: IdentityDir, token: JoinToken, request: EngineJoinRequest, answer: SealedAnswer
) -> EngineBase:
    """Keep what was answered. Raises Unauthorized for what is not of who has the token, or not for us."""
    refused = Unauthorized(
        "Who answered is not the control plane that this join token is of.",
        remedy="Check the address; somebody may be between you and the control plane.",
    )
    try:
        sealed = base64.b64decode(answer.sealed, validate=True)
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        opened = AESGCM(_key(token.proof_key)).decrypt(nonce, text, request.proof.encode())
        found = EngineAnswer.model_validate_json(opened)
        authority = x509.load_pem_x509_certificate(found.authority.encode())
    except (InvalidTag, ValueError) as error:
        raise refused from error
    if not is_for(found.certificate, load_or_create_key(files.node_key).public_key(), authority):
        raise refused
    replace_file(files.authority_certificate, found.authority)
    replace_file(files.node_certificate, found.certificate)
    base = EngineBase(engine=found.engine, address=found.address, token=found.token, host=request.host)
    write_base(files, base)
    return base


def write_base(files: IdentityDir, base: EngineBase) -> None:
    """Mode 0600. Raises OSError."""
    replace_file(files.engine_base, base.model_dump_json(indent=1))


def read_base(files: IdentityDir) -> EngineBase:
    """The way into the engine's cluster. Raises NotFound where there is none, SystemUnfit."""
    try:
        return EngineBase.model_validate_json(files.engine_base.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            "This machine is of no engine's cluster that Glowplug has started.",
            remedy="`glowplug cluster up --engine ray` on the first machine starts one; see docs/cluster.md.",
        ) from None
    except (OSError, ValidationError) as error:
        raise SystemUnfit(
            f"{files.engine_base} cannot be read.",
            remedy="Join again with a token; on the first machine, `glowplug cluster up` writes it anew.",
            cause=str(error)[:300],
        ) from error


def _key(proof_key: str) -> bytes:
    derived = HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=_PURPOSE)
    return derived.derive(bytes.fromhex(proof_key))
