"""A replay into the sink, process to process: what arrived is what `replay show` announced, header by header, in order, in time."""

import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time

import endtoend
import pytest

FOLDERS = ("chunked-upload", "large-body", "python-pipelining", "packet-loss", "curl-keepalive", "node-clients", "expect-continue", "wrk-load")
ONE_HOP = {"connection", "keep-alive", "proxy-connection", "expect"}
NEVER_NAMED = {"host", "content-length", "transfer-encoding"}


def headers_sent(row):
    """The header fields that the shadow gets for a row of `show`."""
    named = {option.strip(" \t").lower() for name, value in row["headers"] if name.lower() == "connection" for option in value.split(",")}
    gone = ONE_HOP | (named - NEVER_NAMED)
    fields = [(name, row["shadow_host"] if name.lower() == "host" else value) for name, value in row["headers"] if name.lower() not in gone]
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", row["shadow_host"]))
    return tuple(fields)


def with_headers(rows):
    return collections.Counter(
        (row["method"], endtoend.origin_form(row["target"]), row["version"], row["body_sha256"], headers_sent(row)) for row in rows if row["withheld"] is None
    )


def with_headers_logged(rows):
    def unfolded(value):
        return " ".join(line.strip(" \t") for line in value.replace("\r\n", "\n").split("\n"))

    return collections.Counter(
        (row["method"], row["target"], row["version"], row["body_sha256"], tuple((name, unfolded(value)) for name, value in row["headers"])) for row in rows
    )


def replayed(tmp_path, captures, *options, how=("--pace", "max")):
    """(rows of show, rows of the sink, report) after the sink logged exactly what was to be sent, with its headers."""
    rows = endtoend.show(*options, *captures)
    with endtoend.Sink(tmp_path / f"sink-{time.monotonic_ns()}.log") as sink:
        report = endtoend.run(*options, *how, "--to", sink.url, *captures)
        lines = sink.stop()
    sent, answered, dropped, unanswered = endtoend.outcome(report)
    assert (dropped, unanswered) == (0, {}) and sent == answered == len(lines) == report["ledger"]["selected"]
    assert sink.totals["requests"] == answered and sink.totals["bad"] == 0
    assert endtoend.logged(lines) == endtoend.expected(rows)
    assert with_headers_logged(lines) == with_headers(rows)
    return rows, lines, report


@pytest.mark.parametrize("percent", [100, 50, 1])
def test_the_demo(tmp_path, percent):
    _, _, report = replayed(tmp_path, [endtoend.DEMO], "--percent", percent)
    assert report["ledger"]["found"] == 226


def test_each_of_our_captures(tmp_path):
    for name in FOLDERS:
        _, lines, _ = replayed(tmp_path, endtoend.folder(name))
        assert lines, name


@pytest.mark.parametrize("percent", [100, 50, 1])
def test_our_captures_merged(tmp_path, percent):
    replayed(tmp_path, [path for name in FOLDERS for path in endtoend.folder(name)], "--percent", percent)


@pytest.mark.parametrize("flavour", [("plain",), ("loss",), ("wraps", "reorder")], ids="-".join)
def test_generated_traffic(tmp_path, flavour):
    capture = tmp_path / "generated.pcap"
    whole, _ = endtoend.generated(capture, flavour)
    chosen = []
    for percent in (100, 50, 1):
        rows, _, report = replayed(tmp_path, [capture], "--percent", percent)
        assert report["ledger"]["found"] == len(whole)
        chosen.append(endtoend.expected(rows))
    assert chosen[0] >= chosen[1] >= chosen[2]
    truth = collections.Counter((row.method.decode(), endtoend.origin_form(row.target.decode()), row.sha256) for row in whole if row.withheld is None)
    got = collections.Counter((method, target, digest) for method, target, _, digest in chosen[0].elements())
    # Behind several holes, or where the first packet of a mid-stream start ends in a method, what was answered may stay unconfirmed.
    assert got <= truth and (truth - got).total() <= 0.02 * len(whole)


# ---- order and time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [("--pace", "max"), ("--pace", "max", "--pipeline", "8"), ("--pace", "2000/s", "-c", "3")], ids=" ".join)
def test_the_order_within_a_captured_connection_is_kept(tmp_path, how):
    connections, count = 7, 700
    capture = endtoend.unique(tmp_path / "unique.pcap", count, connections)
    with endtoend.Sink(tmp_path / "log", "--delay", "300us") as sink:
        report = endtoend.run(*how, "--to", sink.url, capture)
        lines = sink.stop()
    assert report["ledger"]["answered"] == count
    order = collections.defaultdict(list)
    for line in lines:
        number = int(line["target"][1:])
        order[number % connections].append(number)
    assert order == {each: list(range(each, count, connections)) for each in range(connections)}


def errors_ms(rows, lines, speed):
    """How far each request was from its time, against the first one."""
    waiting = collections.defaultdict(list)
    for row in rows:
        if row["withheld"] is None:
            waiting[row["method"], row["target"], row["body_sha256"], headers_sent(row)].append(row["ts_ns"])
    late = []
    for line in sorted(lines, key=lambda line: line["ts_ns"]):
        key = line["method"], line["target"], line["body_sha256"], tuple(map(tuple, line["headers"]))
        late.append(line["ts_ns"] - waiting[key].pop(0) / speed)
    assert not any(waiting.values())
    base = statistics.median(late)
    return [abs(each - base) / 1e6 for each in late]


@pytest.mark.parametrize("pace, speed, seconds, least", [("original", 1, 3, 50), ("4x", 4, 10, 220)])
def test_requests_leave_at_their_times(tmp_path, pace, speed, seconds, least):
    first = endtoend.show(endtoend.DEMO)[0]["ts_ns"] / 1e9
    began = time.monotonic()
    rows, lines, report = replayed(tmp_path, [endtoend.DEMO], "--until", f"{first + seconds:.3f}", how=("--pace", pace))
    took = time.monotonic() - began
    span_s = (max(row["ts_ns"] for row in rows) - min(row["ts_ns"] for row in rows)) / 1e9 / speed
    assert len(lines) > least and span_s < took < span_s + 2
    assert statistics.median(errors_ms(rows, lines, speed)) < 5
    assert report["lag_us"]["p50"] < 5000


def test_what_is_before_since_is_not_waited_for(tmp_path):
    talks = [endtoend.conversation([endtoend.request(b"/%d" % i)], i, start_ns=(1_700_000_000 + i) * 10**9) for i in range(2)]
    capture = endtoend.write(tmp_path / "two.pcap", *talks)
    with endtoend.Sink(tmp_path / "log") as sink:
        began = time.monotonic()
        report = endtoend.run("--since", "1700000000.5", "--to", sink.url, capture)
    assert report["ledger"]["answered"] == 1
    assert time.monotonic() - began < 0.9


def test_an_even_rate(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 200)
    _, lines, report = replayed(tmp_path, [capture], how=("--pace", "400/s"))
    times = sorted(line["ts_ns"] for line in lines)
    assert 0.49 < (times[-1] - times[0]) / 1e9 < 1
    assert statistics.median(b - a for a, b in zip(times, times[1:], strict=False)) == pytest.approx(2.5e6, rel=0.2)
    assert report["rate"]["asked"] == 400


def test_a_long_silence_is_cut(tmp_path):
    first, second = (endtoend.conversation([endtoend.request(b"/%d" % i)], i, start_ns=1_700_000_000_000_000_000 + i * 3 * 86400 * 10**9) for i in range(2))
    capture = endtoend.write(tmp_path / "silence.pcap", first, second)
    _, lines, _ = replayed(tmp_path, [capture], how=("--max-gap", "300ms"))
    assert 0.2 < (lines[1]["ts_ns"] - lines[0]["ts_ns"]) / 1e9 < 1


# ---- how much ----------------------------------------------------------------------------------------------------------------


def test_two_targets_get_a_copy_each(tmp_path):
    rows = endtoend.show(endtoend.DEMO)
    with endtoend.Sink(tmp_path / "one.log") as one, endtoend.Sink(tmp_path / "two.log") as two:
        report = endtoend.run("--pace", "max", "--to", one.url, "--to", two.url, endtoend.DEMO)
        logs = [one.stop(), two.stop()]
    assert report["ledger"]["fanout"] == report["ledger"]["selected"] == 225
    assert report["ledger"]["answered"] == 450
    for lines in logs:
        assert endtoend.logged(lines) == endtoend.expected(rows)


def test_several_passes(tmp_path):
    rows = endtoend.show("--percent", "50", endtoend.DEMO)
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run("--pace", "max", "--loop", "3", "--percent", "50", "--to", sink.url, endtoend.DEMO)
        lines = sink.stop()
    assert report["ledger"]["found"] == 3 * 226
    assert endtoend.logged(lines) == endtoend.expected(rows, copies=3)
    assert report["ledger"]["answered"] == len(lines)


def test_a_limit(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 50, 3)
    rows, lines, report = replayed(tmp_path, [capture], "--limit", "7")
    assert len(rows) == len(lines) == report["ledger"]["selected"] == 7
    assert sorted(int(line["target"][1:]) for line in lines) == list(range(7))
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run("--limit", "70", "--loop", "3", "--pace", "max", "--to", sink.url, capture)
        assert len(sink.stop()) == report["ledger"]["answered"] == 70


def test_a_duration(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 2000)
    with endtoend.Sink(tmp_path / "log") as sink:
        began = time.monotonic()
        report = endtoend.run("--duration", "400ms", "--pace", "100/s", "--to", sink.url, capture)
        took = time.monotonic() - began
        lines = sink.stop()
    sent, answered, dropped, unanswered = endtoend.outcome(report)
    assert 30 <= sent <= 45 and sent == answered == len(lines) and unanswered == {}
    assert dropped == report["ledger"]["selected"] - sent
    assert 0.4 <= took < 3


@pytest.mark.parametrize("end", ["duration", "stop-if", "interrupt"])
def test_the_rate_of_a_run_that_was_ended_early(end, tmp_path):
    """Asked is what was due until then: ten a second for a while, then hundreds. Nothing was late, so a gate on the rate passes."""
    times = [i * 10**8 for i in range(20)] + [2 * 10**9 + i * 10**6 for i in range(2000)]
    talks = [endtoend.conversation([endtoend.request(b"/%d" % i)], i % 20000, start_ns=10**18 + at) for i, at in enumerate(times)]
    capture = endtoend.write(tmp_path / "dense.pcap", *talks)
    gate = ("--fail-if", "rate.achieved < 0.9 * rate.asked")
    with endtoend.Sink(tmp_path / "log") as sink:
        words = ("run", capture, "--to", sink.url, "--loop", "3", "--json", *gate)
        if end == "duration":
            done = endtoend.command(*words, "--duration", "1s")
        elif end == "stop-if":
            done = endtoend.command(*words, "--stop-if", "ledger.answered > 7 and rate.achieved > 0.9 * rate.asked", code=1)
        else:
            run = endtoend.started(*words)
            endtoend.until_logged(sink.log, 8)
            run.send_signal(signal.SIGINT)
            done = subprocess.CompletedProcess(words, None, run.communicate(timeout=endtoend.PATIENCE_S)[0])
            assert run.returncode == 130
    report = json.loads(done.stdout)
    rate = report["rate"]
    assert 7 < report["ledger"]["sent"] < 20 and report["ledger"]["by_reason"]["dropped"]["stopped"] > 0
    assert rate["asked"] == pytest.approx(10, rel=0.01) and rate["achieved"] == pytest.approx(10, rel=0.1)
    assert rate["planned_s"] is None and not report["gates"][0]["failed"]


def test_only_safe_methods(tmp_path):
    rows, lines, report = replayed(tmp_path, [endtoend.DEMO], "--methods", "safe")
    every = endtoend.show(endtoend.DEMO)
    writes = sum(row["method"] not in ("GET", "HEAD", "OPTIONS") for row in every)
    assert {line["method"] for line in lines} == {"GET", "HEAD"}
    assert report["ledger"]["by_reason"]["filtered"] == {"method": writes} and writes == 11
    assert len(rows) == 226 - writes


def test_whole_connections_are_sampled(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 400, 40)
    _, lines, _ = replayed(tmp_path, [capture], "--percent", "50", "--sample-by", "connection")
    connections = collections.Counter(int(line["target"][1:]) % 40 for line in lines)
    assert set(connections.values()) == {10} and 8 < len(connections) < 32


def test_seeds_choose_other_requests(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 400, 4)
    one, two, again = (endtoend.expected(endtoend.show("-p", "50", "--seed", seed, capture)) for seed in (1, 2, 1))
    assert one == again != two


# ---- what is changed ---------------------------------------------------------------------------------------------------------


def headers_at_the_sink(tmp_path, capture, *options):
    with endtoend.Sink(tmp_path / f"sink-{time.monotonic_ns()}.log") as sink:
        endtoend.run(*options, "--pace", "max", "--to", sink.url, capture)
        return [[tuple(field) for field in line["headers"]] for line in sink.stop()]


@pytest.fixture
def one_request(tmp_path):
    """A capture of one request with some headers."""
    extra = b"X-A: 1\r\nAccept: */*\r\nX-B: 2\r\nConnection: close, X-Hop\r\nX-Hop: 3\r\nX-A: 4\r\ntraceparent: 00-%032d-%016d-01\r\n" % (1, 1)
    return endtoend.write(tmp_path / "one.pcap", endtoend.conversation([endtoend.request(b"/", extra=extra)]))


TRACE = ("traceparent", f"00-{1:032d}-{1:016d}-01")


@pytest.mark.parametrize(
    "options, wanted",
    [
        ((), [("Host", "a.example-shadow"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4"), TRACE]),
        (("-H", "X-B: new"), [("Host", "a.example-shadow"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "new"), ("X-A", "4"), TRACE]),
        (("-H", "x-a: 9", "-H", "X-Z: z"), [("Host", "a.example-shadow"), ("x-a", "9"), ("Accept", "*/*"), ("X-B", "2"), TRACE, ("X-Z", "z")]),
        (("--add-header", "X-B: more"), [("Host", "a.example-shadow"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4"), TRACE, ("X-B", "more")]),
        (("--remove-header", "x-a", "--remove-header", "accept"), [("Host", "a.example-shadow"), ("X-B", "2"), TRACE]),
        (("--set-host", "other.example:81"), [("Host", "other.example:81"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4"), TRACE]),
        (("--shadow-suffix", ".mirror"), [("Host", "a.example.mirror"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4"), TRACE]),
        (("--trace", "drop"), [("Host", "a.example-shadow"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4")]),
        (("--trace", "unsample"), [("Host", "a.example-shadow"), ("X-A", "1"), ("Accept", "*/*"), ("X-B", "2"), ("X-A", "4"), (TRACE[0], TRACE[1][:-1] + "0")]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_headers_are_edited(tmp_path, one_request, options, wanted):
    assert headers_at_the_sink(tmp_path, one_request, *options) == [wanted]


def test_without_a_suffix_the_copy_is_marked(tmp_path, one_request):
    ((*fields, marker),) = headers_at_the_sink(tmp_path, one_request, "--shadow-suffix", "off")
    assert marker == ("x-shadow-replay", "1")
    assert fields[0] == ("Host", "a.example") and len(fields) == 6


@contextlib.contextmanager
def recorded(path, port):
    """What goes over the loopback interface to and from this port, by tcpdump."""
    with open(path.with_suffix(".err"), "w+b") as errors:
        tcpdump = subprocess.Popen(["tcpdump", "-i", "lo", "-s", "0", "-B", "32768", "--immediate-mode", "-U", "-w", path, f"tcp port {port}"], stderr=errors)
        try:
            endtoend.wait_until(lambda: b"listening on" in path.with_suffix(".err").read_bytes(), "tcpdump")
            yield
            size = -1
            while size != path.stat().st_size:  # what the kernel still holds for it
                size = path.stat().st_size
                time.sleep(0.5)
        finally:
            tcpdump.send_signal(signal.SIGINT)
            tcpdump.wait(endtoend.PATIENCE_S)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tcpdump"), reason="recording needs tcpdump, and root")
@pytest.mark.parametrize("options", [(), ("--shadow-suffix", "off"), ("--set-host", "x.example-shadow:1")], ids=["suffix", "marker", "literal"])
def test_a_recording_of_a_replay_is_not_replayed(tmp_path, options):
    with endtoend.Sink(tmp_path / "log") as sink:
        with recorded(tmp_path / "loop.pcap", sink.port):
            report = endtoend.run(*options, "--pace", "1000/s", "-c", "8", "--to", sink.url, endtoend.DEMO)
        lines = sink.stop()
    rows = endtoend.show(tmp_path / "loop.pcap")
    assert len(rows) == len(lines) == report["ledger"]["sent"] == 225
    assert {row["withheld"] for row in rows} == {"loop"}
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.setblocking(False)
        report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path / "loop.pcap")
        with pytest.raises(BlockingIOError):
            nobody.accept()
    assert report["ledger"]["by_reason"]["withheld"] == {"loop": 225} and report["ledger"]["selected"] == 0


def test_ipv6_targets_and_captures(tmp_path):
    ends = {"client": (b"\xfd" + bytes(14) + b"\1", 40000), "server": (b"\xfd" + bytes(14) + b"\2", 80)}
    capture = endtoend.write(tmp_path / "six.pcap", endtoend.conversation([endtoend.request(b"/six")], **ends))
    sink = endtoend.started("sink", "--json", "--listen", "[::1]:0", "--access-log", tmp_path / "log")
    try:
        where = sink.stdout.readline().decode().split()[-1]
        assert where.startswith("[::1]:")
        report = endtoend.run("--pace", "max", "--to", f"http://{where}", capture)
    finally:
        sink.terminate()
        assert endtoend.ended(sink) == 0
    assert report["ledger"]["answered"] == 1


def test_the_access_log_of_the_run_tells_the_same(tmp_path):
    with endtoend.Sink(tmp_path / "sink.log", "--status", "503", "--body", "12") as sink:
        report = endtoend.run("--pace", "max", "--access-log", tmp_path / "run.log", "--report", tmp_path / "report.json", "--to", sink.url, endtoend.DEMO)
        lines = sink.stop()
    assert report["status"] == {"503": 225}
    log = (tmp_path / "run.log").read_text().splitlines()
    assert len(log) == 225
    assert sorted(line.split('"')[1].split()[1] for line in log) == sorted(line["target"] for line in lines)
    assert json.loads((tmp_path / "report.json").read_text())["ledger"] == report["ledger"]
