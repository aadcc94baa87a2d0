"""The nodes of the cluster: who they are, who is followed, what their silence means.

The machine that control runs on is one of them, and the first, where it has an agent. Others join with a
token, and are remembered in the database: a restart of control follows them again. Another machine that says
nothing for three seconds is unreachable: nothing is placed there, its replicas get no requests. After six it
is lost: its replicas are over for their callers, and started elsewhere; what of them comes back is stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Sequence

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.fleet import Fleet
from glowplug.control.image_care import ImageCare
from glowplug.control.member_rows import Member, no_such_node
from glowplug.control.node_link import NodeLink
from glowplug.control.store import Store
from glowplug.control.timings import Timings
from glowplug.identity.roles import check_node_name
from glowplug.node.address import RemoteNode
from glowplug.node.client import NodeClient
from glowplug.types.clock import Clock
from glowplug.types.cluster import (
    CertificateAnswer,
    EngineJoinRequest,
    JoinRequest,
    NodeState,
    RenewalRequest,
    SealedAnswer,
)
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput
from glowplug.types.leader import Authority

log = logging.getLogger(__name__)

_MINOR = re.compile(r"\d+\.\d+")


class Membership:
    """Owns the links, and whatever follows them. :meth:`run` is somebody's task."""

    def __init__(
        self,
        own: NodeLink | None,
        store: Store,
        fleet: Fleet,
        keys: ClusterKeys,
        images: ImageCare,
        authority: Authority,
        *,
        clock: Clock,
        timings: Timings,
        version: str,
    ) -> None:
        self.links = [] if own is None else [own]
        """All nodes; ours, if there is one, is the first. Whoever holds this list sees who comes and goes."""
        self.keys = keys
        self._own = own
        self._store = store
        self._fleet = fleet
        self._images = images
        self._authority = authority
        self._clock = clock
        self._timings = timings
        self._version = version
        self._members: dict[str, Member] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Follow who the database says has joined; called once."""
        for member in await self._store.members():
            if self._own is not None and member.name == self._own.name:
                # A note that it is being drained, or what a successor of ours is to know of it.
                self._members[member.name] = member
                self._set_draining(self._own, member.is_draining)
            else:
                await self._follow(member, is_remembered=True)

    async def run(self) -> None:
        """Follow all nodes until cancelled. Raises what a bug in following one raises."""
        try:
            if self._own is not None:
                self._start_following(self._own)
            while True:
                for task in (*self._followers.values(), *self._looks.values()):
                    if task.done() and not task.cancelled():
                        task.result()
                await self._watch_over()
                await asyncio.sleep(self._timings.tick_s)
        finally:
            tasks = [*self._followers.values(), *self._looks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def find_members(self) -> None:
        """Until cancelled: other control planes of the database write their own machines down as members."""
        while True:
            await asyncio.sleep(self._timings.find_members_s)
            try:
                async with self._changing:
                    await self._follow_found(await self._store.members())
            except GlowplugError as error:
                log.warning("the database does not say who the members are: %s", error)

    async def _follow_found(self, members: Sequence[Member]) -> None:
        for member in members:
            known = self._members.get(member.name)
            is_known = known is not None and (known.host, known.port) == (member.host, member.port)
            if (self._own is None or member.name != self._own.name) and not is_known:
                log.info("node %s is at %s port %d", member.name, member.host, member.port)
                await self._unfollow(member.name)
                await self._follow(member, is_remembered=False)

    async def close(self) -> None:
        """Drop all connections to agents."""
        await self._images.close()
        for link in self.links:
            await link.client.close()

    # -- coming and going ------------------------------------------------------------------------------------

    async def join(self, request: JoinRequest) -> CertificateAnswer:
        """Take a machine in; the same machine may join again. Nothing is changed for who is refused.

        Raises Unauthorized (no such token), InvalidInput, Conflict (another version, a taken name).
        """
        await self.keys.check_token(request)
        check_node_name(request.name)
        self._check_version(request.glowplug)
        if self._own is not None and request.name == self._own.name:
            raise Conflict(
                f"The machine of the control plane is called {request.name!r}.",
                remedy="Join under another --name.",
                node=request.name,
            )
        answer, key = await self.keys.issue(request.name, request.signing_request)
        wanted = Member(
            name=request.name,
            host=request.host,
            port=request.port,
            key=key,
            glowplug=request.glowplug,
            labels=dict(request.labels),
            joined_at=self._clock.wall(),
        )
        async with self._changing:
            member = await self._store.admit_member(wanted)
            await self._unfollow(member.name)
            await self._follow(member, is_remembered=False)
        log.info("node %s has joined, at %s port %d", member.name, member.host, member.port)
        return answer

    async def let_into_engine(self, request: EngineJoinRequest) -> SealedAnswer:
        """The way into the engine's cluster. Raises Unauthorized, Conflict (another version), NotFound."""
        token = await self.keys.check_token(request)
        self._check_version(request.glowplug)
        answer = await asyncio.to_thread(self.keys.let_into_engine, token.proof_key, request)
        log.info("the machine at %s may join the engine's cluster", request.host)
        return answer

    async def renew(self, request: RenewalRequest) -> CertificateAnswer:
        """The next certificate of a node. Raises Unauthorized, InvalidInput."""
        return await self.keys.renew(request, self._members.get(request.name))

    async def drain(self, name: str, *, is_draining: bool) -> NodeLink:
        """Place nothing new there, and move what runs there; or the opposite. Raises NotFound."""
        link = self.link(name)
        async with self._changing:
            if link.is_own and name not in self._members:
                note = self._members[name] = Member(name, "", 0, "", self._version, {}, self._clock.wall())
                await self._store.admit_member(note)
            await self._store.set_member_draining(name, is_draining)
            self._set_draining(link, is_draining)
        log.info("node %s is %s", name, "being drained" if is_draining else "used again")
        return link

    async def remove(self, name: str, *, force: bool) -> None:
        """Take a node out: it is not followed any more, and gets no further certificate.

        Raises NotFound; InvalidInput for the control plane's own; Conflict while something runs there, unless
        the node is lost or ``force`` says that it may be given up.
        """
        link = self.link(name)
        if link.is_own:
            raise InvalidInput(
                f"The control plane runs on {name}: it stays a node.",
                remedy="`glowplug cluster drain` keeps replicas off it.",
            )
        running = sum(1 for replica in self._fleet.replicas.values() if replica.node == name)
        if running and not (force or link.state is NodeState.LOST):
            raise Conflict(
                f"{running} replicas are on node {name}.",
                remedy=f"First `glowplug cluster drain {name}`, or give them up with --force.",
                node=name,
            )
        async with self._changing:
            await self._store.remove_member(name)
            await self._unfollow(name)
        self._fleet.lose(name, "which was removed")
        self._fleet.forget_node(name)
        log.info("node %s was removed", name)

    def link(self, name: str) -> NodeLink:
        """Raises NotFound."""
        for link in self.links:
            if link.name == name:
                return link
        raise no_such_node(name)

    # -- inside ------------------------------------------------------------------------------------

    def _check_version(self, theirs: str) -> None:
        ours, other = _MINOR.match(self._version), _MINOR.match(theirs)
        if ours is None or other is None or ours[0] != other[0]:
            raise Conflict(
                f"The control plane is Glowplug {self._version}, the machine that joins has {theirs[:40]}.",
                remedy="Install the same version (major and minor) on both.",
            )

    async def _follow(self, member: Member, *, is_remembered: bool) -> None:
        contexts = await self.keys.contexts()
        address = RemoteNode(member.name, member.host, member.port, contexts.http, contexts.tunnel)
        link = NodeLink(
            member.name,
            NodeClient(address, self._authority),
            self._fleet,
            clock=self._clock,
            timings=self._timings,
            labels=member.labels,
            is_remembered=is_remembered,
        )
        self._members[member.name] = member
        self._set_draining(link, member.is_draining)
        self.links.append(link)
        self._start_following(link)

    async def _unfollow(self, name: str) -> None:
        self._members.pop(name, None)
        gone = [link for link in self.links if link.name == name]
        for link in gone:  # first: nobody is to begin anything with it while we wait
            self.links.remove(link)
        kinds = (self._followers, self._looks)
        ended = [task for kind in kinds if (task := kind.pop(name, None)) is not None]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        for link in gone:
            await link.client.close()

    def _start_following(self, link: NodeLink) -> None:
        self._followers[link.name] = asyncio.get_running_loop().create_task(link.run())

    def _set_draining(self, link: NodeLink, is_draining: bool) -> None:
        link.is_draining = is_draining
        self._fleet.set_leaving(link.name, is_leaving=is_draining)

    async def _watch_over(self) -> None:
        if self.links == [self._own]:
            return
        for link in self.links:
            self._judge(link)
        self._prepare_images()
        self._look()
        try:
            await self.keys.keep_certificate()
        except (GlowplugError, OSError) as error:
            log.error("our certificate was not renewed: %s", error)

    def _judge(self, link: NodeLink) -> None:
        """What follows from a machine's silence, and from its end."""
        if link.is_lost and not link.is_given_up:
            log.error("node %s is lost: %s", link.name, link.why)
            link.is_given_up = link.is_doubted = True
            # A stream that comes to life again would not say what it said before.
            self._followers[link.name].cancel()
            link.let_go()
            self._fleet.lose(link.name, "which does not answer any more")
            self._start_following(link)
        elif link.is_silent and not link.is_doubted:
            log.warning("node %s is unreachable: %s", link.name, link.why)
            link.is_doubted = True
            self._fleet.doubt(link.name, is_silent=True)
        elif not link.is_silent and link.is_doubted:
            log.info("node %s speaks again", link.name)
            link.is_doubted = link.is_given_up = False
            self._fleet.doubt(link.name, is_silent=False)

    def _prepare_images(self) -> None:
        wanted = {target.version.image_id: target.version.spec.image for target in self._fleet.targets()}
        for link in self.links:
            if not link.is_own and link.state is NodeState.READY:
                self._images.prepare(link, wanted)

    def _look(self) -> None:
        """Ask some nodes what they have: not all at once, which would keep requests waiting."""
        now_s = self._clock.monotonic()
        every_s = max(self._timings.node_look_s, len(self.links) / self._timings.node_looks_per_s)
        at_once = math.ceil(len(self.links) * self._timings.tick_s / every_s)
        due = [link for link in self.links if link.is_synced and now_s >= link.look_again_at_s]
        due.sort(key=lambda link: link.look_again_at_s)
        unknown = sum(1 for link in due if link.view is None)  # they are the first
        for link in due[: max(at_once, unknown)]:
            task = self._looks.get(link.name)
            if task is None or task.done():
                link.look_again_at_s = now_s + every_s
                self._looks[link.name] = asyncio.get_running_loop().create_task(link.look())
