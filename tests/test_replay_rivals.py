"""The rows about sending and pacing of what users know from other tools, through the program: a real sink, real sockets, real clocks.

Rates are asserted with wide margins: a machine that is busy is late, and then the report must say so.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import endtoend
import pytest


def test_all_arrive_at_a_slow_sink_when_the_file_has_long_ended(tmp_path):
    """End of file is no end of sending: 20,000 requests, each answered after 20 ms."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 20_000, 500)
    with endtoend.Sink(tmp_path / "log", "--delay", "20ms") as sink:
        report = endtoend.run("--pace", "max", "--to", sink.url, capture)
        rows = sink.stop()
    assert endtoend.outcome(report) == (20_000, 20_000, 0, {})
    targets = [row["target"] for row in rows]
    assert len(targets) == len(set(targets)) == 20_000


def test_replies_with_bodies_do_not_cost_connections(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 3_000, 50)
    with endtoend.Sink(tmp_path / "log", "--body", "5000") as sink:
        report = endtoend.run("--pace", "max", "--connections", "8", "--to", sink.url, capture)
        sink.stop()
    (target,) = report["targets"].values()
    assert 1 <= target["connections"] <= 8 and report["ledger"]["answered"] == 3_000
    assert target["bytes_received"] > 3_000 * 5_000


def test_thousands_a_second_are_reached_or_the_report_says_late(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 10_000, 200)
    with endtoend.Sink(tmp_path / "log") as sink:
        began = time.monotonic()
        report = endtoend.run("--pace", "5000/s", "--to", sink.url, capture)
        took = time.monotonic() - began
        sink.stop()
    assert report["rate"]["asked"] == 5000 and report["ledger"]["answered"] == 10_000
    assert took > 1.9, "never early"
    assert report["rate"]["achieved"] == pytest.approx(5000, rel=0.05) or report["lag_us"]["max"] > 20_000


def test_what_limits_a_run_is_named(tmp_path):
    capture = endtoend.unique(tmp_path / "unique.pcap", 300, 300)
    with endtoend.Sink(tmp_path / "log", "--delay", "10ms") as sink:
        report = endtoend.run("--pace", "1000/s", "-c", "2", "--to", sink.url, capture)
        sink.stop()
    assert report["rate"]["limited_by"] == "connections"
    assert report["rate"]["achieved"] < 300 and report["lag_us"]["max"] > 500_000
    assert report["ledger"]["answered"] == 300


def test_a_reader_that_is_stopped_changes_nothing(tmp_path):
    """The process stands still for two seconds in the middle: capture time is the only clock of reading, nothing expires."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 2_000, 20)
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", "--json", "--pace", "1000/s", "--to", sink.url, capture)
        endtoend.until_logged(sink.log, 50)
        run.send_signal(signal.SIGSTOP)
        time.sleep(2)
        run.send_signal(signal.SIGCONT)
        out, _ = run.communicate(timeout=endtoend.PATIENCE_S)
        sink.stop()
    report = json.loads(out)
    assert report["ledger"]["found"] == report["ledger"]["answered"] == 2_000 and report["incomplete"] == {}
    assert report["lag_us"]["max"] > 1_000_000, "and it is said how late they were"


def test_the_same_target_twice_gets_two_copies(tmp_path):
    with endtoend.Sink(tmp_path / "log") as sink:
        report = endtoend.run("--pace", "max", "--limit", "10", "--to", sink.url, "--to", sink.url, endtoend.DEMO)
        assert len(sink.stop()) == 20
    assert report["ledger"]["fanout"] == 10 and sorted(report["targets"]) == [sink.url, f"{sink.url}#2"]


def test_a_session_that_closes_still_gets_its_report(tmp_path):
    """SIGHUP, as SIGTERM and SIGINT."""
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", "--report", tmp_path / "report.json", "--to", sink.url, endtoend.DEMO)
        endtoend.wait_until(lambda: sink.log.exists() and sink.log.stat().st_size > 0, "the first request")
        run.send_signal(signal.SIGHUP)
        run.communicate(timeout=endtoend.PATIENCE_S)
        assert run.returncode == 130
        sink.stop()
    report = json.loads((tmp_path / "report.json").read_text())
    endtoend.balanced(report)
    assert report["interrupted"] and 0 < report["ledger"]["sent"] < 225


def test_progress_on_a_terminal_and_nowhere_else(tmp_path):
    """Position, rates, lag, statuses on standard error when that is a terminal; results stay alone on standard output."""
    with endtoend.Sink(tmp_path / "log") as sink:
        words = [sys.executable, "-m", "replay", "run", "--pace", "4x", "--to", sink.url, str(endtoend.DEMO)]
        here, there = pty.openpty()
        done = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=there, env=os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"})
        os.close(there)
        shown = b""
        while True:
            try:
                piece = os.read(here, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        out = done.stdout.read().decode()
        done.stdout.close()
        assert done.wait() == 0
        os.close(here)
        sink.stop()
    text = shown.decode("utf-8", "replace")
    for word in (" of 9.36 s", "sent ", "/s of ", "lag ", "answered ", "(200:"):
        assert word in text, word
    assert out.startswith("found") and "\x1b" not in out
