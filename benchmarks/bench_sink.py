"""How many requests a second go through at full speed, and what do they cost, by the number of requests under way on a connection?

    python benchmarks/bench_sink.py [--requests 2m] [--rounds 5] [--depths 1 4 16 64]

`replay run --pace max -c 64 --pipeline N` into `replay sink` on the other core, which answers as quickly as a server may; a small capture that is gone through again and again, from memory, as
wrk and h2load send one string again and again ("read": each request out of the capture); wrk with a pipelining script and h2load into the same sink. Served is what the sink counted. Of
replay a second counts without start-up (the difference to a run over a tenth of the requests), which is told beside it as the whole; its CPU time is that of the whole process. At most N requests go out in one send.
"""

import functools

import inputs
import measure
import sending
import servers

QUESTION = "How many requests a second go through at full speed into the sink, by requests under way on a connection? Beside wrk with pipelining and h2load."


def less_its_start(run, less):
    """A round, whose rate is that of what it did more than another one."""
    many, few = run(), less()
    many.rate = (many.served - few.served) / max(many.wall - few.wall, 1e-9)
    return many


def main():
    parser = measure.arguments(__doc__, requests=2_000_000, connections=1_000, seconds=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 16, 64])
    asked = parser.parse_args()

    sink = servers.Sink()
    ways, absent = {}, measure.missing("wrk", "h2load")

    def replaying(depth):
        """All the requests, and a tenth; fewer where each is a send of its own."""
        many = asked.requests if depth >= 16 else max(asked.requests // 8, 1)
        runs = [sending.from_memory(sink, number, "--pipeline", depth, captured=asked.connections)[0] for number in (many, max(many // 10, 1))]
        return functools.partial(less_its_start, *runs)

    def reading(depth):
        """The same with each request out of the capture, half as many."""
        captures = [inputs.cached(requests=number, connections=asked.connections, bodies=0.0) for number in (max(asked.requests // 2, 1), max(asked.requests // 20, 1))]
        return functools.partial(less_its_start, *(sending.replaying(sink, path, requests, "--pipeline", depth) for path, requests in captures))

    with measure.scratch() as folder:
        for depth in asked.depths:
            ways[f"replay {depth}"] = replaying(depth)
            if not {"wrk"} & set(absent):
                ways[f"wrk {depth}"] = sending.wrk(sink, asked.seconds, depth=depth, folder=folder)
        deepest = max(asked.depths)
        ways[f"replay {deepest}, read"] = reading(deepest)
        if not {"h2load"} & set(absent):
            ways[f"h2load {deepest}"] = sending.h2load(sink, asked.requests, depth=deepest)
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {name: sending.columns(values) for name, values in rounds.items()}
    for name in measured:
        if name.startswith("replay"):
            measured[name]["whole/s"] = measure.spread([one.served / one.wall for one in rounds[name]])
    most = measured[f"replay {deepest}"]
    middle = 16 if 16 in asked.depths else deepest
    bars = [
        measure.bar(f"served/s, {deepest} under way", sending.best(most["served/s"]), measure.AT_LEAST, 2_000_000, 3_000_000, "/s"),
        measure.bar(f"CPU a request, {middle} a send", measured[f"replay {middle}"]["us CPU a request"], measure.AT_MOST, 0.5, None, "us"),
    ]
    depths = [
        {"tool": name.split()[0], "depth": int(name.split()[1]), "served_per_s": values["served/s"]["median"], "us_cpu": values["us CPU a request"]["median"]}
        for name, values in measured.items()
        if not name.endswith(", read")
    ]
    notes = [f"Heads of {sending.head_length()} bytes; up to {asked.requests:,} requests a round, of {min(sending.DIFFERENT, asked.requests):,} different ones, all answered, by the ledger and by the sink's count."]
    notes += [f"{name} is not installed: benchmarks/peers.sh" for name in absent]
    measure.tell("sink", QUESTION, asked, measured, bars, {"requests": asked.requests, "depths": depths}, notes)


if __name__ == "__main__":
    main()
