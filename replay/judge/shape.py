"""What a report that is read must look like: one that somebody edited, or that is cut, is told by the key that is wrong, before anything counts on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replay.histogram import Histogram

__all__ = ["wrong"]

_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class _Each:
    """An object of any names, with values of this shape."""

    shape: Any


@dataclass(frozen=True, slots=True)
class _Many:
    """A list of this shape."""

    shape: Any


@dataclass(frozen=True, slots=True)
class _Either:
    shape: Any
    other: Any


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST < value < _MOST  # no NaN either


def _hdr(value: Any) -> bool:
    try:
        Histogram.decode(value)
    except (ValueError, TypeError):
        return False
    return True


#: A name -> what is expected, as a person reads it; whether a value is that.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("a count", _whole),
    "count?": ("a count or null", lambda value: value is None or _whole(value)),
    "time?": ("a time in ns or null", lambda value: value is None or _whole(value, -_MOST)),
    "number": ("a number", _number),
    "number?": ("a number or null", lambda value: value is None or _number(value)),
    "width": ("a length in ms", lambda value: _number(value) and 1e-3 <= value <= 1e12),
    "text": ("text", lambda value: isinstance(value, str)),
    "text?": ("text or null", lambda value: value is None or isinstance(value, str)),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "shard?": ("a shard (1/4) or null", lambda value: value is None or isinstance(value, str) and re.fullmatch(r"\d+/\d+", value) is not None),
    "digest": ("16 hex digits", lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None),
    "hdr": ("an HdrHistogram as it was written", _hdr),
    "object": ("an object", lambda value: isinstance(value, dict)),
}

# A name of a dict that ends in ? may be missing; what is not named may be there, and is not looked at.
_COUNTS = _Each("count")
_QUANTILES = ("p50", "p90", "p99", "p99_9", "max")
_TIMES = {name: "number?" for name in _QUANTILES} | {"hdr": "hdr"}
_ENDPOINT_TIMES = _TIMES | {"hdr": "text"}  # five hundred of them; who adds them up looks inside
_SHARE = dict.fromkeys(("requests", "answered", "unanswered", "dropped", "known", "changed", "worse", "compared", "slower"), "count")
_ENDPOINT = {
    "endpoint": "text",
    **_SHARE,
    **dict.fromkeys(("status", "captured", "status_change"), _COUNTS),
    **dict.fromkeys(("production_us", "response_us", "latency_us"), _ENDPOINT_TIMES),
    "targets?": _Each({**_SHARE, "status": _COUNTS, "response_sum_us": "number", "response_max_us": "number"}),
}
_COLUMNS = (
    "due", "sent", "answered", "unanswered", "dropped", "lag_sum_us", "service_sum_us", "latency_sum_us", "lag_max_us", "service_max_us", "latency_max_us",
)  # fmt: skip
_TARGET = {
    **dict.fromkeys(("sent", "answered", "connections"), "count"),
    **dict.fromkeys(("dropped", "unanswered"), _COUNTS),
    **dict.fromkeys(("connect_failed?", "retried?", "bytes_sent?", "bytes_received?", "log_lost?"), "count"),
    **dict.fromkeys(("status?", "limits?"), _COUNTS),
    "interim?": _Either("count", _COUNTS),
    "last_error": "text?",
    "addresses?": _Many("text"),
}
_REPORT: dict[str, Any] = {
    **dict.fromkeys(("version", "started", "ended", "command"), "text"),
    **dict.fromkeys(("inputs", "notes", "hints"), _Many("text")),
    "policy": {"shard?": "shard?"},
    "seed": _Either("count", "text"),
    "digest": "digest",
    "ledger": {
        **dict.fromkeys(("found", "filtered", "sampled_out", "withheld", "selected", "fanout", "sent", "dropped", "answered", "unanswered"), "count"),
        "by_reason": dict.fromkeys(("filtered", "sampled_out", "withheld", "dropped", "unanswered"), _COUNTS),
    },
    **dict.fromkeys(("incomplete", "other", "status", "status_change", "status_captured", "credentials"), _COUNTS),
    "packets": {"read": "count", "skipped": _COUNTS, "kernel_drops?": "count", "cut_frames": "count"},
    **dict.fromkeys(("lost_estimated", "status_known", "status_same", "connections", "overlap_conflicts", "repeated_segments", "evicted_connections"), "count"),
    **dict.fromkeys(("memory_refused", "writes", "other_shards", "passes", "not_judged"), "count"),
    "loss": {"packets": "number?", "from": "text?", "orphans": "count", "matched": "count"},
    "gaps": {"count": "count", "bytes": "count"},
    "silences_cut": {"count": "count", "total_ns": "count"},
    **dict.fromkeys(("latency_us", "service_us", "lag_us", "production_us", "response_us"), _TIMES),
    "rate": {"asked": "number?", "achieved": "number?", "limited_by": "text?", "planned_s": "number?", "duration_s?": "number?"},
    "targets": _Each(_TARGET),
    **dict.fromkeys(("dry_run", "interrupted", "guard", "never_connected"), "flag"),
    "captured": dict.fromkeys(("first_ns", "last_ns", "first_packet_ns", "last_packet_ns"), "time?"),
    "faults": _Many("object"),
    "endpoints": _Many(_ENDPOINT),
    "timeline": {"start_ns": "time?", "bucket_ms": "width", "columns": dict.fromkeys(_COLUMNS, _Many("number"))},
    "gates": _Many({"expression": "text", "failed": "flag", "value": "text", "bound": "text", "where": "text?"}),
    "stopped_by?": "text?",
    "results?": {"lines": "count", "lost": "count"},
    "reports?": "count",
}


def wrong(report: dict[str, Any]) -> str | None:
    """What is wrong with a report first, as words that name the key; None when nothing is."""
    return _wrong(report, _REPORT, "") or _uneven(report)


def _wrong(value: Any, shape: Any, at: str) -> str | None:
    if isinstance(shape, str):
        expected, good = _KINDS[shape]
        return None if good(value) else f"{at} is {_shown(value)}, not {expected}"
    if isinstance(shape, _Either):
        found = _wrong(value, shape.shape, at)
        return found and _wrong(value, shape.other, at)
    if isinstance(shape, _Many):
        if not isinstance(value, list):
            return f"{at} is {_shown(value)}, not a list"
        return _first((one, shape.shape, f"{at}[{n}]") for n, one in enumerate(value))
    if not isinstance(value, dict):
        return f"{at} is {_shown(value)}, not an object"
    if isinstance(shape, _Each):
        if "" in value:
            return f"{at} has a key without a name"
        return _first((one, shape.shape, f"{at}.{name}") for name, one in value.items())
    prefix = f"{at}." if at else ""
    for key in shape:
        if not key.endswith("?") and key not in value:
            return f"{prefix}{key} is missing"
    return _first((value[key.rstrip("?")], inner, prefix + key.rstrip("?")) for key, inner in shape.items() if key.rstrip("?") in value)


def _first(parts: Any) -> str | None:
    return next((found for part in parts if (found := _wrong(*part)) is not None), None)


def _uneven(report: dict[str, Any]) -> str | None:
    """What no key tells alone: columns of one length, quantiles that are all there or none."""
    columns = report["timeline"]["columns"]
    for name, column in columns.items():
        found = _wrong(column, _Many("number"), f"timeline.columns.{name}")
        if found is not None or len(column) != len(columns["due"]):
            return found or f"timeline.columns.{name} has {len(column)} values, and due {len(columns['due'])}"
    rows = [(f"endpoints[{n}].{key}", row[key]) for n, row in enumerate(report["endpoints"]) for key in ("production_us", "response_us", "latency_us")]
    rows += [(key, report[key]) for key in ("latency_us", "service_us", "lag_us", "production_us", "response_us")]
    for at, times in rows:
        if len({times[name] is None for name in _QUANTILES}) > 1:
            return f"{at} has some of {', '.join(_QUANTILES)}, and not others"
    return None


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of too many digits"
    return text if len(text) <= 40 else f"{text[:40]}…"
