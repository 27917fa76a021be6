"""What does a request cost from file to dry run, beside the usual dpkt recipe? CPU time (user + system) of whole processes, alternating.

    python benchmarks/bench_parse.py [--requests 100000] [--rounds 5]

`replay run --dry-run --pace max` reads, reassembles, frames requests and replies, selects and rewrites each request into a batch; the recipe reads, joins each flow's bytes and parses requests.
Start-up of both (some 0.1 s) is in these numbers; `marginal` is what a further request costs: the difference to a capture of a tenth of the requests, run in the same rounds. Prints one JSON object.
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
few = max(asked.requests // 10, 1)
small, fewer = generate.cached(requests=few, connections=max(asked.connections // 10, 1), seed=asked.seed)


def commands(capture):
    return {
        "replay": [*measure.REPLAY, "run", "--dry-run", "--pace", "max", "--json", capture],
        "dpkt": [sys.executable, pathlib.Path(__file__).with_name("dpkt_recipe.py"), capture],
    }


NAMES = list(commands(path))
found = {"replay": lambda said: json.loads(said)["ledger"]["selected"], "dpkt": int}
cpu = {name: [] for name in NAMES}
wall = {name: [] for name in NAMES}
cpu_small = {name: [] for name in NAMES}
for _ in range(asked.rounds):
    for capture, expected, into in ((path, requests, cpu), (small, fewer, cpu_small)):
        for name, command in commands(capture).items():
            said, used, took, _ = measure.cost(command)
            if found[name](said) != expected:
                raise SystemExit(f"{name} found {found[name](said)} of {expected} requests")
            into[name].append(used)
            if into is cpu:
                wall[name].append(took)

result = {"benchmark": "parse", **measure.surroundings(), "requests": requests, "capture_bytes": path.stat().st_size, "seed": asked.seed}
for name in NAMES:
    one = measure.spread(cpu[name])
    result[name] = {"cpu_s": one, "wall_s": measure.spread(wall[name]), "ns_per_request": {key: one[key] / requests * 1e9 for key in ("min", "median")}}
    less = measure.spread(cpu_small[name])
    result[name]["marginal_ns_per_request"] = {key: (one[key] - less[key]) / (requests - fewer) * 1e9 for key in ("min", "median")}
result["dpkt_over_replay"] = {key: result["dpkt"]["cpu_s"][key] / result["replay"]["cpu_s"][key] for key in ("min", "median")}
result["dpkt_over_replay_marginal"] = {
    key: result["dpkt"]["marginal_ns_per_request"][key] / result["replay"]["marginal_ns_per_request"][key] for key in ("min", "median")
}
print(json.dumps(result, indent=2))
