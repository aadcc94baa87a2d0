"""Whose process is at the other end of a connection from this machine: asked of the kernel.

A machine has users besides root, and a port on loopback is open to all of them. The kernel knows the user of
every socket (sock_diag(7)); for one connection it is asked with one message, which takes some fifty
microseconds.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct

log = logging.getLogger(__name__)

Address = tuple[str, int]

_SOCK_DIAG = 4  # linux/netlink.h: NETLINK_SOCK_DIAG
_SOCK_DIAG_BY_FAMILY, _REQUEST = 20, 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, without what says which socket
_NO_COOKIE = b"\xff" * 8
# struct inet_diag_msg: the user and the inode, behind 64 bytes that say which socket it is.
_TOLD = struct.Struct("=64xII")
_ANSWER_BYTES = 4096
_TIMEOUT_S = 1.0


class PeerUsers:
    """Tells who may act as this machine: root, and the user that we are ourselves."""

    def __init__(self) -> None:
        self._trusted = {0, os.geteuid()}
        self._can_tell = _can_tell()
        if not self._can_tell:
            log.warning("the kernel does not tell whose sockets are whose: every user here may use the API")

    def is_trusted(self, peer: Address, own: Address) -> bool:
        """Whether the socket ``peer``, which is connected to our ``own``, is a trusted user's."""
        return not self._can_tell or user_of(peer, own) in self._trusted


def user_of(peer: Address, own: Address) -> int | None:
    """The user id of the socket ``peer`` of this machine; None if no process holds such a socket.

    One that its process has closed is nobody's: the kernel says root then.
    """
    families = _as_families(peer[0], own[0])
    found = (_ask(family, (hosts[0], peer[1]), (hosts[1], own[1])) for family, hosts in families)
    return next((user for user in found if user is not None), None)


def _as_families(peer: str, own: str) -> list[tuple[socket.AddressFamily, tuple[bytes, bytes]]]:
    """As IPv4 and as IPv6: either end may see an IPv4 address as the other kind (RFC 4291, 2.5.5.2)."""
    hosts = [ipaddress.ip_address(host.partition("%")[0]) for host in (peer, own)]
    mapped = [getattr(host, "ipv4_mapped", None) or host for host in hosts]
    if any(host.version == 6 for host in mapped):
        return [(socket.AF_INET6, (hosts[0].packed, hosts[1].packed))]
    prefix = bytes(10) + b"\xff\xff"
    plain = (mapped[0].packed, mapped[1].packed)
    return [(socket.AF_INET, plain), (socket.AF_INET6, (prefix + plain[0], prefix + plain[1]))]


def _ask(family: socket.AddressFamily, local: tuple[bytes, int], remote: tuple[bytes, int]) -> int | None:
    which = struct.pack("!HH", local[1], remote[1]) + local[0].ljust(16, b"\0") + remote[0].ljust(16, b"\0")
    body = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0xFFFF_FFFF) + which + bytes(4) + _NO_COOKIE
    message = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(_TIMEOUT_S)
            kernel.send(message)
            answer = kernel.recv(_ANSWER_BYTES)
    except OSError:
        return None
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # an error: no such socket
        return None
    user, inode = _TOLD.unpack_from(answer, _HEADER.size)
    return int(user) if inode else None


def _can_tell() -> bool:
    """Whether this kernel tells: tried with a connection of our own."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as caller,
    ):
        return user_of(caller.getsockname(), caller.getpeername()) == os.geteuid()
