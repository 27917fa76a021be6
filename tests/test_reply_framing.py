"""Replies: where each ends. Vectors whole, byte by byte and at every cut; generated ones against h11 and httptools."""

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay._fastpath import ReplyForTests

# reply bytes, HEAD?, expected (status, body length, persists, interim) of each whole reply, bad?, reason
VECTORS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, True, 0)], False, "length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 \r\nContent-Length:0\r\n\r\n", False,
     [(200, 2, True, 0), (404, 0, True, 0)], False, "two, empty reason, no blank after the colon"),
    (b"HTTP/1.1 200\r\ncontent-LENGTH:\t 3 \t\r\n\r\nabc", False, [(200, 3, True, 0)], False, "no reason at all"),
    (b"HTTP/1.1 200 \xc3\xb6 / \x80\r\nContent-Length: 0\r\n\r\n", False, [(200, 0, True, 0)], False, "reason with any byte"),
    (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", False, [(200, 2, True, 0)], False, "bare LF"),
    (b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, True, 0)], False, "empty lines before"),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, False, 0)], False, "1.0 closes"),
    (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, True, 0)], False, "1.0 keep-alive"),
    (b"HTTP/1.1 200 OK\r\nConnection: foo , CLOSE\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, False, 0)], False, "close in a list"),
    (b"HTTP/1.1 200 OK\r\nConnection: foo,\r\n close\r\nContent-Length: 0\r\n\r\n", False, [(200, 0, False, 0)], False, "folded Connection"),
    (b"HTTP/1.1 200 OK\r\nX-Connection: close\r\nContent-Length: 0\r\n\r\n", False, [(200, 0, True, 0)], False, "other field"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", False, [(204, 0, True, 0)], False, "204"),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", False, [(304, 0, True, 0)], False, "304 with a length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", True, [(200, 0, True, 0)], False, "HEAD with a length"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", True, [(200, 0, True, 0)], False, "HEAD, chunked"),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False,
     [(200, 2, True, 2)], False, "100 and 103 are interim"),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", False, [(101, 0, True, 0)], False, "101 is final"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;a=\"b\"\r\n0123456789abcdef\r\n0\r\n\r\n", False,
     [(200, 19, True, 0)], False, "chunked with an extension"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n00003 \r\nabc\r\n000\r\nX: y\r\nZ: 0\r\n\r\n", False,
     [(200, 3, True, 0)], False, "two codings, zeros before, a blank after the size, trailers"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", False, [(200, 3, True, 0)], False, "chunked with bare LF"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n", False,
     [(200, 5, True, 0)], False, "chunked goes before the length; data that looks like the end"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", False, [(200, 1, True, 0)], False, "identity is none"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, True, 0)], False, "the same length again"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\nContent-Length: 2\r\n\r\nok", False, [(200, 2, True, 0)], False, "large head"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 262_144 + b"\r\nContent-Length: 2\r\n\r\nok", False, [], True, "head too large"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", False, [], True, "two lengths"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", False, [], True, "two length fields"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n", False, [], True, "negative length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", False, [], True, "empty length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n", False, [], True, "length of 2^63"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 2\r\n\r\n", False, [], True, "folded length"),
    (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", False, [], True, "no colon"),
    (b"HTTP/1.1 200 OK\r\n: x\r\n\r\n", False, [], True, "no name"),
    (b"HTTP/2 200 OK\r\n\r\n", False, [], True, "HTTP/2 as a status line"),
    (b"HTTP/1.1 20 OK\r\n\r\n", False, [], True, "two digits"),
    (b"HTTP/1.1 099 OK\r\n\r\n", False, [], True, "status below 100"),
    (b"HTTP/1.1 2000 OK\r\n\r\n", False, [], True, "four digits"),
    (b"SSH-2.0-OpenSSH", False, [], True, "garbage without a line end"),
    (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", False, [], True, "an HTTP/2 frame"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", False, [], True, "no chunk size"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;a\r\n", False, [], True, "only an extension"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\n", False, [], True, "chunk of 2^63"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", False, [], True, "chunk longer than its size"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 20_000, False, [], True, "endless extension"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 50_000, False, [], True, "endless trailers"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", False, [], False, "not whole yet"),
]  # fmt: skip
CASES = [pytest.param(*vector[:4], id=vector[4]) for vector in VECTORS]
CLOSED = [
    (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, 13, True, 0), "no length"),
    (b"HTTP/1.0 200 OK\r\n\r\n", (200, 0, False, 0), "1.0, empty"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nabc", (200, 3, True, 0), "coding that is not chunked"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 3000, (200, 3000, False, 0), "close"),
]


def run(pieces, head=False, remembers=True):
    parser = ReplyForTests(remembers)
    got = []
    for piece in pieces:
        got += parser.feed(piece, head)
    return got, parser.bad, parser


@pytest.mark.parametrize("data, head, expected, bad", CASES)
def test_whole(data, head, expected, bad):
    assert run([data], head)[:2] == (expected, bad)


@pytest.mark.parametrize("data, head, expected, bad", CASES)
def test_byte_by_byte(data, head, expected, bad):
    assert run([data[i : i + 1] for i in range(len(data))], head)[:2] == (expected, bad)


@pytest.mark.parametrize("data, head, expected, bad", CASES)
def test_every_cut(data, head, expected, bad):
    step = 1 if len(data) < 5000 else 4999
    for at in range(0, len(data) + 1, step):
        assert run([data[:at], data[at:]] if at else [data], head)[:2] == (expected, bad)


@pytest.mark.parametrize("data, expected", [pytest.param(*c[:2], id=c[2]) for c in CLOSED])
def test_until_close(data, expected):
    for at in range(len(data)):
        got, bad, parser = run([data[:at], data[at:]] if at else [data])
        assert (got, bad) == ([], False)
        assert parser.end() == [expected]


@pytest.mark.parametrize("data, head, expected, bad", [case for case in CASES if case.values[2]])
def test_cut_short_is_no_reply(data, head, expected, bad):
    """Each proper beginning of the last reply is not whole, and the end of the connection does not make it so."""
    for at in range(max(1, len(data) - 40), len(data)):
        got, bad, parser = run([data[:at]], head)
        assert len(got) < len(expected) and not bad
        assert parser.end() == []


TOKEN = st.text("abcdefgXYZ-", min_size=1, max_size=8)
VALUE = st.text("abc 123,;=\"'", max_size=20).map(str.strip)


@st.composite
def reply(draw):
    """A reply as h11 writes it, with what it is."""
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 404, 500, 503]))
    chunks = draw(st.lists(st.binary(min_size=1, max_size=300), max_size=4))
    if status in (204, 304):
        chunks = []
    headers = [("X-" + name, value) for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))]
    chunked = draw(st.booleans())
    if status not in (204, 304):
        headers.append(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(sum(map(len, chunks)))))
    close = draw(st.booleans())
    if close:
        headers.append(("Connection", "close"))
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.next_event()
    server.next_event()
    out = b""
    interim = draw(st.integers(0, 2))
    for _ in range(interim):
        out += server.send(h11.InformationalResponse(status_code=103, headers=[("Link", "</x>")]))
    out += server.send(h11.Response(status_code=status, headers=headers, reason=draw(TOKEN)))
    for chunk in chunks:
        out += server.send(h11.Data(data=chunk))
    trailers = [("T", "v")] if chunked and status not in (204, 304) and draw(st.booleans()) else []
    out += server.send(h11.EndOfMessage(headers=trailers))
    return out, (status, sum(map(len, chunks)), not close, interim)


@settings(max_examples=300, deadline=None)
@given(st.lists(reply(), min_size=1, max_size=4), st.data())
def test_generated_by_h11(replies, data):
    stream = b"".join(one[0] for one in replies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]
    assert run(pieces)[:2] == ([one[1] for one in replies], False)


class Seen:
    def __init__(self):
        self.length, self.whole = 0, False

    def on_body(self, body):
        self.length += len(body)

    def on_message_complete(self):
        self.whole = True


@settings(max_examples=500, deadline=None)
@given(reply(), st.data())
def test_mutated_against_httptools(one, data):
    """Where llhttp, the stricter one, sees a whole reply in damaged bytes, so do we, with the same body."""
    raw = bytearray(one[0])
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.sampled_from(b"\r\n :0159aXcC\x00,;\x80"))
    seen = Seen()
    parser = httptools.HttpResponseParser(seen)
    for at in range(len(raw)):
        try:
            parser.feed_data(bytes(raw[at : at + 1]))
        except httptools.HttpParserError:
            return
        if seen.whole:
            break
    if not seen.whole or parser.get_status_code() < 100 or 100 < parser.get_status_code() < 200:
        return
    status = parser.get_status_code()
    if status == 100 or parser.get_http_version() not in ("1.0", "1.1"):
        return
    got, bad, _ = run([bytes(raw)])
    if bad and not got:
        # stricter than llhttp in what would be two readings, or no reply at all: never a different reply
        return
    if got and got[0][3] == 0:
        assert got[0][0] == status
        assert got[0][1] == seen.length


@settings(max_examples=300, deadline=None)
@given(st.lists(reply(), min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.data())
def test_a_head_that_is_known_means_the_same(replies, order, data):
    """The same few replies again and again, as servers send them, to HEAD too: with and without the memory of the latest head."""
    stream = b"".join(replies[i % len(replies)][0] for i in order)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]
    heads = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    seen = []
    for remembers in (True, False):
        parser = ReplyForTests(remembers)
        seen.append(([parser.feed(piece, head) for piece, head in zip(pieces, heads, strict=True)], parser.bad, parser.begun))
    assert seen[0] == seen[1]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_noise(noise, prefixed):
    """Any bytes: never more used than given, the same result whole and byte by byte."""
    data = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if prefixed else b"") + noise
    if data:
        assert run([data])[:2] == run([data[i : i + 1] for i in range(len(data))])[:2]
