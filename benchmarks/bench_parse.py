"""What does a request cost from the capture file to a rewritten request that is ready to send, beside the machine's own limit and beside what people use?

    python benchmarks/bench_parse.py [--requests 1m] [--rounds 5] [--peers none] [--engine file|pipe]

`replay run --dry-run --pace max` on one core reads a file that is in the page cache, puts the connections together, frames requests and replies, selects, and rewrites each request into a batch. Beside it: a C program that
adds up the same file, mapped; and what people use, on fewer requests of the same kind: their start-up is measured on a capture of a tenth and taken off theirs (not ours), so the ratios are rather too small.
Every tool's number of requests is compared with what was generated. Beside the file the same one is read
from a pipe; `--engine pipe` judges that one.
"""

import subprocess
import sys

import inputs
import measure

QUESTION = "What does a request cost from capture file to rewritten request, ready to send? One core, CPU time of whole processes."

#: (name, what it needs, share of the requests that it gets, the bar, stretch); their cost a request does not depend on how many there are
PEERS = [
    ("dpkt", "dpkt", 0.05, 260, 520),
    ("plain Python", "mmap", 0.2, 25, 50),
    ("httptools on streams", "httptools", 0.5, 8, None),
    ("tshark -T fields", "tshark", 0.003, 600, None),
]


def command(name, requests, connections, seed):
    """(command, requests that it should find)."""
    if name == "httptools on streams":
        path, expected = inputs.cached(requests=requests, connections=connections, seed=seed, streams=True)
        return [sys.executable, measure.PEERS / "httptools_streams.py", path], expected
    path, expected = inputs.cached(requests=requests, connections=connections, seed=seed)
    if name == "tshark -T fields":
        return ["tshark", "-n", "-r", path, "-Y", "http.request", "-T", "fields", "-e", "http.request.method", "-e", "http.host", "-e", "http.request.uri"], expected
    return [sys.executable, measure.PEERS / {"dpkt": "dpkt_recipe.py", "plain Python": "plain_python.py"}[name], path], expected


def peer(name, requests, connections, seed):
    """A call that gives (CPU seconds, those of a tenth of the requests, requests found, fewer, wall seconds)."""
    whole, expected = command(name, requests, connections, seed)
    part, fewer = command(name, max(requests // 10, 1), connections, seed)

    def found(said):
        return said.count(b"\n") if name.startswith("tshark") else int(said)

    def once():
        many = measure.cost(whole, core=measure.CLIENT)
        few = measure.cost(part, core=measure.CLIENT)
        measure.exactly(name, found(few.said), fewer)
        return many.cpu, few.cpu, measure.exactly(name, found(many.said), expected), fewer, many.wall

    return once


def dry_run(path, how="file", core=measure.CLIENT, *more):
    """A call that gives (report, cost) of a dry run."""
    command = ("--dry-run", "--pace", "max", *more)
    if how == "file":
        return lambda: measure.replay(*command, path, core=core)

    def piped():
        # The file is written into the pipe by another process, on the other core.
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, **measure.on(measure.SERVER)) as writer:
            return measure.replay(*command, "-", core=core, stdin=writer.stdout)

    return piped


def main():
    parser = measure.arguments(__doc__, requests=1_000_000, connections=1_000, seed=1)
    parser.add_argument("--peers", default="all", help="all, none, or names: " + ", ".join(name for name, *_ in PEERS))
    parser.add_argument("--engine", choices=["file", "pipe"], default="file")
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=asked.requests, connections=asked.connections, seed=asked.seed)
    few_path, few = inputs.cached(requests=max(asked.requests // 10, 1), connections=asked.connections, seed=asked.seed)
    for one in (path, few_path):
        measure.cost(["cat", one], stdout=subprocess.DEVNULL)  # into the page cache
    notes, absent = [], {}

    def ours(capture, expected, engine=asked.engine):
        run = dry_run(capture, engine)

        def once():
            report, used = run()
            measure.exactly("replay", report["ledger"]["selected"], expected)
            return used

        return once

    ways = {"replay": ours(path, requests), "replay, a tenth": ours(few_path, few)}
    other = {"file": "pipe", "pipe": "file"}[asked.engine]
    ways[f"replay, {other}"] = ours(path, requests, other)
    program = measure.compiled("sum")
    if program:
        ways["sum of the file"] = lambda: measure.cost([program, path], core=measure.CLIENT)
    else:
        absent["sum of the file"] = "no C compiler"
    for name, needs, share, _, _ in PEERS:
        if asked.peers == "none" or (asked.peers != "all" and name not in asked.peers):
            absent[name] = "not asked for"
        elif measure.missing(needs) if needs == "tshark" else not measure.importable(needs):
            absent[name] = f"{needs} is not installed: benchmarks/peers.sh"
        else:
            ways[name] = peer(name, max(int(asked.requests * share), 20), asked.connections, asked.seed)
    rounds = measure.in_turn(asked.rounds, ways)

    us = measure.spread([one.cpu / requests * 1e9 for one in rounds["replay"]])
    marginal = measure.further([one.cpu * 1e9 for one in rounds["replay"]], [one.cpu * 1e9 for one in rounds["replay, a tenth"]], requests - few)
    measured = {
        "replay": {
            "requests": requests,
            "ns CPU a request": us,
            "without start-up": marginal,
            "user": measure.spread([one.user / requests * 1e9 for one in rounds["replay"]]),
            "system": measure.spread([one.system / requests * 1e9 for one in rounds["replay"]]),
            "wall s": measure.spread([one.wall for one in rounds["replay"]]),
        }
    }
    measured[f"replay, {other}"] = {
        "requests": requests,
        "ns CPU a request": measure.spread([one.cpu / requests * 1e9 for one in rounds[f"replay, {other}"]]),
        "user": measure.spread([one.user / requests * 1e9 for one in rounds[f"replay, {other}"]]),
        "system": measure.spread([one.system / requests * 1e9 for one in rounds[f"replay, {other}"]]),
        "wall s": measure.spread([one.wall for one in rounds[f"replay, {other}"]]),
    }
    bars = [measure.bar("a request", us, measure.AT_MOST, 300, 240, "ns")]
    if "sum of the file" in rounds:
        total = measure.spread([one.cpu / requests * 1e9 for one in rounds["sum of the file"]])
        measured["sum of the file"] = {"ns CPU a request": total, "wall s": measure.spread([one.wall for one in rounds["sum of the file"]])}
        bars.append(measure.bar("times the AVX2 sum of the same file", measure.ratio(us, total), measure.AT_MOST, 2.5, 2.1, "×", "sum.c"))
    else:
        bars.append(measure.left_out("times the AVX2 sum of the same file", absent["sum of the file"], measure.AT_MOST, 2.5, 2.1, "×", "sum.c"))
    for name, _, _, reach, stretch in PEERS:
        what = f"less than {name}"
        if name not in rounds:
            bars.append(measure.left_out(what, absent[name], measure.AT_LEAST, reach, stretch, "×", name))
            continue
        found, fewer = rounds[name][0][2:4]
        theirs = measure.further([one[0] * 1e9 for one in rounds[name]], [one[1] * 1e9 for one in rounds[name]], found - fewer)
        measured[name] = {
            "requests": found,
            "ns CPU a request": measure.spread([one[0] / found * 1e9 for one in rounds[name]]),
            "without start-up": theirs,
            "wall s": measure.spread([one[4] for one in rounds[name]]),
        }
        bars.append(measure.bar(what, measure.ratio(theirs, us), measure.AT_LEAST, reach, stretch, "×", name))
    notes.append(f"{requests:,} requests, {path.stat().st_size:,} bytes, {asked.connections:,} connections; every tool found exactly the requests that were generated. Ours {'from the file itself, read in pieces' if asked.engine == 'file' else 'through a pipe'}.")
    measure.tell("parse", QUESTION, asked, measured, bars, {"requests": requests, "capture_bytes": path.stat().st_size, "seed": asked.seed, "engine": asked.engine}, notes)


if __name__ == "__main__":
    main()
