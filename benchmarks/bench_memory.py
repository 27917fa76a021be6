"""How much memory while a capture comes through a pipe, and does it grow with the capture? Peak RSS of `replay run --dry-run --pace max -`.

    python benchmarks/bench_memory.py [--bytes 200m 2g]

The capture is made on the fly by another process. Prints one JSON object.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import generate
import measure

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--bytes", type=generate.size, nargs="+", default=[200 << 20, 2 << 30])
options.add_argument("--requests", type=int, default=100_000)
asked = options.parse_args()

runs = []
for most in asked.bytes:
    maker = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).with_name("generate.py")), "--requests", str(asked.requests), "--bytes", str(most)], stdout=subprocess.PIPE
    )
    said, cpu, wall, peak = measure.cost([*measure.REPLAY, "run", "--dry-run", "--pace", "max", "--json", "-"], stdin=maker.stdout)
    maker.stdout.close()
    if maker.wait():
        raise SystemExit("the capture was not read to its end")
    runs.append({"bytes": most, "requests": json.loads(said)["ledger"]["selected"], "peak_rss": peak, "cpu_s": cpu, "wall_s": wall})
first, last = runs[0], runs[-1]
print(json.dumps({"benchmark": "memory", **measure.surroundings(), "runs": runs, "last_over_first": last["peak_rss"] / first["peak_rss"]}, indent=2))
