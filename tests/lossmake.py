"""A capture with known requests, each packet of which is lost with the same chance, in both directions."""

import random

import endtoend
import packetmake as net
import pcapmake

MIX = [("GET", None, 0.62), ("POST", (200, 900), 0.14), ("POST", (3000, 30000), 0.08), ("PUT", (100, 1000), 0.08), ("DELETE", None, 0.08)]


def make(path, loss, connections, most, seed=1):
    """Writes the capture; the truth is (method, length of the body) of each request. most: requests of a connection."""
    rng = random.Random(seed)
    truth, packets = [], []
    for number in range(connections):
        parts = []
        for _ in range(rng.randint(1, most)):
            method, sizes, _ = rng.choices(MIX, [weight for _, _, weight in MIX])[0]
            size = rng.randint(*sizes) if sizes else 0
            truth.append((method, size))
            parts.append(endtoend.request(b"/r/%d" % len(truth), method.encode(), bytes(size), b"User-Agent: x/1.0\r\nAccept: */*\r\n"))
            body = rng.choice((2, 500, 4000))
            parts.append(("reply", b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body + b"x" * body))
        packets += net.talk(
            *parts, client=(b"\x0a\1" + number.to_bytes(2, "big"), 40000 + rng.randrange(20000)), start_ns=1_700_000_000_000_000_000 + rng.randrange(2_000_000_000),
            step_ns=rng.randrange(200_000, 2_000_000), seq=rng.randrange(1 << 32), seq_back=rng.randrange(1 << 32),
        )  # fmt: skip
    packets.sort(key=lambda packet: packet[0])
    path.write_bytes(pcapmake.pcap([packet for packet in packets if rng.random() >= loss], nanoseconds=True))
    return truth
