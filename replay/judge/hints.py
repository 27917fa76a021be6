"""What a person would say who looked at a report: sentences, the most important first. Only numbers of the report are used."""

from __future__ import annotations

from typing import Any

from replay.units import show_count, show_duration

__all__ = ["changes", "hints", "worst"]

_MOST = 3
_LEAST_SHARE = 0.02


def hints(report: dict[str, Any]) -> list[str]:
    """Sentences about what differs between the shadow and production."""
    if not report["ledger"]["answered"]:
        return []
    found = [*_credentials(report), *_hosts(report), *_limits(report)]
    found += _wrong(report)
    found += _slower(report)
    found += _results(report)
    return found


def worst(report: dict[str, Any], most: int = _MOST) -> list[str]:
    """The worst endpoints in few words each; none when none is harmed."""
    lines: list[str] = []
    for row in report["endpoints"]:
        words = []
        if row["changed"]:
            words.append(f"{_percent(row['changed'], row['known'])} changed ({changes(row)})")
        if row["unanswered"]:
            words.append(f"{_percent(row['unanswered'], row['requests'])} unanswered")
        if row["slower"] and row["compared"] and row["slower"] / row["compared"] >= _LEAST_SHARE:
            words.append(f"{_percent(row['slower'], row['compared'])} slower (p50 {_us(row['production_us']['p50'])} > {_us(row['response_us']['p50'])})")
        if words and len(lines) < most:
            answered = f", {show_count(row['answered'])} answered" if row["dropped"] else ""
            lines.append(f"{row['endpoint']}  {', '.join(words)} of {show_count(row['requests'])}{answered}{_where(row)}")
    return lines


def _where(row: dict[str, Any]) -> str:
    """With several targets: the one that does most of the harm."""
    harm = {url: one["changed"] + one["unanswered"] + one["slower"] for url, one in row.get("targets", {}).items()}
    total = sum(harm.values())
    if len(harm) < 2 or not total:
        return ""
    url = max(harm, key=lambda one: harm[one])
    return f", {_percent(harm[url], total)} of it at {url}"


def changes(row: dict[str, Any], most: int = 2) -> str:
    """`200>500 96, 200>401 3`: the most frequent changes of status."""
    pairs = sorted(row["status_change"].items(), key=lambda item: -item[1])
    return ", ".join(f"{pair} {show_count(count)}" for pair, count in pairs[:most])


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.3g} %"


def _us(value: float | None) -> str:
    return show_duration(None if value is None else value * 1000)


def _shares(report: dict[str, Any], codes: tuple[str, ...]) -> tuple[float, float]:
    """(captured, shadow): what part of the answered have one of these statuses, in percent; of those whose captured status is known, as far as can be told."""
    known, answered = report["status_known"], report["ledger"]["answered"]
    captured = sum(report["status_captured"].get(code, 0) for code in codes)
    shadow = sum(report["status"].get(code, 0) for code in codes)
    return 100 * captured / max(known, 1), 100 * shadow / max(answered, 1)


def _credentials(report: dict[str, Any]) -> list[str]:
    captured, shadow = _shares(report, ("401", "403"))
    points = shadow - captured
    if not report["status_known"] or points < 2:
        return []
    text = f"401 and 403 are {points:.0f} points above the captured share ({captured:.3g} % > {shadow:.3g} %): "
    return [text + "the tokens in this capture are probably expired, or the shadow service does not know them; see -H and --auth-file"]


def _hosts(report: dict[str, Any]) -> list[str]:
    captured, shadow = _shares(report, ("404", "421"))
    if not report["status_known"] or shadow - captured < 50:
        return []
    text = f"404 and 421 are {shadow - captured:.0f} points above the captured share: "
    return [text + "does the service know the shadow's Host? see --shadow-suffix and --set-host"]


def _limits(report: dict[str, Any]) -> list[str]:
    captured, shadow = _shares(report, ("429",))
    if not report["status_known"] or shadow - captured < 2:
        return []
    return [f"429 is {shadow - captured:.0f} points above the captured share: the shadow service limits the rate; raise its limit, or choose a slower --pace"]


def _denied(row: dict[str, Any]) -> int:
    return sum(count for pair, count in row["status_change"].items() if pair.endswith((">401", ">403")))


def _wrong(report: dict[str, Any]) -> list[str]:
    found = []
    explained = bool(_credentials(report) or _hosts(report))
    for row in report["endpoints"]:
        changed = row["changed"] - (_denied(row) if explained else 0)
        if row["known"] < 5 or changed / row["known"] < _LEAST_SHARE:
            continue
        rest = {pair: count for pair, count in row["status_change"].items() if not (explained and pair.endswith((">401", ">403")))}
        found.append((changed, f"{row['endpoint']}: {_percent(changed, row['known'])} of the answers have another status ({changes({'status_change': rest})})"))
    found.sort(key=lambda one: -one[0])
    return [text for _, text in found[:_MOST]]


def _slower(report: dict[str, Any]) -> list[str]:
    compared = [row for row in report["endpoints"] if row["compared"] >= 5]
    slow = [row for row in compared if row["slower"] / row["compared"] >= 0.25]
    if len(compared) >= 3 and len(slow) == len(compared):
        ours, theirs = report["response_us"]["p50"], report["production_us"]["p50"]
        text = f"every endpoint is slower than in production (p50 {_us(theirs)} > {_us(ours)}): "
        return [text + "is the shadow service further away, smaller, or cold? compare the distance of both with a plain request first"]
    slow.sort(key=lambda row: -row["slower"])
    return [
        f"{row['endpoint']}: {_percent(row['slower'], row['compared'])} of the replies begin more than twice as late as in production "
        f"({', '.join(f'{q} ' + _us(row['production_us'][q]) + ' > ' + _us(row['response_us'][q]) for q in ('p50', 'p99'))})"
        for row in slow[:_MOST]
    ]


def _results(report: dict[str, Any]) -> list[str]:
    lost = report.get("results", {}).get("lost", 0)
    dropped = report["ledger"]["by_reason"]["dropped"]
    if 0 < lost <= dropped.get("stopped", 0) + dropped.get("queue_full", 0):
        return [f"--results lacks {show_count(lost)} lines: those requests came into no queue: it was full, or the run was stopped"]
    return [f"--results lacks {show_count(lost)} lines: the disk was slower than the run; write to a faster one, or choose a slower --pace"] if lost else []
