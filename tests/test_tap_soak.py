"""The soaks of benchmarks/, for seconds instead of minutes: what they count, hold and find has to be right at any size. Nothing is judged by the clock.

Each makes a network namespace of its own.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from tapmake import needs, needs_root

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = [needs_root, needs("nginx", "wrk", "ip", "ss", "tc", "nsenter", "unshare"), pytest.mark.slow]


def soak(name, *words, tmp_path):
    """What a soak told, when everything holds."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONSAFEPATH": ""}
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--json", *words], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert [one for one in told["checks"] if not one["holds"]] == [] and done.returncode == 0 and told["checks"]
    return told


@pytest.fixture
def tmp_path():
    """One in which whoever the tap becomes can read its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder


def test_speed(tmp_path):
    """Each request found once, mirrored once, and the selected ones exactly: nginx's log, the plain Python sampler, the sink's log."""
    told = soak("soak_speed", "--seconds", "2", "--requests", "100k", tmp_path=tmp_path)
    assert all(told[f"one by one over {over}"]["mirrored"] > 0 for over in ("lo", "veth"))


def test_shadows(tmp_path):
    """A shadow that dies under load and comes back, one in a black hole, one stopped: all counted, memory as it was, the copies go on."""
    soak("soak_shadows", "--seconds", "2", "--rounds", "1", "--rate", "500", "--only", "dead", "--only", "black hole", "--only", "stopped", tmp_path=tmp_path)


def test_kill(tmp_path):
    """Killed at any time: no error at production's client, nothing left behind."""
    soak("soak_kill", "--kills", "7", tmp_path=tmp_path)


def test_loop(tmp_path):
    """Exactly the originals, whether the mirror sends to what it taps or its shadow calls it."""
    soak("soak_loop", "--seconds", "3", "--rate", "100", tmp_path=tmp_path)


def test_mixed(tmp_path):
    """Load, connections that come and go, a flood, garbage and a reload each second: each request found, nothing leaks."""
    told = soak("soak_mixed", "--seconds", "8", "--flows", "40k", tmp_path=tmp_path)
    assert told["spoke garbage"] > 10 and told["incomplete"]
