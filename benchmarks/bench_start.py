"""How long does `replay --version` take?

    python benchmarks/bench_start.py [--rounds 10]

Wall time, files in the page cache; beside it Python itself, which is most of it.
"""

import sys

import measure

QUESTION = "How long does `replay --version` take? Wall time."


def main():
    parser = measure.arguments(__doc__, rounds=10)
    asked = parser.parse_args()
    ways = {
        "replay --version": lambda: measure.cost([*measure.REPLAY, "--version"]).wall,
        "python -c pass": lambda: measure.cost([sys.executable, "-c", "pass"]).wall,
    }
    for way in ways.values():
        way()
    took = {name: {"ms": measure.spread([1e3 * one for one in values])} for name, values in measure.in_turn(asked.rounds, ways).items()}
    bars = [measure.bar("replay --version", took["replay --version"]["ms"], measure.AT_MOST, 150, 100, "ms")]
    measure.tell("start", QUESTION, asked, took, bars)


if __name__ == "__main__":
    main()
