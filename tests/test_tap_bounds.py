"""What is bounded when captured bytes are hostile: half heads, half-open connections, garbage; and the breaker and memory limits as plain decisions."""

import random
import socket
import struct
import subprocess
import sys
import time

import packetmake as net
import pytest
from endtoend import balanced
from tapmake import Sink, Tap, ended, get, needs, needs_root, nginx  # noqa: F401

from replay import _fastpath
from replay.tap import memory
from replay.tap.breaker import Breaker


def counted(packets, tmp_path, **more):
    path = tmp_path / "made.pcap"
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        for t, packet in packets:
            file.write(struct.pack("<IIII", t // 10**9, t % 10**9, len(packet), len(packet)) + packet)
    stop = _fastpath.Stop()
    ingest = _fastpath.Ingest(_fastpath.Capture([str(path)], stop=stop), [], _fastpath.Pool(), stop, **more)
    ingest.run()
    return ingest.counters()


def test_half_heads_of_many_clients(tmp_path):
    """Each sends the beginning of a head and nothing more: the oldest are given up, by name, when the budget is spent."""

    def packets():
        t = 1_700_000_000_000_000_000
        for i in range(3000):
            client = (bytes([10, 1, i >> 8, i & 255]), 1024 + i)
            yield t, net.frame(client, net.SERVER, 1000, 0, net.SYN)
            yield t, net.frame(net.SERVER, client, 5000, 1001, net.SYN | net.ACK)
            yield t + 1, net.frame(client, net.SERVER, 1001, 5001, net.ACK, b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1300)
            t += 1000
        yield t, net.frame(net.CLIENT, net.SERVER, 1, 0, net.SYN)
        yield t, net.frame(net.CLIENT, net.SERVER, 2, 1, net.ACK, b"GET /whole HTTP/1.1\r\nHost: a\r\n\r\n")

    found = counted(packets(), tmp_path, max_memory=2 << 20)
    assert found["found"] == 1 and found["incomplete"]["evicted"] > 1000 and sum(found["incomplete"].values()) == 3000


@needs_root
@needs("nginx")
def test_a_flood_of_half_open_connections(nginx):  # noqa: F811
    """Frames of connections that never stand, and garbage, on the tapped port: memory stays, and what is real is found."""
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        get(f"{nginx.url}/before")
        chance = random.Random(1)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("lo", 0))
            server = (b"\x7f\0\0\1", nginx.port)

            def flood(n):
                for i in range(n):
                    client = (bytes([127, 9, chance.randrange(256), chance.randrange(256)]), chance.randrange(1024, 65536))
                    flags, payload = (net.SYN, b"") if i % 8 else (net.ACK, chance.randbytes(200))
                    out.send(net.frame(client, server, chance.randrange(1 << 32), 0, flags, payload))

            flood(20_000)
            time.sleep(0.5)
            first = tap.rss
            flood(60_000)
            get(f"{nginx.url}/after")
            time.sleep(0.5)
            assert tap.rss < first * 1.1 + (16 << 20)
        report = balanced(tap.report())
    assert report["ledger"]["answered"] >= 2 and report["packets"]["read"] + report["packets"]["kernel_drops"] > 60_000


def test_a_locality_without_networks(tmp_path):
    """Made without __init__ it knows of no network, and refuses nothing."""
    packets = net.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert counted(packets, tmp_path, locality=_fastpath.Locality.__new__(_fastpath.Locality))["selected"] == 1


# ---- the breaker -----------------------------------------------------------------------------------------------------------------


def counters(**more):
    base = {"taken": 0, "sent": 0, "answered": 0, "unanswered": {}, "dropped": {}, "status": {}, "connect_failed": 0, "connections_open": 1}
    return base | more


def test_breaker_opens_probes_and_closes():
    one = Breaker(5.0, random.Random(1))
    assert not one.look(0.0, counters()) and one.passes == -1
    assert one.look(0.5, counters(taken=100, sent=100, unanswered={"timeout": 60}, answered=40)) and one.state == "open" and one.passes == 0
    assert "60 of 100" in one.reason
    assert not one.look(0.6, counters(taken=100, sent=100, unanswered={"timeout": 60}, answered=40))
    assert one.look(2.0, counters(taken=100, sent=100, unanswered={"timeout": 60}, answered=40)) and one.state == "probing" and one.passes > 0
    assert one.look(2.2, counters(taken=103, sent=103, unanswered={"timeout": 60}, answered=43)) and one.state == "closed"
    assert one.changes == {"closed": 1, "open": 1, "probing": 1}


def test_breaker_waits_longer_each_time_and_not_for_ever():
    one, now, waits = Breaker(1.0, random.Random(2)), 0.0, []
    seen = counters(unanswered={"timeout": 0})
    one.look(now, seen)
    for n in range(12):
        failed = counters(taken=20 * (n + 1), sent=20 * (n + 1), unanswered={"timeout": 20 * (n + 1)})
        now += 0.1
        assert one.look(now, failed) and one.state == "open"
        waits.append(one.until - now)
        now = one.until
        assert one.look(now, failed) and one.state == "probing"
    assert 0.25 <= waits[0] <= 0.75 and all(wait <= 45.0 for wait in waits) and max(waits) > 15


def test_breaker_of_a_few_connections():
    """Two that time out every five seconds are never ten in a window; without an answer between them they say enough."""
    one, now = Breaker(5.0), 0.0
    one.look(now, counters(taken=100, sent=100, answered=100, unanswered={"timeout": 7}))
    for failed in (7, 9, 9, 11):
        now += 2.5
        changed = one.look(now, counters(taken=100 + failed, sent=100 + failed, answered=100, unanswered={"timeout": failed}))
    assert changed and one.state == "open" and "4 without an answer" in one.reason


def test_failures_with_answers_between_them_open_nothing():
    one, now = Breaker(5.0), 0.0
    for n in range(20):
        now += 2.5
        assert not one.look(now, counters(taken=3 * n, sent=3 * n, answered=n, unanswered={"timeout": 2 * n}))


def opened(**more):
    """One that has opened, and lets probes through. more: what had been counted before."""
    one = Breaker(1.0, random.Random(1))
    one.look(0.0, counters(**more))
    assert one.look(0.1, counters(connect_failed=5, connections_open=0, **more)) and one.look(2.0, counters(connect_failed=5, connections_open=0, **more)) and one.state == "probing"
    return one


def test_probing_lasts_until_there_is_traffic():
    """Hours without a request are no failure; its time begins with the first that was let through."""
    one = opened()
    assert not one.look(5000.0, counters(connect_failed=5)) and one.state == "probing"
    assert not one.look(5000.1, counters(taken=3, connect_failed=5)) and one.state == "probing"
    assert one.look(5000.3, counters(taken=3, sent=3, answered=3, connect_failed=5)) and one.state == "closed"


def test_probes_without_a_fate_are_a_failure():
    """Whatever became of them: it must not probe for ever."""
    one = opened()
    assert not one.look(3.0, counters(taken=500, dropped={"breaker": 500}, connect_failed=5)) and one.state == "probing"
    assert not one.look(4.0, counters(taken=503, dropped={"breaker": 500}, connect_failed=5)) and one.state == "probing"
    assert one.look(6.5, counters(taken=503, dropped={"breaker": 500, "expired": 3}, connect_failed=5)) and one.state == "open"


def test_what_opens_it_again_is_what_became_of_the_probes():
    """Not what had opened it first."""
    one = opened()
    assert one.reason == "no connection"
    assert one.look(2.5, counters(taken=3, sent=3, unanswered={"timeout": 2}, connect_failed=5)) and one.reason == "2 probes without an answer"
    assert one.look(6.0, counters(taken=3, sent=3, unanswered={"timeout": 2}, connect_failed=5)) and one.state == "probing"
    assert one.look(6.5, counters(taken=3, sent=3, unanswered={"timeout": 2}, connect_failed=6, connections_open=0)) and one.reason == "no connection"


def test_breaker_of_new_senders():
    """A reload made them: they count from nothing, and what the old ones counted must not keep it open."""
    one = opened(taken=1000, sent=1000, answered=1000)
    one.renewed()
    assert one.passes == 3 and one.look(2.2, counters(taken=1, sent=1, answered=1)) and one.state == "closed"


def test_two_hundred_nodes_do_not_come_back_at_once():
    untils = []
    for n in range(200):
        one = Breaker(5.0, random.Random(n))
        one.look(0.0, counters())
        one.look(0.1, counters(connect_failed=5, connections_open=0))
        untils.append(one.until)
    assert max(untils) - min(untils) > 0.3 and len(set(untils)) == 200


def test_breaker_heeds_retry_after():
    one = Breaker(5.0, random.Random(3))
    one.look(0.0, counters())
    one.look(0.5, counters(taken=50, sent=50, answered=50, status={503: 40, 200: 10}, retry_after_s=20))
    assert one.state == "open" and one.until >= 20.5


def test_a_few_errors_open_nothing():
    one = Breaker(5.0)
    one.look(0.0, counters())
    assert not one.look(0.5, counters(taken=1000, sent=1000, answered=900, unanswered={"reset": 100}, connect_failed=3))
    assert one.state == "closed"


# ---- memory -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "group", "expected"),
    [
        ({"a/b/memory.max": "268435456", "a/memory.max": "max"}, "0::/a/b", 268435456),
        ({"a/b/memory.max": "max", "a/memory.max": "134217728"}, "0::/a/b", 134217728),
        ({"a/memory.max": "max"}, "0::/a", None),
        ({}, "0::/", None),
        ({"memory/x/memory.limit_in_bytes": "104857600"}, "5:memory:/x\n0::/", 104857600),
        ({"memory/x/memory.limit_in_bytes": "9223372036854771712"}, "5:memory:/x", None),
    ],
    ids=["its own limit", "a limit above it", "no limit", "no cgroup files", "version 1", "version 1 without a limit"],
)
def test_limit_of_the_cgroup(tmp_path, files, group, expected):
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(group + "\n")
    assert memory.limit(str(tmp_path / "fs"), str(tmp_path / "own")) == expected


def test_a_limit_that_changes_is_no_option_that_changed(monkeypatch, tmp_path):
    """A reload would be refused for an option that nobody gave."""
    config = tmp_path / "tap.yaml"
    config.write_text("percent: 1\n")
    code = (
        "from replay.tap import memory\nfrom replay.cli.again import Words\nlimits = iter([128 << 20, 1 << 30, 64 << 20])\n"
        "memory.limit = lambda *_: next(limits)\nfrom replay.cli.tap import tap\nimport sys\nwords = sys.argv[1:]\n"
        "with tap.make_context('tap', list(words)) as ctx:\n    line = Words(ctx, words, ['percent'])\n"
        "assert line.given['max_memory'] == 32 << 20\nprint(line.again(lambda _: None), line.again(lambda _: None))"
    )
    done = subprocess.run([sys.executable, "-c", code, "lo", "--dry-run", "--config", str(config)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("the same options") == 2, done.stderr


def test_a_small_cgroup_gives_a_small_budget(monkeypatch):
    for most, expected in ((None, 64 << 20), (1 << 30, 64 << 20), (128 << 20, 32 << 20), (64 << 20, 16 << 20)):
        monkeypatch.setattr(memory, "limit", lambda most=most: most)
        assert memory.default_memory() == expected
