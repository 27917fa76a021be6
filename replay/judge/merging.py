"""Several reports as one: those of shards and nodes are added up. Histograms are added, so percentiles are those of all requests together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from replay.errors import UsageError
from replay.histogram import Histogram
from replay.judge import endpoints, hints, loss, shape

__all__ = ["HISTOGRAMS", "merged", "readable"]

HISTOGRAMS = ("latency_us", "service_us", "lag_us", "production_us", "response_us")
#: What each shard of one run says of the whole capture: not added up.
_CAPTURE = (
    "incomplete", "packets", "lost_estimated", "connections", "other", "gaps", "overlap_conflicts", "repeated_segments", "evicted_connections",
    "memory_refused", "silences_cut",
)  # fmt: skip
_COUNTS = ("credentials", "status", "status_change", "status_captured", "status_known", "status_same", "writes", "not_judged")


def readable(report: Any, where: str) -> dict[str, Any]:
    """The report, when it is one that this version understands, and whole. Raises UsageError that names file and key."""
    if not isinstance(report, dict) or not isinstance(report.get("ledger"), dict) or "latency_us" not in report:
        raise UsageError(f"{where}: no report of replay; name files that --report wrote")
    if report.get("schema") != 1:
        raise UsageError(f"{where}: a report of schema {report.get('schema')!r}; this version reads schema 1")
    empty = Histogram().as_dict()
    filled: dict[str, Any] = {
        "other_shards": 0, "credentials": {"replaced": 0, "unknown": 0},
        "endpoints": [], "timeline": endpoints.timeline(None, 100_000_000, []), "hints": [], "gates": [], "status_captured": {}, "status_known": 0,
        "loss": {"packets": None, "from": None, "orphans": 0, "matched": 0}, "status_same": 0, "not_judged": 0, "response_us": empty,
    }  # fmt: skip
    whole = filled | report
    wrong = shape.wrong(whole)
    if wrong is not None:
        raise UsageError(f"{where}: no whole report: {wrong}")
    return whole


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of all. Raises UsageError where a histogram cannot be read."""
    if len(reports) == 1:
        return reports[0]
    first = reports[0]
    one_capture = _are_shards(reports)
    whole: dict[str, Any] = dict(first)
    whole["started"] = min(one["started"] for one in reports)
    whole["ended"] = max(one["ended"] for one in reports)
    whole["command"] = "\n".join(dict.fromkeys(one["command"] for one in reports))
    whole["inputs"] = list(dict.fromkeys(name for one in reports for name in one["inputs"]))
    whole["digest"] = f"{sum(int(one['digest'], 16) for one in reports) & (1 << 64) - 1:016x}"
    whole["ledger"] = _added(one["ledger"] for one in reports)
    for key in _CAPTURE:
        whole[key] = first[key] if one_capture else _added(one[key] for one in reports)
    whole["loss"] = first["loss"] if one_capture else loss.added(one["loss"] for one in reports)
    for key in _COUNTS:
        whole[key] = _added(one[key] for one in reports)
    try:
        for key in HISTOGRAMS:
            total = Histogram()
            for one in reports:
                total.add(Histogram.decode(one[key]["hdr"]))
            whole[key] = total.as_dict()
        whole["endpoints"] = endpoints.added(one["endpoints"] for one in reports)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"a histogram of these reports cannot be read: {error}") from None
    whole["timeline"] = endpoints.timelines_added([one["timeline"] for one in reports])
    whole["rate"] = _rate(reports, whole)
    whole["targets"] = _targets(reports)
    whole["policy"] = {key: value for key, value in first["policy"].items() if key != "shard" and all(one["policy"].get(key) == value for one in reports)}
    whole["captured"] = {
        key: (min if key.startswith("first") else max)((one["captured"][key] for one in reports if one["captured"][key] is not None), default=None)
        for key in first["captured"]
    }
    whole["passes"] = max(one["passes"] for one in reports)
    for key in ("interrupted", "guard", "never_connected"):
        whole[key] = any(one[key] for one in reports)
    whole["stopped_by"] = next((one["stopped_by"] for one in reports if one.get("stopped_by")), None)
    whole["dry_run"] = all(one["dry_run"] for one in reports)
    whole["notes"] = list(dict.fromkeys(note for one in reports for note in one["notes"]))
    whole["faults"] = first["faults"] if one_capture else [fault for one in reports for fault in one["faults"]]
    whole["gates"] = []
    if any("results" in one for one in reports):
        whole["results"] = _added(one["results"] for one in reports if "results" in one)
    if one_capture:
        whole["other_shards"] = max(0, first["ledger"]["found"] + first["other_shards"] - whole["ledger"]["found"])
    whole.pop("to_send", None)
    whole["reports"] = len(reports)
    whole["hints"] = hints.hints(whole)
    return whole


def _are_shards(reports: list[dict[str, Any]]) -> bool:
    """They are different shards of one run over the same captures."""
    shards = [one["policy"].get("shard") for one in reports]
    same = all(one["inputs"] == reports[0]["inputs"] for one in reports)
    return all(shards) and len(set(shards)) == len(shards) and len({shard.partition("/")[2] for shard in shards}) == 1 and same


def _added(values: Iterable[Any]) -> Any:
    """Numbers are added, dicts key by key."""
    values = list(values)
    if isinstance(values[0], dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _added([value[key] for value in values if key in value]) for key in keys}
    return sum(values)


def _rate(reports: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """Runs beside each other: rates add up. Runs one after the other: an average."""
    beside = max(one["started"] for one in reports) < min(one["ended"] for one in reports)

    def of(key: str) -> float | None:
        found = [one["rate"].get(key) for one in reports]
        known = [value for value in found if value is not None]
        if not known:
            return None
        return float(sum(known) if beside else sum(known) / len(known))

    limits = list(dict.fromkeys(one["rate"]["limited_by"] for one in reports if one["rate"]["limited_by"]))
    planned = [one["rate"]["planned_s"] for one in reports if one["rate"].get("planned_s") is not None]
    most = [one["rate"]["duration_s"] for one in reports if one["rate"].get("duration_s") is not None]
    return {
        "asked": of("asked"),
        "achieved": of("achieved"),
        "limited_by": ", ".join(limits) or None,
        "planned_s": (max(planned) if beside else sum(planned)) if planned else None,
        "duration_s": (max(most) if beside else sum(most)) if len(most) == len(reports) else None,
    }


def _targets(reports: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for one in reports:
        for url, target in one["targets"].items():
            into = found.setdefault(url, {})
            for key, value in target.items():
                if isinstance(value, bool) or value is None or isinstance(value, (str, list)):
                    into[key] = into.get(key) or value
                elif isinstance(value, dict):
                    into[key] = dict(Counter(into.get(key) or {}) + Counter(value))
                else:
                    into[key] = (into.get(key) or 0) + value
    return found
