"""The shadow host against what a real Envoy did (tests/vectors/shadow-host.json), and the head that is sent: engine and oracle alike."""

import json
import pathlib

import packetmake
import pcapmake
import pytest
from enginerun import run

from replay import _fastpath
from replay._reference import rewrite

VECTORS = json.loads((pathlib.Path(__file__).parent / "vectors" / "shadow-host.json").read_text())["vectors"]
ACCEPTED = [v for v in VECTORS if v["status"] == 200]
REFUSED = [v for v in VECTORS if v["status"] != 200]
HTTP1 = [v for v in VECTORS if v["via"] != "h2"]


def name(vector):
    return f"{vector['via']} {vector['note']} {str(vector['in'])[:30]!r}"


def text(value):
    return value.encode("latin-1")


def through(raw, **options):
    return run(pcapmake.pcap(packetmake.talk(raw)), **options)


def test_the_vectors_are_all_there():
    assert len(VECTORS) == 139 and len(ACCEPTED) == 107


@pytest.mark.parametrize("shadow_host", [_fastpath.shadow_host, rewrite.shadow_host], ids=["fastpath", "reference"])
@pytest.mark.parametrize("vector", ACCEPTED, ids=name)
def test_vector(vector, shadow_host):
    assert shadow_host(text(vector["primary"])) == text(vector["shadow"])


# What Envoy takes and we do not, or take in another way; the rule of docs/design.md that says so.
OTHERWISE = {
    "two Host headers, different": "ambiguous",  # H4; Envoy joins them with a comma
    "stray CR": "ambiguous",  # H4
    "the suffix alone": "loop",  # S4
    "already a shadow": "loop",
    "already a shadow, port": "loop",
    "twice a shadow": "loop",
    "suffix in capitals": "loop",
}


def raw_of(vector):
    """The request; very long ones are not written out in the file."""
    return text(vector["raw"]) if vector["raw"] else b"GET / HTTP/1.1\r\nHost: " + text(vector["in"]) + b"\r\n\r\n"


@pytest.mark.parametrize("vector", [v for v in HTTP1 if v["status"] == 200 and "default_host" not in v["note"]], ids=name)
def test_what_envoy_mirrored_is_sent_with_its_host(vector):
    """Of a capture: the head that the engine sends carries Envoy's host; the oracle writes the same head."""
    raw = raw_of(vector)
    rows, counters = through(raw, show=False)
    if vector["note"] in OTHERWISE:
        assert counters["withheld"] == {OTHERWISE[vector["note"]]: 1}
        assert OTHERWISE[vector["note"]] != "loop" or rewrite.carries_suffix(text(vector["primary"]))
        return
    assert counters["selected"] == 1, counters
    assert rows[0]["data"] == rewrite.rewrite_head(raw)
    host = rewrite.host_of(rows[0]["data"])[1]
    if vector["note"] == "two Host headers, the same":  # S3: they become one; Envoy joins them
        assert host == b"same.example-shadow"
        return
    assert host == text(vector["shadow"])
    assert rewrite.host_of(raw) == (None, text(vector["primary"]))
    if vector.get("shadow_target") is not None:
        assert rows[0]["target"] == text(vector["shadow_target"])


@pytest.mark.parametrize("vector", [v for v in HTTP1 if v["status"] != 200], ids=name)
def test_what_envoy_refused_is_withheld(vector):
    raw = text(vector["raw"])
    rows, counters = through(raw)
    assert counters["found"] == 1 and counters["selected"] == 0
    reason = rows[0]["withheld"]
    if vector["in"] is None:
        assert reason == "no_host" == rewrite.host_of(raw)[0]
    elif reason == "ambiguous":  # judged before the host (S1): a fold, a NUL, a blank before the colon
        assert b"Host :" in raw or b"\0" in raw or b"\r\n " in raw
    else:
        assert reason == "bad_host" == rewrite.host_of(raw)[0]


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_a_host(byte):
    """The oracle's set of bytes that no host may hold, and the engine's."""
    raw = b"GET / HTTP/1.1\r\nHost: a" + bytes([byte]) + b"b\r\n\r\n"
    rows, counters = through(raw)
    assert counters["found"] == 1
    if byte in b"\0\r\n":
        assert rows[0]["withheld"] == "ambiguous"  # not one line, or two servers read it in two ways
    else:
        assert rows[0]["withheld"] == ("bad_host" if rewrite.is_refused(bytes([byte])) else None)


HEADS = [  # head, options, reason
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", {}, "the usual one"),
    (b"GET / HTTP/1.1\r\nhOST:a:80\r\n\r\n", {}, "name as it is, no blank"),
    (b"GET / HTTP/1.1\r\nHost:  \ta  \t\r\nX: 1\r\n\r\n", {}, "outer blanks stay"),
    (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", {}, "an empty host"),
    (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", {}, "an empty host after a blank"),
    (b"GET / HTTP/1.1\r\nHost: \t \r\n\r\n", {}, "an empty host after blanks"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nHost: a\r\n\r\n", {}, "two equal ones become one"),
    (b"GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n", {}, "absolute form"),
    (b"GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n", {}, "absolute form, query without path"),
    (b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", {}, "absolute form of the whole server"),
    (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {}, "asterisk"),
    (b"GET http://u:p@b:1/ HTTP/1.1\r\nX: 1\r\n\r\n", {}, "absolute form without Host"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nExpect: 100-continue\r\n\r\n", {}, "of one hop"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-a , Host,content-length, X-B\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\nContent-Length: 0\r\n\r\n", {}, "named by Connection"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\t3\r\nY: 4\r\n\r\n", {}, "a folded line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X\r\nX: 1\r\n 2\r\nY: 4\r\n\r\n", {}, "a folded line that goes"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close,\r\n x-a\r\nX-A: 1\r\nX-B: 2\r\n\r\n", {}, "named by Connection in a folded line"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-a\r\nConnection:x-b,,\r\nX-A: 1\r\nX-B: 2\r\n\r\n", {}, "named by two Connection fields"),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", {"set_host": b"lit:9"}, "a literal host has no suffix"),
    (b"GET / HTTP/1.1\r\nHost: a:1\r\n\r\n", {"suffix": b"-x"}, "another suffix"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3\r\n\r\n", {"set_headers": ((b"X", b"new"), (b"Z", b"late"))}, "set: in place, or at the end"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n", {"add_headers": ((b"X", b"more"), (b"X", b"and more"))}, "added at the end"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nCookie: c\r\nx: 3\r\n\r\n", {"remove_headers": (b"X",)}, "removed, all of the name"),
    (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", {"set_headers": ((b"X", b"1"),), "add_headers": ((b"Y", b"2"),), "remove_headers": (b"X",)}, "all three"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X\r\nX: 1\r\n\r\n", {"set_headers": ((b"X", b"2"),)}, "set, and named by Connection"),
]


@pytest.mark.parametrize(("name", "reason"), [(b"Content-Length", "framing or the connection"), (b"X-Shadow-Replay", "how often a request was mirrored")])
def test_headers_that_stay_say_why(name, reason):
    for options in ({"remove_headers": (name,)}, {"set_headers": ((name, b"1"),)}):
        with pytest.raises(ValueError, match=reason):
            through(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", **options)


@pytest.mark.parametrize(("head", "options"), [row[:2] for row in HEADS], ids=[row[2] for row in HEADS])
def test_the_head_that_is_sent(head, options):
    rows, counters = through(head, show=False, **options)
    assert counters["selected"] == 1, counters
    assert rows[0]["data"] == rewrite.rewrite_head(head, **options)
