"""Judging: endpoints and how paths are folded, gates, the lines of --results, what they say against what was captured."""

import base64
import http.server
import json
import os
import pathlib
import random
import re
import stat
import threading
import time

import endtoend
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from replay import _fastpath
from replay._reference.endpoints import fold
from replay.errors import UsageError
from replay.histogram import Histogram
from replay.judge import endpoints, gates, hints, merging

# ---- endpoints ------------------------------------------------------------------------------------------------------------------

FOLDED = [  # target, path of the endpoint, reason
    (b"/users/17", b"/users/{n}", "digits"),
    (b"/users/17?x=1", b"/users/{n}", "the query is left out"),
    (b"/v1/users/17/orders/9", b"/v1/users/{n}/orders/{n}", "a version stays"),
    (b"/api/v2.1/x", b"/api/v2.1/x", "a version with a point stays"),
    (b"/o/3f2504e0-4f89-11d3-9a0c-0305e82c3301", b"/o/{uuid}", "UUID"),
    (b"/blob/5d41402abc4b2a76b9719d911017c592", b"/blob/{hex}", "a hash"),
    (b"/facade/deadbeef", b"/facade/deadbeef", "a word of hex letters stays"),
    (b"/day/2026-08-01/x", b"/day/{date}/x", "date"),
    (b"/order-12345/item_7", b"/order-{n}/item_{n}", "digits behind a separator"),
    (b"/img0042.png", b"/img{n}.png", "digits at the end of a word"),
    (b"/s3/mp3/utf8", b"/s3/mp3/utf8", "few digits of a word stay"),
    (b"/u/jane@example.org/x", b"/u/{mail}/x", "an address"),
    (b"/u/jane%40example.org", b"/u/{mail}", "an address, escaped"),
    (b"/t/eyJhbGciOiJIUzI1NiJ9", b"/t/{id}", "a token"),
    (b"/a;jsessionid=1234/b", b"/a/b", "matrix parameters are left out"),
    (b"/", b"/", "root"),
    (b"*", b"*", "the whole server"),
    (b"//a//", b"//a//", "empty segments stay"),
    (b"/caf\xc3\xa9/\xff", b"/caf\xc3\xa9/\xff", "other bytes stay"),
]


@pytest.mark.parametrize("fold_it", [fold, _fastpath.fold_endpoint], ids=["reference", "fastpath"])
@pytest.mark.parametrize("target, path, reason", FOLDED, ids=[row[2] for row in FOLDED])
def test_identifiers_are_folded(fold_it, target, path, reason):
    assert fold_it(b"GET", target) == b"GET " + path


PIECES = st.sampled_from([b"/", b"12", b"345", b"7", b"abc", b"deadbeef01", b"-", b"_", b".", b":", b";", b"?", b"#", b"@", b"%40", b"%4", b"\xff", b"v1", b"2026-08-01", b"3f2504e0-4f89-11d3-9a0c-0305e82c3301", b"eyJhbGciOiJIUzI1NiJ9"])


@given(st.lists(PIECES | st.binary(max_size=4), max_size=30).map(b"".join), st.sampled_from([b"GET", b"M" * 40]))
def test_folding_as_the_oracle_has_it(target, method):
    assert _fastpath.fold_endpoint(method, target) == fold(method, target)


# ---- histograms -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [2, 3])
def test_histograms_are_those_of_the_hdrhistogram_package(digits):
    """Ours is read by the package, gives its percentiles, and adds up as its own do; what the package wrote decodes to the same."""
    rng = random.Random(digits)
    parts = [[int(rng.lognormvariate(8, 3)) for _ in range(3000)] for _ in range(2)] + [[0, 1, 127, 128, 255, 256, 2047, 2048, 3_599_999_999], []]
    whole, theirs = Histogram(digits=digits), HdrHistogram(1, 3_600_000_000, digits)
    for values in parts:
        own = HdrHistogram(1, 3_600_000_000, digits)
        for value in values:
            own.record_value(min(value, 3_600_000_000))
        encoded = own.encode().decode()
        ours = Histogram.decode(encoded)
        assert ours.total == len(values)
        back = HdrHistogram.decode(ours.encode())
        assert back.get_total_count() == own.get_total_count()
        whole.add(ours)
        theirs.add(back)
        again = Histogram.decode(ours.encode())
        assert again.counts == ours.counts
    every = sorted(min(value, 3_600_000_000) for values in parts for value in values)
    for share in (0.5, 0.9, 0.99, 0.999, 1.0):
        at = max(0, -int(-share * len(every) // 1) - 1)
        assert abs(whole.percentile(share) - every[at]) <= max(1, every[at] / 10**digits)
        near = every[max(0, at - 1)], every[min(len(every) - 1, at + 1)]  # the package rounds the rank to the nearest
        assert near[0] * (1 - 10**-digits) - 1 <= theirs.get_value_at_percentile(share * 100) <= near[1] * (1 + 10**-digits) + 1


@pytest.mark.parametrize("text", ["", "x", "HISTFAAA", base64.b64encode(b"\x1c\x84\x93\x14\0\0\0\4abcd").decode()])
def test_what_is_no_histogram_is_refused(text):
    with pytest.raises(ValueError, match="no histogram"):
        Histogram.decode(text)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(payload):
    import struct
    import zlib

    head = struct.pack(">iiiiqqd", 0x1C849313, len(payload), 0, 3, 1, 3_600_000_000, 1.0)
    packed = zlib.compress(head + payload)
    try:
        Histogram.decode(base64.b64encode(struct.pack(">ii", 0x1C849314, len(packed)) + packed).decode())
    except ValueError as error:
        assert "no histogram" in str(error)


# ---- gates ----------------------------------------------------------------------------------------------------------------------

REPORT = {
    "ledger": {"found": 100, "selected": 100, "fanout": 0, "sent": 100, "answered": 97, "unanswered": 3, "by_reason": {"unanswered": {"reset": 3}}},
    "status": {"200": 90, "500": 5, "503": 2},
    "status_known": 97,
    "status_change": {"200>500": 5, "404>200": 1},
    "latency_us": {"p50": None, "p99": 300_000},
    "production_us": {"p99": 100_000},
    "rate": {"achieved": 99.5, "asked": 100},
    "endpoints": [
        {"endpoint": "GET /users/{n}", "requests": 10, "known": 10, "changed": 4, "status": {"5xx": 4}, "answered": 10, "latency_us": {"p99": 1000}},
        {"endpoint": "GET /", "requests": 90, "known": 80, "changed": 0, "status": {}, "answered": 87, "latency_us": {"p99": 90}},
    ],
}
GATES = [  # expression, whether it fails, value, bound
    ("ledger.unanswered > 1%", True, "3 %", "1 %"),
    ("ledger.unanswered > 3%", False, "3 %", "3 %"),
    ("ledger.unanswered >= 3%", True, "3 %", "3 %"),
    ("ledger.unanswered > 2", True, "3", "2"),
    ("ledger.by_reason.unanswered.reset > 2%", True, "3 %", "2 %"),
    ("ledger.by_reason.unanswered.timeout > 0", False, "0", "0"),
    ("latency_us.p99 > 250ms", True, "300 ms", "250 ms"),
    ("latency_us.p99 > 0.25 s", True, "300 ms", "250 ms"),
    ("latency_us.p99 > 250000", True, "300 ms", "250 ms"),
    ("latency_us.p99 > 250000us", True, "300 ms", "250 ms"),
    ("latency_us.p50 > 1h", True, "no value", "3.6e+03 s"),
    ("latency_us.p99 > 2 * production_us.p99", True, "300 ms", "200 ms"),
    ("latency_us.p99 - production_us.p99 > 199ms", True, "200 ms", "199 ms"),
    ("latency_us.p99 / production_us.p99 > 3.5", False, "3", "3.5"),
    ("status_change > 0.5%", True, "6.186 %", "0.5 %"),
    ("status_change.200>500 > 5", False, "5", "5"),
    ("status_change['200>500'] > 4", True, "5", "4"),
    ("status.5xx == 7", True, "7", "7"),
    ("status.404 > 0", False, "0", "0"),
    ("rate.achieved < 0.99 * rate.asked", False, "99.5", "99"),
    ("status.503 > 1 and ledger.sent < 5", False, "2", "1"),
    ("status.503 > 1 or ledger.sent < 5", True, "2", "1"),
    ("not (status.503 == 2)", False, "2", "2"),
    ("endpoints.*.changed > 5%", True, "40 %", "5 %"),
    ("endpoints.*.latency_us.p99 > 5ms", False, "90 us", "5 ms"),
    ('endpoints["GET /users/{n}"].changed > 50%', False, "40 %", "50 %"),
    ('endpoints."GET /users/{n}".status.5xx > 3', True, "4", "3"),
    ("endpoints['GET /nowhere'].changed > 0", False, "0", "0"),
    ("endpoints['GET /nowhere'].changed > 5%", True, "no value", "5 %"),
    ("endpoints.*.slower > 5%", True, "no value", "5 %"),
    ("packets.skipped > 1%", False, "0 %", "1 %"),
]


DEAD = REPORT | {
    "ledger": {"found": 100, "selected": 100, "fanout": 0, "sent": 0, "answered": 0, "unanswered": 0, "dropped": 100, "by_reason": {"dropped": {"target_down": 100}}},
    "status": {}, "status_known": 0, "status_change": {},
    "endpoints": [{"endpoint": "GET /", "requests": 100, "dropped": 100, "answered": 0, "known": 0, "changed": 0}],
}  # fmt: skip


@pytest.mark.parametrize(
    "expression, failed",
    [
        ("status_change > 0.5%", True), ("status_change == 0%", True), ("not (status_change > 0.5%)", True), ("ledger.unanswered > 1%", True),
        ("ledger.by_reason.unanswered.timeout > 1%", True), ("status.5xx > 1%", True), ("endpoints.*.changed > 5%", True), ("ledger.dropped > 1%", True),
        ("ledger.answered < 99%", True), ("ledger.unanswered > 0", False), ("ledger.sent > 0 and status_change > 0.5%", False), ("incomplete > 1%", False),
        ("endpoints.*.unanswered > 1%", False), ("endpoints.*.dropped > 1%", True),
    ],
)  # fmt: skip
def test_a_percentage_of_nothing_fails(expression, failed):
    """Nothing was sent: no gate over shares of the sent or the answered may pass."""
    assert gates.parse(expression).check(DEAD).failed is failed
    assert not gates.parse(expression).check(DEAD, least=100).failed or "dropped" in expression


def test_endpoints_that_cannot_tell_are_passed_over():
    some = REPORT | {"endpoints": [DEAD["endpoints"][0], REPORT["endpoints"][0]]}
    assert gates.parse("endpoints.*.changed > 5%").check(some).where == "GET /users/{n}"
    assert not gates.parse("endpoints.*.changed > 50%").check(some).failed


@pytest.mark.parametrize("expression, failed, value, bound", GATES, ids=[row[0] for row in GATES])
def test_a_gate_says_value_and_bound(expression, failed, value, bound):
    outcome = gates.parse(expression).check(REPORT)
    assert (outcome.failed, outcome.value) == (failed, value)
    if bound != "3.6e+03 s":
        assert outcome.bound == bound


WRONG = [  # expression, a word of what is said
    ("ledger.unanswred > 1%", "did you mean 'ledger.unanswered'"),
    ("unanswered > 1", "did you mean"),
    ("latency_us.p99 > 1%", "cannot be compared"),
    ("ledger.sent > 3ms", "cannot be compared"),
    ("connections > 3%", "a percentage of what"),
    ("latency_us > 3", "below it are p50"),
    ("ledger.sent", "no comparison"),
    ("ledger.sent >", "ends too early"),
    ("ledger.sent > 1 > 2", "too much"),
    ("(ledger.sent > 1", "not closed"),
    ("ledger.sent > 1 and 3", "no comparison on one side"),
    ("ledger.sent $ 1", "cannot read"),
    ("__import__('os').system('true') > 1", "cannot read"),
    ("(" * 500 + "1", "too many parentheses"),
    ("x" * 3000, "2,000"),
    ("", "ends too early"),
    ("incomplete.gpa > 0", "did you mean 'incomplete.gap'"),
    ("ledger.by_reason.unanswered.timout > 0", "did you mean 'ledger.by_reason.unanswered.timeout'"),
    ("ledger.by_reason.dropped.foo > 0", "there are target_down, guard"),
    ("ledger.by_reason.filtered.not_mirored > 0", "not_mirrored'"),
    ("packets.skipped.foo > 0", "names like ip_protocol_46"),
    ("packets.skipped.arp.x > 0", "nothing below packets.skipped.arp"),
    ("other.htpp2 > 0", "did you mean 'other.http2'"),
    ("status.foo > 0", "there are 1xx, 2xx, 3xx, 4xx, 5xx, names like 200"),
    ("status.20x > 0", "did you mean 'status.2xx'"),
    ("status.0 > 0", "the report has no 'status.0'"),
    ("status_captured.6xx > 0", "did you mean"),
    ("status_change.foo > 0", "names like 200>500"),
    ("status_change['2xx>5xx'] > 0", "names like 200>500"),
    ("endpoints.*.status.foo > 1", "there are 1xx"),
    ("endpoints.*.status.503 > 1", "there are 1xx"),  # endpoints count classes
    ('endpoints["GET /"].captured.20x > 1', "2xx"),
]


def test_the_reasons_of_gates_are_those_of_the_engine():
    """Each name that a report can count is accepted, and no other."""
    def known(names):
        return sorted(name for name in names if name)

    assert known(_fastpath.FILTERED) == sorted(gates._REASONS["filtered"].names)
    assert known(_fastpath.WITHHELD) == sorted(gates._REASONS["withheld"].names)
    assert known({*_fastpath.SENDER_REASONS, "queue_full"}) == sorted({*gates._REASONS["dropped"].names, *gates._REASONS["unanswered"].names})
    assert known(_fastpath.INCOMPLETE) == sorted(gates._INCOMPLETE.names)
    assert known(_fastpath.OTHER) == sorted(gates._OTHER.names)
    text = (pathlib.Path(__file__).resolve().parents[1] / "replay" / "fastpath" / "decode.pxi").read_text()
    tables = re.findall(r"(?ms)^cdef (?:tuple|dict) DECODE_(?:SKIPS|PROTOCOLS|ETHERTYPES) = [({](.*?)[)}]\n", text)
    names = {name for table in tables for name in re.findall(r'"(\w+)"', table)}
    assert len(tables) == 3 and {*names, "bpf", "other"} - {"ip_protocol_255"} == set(gates._SKIPPED.names)


@pytest.mark.parametrize(
    "name",
    ["packets.skipped.ip_protocol_46", "packets.skipped.ethertype_0x894f", "packets.skipped.link_147", "status.299", "status_captured.5xx",
     "status_change.200>500", "endpoints.*.status_change.200>500", "endpoints.*.status_change.other", "endpoints.*.captured.2xx"],
)  # fmt: skip
def test_what_did_not_occur_is_0(name):
    assert not gates.parse(f"{name} > 100").check(REPORT).failed


@pytest.mark.parametrize("expression, word", WRONG, ids=[row[0][:30] for row in WRONG])
def test_a_wrong_gate_is_an_error_before_the_run(expression, word):
    with pytest.raises(UsageError) as told:
        gates.parse(expression)
    assert word in str(told.value)


@given(st.text(alphabet="ledgrstau.1%>< =()'\"*+-/_[]andornot5xms", max_size=40))
def test_any_text_is_a_gate_or_an_error(text):
    try:
        gates.parse(text).check(REPORT)
    except UsageError:
        pass


def test_each_number_of_a_real_report_can_be_asked_for(tmp_path):
    """The names of gates and the report say the same: nothing in one that is not in the other."""
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run(endtoend.DEMO, "--pace", "max", "--to", sink.url, "--results", tmp_path / "r.jsonl")

    def has(node, parts):
        for part in parts:
            if part == "*":
                node = node[0]
            elif part == "NAME":
                return isinstance(node, dict)
            else:
                assert isinstance(node, dict) and part in node, parts
                node = node[part]
        return True

    for name in gates.known_names():
        assert has(report, name.split("."))
        if not name.endswith("NAME"):
            gates.parse(f"{name} > 1")


# ---- the command line -------------------------------------------------------------------------------------------------------------


def test_a_failed_gate_is_exit_1_and_named(tmp_path):
    with endtoend.Sink(tmp_path / "log", "--status", "500") as sink:
        common = ("run", endtoend.DEMO, "--pace", "max", "--to", sink.url)
        done = endtoend.command(*common, "--fail-if", "status_change > 5%", "--fail-if", "ledger.sent > 1M", code=1)
        assert b"gate failed: status_change > 5%: 100 %, bound 5 %" in done.stdout
        assert b"1M" not in done.stdout
        report = endtoend.run(*common[1:], "--fail-if", "status.5xx > 99.9%", code=1)
        assert report["gates"] == [{"expression": "status.5xx > 99.9%", "failed": True, "value": "100 %", "bound": "99.9 %", "where": None}]
        endtoend.command(*common, "--fail-if", "ledger.unanswered > 1%", code=0)
        wrong = endtoend.command(*common, "--fail-if", "ledger.unanswred > 1%", code=2)
        assert b"--fail-if" in wrong.stderr and b"did you mean" in wrong.stderr


def test_a_gate_over_nothing_fails_unless_allowed(tmp_path):
    nothing = ("--path", "^/nothing-like-this", "--fail-if", "ledger.unanswered > 1%")
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run(endtoend.DEMO, "--to", sink.url, *nothing, code=1)
        assert "nothing was selected" in report["gates"][0]["bound"]
        endtoend.run(endtoend.DEMO, "--to", sink.url, *nothing, "--allow-empty", code=0)


def test_no_gate_passes_when_the_target_is_down(tmp_path):
    wanted = ("--fail-if", "status_change > 0.5%", "--fail-if", "ledger.unanswered > 1%", "--fail-if", "ledger.dropped > 1%")
    common = (endtoend.DEMO, "--to", f"http://127.0.0.1:{endtoend.free_port()}", "--pace", "max", "--duration", "300ms")
    report = endtoend.run(*common, "--report", tmp_path / "dead.json", *wanted, code=5)
    assert [(gate["failed"], gate["value"]) for gate in report["gates"]] == [(True, "no value"), (True, "no value"), (True, "100 %")]
    done = endtoend.command("report", tmp_path / "dead.json", *wanted[:4], code=1)
    assert b"gate failed: status_change > 0.5%: no value, bound 0.5 %" in done.stdout


def test_stop_if_ends_a_run_early(tmp_path):
    capture = endtoend.unique(tmp_path / "a.pcap", 4000, connections=50, step_ns=5_000_000)  # 20 s at its own pace
    began = time.monotonic()
    with endtoend.Sink(tmp_path / "log", "--status", "503") as sink:
        report = endtoend.run(capture, "--to", sink.url, "--stop-if", "status.5xx > 50%", code=1)
    assert time.monotonic() - began < 15
    assert report["gates"][0]["expression"] == "status.5xx > 50%" and report["gates"][0]["failed"]
    assert 100 <= report["ledger"]["answered"] < 4000
    assert report["ledger"]["dropped"] == report["ledger"]["by_reason"]["dropped"]["stopped"] > 0
    assert not report["interrupted"] and report["stopped_by"] == "status.5xx > 50%"
    (tmp_path / "r.json").write_text(json.dumps(report))
    said = endtoend.command("report", tmp_path / "r.json", code=1).stdout.decode()
    assert "next: the run was stopped by --stop-if 'status.5xx > 50%'" in said and "--duration" not in said


# ---- results --------------------------------------------------------------------------------------------------------------------

ADDED = {"to", "due_ns", "sent_ns", "outcome", "reason", "shadow_status", "service_us", "shadow_response_us", "shadow_body_len"}


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


@pytest.mark.parametrize("case", ["demo", "chunked-upload", "python-pipelining", "ipv6", "connect-proxy", "expect-continue", "node-clients", "packet-loss"])
def test_results_have_what_show_has(case, tmp_path):
    """Every selected request once, each key as `show` has it, whatever became of it."""
    captures = [endtoend.DEMO] if case == "demo" else endtoend.folder(case)
    shown = {row["n"]: row for row in endtoend.show(*captures) if row["withheld"] is None}
    report = endtoend.run(*captures, "--results", tmp_path / "r.jsonl", code=0)
    rows = lines_of(tmp_path / "r.jsonl")
    assert report["results"] == {"lines": len(rows), "lost": 0} and len(rows) == report["ledger"]["selected"] == len(shown)
    for row in rows:
        wanted = shown.pop(row["n"])
        del wanted["headers"]
        wanted["target"] = re.sub("//[^/]*@", "//***@", wanted["target"])
        assert {key: row[key] for key in wanted} == wanted
        assert set(row) == set(wanted) | ADDED
        assert (row["outcome"], row["reason"], row["sent_ns"]) == ("dropped", "dry_run", None)
    assert not shown


def test_results_of_a_real_run(tmp_path):
    with endtoend.Sink(tmp_path / "log", "--status", "404") as sink:
        report = endtoend.run(endtoend.DEMO, "--pace", "max", "--to", sink.url, "--to", sink.url, "--results", tmp_path / "r.jsonl.zst")
    (tmp_path / "r.jsonl").write_bytes(decompressed(tmp_path / "r.jsonl.zst"))
    rows = lines_of(tmp_path / "r.jsonl")
    assert len(rows) == 2 * report["ledger"]["selected"] == report["ledger"]["answered"]
    for row in rows:
        assert row["outcome"] == "answered" and row["shadow_status"] == 404 and row["to"] == sink.url
        assert 0 < row["shadow_response_us"] <= row["service_us"] < 20e6
        assert row["due_ns"] <= row["sent_ns"] and abs(row["sent_ns"] - time.time_ns()) < 600 * 10**9
    assert stat.S_IMODE(os.stat(tmp_path / "r.jsonl.zst").st_mode) == 0o600


def decompressed(path):
    import subprocess

    return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout


def test_credentials_in_targets_are_masked(tmp_path):
    targets = [b"/a?token=abc&x=1", b"/a?x=1&API_KEY=k3y&y", b"/b?sig=1;session_id=2", b"/c?access_token=", b"http://u:p@a.example/d?password=a@b", b"/plain?page=2", b"/e?q=\xff\"\\\x80", b"/f?%74oken=a&x%3=1&%6A%77%54=b&%73ig=c&si%67n=1", b"/g?" + b"%61" * 100 + b"=d"]
    capture = endtoend.write(tmp_path / "a.pcap", endtoend.conversation([endtoend.request(target) for target in targets]))
    endtoend.run(capture, "--results", tmp_path / "r.jsonl")
    assert [row["target"] for row in lines_of(tmp_path / "r.jsonl")] == [
        "/a?token=***&x=1", "/a?x=1&API_KEY=***&y", "/b?sig=***;session_id=***", "/c?access_token=", "http://***@a.example/d?password=***", "/plain?page=2", "/e?q=\xff\"\\\x80", "/f?%74oken=***&x%3=1&%6A%77%54=***&%73ig=***&si%67n=1", "/g?" + "%61" * 100 + "=***",
    ]  # fmt: skip


def test_the_access_log_is_its_owner_s_and_masked(tmp_path):
    """As `--results`, whose rule it is."""
    targets = [b"/a?%74oken=abc&x=1", b"http://u:p@a.example/d?password=a@b", b"/plain?page=2", b"/e?jwt=\xff&q=\xff", b"/f?token=a"]
    requests = [endtoend.request(target) for target in targets[:-1]]
    requests.append(endtoend.request(targets[-1], extra=b"X-Envoy-Original-Path: /before?secret=s\r\n"))
    path = tmp_path / "a.log"
    path.write_text("as an earlier run left it")
    path.chmod(0o644)
    endtoend.run(endtoend.write(tmp_path / "a.pcap", endtoend.conversation(requests)), "--access-log", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line.split('"')[1].split(" ")[1] for line in path.read_text().splitlines()] == [
        "/a?%74oken=***&x=1", "/d?password=***", "/plain?page=2", "/e?jwt=***&q=\\xff", "/before?secret=***",
    ]  # fmt: skip


def test_masking_has_room_for_its_stars():
    for target in (b"?", b"//@", b"http://@", b"?" + b"pwd=x&" * 1000, b"a://u@?sig=1", b""):
        masked = _fastpath.masked_target(target)
        assert masked == re.sub(rb"(pwd|sig)=[^&]", rb"\1=***", target.replace(b"//u@", b"//***@").replace(b"p://@", b"p://***@"))


def test_results_that_nobody_takes_are_counted_and_nobody_waits(tmp_path):
    """With room for two blocks, a judge that is fed a hundred thousand records ends, and lines + lost are all of them."""
    pool, stop = _fastpath.Pool(), _fastpath.Stop()
    queue, outcomes, lines = _fastpath.Queue(pool, 512), _fastpath.Outcomes(1 << 17, head=0), _fastpath.Lines(2)
    sender = _fastpath.Sender(queue, [], stop=stop, asap=True, dry_run=True, outcomes=outcomes)
    judge = _fastpath.Judge([outcomes], lines=lines, names=["http://x"])
    threads = [threading.Thread(target=body) for body in (sender.run, judge.run)]
    for thread in threads:
        thread.start()
    assert _fastpath.push_for_tests(queue, [(endtoend.request(b"/%d" % (i % 700)), 0, i) for i in range(100_000)]) == 100_000
    queue.end()
    threads[0].join(20)
    judge.end()
    threads[1].join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert judge.counters() == {"judged": 100_000, "not_judged": 0}
    assert lines.lines == 100_000 and 0 < lines.lost < 100_000
    held = 0
    while (block := lines.take()) is not None:
        held += block.count(b"\n")
    assert held == lines.lines - lines.lost
    assert sum(one["requests"] for one in judge.endpoints()) == 100_000


@pytest.mark.parametrize("name, word", [("r.txt", "ends in .jsonl"), ("nowhere/r.jsonl", "No such file")])
def test_a_results_file_that_cannot_be_is_said_before_the_run(name, word, tmp_path):
    assert word in endtoend.command("run", endtoend.DEMO, "--results", tmp_path / name, code=2).stderr.decode()


# ---- endpoints against the truth ----------------------------------------------------------------------------------------------------


class Shadow(http.server.BaseHTTPRequestHandler):
    """Wrong on /orders, slow on /search, fine elsewhere."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/search"):
            time.sleep(0.03)
        self.send_response(500 if self.path.startswith("/orders") else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


def test_endpoints_are_counted_and_the_worst_comes_first(tmp_path):
    rng = random.Random(5)
    targets = [rng.choice([b"/orders/%d", b"/search?q=%d", b"/users/%d", b"/static/app-%d.js"]) % i for i in range(300)]
    talks = [endtoend.conversation([endtoend.request(t) for t in targets[k::10]], k, step_ns=1_000_000) for k in range(10)]
    capture = endtoend.write(tmp_path / "a.pcap", *talks)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shadow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        report = endtoend.run(capture, "--pace", "max", "-c", 10, "--to", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    rows = {row["endpoint"]: row for row in report["endpoints"]}
    count = {name: sum(t.startswith(name) for t in targets) for name in (b"/orders", b"/search", b"/users", b"/static")}
    assert {name: row["requests"] for name, row in rows.items()} == {
        "GET /orders/{n}": count[b"/orders"], "GET /search": count[b"/search"], "GET /users/{n}": count[b"/users"], "GET /static/app-{n}.js": count[b"/static"],
    }  # fmt: skip
    orders, search, users = rows["GET /orders/{n}"], rows["GET /search"], rows["GET /users/{n}"]
    assert orders["changed"] == orders["worse"] == orders["requests"] and orders["status_change"] == {"200>500": orders["requests"]}
    assert search["changed"] == 0 and search["slower"] == search["compared"] == search["requests"]
    assert search["response_us"]["p50"] >= 29_000 > 10_000 > search["production_us"]["p50"]
    assert users["changed"] == 0
    assert {row["endpoint"] for row in report["endpoints"][:2]} == {"GET /orders/{n}", "GET /search"}
    assert any(hint.startswith("GET /orders/{n}: 100 %") for hint in report["hints"])
    assert any(hint.startswith("GET /search: 100 % of the replies begin more than twice as late") for hint in report["hints"])
    columns = report["timeline"]["columns"]
    assert sum(columns["sent"]) == sum(columns["answered"]) == sum(columns["due"]) == 300
    assert sum(columns["5xx"]) == orders["requests"] and sum(columns["2xx"]) == 300 - orders["requests"]
    assert Histogram.decode(search["latency_us"]["hdr"]).total == search["requests"]
    assert Histogram.decode(report["response_us"]["hdr"]).total == 300
    assert report["not_judged"] == 0
    assert report["status_captured"] == {"200": 300} and report["status_known"] == 300 and report["status_same"] == 300 - orders["requests"]


@pytest.mark.parametrize("more", [("--loop", "1000000"), ("--threads", "2", "--loop", "50")])
def test_what_never_came_into_a_queue_is_not_judged(tmp_path, more):
    """A run that is stopped: endpoints, and what they lack, are all that was selected; so are the lines of the results."""
    capture, results = endtoend.unique(tmp_path / "a.pcap", 3000), tmp_path / "r.jsonl"
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run(capture, "--to", sink.url, "--pace", "20000/s", "--duration", "300ms", "--results", results, *more)
    selected, told = report["ledger"]["selected"], sum(row["requests"] for row in report["endpoints"])
    assert told < selected and told + report["not_judged"] == selected
    assert report["results"] == {"lines": told, "lost": report["not_judged"]} and len(results.read_text().splitlines()) == told
    assert any("those requests came into no queue" in hint for hint in report["hints"])


def test_endpoints_say_what_each_of_several_targets_did(tmp_path):
    """Two shadows of one run: the sums are those of the endpoint, each has its own, and the one that does the harm is named; with one target there is no split."""
    capture = endtoend.write(tmp_path / "a.pcap", *(endtoend.conversation([endtoend.request(b"/a/%d" % i) for i in range(20)], k) for k in range(10)))
    with endtoend.Sink(tmp_path / "good") as good, endtoend.Sink(tmp_path / "bad", "--status", "503") as bad:
        (tmp_path / "p.yaml").write_text(f"routes:\n- mirror: [{{to: '{good.url}'}}, {{to: '{bad.url}', percent: 50}}]\n")
        report = endtoend.run(capture, "--policy", tmp_path / "p.yaml", "--pace", "max", "--report", tmp_path / "r.json", "--html", tmp_path / "r.html")
        (row,) = report["endpoints"]
        single = endtoend.run(capture, "--to", good.url, "--pace", "max")
        got = {good.url: 200, bad.url: len(bad.stop())}
    assert {url: share["requests"] for url, share in row["targets"].items()} == got and 50 < got[bad.url] < 150
    for name in ("requests", "answered", "unanswered", "dropped", "known", "changed", "worse", "compared", "slower"):
        assert sum(share[name] for share in row["targets"].values()) == row[name], name
    assert row["targets"][good.url]["changed"] == 0 and row["targets"][bad.url]["changed"] == row["targets"][bad.url]["status"]["5xx"] == got[bad.url]
    for share in row["targets"].values():
        assert 0 < share["response_sum_us"] / share["compared"] <= share["response_max_us"]
    assert "targets" not in single["endpoints"][0]
    assert any(f"at {bad.url}" in line for line in hints.worst(report)) and f"at {bad.url}" in (tmp_path / "r.html").read_text()
    whole = merging.merged([report, report])["endpoints"][0]
    assert whole["targets"][bad.url]["changed"] == 2 * got[bad.url] and whole["targets"][bad.url]["response_max_us"] == row["targets"][bad.url]["response_max_us"]


def test_the_worst_endpoint_says_how_many_were_answered():
    row = {"endpoint": "GET /a", "requests": 5, "answered": 1, "unanswered": 0, "dropped": 4, "known": 1, "changed": 1, "slower": 0, "compared": 0, "status_change": {"200>503": 1}}
    assert hints.worst({"endpoints": [row]}) == ["GET /a  100 % changed (200>503 1) of 5, 1 answered"]
    assert hints.worst({"endpoints": [row | {"answered": 5, "dropped": 0, "known": 5}]}) == ["GET /a  20 % changed (200>503 1) of 5"]


# ---- damaged reports ----------------------------------------------------------------------------------------------------------------

GONE = object()


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory):
    """A report with all that there can be in one: two targets, failed gates, results."""
    folder = tmp_path_factory.mktemp("whole")
    with endtoend.Sink(folder / "a") as good, endtoend.Sink(folder / "b", "--status", "503") as bad:
        words = ("--pace", "max", "--to", good.url, "--to", bad.url, "--results", folder / "r.jsonl", "--fail-if", "status_change > 1%", "--fail-if", "ledger.sent < 1")
        return endtoend.run(endtoend.DEMO, *words, code=1)


def changed(report, at, value):
    """A copy in which one place has another value, or is gone. at: keys, as a person writes them."""
    copied = node = json.loads(json.dumps(report))
    *before, last = at
    for key in before:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return copied


DAMAGED = [  # where, what stands there, what is said
    (("targets",), [], "targets is a list, not an object"),
    (("digest",), None, "digest is null, not 16 hex digits"),
    (("digest",), "zz", "digest is 'zz', not 16 hex digits"),
    (("rate",), {}, "rate.asked is missing"),
    (("ledger", "sent"), "5", "ledger.sent is '5', not a count"),
    (("ledger", "sent"), -5, "ledger.sent is -5, not a count"),
    (("ledger", "by_reason", "dropped"), GONE, "ledger.by_reason.dropped is missing"),
    (("lost_estimated",), float("nan"), "lost_estimated is nan, not a count"),
    (("ledger", "found"), 10**400, "ledger.found is a number of too many digits, not a count"),
    (("timeline",), {}, "timeline.start_ns is missing"),
    (("timeline", "bucket_ms"), 0, "timeline.bucket_ms is 0, not a length in ms"),
    (("timeline", "columns", "sent"), [1] * 5000, "timeline.columns.sent has 5000 values, and due "),
    (("endpoints", 0), {"endpoint": 5}, "endpoints[0].requests is missing"),
    (("endpoints", 1, "status"), {"5xx": None}, "endpoints[1].status.5xx is null, not a count"),
    (("latency_us", "hdr"), "xx", "latency_us.hdr is 'xx', not an HdrHistogram as it was written"),
    (("latency_us", "p99"), None, "latency_us has some of p50, p90, p99, p99_9, max, and not others"),
    (("policy", "shard"), "x", "policy.shard is 'x', not a shard (1/4) or null"),
    (("status",), {"": 5}, "status has a key without a name"),
]


@pytest.mark.parametrize("at, value, said", DAMAGED, ids=[said for _, _, said in DAMAGED])
def test_a_damaged_report_is_told_with_file_and_key(tmp_path, whole_report, at, value, said):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(whole_report))
    bad.write_text(json.dumps(changed(whole_report, at, value)))
    for words in ((bad, "--html", tmp_path / "x.html"), (good, bad), ("--compare", bad, good)):
        assert f"replay: {bad}: no whole report: {said}" in endtoend.command("report", *words, code=2).stderr.decode()
    assert not (tmp_path / "x.html").exists()


def test_nothing_in_a_report_is_an_internal_error(whole_report):
    """Anything at any place: an error of usage, or a page, a sum and a table."""
    from replay import report as reporting
    from replay.judge import comparing, page

    base = whole_report | {"endpoints": whole_report["endpoints"][:2]}
    merging.readable(base, "base")
    places: list[tuple] = []

    def walk(node, at):
        if at:
            places.append(at)
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node[:1]) if isinstance(node, list) else ():
            walk(inner, (*at, key))

    walk(base, ())
    values = (None, [], {}, "x", "", -1, 0, 1.5, True, 1 << 62, 10**400, float("nan"), [1], {"a": 1}, {"a": "b"}, GONE)
    told = drawn = 0
    for at, value in random.Random(5).sample([(at, value) for at in places for value in values], 600):
        try:
            one = merging.readable(changed(base, at, value), "changed")
        except UsageError as error:
            told += 1
            assert str(error).startswith("changed: ")
            continue
        drawn += 1
        other = merging.readable(changed(base, ("notes",), []), "base")
        for reports in ([one], [one, other], [other, one]):
            try:
                whole = merging.merged(reports)
                reporting.check(whole)
            except (UsageError, AssertionError):  # a histogram; a ledger that does not add up, which the verb tells
                continue
            json.dumps(whole), reporting.summary(whole), page.page(whole)
        named = [("a", one), ("b", other)]
        page.compared(named, comparing.table(named), comparing.notes(named))
    assert told > 300 and drawn > 50


def test_many_targets_are_judged_together():
    sources = [_fastpath.Outcomes(16) for _ in range(300)]
    judge = _fastpath.Judge(sources, lines=_fastpath.Lines(), names=[f"http://{i}" for i in range(300)])
    judge.end()
    judge.run()
    assert judge.counters() == {"judged": 0, "not_judged": 0}
    with pytest.raises(ValueError, match="1024"):
        _fastpath.Judge([sources[0]] * 1025)


def test_endpoints_beyond_the_table_are_counted_as_other():
    outcomes, judge = fed([(endtoend.request(b"/" + bytes((97 + i // 676, 97 + i // 26 % 26, 97 + i % 26))), 0, i) for i in range(2000)])
    rows = judge.endpoints()
    assert len(rows) == 513 and rows[-1]["name"] == b"(other)" and sum(row["requests"] for row in rows) == 2000


def test_a_sender_that_is_quicker_than_the_judge_judges_itself():
    """No judge's thread runs until the sender has ended: of more marks than there are slots none is lost, and what it found is all there."""
    rows = [(endtoend.request(b"/%d/%s" % (i, b"ab"[i % 2 : i % 2 + 1])), 0, i % 100) for i in range(50_000)]
    outcomes, judge = fed(rows, records=False, before=lambda judge: 30_000 < judge.counters()["judged"] < 50_000)
    assert judge.counters() == {"judged": 50_000, "not_judged": 0}
    assert {row["name"]: row["requests"] for row in judge.endpoints()} == {b"GET /{n}/a": 25_000, b"GET /{n}/b": 25_000}
    assert outcomes.get() == []


def test_marks_that_nobody_judges_are_let_go():
    """A sender whose outcomes have no judge is not held up, and its records are there."""
    pool, stop = _fastpath.Pool(), _fastpath.Stop()
    queue, outcomes = _fastpath.Queue(pool, 512), _fastpath.Outcomes(1 << 17, head=0)
    sender = _fastpath.Sender(queue, [], stop=stop, asap=True, dry_run=True, outcomes=outcomes)
    assert _fastpath.push_for_tests(queue, [(endtoend.request(b"/"), 0, i) for i in range(40_000)]) == 40_000
    queue.end()
    sender.run()
    assert sender.counters()["outcomes_lost"] == 0 and len(outcomes.get(50_000)) == 40_000


def test_a_time_line_grows_coarser_and_loses_nothing():
    """A run of hours has as many stretches as one of seconds."""
    lines = [endpoints.timeline(10**18 + k * 10**9, 100_000_000, [row(1)] * 500) for k in range(3)]
    whole = endpoints.timelines_added(lines)
    assert sum(whole["columns"]["sent"]) == 1500 and len(whole["columns"]["sent"]) <= 600
    assert max(whole["columns"]["lag_max_us"]) == 7 and sum(whole["columns"]["2xx"]) == 1500


def row(n):
    return dict.fromkeys(endpoints._COLUMNS, n) | {"lag_max_us": 7, "status": {"2xx": n}}


def fed(rows, records=True, before=None):
    """A judge that saw these rows as a dry run's. before: what has to be true of it when the sender ended and the judge's thread did not run yet."""
    pool, stop = _fastpath.Pool(), _fastpath.Stop()
    queue, outcomes = _fastpath.Queue(pool, 512), _fastpath.Outcomes(1 << 17, head=0, records=records)
    sender = _fastpath.Sender(queue, [], stop=stop, asap=True, dry_run=True, outcomes=outcomes)
    judge = _fastpath.Judge([outcomes])
    _fastpath.push_for_tests(queue, rows)
    queue.end()
    sender.run()
    assert before is None or before(judge)
    judge.end()
    judge.run()
    return outcomes, judge
