"""The same packets of one connection through the engine and through the oracle."""

import packetmake as net
import pcapmake
from enginerun import run

from replay._reference import messages
from replay._reference.streams import Segment

ENDS = net.CLIENT, net.SERVER


def capture(packets):
    """packets: (ts_ns, back, seq, ack, flags, payload); back: from the server."""
    return pcapmake.pcap([(ts, net.frame(ENDS[back], ENDS[1 - back], seq, ack, flags, data)) for ts, back, seq, ack, flags, data in packets], nanoseconds=True)


def oracle(packets):
    """(messages that are whole or incomplete, readers)."""
    ends = [net.mapped(end) for end in ENDS]
    found, readers = messages.read(Segment(ts, ends[back], ends[1 - back], seq, ack, flags, data, 0) for ts, back, seq, ack, flags, data in packets)
    return [m for m in found if m.whole or m.incomplete], readers


def both_ways(packets):
    """(rows of the engine, rows of the oracle, the engine's counters, the oracle's readers)."""
    rows, counters = run(capture(packets), incomplete=True)
    found, readers = oracle(packets)
    engine = [row_of(r["ts_ns"], r["seq"], r["incomplete"], r["withheld"], r["method"], r["target"], r["host"], r["body_sha256"], r["framing"], r["status"]) for r in rows]
    reference = [row_of(m.ts_ns, m.seq, m.incomplete, m.withheld() if m.whole else None, m.head.method, m.head.target, m.host, m.sha256, m.head.framing, m.status) for m in found]
    return sorted(engine, key=lambda r: r[:2]), sorted(reference, key=lambda r: r[:2]), counters, readers


def row_of(ts_ns, seq, incomplete, withheld, method, target, *more):
    """What is compared: of what is incomplete no further columns, and of a malformed head not the request line."""
    if incomplete:
        return (ts_ns, seq, incomplete) if incomplete == "malformed" else (ts_ns, seq, incomplete, method, target)
    return ts_ns, seq, None, withheld, method, target, *more


def check(packets):
    engine, oracle, counters, readers = both_ways(packets)
    assert engine == oracle
    shown = sum(1 for row in engine if row[2] == "malformed")
    assert counters["incomplete"].get("malformed", 0) == shown + sum(r.malformed_lines for r in readers)
    assert counters["lost_estimated"] == sum(r.orphans for r in readers)
