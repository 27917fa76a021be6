"""Durations counted by size: percentiles, and the encoding that other HdrHistogram tools read and add up.

The layout is that of HdrHistogram with a lowest value of 1, a highest of one hour and 3 significant digits, in
microseconds: values below 2048 have a slot each, above that 1024 slots a power of two.
Source: HdrHistogram's description of its V2 encoding (cookie, lengths, ZigZag LEB128 counts, zlib, base64).
"""

from __future__ import annotations

import base64
import bisect
import itertools
import struct
import zlib
from array import array
from collections.abc import Iterable

__all__ = ["Histogram", "slot_ends"]

_HIGHEST = 3_600_000_000
_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
#: significant digits -> (bits of half a bucket, buckets): 3 for whole runs, 2 for each endpoint
_SHAPES = {3: (10, 22), 2: (7, 25)}


def _slots(digits: int) -> int:
    bits, buckets = _SHAPES[digits]
    return (buckets + 1) << bits


class Histogram:
    """Counts a slot, as the engine gives them (bytes of native int64 with 3 significant digits, of int32 with 2) or as a list.

    Raises ValueError for another number of slots.
    """

    __slots__ = ("_pairs", "_sums", "counts", "digits")

    def __init__(self, counts: bytes | Iterable[int] | None = None, digits: int = 3) -> None:
        if digits not in _SHAPES:
            raise ValueError(f"significant digits are 2 or 3, not {digits}")
        self.digits = digits
        self._pairs: list[tuple[int, int]] | None = None
        self._sums: list[int] = []
        slots = _slots(digits)
        if counts is None:
            self.counts = array("q", bytes(8 * slots))
        elif isinstance(counts, (bytes, bytearray, memoryview)):
            self.counts = array("q", bytes(counts)) if digits == 3 else array("q", array("i", bytes(counts)))
        else:
            self.counts = array("q", counts)
        if len(self.counts) != slots:
            raise ValueError(f"a histogram of {digits} digits has {slots} slots, not {len(self.counts)}")

    def add(self, other: Histogram) -> None:
        """Adds the counts of another one. Raises ValueError when its precision is another."""
        if other.digits != self.digits:
            raise ValueError(f"histograms of {self.digits} and {other.digits} digits cannot be added")
        for at, count in other._used():
            self.counts[at] += count
        self._pairs, self._sums = None, []

    def _used(self) -> list[tuple[int, int]]:
        """(slot, count) of the slots that are not 0; most are, so what lies behind the last one is not looked at."""
        if self._pairs is None:
            end = (int.from_bytes(self.counts.tobytes(), "little").bit_length() + 63) // 64  # as one number, which is quicker than looking at each
            self._pairs = [(at, count) for at, count in enumerate(self.counts[:end]) if count]
        return self._pairs

    def _seen(self) -> list[int]:
        """How many values were counted up to and with each slot of `_used`."""
        pairs = self._used()
        if len(self._sums) != len(pairs):
            self._sums = list(itertools.accumulate([count for _, count in pairs]))
        return self._sums

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self._seen()[-1] if self._used() else 0

    @property
    def max(self) -> int:
        """The largest value, within its slot; 0 when there is none."""
        return _value(self._used()[-1][0], self.digits) if self._used() else 0

    def percentile(self, share: float) -> int | None:
        """The smallest value that at least this share (0 to 1) of all values does not exceed; None when there is none."""
        total = self.total
        if not total:
            return None
        need = max(1, min(total, -int(-share * total // 1)))
        return _value(self._used()[bisect.bisect_left(self._seen(), need)][0], self.digits)

    def steps(self, most: int = 400) -> list[tuple[float, float]]:
        """(share, value) for a plot: the value that this share (0 to 1) does not exceed; at most so many, evenly over a percentile axis."""
        import math

        total, seen = self.total, 0
        found: list[tuple[float, float]] = []
        last = -1.0
        step = math.log10(total + 1) / most if total else 1.0
        for at, count in self._used():
            seen += count
            place = -math.log10(1 - seen / total) if seen < total else math.inf
            if place - last >= step:
                found.append((seen / total, _value(at, self.digits)))
                last = place
        return found

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
            if count < 64:  # nearly all are, and one byte each
                payload.append(count << 1)
            else:
                _zigzag(payload, count)
            next_at = at + 1
        head = struct.pack(">iiiiqqd", _COOKIE, len(payload), 0, self.digits, 1, _HIGHEST, 1.0)
        packed = zlib.compress(head + bytes(payload), 6)
        return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed).decode("ascii")


    @classmethod
    def decode(cls, text: str) -> Histogram:
        """The histogram of an encoding that `encode` made. Raises ValueError for anything else."""
        try:
            packed = base64.b64decode(text, validate=True)
            cookie, length = struct.unpack_from(">ii", packed)
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(packed[8 : 8 + length], 1 << 20)
            inner, size, offset, digits, lowest, highest, ratio = struct.unpack_from(">iiiiqqd", raw)
        except (ValueError, struct.error, zlib.error) as error:
            raise ValueError(f"no histogram: {error}") from None
        same = (cookie, inner, offset, lowest, highest, ratio) == (_COMPRESSED_COOKIE, _COOKIE, 0, 1, _HIGHEST, 1.0)
        if not same or digits not in _SHAPES or 40 + size > len(raw):
            raise ValueError("no histogram of this program: another layout")
        made, at, place, end = cls(digits=digits), 0, 40, 40 + size
        while place < end:
            value, place = _unzigzag(raw, place, end)
            if value < 0:
                at -= value
            elif at < len(made.counts):
                made.counts[at] = value
                at += 1
            if at > len(made.counts) or (value >= 0 and at == len(made.counts) and place < end):
                raise ValueError("no histogram of this program: too many slots")
        return made


def _value(at: int, digits: int) -> int:
    """The highest value that is counted in this slot."""
    bits = _SHAPES[digits][0]
    bucket = max(0, (at >> bits) - 1)
    within = at - (bucket << bits)
    return ((within + 1) << bucket) - 1


def slot_ends() -> list[int]:
    """The highest value of each slot, microseconds, in order."""
    return [_value(at, 3) for at in range(_slots(3))]


def _unzigzag(raw: bytes, place: int, end: int) -> tuple[int, int]:
    """A ZigZag LEB128 number at `place`, and the place behind it."""
    bits = shift = 0
    for turn in range(9):
        if place >= end:
            raise ValueError("no histogram: it ends too early")
        byte = raw[place]
        place += 1
        bits |= (byte if turn == 8 else byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return (bits >> 1) ^ -(bits & 1), place


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
