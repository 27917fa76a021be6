"""Reports side by side: a row a number, the first report is what the others are measured against."""

from __future__ import annotations

from typing import Any

from replay.units import show_count, show_duration, show_rate

__all__ = ["notes", "table"]

_Named = list[tuple[str, dict[str, Any]]]
_MOST_ENDPOINTS = 12


def table(named: _Named) -> list[tuple[str, list[str]]]:
    """(what, a text for each report)."""
    reports = [report for _, report in named]

    def counts(key: str) -> list[str]:
        return [show_count(report["ledger"][key]) for report in reports]

    rows = [(name, counts(name)) for name in ("found", "selected", "sent", "answered", "unanswered", "dropped")]
    rows.append(("digest", [report["digest"] for report in reports]))
    rows.append(("rate achieved", [show_rate(report["rate"]["achieved"]) for report in reports]))
    rows.append(("status changed", [_share(sum(report["status_change"].values()), report["status_known"]) for report in reports]))
    for kind in ("2xx", "3xx", "4xx", "5xx"):
        found = [sum(n for code, n in report["status"].items() if code[0] == kind[0]) for report in reports]
        if any(found):
            rows.append((f"status {kind}", [_share(n, report["ledger"]["answered"]) for n, report in zip(found, reports, strict=True)]))
    for key, text in (("latency_us", "latency"), ("service_us", "service"), ("response_us", "first byte"), ("lag_us", "lag"), ("production_us", "production")):
        for quantile in ("p50", "p99", "p99_9"):
            rows.append((f"{text} {quantile.replace('_', '.')}", _against([report[key][quantile] for report in reports])))
    return rows + _endpoints(reports)


def notes(named: _Named) -> list[str]:
    """What stands in the way of a comparison."""
    found = []
    if len({report["digest"] for _, report in named}) > 1:
        found.append("the runs did not select the same requests (their digests differ): compare shares and percentiles, not counts")
    paces = {report["rate"]["asked"] and round(report["rate"]["asked"], -1) for _, report in named}
    if len(paces) > 1:
        found.append("the runs asked for different rates")
    for name, report in named:
        if report["rate"]["limited_by"]:
            found.append(f"{name} was held up by {report['rate']['limited_by']}: its latency from due time holds that wait")
        if report["interrupted"]:
            found.append(f"{name} was interrupted")
    return found


def _endpoints(reports: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Those that differ most between the reports."""
    by_name = [{row["endpoint"]: row for row in report["endpoints"]} for report in reports]
    rows: list[tuple[float, str, list[str]]] = []
    for name in by_name[0]:
        found = [rows_of.get(name) for rows_of in by_name]
        every = [row for row in found if row is not None]
        if len(every) < 2:
            continue
        shares = [row["changed"] / row["known"] if row["known"] else 0.0 for row in every]
        p99 = [row["response_us"]["p99"] for row in every if row["response_us"]["p99"] is not None]
        spread = max(shares) - min(shares)
        ratio = max(p99) / max(min(p99), 1) if len(p99) > 1 else 1.0
        texts = ["-" if row is None else f"{_share(row['changed'], row['known'])} changed, p99 {_us(row['response_us']['p99'])}" for row in found]
        rows.append((spread + min(ratio - 1, 10) / 10, name, texts))
    rows.sort(key=lambda row: (-row[0], row[1]))
    return [(name, texts) for _, name, texts in rows[:_MOST_ENDPOINTS]]


def _against(values: list[float | None]) -> list[str]:
    first = values[0]
    texts = [_us(first)]
    for value in values[1:]:
        change = f" ({100 * (value - first) / first:+.0f} %)" if first and value is not None else ""
        texts.append(_us(value) + change)
    return texts


def _us(value: float | None) -> str:
    return show_duration(None if value is None else value * 1000)


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %" if total else "-"
