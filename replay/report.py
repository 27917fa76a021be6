"""What is told of a run: the report (a dict that is stable JSON), the summary a person reads, a line of the access log.

Here stands what the numbers mean and how they add up; how they came about stands in `engine`.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from replay import __version__
from replay.histogram import Histogram
from replay.judge import endpoints as judging
from replay.judge import loss
from replay.judge.hints import hints as judge_hints
from replay.judge.hints import worst
from replay.settings import Routing, Settings
from replay.units import show_count, show_duration, show_rate, show_share

__all__ = ["access_line", "build", "check", "endpoint", "gate_text", "hint", "mask", "share_text", "summary", "text", "when", "write"]

SCHEMA = 1
_HISTOGRAMS = ("latency_us", "service_us", "lag_us", "production_us")
_SECRET = r"(?i)^(authorization|proxy-authorization|cookie|x-api-key|.*(token|secret|password|key).*)$"


# ---- the report ----------------------------------------------------------------------------------------------------------


def build(
    settings: Settings, found: dict[str, Any], *, command: list[str], started: float, ended: float, notes: Iterable[str] = (), final: bool = True
) -> dict[str, Any]:
    """The report of a run, from what `engine.Replay.result` gives. command: the words of the command line.  final: it is over, so the ledger must add up."""
    ingest, senders = found["ingest"], found["senders"]
    ledger = _ledger(settings, ingest, senders, live="tap" in found)
    selection = settings.selection
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "started": when(started),
        "ended": when(ended),
        "command": mask(command),
        "inputs": list(settings.captures),
        "policy": {
            "percent": selection.share / 10_000,
            "sample_by": selection.sample_by,
            "methods": list(selection.methods) or None,
            "shadow_suffix": selection.suffix,
            "set_host": selection.set_host,
            "shard": None if selection.shard is None else f"{selection.shard[0] + 1}/{selection.shard[1]}",
        },
        **({"routing": _routing(selection.routing, ingest["routed"])} if selection.routing is not None else {}),
        "seed": selection.seed,
        "digest": f"{ingest['digest']:016x}",
        "ledger": ledger,
        "incomplete": ingest["incomplete"],
        "packets": {
            "read": ingest["packets"]["read"],
            "skipped": ingest["packets"]["skipped"],
            "kernel_drops": found["tap"]["kernel_drops"] if "tap" in found else 0,
            "cut_frames": ingest["packets"]["cut_frames"],
        },
        **_lost(ingest, senders, live="tap" in found),
        "status": _status(senders),
        "status_change": _sum(sender["status_change"] for sender in senders),
        "status_captured": {str(code): n for code, n in sorted(_sum(sender["status_captured"] for sender in senders).items())},
        "status_known": sum(sender["status_known"] for sender in senders),
        "status_same": sum(sender["status_same"] for sender in senders),
    }
    for name in _HISTOGRAMS:
        total = Histogram()
        for one in found["histograms"]:
            total.add(Histogram(one[name]))
        report[name] = total.as_dict()
    report["rate"] = _rate(settings, found, ledger)
    report["targets"] = {}
    unqueued = _unqueued(ingest, len(senders), live="tap" in found)
    for target, addresses, sender, never in zip(found["targets"], found["addresses"], senders, unqueued, strict=True):
        if target is not None:  # the same one twice gets two copies, as in a mesh
            again = sum(url.partition("#")[0] == target.url for url in report["targets"])
            report["targets"][f"{target.url}#{again + 1}" if again else target.url] = _target(addresses, sender, never)
    report |= {
        "dry_run": settings.dry_run,
        "interrupted": found["interrupted"],
        "guard": found["guard"],
        "connections": ingest["connections"],
        "other": ingest["other"],
        "gaps": {"count": ingest["gaps"], "bytes": ingest["gap_bytes"]},
        "overlap_conflicts": ingest["overlap_conflict"],
        "repeated_segments": ingest["repeated"],
        "evicted_connections": ingest["evicted"],
        "memory_refused": ingest["no_memory"],
        "writes": ingest["writes"],
        "credentials": ingest["credentials"],
        "other_shards": ingest["other_shards"],
        "silences_cut": {"count": ingest["gaps_cut"], "total_ns": ingest["gaps_cut_ns"]},
        "captured": {key: ingest[key] for key in ("first_ns", "last_ns", "first_packet_ns", "last_packet_ns")},
        "passes": found["passes"],
        "faults": found["faults"],
        "never_connected": found["never_connected"],
        "notes": list(notes),
    }
    _judged(report, found.get("judged"), sum(unqueued))
    if "tap" in found:
        tap = found["tap"]
        report["tap"] = {
            "kernel_percent": tap["kernel_ppm"] / 10_000,
            "shortened_packets": tap["shortened"],
            "bytes": tap["bytes"],
            "copied_bytes": tap["copied_bytes"],
        }
    if found.get("tap", {}).get("noted") is not None:
        noted = found["tap"]["noted"]
        report["results"] = {"lines": noted["lines"], "lost": noted["lost"] + sum(target["log_lost"] for target in report["targets"].values())}
    if final:
        check(report)
    report["hints"] = judge_hints(report)
    return report


def _lost(ingest: dict[str, Any], senders: list[dict[str, Any]], *, live: bool) -> dict[str, Any]:
    """`lost_estimated`, by the estimator of `inspect`, and what it stands on (`loss`)."""
    known = ingest["found"] + ingest["other_shards"] + sum(ingest["incomplete"].values())
    sent = sum(sender["sent"] for sender in senders)
    mean = sum(sender["bytes_sent"] for sender in senders) / sent if sent else 0.0
    found = loss.estimate(ingest, known, round(known * mean), heard=ingest["matched"] if live else None)
    told = {"packets": found.rate, "from": found.source, "orphans": ingest["lost_estimated"], "matched": ingest["matched"]}
    return {"lost_estimated": found.lost, "loss": told}


def _judged(report: dict[str, Any], judged: dict[str, Any] | None, unqueued: int) -> None:
    """Adds what the judge counted: `response_us`, `endpoints` (worst first), `timeline`, `results`. unqueued: copies that no sender saw."""
    if judged is None:
        report |= {"response_us": Histogram().as_dict(), "endpoints": [], "timeline": judging.timeline(None, 100_000_000, []), "not_judged": 0}
        return
    report["response_us"] = Histogram(judged["response"]).as_dict()
    report["endpoints"] = judging.build(judged["endpoints"], report["targets"])
    report["timeline"] = judging.timeline(*judged["timeline"])
    report["not_judged"] = judged["not_judged"] + unqueued
    if judged["results"] is not None:
        lost = judged["results"]["lost"] + unqueued + sum(target["log_lost"] for target in report["targets"].values())
        report["results"] = {"lines": judged["results"]["lines"], "lost": lost}


def _routing(routing: Routing, counted: dict[str, Any]) -> dict[str, Any]:
    """What each route of a policy and each of its mirrors took: complete requests, copies."""
    return {
        "source": routing.source,
        "routes": [
            {
                "name": name,
                "matched": counted["matched"][at],
                "mirrors": [
                    {
                        "to": routing.destinations[one],
                        "target": routing.targets[routing.mirrors[one]["queue"]].url,
                        "percent": routing.mirrors[one]["share"] / 10_000,
                        "copies": counted["copies"][one],
                    }
                    for one in routing.routes[at]
                ],
            }
            for at, name in enumerate(routing.names)
        ],
    }


def _ledger(settings: Settings, ingest: dict[str, Any], senders: list[dict[str, Any]], *, live: bool = False) -> dict[str, Any]:
    copies = max(len(settings.targets), 1)
    routed = ingest.get("routed")
    dropped = Counter(_sum(sender["dropped"] for sender in senders))
    if not senders:  # refused before the first byte: nobody was there to send
        dropped["guard"] = ingest["selected"] * copies if routed is None else ingest["selected"] + routed["fanout"]
    elif routed is not None:
        if any(routed["unqueued"]):
            dropped["stopped"] += sum(routed["unqueued"])
    elif ingest["unqueued"]:
        dropped["stopped"] += ingest["unqueued"]
    unanswered = _sum(sender["unanswered"] for sender in senders)
    by_reason = {
        "filtered": ingest["filtered"],
        "sampled_out": ingest["sampled_out"],
        "withheld": ingest["withheld"],
        "dropped": dict(dropped),
        "unanswered": unanswered,
    }
    fanned = 1 if settings.dry_run else copies
    return {
        "found": ingest["found"],
        "filtered": sum(ingest["filtered"].values()),
        "sampled_out": sum(ingest["sampled_out"].values()),
        "withheld": sum(ingest["withheld"].values()),
        "selected": ingest["selected"],
        "fanout": ingest["fanout"] if live else ingest["selected"] * (fanned - 1) if routed is None else routed["fanout"],
        "sent": sum(sender["sent"] for sender in senders),
        "dropped": sum(dropped.values()),
        "answered": sum(sender["answered"] for sender in senders),
        "unanswered": sum(unanswered.values()),
        "by_reason": by_reason,
    }


def check(report: dict[str, Any]) -> None:
    """The identities of the ledger. Raises AssertionError with the numbers: a bug of ours that must not go unseen."""
    n = report["ledger"]
    identities = {
        "found = filtered + sampled_out + withheld + selected": n["found"] - n["filtered"] - n["sampled_out"] - n["withheld"] - n["selected"],
        "selected + fanout = sent + dropped": n["selected"] + n["fanout"] - n["sent"] - n["dropped"],
        "sent = answered + unanswered": n["sent"] - n["answered"] - n["unanswered"],
        "answered = sum of status": n["answered"] - sum(report["status"].values()),
    }
    if report["endpoints"] or report["not_judged"]:
        told = sum(row["requests"] for row in report["endpoints"])
        identities["selected + fanout = sum of endpoints + not_judged"] = n["selected"] + n["fanout"] - told - report["not_judged"]
    if report["targets"]:
        for name in ("sent", "answered", "dropped", "unanswered"):
            each = [target[name] if isinstance(target[name], int) else sum(target[name].values()) for target in report["targets"].values()]
            identities[f"{name} = sum of the targets'"] = n[name] - sum(each)
    wrong = [f"{text} is off by {off}" for text, off in identities.items() if off]
    if wrong:
        raise AssertionError(f"the ledger does not add up: {'; '.join(wrong)}: {n}")


def _sum(dicts: Iterable[dict[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for one in dicts:
        total.update(one)
    return dict(total)


def _status(senders: list[dict[str, Any]]) -> dict[str, int]:
    return {str(code): count for code, count in sorted(_sum(sender["status"] for sender in senders).items())}


def _unqueued(ingest: dict[str, Any], senders: int, *, live: bool) -> list[int]:
    """Of each sender, the copies that never got into its queue, as the run was stopped; a tap's senders have counted theirs (`queue_full`)."""
    if live or not senders:  # refused before the first byte: none was made
        return [0] * senders
    found: list[int] = ingest["routed"]["unqueued"] if "routed" in ingest else ingest["unqueued_each"]
    return found


def _target(addresses: list[tuple[bytes, int]], sender: dict[str, Any], unqueued: int) -> dict[str, Any]:
    dropped = Counter(sender["dropped"])
    if unqueued:
        dropped["stopped"] += unqueued
    return {
        "addresses": [endpoint(*address) for address in addresses],
        "sent": sender["sent"],
        "answered": sender["answered"],
        "dropped": dict(dropped),
        "unanswered": sender["unanswered"],
        "status": _status([sender]),
        "connections": sender["connections_opened"],
        "connect_failed": sender["connect_failed"],
        "last_error": os.strerror(sender["errno"]) if sender["errno"] else None,
        "retried": sender["retried"],
        "bytes_sent": sender["bytes_sent"],
        "bytes_received": sender["bytes_received"],
        "interim": sender["interim"],
        "limits": sender["limits"],
        "log_lost": sender["outcomes_lost"],
    }


def _rate(settings: Settings, found: dict[str, Any], ledger: dict[str, Any]) -> dict[str, Any]:
    """asked and achieved in requests a second (all targets together), and what held it up.

    Of a run that was ended early, or still goes on, asked is of what was begun until then, as achieved is: the average of all says nothing of a part."""
    firsts = [s["first_sent_ns"] for s in found["senders"] if s["first_sent_ns"]]
    lasts = [s["last_sent_ns"] for s in found["senders"] if s["last_sent_ns"]]
    took = max(lasts) - min(firsts) if firsts else 0
    achieved = (ledger["sent"] - 1) * 1e9 / took if took and ledger["sent"] > 1 else None
    copies: float = max(len(settings.targets), 1)
    if settings.selection.routing is not None:
        copies = (ledger["selected"] + ledger["fanout"]) / max(ledger["selected"], 1)
    asked: float | None = None
    ingest, begun = found["ingest"], found.get("begun")
    if settings.pace.kind == "rate":
        asked = settings.pace.value * copies
    elif settings.pace.kind == "original" and begun is not None:
        taken, reached = sum(count for count, _ in begun), max((at for _, at in begun), default=0)
        asked = (taken - 1) * 1e9 / reached * settings.pace.value if taken > 1 and reached > 0 else None
    elif settings.pace.kind == "original" and ingest["selected"] > 1 and ingest["end_offset_ns"] > 0:
        asked = ingest["selected"] * copies * 1e9 / ingest["end_offset_ns"] * settings.pace.value
    return {
        "asked": asked,
        "achieved": achieved,
        "limited_by": None if settings.dry_run else found.get("limited_by"),
        "planned_s": _planned_s(settings, ingest) if begun is None else None,
        "duration_s": None if settings.duration_ns is None else settings.duration_ns / 1e9,
    }


def _planned_s(settings: Settings, ingest: dict[str, Any]) -> float | None:
    """Seconds that all of it takes at the asked pace; None as fast as it goes. Only where all was read."""
    if settings.pace.kind == "max":
        return None
    if settings.pace.kind == "rate":
        return float(ingest["selected"] / settings.pace.value)
    return float(ingest["end_offset_ns"] / 1e9 / settings.pace.value)


# ---- the summary -----------------------------------------------------------------------------------------------------------


#: (number, its label, what it is of): first byte and production are of the same kind, and stand beside each other.
_TIMES = (
    ("lag_us", "lag", ""),
    ("latency_us", "latency", "  (whole reply, from due time)"),
    ("response_us", "first byte", "  (of the reply, from sent)"),
    ("production_us", "in production", "  (first byte)"),
)


def summary(report: dict[str, Any]) -> list[str]:
    """At most 25 lines for a person; the last one says what to do next when something was lost."""
    n = report["ledger"]
    by = n["by_reason"]
    lines = [_line("found", n["found"], f"whole requests in {show_count(report['packets']['read'])} packets, {show_count(report['connections'])} connections")]
    for name in ("filtered", "withheld", "sampled_out"):
        if n[name]:
            lines.append(_line("  " + name.replace("_", " "), n[name], _reasons(by[name])))
    lines.append(_line("selected", n["selected"], f"{show_count(report['writes'])} of them writes" if report["writes"] else ""))
    if n["fanout"]:
        lines.append(_line("  fanout", n["fanout"], f"copies for {len(report['targets'])} targets"))
    lines.append(_line("sent", n["sent"], ""))
    if n["sent"]:
        lines.append(_line("  answered", n["answered"], _reasons(report["status"])))
        if n["unanswered"]:
            lines.append(_line("  unanswered", n["unanswered"], _reasons(by["unanswered"])))
    if n["dropped"]:
        lines.append(_line("dropped", n["dropped"], _reasons(by["dropped"])))
    if report["incomplete"]:
        lines.append(_line("incomplete", sum(report["incomplete"].values()), f"in the capture: {_reasons(report['incomplete'])}"))
    if report["lost_estimated"]:
        lines.append(_line("lost", report["lost_estimated"], "without a trace (an estimate)"))
    skipped = report["packets"]["skipped"]
    if skipped:
        lines.append(_line("packets skipped", sum(skipped.values()), _reasons(skipped)))
    if report["other"]:
        lines.append(_line("not HTTP/1", sum(report["other"].values()), f"directions of connections: {_reasons(report['other'])}"))
    if report["status_change"]:
        lines.append(_line("status changed", sum(report["status_change"].values()), _reasons(report["status_change"])))
    if n["sent"]:
        rate = report["rate"]
        text = f"{show_rate(rate['achieved'])} achieved"
        text += f", {show_rate(rate['asked'])} asked" if rate["asked"] else ""
        text += f", limited by: {rate['limited_by']}" if rate["limited_by"] else ""
        lines.append(_line("rate", None, text))
        for name, label, what in _TIMES:
            if report[name]["p50"] is not None:
                lines.append(_line(label, None, _quantiles(report[name]) + what))
    if report["dry_run"] and n["selected"] and not _tapped(report):  # a tap goes on for as long as it is let
        lines += [_line("would take", None, takes)] if (takes := _would_take(report)) else []
    for at, row in enumerate(worst(report, max(0, min(3, 22 - len(lines))))):
        lines.append(_line("worst endpoints" if at == 0 else "", None, row))
    advice = hint(report)
    rest = [f"note: {note}" for note in report["notes"]] + [f"hint: {one}" for one in report["hints"]]
    rest += [f"gate failed: {gate_text(gate)}" for gate in report.get("gates", []) if gate["failed"]]
    lines += rest[-max(0, 24 - len(lines)) :] if len(lines) < 24 else []
    if advice:
        lines.append(f"next: {advice}")
    return lines


def duration_text(planned_ns: float, most_ns: float | None, about: str = "") -> str:
    """How long a run takes. most_ns: its `--duration`."""
    if most_ns is not None and most_ns < planned_ns:
        return f"{show_duration(most_ns)} (--duration; {about}{show_duration(planned_ns)} without)"
    return f"{about}{show_duration(planned_ns)}"


def _would_take(report: dict[str, Any]) -> str | None:
    """Of a dry run; None where it was ended before that was known."""
    planned, most = report["rate"]["planned_s"], report["rate"].get("duration_s")
    if planned is not None:
        return duration_text(planned * 1e9, None if most is None else most * 1e9)
    ended = report["interrupted"] or report.get("stopped_by") or report["ledger"]["by_reason"]["dropped"].get("stopped")
    if most is not None:
        return f"at most {show_duration(most * 1e9)} (--duration)"
    return None if ended else "as long as it takes (pace max)"


def exit_code(report: dict[str, Any], *, unread: bool = False) -> int:
    """What `replay run` exits with: what matters most comes first. unread: a capture that was named is not there."""
    if report["guard"]:
        return 3
    if report["interrupted"]:
        return 130
    if unread or any(fault["fatal"] for fault in report["faults"]) or not (report["ledger"]["found"] or report["other_shards"]):
        return 4
    if report["never_connected"]:
        return 5
    return 1 if any(gate["failed"] for gate in report.get("gates", [])) else 0


def gate_text(gate: dict[str, Any]) -> str:
    """A gate of a report in one line."""
    return f"{gate['expression']}: {gate['value']}, bound {gate['bound']}" + (f", at {gate['where']}" if gate["where"] else "")


def _line(name: str, value: int | None, text: str) -> str:
    return f"{name:<16}{'' if value is None else show_count(value):>12}  {text}".rstrip()


def _reasons(counts: dict[Any, int], most: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} {show_count(count)}" for name, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"{len(ordered) - most} more")
    return ", ".join(shown)


def _quantiles(h: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', '.')} {show_duration(h[key] * 1000)}" for key in ("p50", "p90", "p99", "p99_9", "max"))


def hint(report: dict[str, Any]) -> str | None:
    """What the person should do about the most important loss; None when nothing was lost."""
    n = report["ledger"]
    dropped, unanswered = n["by_reason"]["dropped"], n["by_reason"]["unanswered"]
    withheld, incomplete, other = n["by_reason"]["withheld"], report["incomplete"], report["other"]
    last_errors = [target["last_error"] for target in report["targets"].values() if target["last_error"]]
    if report["guard"]:
        return "the target is a server of this capture; give the address of a shadow service, or --allow-production where that is meant"
    if report["never_connected"]:
        never = [url for url, target in report["targets"].items() if not target["connections"]]
        return (
            f"no connection to {' or '.join(never)} succeeded ({last_errors[0] if last_errors else 'no answer'}): check that the shadow service listens there"
        )
    if report["interrupted"] and report["dry_run"]:
        return "the dry run was stopped; its numbers are of what had been read"
    if report["interrupted"] and not n["sent"]:
        return "the run was stopped before anything was sent"
    if report["interrupted"]:
        return "the run was stopped; another run sends everything again, writes included, unless --since leaves it out"
    if not n["found"] and report["other_shards"]:
        return "this shard has no connection of the capture; others have them"
    if not n["found"]:
        return _nothing(report)
    if dropped.get("stopped") and report.get("stopped_by"):
        return f"the run was stopped by --stop-if {report['stopped_by']!r}, {show_count(dropped['stopped'])} requests were left: see the gate"
    if dropped.get("stopped"):
        return f"the run ended at --duration, {show_count(dropped['stopped'])} requests were left: raise it, or leave it out"
    if dropped.get("target_down"):
        return f"the target went away ({last_errors[0] if last_errors else 'no answer'}): look at its log, then run again"
    if unanswered:
        reason = max(unanswered, key=lambda name: unanswered[name])
        return {
            "timeout": "the target did not answer in time: raise --timeout, or lower --connections or the pace",
            "reset": "the target reset connections: look at its log and its limits",
            "closed": "the target closed connections before it answered: look at its log, its limits, a restart",
            "garbage": "the target does not answer in HTTP/1: check the port of --to",
            "stopped": "replies were still on their way at the end: raise --drain",
        }.get(reason, f"requests stayed unanswered ({reason}): look at the target's log")
    if withheld.get("truncated"):
        return "Envoy cut bodies in its tap: raise max_buffered_rx_bytes and max_buffered_tx_bytes in the tap's output_config (1,024 by default)"
    if incomplete:
        reason = max(incomplete, key=lambda name: incomplete[name])
        return {
            "gap": "the recorder dropped packets: give tcpdump a larger buffer (-B 65536) or a tighter filter",
            "cut_by_snaplen": "packets were cut when they were recorded: use tcpdump -s 0",
            "cut_at_end": "the capture ends in the middle of requests: give all files of a rotation at once",
            "too_large": "bodies over --max-body were left out: raise it",
            "head_too_large": "heads over --max-head were left out: raise it",
            "evicted": "a limit was reached: raise --max-memory",
        }.get(reason, f"incomplete requests ({reason}) are listed by `replay show --incomplete`")
    if withheld.get("unconfirmed"):
        return "requests behind a gap or a start in mid-stream were withheld: record both directions from the beginning, or --resync loose"
    if n["by_reason"]["filtered"] and n["filtered"] == n["found"]:
        return f"every request was filtered out ({_reasons(n['by_reason']['filtered'])}): look at the options that select, or at `replay show` without them"
    if withheld.get("loop"):
        return "the capture holds mirrored requests; they were left out"
    if n["by_reason"]["sampled_out"].get("no_key", 0) * 10 > n["found"]:
        return f"{show_count(n['by_reason']['sampled_out']['no_key'])} requests lack what --sample-by names; choose another key"
    if set(withheld) - {"connect", "upgrade"}:  # those two are no requests to be sent, and no loss
        return "withheld requests and their reasons are listed by `replay show`"
    if report["rate"]["limited_by"] == "connections":
        return "the target was slower than the pace: raise --connections or --pipeline, or choose a slower pace"
    if other and sum(other.values()) > n["found"]:
        return "most of the traffic is not HTTP/1 (see above)"
    return None


def _tapped(report: dict[str, Any]) -> bool:
    return bool(report["command"].startswith("replay tap"))


def _nothing(report: dict[str, Any]) -> str | None:
    """No request was found: what is there instead."""
    other = report["other"]
    if report["faults"] and not report["packets"]["read"]:
        return "no capture could be read, see the errors above"
    if report["incomplete"]:
        return "no request is whole: record both directions, with -s 0, for longer"
    if other.get("tls"):
        return "the traffic is TLS: record behind the TLS end (between proxy and service)"
    if other.get("http2"):
        return "the traffic is HTTP/2, which is not read yet: record where HTTP/1 is spoken"
    if not report["connections"]:
        if _tapped(report) and report["notes"]:
            return None  # a note of the tap says where it listened, or why it did not
        if not _tapped(report) and not report["packets"]["read"]:
            return "no packet was read: check that the path names the captures, and what they were recorded with"
        where = "it listened on; was there traffic meanwhile?" if _tapped(report) else "it was recorded with"
        return f"there is no TCP connection with data: check the filter and the interface {where}"
    return "there is no HTTP/1 request: check what was recorded with `replay show -v`"


# ---- lines and texts --------------------------------------------------------------------------------------------------------

# Envoy's response flags (access log, %RESPONSE_FLAGS%) of what became of a request; over HTTP/1 a reset is a connection that ended (UR is HTTP/2's).
_FLAGS = {"target_down": "UF", "reset": "UC", "closed": "UC", "timeout": "UT", "garbage": "UPE", "stopped": "DC", "memory": "UO"}


def access_line(row: dict[str, Any], addresses: list[tuple[bytes, int]], masked: Callable[[bytes], bytes]) -> str:
    """A line in the format that Envoy's access log has by default, without its end.

    Bytes received are those of the request's body, bytes sent those of the reply's, as at a proxy. A request that was never sent has the code 0. What looks
    like a credential in the target is masked, as in `--results`.  masked: `engine.masked_target`.
    """
    fields = _fields(row["data"])
    ended = row["end_ns"] or 0
    began = row["sent_ns"] or ended
    authority = _text(fields.get("host"))
    upstream = endpoint(*addresses[row["address"]]) if row["address"] is not None and row["address"] < len(addresses) and row["outcome"] != "dropped" else "-"
    reached = row["first_byte_ns"]
    flag = "UPE" if row["reason"] in ("closed", "reset") and reached else _FLAGS.get(row["reason"], "-")
    path = _text(masked(fields.get("x-envoy-original-path") or row["target"]))
    who = " ".join(f'"{_text(fields.get(name))}"' for name in ("x-forwarded-for", "user-agent", "x-request-id"))
    return (
        f'[{when(began / 1e9)}] "{_text(row["method"])} {path} HTTP/{row["version"] // 10}.{row["version"] % 10}"'
        f" {row['shadow_status'] or 0} {flag} {row['body_len']} {row['shadow_body_len']}"
        f" {max(0, ended - began) // 1_000_000} {max(0, reached - began) // 1_000_000 if reached else '-'}"
        f' {who} "{authority}" "{upstream}"'
    )


def _fields(head: bytes) -> dict[str, bytes]:
    """The values of each field of a head, joined by commas as Envoy does it for those that the log shows; names lower-case."""
    found: dict[str, bytes] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            break
        key, value = name.decode("latin-1").lower(), value.strip()
        found[key] = found[key] + b"," + value if found.get(key) and value else found.get(key) or value
    return found


def _text(value: bytes | None) -> str:
    """Bytes of a capture in a log: what could end a line or a quotation is escaped."""
    if value is None:
        return "-"
    text = value.decode("latin-1")
    return "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\x{ord(c):02x}" for c in text)


def text(value: bytes) -> str:
    """Bytes of a capture as text: UTF-8, or latin-1 where that does not fit."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def when(seconds: float) -> str:
    """UTC, ISO 8601, with milliseconds."""
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.3f}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def endpoint(address: bytes, port: int) -> str:
    """`10.0.0.1:80`, `[2001:db8::1]:80`. address: 16 bytes, IPv4 mapped."""
    if address.startswith(bytes(10) + b"\xff\xff"):
        return f"{address[12]}.{address[13]}.{address[14]}.{address[15]}:{port}"
    return f"[{ipaddress.IPv6Address(address)}]:{port}"


def mask(words: Iterable[str]) -> str:
    """A command line as text, values of headers that look like credentials masked."""
    import shlex

    shown: list[str] = []
    for word in words:
        if "@" in word:
            word = re.sub(r"//[^/@\s]*@", "//***@", word)
        match = ":" in word and re.match(r"(?s)((?:-H|--set-header=|--add-header=)?\s*)([^:\s]+)(:\s*)(.+)", word)
        if match and re.match(_SECRET, match[2]):
            word = f"{match[1]}{match[2]}{match[3]}***"
        shown.append(word)
    return shlex.join(shown)


def write(path: str, data: bytes) -> None:
    """Writes a whole file or none: a temporary one beside it is renamed. Raises OSError."""
    import tempfile

    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as direct:  # a pipe, /dev/stdout
            direct.write(data)
        return
    handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def share_text(settings: Settings) -> str:
    selection = settings.selection
    text = show_share(selection.share)
    of = f"{text} of the requests"
    return of if selection.share in (0, 1_000_000) else f"{of} (by {selection.sample_by}, seed {selection.seed})"
