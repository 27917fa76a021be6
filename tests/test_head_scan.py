"""The quick scan of usual heads, each variant of it, against the general parser: what it accepts, it says the same of; and it accepts what is usual."""

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replay._fastpath import head_parse_for_tests

ROOT = pathlib.Path(__file__).parent.parent


def has(variant):
    try:
        head_parse_for_tests(b"", variant=variant)
    except LookupError:
        return False
    return True


VARIANTS = [name for name in ("sse2", "avx2", "neon") if has(name)]

LINES = st.one_of(
    st.sampled_from(
        [
            b"Host: a.example\r\n", b"host:b.example:8080  \r\n", b"HOST:   [::1]:80\r\n", b"Host:\r\n", b"Host: a_b\r\n", b"Host: " + b"h" * 40 + b"\r\n", b"Host: a\tb\r\n",
            b"Content-Length: 12\r\n", b"content-length:0\r\n", b"Content-Length: 1, 1\r\n", b"Content-Length: +1\r\n", b"Content-Length: 99999999999999999999\r\n",
            b"Content-Length:\r\n", b"Content_Length: 3\r\n", b"Content-Lengt\xc8: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:CHUNKED \r\n",
            b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer_Encoding: chunked\r\n", b"Connection: keep-alive\r\n", b"connection: Close\r\n", b"Connection: x, close\r\n",
            b"Keep-Alive: 5\r\n", b"Proxy-Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"Upgrade-Insecure-Requests: 1\r\n", b"X-Shadow-Replay: 1\r\n",
            b" folded\r\n", b"\tfolded\r\n", b"no colon\r\n", b": no name\r\n", b"blank : x\r\n", b"A: bare\nB: lf\r\n", b"A: bare\rcr\r\n", b"A: nul\0\r\n", b"A: b\n", b"x" * 70 + b": y\r\n",
            b"Cookie: " + b"c" * 200 + b"\r\n", b"Accept: */*\r\n", b"a:\r\n", b"Host\x00: x\r\n", b"H\xefst: x\r\n", b"exped\x14: 1\r\n", b"A: \x7f\r\n", b"A: tab\there\r\n",
        ]
    ),
    st.builds(
        lambda name, value: name + b": " + value + b"\r\n",
        st.binary(min_size=1, max_size=20), st.binary(max_size=80),
    ),
    st.builds(lambda n, c: b"X" * n + c + b": v\r\n", st.integers(0, 66), st.sampled_from([b"-", b"9", b"Z", b"a", b"_", b"@", b"[", b"`", b"{", b"/", b".", b"\x80", b" "])),
)  # fmt: skip

FIRST = st.one_of(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n", b"POST /a?b=c HTTP/1.0\r\n", b"M-SEARCH /x HTTP/1.1\r\n", b"CONNECT /x HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"GET http://a/ HTTP/1.1\r\n",
            b"GET /a b HTTP/1.1\r\n", b"GET / HTTP/1.2\r\n", b"GET / HTTP/2.0\r\n", b"GET /\x7f HTTP/1.1\r\n", b"GET / HTTP/1.1\n", b"GET  / HTTP/1.1\r\n", b"GET /\x80 HTTP/1.1\r\n", b"G\xc5T / HTTP/1.1\r\n",
        ]
    ),
    st.integers(0, 140).map(lambda n: b"GET /" + b"t" * n + b" HTTP/1.1\r\n"),
)  # fmt: skip

STATUS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 Not Found\r\n", b"HTTP/1.1 304 \r\n", b"HTTP/1.1 100\r\n", b"HTTP/1.1 99 x\r\n", b"HTTP/1.1 2000 x\r\n", b"HTTP/1.9 200 OK\r\n", b"HTTP/1.1 200 O\0K\r\n"]
)  # fmt: skip


def compare(data, reply):
    """Each variant says nothing, or what the general parser says."""
    general = head_parse_for_tests(data, reply)
    for variant in VARIANTS:
        quick = head_parse_for_tests(data, reply, variant)
        if quick is None:
            continue
        if "begun" in quick:
            assert general is None, variant
            continue
        assert general is not None, variant
        split = quick.pop("split", None)
        expected = {key: general[key] for key in quick}
        assert quick == expected, variant
        if split is not None:
            value = data[general["host_at"] :][: general["host_len"]]
            assert value and split == (value.rindex(b":") if b":" in value else len(value)), variant
        if not reply:
            assert quick["flags"] & ~(64 | 128 | 256) == 0, "nothing but Connection: close or keep-alive is usual"


@given(FIRST, st.lists(LINES, max_size=12), st.binary(max_size=80))
@example(b"GET / HTTP/1.1\r\n", [], b"")
@example(b"GET / HTTP/1.1\r\n", [b"Host: a.example\r\n", b"Host: a.example\r\n"], b"")
@example(b"GET / HTTP/1.0\r\n", [b"Transfer-Encoding: chunked\r\n"], b"")
@example(b"GET / HTTP/1.1\r\n", [b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"], b"x")
@example(b"GET / HTTP/1.1\r\n", [b"Connection: close\r\n"] * 6, b"")
def test_requests(first, lines, more):
    compare(first + b"".join(lines) + b"\r\n" + more, False)


@given(STATUS, st.lists(LINES, max_size=8), st.binary(max_size=80))
def test_replies(first, lines, more):
    compare(first + b"".join(lines) + b"\r\n" + more, True)


@given(FIRST, st.lists(LINES, max_size=6), st.integers(0, 400))
@example(b"GET / HTTP/1.1\r\n", [b"A: b\r\n", b"\n"], 23)
def test_heads_that_are_not_whole(first, lines, cut):
    compare((first + b"".join(lines) + b"\r\n")[:cut], False)


def test_a_name_that_is_cut():
    """At each of its bytes, past the width of a vector: what lies behind is not looked at (a sanitizer sees it)."""
    for n in range(140):
        compare(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * n, False)
        compare(b"HTTP/1.1 200 OK\r\nServer: a\r\n" + b"x" * n, True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_takes_what_is_usual(variant):
    """At every length of a target and of a field, so that each line ends at each place of a vector, and at the end of what may be read."""
    for n in range(140):
        data = (
            b"POST /"
            + b"t" * n
            + b" HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: "
            + b"u" * (n * 3 % 140)
            + b"\r\nConnection: keep-alive\r\nContent-Type: a/b\r\nContent-Length: 17\r\n\r\n"
        )
        quick = head_parse_for_tests(data, False, variant)
        assert quick is not None and quick["length"] == len(data) and quick["content_length"] == 17 and quick["hosts"] == 1 and quick["split"] == 12
        assert head_parse_for_tests(data[:-1], False, variant) == {"begun": True}
        reply = b"HTTP/1.1 200 " + b"o" * n + b"\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nhello"
        quick = head_parse_for_tests(reply, True, variant)
        assert quick is not None and quick["status"] == 200 and quick["content_length"] == 5 and quick["length"] == len(reply) - 5


@pytest.mark.parametrize("variant", [*VARIANTS, "plain"])
def test_captures_read_the_same_with_each_variant(variant, tmp_path):
    """Every shipped capture, in a process of its own: the variant is chosen when the module is loaded."""
    captures = sorted(str(path) for path in (ROOT / "captures").glob("*/*.pcap*"))
    assert captures

    def show(name):
        done = subprocess.run(
            [sys.executable, "-m", "replay", "show", "--json", "--incomplete", *captures],
            capture_output=True,
            env=os.environ | {"REPLAY_SIMD": name},
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    assert show(variant) == show("plain")
    assert show(variant)[1]
