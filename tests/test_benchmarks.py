"""Each benchmark runs, with a tiny input, and prints the JSON it promises. Nothing is timed here."""

import importlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest.mock
import xml.etree.ElementTree

import dpkt
import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def bench(name, *arguments, tmp_path):
    """The result of a benchmark, as JSON; its table is made from the same values, so it is asked for once as well."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--json", *arguments], capture_output=True, text=True, timeout=120, env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONSAFEPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["machine"]["cores"] and "commit" in result and result["question"]
    for one in result["bars"]:
        assert one["verdict"] in ("stretch", "reach", "in part", "missed", "not measured")
        assert (one["min"] is None) == (one["verdict"] == "not measured") == ("why" in one)
    return result


@pytest.fixture(scope="module")
def generate():
    return module("generate")


@pytest.fixture(scope="module")
def measure():
    return module("measure")


def module(name):
    """A module of benchmarks/, which is not a package."""
    with unittest.mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        return importlib.import_module(name)


def test_parse(tmp_path):
    result = bench("bench_parse.py", "--requests", "2000", "--connections", "7", "--rounds", "2", tmp_path=tmp_path)
    assert result["requests"] == 2000
    ours = result["measured"]["replay"]["ns CPU a request"]
    assert ours["rounds"] == 2 and 0 < ours["min"] <= ours["median"]
    assert {"dpkt", "plain Python", "httptools on streams"} <= set(result["measured"])


def test_parse_read_through_a_pipe(tmp_path):
    result = bench("bench_parse.py", "--requests", "500", "--connections", "7", "--rounds", "1", "--peers", "none", "--engine", "pipe", tmp_path=tmp_path)
    assert result["engine"] == "pipe" and result["measured"]["replay"]["requests"] == 500


def test_routes(tmp_path):
    result = bench("bench_routes.py", "--requests", "2000", "--connections", "7", "--rounds", "1", tmp_path=tmp_path)
    assert set(result["measured"]) == {"no policy", "1 route", "100 routes"} and result["requests"] == 2000


def test_first_request(tmp_path):
    result = bench("bench_first_request.py", "--requests", "300", "--rounds", "1", tmp_path=tmp_path)
    assert result["requests"] == 300 and result["first_request_ms"]["min"] > 0


def test_memory(tmp_path):
    result = bench("bench_memory.py", "--requests", "50", "700", tmp_path=tmp_path)
    assert [(run["how"], run["requests"]) for run in result["runs"]] == [(how, requests) for requests in (50, 700) for how in ("file", "pipe", "sending")]
    assert all(run["peak_mb"]["min"] > 1 for run in result["runs"])


needs_nginx = pytest.mark.skipif(not (shutil.which("nginx") or os.path.exists("/usr/sbin/nginx")), reason="needs nginx")


@needs_nginx
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")
def test_send(tmp_path):
    result = bench("bench_send.py", "--requests", "2000", "--connections", "50", "--seconds", "1", "--rounds", "1", tmp_path=tmp_path)
    assert result["measured"]["replay"]["requests"]["min"] == 2000
    assert [one["verdict"] != "not measured" for one in result["bars"]] == [True, True]


@needs_nginx
@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("h2load")), reason="needs wrk and h2load")
def test_pipeline(tmp_path):
    result = bench("bench_pipeline.py", "--requests", "4000", "--connections", "50", "--seconds", "1", "--rounds", "1", "--depth", "4", tmp_path=tmp_path)
    requests = {name: values["requests"]["min"] for name, values in result["measured"].items()}
    assert requests.pop("wrk") > 0
    assert requests == {"replay": 4000, "replay, read": 1000, "h2load": 1000}


def test_disorder(tmp_path):
    result = bench("bench_disorder.py", "--requests", "300", "--connections", "20", "--rounds", "1", tmp_path=tmp_path)
    assert [one["what"] for one in result["bars"]] == [f"{name}, of clean" for name in ("disordered", "duplicated", "overlapping", "cut")]
    assert result["measured"]["a byte a packet"]["packets"] > 10 * result["measured"]["clean"]["packets"] / 30


def test_threads(tmp_path):
    result = bench("bench_threads.py", "--requests", "2000", "--connections", "20", "--rounds", "1", tmp_path=tmp_path)
    assert result["bars"][0]["what"] == "two cores, of one"


def test_start(tmp_path):
    result = bench("bench_start.py", "--rounds", "2", tmp_path=tmp_path)
    assert result["measured"]["replay --version"]["ms"]["min"] > result["measured"]["python -c pass"]["ms"]["min"] > 0


@needs_nginx
def test_chain(tmp_path):
    result = bench("bench_chain.py", "--requests", "500", "--connections", "20", "--seconds", "1", "--rounds", "1", tmp_path=tmp_path)
    assert set(result["stages"]) == {"1 under way", "16 under way"}
    for stages in result["stages"].values():
        assert [name for name, _ in stages] == ["start-up", "file", "read and frame", "select, rewrite", "send, user", "send, kernel"]


@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("h2load")), reason="needs wrk and h2load")
def test_sink(tmp_path):
    result = bench("bench_sink.py", "--requests", "2000", "--connections", "20", "--seconds", "1", "--rounds", "1", "--depths", "2", "8", tmp_path=tmp_path)
    assert {(one["tool"], one["depth"]) for one in result["depths"]} == {("replay", 2), ("wrk", 2), ("replay", 8), ("wrk", 8), ("h2load", 8)}


@needs_nginx
@pytest.mark.skipif(not shutil.which("ab"), reason="needs ab")
def test_connect(tmp_path):
    result = bench("bench_connect.py", "--requests", "300", "--rounds", "1", tmp_path=tmp_path)
    assert result["measured"]["replay"]["connections"]["min"] >= 300


@pytest.mark.slow  # each tool is started and ended, seven times
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for AF_PACKET")
@pytest.mark.skipif(not all(map(shutil.which, ("wrk", "nginx", "tcpdump"))), reason="needs wrk, nginx and tcpdump")
def test_tap(tmp_path):
    result = bench("bench_tap.py", "--seconds", "1", "--rounds", "1", "--rate", "300", tmp_path=tmp_path)
    assert {"alone", "tap, rewrites", "tcpdump, null"} <= result["measured"].keys() and result["measured"]["100 % of 300/s"]["sent/s"]["min"] > 0


def test_ring(tmp_path):
    result = bench("bench_ring.py", "--rounds", "1", "--blocks", "4", tmp_path=tmp_path)
    assert result["measured"]["all are rewritten"]["requests"]["min"] > 1000


@pytest.mark.slow  # each tap is started and ended, ten times
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for AF_PACKET")
@pytest.mark.skipif(not all(map(shutil.which, ("wrk", "nginx"))), reason="needs wrk and nginx")
def test_tap_kernel(tmp_path):
    result = bench("bench_tap_kernel.py", "--seconds", "1", "--rounds", "1", "--runs", "1", tmp_path=tmp_path)
    measured = result["measured"]
    assert measured["10 kB: all, heads of replies"]["bytes copied a request"]["max"] < 2000 < 9000 < measured["10 kB: all, replies whole"]["bytes copied a request"]["min"]
    assert measured["small: all, no replies"]["packets a request"]["max"] < measured["small: all, replies whole"]["packets a request"]["min"]


@pytest.mark.slow  # tcpdump hands over what it has after a second, in each of five runs
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for tcpdump and a network namespace")
@pytest.mark.skipif(not all(map(shutil.which, ("tcpdump", "tcpreplay", "ip"))), reason="needs tcpdump, tcpreplay and ip")
def test_pacing(tmp_path):
    """Each request is found in the recording, whatever the sender says of itself; tcpreplay's too."""
    result = bench("bench_pacing.py", "--seconds", "1", "--rates", "1000", "--connections", "20", "--rounds", "1", tmp_path=tmp_path)
    measured = result["measured"]
    assert {"replay 1,000/s", "spin 1,000/s", "stall 1,000/s", "replay, as captured", "tcpreplay, as captured"} <= set(measured)
    assert measured["stall 1,000/s"]["pause ms"]["min"] > 20
    assert all("not measured" != one["verdict"] for one in result["bars"])


def test_when_a_stall_is_caught_up(monkeypatch):
    """A pause of 50 ms after the 100th of 10,000 requests a second, behind which 20 come each ms; a hiccup of 5 ms much later is none of it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lateness
    import numpy

    numbers = numpy.arange(5_000)
    due_us = numbers * 100.0
    began_us = due_us[100] + 50_000
    quickest_us = began_us + (numbers - 100) * 50.0
    sent_us = numpy.where(numbers >= 100, numpy.maximum(due_us, quickest_us), due_us)
    sent_us[4_000:4_050] = numpy.maximum(due_us[4_000:4_050], due_us[4_049])
    pause_ms, caught_ms = lateness.caught_up(numbers, (sent_us * 1e3).astype("i8"), 10_000)
    assert pause_ms == pytest.approx(50.1, abs=0.2)
    assert caught_ms == pytest.approx(49, abs=0.5)         # (50 - 1) ms of delay, half a ms of it gained in each


# ---- the page ----------------------------------------------------------------------------------------------------------------


def test_results_are_written(tmp_path):
    """All bars of what ran stand in the page; what fails is told as failed, and the exit code says so; a second run keeps the first one's."""

    def results(*arguments, code=0, **more):
        command = [sys.executable, BENCHMARKS / "results.py", "--quick", "--into", tmp_path / "out", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONSAFEPATH": ""} | more)
        assert done.returncode == code, (done.stdout, done.stderr)
        return (tmp_path / "out" / "RESULTS.md").read_text()

    assert "| [start](#start) | replay --version |" in results("--only", "start")
    both = results("--only", "disorder")
    assert "cut, of clean" in both and "replay --version" in both and "these figures mean nothing" in both
    assert "Failed: " in results("--only", "first_request", code=1, PYTHONPATH=str(fake_replay(tmp_path)))
    assert "there is no benchmark nonsense" in subprocess.run([sys.executable, BENCHMARKS / "results.py", "--only", "nonsense"], capture_output=True, text=True, env=os.environ | {"PYTHONSAFEPATH": ""}).stderr


def fake_replay(folder):
    """A package of that name that finds no requests."""
    (folder / "replay").mkdir()
    (folder / "replay" / "__init__.py").write_text("")
    (folder / "replay" / "__main__.py").write_text("raise SystemExit(7)\n")
    return folder


def test_plots_are_svg_for_light_and_dark():
    plots = module("plots")
    bars = plots.stacked("a <title>", "and more", [("one", [("x", 1.0), ("y", 0.0)]), ("two", [("y", 3.0)])], "us")
    lines = plots.lines("b", "and more", ["1", "16"], [("replay", [100.0, 2e6], 0, False), ("wrk", [None, 5.0], 1, True)], "/s", [("bar", 1e6)])
    for drawn in (bars, lines):
        root = xml.etree.ElementTree.fromstring(drawn)
        assert root.tag.endswith("svg") and "prefers-color-scheme: dark" in drawn
        for one in root.iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
                assert 0 <= float(one.get(name, 0)) <= 900
    assert "2M" in lines and "3 us" in bars


# ---- what they measure with --------------------------------------------------------------------------------------------------


def requests_in(data):
    """(order of requests as numbers, sizes of their first frames, clients) of a capture, read by dpkt; checksums and time are looked at."""
    numbers, sizes, last, clients = [], [], 0, set()
    for ts, frame in dpkt.pcap.Reader(io.BytesIO(data)):
        assert ts >= last
        last = ts
        ip = dpkt.ethernet.Ethernet(frame).data
        assert ip.len == len(frame) - 14
        assert dpkt.in_cksum(frame[14:34]) == 0
        if ip.data.dport == 80 and ip.data.data[:4] in (b"GET ", b"POST"):
            numbers.append(int(ip.data.data.partition(b"customers/")[2][:8]))
            sizes.append(len(frame))
            clients.add((ip.src, ip.data.sport))
    return numbers, sizes, clients


def made(generate, **how):
    into = io.BytesIO()
    written, requests = generate.write(into, **how)
    assert written == len(into.getvalue())
    return into.getvalue(), requests


def test_the_generated_capture_is_what_it_says(generate):
    """Read back by dpkt: requests, bodies, sizes, time going forward, one address a connection and copy."""
    data, requests = made(generate, requests=300, connections=11, seed=3, most=1_500_000)
    assert requests % 300 == 0 and requests >= 600
    numbers, sizes, clients = requests_in(data)
    assert numbers == list(range(300)) * (requests // 300)
    assert len(clients) == 11 * requests // 300
    gets = sorted(sizes)[: len(sizes) // 2]
    assert 650 < sum(gets) / len(gets) < 750
    assert 2_000 < len(data) / requests < 2_400
    assert 0.10 < data.count(b"POST /api") / requests < 0.20
    assert made(generate, requests=300, connections=11, seed=3, most=1_500_000)[0] == data


def test_a_connection_for_each_request(generate):
    data, requests = made(generate, requests=50, one_each=True)
    numbers, _, clients = requests_in(data)
    assert numbers == list(range(50)) and len(clients) == 50 == requests


@pytest.mark.parametrize("variant", ["disordered", "duplicated", "overlapping", "cut", "bytes"])
def test_variants_hold_the_same_requests(generate, tmp_path, variant):
    """Another order, more or other packets, the same requests: found by `replay show`, byte by byte in their headers and by digest in their bodies."""
    rows = []
    clean, few = made(generate, requests=120, connections=9, seed=5), 120
    data, requests = made(generate, requests=120, connections=9, seed=5, variant=variant)
    assert requests == few and data != clean[0]
    for name, content in (("clean", clean[0]), (variant, data)):
        path = tmp_path / f"{name}.pcap"
        path.write_bytes(content)
        done = subprocess.run([sys.executable, "-m", "replay", "show", "--json", path], capture_output=True, check=True)
        rows.append(sorted((r["target"], json.dumps(r["headers"]), r["body_sha256"], r["client"]) for r in map(json.loads, done.stdout.splitlines())))
    assert rows[0] == rows[1] and len(rows[0]) == few


def test_streams_are_the_connections(generate):
    """What the streams hold is what the capture's clients sent: all requests, each connection's together and in order."""
    into = io.BytesIO()
    generate.write_streams(into, requests=200, connections=9, seed=2)
    data = into.getvalue()
    seen, at, connections = [], 0, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        numbers = [int(one[:8]) for one in data[at + 8 : at + 8 + length].split(b"/api/v2/customers/")[1:]]
        assert numbers == sorted(numbers)
        seen += numbers
        at += 8 + length
        connections += 1
    assert sorted(seen) == list(range(200)) and connections == 9


def test_a_bar_is_judged_by_minima_and_medians(measure):
    def verdict(low, middle, sense=measure.AT_MOST):
        return measure.bar("x", {"min": low, "median": middle}, sense, 10, 5)["verdict"]

    assert [verdict(4, 5), verdict(4, 6), verdict(9, 11), verdict(11, 12)] == ["stretch", "reach", "in part", "missed"]
    assert [verdict(10, 10, measure.AT_LEAST), verdict(4, 6, measure.AT_LEAST)] == ["stretch", "missed"]


def test_a_lost_request_ends_a_benchmark(measure):
    with pytest.raises(SystemExit, match="found 9 of 10"):
        measure.exactly("x", 9, 10)
