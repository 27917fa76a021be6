"""Ambiguous framings of the literature on request smuggling: none of them is ever sent, nor anything that hides behind one, and each is counted once.

Sources: Linhart, Klein, Heled, Orrin, "HTTP Request Smuggling" (2005); Klein, "HTTP Request Smuggling in 2020"; Kettle, "HTTP Desync Attacks" (2019),
"Browser-Powered Desync Attacks" (2022), "HTTP/1.1 Must Die" (2025); Wallin, "Funky chunks" (2025); Jabiyev et al., "T-Reqs" (2021);
RFC 9112 section 11.2 and the advisories on bare line ends, names with underscores and control bytes.
"""

import packetmake as net
import pytest
from bothways import capture, oracle
from enginerun import run

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
VICTIM = b"GET /victim HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
LAST = b"0\r\n\r\n"


def post(*lines, body=b"", host=b"Host: a"):
    return b"POST / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in ([host] if host else []) + list(lines)) + b"\r\n" + body


def te(line, body=CHUNKED):
    return post(line, body=body)


def chunk(body):
    return post(b"Transfer-Encoding: chunked", body=body)


AMBIGUOUS = [  # what the client sends, why it is unsafe
    # two framings
    (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=LAST), "CL.TE, both agree"),
    (post(b"Content-Length: %d" % (5 + len(HIDDEN)), b"Transfer-Encoding: chunked", body=LAST + HIDDEN), "CL.TE: hidden behind the last chunk"),
    (post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n" + LAST), "TE.CL: hidden in the first chunk"),
    (post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=CHUNKED), "CL.TE with zero"),
    (post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"hello"), "identity beside a length"),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED, "chunked in HTTP/1.0"),
    (b"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST, "both in HTTP/1.0"),
    # Content-Length
    (post(b"Content-Length: 5", b"Content-Length: 0", body=b"hello"), "two lengths"),
    (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), "two equal lengths"),
    (post(b"Content-Length: 5", b"content-length: 6", body=b"helloo"), "two lengths in two spellings"),
    (post(b"Content-Length: 5, 5", body=b"hello"), "a list of equal lengths"),
    (post(b"Content-Length: 5, 0", body=b"hello"), "a list of lengths"),
    (post(b"Content-Length: 5,", body=b"hello"), "a list with an empty member"),
    (post(b"Content-Length: ,5", body=b"hello"), "a list that begins empty"),
    (post(b"Content-Length: +5", body=b"hello"), "a plus sign"),
    (post(b"Content-Length: -5", body=b"hello"), "a minus sign"),
    (post(b"Content-Length: 0x5", body=b"hello"), "hexadecimal"),
    (post(b"Content-Length: 0b101", body=b"hello"), "binary"),
    (post(b"Content-Length: 5e0", body=b"hello"), "an exponent"),
    (post(b"Content-Length: 5.0", body=b"hello"), "a fraction"),
    (post(b"Content-Length: 1_0", body=b"0123456789"), "an underscore between digits, as Python's int() takes it"),
    (post(b"Content-Length: 5 5", body=b"hello"), "a blank between digits"),
    (post(b"Content-Length: 5\t0", body=b"hello"), "a tab between digits"),
    (post(b"Content-Length: 5;x", body=b"hello"), "a parameter"),
    (post(b'Content-Length: "5"', body=b"hello"), "quotes"),
    (post(b"Content-Length: 5\x0b", body=b"hello"), "a vertical tab behind"),
    (post(b"Content-Length: \x0c5", body=b"hello"), "a form feed before"),
    (post(b"Content-Length: 5\0", body=b"hello"), "a NUL behind"),
    (post(b"Content-Length: \xb5", body=b"hello"), "a byte that is no digit in ASCII"),
    (post("Content-Length: \u0665".encode(), body=b"hello"), "a digit of another script"),
    (post(b"Content-Length:", body=b"hello"), "no value"),
    (post(b"Content-Length: abcde", body=b"hello"), "letters"),
    (post(b"Content-Length: 18446744073709551621", body=b"hello"), "5 modulo 2^64"),
    (post(b"Content-Length: 4294967301000000000000", body=b"hello"), "beyond 64 bits"),
    (post(b"Content-Length: 9223372036854775808", body=b"hello"), "2^63"),
    (post(b"Content-Length : 5", body=b"hello"), "a blank before the colon"),
    (post(b"Content-Length\t: 5", body=b"hello"), "a tab before the colon"),
    (post(b"Content-Length\r: 5", body=b"hello"), "a CR before the colon"),
    (post(b"Content-Length\0: 5", body=b"hello"), "a NUL in the name"),
    (post(b"Content-Length\x0b: 5", body=b"hello"), "a vertical tab in the name"),
    (post(b"Content_Length: 5", body=b"hello"), "an underscore in the name"),
    (post(b"Content Length: 5", body=b"hello"), "a blank in the name"),
    (post(b"Content-Length 5", body=b"hello"), "no colon"),
    (post(b"Content-Length: 5\r\n 0", body=b"hello"), "folded"),
    (post(b"Content-Length:\r\n 5", body=b"hello"), "folded before the value"),
    (post(b" Content-Length: 5", host=b"", body=b"hello"), "a blank before the first field"),
    (post(b"X: 1", b" Content-Length: 5", body=b"hello"), "hidden in a folded line"),
    (post(b"X: 1", b"\tContent-Length: 5", body=b"hello"), "hidden in a line folded by a tab"),
    # Transfer-Encoding
    (te(b"Transfer-Encoding: chunked, identity"), "chunked is not the last"),
    (te(b"Transfer-Encoding: identity, chunked, gzip"), "chunked in the middle"),
    (te(b"Transfer-Encoding: chunked, chunked"), "chunked twice in a list"),
    (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED), "chunked twice"),
    (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=CHUNKED), "TE.TE: the second is unknown"),
    (post(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked", body=CHUNKED), "TE.TE: the first is unknown"),
    (post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=CHUNKED), "TE.TE: identity first"),
    (te(b"Transfer-Encoding: xchunked"), "xchunked"),
    (te(b"Transfer-Encoding: chunkedx"), "chunkedx"),
    (te(b"Transfer-Encoding: chunked-"), "a hyphen behind"),
    (te(b"Transfer-Encoding: chunked chunked"), "no comma"),
    (te(b"Transfer-Encoding: x chunked"), "a blank instead of a comma"),
    (te(b"Transfer-Encoding: chunked;q=1"), "a parameter"),
    (te(b"Transfer-Encoding: gzip;q=1, chunked"), "a parameter of another coding"),
    (te(b'Transfer-Encoding: "chunked"'), "double quotes"),
    (te(b"Transfer-Encoding: 'chunked'"), "single quotes, which are token characters"),
    (te(b"Transfer-Encoding: ,chunked"), "an empty member before"),
    (te(b"Transfer-Encoding: chunked,"), "an empty member behind"),
    (te(b"Transfer-Encoding: \x0bchunked"), "a vertical tab before"),
    (te(b"Transfer-Encoding:\x0bchunked"), "a vertical tab instead of a blank"),
    (te(b"Transfer-Encoding: chunked\x0b"), "a vertical tab behind"),
    (te(b"Transfer-Encoding: \x0cchunked"), "a form feed before"),
    (te(b"Transfer-Encoding: chunked\0"), "a NUL behind"),
    (te(b"Transfer-Encoding: chun\0ked"), "a NUL inside"),
    (te(b"Transfer-Encoding: chunked\r"), "a CR behind"),
    (te(b"Transfer-Encoding: \rchunked"), "a CR before"),
    (te(b"Transfer-Encoding: \xa0chunked"), "a no-break space before"),
    (te(b"Transfer-Encoding: \xefchunked"), "a high byte before"),
    (te(b"Transfer-Encoding: chunked\xff"), "a high byte behind"),
    (te("Transfer-Encoding: chun\u212aed".encode()), "a Kelvin sign, whose lower case is k"),
    (te(b"Transfer-Encoding: ch\x96nked"), "one byte off"),
    (te(b"Transfer-Encoding:"), "no value"),
    (te(b"Transfer-Encoding : chunked"), "a blank before the colon"),
    (te(b"Transfer-Encoding\t: chunked"), "a tab before the colon"),
    (te(b"Transfer-Encoding\x0b: chunked"), "a vertical tab before the colon"),
    (te(b"Transfer-Encoding\r: chunked"), "a CR before the colon"),
    (te(b"Transfer-Encoding\r\n : chunked"), "the colon in a folded line"),
    (te(b"Transfer-Encoding\r\n: chunked"), "the colon on the next line"),
    (te(b"Transfer-Encoding\0: chunked"), "a NUL in the name"),
    (te(b"Transfer-Encoding\xff: chunked"), "a high byte in the name"),
    (te(b"Transfer_Encoding: chunked"), "an underscore in the name"),
    (te(b"Transfer Encoding: chunked"), "a blank in the name"),
    (te(b"Transfer-Encoding chunked"), "no colon"),
    (te(b"\x0bTransfer-Encoding: chunked"), "a control byte before the name"),
    (te(b"\xefTransfer-Encoding: chunked"), "a high byte before the name"),
    (te(b":Transfer-Encoding: chunked"), "a colon before the name"),
    (te(b'"Transfer-Encoding": chunked'), "the name in quotes"),
    (te(b"Transfer-Encoding:\r\n chunked"), "folded before the value"),
    (te(b"Transfer-Encoding: chunked\r\n x"), "folded behind the value"),
    (te(b"Transfer-Encoding: gzip,\r\n chunked"), "a folded list"),
    (post(b"X: 1", b" Transfer-Encoding: chunked", body=CHUNKED), "hidden in a folded line"),
    (post(b"X: 1", b"\tTransfer-Encoding: chunked", body=CHUNKED), "hidden in a line folded by a tab"),
    (post(b" Transfer-Encoding: chunked", host=b"", body=CHUNKED), "a blank before the first field"),
    (post(b"X: 1\nTransfer-Encoding: chunked", body=CHUNKED), "behind a bare LF"),
    (post(b"X: 1\rTransfer-Encoding: chunked", body=CHUNKED), "behind a bare CR"),
    (post(b"X: 1\n\rTransfer-Encoding: chunked", body=CHUNKED), "behind LF CR"),
    (post(b"X: 1\0\r\nTransfer-Encoding: chunked", body=CHUNKED), "behind a NUL"),
    # chunks
    (chunk(b"5\nhello\r\n" + LAST), "a bare LF behind a size"),
    (chunk(b"5\r\nhello\n" + LAST), "a bare LF behind chunk data"),
    (chunk(b"5\rhello\r\n" + LAST), "a bare CR behind a size"),
    (chunk(b"5\r\nhello\r" + LAST), "a bare CR behind chunk data"),
    (chunk(b"5\r\r\nhello\r\n" + LAST), "CR CR LF behind a size"),
    (chunk(b"5;\nhello\r\n" + LAST), "an extension that ends in a bare LF"),
    (chunk(b"5;x\nhello\r\n" + LAST), "TERM.EXT: a bare LF inside an extension"),
    (chunk(b"5;x\n\nhello\r\n" + LAST), "two bare LF in an extension"),
    (chunk(b"2;\nxx\r\n5\r\nhello\r\n" + LAST), "EXT.TERM: the data begins at the bare LF, or not"),
    (chunk(b"5;x\rhello\r\nhello\r\n" + LAST), "a bare CR in an extension"),
    (chunk(b"5;x\ry\r\nhello\r\n" + LAST), "a CR inside an extension"),
    (chunk(b"5;\0\r\nhello\r\n" + LAST), "a NUL in an extension"),
    (chunk(b'5;x="\x01"\r\nhello\r\n' + LAST), "a control byte in an extension"),
    (chunk(b"5 \r\nhello\r\n" + LAST), "a blank behind a size"),
    (chunk(b"5\t\r\nhello\r\n" + LAST), "a tab behind a size"),
    (chunk(b" 5\r\nhello\r\n" + LAST), "a blank before a size"),
    (chunk(b"\t5\r\nhello\r\n" + LAST), "a tab before a size"),
    (chunk(b"\r\n5\r\nhello\r\n" + LAST), "an empty line before a size"),
    (chunk(b"5 5\r\nhello\r\n" + LAST), "a blank between digits of a size"),
    (chunk(b"0_5\r\nhello\r\n" + LAST), "an underscore in a size"),
    (chunk(b"0x5\r\nhello\r\n" + LAST), "0x before a size"),
    (chunk(b"+5\r\nhello\r\n" + LAST), "a plus sign"),
    (chunk(b"-5\r\nhello\r\n" + LAST), "a minus sign"),
    (chunk(b"5g\r\nhello\r\n" + LAST), "a letter that is no digit"),
    (chunk(b"5\x0b\r\nhello\r\n" + LAST), "a vertical tab behind a size"),
    (chunk(b"5\0\r\nhello\r\n" + LAST), "a NUL behind a size"),
    (chunk(b"5,\r\nhello\r\n" + LAST), "a comma behind a size"),
    (chunk(b"5 x\r\nhello\r\n" + LAST), "an extension without a semicolon"),
    (chunk(b"\r\nhello\r\n" + LAST), "no size"),
    (chunk(b";x\r\nhello\r\n" + LAST), "an extension without a size"),
    (chunk(b"10000000000000005\r\nhello\r\n" + LAST), "5 modulo 2^64"),
    (chunk(b"fffffffffffffffb\r\nhello\r\n" + LAST), "a negative size"),
    (chunk(b"5\r\nhelloXX" + LAST), "data longer than its size (two bytes skipped by some)"),
    (chunk(b"5\r\nhello" + LAST), "no line end behind chunk data"),
    (chunk(b"0\n\r\n"), "a bare LF behind the last size"),
    (chunk(b"0\r\n\n"), "a bare LF ends the trailers"),
    (chunk(b"0\r\nX: 1\n\r\n"), "a bare LF in the trailers"),
    (chunk(b"0 \r\n\r\n"), "a blank behind the last size"),
    (chunk(b"0\r\n\rX" + b"\r\n\r\n"), "a bare CR in the trailers"),
    (chunk(b"0\r\nGET /hidden HTTP/1.1\r\n\r\n"), "a request line in the trailers"),
    (chunk(b"0\r\nX: 1\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"), "a request in the trailers, behind a field"),
    (chunk(b"0\r\nX : 1\r\n\r\n"), "a blank before a colon in the trailers"),
    (chunk(b"0\r\nX(: 1\r\n\r\n"), "a name that is no token in the trailers"),
    (chunk(b"0\r\n: 1\r\n\r\n"), "no name in the trailers"),
    (chunk(b"0\r\nX\r\n\r\n"), "no colon in the trailers"),
    (chunk(b"0\r\n X: 1\r\n\r\n"), "a folded line without a field before it in the trailers"),
    # heads
    (b"POST / HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello", "bare LF everywhere"),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\n\r\nhello", "a bare LF behind one field"),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\nhello", "a bare LF ends the head"),
    (b"POST / HTTP/1.1\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "a bare LF behind the request line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rGET /hidden HTTP/1.1\r\nHost: b\r\n\r\n", "a request line behind a bare CR"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", "a NUL in a value"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", "a blank before a colon"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "a line without a colon"),
    (b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", "a line without a name"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX(: 1\r\n\r\n", "a name that is no token"),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\x01X: 1\r\n\r\n", "a control byte before a name"),
    (b"GET / HTTP/1.1\r\n Host: b\r\nHost: a\r\n\r\n", "a blank right behind the request line"),
    (b"GET /\thidden HTTP/1.1\r\nHost: a\r\n\r\n", "a tab in the target"),
    (b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", "two versions"),
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "two blanks"),
    (b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n", "a vertical tab in the target"),
    (b"GET /\rHost: b HTTP/1.1\r\nHost: a\r\n\r\n", "a CR in the target"),
    (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "a NUL in the target"),
    # Host
    (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "a folded Host"),
    (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "a blank behind Host"),
    (b"GET / HTTP/1.1\r\nX: 1\r\n Host: b\r\nHost: a\r\n\r\n", "a Host in a folded line"),
    (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "a NUL in Host"),
    (b"GET / HTTP/1.1\r\nHost: a\rHost: b\r\n\r\n", "a Host behind a bare CR"),
]  # fmt: skip

TWO_HOSTS = [  # ambiguous, but the framing is certain: what follows is trusted (H4)
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two Hosts"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", "two Hosts in two spellings"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n", "a Host and an empty one"),
]

SOUND = [  # framing that only broken servers get wrong: sent once, and what looks like a request inside it is no request
    (post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN), "CL.0: a body that is a request"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, "GET with a body"),
    (chunk(b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n" + LAST), "a chunk that is a request"),
    (chunk(b"5\r\n0\r\n\r\n\r\n" + LAST), "a chunk that holds the last chunk"),
    (chunk(b"5;x=1\r\nhello\r\n0;y\r\n\r\n"), "extensions"),
    (chunk(b'5 ; x="1;2"\r\nhello\r\n' + LAST), "a quoted extension behind blanks"),
    (chunk(b"0000000000000000000000005\r\nhello\r\n000\r\n\r\n"), "leading zeros"),
    (chunk(b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST), "digits in both cases"),
    (chunk(b"5\r\nhello\r\n0\r\nX: 1\r\n folded\r\nY:2\r\n\r\n"), "a folded line in the trailers"),
    (chunk(b"5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\n\r\n"), "framing fields in the trailers"),
    (post(b"Content-Length: 0005", body=b"hello"), "a length with leading zeros"),
    (post(b"content-LENGTH:5  ", body=b"hello"), "outer blanks and case"),
    (te(b"Transfer-Encoding:\tCHUNKED \t"), "outer tabs and case"),
    (te(b"Transfer-Encoding: gzip, chunked"), "two codings"),
    (post(b"X-Content-Length: 99", b"Content-Length: 5", b"Content-LengthX: 7", body=b"hello"), "names that only look like it"),
    (post(b"X: Content-Length: 99", b"Content-Length: 5", body=b"hello"), "a value that looks like a field"),
    (post(b"X: 1", b" folded", b"Content-Length: 5", body=b"hello"), "a folded line of another field"),
    (b"\r\n\r\n" + post(b"Content-Length: 5", body=b"hello"), "empty lines before it"),
    (post(b"TE: trailers, chunked", b"Content-Length: 5", body=b"hello"), "TE is not Transfer-Encoding"),
]  # fmt: skip

NO_REQUEST = [  # no request line at all (H1)
    (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", "CR CR LF behind the request line"),
    (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "a blank behind the version"),
    (b"GET / HTTP/1.1\x0b\r\nHost: a\r\n\r\n", "a vertical tab behind the version"),
    (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", "tabs instead of blanks"),
    (b"GET\x0b/\x0bHTTP/1.1\r\nHost: a\r\n\r\n", "vertical tabs instead of blanks"),
    (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a blank before the method"),
    (b"\x0bGET / HTTP/1.1\r\nHost: a\r\n\r\n", "a vertical tab before the method"),
    (b"GET /\r\nHost: a\r\n\r\n", "HTTP/0.9"),
    (b"GET / HTTP/1,1\r\nHost: a\r\n\r\n", "a comma in the version"),
    (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", "a longer version"),
    (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", "a longer minor version"),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", "a version in small letters"),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "another version"),
    (b"GET / HTTP/1.1\rHost: a\r\n\r\n", "a bare CR behind the request line"),
    (b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", "a NUL in the method"),
    (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "a method that is no token"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
]  # fmt: skip


def packets_of(pieces, replies=()):
    """A connection: the client's segments, then the server's."""
    out = [(False, 0, 0, net.SYN, b""), (True, 0, 1, net.SYN | net.ACK, b""), (False, 1, 1, net.ACK, b"")]
    at, back = 1, 1
    for piece in pieces:
        out.append((False, at, back, net.ACK, piece))
        at += len(piece)
    for each in replies:
        out.append((True, back, at, net.ACK, each))
        back += len(each)
    return [(10**18 + i * 1_000_000, *p) for i, p in enumerate(out)]


def through(pieces, replies=(), **options):
    """(rows, counters, messages of the oracle)."""
    packets = packets_of(pieces, replies)
    return *run(capture(packets), **options), oracle(packets)[0]


WAYS = {
    "whole": lambda raw: [raw],
    "byte by byte": lambda raw: [raw[i : i + 1] for i in range(len(raw))],
    "with a victim behind": lambda raw: [raw + VICTIM],
    "with another victim behind": lambda raw: [raw + HIDDEN + VICTIM],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("raw", [row[0] for row in AMBIGUOUS], ids=[row[1] for row in AMBIGUOUS])
def test_nothing_ambiguous_is_sent(raw, way):
    pieces = way(raw)
    rows, counters, found = through(pieces, incomplete=True)
    first = [r for r in rows if r["seq"] == 1]
    assert len(first) == 1  # counted once
    assert first[0]["withheld"] == "ambiguous" or first[0]["incomplete"] == "malformed", first
    assert counters["selected"] == 0
    assert all(r["withheld"] or r["incomplete"] for r in rows)  # nor what may hide behind it
    assert counters["found"] + sum(counters["incomplete"].values()) >= len(rows)
    assert through(pieces, show=False)[0] == []  # not one row leaves
    assert all(m.incomplete or m.withheld() for m in found)
    assert [m.incomplete or m.withheld() for m in found][0] == (first[0]["incomplete"] or first[0]["withheld"])


@pytest.mark.parametrize("raw", [row[0] for row in AMBIGUOUS], ids=[row[1] for row in AMBIGUOUS])
def test_an_honest_request_afterwards_is_trusted_again(raw):
    """The client waits for the answer and then asks: the server says where it stands (H8)."""
    packets = packets_of([raw], [OK])
    seq, ack = 1 + len(raw), 1 + len(OK)
    packets.append((packets[-1][0] + 1_000_000, False, seq, ack, net.ACK, VICTIM))
    packets.append((packets[-1][0] + 1_000_000, True, ack, seq + len(VICTIM), net.ACK, OK))
    rows, counters = run(capture(packets))
    assert counters["selected"] <= 1
    assert [r["target"] for r in rows if not r["withheld"]] in ([b"/victim"], [])


@pytest.mark.parametrize("way", ["whole", "byte by byte", "with a victim behind"])
@pytest.mark.parametrize("raw", [row[0] for row in SOUND], ids=[row[1] for row in SOUND])
def test_what_is_sound_is_sent_once(raw, way):
    rows, counters, found = through(WAYS[way](raw))
    wanted = [b"/"] + [b"/victim"] * ("victim" in way)
    assert [r["target"] for r in rows] == wanted and counters["selected"] == len(wanted)
    assert [m.head.target for m in found if m.withheld() is None] == wanted
    assert counters["incomplete"] == {} and sum(counters["other"].values()) == 0


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("raw", [row[0] for row in NO_REQUEST], ids=[row[1] for row in NO_REQUEST])
def test_what_has_no_request_line_is_something_else(raw, way):
    """The whole connection is, when it begins so; after a request only this one is lost, and counted."""
    rows, counters, found = through(way(raw), incomplete=True)
    assert rows == [] == found and counters["found"] == 0 and counters["incomplete"] == {}
    assert sum(counters["other"].values()) == 1
    rows, counters, found = through([VICTIM, *way(raw)], incomplete=True)
    assert [r["target"] for r in rows if not r["withheld"]] == [b"/victim"] and len(rows) == len(found) == counters["found"]
    if not raw.startswith(b"PRI"):
        assert counters["incomplete"] == {"malformed": 1}


@pytest.mark.parametrize("raw", [row[0] for row in TWO_HOSTS], ids=[row[1] for row in TWO_HOSTS])
def test_two_hosts_are_withheld(raw):
    for way in ("whole", "byte by byte"):
        rows, counters, found = through(WAYS[way](raw), incomplete=True)
        assert [r["withheld"] for r in rows] == ["ambiguous"] == [m.withheld() for m in found] and counters["selected"] == 0


@pytest.mark.parametrize("raw", [row[0] for row in TWO_HOSTS], ids=[row[1] for row in TWO_HOSTS])
def test_what_follows_two_hosts_is_trusted(raw):
    rows, _, found = through([raw + VICTIM])
    assert [m.withheld() for m in found] == ["ambiguous", None]
    assert [r["withheld"] for r in rows] == ["ambiguous", None]


def test_what_follows_an_ambiguous_message_with_a_gap_is_not_trusted():
    body = b"x" * 100
    raw = post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"12c\r\n" + 3 * body + b"\r\n" + LAST) + VICTIM
    cut = raw.index(body)
    packets = packets_of([raw[:cut], body, body, raw[cut + 200 :]])
    del packets[4]
    rows, counters = run(capture(packets))
    assert counters["incomplete"] == {"gap": 1}
    assert [(r["target"], r["withheld"]) for r in rows] == [(b"/victim", "ambiguous")]


@pytest.mark.parametrize("line", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_what_follows_a_connect_with_a_body_is_not_trusted(line):
    raw = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\nhelloGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    rows, counters, _ = through([raw], [b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"])
    assert rows[0]["withheld"] == "connect" and counters["selected"] == 0
