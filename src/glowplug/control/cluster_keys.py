"""Control's side of identity: who may join, which certificates it gives out, and which one it shows itself.

Made when it is first needed: a machine that is alone has no authority and loads none of this.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from typing import TYPE_CHECKING, NamedTuple

from glowplug.control.member_rows import Member, StoredToken
from glowplug.control.store import Store
from glowplug.identity.contexts import (
    HTTP_PROTOCOL,
    ROUTES_PROTOCOL,
    TUNNEL_PROTOCOL,
    control_context,
    load_control_certificate,
)
from glowplug.identity.files import replace_file
from glowplug.identity.tokens import JoinToken, is_proven
from glowplug.types.clock import Clock
from glowplug.types.cluster import (
    CertificateAnswer,
    EngineAnswer,
    EngineJoinRequest,
    JoinTokenView,
    ProvenRequest,
    RenewalRequest,
    SealedAnswer,
)
from glowplug.types.errors import Unauthorized
from glowplug.types.paths import IdentityDir

if TYPE_CHECKING:
    from glowplug.identity.authority import Authority

CHECK_EVERY_S = 3600.0


class NodeContexts(NamedTuple):
    """How control connects to gateways: for their agents, their replicas, their routers."""

    http: ssl.SSLContext
    tunnel: ssl.SSLContext
    routes: ssl.SSLContext


class ClusterKeys:
    """Tokens, certificates, and TLS contexts for nodes."""

    def __init__(self, files: IdentityDir, store: Store, clock: Clock) -> None:
        self._files = files
        self._store = store
        self._clock = clock
        self._opened: Authority | None = None
        self._contexts: NodeContexts | None = None
        self._check_again_at_s = 0.0
        self._lock = asyncio.Lock()

    # -- tokens ----------------------------------------------------------------------------------------------

    async def new_token(self, ttl_s: float) -> JoinTokenView:
        """A token to join with, shown this once."""
        token = JoinToken.new((await self._authority()).fingerprint)
        now = self._clock.wall()
        await self._store.add_join_token(StoredToken(token.id, token.proof_key, now, now + ttl_s))
        return JoinTokenView(id=token.id, created_at=now, expires_at=now + ttl_s, token=str(token))

    async def tokens(self) -> list[JoinTokenView]:
        """Those that can still be used, newest first."""
        now = self._clock.wall()
        return [
            JoinTokenView(id=token.id, created_at=token.created_at, expires_at=token.expires_at)
            for token in await self._store.join_tokens()
            if token.expires_at > now
        ]

    async def check_token(self, request: ProvenRequest) -> StoredToken:
        """The token that proves the request. Raises Unauthorized unless there is one that is not over."""
        now = self._clock.wall()
        token = next((t for t in await self._store.join_tokens() if t.id == request.token_id), None)
        if token is None or token.expires_at <= now:
            raise Unauthorized(
                "The join token is over, was revoked, or is of another cluster.",
                remedy="Make another one: `glowplug cluster token`.",
                token_id=request.token_id,
            )
        if not is_proven(token.proof_key, request.proven(), request.proof):
            raise Unauthorized(
                "The request does not prove that its sender has the join token.",
                remedy="Copy the whole token, and run one version of Glowplug on all machines.",
                token_id=request.token_id,
            )
        return token

    # -- certificates ----------------------------------------------------------------------------------------

    async def issue(self, name: str, signing_request: str) -> tuple[CertificateAnswer, str]:
        """A node's certificate, and the fingerprint of its key. Raises InvalidInput."""
        authority = await self._authority()
        issued = await asyncio.to_thread(authority.issue_to_node, name, signing_request)
        answer = CertificateAnswer(certificate=issued.certificate, authority=authority.certificate)
        return answer, issued.key_fingerprint

    async def renew(self, request: RenewalRequest, member: Member | None) -> CertificateAnswer:
        """The next certificate of a member. Raises Unauthorized for who is none, or has another key."""
        answer, key = await self.issue(request.name, request.signing_request)
        if member is None or not hmac.compare_digest(key, member.key):
            raise Unauthorized(
                f"No node {request.name!r} with this key is in the cluster.",
                remedy="Join again, with a token: `glowplug cluster join`.",
                node=request.name,
            )
        return answer

    async def issue_to_router(self, name: str, signing_request: str) -> CertificateAnswer:
        """A certificate for the router on the node ``name``. Raises InvalidInput."""
        authority = await self._authority()
        issued = await asyncio.to_thread(authority.issue_to_router, name, signing_request)
        return CertificateAnswer(certificate=issued.certificate, authority=authority.certificate)

    def let_into_engine(self, proof_key: str, request: EngineJoinRequest) -> SealedAnswer:
        """The way into the cluster of the engine that we started. Blocks. Raises NotFound, InvalidInput."""
        from glowplug.identity.authority import Authority
        from glowplug.identity.engine_join import read_base, seal

        base = read_base(self._files.engine)
        authority = Authority.open(self._files.engine, self._clock)
        issued = authority.issue_to_host(request.host, request.signing_request)
        answer = EngineAnswer(
            engine=base.engine,
            address=base.address,
            token=base.token,
            certificate=issued.certificate,
            authority=authority.certificate,
        )
        return seal(proof_key, request, answer)

    async def contexts(self) -> NodeContexts:
        """How to connect to gateways."""
        await self._authority()
        async with self._lock:
            if self._contexts is None:
                protocols = (HTTP_PROTOCOL, TUNNEL_PROTOCOL, ROUTES_PROTOCOL)
                self._contexts = NodeContexts(*(control_context(self._files, [name]) for name in protocols))
            return self._contexts

    async def keep_certificate(self) -> None:
        """Once in a while: see that our own certificate is good for long."""
        now_s = self._clock.monotonic()
        if self._contexts is None or self._opened is None or now_s < self._check_again_at_s:
            return
        self._check_again_at_s = now_s + CHECK_EVERY_S
        await asyncio.to_thread(self._opened.ensure_control_certificate)
        for context in self._contexts:
            load_control_certificate(context, self._files)

    async def _authority(self) -> Authority:
        async with self._lock:
            if self._opened is None:
                mine = await asyncio.to_thread(self._open)
                # Control planes with one database are of one authority: the one that was there first.
                kept = await self._store.keep_authority(mine.pem)
                self._opened = await asyncio.to_thread(self._adopt, kept)
            return self._opened

    def _open(self) -> Authority:
        # Here, as it takes a tenth of a second and ten megabytes that a machine which is alone never needs.
        from glowplug.identity.authority import Authority

        return Authority.open(self._files, self._clock)

    def _adopt(self, pem: str) -> Authority:
        if self._files.authority.read_text() != pem:
            replace_file(self._files.authority, pem)
        authority = self._open()
        authority.ensure_control_certificate()
        return authority
