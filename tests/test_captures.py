"""Every folder of captures/ through `replay show --json`: what is found is what was sent, in order, connection by connection."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

CAPTURES = pathlib.Path(__file__).resolve().parents[1] / "captures"
CASES = sorted(p.parent for p in CAPTURES.glob("*/requests.json"))
KEYS = ("method", "target", "version", "host", "body_len", "body_sha256", "status")


def files(case):
    if case.name == "demo":
        return [CAPTURES.parent / "replay" / "data" / "demo.pcap"]
    return sorted(p for p in case.iterdir() if ".pcap" in p.name)


def show(*arguments):
    """The objects that `replay show` prints. Its exit code is 0 for every readable capture."""
    done = subprocess.run([sys.executable, "-m", "replay", "show", "--json", *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_connection(rows):
    """(client, server) -> its requests in order, each as the values of KEYS and why it is withheld."""
    connections = collections.defaultdict(list)
    for row in rows:
        connections[row["client"], row["server"]].append({key: row[key] for key in KEYS} | {"withheld": row.get("withheld")})
    return dict(connections)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_gives_what_was_sent(case):
    expected = json.loads((case / "requests.json").read_text())
    whole = [row for row in expected if "incomplete" not in row]
    found = show(*files(case))
    assert by_connection(found) == by_connection(whole)
    assert [row["n"] for row in found] == list(range(len(whole)))


@pytest.mark.parametrize("case", [case for case in CASES if '"incomplete"' in (case / "requests.json").read_text()], ids=lambda case: case.name)
def test_what_is_not_whole_has_its_reason(case):
    def name(row):
        return row["client"], row["server"], row["method"], row["target"], row["incomplete"]

    expected = [row for row in json.loads((case / "requests.json").read_text()) if "incomplete" in row]
    found = [row for row in show("--incomplete", *files(case)) if row.get("complete") is False]
    assert sorted(map(name, found)) == sorted(map(name, expected))


def test_there_are_captures():
    assert len(CASES) >= 12
    assert all((case / "README.md").exists() and (case / "recipe.py").exists() and files(case) for case in CASES)
