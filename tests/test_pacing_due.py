"""Due times: from the start, never from the one before; saturated, never wrapped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay._fastpath import pacing_for_tests

NEVER = 2**63 - 1
START = 10**15


def test_original_is_exact():
    offsets = [0, 1, 999, 10**9, 3 * 10**17 + 7]
    assert pacing_for_tests(offsets, START) == [START + o for o in offsets]


@pytest.mark.parametrize("speed", [0.1, 0.5, 2.0, 10.0, 1000.0])
def test_speed_divides(speed):
    offsets = list(range(0, 10**12, 10**10 + 7))
    for due, offset in zip(pacing_for_tests(offsets, START, speed), offsets, strict=True):
        assert abs(due - START - offset / speed) <= 1 + offset / speed * 1e-12


def test_rate_is_even_and_does_not_drift():
    due = pacing_for_tests([0] * 30_001, START, rate=3.0)
    assert due[30_000] == START + 10_000 * 10**9
    assert {b - a for a, b in zip(due, due[1:], strict=False)} <= {333_333_333, 333_333_334}


def test_rate_ignores_offsets():
    assert pacing_for_tests([5, -7, 10**18], 0, rate=1000.0) == [0, 10**6, 2 * 10**6]


@given(st.lists(st.integers(-(2**63), NEVER), min_size=1), st.sampled_from([1.0, 1e-9, 0.3, 7.0, 1e12]), st.integers(0, 2**60))
def test_saturates(offsets, speed, start):
    for due, offset in zip(pacing_for_tests(offsets, start, speed), offsets, strict=True):
        assert 0 <= due <= NEVER
        true = start + offset / speed
        if 0 <= true < 2**62:
            assert abs(due - true) <= max(2, abs(true) * 1e-9, abs(offset / speed) * 1e-9)
        assert (due >= start) == (offset >= 0) or due == start or abs(offset / speed) < 2
