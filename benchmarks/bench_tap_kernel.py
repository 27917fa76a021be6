"""What does a tap save by what it leaves to the kernel: a share of the connections, and what servers say?

    python benchmarks/bench_tap_kernel.py [--seconds 8] [--rounds 3] [--runs 4]        (as root)

Production is an nginx on lo under full load by wrk (closed loop, 64 connections; a small reply, and one of 10 kB). Beside it, in turn: nothing; a tap of 1 % that chooses by connection itself; one whose filter chooses (connection:kernel); and taps of
everything that have replies whole, their beginnings, or not at all. CPU is the whole tool's and nginx's, a request of nginx's own count. The share in the kernel is checked against the reference, connection by connection, in the tests.
"""

import json
import os
import signal
import subprocess
import time

import measure
import servers

QUESTION = "What does a tap save by what it leaves to the kernel?"
CONNECTIONS = 64
PATIENCE_S = 20

TAPS = {
    "1 % by connection": ("-p", "1", "--sample-by", "connection"),
    "1 % by connection:kernel": ("-p", "1", "--sample-by", "connection:kernel"),
    "all, replies whole": ("-p", "100", "--replies", "whole"),
    "all, heads of replies": ("-p", "100", "--replies", "heads"),
    "all, no replies": ("-p", "100", "--replies", "none"),
}


class Nginx(servers.Nginx):
    """With a page of 10 kB as well."""

    def __enter__(self):
        before = servers.NGINX
        large = f'location = /large {{{{ set $part "{"x" * 2500}"; return 200 "$part$part$part$part"; }}}}'
        servers.NGINX = before.replace("location / {{", f"{large}\n        location / {{{{", 1)
        try:
            return super().__enter__()
        finally:
            servers.NGINX = before


def loaded(nginx, path, seconds, runs):
    """Requests a second, over several runs with connections of their own: a share of 64 is a matter of luck."""
    total = 0.0
    for _ in range(runs):
        words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(seconds // runs, 1)}s", f"http://127.0.0.1:{nginx.port}{path}"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, **measure.on(measure.CLIENT))
        total += next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("Requests/sec"))
    return total / runs


def round_of(nginx, path, seconds, runs, words):
    """Figures of one round. words: of the tap; None: there is none."""
    process = None
    if words is not None:
        command = [*measure.REPLAY, "tap", "lo", "--port", str(nginx.port), "--user", "root", "--dry-run", "--json", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + PATIENCE_S
        while "rights:" not in (line := process.stderr.readline()):
            if not line or time.monotonic() > until:
                raise SystemExit("the tap does not start")
        time.sleep(0.5)
    served, nginx_used = nginx.count(), servers.seconds_used(nginx.worker)
    used = servers.seconds_used(process.pid) if process else 0.0
    rate = loaded(nginx, path, seconds, runs)
    time.sleep(0.2)
    used = (servers.seconds_used(process.pid) if process else 0.0) - used
    nginx_used, served = servers.seconds_used(nginx.worker) - nginx_used, nginx.count() - served
    found = {"production/s": rate, "us of nginx a request": nginx_used / served * 1e6}
    if process is not None:
        process.send_signal(signal.SIGTERM)
        report = json.loads(process.communicate(timeout=PATIENCE_S)[0])
        ledger = report["ledger"]
        under_way = 2 * CONNECTIONS * runs
        if ledger["found"] > served + under_way or (words[1] == "100" and not report["packets"]["kernel_drops"] and ledger["found"] < served - under_way):
            raise SystemExit(f"the tap found {ledger['found']} of {served} requests: nothing of this benchmark holds")
        found |= {
            "us of the tap a request": used / served * 1e6,
            "packets a request": report["packets"]["read"] / served,
            "bytes copied a request": report["tap"]["copied_bytes"] / served,
            "selected %": 100 * ledger["selected"] / served,
            "kernel drops": report["packets"]["kernel_drops"],
        }
    return found


def main():
    parser = measure.arguments(__doc__, seconds=8, rounds=3, runs=4)
    asked = parser.parse_args()
    absent = measure.missing("wrk", "nginx")
    if absent or os.geteuid() != 0:
        raise SystemExit(f"needs root and {', '.join(absent) or 'nothing else'}")
    measured = {}
    with measure.scratch() as folder, Nginx(folder) as nginx:
        for path, size in (("/", "small"), ("/large", "10 kB")):
            starts = {"alone": None} | TAPS
            rounds = measure.in_turn(asked.rounds, {name: (lambda words=words, path=path: round_of(nginx, path, asked.seconds, asked.runs, words)) for name, words in starts.items()})
            for name, values in rounds.items():
                measured[f"{size}: {name}"] = {key: measure.spread([one[key] for one in values]) for key in values[0]}

    def saved(size, better, worse):
        key = "us of the tap a request"
        return measure.ratio(measured[f"{size}: {better}"][key], measured[f"{size}: {worse}"][key])

    key = "bytes copied a request"
    bars = [
        measure.bar("bytes that the kernel copies, 1 % of the connections beside all", measure.ratio(measured["small: 1 % by connection:kernel"][key], measured["small: 1 % by connection"][key]), measure.AT_MOST, 0.05),
        measure.bar("bytes that the kernel copies, heads beside whole replies, 10 kB", measure.ratio(measured["10 kB: all, heads of replies"][key], measured["10 kB: all, replies whole"][key]), measure.AT_MOST, 0.15),
        measure.bar("1 % in the kernel beside 1 % by connection, small replies", saved("small", "1 % by connection:kernel", "1 % by connection"), measure.AT_MOST, 0.5),
        measure.bar("heads of replies beside whole ones, 10 kB", saved("10 kB", "all, heads of replies", "all, replies whole"), measure.AT_MOST, 1.0),
        measure.bar("no replies beside whole ones, small replies", saved("small", "all, no replies", "all, replies whole"), measure.AT_MOST, 0.9),
    ]
    notes = ["wrk, nginx and the tool share the cores here; what the kernel's copies cost is in nginx's and wrk's time, not in the tool's."]
    measure.tell("tap_kernel", QUESTION, asked, measured, bars, notes=notes)


if __name__ == "__main__":
    main()
