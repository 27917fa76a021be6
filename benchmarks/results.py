"""Runs all benchmarks and writes what came out: RESULTS.md with its plots, and results.json.

    python benchmarks/results.py [--only parse,send] [--rounds 5] [--quick] [--into benchmarks]

Nothing in RESULTS.md is written by hand: the figures, the bars and whether they are met come from the programs. A benchmark that fails is told as failed, the others go on, and the exit code is 1.
bench_tap is not among them: it takes some minutes, and runs alone.
`--quick` has tiny inputs: it shows that all work, the figures mean nothing. Without `--only` earlier results are replaced; with it, those of other benchmarks are kept when they are of the same commit.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import measure
import plots

HERE = pathlib.Path(__file__).resolve().parent

#: (name, arguments of a quick run), in the order of the page
ALL = [
    ("parse", "--requests 5k --connections 50 --rounds 1"),
    ("disorder", "--requests 1k --connections 50 --rounds 1"),
    ("threads", "--requests 5k --connections 50 --rounds 1"),
    ("send", "--requests 5k --connections 50 --seconds 1 --rounds 1"),
    ("pipeline", "--requests 5k --connections 50 --seconds 1 --rounds 1"),
    ("sink", "--requests 5k --connections 50 --seconds 1 --rounds 1"),
    ("connect", "--requests 500 --rounds 1"),
    ("chain", "--requests 5k --connections 50 --seconds 1 --rounds 1"),
    ("pacing", "--seconds 1 --rates 1k 2k 4k --connections 50 --rounds 1"),
    ("start", "--rounds 2"),
    ("first_request", "--requests 1k --rounds 1"),
    ("memory", "--requests 500 5k"),
    ("routes", "--requests 1k --connections 50 --rounds 1"),
]
NAMES = [name for name, _ in ALL]


def run(name, arguments):
    """The result of one benchmark, or {"benchmark", "failed": why}."""
    began = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, HERE / f"bench_{name}.py", "--json", *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"benchmark": name, "failed": why, **measure.surroundings()}
    return json.loads(done.stdout) | {"took_s": time.monotonic() - began}


# ---- the page ----------------------------------------------------------------------------------------------------------------


def markdown(rows, heads):
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 2) + " --- |", *("| " + " | ".join(row) + " |" for row in escaped)])


def measured_table(result):
    """Minimum / median of each column."""
    columns = list(dict.fromkeys(column for values in result["measured"].values() for column in values))
    rows = []
    for way, values in result["measured"].items():
        row = [way]
        for column in columns:
            value = values.get(column)
            row.append(f"{measure.number(value['min'])} / {measure.number(value['median'])}" if isinstance(value, dict) else measure.number(value))
        rows.append(row)
    lines = ["| minimum / median | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def rounds(result):
    """In how many rounds it was measured."""
    return next((value["rounds"] for values in result["measured"].values() for value in values.values() if isinstance(value, dict) and "rounds" in value), 1)


def summary(results):
    """All bars in one table, and how many are met."""
    rows, verdicts = [], []
    for name in NAMES:
        for row, one in zip(measure.bar_rows(results.get(name, {}).get("bars", [])), results.get(name, {}).get("bars", []), strict=True):
            rows.append([f"[{name}](#{name})", *row])
            verdicts.append(one["verdict"])
    met = sum(one in ("stretch", "reach") for one in verdicts)
    said = f"{met} of {len(verdicts)} bars are met, {verdicts.count('stretch')} of them with the stretch goal (where there is one)"
    rest = [f"{verdicts.count(one)} {one}" for one in ("in part", "missed", "not measured") if verdicts.count(one)]
    return said + ("; " + ", ".join(rest) if rest else "") + ".", markdown(rows, ["", "what", "minima", "medians", "bar", "stretch", "verdict"])


def page(results, drawn, quick):
    """RESULTS.md."""
    first = next(iter(results.values()))
    where = first["machine"]
    commits = sorted({one["commit"] or "none" for one in results.values()})
    busy = max((one.get("others_cores", 0.0) for one in results.values()), default=0.0)
    said, table = summary(results)
    parts = [
        "# Results",
        "Written by `make bench`; not to be edited. How it is measured: [docs/performance.md](../docs/performance.md). Each row is two figures: from the minima and from the medians of the rounds; a bar is met when both meet it.",
        f"{where['cpu']}, {where['cores_used']} cores, Linux {where['kernel']}, Python {where['python']}; commit {', '.join(commits)}; {first['at']}; {sum(one.get('took_s', 0) for one in results.values()) / 60:.1f} minutes.",
    ]
    if quick:
        parts.append("**A quick run with tiny inputs: these figures mean nothing.**")
    if busy > measure.QUIET_CORES:
        parts.append(f"**Other processes used up to {busy:.1f} cores beside the benchmarks: wall times, rates and lateness are worse than they are on a quiet machine.**")
    parts += [said, table]
    parts += [f"![{title}](plots/{file})" for file, title in drawn]
    for name in NAMES:
        if name not in results:
            continue
        one = results[name]
        parts.append(f"## {name}")
        if "failed" in one:
            parts.append(f"Failed: {one['failed']}")
            continue
        parts += [one["question"], measured_table(one), *one["notes"]]
        parts.append(f"{rounds(one)} rounds. Others used {one['others_cores']:.2f} cores meanwhile. `python benchmarks/bench_{name}.py`")
    return "\n\n".join(parts) + "\n"


# ---- plots -------------------------------------------------------------------------------------------------------------------


def draw(results, folder):
    """[(file, title)] of the plots that these results allow."""
    folder.mkdir(exist_ok=True)
    drawn = []

    def keep(file, title, content):
        (folder / file).write_text(content, encoding="utf-8")
        drawn.append((file, title))

    chain = results.get("chain", {})
    if chain.get("stages"):
        rows = [(f"replay, {name}", [tuple(stage) for stage in stages]) for name, stages in chain["stages"].items()]
        wrk = chain["measured"].get("wrk, 1 under way")
        if wrk:
            rows.append(("wrk, 1 under way", [("send, user", wrk["user us a request"]["median"]), ("send, kernel", wrk["system us a request"]["median"])]))
        title = "What a request costs, from capture file to nginx, by stage"
        keep("chain.svg", title, plots.stacked(title, "µs of CPU time a request, medians; wrk only sends, and always the same request", rows, "µs"))
    sink = results.get("sink", {})
    if sink.get("depths"):
        depths = sorted({one["depth"] for one in sink["depths"]})
        series = []
        for colour, tool in enumerate(("replay", "wrk", "h2load")):
            row = [next((one["served_per_s"] for one in sink["depths"] if (one["tool"], one["depth"]) == (tool, depth)), None) for depth in depths]
            if any(row):
                series.append((tool, row, colour, False))
        title = "Requests served a second, by requests under way on a connection"
        what = "into replay sink, a core for the client and one for the server, medians; so many at most go out in one send"
        keep("throughput.svg", title, plots.lines(title, what, [str(depth) for depth in depths], series, "requests/s", [("bar", 2_000_000)]))
    pacing = results.get("pacing", {})
    figures, series = ["p50", "p90", "p99", "p99.9", "max"], []
    for name, values in pacing.get("measured", {}).items():
        if "p50 us" not in values or name.startswith("stall") or name == "replay, as captured":
            continue
        tool, _, rate = name.partition(" ")
        # A colour a rate; the loop that spins is dashed.
        colour = len(pacing["rates"]) if tool.startswith("tcpreplay") else [f"{one:,}/s" for one in pacing["rates"]].index(rate)
        series.append((name.replace(", as captured", ""), [values[f"{figure} us"]["median"] for figure in figures], colour, tool == "spin"))
    if series:
        title = "How late requests were sent, by the kernel's time stamps"
        what = "µs after the request was due, percentiles of a round, medians of the rounds; spin is a bare loop, tcpreplay plays 10,000/s"
        keep("lateness.svg", title, plots.lines(title, what, figures, series, "µs late", [("bar for p99", 100)]))
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names: " + ",".join(NAMES))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--into", type=pathlib.Path, default=HERE)
    asked = parser.parse_args()
    only = [name for name in asked.only.split(",") if name]
    if unknown := set(only) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    kept = asked.into / "results.json"
    results = {}
    if only and kept.exists():
        commit = measure.surroundings()["commit"]
        results = {name: one for name, one in json.loads(kept.read_text())["results"].items() if one["commit"] == commit}
    for name, quick in ALL:
        if only and name not in only:
            continue
        print(f"{name} …", end=" ", flush=True)
        results[name] = run(name, [*(quick.split() if asked.quick else []), *(["--rounds", str(asked.rounds)] if asked.rounds else [])])
        one = results[name]
        print(f"failed: {one['failed']}" if "failed" in one else f"{one['took_s']:.0f} s", flush=True)
        for row in measure.bar_rows(one.get("bars", [])):
            print(f"    {row[0]}: {row[1]} / {row[2]}, bar {row[3]}: {row[-1]}", flush=True)
    results = {name: results[name] for name in NAMES if name in results}
    asked.into.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"quick": asked.quick, "results": results}, indent=1) + "\n")
    drawn = draw(results, asked.into / "plots")
    (asked.into / "RESULTS.md").write_text(page(results, drawn, asked.quick), encoding="utf-8")
    print(summary(results)[0])
    return int(any("failed" in one for one in results.values()))


if __name__ == "__main__":
    sys.exit(main())
