"""What the benchmarks share: processes measured as a whole, rounds in turn, bars, the machine and the commit, a table and a JSON object.

The rules: CPU time is user + system of the whole process, start-up included; what is compared is measured in the same run, in turn (A B A B); minima and medians are both shown, and a bar is judged by both; what is
found is compared with what is known to be there, in each round, and a difference ends the benchmark.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import inputs

HERE = pathlib.Path(__file__).resolve().parent
PEERS = HERE / "peers"
REPLAY = [sys.executable, "-P", "-m", "replay"]  # -P: the installed package, not the checkout that we may stand in
CORES = sorted(os.sched_getaffinity(0))
CLIENT, SERVER = CORES[0], CORES[-1]  # client and server have a core each
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # whatever is installed has its bytecode; without, each start would parse the sources anew
os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # nginx, tcpdump and ip are there for root only
QUIET_CORES = 0.1  # others may use so much of the machine before it is told


# ---- processes ---------------------------------------------------------------------------------------------------------------


def on(cores):
    """Keyword arguments of Popen that keep the process (and what it starts) on these cores; None: on any."""
    if cores is None:
        return {}
    wanted = {cores} if isinstance(cores, int) else set(cores)
    return {"preexec_fn": functools.partial(os.sched_setaffinity, 0, wanted)}


class Cost:
    """What a process cost: said (its stdout), user, system and wall in seconds, peak in bytes. cpu is user + system.

    The peak is never below our own (Linux hands it down over exec), so whoever wants it stays small.
    """

    def __init__(self, said, used, wall):
        self.said, self.user, self.system, self.wall, self.peak = said, used.ru_utime, used.ru_stime, wall, used.ru_maxrss * 1024

    @property
    def cpu(self):
        return self.user + self.system


def cost(command, *, core=None, codes=(0,), while_it_runs=None, **more):
    """Runs a process to its end. while_it_runs: called with the process once it is started. Raises SystemExit for another exit code."""
    with tempfile.TemporaryFile() as said:  # not a pipe: nobody has to read beside it
        began = time.monotonic()
        process = subprocess.Popen([str(part) for part in command], **{"stdout": said, "stderr": subprocess.DEVNULL} | on(core) | more)
        if while_it_runs is not None:
            while_it_runs(process)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read()
    if process.returncode not in codes:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}: {output[-2000:].decode(errors='replace')}")
    return Cost(output, used, wall)


def replay(*arguments, **more):
    """(report, cost) of `replay run --json ARGUMENTS`; the books of the report are checked."""
    done = cost([*REPLAY, "run", "-q", "--json", *arguments], **more)
    report = json.loads(done.said)
    ledger = report["ledger"]
    if ledger["found"] != ledger["filtered"] + ledger["sampled_out"] + ledger["withheld"] + ledger["selected"] or ledger["selected"] + ledger["fanout"] != ledger["sent"] + ledger["dropped"]:
        raise SystemExit(f"the ledger does not add up: {ledger}")
    return report, done


@functools.cache
def offered(option):
    """Whether `replay run` has this option."""
    return option in subprocess.run([*REPLAY, "run", "--help"], capture_output=True, text=True).stdout


def compiled(name, *flags):
    """A program of `peers/NAME.c`, made with cc when it is not there yet; None where there is no compiler."""
    source = PEERS / f"{name}.c"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    target = inputs.folder() / f"{name}-{int(source.stat().st_mtime)}-{'-'.join(flags)}".replace("/", "_")
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.part")
        subprocess.run([compiler, "-O2", *flags, "-o", part, source], check=True)
        part.rename(target)
    return target


def missing(*programs):
    """Which of these programs are not installed."""
    return [name for name in programs if shutil.which(name) is None]


def importable(module):
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def spread(values):
    """Minimum, median, maximum and (max - min) / median of some measurements."""
    middle = statistics.median(values)
    return {"min": min(values), "median": middle, "max": max(values), "spread": (max(values) - min(values)) / middle if middle else 0.0, "rounds": len(values)}


def in_turn(rounds, ways):
    """{name: [what the call returned, a round each]}: A B A B, so that what disturbs the machine disturbs all alike. ways: {name: callable}. What returns None is out of it."""
    found = {name: [] for name in ways}
    for each in range(rounds):
        for name, way in ways.items():
            note(f"round {each + 1} of {rounds}: {name}")
            found[name].append(way())
    note("")
    return {name: values for name, values in found.items() if None not in values}


def note(text):
    """Progress, where somebody looks on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def exactly(name, found, expected):
    """0 requests lost or invented, or the benchmark ends here."""
    if found != expected:
        raise SystemExit(f"{name} found {found} of {expected} requests: nothing of this benchmark holds")
    return found


# ---- bars --------------------------------------------------------------------------------------------------------------------

AT_MOST, AT_LEAST = "≤", "≥"


def bar(what, values, sense, reach, stretch=None, unit="", against=""):
    """A line of the table of bars, judged. values: {"min": ..., "median": ...}: the figure from the minima and from the medians; both have to meet it.

    verdict: `stretch`, `reach`, `missed`, or `reach by the better of the two` where minima and medians disagree.
    """

    def meets(value, goal):
        return goal is not None and (value <= goal if sense == AT_MOST else value >= goal)

    both = (values["min"], values["median"])
    if all(meets(value, stretch) for value in both):
        verdict = "stretch"
    elif all(meets(value, reach) for value in both):
        verdict = "reach"
    elif any(meets(value, reach) for value in both):
        verdict = "in part"
    else:
        verdict = "missed"
    return {"what": what, "sense": sense, "reach": reach, "stretch": stretch, "unit": unit, "against": against, "min": both[0], "median": both[1], "verdict": verdict}


def left_out(what, why, sense, reach, stretch=None, unit="", against=""):
    """A bar that could not be measured here, with the reason."""
    return {"what": what, "sense": sense, "reach": reach, "stretch": stretch, "unit": unit, "against": against, "min": None, "median": None, "verdict": "not measured", "why": why}


def ratio(a, b):
    """a over b, from the minima and from the medians of two spreads."""
    return {key: a[key] / b[key] for key in ("min", "median")}


def further(many, few, more):
    """What each of `more` further requests costs: minima and medians of two lists of figures, taken from one another. Start-up falls out."""
    many, few = spread(many), spread(few)
    return {key: (many[key] - few[key]) / more for key in ("min", "median")}


def scaled(a, factor):
    return {key: a[key] * factor for key in ("min", "median")}


# ---- who else is busy ---------------------------------------------------------------------------------------------------------


def _machine_cpu():
    """Seconds of CPU time that all processes of this machine used, interrupts included."""
    user, nice, system, _, _, hard, soft, stolen = map(int, pathlib.Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own_cpu():
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


_BEGAN = (time.monotonic(), _machine_cpu(), _own_cpu())


def others_cores():
    """Cores that somebody else kept busy since this benchmark began; interrupts that our own traffic causes are in it."""
    passed = time.monotonic() - _BEGAN[0]
    return max((_machine_cpu() - _BEGAN[1] - (_own_cpu() - _BEGAN[2])) / passed, 0.0) if passed > 0 else 0.0


# ---- telling -----------------------------------------------------------------------------------------------------------------


def surroundings():
    """machine and commit, as they stand in each result."""
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    version = subprocess.run([*REPLAY, "--version"], capture_output=True, text=True).stdout.strip()
    git = subprocess.run(["git", "-c", f"safe.directory={HERE.parent}", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True)
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "cores_used": len(CORES), "kernel": platform.release(), "python": platform.python_version(), "arch": platform.machine()},
        "commit": git.stdout.strip() or None,
        "version": version,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def arguments(doc, rounds=5, **more):
    """The parser that all benchmarks begin with."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, no table")
    for name, value in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=inputs.count if isinstance(value, int) else type(value), default=value)
    return parser


def number(value):
    """Three digits that count, as people read them."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(rows, heads):
    """Aligned text. rows: of strings."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in [heads, *rows]]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def bar_rows(bars):
    """A bar each: what, minima, medians, the bar, stretch, verdict."""
    rows = []
    for one in bars:
        unit = f" {one['unit']}" if one["unit"] else ""
        rows.append(
            [
                one["what"],
                number(one["min"]) + (unit if one["min"] is not None else ""),
                number(one["median"]) + (unit if one["median"] is not None else ""),
                f"{one['sense']} {number(one['reach'])}{unit}",
                f"{one['sense']} {number(one['stretch'])}{unit}" if one["stretch"] is not None else "-",
                one["verdict"] + (f": {one['why']}" if "why" in one else ""),
            ]
        )
    return rows


BAR_HEADS = ["", "minima", "medians", "bar", "stretch", "verdict"]


def tell(name, question, asked, measured, bars, more=None, notes=()):
    """Prints the result: a table, or with --json one object.

    measured: {way: {column: spread or number}}.
    """
    result = {"benchmark": name, "question": question, **surroundings(), "others_cores": others_cores(), "measured": measured, "bars": bars, "notes": list(notes), **(more or {})}
    if asked.json:
        print(json.dumps(result, indent=2))
        return result
    where = result["machine"]
    print(f"{question}\n{where['cpu']}, {where['cores_used']} cores, Linux {where['kernel']}, Python {where['python']}; commit {result['commit']}\n")
    columns = list(dict.fromkeys(column for values in measured.values() for column in values))
    rows = []
    for way, values in measured.items():
        row = [way]
        for column in columns:
            value = values.get(column)
            row.append(f"{number(value['min'])} / {number(value['median'])}" if isinstance(value, dict) else number(value))
        rows.append(row)
    print(table(rows, ["minimum / median of the rounds", *columns]) + "\n")
    if bars:
        print(table(bar_rows(bars), BAR_HEADS) + "\n")
    for line in notes:
        print(line)
    if result["others_cores"] > QUIET_CORES:
        print(f"Other processes used {result['others_cores']:.2f} cores meanwhile: wall times, rates and lateness are worse than on a quiet machine.")
    return result


@contextlib.contextmanager
def scratch():
    """A folder of this benchmark's own."""
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        yield pathlib.Path(folder)
