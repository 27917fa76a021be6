"""Each benchmark runs, with a tiny input, and prints the JSON it promises. Nothing is timed here."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import dpkt
import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def bench(name, *arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONSAFEPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["machine"]["cores"] and "commit" in result
    return result


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("generate", BENCHMARKS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parse(tmp_path):
    result = bench("bench_parse.py", "--requests", "200", "--connections", "7", "--rounds", "2", tmp_path=tmp_path)
    assert result["requests"] == 200
    assert result["replay"]["cpu_s"]["rounds"] == result["dpkt"]["cpu_s"]["rounds"] == 2
    assert result["replay"]["ns_per_request"]["min"] > 0 and result["dpkt_over_replay"]["median"] > 0


def test_first_request(tmp_path):
    result = bench("bench_first_request.py", "--bytes", "300k", "--requests", "100", "--rounds", "1", tmp_path=tmp_path)
    assert result["capture_bytes"] >= 300_000
    assert result["first_request_s"]["min"] > 0


def test_memory(tmp_path):
    result = bench("bench_memory.py", "--bytes", "100k", "1m", "--requests", "50", tmp_path=tmp_path)
    small, large = result["runs"]
    assert 50 <= small["requests"] < large["requests"] and large["requests"] % 50 == 0
    assert large["peak_rss"] > 1_000_000


def test_the_generated_capture_is_what_it_says(generate):
    """Read back by dpkt: requests, bodies, sizes, time going forward, one address a connection and copy."""
    into = io.BytesIO()
    written, requests = generate.write(into, requests=300, connections=11, seed=3, most=900_000)
    assert written == len(into.getvalue()) and requests % 300 == 0 and requests >= 600
    into.seek(0)
    heads, bodies, sizes, last, clients = 0, 0, [], 0, set()
    for ts, frame in dpkt.pcap.Reader(into):
        assert ts >= last
        last = ts
        ip = dpkt.ethernet.Ethernet(frame).data
        assert ip.len == len(frame) - 14
        if ip.data.dport == 80 and ip.data.data[:4] in (b"GET ", b"POST"):
            heads += 1
            bodies += ip.data.data[:4] == b"POST"
            sizes.append(len(frame))
            clients.add((ip.src, ip.data.sport))
    assert heads == requests
    assert 0.10 < bodies / heads < 0.20
    assert len(clients) == 11 * requests // 300
    gets = sorted(sizes)[: len(sizes) // 2]
    assert 650 < sum(gets) / len(gets) < 900
