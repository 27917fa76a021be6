"""The kept corpus of each fuzz target, on the ordinary build; and random inputs, so that a target that cannot run at all is seen."""

import pathlib
import random
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(FOLDER))
import targets  # noqa: E402

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
