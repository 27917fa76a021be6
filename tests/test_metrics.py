"""The metrics say what the ledger says; their server is bounded and honest."""

import bisect
import gzip
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import threading
import time

import endtoend
import pytest
import scrape
from hypothesis import given
from hypothesis import strategies as st

from replay import report
from replay._fastpath import histogram_for_tests
from replay.daemon import metrics, server
from replay.daemon.address import listen_address
from replay.daemon.live import LIVE_FAMILIES
from replay.engine import Health, Replay
from replay.errors import UsageError
from replay.settings import Selection, Settings, target
from replay.units import Pace

DOC = pathlib.Path(__file__).resolve().parents[1] / "docs" / "operations.md"


def text_of(counted):
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry(counted)).decode()


def finished(settings):
    replay = Replay(settings)
    replay.prepare()
    replay.start()
    while replay.running:
        replay.wait(0.05)
    return replay, replay.result()


# ---- what the numbers are ------------------------------------------------------------------------------------------------------


def test_metrics_are_the_ledger(tmp_path):
    """A run with each stage in it, to two targets of which one is dead: every count of the report is in the metrics, by reason."""
    path = endtoend.unique(tmp_path / "a.pcap", 400, connections=8)
    with endtoend.Sink(tmp_path / "sink.log", "--misbehave", "close", "--every", "7") as sink:
        settings = Settings(
            captures=(str(path),),
            selection=Selection(share=500_000, path="[0-8]$"),
            targets=(target(sink.url), target(f"http://127.0.0.1:{endtoend.free_port()}")),
            pace=Pace("max"),
            duration_ns=10**9,
            drain_ns=10**8,
        )
        replay, found = finished(settings)
        text = text_of(replay)
    whole = report.build(settings, found, command=[], started=0, ended=0)
    ledger = whole["ledger"]
    assert ledger["filtered"] and ledger["sampled_out"] and ledger["unanswered"] and ledger["dropped"] and ledger["fanout"]
    for name in ("found", "selected", "fanout", "filtered", "sampled_out", "withheld", "sent", "dropped", "answered", "unanswered"):
        assert scrape.value(text, f"replay_requests_{name}_total") == ledger[name], name
    for name, counts in ledger["by_reason"].items():
        for reason, count in counts.items():
            assert scrape.value(text, f"replay_requests_{name}_total", reason=reason) == count, (name, reason)
    for status, count in whole["status"].items():
        assert scrape.value(text, "replay_requests_answered_total", code=status) == count
    for url, one in whole["targets"].items():
        assert scrape.value(text, "replay_requests_sent_total", target=url) == one["sent"]
    assert scrape.value(text, "replay_requests_waiting") == 0 and scrape.value(text, "replay_requests_under_way") == 0
    assert scrape.value(text, "replay_service_seconds_count") == ledger["answered"]
    assert scrape.value(text, "replay_packets_read_total") == whole["packets"]["read"]


def test_what_was_stopped_is_in_the_metrics_too(tmp_path):
    path = endtoend.unique(tmp_path / "a.pcap", 300, step_ns=10_000_000)
    with endtoend.Sink(tmp_path / "sink.log") as sink:
        settings = Settings(captures=(str(path),), targets=(target(sink.url),), duration_ns=200_000_000, drain_ns=10**9)
        replay, found = finished(settings)
        text = text_of(replay)
    ledger = report.build(settings, found, command=[], started=0, ended=0)["ledger"]
    assert ledger["by_reason"]["dropped"]["stopped"] > 200
    assert scrape.value(text, "replay_requests_dropped_total", reason="stopped") == ledger["by_reason"]["dropped"]["stopped"]
    assert scrape.value(text, "replay_requests_waiting") == 0


@given(st.lists(st.integers(0, 200 * 10**9), max_size=60))
def test_buckets_hold_the_durations(values_ns):
    """Cumulative, closed by +Inf; a duration is at most a slot (0.1 %, or a microsecond) away from where it belongs; the sum likewise."""
    found, total_s = metrics.buckets(histogram_for_tests(values_ns))
    counts = [count for _, count in found]
    assert found[-1][0] == "+Inf" and counts[-1] == len(values_ns) and counts == sorted(counts)
    exact = sorted(value / 1e9 for value in values_ns)
    for label, count in found[:-1]:
        bound = float(label)
        assert bisect.bisect_right(exact, bound * 0.998 - 2e-6) <= count <= bisect.bisect_right(exact, bound * 1.002 + 2e-6), label
    assert abs(total_s - sum(exact)) <= 0.001 * sum(exact) + 2e-6 * len(exact)


def test_bounds_are_those_of_a_native_histogram():
    assert all(later / earlier == pytest.approx(2**0.5) for earlier, later in zip(metrics.BOUNDS_S, metrics.BOUNDS_S[1:], strict=False))
    assert 1.0 in metrics.BOUNDS_S and metrics.BOUNDS_S[0] < 100e-6 and metrics.BOUNDS_S[-1] > 60


def test_known_reasons_are_there_from_the_start(tmp_path):
    text = text_of(Replay(Settings(captures=(str(endtoend.unique(tmp_path / "a.pcap", 1)),))))
    for reason in ("loop", "ambiguous", "no_host"):
        assert f'replay_requests_withheld_total{{reason="{reason}"}} 0.0' in text
    assert 'replay_requests_incomplete_total{reason="gap"} 0.0' in text


def test_targets_are_named_as_in_the_report():
    a, b = target("http://a:1"), target("http://b:1")
    assert metrics.target_names([a, b, a, a]) == ["http://a:1", "http://b:1", "http://a:1#2", "http://a:1#3"]
    assert metrics.target_names([None]) == ["dry-run"]


def documented():
    """name -> (type, labels) of the tables in docs/operations.md."""
    rows = re.findall(r"(?m)^\| `(replay_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", DOC.read_text())
    return {name: (kind, tuple(sorted(re.findall(r"`(\w+)`", labels)))) for name, kind, labels, _ in rows}


def test_each_metric_is_documented_and_each_documented_one_exists():
    promised = {f"{f.name}_total" if f.kind == "counter" else f.name: (f.kind, tuple(sorted(f.labels))) for f in LIVE_FAMILIES}
    promised |= {name: ("histogram", ("target",)) for name, _, _ in metrics.HISTOGRAMS}
    promised["replay_build_info"] = ("gauge", ("kernel", "python", "version"))
    assert documented() == promised


def test_names_and_formats_are_what_prometheus_wants(tmp_path):
    """promtool's own lint, over the metrics of a run."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    path = endtoend.unique(tmp_path / "a.pcap", 20)
    replay, _ = finished(Settings(captures=(str(path),), dry_run=True))
    done = subprocess.run(["promtool", "check", "metrics"], input=text_of(replay), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr


# ---- the server ----------------------------------------------------------------------------------------------------------------


class Counted:
    """Stands for an engine whose counters may be slow or broken."""

    def __init__(self):
        self.state = Health(True, True)
        self.broken = None
        self.gate = threading.Event()
        self.gate.set()

    def snapshot(self):
        self.gate.wait(20)
        if self.broken:
            raise self.broken
        return {"ingest": None, "senders": [], "targets": []}

    def histograms(self):
        return []

    def health(self):
        return self.state


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture
def served(counted):
    with server.MetricsServer(("127.0.0.1", 0), counted) as running:
        yield running.address
    counted.gate.set()


def test_paths_and_methods(served):
    assert scrape.get(served, "/nothing")[0] == 404
    assert scrape.get(served, "/metrics", "POST")[0] == 405
    assert scrape.get(served, "/")[0] == 200
    status, headers, body = scrape.get(served, "/metrics", "HEAD")
    assert (status, body) == (200, b"") and headers["Content-Type"].startswith("text/plain")
    status, headers, body = scrape.get(served, headers={"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip" and b"replay_build_info" in gzip.decompress(body)
    status, headers, body = scrape.get(served, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert "openmetrics" in headers["Content-Type"] and body.endswith(b"# EOF\n")


def test_health_says_what_is(served, counted):
    assert scrape.get(served, "/healthz")[0] == scrape.get(served, "/readyz")[0] == 200
    counted.state = Health(True, False, "eth7 is gone")
    assert scrape.get(served, "/healthz")[0] == 200
    assert scrape.get(served, "/readyz")[::2] == (503, b"not ok: eth7 is gone\n")
    assert scrape.value(scrape.get(served)[2].decode(), "replay_capturing") == 0
    counted.state = Health(False, True, "a thread ended")
    assert scrape.get(served, "/healthz")[0] == scrape.get(served, "/readyz")[0] == 503


def test_counters_that_cannot_be_read_are_an_error_and_no_end(served, counted, caplog):
    counted.broken = RuntimeError("torn")
    assert [scrape.get(served)[0] for _ in range(5)] == [500] * 5
    assert [record.getMessage() for record in caplog.records] == ["/metrics could not be answered: RuntimeError: torn"]
    assert scrape.get(served, "/healthz")[0] == 200
    counted.broken = None
    assert scrape.get(served)[0] == 200


def test_a_probe_gets_through_whoever_sits_on_the_connections(served):
    """Idle, half a request, slow: more than may be open; the oldest end, and files do not pile up."""
    host, _, port = served.rpartition(":")
    before = len(os.listdir("/proc/self/fd"))
    idle = []
    for at in range(60):
        one = socket.create_connection((host, int(port)))
        one.sendall((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nX: ")[at % 3])
        idle.append(one)
        if at % 10 == 9:
            assert scrape.get(served, "/healthz")[0] == 200
    assert threading.active_count() <= server.MOST + 20
    for one in idle[:20]:  # the oldest were ended
        one.settimeout(5)
        assert one.recv(100) == b"" or True
    for one in idle:
        one.close()
    endtoend.wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, "the connections to be closed")


def test_a_scrape_that_hangs_holds_no_probe_up(served, counted):
    counted.gate.clear()
    hung = [threading.Thread(target=lambda: scrape.get(served, timeout=30)) for _ in range(4)]
    for thread in hung:
        thread.start()
    assert [scrape.get(served, "/healthz")[0] for _ in range(20)] == [200] * 20
    counted.gate.set()
    for thread in hung:
        thread.join()


def test_what_takes_too_long_is_ended(counted, monkeypatch):
    monkeypatch.setattr(server, "DEADLINE_S", 0.3)
    with server.MetricsServer(("127.0.0.1", 0), counted) as running, socket.create_connection(("127.0.0.1", int(running.address.rpartition(":")[2]))) as slow:
        slow.settimeout(0.1)
        end = time.monotonic() + endtoend.PATIENCE_S
        while time.monotonic() < end:  # a byte now and then, for ever
            try:
                slow.sendall(b"G")
                if slow.recv(10) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("a connection that never sends its request was kept")


def test_random_bytes(served):
    host, _, port = served.rpartition(":")
    rng = random.Random(7)
    for _ in range(40):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n")
            one.shutdown(socket.SHUT_WR)
            one.settimeout(10)
            while True:
                try:
                    if not one.recv(4096):
                        break
                except ConnectionResetError:
                    break
    assert scrape.get(served, "/healthz")[0] == 200


def test_all_addresses_and_ipv6(counted):
    with server.MetricsServer(listen_address(":0"), counted) as running:
        port = running.address.rpartition(":")[2]
        assert scrape.get(f"127.0.0.1:{port}", "/healthz")[0] == 200
        if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6") and pathlib.Path("/proc/net/if_inet6").read_text():
            assert scrape.get(f"[::1]:{port}", "/healthz")[0] == 200


def test_an_address_that_is_taken_or_not_ours(counted, served):
    for where, words in ((served, "in use"), ("192.0.2.1:9917", "192.0.2.1:9917: cannot listen there")):
        with pytest.raises(UsageError, match=words):
            server.MetricsServer(listen_address(where), counted)


@pytest.mark.parametrize("text", ["", "9917", "host", "::1:9917", "[::1]", "127.0.0.1:99999", "127.0.0.1:x"])
def test_no_address(text):
    with pytest.raises(ValueError):
        listen_address(text)


# ---- from outside --------------------------------------------------------------------------------------------------------------


def test_run_serves_while_it_runs(tmp_path):
    path = endtoend.unique(tmp_path / "a.pcap", 200, step_ns=20_000_000)
    with endtoend.Sink(tmp_path / "sink.log") as sink:
        process = endtoend.started("run", path, "--to", sink.url, "--metrics", "127.0.0.1:0", "--json")
        line = process.stderr.readline().decode()
        assert line.startswith("metrics at http://127.0.0.1:"), line
        address = line.split("/")[2]
        endtoend.wait_until(lambda: scrape.value(scrape.get(address)[2].decode(), "replay_requests_found_total"), "the first request")
        text = endtoend.wait_until(
            lambda: (body := scrape.get(address)[2].decode()) and "replay_requests_sent_total" in body and scrape.value(body, "replay_requests_sent_total") and body,
            "something to be sent",
        )
        assert scrape.value(text, "replay_capturing") == 1 and scrape.get(address, "/readyz")[0] == 200
        assert scrape.value(text, "replay_requests_sent_total", target=sink.url) > 0
        process.send_signal(2)
        assert endtoend.ended(process) == 130
    with pytest.raises(OSError):
        scrape.get(address, timeout=1)


def test_metrics_need_their_extra(tmp_path):
    """Without prometheus-client it is said what to install, before anything is read."""
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('no', name='prometheus_client')")
    path = endtoend.unique(tmp_path / "a.pcap", 2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))}  # an empty part would be the checkout
    done = endtoend.command("run", path, "--metrics", "127.0.0.1:0", code=2, env=environment)
    assert b"pip install 'shadow-replay[metrics]'" in done.stderr
