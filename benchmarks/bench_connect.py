"""How many connections a second, and what does each cost, when every captured connection is its own?

    python benchmarks/bench_connect.py [--requests 60k] [--rounds 5]

`replay run --pace max -c 64` with one request a captured connection (a small capture, gone through again and again from memory), into an nginx that closes each connection after its reply, so that every request needs a new one; beside it `ab -c 64` without keep-alive,
into the same nginx; heads of the same length. nginx's own count of accepted connections is not below that of requests.
"""

import measure
import sending
import servers

QUESTION = "How many new connections a second, and what does each cost? Into nginx, one request a connection, beside ab without keep-alive."


def connected(server, once):
    """The same call, with nginx's count of accepted connections: none may have served two requests. A client may open some that it does not use."""

    def counted():
        before = server.accepted()
        done = once()
        done.accepted = server.accepted() - before
        if done.accepted < done.served:
            raise SystemExit(f"{done.served} requests came on {done.accepted} connections: nothing of this benchmark holds")
        return done

    return counted


def main():
    parser = measure.arguments(__doc__, requests=60_000)
    asked = parser.parse_args()
    if absent := measure.missing("nginx"):
        raise SystemExit(f"{absent[0]} is not installed: benchmarks/peers.sh")
    with measure.scratch() as folder, servers.Nginx(folder, keep="0") as server:
        ours, requests = sending.from_memory(server, asked.requests, captured=1_000, one_each=True)
        ways = {"replay": connected(server, ours)}
        if not measure.missing("ab"):
            ways["ab"] = connected(server, sending.ab(server, asked.requests))
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {name: sending.columns(values) | {"connections": measure.spread([one.accepted for one in values])} for name, values in rounds.items()}
    ours = measured["replay"]
    rate = ("connections/s, of ab's", measure.AT_LEAST, 1.0, None, "×", "ab without keep-alive")
    cpu = ("CPU a connection, of ab's", measure.AT_MOST, 0.8, None, "×", "ab without keep-alive")
    if "ab" in measured:
        theirs = measured["ab"]
        bars = [
            measure.bar(rate[0], measure.ratio(sending.best(ours["served/s"]), sending.best(theirs["served/s"])), *rate[1:]),
            measure.bar(cpu[0], measure.ratio(ours["us CPU a request"], theirs["us CPU a request"]), *cpu[1:]),
        ]
    else:
        bars = [measure.left_out(one[0], "ab is not installed: benchmarks/peers.sh", *one[1:]) for one in (rate, cpu)]
    notes = [f"Heads of {sending.head_length()} bytes; {requests:,} requests a round, each on a connection of its own by nginx's count."]
    measure.tell("connect", QUESTION, asked, measured, bars, {"requests": requests}, notes)


if __name__ == "__main__":
    main()
