"""The check of a target before anything is sent: a connection without a byte, and whether that very connection shows up where production is tapped.

Behind a load balancer or address translation the target's address proves nothing; the connection does. It is known by its maximum segment size, which
such boxes pass on and which nobody else uses.
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


def check(snoop: Snoop, place: Place, target: Target, addresses: list[Address], timeout_s: float) -> None:
    """Raises GuardError when a connection to one of the addresses arrives at a server that is tapped."""
    for address in addresses[:16]:
        size = 536 + random.randrange(1, 500)
        seen = _connect(snoop, address, size, timeout_s)
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


def _connect(snoop: Snoop, address: Address, size: int, timeout_s: float) -> Address | None:
    """Connects once without a byte; the destination of that connection's first packet as it was tapped, or None: it was not."""
    packed, port = address
    plain = ipaddress.IPv6Address(packed).ipv4_mapped
    with socket.socket(socket.AF_INET6 if plain is None else socket.AF_INET, socket.SOCK_STREAM) as one:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
        one.setblocking(False)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            one.connect((str(plain or ipaddress.IPv6Address(packed)), port))
        mark = b"\x02\x04" + struct.pack("!H", size)
        for packet in snoop.packets(min(_LISTEN_S, timeout_s)):
            if mark in packet[:512]:
                return _destination(packet)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    del began
    return None


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
