"""Servers that start anew, fail and vanish, and people who interrupt: the books balance, nothing comes twice, the exit code is honest."""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import endtoend
import pytest

QUICK_S = 0.5  # 0.2 is what is promised; machines that share their cores get more


@pytest.fixture(scope="module", autouse=True)
def long_ones(tmp_path_factory):
    """Runs that last ten seconds and more, under way while the others are tested: (report file, process)."""
    folder = tmp_path_factory.mktemp("long")
    capture = endtoend.unique(folder / "unique.pcap", 1000, 4)
    sink = endtoend.Sink(folder / "sink.log")
    slow = endtoend.Sink(folder / "slow-sink.log", "--misbehave", "slow")
    names = {"down": f"http://127.0.0.1:{endtoend.free_port()}", "vanishes": sink.url, "slow": slow.url}
    captures = {"slow": endtoend.unique(folder / "three.pcap", 3, 3)}
    runs = {
        name: (folder / name, endtoend.started("run", "--quiet", "--pace", "200/s", "--report", folder / name, "--access-log", folder / f"{name}.log", "--to", url, captures.get(name, capture)))
        for name, url in names.items()
    }
    endtoend.until_logged(sink.log, 80)
    sink.stop(signal.SIGKILL)
    yield runs
    for _, process in runs.values():
        if process.poll() is None:
            process.kill()
        if not process.stdout.closed:
            process.communicate()
    slow.stop()


# ---- a server that starts anew -----------------------------------------------------------------------------------------------


class Restarting:
    """One address, one server after the other."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.port, self.count = kind, folder, endtoend.free_port(), 0
        self.start()

    def start(self):
        self.count += 1
        if self.kind == "nginx":
            self.server = endtoend.Nginx(self.folder / "nginx", self.port)
        elif self.kind == "sink":
            self.server = endtoend.Sink(self.folder / f"{self.count}.log", port=self.port)
        else:
            self.server = endtoend.LoggingServer(self.folder / "targets", self.port)

    def stop(self, number):
        if self.kind == "nginx":
            self.server.stop(number)
            self.server.output.close()
        else:
            self.server.stop(number)

    def logged(self):
        if self.kind == "nginx":
            return [json.loads(line)["target"] for line in self.server._lines()]
        if self.kind == "sink":
            return [json.loads(line)["target"] for each in range(self.count) for line in (self.folder / f"{each + 1}.log").read_text().splitlines()]
        return (self.folder / "targets").read_text().splitlines()


PIPELINED = ("--pipeline", "4", "-c", "2")


@pytest.mark.parametrize(
    "kind, number, how",
    [
        ("logging", signal.SIGKILL, ()), ("logging", signal.SIGKILL, PIPELINED), ("sink", signal.SIGTERM, PIPELINED), ("sink", signal.SIGKILL, ()),
        ("nginx", signal.SIGQUIT, ()), ("nginx", signal.SIGQUIT, PIPELINED), ("nginx", signal.SIGKILL, PIPELINED),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else "pipelined" if value else "plain"),
)  # fmt: skip
@pytest.mark.parametrize("driver", ["auto", "epoll"])
def test_a_server_that_starts_anew_in_the_middle(tmp_path, kind, number, how, driver):
    """answered ⊆ logged ⊆ sent, and nothing twice. A server that logs after it answered lacks lines when it is killed: then logged ⊆ sent alone."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 400, 5)
    server = Restarting(kind, tmp_path)
    run = endtoend.started(
        "run", "--json", "--quiet", "--pace", "400/s", "--driver", driver, *how, "--access-log", tmp_path / "run.log", "--to", f"http://127.0.0.1:{server.port}", capture
    )
    for _ in range(2):
        time.sleep(0.35)
        server.stop(number)
        server.start()
    out, errors = run.communicate(timeout=endtoend.PATIENCE_S)
    assert run.returncode == 0, errors.decode()
    report = endtoend.balanced(json.loads(out))
    server.stop(number if kind != "nginx" else signal.SIGQUIT)
    ledger, lines = report["ledger"], endtoend.access_log(tmp_path / "run.log")
    answered = {target for target, status, flag, _ in lines if status == 200 and flag == "-"}
    sent = {target for target, _, _, was_sent in lines if was_sent}
    assert ledger["selected"] == len(lines) == len({line[0] for line in lines}) == 400
    assert (len(sent), len(answered)) == (ledger["sent"], ledger["answered"])
    logged = collections.Counter(server.logged())
    assert set(logged.values()) == {1}, "twice: " + str([target for target, n in logged.items() if n > 1])
    assert logged.keys() <= sent
    if (kind, number) not in (("sink", signal.SIGKILL), ("nginx", signal.SIGKILL)):
        assert answered <= logged.keys()
    assert ledger["answered"] > 300, ledger
    assert set(ledger["by_reason"]["unanswered"]) <= {"reset", "closed"} and not ledger["dropped"]


# ---- servers that misbehave --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, reasons",
    [
        (("--misbehave", "close"), {"closed"}),
        (("--misbehave", "reset"), {"reset"}),
        (("--misbehave", "never"), {"timeout"}),
        (("--misbehave", "slow"), {"timeout"}),
        (("--misbehave", "stall"), {"timeout"}),
        (("--misbehave", "close", "--every", "3"), {"closed"}),
        (("--misbehave", "reset", "--every", "3"), {"reset"}),
        (("--misbehave", "never", "--every", "3"), {"timeout"}),
        (("--delay", "2s"), {"timeout"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("driver", ["auto", "epoll"])
def test_a_sink_that_misbehaves(tmp_path, options, reasons, driver):
    pipeline = "8" if "--every" in options else "1"
    capture = endtoend.unique(tmp_path / "unique.pcap", 60, 30)
    with endtoend.Sink(tmp_path / "log", *options) as sink:
        began = time.monotonic()
        report = endtoend.run("--pace", "max", "--timeout", "300ms", "--pipeline", pipeline, "--driver", driver, "--to", sink.url, capture)
        took = time.monotonic() - began
        lines = sink.stop()
    sent, answered, dropped, unanswered = endtoend.outcome(report)
    assert set(unanswered) == reasons and dropped == 0 and sent == 60
    assert (answered == 0) == ("--every" not in options)
    assert max(collections.Counter(line["target"] for line in lines).values(), default=0) <= 1
    assert took < 5


def test_the_drain_ends(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 3, 3)
    with endtoend.Sink(tmp_path / "log", "--misbehave", "never") as sink:
        began = time.monotonic()
        report = endtoend.run("--pace", "max", "--drain", "200ms", "--to", sink.url, capture)
    assert endtoend.outcome(report) == (3, 0, 0, {"stopped": 3})
    assert time.monotonic() - began < 2


# ---- interruptions -----------------------------------------------------------------------------------------------------------


def interrupted(after_s, number, *arguments, word=b"planned", stdin=None):
    """(report, seconds from the signal to the end) of a run that is told to stop so long after it said that it begins."""
    run = endtoend.started("run", "--json", *arguments, stdin=stdin)
    try:
        for line in run.stderr:
            if word in line:
                break
        time.sleep(after_s)
        began = time.monotonic()
        run.send_signal(number)
        out, errors = run.communicate(timeout=endtoend.PATIENCE_S)
        took = time.monotonic() - began
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    assert run.returncode == 130, (run.returncode, errors.decode())
    assert b"Traceback" not in errors
    return endtoend.balanced(json.loads(out)), took


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda value: value.name)
@pytest.mark.parametrize("after_s", [0, 0.02, 0.1, 0.5])
def test_an_interruption(tmp_path, after_s, number):
    capture = endtoend.unique(tmp_path / "unique.pcap", 2000, 5)
    with endtoend.Sink(tmp_path / "log") as sink:
        report, took = interrupted(after_s, number, "--pace", "500/s", "--to", sink.url, capture)
        lines = sink.stop()
    assert took < QUICK_S
    sent, answered, _, unanswered = endtoend.outcome(report)
    assert sent < 1900 and set(unanswered) <= {"stopped"}
    assert answered <= len(lines) <= sent
    assert set(report["ledger"]["by_reason"]["dropped"]) <= {"stopped"}
    assert after_s < 0.5 or answered > 100


@pytest.mark.parametrize("pace, driver", [("max", "auto"), ("500/s", "auto"), ("max", "epoll")])
def test_an_interruption_of_the_drain(tmp_path, pace, driver):
    capture = endtoend.unique(tmp_path / "unique.pcap", 100, 100)
    with endtoend.Sink(tmp_path / "log", "--misbehave", "never") as sink:
        report, took = interrupted(0.6, signal.SIGINT, "--pace", pace, "--driver", driver, "--to", sink.url, capture)
    assert took < QUICK_S
    assert endtoend.outcome(report) == (100, 0, 0, {"stopped": 100})


@pytest.mark.parametrize("loop", [1, 20])
@pytest.mark.parametrize("slow", [0, 1])
def test_an_interruption_while_one_of_two_targets_is_slow(tmp_path, slow, loop):
    """Reading waits for the slow one: what is cut off had its copy for one target and not for the other."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 5000, 20)
    with endtoend.Sink(tmp_path / "quick") as quick, endtoend.Sink(tmp_path / "late", "--delay", "20ms") as late:
        targets = [late.url, quick.url] if slow == 0 else [quick.url, late.url]
        report, took = interrupted(0.5, signal.SIGINT, "--pace", "max", "-c", "2", "--loop", loop, "--to", targets[0], "--to", targets[1], capture)
        lines = len(quick.stop()) + len(late.stop())
    assert took < QUICK_S
    assert report["ledger"]["answered"] <= lines <= report["ledger"]["sent"]
    assert set(report["ledger"]["by_reason"]["dropped"]) == {"stopped"}


def test_an_interruption_while_the_target_is_down(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 100, 5)
    report, took = interrupted(0.3, signal.SIGINT, "--pace", "max", "--to", f"http://127.0.0.1:{endtoend.free_port()}", capture)
    assert took < QUICK_S
    sent, _, dropped, _ = endtoend.outcome(report)
    assert sent == 0 and dropped == report["ledger"]["selected"] and set(report["ledger"]["by_reason"]["dropped"]) == {"stopped"}


def test_an_interruption_while_a_server_never_reads(tmp_path):
    """What the kernel took stays sent; the rest of it is never written."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 40, 4, method=b"PUT", body=bytes(400_000))
    with endtoend.Sink(tmp_path / "log", "--misbehave", "stall") as sink:
        report, took = interrupted(0.5, signal.SIGINT, "--pace", "max", "--to", sink.url, capture)
    assert took < QUICK_S
    sent, answered, _, unanswered = endtoend.outcome(report)
    assert answered == 0 < sent and unanswered == {"stopped": sent}


def test_an_interruption_while_standard_input_is_silent(tmp_path):
    reading, writing = os.pipe()
    try:
        os.write(writing, endtoend.unique(tmp_path / "unique.pcap", 20).read_bytes()[:3000])
        with endtoend.Sink(tmp_path / "log") as sink:
            report, took = interrupted(0.3, signal.SIGINT, "--pace", "max", "--to", sink.url, "-", word=b"cannot be read ahead", stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert took < QUICK_S
    assert report["ledger"]["sent"] == report["ledger"]["answered"]


@pytest.mark.parametrize("after_s", [0.02, 0.06, 0.1, 0.15, 0.2])
def test_an_interruption_of_the_start(tmp_path, after_s):
    """Also before anything can be said it ends at once, with nothing sent or a report of what was."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 2000)
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", "--json", "--pace", "500/s", "--to", sink.url, capture)
        time.sleep(after_s)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=endtoend.PATIENCE_S)
        took = time.monotonic() - began
        lines = sink.stop()
    assert took < QUICK_S + 0.3
    # In its first moments the process is Python's alone, which has codes of its own.
    assert run.returncode == 130 or (run.returncode != 0 and not out), (run.returncode, errors.decode())
    if out:
        assert len(lines) <= endtoend.balanced(json.loads(out))["ledger"]["sent"]
    else:
        assert not lines


# ---- output ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_standard_output_of_a_run_is_closed(tmp_path, options):
    capture = endtoend.unique(tmp_path / "unique.pcap", 100)
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", *options, "--pace", "max", "--report", tmp_path / "report", "--to", sink.url, capture)
        run.stdout.close()
        errors = run.stderr.read().decode()
        run.stderr.close()
        assert run.wait(endtoend.PATIENCE_S) == 0, errors
        assert len(sink.stop()) == 100
    assert "standard output was closed" in errors and "Traceback" not in errors and "Exception ignored" not in errors
    assert endtoend.balanced(json.loads((tmp_path / "report").read_text()))["ledger"]["answered"] == 100


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_the_reader_of_show_leaves(tmp_path, options):
    capture = endtoend.unique(tmp_path / "unique.pcap", 3000)
    show = endtoend.started("show", *options, capture)
    head = subprocess.Popen(["head", "-1"], stdin=show.stdout, stdout=subprocess.PIPE)
    show.stdout.close()
    errors = show.stderr.read().decode()
    show.stderr.close()
    line = head.communicate(timeout=endtoend.PATIENCE_S)[0]
    assert show.wait(endtoend.PATIENCE_S) == 0, errors
    assert b"/0" in line and line.count(b"\n") == 1
    assert errors == "" or errors.startswith("found"), errors


@pytest.mark.parametrize("what", ["no folder", "a folder", "a file as folder"])
@pytest.mark.parametrize("option", ["--report", "--access-log"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_sent(tmp_path, option, what):
    (tmp_path / "file").write_text("")
    path = {"no folder": tmp_path / "none" / "x.json", "a folder": tmp_path, "a file as folder": tmp_path / "file" / "x"}[what]
    capture = endtoend.unique(tmp_path / "unique.pcap", 10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        done = endtoend.command("run", option, path, "--to", f"http://127.0.0.1:{server.getsockname()[1]}", capture, code=2)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert option in done.stderr.decode() and str(path) in done.stderr.decode()


def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 2000)
    with endtoend.Sink(tmp_path / "log") as sink:
        done = endtoend.command("run", "--json", "--pace", "max", "--access-log", "/dev/full", "--to", sink.url, capture)
    assert endtoend.balanced(json.loads(done.stdout))["ledger"]["answered"] == 2000
    assert b"No space left" in done.stderr and b"Traceback" not in done.stderr


# ---- the long ones -----------------------------------------------------------------------------------------------------------


def ended(long_ones, name, code):
    path, process = long_ones[name]
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors.decode()
    return endtoend.balanced(json.loads(path.read_text())), endtoend.access_log(path.with_suffix(".log"))


def test_a_target_that_is_down(long_ones):
    report, lines = ended(long_ones, "down", 5)
    assert report["ledger"]["selected"] == 1000 == len(lines)
    assert report["ledger"]["by_reason"]["dropped"] == {"target_down": 1000} and report["ledger"]["sent"] == 0


def test_a_loop_does_not_go_on_without_a_target(tmp_path):
    """A billion requests would be handed out to be dropped."""
    words = ("--to", f"http://127.0.0.1:{endtoend.free_port()}", "--pace", "max", "--loop", 10_000_000, "--report", tmp_path / "r.json")
    endtoend.command("run", endtoend.DEMO, *words, code=5)
    report = endtoend.balanced(json.loads((tmp_path / "r.json").read_text()))
    assert report["never_connected"] and report["ledger"]["sent"] == 0 and report["passes"] < 1_000_000
    assert report["ledger"]["by_reason"]["dropped"].keys() <= {"target_down", "stopped"}


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_target_that_is_down_when_a_short_run_ends(tmp_path, silent):
    """--duration ends it before the target was given up: exit 5 all the same, and the reason."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        port = server.getsockname()[1]
        if silent:  # the backlog is full, so that a connection is neither taken nor refused
            for _ in range(4):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
        else:
            server.close()
        done = endtoend.command("run", endtoend.DEMO, "--to", f"http://127.0.0.1:{port}", "--pace", "max", "--duration", "500ms", "--report", tmp_path / "r.json", code=5)
    yet = f"http://127.0.0.1:{port} is not reachable yet (Connection refused), trying for up to 10 s\n"
    assert done.stderr.decode().count("not reachable yet") == done.stderr.decode().count(yet) == (0 if silent else 1)
    report = endtoend.balanced(json.loads((tmp_path / "r.json").read_text()))
    assert report["ledger"]["by_reason"]["dropped"] == {"stopped": 225} and report["never_connected"]
    assert f"no connection to http://127.0.0.1:{port} succeeded ({'no answer' if silent else 'Connection refused'})" in done.stdout.decode()


def test_a_target_that_goes_away_for_good(long_ones):
    report, lines = ended(long_ones, "vanishes", 0)
    sent, answered, dropped, unanswered = endtoend.outcome(report)
    assert report["ledger"]["selected"] == 1000 == len(lines)
    assert 50 < answered <= sent < 400 and set(unanswered) <= {"reset", "closed"}
    assert report["ledger"]["by_reason"]["dropped"] == {"target_down": dropped}


def test_a_slow_reply_is_waited_for(long_ones):
    """A byte each 100 ms."""
    report, _ = ended(long_ones, "slow", 0)
    assert endtoend.outcome(report) == (3, 3, 0, {}) and report["service_us"]["p50"] > 2e6


def test_a_stop_before_the_start_stops():
    """A signal may come between the handler and the first line of the run."""
    from replay.engine import Replay
    from replay.settings import Settings, target

    replay = Replay(Settings(captures=(str(endtoend.DEMO),), targets=(target("127.0.0.1:9"),)))
    replay.stop()
    began = time.monotonic()
    replay.prepare()
    replay.start()
    while replay.running:
        replay.wait(0.05)
    found = replay.result()
    assert time.monotonic() - began < QUICK_S and found["interrupted"]
    assert found["ingest"]["found"] == 0 and found["senders"][0]["sent"] == 0
