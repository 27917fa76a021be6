"""The embedded shadow server, from outside: raw sockets, http.client and curl; then its command as a process."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from replay._fastpath import Sink, Stop

V4 = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Running:
    """A sink in its thread."""

    def __init__(self, address=V4, **options):
        self.stop = Stop()
        self.sink = Sink((address, 0), stop=self.stop, **options)
        self.port = self.sink.port
        self.thread = threading.Thread(target=self.sink.run, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()

    def connect(self):
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return contextlib.closing(sock)

    def counters(self):
        c = self.sink.counters()
        if not self.thread.is_alive():
            assert sum(c["by_method"].values()) == sum(c["by_host"].values()) == sum(c["by_status"].values()) == c["requests"]
        return c

    def ask(self, data, pieces=None):
        """What comes back for these bytes, until the sink closes (our side is shut behind them)."""
        with self.connect() as sock:
            for piece in pieces or [data]:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def until(self, **counts):
        until(lambda: all(self.sink.counters()[name] == n for name, n in counts.items()))


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def read_all(sock):
    got = b""
    while data := sock.recv(1 << 20):
        got += data
    return got


def read(sock, n):
    got = b""
    while len(got) < n:
        data = sock.recv(n - len(got))
        assert data, f"closed after {got!r}"
        got += data
    return got


def silent(sock, seconds=0.15):
    return not select.select([sock], [], [], seconds)[0]


def is_reset(sock):
    try:
        return sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


def rows(sink, n=None):
    """All rows of a sink that has ended, or the first n of one that runs."""
    got = []
    if n is not None:
        until(lambda: got.extend(sink.take()) or len(got) >= n)
    else:
        while some := sink.take(7):
            got += some
    return got


# ---- what is answered -------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order():
    with Running(body=3) as one:
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxxx"
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        post = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"
        assert one.ask(GET + post + b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET * 2) == reply * 2 + head + reply * 2
        one.end()
        c = one.counters()
        assert c["requests"] == 5 and c["connections"] == 1 and c["bad"] == 0
        assert c["by_method"] == {"GET": 3, "POST": 1, "HEAD": 1} and c["by_host"] == {"a": 5} and c["by_status"] == {200: 5}
        assert c["bytes_in"] == 4 * 27 + 1 + len(post) and c["bytes_out"] == 4 * len(reply) + len(head)


MIXED = (
    b"\r\n\nPUT /%20?a=b HTTP/1.1\r\nhOST:  b.example:81 \t\r\nX: 1\r\n folded\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    b"POST / HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: gzip, chunked\r\nTrailer: T\r\n\r\n5;x=\"y\"\r\nabcde\r\n0B\r\n01234567890\r\n000\r\nT: 1\r\nU: 2\r\n\r\n"
    b"WEIRD~1 * HTTP/1.1\r\nHost: \r\n\r\n"
    b"GET http://d/x HTTP/1.1\r\nHost: d\r\nHost: d\r\nConnection: x, Close\r\n\r\n"
)
MIXED_ROWS = [
    {"method": b"PUT", "target": b"/%20?a=b", "version": "1.1", "host": b"b.example:81", "body_len": 4, "body_sha256": hashlib.sha256(b"\r\n\r\n").hexdigest(),
     "headers": [(b"hOST", b"b.example:81"), (b"X", b"1\r\n folded"), (b"Content-Length", b"4")], "index": 0},
    {"method": b"POST", "target": b"/", "version": "1.1", "host": b"c", "body_len": 16, "body_sha256": hashlib.sha256(b"abcde01234567890").hexdigest(),
     "headers": [(b"Host", b"c"), (b"Transfer-Encoding", b"gzip, chunked"), (b"Trailer", b"T")], "index": 1},
    {"method": b"WEIRD~1", "target": b"*", "version": "1.1", "host": b"", "body_len": 0, "body_sha256": hashlib.sha256().hexdigest(),
     "headers": [(b"Host", b"")], "index": 2},
    {"method": b"GET", "target": b"http://d/x", "version": "1.1", "host": b"d", "body_len": 0, "body_sha256": hashlib.sha256().hexdigest(),
     "headers": [(b"Host", b"d"), (b"Host", b"d"), (b"Connection", b"x, Close")], "index": 3},
]  # fmt: skip
MIXED_REPLY = OK * 3 + CLOSING


def check_mixed(got, connection):
    for row, wanted in zip(got, MIXED_ROWS, strict=True):
        assert abs(row.pop("ts_ns") - time.time_ns()) < 60_000_000_000
        assert row == wanted | {"status": 200, "connection": connection}


def test_the_log_is_what_was_sent():
    with Running(log=True) as one:
        assert one.ask(MIXED) == MIXED_REPLY
        one.end()
        check_mixed(rows(one.sink), 0)
        assert one.counters()["by_host"] == {"b.example:81": 1, "c": 1, "": 1, "d": 1}
        assert rows(one.sink) == []


def test_requests_cut_at_every_byte():
    with Running(log=True) as one:
        for cut in range(1, len(MIXED)):
            with one.connect() as sock:
                sock.sendall(MIXED[:cut])
                one.until(bytes_in=(cut - 1) * len(MIXED) + cut)        # so that the two halves come apart
                sock.sendall(MIXED[cut:])
                assert read_all(sock) == MIXED_REPLY, cut
            check_mixed(rows(one.sink, 4), cut - 1)


def test_a_byte_at_a_time():
    with Running(log=True) as one:
        with one.connect() as sock:
            for i in range(len(MIXED)):
                sock.sendall(MIXED[i:i + 1])
                one.until(bytes_in=i + 1)
            assert read_all(sock) == MIXED_REPLY
        one.end()
        check_mixed(rows(one.sink), 0)


def test_a_large_body_is_hashed_in_passing():
    body = os.urandom(3_000_001)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 70_001]), body[i:i + 70_001]) for i in range(0, len(body), 70_001))
    with Running(log=True) as one:
        assert one.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body + GET) == OK * 2
        assert one.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n" + GET) == OK * 2
        one.end()
        got = rows(one.sink)
    assert [(row["body_len"], row["body_sha256"]) for row in got[::2]] == [(len(body), hashlib.sha256(body).hexdigest())] * 2
    assert [row["body_len"] for row in got[1::2]] == [0, 0]


@pytest.mark.parametrize("method,status,body,reply", [
    (b"GET", 404, 2, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nxx"),
    (b"HEAD", 404, 2, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n"),
    (b"GET", 599, 0, b"HTTP/1.1 599 Unknown\r\nContent-Length: 0\r\n\r\n"),
    (b"GET", 204, 2, b"HTTP/1.1 204 No Content\r\n\r\n"),
    (b"GET", 304, 2, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
])  # fmt: skip
def test_status_and_body(method, status, body, reply):
    with Running(status=status, body=body) as one:
        assert one.ask((method + b" / HTTP/1.1\r\nHost: a\r\n\r\n") * 2) == reply * 2
        one.end()
        assert one.counters()["by_status"] == {status: 2}


@pytest.mark.parametrize("fields,reply,persists", [
    (b"", CLOSING, False),
    (b"Connection: keep-alive\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
    (b"Connection: keep-alive, close\r\n", CLOSING, False),
])  # fmt: skip
def test_http_1_0(fields, reply, persists):
    with Running(log=True) as one, one.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n" + fields + b"\r\n")
        assert read(sock, len(reply)) == reply
        assert silent(sock, 0.05) if persists else sock.recv(1) == b""
        (row,) = rows(one.sink, 1)
        assert row["version"] == "1.0" and row["host"] is None


def test_connection_close_ends_it_and_nothing_behind_it_counts():
    with Running() as one, one.connect() as sock:
        sock.sendall(GET.replace(b"Host: a", b"Host: a\r\nConnection: close") + GET * 3)
        assert read_all(sock) == CLOSING
        one.end()
        assert one.counters()["requests"] == 1 and one.counters()["bad"] == 0


def test_expect_100_continue():
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n"
    with Running(log=True) as one, one.connect() as sock:
        sock.sendall(head + b"Content-Length: 3\r\n\r\n")
        assert read(sock, len(CONTINUE)) == CONTINUE
        assert silent(sock, 0.05)
        sock.sendall(b"abc" + head + b"Transfer-Encoding: chunked\r\n\r\n")
        assert read(sock, len(OK + CONTINUE)) == OK + CONTINUE
        sock.sendall(b"2\r\nde\r\n0\r\n\r\n" + head + b"Content-Length: 2\r\n\r\nf")      # the body begins: nobody waits for a 100
        assert read(sock, len(OK)) == OK
        sock.sendall(b"g" + head + b"Content-Length: 0\r\n\r\n" + head + b"\r\n")
        assert read(sock, 3 * len(OK)) == OK * 3
        assert [row["body_len"] for row in rows(one.sink, 5)] == [3, 2, 2, 0, 0]
        sock.sendall(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: 1\r\n\r\n")
        assert silent(sock, 0.05)
        sock.sendall(b"x")
        assert read_all(sock) == CLOSING


def test_a_peer_that_shuts_its_side_gets_its_replies():
    with Running(delay_ns=50_000_000) as one:
        assert one.ask(GET * 2) == OK * 2
        assert one.ask(b"") == b""
        assert one.ask(GET + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc") == OK
        one.end()
        assert one.counters()["requests"] == 3 and one.counters()["bad"] == 0


def test_http_client_and_curl():
    with Running(body=11, log=True) as one:
        client = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
        for method, body in (("GET", None), ("POST", b"abc"), ("HEAD", None), ("PUT", iter([b"a", b"bc"])), ("GET", None)):
            client.request(method, "/x", body=body, encode_chunked=False)
            reply = client.getresponse()
            assert reply.status == 200 and reply.read() == (b"" if method == "HEAD" else b"x" * 11)
        client.close()
        url = f"http://127.0.0.1:{one.port}/big"
        big = b"y" * 1_500_000
        curl = ["env", "-u", "LD_PRELOAD", "curl", "-sS", "--max-time", "20"]        # a preloaded sanitizer is for the extension
        done = subprocess.run([*curl, "-H", "Expect: 100-continue", "--data-binary", "@-", url, url], input=big, capture_output=True)
        assert done.returncode == 0 and done.stdout == b"x" * 22, done.stderr
        done = subprocess.run([*curl, "-0", "-I", url], capture_output=True, text=True)
        assert done.returncode == 0 and "Content-Length: 11" in done.stdout
        got = rows(one.sink, 8)
        assert [row["method"] for row in got] == [b"GET", b"POST", b"HEAD", b"PUT", b"GET", b"POST", b"POST", b"HEAD"]
        abc = hashlib.sha256(b"abc").hexdigest()
        assert [row["body_sha256"] for row in got[1:4:2]] == [abc, abc]
        assert got[5]["body_len"] == len(big) and got[5]["body_sha256"] == hashlib.sha256(big).hexdigest()
        one.end()
        assert one.counters()["connections"] == 3


def test_fifty_thousand_pipelined_requests_are_counted_exactly():
    methods, hosts = [b"GET", b"DELETE", b"HEAD"], [b"h%d" % i for i in range(17)]
    data = b"".join(b"%s /%d HTTP/1.1\r\nHost: %s\r\nX: %s\r\n\r\n" % (methods[i % 3], i, hosts[i % 17], b"v" * (i % 97)) for i in range(50_000))
    with Running(body=2) as one, one.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        size = sum(len(OK) + (0 if i % 3 == 2 else 2) for i in range(50_000))
        got = read(sock, size)
        sender.join()
        assert got.count(b"HTTP/1.1 200 OK\r\n") == 50_000 and silent(sock, 0.05)
        one.end()
        c = one.counters()
    assert c["requests"] == 50_000 and c["bytes_in"] == len(data) and c["bytes_out"] == size and c["bad"] == 0
    assert c["by_method"] == {m.decode(): sum(1 for i in range(50_000) if methods[i % 3] == m) for m in methods}
    assert c["by_host"] == {h.decode(): sum(1 for i in range(50_000) if hosts[i % 17] == h) for h in hosts}
    assert c["by_status"] == {200: 50_000}


def test_a_client_that_reads_nothing_until_the_end():
    """Its replies wait as a count, not as bytes, and stop no other connection."""
    n = 20_000
    with Running(body=1000) as one, one.connect() as sock:
        sock.sendall(GET * n)
        one.until(requests=n)
        assert one.sink.counters()["bytes_out"] < n * 1000
        with one.connect() as other:
            other.sendall(GET)
            assert other.recv(9).startswith(b"HTTP/1.1")
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
        assert read(sock, n * len(reply)) == reply * n


def test_alternating_replies_to_a_client_that_reads_nothing():
    """Each reply is of another kind than the one before: the sink stops reading at a bound, and goes on when the client does."""
    n = 30_000
    pair = OK.replace(b": 0", b": 1000") + b"x" * 1000 + OK.replace(b": 0", b": 1000")
    with Running(body=1000) as one, one.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=((GET + GET.replace(b"GET", b"HEAD")) * n,))
        sender.start()
        time.sleep(0.3)
        assert one.sink.counters()["requests"] < 2 * n
        for _ in range(n):
            assert read(sock, len(pair)) == pair
        sender.join()
        one.end()
        assert one.counters()["by_method"] == {"GET": n, "HEAD": n}


def test_many_connections_none_of_which_is_closed_for_being_idle():
    with Running() as one, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(one.connect()) for _ in range(200)]
        for _ in range(3):
            for sock in socks:
                sock.sendall(GET)
            for sock in socks:
                assert read(sock, len(OK)) == OK
            time.sleep(0.05)
        one.end()
        assert one.counters()["connections"] == 200 and one.counters()["requests"] == 600


def test_more_methods_and_hosts_than_have_a_place():
    data = b"".join(b"M%d / HTTP/1.1\r\nHost: h%d\r\n\r\n" % (i % 100, i) for i in range(2000)) + b"GET / HTTP/1.1\r\nHost: " + b"h" * 300 + b"\r\n\r\n"
    with Running() as one:
        assert one.ask(data) == OK * 2001
        one.end()
        c = one.counters()
    assert c["requests"] == 2001
    assert len(c["by_method"]) == 65 and c["by_method"]["other"] == 36 * 20 + 1 and c["by_method"]["M7"] == 20
    assert len(c["by_host"]) == 1025 and c["by_host"]["other"] == 977 and c["by_host"]["h1023"] == 1


def made_up(rng, i):
    """(bytes, the row that they must become)."""
    method, target, host = rng.choice([b"GET", b"POST", b"HEAD", b"X-Y"]), b"/%d" % i, rng.choice([b"a", b"b.example:8080", b"[::1]"])
    fields = [(b"Host", host)] + [(b"X-%d" % n, b"v" * rng.choice([0, 1, 50, 5000])) for n in range(rng.randrange(5))]
    body = rng.randbytes(rng.choice([0, 0, 1, 10, 1000, 100_000]))
    sent = body
    if rng.random() < 0.5:
        fields.append((b"Transfer-Encoding", b"Chunked"))
        sent, left = b"", body
        while left:
            n = rng.choice([1, 7, 300, 30_000, len(left)]) if len(left) > 1 else 1
            sent += b"%X%s\r\n%s\r\n" % (len(left[:n]), rng.choice([b"", b";a=b"]), left[:n])
            left = left[n:]
        sent += b"0\r\n" + rng.choice([b"", b"T: x\r\n"]) + b"\r\n"
    elif body or rng.random() < 0.5:
        fields.append((b"content-length", b"%d" % len(body)))
    rng.shuffle(fields)
    data = b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, target, b"".join(b"%s:%s\r\n" % (name, rng.choice([b"", b" "]) + value) for name, value in fields), sent)
    return data, {"method": method, "target": target, "version": "1.1", "host": host, "headers": fields, "body_len": len(body),
                  "body_sha256": hashlib.sha256(body).hexdigest(), "status": 200}  # fmt: skip


def pieces(rng, data):
    while data:
        n = rng.choice([1, 3, 40, 1400, 65_536, 200_000])
        yield data[:n]
        data = data[n:]


@pytest.mark.parametrize("seed", range(5))
def test_made_up_requests_on_several_connections(seed):
    rng = random.Random(seed)
    with Running(log=True) as one, contextlib.ExitStack() as stack:
        socks, wanted, left = [], [], []
        for number in range(4):
            socks.append(stack.enter_context(one.connect()))
            one.until(connections=number + 1)
            made = [made_up(rng, i) for i in range(30)]
            wanted.append([row | {"connection": number, "index": i} for i, (_, row) in enumerate(made)])
            left.append(list(pieces(rng, b"".join(data for data, _ in made))))
        while any(left):
            number = rng.choice([i for i in range(4) if left[i]])
            socks[number].sendall(left[number].pop(0))
        for sock in socks:
            assert read(sock, 30 * len(OK)) == OK * 30
        one.end()
        got = rows(one.sink)
        assert one.counters()["bad"] == 0 and all(row.pop("ts_ns") for row in got)
        for number in range(4):
            assert [row for row in got if row["connection"] == number] == wanted[number]


def test_damaged_requests_hang_nobody():
    """Whatever is sent, a connection whose sending side is shut is answered and closed."""
    rng = random.Random(6)
    with Running(log=True) as one:
        for _ in range(400):
            data = bytearray(b"".join(made_up(rng, i)[0][:3000] for i in range(3)))
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(data))
                data[at:at + rng.choice([0, 1, 5])] = rng.choice([b"", b"\r", b"\n", b"\0", b"\r\n\r\n", b"0", b"f", rng.randbytes(3)])
            with contextlib.suppress(ConnectionError, BrokenPipeError), one.connect() as sock:
                for piece in pieces(rng, bytes(data)):
                    sock.sendall(piece)
                sock.shutdown(socket.SHUT_WR)
                got = read_all(sock)
                assert set(got.split(b"HTTP/1.1 ")) <= {b"", *(reply[9:] for reply in (OK, BAD, TOO_LARGE))}
        one.end()
        c = one.counters()
        assert c["bad"] > 100 and len(rows(one.sink)) == c["requests"] > 100


# ---- what is refused --------------------------------------------------------------------------------------------------

BAD_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello world, this is no request\r\n",
    b"GET /\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("data", BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests(data):
    with Running(log=True) as one:
        with one.connect() as sock:
            sock.sendall(GET + data + GET)
            assert read_all(sock) == OK + BAD
        for cut in {1, len(data) // 2, len(data) - 1}:
            assert one.ask(None, [data[:cut], data[cut:]]) == BAD
        one.end()
        c = one.counters()
        assert c["requests"] == 1 and c["bad"] == c["connections"]
        assert len(rows(one.sink)) == 1


@pytest.mark.parametrize("data", [
    b"GET /" + b"a" * 70_000,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000,
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 65_536 + b"\r\n\r\n",
], ids=["line", "field", "fields", "whole"])  # fmt: skip
def test_heads_that_are_too_large(data):
    with Running() as one, one.connect() as sock:
        for i in range(0, len(data), 1000):
            with contextlib.suppress(ConnectionError):
                sock.sendall(data[i:i + 1000])
        assert read_all(sock) == TOO_LARGE
        one.end()
        assert one.counters()["bad"] == 1 and one.counters()["requests"] == 0


@pytest.mark.parametrize("piece", [1000, 70_000])
def test_a_head_of_64_kib_is_not_too_large(piece):
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    data = head + b"a" * (65_536 - len(head) - 4) + b"\r\n\r\n"
    assert len(data) == 65_536
    with Running(log=True) as one:
        assert one.ask(None, [data[i:i + piece] for i in range(0, len(data), piece)] + [GET]) == OK * 2
        one.end()
        assert len(rows(one.sink)[0]["headers"][1][1]) == 65_536 - len(head) - 4


def test_an_endless_client_that_was_refused_is_let_go():
    with Running() as one, one.connect() as sock:
        sock.sendall(b"\0")
        assert read_all(sock) == BAD
        end = time.monotonic() + 10
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                sock.sendall(b"x" * 1000)
                time.sleep(0.02)


# ---- time and misbehaviour ----------------------------------------------------------------------------------------------


def test_delay_holds_up_nobody_else():
    with Running(delay_ns=150_000_000) as one, one.connect() as first, one.connect() as second:
        begin = time.monotonic()
        first.sendall(GET * 3)
        time.sleep(0.075)
        second.sendall(GET)
        assert read(first, 3 * len(OK)) == OK * 3
        took_first = time.monotonic() - begin
        assert read(second, len(OK)) == OK
        took_second = time.monotonic() - begin
        assert 0.149 < took_first < 0.5 and 0.22 < took_second < 0.6
        second.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        begin = time.monotonic()
        assert read(second, len(CONTINUE)) == CONTINUE
        assert time.monotonic() - begin < 0.1
        time.sleep(0.2)
        begin = time.monotonic()
        second.sendall(b"x")
        assert read(second, len(OK)) == OK
        assert time.monotonic() - begin > 0.149


def test_delay_on_many_connections():
    with Running(delay_ns=20_000_000) as one, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(one.connect()) for _ in range(100)]
        for turn in range(3):
            sent = {}
            for sock in socks[turn:] + socks[:turn]:
                sent[sock] = time.monotonic()
                sock.sendall(GET)
            for sock in socks:
                assert read(sock, len(OK)) == OK
                assert time.monotonic() - sent[sock] > 0.0199


def test_misbehave_close():
    with Running(misbehave="close", log=True) as one, one.connect() as sock:
        sock.sendall(GET * 2)
        assert read_all(sock) == b""
        (row,) = rows(one.sink, 1)
        assert row["status"] is None
        one.end()
        assert one.counters()["by_status"] == {0: 1}


@pytest.mark.parametrize("misbehave", ["close", "reset"])
def test_each_third_request_loses_its_connection(misbehave):
    with Running(misbehave=misbehave, every=3, log=True) as one:
        for _ in range(2):
            with one.connect() as sock:
                for _ in range(2):
                    sock.sendall(GET)
                    assert read(sock, len(OK)) == OK
                sock.sendall(GET)
                assert is_reset(sock) if misbehave == "reset" else sock.recv(1) == b""
        one.end()
        assert one.counters()["by_status"] == {200: 4, 0: 2} and one.counters()["bad"] == 0
        assert [row["status"] for row in rows(one.sink)] == [200, 200, None] * 2


def test_misbehave_close_sends_what_came_before():
    with Running(misbehave="close", every=3) as one, one.connect() as sock:
        sock.sendall(GET * 5)
        assert read_all(sock) == OK * 2


def test_misbehave_reset():
    with Running(misbehave="reset") as one, one.connect() as sock:
        sock.sendall(GET)
        assert is_reset(sock)


def test_misbehave_stall():
    with Running(misbehave="stall", every=2) as one, one.connect() as first:
        first.sendall(GET)
        assert read(first, len(OK)) == OK
        with one.connect() as second, one.connect() as third:
            second.sendall(GET)
            third.sendall(GET)
            assert read(third, len(OK)) == OK
            assert silent(second)
            c = one.sink.counters()
            assert c["connections"] == 3 and c["requests"] == 2 and c["bytes_in"] == 2 * len(GET)


def test_misbehave_never():
    with Running(misbehave="never", every=2, log=True) as one, one.connect() as sock:
        sock.sendall(GET * 3)
        assert read(sock, len(OK)) == OK
        assert [row["status"] for row in rows(one.sink, 3)] == [200, None, None]
        assert silent(sock)
        with one.connect() as other:                 # the fourth request
            other.sendall(GET)
            one.until(requests=4)
            assert silent(other)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        one.end()
        assert one.counters()["by_status"] == {200: 1, 0: 3}


def test_misbehave_slow():
    with Running(status=204, misbehave="slow", every=2) as one, one.connect() as sock:
        reply = b"HTTP/1.1 204 No Content\r\n\r\n"
        begin = time.monotonic()
        sock.sendall(GET * 3)
        assert read(sock, len(reply)) == reply
        assert time.monotonic() - begin < 0.3
        seen = [sock.recv(100) for _ in range(5)]
        assert b"".join(seen) == reply[:5]
        assert 0.39 < time.monotonic() - begin < 1.2
        assert read(sock, 2 * len(reply) - 5) == reply[5:] + reply
        assert 2.4 < time.monotonic() - begin < 5


# ---- the log, and the end -------------------------------------------------------------------------------------------------


def test_the_log_loses_nothing_when_nobody_reads_it_for_long():
    """More rows than the ring holds: the sink waits for its reader."""
    n = 150_000
    with Running(log=True) as one, one.connect() as sock:
        data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(n))
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        time.sleep(0.5)
        assert one.sink.counters()["requests"] <= 65_537
        got = []
        reader = threading.Thread(target=read, args=(sock, n * len(OK)))
        reader.start()
        until(lambda: got.extend(int(row["target"][1:]) for row in one.sink.take()) or len(got) == n, 60)
        sender.join()
        reader.join()
        assert got == list(range(n))


def test_a_stop_ends_it_though_the_log_is_full():
    n = 70_000
    with Running(log=True) as one, one.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=(GET * n,), daemon=True)
        sender.start()
        one.until(requests=65_537)
        begin = time.monotonic()
        one.end()
        assert time.monotonic() - begin < 0.5
        assert len(rows(one.sink)) == one.counters()["requests"]
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def test_what_had_arrived_before_the_stop_is_served():
    stop = Stop()
    sink = Sink((V4, 0), stop=stop)
    with contextlib.closing(socket.create_connection(("127.0.0.1", sink.port), 5)) as sock:
        sock.sendall(GET * 3)
        stop.set()
        begin = time.monotonic()
        sink.run()
        assert time.monotonic() - begin < 0.4
        assert read_all(sock) == OK * 3
    with pytest.raises(RuntimeError):
        sink.run()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sink.port), 5)


def test_memory_does_not_grow_with_requests_or_connections():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    with Running() as one:
        for turn in range(60):
            if turn == 20:
                before = resident()
            with contextlib.ExitStack() as stack:
                socks = [stack.enter_context(one.connect()) for _ in range(20)]
                for sock in socks:
                    sock.sendall(GET * 50 + GET[:10])
                    assert read(sock, 50 * len(OK)) == OK * 50
        assert resident() - before < (100_000_000 if "LD_PRELOAD" in os.environ else 2_000_000)       # a sanitizer keeps what is freed for a while


def test_a_connection_whose_descriptor_a_child_process_has_too():
    """Between fork and exec a child has all descriptors; what we closed may then still be ready, and must not come back."""

    def servers_end(sock):
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    continue
                copy = socket.socket(fileno=os.dup(fd))
                try:
                    if copy.getpeername() == sock.getsockname():
                        return copy.detach()
                finally:
                    copy.close()
        raise AssertionError("not there")

    with Running() as one:
        copies = []
        for _ in range(20):
            with one.connect() as sock:
                sock.sendall(GET)
                assert read(sock, len(OK)) == OK
                copies.append(servers_end(sock))
                sock.sendall(b"nonsense\r\n" + GET)
                assert read(sock, len(BAD)) == BAD
        assert one.ask(GET * 100) == OK * 100
        for copy in copies:
            os.close(copy)
        one.end()
        assert one.counters()["requests"] == 120


@pytest.mark.parametrize("wrong", [
    {"status": 100}, {"status": 600}, {"body": -1}, {"delay_ns": -1}, {"misbehave": "dance"}, {"every": 0},
])  # fmt: skip
def test_options_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError):
        Sink((V4, 0), stop=Stop(), **wrong)


def test_addresses_that_cannot_be_listened_on():
    with pytest.raises(ValueError):
        Sink((b"1234", 0), stop=Stop())
    sink = Sink((V4, 0), stop=Stop())
    with pytest.raises(OSError, match="in use"):
        Sink((V4, sink.port), stop=Stop())


# ---- the command ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def command(*options, before=()):
    """`replay sink` as a process; yields it with `.where`, its (host, port)."""
    code = "from replay.cli.sink import sink; sink(prog_name='replay sink')"
    line = [*before, sys.executable, "-c", code, *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.where = None
            process.first = process.stdout.readline().strip()
            if process.first:
                host, _, port = process.first.removeprefix("listening on ").rpartition(":")
                process.where = host.strip("[]"), int(port)
            yield process
        finally:
            process.kill()


def ask(where, data):
    with contextlib.closing(socket.create_connection(where, 10)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", ":0"])
def test_command_counts(number, listen):
    with command("--listen", listen, "--json", "--body", "0.003k", "--status", "201") as process:
        assert process.where[0] == {"[::1]:0": "::1", ":0": "0.0.0.0"}.get(listen, process.where[0])
        reply = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nxxx"
        assert ask(process.where, GET * 2 + b"nonsense\r\n") == reply * 2 + BAD
        process.send_signal(number)
        out, errors = process.communicate(timeout=10)
    assert process.returncode == 0 and errors == ""
    (line,) = out.splitlines()
    assert json.loads(line) == {
        "requests": 2, "connections": 1, "bytes_in": 2 * len(GET) + 10, "bytes_out": 2 * len(reply) + len(BAD), "bad": 1,
        "by_method": {"GET": 2}, "by_host": {"a": 2}, "by_status": {"201": 2},
    }  # fmt: skip


def test_command_totals_as_text():
    with command("--listen", "127.0.0.1:0") as process:
        ask(process.where, GET * 2 + b"HEAD / HTTP/1.1\r\nHost: b\r\n\r\n")
        process.terminate()
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert out.splitlines()[-1] == (
        f"requests 3, connections 1, bytes in {3 * len(GET) + 1}, bytes out {3 * len(OK)}, bad 0; by method: GET=2 HEAD=1; by host: a=2 b=1; by status: 200=3"
    )


def test_command_ends_at_once_though_connections_are_open():
    with command("--listen", "127.0.0.1:0", "--misbehave", "never") as process:
        with contextlib.closing(socket.create_connection(process.where, 10)) as sock:
            sock.sendall(GET)
            time.sleep(0.1)
            begin = time.monotonic()
            process.terminate()
            out, _ = process.communicate(timeout=10)
            assert time.monotonic() - begin < 0.5
    assert process.returncode == 0 and "by status: 0=1" in out


def test_command_access_log_is_complete(tmp_path):
    path = tmp_path / "log"
    n = 5000
    with command("--listen", "127.0.0.1:0", "--access-log", str(path), "--delay", "5ms") as process:
        data = b"".join(b"POST /%d HTTP/1.1\r\nHost: \xff\r\nX: \xc3\xa4\xe2\x80\xa8\r\nContent-Length: 2\r\n\r\nhi" % i for i in range(n))
        assert ask(process.where, data) == OK * n
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == n
    digest = hashlib.sha256(b"hi").hexdigest()
    for i, row in enumerate(lines):
        assert row.pop("ts_ns") > 0
        assert row == {
            "method": "POST", "target": f"/{i}", "version": "1.1", "host": "\xff", "headers": [["Host", "\xff"], ["X", "ä\u2028"], ["Content-Length", "2"]],
            "body_len": 2, "body_sha256": digest, "status": 200, "connection": 0, "index": i,
        }  # fmt: skip


def test_more_connections_than_descriptors():
    """Those that find none wait in the backlog, and cost nothing there."""

    def cpu(pid):
        with open(f"/proc/{pid}/stat") as file:
            return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    with command("--listen", "127.0.0.1:0", before=["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]) as process, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(contextlib.closing(socket.create_connection(process.where, 10))) for _ in range(60)]
        for sock in socks:
            sock.sendall(GET)
        assert read(socks[0], len(OK)) == OK and silent(socks[-1])
        before = cpu(process.pid)
        time.sleep(0.5)
        assert cpu(process.pid) - before < 0.1
        for sock in socks[:30]:
            sock.close()
        for sock in socks[30:]:
            assert read(sock, len(OK)) == OK
        process.terminate()
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0 and out.startswith("requests 60, connections 60,")


@pytest.mark.parametrize("options,said", [
    (["--listen", "nonsense"], "'nonsense' is no address"),
    (["--listen", "127.0.0.1:99999"], "is no address"),
    (["--listen", "::1:80"], "in brackets"),
    (["--listen", "no.such.host.invalid:80"], "no.such.host.invalid"),
    (["--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
    (["--listen", "127.0.0.1:0", "--delay", "soon"], "'soon' is no duration"),
    (["--listen", "127.0.0.1:0", "--access-log", "/nonexistent/log"], "cannot write /nonexistent/log"),
])  # fmt: skip
def test_command_says_what_is_wrong(options, said):
    with command(*options) as process:
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and process.first == "" and out == ""
    assert said in errors and (errors.startswith("Usage: ") or (errors.startswith("replay sink: ") and len(errors.splitlines()) == 1))


def test_command_on_a_port_in_use():
    with Running() as one, command("--listen", f"127.0.0.1:{one.port}") as process:
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 2
        assert errors == f"replay sink: cannot listen on 127.0.0.1:{one.port}: Address already in use\n"


@pytest.mark.parametrize("options", [["--status", "99"], ["--misbehave", "dance"], ["--every", "0"], ["--body", "-1"]])
def test_command_refuses_wrong_options(options):
    with command(*options) as process:
        process.communicate(timeout=20)
    assert process.returncode == 2
