"""Where a tap listens and what it lets through: interfaces and local addresses as the kernel tells of them, and the filter made from that."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from replay import _fastpath
from replay.capture import bpfasm
from replay.capture.afpacket import TapError, Tapped, choose, in_namespace, is_name
from replay.capture.netlink import Interface, Netlink, Network, local_networks
from replay.errors import UsageError
from replay.tap.settings import TapSettings

__all__ = ["MARK", "OWN_PORTS", "Place", "REJECT_ALL", "own_ports", "within"]

_log = logging.getLogger("replay.tap")

#: SO_MARK of every connection to a shadow ("SHDW"), as the sender sets it.
MARK = 0x53484457

#: Of a reply so much is captured, from its status line on: a usual head.
REPLY_BYTES = 512

#: Networks that were this node's so lately still count as that, where a filter has let a packet pass.
LATELY_S = 60.0

#: Runs of addresses that a filter says instead of this node's networks, when these are too many.
_WIDER = (256, 32)

#: With more addresses than that, what lies between them counts as our own too: ports and targets tell our connections as well.
_OWN_MOST = 64

_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK, _LOOPBACK_6 = (_MAPPED + bytes((127, 0, 0, 0)), 104), (bytes(15) + b"\1", 128)

#: Nothing passes.
REJECT_ALL: list[bpfasm.Instruction] = [(0x06, 0, 0, 0)]


def own_ports(path: str = "/proc/sys/net/ipv4/ip_local_port_range") -> tuple[int, int]:
    """(first, last) of the local ports that connections to shadows are made from: those that the kernel never picks for anybody else's connections.

    They tell our connections from all others to the same targets where marks do not: after the rights were dropped, on replies."""
    try:
        with open(path, encoding="ascii") as file:
            first, last = map(int, file.read().split()[:2])
    except (OSError, ValueError):
        first, last = 32768, 60999
    if last <= 65535 - 1024:
        return last + 1, 65535
    if first >= 1024 + 4096:
        return first - 4096, first - 1
    return 61000, 65535


OWN_PORTS = own_ports()


@dataclass(slots=True)
class Place:
    """What is listened to. `look` asks the kernel anew; `program` makes the filter.

    interfaces: those that are meant, now.  moving: they may come and go, so that one socket hears all and the filter tells them apart.
    checked: numbers of those that were up when the targets were checked, and have been since; only from these anything is captured, for what the check
    could not see may lead to production.
    local: networks of this node's servers, in the tapped namespace.  locality: the same, and those that were until lately (an
    interface that goes down takes its routes along), for the engine; None when it does not matter.  own: addresses that our own connections may come from.
    home_own: of them those at which a server of this process may be reached, as far as it is heard here.  served: where its metrics are, whose scrapes are
    no production (an address of zeros: all of them); None: nowhere.
    known: numbers of all interfaces that there are.  wide: the filter lets more pass than is meant, because all of it would not fit.
    """

    settings: TapSettings
    netlink: Netlink
    home: Netlink
    interfaces: list[Interface] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)
    moving: bool = False
    local: list[Network] = field(default_factory=list)
    inside: set[int] = field(default_factory=set)
    own: list[Network] = field(default_factory=list)
    home_own: list[Network] = field(default_factory=list)
    served: tuple[bytes, int] | None = None
    locality: _fastpath.Locality | None = None
    lately: dict[Network, float] = field(default_factory=dict)
    known: list[int] = field(default_factory=list)
    wide: bool = False

    @classmethod
    def find(cls, settings: TapSettings) -> Place:
        """Raises TapError for an interface that is not there, UsageError for a namespace."""
        place = cls(settings, in_namespace(settings.netns, lambda: Netlink(changes=True)), Netlink())
        place.look(first=True)
        return place

    def close(self) -> None:
        self.netlink.close()
        self.home.close()

    def look(self, *, first: bool = False) -> None:
        """Interfaces, addresses, routes of now. One that is named and away stays away until it comes back; at the start (`first`) TapError says so."""
        self.interfaces, self.moving = choose(self.settings.captures, self.netlink, away=not first)
        if len(self.settings.captures) > 1:
            self.moving = True
        self.checked &= self.up
        every, addresses, routes = self.netlink.interfaces(), self.netlink.addresses(), self.netlink.routes()
        self.local, self.inside = local_networks(every, addresses, routes)
        self.known = [one.number for one in every]
        now = time.monotonic()
        self.lately = {network: seen for network, seen in self.lately.items() if now - seen < LATELY_S} | dict.fromkeys(self.local, now)
        elsewhere = self.settings.direction == "out"
        if self.settings.direction == "both":
            self.locality = None
        elif self.locality is None or self.locality.elsewhere != elsewhere:
            self.locality = _fastpath.Locality(self.lately, elsewhere=elsewhere)
        else:
            self.locality.set(self.lately)
        here = self.home.addresses() if self.settings.netns is not None else []
        self.own = list(dict.fromkeys([_LOOPBACK, *(network for _, network in [*addresses, *here])]))
        # Each namespace has loopback addresses of its own.
        self.home_own = self.own if self.settings.netns is None else [one for _, one in here if not within(one[0], (_LOOPBACK, _LOOPBACK_6))]

    @property
    def single(self) -> Interface | None:
        """The interface that a socket is bound to; None: to all of them."""
        return None if self.moving or not self.interfaces else self.interfaces[0]

    @property
    def found(self) -> object:
        """What `look` found, to compare."""
        return self.interfaces, self.local, self.inside, self.own

    @property
    def away(self) -> list[str]:
        """Names of interfaces that are meant, and not there."""
        there = {one.name for one in self.interfaces}
        return [word for word in self.settings.captures if is_name(word) and word not in there]

    @property
    def up(self) -> set[int]:
        """Numbers of the interfaces that are meant, and up."""
        return {one.number for one in self.interfaces if one.up}

    def is_local(self, address: bytes) -> bool:
        """A server with this address lives on this node, in a container perhaps."""
        return within(address, self.local)

    def is_own(self, address: bytes) -> bool:
        """It is one of this host's own addresses."""
        return within(address, self.own)

    def _not_served(self) -> tuple[list[Network], int] | None:
        """Where our own server is, for the filter; whoever names its port has it tapped."""
        if self.served is None or self.settings.selection.ports:
            return None
        address, port = self.served
        known = self.home_own[:_OWN_MOST]
        if address == _MAPPED + bytes(4):  # IPv4 alone
            known = [one for one in known if one[0].startswith(_MAPPED)]
        elif address != bytes(16):
            known = [(address, 128)] if within(address, self.home_own) else []
        return known, port

    def program(
        self, excluded: Sequence[Network], *, ethernet: bool = True, connects: bool = False, sample: tuple[int, int] | None = None,
        replies: int | None = 0, ends: Sequence[tuple[bytes, int]] = (),
    ) -> list[bpfasm.Instruction]:
        """The filter. excluded: clients that are left out.  connects: for the check of the target: the first packets of all connections, ours too.
        sample, replies: as `bpfasm.Rules` has them.  ends: where our own connections go, which are left out.

        Raises TapError when there are more interfaces or networks than the kernel's filters hold."""
        s = self.settings
        every = s.direction == "both"
        bare = self.moving and not all(one.ethernet for one in self.interfaces)  # some without an Ethernet header
        listened = sorted(self.up if connects else self.checked)
        wanted = bpfasm.Rules(
            ports=s.selection.ports,
            servers=s.selection.server,
            clients=() if connects else s.selection.client,
            not_clients=() if connects else excluded,
            interfaces=listened if self.moving else None,
            known=self.known,
            inside=() if every else sorted(self.inside.intersection(listened)),
            local=None if every else self.local,
            elsewhere=s.direction == "out",
            mark=0 if connects else MARK,
            own=() if connects else self.own if len(self.own) <= _OWN_MOST else bpfasm.widened(self.own, _OWN_MOST // 2),
            own_ports=None if connects or not ends else OWN_PORTS,
            own_to=ends,
            not_served=None if connects else self._not_served(),
            ethernet=None if ethernet and bare else ethernet,
            loopback_once=True,
            connects=connects,
            sample=None if connects else sample,
            replies=0 if connects else replies,
        )
        then: list[bpfasm.Instruction] = []
        then_bare: list[bpfasm.Instruction] = []
        if s.selection.bpf is not None and not connects:
            then = compiled(s.selection.bpf, ethernet)
            if ethernet and bare:
                try:
                    then_bare = compiled(s.selection.bpf, False)
                except UsageError:  # it has no meaning without an Ethernet header
                    then_bare = REJECT_ALL
        return self._fitting(wanted, then, then_bare)

    def _fitting(self, wanted: bpfasm.Rules, then: list[bpfasm.Instruction], then_bare: list[bpfasm.Instruction]) -> list[bpfasm.Instruction]:
        """The program; where all networks of this node would make it too long, one that lets more pass: the engine, which knows who asks, has the last word."""
        for rules in (wanted, *(_wider(wanted, most) for most in _WIDER)):
            try:
                program = bpfasm.build(rules, then, then_bare)
            except ValueError as error:
                fault = str(error)
                continue
            if wanted.connects:  # for the check of the target, which looks at what it finds
                return program
            if rules is not wanted and not self.wide:
                _log.warning(
                    "the filter would be too long with the %d networks and %d interfaces of this node's containers: it lets more pass, told apart later"
                    " at some cost. What this node only forwards, to an address near its own, may be mirrored too", len(self.local), len(wanted.inside),
                )  # fmt: skip
            self.wide = rules is not wanted
            return program
        raise TapError(fault)

    def rebind(self, tapped: Tapped) -> None:
        """After `look`: a single interface that came back is listened to again. Raises TapError."""
        one = self.single
        if one is None or (one.number == tapped.number and not tapped.unhooked):
            return
        try:
            tapped.bind(one.number)
        except OSError as error:
            raise TapError(f"tap {one.name}: it is back, and cannot be listened to again (several workers never can): {error.strerror}; restart it") from None


def _wider(rules: bpfasm.Rules, most: int) -> bpfasm.Rules:
    """Lets everything pass that `rules` does, with less to say: this node's networks in so many runs, and servers behind any interface when it is the last."""
    if rules.local is None:
        return rules
    if rules.elsewhere:
        return replace(rules, local=(), inside=())
    return replace(rules, local=bpfasm.widened(rules.local, most), inside=rules.known if most == _WIDER[-1] else rules.inside)


def within(address: bytes, networks: Sequence[Network]) -> bool:
    value = int.from_bytes(address, "big")
    return any(value >> (128 - bits) == int.from_bytes(network, "big") >> (128 - bits) for network, bits in networks)


def compiled(expression: str, ethernet: bool) -> list[bpfasm.Instruction]:
    """A tcpdump expression, by libpcap. Raises UsageError."""
    from replay.capture.bpf import instructions

    code = instructions(expression, 1 if ethernet else 101)
    return [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
