"""What other tools lose or spoil: each case is ten requests on one connection, captured well, and each must give ten, byte for byte.

Most are run again with their bytes cut into segments at every place, or one byte a segment: where packets end means nothing."""

import hashlib
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time

import pcapmake as make
import pytest
from engine import found, read, targets

from replay._fastpath import Capture, Ingest, Pool, Queue, Stop

HERE = pathlib.Path(__file__).parent
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVERY_BYTE = range(10_000)


def get(n, target=b"/", method=b"GET", end=b"\r\n"):
    return end.join((b"%s %s%d HTTP/1.1" % (method, target, n), b"Host: a.example", b"", b""))


def post(n, body):
    return b"POST /%d HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n%s" % (n, len(body), body)


def chunked(n, *chunks, trailer=b"", extension=b""):
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return b"POST /%d HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n%s\r\n" % (n, framed, trailer)


def expect(packets, bodies=(b"",) * 10, withheld=None, **options):
    """Ten requests (or as many as there are bodies), all whole and to be sent."""
    rows, counters = read(packets, **options)
    assert targets(rows) == [f"/{n}" for n in range(len(bodies))]
    assert [row["body_sha256"] for row in rows] == [hashlib.sha256(body).hexdigest() for body in bodies]
    assert [row["withheld"] for row in rows] == [withheld] * len(bodies)
    assert [row["status"] for row in rows] == [200] * len(bodies)
    assert counters["incomplete"] == {} and counters["lost_estimated"] == 0 and counters["overlap_conflict"] == 0
    return counters


def ten(requests, cuts=(), replies=OK, mtu=1460, **talk):
    """A conversation in which each request is cut at the same places."""
    one = make.Talk(mtu=mtu, **talk).open()
    for request in requests:
        one.ask(request, cuts=[cut for cut in cuts if cut < len(request)]).tell(replies)
    return one.end().packets


def cut_everywhere(requests, bodies=(b"",) * 10, **more):
    """Whole; cut in two at each place; one byte a segment."""
    expect(ten(requests), bodies, **more)
    for at in range(1, max(map(len, requests))):
        expect(ten(requests, [at]), bodies, **more)
    expect(ten(requests, EVERY_BYTE), bodies, **more)


# ---- where packets end ----------------------------------------------------------------------------------------------


def test_two_pipelined_requests_in_one_segment():
    pairs = [get(n) + get(n + 1) for n in range(0, 10, 2)]
    one = make.Talk().open()
    for pair in pairs:
        one.ask(pair).tell(OK).tell(OK)
    expect(one.end().packets)
    for at in range(1, len(pairs[0])):
        expect(ten(pairs, [at], replies=OK + OK))
    expect(ten([b"".join(get(n) for n in range(10))], replies=OK * 10))
    expect(ten([b"".join(get(n) for n in range(10))], EVERY_BYTE, replies=OK * 10))


def test_blank_line_split_first_line_split():
    requests = [get(n) for n in range(10)]
    expect(ten(requests, [len(requests[0]) - 2]))
    expect(ten(requests, [7]))
    cut_everywhere(requests)


def test_long_url_over_two_segments():
    requests = [b"GET /%d?%s HTTP/1.1\r\nHost: a\r\n\r\n" % (n, b"u" * 2000) for n in range(10)]
    for cuts in ([1460], range(100, 2100, 100), range(1, 2100), [2015]):
        rows, _ = read(ten(requests, list(cuts)))
        assert [row["head"] for row in rows] == requests


@pytest.mark.parametrize("trailer", [b"", b"X-Sum: 1\r\n", b"A: 1\r\nB: 2\r\n"])
def test_chunked_end_split_and_undeclared_trailer(trailer):
    requests = [chunked(n, b"hello", b"world!", trailer=trailer) for n in range(10)]
    expect(ten(requests, [len(requests[0]) - 2]), [b"helloworld!"] * 10)
    cut_everywhere(requests, [b"helloworld!"] * 10)


def test_chunk_data_that_ends_like_a_body():
    data = b"abc0\r\n\r\n"
    requests = [chunked(n, data, b"more", data) for n in range(10)]
    at = requests[0].index(data) + len(data)
    expect(ten(requests, [at]), [data + b"more" + data] * 10)
    cut_everywhere(requests, [data + b"more" + data] * 10)


def test_data_that_looks_like_a_request_or_reply():
    data = get(77) + OK
    cut_everywhere([post(n, data) for n in range(10)], [data] * 10)
    cut_everywhere([chunked(n, data) for n in range(10)], [data] * 10)


def test_body_segment_of_zero_bytes_only():
    for size in (1, 5, 6, 7, 100):
        body = b"begin" + bytes(size) + b"end"
        requests = [post(n, body) for n in range(10)]
        head = len(requests[0]) - len(body)
        expect(ten(requests, [head + 5, head + 5 + size]), [body] * 10)
        expect(ten([post(n, bytes(size)) for n in range(10)], [head - 1, head]), [bytes(size)] * 10)


def test_segments_under_six_bytes_are_padded_on_the_wire():
    body = b"0123456789abcdef"
    requests = [post(n, body) for n in range(10)]
    head = len(requests[0]) - len(body)
    for size in range(1, 7):
        expect(ten(requests, [head, head + size]), [body] * 10)
        expect(ten(requests, [len(requests[0]) - size]), [body] * 10)
        expect(ten(requests, range(head, len(requests[0]), size)), [body] * 10)
    cut_everywhere(requests, [body] * 10)


# ---- sent again -----------------------------------------------------------------------------------------------------


def resent(requests, again):
    """Each request in two segments; then `again(talk, number of its first byte, request, cut)` may send something of it once more."""

    def run(cut):
        one = make.Talk().open()
        for request in requests:
            first = one.seq[0]
            one.ask(request[:cut])
            again(one, first, request, cut)
            one.seq[0] = first + len(request)
            one.tell(OK)
        return one.end().packets

    return [run(cut) for cut in range(1, len(requests[0]))]


BODIES = [b"body of %d" % n for n in range(10)]
POSTS = [post(n, body) for n, body in enumerate(BODIES)]
DATA = make.PSH | make.ACK


def test_resent_with_more_data():
    def again(one, first, request, cut):
        one.raw(0, first, DATA, request)

    for packets in resent(POSTS, again):
        expect(packets, BODIES)


def test_partial_overlap():
    def again(one, first, request, cut):
        back = cut // 2
        one.raw(0, first + back, DATA, request[back : cut + 3])
        one.raw(0, first + cut, DATA, request[cut:])

    for packets in resent(POSTS, again):
        expect(packets, BODIES)


@pytest.mark.parametrize("size", [0, 1])
def test_keep_alive_probe_inside_a_message(size):
    """One byte before the next: none of its own, or an old (or zero) one."""

    def again(one, first, request, cut):
        one.skip(20)
        one.raw(0, first + cut - 1, make.ACK, b"\0"[:size]).ack(1)
        one.raw(0, first + cut, DATA, request[cut:])

    for packets in resent(POSTS, again):
        expect(packets, BODIES)


def test_whole_request_sent_again():
    one = make.Talk().open()
    for request in POSTS:
        first = one.seq[0]
        one.ask(request).raw(0, first, DATA, request).tell(OK).raw(0, first, DATA, request)
    counters = expect(one.end().packets, BODIES)
    assert counters["repeated"] == 20


def test_everything_twice_and_in_pairs_turned_round():
    packets = ten(POSTS, [10, 40])
    expect([packet for packet in packets for _ in range(2)], BODIES)
    turned = packets[:3]
    for at in range(3, len(packets) - 1, 2):
        turned += [packets[at + 1], packets[at]]
    expect(turned + packets[-1:], BODIES)


# ---- replies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", None])
def test_server_speaks_while_the_body_is_on_its_way(early):
    """None: its whole answer."""
    head = POSTS[0].index(b"\r\n\r\n") + 4
    for at in range(1 if early else head, len(POSTS[0])):
        one = make.Talk().open()
        for request in POSTS:
            one.ask(request[:at]).tell(OK if early is None else early).ask(request[at:])
            if early:
                one.tell(OK)
        expect(one.end().packets, BODIES)


def test_a_server_that_answers_half_a_head_loses_nothing():
    for at in range(1, POSTS[0].index(b"\r\n\r\n") + 4):
        one = make.Talk().open()
        for request in POSTS:
            one.ask(request[:at]).tell(OK).ask(request[at:])
        rows, counters = read(one.end().packets)
        assert targets(rows) == [f"/{n}" for n in range(10)]
        assert counters["incomplete"] == {} and counters["withheld"] == {}


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_sequence_number_wraps_anywhere():
    request = post(0, b"0123456789")
    for before in range(len(request) + 45):
        for cuts in ((), EVERY_BYTE):
            expect(ten([request], cuts, numbers=(2**32 - 1 - before, 7)), [b"0123456789"])
            expect(ten([request], cuts, numbers=(7, 2**32 - 1 - before)), [b"0123456789"])


def test_any_method():
    for method in (b"PROPFIND", b"PURGE", b"QUERY", b"M-SEARCH", b"get", b"x", b"!#$%&'*+-.^_`|~09azAZ", b"A" * 32):
        requests = [get(n, method=method) for n in range(10)]
        expect(ten(requests))
        expect(ten(requests, EVERY_BYTE))


def test_bare_line_feeds_are_found_and_not_sent():
    requests = [get(n, end=b"\n") for n in range(10)]
    cut_everywhere(requests, withheld="ambiguous")


# ---- layers ---------------------------------------------------------------------------------------------------------


def ip_of(frame):
    return frame[14 : 14 + struct.unpack(">H", frame[16:18])[0]]


def outer(payload, protocol):
    return b"\2" * 12 + b"\x08\0" + struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + b"\xc0\0\2\1\xc0\0\2\2" + payload


def udp(port, payload):
    return outer(struct.pack(">HHHH", 5555, port, 8 + len(payload), 0) + payload, 17)


WRAPS = {
    "vlan": (1, lambda f: f[:12] + b"\x81\0\0\5" + f[12:]),
    "qinq": (1, lambda f: f[:12] + b"\x88\xa8\0\6\x81\0\0\5" + f[12:]),
    "any device": (276, lambda f: b"\x08\0\0\0\0\0\0\1\0\1\4\6" + bytes(8) + ip_of(f)),
    "any device, old": (113, lambda f: b"\0\0\0\1\0\6" + bytes(8) + b"\x08\0" + ip_of(f)),
    "geneve": (1, lambda f: udp(6081, b"\0\0\x65\x58\0\0\1\0" + f)),
    "gre": (1, lambda f: outer(b"\0\0\x08\0" + ip_of(f), 47)),
    "vxlan": (1, lambda f: udp(4789, b"\x08\0\0\0\0\0\1\0" + f)),
}


@pytest.mark.parametrize("layer", WRAPS)
def test_layers(layer, tmp_path):
    link, wrap = WRAPS[layer]
    path = tmp_path / "capture"
    path.write_bytes(make.pcap([(ts, wrap(frame)) for ts, frame in ten(POSTS, [30, 60])], link=link))
    rows, counters, _ = found(path)
    assert targets(rows) == [f"/{n}" for n in range(10)]
    assert [row["body_sha256"] for row in rows] == [hashlib.sha256(body).hexdigest() for body in BODIES]


def test_ipv6_addresses_count_whole():
    """Two clients that differ in one byte of their address, each byte in turn, with equal ports and numbers."""
    for byte in range(16):
        base = bytes.fromhex("20010db8000000000000000000000001")
        other = base[:byte] + bytes([base[byte] ^ 0x40]) + base[byte + 1 :]
        server = (bytes.fromhex("20010db8000000000000000000000002"), 80)
        a = ten(POSTS, [30], client=(base, 40000), server=server)
        b = ten(POSTS, [30], client=(other, 40000), server=server, at=make.START_NS + 1)
        rows, counters = read(sorted(a + b))
        assert counters["connections"] == 2
        assert sorted(targets(rows)) == sorted(f"/{n}" for n in range(10) for _ in range(2))
        assert {row["client"][0] for row in rows} == {base, other}
        assert counters["incomplete"] == {} and counters["withheld"] == {}


# ---- size -----------------------------------------------------------------------------------------------------------


def test_frames_longer_than_the_mtu_whole_and_cut():
    body = bytes(range(256)) * 16
    bodies = [body] * 10
    expect(ten([post(n, body) for n in range(10)], mtu=64000), bodies)
    one = make.Talk(mtu=64000).open()
    for n in range(10):
        one.ask(post(n, body), caplen=1700).tell(OK)
    rows, counters = read(one.end().packets, incomplete=True)
    assert [row["incomplete"] for row in rows] == ["cut_by_snaplen"] * 10
    assert targets([row | {"incomplete": None} for row in rows]) == [f"/{n}" for n in range(10)]
    assert counters["incomplete"] == {"cut_by_snaplen": 10} and counters["packets"]["cut_frames"] == 10
    assert counters["found"] == 0


def test_bodies_of_six_mib_are_whole_or_too_large():
    body = bytes(range(251)) * (6 * 2**20 // 251 + 1)
    for request in (post(0, body), chunked(0, body[: 5 * 2**20], body[5 * 2**20 :])):
        packets = make.Talk(mtu=60000).open().ask(request).tell(OK).ask(get(1)).tell(OK).end().packets
        expect(packets, [body, b""])
        rows, counters = read(packets, show=False)
        assert [row["target"] for row in rows] == [b"/0", b"/1"]
        assert rows[0]["data"][len(rows[0]["head"]) :] == request[request.index(b"\r\n\r\n") + 4 :]
        rows, counters = read(packets, show=False, max_body=5 * 2**20)
        assert counters["incomplete"] == {"too_large": 1}
        assert [row["target"] for row in rows] == [b"/1"], "the next request is found all the same"


# ---- the end of the file, and time ----------------------------------------------------------------------------------


def many(count, at=make.START_NS, two=False):
    """A pcap of so many requests on 50 connections, made fast: frames are templates with numbers put in."""
    record = struct.Struct("<IIII")
    out = [make.pcap_header(nanoseconds=True)]
    seq = [[1, 1] for _ in range(50)]
    packets = 0

    def put(k, side, data):
        nonlocal packets, at
        ends = ((b"\x0a\0\0\1", 40000 + k), (b"\x0a\0\0\2", 80))
        (src, sport), (dst, dport) = ends[side], ends[1 - side]
        frame = make.segment(src, dst, sport, dport, seq[k][side], seq[k][1 - side], DATA, data)
        seq[k][side] += len(data)
        at += 10_000
        packets += 1
        out.append(record.pack(at // 10**9, at % 10**9, len(frame), len(frame)) + frame)

    for n in range(50):
        for side in (0, 1):
            frame = make.segment(*((b"\x0a\0\0\1", b"\x0a\0\0\2") if side == 0 else (b"\x0a\0\0\2", b"\x0a\0\0\1")), *((40000 + n, 80) if side == 0 else (80, 40000 + n)), 0, 1 if side else 0, make.SYN | (make.ACK if side else 0))
            out.append(record.pack(at // 10**9, at % 10**9, len(frame), len(frame)) + frame)
            packets += 1
    for n in range(count):
        if two:
            request = post(n, b"0123456789")
            put(n % 50, 0, request[:-10])
            put(n % 50, 0, request[-10:])
        else:
            put(n % 50, 0, get(n))
            put(n % 50, 1, OK)
    return b"".join(out), packets


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory):
    path = tmp_path_factory.mktemp("rivals") / "many.pcap"
    data, packets = many(100_000)
    path.write_bytes(data)
    return path, packets


@pytest.mark.parametrize("slow", [False, True])
def test_nothing_is_lost_at_the_end_of_the_file(hundred_thousand, slow):
    """100,000 requests; slow: taken out of a queue of two places and a budget of one batch, with pauses."""
    path, packets = hundred_thousand
    stop, pool = Stop(), Pool(400_000 if slow else 48 << 20)
    queue = Queue(pool, 2 if slow else 1024)
    capture = Capture([str(path)], stop=stop)
    ingest = Ingest(capture, [queue], pool, stop)
    thread = threading.Thread(target=ingest.run)
    thread.start()
    numbers = []
    batches = 0
    while not queue.done:
        batch = queue.get(0.1)
        if batch is not None:
            batches += 1
            if slow and batches < 60:
                time.sleep(0.02)
            numbers += [int(batch.data(at)[5:11].split()[0]) for at in range(len(batch))]
        batch = None  # gives its memory back before it waits for the next
    thread.join()
    counters = ingest.counters()
    assert numbers == list(range(100_000))
    assert counters["found"] == counters["selected"] == 100_000
    assert counters["packets"]["read"] == packets
    assert capture.progress()["complete"] and pool.held == 0
    assert pool.peak <= (2_000_000 if slow else 48 << 20)


def test_ten_requests_at_the_end_of_a_file():
    for without in range(4):  # the last ones of: reply, FIN, FIN, ACK
        packets = ten([get(n) for n in range(10)])
        rows, _ = read(packets[: len(packets) - without])
        assert targets(rows) == [f"/{n}" for n in range(10)]


def test_capture_time_is_the_only_clock(tmp_path):
    """A capture from any year, read through a pipe that pauses inside a message, with the reader stopped meanwhile."""
    for year in (0, 30, 129):
        data, packets = many(2000, at=year * 365 * 86400 * 10**9 + 1, two=True)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); from engine import found; print(len(found(['-'])[0]))", str(HERE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        with child:
            half = len(data) // 2
            child.stdin.write(data[:half])
            child.stdin.flush()
            time.sleep(0.15)
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(child.pid, signal.SIGCONT)
            child.stdin.write(data[half:])
            child.stdin.close()
            assert int(child.stdout.read()) == 2000
        assert child.returncode == 0
