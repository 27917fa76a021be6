"""Shares through the command line: each kind of key, several seeds and threads, `--percent`, policies and a live tap choose as the reference does, and evenly."""

import collections
import concurrent.futures
import json
import signal
import subprocess
import time

import endtoend
import enginerun
import packetmake
import pytest
import tapmake
from tapmake import nginx  # noqa: F401

from replay._reference import sampling

KINDS = ["request", "connection", "client-ip", "path", "header:X-User", "cookie:id", "query:k"]
SEEDS = [0, 7, 123_456_789_012]
SHARES = range(10, 100, 10)
CONNECTIONS, EACH = 600, 2
THREADS = (1, 2, 4)
CHI_SQUARE_9 = 27.88  # of 9 degrees of freedom, exceeded by one honest sample in a thousand; nothing here is random, so a pass stays one


def keyed(number, method=b"GET"):
    """A request with a value of its own for each kind of key; one in ten has neither header nor cookie nor parameter."""
    bare = number % 10 == 9
    fields = b"" if bare else b"X-User: u%d\r\nCookie: a=b; id=%d\r\n" % (number, number * 7)
    return b"%s /p%d%s HTTP/1.1\r\nHost: a.example\r\n%s\r\n" % (method, number, b"" if bare else b"?x=1&k=%d" % (number * 3), fields)


def with_keys(data):
    """{target: {kind: key, or None}} of the requests of a capture, by the reference."""
    rows, _ = enginerun.run(data)
    return {
        row["target"].decode(): {kind: sampling.key_of(kind, row["client"], row["server"], row["seq"], row["head"]) for kind in KINDS}
        for row in rows
    }  # fmt: skip


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """(path, keys of its requests by target)."""
    talks = []
    for i in range(CONNECTIONS):
        client = bytes([10, 1, i // 250, i % 250 + 1]), 20_000 + i * 7 % 40_000
        parts = [part for j in range(EACH) for part in (keyed(i * EACH + j), endtoend.REPLY)]
        start_ns = 1_700_000_000_000_000_000 + i * 1_000_000
        talks.append(packetmake.talk(*parts, client=client, start_ns=start_ns, seq=i * 999_983 % 2**32))
    path = endtoend.write(tmp_path_factory.mktemp("shares") / "a.pcap", *talks)
    keys = with_keys(path.read_bytes())
    assert len(keys) == CONNECTIONS * EACH
    return path, keys


def taken(tmp_path, capture, *options):
    """(how often each target was selected for a copy, the report)."""
    results = tmp_path / "results.jsonl"
    report = endtoend.run(capture, "--dry-run", "--results", results, *options)
    return collections.Counter(json.loads(line)["target"] for line in results.read_text().splitlines()), report


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nested_shares_of_a_policy(capture, kind, seed, tmp_path):
    """Nine mirrors of 10 % to 90 %: one thread, two and the reference choose the same; what lies between two shares is a tenth of the keys."""
    path, keys = capture
    mirrors = "".join(f"  - {{to: 'http://127.0.0.1:{share}', percent: {share}, sample-by: '{kind}'}}\n" for share in SHARES)
    (tmp_path / "policy.yaml").write_text(f"routes:\n- mirror:\n{mirrors}")
    expected = {target: sum(sampling.is_taken(key[kind], share * 10_000, seed) for share in SHARES) for target, key in keys.items()}
    for threads in THREADS:
        copies, report = taken(tmp_path, path, "--policy", tmp_path / "policy.yaml", "--seed", seed, "--threads", threads)
        assert copies == {target: count for target, count in expected.items() if count}
        counts = [mirror["copies"] for mirror in report["routing"]["routes"][0]["mirrors"]]
        assert counts == [sum(sampling.is_taken(key[kind], share * 10_000, seed) for key in keys.values()) for share in SHARES]
    # Which tenth each distinct key is in, as the engine chose.
    tenths = {key[kind]: copies[target] for target, key in keys.items() if key[kind] is not None}
    assert len(tenths) >= CONNECTIONS
    found = collections.Counter(tenths.values())
    even = len(tenths) / 10
    assert sum((found[tenth] - even) ** 2 / even for tenth in range(10)) < CHI_SQUARE_9, found


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("kind", KINDS)
def test_percent(capture, kind, threads, tmp_path):
    path, keys = capture
    copies, report = taken(tmp_path, path, "--percent", "33.3333", "--sample-by", kind, "--seed", 42, "--threads", threads)
    assert copies == {target: 1 for target, key in keys.items() if sampling.is_taken(key[kind], 333_333, 42)}
    ledger = report["ledger"]
    assert ledger["by_reason"]["sampled_out"].get("no_key", 0) == sum(key[kind] is None for key in keys.values())
    assert ledger["selected"] + ledger["sampled_out"] == ledger["found"] == len(keys)


@tapmake.needs_root
@tapmake.needs("nginx", "tcpdump")
def test_a_live_tap(nginx, tmp_path):  # noqa: F811
    """A mirror for each kind of key but one, all to one shadow: it gets what the reference takes of a recording of the same traffic."""
    pcap, log = tmp_path / "lo.pcap", tmp_path / "shadow.jsonl"
    kinds = [kind for kind in KINDS if kind != "connection"]  # each request has one of its own here
    with tapmake.ended(tapmake.Sink("--access-log", log)) as shadow:
        mirrors = "".join(f"  - {{to: 'http://{shadow.address}', percent: 40, sample-by: '{kind}', set-headers: {{x-kind: '{kind}'}}}}\n" for kind in kinds)
        (tmp_path / "policy.yaml").write_text(f"routes:\n- mirror:\n{mirrors}")
        recorder = subprocess.Popen(
            ["tcpdump", "-i", "lo", "-s", "0", "-B", "32768", "--immediate-mode", "-U", "-Z", "root", "-w", pcap, f"tcp port {nginx.port}"], stderr=subprocess.PIPE
        )
        try:
            while b"listening on" not in (line := recorder.stderr.readline()):
                assert line, "tcpdump ended"
            with tapmake.ended(tapmake.Tap("lo", "--port", nginx.port, "--policy", tmp_path / "policy.yaml", "--seed", 3)) as tap:
                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda i: tapmake.get(f"{nginx.url}/p{i}?k={i}", headers={"X-User": f"u{i}", "Cookie": f"id={i}"} if i % 10 else {}), range(200)))
                tapmake.eventually(lambda: "found 200" in tap.ask(), every=0.2)
                time.sleep(0.3)
                report = endtoend.balanced(tap.report())
            tapmake.eventually(lambda: len(endtoend.show(pcap)) == 200, every=0.2)  # the recorder may lag behind
        finally:
            recorder.send_signal(signal.SIGINT)
            recorder.communicate(timeout=endtoend.PATIENCE_S)
    keys = with_keys(pcap.read_bytes())
    assert len(keys) == report["ledger"]["found"] == 200
    expected = collections.Counter((kind, target) for target, key in keys.items() for kind in kinds if sampling.is_taken(key[kind], 400_000, 3))
    got = [json.loads(line) for line in log.read_text().splitlines()]
    assert collections.Counter((dict(row["headers"])["x-kind"], row["target"]) for row in got) == expected
