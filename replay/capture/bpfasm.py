"""Packet filters in the kernel's classic BPF, of our own making: which ports, servers and clients, which interfaces, and what never comes through.

Text of a rule in, instructions out; nothing here touches a socket. A packet passes when it belongs to a conversation that is asked for, in either
direction, bare or behind VLAN tags or VXLAN. What cannot be decided from headers (a later fragment, an IPv6 extension header) passes: the stages behind
know more. Source of the instruction set and its ancillary loads: the kernel's Documentation/networking/filter.rst, linux/filter.h.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ACCEPT", "Instruction", "Rules", "build", "run", "widened"]

#: (code, jump if true, jump if false, k) as in struct sock_filter.
Instruction = tuple[int, int, int, int]
Range = tuple[int, int]  # first and last
Network = tuple[bytes, int]  # 16 bytes, IPv4 mapped into IPv6, and the number of leading bits

ACCEPT = 0x40000  # bytes of a packet that are kept: all of them

_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # A = packet[k]
_LDX_W, _LDX_H, _LDX_B = 0x40, 0x48, 0x50  # A = packet[X + k]
_LD_IMM, _LD_MEM, _ST, _STX, _LDX_MEM, _LDX_IMM, _LD_LEN = 0x00, 0x60, 0x02, 0x03, 0x61, 0x01, 0x80
_ADD_K, _ADD_X, _AND_K, _LSH_K, _RSH_K, _SUB_K, _MUL_K, _XOR_K, _XOR_X = 0x04, 0x0C, 0x54, 0x64, 0x74, 0x14, 0x24, 0xA4, 0xAC
_JA, _JEQ, _JGT, _JGE, _JSET, _JGE_X = 0x05, 0x15, 0x25, 0x35, 0x45, 0x3D
_RET, _RET_A, _TAX, _TXA = 0x06, 0x16, 0x07, 0x87

_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF
_PKTTYPE, _IFINDEX, _MARK, _HATYPE = _ANCILLARY + 4, _ANCILLARY + 8, _ANCILLARY + 20, _ANCILLARY + 28
_OUTGOING, _ETHERNET, _LOOPBACK = 4, 1, 772
_TCP, _UDP = 6, 17

_MOST = 4096  # BPF_MAXINSNS
_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_FIRST, _MAPPED_LAST = 0xFFFF << 32, (0xFFFF << 32) + 0xFFFFFFFF

# Of a search: what is asked for one after the other, what a short jump leads out of, and when that shares a long one.
_LEAF, _REACH, _HOPS = 4, 80, 8
#: Of interfaces so many are told from any other number, more only from those that there are.
_EXACT = 16
#: With more networks and interfaces than that a later fragment passes without being asked for them: they are in the program once less.
_MANY = 64

# Scratch cells.
_IP, _L4 = 0, 1  # where the IP header and the one behind it begin
_REPLY, _PART, _SUM = 2, 3, 4  # from the server; of a hash

#: Of the hash of a connection (docs/design.md S2b); select.pxi has the same.
_HASH_P, _HASH_Q = 0x9E3779B1, 0x85EBCA77

_STATUS_LINE = 0x48545450  # HTTP


@dataclass(frozen=True, slots=True)
class Rules:
    """What passes. Empty means any.

    ports, servers: of the answering side.  clients: of the asking side.  interfaces: numbers, for a socket that hears them all; None: whatever it hears.
    known: numbers of all interfaces that there are: with many of them a number that none of them has may count as one that is wanted.
    local: networks of this node; None: every server is taken.  inside: interfaces (the host's ends of veths) where a server is local also when requests to
    it go out there.  elsewhere: servers that are not local are taken, instead of those that are.
    not_clients: whose requests do not pass.  mark: SO_MARK of packets that never pass; 0: none.
    own: networks, and own_ports: (first, last), of connections that never pass where they go to one of own_to (address, port).
    not_served: (networks, port) of a server of this program itself: neither requests to it nor its replies pass.
    ethernet: packets begin with an Ethernet header, else with IP; None: each as its interface has them.
    loopback_once: what leaves on a loopback interface is left out, for it comes in again.  connects: only the first packets of connections.
    sample: (below, seed): only connections whose hash is below, so many of 2**32; None: all.  replies: of what the server says so many bytes are kept where
    a reply begins, and nothing but headers elsewhere; 0: everything, None: it does not pass, and of the client's what only acknowledges does not either.
    What cannot be decided (fragments, IPv6 extension headers) passes whole all the same.
    """

    ports: Sequence[int] = ()
    servers: Sequence[Network] = ()
    clients: Sequence[Network] = ()
    not_clients: Sequence[Network] = ()
    interfaces: Sequence[int] | None = None
    known: Sequence[int] = ()
    inside: Sequence[int] = ()
    local: Sequence[Network] | None = None
    elsewhere: bool = False
    mark: int = 0
    own: Sequence[Network] = ()
    own_ports: tuple[int, int] | None = None
    own_to: Sequence[tuple[bytes, int]] = ()
    not_served: tuple[Sequence[Network], int] | None = None
    ethernet: bool | None = True
    loopback_once: bool = True
    connects: bool = False
    vxlan_ports: Sequence[int] = (4789, 8472)
    sample: tuple[int, int] | None = None
    replies: int | None = 0


@dataclass(frozen=True, slots=True)
class _Starts:
    """Labels of what is said of either family: X is at the header; with the protocol it is in A already."""

    four: str
    four_protocol: str
    six: str
    six_protocol: str


class _Assembler:
    """Instructions with labels. A conditional jump that is too far for its eight bits goes over an unconditional one."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str | None, str | None, int] | str] = []
        self._labels = 0

    def label(self) -> str:
        self._labels += 1
        return f"L{self._labels}"

    def here(self, name: str) -> None:
        self._lines.append(name)

    def put(self, code: int, k: int = 0) -> None:
        self._lines.append((code, None, None, k & 0xFFFFFFFF))

    def jump(self, to: str) -> None:
        self._lines.append((_JA, to, None, 0))

    def when(self, code: int, k: int, true: str | None = None, false: str | None = None) -> None:
        """Jumps by a comparison of A with k; None goes on with the next line."""
        self._lines.append((code, true, false, k & 0xFFFFFFFF))

    def done(self) -> list[Instruction]:
        lines = list(self._lines)
        while True:
            places: dict[str, int] = {}
            at = 0
            for line in lines:
                if isinstance(line, str):
                    places[line] = at
                else:
                    at += 1
            out: list[Instruction] = []
            longer = False
            widened: list[tuple[int, str | None, str | None, int] | str] = []
            for line in lines:
                if isinstance(line, str):
                    widened.append(line)
                    continue
                code, true, false, k = line
                here = len(out) + 1
                if code == _JA and true is not None:
                    out.append((code, 0, 0, places[true] - here))
                    widened.append(line)
                    continue
                jumps = [0 if name is None else places[name] - here for name in (true, false)]
                out.append((code, max(0, min(jumps[0], 255)), max(0, min(jumps[1], 255)), k))
                assert min(jumps) >= 0, "jumps only go forward"
                if max(jumps) <= 255:
                    widened.append(line)
                    continue
                longer = True
                after, near = self.label(), [true, false]
                hops: list[tuple[int, str | None, str | None, int] | str] = []
                for i in (0, 1):
                    target = near[i]
                    if target is None:
                        near[i] = after
                    elif jumps[i] > 255:
                        near[i] = hop = self.label()
                        hops += [hop, (_JA, target, None, 0)]
                widened += [(code, near[0], near[1], k), *hops, after]
            if not longer:
                return out
            lines = widened


def build(rules: Rules, then: Sequence[Instruction] = (), then_bare: Sequence[Instruction] = ()) -> list[Instruction]:
    """The program. then: one that decides about packets that pass this one (a compiled tcpdump expression); where there are packets of both kinds
    (ethernet None), about those with an Ethernet header, and then_bare about the others.

    Raises ValueError when it would be too long for the kernel."""
    a = _Assembler()
    accept, reject = "accept", "reject"
    _who(a, rules, reject)
    starts = _Starts(*(a.label() for _ in range(4)))
    _find_ip(a, rules, reject, starts)
    _family(a, rules, accept, reject, 4, starts)
    _family(a, rules, accept, reject, 6, starts)
    a.here(reject)
    a.put(_RET, 0)
    a.here(accept)
    if not then:
        a.put(_RET, ACCEPT)
    elif rules.ethernet is None:
        go, bare = a.label(), a.label()
        a.put(_LD_W, _HATYPE)
        a.when(_JEQ, _ETHERNET, go)
        a.when(_JEQ, _LOOPBACK, go, bare)
        a.here(bare)
        a.put(_JA, len(then))
        a.here(go)
    found = a.done() + list(then) + (list(then_bare) if rules.ethernet is None else [])
    if len(found) > _MOST:
        raise ValueError(f"the filter has {len(found)} instructions, the kernel takes {_MOST}: name fewer networks or interfaces")
    return found


def _who(a: _Assembler, rules: Rules, reject: str) -> None:
    """What the packet's surroundings say: mark, interface, direction on a loopback."""
    if rules.mark:
        a.put(_LD_W, _MARK)
        a.when(_JEQ, rules.mark, reject)
    if rules.loopback_once:
        go = a.label()
        a.put(_LD_W, _HATYPE)
        a.when(_JEQ, _LOOPBACK, None, go)
        a.put(_LD_W, _PKTTYPE)
        a.when(_JEQ, _OUTGOING, reject)
        a.here(go)
    if rules.interfaces is not None:
        known = a.label()
        a.put(_LD_W, _IFINDEX)
        _one_of(a, rules.interfaces, known, rules.known)
        a.jump(reject)
        a.here(known)


def _find_ip(a: _Assembler, rules: Rules, reject: str, starts: _Starts) -> None:
    """Where the innermost IP header begins, into the scratch cell and X: behind the link, VLAN tags, and VXLAN. Goes on at one of `starts`."""
    found = a.label()
    if rules.ethernet is None:
        ether = a.label()
        a.put(_LD_W, _HATYPE)
        for hatype in (_ETHERNET, _LOOPBACK):
            a.when(_JEQ, hatype, ether)
        a.put(_LDX_IMM, 0)
        a.jump(found)
        a.here(ether)
    if rules.ethernet is not False:
        _behind_type(a, 12, found, reject)
    else:
        a.put(_LDX_IMM, 0)
        a.here(found)
    a.put(_STX, _IP)
    if rules.vxlan_ports:
        other, six, inner = a.label(), a.label(), a.label()
        a.put(_LDX_B, 0)
        a.when(_JEQ, 0x45, None, other)
        _behind_vxlan(a, rules, 20, inner, reject, starts.four_protocol)
        a.here(other)
        a.put(_RSH_K, 4)
        a.when(_JEQ, 6, six)
        a.when(_JEQ, 4, starts.four, reject)
        a.here(six)
        _behind_vxlan(a, rules, 40, inner, reject, starts.six_protocol)
        a.here(inner)
        _behind_type(a, 12, a.label(), reject, indirect=True)
        a.put(_STX, _IP)
    a.put(_LDX_B, 0)
    a.put(_RSH_K, 4)
    a.when(_JEQ, 4, starts.four)
    a.when(_JEQ, 6, starts.six, reject)


def _behind_vxlan(a: _Assembler, rules: Rules, size: int, inner: str, reject: str, no_udp: str) -> None:
    """UDP, not a fragment, to a VXLAN port, flags that say that a VNI is there: to `inner`, X at the Ethernet header behind. size: of the IP header at X.
    To `no_udp` with the protocol in A."""
    inside = a.label()
    a.put(_LDX_B, 9 if size == 20 else 6)
    a.when(_JEQ, _UDP, None, no_udp)
    if size == 20:
        a.put(_LDX_H, 6)
        a.when(_JSET, 0x1FFF, reject)
    a.put(_LDX_H, size + 2)
    for port in rules.vxlan_ports:
        a.when(_JEQ, port, inside)
    a.jump(reject)
    a.here(inside)
    a.put(_LDX_B, size + 8)
    a.when(_JSET, 8, None, reject)
    a.put(_TXA)
    a.put(_ADD_K, size + 16)
    a.put(_TAX)
    a.jump(inner)


def _behind_type(a: _Assembler, at: int, found: str, reject: str, *, indirect: bool = False) -> None:
    """X becomes the offset behind an EtherType of IP, over at most two VLAN tags; the Ethernet header begins at X (or 0)."""
    if not indirect:
        a.put(_LDX_IMM, 0)
    for tags in range(3):
        more, ip = a.label(), a.label()
        a.put(_LDX_H, at)
        a.when(_JEQ, 0x0800, ip)
        a.when(_JEQ, 0x86DD, ip)
        if tags == 2:
            a.jump(reject)
        else:
            a.when(_JEQ, 0x8100, more)
            a.when(_JEQ, 0x88A8, more)
            a.when(_JEQ, 0x9100, more, reject)
        a.here(ip)
        a.put(_TXA)
        a.put(_ADD_K, at + 2)
        a.put(_TAX)
        a.jump(found)
        if tags < 2:
            a.here(more)
            a.put(_TXA)
            a.put(_ADD_K, 4)
            a.put(_TAX)
    a.here(found)


def _family(a: _Assembler, rules: Rules, accept: str, reject: str, version: int, starts: _Starts) -> None:
    """Everything about an IPv4 or IPv6 header (at X) and the ports behind it."""
    source, target = (12, 16) if version == 4 else (8, 24)
    ports = a.label()
    if version == 4:
        whole = a.label()
        a.here(starts.four)
        a.put(_LDX_B, 9)
        a.here(starts.four_protocol)
        a.when(_JEQ, _TCP, None, reject)
        a.put(_LDX_H, 6)
        a.when(_JSET, 0x1FFF, None, whole)
        # a later fragment: it has no ports; the addresses must do
        if rules.connects:
            a.jump(reject)
        elif len(rules.servers) + len(rules.clients) + len(rules.not_clients) + len(rules.local or ()) + len(rules.inside) > _MANY:
            a.jump(accept)
        else:
            _direction(a, rules, version, target, source, None, accept, accept, reject)
        a.here(whole)
        a.put(_LDX_B, 0)
        a.put(_AND_K, 15)
        a.put(_LSH_K, 2)
        a.put(_ADD_X)
    else:
        tcp = a.label()
        a.here(starts.six)
        a.put(_LDX_B, 6)
        a.here(starts.six_protocol)
        a.when(_JEQ, _TCP, tcp)
        for extension in (0, 43, 44, 60):
            a.when(_JEQ, extension, reject if rules.connects else accept)
        a.jump(reject)
        a.here(tcp)
        a.put(_TXA)
        a.put(_ADD_K, 40)
    a.put(_ST, _L4)
    a.here(ports)
    if rules.connects:
        a.put(_TAX)
        a.put(_LDX_B, 13)
        a.when(_JSET, 2, None, reject)
        a.when(_JSET, 16, reject)
        a.put(_LDX_MEM, _IP)
    _not_own(a, rules, version, source, target, reject)
    _not_served(a, rules, version, source, target, reject)
    if rules.sample is None and rules.replies == 0:
        _direction(a, rules, version, target, source, (2, 0), accept, accept, reject)
        return
    request, reply, either = a.label(), a.label(), a.label()
    _direction(a, rules, version, target, source, (2, 0), request, reject if rules.replies is None else reply, reject)
    a.here(request)
    if rules.replies is None:
        _not_bare(a, version, reject)
    a.put(_LD_IMM, 0)
    a.jump(either)
    a.here(reply)
    a.put(_LD_IMM, 1)
    a.here(either)
    a.put(_ST, _REPLY)
    if rules.sample is not None:
        _sampled(a, rules.sample, version, source, target, reject)
    if rules.replies:
        a.put(_LD_MEM, _REPLY)
        a.when(_JEQ, 1, None, accept)
        _shortened(a, rules.replies, version, accept)
    else:
        a.jump(accept)


def _sampled(a: _Assembler, sample: tuple[int, int], version: int, source: int, target: int, reject: str) -> None:
    """Goes on when the hash of the connection, the same in both directions, is below the sample's bound."""
    below, seed = sample
    for address, port in ((source, 0), (target, 2)):
        a.put(_LDX_MEM, _IP)
        a.put(_LDX_W, address)
        if version == 4:
            a.put(_ADD_K, 0xFFFF * _HASH_P)  # as IPv4 mapped into IPv6
            a.put(_ST, _PART)
        else:
            for word in (4, 8, 12):
                a.put(_MUL_K, _HASH_P)
                a.put(_ST, _PART)
                a.put(_LDX_W, address + word)
                a.put(_LDX_MEM, _PART)
                a.put(_ADD_X)
                a.put(_LDX_MEM, _IP)
            a.put(_ST, _PART)
        a.put(_LDX_MEM, _L4)
        a.put(_LDX_H, port)
        a.put(_MUL_K, _HASH_Q)
        a.put(_LDX_MEM, _PART)
        a.put(_XOR_X)
        _mixed(a)
        if port == 0:
            a.put(_ST, _SUM)
    a.put(_LDX_MEM, _SUM)
    a.put(_ADD_X)
    a.put(_XOR_K, seed ^ seed >> 32)
    _mixed(a)
    a.when(_JGE, below, reject)


def _mixed(a: _Assembler) -> None:
    """A becomes what MurmurHash3 (32 bit) makes of it at its end."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        a.put(_TAX)
        a.put(_RSH_K, shift)
        a.put(_XOR_X)
        if factor is not None:
            a.put(_MUL_K, factor)


def _not_bare(a: _Assembler, version: int, reject: str) -> None:
    """Goes on with a segment that carries bytes, or begins or ends a connection. Short frames are padded: over IPv4 its own length says how long it is
    (0: a super-packet, whose length does not fit); one of IPv6 has no need to be."""
    go = a.label()
    if version == 4:
        a.put(_LDX_MEM, _IP)
        a.put(_LDX_H, 6)
        a.when(_JSET, 0x2000, go)  # the first of several fragments: its bytes may all be in the others
        a.put(_LDX_H, 2)
        a.when(_JEQ, 0, go)
        a.put(_ADD_X)
        a.put(_ST, _PART)
    a.put(_LDX_MEM, _L4)
    a.put(_LDX_B, 13)
    a.when(_JSET, 7, go)  # FIN, SYN, RST
    a.put(_LDX_B, 12)
    a.put(_AND_K, 0xF0)
    a.put(_RSH_K, 2)
    a.put(_ADD_X)
    a.put(_ADD_K, 1)
    a.put(_TAX)
    if version == 4:
        a.put(_LD_MEM, _PART)
    else:
        a.put(_LD_LEN)
    a.when(_JGE_X, 0, go, reject)
    a.here(go)


def _shortened(a: _Assembler, most: int, version: int, accept: str) -> None:
    """Ends it for a packet from the server: with so many bytes behind its headers where they begin with a status line, else with none."""
    there, begins = a.label(), a.label()
    if version == 4:
        a.put(_LDX_MEM, _IP)
        a.put(_LDX_H, 6)
        a.when(_JSET, 0x2000, accept)  # the first of several fragments: they are put together whole
    a.put(_LDX_MEM, _L4)
    a.put(_LDX_B, 12)
    a.put(_AND_K, 0xF0)
    a.put(_RSH_K, 2)
    a.put(_ADD_X)
    a.put(_ST, _PART)
    a.put(_ADD_K, 4)
    a.put(_TAX)
    a.put(_LD_LEN)
    a.when(_JGE_X, 0, there, accept)
    a.here(there)
    a.put(_LDX_MEM, _PART)
    a.put(_LDX_W, 0)
    a.when(_JEQ, _STATUS_LINE, begins)
    a.put(_LD_MEM, _PART)
    a.put(_RET_A)
    a.here(begins)
    a.put(_LD_MEM, _PART)
    a.put(_ADD_K, most)
    a.put(_RET_A)


def _not_own(a: _Assembler, rules: Rules, version: int, source: int, target: int, reject: str) -> None:
    """Connections of this program itself: one end has an address of this node and a port of ours, the other is where we connect to. The ports alone would
    not do: somebody else's service or client may have one of them, and address translation takes any."""
    if rules.own_ports is None:
        return
    first, last = rules.own_ports
    ports = list(dict.fromkeys(port for _, port in rules.own_to))
    addresses = [(one, 128) for one in dict.fromkeys(one for one, _ in rules.own_to)]
    a.put(_LDX_MEM, _L4)
    for (port, address), (far_port, far_address) in (((0, source), (2, target)), ((2, target), (0, source))):
        other, anew, ours, there = (a.label() for _ in range(4))
        a.put(_LDX_H, port)
        a.when(_JGE, first, None, other)
        if last < 0xFFFF:
            a.when(_JGT, last, other)
        if rules.own_to:
            a.put(_LDX_H, far_port)
            _one_of(a, ports, ours)
            a.jump(other)
            a.here(ours)
        a.put(_LDX_MEM, _IP)
        if rules.own_to:
            _networks(a, addresses, version, far_address, there)
            a.jump(anew)
            a.here(there)
        _networks(a, rules.own, version, address, reject)
        a.here(anew)
        a.put(_LDX_MEM, _L4)
        a.here(other)
    a.put(_LDX_MEM, _IP)


def _not_served(a: _Assembler, rules: Rules, version: int, source: int, target: int, reject: str) -> None:
    """What is said to a server of this program, and by it; X is at the IP header. Others may have its port, at other addresses."""
    if rules.not_served is None or not _ranges(rules.not_served[0], version):
        return
    networks, served = rules.not_served
    for port, address in ((2, target), (0, source)):
        other = a.label()
        a.put(_LDX_MEM, _L4)
        a.put(_LDX_H, port)
        a.put(_LDX_MEM, _IP)
        a.when(_JEQ, served, None, other)
        _networks(a, networks, version, address, reject)
        a.here(other)


def _networks(a: _Assembler, networks: Sequence[Network], version: int, at: int, inside: str) -> None:
    """Jumps to `inside` when the address at X + at is in one of the networks; else goes on."""
    miss = a.label()
    parts = [(0, _ranges(networks, version), a.label())]  # for each word of the address what is left to be looked at, behind those that are equal
    for word, ranges, label in parts:
        rest = (96 if version == 6 else 0) - 32 * word
        every = (1 << rest) - 1
        hits: list[Range] = []
        deeper: dict[int, list[Range]] = {}
        for low, high in ranges:
            first, last = low >> rest, high >> rest
            if low & every or (first == last and high & every != every):
                deeper.setdefault(first, []).append((low & every, high & every if first == last else every))
                first += 1
            if first <= last and high & every != every:
                deeper.setdefault(last, []).append((0, high & every))
                last -= 1
            if first <= last:
                hits.append((first, last))
        below = {value: a.label() for value in deeper}
        parts += [(word + 1, some, below[value]) for value, some in deeper.items()]
        a.here(label)
        if hits == [(0, 0xFFFFFFFF)]:
            a.jump(inside)
            continue
        if not ranges:  # of this family there is none
            continue
        a.put(_LDX_W, at + 4 * word)
        _search(a, sorted([*((low, high, inside) for low, high in _joined(hits)), *((value, value, name) for value, name in below.items())]), miss)
    a.here(miss)


def _ranges(networks: Sequence[Network], version: int) -> list[Range]:
    """Addresses of one family as numbers: first and last of each run, in order."""
    found = []
    for address, bits in networks:
        host = (1 << (128 - bits)) - 1
        low = int.from_bytes(address, "big") & ~host
        high = low | host
        if version == 6 and not (low >> 32 == 0xFFFF and bits >= 96):
            found.append((low, high))
        elif version == 4 and low <= _MAPPED_LAST and high >= _MAPPED_FIRST:
            found.append((max(low, _MAPPED_FIRST) - _MAPPED_FIRST, min(high, _MAPPED_LAST) - _MAPPED_FIRST))
    return _joined(sorted(found))


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Sorted ones, those that touch or overlap as one."""
    found: list[Range] = []
    for low, high in ranges:
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _one_of(a: _Assembler, values: Sequence[int], inside: str, known: Sequence[int] = ()) -> None:
    """Jumps to `inside` when A is one of the values; else goes on. known: all that there are: many values need not be told from what is between them and
    is none of these."""
    runs: list[Range] = []
    wanted = set(values)
    if len(wanted) > _EXACT and known:
        before = None
        for value in sorted(wanted | set(known)):
            if value in wanted and before in wanted:
                runs[-1] = runs[-1][0], value
            elif value in wanted:
                runs.append((value, value))
            before = value
    else:
        runs = _joined([(value, value) for value in sorted(wanted)])
    miss = a.label()
    _search(a, [(low, high, inside) for low, high in runs], miss)
    a.here(miss)


def _search(a: _Assembler, entries: Sequence[tuple[int, int, str]], miss: str, low: int = 0, high: int = 0xFFFFFFFF, *, leaf: int = 0) -> None:
    """Jumps to the label of the range that A lies in, or to `miss`. Sorted, disjoint; A is known to be between low and high.

    Few are asked one after the other, of more the half is left out with each question.  leaf: how few, in a part of which the labels are at hand."""
    few = leaf or (_LEAF if len(entries) <= _REACH else 2 * _LEAF)
    if len(entries) > few:
        shares = not leaf and _HOPS < len(entries) <= _REACH  # these jumps share a long one
        hops = {name: a.label() if shares else name for name in dict.fromkeys([*(name for _, _, name in entries), miss])}
        entries = [(first, last, hops[name]) for first, last, name in entries]
        leaf = few if leaf or len(entries) <= _REACH else 0
        middle, right = len(entries) // 2, a.label()
        a.when(_JGE, entries[middle][0], right)
        _search(a, entries[:middle], hops[miss], low, entries[middle][0] - 1, leaf=leaf)
        a.here(right)
        _search(a, entries[middle:], hops[miss], entries[middle][0], high, leaf=leaf)
        for name, hop in hops.items():
            if hop != name:
                a.here(hop)
                a.jump(name)
        return
    for first, last, name in entries:
        if first == last and low != high:
            if last == entries[-1][1]:
                a.when(_JEQ, first, name, miss)
                return
            a.when(_JEQ, first, name)
            continue
        if first > low:
            a.when(_JGE, first, None, miss)
        low = last + 1
        if last >= high:
            a.jump(name)
            return
        if last == entries[-1][1]:
            a.when(_JGT, last, miss, name)
            return
        on = a.label()
        a.when(_JGT, last, on, name)
        a.here(on)
    a.jump(miss)


def widened(networks: Sequence[Network], most: int) -> list[Network]:
    """Networks with all of these addresses, in at most so many runs of each family: what lies between the nearest ones counts too."""
    found: list[Network] = []
    for version in (4, 6):
        ranges = _ranges(networks, version)
        while len(ranges) > most:
            gaps = sorted(after[0] - before[1] for before, after in itertools.pairwise(ranges))
            widest = gaps[len(ranges) - most - 1]
            ranges = _bridged(ranges, widest, len(ranges) - most)
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for low, high in ranges:
            for one in ipaddress.summarize_address_range(kind(low), kind(high)):
                packed = one.network_address.packed
                found.append((_MAPPED + packed, 96 + one.prefixlen) if version == 4 else (packed, one.prefixlen))
    return found


def _bridged(ranges: Sequence[Range], gap: int, most: int) -> list[Range]:
    """Those that are no farther apart are one, so many times at most."""
    found = [ranges[0]]
    for low, high in ranges[1:]:
        if most and low - found[-1][1] <= gap:
            found[-1] = found[-1][0], high
            most -= 1
        else:
            found.append((low, high))
    return found


def _direction(
    a: _Assembler, rules: Rules, version: int, server: int, client: int, ports: tuple[int, int] | None, request: str, reply: str, reject: str
) -> None:
    """Jumps to `request` with a packet to a server that is asked for, then to `reply` with one from it; X is at the IP header.

    ports: offsets of (destination, source) behind it."""
    for towards in (True, False):
        if not towards and reply == reject:
            break
        no, accept = a.label(), request if towards else reply
        to, by = (server, client) if towards else (client, server)
        if ports is not None and rules.ports:
            ok = a.label()
            a.put(_LDX_MEM, _L4)
            a.put(_LDX_H, ports[0] if towards else ports[1])
            for port in rules.ports:
                a.when(_JEQ, port, ok)
            a.put(_LDX_MEM, _IP)
            a.jump(no)
            a.here(ok)
            a.put(_LDX_MEM, _IP)
        if rules.servers:
            ok = a.label()
            _networks(a, rules.servers, version, to, ok)
            a.jump(no)
            a.here(ok)
        if rules.clients:
            ok = a.label()
            _networks(a, rules.clients, version, by, ok)
            a.jump(no)
            a.here(ok)
        if rules.not_clients:
            _networks(a, rules.not_clients, version, by, no)
        if rules.local is not None:
            _locality(a, rules, version, to, towards, accept, no)
        a.jump(accept)
        a.here(no)
    a.jump(reject)


def _locality(a: _Assembler, rules: Rules, version: int, server: int, towards: bool, accept: str, no: str) -> None:
    """Goes on when the server lives on this node: `Rules` says what that means."""
    assert rules.local is not None
    go, address = a.label(), a.label()
    ok, no = (no, go) if rules.elsewhere else (go, no)
    if rules.inside:
        within = a.label()
        a.put(_LD_W, _IFINDEX)
        _one_of(a, rules.inside, within, rules.known)
        a.jump(address)
        a.here(within)
        a.put(_LD_W, _PKTTYPE)
        # to a server behind this interface requests go out, from it replies come in
        if towards:
            a.when(_JEQ, _OUTGOING, ok, address)
        else:
            a.when(_JEQ, _OUTGOING, address, ok)
    a.here(address)
    _networks(a, rules.local, version, server, ok)
    if not rules.elsewhere:
        a.jump(no)
    a.here(go)


# ---- for tests ---------------------------------------------------------------------------------------------------------------


def run(program: Sequence[Instruction], packet: bytes, *, mark: int = 0, ifindex: int = 1, pkttype: int = 0, hatype: int = 1) -> int:
    """What the kernel would do with this packet: the bytes kept, 0 when it does not pass. A load beyond the packet's end ends it with 0."""
    packet_length = len(packet)
    ancillary = {_MARK: mark, _IFINDEX: ifindex, _PKTTYPE: pkttype, _HATYPE: hatype}
    a = x = at = 0
    cells = [0] * 16
    while True:
        code, true, false, k = program[at]
        at += 1
        if code in (_LD_W, _LD_H, _LD_B, _LDX_W, _LDX_H, _LDX_B):
            if k in ancillary:
                a = ancillary[k]
                continue
            size = {_LD_W: 4, _LD_H: 2, _LD_B: 1, _LDX_W: 4, _LDX_H: 2, _LDX_B: 1}[code]
            place = k + (x if code in (_LDX_W, _LDX_H, _LDX_B) else 0)
            if place + size > len(packet):
                return 0
            a = int.from_bytes(packet[place : place + size], "big")
        elif code == _LD_IMM:
            a = k
        elif code == _LD_LEN:
            a = packet_length
        elif code == _LDX_IMM:
            x = k
        elif code == _LD_MEM:
            a = cells[k]
        elif code == _LDX_MEM:
            x = cells[k]
        elif code == _ST:
            cells[k] = a
        elif code == _STX:
            cells[k] = x
        elif code == _TAX:
            x = a
        elif code == _TXA:
            a = x
        elif code == _ADD_K:
            a = (a + k) & 0xFFFFFFFF
        elif code == _ADD_X:
            a = (a + x) & 0xFFFFFFFF
        elif code == _SUB_K:
            a = (a - k) & 0xFFFFFFFF
        elif code == _AND_K:
            a &= k
        elif code == _MUL_K:
            a = (a * k) & 0xFFFFFFFF
        elif code == _XOR_K:
            a ^= k
        elif code == _XOR_X:
            a ^= x
        elif code == _LSH_K:
            a = (a << k) & 0xFFFFFFFF
        elif code == _RSH_K:
            a >>= k
        elif code == _JA:
            at += k
        elif code in (_JEQ, _JGT, _JGE, _JSET, _JGE_X):
            yes = {_JEQ: a == k, _JGT: a > k, _JGE: a >= k, _JSET: bool(a & k), _JGE_X: a >= x}[code]
            at += true if yes else false
        elif code == _RET:
            return k
        elif code == _RET_A:
            return a
        else:
            raise ValueError(f"instruction {code:#x} is not known")
