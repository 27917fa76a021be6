"""Does a tap stay what it is under everything at once: load, connections that come and go, a flood of half-open ones, garbage on the tapped port, and a reload every second?

    python benchmarks/soak_mixed.py [--seconds 600] [--flows 1m]        (as root)

Production is an nginx, tapped on lo and on a veth. For --seconds: wrk on connections that stay and wrk that closes each, requests with bodies at an even rate, --flows spoofed flows over the veth (half-open, garbage, half heads:
`flooding.py`), clients that speak anything but HTTP to a second server on a tapped port, and once a second a changed configuration: the share goes up and down, the target from one sink to the other and back,
production's replies are captured and not, and each tenth is wrong.
What is found has to be nginx's own count, but for what wrk had under way each time that it ended; both sinks together count what was sent; memory, open files and threads end where they were when all was under way for a while.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import inputs
import measure
import servers
import tapping

QUESTION = "Does a tap stay what it is under everything at once: load, connections that come and go, a flood, garbage, and a reload every second?"
ROUND_S = 20  # of wrk, between two others
BODIES_RATE = 300
SETTLED_S = 120  # before that its tables still fill
MEMORY = 64 << 20  # --max-memory
BESIDE = 64 << 20  # beside the ring and that: the program, and what it knows of the 65,536 connections that it follows at a time


def garbage(port, ended, seed):
    """Speaks anything but a whole HTTP request to a server, but for one that upgrades, a connection after the other. Returns how many, and how many of those upgraded."""
    chance, n, upgrades = random.Random(seed), 0, 0
    while not ended.is_set():
        said = chance.choice(
            [
                b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + chance.randbytes(500),  # TLS
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x12\x04\0\0\0\0\0",  # HTTP/2
                chance.randbytes(chance.randrange(1, 3000)),
                b"GET /half HTTP/1.1\r\nHost: " + b"h" * chance.randrange(3000),
                b"\r\n" * chance.randrange(1, 2000),
                b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                b"POST /short HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"b" * chance.randrange(50_000),
                b"GET /" + b"x" * 100_000,
                b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + b"\x81\x05hello" * chance.randrange(20_000),
                b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
            ]
        )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as one:
            one.settimeout(0.05)
            at = chance.randrange(len(said))
            one.sendall(said[:at])
            one.sendall(said[at:])
            with contextlib.suppress(TimeoutError):
                one.recv(1000)
            if chance.random() < 0.5:  # a reset instead of an end
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        n += 1
        upgrades += said.startswith(b"GET /up")
        time.sleep(0.005)
    return n, upgrades


def churn(path, tap, targets, ended):
    """A changed configuration each second, and SIGHUP."""
    n = 0
    while not ended.wait(1):
        n += 1
        new = path.with_suffix(".new")
        replies = ("heads", "auto:1s", "none", "auto:1s")[n % 4]
        new.write_text("percent: 1000\n" if n % 10 == 0 else f"percent: {5 + n % 3 * 5}\nto: {targets[n // 5 % 2]}\nreplies: {replies}\n")
        os.chmod(new, 0o644)
        os.rename(new, path)
        tap.process.send_signal(signal.SIGHUP)


def without_connections(pid, sinks):
    """What the tap holds; open files without its connections to the shadow, which are there as they are needed."""
    found = tapping.held(pid)
    for one in sinks:
        found["files"] -= len(subprocess.run(["ss", "-tnH", "state", "established", "state", "close-wait", "state", "syn-sent", "dport", "=", f":{one.port}"], capture_output=True, text=True, check=True).stdout.splitlines())
    return found


def counted(port, name):
    """A number that the metrics tell; the log leaves out what it said too often."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return next((int(float(line.split()[-1])) for line in text.splitlines() if line.startswith(name)), 0)


def in_rounds(nginx, seconds, found, **how):
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0.5:
        found.append(tapping.wrk(nginx.url, max(1, min(ROUND_S, int(rest))), core=None, **how))


def main():
    parser = measure.arguments(__doc__, seconds=600, flows=1_000_000)
    asked = parser.parse_args()
    tapping.apart("wrk", "nginx", "nsenter", "unshare", "ss")
    if not measure.importable("prometheus_client"):
        raise SystemExit("needs prometheus-client: pip install 'shadow-replay[metrics]'")
    checks = tapping.Checks()
    bodies, _ = inputs.cached(requests=BODIES_RATE * asked.seconds, connections=200, bodies=0.5)
    with measure.scratch() as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o755)
        for name in ("production", "garbage"):
            (folder / name).mkdir()
        there = stack.enter_context(tapping.Elsewhere(1))
        tapping.ip("route", "add", "default", "via", there.there)  # answers to spoofed sources leave, and are lost
        nginx = stack.enter_context(servers.Nginx(folder / "production", core=None, host="0.0.0.0"))
        other = stack.enter_context(servers.Nginx(folder / "garbage", core=None, host="0.0.0.0"))
        sinks = [stack.enter_context(tapping.sink(None)) for _ in range(2)]
        targets = [f"http://127.0.0.1:{one.port}" for one in sinks]
        config = folder / "tap.yaml"
        config.write_text(f"percent: 10\nto: {targets[0]}\n")
        before = nginx.count()
        # Nothing is old enough to be dropped for it, and what waits may take its time: the clock is not what is asked here.
        metrics = servers.free_port()
        words = ["veth1", "--metrics", f"127.0.0.1:{metrics}", "--config", config, "--ring", tapping.RING, "--max-memory", MEMORY, "--pipeline", 16, "-c", 16, "--timeout", "20s", "--max-age", "20s"]
        tap = stack.enter_context(tapping.Tap("lo", [nginx.port, other.port], *words))
        asks, ended, loads, spoken = nginx.asked, threading.Event(), [], []
        link = json.loads(subprocess.run(["ip", "-j", "link", "show", there.device], capture_output=True, check=True).stdout)[0]["address"]
        flood = stack.enter_context(tapping.Tool(
            there.inside([sys.executable, measure.HERE / "flooding.py", "eth0", link, there.address, nginx.port, "--flows", asked.flows, "--rate", max(1000, int(asked.flows / max(asked.seconds - 10, 1)))])
        ))
        first = without_connections(tap.pid, sinks)
        threads = [
            threading.Thread(target=in_rounds, args=(nginx, asked.seconds, loads), kwargs={"connections": 32}),
            threading.Thread(target=in_rounds, args=(nginx, asked.seconds, loads), kwargs={"connections": 8, "header": "Connection: close"}),
            threading.Thread(target=lambda: spoken.append(garbage(other.port, ended, 1))),
            threading.Thread(target=churn, args=(config, tap, targets, ended)),
        ]
        with tapping.Watch(tap.pid) as watch:
            for one in threads:
                one.start()
            client = tapping.evenly(nginx.url, bodies, BODIES_RATE)
            client.end(0, seconds=3 * asked.seconds + 60)
            for one in threads[:2]:
                one.join()
            flooded = flood.end(0, seconds=3 * asked.seconds + 60)[0].strip()
            ended.set()
            for one in threads[2:]:
                one.join()
        used = tap.used()
        until = time.monotonic() + 60  # old senders drain, and are forgotten
        while (now := without_connections(tap.pid, sinks)) and (now["threads"] > first["threads"] or now["files"] > first["files"] + 1) and time.monotonic() < until:
            time.sleep(0.5)
        asks = nginx.asked - asks
        reloads = [counted(metrics, f'replay_config_reloads_total{{result="{one}"}}') for one in ("applied", "refused")]
        report = tap.report()
        served = nginx.count() - before
        totals = [tapping.totals(one) for one in sinks]
        accepted = nginx.accepted()
    ledger, packets = report["ledger"], report["packets"]
    half = len(watch.seen) // 2
    earlier, later = (max(one["rss"] for one in some) for some in (watch.seen[half // 4 : half], watch.seen[half:]))
    rounds = 20 * len(loads) + 64  # 32 and 8 connections in turn
    checks.holds("flood", flooded, f"{asked.flows:,} flows", str(asked.flows) in flooded)
    checks.holds("kernel drops (each counted; with them requests may be missing)", packets["kernel_drops"], "told", True)
    missing = served + spoken[0][1] - (ledger["found"] - asks)
    checks.holds("requests of nginx's count that were not found", missing, f"0 ± {rounds}, or fewer than the packets dropped", -rounds <= missing <= rounds + packets["kernel_drops"])
    checks.is_("cut frames", packets["cut_frames"], 0)
    checks.is_("both sinks' own count, of sent", sum(one["requests"] for one in totals), ledger["sent"])
    checks.holds("each sink had its share", [one["requests"] for one in totals], "> 0", all(one["requests"] for one in totals))
    checks.holds("reloads, refused ones", reloads, f"≥ {asked.seconds // 3}, ≥ {asked.seconds // 30}", reloads[0] >= asked.seconds // 3 and reloads[1] >= asked.seconds // 30)
    checks.at_most("resident memory at most, MB", tapping.mb(watch.most("rss")), tapping.mb(tapping.RING + MEMORY + BESIDE))
    if asked.seconds >= SETTLED_S:
        checks.holds("the second half's most, of the first half's", round(later / earlier, 3), "≤ 1.05", later <= 1.05 * earlier)
    # The queue of the rules before is kept until the next ones come: one more, however many reloads there were.
    checks.holds("open files but connections in the end, of the beginning's", now["files"], f"≤ {first['files']} + 1", now["files"] <= first["files"] + 1)
    checks.is_("threads in the end, of the beginning's", now["threads"], first["threads"])
    checks.is_("errors at wrk", [line for load in loads for line in load.errors], [])
    more = {
        "served": served, "connections accepted": accepted, "spoke garbage": spoken[0][0], "sent": ledger["sent"], "dropped": ledger["by_reason"]["dropped"], "withheld": ledger["by_reason"]["withheld"], "unanswered": ledger["by_reason"]["unanswered"],
        "incomplete": report["incomplete"], "other": report["other"], "evicted connections": report["evicted_connections"], "rss in the beginning, MB": tapping.mb(first["rss"]), "share of a core": used / asked.seconds,
    }  # fmt: skip
    checks.tell("soak_mixed", QUESTION, asked, more)


if __name__ == "__main__":
    main()
