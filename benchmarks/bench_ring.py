"""What does it cost to read a request out of a live ring, without kernel, network and processes beside it?

    python benchmarks/bench_ring.py [--rounds 9]        (no rights needed)

A memory file takes the place of the ring that the kernel fills: blocks of 256 KiB as TPACKET_V3 has them, full of requests and replies of 64 connections. The capture thread's body reads it as ever, from a ring of 50 MB (no cache holds it, as in a tap) and from
one of 2 MB. CPU of that thread alone, a request; the ledger is checked in each round.
"""

import pathlib
import sys
import threading
import time

import measure

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import packetmake as net
import ringmake

from replay import _fastpath

QUESTION = "What does it cost to read a request out of a live ring?"
CONNECTIONS = 64
SERVER = (b"\x7f\0\0\1", 8080)
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
REPLY = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Thu, 26 Nov 2026 04:57:27 GMT\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
)
STAMPS = b"\1\1\x08\x0a" + bytes(8)


def packets(replies):
    """(whether it is a request, frame) without end."""
    seqs = [[1000 * n + 1, 7000 * n + 1] for n in range(CONNECTIONS)]
    for n in range(1 << 62):
        at = n % CONNECTIONS
        client, (asked, said) = (b"\x7f\0\0\1", 40000 + at), seqs[at]
        if n < CONNECTIONS:
            yield False, net.ethernet(net.ip(client[0], SERVER[0], 6, net.tcp(client, SERVER, asked - 1, 0, net.SYN)))
            if replies:
                yield False, net.ethernet(net.ip(SERVER[0], client[0], 6, net.tcp(SERVER, client, said - 1, asked, net.SYN | net.ACK)))
        yield True, net.ethernet(net.ip(client[0], SERVER[0], 6, net.tcp(client, SERVER, asked, said, net.ACK | net.PSH, REQUEST, STAMPS)))
        seqs[at][0] += len(REQUEST)
        if replies:
            yield False, net.ethernet(net.ip(SERVER[0], client[0], 6, net.tcp(SERVER, client, said, seqs[at][0], net.ACK | net.PSH, REPLY, STAMPS)))
        seqs[at][1] += len(REPLY)


class Ring(ringmake.Ring):
    """A full one, and how many requests are in it."""

    def __init__(self, blocks, replies=True):
        super().__init__(blocks)
        self.requests = 0
        source, ts = packets(replies), 1_700_000_000_000_000_000
        is_request, frame = next(source)
        for n in range(blocks):
            block, left = [], ringmake.SPACE
            while (need := ringmake.room(frame)) <= left:
                block.append((ts := ts + 8000, frame, len(frame)))
                left -= need
                self.requests += is_request
                is_request, frame = next(source)
            self.fill(n, ringmake.pack(block, n))

    def read(self, **options):
        """ns of CPU a request."""
        self.full()
        ends, never = _fastpath.Stop(), _fastpath.Stop()
        ring = self.open(ends)
        ends.set()
        pool = _fastpath.Pool(64 << 20)
        queue = _fastpath.Queue(pool, 64)
        sender = threading.Thread(target=_fastpath.Sender(queue, [], stop=never, asap=True, dry_run=True).run)
        ingest = _fastpath.Ingest(ring, [queue], pool, never, live=True, last=True, marker=True, **options)
        sender.start()
        before = time.thread_time_ns()
        ingest.run()
        used = time.thread_time_ns() - before
        sender.join()
        found = ingest.counters()["found"]
        if found != self.requests:
            raise SystemExit(f"{found} of {self.requests} requests were found: nothing of this benchmark holds")
        return {"ns a request": used / self.requests, "requests": self.requests}


def main():
    parser = measure.arguments(__doc__, rounds=9)
    parser.add_argument("--blocks", type=int, default=200, help="of the large ring")
    asked = parser.parse_args()
    large, small, silent = Ring(asked.blocks), Ring(8), Ring(asked.blocks, replies=False)
    starts = {
        "all are rewritten": lambda: large.read(),
        "none is taken": lambda: large.read(share=0),
        "none is taken, 2 MB": lambda: small.read(share=0),
        "no replies, all are rewritten": lambda: silent.read(replies=False),
        "no replies, none is taken": lambda: silent.read(replies=False, share=0),
    }
    rounds = measure.in_turn(asked.rounds, starts)
    measured = {name: {key: measure.spread([one[key] for one in values]) for key in values[0]} for name, values in rounds.items()}
    key = "ns a request"
    bars = [
        measure.bar("read and rewritten", measured["all are rewritten"][key], measure.AT_MOST, 600, None, "ns"),
        measure.bar("a ring that no cache holds, beside a small one", measure.ratio(measured["none is taken"][key], measured["none is taken, 2 MB"][key]), measure.AT_MOST, 1.5),
    ]
    measure.tell("ring", QUESTION, asked, measured, bars, notes=["The first look at each page of the mapping is in it, which a tap has once."])


if __name__ == "__main__":
    main()
