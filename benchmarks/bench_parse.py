"""What does a request cost from file to dry run, beside the usual dpkt recipe? CPU time (user + system) of whole processes, alternating.

    python benchmarks/bench_parse.py [--requests 100000] [--rounds 5]

`replay run --dry-run --pace max` reads, reassembles, frames requests and replies, selects and rewrites each request into a batch; the recipe reads, joins each flow's bytes and parses requests.
Start-up of both (some 0.1 s) is in the numbers. Prints one JSON object.
"""

import argparse
import json
import pathlib
import sys

import generate
import measure

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--requests", type=int, default=100_000)
options.add_argument("--connections", type=int, default=1_000)
options.add_argument("--rounds", type=int, default=5)
options.add_argument("--seed", type=int, default=1)
asked = options.parse_args()

path, requests = generate.cached(requests=asked.requests, connections=asked.connections, seed=asked.seed)
commands = {
    "replay": [*measure.REPLAY, "run", "--dry-run", "--pace", "max", "--json", path],
    "dpkt": [sys.executable, pathlib.Path(__file__).with_name("dpkt_recipe.py"), path],
}
found = {"replay": lambda said: json.loads(said)["ledger"]["selected"], "dpkt": int}
cpu = {name: [] for name in commands}
wall = {name: [] for name in commands}
for _ in range(asked.rounds):
    for name, command in commands.items():
        said, used, took, _ = measure.cost(command)
        if found[name](said) != requests:
            raise SystemExit(f"{name} found {found[name](said)} of {requests} requests")
        cpu[name].append(used)
        wall[name].append(took)

result = {"benchmark": "parse", **measure.surroundings(), "requests": requests, "capture_bytes": path.stat().st_size, "seed": asked.seed}
for name in commands:
    one = measure.spread(cpu[name])
    result[name] = {"cpu_s": one, "wall_s": measure.spread(wall[name]), "ns_per_request": {key: one[key] / requests * 1e9 for key in ("min", "median")}}
result["dpkt_over_replay"] = {key: result["dpkt"]["cpu_s"][key] / result["replay"]["cpu_s"][key] for key in ("min", "median")}
print(json.dumps(result, indent=2))
