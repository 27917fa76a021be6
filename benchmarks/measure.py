"""What the benchmarks share: a process measured as a whole, a row of numbers, the machine and the commit."""

import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

REPLAY = [sys.executable, "-P", "-m", "replay"]  # -P: the installed package, not the checkout that we may stand in


def cost(command, **more):
    """Runs a process to its end: (stdout, CPU seconds user + system, wall seconds, peak RSS in bytes). Raises when it fails.

    The peak is never below our own (Linux hands it down over exec), so whoever wants it stays small.
    """
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, **more)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return said, used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss * 1024


def spread(values):
    """Minimum, median, maximum and (max - min) / median of some measurements."""
    middle = statistics.median(values)
    return {"min": min(values), "median": middle, "max": max(values), "spread": (max(values) - min(values)) / middle if middle else 0.0, "rounds": len(values)}


def surroundings():
    """machine and commit, as they stand in each result."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True)
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), "arch": platform.machine()},
        "commit": git.stdout.strip() or None,
    }
