"""Does production notice when a tap is killed (SIGKILL) at any time, and does anything stay behind?

    python benchmarks/soak_kill.py [--kills 40] [--seed 1]        (as root)

wrk loads an nginx without a rest. Beside it a tap that mirrors everything, records, and serves metrics is started and killed, each time after another while: in its start-up, with its first packets, under load. Each time, what a tap
may leave is looked for: packet sockets, connections to the shadow, listening sockets, files but those of its recording, filters and rules of the network, promiscuous interfaces, processes. In the end one that is left alone mirrors as
ever. wrk has to have had no error at all, and nginx nothing to say.
"""

import contextlib
import os
import pathlib
import random
import subprocess
import time

import measure
import servers
import tapping

QUESTION = "Does production notice when a tap is killed at any time, and does anything stay behind?"
LONGEST_S = 5.0


def said(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout


def left(shadow, metrics):
    """What there is in this network namespace that a tap could have left: {what: lines}. The kernel's own memory of connections that have ended (TIME-WAIT, FIN-WAIT) is no socket of anybody's."""
    return {
        "packet sockets": pathlib.Path("/proc/net/packet").read_text().splitlines()[1:],
        "connections to the shadow": said("ss", "-tanH", "state", "connected", "exclude", "time-wait", "exclude", "fin-wait-1", "exclude", "fin-wait-2", "dport", "=", f":{shadow}").splitlines(),
        "listening sockets": said("ss", "-tlnH", "sport", "=", f":{metrics}").splitlines(),
        "rules": said("nft", "list", "ruleset").splitlines(),
        "queueing and its filters": [line for line in (said("tc", "qdisc", "show", "dev", "lo") + said("tc", "filter", "show", "dev", "lo")).splitlines() if "noqueue" not in line],
        "promiscuous interfaces": [line for line in said("ip", "-d", "link", "show").splitlines() if "promiscuity" in line and "promiscuity 0" not in line],
        "shared memory": sorted(one for one in os.listdir("/dev/shm") if "replay" in one),
    }


def main():
    parser = measure.arguments(__doc__, kills=40, seed=1)
    asked = parser.parse_args()
    tapping.apart("wrk", "nginx", "ss", "tc")
    chance = random.Random(asked.seed)
    checks = tapping.Checks()
    with measure.scratch() as folder, contextlib.ExitStack() as stack:
        own = folder / "own"  # where a tap would put what it thinks is temporary
        own.mkdir(mode=0o777)
        production = folder / "production"
        production.mkdir()
        metrics = servers.free_port()
        with servers.Nginx(production) as nginx, tapping.sink(measure.SERVER) as shadow:
            recording = folder / "recorded"
            recording.mkdir()
            words = ["--to", f"http://127.0.0.1:{shadow.port}", "-p", 100, "--record", recording / "tap.pcapng", "--record-files", 2, "--record-size", "8MiB", "--metrics", f"127.0.0.1:{metrics}"]
            before = left(shadow.port, metrics)
            complained = len((production / "error.log").read_text().splitlines())  # about its limits, as it starts
            files = set()
            stayed, when, starts, ended = {}, [], 0, 0
            # As long as it takes: wrk is asked for a round, and for another one while there are taps to kill.
            load = tapping.Wrk(nginx.url, 3600)
            with load:
                for _ in range(asked.kills):
                    after = chance.uniform(0, LONGEST_S)
                    tap = tapping.Tool([*measure.REPLAY, "tap", "lo", "--port", nginx.port, *words], env=os.environ | {"TMPDIR": str(own)})
                    stack.callback(tap.kill)
                    time.sleep(after)
                    starts += "rights:" in tap.said()
                    ended += tap.process.poll() is not None
                    tap.kill()
                    when.append(after)
                    until = time.monotonic() + 5  # what the kernel still has to close
                    while (now := left(shadow.port, metrics)) != before and time.monotonic() < until:
                        time.sleep(0.02)
                    for name, lines in now.items():
                        if lines != before[name]:
                            stayed[name] = stayed.get(name, 0) + 1
                    files |= {path.name for path in [*own.rglob("*"), *recording.iterdir()]}
                load.process.send_signal(subprocess.signal.SIGINT)
            with tapping.Tap("lo", nginx.port, *words) as tap:
                tapping.wrk(nginx.url, 1)
                report = tap.report()
            time.sleep(0.2)
            afterwards = left(shadow.port, metrics)
        complaints = (production / "error.log").read_text().splitlines()[complained:]
    checks.is_("taps killed", len(when), asked.kills)
    checks.holds("of them after they had begun to capture", starts, "some, not all", 0 < starts < asked.kills or asked.kills < 8)
    checks.is_("taps that had ended by themselves", ended, 0)
    checks.is_("what stayed behind a kill", stayed, {})
    checks.is_("what stayed in the end", {name: lines for name, lines in afterwards.items() if lines != before[name]}, {})
    checks.holds("files but its recording's", sorted(files - {"tap-0.pcapng", "tap-1.pcapng"}), "none", files <= {"tap-0.pcapng", "tap-1.pcapng"})
    checks.is_("errors at the client", load.errors, [])
    checks.is_("what production's error log says of it", complaints, [])
    checks.holds("mirrored by the one that was left alone", report["ledger"]["answered"], "> 0", report["ledger"]["answered"] > 0)
    checks.tell("soak_kill", QUESTION, asked, {"seconds until the kill": {"least": min(when), "most": max(when)}, "requests/s meanwhile": load.rate})


if __name__ == "__main__":
    main()
