"""Does a tap at full speed find each request once, for as long as you like, and does the shadow get exactly the selected ones?

    python benchmarks/soak_speed.py [--seconds 10] [--requests 50m] [--percent 20] [--depth 1]        (as root)

First, for --seconds, over lo and then over a veth from another network namespace, each request of wrk (one thread, 64 connections, as fast as it can) has a target of its own. nginx's log says which there were; the plain Python sampler (`replay._reference`), which knows nothing of the tap, says
which of them are in the share; the sink's log has to hold each of these once and nothing else. Then plain requests until nginx has counted --requests of them: as many are found, the sink counts as many as were sent, memory and
open files stay where they were.

wrk ends in the middle: it closes 64 connections with a request on each, which nginx may or may not have read. That is the only difference allowed.
"""

import collections
import json
import time

import measure
import servers
import tapping

from replay._reference.sampling import is_taken

QUESTION = "Does a tap at full speed find each request once, for as long as you like, and does the shadow get exactly the selected ones?"
SHARE = 10_000  # of a million, in one percent
TO_SHADOW = 4  # connections
EACH_S = 30  # of wrk, between two looks at the long run


def one_by_one(checks, asked, folder, over):
    """What the shadow logged, against what nginx logged and the reference selects. over: lo or veth."""
    folder.mkdir()
    log = folder / "shadow"
    with servers.Nginx(folder, log=True, host="0.0.0.0") as nginx, tapping.sink(measure.SERVER, "--access-log", log) as shadow, tapping.Elsewhere(1) as there:
        interface, url, inside = ("lo", nginx.url, list) if over == "lo" else (there.device, f"http://{there.address}:{nginx.port}", there.inside)
        words = ["--to", f"http://127.0.0.1:{shadow.port}", "-p", asked.percent, "--sample-by", "path", "--user", "root", "--pipeline", 16, "-c", TO_SHADOW, "--ring", tapping.RING]
        before = nginx.count()
        with tapping.Tap(interface, nginx.port, *words) as tap:
            load = tapping.wrk(url, asked.seconds, mark="", inside=inside)
            time.sleep(0.5)
            report = tap.report()
        served = nginx.count() - before
        totals = tapping.totals(shadow)
    ledger, packets = report["ledger"], report["packets"]
    share = int(asked.percent * SHARE)
    answered = [line.rstrip(b"\n") for line in tapping.lines_of(folder / "log")]
    selected = {target for target in answered if is_taken(target, share)}
    mirrored = collections.Counter(json.loads(line)["target"].encode() for line in tapping.lines_of(log))
    lost = len(selected - mirrored.keys())
    extra = [target for target in mirrored if target not in selected]
    known = set(answered)
    what = f"one by one over {over}, {asked.seconds} s"
    checks.is_(f"{what}: kernel drops", packets["kernel_drops"], 0)
    checks.is_(f"{what}: cut frames", packets["cut_frames"], 0)
    checks.within(f"{what}: requests found, of nginx's count", ledger["found"], served, tapping.CONNECTIONS)
    checks.is_(f"{what}: targets in nginx's log that are there twice", len(answered) - len(known), 0)
    checks.is_(f"{what}: mirrored twice", sum(n - 1 for n in mirrored.values()), 0)
    checks.within(f"{what}: selected by the tap, of the reference's", ledger["selected"], len(selected), tapping.CONNECTIONS)
    checks.is_(f"{what}: mirrored and answered by production, but not selected by the reference", sum(target in known for target in extra), 0)
    checks.at_most(f"{what}: mirrored, under way when wrk ended", len(extra), tapping.CONNECTIONS)
    checks.holds(f"{what}: selected and not mirrored", lost, f"dropped with a count: {ledger['dropped']}", ledger["dropped"] - tapping.CONNECTIONS <= lost <= ledger["dropped"])
    checks.is_(f"{what}: the sink's own count, of sent", totals["requests"], ledger["sent"])
    return {"requests/s": load.rate, "mirrored": sum(mirrored.values()), "dropped": ledger["by_reason"]["dropped"]}


def long(checks, asked, folder):
    """Plain requests, until so many were served."""
    folder.mkdir()
    with servers.Nginx(folder) as nginx, tapping.sink(measure.SERVER) as shadow:
        words = ["--to", f"http://127.0.0.1:{shadow.port}", "-p", asked.percent, "--user", "root", "--pipeline", 16, "-c", TO_SHADOW, "--ring", tapping.RING]
        before = nginx.count()
        with tapping.Tap("lo", nginx.port, *words) as tap:
            asks = nginx.asked
            tapping.wrk(nginx.url, 3)
            first, began, served, rounds = tapping.held(tap.pid), time.monotonic(), 0, 1
            with tapping.Watch(tap.pid) as watch:
                while served < asked.requests:
                    rate = tapping.wrk(nginx.url, min(EACH_S, max(1, int((asked.requests - served) / 30_000))), depth=asked.depth).rate
                    rounds += 1
                    served = nginx.count() - before
                    measure.note(f"{served:,} of {asked.requests:,}, {rate:,.0f}/s")
            took, used = time.monotonic() - began, tap.used()
            asks = nginx.asked - asks
            time.sleep(0.5)
            report = tap.report()
        served = nginx.count() - before
        totals = tapping.totals(shadow)
    ledger, packets = report["ledger"], report["packets"]
    what = f"{served:,} requests"
    checks.holds(f"{what}: served", served, f"≥ {asked.requests:,}", served >= asked.requests)
    checks.is_(f"{what}: kernel drops", packets["kernel_drops"], 0)
    checks.is_(f"{what}: cut frames", packets["cut_frames"], 0)
    checks.within(f"{what}: found, of nginx's count", ledger["found"] - asks, served, rounds * tapping.CONNECTIONS * asked.depth)
    checks.is_(f"{what}: the sink's own count, of sent", totals["requests"], ledger["sent"])
    checks.is_(f"{what}: sent and not answered", ledger["unanswered"], 0)
    checks.holds(f"{what}: resident memory at most, MB", tapping.mb(watch.most("rss")), f"≤ 1.05 × {tapping.mb(first['rss'])}", watch.most("rss") <= 1.05 * first["rss"])
    checks.holds(f"{what}: open files at most", watch.most("files"), f"{first['files']} and {TO_SHADOW} connections, opened as they are needed", watch.most("files") <= first["files"] + TO_SHADOW)
    checks.is_(f"{what}: threads at the end, of the beginning's", watch.last("threads"), first["threads"])
    return {"requests/s": served / took, "minutes": took / 60, "us CPU a request": used / served * 1e6, "sent": ledger["sent"], "dropped": ledger["by_reason"]["dropped"], "packets": packets["read"]}


def main():
    parser = measure.arguments(__doc__, seconds=10, requests=50_000_000)
    parser.add_argument("--depth", type=int, default=1, help="requests in one write of wrk, in the long run")
    parser.add_argument("--percent", type=float, default=20)
    asked = parser.parse_args()
    tapping.apart("wrk", "nginx", "nsenter", "unshare")
    checks = tapping.Checks()
    with measure.scratch() as folder:
        more = {f"one by one over {over}": one_by_one(checks, asked, folder / over, over) for over in ("lo", "veth")}
        if asked.requests:
            more["long"] = long(checks, asked, folder / "long")
    checks.tell("soak_speed", QUESTION, asked, more)


if __name__ == "__main__":
    main()
