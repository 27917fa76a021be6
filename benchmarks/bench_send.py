"""What does a request cost to send, one under way a connection, every answer framed, timed and counted?

    python benchmarks/bench_send.py [--requests 800k] [--seconds 3] [--rounds 5]

`replay run --pace max -c 64` beside `wrk -t1 -c64`, into the same nginx with one worker; request heads of the same length, no bodies. wrk sends one string again and again, so a small capture is gone through again and
again (--loop: from memory); "read" is a quarter as many requests, each out of the capture. The client has one core and the server the other. Served is nginx's own count. How busy nginx's core is stands beside it: what is measured is the client only while the server is not short of work.
"""

import inputs
import measure
import sending
import servers

QUESTION = "What does a request cost to send, one under way a connection, every answer counted? Into nginx, beside wrk."


def main():
    parser = measure.arguments(__doc__, requests=800_000, connections=1_000, seconds=3)
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=max(asked.requests // 4, 1), connections=asked.connections, bodies=0.0)
    if absent := measure.missing("nginx"):
        raise SystemExit(f"{absent[0]} is not installed: benchmarks/peers.sh")
    with measure.scratch() as folder, servers.Nginx(folder) as server:
        ours, sent = sending.from_memory(server, asked.requests, captured=asked.connections)
        ways = {"replay": ours, "replay, read": sending.replaying(server, path, requests)}
        if not measure.missing("wrk"):
            ways["wrk"] = sending.wrk(server, asked.seconds)
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {name: sending.columns(values) for name, values in rounds.items()}
    ours = measured["replay"]
    cpu = ("CPU a request, of wrk's", measure.AT_MOST, 0.85, 0.7, "×", "wrk -t1 -c64")
    rate = ("served/s, of wrk's", measure.AT_LEAST, 1.0, None, "×", "wrk -t1 -c64")
    if "wrk" in measured:
        theirs = measured["wrk"]
        bars = [
            measure.bar(cpu[0], measure.ratio(ours["us CPU a request"], theirs["us CPU a request"]), *cpu[1:]),
            measure.bar(rate[0], measure.ratio(sending.best(ours["served/s"]), sending.best(theirs["served/s"])), *rate[1:]),
        ]
    else:
        bars = [measure.left_out(one[0], "wrk is not installed: benchmarks/peers.sh", *one[1:]) for one in (cpu, rate)]
    notes = [f"Heads of {sending.head_length()} bytes. replay's ledger, nginx's count and the capture agree: {sent:,} requests a round, of {min(sending.DIFFERENT, sent):,} different ones; {requests:,} where each is read."]
    measure.tell("send", QUESTION, asked, measured, bars, {"requests": sent}, notes)


if __name__ == "__main__":
    main()
