"""How much memory, and does it grow with the capture? Peak RSS of `replay run --pace max`.

    python benchmarks/bench_memory.py [--requests 100k 1m]

Three ways: a dry run of a file, a dry run through a pipe from another process that makes the capture on the fly, and sending into `replay sink` with 16 under way on each of 64 connections. A round is enough: a
peak hardly moves. The bounds are the defaults, `--max-memory` among them.
"""

import subprocess
import sys

import inputs
import measure
import sending
import servers

QUESTION = "How much memory, at any size of the capture? Peak RSS."


def filed(path, _):
    report, used = measure.replay("--dry-run", "--pace", "max", path)
    return report["ledger"]["selected"], used.peak


def piped(_, requests):
    with subprocess.Popen([sys.executable, measure.HERE / "generate.py", "--requests", str(requests)], stdout=subprocess.PIPE) as maker:
        report, used = measure.replay("--dry-run", "--pace", "max", "-", stdin=maker.stdout)
        maker.stdout.close()
    if maker.returncode:
        raise SystemExit("the capture was not read to its end")
    return report["ledger"]["selected"], used.peak


def sent(path, requests):
    with servers.Sink().watched() as watched:
        report, used = measure.replay("--pace", "max", "-c", sending.CONNECTIONS, "--pipeline", "16", "--to", watched.sink.url, path)
    measure.exactly("the sink, of replay's,", watched.served, requests)
    return report["ledger"]["answered"], used.peak


def main():
    parser = measure.arguments(__doc__, rounds=1)
    parser.add_argument("--requests", type=inputs.count, nargs="+", default=[100_000, 1_000_000])
    asked = parser.parse_args()
    runs, measured = [], {}
    for requests in asked.requests:
        path, _ = inputs.cached(requests=requests)

        def once(way, path=path, requests=requests):
            def call():
                found, peak = way(path, requests)
                return measure.exactly("replay", found, requests), peak / 2**20

            return call

        for name, values in measure.in_turn(asked.rounds, {"file": once(filed), "pipe": once(piped), "sending": once(sent)}).items():
            peak = measure.spread([one[1] for one in values])
            measured[f"{name}, {path.stat().st_size / 1e9:.3g} GB"] = {"requests": requests, "peak MB": peak}
            runs.append({"how": name, "bytes": path.stat().st_size, "requests": requests, "peak_mb": peak})
    worst = {key: max(run["peak_mb"][key] for run in runs) for key in ("min", "median")}
    bars = [measure.bar("peak, the worst of these", worst, measure.AT_MOST, 96, 64, "MB")]
    measure.tell("memory", QUESTION, asked, measured, bars, {"runs": runs})


if __name__ == "__main__":
    main()
