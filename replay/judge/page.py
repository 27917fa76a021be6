"""A report as one HTML page that needs nothing else: it opens from disk, without a network and without a script; light, dark, and in print."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from replay.histogram import Histogram
from replay.judge import charts
from replay.judge.charts import Band, Line
from replay.units import show_bytes, show_count, show_duration, show_rate

__all__ = ["compared", "page"]

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2330;--soft:#5b6675;--rule:#dfe4ea;--card:#f6f8fa;--c1:#2463c7;--c2:#c2600c;--c3:#0b8a75;--c4:#7b4cc4;--c5:#c62f3b;
--c6:#8a94a3;--good:#1a7f45;--bad:#c62f3b;--on:#fff}
@media (prefers-color-scheme:dark){:root{--paper:#12161d;--ink:#e4e9f0;--soft:#9aa6b5;--rule:#2b333f;--card:#1a2029;--c1:#6ba4ff;--c2:#f2994a;--c3:#3fc7ae;--c4:#b794f6;--c5:#ff7a82;
--c6:#77828f;--good:#54c98a;--bad:#ff7a82;--on:#12161d}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 24px 60px;max-width:1180px;background:var(--paper);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:22px;margin:0 0 2px}h2{font-size:16px;margin:34px 0 10px}p{margin:4px 0}.soft{color:var(--soft)}
code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 12px}.card b{display:block;font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:12px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:18px 26px}
figure{margin:0}figcaption{font-weight:600;margin-bottom:4px}figcaption small{font-weight:400;color:var(--soft)}
svg{width:100%;height:auto;display:block}.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.tick,.key,.flowtext{fill:var(--soft);font-size:11px}.key,.flowtext{fill:var(--ink)}.num{font-variant-numeric:tabular-nums;font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}
.inside{fill:var(--on);font-size:11px;font-weight:600}.band{opacity:.28}.hover{fill:transparent;pointer-events:all}.hover:hover{fill:var(--ink);opacity:.35}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 9px;border-bottom:1px solid var(--rule);white-space:nowrap}th{color:var(--soft);font-weight:500;font-size:12px}
th:first-child,td:first-child{text-align:left;white-space:normal}td.text,th.text{text-align:left;white-space:normal}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
ul.hints{list-style:none;padding:0;margin:10px 0}ul.hints li{border-left:3px solid var(--c2);background:var(--card);padding:7px 12px;margin:6px 0;border-radius:0 6px 6px 0}
li.fail{border-color:var(--bad)!important}li.pass{border-color:var(--good)!important}
td.cell{min-width:58px;position:relative}td.where{min-width:200px}td.at{white-space:nowrap!important}
@media screen and (max-width:760px){body{padding:18px 14px 40px}.wide{overflow-x:auto}.wide svg{min-width:860px}.cards{grid-template-columns:1fr 1fr}}
@media print{:root{--paper:#fff;--ink:#000;--soft:#444;--rule:#ccc;--card:#fff}body{padding:0;max-width:none;font-size:11px}h2{break-after:avoid}figure,tr,li,.card{break-inside:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}.two{grid-template-columns:1fr 1fr}.scroll{overflow:visible}}
"""
_KINDS = (("2xx", "c3"), ("3xx", "c1"), ("4xx", "c2"), ("5xx", "c5"), ("1xx", "c6"))
_MOST_ENDPOINTS = 100
_CURVES = ("c1", "c2", "c3", "c4", "c5", "c6")


def page(report: dict[str, Any], title: str = "replay") -> str:
    """The page of one report (of a run, or of several added up)."""
    ledger = report["ledger"]
    parts = [_header(report), _cards(report), _gates(report), _hints(report)]
    parts.append(_section("What became of the requests", "".join(_figure("", flow) for flow in _ledger_flows(ledger)) + _reasons(ledger)))
    if ledger["answered"]:
        parts.append(_section("Latency", _latency([("", report)]) + _latency_table(report)))
        parts.append(_section("Status", _status(report)))
    if report["endpoints"]:
        parts.append(_section("Endpoints, worst first", _endpoints(report)))
    parts.append(_section("Over time", _timeline(report)) if report["timeline"]["start_ns"] is not None else "")
    parts.append(_section("The capture", _capture(report)))
    parts.append(_section("The run", _about(report)))
    return _document(title, "".join(parts))


def compared(reports: Sequence[tuple[str, dict[str, Any]]], rows: Sequence[tuple[str, Sequence[str]]], notes: Sequence[str]) -> str:
    """The page of several reports side by side. rows: (what, a text for each report)."""
    names = [name for name, _ in reports]
    parts = [f"<h1>{len(reports)} runs side by side</h1>"]
    parts += [f'<ul class="hints">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr><td>{escape(what)}</td>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>" for what, texts in rows)
    parts.append(f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>')
    parts.append(_section("Latency from due time", _latency(list(reports))))
    for name, report in reports:
        if report["timeline"]["start_ns"] is not None:
            parts.append(_section(f"Over time: {name}", _timeline(report)))
    return _document("replay: runs side by side", "".join(parts))


def _document(title: str, body: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _figure(caption: str, svg: str, small: str = "") -> str:
    if not svg:
        return ""
    text = f"<figcaption>{escape(caption)} <small>{escape(small)}</small></figcaption>" if caption else ""
    wide = ' class="wide"' if 'viewBox="0 0 1130 ' in svg else ""  # over the whole page: in a narrow window it is scrolled, not shrunk
    return f"<figure{wide}>{text}{svg}</figure>"


def _us(value: float | None) -> str:
    return show_duration(None if value is None else value * 1000)


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %" if total else "-"


# ---- parts -------------------------------------------------------------------------------------------------------------------------


def _header(report: dict[str, Any]) -> str:
    to = ", ".join(report["targets"]) or ("a dry run" if report["dry_run"] else "nowhere")
    what = f"{report['reports']} reports added up" if "reports" in report else ", ".join(report["inputs"][:3]) + (" …" if len(report["inputs"]) > 3 else "")
    return f'<h1>replay → {escape(to)}</h1><p class="soft">{escape(what)} · {escape(report["started"])} · digest <code>{escape(report["digest"])}</code></p>'


def _cards(report: dict[str, Any]) -> str:
    n = report["ledger"]
    changed = sum(report["status_change"].values())
    cards = [
        ("selected", show_count(n["selected"]), f"of {show_count(n['found'])} found"),
        ("sent", show_count(n["sent"]), show_rate(report["rate"]["achieved"])),
        ("answered", _share(n["answered"], n["sent"]), f"{show_count(n['unanswered'])} unanswered"),
        ("status changed", _share(changed, report["status_known"]), f"{show_count(changed)} answers"),
        ("p99 whole reply, from due time", _us(report["latency_us"]["p99"]), f"p50 {_us(report['latency_us']['p50'])}"),
        ("p99 first byte", _us(report["response_us"]["p99"]), f"p50 {_us(report['response_us']['p50'])}"),
        ("p99 first byte in production", _us(report["production_us"]["p99"]), f"p50 {_us(report['production_us']['p50'])}"),
        ("lag p99", _us(report["lag_us"]["p99"]), f"limited by {report['rate']['limited_by'] or 'nothing'}"),
    ]
    return '<div class="cards">' + "".join(f'<div class="card"><span>{a}</span><b>{escape(b)}</b><span>{escape(c)}</span></div>' for a, b, c in cards) + "</div>"


def _gates(report: dict[str, Any]) -> str:
    if not report["gates"]:
        return ""
    items = ""
    for gate in report["gates"]:
        where = f", at {gate['where']}" if gate["where"] else ""
        word = "failed" if gate["failed"] else "passed"
        items += f'<li class="{"fail" if gate["failed"] else "pass"}"><b>{word}</b> <code>{escape(gate["expression"])}</code>: {escape(gate["value"])}, bound {escape(gate["bound"] + where)}</li>'
    return f'<ul class="hints">{items}</ul>'


def _hints(report: dict[str, Any]) -> str:
    return f'<ul class="hints">{"".join(f"<li>{escape(hint)}</li>" for hint in report["hints"])}</ul>' if report["hints"] else ""


def _ledger_flows(n: dict[str, Any]) -> list[str]:
    stages: list[list[tuple[str, int, str, str | None]]] = [
        [("found", n["found"], "c1", None)],
        [("selected", n["selected"], "c1", "found"), ("withheld", n["withheld"], "c4", "found"), ("sampled out", n["sampled_out"], "c6", "found"),
         ("filtered", n["filtered"], "c6", "found")],
        [("sent", n["sent"], "c1", "selected"), ("dropped", n["dropped"], "c5", "selected")],
        [("answered", n["answered"], "c3", "sent"), ("unanswered", n["unanswered"], "c5", "sent")],
    ]  # fmt: skip
    if not n["fanout"]:
        return [charts.flow("The ledger as a flow", stages)]
    # Several targets: the copies are a whole of their own.
    copies: list[list[tuple[str, int, str, str | None]]] = [[(name, count, colour, "copies") for name, count, colour, _ in stages[2]], stages[3]]
    copies.insert(0, [("copies", n["selected"] + n["fanout"], "c1", None)])
    return [charts.flow("The ledger as a flow: requests", stages[:2]), charts.flow("The ledger as a flow: their copies", copies)]


def _reasons(n: dict[str, Any]) -> str:
    texts = [
        f"<b>{name.replace('_', ' ')}</b> " + ", ".join(f"{escape(reason)} {show_count(count)}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
        for name, reasons in n["by_reason"].items()
        if reasons
    ]
    return f'<p class="soft">{" · ".join(texts)}</p>' if texts else ""


def _points(h: dict[str, Any]) -> list[tuple[float, float]]:
    return Histogram.decode(h["hdr"]).steps() if h.get("hdr") else []


def _latency(reports: Sequence[tuple[str, dict[str, Any]]]) -> str:
    most = max((report["ledger"]["answered"] for _, report in reports), default=0)
    if len(reports) == 1:
        report = reports[0][1]
        curves = [
            Line("production", _points(report["production_us"]), "c6"),
            Line("shadow, first byte", _points(report["response_us"]), "c1"),
            Line("shadow, whole reply", _points(report["service_us"]), "c3"),
            Line("shadow, from due time", _points(report["latency_us"]), "c2"),
        ]
        return _figure("By percentile", charts.percentiles("Latency by percentile", curves, y_text=_us, most=most), "production is first byte to first byte")
    curves = [Line(name, _points(report["latency_us"]), _CURVES[at % len(_CURVES)]) for at, (name, report) in enumerate(reports)]
    return _figure("By percentile", charts.percentiles("Latency by percentile", curves, y_text=_us, most=most))


def _latency_table(report: dict[str, Any]) -> str:
    rows = [
        ("in production (first byte)", "production_us"), ("shadow, first byte", "response_us"), ("shadow, whole reply", "service_us"),
        ("shadow, from due time", "latency_us"), ("lag (sent minus due)", "lag_us"),
    ]  # fmt: skip
    names = ("p50", "p90", "p99", "p99_9", "max")
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in names)
    body = "".join(f"<tr><td>{text}</td>{''.join(f'<td>{escape(_us(report[key][name]))}</td>' for name in names)}</tr>" for text, key in rows)
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _kinds(status: dict[str, int]) -> list[Band]:
    return [Band(kind, sum(count for code, count in status.items() if code[:1] == kind[0]), colour) for kind, colour in _KINDS]


def _status(report: dict[str, Any]) -> str:
    rows = [("production", _kinds(report["status_captured"])), ("shadow", _kinds(report["status"]))]
    mix = _figure("Mix", charts.bars("Status mix", rows))
    return f'<div class="two">{mix}<figure><figcaption>Captured (rows) against shadow (columns)</figcaption>{_matrix(report)}</figure></div>'


def _matrix(report: dict[str, Any]) -> str:
    """Captured status by shadow status. What is the same stands on the diagonal."""
    if not report["status_known"]:
        return '<p class="soft">The capture holds no replies.</p>'
    pairs: dict[tuple[str, str], int] = {}
    for pair, count in report["status_change"].items():
        captured, mark, shadow = pair.partition(">")
        if mark:
            pairs[captured, shadow] = count
    for code, count in report["status_captured"].items():
        same = count - sum(n for (captured, _), n in pairs.items() if captured == code)
        if same > 0:
            pairs[code, code] = same
    largest = max(pairs.values(), default=1)
    rows = sorted({captured for captured, _ in pairs})[:20]
    columns = sorted({shadow for _, shadow in pairs})[:20]
    head = "".join(f"<th>{escape(code)}</th>" for code in columns)
    body = ""
    for captured in rows:
        cells = ""
        for shadow in columns:
            count = pairs.get((captured, shadow), 0)
            strength = round(12 + 38 * math.log1p(count) / math.log1p(largest)) if count else 0
            colour = "c3" if captured == shadow else "c5" if shadow >= "4" and shadow[0] > captured[0] else "c2"
            style = f' style="background:color-mix(in srgb,var(--{colour}) {strength}%,transparent)"' if count else ""
            cells += f'<td class="cell"{style}>{show_count(count) if count else ""}</td>'
        body += f"<tr><td>{escape(captured)}</td>{cells}</tr>"
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _endpoints(report: dict[str, Any]) -> str:
    names = ("requests", "changed", "unanswered", "slower", "p50 production", "p50 shadow", "p99 production", "p99 shadow", "from due p99")
    head = "".join(f"<th>{name}</th>" for name in names) + '<th class="text">changes</th>'
    body = ""
    for row in report["endpoints"][:_MOST_ENDPOINTS]:
        ours, theirs = row["response_us"], row["production_us"]
        worse = {q: ours[q] is not None and theirs[q] is not None and ours[q] > 2 * theirs[q] and ours[q] - theirs[q] > 5000 for q in ("p50", "p99")}
        cells = [
            (show_count(row["requests"]), False), (_share(row["changed"], row["known"]), row["changed"] > 0), (_share(row["unanswered"], row["requests"]), row["unanswered"] > 0),
            (_share(row["slower"], row["compared"]), row["slower"] * 20 > row["compared"]), (_us(theirs["p50"]), False), (_us(ours["p50"]), worse["p50"]),
            (_us(theirs["p99"]), False), (_us(ours["p99"]), worse["p99"]), (_us(row["latency_us"]["p99"]), False),
        ]  # fmt: skip
        changes = ", ".join(f"{pair} {show_count(count)}" for pair, count in sorted(row["status_change"].items(), key=lambda item: -item[1])[:4])
        texts = "".join(f"<td{' class=bad' if bad else ''}>{escape(text)}</td>" for text, bad in cells)
        body += f'<tr><td class="mono where">{escape(row["endpoint"])}</td>{texts}<td class="text">{escape(changes)}</td></tr>'
        body += "".join(_at_target(url, share) for url, share in row.get("targets", {}).items())
    more = len(report["endpoints"]) - _MOST_ENDPOINTS
    note = f'<p class="soft">{more} more are in the JSON report.</p>' if more > 0 else ""
    return f'<div class="scroll"><table><tr><th>endpoint</th>{head}</tr>{body}</table></div>{note}'


def _at_target(url: str, share: dict[str, Any]) -> str:
    """What one of several targets did at an endpoint."""
    mean = _us(share["response_sum_us"] / share["compared"]) if share["compared"] else "-"
    cells = [
        (show_count(share["requests"]), False), (_share(share["changed"], share["known"]), share["changed"] > 0), (_share(share["unanswered"], share["requests"]), share["unanswered"] > 0),
        (_share(share["slower"], share["compared"]), share["slower"] * 20 > share["compared"]),
    ]  # fmt: skip
    texts = "".join(f"<td{' class=bad' if bad else ''}>{escape(text)}</td>" for text, bad in cells)
    status = ", ".join(f"{kind} {show_count(count)}" for kind, count in share["status"].items())
    return f'<tr class="soft"><td class="mono at">\u00a0\u00a0at {escape(url)}</td>{texts}<td colspan="5" class="text">first byte after {mean} on average</td><td class="text">{escape(status)}</td></tr>'


def _timeline(report: dict[str, Any]) -> str:
    line = report["timeline"]
    columns, width_s = line["columns"], line["bucket_ms"] / 1000
    count = len(columns["due"])

    def over(values: Sequence[float]) -> list[tuple[float, float]]:
        return [(at * width_s, value) for at, value in enumerate(values)]

    def mean(total: str, of: str) -> list[tuple[float, float]]:
        return [(at * width_s, columns[total][at] / columns[of][at]) for at in range(count) if columns[of][at]]

    def most(name: str, of: str) -> list[tuple[float, float]]:
        return [(at * width_s, columns[name][at]) for at in range(count) if columns[of][at]]

    def seconds(value: float) -> str:
        return "0" if value == 0 else show_duration(value * 1e9)

    rate = [
        Line("asked (due)", over([n / width_s for n in columns["due"]]), "c6", True),
        Line("achieved (sent)", over([n / width_s for n in columns["sent"]]), "c1"),
        Line("answered", over([n / width_s for n in columns["answered"]]), "c3"),
    ]
    failed = [a + b for a, b in zip(columns["unanswered"], columns["dropped"], strict=True)]
    if any(failed):
        rate.append(Line("failed", over([n / width_s for n in failed]), "c5"))
    lag = [Line("mean", mean("lag_sum_us", "sent"), "c1"), Line("largest", most("lag_max_us", "sent"), "c2")]
    latency = [
        Line("mean, whole reply", mean("service_sum_us", "answered"), "c1"), Line("mean, from due time", mean("latency_sum_us", "answered"), "c2"),
        Line("largest, from due time", most("latency_max_us", "answered"), "c5", True),
    ]  # fmt: skip
    status = [Line(kind, over([n / width_s for n in columns[kind]]), colour) for kind, colour in _KINDS if kind in columns]
    figures = [
        _figure("Rate", charts.lines("Rate asked and achieved", rate, x_text=seconds, y_text=show_rate), f"a second, in steps of {show_duration(line['bucket_ms'] * 1e6)}"),
        _figure("Lag", charts.lines("Lag: sent minus due", lag, x_text=seconds, y_text=_us), "sent minus due"),
        _figure("Latency", charts.lines("Latency over time", latency, x_text=seconds, y_text=_us)),
        _figure("Status", charts.lines("Status over time", status, x_text=seconds, y_text=show_rate), "answers a second"),
    ]
    return f'<div class="two">{"".join(figures)}</div>'


def _capture(report: dict[str, Any]) -> str:
    packets = report["packets"]
    rows = [
        ("captured", f"{_moment(report['captured']['first_packet_ns'])} to {_moment(report['captured']['last_packet_ns'])}"),
        ("packets", f"{show_count(packets['read'])} read, {show_count(sum(packets['skipped'].values()))} skipped, {show_count(packets['cut_frames'])} cut"),
        ("connections", show_count(report["connections"])),
        ("not whole", ", ".join(f"{name} {show_count(count)}" for name, count in report["incomplete"].items()) or "none"),
        ("lost without a trace", show_count(report["lost_estimated"])),
        ("gaps", f"{show_count(report['gaps']['count'])}, {show_bytes(report['gaps']['bytes'])}"),
        ("not HTTP/1", ", ".join(f"{name} {show_count(count)}" for name, count in report["other"].items()) or "none"),
    ]
    return _table(rows)


def _about(report: dict[str, Any]) -> str:
    policy = ", ".join(f"{key} {value}" for key, value in report["policy"].items() if value is not None)
    targets = [
        f"{url}: {show_count(target['sent'])} sent, {show_count(target['answered'])} answered, {show_count(target['connections'])} connections"
        + (f", last error {target['last_error']}" if target["last_error"] else "")
        for url, target in report["targets"].items()
    ]
    rows = [
        ("command", report["command"]), ("version", report["version"]), ("started, ended", f"{report['started']}, {report['ended']}"), ("policy", policy),
        ("seed", str(report["seed"])), ("digest of the selected set", report["digest"]), ("targets", "; ".join(targets)), ("notes", "; ".join(report["notes"])),
    ]  # fmt: skip
    return _table(rows)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "<table>" + "".join(f'<tr><td>{escape(name)}</td><td class="text mono">{escape(text)}</td></tr>' for name, text in rows if text) + "</table>"


def _moment(ns: int | None) -> str:
    if ns is None:
        return "-"
    try:
        return f"{datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(ns)
