"""Histograms: slots against the definition, percentiles against sorting, the encoding against a decoder written from its description."""

import base64
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay._fastpath import histogram_for_tests
from replay.histogram import Histogram


def decode(text):
    """Counts by slot, and the header, of a compressed V2 histogram."""
    raw = base64.b64decode(text)
    cookie, length = struct.unpack(">ii", raw[:8])
    assert cookie == 0x1C849314 and length == len(raw) - 8
    raw = zlib.decompress(raw[8:])
    cookie, length, offset, digits, lowest, highest, ratio = struct.unpack(">iiiiqqd", raw[:40])
    assert cookie == 0x1C849313 and length == len(raw) - 40
    counts, slot, at = {}, 0, 40
    while at < len(raw):
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            if shift == 56:
                value |= byte << 56
                break
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        value = (value >> 1) ^ -(value & 1)
        if value < 0:
            slot += -value
        else:
            counts[slot] = value
            slot += 1
    return counts, (offset, digits, lowest, highest, ratio)


def slot_of(us):
    """The slot of a value, from the definition: 2048 slots of width 1, then 1024 a power of two."""
    us = min(us, 3_600_000_000)
    if us < 2048:
        return us
    exponent = us.bit_length() - 11
    return exponent * 1024 + (us >> exponent)


@given(st.lists(st.one_of(st.integers(0, 5_000_000), st.integers(0, 2**62)), max_size=50))
def test_slots(values_ns):
    counts = Histogram(histogram_for_tests(values_ns)).counts
    expected = {}
    for value in values_ns:
        expected[slot_of(value // 1000)] = expected.get(slot_of(value // 1000), 0) + 1
    assert {at: count for at, count in enumerate(counts) if count} == expected


@given(st.lists(st.integers(0, 3_600_000_000), min_size=1, max_size=200), st.floats(0.001, 1))
def test_percentiles_are_within_a_thousandth(values, share):
    h = Histogram(histogram_for_tests([v * 1000 for v in values]))
    rank = next(k for k in range(1, len(values) + 1) if k >= share * len(values))
    true = sorted(values)[rank - 1]
    got = h.percentile(share)
    assert true <= got <= true + true / 1000
    assert max(values) <= h.max <= max(values) * 1.001 and h.total == len(values)


@given(st.lists(st.integers(0, 2**45), max_size=100))
def test_encoding_round_trip(values_ns):
    h = Histogram(histogram_for_tests(values_ns))
    text = h.encode()
    counts, head = decode(text)
    assert text.startswith("HISTFAAAA")
    assert head == (0, 3, 1, 3_600_000_000, 1.0)
    assert counts == {at: count for at, count in enumerate(h.counts) if count}


@pytest.mark.parametrize("count", [1, 63, 64, 8191, 8192, 2**31, 2**55, 2**62])
def test_large_counts_are_encoded(count):
    h = Histogram()
    h.counts[5] = count
    h.counts[20_000] = 1
    assert decode(h.encode())[0] == {5: count, 20_000: 1}


def test_add_and_dict():
    a, b = Histogram(histogram_for_tests([1000] * 99)), Histogram(histogram_for_tests([5_000_000]))
    a.add(b)
    got = a.as_dict()
    assert (got["p50"], got["p90"], got["p99"]) == (1, 1, 1)
    assert got["max"] == got["p99_9"] == 5003
    assert list(got) == ["p50", "p90", "p99", "p99_9", "max", "hdr"]
    empty = Histogram().as_dict()
    assert empty["p50"] is None and empty["max"] is None and decode(empty["hdr"])[0] == {}


def test_another_layout_is_refused():
    with pytest.raises(ValueError, match="slots"):
        Histogram([1, 2, 3])


def test_below_zero_and_beyond_the_highest():
    counts = Histogram(histogram_for_tests([-5, 10**18])).counts
    assert counts[0] == 1 and counts[slot_of(3_600_000_000)] == 1
