"""Text that people write for numbers: `5%`, `10k`, `64MiB`, `30s`, `2x`, `500/s`; parsed and printed here and nowhere else.

Each parser raises ValueError with a sentence that says what was expected.
"""

from __future__ import annotations

import datetime
import re
import time
from dataclasses import dataclass
from decimal import Decimal

__all__ = [
    "Pace",
    "ahead",
    "count",
    "duration",
    "moment",
    "pace",
    "seed",
    "shard",
    "share",
    "show_bytes",
    "show_count",
    "show_duration",
    "show_moment",
    "show_rate",
    "show_share",
    "size",
]

MILLION = 1_000_000
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([^\d.\s].*)?", re.ASCII)
_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_SIZES = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
_SIZES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_MOST_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests go. kind: `original` (speed times as fast as captured), `rate` (so many a second, evenly) or `max`."""

    kind: str
    value: float = 1.0

    def __str__(self) -> str:
        if self.kind == "rate":
            return f"{self.value:g}/s"
        if self.kind == "original":
            return "original" if self.value == 1.0 else f"{self.value:g}x"
        return self.kind


def _split(text: str) -> tuple[Decimal, str] | None:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(match[1]) > 40:
        return None
    return Decimal(match[1]), (match[2] or "").strip()


def share(text: str) -> int:
    """`5`, `5%`, `0.25 %` as parts per million, exact."""
    found = _split(text)
    if found is None or found[1] not in ("", "%"):
        raise ValueError(f"{text!r} is no percentage; write 5, 0.5 or 5%")
    ppm = found[0] * 10_000
    if ppm > MILLION:
        raise ValueError(f"{text!r} is more than 100 %")
    if ppm != int(ppm):
        raise ValueError(f"{text!r} is finer than a millionth; at most four digits after the point")
    return int(ppm)


def duration(text: str) -> int:
    """`30s`, `1.5ms`, `2h` as ns; a bare number is seconds."""
    found = _split(text)
    unit = _TIMES.get(found[1] or "s") if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is no duration; write 30s, 5ms, 2m or 1h")
    ns = found[0] * unit
    if ns > _MOST_NS:
        raise ValueError(f"{text!r} is longer than a century")
    return int(ns)


def size(text: str) -> int:
    """`64KiB`, `1MiB`, `2GB` as bytes; k, M and G without iB are powers of 1000."""
    found = _split(text)
    unit = _SIZES.get(found[1].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is no size; write 65536, 64KiB or 1MiB")
    if found[0] * unit >= 1 << 62:
        raise ValueError(f"{text!r} is too large")
    return int(found[0] * unit)


def count(text: str) -> int:
    """`500`, `10k`, `2M` as an integer."""
    found = _split(text)
    unit = _COUNTS.get(found[1].lower()) if found else None
    if found is None or unit is None or found[0] * unit != int(found[0] * unit):
        raise ValueError(f"{text!r} is no whole number; write 500, 10k or 2M")
    if found[0] * unit >= 1 << 62:
        raise ValueError(f"{text!r} is too large")
    return int(found[0] * unit)


def seed(text: str) -> int:
    """Any number of 64 bits."""
    value = int(text) if re.fullmatch(r"\s*\d{1,20}\s*", text, re.ASCII) else count(text)
    if value >= 1 << 64:
        raise ValueError(f"{text!r} has more than 64 bits")
    return value


def pace(text: str) -> Pace:
    """`original`, `2x`, `500/s`, `max`."""
    word = text.strip().lower()
    if word in ("original", "max"):
        return Pace(word)
    found = _split(word)
    if found is not None and found[0] > 0:
        value, unit = found
        if unit == "x" and value <= 10**9:
            return Pace("original", float(value))
        for letters, times in _COUNTS.items():
            if unit.replace(" ", "") == letters + "/s" and value * times <= 10**12:
                return Pace("rate", float(value * times))
    raise ValueError(f"{text!r} is no pace; write original, 2x (twice as fast), 500/s (evenly) or max")


def moment(text: str) -> int:
    """ISO 8601 (`2026-08-01T10:00:00Z`; without a zone UTC) or seconds since 1970, as ns since 1970."""
    if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text.strip(), re.ASCII):
        return int(Decimal(text.strip()) * 10**9)
    try:
        parsed = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2026-08-01T10:00:00Z or seconds since 1970") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=datetime.UTC)
    since = parsed - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def ahead(text: str) -> int:
    """A moment that is still to come, or `+10s` from now, as ns since 1970; at most a week ahead."""
    now = time.time_ns()
    found = now + duration(text.strip()[1:]) if text.strip().startswith("+") else moment(text)
    if found < now:
        raise ValueError(f"{text!r} has passed")
    if found - now > 7 * 86400 * 10**9:
        raise ValueError(f"{text!r} is more than a week ahead")
    return found


def shard(text: str) -> tuple[int, int]:
    """`2/4` as (1, 4): the number from 0, and how many."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*/\s*(\d{1,5})\s*", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"{text!r} is no shard; write 1/4 to 4/4")
    return int(match[1]) - 1, int(match[2])


def show_count(value: int) -> str:
    """`1,234`."""
    return f"{value:,}"


def show_share(ppm: int) -> str:
    """`5 %`."""
    return f"{Decimal(ppm) / 10_000:f} %"


def show_moment(ns: int) -> str:
    """`2026-08-01T10:00:00Z`, with what is left of a second; as `moment` reads it."""
    text = f"{datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC):%Y-%m-%dT%H:%M:%S}"
    return text + (f".{ns % 10**9:09d}".rstrip("0") if ns % 10**9 else "") + "Z"


def show_duration(ns: float | None) -> str:
    """`1.24 ms`: three digits and the unit that fits."""
    if ns is None:
        return "-"
    if ns < 0:
        return "-" + show_duration(-ns)
    for unit, factor in (("ns", 1), ("us", 10**3), ("ms", 10**6)):
        if ns < 999.5 * factor:
            return f"{ns / factor:.3g} {unit}"
    seconds = ns / 10**9
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 100 * 3600:
        whole = round(seconds)
        return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"
    return f"{seconds / 86400:,.1f} days"


def show_bytes(value: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def show_rate(value: float | None) -> str:
    """`1,234/s`."""
    if value is None:
        return "-"
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"
