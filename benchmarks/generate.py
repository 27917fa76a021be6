"""A capture from a seed: keep-alive connections, one request and its reply after the other, interleaved.

    python generate.py --bytes 2g >capture.pcap

About 700 bytes of frame a request without body; 15 % carry 100 to 3,000 bytes of JSON; each is followed by its reply and an ACK. The first `requests` are made one by one; more bytes come
from the same block again with later time stamps and other client addresses.
"""

import argparse
import hashlib
import pathlib
import random
import struct
import sys
import tempfile

MSS = 1448
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
ETHERNET = bytes.fromhex("02000000000202000000000108 00".replace(" ", ""))
OPTIONS = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x01"  # time stamps, as Linux sends them
AGENT = b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
START = 1_780_000_000


def size(text):
    """Bytes of `200m`, `2g`, `1024`."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    return int(float(text.rstrip("kKmMgG")) * factor)


def block(requests=100_000, connections=1_000, seed=1):
    """The packets of a capture: (bytes of all records, offsets of the records, offsets of the clients' addresses, seconds that it lasts, requests with a body)."""
    rng = random.Random(seed)
    out = bytearray()
    records, clients = [], []
    state = {}
    at_us = 0
    bodies = 0

    def packet(c, from_client, flags, payload=b""):
        nonlocal at_us
        at_us += 3
        one = state[c]
        seq, ack = (one[0], one[1]) if from_client else (one[1], one[0])
        client, server = b"\x0a\x00" + c.to_bytes(2, "big"), b"\xc0\xa8\x00\x50"
        ports = (20000 + c, 80) if from_client else (80, 20000 + c)
        source, target = (client, server) if from_client else (server, client)
        frame = (
            ETHERNET
            + struct.pack(">BBHHHBBH", 0x45, 0, 52 + len(payload), 0, 0x4000, 64, 6, 0)
            + source
            + target
            + struct.pack(">HHIIBBHHH", *ports, seq, ack, 0x80, flags, 65535, 0, 0)
            + OPTIONS
            + payload
        )
        records.append(len(out))
        clients.append(len(out) + 16 + (26 if from_client else 30))
        out.extend(struct.pack("<IIII", START + at_us // 1_000_000, at_us % 1_000_000, len(frame), len(frame)))
        out.extend(frame)
        one[0 if from_client else 1] = (one[0 if from_client else 1] + len(payload) + (flags & 3 != 0)) & 0xFFFFFFFF

    def send(c, from_client, data):
        for at in range(0, len(data), MSS):
            packet(c, from_client, 0x18, data[at : at + MSS])

    for c in range(connections):
        state[c] = [rng.getrandbits(32), rng.getrandbits(32)]
        packet(c, True, 0x02)
        packet(c, False, 0x12)
        packet(c, True, 0x10)
    for n in range(requests):
        c = rng.randrange(connections)
        write = rng.random() < 0.15
        bodies += write
        body = b'{"order":"' + b"%x" % rng.getrandbits(64) + b'","items":[' + b"1," * rng.randrange(45, 1490) + b"0]}" if write else b""
        head = (
            (b"POST" if write else b"GET")
            + b" /api/v2/customers/%d/orders?page=%d&sort=date HTTP/1.1\r\nHost: customer-%d.example:8080\r\nUser-Agent: %b\r\n" % (n, n % 17, c % 5, AGENT)
            + b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, deflate\r\n"
            + b"Cookie: session=%032x; theme=dark; consent=yes\r\nx-request-id: %032x\r\n" % (rng.getrandbits(128), rng.getrandbits(128))
            + b"traceparent: 00-%032x-%016x-01\r\nReferer: http://customer-%d.example:8080/orders\r\nConnection: keep-alive\r\n" % (rng.getrandbits(128), n, c % 5)
            + (b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if write else b"")
            + b"\r\n"
        )
        send(c, True, head + body)
        at_us += rng.randrange(5, 50)
        send(c, False, b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: application/json\r\nContent-Length: 120\r\n\r\n" + b"x" * 120)
        packet(c, True, 0x10)
    for c in range(connections):
        packet(c, True, 0x11)
        packet(c, False, 0x11)
        packet(c, True, 0x10)
    return out, records, clients, at_us // 1_000_000 + 1, bodies


def write(into, *, requests=100_000, connections=1_000, seed=1, most=0):
    """Writes a capture; returns (bytes, requests). most: repeats the block until that many bytes are written, 0 for once."""
    data, records, clients, seconds, _ = block(requests, connections, seed)
    into.write(FILE_HEADER)
    written, copies = len(FILE_HEADER), 0
    while True:
        into.write(data)
        written += len(data)
        copies += 1
        if written >= most:
            return written, requests * copies
        later(data, records, clients, seconds, copies)


def later(data, records, clients, seconds, copy):
    """Makes the block its own successor, in place."""
    import numpy

    view = numpy.frombuffer(data, dtype=numpy.uint8)
    at = numpy.asarray(records, dtype=numpy.int64)
    stamps = sum(view[at + i].astype(numpy.uint32) << (8 * i) for i in range(4)) + seconds
    for i in range(4):
        view[at + i] = (stamps >> (8 * i)) & 255
    view[numpy.asarray(clients, dtype=numpy.int64) + 1] = copy & 255


def cached(*, requests=100_000, connections=1_000, seed=1, most=0):
    """(path, requests) of such a capture in the temp folder, made when it is not there yet."""
    key = hashlib.sha256(pathlib.Path(__file__).read_bytes() + repr((requests, connections, seed, most)).encode()).hexdigest()[:16]
    path = pathlib.Path(tempfile.gettempdir()) / f"replay-bench-{key}.pcap"
    count = path.with_suffix(".count")
    if not count.exists():
        with open(path, "wb") as into:
            _, total = write(into, requests=requests, connections=connections, seed=seed, most=most)
        count.write_text(str(total))
    return path, int(count.read_text())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=100_000)
    options.add_argument("--connections", type=int, default=1_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--bytes", type=size, default=0)
    asked = options.parse_args()
    write(sys.stdout.buffer, requests=asked.requests, connections=asked.connections, seed=asked.seed, most=asked.bytes)
