"""Not one byte to production: a real socket at the captured server's address counts what reaches it, for every spelling of that address."""

import json
import selectors
import socket
import subprocess
import threading
import time

import endtoend
import pcapmake
import pytest

LOOPBACK4, LOOPBACK6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"
MAPPED = bytes(10) + b"\xff\xff" + LOOPBACK4


class Production:
    """Listens on 127.0.0.1 and ::1 at one port; counts connections and bytes, and answers."""

    def __init__(self):
        self.connections = self.bytes = 0
        self.selector, self.ends = selectors.DefaultSelector(), threading.Event()
        self.listening = [socket.create_server(("127.0.0.1", 0))]
        self.port = self.listening[0].getsockname()[1]
        self.listening.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self.peers = []
        for one in self.listening:
            self.selector.register(one, selectors.EVENT_READ, self._accept)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.ends.is_set():
            for key, _ in self.selector.select(0.05):
                key.data(key.fileobj)

    def _accept(self, listening):
        peer, _ = listening.accept()
        self.connections += 1
        self.peers.append(peer)
        self.selector.register(peer, selectors.EVENT_READ, self._read)

    def _read(self, peer):
        data = peer.recv(65536)
        self.bytes += len(data)
        if not data:
            self.selector.unregister(peer)
            return
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * data.count(b"\r\n\r\n"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()
        self.selector.close()
        for one in self.listening + self.peers:
            one.close()

    @property
    def seen(self):
        """(connections, bytes), after a moment in which late ones could come."""
        time.sleep(0.1)
        return self.connections, self.bytes


@pytest.fixture
def production():
    with Production() as server:
        yield server


def captured(path, server, count=20, method=b"GET"):
    """A capture of requests to this server."""
    client = (b"\x0a\0\0\1", 40000) if len(server[0]) == 4 else (b"\xfd" + bytes(14) + b"\1", 40000)
    return endtoend.write(path, endtoend.conversation([endtoend.request(b"/%d" % i, method) for i in range(count)], client=client, server=server))


def refused(*arguments, dropped, **more):
    """The report of a run that a guard ended."""
    report = endtoend.run("--pace", "max", *arguments, code=3, **more)
    assert endtoend.outcome(report) == (0, 0, dropped, {})
    assert report["ledger"]["by_reason"]["dropped"] == ({"guard": dropped} if dropped else {})
    return report


SAME = [
    (LOOPBACK4, "127.0.0.1"), (LOOPBACK4, "localhost"), (LOOPBACK4, "[::ffff:127.0.0.1]"), (LOOPBACK4, "[::ffff:7f00:1]"), (LOOPBACK4, "127.1"),
    (LOOPBACK4, "2130706433"), (LOOPBACK6, "[::1]"), (LOOPBACK6, "localhost"), (LOOPBACK6, "[0:0:0:0:0:0:0:1]"),
    (MAPPED, "127.0.0.1"), (MAPPED, "localhost"), (MAPPED, "[::ffff:127.0.0.1]"),
    (LOOPBACK4, "0.0.0.0"), (MAPPED, "0.0.0.0"), (LOOPBACK4, "[::ffff:0.0.0.0]"),
    (LOOPBACK6, "[::]"), (LOOPBACK4, "[::]"),
]  # fmt: skip


def name(value):
    return value if isinstance(value, str) else socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


@pytest.mark.parametrize("address, target", SAME, ids=name)
def test_the_captured_server_is_no_target(tmp_path, production, address, target):
    if address == LOOPBACK6 and target == "localhost" and "::1" not in {where[4][0] for where in socket.getaddrinfo("localhost", 80)}:
        target = "[::1]"  # this machine's localhost is IPv4 alone
    capture = captured(tmp_path / "capture.pcap", (address, production.port))
    report = refused("--to", f"http://{target}:{production.port}", capture, dropped=20)
    assert production.seen == (0, 0)
    assert report["ledger"]["found"] == 20


@pytest.mark.parametrize("options", [("--percent", "1"), ("--methods", "POST"), ("--limit", "1"), ("--loop", "3"), ("--set-host", "x"), ("--shadow-suffix", "off")], ids=" ".join)
def test_no_option_goes_round_the_guard(tmp_path, production, options):
    capture = captured(tmp_path / "capture.pcap", (LOOPBACK4, production.port))
    report = endtoend.run("--pace", "max", *options, "--to", f"http://127.0.0.1:{production.port}", capture, code=3)
    assert report["ledger"]["sent"] == 0 and set(report["ledger"]["by_reason"]["dropped"]) <= {"guard"}
    assert production.seen == (0, 0)


def test_all_targets_stop_when_one_is_production(tmp_path, production):
    capture = captured(tmp_path / "capture.pcap", (LOOPBACK4, production.port))
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run("--pace", "max", "--to", sink.url, "--to", f"http://127.0.0.1:{production.port}", capture, code=3)
        assert sink.stop() == []
    assert report["ledger"]["sent"] == 0
    assert production.seen == (0, 0)


def test_a_refusal_says_what_to_do(tmp_path, production):
    capture = captured(tmp_path / "capture.pcap", (LOOPBACK4, production.port))
    done = endtoend.command("run", "--to", f"http://127.0.0.1:{production.port}", capture, code=3)
    assert b"--allow-production" in done.stderr and b"refused" in done.stderr
    endtoend.command("run", "--dry-run", "--to", f"http://127.0.0.1:{production.port}", capture, code=3)
    assert production.seen == (0, 0)


def test_allowed_it_is_sent(tmp_path, production):
    capture = captured(tmp_path / "capture.pcap", (LOOPBACK4, production.port))
    report = endtoend.run("--allow-production", "--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)
    assert endtoend.outcome(report) == (20, 20, 0, {})
    assert production.seen[0] >= 1


@pytest.mark.parametrize("other", [(LOOPBACK4, 1), (b"\x0a\0\0\2", None)], ids=["another port", "another address"])
def test_another_server_is_no_reason(tmp_path, production, other):
    capture = captured(tmp_path / "capture.pcap", (other[0], other[1] or production.port))
    report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)
    assert endtoend.outcome(report) == (20, 20, 0, {})


def tls(one):
    one.ask(b"\x16\x03\x01\0\5hello").tell(b"\x16\x03\x03\0\5world")


OTHERS = {
    "TLS": lambda one: tls(one.open()),
    "HTTP/2": lambda one: one.open().ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "an open connection without a byte": lambda one: one.open(),
    "replies alone": lambda one: one.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "TLS, its beginning not captured": tls,
}


@pytest.mark.parametrize("how", OTHERS)
def test_a_server_that_speaks_no_requests_is_one_too(tmp_path, production, how):
    """Beside requests to somebody else, a connection with the target on which no request is to be read."""
    one = pcapmake.Talk(client=(b"\x0a\0\0\5", 61999), server=(LOOPBACK4, production.port))  # above all ports that the kernel chooses
    OTHERS[how](one)
    capture = endtoend.write(tmp_path / "capture.pcap", endtoend.conversation([endtoend.request(b"/%d" % i) for i in range(5)]), one.packets)
    refused("--to", f"http://127.0.0.1:{production.port}", capture, dropped=5)
    assert production.seen == (0, 0)


def test_a_closed_port_is_no_server(tmp_path, production):
    """A SYN that nobody answered, or that was refused."""
    one = pcapmake.Talk(client=(b"\x0a\0\0\5", 61999), server=(LOOPBACK4, production.port))
    one.raw(0, 1000, pcapmake.SYN).raw(1, 0, pcapmake.RST | pcapmake.ACK, ack=1001)
    capture = endtoend.write(tmp_path / "capture.pcap", endtoend.conversation([endtoend.request(b"/%d" % i) for i in range(5)]), one.packets)
    assert endtoend.outcome(endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)) == (5, 5, 0, {})


def test_a_client_at_the_address_is_no_server(tmp_path, production):
    requests = [endtoend.request(b"/%d" % i) for i in range(5)]
    capture = endtoend.write(tmp_path / "capture.pcap", endtoend.conversation(requests, client=(LOOPBACK4, production.port), server=(b"\x0a\0\0\2", 80)))
    assert endtoend.outcome(endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)) == (5, 5, 0, {})


# ---- when it turns out late --------------------------------------------------------------------------------------------------


def late(path, production, server=LOOPBACK4, before=30):
    """Requests to somebody else, a second without any, then those to production."""
    start = 1_700_000_000_000_000_000
    first = endtoend.conversation([endtoend.request(b"/else/%d" % i) for i in range(before)], start_ns=start)
    client = (b"\x0a\0\0\1" if len(server) == 4 else b"\xfd" + bytes(14) + b"\1", 40001)
    second = endtoend.conversation([endtoend.request(b"/%d" % i) for i in range(20)], start_ns=start + 2 * 10**9, client=client, server=(server, production.port))
    return endtoend.write(path, first, second)


def test_a_server_that_comes_later_in_a_file(tmp_path, production):
    """A file is read ahead: nothing at all is sent."""
    capture = late(tmp_path / "late.pcap", production)
    report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture, code=3)
    assert report["ledger"]["sent"] == 0 and report["ledger"]["by_reason"]["dropped"] == {"guard": 50}
    assert production.seen == (0, 0)


def piped(path, *arguments, code):
    """The report of a run that reads a capture from a pipe."""
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        return endtoend.run(*arguments, "-", code=code, stdin=cat.stdout)


@pytest.mark.parametrize("server", [LOOPBACK4, MAPPED], ids=["v4", "mapped"])
@pytest.mark.parametrize("pace", ["max", "original"])
def test_a_server_that_comes_later_on_standard_input(tmp_path, production, pace, server):
    """A pipe cannot be read ahead. When its server turns out to be the target, no request that was captured on its way there is sent."""
    capture = late(tmp_path / "late.pcap", production, server)
    report = piped(capture, "--pace", pace, "--access-log", tmp_path / "run.log", "--to", f"http://127.0.0.1:{production.port}", code=3)
    lines = endtoend.access_log(tmp_path / "run.log")
    sent = [target for target, _, _, was_sent in lines if was_sent]
    assert not [target for target in sent if not target.startswith("/else/")]
    assert set(report["ledger"]["by_reason"]["dropped"]) == {"guard"} and report["ledger"]["dropped"] >= 20
    assert report["ledger"]["sent"] == len(sent) <= 30


def test_production_first_on_standard_input(tmp_path, production):
    """Known before the first request is whole: not one byte."""
    capture = captured(tmp_path / "capture.pcap", (LOOPBACK4, production.port))
    report = piped(capture, "--pace", "max", "--to", f"http://127.0.0.1:{production.port}", code=3)
    assert report["ledger"]["sent"] == 0 and set(report["ledger"]["by_reason"]["dropped"]) == {"guard"}
    assert production.seen == (0, 0)


def test_a_file_as_standard_input(tmp_path, production):
    with open(endtoend.DEMO, "rb") as file:
        report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", "-", stdin=file)
    assert endtoend.outcome(report) == (225, 225, 0, {})


def test_production_in_a_file_as_standard_input(tmp_path, production):
    with open(late(tmp_path / "late.pcap", production), "rb") as file:
        report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", "-", stdin=file, code=3)
    assert set(report["ledger"]["by_reason"]["dropped"]) == {"guard"} and report["ledger"]["dropped"] >= 20


def test_a_capture_that_is_still_being_piped(tmp_path, production):
    """First others' requests, which are sent; then, half a second later, production's: it ends there."""
    data = late(tmp_path / "late.pcap", production).read_bytes()
    at = data.index(bytes([127, 0, 0, 1])) - 60  # somewhere in the packet before
    run = endtoend.started(
        "run", "--json", "--pace", "max", "--access-log", tmp_path / "run.log", "--to", f"http://127.0.0.1:{production.port}", "-",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    run.stdin.write(data[:at])
    run.stdin.flush()
    time.sleep(0.5)
    connections, count = production.seen
    out, errors = run.communicate(data[at:], timeout=endtoend.PATIENCE_S)
    assert run.returncode == 3, errors.decode()
    report = endtoend.balanced(json.loads(out))
    assert report["ledger"]["by_reason"]["dropped"].keys() == {"guard"}
    sent = [target for target, _, _, was_sent in endtoend.access_log(tmp_path / "run.log") if was_sent]
    assert all(target.startswith("/else/") for target in sent)
    assert production.seen == (connections, count)


# ---- loops -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_, withheld",
    [
        (endtoend.request(b"/", host=b"a.example-shadow"), "loop"),
        (endtoend.request(b"/", host=b"a.example-shadow:8080"), "loop"),
        (endtoend.request(b"/", host=b"A.EXAMPLE-SHADOW"), "loop"),
        (endtoend.request(b"/", host=b"[::1]-shadow:80"), "loop"),
        (endtoend.request(b"http://a-shadow/x"), "loop"),
        (endtoend.request(b"/", extra=b"x-shadow-replay: 1\r\n"), "loop"),
        (endtoend.request(b"/", extra=b"X-Shadow-Replay:7\r\n"), "loop"),
        (endtoend.request(b"/", host=b"a-shadow.example"), None),
        (endtoend.request(b"/", host=b"shadow"), None),
        (endtoend.request(b"/", extra=b"x-shadow-replayed: 1\r\n"), None),
    ],
    ids=lambda value: value.split(b"\r\n\r\n")[0].replace(b"\r\n", b" ").decode() if isinstance(value, bytes) else str(value),
)
def test_what_is_mirrored_is_not_mirrored_again(tmp_path, production, request_, withheld):
    capture = endtoend.write(tmp_path / "loop.pcap", endtoend.conversation([request_] * 3))
    report = endtoend.run("--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)
    assert report["ledger"]["by_reason"]["withheld"] == ({withheld: 3} if withheld else {})
    assert endtoend.outcome(report)[:2] == ((0, 0) if withheld else (3, 3))
    assert (production.seen == (0, 0)) == bool(withheld)


def test_the_suffix_off_still_honours_the_marker(tmp_path, production):
    requests = [endtoend.request(b"/", host=b"a-shadow"), endtoend.request(b"/", extra=b"x-shadow-replay: 1\r\n")]
    capture = endtoend.write(tmp_path / "loop.pcap", endtoend.conversation(requests))
    report = endtoend.run("--shadow-suffix", "off", "--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)
    assert report["ledger"]["by_reason"]["withheld"] == {"loop": 1} and report["ledger"]["answered"] == 1


def test_the_report_of_a_dry_run_is_no_part_of_a_sum(tmp_path, production):
    """It says what to do, not that a ledger does not add up."""
    capture = captured(tmp_path / "capture.pcap", (b"\x0a\0\0\2", 80), count=3)
    endtoend.run("--pace", "max", "--report", tmp_path / "dry.json", capture)
    endtoend.run("--pace", "max", "--report", tmp_path / "sent.json", "--to", f"http://127.0.0.1:{production.port}", capture)
    command = [*endtoend.COMMAND, "report", tmp_path / "dry.json", tmp_path / "sent.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "dry.json: of a dry run" in done.stderr and "--compare" in done.stderr
    assert subprocess.run([*command, "--compare"], capture_output=True).returncode == 0


def test_a_dry_run_sends_nothing(tmp_path, production):
    capture = captured(tmp_path / "capture.pcap", (b"\x0a\0\0\2", 80))
    report = endtoend.run("--dry-run", "--pace", "max", "--to", f"http://127.0.0.1:{production.port}", capture)
    assert report["ledger"]["by_reason"]["dropped"] == {"dry_run": 20} and report["ledger"]["sent"] == 0
    assert production.seen == (0, 0)
