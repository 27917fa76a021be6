"""The kept corpus of each fuzz target, on the ordinary build; and random inputs, so that a target that cannot run at all is seen."""

import pathlib
import random
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(FOLDER))
import targets  # noqa: E402
import watch  # noqa: E402

CORPUS = [(name, path) for name in targets.TARGETS for path in sorted((FOLDER / "corpus" / name).iterdir())]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_holds(name):
    paths = [path for target, path in CORPUS if target == name]
    assert len(paths) >= 10
    for path in paths:
        try:
            targets.TARGETS[name](path.read_bytes())
        except AssertionError as error:
            raise AssertionError(f"{path.name}: {error}") from error


@pytest.mark.parametrize("name", targets.TARGETS)
def test_random_inputs_hold(name):
    rng = random.Random(name)
    for _ in range(100):
        targets.TARGETS[name](rng.randbytes(rng.randrange(300)))


def test_a_target_can_fail(monkeypatch):
    """An engine that loses a request is noticed."""
    real = targets.engine.found

    def losing(*arguments, **options):
        rows, counters, faults = real(*arguments, **options)
        return rows[1:] if options.get("show") is False else rows, counters, faults

    monkeypatch.setattr(targets.engine, "found", losing)
    with pytest.raises(AssertionError):
        targets.http1(b"\1GET / HTTP/1.1\r\nHost: a\r\n\r\n")


def test_coverage_is_watched():
    lines = ["INFO: Seed: 1\n", "#2\tINITED cov: 200 ft: 300 corp: 1/1b\n", "#64\tNEW    cov: 210 ft: 350 corp: 2/2b\n", "#128\tDONE   cov: 212 ft: 360 corp: 2/2b\n"]
    clock, seen = iter((0.0, 1.0, 40.0, 100.0)), []
    assert list(watch.watch(lines, seen, clock=lambda: next(clock))) == lines
    assert seen == [(1, 2, 200, 300), (40, 64, 210, 350), (100, 128, 212, 360)]
    assert "128 inputs in 100 s; 212 edges" in watch.plateau(seen) and watch.plateau(seen).endswith("added 0.95%")
    assert watch.plateau([]) == "nothing was run"
