"""Due times of whole runs, from the lines of `--results`: one schedule for all targets, whichever of them a request is for, over all passes."""

import itertools
import json

import endtoend
import pytest
from shadow_servers import MS, Run, Server, ok, request

from replay._fastpath import Outcomes, Start

RATE = 500

#: Of the targets /0, /1 … that a capture has: those of the other server, those of both, those of neither and of half, in an uneven mix.
POLICY = """
routes:
- {name: none, match: {path: {prefix: /2}}, mirror: []}
- {name: b, match: {path: {prefix: /1}}, mirror: {to: B}}
- {name: both, match: {path: {prefix: /3}}, mirror: [{to: A}, {to: B}]}
- {name: half, match: {path: {prefix: /4}}, mirror: [{to: A}, {to: B, percent: 50}]}
- {name: few, match: {path: {prefix: /5}}, mirror: {to: B, percent: 50}}
- {name: a, mirror: {to: A}}
"""


def sent(tmp_path, capture, *options, policy=None):
    """(the report, the lines of --results that are due together, one such list after the other) of a run into two sinks."""
    results = tmp_path / "results.jsonl"
    with endtoend.Sink(tmp_path / "a.log") as a, endtoend.Sink(tmp_path / "b.log") as b:
        if policy is not None:
            (tmp_path / "policy.yaml").write_text(policy.replace("to: A", f"to: '{a.url}'").replace("to: B", f"to: '{b.url}'"))
        where = ("--to", a.url, "--to", b.url) if policy is None else ("--policy", tmp_path / "policy.yaml")
        report = endtoend.run(capture, *where, "--results", results, *options)
        assert len(a.stop()) + len(b.stop()) == report["ledger"]["sent"]
    lines = sorted(map(json.loads, results.read_text().splitlines()), key=lambda line: line["due_ns"])
    return report, [list(some) for _, some in itertools.groupby(lines, lambda line: line["due_ns"])]


def evenly(report, found):
    """They are due one after the other at RATE, in order, pass after pass, the copies of one together; and the run takes as long as it said."""
    rate, ledger = report["rate"], report["ledger"]
    first = found[0][0]["due_ns"]
    assert [some[0]["due_ns"] - first for some in found] == [at * 10**9 // RATE for at in range(ledger["selected"])]
    for some in found:
        assert len({line["n"] for line in some}) == 1 and len({line["to"] for line in some}) == len(some)
        assert all(line["sent_ns"] >= line["due_ns"] for line in some)
    order = [some[0]["n"] for some in found]
    one = sorted(set(order))
    assert order == (one * report["passes"])[: len(order)]
    assert rate["planned_s"] == len(found) / RATE
    assert rate["asked"] == pytest.approx(RATE * (ledger["selected"] + ledger["fanout"]) / ledger["selected"])
    assert max(line["sent_ns"] for some in found for line in some) - first >= (len(found) - 1) * 10**9 // RATE


@pytest.mark.parametrize(
    "options",
    [(), ("--threads", "2"), ("--loop", "3"), ("--loop", "3", "--threads", "2"), ("--loop", "3", "--limit", "250"), ("--pipeline", "8")],
    ids=" ".join,
)
def test_an_even_rate_is_that_of_the_run_whatever_goes_where(tmp_path, options):
    capture = endtoend.unique(tmp_path / "unique.pcap", 200, 4)
    report, found = sent(tmp_path, capture, "--pace", f"{RATE}/s", *options, policy=POLICY)
    evenly(report, found)
    ledger = report["ledger"]
    assert 0 < ledger["fanout"] < ledger["selected"] < ledger["found"]
    assert all(one["sent"] > 20 for one in report["targets"].values())


def test_disjoint_routes_share_the_rate(tmp_path):
    policy = "routes:\n- {match: {path: {prefix: /recommendations}}, mirror: {to: A}}\n- {mirror: {to: B}}\n"
    report, found = sent(tmp_path, endtoend.DEMO, "--pace", f"{RATE}/s", policy=policy)
    evenly(report, found)
    assert report["rate"]["asked"] == RATE and report["ledger"]["fanout"] == 0 and len({one["sent"] for one in report["targets"].values()}) == 2


@pytest.mark.parametrize("more", [(), ("--limit", "1000000")], ids=["from memory", "read again"])
def test_each_of_several_targets_gets_the_whole_rate(tmp_path, more):
    capture = endtoend.unique(tmp_path / "unique.pcap", 100, 4)
    report, found = sent(tmp_path, capture, "--pace", f"{RATE}/s", "--loop", "3", *more)
    evenly(report, found)
    assert len(found) == 300 and {len(some) for some in found} == {2} and report["rate"]["asked"] == 2 * RATE


def test_a_target_whose_first_request_comes_late(tmp_path):
    """Reading is ahead of what is due, but not by all of it: the late one's time is that of the run, not since it was read."""
    count = 12_000
    capture = endtoend.unique(tmp_path / "unique.pcap", count, 4)
    policy = f"routes:\n- {{match: {{path: /{count - 1}}}, mirror: {{to: B}}}}\n- {{mirror: {{to: A}}}}\n"
    report, found = sent(tmp_path, capture, policy=policy)
    (first,), (last,) = found[0], found[-1]
    assert [one["sent"] for one in report["targets"].values()] in ([1, count - 1], [count - 1, 1])
    assert last["to"] != first["to"] and last["n"] == count - 1
    assert last["due_ns"] - first["due_ns"] == last["ts_ns"] - first["ts_ns"]


def test_senders_begin_together():
    """Whichever of them has the first request."""
    start, due = Start(), []
    with Server(ok) as server:
        for at in (0, 1):
            outcomes = Outcomes(16)
            run = Run([server.address], rate=RATE, start=start, outcomes=outcomes).start().push([(request(at), 0)], nth=[50 * at]).end()
            run.join()
            due += [one["due_ns"] for one in outcomes.get()]
    assert due[1] - due[0] == 100 * MS
