"""Generated captures with known truth (trafficgen.py): the engine finds exactly what is there, and says of the rest why it is not whole."""

from collections import Counter

import pytest
import trafficgen
from enginerun import run

from replay._reference import messages, rewrite
from replay._reference.streams import Segment

SEEDS = range(300)
def by_time(rows):
    return sorted(rows, key=lambda r: (r.ts_ns, r.client))


def wholes(rows):
    return by_time(
        trafficgen.Whole(r["ts_ns"], r["client"], r["server"], r["method"], r["target"], r["host"], r["body_sha256"], r["withheld"]) for r in rows if not r["incomplete"]
    )


def oracle(made):
    """The same as the engine's rows, as far as they are compared."""
    found, readers = messages.read(Segment(*each) for each in trafficgen.segments(made))
    return [
        {
            "ts_ns": m.ts_ns, "client": m.client, "server": m.server, "seq": m.seq, "index": m.index, "method": m.head.method, "target": m.head.target,
            "version": m.head.version, "host": m.host, "body_sha256": m.sha256, "body_len": len(m.body), "framing": m.head.framing,
            "withheld": m.withheld() if m.whole else None, "incomplete": m.incomplete, "status": m.status, "response_ns": m.response_ns,
        }
        for m in found if m.whole or m.incomplete
    ], readers  # fmt: skip


def parts(rows):
    return by_time(trafficgen.Part(r["ts_ns"], r["client"], r["server"], r["method"], r["target"], r["incomplete"]) for r in rows if r["incomplete"])


@pytest.mark.parametrize("seed", SEEDS)
def test_found_and_incomplete_are_the_truth(seed):
    made = trafficgen.make(seed)
    rows, counters = run(*made.captures, incomplete=True)
    assert wholes(rows) == by_time(made.complete)
    assert parts(rows) == by_time(made.incomplete)
    # the counters say the same
    assert counters["found"] == len(made.complete)
    assert counters["withheld"] == Counter(w.withheld for w in made.complete if w.withheld)
    assert counters["incomplete"] == Counter(p.reason for p in made.incomplete)
    assert counters["selected"] == sum(w.withheld is None for w in made.complete)
    found = [r for r in rows if not r["incomplete"]]
    assert [r["n"] for r in found] == list(range(len(found)))
    for r in found:
        if (r["client"], r["target"]) in made.statuses:
            assert r["status"] == made.statuses[r["client"], r["target"]]
    assert counters["packets"] == {"read": len(made.packets), "skipped": {}, "cut_frames": counters["packets"]["cut_frames"]}
    assert (counters["packets"]["cut_frames"] > 0) == any(p.present < len(p.payload) for p in made.packets)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oracle_finds_the_truth(seed):
    made = trafficgen.make(seed)
    rows, _ = oracle(made)
    assert wholes(rows) == by_time(made.complete)
    assert parts(rows) == by_time(made.incomplete)


@pytest.mark.parametrize("seed", SEEDS)
def test_engine_and_oracle_agree_on_every_column(seed):
    made = trafficgen.make(seed)
    expected, readers = oracle(made)
    rows, counters = run(*made.captures, incomplete=True)
    keys = expected[0].keys() if expected else ()
    got = sorted(rows, key=lambda r: (r["ts_ns"], r["client"]))
    for row in got + expected:
        if row["incomplete"]:  # of these only what was there is compared, not how far each got
            row |= {"host": None, "body_sha256": None, "body_len": 0, "framing": None, "status": None, "response_ns": None}
    assert [{k: r[k] for k in keys} for r in got] == sorted(expected, key=lambda r: (r["ts_ns"], r["client"]))
    assert sum(counters["other"].values()) == sum(r.other is not None for r in readers) == 0


def test_requests_leave_in_the_order_of_their_first_bytes():
    for seed in SEEDS:
        times = [r["ts_ns"] for r in run(*trafficgen.make(seed).captures)[0]]
        assert times == sorted(times)


@pytest.mark.parametrize("seed", list(SEEDS)[::3])
def test_what_is_sent_are_the_bytes_that_were_captured(seed):
    made = trafficgen.make(seed)
    rows, counters = run(*made.captures, show=False)
    assert len(rows) == counters["selected"]
    for r in rows:
        (target,) = {t for c, t in made.written if c == r["client"] and (t == r["target"] or t.endswith(r["target"]) and t.startswith(b"http:"))}
        head, rest = made.written[r["client"], target]
        assert r["data"] == rewrite.rewrite_head(head) + rest


def test_the_generator_makes_all_that_it_is_for():
    """Neither side of the comparison is empty."""
    reasons, withheld, whole = Counter(), Counter(), 0
    for seed in SEEDS:
        made = trafficgen.make(seed)
        reasons.update(p.reason for p in made.incomplete)
        withheld.update(w.withheld for w in made.complete)
        whole += len(made.complete)
    assert whole > 3000
    assert set(reasons) == {"gap", "cut_by_snaplen", "cut_at_end", "closed"} and min(reasons.values()) > 10
    assert set(withheld) == {None, "ambiguous", "unconfirmed", "no_host", "bad_host", "loop"} and min(withheld.values()) > 10
    assert trafficgen.make(5).captures == trafficgen.make(5).captures
