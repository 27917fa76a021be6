"""The check of a target before anything is sent: a connection without a byte, and whether that very connection shows up where production is tapped.

Behind a load balancer or address translation the target's address proves nothing; the connection does. It is known by what such boxes pass on: its
maximum segment size, one of some hundred that nobody else uses but another tap's check, and the time stamp of its first packet (RFC 7323), which tells
these apart.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import struct
import time

from replay.capture.afpacket import Snoop
from replay.errors import GuardError
from replay.report import endpoint
from replay.settings import Target
from replay.tap.place import Place

__all__ = ["check"]

Address = tuple[bytes, int]
_LISTEN_S = 0.3
#: From linux/tcp.h, which Python does not name: what this connection's time stamps say now.
_TCP_TIMESTAMP = 24
#: How far that may be from what the first packet says, beside the time that passed: it counts milliseconds, on some routes microseconds.
_STAMPS_APART = 10_000
#: So often one with the right size and another time stamp is met, and it is no other tap's: some firewalls write time stamps anew (pf's scrub).
_TIMES = 3
_END, _NOTHING, _STAMPS = 0, 1, 8


def check(snoop: Snoop, place: Place, target: Target, addresses: list[Address], timeout_s: float) -> None:
    """Raises GuardError when a connection to one of the addresses arrives at a server that is tapped."""
    for address in addresses[:16]:
        for _ in range(_TIMES):
            seen, certain = _connect(snoop, address, 536 + random.randrange(1, 500), timeout_s)
            if certain:
                break
        if seen is None:
            continue
        if place.settings.direction != "in" and seen == address:
            continue  # calls of this node are tapped, this one is among them, and the filter leaves ours out
        where = endpoint(*seen) if seen != (b"", 0) else "a tapped server"
        raise GuardError(
            f"{target.url}: refused: a connection to {endpoint(*address)} shows up at {where}, which is tapped: what is mirrored would reach production."
            " Give the address of a shadow service; where production and shadow share this interface, name production's port (--port)."
            " If this is meant: --allow-production"
        )


def _connect(snoop: Snoop, address: Address, size: int, timeout_s: float) -> tuple[Address | None, bool]:
    """Connects once without a byte; the destination of that connection's first packet as it was tapped, or None: it was not. And whether that is certain:
    not where it has the size alone."""
    packed, port = address
    plain = ipaddress.IPv6Address(packed).ipv4_mapped
    with socket.socket(socket.AF_INET6 if plain is None else socket.AF_INET, socket.SOCK_STREAM) as one:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
        one.setblocking(False)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            one.connect((str(plain or ipaddress.IPv6Address(packed)), port))
        stamp = None
        with contextlib.suppress(OSError):
            stamp = one.getsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP)
        apart = _STAMPS_APART + int((time.monotonic() - began) * 1e6)
        like = None
        for packet in snoop.packets(min(_LISTEN_S, timeout_s)):
            at = packet.find(b"\x02\x04" + struct.pack("!H", size), 0, 512)
            if at >= 0 and _stamped(packet[at:512], stamp, apart):
                return _destination(packet), True
            if at >= 0:
                like = _destination(packet)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return like, like is None


def _stamped(options: bytes, stamp: int | None, apart: int) -> bool:
    """Whether TCP options tell no other time stamp than one that is so far from `stamp` at most. Where they tell none the size decides: rather a shadow is
    refused than production taken for one."""
    at = 0
    while stamp is not None and at + 1 < len(options) and options[at] != _END:
        kind, length = options[at], options[at + 1]
        if kind == _NOTHING:
            length = 1
        elif kind == _STAMPS and length == 10 and at + 10 <= len(options):
            return (stamp - int.from_bytes(options[at + 2 : at + 6], "big") + apart) % 2**32 <= 2 * apart  # the kernel's two clocks differ by one at times
        elif length < 2:
            break
        at += length
    return True


def _destination(packet: bytes) -> Address:
    """(address, port) that a bare frame is sent to; of an encapsulated one (b"", 0)."""
    at = 0
    if packet[:1] and packet[0] >> 4 in (4, 6) and packet[12:14] not in (b"\x08\0", b"\x86\xdd", b"\x81\0"):
        kind = b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd"
    else:
        at = 14
        kind = packet[12:14]
        while kind in (b"\x81\0", b"\x88\xa8") and at < 22:
            kind = packet[at + 2 : at + 4]
            at += 4
    if kind == b"\x08\0" and len(packet) >= at + 40 and packet[at + 9] == 6:
        tcp = at + (packet[at] & 15) * 4
        return bytes(10) + b"\xff\xff" + packet[at + 16 : at + 20], int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
    if kind == b"\x86\xdd" and len(packet) >= at + 60 and packet[at + 6] == 6:
        return packet[at + 24 : at + 40], int.from_bytes(packet[at + 42 : at + 44], "big")
    return b"", 0
