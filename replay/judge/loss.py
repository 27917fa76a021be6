"""How many requests a capture has lost without a trace, and how loss distorts the mix of those that are whole.

A reply whose request is not in the capture is an orphan. Request and reply are different packets, so of all requests whose reply was captured, the share of
orphans is the chance that the first packet of a request was lost: p. A request is known by its first packet (whole or not), so of N requests N (1 - p) are
known, and N p / (1 - p) of the known number left no trace. Where replies are missing altogether, the share of bytes that gaps took stands for p.

Loss hits whole requests unevenly: one of k packets survives with (1 - p)^k. The heads that are known survive alike, whatever follows them, and say method and
length; so the mix of the known heads estimates the mix of production, and its difference from the mix of whole requests is the distortion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Estimate", "Mix", "added", "distortion", "estimate"]

#: Fewer replies than this say nothing about a rate.
_LEAST = 20


class Estimate(NamedTuple):
    """rate: of lost packets, None when it cannot be told.  lost: requests without a trace.  source: `replies`, `gaps`, or None."""

    rate: float | None
    lost: int
    source: str | None


class Mix:
    """Requests by method and by size of the body."""

    def __init__(self) -> None:
        self.method: Counter[str] = Counter()
        self.size: Counter[str] = Counter()

    def add(self, method: bytes, size: str, count: int = 1) -> None:
        name = method.decode("latin-1")
        if name not in self.method and len(self.method) >= 50:
            name = "other"
        self.method[name] += count
        self.size[size] += count


def estimate(counts: dict[str, Any], known: int, request_bytes: int, *, heard: int | None = None) -> Estimate:
    """From the counters of an ingest. known: requests of which the head is there.  request_bytes: of theirs.  heard: of a tap that did not capture replies
    all the time, requests whose replies it has: what replies tell holds for those alone."""
    orphans, matched = counts["lost_estimated"], counts["matched"]
    if orphans + matched >= _LEAST:
        rate = orphans / (orphans + matched)
        # more than nine in ten: the formula says little more than "nearly all", so the orphans themselves are the estimate
        lost = round((known if heard is None else min(known, heard)) * rate / (1 - rate)) if rate < 0.9 else orphans
        return Estimate(rate, max(lost, orphans), "replies")
    if counts["gap_bytes"] and counts["one_sided"] * 2 > counts["connections"] and request_bytes:
        gaps = counts["gap_bytes"]
        rate = gaps / (gaps + request_bytes)
        return Estimate(rate, round(known * rate / (1 - rate)) if rate < 0.9 else known, "gaps")
    return Estimate(None, orphans, None)


def added(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The `loss` of several reports: the rate that all their replies tell together."""
    rows = list(rows)
    orphans, matched = (sum(row[key] for row in rows) for key in ("orphans", "matched"))
    told = orphans + matched >= _LEAST
    return {"packets": orphans / (orphans + matched) if told else None, "from": "replies" if told else None, "orphans": orphans, "matched": matched}


def distortion(found: Mix, heads: Mix) -> dict[str, Any]:
    """Shares among whole requests and estimated ones of production, by method and size; and where they differ most, in points (too frequent is positive)."""
    mix: dict[str, Any] = {}
    worst: dict[str, Any] = {"what": None, "points": 0.0, "points_signed": 0.0}
    for key in ("method", "size"):
        whole: Counter[str] = getattr(found, key)
        known: Counter[str] = getattr(heads, key)
        total, every = sum(whole.values()), sum(known.values())
        mix[key] = {}
        for name, count in known.most_common():
            row = {"found": whole[name] / total if total else 0.0, "estimated": count / every}
            mix[key][name] = row
            points = 100 * (row["found"] - row["estimated"])
            if total and abs(points) > worst["points"]:
                worst = {"what": name, "points": abs(points), "points_signed": points}
    return mix | {"distortion": worst}
