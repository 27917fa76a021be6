"""Envoy tap files and .gor as captures: what was truly sent is found exactly, what Envoy cut is withheld, nothing crashes."""

import base64
import gzip
import hashlib
import io
import json
import pathlib

import endtoend
import pytest
from endtoend import Sink, run, show
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.capture import envoytap, gor
from replay.capture.record import Fault
from replay.capture.records import Records, looks_like_records, split
from replay.engine import Listing
from replay.report import hint
from replay.settings import Selection

ROOT = pathlib.Path(__file__).resolve().parents[1]
TAPS = ROOT.parent / "shared" / "captures" / "envoy-tap"
needs_taps = pytest.mark.skipif(not TAPS.exists(), reason="needs ../shared")
ADDED = {
    "x-forwarded-proto",
    "x-request-id",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-for",
    "x-envoy-internal",
    "host",
    "transfer-encoding",
    "content-length",
    "accept",
}


def listed(*paths, **more):
    listing = Listing(tuple(map(str, paths)), Selection(), **more)
    return list(listing), listing


def manifest():
    return json.loads((TAPS / "manifest.json").read_text())["files"] if TAPS.exists() else []


def headers_of(row):
    return [tuple(part.strip().decode("latin-1") for part in line.split(b":", 1)) for line in row["head"].split(b"\r\n")[1:] if b":" in line]


@needs_taps
@pytest.mark.parametrize("entry", manifest(), ids=lambda entry: entry["file"])
def test_real_tap_files_are_found_exactly(entry):
    rows, listing = listed(TAPS / entry["file"], incomplete=True)
    assert not [fault for fault in listing.faults if fault["fatal"]]
    if "h2" in entry["file"] and entry["kind"].startswith("transport"):
        assert not rows and listing.counts["other"] == {"http2": 1}
        return
    sent = entry["requests"]
    socket_cut = entry.get("read_truncated") and entry["kind"].startswith("transport")
    if socket_cut:  # what lies behind the cut of a buffered tap is gone without a trace
        assert len(rows) <= len(sent) and [row["target"].decode() for row in rows] == [one["target"] for one in sent][: len(rows)]
        assert listing.counts["incomplete"] == {"cut_by_snaplen": 1}
        sent = sent[: len(rows)]
    assert [(row["method"].decode(), row["target"].decode(), row["host"].decode()) for row in rows] == [
        ("GET", "/abs", "abs.example:81")
        if one["name"] == "absolute" and not entry["kind"].startswith("transport")
        else (one["method"], one["target"], one["authority"])
        for one in sent
    ]  # an absolute form reaches a tap as origin form, its authority as :authority
    for row, one in zip(rows, sent, strict=True):
        lost = "string" in entry["file"] and one["name"] == "post-binary"
        assert row["withheld"] == ("truncated" if one.get("request_body_truncated") or lost else None)
        if row["incomplete"]:
            assert not one["complete"] or (socket_cut and row["incomplete"] == "cut_by_snaplen")
            continue
        assert one["complete"] or one.get("request_body_truncated")
        assert row["status"] == one["status"]
        if row["withheld"] is None:
            assert (row["body_len"], row["body_sha256"]) == (one["body_len"], one["body_sha256"])
        got = [(name.lower(), value) for name, value in headers_of(row) if name.lower() not in ADDED]
        wanted = [(name.lower(), value) for name, value in one["headers_sent"] if name.lower() not in ADDED | {"connection", "te"}]
        crumbs = [value for name, value in wanted if name == "cookie"]
        if crumbs:  # HTTP/2 may send them apart; Envoy joins them
            wanted = [pair for pair in wanted if pair[0] != "cookie"] + [("cookie", "; ".join(crumbs))]
        if one["name"] == "odd-headers":  # Envoy writes ! for a byte that is no UTF-8
            got, wanted = ([(n, v if n not in ("x-latin", "x-utf8") else "") for n, v in some] for some in (got, wanted))
        assert sorted(pair for pair in got if pair[0] != "te") == sorted(wanted)
        assert row["framing"] == (
            "none" if one["framing"] == "none" else "chunked" if one["framing"] in ("chunked", "h2") and one["body_len"] else row["framing"]
        )


@needs_taps
def test_a_folder_of_taps_with_gzip_in_it(tmp_path):
    files = sorted(TAPS.glob("http-json-bytes-buffered-64k-*.json"))
    for path in files:
        (tmp_path / f"{path.stem}.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "manifest.json").write_text("{}")
    rows, _ = listed(tmp_path)
    assert len(rows) == len(files) - 1  # all but the aborted one
    times = [row["ts_ns"] for row in rows]
    assert times == sorted(times) and min(times) > 1_700_000_000 * 10**9


@needs_taps
def test_taps_are_replayed_and_what_envoy_cut_is_not(tmp_path):
    with Sink(tmp_path / "log") as sink:
        report = run(*sorted(TAPS.glob("http-proto-buffered-*.pb")), "--to", sink.url, "--pace", "max")
        rows = sink.stop()
    ledger = report["ledger"]
    assert ledger["by_reason"]["withheld"]["truncated"] == 2 and ledger["sent"] == ledger["answered"] == len(rows) > 15
    assert all(row["host"].partition(":")[0].endswith("-shadow") for row in rows)
    assert "max_buffered_rx_bytes" in hint(report)


def tap(method="POST", path="/a", body=b"abc", truncated=False, **headers):
    fields = [{"key": ":authority", "value": "h:1"}, {"key": ":path", "value": path}, {"key": ":method", "value": method}]
    fields += [{"key": name.replace("_", "-"), "value": value} for name, value in headers.items()]
    request = {"headers": fields, "trailers": []}
    if body:
        request["body"] = {"as_bytes": base64.b64encode(body).decode(), "truncated": truncated}
    return json.dumps({"http_buffered_trace": {"request": request}}).encode()


def test_framing_is_built_again(tmp_path):
    def one(data):
        (tmp_path / "t.json").write_bytes(data)
        rows, listing = listed(tmp_path / "t.json", incomplete=True)
        return [(row["framing"], row["body_len"], row["withheld"], row["incomplete"]) for row in rows]

    assert one(tap(content_length="3")) == [("length", 3, None, None)]
    assert one(tap()) == [("chunked", 3, None, None)]
    assert one(tap(body=b"")) == [("none", 0, None, None)]
    assert one(tap(content_length="100")) == [("length", 3, None, "closed")] or one(tap(content_length="100"))[0][3] is not None
    assert one(tap(content_length="100", truncated=True)) == [("length", 3, "truncated", None)]
    assert one(tap(truncated=True)) == [("chunked", 3, "truncated", None)]
    assert one(tap(path="/a b")) == [] and one(tap(x_a="a\r\nb: c")) == []


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("x-t", "1\r\n\r\nDELETE /evil HTTP/1.1\r\nHost: evil", "a trailer holds a line break"), ("x-t", "1\nb: 2", "a trailer holds a line break"),
        ("x-t\r\nb", "1", "is no header name"), (":path", "/evil", "a trailer has the name of a pseudo-header"),
    ],
)  # fmt: skip
def test_a_trailer_cannot_become_a_request(tmp_path, name, value, said):
    trace = json.loads(tap())
    trace["http_buffered_trace"]["request"]["trailers"] = [{"key": name, "value": value}]
    (tmp_path / "t.json").write_bytes(json.dumps(trace).encode() + tap(path="/b"))
    rows, listing = listed(tmp_path / "t.json", incomplete=True)
    assert [row["target"] for row in rows] == [b"/b"]
    faults: list[Fault] = []
    list(envoytap.read(io.BytesIO((tmp_path / "t.json").read_bytes()), "t", faults))
    assert len(faults) == 1 and said in faults[0].message and "passed over" in faults[0].message


@needs_taps
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_taps_never_crash(data):
    """Bytes changed, cut out, or cut off: requests, faults, or nothing, but no exception and no endless reading."""
    files = [path for path in sorted(TAPS.iterdir()) if path.name != "manifest.json" and path.stat().st_size < 20_000]
    whole = bytearray(data.draw(st.sampled_from(files)).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "end", "double"]))
        if kind == "set":
            whole[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del whole[at : at + data.draw(st.integers(1, 40))]
        elif kind == "end":
            del whole[max(at, 1) :]
        else:
            whole[at:at] = whole[at : at + 200]
        if not whole:
            return
    faults: list[Fault] = []
    for record in envoytap.read(io.BytesIO(bytes(whole)), "t", faults):
        record.for_ingest(1, 0, 0)


@pytest.mark.parametrize("inside", [b'events: "x"', b"events: 1", b"events { events { } } events: 1", b"headers: 1 headers { }", b"trailers: true"])
def test_text_of_other_kinds_than_a_tap_has(inside):
    faults: list[Fault] = []
    for kind in (b"http_buffered_trace { request", b"socket_buffered_trace { connection"):
        for record in envoytap.read(io.BytesIO(kind + b" { " + inside + b" } }"), "t", faults):
            record.for_ingest(1, 0, 0)
    assert all(fault.message for fault in faults)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_no_reason_to_crash(data):
    for head in (b"", b'{"http_buffered_trace":', b"http_buffered_trace {", b"\x0a", b"1 0123456789abcdef01234567 1700000000000000000\n"):
        faults: list[Fault] = []
        list(envoytap.read(io.BytesIO(head + data), "t", faults))
        list(gor.read(io.BytesIO(head + data), "t", faults))


# ---- .gor --------------------------------------------------------------------------------------------------------------------------

ID = "9c40005000000001"  # client port 40000, server port 80, 0.0.0.1


def gor_record(kind, ident, at, payload, *, latency=" 0", separator=gor.SEPARATOR):
    return f"{kind} {ident} {at}{latency}\n".encode() + payload + separator


def ask(target, body=b"", extra=b""):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"POST %s HTTP/1.1\r\nHost: h\r\n%s%s\r\n%s" % (target, length, extra, body)


NOW = 1_700_000_000_000_000_000
GOR = [  # what is in the file, (target, status, incomplete), reason
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a", b"x")) + gor_record(2, ID + "a" * 8, NOW + 5_000_000, b"HTTP/1.1 201 Created\r\n\r\n"),
        [("/a", 201, None)],
        "a request and its reply",
    ),
    (
        gor_record(2, ID + "a" * 8, NOW + 5, b"HTTP/1.1 200 OK\r\n\r\n") + gor_record(1, ID + "a" * 8, NOW, ask(b"/a")),
        [("/a", 200, None)],
        "the reply comes first",
    ),
    (gor_record(1, "f" * 40, NOW, ask(b"/a"), latency=""), [("/a", None, None)], "three fields and 40 digits, as older versions write"),
    (gor_record(1, ID + "a" * 8, NOW, ask(b"/a"), latency=" -1"), [("/a", None, None)], "a latency of -1"),
    (gor_record(1, ID + "a" * 8, NOW, ask(b"/a"), separator=b""), [("/a", None, None)], "a last record without separator that frames whole"),
    (gor_record(1, ID + "a" * 8, NOW, ask(b"/a", b"xyz")[:-2], separator=b""), [("/a", None, "cut_at_end")], "a last record that is cut"),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a", b"1" + gor.SEPARATOR + b"2")) + gor_record(1, ID + "b" * 8, NOW + 1, ask(b"/b")),
        [("/a", None, None), ("/b", None, None)],
        "a body that holds the separator",
    ),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a").replace(b"POST", b"HEAD"))
        + gor_record(2, ID + "a" * 8, NOW + 5, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        + gor_record(1, ID + "b" * 8, NOW + 9, ask(b"/b")),
        [("/a", 200, None), ("/b", None, None)],
        "a reply to HEAD, whose length goes beyond the end of the file",
    ),
    (
        gor_record(1, ID + "b" * 8, NOW + 9, ask(b"/b")) + gor_record(1, ID + "a" * 8, NOW, ask(b"/a")),
        [("/a", None, None), ("/b", None, None)],
        "order of completion, sorted by time",
    ),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a")) + gor_record(1, ID + "a" * 8, NOW + 1, ask(b"/b")),
        [("/a", None, None), ("/b", None, None)],
        "an identifier that repeats",
    ),
    (
        gor_record(3, ID + "a" * 8, NOW, b"HTTP/1.1 200 OK\r\n\r\n") + gor_record(1, ID + "a" * 8, NOW, ask(b"/a")),
        [("/a", None, None)],
        "replies of a replay are passed over",
    ),
    (gor_record(1, ID + "a" * 8, NOW, ask(b"/a", extra=b"Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\n0\r\n\r\n"), [("/a", None, None)], "chunks"),
    (gor_record(1, ID + "a" * 8, NOW, ask(b"/a", b"one\r\ntwo\r\n")), [("/a", None, None)], "a body with line ends of its own"),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a", b"x" * 50).replace(b"x" * 50, b"x" * 20)) + gor_record(1, ID + "b" * 8, NOW + 1, ask(b"/b")),
        [("/a", None, "closed"), ("/b", None, None)],
        "a body cut by --copy-buffer-size: its length is beyond the payload",
    ),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a")) + b"1 " + ID.encode() + b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n" + gor.SEPARATOR + gor_record(1, ID + "b" * 8, NOW + 1, ask(b"/b")),
        [("/a", None, None), ("/b", None, None)],
        "fewer than three header fields: passed over, and on",
    ),
    (gor_record(1, ID + "a" * 8, 9_700_000_008_000_000_000, ask(b"/a")) + gor_record(1, ID + "b" * 8, NOW, ask(b"/b")), [("/b", None, None)], "a time that is none"),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a")) + gor_record(2, ID + "a" * 8, NOW + 1, b"HTTP/1.1 200 OK\r\n\r\n") + gor_record(2, ID + "c" * 8, NOW + 2, b"HTTP/1.1 500 No\r\n\r\n"),
        [("/a", 200, None)],
        "a reply without a request",
    ),
    (
        gor_record(1, ID + "a" * 8, NOW, ask(b"/a")) + gor_record(1, ID + "a" * 8, NOW + 2, ask(b"/b")) + gor_record(2, ID + "a" * 8, NOW + 3, b"HTTP/1.1 404 No\r\n\r\n"),
        [("/a", None, None), ("/b", 404, None)],
        "a reply goes to the last request with its identifier",
    ),
]


@pytest.mark.parametrize(("data", "reason"), [(data, reason) for data, _, reason in GOR], ids=[reason for _, _, reason in GOR])
def test_gor_is_the_same_in_pieces_of_any_size(monkeypatch, data, reason):
    def found():
        return [(record.ts_ns, record.parts) for record in gor.read(io.BytesIO(data), "t", [])]

    whole = found()
    for size in (*range(1, 40), len(data) - 1):
        monkeypatch.setattr(gor, "_PIECE", size)
        assert found() == whole, (reason, size)


def test_gor_in_chunks_is_one_stream(tmp_path):
    """`name_0.gor` to `name_11.gor`, gzip or not, one beginning where the other ended: by time, not by name; from a folder and from a glob."""
    for i in range(12):
        data = b"".join(gor_record(1, f"{ID}{i * 10 + j:08x}", NOW + (i * 10 + j) * 1000, ask(b"/%d" % (i * 10 + j))) for j in range(10))
        (tmp_path / (f"name_{i}.gor" if i % 2 else f"name.gor_{i}.gz")).write_bytes(data if i % 2 else gzip.compress(data))
    for paths in ([tmp_path], sorted(tmp_path.iterdir())):
        rows, _ = listed(*paths)
        assert [row["target"].decode() for row in rows] == [f"/{i}" for i in range(120)]


def test_gor_of_an_older_version(tmp_path):
    """Three fields, 40 digits, which say nothing of addresses; in a gzip file."""
    data = b"".join(gor_record(1, f"{i:040x}", NOW + i, ask(b"/%d" % i), latency="") + gor_record(2, f"{i:040x}", NOW + i + 5000, b"HTTP/1.1 200 OK\r\n\r\n", latency="") for i in range(20))
    (tmp_path / "old.gor.gz").write_bytes(gzip.compress(data))
    rows, _ = listed(tmp_path / "old.gor.gz")
    assert [(row["target"].decode(), row["status"]) for row in rows] == [(f"/{i}", 200) for i in range(20)]
    assert {(row["client"], row["response_us"]) for row in show(tmp_path / "old.gor.gz")} == {("0.0.0.0:0", 5)}


@needs_taps
@pytest.mark.parametrize("kind", ["json-bytes", "json-string", "proto", "proto-delimited", "proto-text"])
@pytest.mark.parametrize("how", ["buffered", "streaming"])
@pytest.mark.parametrize("level", ["http", "socket"])
def test_each_form_of_a_tap_file_packed_and_in_a_folder(tmp_path, level, kind, how):
    name = f"http-{kind}-{how}-64k-post-json.*" if level == "http" else f"socket-{kind}-{how}-64k-downstream.*"
    (path,) = TAPS.glob(name)
    plain, _ = listed(path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    packed, _ = listed(tmp_path)
    keys = ("method", "target", "host", "body_len", "body_sha256", "status", "withheld", "incomplete")
    assert plain and [[row[key] for key in keys] for row in packed] == [[row[key] for key in keys] for row in plain]
    half = path.read_bytes()[: path.stat().st_size // 2]
    (tmp_path / "deep" / "er" / f"{path.name}.gz").write_bytes(gzip.compress(half))
    cut, _ = listed(tmp_path, incomplete=True)  # what is cut off in the middle: less, and no more
    assert len(cut) <= len(plain)


@pytest.mark.parametrize("data, expected", [case[:2] for case in GOR], ids=[case[2] for case in GOR])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_gor(tmp_path, data, expected, packed):
    path = tmp_path / ("t.gor.gz" if packed else "t.gor")
    path.write_bytes(gzip.compress(data) if packed else data)
    rows, listing = listed(path, incomplete=True)
    assert [(row["target"].decode(), row["status"], row["incomplete"]) for row in rows] == [
        (t, s, i and row["incomplete"]) for (t, s, i), row in zip(expected, rows, strict=True)
    ]
    assert [row["incomplete"] is not None for row in rows] == [case[2] is not None for case in expected]


def test_gor_is_replayed_in_order_with_its_addresses(tmp_path):
    data = b"".join(gor_record(1, f"{40000 + i % 3:04x}00500000{i % 3:04x}{i:08x}", NOW + i * 1000, ask(b"/%d" % i, b"x" * i)) for i in range(300))
    (tmp_path / "a_1.gor").write_bytes(data[: len(data) // 2])
    (tmp_path / "a_2.gor").write_bytes(data[len(data) // 2 :])
    whole = tmp_path / "whole.gor"
    whole.write_bytes(data + gor_record(1, "bad header", NOW, b""))
    assert split([str(whole), str(ROOT / "replay" / "data" / "demo.pcap")]) == ([str(ROOT / "replay" / "data" / "demo.pcap")], [str(whole)])
    rows = show(whole)
    assert [row["target"] for row in rows] == [f"/{i}" for i in range(300)] and rows[1]["server"] == "0.0.0.0:80" and rows[1]["client"] == "0.0.0.1:40001"
    with Sink(tmp_path / "log") as sink:
        report = run(whole, "--to", sink.url, "--pace", "max", "--percent", "50", "--loop", "2")
        got = sink.stop()
    assert report["ledger"]["found"] == 600 and report["ledger"]["sent"] == len(got) and 200 < len(got) < 400
    assert {row["body_sha256"] for row in got} <= {hashlib.sha256(b"x" * i).hexdigest() for i in range(300)}
    assert looks_like_records(str(tmp_path / "nothing")) is None
    assert not list(Records([str(tmp_path / "nothing")]))


def test_a_text_in_a_folder_is_no_capture(tmp_path):
    """A Python file begins with quotation marks, which are field 4 of 34 bytes to a reader of protocol buffers."""
    texts = [path for path in ROOT.rglob("*") if path.suffix in (".py", ".md", ".toml", ".yaml", ".h", ".c", ".pyx", ".pxi", ".json", ".service", ".svg") and path.is_file()]
    taken = [path for path in texts if looks_like_records(str(path)) and path.suffix != ".json"]
    assert len(texts) > 200 and not taken
    for n in range(1, 12):
        (tmp_path / f"{n}.txt").write_bytes((b'"""' + bytes(range(32, 32 + n)) + b'": "' * n)[: 3 + n])
        assert looks_like_records(str(tmp_path / f"{n}.txt")) is None


def test_a_gzip_stream_without_an_end(tmp_path):
    data = gzip.compress(b"".join(gor_record(1, f"{ID}{i:08x}", NOW + i, ask(b"/%d" % i)) for i in range(2000)))
    (tmp_path / "cut.gor.gz").write_bytes(data[: len(data) // 2])
    rows, listing = listed(tmp_path / "cut.gor.gz")
    assert 500 < len(rows) < 2000 and [fault["message"] for fault in listing.faults] == ["the gzip stream has no end; what unpacks was read"]


def test_what_unpacks_before_the_damage_of_a_gzip_stream_is_read(tmp_path):
    data = bytearray(gzip.compress(b"".join(gor_record(1, f"{ID}{i:08x}", NOW + i, ask(b"/%d" % i)) for i in range(2000))))
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    (tmp_path / "bad.gor.gz").write_bytes(data)
    rows, listing = listed(tmp_path / "bad.gor.gz")
    assert 500 < len(rows) < 2000 and listing.faults[0]["message"] == "the gzip stream has no end; what unpacks was read"


def test_a_mirror_policy_on_requests_without_addresses(tmp_path):
    (tmp_path / "t.json").write_bytes(tap(content_length="3") + tap(path="/other", content_length="3"))
    with Sink(tmp_path / "log") as sink:
        (tmp_path / "p.yaml").write_text(f"routes:\n- match: {{host: h, port: 1, path: /a}}\n  mirror: {{to: '{sink.url}'}}\n")
        run(tmp_path / "t.json", "--policy", tmp_path / "p.yaml", "--pace", "max")
        assert [(row["target"], row["host"]) for row in sink.stop()] == [("/a", "h-shadow:1")]
    assert endtoend.show(tmp_path / "t.json")[0]["client"] == "0.0.0.0:0"
