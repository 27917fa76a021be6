"""What does a request cost to send with 16 under way on a connection, with the same accounting?

    python benchmarks/bench_pipeline.py [--requests 800k] [--seconds 3] [--depth 16] [--rounds 5]

`replay run --pace max -c 64 --pipeline 16` beside wrk with a script that pipelines 16 and `h2load --h1 -m16`, into the same nginx with one worker; request heads of the same length. They send one string
again and again, so a small capture is gone through again and again (--loop: from memory); "read" is a quarter as many requests, each out of the capture. See bench_send.py.
"""

import inputs
import measure
import sending
import servers

QUESTION = "What does a request cost to send with 16 under way on a connection? Into nginx, beside wrk with a pipelining script and h2load."


def main():
    parser = measure.arguments(__doc__, requests=800_000, connections=1_000, seconds=3, depth=16)
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=max(asked.requests // 4, 1), connections=asked.connections, bodies=0.0)
    if absent := measure.missing("nginx"):
        raise SystemExit(f"{absent[0]} is not installed: benchmarks/peers.sh")
    with measure.scratch() as folder, servers.Nginx(folder) as server:
        ours, sent = sending.from_memory(server, asked.requests, "--pipeline", asked.depth, captured=asked.connections)
        ways = {"replay": ours, "replay, read": sending.replaying(server, path, requests, "--pipeline", asked.depth)}
        if not measure.missing("wrk"):
            ways["wrk"] = sending.wrk(server, asked.seconds, depth=asked.depth, folder=folder)
        if not measure.missing("h2load"):
            ways["h2load"] = sending.h2load(server, requests, depth=asked.depth)
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {name: sending.columns(values) for name, values in rounds.items()}
    ours, bars = measured["replay"], []
    for name, reach in (("wrk", 1 / 5), ("h2load", 1 / 6)):
        cpu = (f"CPU a request, of {name}'s", measure.AT_MOST, reach, 1 / 8, "×", name)
        rate = (f"served/s, of {name}'s", measure.AT_LEAST, 1.0, None, "×", name)
        if name not in measured:
            bars += [measure.left_out(one[0], f"{name} is not installed: benchmarks/peers.sh", *one[1:]) for one in (cpu, rate)]
            continue
        theirs = measured[name]
        bars.append(measure.bar(cpu[0], measure.ratio(ours["us CPU a request"], theirs["us CPU a request"]), *cpu[1:]))
        bars.append(measure.bar(rate[0], measure.ratio(sending.best(ours["served/s"]), sending.best(theirs["served/s"])), *rate[1:]))
    bars.append(measure.bar("nginx's core busy", sending.best(ours["server's core"]), measure.AT_LEAST, 0.97))
    notes = [f"Heads of {sending.head_length()} bytes. replay's ledger, nginx's count and the capture agree: {sent:,} requests a round, of {min(sending.DIFFERENT, sent):,} different ones; {requests:,} where each is read."]
    measure.tell("pipeline", QUESTION, asked, measured, bars, {"requests": sent, "depth": asked.depth}, notes)


if __name__ == "__main__":
    main()
