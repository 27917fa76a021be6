"""How late is a paced request, beside a bare loop that spins and sends, and beside tcpreplay?

    python benchmarks/bench_pacing.py [--rounds 5] [--seconds 10] [--rates 10k 50k 100k]

`replay run --pace N/s` into `replay sink`. Lateness is not taken from the report alone: tcpdump records what goes over the loopback interface, and the kernel's time stamp of each request's packet is held against
n / rate (lateness.py says how). The loop that spins (peers/spin.c) is measured the same way. tcpreplay plays a capture of 10,000 requests a second over a veth pair in a network namespace of its own, `replay` the same
capture at its original pace into the sink; both against the capture's own time stamps. A stall is made by stopping the process for 50 ms with SIGSTOP. Needs root for tcpdump and the namespace; without it only the
report's own figures are told, and bars that need more are not judged.
"""

import contextlib
import os
import signal
import subprocess
import time

import inputs
import lateness
import measure
import sending
import servers

QUESTION = "How late is a paced request, by the kernel's time stamps of its packet? Beside a bare spin-and-send loop and tcpreplay."
HEAD = sending.head_length()
CONNECTIONS = 256  # as `replay run` has without -c. With one request under way on each, 64 at 50,000/s would tell that the server paused for 1.3 ms (tcpdump is on its core), not how late the sender is.
STALL_S = 0.05


@contextlib.contextmanager
def veth():
    """A network namespace with a pair of interfaces, out0 and in0: the words that run a command in it."""
    name = f"replay-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["ip", "netns", "exec", name]
        subprocess.run([*inside, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0"], check=True)
        for interface in ("out0", "in0"):
            subprocess.run([*inside, "ip", "link", "set", interface, "up"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


class Paced:
    """One round of a paced sender: figures by the kernel's time stamps, what the report says of itself, CPU as a share of a core."""

    def __init__(self, used, figures=None, lag=None, stall=None):
        self.figures, self.lag, self.stall = figures or {}, lag or {}, stall
        self.core = used.cpu / used.wall


def recording(folder, port, known):
    """Records where it is possible: (context manager, path)."""
    path = folder / "paced.pcap"
    return (lateness.recorded(path, port) if known else contextlib.nullcontext()), path


def figures_of(path, rate, expected, known, name):
    if not known:
        return None, None, None
    numbers, at_ns = lateness.stamps(path)
    measure.exactly(f"tcpdump, of {name}'s,", len(numbers), expected)
    path.unlink()
    return lateness.told(lateness.lateness(numbers, at_ns, rate)), numbers, at_ns


def replaying(folder, sink, capture, rate, requests, known, *more, stall=False):
    def interrupted(process):
        time.sleep(0.6 + requests / rate / 3)
        process.send_signal(signal.SIGSTOP)
        time.sleep(STALL_S)
        process.send_signal(signal.SIGCONT)

    def once():
        record, path = recording(folder, sink.port, known)
        with sink.watched() as watched, record:
            report, used = measure.replay(
                *more, "-c", CONNECTIONS, "--limit", requests, "--to", sink.url, capture, core=measure.CLIENT, while_it_runs=interrupted if stall else None
            )
        measure.exactly("replay's answers", report["ledger"]["answered"], requests)
        measure.exactly("the sink, of replay's,", watched.served, requests)
        figures, numbers, at_ns = figures_of(path, rate, requests, known, "replay")
        return Paced(used, figures, report["lag_us"], lateness.caught_up(numbers, at_ns, rate) if stall else None)

    return once


def spinning(folder, sink, rate, seconds, program):
    def once():
        record, path = recording(folder, sink.port, True)
        with sink.watched() as watched, record:
            used = measure.cost([program, sink.port, rate, seconds, CONNECTIONS, HEAD], core=measure.CLIENT)
        measure.exactly("the sink, of the loop's,", watched.served, rate * seconds)
        return Paced(used, figures_of(path, rate, rate * seconds, True, "the loop")[0])

    return once


def tcpreplaying(folder, inside, capture, rate, requests):
    def once():
        path = folder / "tcpreplay.pcap"
        with lateness.recorded(path, 80, interface="out0", inside=inside):
            used = measure.cost([*inside, "tcpreplay", "-q", "-K", "-T", "gtod", "-i", "out0", capture], core=measure.CLIENT)
        return Paced(used, figures_of(path, rate, requests, True, "tcpreplay")[0])

    return once


def columns(rounds):
    found = {f"{name} us": measure.spread([one.figures[name] for one in rounds]) for name in ("p50", "p90", "p99", "p99.9", "max", "last", "drift") if rounds[0].figures}
    if rounds[0].lag:
        found |= {f"its own {name} us": measure.spread([one.lag[name] for one in rounds]) for name in ("p50", "p99")}
    return found | {"share of a core": measure.spread([one.core for one in rounds])}


def main():
    parser = measure.arguments(__doc__, seconds=10, connections=1_000)
    parser.add_argument("--rates", type=inputs.count, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--pipeline", default="16", help="at 100,000/s, where requests that are due together may go out together")
    asked = parser.parse_args()
    # The slower rates are looked at for longer: drift is told after ten seconds.
    seconds = {rate: asked.seconds if rate <= 10_000 else max(asked.seconds * 2 // 5, 1) for rate in asked.rates}
    capture, _ = inputs.cached(requests=max(rate * seconds[rate] for rate in asked.rates), connections=asked.connections, bodies=0.0)
    even_s = max(asked.seconds // 4, 1)
    even, even_count = inputs.cached(requests=10_000 * even_s, connections=asked.connections, bodies=0.0, rate=10_000)
    why = "" if os.geteuid() == 0 else "needs root for tcpdump"
    if not why and (absent := measure.missing("tcpdump")):
        why = f"{absent[0]} is not installed: benchmarks/peers.sh"
    program = measure.compiled("spin")
    sink = servers.Sink()
    ways, against = {}, {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(measure.scratch())
        for rate in asked.rates:
            more = ("--pipeline", asked.pipeline) if rate >= 100_000 else ()
            ways[f"replay {rate:,}/s"] = replaying(folder, sink, capture, rate, rate * seconds[rate], not why, "--pace", f"{rate}/s", *more)
            if program and not why:
                ways[f"spin {rate:,}/s"] = spinning(folder, sink, rate, seconds[rate], program)
        fastest = max(asked.rates)
        if not why:
            ways[f"stall {fastest:,}/s"] = replaying(folder, sink, capture, fastest, fastest * max(seconds[fastest] // 2, 1), True, "--pace", f"{fastest}/s", "--pipeline", asked.pipeline, stall=True)
        against = why or ("tcpreplay or ip is not installed: benchmarks/peers.sh" if measure.missing("tcpreplay", "ip") else "")
        if not against:
            ways["replay, as captured"] = replaying(folder, sink, even, 10_000, even_count, True, "--pace", "original")
            ways["tcpreplay, as captured"] = tcpreplaying(folder, stack.enter_context(veth()), even, 10_000, even_count)
        rounds = measure.in_turn(asked.rounds, ways)
    measured = {name: columns(values) for name, values in rounds.items()}
    bars = []

    def judge(what, values, sense, reach, stretch=None, unit=""):
        if values is None:
            bars.append(measure.left_out(what, why or "no C compiler", sense, reach, stretch, unit))
        else:
            bars.append(measure.bar(what, values, sense, reach, stretch, unit))

    for rate in asked.rates:
        ours, spin = measured[f"replay {rate:,}/s"], measured.get(f"spin {rate:,}/s")
        if rate >= 100_000:
            judge(f"p50 at {rate:,}/s", ours.get("p50 us"), measure.AT_MOST, 50, None, "us")
            judge(f"backlog at {rate:,}/s: end later than beginning", ours.get("drift us"), measure.AT_MOST, 50, None, "us")
            continue
        judge(f"p50 at {rate:,}/s", ours.get("p50 us"), measure.AT_MOST, 15, None, "us")
        judge(f"p99 at {rate:,}/s", ours.get("p99 us"), measure.AT_MOST, 100, 60, "us")
        judge(f"p99 at {rate:,}/s, of the spinning loop's", measure.ratio(ours["p99 us"], spin["p99 us"]) if spin else None, measure.AT_MOST, 2, None, "×")
        judge(f"last request at {rate:,}/s, after {seconds[rate]} s", ours.get("last us"), measure.AT_MOST, 1_000, None, "us")
        if rate == 10_000:
            judge("share of a core at 10,000/s", ours["share of a core"], measure.AT_MOST, 0.35)
    caught = [one.stall for one in rounds.get(f"stall {fastest:,}/s", [])]
    name = "a stall of 50 ms is caught up within"
    if caught:
        took = measure.spread([one[1] for one in caught])
        measured[f"stall {fastest:,}/s"] |= {"pause ms": measure.spread([one[0] for one in caught]), "caught up ms": took}
        judge(name, took, measure.AT_MOST, 50, None, "ms")
    else:
        judge(name, None, measure.AT_MOST, 50, None, "ms")
    for figure in ("p50", "p99"):
        what = f"closer than tcpreplay, {figure}"
        if against:
            bars.append(measure.left_out(what, against, measure.AT_LEAST, 100, None, "×"))
        else:
            theirs, ours = (measured[f"{tool}, as captured"][f"{figure} us"] for tool in ("tcpreplay", "replay"))
            bars.append(measure.bar(what, measure.ratio(theirs, ours), measure.AT_LEAST, 100, None, "×"))
    notes = [f"Heads of {HEAD} bytes, {CONNECTIONS} connections; every request was answered, by ledger and sink, and each was found in tcpdump's recording." if not why else why]
    measure.tell("pacing", QUESTION, asked, measured, bars, {"rates": asked.rates, "seconds": [seconds[rate] for rate in asked.rates]}, notes)


if __name__ == "__main__":
    main()
