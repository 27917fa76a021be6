"""A capture from a seed: keep-alive connections with requests, replies and acknowledgements, interleaved as on a busy server.

    python generate.py --requests 1m >capture.pcap
    python generate.py --requests 10k --variant cut >capture.pcap

About 700 bytes of frame a request without body; 15 % carry 100 to 3,000 bytes of JSON; with its reply and the acknowledgement a request comes to 2.2 KB, a million to 2.2 GB. What is sent is known: request n has n in
its target, all requests are whole, and every variant holds the same ones. More bytes (`--bytes`) come from the same requests again, with later time stamps and other client addresses.

Variants:
    clean        in order
    disordered   a fifth of the packets come one to three places later in their connection, but at most 20 ms
    duplicated   a fifth of the packets with payload come twice
    overlapping  a fifth of the requests are cut in two, and the second segment begins up to 200 bytes before the first one's end
    cut          each request is cut in two, request n at the nth byte of its first segment (round and round): every place is met
    bytes        one byte of a request a packet (some 60 KB a request: for small captures)

Checksums of IP are right, those of TCP are zero, as where the card makes them.
"""

import argparse
import pathlib
import random
import struct
import sys

import inputs
import numpy

MSS = 1448
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
ETHERNET = bytes.fromhex("0200000000020200000000010800")
TIMESTAMPS = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x01"  # the TCP option, as Linux sends it
HEADERS = 16 + 14 + 20 + 32  # bytes before the payload: pcap record, Ethernet, IP, TCP with its option
START = 1_780_000_000
VARIANTS = ("clean", "disordered", "duplicated", "overlapping", "cut", "bytes")
SHARE = 0.2  # of what a variant does something to
LATEST_US = 20_000  # that a packet is displaced by
RATE = inputs.USUAL["rate"]  # requests a second of capture time
CHUNK = 65_536  # packets that are put together at a time

GETS, POSTS, REPLIES = 48, 24, 48  # how many different ones there are
DIGITS = 8  # of a request's number
HEX = 32
PATCHED = DIGITS + HEX  # bytes of a head that differ from request to request
AGENTS = (
    b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    b"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:127.0) Gecko/20100101 Firefox/127.0",
)

SYN, ACK, PUSH, FIN = 2, 16, 8, 1
NOTHING = -1  # instead of a message: a packet without payload

COLUMNS = numpy.dtype(
    [
        ("us", "i8"),  # since the capture's beginning
        ("connection", "i4"),
        ("number", "i4"),  # of the request; NOTHING where the message is no request
        ("message", "i4"),  # which of the messages of `_messages`, or NOTHING
        ("offset", "i4"),  # of the payload in the message
        ("length", "i4"),
        ("seq", "u4"),
        ("ack", "u4"),
        ("flags", "u1"),
        ("from_client", "?"),
    ]
)


# ---- what is said ------------------------------------------------------------------------------------------------------------


def _head(rng, which, body_length):
    """(head with blanks where it differs from request to request, offsets of the number and of the identifier)."""
    parts = [
        (b"POST" if body_length else b"GET") + b" /api/v2/customers/",
        b"0" * DIGITS,
        b"/orders?page=%d&sort=date HTTP/1.1\r\nHost: customer-%d.example:8080\r\nUser-Agent: %b\r\n" % (which % 17, which % 5, rng.choice(AGENTS)),
        b"Accept: application/json, text/plain;q=0.9, */*;q=0.8\r\nAccept-Language: %b\r\nAccept-Encoding: gzip, deflate\r\n" % rng.choice((b"en-US,en;q=0.9", b"de-DE,de;q=0.9,en;q=0.7", b"fr")),
        b"Cookie: session=%032x; theme=%b; consent=yes\r\nx-request-id: " % (rng.getrandbits(128), rng.choice((b"dark", b"light"))),
        b"0" * HEX,
        b"\r\ntraceparent: 00-%032x-%016x-01\r\nReferer: http://customer-%d.example:8080/orders\r\nConnection: keep-alive\r\n" % (rng.getrandbits(128), rng.getrandbits(64), which % 5),
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % body_length if body_length else b"\r\n",
    ]
    ends = numpy.cumsum([len(part) for part in parts])
    return b"".join(parts), [*range(ends[0], ends[1]), *range(ends[4], ends[5])]


def _messages(rng):
    """(requests without a body, those with one, replies) one after the other as bytes; and where each differs from request to request, -1 for a reply."""
    said, places = [], []
    for which in range(GETS + POSTS):
        body = b'{"order":"%016x","items":[%b0]}' % (rng.getrandbits(64), b"1," * rng.randrange(45, 1_480)) if which >= GETS else b""
        head, where = _head(rng, which, len(body))
        said.append(head + body)
        places.append(where)
    for _ in range(REPLIES):
        body = b'{"orders":[%b0]}' % (b"7," * rng.randrange(50, 900))
        said.append(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        places.append([-1] * PATCHED)
    return said, numpy.asarray(places, dtype=numpy.int32)


# ---- who says it when --------------------------------------------------------------------------------------------------------


def _ragged(counts):
    """For each of counts[i] things of i: (i, its place among them)."""
    of = numpy.repeat(numpy.arange(len(counts)), counts)
    return of, numpy.arange(len(of)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)


def _segments(messages, lengths, numbers, connections, us, from_client):
    """Rows of the packets that carry these messages, MSS bytes each, 2 us after one another."""
    of, place = _ragged(-(-lengths[messages] // MSS))
    rows = numpy.zeros(len(of), COLUMNS)
    rows["message"], rows["number"], rows["connection"] = messages[of], numbers[of], connections[of]
    rows["us"], rows["offset"] = us[of] + 2 * place, place * MSS
    rows["length"] = numpy.minimum(lengths[messages[of]] - rows["offset"], MSS)
    rows["flags"], rows["from_client"] = ACK | PUSH, from_client
    return rows


def _bare(connections, us, flags, from_client):
    rows = numpy.zeros(len(connections), COLUMNS)
    rows["connection"], rows["us"], rows["flags"], rows["from_client"] = connections, us, flags, from_client
    rows["message"] = rows["number"] = NOTHING
    return rows


def _connections(rng, requests, connections):
    """Which connection each request is on: each in turn, in random order, with half of the others between two of its own."""
    half = max(connections // 2, 1)
    halves = [numpy.arange(half), numpy.arange(half, connections)] if connections > 1 else [numpy.arange(1)]
    rounds = -(-requests // connections)
    return numpy.concatenate([rng.permutation(part) for _ in range(rounds) for part in halves])[:requests]


def _conversation(requests, connections, seed, bodies, rate, one_each):
    """(rows in order of time, messages, places, lengths of the messages): the clean capture."""
    rng = numpy.random.default_rng(seed)
    said, places = _messages(random.Random(seed))
    lengths = numpy.asarray([len(one) for one in said])
    numbers = numpy.arange(requests)
    asked = numpy.where(rng.random(requests) < bodies, GETS + rng.integers(POSTS, size=requests), rng.integers(GETS, size=requests))
    replied = GETS + POSTS + rng.integers(REPLIES, size=requests)
    on = numbers % connections if one_each else _connections(rng, requests, connections)
    gap = 1e6 / rate
    opening = 0 if one_each else 3 * connections
    at = opening + 100 + (numbers * gap).astype("i8")
    # A reply comes before the next request on its connection: half of the others come between.
    wait = 20 + (rng.random(requests) * max(connections // 4, 1) * min(gap, 100)).astype("i8")
    asking = _segments(asked, lengths, numbers, on, at, True)
    replying = _segments(replied, lengths, numpy.full(requests, NOTHING), on, at + wait, False)
    all_of_them = numpy.arange(connections)
    if one_each:
        first, last = at - 60, at + wait + 20
    else:
        first, last = all_of_them * 3, numpy.full(connections, int((at + wait).max()) + 100)
    rows = numpy.concatenate(
        [
            _bare(all_of_them, first, SYN, True),
            _bare(all_of_them, first + 1, SYN | ACK, False),
            _bare(all_of_them, first + 2, ACK, True),
            asking,
            replying,
            _bare(on, at + wait + 6, ACK, True),
            _bare(all_of_them, last, FIN | ACK, True),
            _bare(all_of_them, last + 1, FIN | ACK, False),
            _bare(all_of_them, last + 2, ACK, True),
        ]
    )
    rows = rows[numpy.argsort(rows["us"], kind="stable")]
    _number_bytes(rows, connections, rng)
    return rows, said, places


def _number_bytes(rows, connections, rng):
    """Sequence and acknowledgement numbers, in place: what each end had sent before."""
    first = rng.integers(1 << 32, size=(2, connections), dtype=numpy.uint32)
    order = numpy.argsort(rows["connection"], kind="stable")
    of = rows["connection"][order]
    starts = numpy.searchsorted(of, numpy.arange(connections))
    used = rows["length"] + ((rows["flags"] & (SYN | FIN)) != 0)
    before = []
    for end in (True, False):
        mine = numpy.where(rows["from_client"] == end, used, 0)[order]
        total = numpy.cumsum(mine) - mine
        back = numpy.empty(len(rows), "i8")
        back[order] = total - total[starts][of] + first[0 if end else 1][of]
        before.append((back & 0xFFFFFFFF).astype("u4"))
    rows["seq"] = numpy.where(rows["from_client"], before[0], before[1])
    rows["ack"] = numpy.where(rows["flags"] & ACK, numpy.where(rows["from_client"], before[1], before[0]), 0)


# ---- variants ----------------------------------------------------------------------------------------------------------------


def _divided(rows, chosen, at, back=0):
    """rows with the chosen ones cut in two `at` so many bytes; the second one begins `back` bytes earlier."""
    first, second = rows[chosen].copy(), rows[chosen].copy()
    first["length"] = at
    second["offset"] += at - back
    second["length"] -= at - back
    second["seq"] += (at - back).astype("u4")
    second["us"] += 1
    return _by_time(numpy.concatenate([rows[~chosen], first, second]))


def _by_time(rows):
    return rows[numpy.argsort(rows["us"], kind="stable")]


def _first_segments(rows):
    return (rows["number"] != NOTHING) & (rows["offset"] == 0)


def _vary(rows, variant, seed):
    rng = numpy.random.default_rng([seed, VARIANTS.index(variant)])
    if variant == "disordered":
        order = numpy.argsort(rows["connection"], kind="stable")
        of, us = rows["connection"][order], rows["us"][order]
        later = numpy.minimum(numpy.arange(len(rows)) + rng.integers(1, 4, len(rows)), len(rows) - 1)
        moves = (rng.random(len(rows)) < SHARE) & (of[later] == of) & (us[later] - us <= LATEST_US) & ((rows["flags"][order] & (SYN | FIN)) == 0)
        moved = rows[order[numpy.lexsort((numpy.where(moves, us[later] + 0.5, us), of))]]
        moved["us"] = us  # a place keeps its time: the capture stays in order of time
        back = numpy.empty_like(rows)
        back[order] = moved
        return back
    if variant == "duplicated":
        again = rows[(rows["length"] > 0) & (rng.random(len(rows)) < SHARE)].copy()
        again["us"] += rng.integers(3, 300, len(again))
        return _by_time(numpy.concatenate([rows, again]))
    if variant == "overlapping":
        chosen = _first_segments(rows) & (rng.random(len(rows)) < SHARE)
        at = rng.integers(201, rows["length"][chosen] - 1)
        return _divided(rows, chosen, at, rng.integers(1, 200, len(at)))
    if variant == "cut":
        chosen = _first_segments(rows)
        return _divided(rows, chosen, 1 + rows["number"][chosen] % (rows["length"][chosen] - 1))
    if variant == "bytes":
        counts = numpy.where(rows["number"] != NOTHING, rows["length"], 1)
        of, place = _ragged(counts)
        single = rows["number"][of] != NOTHING
        out = rows[of].copy()
        out["offset"] += place
        out["seq"] += place.astype("u4")
        out["length"] = numpy.where(single, 1, out["length"])
        return out
    return rows


# ---- bytes -------------------------------------------------------------------------------------------------------------------


def _big(values, width):
    """Integers as big-endian bytes, a row each."""
    return numpy.ascontiguousarray(values.astype(f">u{width}")).view("u1").reshape(len(values), width)


def _headers(rows, us, copy):
    """The bytes before each packet's payload, a row each."""
    head = numpy.zeros((len(rows), HEADERS), "u1")
    seconds, rest = numpy.divmod(us, 1_000_000)
    frame = (HEADERS - 16 + rows["length"]).astype("<u4")
    for at, column in ((0, (START + seconds).astype("<u4")), (4, rest.astype("<u4")), (8, frame), (12, frame)):
        head[:, at : at + 4] = numpy.ascontiguousarray(column).view("u1").reshape(-1, 4)
    head[:, 16:30] = numpy.frombuffer(ETHERNET, "u1")
    ip, tcp = head[:, 30:50], head[:, 50:82]
    ip[:, 0], ip[:, 6], ip[:, 8], ip[:, 9] = 0x45, 0x40, 64, 6
    ip[:, 2:4] = _big(52 + rows["length"], 2)
    of, client = rows["connection"], rows["from_client"]
    clients = _big(0x0A000000 + (copy << 16) + (of & 0xFFFF) + ((of >> 16) << 24), 4)
    ports = _big(20_000 + of % 40_000, 2)
    server, port = numpy.array([192, 168, 0, 80], "u1"), numpy.array([0, 80], "u1")
    ip[:, 12:16] = numpy.where(client[:, None], clients, server)
    ip[:, 16:20] = numpy.where(client[:, None], server, clients)
    words = ip[:, 0::2].astype("u4") * 256 + ip[:, 1::2]
    total = words.sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    ip[:, 10:12] = _big(0xFFFF - ((total & 0xFFFF) + (total >> 16)), 2)
    tcp[:, 0:2] = numpy.where(client[:, None], ports, port)
    tcp[:, 2:4] = numpy.where(client[:, None], port, ports)
    tcp[:, 4:8], tcp[:, 8:12] = _big(rows["seq"], 4), _big(rows["ack"], 4)
    tcp[:, 12], tcp[:, 13], tcp[:, 14:16] = 0x80, rows["flags"], 255
    tcp[:, 20:32] = numpy.frombuffer(TIMESTAMPS, "u1")
    return head


def _differing(numbers, seed):
    """The bytes that differ from request to request, a row each: the number in digits, then 32 hex digits that follow from it."""
    out = numpy.empty((len(numbers), PATCHED), "u1")
    rest = numbers.astype("i8")
    for digit in reversed(range(DIGITS)):
        rest, out[:, digit] = rest // 10, 48 + rest % 10
    value = (numbers.astype("u8") + numpy.uint64(seed)) * numpy.uint64(0x9E3779B97F4A7C15)
    digits = numpy.frombuffer(b"0123456789abcdef", "u1")
    for at in range(HEX):
        if at == HEX // 2:
            value = (value ^ (value >> numpy.uint64(29))) * numpy.uint64(0xBF58476D1CE4E5B9)
        out[:, DIGITS + at] = digits[((value >> numpy.uint64(4 * (at % 16))) & numpy.uint64(15)).astype("i8")]
    return out


def _payloads(rows, said, places, seed, front):
    """(bytes of all packets one after the other with `front` blank bytes before each payload, where each packet begins)."""
    keys = ((rows["message"] + 1).astype("i8") << 32) | (rows["offset"].astype("i8") << 16) | rows["length"]
    kinds, which = numpy.unique(keys, return_inverse=True)
    blank = bytes(front)
    parts = []
    for kind in kinds.tolist():
        message, offset, length = (kind >> 32) - 1, kind >> 16 & 0xFFFF, kind & 0xFFFF
        parts.append(blank + said[message][offset : offset + length] if length else blank)
    data = bytearray().join([parts[i] for i in which.tolist()])
    lengths = rows["length"].astype("i8") + front
    begins = numpy.cumsum(lengths) - lengths
    out = numpy.frombuffer(data, "u1")
    asking = numpy.flatnonzero(rows["number"] != NOTHING)
    some = rows[asking]
    differ = _differing(some["number"], seed)
    for at in range(PATCHED):
        place = places[some["message"], at] - some["offset"]
        inside = (place >= 0) & (place < some["length"])
        out[begins[asking][inside] + front + place[inside]] = differ[inside, at]
    return out, begins


def chunks(*, requests=100_000, connections=1_000, seed=1, bodies=0.15, rate=RATE, variant="clean", one_each=False, copies=1):
    """The capture in pieces of bytes, and how many requests were in all of it so far: (bytes, requests) a piece. one_each: a request a connection."""
    if one_each:
        connections = requests
    rows, said, places = _conversation(requests, connections, seed, bodies, rate, one_each)
    rows = _vary(rows, variant, seed)
    lasts = int(rows["us"].max()) + 1_000
    yield FILE_HEADER, 0
    columns = numpy.arange(HEADERS)
    for copy in range(copies):
        for at in range(0, len(rows), CHUNK):
            some = rows[at : at + CHUNK]
            out, begins = _payloads(some, said, places, seed, HEADERS)
            out[begins[:, None] + columns] = _headers(some, some["us"] + copy * lasts, copy & 255)
            yield memoryview(out), requests * (copy + (at + CHUNK >= len(rows)))


def write(into, *, most=0, **how):
    """Writes a capture; returns (bytes, requests). most: repeats it until that many bytes are written, 0 for once."""
    written = found = 0
    whole = how.get("requests", 100_000)
    for piece, requests in chunks(**how, copies=1 if not most else 1 << 20):
        into.write(piece)
        written += len(piece)
        if requests > found and requests % whole == 0:
            found = requests
            if written >= most:
                break
    return written, found


def write_streams(into, *, requests=100_000, connections=1_000, seed=1, bodies=0.15, rate=RATE):
    """What each client of the clean capture sent, for parsers that want streams: a length (8 bytes, little-endian) and the bytes, for each connection."""
    rows, said, places = _conversation(requests, connections, seed, bodies, rate, False)
    rows = rows[rows["number"] != NOTHING]
    rows = rows[numpy.argsort(rows["connection"], kind="stable")]
    lengths = numpy.bincount(rows["connection"], weights=rows["length"], minlength=connections).astype("i8")
    edges = numpy.searchsorted(rows["connection"], numpy.arange(connections + 1))
    for one in range(connections):
        out, _ = _payloads(rows[edges[one] : edges[one + 1]], said, places, seed, 0)
        into.write(int(lengths[one]).to_bytes(8, "little"))
        into.write(memoryview(out))
    return int(lengths.sum()), requests


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=inputs.count, default=100_000)
    options.add_argument("--connections", type=inputs.count, default=1_000)
    options.add_argument("--one-each", action="store_true", help="a connection for each request")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--bodies", type=float, default=0.15, help="share of requests with a body")
    options.add_argument("--rate", type=inputs.count, default=RATE, help="requests a second of capture time")
    options.add_argument("--variant", choices=VARIANTS, default="clean")
    options.add_argument("--bytes", type=inputs.size, default=0, help="repeat until so many")
    options.add_argument("--streams", action="store_true", help="what each client sent, instead of packets")
    options.add_argument("--count", type=pathlib.Path, help="write there how many requests it holds")
    asked = vars(options.parse_args())
    streams, into, most = asked.pop("streams"), asked.pop("count"), asked.pop("bytes")
    try:
        if streams:
            _, found = write_streams(sys.stdout.buffer, **{name: asked[name] for name in ("requests", "connections", "seed", "bodies", "rate")})
        else:
            _, found = write(sys.stdout.buffer, most=most, **asked)
        sys.stdout.buffer.flush()
        if into:
            into.write_text(str(found))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
