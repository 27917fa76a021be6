"""Messages out of streams: rules H1 to H12 of docs/design.md. Each conversation is read as it was sent, and again cut at every byte."""

import hashlib
import random

import pcapmake as make
import pytest
from engine import read, targets

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HOST = b"Host: a.example\r\n"
BODY = b"0123456789abcdef"


def get(n=0, fields=b"", version=b"1.1", method=b"GET", target=b"/%d"):
    return method + b" " + (target % n if b"%" in target else target) + b" HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n"


def post(n=0, body=BODY, fields=b""):
    return get(n, b"Content-Length: %d\r\n%s" % (len(body), fields), method=b"POST") + body


def chunks(n, framed, fields=b""):
    return get(n, b"Transfer-Encoding: chunked\r\n" + fields, method=b"POST") + framed


def reply(status=200, fields=b"", body=None, version=b"1.1"):
    if body is not None:
        fields += b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/%s %d X\r\n%s\r\n%s" % (version, status, fields, body or b"")


def spoken(turns, every=None, end=True):
    """A conversation of turns: (side, bytes). every: cuts what is said into segments of so many bytes."""
    one = make.Talk(step=100_000).open()
    for side, data in turns:
        one.say(side, data, cuts=range(every, len(data), every) if every else ())
    return one.end().packets if end else one.packets


def seen(turns, *, everywhere=True, end=True, **options):
    """[(target, reason, status)], counters; the same however the bytes are cut into segments."""

    def once(packets):
        rows, counters = read(packets, incomplete=True, **options)
        found = [(row["target"].decode("latin-1"), row["incomplete"] or row["withheld"], None if row["incomplete"] else row["status"]) for row in rows]
        return found, counters, [row["body_sha256"] for row in rows if not row["incomplete"]]

    whole = once(spoken(turns, end=end))
    for every in (1, 2, 3, 7, 29) if everywhere else ():
        cut = once(spoken(turns, every, end))
        assert cut[0] == whole[0], every
        assert cut[2] == whole[2], every
        for name in ("incomplete", "withheld", "lost_estimated", "found"):
            assert cut[1][name] == whole[1][name], (every, name)
        assert sum(cut[1]["other"].values()) == sum(whole[1]["other"].values()), "its name may need more than the first byte"
    return whole[0], whole[1]


def sha(data):
    return hashlib.sha256(data).hexdigest()


AFTER = [(0, get(9)), (1, OK)]
FINE = ("/9", None, 200)


# ---- H1: request lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"G", b"get", b"PROPFIND", b"M-SEARCH", b"!#$%&'*+-.^_`|~", b"0", b"PRI", b"HTTP", b"A" * 32], ids=repr)
def test_any_token_is_a_method(method):
    turns = [(0, method + b" /0 HTTP/1.1\r\n" + HOST + b"\r\n"), (1, OK), *AFTER]
    assert seen(turns)[0] == [("/0", None, 200), FINE]


@pytest.mark.parametrize("line", [b"A" * 33 + b" / HTTP/1.1", b"G(T / HTTP/1.1", b"GET / HTTP/2.0", b"GET / HTTP/1.x", b"GET / HTTP/11", b"GET /", b"GET  ", b"GET / http/1.1", b" GET / HTTP/1.1"], ids=repr)
def test_what_is_no_request_line(line):
    """At the beginning: no HTTP at all. Behind a request: malformed, and the next segment that begins with one is read."""
    rows, counters = seen([(0, line + b"\r\n" + HOST + b"\r\n"), (1, OK)], everywhere=False)
    assert rows == [] and counters["found"] == 0 and counters["other"] == {"other": 1}
    rows, counters = seen([(0, get(0)), (1, OK), (0, line + b"\r\n" + HOST + b"\r\n"), (1, reply(400, body=b"")), *AFTER], everywhere=False)
    assert rows == [("/0", None, 200), FINE]
    assert counters["incomplete"] == {"malformed": 1}


def test_empty_lines_before_a_request():
    turns = [(0, b"\r\n\r\n" + get(0)), (1, OK), (0, b"\n\r\n" + post(1)), (1, OK), (0, b"\r\n"), *AFTER]
    assert seen(turns)[0] == [("/0", None, 200), ("/1", None, 200), FINE]


@pytest.mark.parametrize("version,known", [(b"1.0", 10), (b"1.1", 11), (b"1.2", 11), (b"1.9", 11)])
def test_versions(version, known):
    rows, counters = read(spoken([(0, get(0, version=version)), (1, OK), *AFTER]))
    assert [row["version"] for row in rows] == [known, 11]


@pytest.mark.parametrize("target", [b"/a b", b"/a\tb", b"/\x01", b"/\x7f", b" /", b"/ "], ids=repr)
def test_blanks_and_control_bytes_in_a_target_are_ambiguous(target):
    rows, _ = seen([(0, get(0, target=target)), (1, OK)])
    assert rows == [(target.decode(), "ambiguous", 200)]


@pytest.mark.parametrize("target", [b"/", b"*", b"http://b.example/x?y", b"https://b.example", b"HTTP://u:p@b.example:80/", b"/\xff\xfe", b"//x", b"?", b"foo", b"/" + b"u" * 4000], ids=lambda target: repr(target[:24]))
def test_any_other_target(target):
    rows, _ = seen([(0, get(0, target=target, method=b"OPTIONS")), (1, OK), *AFTER])
    assert rows == [(target.decode("latin-1"), None, 200), FINE]


def test_absolute_form_names_the_authority():
    rows, _ = read(spoken([(0, get(0, target=b"http://u:p@b.example:81/x")), (1, OK)]))
    assert (rows[0]["host"], rows[0]["authority"]) == (b"a.example", b"b.example:81")
    rows, _ = read(spoken([(0, b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"), (1, OK)]), show=False)
    assert rows[0]["data"] == b"OPTIONS * HTTP/1.1\r\nHost: a.example-shadow\r\n\r\n"


# ---- H2 and the other limits ----------------------------------------------------------------------------------------


def test_the_largest_head_and_one_byte_more():
    for limit in (256, 1000, 65536):
        for more in (0, 1):
            pad = limit - len(get(0, b"X: \r\n")) + more
            turns = [(0, get(0, b"X: " + b"y" * pad + b"\r\n")), (1, OK), *AFTER]
            rows, counters = seen(turns, everywhere=limit < 1000 and not more, max_head=limit)
            assert rows == [("/0", "head_too_large" if more else None, None if more else 200), FINE]
            assert counters["incomplete"] == ({"head_too_large": 1} if more else {})


def test_a_head_without_end():
    turns = [(0, get(0)[:-2] + b"X: y\r\n" * 30_000)]
    for options in ({}, {"max_head": 300}):
        rows, counters = seen(turns, everywhere=False, **options)
        assert rows == [("/0", "head_too_large", None)] and counters["incomplete"] == {"head_too_large": 1}


def test_lines_of_a_head():
    for lines, why in ((256, None), (257, "head_too_large")):
        turns = [(0, get(0, b"X: y\r\n" * (lines - 1))), (1, OK), *AFTER]
        rows, counters = seen(turns, everywhere=False)
        assert rows == [("/0", why, None if why else 200), FINE]


def test_the_largest_body_and_one_byte_more():
    for size, why in ((100, None), (101, "too_large")):
        for request in (post(0, b"x" * size), chunks(0, b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size)), chunks(0, b"32\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (b"x" * 50, size - 50, b"x" * (size - 50)))):
            for every in (None, 1, 7):
                rows, counters = read(spoken([(0, request), (1, OK), *AFTER], every), show=False, max_body=100)
                assert [row["target"] for row in rows] == ([b"/9"] if why else [b"/0", b"/9"])
                assert counters["incomplete"] == ({why: 1} if why else {})


def test_memory_for_bodies_is_bounded():
    packets = []
    for port in range(40):
        make.Talk(client=(b"\x0a\0\0\1", 40000 + port), mtu=60_000, at=make.START_NS + port * 1000, packets=packets).open().ask(post(port, bytes(200_000))[:-1])
    for port in range(40, 45):
        make.Talk(client=(b"\x0a\0\0\1", 40000 + port), at=make.START_NS + 10**10 + port * 10**6, packets=packets).open().ask(post(port)).tell(OK).end()
    rows, counters = read(sorted(packets), show=False, max_memory=4 << 20)
    assert counters["incomplete"]["evicted"] >= 20 and counters["no_memory"] == counters["incomplete"]["evicted"]
    assert counters["found"] == counters["selected"] + sum(counters["withheld"].values())
    assert sum(counters["incomplete"].values()) + counters["found"] == 45


# ---- H3, H4, H5: framing --------------------------------------------------------------------------------------------

LENGTH = b"Content-Length: 16\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"10\r\n" + BODY + b"\r\n0\r\n\r\n"
AMBIGUOUS = {  # a whole request
    "chunked and length": get(0, CHUNKED + b"Content-Length: 3\r\n", method=b"POST") + LAST,
    "length and chunked": get(0, b"Content-Length: 3\r\n" + CHUNKED, method=b"POST") + LAST,
    "two equal lengths": get(0, LENGTH + LENGTH, method=b"POST") + BODY,
    "two lengths": get(0, LENGTH + b"Content-Length: 17\r\n", method=b"POST") + BODY,
    "a list of lengths": get(0, b"Content-Length: 16, 16\r\n", method=b"POST") + BODY,
    "chunked twice in a line": get(0, b"Transfer-Encoding: chunked, chunked\r\n", method=b"POST") + LAST,
    "chunked in two lines": get(0, CHUNKED + CHUNKED, method=b"POST") + LAST,
    "chunked in HTTP/1.0": get(0, CHUNKED, version=b"1.0", method=b"POST") + LAST,
    "an empty coding": get(0, b"Transfer-Encoding: , chunked\r\n", method=b"POST") + LAST,
    "an odd byte in the coding": get(0, b"Transfer-Encoding: \x0bx,chunked\r\n", method=b"POST") + LAST,
    "bare LF in a line": get(0, b"X: y\n"),
    "bare LF at the end": get(0)[:-2] + b"\n",
    "bare LF throughout": get(0).replace(b"\r\n", b"\n"),
    "bare CR": get(0, b"X: a\rb\r\n"),
    "NUL": get(0, b"X: a\0b\r\n"),
    "blank before the colon": get(0, b"Content-Length : 16\r\n", method=b"POST") + BODY,
    "line without colon": get(0, b"nothing\r\n"),
    "empty name": get(0, b": x\r\n"),
    "name that is no token": get(0, b"X(): y\r\n"),
    "fold at once": b"GET /0 HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "fold of Host": b"GET /0 HTTP/1.1\r\nHost: a.example\r\n .org\r\n\r\n",
    "fold of Content-Length": get(0, b"Content-Length: 16\r\n \r\n", method=b"POST") + BODY,
    "fold of Transfer-Encoding": get(0, b"Transfer-Encoding: chunked\r\n \r\n", method=b"POST") + LAST,
    "fold that hides a length": get(0, b"X: y\r\n Content-Length: 16\r\n"),
    "fold that hides a coding": get(0, b"X: y\r\n\tTRANSFER-ENCODING: chunked\r\n"),
    "underscore length": get(0, b"Content_Length: 16\r\n"),
    "underscore coding": get(0, b"transfer_encoding: chunked\r\n"),
    "two hosts": get(0, b"Host: b.example\r\n"),
    "bare LF after a size": chunks(0, b"10\n" + BODY + b"\r\n0\r\n\r\n"),
    "blank before a size": chunks(0, b" 10\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "blank after a size": chunks(0, b"10 \r\n" + BODY + b"\r\n0\r\n\r\n"),
    "control byte in an extension": chunks(0, b"10;a=\x01\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "bare LF in an extension": chunks(0, b"10;a\n" + BODY + b"\r\n0\r\n\r\n"),
    "bare LF after the last chunk": chunks(0, b"10\r\n" + BODY + b"\r\n0\n\r\n"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_requests_are_found_and_not_sent(name):
    rows, counters = seen([(0, AMBIGUOUS[name]), (1, OK), *AFTER])
    assert rows == [("/0", "ambiguous", 200), FINE], "the next one is confirmed by its reply"
    assert counters["incomplete"] == {}


@pytest.mark.parametrize("name", sorted(AMBIGUOUS.keys() - {"two hosts"}))
def test_what_is_pipelined_behind_an_ambiguous_request_is_not_trusted(name):
    """Not even by replies: the server spoke only after it had all of it."""
    rows, _ = seen([(0, AMBIGUOUS[name] + get(1)), (1, OK + OK), *AFTER])
    assert rows == [("/0", "ambiguous", 200), ("/1", "ambiguous", 200), FINE]


def test_two_hosts_frame_for_certain():
    rows, _ = seen([(0, AMBIGUOUS["two hosts"] + get(1)), (1, OK + OK)])
    assert rows == [("/0", "ambiguous", 200), ("/1", None, 200)]


FINE_FRAMING = {
    "length 0": (get(0, b"Content-Length: 0\r\n", method=b"POST"), b""),
    "no length": (get(0, method=b"POST"), b""),
    "GET with a body": (get(0, LENGTH) + BODY, BODY),
    "leading zeros": (get(0, b"Content-Length: 00016\r\n", method=b"POST") + BODY, BODY),
    "blanks around": (get(0, b"content-LENGTH: \t 16 \t\r\n", method=b"POST") + BODY, BODY),
    "two equal hosts": (get(0, HOST), b""),
    "empty value": (get(0, b"X:\r\nY: \r\n"), b""),
    "a fold": (get(0, b"X: y\r\n z\r\n\tmore\r\n"), b""),
    "a coding before chunked": (get(0, b"Transfer-Encoding: gzip\r\n", method=b"POST")[:-2].replace(b"gzip", b"Chunked") + b"\r\n" + LAST, BODY),
    "chunked": (chunks(0, LAST), BODY),
    "chunks": (chunks(0, b"A\r\n0123456789\r\n006\r\nabcdef\r\n000\r\n\r\n"), BODY),
    "one byte a chunk": (chunks(0, b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"), BODY),
    "extensions": (chunks(0, b'10;a;b=c;d="e f"\r\n' + BODY + b"\r\n0;x\r\n\r\n"), BODY),
    "blank before an extension": (chunks(0, b"10 \t;a\r\n" + BODY + b"\r\n0 ;x\r\n\r\n"), BODY),
    "trailers": (chunks(0, b"10\r\n" + BODY + b"\r\n0\r\nX-Sum: 1\r\nContent-Length: 99\r\n\r\n", b"Trailer: X-Sum\r\n"), BODY),
    "no chunk": (chunks(0, b"0\r\n\r\n"), b""),
    "upper-case digits": (chunks(0, b"0A\r\n0123456789\r\n6\r\nabcdef\r\n0\r\n\r\n"), BODY),
}


@pytest.mark.parametrize("name", FINE_FRAMING)
def test_framing(name):
    request, body = FINE_FRAMING[name]
    turns = [(0, request), (1, OK), (0, request + request), (1, OK + OK), *AFTER]
    rows, _ = seen(turns)
    assert rows == [("/0", None, 200)] * 3 + [FINE]
    whole, _ = read(spoken(turns))
    assert [row["body_sha256"] for row in whole] == [sha(body)] * 3 + [sha(b"")]
    assert [row["body_len"] for row in whole] == [len(body)] * 3 + [0]


MALFORMED = {
    "length of letters": get(0, b"Content-Length: x\r\n", method=b"POST"),
    "signed length": get(0, b"Content-Length: +16\r\n", method=b"POST"),
    "negative length": get(0, b"Content-Length: -1\r\n", method=b"POST"),
    "empty length": get(0, b"Content-Length:\r\n", method=b"POST"),
    "length in hex": get(0, b"Content-Length: 0x10\r\n", method=b"POST"),
    "length of 2^63": get(0, b"Content-Length: 9223372036854775808\r\n", method=b"POST"),
    "length of 30 digits": get(0, b"Content-Length: " + b"9" * 30 + b"\r\n", method=b"POST"),
    "coding that is not chunked": get(0, b"Transfer-Encoding: gzip\r\n", method=b"POST"),
    "chunked and then another": get(0, b"Transfer-Encoding: chunked, gzip\r\n", method=b"POST"),
    "identity": get(0, b"Transfer-Encoding: identity\r\n", method=b"POST"),
    "size of letters": chunks(0, b"xyz\r\n"),
    "no size": chunks(0, b"\r\n"),
    "size of 2^63": chunks(0, b"8000000000000000\r\n"),
    "size of 17 digits": chunks(0, b"10000000000000000\r\n"),
    "chunk without line end": chunks(0, b"3\r\nabcd"),
    "signed size": chunks(0, b"+3\r\nabc\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_incomplete_and_the_next_one_is_found(name):
    rows, counters = seen([(0, MALFORMED[name]), (1, reply(400, body=b"")), *AFTER], everywhere=False)
    assert rows == [("/0", "malformed", None), FINE]
    assert counters["incomplete"]["malformed"] == 1
    for every in (1, 3):  # cut up, only the next one that begins a segment is found
        rows, counters = read(spoken([(0, MALFORMED[name]), (1, reply(400, body=b""))], every), incomplete=True)
        assert [(row["method"], row["target"], row["incomplete"]) for row in rows] == [(rows[0]["method"], b"/0", "malformed")]


def test_the_largest_numbers_that_are_no_error():
    for request in (get(0, b"Content-Length: 9223372036854775807\r\n"), chunks(0, b"7fffffffffffffff\r\nabc")):
        rows, counters = seen([(0, request)])
        assert rows == [("/0", "closed", None)]


def test_lines_of_chunks_without_end():
    for start in (b"10;", b" ", b"0" * 10, b"0\r\nX: "):
        rows, counters = seen([(0, chunks(0, start + (b"0" if start[:2] == b"00" else b"x" if start != b" " else b" ") * 100_000))], everywhere=False)
        assert rows == [("/0", "malformed", None)]


# ---- H9: Expect -----------------------------------------------------------------------------------------------------

LONG = BODY * 4  # longer than a request line: what is shorter, and comes in pieces, is taken for the body
EXPECT = post(0, LONG, b"Expect: 100-continue\r\n")[: -len(LONG)]
EXPECT_CHUNKED = get(0, CHUNKED + b"Expect: 100-Continue\r\n", method=b"PUT")
WAITS = [(EXPECT, LONG), (EXPECT_CHUNKED, LAST)]


@pytest.mark.parametrize("head,body", WAITS, ids=["length", "chunked"])
def test_expect_continue(head, body):
    both = ("/0", None, 200)
    assert seen([(0, head), (1, reply(100)), (0, body), (1, OK), *AFTER])[0] == [both, FINE]
    assert seen([(0, head), (0, body), (1, reply(100)), (1, OK), *AFTER])[0] == [both, FINE], "it does not wait"
    assert seen([(0, head + body), (1, OK), *AFTER])[0] == [both, FINE]
    assert seen([(0, head), (1, reply(100)), (0, body + get(1)), (1, OK + OK)])[0] == [both, ("/1", None, 200)]
    assert seen([(0, head), (0, body + get(1))])[0] == [("/0", None, None), ("/1", None, None)], "no reply at all"


@pytest.mark.parametrize("head,body", WAITS, ids=["length", "chunked"])
def test_expect_refused(head, body):
    no = reply(417, body=b"no")
    assert seen([(0, head), (1, no), *AFTER])[0] == [("/0", "body_refused", None), FINE], "the body never comes"
    assert seen([(0, head), (1, no), (0, get(1) + get(2)), (1, OK + OK)])[0] == [("/0", "body_refused", None), ("/1", None, 200), ("/2", None, 200)]
    assert seen([(0, head), (1, no), (0, body), *AFTER])[0] == [("/0", None, 417), FINE], "it comes all the same"
    assert seen([(0, head), (1, no)])[0] == [("/0", "closed", None)]
    assert seen([(0, head), (1, no)], end=False)[0] == [("/0", "cut_at_end", None)]
    assert seen([(0, head), (1, reply(100)), (0, body[:5]), (1, no)])[0] == [("/0", "closed", None)]
    rows, counters = seen([(0, head), (1, no), (0, head), (1, no), (0, head), (1, reply(100)), (0, body), (1, OK), *AFTER])
    assert rows == [("/0", "body_refused", None)] * 2 + [("/0", None, 200), FINE]
    assert counters["withheld"] == {} and counters["lost_estimated"] == 0


def test_expect_is_not_sent_to_the_shadow():
    rows, _ = read(spoken([(0, EXPECT), (1, reply(100)), (0, LONG), (1, OK)]), show=False)
    assert b"xpect" not in rows[0]["data"] and rows[0]["data"].endswith(b"\r\n\r\n" + LONG)


# ---- H10: CONNECT and Upgrade ---------------------------------------------------------------------------------------

TUNNEL = [(0, b"\x16\3\1\0\5hello"), (1, b"\x16\3\3\0\5world")]
CONNECT = b"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n"


def test_connect():
    went, refused = ("b.example:443", "connect", 200), ("b.example:443", "connect", 407)
    rows, counters = seen([(0, CONNECT), (1, reply(200)), *TUNNEL, (0, get(5))])
    assert rows == [went] and counters["other"] == {"connect": 1}
    rows, counters = seen([(0, CONNECT), (1, reply(200, b"Content-Length: 99\r\n")), *TUNNEL])
    assert rows == [went], "2xx to CONNECT has no body"
    rows, counters = seen([(0, CONNECT), (1, reply(407, body=b"who")), *AFTER])
    assert rows == [refused, FINE] and counters["other"] == {}
    rows, _ = seen([(0, CONNECT), (1, reply(407, body=b"who")), (0, CONNECT), (1, reply(200)), *TUNNEL])
    assert rows == [refused, went]
    rows, _ = seen([(0, CONNECT + get(1)), (1, reply(405, body=b"")), (1, OK)])
    assert rows == [("b.example:443", "connect", 405), ("/1", None, 200)], "pipelined behind it, and refused"
    rows, _ = seen([(0, CONNECT + TUNNEL[0][1]), (1, reply(200)), TUNNEL[1]])
    assert rows == [went], "an eager client"
    rows, _ = seen([(0, get(0)), (1, OK), (0, CONNECT), TUNNEL[0]])
    assert rows == [("/0", None, 200), ("b.example:443", "connect", None)], "no answer"
    rows, _ = seen([(0, CONNECT + get(1))])
    assert rows == [("b.example:443", "connect", None), ("/1", None, None)]


def upgrade(protocol=b"websocket", n=0):
    return get(n, b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n")


SWITCH = reply(101, b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
FRAMES = [(0, b"\x81\x85\1\2\3\4" + b"hello"), (1, b"\x81\5world"), (0, get(7))]


def test_upgrade_accepted():
    for protocol in (b"websocket", b"h2c", b"TLS/1.0"):
        rows, counters = seen([(0, get(1)), (1, OK), (0, upgrade(protocol)), (1, SWITCH), *FRAMES])
        assert rows == [("/1", None, 200), ("/0", "upgrade", 101)]
        assert counters["other"] == {"upgraded": 1} and counters["lost_estimated"] == 0
    rows, counters = seen([(0, upgrade()), (1, SWITCH + FRAMES[1][1]), FRAMES[0]])
    assert rows == [("/0", "upgrade", 101)]


def test_upgrade_refused():
    for protocol in (b"websocket", b"h2c"):
        for answer in (OK, reply(426, body=b"no"), reply(400, body=b"")):
            status = int(answer[9:12])
            rows, counters = seen([(0, upgrade(protocol)), (1, answer), *AFTER])
            assert rows == [("/0", None, status), FINE] and counters["other"] == {}
            rows, counters = seen([(0, upgrade(protocol) + get(1)), (1, answer + OK)])
            assert rows == [("/0", None, status), ("/1", None, 200)], "pipelined behind it"
    assert seen([(0, upgrade(b"h2c")), (1, reply(103)), (1, OK), *AFTER])[0] == [("/0", None, 200), FINE]


def test_upgrade_without_an_answer():
    assert seen([(0, upgrade())])[0] == [("/0", "upgrade", None)]
    assert seen([(0, upgrade(b"h2c"))])[0] == [("/0", None, None)]
    assert seen([(0, upgrade()), (0, get(1))])[0] == [("/0", "upgrade", None), ("/1", None, None)]
    assert seen([(0, upgrade()), FRAMES[0]])[0] == [("/0", "upgrade", None)]


def test_upgrade_of_a_request_with_a_body():
    body = post(0, fields=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    assert seen([(0, body), (1, SWITCH), *FRAMES])[0] == [("/0", "upgrade", 101)]
    assert seen([(0, body[:-5]), (1, SWITCH), (0, body[-5:]), *FRAMES])[0] == [("/0", "upgrade", 101)]
    assert seen([(0, body), (1, OK), *AFTER])[0] == [("/0", None, 200), FINE]


def test_much_waits_behind_an_upgrade():
    """64 KiB wait for the answer; then a request line means that it was refused."""
    many = b"".join(get(n, b"X: " + b"y" * 1000 + b"\r\n") for n in range(1, 100))
    rows, counters = seen([(0, upgrade() + many), (1, OK * 100)], everywhere=False)
    assert [row[0] for row in rows] == [f"/{n}" for n in range(100)]
    rows, counters = seen([(0, upgrade() + b"\x82" * 200_000), (1, SWITCH)], everywhere=False)
    assert rows == [("/0", "upgrade", 101)]


# ---- H11: replies ---------------------------------------------------------------------------------------------------

EVIL = b"HTTP/1.1 599 X\r\n\r\n"
REPLIES = {  # the reply, and the status it gives; each is followed by one with another status
    "length": reply(201, body=b"x" * 30),
    "a body like a reply": reply(201, body=EVIL),
    "chunked": reply(201, CHUNKED) + b"5;e\r\nhello\r\n0\r\n\r\n",
    "chunked with trailers": reply(201, CHUNKED) + b"5;e=1\r\nhello\r\n0\r\nX: y\r\nZ: w\r\n\r\n",
    "chunked wins over length": reply(201, CHUNKED + b"Content-Length: 3\r\n") + b"5\r\nhello\r\n0\r\n\r\n",
    "chunks like a reply": reply(201, CHUNKED) + b"12\r\n" + EVIL + b"\r\n0\r\n\r\n",
    "204": reply(204),
    "204 with a length": reply(204, b"Content-Length: 5\r\n"),
    "304 with a length": reply(304, b"Content-Length: 500\r\n"),
    "304 chunked": reply(304, CHUNKED),
    "length 0": reply(201, body=b""),
    "HTTP/1.0": reply(201, body=b"abc", version=b"1.0"),
    "interim before it": reply(100) + reply(102) + reply(103, b"Link: </s>\r\n") + reply(201, body=b"x"),
    "status 999": reply(999, body=b"x"),
    "no reason": b"HTTP/1.1 201\x20\r\nContent-Length: 1\r\n\r\nx",
    "bare line feeds": reply(201, body=b"x").replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("pipelined", [False, True])
def test_replies_are_matched_in_order(name, pipelined):
    data = REPLIES[name]
    status = {"204": 204, "304": 304, "stat": 999}.get(name[:4].strip(), 201)
    if name.startswith("20") or name.startswith("30"):
        status = int(name[:3])
    statuses = [202, status, status, 203]
    replies = [reply(202, body=b"a"), data, data, reply(203, body=b"b")]
    if pipelined:
        turns = [(0, b"".join(get(n) for n in range(4))), (1, b"".join(replies))]
    else:
        turns = [turn for n in range(4) for turn in ((0, post(n)), (1, replies[n]))]
    rows, counters = seen(turns)
    assert rows == [(f"/{n}", None, statuses[n]) for n in range(4)]
    assert counters["lost_estimated"] == 0


@pytest.mark.parametrize("answer", [reply(200, b"Content-Length: 5000\r\n"), reply(404, CHUNKED), reply(301)], ids=["length", "chunked", "neither"])
def test_head_has_no_body(answer):
    turns = [(0, get(0, method=b"HEAD")), (1, answer), (0, get(1, method=b"HEAD") + get(2)), (1, answer + OK), *AFTER]
    rows, _ = seen(turns)
    assert rows == [("/0", None, int(answer[9:12])), ("/1", None, int(answer[9:12])), ("/2", None, 200), FINE]


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n", b"Transfer-Encoding: gzip\r\n", b"Content-Length: x\r\n"], ids=repr)
def test_replies_until_the_connection_ends(fields):
    for version in (b"1.0", b"1.1"):
        rows, counters = seen([(0, get(0)), (1, OK), (0, get(1)), (1, reply(201, fields, version=version) + b"all the rest\r\n" + EVIL), (1, EVIL)])
        assert rows == [("/0", None, 200), ("/1", None, 201)] and counters["lost_estimated"] == 0


def test_a_reply_that_nobody_asked_for():
    rows, counters = seen([(0, get(0)), (1, OK), (1, reply(408, body=b"")), *AFTER], everywhere=False)
    assert counters["lost_estimated"] == 0 and rows == [("/0", None, 200), FINE]
    rows, counters = seen([(0, get(0)), (1, OK), (1, reply(500, body=b"")), *AFTER], everywhere=False)
    assert counters["lost_estimated"] == 1 and rows == [("/0", None, 200), FINE]


def test_response_times():
    one = make.Talk(step=1_000_000).open().ask(post(0)[:-3]).skip(1).ask(post(0)[-3:]).skip(2).tell(reply(103)).skip(3).tell(OK)
    rows, _ = read(one.packets)
    assert rows[0]["response_ns"] == 6 * 10**9 + 3 * 1_000_000, "from its first byte to the final reply's"


# ---- H6, H7, H8: what is trusted ------------------------------------------------------------------------------------


def test_every_lost_segment_of_a_chunked_conversation():
    """A gap inside one chunk leaves the end known; elsewhere the next message is looked for."""
    request = [chunks(0, b""), b"10\r\n", BODY[:8], BODY[8:], b"\r\n0\r\n", b"\r\n"]
    base = make.Talk().open()
    for _ in range(3):
        for piece in request:
            base.ask(piece)
        base.ack(1).tell(OK)
    packets = base.end().packets
    for lost in range(3, 3 + 24):
        rows, counters = read(packets[:lost] + packets[lost + 1 :], incomplete=True)
        whole = [row for row in rows if not row["incomplete"]]
        assert all(row["body_sha256"] == sha(BODY) for row in whole)
        k = (lost - 3) % 8
        assert len(whole) == (2 if k < 6 else 3), lost
        if k in (2, 3):
            assert counters["incomplete"] == {"gap": 1} and counters["withheld"] == {}


def test_resync_only_at_the_start_of_a_segment():
    inside = make.Talk().open()
    del inside.packets[:]
    inside.ask(b"\0\0 rest of a body\r\n" + get(1)).tell(OK)
    assert read(inside.packets)[0] == []
    inside.ask(get(2)).tell(OK)
    assert targets(read(inside.packets)[0]) == ["/2"]


def test_unconfirmed_until_a_reply_stands_where_the_request_says():
    one = make.Talk().open()
    del one.packets[:]
    one.ask(get(1)).ask(get(2)).ask(get(3))
    assert seen_rows(one.packets) == [("/1", "unconfirmed"), ("/2", "unconfirmed"), ("/3", "unconfirmed")]
    one.ask(get(4)).tell(OK)
    assert seen_rows(one.packets)[0] == ("/1", None), "the oldest that acknowledged this position, and what follows"
    assert seen_rows(one.packets, loose=True) == [(f"/{n}", None) for n in range(1, 5)]


def seen_rows(packets, **options):
    return [(row["target"].decode(), row["withheld"]) for row in read(packets, **options)[0]]


# ---- what is no HTTP/1 ----------------------------------------------------------------------------------------------

RNG = random.Random(3)
HELLO = b"\x16\3\1\2\0\1\0\1\xfc\3\3" + RNG.randbytes(500)
FOREIGN = {
    "tls": ("tls", [(0, HELLO), (1, b"\x16\3\3\0\x7a" + RNG.randbytes(900)), (0, b"\x17\3\3\1\0" + RNG.randbytes(256)), (1, b"\x17\3\3\1\0" + RNG.randbytes(256))]),
    "http2": ("http2", [(0, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"), (1, b"\0\0\0\4\0\0\0\0\0"), (0, b"\0\0\5\1\5\0\0\0\1" + b"\x82\x86\x84\x41\x0f")]),
    "ssh": ("ssh", [(0, b"SSH-2.0-OpenSSH_9.6\r\n"), (1, b"SSH-2.0-OpenSSH_9.6\r\n"), (0, RNG.randbytes(700))]),
    "ssh, the server first": ("ssh", [(1, b"SSH-2.0-OpenSSH_9.6\r\n"), (0, b"SSH-2.0-OpenSSH_9.6\r\n"), (0, RNG.randbytes(700))]),
    "smtp": ("other", [(1, b"220 mail ESMTP\r\n"), (0, b"EHLO a.example\r\n"), (1, b"250 mail\r\n"), (0, b"MAIL FROM:<a@b>\r\n")]),
    "redis": ("other", [(0, b"*1\r\n$4\r\nPING\r\n"), (1, b"+PONG\r\n")]),
    "postgres": ("other", [(0, b"\0\0\0\x08\4\xd2\x16\x2f"), (1, b"N"), (0, b"\0\0\0\x20\0\3\0\0user\0a\0\0")]),
    "mysql": ("other", [(1, b"\x4a\0\0\0\x0a8.0.36\0" + RNG.randbytes(60)), (0, b"\x54\0\0\1" + RNG.randbytes(80))]),
    "zeros": ("other", [(0, bytes(5000)), (1, bytes(5000))]),
    "rtsp": ("other", [(0, b"OPTIONS rtsp://a/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"), (1, b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")]),
    "http/0.9": ("other", [(0, b"GET /\r\n"), (1, b"<html>")]),
    "nothing": (None, []),
    "blanks": (None, [(0, b"\r\n\r\n\r\n"), (1, b"\r\n")]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_protocols_give_no_request(name):
    kind, turns = FOREIGN[name]
    for every in (None, 1, 5):
        for cut in (0, 3, 4):  # with the handshake, without it, and without the first bytes
            packets = spoken(turns, every)
            rows, counters = read(packets[cut:])
            assert rows == [] and counters["found"] == 0 and counters["incomplete"] == {}, (every, cut)
            assert counters["lost_estimated"] == 0
            if cut == 0:
                assert sum(counters["other"].values()) == (1 if kind else 0)
                if every is None:
                    assert counters["other"] == ({kind: 1} if kind else {})


def test_http_inside_another_protocol_is_not_looked_for():
    """A connection that did not begin as HTTP stays so (R8)."""
    rows, counters = seen([(0, HELLO), (1, HELLO), (0, get(1)), (1, OK), (0, get(2)), (1, OK)])
    assert rows == []


def test_random_bytes_give_no_request():
    rng = random.Random(17)
    for _ in range(200):
        packets = []
        for port in range(4):
            one = make.Talk(client=(b"\x0a\0\0\1", 40000 + port), packets=packets)
            if rng.random() < 0.7:
                one.open()
            for _ in range(rng.randrange(1, 8)):
                one.say(rng.randrange(2), rng.randbytes(rng.randrange(1, 300)))
        assert read(packets, incomplete=True)[0] == []


def test_damaged_conversations_never_break_the_books():
    """Bytes of good conversations changed at random: nothing is certain but the ledger, which every read checks."""
    rng = random.Random(23)
    requests = [*AMBIGUOUS.values(), *(request for request, _ in FINE_FRAMING.values()), *MALFORMED.values(), CONNECT, upgrade(), EXPECT + LONG, EXPECT, EXPECT_CHUNKED]
    answers = [*REPLIES.values(), SWITCH, OK, OK, OK]
    for _ in range(1500):
        one = make.Talk(step=1_000_000).open()
        for _ in range(rng.randrange(1, 6)):
            data = bytearray(rng.choice(requests))
            for _ in range(rng.randrange(3)):
                data[rng.randrange(len(data))] = rng.choice(b"\r\n \0:,;0aA/" + rng.randbytes(4))
            one.ask(bytes(data), cuts=sorted(rng.sample(range(1, len(data)), rng.randrange(3))))
            if rng.random() < 0.9:
                one.tell(rng.choice(answers))
        packets = one.end().packets
        for _ in range(rng.randrange(3)):
            del packets[rng.randrange(len(packets))]
        if rng.random() < 0.3:
            a, b = rng.randrange(len(packets)), rng.randrange(len(packets))
            packets[a], packets[b] = packets[b], packets[a]
        options = {"incomplete": True, "max_head": rng.choice((256, 65536))} if rng.random() < 0.7 else {"show": False, "max_body": rng.choice((10, 1000))}
        read(packets, **options)
