"""A shadow that is dead, silent, slow, drowning or stopped: does production notice, does the tap grow, and does it come back by itself?

    python benchmarks/soak_shadows.py [--seconds 10] [--rounds 3] [--rate 2k] [--only NAME]        (as root)

Production is an nginx on lo with a client at an even rate; the shadow stands in a network namespace of its own behind a veth. In each round, in turn: production alone, mirrored whole into a shadow that is well, and into each of those
that are not; what is compared is production's latency (from when a request was due to the whole of its reply), round by round. Of the tap: its memory from a second after the fault to the end of it, its ledger against what the
client sent, and how long after the shadow is well again it answers copies, without a restart. The breaker waits for up to 45 s, so that is what recovery may take after a long fault.
"""

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time

import inputs
import measure
import servers
import tapping

QUESTION = "A shadow that is dead, silent, slow, drowning or stopped: does production notice, does the tap grow, and does it come back by itself?"
PORT = 9090
RECOVERS_S = 60
#: A shadow that answers with a byte a second, to each of its connections.
DRIPS = """
import asyncio
async def one(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            for byte in b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n":
                writer.write(bytes([byte])); await writer.drain(); await asyncio.sleep(1)
    except (OSError, asyncio.IncompleteReadError): pass
    finally: writer.close()
async def main():
    async with await asyncio.start_server(one, "0.0.0.0", PORT, backlog=1024, reuse_address=True) as server:
        print("listening on", PORT, flush=True); await server.serve_forever()
asyncio.run(main())
"""


class Shadow:
    """What stands behind the veth: well(), or ill in one of its ways."""

    def __init__(self, there):
        self.there, self.tool = there, None

    def well(self):
        self.gone()
        self.tool = tapping.sink(None, port=PORT, inside=self.there.inside)

    def misbehaves(self, *words):
        self.gone()
        self.tool = tapping.sink(None, *words, port=PORT, inside=self.there.inside)

    def drips(self):
        self.gone()
        self.tool = tapping.Tool(self.there.inside([sys.executable, "-c", DRIPS.replace("PORT", str(PORT))]))
        time.sleep(0.5)

    def gone(self):
        if self.tool is not None:
            self.tool.process.send_signal(signal.SIGCONT)
            self.tool.kill()
            self.tool = None

    def stopped(self):
        self.tool.process.send_signal(signal.SIGSTOP)

    def goes_on(self):
        self.tool.process.send_signal(signal.SIGCONT)

    def hole(self):
        """Packets to it leave, and nobody takes them: not refused, not unreachable."""
        tapping.ip("neigh", "replace", self.there.there, "lladdr", "02:00:00:00:00:99", "dev", self.there.device, "nud", "permanent")

    def no_hole(self):
        subprocess.run(["ip", "neigh", "del", self.there.there, "dev", self.there.device], check=True)


#: name: (what begins it, what ends it)
WAYS = {
    "well": (lambda s: None, lambda s: None),
    "dead": (Shadow.gone, Shadow.well),
    "black hole": (Shadow.hole, Shadow.no_hole),
    "a byte a second": (Shadow.drips, Shadow.well),
    "resets": (lambda s: s.misbehaves("--misbehave", "reset"), Shadow.well),
    "never answers": (lambda s: s.misbehaves("--misbehave", "never"), Shadow.well),
    "never reads": (lambda s: s.misbehaves("--misbehave", "stall"), Shadow.well),
    "10 MB a reply": (lambda s: s.misbehaves("--body", str(10 << 20)), Shadow.well),
    "503": (lambda s: s.misbehaves("--status", "503"), Shadow.well),
    "stopped": (Shadow.stopped, Shadow.goes_on),
}


def client(nginx, path, rate):
    """(latency p50, p99 in us, requests answered) of production, at an even rate."""
    with tapping.evenly(nginx.url, path, rate) as one:
        report = json.loads(one.end(0, seconds=600)[0])
    return report["latency_us"]["p50"], report["latency_us"]["p99"], report["ledger"]["answered"]


def ill(nginx, shadow, way, asked, path, brief):
    """One round with a tap whose shadow is well, then ill, then well again."""
    begins, ends = WAYS[way]
    shadow.well()
    with tapping.Tap("lo", nginx.port, "--to", f"http://{shadow.there.there}:{PORT}", "-p", 100, "--timeout", "1s", "--drain", "2s") as tap:
        sent = client(nginx, brief, asked.rate)[2]
        begins(shadow)
        sent += client(nginx, brief, asked.rate)[2]  # from here on its memory has to stay where it is
        with tapping.Watch(tap.pid) as watch:
            p50, p99, some = client(nginx, path, asked.rate)
        sent += some
        ends(shadow)
        began, before, now = time.monotonic(), tap.ask(), None
        while time.monotonic() < began + RECOVERS_S:
            sent += client(nginx, brief, asked.rate)[2]
            now = tap.ask()
            if now["answered"] - before["answered"] > asked.rate // 4 and now["breaker"] == "closed":
                break
        recovered = time.monotonic() - began
        time.sleep(0.3)
        report = tap.report()
    ledger = report["ledger"]
    return {
        "p50": p50, "p99": p99, "first": watch.seen[0]["rss"], "most": watch.most("rss"), "files": watch.most("files"), "sent": sent, "ledger": ledger, "recovered": recovered, "drops": report["packets"]["kernel_drops"],
        "closed": now["breaker"] == "closed",
    }  # fmt: skip


def main():
    parser = measure.arguments(__doc__, rounds=3, seconds=10, rate=2000)
    parser.add_argument("--only", action="append", choices=WAYS, help="this one beside `well` (repeatable)")
    asked = parser.parse_args()
    tapping.apart("nginx", "nsenter", "unshare")
    checks = tapping.Checks()
    path, _ = inputs.cached(requests=asked.rate * asked.seconds, connections=64, bodies=0.0)
    brief, _ = inputs.cached(requests=asked.rate, connections=64, bodies=0.0)
    long, _ = inputs.cached(requests=asked.rate * max(asked.seconds * 3, 3), connections=64, bodies=0.0)
    names = ["well", *(name for name in WAYS if name != "well" and (not asked.only or name in asked.only))]
    with measure.scratch() as folder, servers.Nginx(folder) as nginx, tapping.Elsewhere(1) as there, contextlib.closing(_Gone(Shadow(there))) as one:
        shadow = one.shadow

        def alone():
            return dict(zip(("p50", "p99"), client(nginx, path, asked.rate)[:2], strict=True))

        ways = {"alone": alone} | {name: (lambda name=name: ill(nginx, shadow, name, asked, long if name == "stopped" else path, brief)) for name in names}
        found = measure.in_turn(asked.rounds, ways)
    measured = {}
    for name, rounds in found.items():
        measured[name] = {key: measure.spread([one[key] for one in rounds]) for key in ("p50", "p99")}
        if name == "alone":
            continue
        for key in ("p50", "p99"):
            measured[name][f"{key} less alone's"] = statistics.median(one[key] - other[key] for one, other in zip(rounds, found["alone"], strict=True))
            measured[name][f"{key} less well's"] = statistics.median(one[key] - other[key] for one, other in zip(rounds, found["well"], strict=True))
        grown = max(one["most"] / one["first"] for one in rounds)
        checks.holds(f"{name}: memory during the fault, of its beginning", round(grown, 3), "≤ 1.05", grown <= 1.05)
        checks.is_(f"{name}: requests found, less those that the client sent", [one["ledger"]["found"] - one["sent"] for one in rounds], [0] * asked.rounds)
        checks.is_(f"{name}: kernel drops", sum(one["drops"] for one in rounds), 0)
        checks.holds(f"{name}: answers again, s after it is well (longest)", round(max(one["recovered"] for one in rounds), 1), f"≤ {RECOVERS_S}", all(one["closed"] for one in rounds))
    told = {}
    for name, values in measured.items():
        told[f"production's latency, {name}, us"] = {key: value["median"] if isinstance(value, dict) else value for key, value in values.items()}
        if name != "alone":
            told[f"what became of the copies, {name}"] = found[name][-1]["ledger"]["by_reason"]["dropped"] | found[name][-1]["ledger"]["by_reason"]["unanswered"]
    checks.tell("soak_shadows", QUESTION, asked, told)


class _Gone:
    """Closes a shadow."""

    def __init__(self, shadow):
        self.shadow = shadow

    def close(self):
        self.shadow.gone()


if __name__ == "__main__":
    main()
