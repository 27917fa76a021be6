"""What do captures cost whose packets are out of order, come twice, overlap, or are cut anywhere, beside the clean one with the same requests?

    python benchmarks/bench_disorder.py [--requests 300k] [--rounds 5]

`replay run --dry-run --pace max` on one core over the variants of generate.py (a fifth of the packets disordered, duplicated, overlapping; each request cut in two, at every place in turn). Not only is the number of
requests compared, but also, where times are the same, the digest of what was selected. Beside it, on a small capture, a byte a packet: that one is told as ns a packet.
"""

import subprocess

import inputs
import measure

QUESTION = "What do disordered, duplicated, overlapping and cut captures cost, of the clean one with the same requests? One core, CPU time of whole processes."
JUDGED = ("disordered", "duplicated", "overlapping", "cut")
SAME_TIMES = ("duplicated", "overlapping", "cut")  # first bytes at the same time; a request's time stamp is in the digest


def main():
    parser = measure.arguments(__doc__, requests=300_000, connections=1_000, seed=1)
    asked = parser.parse_args()
    how = {"requests": asked.requests, "connections": asked.connections, "seed": asked.seed}
    captures = {name: inputs.cached(variant=name, **how)[0] for name in ("clean", *JUDGED)}
    small = {"requests": max(asked.requests // 100, 10), "connections": min(asked.connections, 100), "seed": asked.seed}
    captures["a byte a packet"], few = inputs.cached(variant="bytes", **small)
    digests, packets = {}, {}

    def reading(name, path):
        expected = few if name == "a byte a packet" else asked.requests

        def once():
            report, used = measure.replay("--dry-run", "--pace", "max", path, core=measure.CLIENT)
            measure.exactly(f"replay, {name},", report["ledger"]["selected"], expected)
            digests[name], packets[name] = report["digest"], report["packets"]["read"]
            return used.cpu

        return once

    for path in captures.values():
        measure.cost(["cat", path], stdout=subprocess.DEVNULL)
    rounds = measure.in_turn(asked.rounds, {name: reading(name, path) for name, path in captures.items()})
    for name in SAME_TIMES:
        measure.exactly(f"the digest of {name} was another one: replay", digests[name], digests["clean"])
    measured, bars = {}, []
    for name, values in rounds.items():
        number = few if name == "a byte a packet" else asked.requests
        measured[name] = {
            "requests": number,
            "packets": packets[name],
            "MB": captures[name].stat().st_size / 1e6,
            "ns CPU a request": measure.spread([one / number * 1e9 for one in values]),
            "ns a packet": measure.spread([one / packets[name] * 1e9 for one in values]),
        }
    clean = measured["clean"]["ns CPU a request"]
    for name in JUDGED:
        bars.append(measure.bar(f"{name}, of clean", measure.ratio(measured[name]["ns CPU a request"], clean), measure.AT_MOST, 1.5, 1.2, "×", "the clean capture"))
    notes = [f"{asked.requests:,} requests each; the same ones were found in all of them (by number; but for the disordered one, whose times differ, by digest as well)."]
    measure.tell("disorder", QUESTION, asked, measured, bars, how, notes)


if __name__ == "__main__":
    main()
