"""Framing, differential: random request streams with the shapes that request smuggling is made of, as one connection, through engine and oracle.

Both must find the same requests, withhold them for the same reasons and call the rest incomplete for the same reasons.
"""

import packetmake as net
import pytest
from bothways import check
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

LINES = [
    b"Host: a", b"Host: a", b"Host : a", b" Host: a", b"Host:\ta ", b"Host: a\r\n b",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 05", b"Content-Length: 5, 5", b"Content-Length: 5,6", b"Content-Length: +5", b"Content-Length: 0x5",
    b"Content-Length: 5 5", b"Content-Length:", b"Content-Length: -1", b"Content-Length: 9223372036854775807", b"Content-Length: 9223372036854775808",
    b"Content-Length: 99999999999999999999999999", b"Content-Length : 5", b"Content-Length\t: 5", b" Content-Length: 5", b"content-length:5", b"Content_Length: 5", b"Content-Length: 5\r\n 5",
    b"Content-Length: \r\n 5", b"X: 1\r\n Content-Length: 5", b"X: 1\r\n y", b"X: 1\r\n\ty", b"Content-Length: 5\x0b", b"Content-Length: 5\0", b"Content-Length: 5;", b"Content-Length: ,5", b"Content-Length: 5,",
    b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x0c", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked,", b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: , chunked ,", b"Transfer-Encoding:", b"Transfer-Encoding: chunked\r", b"Transfer-Encoding: chu\0nked", b"Transfer_Encoding: chunked", b" Transfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked", b"X-Transfer-Encoding: chunked", b"Transfer-Encodin\xa0g: chunked", b"Transfer-Encoding: chunked \t", b"X\rTransfer-Encoding: chunked",
    b"no colon", b":", b": v", b"X Y: 1", b"X\x80: 1", b"X: \x80", b"X: \x01", b"X: a\rb", b"X: a\0b", b"X:", b"", b"\r", b"Expect: 100-continue", b"Upgrade: h2c", b"Upgrade: websocket",
    b"Connection: close", b"x-shadow-replay: 1", b"Content-LengthX: 5", b"X: 1\r\n HOST", b"X: 1\r\n Transfer-Encodings",
]  # fmt: skip
CHUNKS = [
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"05\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\t;x\r\nhello\r\n", b" 5\r\nhello\r\n", b"5;x=1\r\nhello\r\n", b"5 ; x\r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhello\n",
    b"5\r\nhelloX\r\n", b"0x5\r\nhello\r\n", b"5_\r\nhello\r\n", b"+5\r\nhello\r\n", b"-0\r\n\r\n", b"\r\n", b"5;a\nb\r\nhello\r\n", b"5;a\rb\r\nhello\r\n", b"5;a\x01\r\nhello\r\n", b"5\r\r\nhello\r\n",
    b"7fffffffffffffff\r\n", b"8000000000000000\r\n", b"ffffffffffffffffff\r\n", b"00000000000000000005\r\nhello\r\n", b"0\r\nTrailer: 1\r\n\r\n", b"0\r\nX: 1\n\r\n", b"0\r\n\n", b"0\n\n", b"A\r\n0123456789\r\n",
    b"5;\r\nhello\r\n", b"5\x0b\r\nhello\r\n", b"5; \t\r\nhello\r\n", b"5\r\nhello", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\n folded\r\n\r\n", b"5\0\r\nhello\r\n", b"0;x\r\n\r\n",
    b"0\r\n\rX\r\n\r\n", b"0\r\nX: a\rb\r\n\r\n", b"0\r\nX: \0\r\n\r\n", b"0\r\n\r\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\nX : 1\r\n\r\n", b"0\r\n\r", b"0\r\nX: 1\r\n\n", b"0\r\n: 1\r\n\r\n",
]  # fmt: skip
STARTS = [
    b"GET / HTTP/1.1", b"GET / HTTP/1.1", b"POST /x HTTP/1.1", b"POST /x HTTP/1.1", b"PUT * HTTP/1.0", b"GET http://h/x HTTP/1.1", b"GET /a b HTTP/1.1", b"GET  / HTTP/1.1", b"GET /\tx HTTP/1.1", b"GET / HTTP/1.2",
    b"GET / HTTP/2.0", b"GET / http/1.1", b"GET /", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET\t/ HTTP/1.1", b"G@T / HTTP/1.1", b"GET / HTTP/1.11", b"PRI * HTTP/2.0", b"HTTP/1.1 200 OK", b"GET /\0 HTTP/1.1",
    b"GET /\x80 HTTP/1.1", b"CONNECT h:1 HTTP/1.1", b"HEAD / HTTP/1.1", b"a" * 32 + b" / HTTP/1.1", b"a" * 33 + b" / HTTP/1.1", b"GET ftp://h/ HTTP/1.1", b"GET / HTTP/1.1\r", b"GET /\r/ HTTP/1.1", b"GET   HTTP/1.1", b"GET  HTTP/1.1", b"OPTIONS * HTTP/1.1",
]  # fmt: skip
BODIES = [b"", b"", b"hello", b"x", b"helloGET /smuggled HTTP/1.1\r\nHost: s\r\n\r\n", b"\r\n", b"\n"]
END = st.sampled_from([b"\r\n"] * 12 + [b"\n"])
REPLIES = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n",
           b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nforever", b"garbage\r\n"]  # fmt: skip


@st.composite
def requests(draw):
    out = bytearray(draw(st.sampled_from(STARTS)) + draw(END))
    for line in draw(st.lists(st.sampled_from(LINES), max_size=4, unique_by=lambda line: line if line[:7] != b"Upgrade" else b"Upgrade")):
        out += line + draw(END)
    out += draw(END)
    for piece in draw(st.lists(st.sampled_from(CHUNKS), max_size=3)) if draw(st.booleans()) else [draw(st.sampled_from(BODIES))]:
        out += piece
    for _ in range(draw(st.sampled_from((0, 0, 0, 1)))):
        at = draw(st.integers(0, len(out)))
        out[at : at + draw(st.integers(0, 2))] = draw(st.sampled_from((b"", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x0b", b"5", b"\r\n\r\n")))
    return bytes(out)


@st.composite
def conversations(draw):
    """[(from the server, bytes)], each one segment."""
    out = []
    for data in draw(st.lists(requests(), min_size=1, max_size=5)):
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
        out += [(False, data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]
        if draw(st.booleans()):
            out.append((True, draw(st.sampled_from(REPLIES))))
    return out


def packets_of(conversation, syn=True, fin=True):
    """[(ts_ns, back, seq, ack, flags, payload)], the positions of both streams beginning at 1."""
    out, at = [], [1, 1]
    if syn:
        out += [(False, 0, 0, net.SYN, b""), (True, 0, 1, net.SYN | net.ACK, b""), (False, 1, 1, net.ACK, b"")]
    for back, data in conversation:
        out.append((back, at[back], at[1 - back], net.ACK, data))
        at[back] += len(data)
    if fin:
        out += [(False, at[0], at[1], net.FIN | net.ACK, b""), (True, at[1], at[0] + 1, net.FIN | net.ACK, b"")]
    return [(10**18 + i * 1_000_000, *packet) for i, packet in enumerate(out)]


@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations(), st.sampled_from((True, True, True, False)), st.booleans())
@example([(False, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")], True, True)
def test_engine_and_oracle_agree(conversation, syn, fin):
    check(packets_of(conversation, syn, fin))


@pytest.mark.parametrize("line", LINES)
def test_each_field_alone(line):
    for start in (b"POST / HTTP/1.1\r\nHost: a\r\n", b"POST / HTTP/1.0\r\nContent-Length: 2\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b"POST / HTTP/1.1\r\n"):
        for body in (b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""):
            data = start + line + b"\r\n\r\n" + body
            check(packets_of([(False, data), (True, REPLIES[0]), (False, b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"), (True, REPLIES[1])]))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_each_chunk_alone(chunk):
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for after in (b"0\r\n\r\n", b""):
        check(packets_of([(False, head + chunk + after), (True, REPLIES[0]), (False, b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"), (True, REPLIES[1])]))
        check(packets_of([(False, head), *((False, bytes([byte])) for byte in chunk + after), (False, b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n")]))


@pytest.mark.parametrize("start", STARTS)
def test_each_request_line_alone(start):
    first, second = b"GET /first HTTP/1.1\r\nHost: b\r\n\r\n", b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"
    data = start + b"\r\nHost: a\r\n\r\n"
    check(packets_of([(False, data), (False, second)]))
    check(packets_of([(False, first), (False, data), (False, second)]))
    check(packets_of([(False, first), *((False, bytes([byte])) for byte in data), (False, second)]))
    check(packets_of([(False, data), (False, second), (True, REPLIES[0]), (True, REPLIES[1])], syn=False))
