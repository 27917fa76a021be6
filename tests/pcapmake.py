"""Capture files of any kind, from a list of packets, and the packets of TCP conversations. Written from the format descriptions, not from our reader.

A packet is (ts_ns, bytes), (ts_ns, bytes, wirelen) or (ts_ns, bytes, wirelen, iface); wirelen None is the captured length.
Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng; the modified pcap as in the kernel patch of A. N. Kuznetsov.
"""

import gzip
import struct

SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, NAMES, STATISTICS, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6
SECRETS, CUSTOM = 0x0A, 0x0BAD


def spread(packet):
    """(ts_ns, data, wirelen, iface) of a packet with anything left out."""
    ts, data, *more = packet
    wirelen = more[0] if more else None
    return ts, bytes(data), len(data) if wirelen is None else wirelen, more[1] if len(more) > 1 else 0


# ---- pcap -----------------------------------------------------------------------------------------------------------


def pcap_header(*, link=1, nanoseconds=False, big_endian=False, snaplen=262144, modified=False, version=(2, 4), zone=0):
    """The 24 bytes in front. `modified`: the header whose records are 24 bytes long."""
    magic = 0xA1B2CD34 if modified else 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    return struct.pack((">" if big_endian else "<") + "IHHiIII", magic, *version, zone, 0, snaplen, link)


def pcap_record(packet, *, nanoseconds=False, big_endian=False, modified=False):
    ts, data, wirelen, _ = spread(packet)
    seconds, rest = divmod(ts, 10**9)
    order = ">" if big_endian else "<"
    head = struct.pack(order + "IIII", seconds & 0xFFFFFFFF, rest if nanoseconds else rest // 1000, len(data), wirelen)
    return head + (struct.pack(order + "IHBB", 1, 0x0800, 0, 0) if modified else b"") + data


def pcap(packets, *, link=1, nanoseconds=False, big_endian=False, snaplen=262144, modified=False, version=(2, 4), zone=0):
    """A pcap file. Times are cut to microseconds unless `nanoseconds` (the modified kind has microseconds only)."""
    nanoseconds = nanoseconds and not modified
    head = pcap_header(link=link, nanoseconds=nanoseconds, big_endian=big_endian, snaplen=snaplen, modified=modified, version=version, zone=zone)
    return head + b"".join(pcap_record(p, nanoseconds=nanoseconds, big_endian=big_endian, modified=modified) for p in packets)


# ---- pcapng ---------------------------------------------------------------------------------------------------------


def padded(data):
    return data + bytes(-len(data) % 4)


def option(code, value, *, big_endian=False):
    return struct.pack((">" if big_endian else "<") + "HH", code, len(value)) + padded(value)


def block(kind, body, *, big_endian=False):
    """A whole block; the body is padded."""
    body = padded(body)
    order = ">" if big_endian else "<"
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def section(*, big_endian=False, options=b"", length=-1, version=(1, 0)):
    return block(SECTION, struct.pack((">" if big_endian else "<") + "IHHq", 0x1A2B3C4D, *version, length) + options, big_endian=big_endian)


def interface(*, link=1, snaplen=262144, big_endian=False, tsresol=None, tsoffset=None, options=b""):
    """tsresol: the byte of if_tsresol (0x80|n: powers of two), None leaves it out (microseconds). tsoffset: seconds."""
    order = ">" if big_endian else "<"
    if tsresol is not None:
        options = option(9, bytes([tsresol]), big_endian=big_endian) + options
    if tsoffset is not None:
        options = option(14, struct.pack(order + "q", tsoffset), big_endian=big_endian) + options
    if options:
        options += option(0, b"", big_endian=big_endian)
    return block(INTERFACE, struct.pack(order + "HHI", link, 0, snaplen) + options, big_endian=big_endian)


def ticks(ts_ns, tsresol=None, tsoffset=None):
    """A time in the units of an interface, 64 bit, rounded down."""
    tsresol = 6 if tsresol is None else tsresol
    per_second = 1 << (tsresol & 127) if tsresol & 128 else 10**tsresol
    return (ts_ns - (tsoffset or 0) * 10**9) * per_second // 10**9 & 0xFFFFFFFFFFFFFFFF


def enhanced(packet, *, big_endian=False, tsresol=None, tsoffset=None, options=b""):
    ts, data, wirelen, iface = spread(packet)
    at = ticks(ts, tsresol, tsoffset)
    head = struct.pack((">" if big_endian else "<") + "IIIII", iface, at >> 32, at & 0xFFFFFFFF, len(data), wirelen)
    return block(ENHANCED_PACKET, head + padded(data) + options, big_endian=big_endian)


def obsolete(packet, *, big_endian=False, tsresol=None, tsoffset=None, drops=0xFFFF, options=b""):
    ts, data, wirelen, iface = spread(packet)
    at = ticks(ts, tsresol, tsoffset)
    head = struct.pack((">" if big_endian else "<") + "HHIIII", iface, drops, at >> 32, at & 0xFFFFFFFF, len(data), wirelen)
    return block(OLD_PACKET, head + padded(data) + options, big_endian=big_endian)


def simple(packet, *, big_endian=False):
    """No time and no interface; the reader finds the captured length by the snap length of interface 0."""
    _, data, wirelen, _ = spread(packet)
    return block(SIMPLE_PACKET, struct.pack((">" if big_endian else "<") + "I", wirelen) + data, big_endian=big_endian)


def noise(*, big_endian=False):
    """One of each block that holds no packet: names, statistics, secrets, custom, unknown."""
    order = ">" if big_endian else "<"
    return b"".join(
        (
            block(NAMES, struct.pack(order + "HH", 1, 8) + b"\x7f\0\0\1a.b\0" + bytes(4), big_endian=big_endian),
            block(STATISTICS, struct.pack(order + "III", 0, 0, 0) + option(1, b"comment", big_endian=big_endian), big_endian=big_endian),
            block(SECRETS, struct.pack(order + "II", 0x544C534B, 5) + b"hello", big_endian=big_endian),
            block(CUSTOM, struct.pack(order + "I", 32473) + b"whatever", big_endian=big_endian),
            block(0x0000ABCD, b"", big_endian=big_endian),
        )
    )


def pcapng(packets, *, link=1, big_endian=False, snaplen=262144, tsresol=None, tsoffset=None, blocks="epb", interfaces=1, options=b"", with_noise=False):
    """A pcapng section. blocks: "epb", "spb" or "pb", one for all, or a sequence of them used in turn.

    interfaces: how many, all alike; a packet's fourth item says which. options: of each packet block. with_noise: other blocks in between.
    """
    write = {
        "epb": lambda p: enhanced(p, big_endian=big_endian, tsresol=tsresol, tsoffset=tsoffset, options=options),
        "pb": lambda p: obsolete(p, big_endian=big_endian, tsresol=tsresol, tsoffset=tsoffset, options=options),
        "spb": lambda p: simple(p, big_endian=big_endian),
    }
    kinds = [blocks] if isinstance(blocks, str) else list(blocks)
    out = [section(big_endian=big_endian)]
    out += [interface(link=link, snaplen=snaplen, big_endian=big_endian, tsresol=tsresol, tsoffset=tsoffset) for _ in range(interfaces)]
    for at, packet in enumerate(packets):
        if with_noise:
            out.append(noise(big_endian=big_endian))
        out.append(write[kinds[at % len(kinds)]](packet))
    return b"".join(out)


# ---- around either --------------------------------------------------------------------------------------------------


def gzipped(data, *, members=1, level=1):
    """gzip, as several members where asked (RFC 1952 2.2)."""
    return b"".join(gzip.compress(piece, level, mtime=0) for piece in pieces(data, members))


def zstandard():
    """The module that speaks zstd here, or None."""
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            return None
    return zstd


def zstded(data, *, frames=1, skippable=False, level=1):
    """zstd, as several frames where asked, with skippable frames between them (RFC 8878 3.1.2)."""
    skip = struct.pack("<II", 0x184D2A53, 5) + b"skip!" if skippable else b""
    return skip + b"".join(zstandard().compress(piece, level) + skip for piece in pieces(data, frames))


def pieces(data, count):
    size = -(-len(data) // count) or 1
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


# ---- what is in the packets -----------------------------------------------------------------------------------------

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
START_NS = 1_700_000_000_000_000_000


def segment(src, dst, sport, dport, seq, ack, flags, data=b"", *, pad=True, total=None, caplen=None):
    """An Ethernet frame with a TCP segment; addresses are bytes, 4 or 16. Checksums are zero, as with offload.

    pad: to 60 bytes, as on a wire. total: what the IPv4 header says as its length. caplen: cuts the frame there."""
    tcp = struct.pack(">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 65535, 0, 0) + data
    if len(src) == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) & 0xFFFF if total is None else total, 0, 0x4000, 64, 6, 0) + src + dst
    else:
        ip = struct.pack(">IHBB", 6 << 28, len(tcp) & 0xFFFF if total is None else total, 6, 64) + src + dst
    frame = b"\2\0\0\0\0\2\2\0\0\0\0\1" + (b"\x08\0" if len(src) == 4 else b"\x86\xdd") + ip + tcp
    return (frame.ljust(60, b"\xaa") if pad else frame)[:caplen]


class Talk:
    """One TCP conversation as packets. `packets` is the list of them; each call adds to it, 1 ms later than the one before.

    Sides are 0, the client, and 1, the server. Numbers and acknowledgements count themselves; what a call says by name wins, once."""

    def __init__(self, *, client=(b"\x0a\0\0\1", 40000), server=(b"\x0a\0\0\2", 80), numbers=(1000, 900000), at=START_NS, step=1_000_000, packets=None, mtu=1460):
        self.ends = (client, server)
        self.seq = list(numbers)
        self.at = at
        self.step = step
        self.mtu = mtu
        self.packets = [] if packets is None else packets

    def raw(self, side, seq, flags, data=b"", *, ack=None, wire=None, **more):
        """One segment, with nothing counted. wire: its frame's length before it was cut."""
        (src, sport), (dst, dport) = self.ends[side], self.ends[1 - side]
        ack = (self.seq[1 - side] if ack is None else ack) if flags & ACK else 0
        frame = segment(src, dst, sport, dport, seq, ack, flags, data, **more)
        if "caplen" in more:
            wire = len(segment(src, dst, sport, dport, seq, ack, flags, data))
        self.packets.append((self.at, frame) if wire is None else (self.at, frame, wire))
        self.at += self.step
        return self

    def say(self, side, data, *, cuts=(), flags=PSH | ACK, **more):
        """Bytes, cut at `cuts` (and at the MTU)."""
        cuts = [0, *cuts, len(data)]
        for start, end in zip(cuts, cuts[1:], strict=False):
            for at in range(start, end, self.mtu):
                piece = data[at : min(end, at + self.mtu)]
                self.raw(side, self.seq[side], flags, piece, **more)
                self.seq[side] += len(piece)
        return self

    def ask(self, data, **more):
        return self.say(0, data, **more)

    def tell(self, data, **more):
        return self.say(1, data, **more)

    def ack(self, side):
        return self.raw(side, self.seq[side], ACK)

    def open(self):
        self.raw(0, self.seq[0], SYN)
        self.seq[0] += 1
        self.raw(1, self.seq[1], SYN | ACK)
        self.seq[1] += 1
        return self.ack(0)

    def end(self, *sides):
        """FIN of each, the client's first, and the last ACK."""
        for side in sides or (0, 1):
            self.raw(side, self.seq[side], FIN | ACK)
            self.seq[side] += 1
        return self.ack(0)

    def skip(self, seconds):
        self.at += int(seconds * 10**9)
        return self
