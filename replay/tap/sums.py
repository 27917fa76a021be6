"""Counters and histograms of several lanes and senders as one. Must not know: where they come from."""

from __future__ import annotations

from typing import Any

from replay.histogram import Histogram

__all__ = ["sum_histograms", "sum_ingests", "sum_senders"]

Counts = dict[str, Any]


def sum_ingests(all_counts: list[Counts]) -> Counts:
    total = dict(all_counts[0])
    for one in all_counts[1:]:
        for key, value in one.items():
            if key in ("first_ns", "first_packet_ns"):
                total[key] = min((v for v in (total[key], value) if v is not None), default=None)
            elif key in ("last_ns", "last_packet_ns", "end_offset_ns"):
                total[key] = max((v for v in (total[key], value) if v is not None), default=None)
            elif key == "digest":
                total[key] = (total[key] + value) & (2**64 - 1)
            else:
                total[key] = _plus(total[key], value)
    return total


def sum_senders(all_counts: list[Counts]) -> Counts:
    total = dict(all_counts[0])
    for one in all_counts[1:]:
        for key, value in one.items():
            if key in ("start_ns", "first_sent_ns"):
                total[key] = min((v for v in (total[key], value) if v), default=0)
            elif key == "driver":
                pass
            elif key in ("last_sent_ns", "position_ns", "errno", "pipeline", "never_connected", "retry_after_s", "busy_ns"):
                total[key] = max(total[key], value)
            else:
                total[key] = _plus(total[key], value)
    return total


def sum_histograms(key: str, counted: list[bytes], before: dict[str, bytes] | None) -> bytes:
    total = Histogram()
    for one in counted + ([before[key]] if before is not None else []):
        total.add(Histogram(one))
    return total.counts.tobytes()


def _plus(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {key: _plus(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in a | b}
    if isinstance(a, bool):
        return a or b
    return a + b
