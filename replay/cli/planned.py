"""What a person is told of a run's plan before it starts, and of its limits when it is over; and what held it up."""

from __future__ import annotations

from typing import Any

from replay import report, units
from replay.engine import Plan
from replay.settings import Settings


def introduction(settings: Settings, plan: Plan) -> list[str]:
    """What is about to be done: target, share, methods, writes, planned duration."""
    to = ", ".join(one.url for one in settings.targets) or "nowhere"
    host = settings.selection.set_host or (f"NAME{settings.selection.suffix}" if settings.selection.suffix else "as captured")
    routing = settings.selection.routing
    share = report.share_text(settings)
    doing = "sending to" if not settings.dry_run else "dry run, would send to" if settings.targets else "dry run, sending"
    if routing is not None:
        methods = ", ".join(settings.selection.methods) or "every method"
        lines = [f"policy {routing.source}: {doing} {to}, {methods}, pace {settings.pace}", *_few(routing.words)]
    else:
        lines = [f"{doing} {to}: {share}, {', '.join(settings.selection.methods) or 'every method'}, Host {host}, pace {settings.pace}"]
    if settings.selection.shard is not None:
        at, of = settings.selection.shard
        lines[0] += f", shard {at + 1} of {of}"
    if settings.start_at_ns is not None and not settings.dry_run:
        lines.append(f"begins at {report.when(settings.start_at_ns / 1e9)}")
    counts = plan.counts
    if settings.dry_run:
        return lines
    if counts is None:
        return [*lines, "the captures cannot be read ahead: how long it takes and how many writes there are is not known"]
    if plan.whole and not counts["packets"]["read"] and not counts["found"]:
        return lines  # nothing could be read, which is about to be told
    about = "" if plan.whole else "about "
    factor = 1.0 if plan.whole or not plan.share_read else 1 / plan.share_read
    copies = _copies(settings, counts) * settings.loop
    selected, writes = int(int(counts["selected"] * factor) * copies), int(int(counts["writes"] * factor) * copies)
    lines.append(f"planned: {about}{selected:,} requests, {about}{writes:,} of them writes, {_planned(settings, plan)}")
    if counts["gaps_cut"] and settings.pace.kind == "original":
        passes = {key: counts[key] * settings.loop for key in ("gaps_cut", "gaps_cut_ns")}
        lines.append(f"silences: {_silences(settings, passes)}")
    if plan.guard:
        lines.append("refused: the target is a server of this capture, nothing is sent (--allow-production, where that is meant)")
    return lines


def _few(words: tuple[str, ...]) -> list[str]:
    """Of a policy in words at most 20 lines."""
    return [*words] if len(words) <= 20 else [*words[:19], f"     … {len(words) - 19:,} more lines (replay policy FILE)"]


def _copies(settings: Settings, counts: dict[str, Any]) -> float:
    """Copies of a selected request, on average."""
    if settings.selection.routing is None:
        return max(len(settings.targets), 1)
    return float(sum(counts["routed"]["queued"]) / max(counts["selected"], 1))


def _silences(settings: Settings, counts: dict[str, Any]) -> str:
    most, cut = units.show_duration(settings.selection.max_gap_ns), units.show_duration(counts["gaps_cut_ns"])
    return f"{counts['gaps_cut']:,} longer than {most}, each cut to that, {cut} in all (--max-gap)"


def duration(settings: Settings, plan: Plan) -> int | None:
    """How long it takes by the plan, in capture time at `original`; None when that is not known."""
    if plan.span_ns is None or settings.pace.kind != "original":
        return None
    return plan.span_ns * settings.loop


def asked(settings: Settings, plan: Plan) -> float | None:
    """Requests a second to all targets by the plan; None when that is not known, or as fast as it goes."""
    copies = _copies(settings, plan.counts) if plan.counts is not None else max(len(settings.targets), 1)
    if settings.pace.kind == "rate":
        return settings.pace.value * copies
    if settings.pace.kind == "max" or plan.counts is None or not plan.counts["end_offset_ns"]:
        return None
    return float(plan.counts["selected"] * copies * 1e9 / plan.counts["end_offset_ns"] * settings.pace.value)


def _planned(settings: Settings, plan: Plan) -> str:
    about = "" if plan.whole else "about "
    if settings.pace.kind == "max":
        return "as fast as answers come"
    if settings.pace.kind == "rate" and plan.counts is not None:
        ns = plan.counts["selected"] / (1.0 if plan.whole or not plan.share_read else plan.share_read) * settings.loop / settings.pace.value * 1e9
    else:
        ns = (plan.span_ns or 0) * settings.loop / settings.pace.value
    if settings.duration_ns is not None and settings.duration_ns < ns:
        return f"{units.show_duration(settings.duration_ns)} (--duration; {about}{units.show_duration(ns)} without)"
    return f"{about}{units.show_duration(ns)}"


def notes(settings: Settings, found: dict[str, Any]) -> list[str]:
    """What a person should know beside the numbers."""
    ingest = found["ingest"]
    notes = []
    auth = ingest["credentials"]
    if settings.selection.credentials is not None:
        left = f"; {auth['unknown']:,} were not in the map and went as captured" if auth["unknown"] else ""
        notes.append(f"credentials: {auth['replaced']:,} replaced{left}")
    if ingest["gaps_cut"] and settings.pace.kind == "original":
        notes.append(f"silences: {_silences(settings, ingest)}")
    if ingest["overlap_conflict"]:
        notes.append(f"{ingest['overlap_conflict']:,} packets repeated bytes with another content; the first copy was taken")
    notes += bound_notes(ingest)
    for to, sender in zip(found["targets"], found["senders"], strict=True):
        limits = sender["limits"]
        if limits.get("descriptors"):
            notes.append("too many open files: raise the limit (ulimit -n) or lower --connections")
        if limits.get("local_ports"):
            notes.append(f"no local port was free for {to.url if to else ''}: lower --connections, or raise net.ipv4.ip_local_port_range")
        if limits.get("memory"):
            notes.append("the kernel had no memory for a connection")
        if sender["outcomes_lost"]:
            notes.append(f"the access log lacks {sender['outcomes_lost']:,} lines: it could not be written fast enough")
    return notes


def bound_notes(ingest: dict[str, Any]) -> list[str]:
    """What was given up because of a bound, for people."""
    notes = []
    if ingest["evicted"]:
        notes.append(f"{ingest['evicted']:,} connections were closed early: more than --max-connections at a time")
    if ingest["no_memory"]:
        notes.append(f"{ingest['no_memory']:,} times --max-memory was reached; what did not fit is incomplete: evicted")
    return notes
