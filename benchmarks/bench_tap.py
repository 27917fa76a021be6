"""What does a live tap cost, itself and production, beside tcpdump on the same traffic?

    python benchmarks/bench_tap.py [--seconds 5] [--rounds 5] [--rate 50k]        (as root)

Production is an nginx on lo, under full load by wrk (closed loop, 64 connections): alone, with `replay tap` that only reads (-p 0), that also rewrites and queues (-p 100, dry run), that mirrors everything into a sink, and with tcpdump
into /dev/null and into a file. CPU is the whole tool's between the first and the last request; requests are nginx's own count, and the tap must have found each of them but those under way. Then production gets half of what it could
(open loop, `replay run --pace` as the client), in turn without a tap, with one at 1 %, also chosen in the kernel, and with one at 100 %: its CPU a request and its latency, round by round. Then an even rate is mirrored whole and at 1 %, with blocks of the ring of 1 ms, and at 1 % with the 5 ms of the default: the tap's CPU as a share
of a core, and the time from the first byte seen to the first byte sent.
"""

import functools
import json
import shutil
import statistics
import time

import inputs
import measure
import servers
import tapping

QUESTION = "What does a live tap cost, itself and production, beside tcpdump on the same traffic?"
#: A tap asks for replies while something needs them, and for a minute after that; what it costs the rest of its life is measured.
CALM = "auto:100ms"


def tap(port, *words, replies=CALM):
    return tapping.Tap("lo", port, "--user", "root", "--replies", replies, *words)


def closed_loop(nginx, seconds, start):
    """One round: a dict of figures. start: makes the tool, or None."""
    tool = start() if start else None
    used, served = servers.seconds_used(nginx.worker), nginx.count()
    rate = tapping.wrk(nginx.url, seconds).rate
    time.sleep(0.2)
    served = nginx.count() - served
    found = {"production/s": rate, "us CPU of production a request": (servers.seconds_used(nginx.worker) - used) / served * 1e6}
    if tool is None:
        return found
    found |= {"us CPU a request": tool.used() / served * 1e6, "MB beside the ring": tool.rss() / 1e6}
    if isinstance(tool, tapping.Tap):
        report = tool.report()
        ledger, packets = report["ledger"], report["packets"]
        found["MB beside the ring"] -= tapping.RING / 1e6
        found |= {"kernel drops": packets["kernel_drops"], "cut frames": packets["cut_frames"], "queue full": ledger["by_reason"]["dropped"].get("queue_full", 0)}
        if not packets["kernel_drops"] and abs(ledger["found"] - served) > 2 * tapping.CONNECTIONS:
            raise SystemExit(f"the tap found {ledger['found']} of {served} requests: nothing of this benchmark holds")
    else:
        found["kernel drops"] = next((int(line.split()[0]) for line in tool.end()[1].splitlines() if "dropped by kernel" in line), 0)
    return found


def client(nginx, rate, seconds, captured, connections):
    """Production's client at an even rate, on a core of its own, out of a twentieth of a second's requests that it has in memory: what it reads is not to be in what production's answers take."""
    path, requests = inputs.cached(requests=max(rate // 20, captured), connections=captured, bodies=0.0)
    return tapping.evenly(nginx.url, path, rate, connections=connections, core=measure.CLIENT, loop=max(rate * seconds // requests, 1))


def open_loop(nginx, rate, seconds, start):
    """One round of production at an even rate: nginx's CPU a request, what its client waited for it, and how late the client itself was."""
    tool = start() if start else None
    used, served = servers.seconds_used(nginx.worker), nginx.count()
    with client(nginx, rate, seconds, tapping.CONNECTIONS, tapping.CONNECTIONS) as one:
        report = json.loads(one.end(0)[0])
    served = nginx.count() - served
    found = {"us CPU of production a request": (servers.seconds_used(nginx.worker) - used) / served * 1e6}
    found |= {f"{name} {part} us": report[f"{key}_us"][part] for name, key in (("answered in", "service"), ("client late by", "lag")) for part in ("p50", "p99")}
    if tool is not None:
        found["us CPU a request"] = tool.used() / served * 1e6
        found["kernel drops"] = tool.report()["packets"]["kernel_drops"]
    return found


def even_rate(nginx, sink, rate, seconds, percent, *more, connections=64, timeout="1ms"):
    """The tap's share of a core and its lag in microseconds, at an even rate of production over so many connections."""
    words = ["--to", f"http://127.0.0.1:{sink.port}", "-p", percent, "--pipeline", 16, "-c", 4, "--block-timeout", timeout, "--timeout", "5s", *more]
    tool = tap(nginx.port, *words)
    began = time.monotonic()
    with client(nginx, rate, seconds, connections, max(connections // 2, 32)) as one:
        one.end(0)
    wall = time.monotonic() - began
    used = tool.used()
    report = tool.report()
    sent = report["ledger"]["sent"]
    return {"% of a core": 100 * used / wall, "us CPU a sent request": used / max(sent, 1) * 1e6, "lag p50 us": report["lag_us"]["p50"], "lag p99 us": report["lag_us"]["p99"], "sent/s": sent / wall, "kernel drops": report["packets"]["kernel_drops"]}


def paired(name, rounds, way, against, combine):
    """{"min", "median"} of what combine makes of a figure with and without, round by round."""
    values = [combine(one[name], other[name]) for one, other in zip(rounds[way], rounds[against], strict=True)]
    return {"min": min(values), "median": statistics.median(values)}


def columns(rounds):
    return {name: measure.spread([one[name] for one in rounds]) for name in rounds[0]}


def main():
    parser = measure.arguments(__doc__, seconds=5, rate=50_000)
    asked = parser.parse_args()
    tapping.apart("wrk", "nginx")
    with measure.scratch() as folder, servers.Nginx(folder) as nginx, servers.Sink().watched() as watched:
        sink = watched.sink
        to = ["--to", f"http://127.0.0.1:{sink.port}", "--pipeline", 16, "-c", 4]
        rewrites = functools.partial(tap, nginx.port, "--dry-run", "-p", 100)
        starts = {"alone": None, "tap, reads": functools.partial(tap, nginx.port, "--dry-run", "-p", 0), "tap, rewrites": rewrites, "tap, rewrites, hears replies": functools.partial(tap, nginx.port, "--dry-run", "-p", 100, replies="heads"), "tap, mirrors": functools.partial(tap, nginx.port, *to, "-p", 100)}
        if shutil.which("tcpdump"):
            starts |= {"tcpdump, null": lambda: tapping.tcpdump(nginx.port, "/dev/null"), "tcpdump, file": lambda: tapping.tcpdump(nginx.port, folder / "all.pcap")}
        rounds = measure.in_turn(asked.rounds, {name: (lambda start=start: closed_loop(nginx, asked.seconds, start)) for name, start in starts.items()})
        measured = {name: columns(values) for name, values in rounds.items()}
        half = max(int(measured["alone"]["production/s"]["median"] / 2) // 100 * 100, 100)
        ways = {"half, alone": None, "half, tap at 1 %": functools.partial(tap, nginx.port, *to, "-p", 1), "half, tap at 1 % in the kernel": functools.partial(tap, nginx.port, *to, "-p", 1, "--sample-by", "connection:kernel"), "half, tap rewrites": rewrites}
        even = measure.in_turn(asked.rounds, {name: (lambda start=start: open_loop(nginx, half, asked.seconds, start)) for name, start in ways.items()})
        measured |= {name: columns(values) for name, values in even.items()}
        # By connection there must be some hundred of them, or 1 % is one or none; and its packets are so few that nobody needs them within a millisecond.
        kernel = functools.partial(even_rate, nginx, sink, asked.rate, asked.seconds, 1, "--sample-by", "connection:kernel", connections=1_000, timeout="5ms")
        ways = {f"{percent} %": functools.partial(even_rate, nginx, sink, asked.rate, asked.seconds, percent) for percent in (100, 1)}
        ways["1 %, blocks of 5 ms,"] = functools.partial(even_rate, nginx, sink, asked.rate, asked.seconds, 1, timeout="5ms")
        ways["1 % by connection, in the kernel,"] = kernel
        for name, once in ways.items():
            measured[f"{name} of {asked.rate}/s"] = columns([once() for _ in range(max(asked.rounds // 2, 1))])
    cpu = measured["tap, rewrites"]["us CPU a request"]
    whole, little, rarely, least = (measured[f"{name} of {asked.rate}/s"] for name in ("100 %", "1 %", "1 %, blocks of 5 ms,", "1 % by connection, in the kernel,"))

    def beside(name, other):
        return measure.ratio(measured["tap, rewrites"][name], measured[other][name])

    bars = [
        measure.bar("CPU of the tap a request, read and rewritten", cpu, measure.AT_MOST, 0.6, None, "us"),
        measure.bar("memory beside the ring", measured["tap, rewrites"]["MB beside the ring"], measure.AT_MOST, 48, None, "MB"),
        measure.bar("production beside alone, full speed", beside("production/s", "alone"), measure.AT_LEAST, 0.92),
        measure.bar("CPU of production beside alone, full speed", beside("us CPU of production a request", "alone"), measure.AT_MOST, 1.03),
        measure.bar("kernel drops", {key: measured["tap, rewrites"]["kernel drops"][key] for key in ("min", "median")}, measure.AT_MOST, 0),
        measure.bar("CPU of production beside alone, half of its speed", paired("us CPU of production a request", even, "half, tap rewrites", "half, alone", lambda one, other: one / other), measure.AT_MOST, 1.03),
        measure.bar("p99 of production less alone's, half of its speed", paired("answered in p99 us", even, "half, tap rewrites", "half, alone", lambda one, other: one - other), measure.AT_MOST, 50, None, "us"),
        measure.bar("share of a core at 100 %", whole["% of a core"], measure.AT_MOST, 15, None, "%"),
        measure.bar("first byte seen to sent, 100 %", whole["lag p50 us"], measure.AT_MOST, 1500, None, "us"),
        measure.bar("share of a core at 1 % of requests", little["% of a core"], measure.AT_MOST, 3, None, "%"),
        measure.bar("share of a core at 1 % of requests, blocks as by default", rarely["% of a core"], measure.AT_MOST, 3, None, "%"),
        measure.bar("share of a core at 1 % of connections, chosen in the kernel", least["% of a core"], measure.AT_MOST, 3, None, "%"),
    ]
    if "tcpdump, null" in measured:
        bars += [
            measure.bar("production beside tcpdump -w /dev/null", beside("production/s", "tcpdump, null"), measure.AT_LEAST, 1),
            measure.bar("CPU beside tcpdump -w /dev/null", measure.ratio(cpu, measured["tcpdump, null"]["us CPU a request"]), measure.AT_MOST, 1.3),
            measure.bar("CPU beside tcpdump -w FILE", measure.ratio(cpu, measured["tcpdump, file"]["us CPU a request"]), measure.AT_MOST, 0.7),
        ]
    notes = [
        "The kernel hands a block of the ring over when it is full, or after --block-timeout; before Linux 6.18 that timer ticks in jiffies (4 ms at 250 Hz), so 1 ms is what newer kernels keep.",
        "The tap is one that nothing needs replies of (--replies auto, after its minute); the row that hears them is that minute, and what it was always before.",
        "wrk, nginx and the tool share two cores here: production gives way to whatever runs beside it.",
        "At half of its speed production's latency is what passes from writing a request to having read its reply. The client shares the cores too, and how late it is with writing stands beside it.",
    ]
    measure.tell("tap", QUESTION, asked, measured, bars, notes=notes)


if __name__ == "__main__":
    main()
