"""--shard and --start-at: the shards of a run are the run."""

import collections
import concurrent.futures
import json
import time

import endtoend
import pytest

from replay.histogram import Histogram


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "a.pcap"
    endtoend.generated(path, ("pipelining", "chunked"), connections=120, seed=4)
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SELECTIONS = [(), ("-p", "30"), ("--sample-by", "connection", "-p", "50", "--methods", "GET"), ("--path", "a")]


@pytest.mark.parametrize("options", SELECTIONS, ids=[" ".join(one) or "all" for one in SELECTIONS])
def test_the_union_of_shards_is_the_whole(capture, options, tmp_path):
    """Same requests with the same numbers, none twice, the same sums, the same digest."""
    whole = endtoend.run(capture, *options, "--results", tmp_path / "whole.jsonl")
    parts = [endtoend.run(capture, *options, "--shard", f"{i}/4", "--results", tmp_path / f"{i}.jsonl", "--report", tmp_path / f"{i}.json") for i in range(1, 5)]
    found = [row["n"] for i in range(1, 5) for row in rows(tmp_path / f"{i}.jsonl")]
    assert len(set(found)) == len(found)
    identity = ("n", "ts_ns", "flow", "index", "method", "target", "body_sha256")
    union = sorted((tuple(row[key] for key in identity) for i in range(1, 5) for row in rows(tmp_path / f"{i}.jsonl")), key=lambda row: row[0])
    assert union == sorted((tuple(row[key] for key in identity) for row in rows(tmp_path / "whole.jsonl")), key=lambda row: row[0])
    assert all(part["ledger"]["found"] for part in parts)
    added = json.loads(endtoend.command("report", "--json", *(tmp_path / f"{i}.json" for i in range(1, 5))).stdout)
    for key in ("ledger", "incomplete", "packets", "lost_estimated", "digest", "connections", "gaps", "writes", "other_shards", "status_change", "captured"):
        assert added[key] == whole[key], key
    for part in parts:
        assert part["other_shards"] + part["ledger"]["found"] == whole["ledger"]["found"]


def test_a_connection_is_in_one_shard(capture):
    homes = collections.defaultdict(set)
    for i in range(1, 4):
        for row in endtoend.show(capture, "--shard", f"{i}/3"):
            homes[row["client"], row["server"]].add(i)
    assert len(homes) > 50 and all(len(found) == 1 for found in homes.values())


def test_four_shards_are_one_run(tmp_path):
    """Started together against one service: the same set as a single run, the same due times, and percentiles within the histogram's precision of all values together."""
    capture = endtoend.unique(tmp_path / "a.pcap", 600, connections=40, step_ns=2_000_000)
    with endtoend.Sink(tmp_path / "log", "--delay", "3ms") as sink:
        single = endtoend.run(capture, "--to", sink.url, "--results", tmp_path / "single.jsonl")
        start = round(time.time() + 3, 3)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            parts = list(
                pool.map(
                    lambda i: endtoend.run(
                        capture, "--to", sink.url, "--shard", f"{i}/4", "--start-at", f"{start:.3f}", "--results", tmp_path / f"{i}.jsonl", "--report", tmp_path / f"{i}.json"
                    ),
                    range(1, 5),
                )
            )
        logged = collections.Counter(row["target"] for row in sink.stop())
    assert set(logged) == {f"/{i}" for i in range(600)} and set(logged.values()) == {2}
    added = json.loads(endtoend.command("report", "--json", *(tmp_path / f"{i}.json" for i in range(1, 5))).stdout)
    endtoend.balanced(added)
    for key in ("ledger", "status", "status_change", "status_captured", "digest", "incomplete"):
        assert added[key] == single[key], key
    assert {q: n for q, n in added["production_us"].items()} == single["production_us"]
    every = sorted(row["service_us"] for i in range(1, 5) for row in rows(tmp_path / f"{i}.jsonl"))
    for quantile, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        true = every[max(0, -int(-share * len(every) // 1) - 1)]
        assert abs(added["service_us"][quantile] - true) <= max(1, true / 1000)
    assert Histogram.decode(added["service_us"]["hdr"]).total == 600
    # due times: each request when the whole run would have it
    offsets = {row["n"]: row["ts_ns"] for row in rows(tmp_path / "single.jsonl")}
    first = min(offsets.values())
    for i in range(1, 5):
        for row in rows(tmp_path / f"{i}.jsonl"):
            assert abs(row["due_ns"] - (start * 1e9 + offsets[row["n"]] - first)) < 2_000_000
            assert row["sent_ns"] >= start * 1e9 - 1000
    assert sum(len(rows(tmp_path / f"{i}.jsonl")) for i in range(1, 5)) == 600 == sum(part["ledger"]["sent"] for part in parts)


@pytest.mark.parametrize(
    "option, value, word",
    [("--shard", "5/4", "1/4 to 4/4"), ("--shard", "0/4", "1/4"), ("--shard", "x", "1/4"), ("--start-at", "2001-01-01T00:00:00Z", "has passed"), ("--start-at", "+9d", "more than a week")],
)
def test_wrong_values(capture, option, value, word):
    assert word in endtoend.command("run", capture, option, value, code=2).stderr.decode()


def test_a_start_from_python_is_read_like_that_of_the_command_line(capture):
    import replay
    from replay.engine import Replay
    from replay.errors import UsageError
    from replay.settings import Settings, target

    with replay.sink() as url:
        for value, word in (("2001-01-01T00:00:00Z", "has passed"), (1, "has passed"), (0, "has passed"), (time.time() - 5, "has passed"), ("+9d", "more than a week")):
            with pytest.raises(UsageError, match=f"start_at: .*{word}"):
                replay.run(capture, to=url, start_at=value)
        for number in (False, True):
            began = time.monotonic()
            ledger = replay.run(capture, to=url, start_at=time.time() + 1 if number else "+1s", pace="max")["ledger"]
            assert ledger["answered"] == ledger["selected"] > 0
            assert time.monotonic() - began > 0.9
        one = Replay(Settings((str(capture),), targets=(target(url),), start_at_ns=1))  # before the clock of the machine began: all is due at once
        one.prepare()
        one.start()
        deadline = time.monotonic() + 20
        while one.running and time.monotonic() < deadline:
            one.wait(0.05)
        one.stop()
        assert sum(sender["answered"] for sender in one.result()["senders"]) == ledger["answered"]


def test_a_shard_without_a_connection_is_no_error(tmp_path):
    capture = endtoend.unique(tmp_path / "a.pcap", 3)
    codes = []
    for i in range(1, 5):
        report = endtoend.run(capture, "--shard", f"{i}/4")
        codes.append(report["ledger"]["found"])
    assert sorted(codes) == [0, 0, 0, 3]


def test_a_stop_before_the_start_ends_at_once(tmp_path):
    import signal

    capture = endtoend.unique(tmp_path / "a.pcap", 3)
    with endtoend.Sink(tmp_path / "log") as sink:
        began = time.monotonic()
        process = endtoend.started("run", "--report", tmp_path / "r.json", capture, "--to", sink.url, "--start-at", "+60s")
        endtoend.wait_until(lambda: b"begins at" in process.stderr.readline() or None, "the plan")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 130 and time.monotonic() - began < 20
        assert endtoend.balanced(json.loads((tmp_path / "r.json").read_text()))["ledger"]["sent"] == 0
        assert b"next: the run was stopped before anything was sent\n" in out  # and nothing of writes that would be sent again
