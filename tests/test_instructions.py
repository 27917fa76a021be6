"""Reading a request costs no more instructions than the baseline says, within 3 %: counted, not timed, so a busy machine does not matter.

The baseline is `benchmarks/instructions.json`; `make instructions` writes it anew, in the commit that moves it. What is counted, and how it holds on another machine, stands in `benchmarks/instructions.py`.
"""

import importlib
import json
import pathlib
import shutil
import sys
import unittest.mock

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def instructions():
    with unittest.mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        return importlib.import_module("instructions")


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
def test_reading_costs_no_more_instructions(instructions):
    counts, key = instructions.counted()
    baseline = json.loads(instructions.BASELINE.read_text())
    dearer, exact = instructions.judged(counts, key, baseline)
    assert not dearer, "\n".join(
        [*dearer, f"counted with {key}; {'within 3 % is allowed' if exact else 'a coarse bound: there is no baseline for this combination'}. If it has to be so: make instructions, and say why in the commit"]
    )


def test_dearer_is_seen_and_cheaper_is_not(instructions):
    baseline = {"x86_64 avx2, gcc 12.2, Cython 3.3": {"clean": 1000.0, "cut": 2000.0}}
    key = "x86_64 avx2, gcc 12.2, Cython 3.3"
    assert instructions.judged({"clean": 1029.0, "cut": 1000.0}, key, baseline) == ([], True)
    dearer, exact = instructions.judged({"clean": 1031.0, "cut": 2000.0}, key, baseline)
    assert exact and len(dearer) == 1 and dearer[0].startswith("clean: 1031.0 instructions a request, +3.1%")


def test_another_compiler_has_a_coarse_bound_and_another_architecture_none(instructions):
    baseline = {"x86_64 avx2, gcc 12.2, Cython 3.3": {"clean": 1000.0}}
    assert instructions.judged({"clean": 1300.0}, "x86_64 avx2, gcc 14.1, Cython 3.3", baseline) == ([], False)
    assert len(instructions.judged({"clean": 1500.0}, "x86_64 avx2, gcc 14.1, Cython 3.3", baseline)[0]) == 1
    assert instructions.judged({"clean": 9000.0}, "aarch64 baseline, gcc 12.2, Cython 3.3", baseline) == ([], False)


def test_only_the_library_counts_and_only_itself(instructions):
    """A dump as callgrind writes it: a name is given once, with its first mention, which may be that of a callee."""
    dump = "\n".join(
        [
            "ob=(1) /lib/libc.so.6", "fn=(1) main", "10 5", "cob=(2) /x/_fastpath.so", "cfn=(2) run", "calls=1 20", "10 900",
            "", "ob=(2)", "fl=(3) a.c", "fn=(2)", "20 100", "+1 30", "cob=(1)", "cfn=(4) memcpy", "calls=7 0", "* 700", "-2 4",
            "ob=(1)", "fn=(4)", "1 700", "totals: 839",
        ]
    )  # fmt: skip
    assert instructions.own(dump, pathlib.Path("/x/_fastpath.so")) == 134
