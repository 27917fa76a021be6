"""What a tap leaves to the kernel: a share of the connections, and most of what servers say."""

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading

import pytest
from endtoend import balanced
from ownserver import OwnServer, requests_of
from tapmake import Namespaces, Nginx, Sink, Tap, ended, eventually, free_port, get, needs, needs_root, nginx  # noqa: F401

from replay._reference import sampling

pytestmark = [needs_root, needs("nginx", "ip")]


def connections(host, port, count, each=3, family=socket.AF_INET):
    """Connections with a few requests each; their keys. Each request names its connection's local port."""
    keys = []
    for _ in range(count):
        with socket.socket(family) as one:
            one.connect((host, port))
            here = one.getsockname()
            for i in range(each):
                one.sendall(b"GET /%d/%d HTTP/1.1\r\nHost: a\r\n\r\n" % (here[1], i))
                assert one.recv(1000)
            ends = [(socket.inet_pton(family, address), number) for address, number in (here[:2], one.getpeername()[:2])]
            keys.append((here[1], b"".join((bytes(10) + b"\xff\xff" + address)[-16:] + number.to_bytes(2, "big") for address, number in ends)))
    return keys


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_share_of_the_connections_is_the_kernel_s(nginx, tmp_path):  # noqa: F811
    """Exactly the connections that the reference chooses, with each of their requests; nothing else is even captured."""
    log = tmp_path / "shadow.jsonl"
    words = ("lo", "--port", nginx.port, "-p", 20, "--sample-by", "connection:kernel", "--seed", 11)
    with ended(Sink("--access-log", log)) as shadow, ended(Tap(*words, "--to", f"http://{shadow.address}")) as tap:
        keys = connections("127.0.0.1", nginx.port, 200)
        chosen = {port for port, key in keys if sampling.is_taken(key, 200_000, 11, "connection:kernel")}
        assert 15 < len(chosen) < 70
        eventually(lambda: len(log.read_text().splitlines()) >= 3 * len(chosen))
        report = balanced(tap.report())
    assert sorted(row["target"] for row in rows(log)) == sorted(f"/{port}/{i}" for port in chosen for i in range(3))
    ledger = report["ledger"]
    assert ledger["found"] == ledger["selected"] == ledger["answered"] == 3 * len(chosen) and not ledger["sampled_out"]
    assert report["packets"]["read"] < 25 * len(chosen), "other connections are not captured"
    assert any("20 % of the connections" in note for note in report["notes"]), report["notes"]


def test_kernel_shares_nest_over_a_reload(nginx, tmp_path):  # noqa: F811
    config = tmp_path / "tap.yaml"
    config.write_text("percent: 10\n")
    tmp_path.chmod(0o755)
    words = ("lo", "--port", nginx.port, "--sample-by", "connection:kernel", "--dry-run", "--config", config, "--user", "root")
    with ended(Tap(*words)) as tap:
        first = connections("127.0.0.1", nginx.port, 100, each=1)
        config.write_text("percent: 50\n")
        tap.wait_for("reloaded")
        second = connections("127.0.0.1", nginx.port, 100, each=1)
        few, more = (sum(sampling.is_taken(key, share, 0, "connection:kernel") for _, key in keys) for share, keys in ((100_000, first), (500_000, second)))
        eventually(lambda: f"found {few + more}," in tap.ask(), every=0.2)
        assert balanced(tap.report())["ledger"]["selected"] == few + more


@pytest.mark.parametrize("version", [4, 6])
def test_over_a_veth_in_both_families(tmp_path, version):
    spaces = Namespaces("s", "c")
    address = {4: ("10.99.7.1", "10.99.7.2", "24"), 6: ("fd99:7::1", "fd99:7::2", "64")}[version]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    (tmp_path / "nginx").mkdir()
    try:
        spaces.link("s", "c", "192.0.2.1/24", "192.0.2.2/24")
        for name, own in (("s", address[0]), ("c", address[1])):
            spaces.ip("-n", spaces[name], "addr", "add", f"{own}/{address[2]}", "dev", "eth0", *(("nodad",) if version == 6 else ()))
        host = address[0] if version == 4 else f"[{address[0]}]"
        server = Nginx(tmp_path / "nginx", host=host, netns=spaces["s"], port=8080)
        code = (
            "import sys, json; sys.path[:0] = json.loads(sys.argv[1]); import test_tap_kernel as t, socket;"
            f"print(json.dumps([[port, key.hex()] for port, key in t.connections({address[0]!r}, 8080, 150, family=socket.{family.name})]))"
        )
        with ended(Tap("eth0", "--netns", spaces["s"], "--port", 8080, "-p", 30, "--sample-by", "connection:kernel", "--dry-run")) as tap:
            done = subprocess.run(["ip", "netns", "exec", spaces["c"], sys.executable, "-c", code, json.dumps(sys.path)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            keys = [bytes.fromhex(key) for _, key in json.loads(done.stdout)]
            chosen = sum(sampling.is_taken(key, 300_000, 0, "connection:kernel") for key in keys)
            eventually(lambda: f"found {3 * chosen}," in tap.ask(), every=0.2)
            report = balanced(tap.report())
        assert report["ledger"]["found"] == 3 * chosen and 20 < chosen < 75
        server.close()
    finally:
        spaces.close()


# ---- what servers say ---------------------------------------------------------------------------------------------------------------


class Server(OwnServer):
    """One that answers as told: `answers` gives the reply's bytes to each request's target."""

    def __init__(self, answers):
        self.answers = answers
        super().__init__()

    def talk(self, peer):
        for head, _ in requests_of(peer):
            for piece in self.answers(head.split(b" ")[1].decode()):
                peer.sendall(piece)


def ask(one, target, body=b""):
    """A request on a connection, and the whole of its reply."""
    one.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (target.encode(), len(body)) + body)
    have = b""
    while b"\r\n\r\n" not in have:
        have += one.recv(65536)
    head, _, rest = have.partition(b"\r\n\r\n")
    if b"chunked" in head:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += one.recv(65536)
        return head
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(rest) < length:
        rest += one.recv(65536)
    return head


def reply(target):
    """Replies of every size and framing; some heads are longer than what is kept of them, some come in two pieces."""
    chance = random.Random(target)
    status = chance.choice([200, 201, 404, 503])  # whatever it is, it has to be recognized
    long = b"X-Long: " + b"y" * chance.choice([0, 0, 100, 3000]) + b"\r\n"
    size = chance.choice([0, 1, 40, 10_000, 200_000])
    if chance.random() < 0.3:
        head = b"HTTP/1.1 %d X\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (status, long)
        pieces = [head, *[b"%x\r\n" % 5000 + b"HTTP/" * 1000 + b"\r\n"] * chance.randrange(5), b"0\r\n\r\n"]
    else:
        pieces = [b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n" % (status, long, size) + b"z" * size]
    return pieces


@pytest.mark.parametrize("replies", ["heads", "whole"])
def test_what_servers_say_stays_in_the_kernel(tmp_path, replies):
    """The ledger is the same; no gap, no cut frame and no lost request is counted; a connection that stood before is joined by the beginnings of its replies."""
    server = Server(reply)
    targets = [f"/{n}" for n in range(120)]
    old = socket.create_connection(("127.0.0.1", server.port))
    ask(old, "/before")
    log = tmp_path / "shadow.jsonl"
    words = ("lo", "--port", server.port, "-p", 100, "--replies", replies)
    try:
        with ended(Sink("--access-log", log)) as shadow, ended(Tap(*words, "--to", f"http://{shadow.address}", "--metrics", "127.0.0.1:0", ready=False)) as tap:
            tap.wait_for("rights:")
            address = tap.wait_for("metrics at").split("/")[2]
            eventually(lambda: scrape(address, "replay_capturing") == 1)
            for n, target in enumerate(targets):
                with socket.create_connection(("127.0.0.1", server.port)) as one:
                    for again in range(3):
                        body = b"b" * (n * 700 % 9000)
                        ask(one if again else old, f"{target}/{again}", body)
            eventually(lambda: len(log.read_text().splitlines()) >= 3 * len(targets))
            assert scrape(address, "replay_gaps_total") == 0 and scrape(address, "replay_packets_cut_total") == 0
            assert scrape(address, "replay_requests_lost_estimated_total") == 0
            shortened = scrape(address, "replay_shortened_packets_total")
            assert shortened > 100 if replies == "heads" else shortened == 0
            report = balanced(tap.report())
    finally:
        old.close()
        server.close()
    assert report["ledger"]["found"] == report["ledger"]["answered"] == 3 * len(targets)
    assert sorted(row["target"] for row in rows(log)) == sorted(f"{target}/{n}" for target in targets for n in range(3))


def scrape(address, name):
    text = get(f"http://{address}/metrics").decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name) and line[len(name)] in " {")


def test_an_upgrade_is_still_told_from_a_refused_one(tmp_path):
    def answers(target):
        if target == "/yes":
            return [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", b"\x81\x05hello"]
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"n" * 9000]

    server = Server(answers)
    try:
        with ended(Tap("lo", "--port", server.port, "-p", 100, "--dry-run")) as tap:
            for target in ("/yes", "/no"):
                with socket.create_connection(("127.0.0.1", server.port)) as one:
                    one.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" % target.encode())
                    one.recv(100)
            eventually(lambda: "found 2" in tap.ask(), every=0.2)
            report = balanced(tap.report())
    finally:
        server.close()
    assert report["ledger"]["by_reason"]["withheld"] == {"upgrade": 1} and report["ledger"]["selected"] == 1


def test_without_replies(nginx, tmp_path):  # noqa: F811
    """Connections that it saw begin are mirrored as ever; those before are withheld, for nothing can confirm them; both end, and are forgotten."""
    log = tmp_path / "shadow.jsonl"
    with socket.create_connection(("127.0.0.1", nginx.port)) as old:
        old.sendall(b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n")
        old.recv(1000)
        words = ("lo", "--port", nginx.port, "-p", 100, "--replies", "none")
        with ended(Sink("--access-log", log)) as shadow, ended(Tap(*words, "--to", f"http://{shadow.address}")) as tap:
            for i in range(4):
                old.sendall(b"GET /old/%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
                old.recv(1000)
            connections("127.0.0.1", nginx.port, 50, each=4)
            with socket.create_connection(("127.0.0.1", nginx.port)) as one:
                one.sendall(b"POST /expecting HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
                one.recv(1000)
                one.sendall(b"abc")
            for i in range(5):
                get(f"{nginx.url}/sized/{i}", data=b"x" * 40_000 * i)
            eventually(lambda: "found 210" in tap.ask(), every=0.2)
            report = balanced(tap.report())
    ledger = report["ledger"]
    assert ledger["by_reason"]["withheld"] == {"unconfirmed": 4, "ambiguous": 1} and ledger["answered"] == 205
    assert report["lost_estimated"] == 0 and report["status_known"] == 0 and report["packets"]["kernel_drops"] == 0
    assert len(rows(log)) == 205


# ---- hops ----------------------------------------------------------------------------------------------------------------------------


def test_hops(nginx, tmp_path):  # noqa: F811
    log = tmp_path / "shadow.jsonl"
    marks = [None, "1", "2", "3", "0", "x", "100", "1, 1"]
    with ended(Sink("--access-log", log)) as shadow, ended(Tap("lo", "--port", nginx.port, "-p", 100, "--max-hops", 3, "--to", f"http://{shadow.address}")) as tap:
        for n, mark in enumerate(marks):
            get(f"{nginx.url}/{n}", headers={} if mark is None else {"X-Shadow-Replay": mark})
        eventually(lambda: f"found {len(marks)}" in tap.ask(), every=0.2)
        report = balanced(tap.report())
    assert {row["target"]: dict(row["headers"])["x-shadow-replay"] for row in rows(log)} == {"/0": "1", "/1": "2", "/2": "3"}
    assert report["ledger"]["by_reason"]["withheld"] == {"loop": 5}


# ---- replies while something needs them ----------------------------------------------------------------------------------------------


def hears(tap):
    return scrape(tap.metrics, "replay_replies_captured") == 1


class Watched(Tap):
    """One with metrics, at `metrics`."""

    def __init__(self, *words):
        super().__init__(*words, "--metrics", "127.0.0.1:0", ready=False)
        self.wait_for("rights:")
        self.metrics = self.wait_for("metrics at").split("/")[2]
        eventually(lambda: scrape(self.metrics, "replay_capturing") == 1)


def test_replies_stay_in_the_kernel_when_nothing_needs_them(nginx, tmp_path):  # noqa: F811
    """Each request is mirrored, those on connections from before too; of what servers say nothing is captured any more."""
    log = tmp_path / "shadow.jsonl"
    lasting = [socket.create_connection(("127.0.0.1", nginx.port)) for _ in range(5)]
    with contextlib.ExitStack() as open_ones:
        for one in lasting:
            open_ones.enter_context(one)
        shadow = open_ones.enter_context(ended(Sink("--access-log", log)))
        tap = open_ones.enter_context(ended(Watched("lo", "--port", nginx.port, "-p", 100, "--replies", "auto:1s", "--to", f"http://{shadow.address}")))
        assert hears(tap)
        for turn in range(2):
            for n, one in enumerate(lasting):
                one.sendall(b"GET /lasting/%d/%d HTTP/1.1\r\nHost: a\r\n\r\n" % (n, turn))
                one.recv(1000)
            if turn == 0:
                eventually(lambda: not hears(tap), every=0.1)
        before = scrape(tap.metrics, "replay_kernel_packets_total")
        connections("127.0.0.1", nginx.port, 300)
        eventually(lambda: len(log.read_text().splitlines()) >= 910)
        assert not hears(tap)
        assert scrape(tap.metrics, "replay_kernel_packets_total") - before < 300 * 7, "of each the beginning, three requests, the end"
        report = balanced(tap.report())
    assert report["ledger"]["found"] == report["ledger"]["answered"] == 910
    assert report["lost_estimated"] == report["gaps"]["count"] == report["packets"]["kernel_drops"] == 0
    assert len({row["target"] for row in rows(log)}) == 910


def test_a_connection_from_before_the_tap_makes_it_listen_again(nginx):  # noqa: F811
    """It slept while nothing needed replies: its first request is withheld, those that follow are mirrored; new connections lose nothing over it."""
    with socket.create_connection(("127.0.0.1", nginx.port)) as old, ended(Sink()) as shadow:
        old.sendall(b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n")
        old.recv(1000)
        words = ("lo", "--port", nginx.port, "-p", 100, "--replies", "auto:1s", "--to", f"http://{shadow.address}")
        with ended(Watched(*words)) as tap:
            eventually(lambda: not hears(tap), every=0.1)
            old.sendall(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
            old.recv(1000)
            tap.wait_for("replies are captured again")
            for i in range(20):
                old.sendall(b"GET /old/%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
                old.recv(1000)
            connections("127.0.0.1", nginx.port, 50)
            tap.wait_for("replies are not captured any more")
            old.sendall(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
            old.recv(1000)
            eventually(lambda: "found 172" in tap.ask(), every=0.2)
            assert not hears(tap), "it is known now"
            report = balanced(tap.report())
        assert report["ledger"]["by_reason"]["withheld"] == {"unconfirmed": 1} and report["ledger"]["answered"] == 171
        assert shadow.totals()["requests"] == 171 and report["lost_estimated"] == 0


def test_what_is_heard_changes_under_load(nginx, tmp_path):  # noqa: F811
    """Reloads from one to the other while requests come on connections that last: each is found, once, and nothing is reported that was not."""
    config = tmp_path / "tap.yaml"
    config.write_text("replies: heads\n")
    tmp_path.chmod(0o755)
    lasting = [socket.create_connection(("127.0.0.1", nginx.port)) for _ in range(30)]
    sent = 0
    with contextlib.ExitStack() as open_ones:
        for one in lasting:
            open_ones.enter_context(one)
        tap = open_ones.enter_context(ended(Tap("lo", "--port", nginx.port, "--dry-run", "-p", 100, "--config", config, "--user", "root")))
        for one in lasting:  # each is confirmed before the first change
            one.sendall(b"GET /joined HTTP/1.1\r\nHost: a\r\n\r\n")
            one.recv(1000)
            sent += 1
        for turn in range(8):
            config.write_text(f"replies: {('none', 'heads', 'auto:1s', 'whole')[turn % 4]}\n")
            said = []
            waiter = threading.Thread(target=lambda said=said: said.append(tap.wait_for("reloaded")))
            waiter.start()
            while waiter.is_alive():
                for one in lasting:
                    one.sendall(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" % sent)
                    one.recv(1000)
                    sent += 1
                sent += 3 * len(connections("127.0.0.1", nginx.port, 3))
            waiter.join()
            assert said
        eventually(lambda: f"found {sent:,}," in tap.ask(), every=0.2)
        report = balanced(tap.report())
    assert report["ledger"]["selected"] == sent > 500 and report["lost_estimated"] == 0 and report["packets"]["kernel_drops"] == 0, report
