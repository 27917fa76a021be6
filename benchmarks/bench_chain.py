"""What does the whole chain cost, from capture file to nginx, and where does it go?

    python benchmarks/bench_chain.py [--requests 1m] [--seconds 3] [--rounds 5]

`replay run --pace max -c 64` into nginx out of the capture with 15 % bodies, with one request under way a connection and with 16; beside it wrk, which only sends, and no bodies. The stages are differences between
runs of the same rounds, each a whole process on one core:

    start-up        `replay --version`
    file            the C program that adds up the mapped file: what no reader gets below
    read and frame  `--percent 0`: packets, connections, heads, requests framed, none kept
    select, rewrite `--dry-run` less that
    send, user      into nginx, less the dry run: what our own code does to send, frame, time and count
    send, kernel    the same, system time (on loopback the receiver's share of TCP is in it)
"""

import subprocess

import inputs
import measure
import sending
import servers

QUESTION = "What does the whole chain cost, capture file to nginx, and where does it go? One core, CPU time of whole processes."
DEPTH = 16


def main():
    parser = measure.arguments(__doc__, requests=1_000_000, connections=1_000, seconds=3)
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=asked.requests, connections=asked.connections)
    measure.cost(["cat", path], stdout=subprocess.DEVNULL)
    if absent := measure.missing("nginx"):
        raise SystemExit(f"{absent[0]} is not installed: benchmarks/peers.sh")
    program = measure.compiled("sum")

    def dry(*more):
        def once():
            report, used = measure.replay("--dry-run", "--pace", "max", *more, path, core=measure.CLIENT)
            measure.exactly("replay", report["ledger"]["found"], requests)
            return used

        return once

    with measure.scratch() as folder, servers.Nginx(folder) as server:
        ways = {
            "start-up": lambda: measure.cost([*measure.REPLAY, "--version"], core=measure.CLIENT),
            "read and frame": dry("--percent", "0"),
            "dry run": dry(),
            "chain, 1 under way": sending.replaying(server, path, requests),
            f"chain, {DEPTH} under way": sending.replaying(server, path, requests, "--pipeline", DEPTH),
        }
        if program:
            ways["file"] = lambda: measure.cost([program, path], core=measure.CLIENT)
        if not measure.missing("wrk"):
            ways["wrk, 1 under way"] = sending.wrk(server, asked.seconds)
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {}
    for name, values in rounds.items():
        served = values[0].served if hasattr(values[0], "served") else requests
        measured[name] = {
            "user us a request": measure.spread([one.user / served * 1e6 for one in values]),
            "system us a request": measure.spread([one.system / served * 1e6 for one in values]),
            "us CPU a request": measure.spread([(one.user + one.system) / served * 1e6 for one in values]),
        }
    bars = [
        measure.bar(f"user time a request, {name}", measured[f"chain, {name}"]["user us a request"], measure.AT_MOST, 1.0, 0.7, "us", "wrk, which only sends")
        for name in ("1 under way", f"{DEPTH} under way")
    ]
    notes = [f"{requests:,} requests, 15 % with bodies; all were answered, by the ledger and by nginx's count."]
    measure.tell("chain", QUESTION, asked, measured, bars, {"requests": requests, "stages": stages(measured)}, notes)


def stages(measured):
    """{way of sending: [(stage, us CPU a request)]}, from the medians; what cannot be told apart is in the stage before."""

    def us(name, column="us CPU a request"):
        return measured[name][column]["median"] if name in measured else 0.0

    def more(a, b):
        return max(a - b, 0.0)

    start, file, read, dry = us("start-up"), us("file"), us("read and frame"), us("dry run")
    before = [("start-up", start), ("file", file), ("read and frame", more(read, start + file)), ("select, rewrite", more(dry, read))]
    found = {}
    for name in measured:
        if name.startswith("chain, "):
            found[name.removeprefix("chain, ")] = [
                *before,
                ("send, user", more(us(name, "user us a request"), us("dry run", "user us a request"))),
                ("send, kernel", more(us(name, "system us a request"), us("dry run", "system us a request"))),
            ]
    return found


if __name__ == "__main__":
    main()
