"""Durations counted by size: percentiles, and the encoding that other HdrHistogram tools read and add up.

The layout is that of HdrHistogram with a lowest value of 1, a highest of one hour and 3 significant digits, in
microseconds: values below 2048 have a slot each, above that 1024 slots a power of two.
Source: HdrHistogram's description of its V2 encoding (cookie, lengths, ZigZag LEB128 counts, zlib, base64).
"""

from __future__ import annotations

import base64
import struct
import zlib
from array import array
from collections.abc import Iterable

__all__ = ["Histogram", "slot_ends"]

_DIGITS = 3
_HALF = 1024
_BUCKETS = 22
_SLOTS = (_BUCKETS + 1) * _HALF
_HIGHEST = 3_600_000_000
_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


class Histogram:
    """Counts a slot, as the engine gives them (bytes of native int64) or as a list.

    Raises ValueError for another number of slots.
    """

    __slots__ = ("_pairs", "counts")

    def __init__(self, counts: bytes | Iterable[int] | None = None) -> None:
        self._pairs: list[tuple[int, int]] | None = None
        if counts is None:
            self.counts = array("q", bytes(8 * _SLOTS))
        elif isinstance(counts, (bytes, bytearray, memoryview)):
            self.counts = array("q", bytes(counts))
        else:
            self.counts = array("q", counts)
        if len(self.counts) != _SLOTS:
            raise ValueError(f"a histogram has {_SLOTS} slots, not {len(self.counts)}")

    def add(self, other: Histogram) -> None:
        """Adds the counts of another one."""
        for at, count in other._used():
            self.counts[at] += count
        self._pairs = None

    def _used(self) -> list[tuple[int, int]]:
        """(slot, count) of the slots that are not 0; most are, so what lies behind the last one is not looked at."""
        if self._pairs is None:
            end = (len(self.counts.tobytes().rstrip(b"\0")) + 7) // 8
            self._pairs = [(at, count) for at, count in enumerate(self.counts[:end]) if count]
        return self._pairs

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(count for _, count in self._used())

    @property
    def max(self) -> int:
        """The largest value, within its slot; 0 when there is none."""
        return max((_value(at) for at, _ in self._used()), default=0)

    def percentile(self, share: float) -> int | None:
        """The smallest value that at least this share (0 to 1) of all values does not exceed; None when there is none."""
        total = self.total
        if not total:
            return None
        need = max(1, min(total, -int(-share * total // 1)))
        seen = 0
        for at, count in self._used():
            seen += count
            if seen >= need:
                return _value(at)
        raise AssertionError("the counts changed while they were read")

    def as_dict(self) -> dict[str, int | str | None]:
        """`p50`, `p90`, `p99`, `p99_9`, `max` in microseconds (None without values), and `hdr`, the encoding."""
        got: dict[str, int | str | None] = {name: self.percentile(share) for name, share in _QUANTILES.items()}
        got["max"] = self.max if self.total else None
        got["hdr"] = self.encode()
        return got

    def encode(self) -> str:
        """HdrHistogram V2, compressed, base64: `HISTFAAAA…`."""
        payload = bytearray()
        next_at = 0
        for at, count in self._used():
            if at > next_at:
                _zigzag(payload, next_at - at)  # so many zeros
            _zigzag(payload, count)
            next_at = at + 1
        head = struct.pack(">iiiiqqd", _COOKIE, len(payload), 0, _DIGITS, 1, _HIGHEST, 1.0)
        packed = zlib.compress(head + bytes(payload), 6)
        return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed).decode("ascii")


def _value(at: int) -> int:
    """The highest value that is counted in this slot."""
    bucket = max(0, (at >> 10) - 1)
    within = at - (bucket << 10)
    return ((within + 1) << bucket) - 1


def slot_ends() -> list[int]:
    """The highest value of each slot, microseconds, in order."""
    return [_value(at) for at in range(_SLOTS)]


def _zigzag(out: bytearray, value: int) -> None:
    """ZigZag LEB128; nine bytes hold 64 bits, the last one all eight of its bits."""
    bits = (value << 1) ^ (value >> 63)
    for _ in range(8):
        if bits < 0x80:
            out.append(bits)
            return
        out.append((bits & 0x7F) | 0x80)
        bits >>= 7
    out.append(bits)
