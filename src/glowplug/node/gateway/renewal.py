"""Keeps this node's certificate from running out: asks control for the next one when a third is left."""

from __future__ import annotations

import asyncio
import logging
import ssl

import httpx

from glowplug.identity.contexts import load_node_certificate
from glowplug.identity.membership import accept_renewal, is_renewal_due, read_membership, renewal_request
from glowplug.types.clock import Clock
from glowplug.types.cluster import CertificateAnswer, RenewalRequest
from glowplug.types.errors import GlowplugError, NotLeader, Unavailable
from glowplug.types.paths import IdentityDir

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3600.0
_RETRY_S = 60.0
_TIMEOUT_S = 15.0


async def keep_certificate(files: IdentityDir, context: ssl.SSLContext, clock: Clock) -> None:
    """Until cancelled. Connections that are open keep the certificate they began with."""
    while True:
        try:
            if await asyncio.to_thread(is_renewal_due, files, clock):
                await asyncio.to_thread(renew, files)
                load_node_certificate(context, files)
                log.info("this node has a new certificate")
            await asyncio.sleep(LOOK_EVERY_S)
        except (GlowplugError, OSError) as error:
            log.warning("the node's certificate was not renewed: %s", error)
            await asyncio.sleep(_RETRY_S)


def renew(files: IdentityDir) -> None:
    """Ask for the next certificate and keep it. Blocks. Raises a GlowplugError, OSError."""
    record = read_membership(files)
    if record is None:
        raise Unavailable("This machine is of no cluster.", remedy="Join one: `glowplug cluster join`.")
    request = renewal_request(files, record.name)
    try:
        certificate = _asked(record.control_url, request)
    except NotLeader as error:
        leader = error.details.get("leader")
        if not isinstance(leader, str) or not leader:
            raise
        certificate = _asked(leader, request)
    accept_renewal(files, certificate)


def _asked(url: str, request: RenewalRequest) -> CertificateAnswer:
    try:
        answer = httpx.post(
            f"{url}/api/v1/nodes/renew", json=request.model_dump(mode="json"), timeout=_TIMEOUT_S
        )
        if answer.is_error:
            raise GlowplugError.from_dict(answer.json())
        return CertificateAnswer.model_validate_json(answer.content)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # a ValidationError is a ValueError
        raise Unavailable(
            f"The control plane at {url} gave no new certificate.",
            remedy="See that it runs and can be reached from here.",
            cause=f"{type(error).__name__}: {error}",
        ) from error
