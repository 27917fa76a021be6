"""`replay tap` under load: at full speed nothing is lost without a count; a shadow that fails in any way costs production nothing and the tap no memory."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from endtoend import balanced
from tapmake import COMMAND, Process, Sink, Tap, ended, eventually, get, needs, needs_root, nginx  # noqa: F401

pytestmark = [needs_root, needs("nginx", "wrk")]


def wrk(nginx, seconds, connections=64):  # noqa: F811
    done = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"{nginx.url}/"], capture_output=True, text=True, check=True)
    assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout


@pytest.mark.slow
def test_full_speed(nginx, tmp_path):  # noqa: F811
    """wrk with 64 connections: requests found are nginx's own count (less those under way at the end), the shadow saw each selected one once."""
    log = tmp_path / "shadow.jsonl"
    with ended(Sink("--access-log", log)) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 20)) as tap:
        before = nginx.requests()
        wrk(nginx, 5)
        after = nginx.requests()
        time.sleep(0.5)
        report = balanced(tap.report())
        totals = shadow.totals()
    found, ledger = report["ledger"]["found"], report["ledger"]
    assert report["packets"]["kernel_drops"] == 0 and report["packets"]["cut_frames"] == 0
    assert abs(found - (after - before)) <= 2 * 64
    assert 0.18 * found < ledger["selected"] < 0.22 * found
    assert totals["requests"] == ledger["sent"] and ledger["sent"] + ledger["dropped"] == ledger["selected"]
    assert set(ledger["by_reason"]["dropped"]) <= {"queue_full"}
    assert len(log.read_text().splitlines()) == ledger["sent"]


@pytest.mark.slow
def test_several_workers(nginx):  # noqa: F811
    """The kernel shares connections out; both directions go to one worker, each request is found once."""
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 5, "--workers", 3)) as tap:
        before = nginx.requests()
        wrk(nginx, 3)
        after = nginx.requests()
        time.sleep(0.5)
        report = balanced(tap.report())
        assert shadow.totals()["requests"] == report["ledger"]["sent"]
    assert abs(report["ledger"]["found"] - (after - before)) <= 2 * 64 and report["packets"]["kernel_drops"] == 0
    assert report["ledger"]["withheld"] == 0


@pytest.mark.parametrize("targets", [1, 2])
def test_copies_beyond_the_first_never_become_fewer(nginx, targets):  # noqa: F811
    """In the metrics, read again and again at speed: with one target there are none, with two as many as were selected, in the end."""
    with ended(Sink()) as shadow:
        words = [word for _ in range(targets) for word in ("--to", f"http://{shadow.address}")]
        with ended(Tap("lo", "--port", nginx.port, *words, "-p", 100, "--metrics", "127.0.0.1:0", ready=False)) as tap:
            address = tap.wait_for("metrics at").split("/")[2]
            time.sleep(0.3)
            load = threading.Thread(target=wrk, args=(nginx, 2, 8))
            load.start()
            seen = []
            while load.is_alive():
                seen.append(float(re.search(r"^replay_requests_fanout_total (\S+)", get(f"http://{address}/metrics").decode(), re.M)[1]))
            report = balanced(tap.report())
    assert len(seen) > 3 and seen == sorted(seen) and seen[0] >= 0
    assert report["ledger"]["fanout"] == report["ledger"]["selected"] * (targets - 1) and (targets == 1) == (seen[-1] == 0)


@needs("unshare")
def test_two_taps_with_the_same_process_number(nginx):  # noqa: F811
    """Two containers in the host's network namespace, each with workers: both see everything."""
    with ended(Sink()) as shadow, contextlib.ExitStack() as stack:
        words = [*COMMAND, "tap", "lo", "--port", str(nginx.port), "--to", f"http://{shadow.address}", "-p", "100", "--workers", "2", "--json", "--duration", "4s"]
        taps = [stack.enter_context(ended(Process(["unshare", "--pid", "--fork", "--kill-child", *words]))) for _ in range(2)]
        for tap in taps:
            tap.wait_for("rights:")
        time.sleep(0.3)
        for i in range(40):
            get(f"{nginx.url}/{i}")
        for tap in taps:
            out, err = tap.process.communicate(timeout=20)
            assert balanced(json.loads(out))["ledger"]["found"] == 40, err


# ---- a shadow that fails -------------------------------------------------------------------------------------------------------------


def well(stack, port):
    """A shadow as it should be, there from now on."""
    return stack.enter_context(ended(Sink(listen=f"127.0.0.1:{port}")))


def dead(stack):
    """Bound, not listening: refused."""
    keep = stack.enter_context(socket.socket())
    keep.bind(("127.0.0.1", 0))
    port = keep.getsockname()[1]

    def mend():
        keep.close()
        well(stack, port)

    return port, mend


def dies(stack):
    """There at first, gone when there is load."""
    one = stack.enter_context(ended(Sink()))

    def mend():
        well(stack, one.port)

    threading.Timer(1, one.process.kill).start()
    return one.port, mend


def black_hole(stack):
    """Accepts nothing more than its backlog, which is full."""
    inside = stack.enter_context(contextlib.ExitStack())
    server = inside.enter_context(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for _ in range(4):
        one = inside.enter_context(socket.socket())
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(server.getsockname())
    port = server.getsockname()[1]

    def mend():
        inside.close()
        well(stack, port)

    return port, mend


def sink(*words):
    def begin(stack):
        one = stack.enter_context(ended(Sink(*words)))

        def mend():
            one.end(signal.SIGKILL)
            well(stack, one.port)

        return one.port, mend

    return begin


def stopped(stack):
    one = stack.enter_context(ended(Sink()))
    one.process.send_signal(signal.SIGSTOP)
    return one.port, lambda: one.process.send_signal(signal.SIGCONT)


#: What makes such a shadow: its port, and what makes it well.
FAILURES = {
    "dead": dead,
    "dies": dies,
    "black hole": black_hole,
    "a byte now and then": sink("--misbehave", "slow"),
    "resets": sink("--misbehave", "reset"),
    "never answers": sink("--misbehave", "never"),
    "never reads": sink("--misbehave", "stall"),
    "10 MB a reply": sink("--body", str(10 << 20)),
    "stopped": stopped,
}


def files(tap):
    return len(os.listdir(f"/proc/{tap.process.pid}/fd"))


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_production_does_not_notice(nginx, how):  # noqa: F811
    """Memory and open files stay, each request is accounted for, and when the shadow is well again it gets its copies, without a restart."""
    with contextlib.ExitStack() as stack:
        port, mend = FAILURES[how](stack)
        words = ("lo", "--port", nginx.port, "--to", f"http://127.0.0.1:{port}", "-p", 100, "--timeout", "1s", "--drain", "1s")
        with ended(Tap(*words)) as tap:
            before = nginx.requests()
            wrk(nginx, 2, 8)
            first = tap.rss
            wrk(nginx, 3, 8)
            last = tap.rss
            assert last <= first * 1.05 + (1 << 20), (first, last)
            assert files(tap) <= 30 + 64
            mend()

            def back():
                subprocess.run(["curl", "-s", "-o", "/dev/null", f"{nginx.url}/[1-20]"], check=True)
                tap.ask()
                line = tap.wait_for(f":{port}: sent")
                answered.append(int(re.search(r"answered ([\d,]+)", line)[1].replace(",", "")))
                return "breaker closed" in line and answered[-1] >= answered[0] + 20

            answered = []
            eventually(back, seconds=90, every=0.1)  # the breaker waits up to 45 s
            after = nginx.requests()
            time.sleep(0.3)
            report = balanced(tap.report())
    assert abs(report["ledger"]["found"] - (after - before)) <= 2 * 8 + 2
    assert report["packets"]["kernel_drops"] == 0


def test_replies_without_end_are_read_at_a_bounded_rate(nginx):  # noqa: F811
    """512 MB a second (BREATH_RATE): the machine is production's."""
    with ended(Sink("--body", str(10 << 20))) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--drain", "1s")) as tap:
        began = time.monotonic()
        wrk(nginx, 2, 8)
        report = balanced(tap.report())
        took = time.monotonic() - began
    assert report["ledger"]["answered"] >= 10
    assert 100 << 20 < report["targets"][f"http://{shadow.address}"]["bytes_received"] < 512e6 * took + (64 << 20)


def test_a_shadow_that_asks_for_rest_gets_it(nginx):  # noqa: F811
    """503 with Retry-After: nothing is sent for at least that long."""

    class Tired(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(503)
            self.send_header("Retry-After", "4")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tired)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with ended(Tap("lo", "--port", nginx.port, "--to", f"http://127.0.0.1:{server.server_port}", "-p", 100, "-c", 4)) as tap:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                subprocess.run(["curl", "-s", "-o", "/dev/null", f"{nginx.url}/[1-20]"], check=True)
            line = tap.wait_for("nothing is sent")
            assert float(re.search(r"for ([\d.]+) s", line)[1]) >= 3.9 and "429 or 503" in line
            balanced(tap.report())
    finally:
        server.shutdown()
        server.server_close()


def test_what_waits_for_a_shadow_that_pauses_is_bounded_by_bytes(nginx):  # noqa: F811
    """A few hundred small requests, one after the other, while the shadow stands still: all of them wait, though each was handed over alone."""
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "-c", 4, "--timeout", "60s", "--max-age", "60s", "--drain", "60s")
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/first")
            eventually(lambda: "found 1" in tap.ask(), every=0.2)
            shadow.process.send_signal(signal.SIGSTOP)
            for i in range(500):
                get(f"{nginx.url}/{i}")
                time.sleep(0.006)  # longer than a batch is open
            eventually(lambda: "found 501" in tap.ask(), every=0.2)
            shadow.process.send_signal(signal.SIGCONT)
            report = balanced(tap.report())
    assert report["ledger"]["by_reason"]["dropped"] == {} and report["ledger"]["answered"] == 501


def test_a_shadow_that_is_stopped_and_goes_on(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--timeout", "300ms", "-c", 8)

        def some(n=30):
            subprocess.run(["curl", "-s", "-o", "/dev/null", f"{nginx.url}/[1-{n}]"], check=True)

        with ended(Tap(*words)) as tap:
            some()
            shadow.process.send_signal(signal.SIGSTOP)
            for _ in range(8):
                some()
                time.sleep(0.1)
            tap.wait_for("nothing is sent")
            shadow.process.send_signal(signal.SIGCONT)

            def back():
                some(5)
                return "answers again" in tap.said or "closed" in [tap.ask(), tap.wait_for("breaker")][1]

            eventually(back, every=0.3)
            some()
            time.sleep(0.5)
            report = balanced(tap.report())
        assert report["ledger"]["by_reason"]["dropped"].get("breaker")
        assert json.dumps(report["ledger"])
