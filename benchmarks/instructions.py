"""How many instructions does a request cost to read? Counted by callgrind, so that noise does not matter: this is what continuous integration looks at.

    python benchmarks/instructions.py             counts, and compares with the baseline
    python benchmarks/instructions.py --refresh   writes the baseline of this compiler, in the same commit as the change that moved it

Small captures are read by `Ingest.run` in one thread: blocks, packets, connections, requests and replies framed, requests selected and rewritten. Only instructions in our own extension count, inside that one call: what
the C library does (memcpy has a variant for each processor) would differ from machine to machine, and so would Python's start. A count is the same from run to run but for some hundred instructions.

It does depend on the compiler, on Cython, on the architecture and on which variant is dispatched to, so the baseline is kept by those four. For a combination that is not in the file there is no number to be held
against: the nearest one then serves as a coarse bound (COARSE), and `--refresh` adds the combination.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

import inputs

BASELINE = pathlib.Path(__file__).with_name("instructions.json")
TOLERANCE = 0.03
COARSE = 0.4  # between compilers
HOW = {"requests": 2_000, "connections": 100, "seed": 1}
CAPTURES = ("clean", "cut")
FUNCTION = "__pyx_pw_*Ingest*run"


def built_by(library):
    """What the counts depend on, as one line: architecture, variant, compiler and Cython, as they stand in the extension itself."""
    data = pathlib.Path(library).read_bytes()
    compiler = re.search(rb"GCC: \([^)]*\) (\d+\.\d+)|(clang version \d+)", data)
    cython = re.search(rb"_cython_(\d+)_(\d+)_", data)
    name = "unknown compiler" if not compiler else f"gcc {compiler[1].decode()}" if compiler[1] else compiler[2].decode().replace(" version", "")
    vectors = "avx2" if platform.machine() == "x86_64" and " avx2 " in pathlib.Path("/proc/cpuinfo").read_text().replace("\n", " ") else "baseline"
    return f"{platform.machine()} {vectors}, {name}, Cython {'.'.join(part.decode() for part in cython.groups()) if cython else 'unknown'}"


def read(path):
    """What runs inside callgrind: the capture read by one call in this thread. Prints how many requests were selected."""
    from replay._fastpath import Capture, Ingest, Pool, Queue, Stop

    stop, pool = Stop(), Pool(1 << 30)
    queue = Queue(pool, 1 << 10)  # nobody takes anything out before the end: there is room for all
    ingest = Ingest(Capture([path], stop=stop), [queue], pool, stop)
    ingest.run()
    print(ingest.counters()["selected"])
    while queue.get(0) is not None:
        pass


def own(dump, library):
    """Instructions of a callgrind dump that were executed in the library itself, calls from it left out."""
    names, inside, skip, total = {}, False, False, 0
    for line in dump.splitlines():
        if line.startswith(("ob=", "cob=")):
            number, _, name = line.partition("=")[2].partition(" ")
            if name:  # said once, wherever it is named first
                names[number] = name
        if line.startswith("ob="):
            inside = pathlib.Path(names.get(number, number)).name == library.name
        elif line.startswith("calls="):
            skip = True  # the next line is what the callee cost
        elif line and (line[0].isdigit() or line[0] in "+-*"):
            if not skip and inside:
                total += int(line.split()[1])
            skip = False
    return total


def counted():
    """({capture: instructions a request}, what they depend on). Raises SystemExit where it cannot be counted."""
    import replay._fastpath

    library = pathlib.Path(replay._fastpath.__file__)
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed")
    counts = {}
    for name in CAPTURES:
        path, requests = inputs.cached(variant=name, **HOW)
        with tempfile.TemporaryDirectory(prefix="replay-instructions-") as folder:
            output = pathlib.Path(folder, "out")
            valgrind = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={FUNCTION}", f"--callgrind-out-file={output}"]
            # This file finds its neighbours beside it, whatever the tests run with; the package is the installed one.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONHASHSEED": "0"}
            done = subprocess.run([*valgrind, sys.executable, __file__, "--inside", path], capture_output=True, text=True, env=environment)
            if done.returncode or done.stdout.split() != [str(requests)]:
                raise SystemExit(f"{name}: the capture was not read under callgrind: {done.stdout} {done.stderr[-3000:]}")
            counts[name] = own(output.read_text(), library) / requests
    if not all(counts.values()):
        raise SystemExit(f"callgrind saw no instruction in {FUNCTION} of {library}: was the extension stripped, or the function renamed?")
    return counts, built_by(library)


def judged(counts, key, baseline):
    """Lines that say what got dearer than the baseline allows; and whether it is that of this very combination."""
    exact = key in baseline
    nearest = key if exact else next((other for other in baseline if other.split()[0] == key.split()[0]), None)
    if nearest is None:
        return [], False
    allowed = TOLERANCE if exact else COARSE
    return [
        f"{name}: {count:.1f} instructions a request, {count / baseline[nearest][name] - 1:+.1%} of {baseline[nearest][name]:.1f} ({nearest})"
        for name, count in counts.items()
        if name in baseline[nearest] and count > baseline[nearest][name] * (1 + allowed)
    ], exact


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refresh", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return read(asked.inside)
    counts, key = counted()
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    for name, count in counts.items():
        was = baseline.get(key, {}).get(name)
        print(f"{name:12} {count:8.1f} instructions a request" + (f"  ({count / was - 1:+.2%} of the baseline)" if was else ""))
    print(key)
    if asked.refresh:
        baseline[key] = {name: round(count, 1) for name, count in counts.items()}
        BASELINE.write_text(json.dumps(dict(sorted(baseline.items())), indent=2) + "\n")
        return None
    dearer, _ = judged(counts, key, baseline)
    return "\n".join(dearer) or None


if __name__ == "__main__":
    sys.exit(main())
