"""How much memory, and does it grow with the capture? Peak RSS of `replay run --dry-run --pace max`.

    python benchmarks/bench_memory.py [--bytes 200m 2g]

Mapped from a file, and through a pipe from another process that makes the capture on the fly. A round is enough: a peak hardly moves. Memory that is mapped from the capture counts as well (it is the page cache's).
"""

import subprocess
import sys

import generate
import measure

QUESTION = "How much memory, at any size of the capture? Peak RSS, mapped pages of the capture included."


def piped(requests, most):
    """(requests found, peak) of a capture that comes through a pipe."""
    with subprocess.Popen([sys.executable, measure.HERE / "generate.py", "--requests", str(requests), "--bytes", str(most)], stdout=subprocess.PIPE) as maker:
        report, used = measure.replay("--dry-run", "--pace", "max", "-", stdin=maker.stdout)
        maker.stdout.close()
    if maker.returncode:
        raise SystemExit("the capture was not read to its end")
    return report["ledger"]["selected"], used.peak


def main():
    parser = measure.arguments(__doc__, rounds=1, requests=100_000)
    parser.add_argument("--bytes", type=generate.size, nargs="+", default=[200 << 20, 2 << 30])
    asked = parser.parse_args()
    runs, measured = [], {}
    for most in asked.bytes:
        path, requests = generate.cached(requests=asked.requests, most=most)

        def mapped(path=path, requests=requests):
            report, used = measure.replay("--dry-run", "--pace", "max", path)
            return measure.exactly("replay", report["ledger"]["selected"], requests), used.peak

        def through_a_pipe(most=most, requests=requests):
            found, peak = piped(asked.requests, most)
            return measure.exactly("replay", found, requests), peak

        rounds = measure.in_turn(asked.rounds, {"mapped": mapped, "pipe": through_a_pipe})
        for name, values in rounds.items():
            peak = measure.spread([one[1] / 2**20 for one in values])
            measured[f"{name}, {path.stat().st_size / 1e9:.3g} GB"] = {"requests": requests, "peak MB": peak}
            runs.append({"how": name, "bytes": path.stat().st_size, "requests": requests, "peak_mb": peak})
    worst = {key: max(run["peak_mb"][key] for run in runs) for key in ("min", "median")}
    bars = [measure.bar("peak, the worst of these", worst, measure.AT_MOST, 96, 64, "MB")]
    measure.tell("memory", QUESTION, asked, measured, bars, {"runs": runs})


if __name__ == "__main__":
    main()
