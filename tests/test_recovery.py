"""After a loss: small captures of what the generated ones found, on the oracle and on the engine."""

import packetmake as net
import pytest
from bothways import both_ways, oracle

NO_CONTENT = b"HTTP/1.1 204 N\r\n\r\n"
BACK = len(NO_CONTENT)


def get(i):
    return b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i


LENGTH = len(get(0))
SYN = [(False, 0, 0, net.SYN, b""), (True, 0, 1, net.SYN | net.ACK, b""), (False, 1, 1, net.ACK, b"")]


def client(seq, ack, data=b""):
    return False, seq, ack, net.ACK, data


def server(seq, ack, data=b""):
    return True, seq, ack, net.ACK, data


def timed(packets, step_ns=1_000_000):
    return [(10**18 + i * step_ns, *p) for i, p in enumerate(packets)]


def large_with_holes(holes, after):
    """A request in ten packets of which some are missing, and as many honest ones behind it, each with its reply and an acknowledgement."""
    large = b"GET /large HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: " % i + b"v" * 94 + b"\r\n" for i in range(9)) + b"\r\n"
    packets = SYN + [client(1 + at, 1, large[at : at + 100]) for at in range(0, len(large), 100) if at // 100 not in holes]
    at, back = 1 + len(large), 1 + BACK
    packets.append(server(1, at, NO_CONTENT))
    for i in range(after):
        packets += [client(at, back, get(i % 10)), server(back, at + LENGTH, NO_CONTENT)]
        at, back = at + LENGTH, back + BACK
        packets.append(client(at, back))
    return timed(packets)


LATE = timed(
    SYN
    + [server(1, 1 + LENGTH, NO_CONTENT), client(1 + 2 * LENGTH, 1 + 2 * BACK, get(2)), server(1 + BACK, 1 + 2 * LENGTH, NO_CONTENT)]
    + [server(1 + 2 * BACK, 1 + 3 * LENGTH, NO_CONTENT), client(1 + LENGTH, 1 + BACK, get(1))]
)


def tail(quiet_ns):
    """The last packet of a request is missing, but acknowledged; the capture ends after a while."""
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    packets = timed([*SYN, client(1, 1, post), server(1, 1 + len(post) + 10), server(1, 1 + len(post) + 10)])
    return packets[:-1] + [(packets[-2][0] + quiet_ns, *packets[-1][1:])]


CASES = [  # packets, what is (target, withheld or incomplete)
    (large_with_holes((3,), 60), [(b"/large", "gap")] + 60 * [None], "one hole"),
    (large_with_holes((3, 6), 60), [(b"/large", "gap")] + 60 * [None], "two holes"),
    (large_with_holes((2, 4, 6), 10), [(b"/large", "gap")] + 10 * [None], "three holes, and the capture ends before they close"),
    (LATE, [(b"/2", None), (b"/1", None)], "one lost, one late"),
    (tail(100_000_000), [(b"/", "gap")], "a lost tail, acknowledged 100 ms ago"),
    (tail(0), [(b"/", "gap")], "a lost tail, just acknowledged"),
]


def expected(rows):
    return [row or (b"/%d" % ((i - 1) % 10), None) for i, row in enumerate(rows)]


@pytest.mark.parametrize(("packets", "truth"), [row[:2] for row in CASES], ids=[row[2] for row in CASES])
def test_oracle(packets, truth):
    assert [(m.head.target, m.incomplete or m.withheld()) for m in oracle(packets)[0]] == expected(truth)


@pytest.mark.parametrize("packets", [row[0] for row in CASES], ids=[row[2] for row in CASES])
def test_engine(packets):
    engine, reference, _, _ = both_ways(packets)
    assert engine == reference


@pytest.mark.parametrize("rest", [b"abc", b"some text"])
def test_the_rest_of_a_body_is_no_part_of_a_request_line(rest):
    """Mid-stream start inside a body without a line end at its end; the next segment is a request."""
    engine, _, _, _ = both_ways(timed([client(1, 1, rest), client(1 + len(rest), 1, get(1)), server(1, 1 + len(rest) + LENGTH, NO_CONTENT)]))
    assert [row[4:6] for row in engine] == [(b"GET", b"/1")]


EVIL = b"DELETE /evil HTTP/1.1\r\nHost: b\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def upload(rest):
    """GET /0; a POST whose head was not captured, its body: what looks like a request, and `rest`, before the server says anything; GET /1. Each has its reply."""
    head = len(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
    body = 1 + LENGTH + head
    end = body + len(EVIL) + len(rest)
    packets = [*SYN, client(1, 1, get(0)), server(1, 1 + LENGTH, NO_CONTENT), client(body, 1 + BACK, EVIL)]
    if rest:
        packets.append(client(body + len(EVIL), 1 + BACK, rest))
    return timed([*packets, server(1 + BACK, end, NO_CONTENT), client(end, 1 + 2 * BACK, get(1)), server(1 + 2 * BACK, end + LENGTH, NO_CONTENT), client(end + LENGTH, 1 + 3 * BACK)])


def asked_for(first):
    """The body of a request that asked first, whose head was not captured (with `first`, neither was what was before)."""
    start = [*SYN, client(1, 1, get(0)), server(1, 1 + LENGTH, NO_CONTENT)] if not first else []
    at, back = (1 + LENGTH + 50, 1 + BACK) if not first else (1000, 2000)
    more = back + len(CONTINUE)
    return timed([*start, server(back, at, CONTINUE), client(at, more, EVIL), server(more, at + len(EVIL), NO_CONTENT), client(at + len(EVIL), more + BACK)])


BODIES = [
    (upload(b"y" * 25), {b"/0": None, b"/evil": "unconfirmed", b"/1": None}, "the rest is no request line, and not whole"),
    (upload(b"y" * 25 + b"\r\n"), {b"/0": None, b"/evil": "unconfirmed", b"/1": None}, "the rest is no request line"),
    (upload(b"y y\r\n" * 9), {b"/0": None, b"/evil": "unconfirmed", b"/1": None}, "nor are several"),
    (asked_for(False), {b"/0": None, b"/evil": "unconfirmed"}, "the server had said that it should come"),
    (asked_for(True), {b"/evil": "unconfirmed"}, "… and nothing else was captured"),
]


@pytest.mark.parametrize("packets, truth", [row[:2] for row in BODIES], ids=[row[2] for row in BODIES])
def test_the_body_of_a_lost_request_is_no_request(packets, truth):
    engine, reference, _, _ = both_ways(packets)
    assert engine == reference and {row[5]: row[3] for row in engine if not row[2]} == truth


@pytest.mark.parametrize("length, truth", [(len(EVIL), "ambiguous"), (len(EVIL) + 500, None)])
def test_a_refused_body_that_comes_all_the_same(length, truth):
    """It was answered before its body, and what follows looks like a request and is as long as the body: servers may read either."""
    post = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length
    at = 1 + len(post)
    packets = timed([*SYN, client(1, 1, post), server(1, at, NO_CONTENT), client(at, 1 + BACK, EVIL), server(1 + BACK, at + len(EVIL), NO_CONTENT), client(at + len(EVIL), 1 + 2 * BACK)])
    engine, reference, _, _ = both_ways(packets)
    assert engine == reference and [row[2:4] if not row[2] else row[2] for row in engine] == ["body_refused", (None, truth)]
