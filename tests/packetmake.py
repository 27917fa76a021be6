"""Frames written with struct: TCP in IPv4 or IPv6, in Ethernet, VLANs and tunnels. Fast and plain; checksums are zero, as nobody looks (D2).

An address is 4 or 16 bytes; an end is (address, port).
"""

import struct

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLIENT, SERVER = (b"\x0a\0\0\x01", 40000), (b"\x0a\0\0\x02", 80)
MACS = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"
TCP_HEAD, IP_HEAD, IP6_HEAD = struct.Struct(">HHIIBBHHH"), struct.Struct(">BBHHHBBH4s4s"), struct.Struct(">IHBB16s16s")


def mapped(end):
    """As the engine shows it: 16 address bytes, IPv4 v4-mapped."""
    address, port = end
    return (address if len(address) == 16 else bytes(10) + b"\xff\xff" + address, port)


def tcp(src, dst, seq, ack, flags, payload=b"", options=b""):
    head = TCP_HEAD.pack(src[1], dst[1], seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, (20 + len(options)) // 4 << 4, flags, 65535, 0, 0)
    return head + options + payload


def ip(source, target, protocol, payload):
    if len(source) == 4:
        return IP_HEAD.pack(0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, source, target) + payload
    return IP6_HEAD.pack(6 << 28, len(payload), protocol, 64, source, target) + payload


def ethertype(packet):
    return b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd"


def ethernet(packet):
    return MACS + ethertype(packet) + packet


def vlan(packet, tag=7):
    return MACS + b"\x81\0" + struct.pack(">H", tag) + ethertype(packet) + packet


def qinq(packet, outer=100, inner=7):
    return MACS + b"\x88\xa8" + struct.pack(">H", outer) + b"\x81\0" + struct.pack(">H", inner) + ethertype(packet) + packet


OUTER = b"\xc0\xa8\0\x01", b"\xc0\xa8\0\x02"


def gre(packet):
    return ethernet(ip(*OUTER, 47, b"\0\0" + ethertype(packet) + packet))


def vxlan(packet, vni=42):
    inner = struct.pack(">BBHI", 8, 0, 0, vni << 8) + ethernet(packet)
    return ethernet(ip(*OUTER, 17, struct.pack(">HHHH", 50000, 4789, 8 + len(inner), 0) + inner))


WRAPS = {"ethernet": ethernet, "vlan": vlan, "qinq": qinq, "gre": gre, "vxlan": vxlan}


def frame(src, dst, seq, ack, flags, payload=b"", wrap=ethernet):
    """A TCP segment as a frame."""
    return wrap(ip(src[0], dst[0], 6, tcp(src, dst, seq, ack, flags, payload)))


def talk(*parts, client=CLIENT, server=SERVER, start_ns=1_700_000_000_000_000_000, step_ns=1_000_000, seq=1000, seq_back=5000, close=True, mss=1400):
    """The packets (ts_ns, bytes) of a whole connection. parts: bytes that the client sends, or ("reply", bytes) for the server."""
    packets = []
    at = [start_ns]

    def send(src, dst, number, other, flags, payload=b""):
        packets.append((at[0], frame(src, dst, number, other, flags, payload)))
        at[0] += step_ns

    send(client, server, seq, 0, SYN)
    send(server, client, seq_back, seq + 1, SYN | ACK)
    seq, seq_back = seq + 1, seq_back + 1
    send(client, server, seq, seq_back, ACK)
    for part in parts:
        if isinstance(part, tuple):
            for cut in range(0, len(part[1]), mss):
                piece = part[1][cut : cut + mss]
                send(server, client, seq_back, seq, ACK | PSH, piece)
                seq_back += len(piece)
        else:
            for cut in range(0, len(part), mss):
                piece = part[cut : cut + mss]
                send(client, server, seq, seq_back, ACK | PSH, piece)
                seq += len(piece)
            send(server, client, seq_back, seq, ACK)
    if close:
        send(client, server, seq, seq_back, FIN | ACK)
        send(server, client, seq_back, seq + 1, FIN | ACK)
        send(client, server, seq + 1, seq_back + 1, ACK)
    return packets
