"""Endpoints of a run, worst first: what `_fastpath.Judge` counted, with percentiles and a verdict.

An endpoint is a method and a path in which identifiers are folded (`GET /users/{n}`). A request is *harmed* when its status differs from the captured one,
when it stayed unanswered, or when its reply began more than twice as late as in production (and more than 5 ms later).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from replay.histogram import Histogram

__all__ = ["added", "build", "ordered", "timeline", "timelines_added", "wilson"]

_COUNTS = ("requests", "answered", "unanswered", "dropped", "known", "changed", "worse", "compared", "slower")
_DICTS = ("status", "captured", "status_change")
_HISTOGRAMS = ("production_us", "response_us", "latency_us")
_LARGEST = ("lag_max_us", "service_max_us", "latency_max_us")
_COLUMNS = ("due", "sent", "answered", "unanswered", "dropped", "lag_sum_us", "service_sum_us", "latency_sum_us", *_LARGEST)
_MOST_ROWS = 600


def build(raw: Iterable[dict[str, Any]], targets: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The `endpoints` of a report, worst first. raw: what `Judge.endpoints` gives.  targets: names; with several, each endpoint says what each of them did."""
    targets = list(targets)
    rows = []
    for one in raw:
        row: dict[str, Any] = {"endpoint": _text(one["name"])} | {name: one[name] for name in _COUNTS}
        row |= {name: dict(one[name]) for name in _DICTS}
        if one["status_change_other"]:
            row["status_change"]["other"] = one["status_change_other"]
        for name in _HISTOGRAMS:
            row[name] = Histogram(one[name], digits=2).as_dict()
        if one["shares"]:
            row["targets"] = {target: dict(share) for target, share in zip(targets, one["shares"], strict=False) if share["requests"]}
        rows.append(row)
    return ordered(rows)


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Worst first, each with its `score`: the share of harmed requests that is certain (0 to 1, Wilson's lower bound at 95 %), so few requests weigh little."""
    for row in rows:
        harmed = min(row["changed"] + row["unanswered"] + row["slower"], row["requests"] - row["dropped"])
        row["score"] = round(wilson(harmed, row["requests"] - row["dropped"]), 4)
    return sorted(rows, key=lambda row: (-row["score"], -_ratio(row), -row["requests"], row["endpoint"]))


def added(all_rows: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The endpoints of several reports as one list. Raises ValueError for a histogram that cannot be read."""
    found: dict[str, dict[str, Any]] = {}
    histograms: dict[tuple[str, str], Histogram] = {}
    for rows in all_rows:
        for row in rows:
            name = row["endpoint"]
            into = found.setdefault(name, {"endpoint": name} | dict.fromkeys(_COUNTS, 0) | {key: {} for key in _DICTS})
            for key in _COUNTS:
                into[key] += row[key]
            for key in _DICTS:
                into[key] = dict(Counter(into[key]) + Counter(row[key]))
            for key in _HISTOGRAMS:
                histograms.setdefault((name, key), Histogram(digits=2)).add(Histogram.decode(row[key]["hdr"]))
            for target, share in row.get("targets", {}).items():
                _share_added(into.setdefault("targets", {}).setdefault(target, {}), share)
    for (name, key), histogram in histograms.items():
        found[name][key] = histogram.as_dict()
    return ordered(list(found.values()))


def _share_added(into: dict[str, Any], share: dict[str, Any]) -> None:
    for key, value in share.items():
        if isinstance(value, dict):
            into[key] = dict(Counter(into.get(key, {})) + Counter(value))
        else:
            into[key] = max(into.get(key, 0), value) if key.endswith("_max_us") else into.get(key, 0) + value


def timeline(start_ns: int | None, width_ns: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The `timeline` of a report: columns over stretches of equal length. start_ns: since 1970."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in _COLUMNS}
    kinds = sorted({kind for row in rows for kind in row["status"]})
    columns |= {kind: [row["status"].get(kind, 0) for row in rows] for kind in kinds}
    return {"start_ns": start_ns, "bucket_ms": width_ns / 1e6, "columns": columns}


def timelines_added(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Time lines of several reports on one axis."""
    lines = [line for line in lines if line and line["start_ns"] is not None]
    if not lines:
        return timeline(None, 100_000_000, [])
    start = min(line["start_ns"] for line in lines)
    width = max(line["bucket_ms"] for line in lines)
    ends = [line["start_ns"] - start + len(line["columns"]["due"]) * line["bucket_ms"] * 1e6 for line in lines]
    while max(ends) / 1e6 / width > _MOST_ROWS:
        width *= 2
    count = max(1, int(max(ends) / 1e6 / width + 0.999)) + 1
    names = sorted({name for line in lines for name in line["columns"]})
    columns = {name: [0] * count for name in names}
    for line in lines:
        shift = (line["start_ns"] - start) / 1e6
        for name, values in line["columns"].items():
            for at, value in enumerate(values):
                to = int((shift + at * line["bucket_ms"]) / width)
                columns[name][to] = max(columns[name][to], value) if name in _LARGEST else columns[name][to] + value
    while count > 1 and not any(column[-1] for column in columns.values()):
        count -= 1
        for column in columns.values():
            column.pop()
    return {"start_ns": start, "bucket_ms": width, "columns": columns}


def wilson(count: int, total: int) -> float:
    """The lower end of Wilson's interval (95 %) of a share."""
    if total <= 0:
        return 0.0
    z = 1.96
    share = count / total
    middle = share + z * z / (2 * total)
    spread = z * float((share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5)
    return max(0.0, (middle - spread) / (1 + z * z / total))


def _ratio(row: dict[str, Any]) -> float:
    """How many times as long as in production, by the median."""
    ours, theirs = row["response_us"]["p50"], row["production_us"]["p50"]
    return float(ours / max(theirs, 1)) if ours is not None and theirs is not None else 0.0


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
