"""How much faster do two cores read a capture than one?

    python benchmarks/bench_threads.py [--requests 1m] [--rounds 5]

`replay run --dry-run --pace max`, held on one core and on two; wall time. The bar is judged without start-up (the difference to a capture of a tenth, in the same rounds): what starts Python does not get faster by a
second core. Whole runs stand beside it. Both have to select the same requests (number and digest).
"""

import subprocess

import inputs
import measure

QUESTION = "How much faster do two cores read a capture than one? Wall time."


def main():
    parser = measure.arguments(__doc__, requests=1_000_000, connections=1_000, seed=1)
    parser.add_argument("--threads", default="2", help="for two cores, where `replay run` has such an option")
    asked = parser.parse_args()
    captures = [inputs.cached(requests=number, connections=asked.connections, seed=asked.seed) for number in (asked.requests, max(asked.requests // 10, 1))]
    for path, _ in captures:
        measure.cost(["cat", path], stdout=subprocess.DEVNULL)
    if len(measure.CORES) < 2:
        bars = [measure.left_out("two cores, of one", "this machine has one core", measure.AT_LEAST, 1.4, 1.55, "×")]
        measure.tell("threads", QUESTION, asked, {}, bars)
        return
    digests = set()

    def reading(cores, threads):
        more = ("--threads", threads) if measure.offered("--threads") else ()

        def once():
            took = []
            for path, requests in captures:
                report, used = measure.replay("--dry-run", "--pace", "max", *more, path, core=cores)
                measure.exactly("replay", report["ledger"]["selected"], requests)
                if requests == asked.requests:
                    digests.add(report["digest"])
                took.append(used)
            return took

        return once

    rounds = measure.in_turn(asked.rounds, {"one core": reading(measure.CORES[:1], "1"), "two cores": reading(measure.CORES[:2], asked.threads)})
    measure.exactly("the digest differs: replay", len(digests), 1)
    measured = {}
    for name, values in rounds.items():
        more = asked.requests - captures[1][1]
        measured[name] = {
            "wall s": measure.spread([many.wall for many, _ in values]),
            "wall ns a request without start-up": measure.scaled(measure.further([many.wall for many, _ in values], [few.wall for _, few in values], more), 1e9),
            "CPU s": measure.spread([many.cpu for many, _ in values]),
        }
    one, two = measured["one core"], measured["two cores"]
    name = "wall ns a request without start-up"
    bars = [measure.bar("two cores, of one", measure.ratio(one[name], two[name]), measure.AT_LEAST, 1.4, 1.55, "×", "one core")]
    whole = measure.ratio(one["wall s"], two["wall s"])
    notes = [f"Whole runs, start-up included: {whole['min']:.2f} / {whole['median']:.2f} × (minima / medians). {asked.requests:,} requests; the same ones were selected with one core and with two."]
    measure.tell("threads", QUESTION, asked, measured, bars, {"requests": asked.requests, "whole": whole}, notes)


if __name__ == "__main__":
    main()
