"""Captures with known truth, from a seed: connections, damage, frames. What is true follows from the bytes that were left in, by a model of its own.

    made = make(seed)
    made.captures      bytes of one or several pcap files
    made.complete      the requests that are whole: `Whole`, in order of the time of their first byte
    made.incomplete    the others of which a request line is there: `Part`
    made.statuses, made.written    what was answered and sent

Options of the command line are left at their defaults.

The truth does not come from parsing: each request is written down when it is made, and what remains of its bytes after loss, cuts and repeats decides.
"""

import hashlib
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import packetmake as net
import pcapmake

from replay._reference import framing

START = 1_700_000_000_123_456_789
TOKENS = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"PROPFIND", b"QUERY", b"M-SEARCH", b"x", b"!#$%&'*+-.^_`|~1")
BODIES = b"abcdefghijklmnopqrstuvwxyz0123456789 \0\xff{}&="  # no line end: nothing in a body begins like a request line
CUT, LOST = "cut_by_snaplen", "gap"


class Whole(NamedTuple):
    ts_ns: int
    client: tuple
    server: tuple
    method: bytes
    target: bytes
    host: bytes | None
    sha256: str
    withheld: str | None


class Part(NamedTuple):
    ts_ns: int
    client: tuple
    server: tuple
    method: bytes
    target: bytes
    reason: str


@dataclass
class Made:
    """A request as it was written, and where it stands in its stream."""

    data: bytes
    method: bytes
    target: bytes
    host: bytes | None
    body: bytes
    line_end: int = 0  # these from its own first byte
    inside: list = field(default_factory=list)  # spans that may lack bytes without the end becoming unknown (H6)
    withheld: str | None = None
    status: int = 200
    start: int = 0


@dataclass
class Packet:
    connection: "Connection"
    back: bool  # sent by the server
    at: int  # of its first byte in its stream
    payload: bytes
    flags: int
    ack: int  # position in the other stream
    handshake: bool = False
    probe: bool = False  # keep-alive: what it carries is no data (R3)
    present: int = -1  # bytes of the payload left by the snap length; -1 all
    ts_ns: int = 0


@dataclass
class Connection:
    client: tuple
    server: tuple
    wrap: object
    isn: int
    isn_back: int
    requests: list = field(default_factory=list)
    packets: list = field(default_factory=list)
    sent: int = 0
    sent_back: int = 0
    answered: bool = True  # the server's side is in the capture
    syn: bool = True
    fin: bool = True
    lossy: bool = False
    tidy: bool = False  # each request begins a packet, and what is sent again stays inside one request


def content(rng, most=3000, tidy=False):
    """tidy: without blanks, and with an end that no token has: what is left of it cannot be the beginning of a request line (H7)."""
    body = bytes(rng.choices(BODIES, k=rng.choice((0, 1, 5, rng.randrange(200), rng.randrange(most)))))
    return body.replace(b" ", b"-")[:-1] + b"}" if tidy and body else body


def chunked(rng, body, start):
    """(the body in chunks, spans of chunk data from the start of the message)."""
    out, spans, at = bytearray(), [], 0
    while at < len(body):
        size = rng.randrange(1, len(body) - at + 1)
        number = b"%x" % size
        out += (b"0" * rng.randrange(3) + (number.upper() if rng.random() < 0.5 else number)) + rng.choice((b"", b"", b";x=1", b' ; a="b c"')) + b"\r\n"
        spans.append((start + len(out), start + len(out) + size))
        out += body[at : at + size] + b"\r\n"
        at += size
    out += rng.choice((b"0", b"000")) + b"\r\n" + rng.choice((b"", b"", b"X-Trailer: 1\r\nY: 2\r\n")) + b"\r\n"
    return bytes(out), spans


def request(rng, number, last, tidy):
    method = rng.choice(TOKENS[:5]) if rng.random() < 0.7 else rng.choice(TOKENS)
    target = b"/%d/%s" % (number, bytes(rng.choices(b"abc/?=&%._~", k=rng.randrange(20))))
    host = b"h%d.example" % rng.randrange(20) + rng.choice((b"", b":8080"))
    version, withheld = b"1.1", None
    kind = rng.random()
    shown: bytes | None = host
    if kind < 0.03:
        target = b"http://" + host + target
    lines = [b"Host: " + host]
    if 0.03 < kind < 0.05:
        lines, shown, withheld, version = [], None, "no_host", b"1.0"
    elif 0.05 < kind < 0.07:
        shown = b"h-shadow:1"
        lines, withheld = [b"Host: " + shown], "loop"
    elif 0.07 < kind < 0.08:
        shown = b"a/b"
        lines, withheld = [b"Host: " + shown], "bad_host"
    for _ in range(rng.randrange(5)):
        lines.append(rng.choice((b"Accept: */*", b"x-a:1", b"X-Long: " + b"v" * rng.randrange(300), b"X-Fold: a\r\n\t b", b"Cookie: a=b; c=d", b"X-Empty:", b"Accept: text/html")))
    body = b""
    framing = rng.choice(("none", "none", "length", "chunked")) if version == b"1.1" else rng.choice(("none", "length"))
    if framing == "length":
        body = content(rng, tidy=tidy)
        lines.append(b"Content-Length: %s%d" % (b"00" if rng.random() < 0.1 else b"", len(body)))
    elif framing == "chunked":
        body = content(rng, tidy=tidy)
        lines.append(rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:  CHUNKED ", b"Transfer-Encoding: gzip, chunked")))
        if last and rng.random() < 0.2:
            lines.append(b"Content-Length: 3")
            withheld = "ambiguous"
    rng.shuffle(lines)
    if lines and lines[0].startswith(b"X-Fold"):
        lines.append(lines.pop(0))
    line = method + b" " + target + b" HTTP/" + version + b"\r\n"
    head = line + b"".join(each + b"\r\n" for each in lines) + b"\r\n"
    made = Made(head, method, target, shown, body, len(line), withheld=withheld)
    if framing == "length":
        made.data += body
        made.inside = [(len(head), len(made.data))]
    elif framing == "chunked":
        data, made.inside = chunked(rng, body, len(head))
        made.data += data
    return made


def reply(rng, made):
    made.status = rng.choice((200, 200, 201, 204, 304, 404, 503))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" if rng.random() < 0.05 else b""
    line = interim + b"HTTP/1.1 %d Some Text\r\n" % made.status
    if made.status in (204, 304):
        return line + b"Server: x\r\n\r\n"
    body = content(rng, 1000)
    if rng.random() < 0.3:
        data, _ = chunked(rng, body, 0)
        return line + b"Transfer-Encoding: chunked\r\n\r\n" + (b"" if made.method == b"HEAD" else data)
    return line + b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if made.method == b"HEAD" else body)


# ---- a connection as packets -----------------------------------------------------------------------------------------------


def cuts(rng, length, mode, first):
    """Sizes of the packets that carry so many bytes."""
    while length > 0:
        size = min(length, max(first, {"byte": 1, "whole": 1460, "any": rng.randrange(1, 1461), "small": rng.randrange(1, 40)}[mode]))
        yield size
        length -= size
        first = 0


def send(rng, c, back, data, mode, first=0):
    """first: the first packet has at least so many bytes. Of a request whose method alone is lost, the rest may still be a request line."""
    at = 0
    for size in cuts(rng, len(data), mode, first):
        start = c.sent_back if back else c.sent
        c.packets.append(Packet(c, back, start, data[at : at + size], net.ACK | net.PSH, c.sent if back else c.sent_back))
        at += size
        if back:
            c.sent_back += size
        else:
            c.sent += size


def acknowledge(c, back):
    c.packets.append(Packet(c, back, c.sent_back if back else c.sent, b"", net.ACK, c.sent if back else c.sent_back))


def connection(rng, number, flavour):
    """All packets of one, in the order of sending, undamaged. flavour: names of what it is to be like."""
    if rng.random() < 0.2:
        addresses = b"\xfd" + bytes(13) + number.to_bytes(2, "big"), b"\xfd" + bytes(14) + b"\x80"
    else:
        addresses = b"\x0a\x01" + number.to_bytes(2, "big"), b"\x0a\x02\0\x02"
    wrap = rng.choice(list(net.WRAPS.values())) if "wraps" in flavour else net.ethernet
    near_wrap = rng.random() < 0.3
    c = Connection(
        (addresses[0], rng.randrange(1, 65536)), (addresses[1], rng.choice((80, 8080, 50000))), wrap,
        rng.randrange(2**32 - 3000, 2**32) if near_wrap else rng.randrange(2**32), rng.randrange(2**32),
    )  # fmt: skip
    c.lossy = "loss" in flavour and rng.random() < 0.5
    c.tidy = c.lossy or "cut" in flavour
    c.answered = not (c.lossy or "one-sided" in flavour) or rng.random() < 0.6
    if "one-sided" in flavour:
        c.answered = rng.random() < 0.5
    c.syn = rng.random() < 0.9 or "reorder" in flavour
    c.fin = rng.random() < 0.7
    mode = "byte" if "bytes" in flavour else rng.choice(("whole", "any", "small", "any"))
    if c.syn:
        c.packets.append(Packet(c, False, -1, b"", net.SYN, -1, True))
        if c.answered:
            c.packets.append(Packet(c, True, -1, b"", net.SYN | net.ACK, 0, True))
        c.packets.append(Packet(c, False, 0, b"", net.ACK, 0, True))
    if not c.syn and rng.random() < 0.5:  # the rest of something that nobody saw begin
        send(rng, c, False, content(rng, 300, tidy=True), mode)
    count = rng.randrange(1, 3 if "bytes" in flavour else 9)
    made = [request(rng, i, i == count - 1, c.tidy) for i in range(count)]
    unanswered = []
    for i, one in enumerate(made):
        last = i == count - 1
        one.start = c.sent + sum(len(p.data) for p in unanswered)
        c.requests.append(one)
        unanswered.append(one)
        if not c.tidy and not last and rng.random() < 0.3:
            continue  # pipelined: more before the answer
        data = b"".join(p.data for p in unanswered)
        if last and rng.random() < 0.15 and not c.tidy and one.withheld is None:
            send(rng, c, False, data[: len(data) - rng.randrange(1, len(one.data))], mode)  # and no more of it
            unanswered.pop()
        else:
            send(rng, c, False, data, mode, 20 if c.tidy or not c.syn else 0)
        if c.answered:
            if rng.random() < 0.5:
                acknowledge(c, True)
            for p in unanswered:
                send(rng, c, True, reply(rng, p), mode)
            if rng.random() < 0.7:
                acknowledge(c, False)
        unanswered = []
    if c.fin:
        c.packets.append(Packet(c, False, c.sent, b"", net.FIN | net.ACK, c.sent_back))
        if c.answered:
            c.packets.append(Packet(c, True, c.sent_back, b"", net.FIN | net.ACK, c.sent + 1))
            c.packets.append(Packet(c, False, c.sent + 1, b"", net.ACK, c.sent_back + 1))
    elif c.answered:
        acknowledge(c, True)
    return c


def stream(c):
    return b"".join(p.payload for p in c.packets if not p.back)


# ---- damage ----------------------------------------------------------------------------------------------------------------


def interleave(rng, connections):
    queues = [list(reversed(c.packets)) for c in connections]
    live = [q for q in queues if q]
    out = []
    while live:
        at = rng.randrange(len(live))
        for _ in range(rng.randrange(1, 4)):
            if live[at]:
                out.append(live[at].pop())
        if not live[at]:
            live[at] = live[-1]
            live.pop()
    return out


def lose(rng, packets):
    """Some of the client's packets with data were not captured; the server had them. Replies are whole."""
    return [p for p in packets if not (p.connection.lossy and not p.back and p.payload and rng.random() < 0.12)]


def resend(rng, packets, share=0.08):
    """Sent again: as it was, with more data, or overlapping, a little later. The same bytes."""
    out = []
    late = []
    whole = {}
    for p in packets:
        out.append(p)
        if p.payload and not p.handshake and rng.random() < share:
            again = Packet(p.connection, p.back, p.at, p.payload, p.flags, p.ack)
            c = p.connection
            if not c.tidy and not p.back and rng.random() < 0.6:
                if id(c) not in whole:
                    whole[id(c)] = stream(c)
                begin = max(0, p.at - rng.randrange(30))
                # nothing that was not sent yet, or the request would begin in the middle of what is sent again
                end = p.at + len(p.payload)
                again.at, again.payload = begin, whole[id(c)][begin:end]
            late.append([rng.randrange(12), again])
        for each in late:
            each[0] -= 1
        out += [again for left, again in late if left < 0]
        late = [each for each in late if each[0] >= 0]
    return out + [again for _, again in late]


def disagree(rng, packets):
    """Sent again with other bytes: the first copy counts (R2). Only where nothing is reordered. And keep-alive probes."""
    out = []
    for p in packets:
        out.append(p)
        if p.payload and not p.connection.lossy and rng.random() < 0.05:
            out.append(Packet(p.connection, p.back, p.at, bytes(len(p.payload)), p.flags, p.ack))
        if p.payload and rng.random() < 0.05:
            out.append(Packet(p.connection, p.back, p.at + len(p.payload) - 1, rng.choice((b"", b"\0")), net.ACK, p.ack, probe=True))
    return out


def reorder(rng, packets, within=20):
    """No packet moves further than so many places; handshakes keep theirs."""
    order = sorted(range(len(packets)), key=lambda i: i + (0 if packets[i].handshake else rng.uniform(0, within)))
    out = [packets[i] for i in order]
    # what was sent before a connection's handshake was over cannot overtake it
    left: dict[int, int] = {}
    for p in packets:
        if p.handshake:
            left[id(p.connection)] = left.get(id(p.connection), 0) + 1
    kept: dict[int, list] = {}
    final = []
    for p in out:
        key = id(p.connection)
        if p.handshake:
            final.append(p)
            left[key] -= 1
            if not left[key]:
                final += kept.pop(key, [])
        elif left.get(key):
            kept.setdefault(key, []).append(p)
        else:
            final.append(p)
    return final


def frames(rng, packets, snaplen):
    """(ts_ns, bytes, wirelen), with `present` and `ts_ns` noted."""
    at, out = START, []
    for p in packets:
        c = p.connection
        at += rng.randrange(1, 800_000)
        p.ts_ns = at
        here, there = (c.isn_back, c.isn) if p.back else (c.isn, c.isn_back)
        source, target = (c.server, c.client) if p.back else (c.client, c.server)
        ack = 0 if p.flags == net.SYN else there + 1 + p.ack
        data = net.frame(source, target, here + 1 + p.at, ack, p.flags, p.payload, c.wrap)
        overhead = len(data) - len(p.payload)
        p.present = min(len(p.payload), max(0, snaplen - overhead))
        wirelen = len(data)
        if len(data) < 60 and c.wrap is net.ethernet:
            data += bytes(60 - len(data))
            wirelen = 60
        out.append((at, data[:snaplen], wirelen))
    return out


# ---- the truth -------------------------------------------------------------------------------------------------------------


def holes_of(packets, length):
    """What of the client's stream is not in the capture: [(from, to, reason)]."""
    there, cut = bytearray(length), bytearray(length)
    for p in packets:
        end, wire = p.at + p.present, p.at + len(p.payload)
        there[p.at : end] = b"\1" * p.present
        cut[end:wire] = b"\1" * (wire - end)
    holes, at = [], 0
    while at < length:
        if there[at]:
            at += 1
            continue
        end = at
        while end < length and not there[end] and cut[end] == cut[at]:
            end += 1
        holes.append((at, end, CUT if cut[at] else LOST))
        at = end
    return holes


def truth(c, packets):
    """(whole, parts) of a connection, from the packets of the client that are in the capture, in their order."""
    data = [p for p in packets if not p.back and p.payload and not p.probe]
    if not data:
        return [], []
    begin = 0 if c.syn else data[0].at
    # a FIN or an acknowledgement shows that there was more
    length = max([p.at + len(p.payload) for p in data] + [min(p.ack, c.sent) for p in packets if p.back] + [c.sent] * c.fin)
    holes = [h for h in holes_of(data, length) if h[1] > begin]
    starts = {p.at for p in data}
    first_packet = {}
    for p in data:
        for r in c.requests:
            if p.at <= r.start < p.at + p.present:
                first_packet.setdefault(id(r), p)
    whole, parts = [], []
    known = trusted = c.syn
    for r in c.requests:
        end = r.start + len(r.data)
        mine = [h for h in holes if h[0] < end and h[1] > r.start]
        line = r.start + r.line_end
        if r.start < begin or line > length or any(h[0] < line for h in mine) or (not known and r.start not in starts):
            known = False  # not a message at all (H12), or nothing says that one begins here (H7)
            continue
        if not known:
            trusted = False
        ts_ns = first_packet[id(r)].ts_ns
        ends = net.mapped(c.client), net.mapped(c.server)
        before = [p for p in data if p.at < r.start and p.present > 1]
        follows = bool(before) and first_packet[id(r)].ack <= max(before, key=lambda p: p.at).ack
        if not known:  # nor does its line, if it goes on in a packet that could begin a request itself (H7)
            begins = [framing.request_line(p.payload[: p.present]) for p in data if r.start < p.at < line]
            follows = follows or framing.MAYBE in begins
        if c.answered and not follows:
            trusted = True  # the server answered where this request's packet acknowledged (H8)
        known = True
        if mine:
            parts.append(Part(ts_ns, *ends, r.method, r.target, mine[0][2]))
            inside = [(r.start + a, r.start + b) for a, b in r.inside]
            known = all(any(a <= h[0] and min(h[1], end) <= b for a, b in inside) for h in mine) and mine[-1][1] <= end
        elif end > length:
            parts.append(Part(ts_ns, *ends, r.method, r.target, "closed" if c.fin else "cut_at_end"))
        else:
            withheld = r.withheld if r.withheld == "ambiguous" or trusted else "unconfirmed"
            whole.append(Whole(ts_ns, *ends, r.method, r.target, r.host, hashlib.sha256(r.body).hexdigest(), withheld))
    return whole, parts


@dataclass
class Result:
    captures: list
    complete: list
    incomplete: list
    flavour: frozenset
    packets: list
    statuses: dict  # (client, target) -> status, where nothing was damaged
    written: dict  # (client, target) -> (head, rest) as the client sent them


FLAVOURS = (
    ("plain",), ("bytes",), ("wraps",), ("reorder",), ("reorder", "wraps"), ("again",), ("again", "reorder"), ("disagree",), ("loss",), ("loss", "reorder"),
    ("loss", "again"), ("cut",), ("cut", "wraps"), ("one-sided",), ("one-sided", "reorder"), ("files",), ("files", "reorder", "again"), ("bytes", "again", "reorder"),
    ("loss", "again", "reorder", "wraps", "files"), ("plain", "wraps"),
)  # fmt: skip


def split(data):
    at = data.index(b"\r\n\r\n") + 4
    return data[:at], data[at:]


def make(seed):
    rng = random.Random(seed)
    flavour = frozenset(FLAVOURS[seed % len(FLAVOURS)])
    connections = [connection(rng, i, flavour) for i in range(rng.randrange(1, 3 if "bytes" in flavour else 7))]
    packets = interleave(rng, connections)
    if "again" in flavour:
        packets = resend(rng, packets)
    if "disagree" in flavour:
        packets = disagree(rng, packets)
    if "loss" in flavour:
        packets = lose(rng, packets)
    if "reorder" in flavour:
        packets = reorder(rng, packets)
    snaplen = rng.randrange(200, 900) if "cut" in flavour else 262144
    written = frames(rng, packets, snaplen)
    complete, incomplete, statuses, wrote = [], [], {}, {}
    for c in connections:
        mine = [p for p in packets if p.connection is c]
        whole, parts = truth(c, mine)
        wrote |= {(net.mapped(c.client), r.target): split(r.data) for r in c.requests}
        complete += whole
        incomplete += parts
        if c.answered and c.syn and not flavour & {"loss", "cut", "disagree"}:
            statuses |= {(net.mapped(c.client), r.target): r.status for r in c.requests if r.data}
    pieces = [written]
    if "files" in flavour:
        at = sorted(rng.randrange(len(written) + 1) for _ in range(2))
        pieces = [written[: at[0]], written[at[0] : at[1]], written[at[1] :]] if rng.random() < 0.5 else [written[0::2], written[1::2]]
    captures = [pcapmake.pcap(piece, nanoseconds=True, snaplen=snaplen, big_endian=rng.random() < 0.2) for piece in pieces]
    return Result(captures, sorted(complete, key=lambda w: w.ts_ns), sorted(incomplete, key=lambda w: w.ts_ns), flavour, packets, statuses, wrote)


def segments(made):
    """What a decoder makes of the packets: (ts_ns, src, dst, seq, ack, flags, payload, missing) each."""
    for p in made.packets:
        c = p.connection
        client, server = net.mapped(c.client), net.mapped(c.server)
        here, there = (c.isn_back, c.isn) if p.back else (c.isn, c.isn_back)
        ack = 0 if p.flags == net.SYN else there + 1 + p.ack
        yield (
            p.ts_ns, *((server, client) if p.back else (client, server)), (here + 1 + p.at) % 2**32, ack % 2**32, p.flags,
            p.payload[: p.present], len(p.payload) - p.present,
        )  # fmt: skip
