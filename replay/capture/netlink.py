"""Interfaces, addresses and routes of a network namespace, asked of the kernel over rtnetlink, and word of their changes.

Source: rtnetlink(7), the kernel's include/uapi/linux/rtnetlink.h and if_link.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Interface", "Netlink", "Network", "Route", "local_networks"]

Network = tuple[bytes, int]  # 16 bytes, IPv4 mapped into IPv6, and the number of leading bits

_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_DONE, _ERROR = 3, 2
_REQUEST, _DUMP = 0x1, 0x300
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses, IPv4 and IPv6 routes
_IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _LINK_NETNSID = 3, 4, 5, 10, 18, 37
_INFO_KIND = 1
_OIF, _GATEWAY, _MULTIPATH, _VIA = 4, 5, 9, 18
_UP, _LOOPBACK = 0x1, 0x8
_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK
_MAPPED = bytes(10) + b"\xff\xff"
_UNICAST, _LOCAL = 1, 2
_TABLES = (254, 255)  # main, local: those that all packets ask; others are asked for some only, as for those that a proxy catches (TPROXY)


@dataclass(frozen=True, slots=True)
class Interface:
    """number: ifindex.  kind: veth, bridge, vlan …, "" for hardware and loopback.  hatype: ARPHRD_.  away: its other end is in another namespace.
    master: number of the bridge (or bond …) that it is a port of, 0: none."""

    number: int
    name: str
    up: bool
    loopback: bool
    kind: str
    mtu: int
    hatype: int
    away: bool
    master: int = 0

    @property
    def ethernet(self) -> bool:
        """Its packets begin with an Ethernet header."""
        return self.hatype in _ETHERNET


class Route(NamedTuple):
    """number: ifindex.  gateway: it goes over one.  local: what is sent there is taken in by this node, whatever its addresses are."""

    number: int
    network: Network
    gateway: bool
    local: bool


class Netlink:
    """A socket to the kernel's routing tables. changes: also hears of changes (`changed`). Raises OSError."""

    def __init__(self, *, changes: bool = False) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._number = 0
        self._news: socket.socket | None = None
        if changes:
            self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            self._news.bind((0, _GROUPS))
            self._news.setblocking(False)

    def close(self) -> None:
        self._socket.close()
        if self._news is not None:
            self._news.close()

    def changed(self) -> bool:
        """True when anything changed since the last call, or word of it was lost."""
        if self._news is None:
            return False
        found = False
        for _ in range(1000):
            try:
                if not self._news.recv(1 << 16):
                    break
                found = True
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
        return found

    def _dump(self, kind: int, family: int) -> Iterator[tuple[int, bytes]]:
        """(type, body) of each message of a dump."""
        self._number += 1
        self._socket.send(struct.pack("=IHHIIBxxxxxxxxxxxxxxx", 32, kind, _REQUEST | _DUMP, self._number, 0, family))
        while True:
            data = self._socket.recv(1 << 20)
            at = 0
            while at + 16 <= len(data):
                size, what, _, number, _ = struct.unpack_from("=IHHII", data, at)
                if size < 16:
                    return
                if number == self._number:
                    if what == _DONE:
                        return
                    if what == _ERROR:
                        code = -struct.unpack_from("=i", data, at + 16)[0]
                        if code:
                            raise OSError(code, os.strerror(code))
                        return
                    yield what, data[at + 16 : at + size]
                at += (size + 3) & ~3

    def interfaces(self) -> list[Interface]:
        """All of this namespace."""
        found = []
        for what, body in self._dump(_GETLINK, socket.AF_UNSPEC):
            if what != _NEWLINK or len(body) < 16:
                continue
            hatype, number, flags = struct.unpack_from("=xxHiI", body)
            about = _attributes(body[16:])
            info = _attributes(about.get(_LINKINFO, b""))
            found.append(
                Interface(
                    number=number,
                    name=about.get(_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
                    up=bool(flags & _UP),
                    loopback=bool(flags & _LOOPBACK),
                    kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
                    mtu=struct.unpack("=I", about[_MTU])[0] if len(about.get(_MTU, b"")) == 4 else 0,
                    hatype=hatype,
                    away=_LINK_NETNSID in about,
                    master=struct.unpack("=I", about[_MASTER])[0] if len(about.get(_MASTER, b"")) == 4 else 0,
                )
            )
        return found

    def addresses(self) -> list[tuple[int, Network]]:
        """(interface, address with all its bits) of this namespace."""
        found = []
        for what, body in self._dump(_GETADDR, socket.AF_UNSPEC):
            if what != _NEWADDR or len(body) < 8:
                continue
            family, _, _, _, number = struct.unpack_from("=BBBBi", body)
            about = _attributes(body[8:])
            packed = about.get(2) or about.get(1)  # IFA_LOCAL, IFA_ADDRESS
            if packed is not None and family in (socket.AF_INET, socket.AF_INET6):
                found.append((number, (_wide(packed), 128)))
        return found

    def routes(self) -> list[Route]:
        """The unicast and local routes of all tables; one over several interfaces once for each."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # no IPv6
                for what, body in self._dump(_GETROUTE, family):
                    if what != _NEWROUTE or len(body) < 12:
                        continue
                    bits, kind = body[1], body[7]
                    about = _attributes(body[12:])
                    if kind not in (_UNICAST, _LOCAL):
                        continue
                    packed = about.get(1, bytes(4 if family == socket.AF_INET else 16))
                    wide = 96 if family == socket.AF_INET else 0
                    network = (_wide(packed), bits + wide)
                    here = kind == _LOCAL and body[4] in _TABLES
                    found += [Route(number, network, gateway, here) for number, gateway in _ways(about)]
        return found


def _ways(about: dict[int, bytes]) -> Iterator[tuple[int, bool]]:
    """(interface, over a gateway) of a route: its own, or those of its next hops (struct rtnexthop, each with attributes of its own)."""
    if len(about.get(_OIF, b"")) == 4:
        yield struct.unpack("=i", about[_OIF])[0], _GATEWAY in about or _VIA in about
    hops, at = about.get(_MULTIPATH, b""), 0
    while at + 8 <= len(hops):
        size, number = struct.unpack_from("=HxxI", hops, at)
        if size < 8:
            return
        hop = _attributes(hops[at + 8 : at + size])
        yield number, _GATEWAY in hop or _VIA in hop
        at += (size + 3) & ~3


def _wide(packed: bytes) -> bytes:
    return _MAPPED + packed if len(packed) == 4 else packed


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


#: Interfaces whose other end is a container or a virtual machine; a bridge of such.
_ENDS = frozenset(("veth", "tun", "netkit", "macvtap"))


def _inner(interfaces: list[Interface], routes: list[Route]) -> set[int]:
    """Interfaces behind which this node's own containers are: veths, taps and bridges that no default route goes over, and no port of which leads out."""
    ways_out = {one.number for one in routes if one.network[1] in (0, 96)}
    ways_out |= {one.master for one in interfaces if one.kind not in _ENDS and one.kind != "dummy"}
    return {one.number for one in interfaces if (one.kind in _ENDS or one.kind == "bridge") and one.number not in ways_out}


def local_networks(interfaces: list[Interface], addresses: list[tuple[int, Network]], routes: list[Route]) -> tuple[list[Network], set[int]]:
    """Where servers of this node live: its own addresses, what a local route makes such, and what is routed to its containers without a gateway. And the
    interfaces of these."""
    inside = _inner(interfaces, routes)
    loopback = (_MAPPED + bytes((127, 0, 0, 0)), 104)
    found: dict[Network, None] = {loopback: None, (bytes(15) + b"\1", 128): None}
    found |= dict.fromkeys(network for _, network in addresses)
    for one in routes:
        address, bits = one.network
        link_local = address[:2] in (b"\xfe\x80", b"\xff\x00")
        if (one.local or (one.number in inside and not one.gateway)) and bits not in (0, 96) and not link_local:
            found[address, bits] = None
    wide = [one for one in found if one[1] < 128]
    covered = [one for one in found if one[1] < 128 or not any(_within(one[0], big) for big in wide)]
    return covered, inside


def _within(address: bytes, network: Network) -> bool:
    shift = 128 - network[1]
    return int.from_bytes(address, "big") >> shift == int.from_bytes(network[0], "big") >> shift
