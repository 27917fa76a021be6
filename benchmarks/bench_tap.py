"""What does a live tap cost, itself and production, beside tcpdump on the same traffic?

    python benchmarks/bench_tap.py [--seconds 5] [--rounds 5] [--rate 10k]        (as root)

Production is an nginx on lo, under full load by wrk (closed loop, 64 connections): alone, with `replay tap` that only reads (-p 0), that also rewrites and queues (-p 100, dry run), that mirrors everything into a sink, and with tcpdump
into /dev/null and into a file. CPU is the whole tool's between the first and the last request; requests are nginx's own count, and the tap must have found each of them but those under way. Then an even rate (`replay run
--pace N/s` as the client) is mirrored whole and at 1 %: CPU as a share of a core, and the time from the first byte seen to the first byte sent.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time

import inputs
import measure
import servers

QUESTION = "What does a live tap cost, itself and production, beside tcpdump on the same traffic?"
CONNECTIONS = 64
PATIENCE_S = 20


class Tool:
    """A process beside production. started: a text on standard error that says that it captures."""

    def __init__(self, words, started):
        self.process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + PATIENCE_S
        said = ""
        while started not in (line := self.process.stderr.readline()):
            said += line
            if not line or time.monotonic() > until:
                raise SystemExit(f"{words[0]} does not start: {said}")
        time.sleep(0.5)
        self.before = servers.seconds_used(self.process.pid)

    def used(self):
        return servers.seconds_used(self.process.pid) - self.before

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return out, err


def tap(port, *words):
    return Tool([*measure.REPLAY, "tap", "lo", "--port", port, "--user", "root", "--json", *words], "rights:")


def tcpdump(port, path):
    return Tool(["tcpdump", "-i", "lo", "-s", "0", "-Z", "root", "-w", path, f"tcp port {port}"], "listening")


def loaded(nginx, seconds):
    """Requests a second that wrk got."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{nginx.port}/"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, **measure.on(measure.CLIENT))
    return next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("Requests/sec"))


def closed_loop(nginx, seconds, start):
    """One round: a dict of figures. start: makes the tool, or None."""
    tool = start() if start else None
    served = nginx.count()
    rate = loaded(nginx, seconds)
    time.sleep(0.2)
    served = nginx.count() - served
    found = {"production/s": rate}
    if tool is None:
        return found
    found |= {"us CPU a request": tool.used() / served * 1e6, "MB beside the ring": tool.rss() / 1e6}
    out, err = tool.end()
    if out.startswith("{"):
        report = json.loads(out)
        ledger, packets = report["ledger"], report["packets"]
        found["MB beside the ring"] -= 64 * 1.048576
        found |= {"kernel drops": packets["kernel_drops"], "cut frames": packets["cut_frames"], "queue full": ledger["by_reason"]["dropped"].get("queue_full", 0)}
        if not packets["kernel_drops"] and abs(ledger["found"] - served) > 2 * CONNECTIONS:
            raise SystemExit(f"the tap found {ledger['found']} of {served} requests: nothing of this benchmark holds")
    else:
        found["kernel drops"] = next((int(line.split()[0]) for line in err.splitlines() if "dropped by kernel" in line), 0)
    return found


def unmarked():
    """Takes the rights from the client that it would mark its sockets with, for a tap leaves marked ones out (PR_CAPBSET_DROP of CAP_NET_ADMIN and CAP_NET_RAW)."""
    libc = ctypes.CDLL(None)
    libc.prctl(24, 12, 0, 0, 0)
    libc.prctl(24, 13, 0, 0, 0)


def even_rate(nginx, sink, rate, seconds, percent):
    """The tap's share of a core and its lag in microseconds, at an even rate of production."""
    path, _ = inputs.cached(requests=rate * seconds, connections=64, bodies=0.0)
    words = ["--to", f"http://127.0.0.1:{sink.port}", "-p", percent, "--pipeline", 16, "-c", 4, "--block-timeout", "1ms", "--timeout", "5s"]
    tool = tap(nginx.port, *words)
    began = time.monotonic()
    client = [*measure.REPLAY, "run", "-q", path, "--to", nginx.url, "--pace", f"{rate}/s", "-c", 32, "--set-host", "production.example"]  # neither suffix nor marker
    subprocess.run([*map(str, client)], check=True, stdout=subprocess.DEVNULL, preexec_fn=unmarked)
    wall = time.monotonic() - began
    used = tool.used()
    report = json.loads(tool.end()[0])
    sent = report["ledger"]["sent"]
    return {"% of a core": 100 * used / wall, "us CPU a sent request": used / max(sent, 1) * 1e6, "lag p50 us": report["lag_us"]["p50"], "lag p99 us": report["lag_us"]["p99"], "sent/s": sent / wall}


def columns(rounds):
    return {name: measure.spread([one[name] for one in rounds]) for name in rounds[0]}


def main():
    parser = measure.arguments(__doc__, seconds=5, rate=10_000)
    asked = parser.parse_args()
    absent = measure.missing("wrk", "nginx")
    if absent or os.geteuid() != 0:
        raise SystemExit(f"needs root and {', '.join(absent) or 'nothing else'}")
    with measure.scratch() as folder, servers.Nginx(folder) as nginx, servers.Sink().watched() as watched:
        sink = watched.sink
        to = ["--to", f"http://127.0.0.1:{sink.port}"]
        starts = {
            "alone": None,
            "tap, reads": lambda: tap(nginx.port, "--dry-run", "-p", 0),
            "tap, rewrites": lambda: tap(nginx.port, "--dry-run", "-p", 100),
            "tap, mirrors": lambda: tap(nginx.port, *to, "-p", 100, "--pipeline", 16, "-c", 4),
        }
        if shutil.which("tcpdump"):
            starts |= {"tcpdump, null": lambda: tcpdump(nginx.port, "/dev/null"), "tcpdump, file": lambda: tcpdump(nginx.port, folder / "all.pcap")}
        rounds = measure.in_turn(asked.rounds, {name: (lambda start=start: closed_loop(nginx, asked.seconds, start)) for name, start in starts.items()})
        measured = {name: columns(values) for name, values in rounds.items()}
        for percent in (100, 1):
            each = [even_rate(nginx, sink, asked.rate, asked.seconds, percent) for _ in range(max(asked.rounds // 2, 1))]
            measured[f"{percent} % of {asked.rate}/s"] = columns(each)
    cpu = measured["tap, rewrites"]["us CPU a request"]
    bars = [
        measure.bar("CPU of the tap a request, read and rewritten", cpu, measure.AT_MOST, 0.6, None, "us"),
        measure.bar("memory beside the ring", measured["tap, rewrites"]["MB beside the ring"], measure.AT_MOST, 48, None, "MB"),
        measure.bar("production beside alone", {key: measured["tap, rewrites"]["production/s"][key] / measured["alone"]["production/s"][key] for key in ("min", "median")}, measure.AT_LEAST, 0.92),
        measure.bar("kernel drops", {key: measured["tap, rewrites"]["kernel drops"][key] for key in ("min", "median")}, measure.AT_MOST, 0),
        measure.bar("first byte seen to sent, 100 %", measured[f"100 % of {asked.rate}/s"]["lag p50 us"], measure.AT_MOST, 1500, None, "us"),
        measure.bar("share of a core at 1 %", measured[f"1 % of {asked.rate}/s"]["% of a core"], measure.AT_MOST, 3, None, "%"),
    ]
    if "tcpdump, null" in measured:
        bars += [
            measure.bar("CPU beside tcpdump -w /dev/null", measure.ratio(cpu, measured["tcpdump, null"]["us CPU a request"]), measure.AT_MOST, 1.3),
            measure.bar("CPU beside tcpdump -w FILE", measure.ratio(cpu, measured["tcpdump, file"]["us CPU a request"]), measure.AT_MOST, 0.7),
        ]
    notes = [
        "The kernel hands a block of the ring over when it is full, or after --block-timeout; before Linux 6.18 that timer ticks in jiffies (4 ms at 250 Hz), so 1 ms is what newer kernels keep.",
        "wrk, nginx and the tool share two cores here: production gives way to whatever runs beside it.",
    ]
    measure.tell("tap", QUESTION, asked, measured, bars, notes=notes)


if __name__ == "__main__":
    main()
