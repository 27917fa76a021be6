"""--loop: passes from memory are the same as reading again, within their bounds, and the books balance wherever a run ends."""

import json
import pathlib
import signal
import threading
import time

import endtoend
import pytest
from test_replay_faults import QUICK_S, interrupted

from replay._fastpath import Capture, Ingest, Kept, Pool, Queue, Repeat, Stop

#: Passes that a limit may end are read again.
READ_AGAIN = ("--limit", "1000000")
#: What must not depend on where passes come from.
SAME = ("ledger", "packets", "status", "status_captured", "passes", "connections", "digest", "incomplete", "writes", "silences_cut", "captured", "faults", "other", "gaps")


def both_ways(tmp_path, *arguments, passes=4):
    """(report, what the sink logged) of passes from memory, and of the same where each is read."""
    found = []
    for number, more in enumerate([(), READ_AGAIN]):
        with endtoend.Sink(tmp_path / f"log{number}") as sink:
            report = endtoend.run("--loop", passes, "--to", sink.url, *arguments, *more)
            found.append((report, sink.stop()))
    return found


@pytest.mark.parametrize("more", [(), ("--percent", "50"), ("--methods", "GET", "--sample-by", "connection", "--percent", "30")], ids=["all", "half", "filtered"])
def test_the_same_as_reading_again(tmp_path, more):
    (kept, kept_lines), (read, read_lines) = both_ways(tmp_path, "--pace", "max", endtoend.DEMO, *more)
    assert kept["passes"] == 4 and kept["ledger"]["answered"] == len(kept_lines) > 4
    assert endtoend.logged(kept_lines) == endtoend.logged(read_lines) == endtoend.expected(endtoend.show(endtoend.DEMO, *more), copies=4)
    assert {key: kept[key] for key in SAME} == {key: read[key] for key in SAME}


def test_in_time(tmp_path):
    """A pass begins when the one before is over, at the capture's own pace."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 200, 4, step_ns=1_000_000)
    with endtoend.Sink(tmp_path / "log") as sink:
        began = time.monotonic()
        endtoend.run("--loop", "5", "--pace", "2x", "--to", sink.url, capture)
        took = time.monotonic() - began
        lines = sink.stop()
    assert [int(line["target"][1:]) for line in lines].count(7) == 5
    assert 0.48 <= took < 3, took  # 1,000 requests, a millisecond apart, at twice the speed
    # As far as they can be told apart by arrival, passes come one after the other.
    firsts = [at for at, line in enumerate(lines) if line["target"] == "/0"]
    assert len(firsts) == 5 and all(b - a > 150 for a, b in zip(firsts, firsts[1:], strict=False))


def test_a_pass_is_not_read(tmp_path):
    """The file may go away once it was read: passes from memory need it no more."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 300, 4)
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", "--json", "--pace", "1000/s", "--loop", "4", "--to", sink.url, capture)
        for line in run.stderr:
            if b"planned" in line:
                break
        time.sleep(0.3)
        capture.unlink()
        out, _ = run.communicate(timeout=endtoend.PATIENCE_S)
        assert run.returncode == 0
        assert len(sink.stop()) == 1200, out


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_an_interruption(tmp_path, after_s):
    capture = endtoend.unique(tmp_path / "unique.pcap", 3000, 5)
    with endtoend.Sink(tmp_path / "log", "--delay", "1ms") as sink:
        report, took = interrupted(after_s, signal.SIGINT, "--pace", "max", "-c", "8", "--loop", "100000", "--to", sink.url, capture)
        lines = sink.stop()
    assert took < QUICK_S
    assert report["ledger"]["answered"] <= len(lines) <= report["ledger"]["sent"]
    assert report["ledger"]["found"] == report["passes"] * 3000 or report["passes"] == 1


def test_many_short_passes(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 3)
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run("--loop", "20000", "--pace", "max", "--pipeline", "16", "--to", sink.url, capture)
        assert len(sink.stop()) == report["ledger"]["answered"] == report["ledger"]["found"] == 60_000
    assert report["passes"] == 20_000


# ---- its bounds --------------------------------------------------------------------------------------------------------------


def first_pass(path, budget, pool_bytes=48 << 20):
    """(Kept, rows of the first pass, its counters, queue, stop) of a capture whose rows are taken as they come."""
    stop, pool = Stop(), Pool(pool_bytes)
    queue, kept = Queue(pool), Kept(pool, budget)
    ingest = Ingest(Capture([str(path)], stop=stop), [queue], pool, stop, kept=kept, last=False)
    thread = threading.Thread(target=ingest.run)
    thread.start()
    rows = []
    while True:
        ended = not thread.is_alive()
        batch = queue.get(0.05)
        if batch is not None:
            rows += [(batch[at]["offset_ns"], batch.data(at)) for at in range(len(batch))]
            del batch
        elif ended:
            break
    thread.join()
    return kept, rows, ingest.counters(), queue, stop, pool


def test_rows_come_again_later(tmp_path):
    kept, rows, counts, queue, stop, pool = first_pass(endtoend.unique(tmp_path / "unique.pcap", 500, 4), 24 << 20)
    assert kept.whole and len(rows) == 500 and 0 < kept.bytes == pool.held
    repeat = Repeat(kept, [queue], stop, counts, 3, 1_000_000_000)
    repeat.run()
    queue.end()
    again = []
    while not queue.done:
        batch = queue.get(0.05)
        again += [(batch[at]["offset_ns"], batch.data(at)) for at in range(len(batch))]
        del batch
    assert again == [(offset + turn * 1_000_000_000, data) for turn in (1, 2, 3) for offset, data in rows]
    assert repeat.begun == 3 and repeat.counters()["found"] == 2000 and repeat.counters()["unqueued"] == 0
    del kept, repeat
    assert pool.held == 0


def test_too_much_is_not_kept(tmp_path):
    path = endtoend.unique(tmp_path / "unique.pcap", 2000, 4)
    kept, rows, _, queue, stop, pool = first_pass(path, 1 << 20)
    assert not kept.whole and kept.bytes == 0 == pool.held and len(rows) == 2000
    with pytest.raises(ValueError, match="not everything"):
        Repeat(kept, [queue], stop, {}, 1, 0)


def test_what_is_kept_makes_room(tmp_path):
    """A request that is larger than what is left of the memory would wait for ever for what is kept."""
    talks = [endtoend.conversation([endtoend.request(b"/small/%d" % number) for number in range(400)])]
    talks.append(endtoend.conversation([endtoend.request(b"/large", b"PUT", bytes(3 << 20))], 1, start_ns=1_800_000_000_000_000_000))
    kept, rows, counts, *_ = first_pass(endtoend.write(tmp_path / "large.pcap", *talks), 1 << 20, pool_bytes=4 << 20)
    assert len(rows) == counts["found"] == 401
    assert not kept.whole


def test_what_is_handed_out_costs_the_budget(tmp_path):
    """As what is read does: senders keep something of each request that waits, and nothing else bounds how many."""
    kept, rows, counts, _, stop, pool = first_pass(endtoend.unique(tmp_path / "unique.pcap", 500, 4), 2 << 20, pool_bytes=4 << 20)
    assert kept.whole
    queue = Queue(pool, 1 << 14)
    repeat = Repeat(kept, [queue], stop, counts, 1000, 1_000_000_000)
    thread = threading.Thread(target=repeat.run)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive() and pool.held <= 4 << 20 and repeat.begun < 10
    taken = 0
    while taken < 20_000:
        taken += len(queue.get(1.0))
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    while (batch := queue.get(0)) is not None:
        taken += len(batch)
    del batch
    assert taken + queue.full == repeat.begun * 500 and repeat.counters()["unqueued"] == queue.full
    assert pool.held == kept.bytes


def test_a_slow_target_does_not_fill_the_memory(tmp_path):
    with endtoend.Sink(tmp_path / "log", "--misbehave", "never") as sink:
        run = endtoend.started("run", "--json", "-q", "--pace", "300000/s", "--loop", "100000", "-c", "4", "--max-memory", "16MiB", "--to", sink.url, endtoend.DEMO)
        try:
            time.sleep(1.0)
            before = resident_mb(run.pid)
            time.sleep(1.5)
            assert resident_mb(run.pid) < before + 10
        finally:
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=endtoend.PATIENCE_S)
    endtoend.balanced(json.loads(out))


def resident_mb(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def test_stopped_before_it_begins(tmp_path):
    kept, _, counts, queue, stop, _ = first_pass(endtoend.unique(tmp_path / "unique.pcap", 50), 24 << 20)
    stop.set()
    repeat = Repeat(kept, [queue], stop, counts, 3, 1)
    repeat.run()
    assert repeat.begun == 0 and repeat.counters()["found"] == 50 and repeat.counters()["unqueued"] == 0


def test_nothing_to_hand_out(tmp_path):
    """Nobody takes copies (the guard refused), or nothing was selected: passes are counted all the same."""
    path = endtoend.unique(tmp_path / "unique.pcap", 50)
    stop, pool = Stop(), Pool()
    kept = Kept(pool, 24 << 20)
    ingest = Ingest(Capture([str(path)], stop=stop), [], pool, stop, kept=kept)
    ingest.run()
    repeat = Repeat(kept, [], stop, ingest.counters(), 4, 1)
    repeat.run()
    assert repeat.begun == 4 and repeat.counters()["found"] == 250 and kept.bytes == 0
    report = endtoend.run("--loop", "5", "--dry-run", "--methods", "DELETE", path)
    assert report["ledger"]["found"] == 250 and report["ledger"]["filtered"] == 250 and report["passes"] == 5
