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
    copies, passes = _copies(settings, counts), _passes(settings, plan)
    about = "" if plan.whole else "about "
    roughly = about if passes == int(passes) else "about "
    selected, writes = int(_selected(settings, plan) * copies), int(int(counts["writes"] * _factor(plan)) * passes * copies)
    lines.append(f"planned: {about}{selected:,} requests, {roughly}{writes:,} of them writes, {_planned(settings, plan)}")
    if counts["gaps_cut"] and settings.pace.kind == "original":
        cut = {key: int(counts[key] * passes) for key in ("gaps_cut", "gaps_cut_ns")}
        lines.append(f"silences: {_silences(settings, cut)}")
    if plan.guard:
        lines.append("refused: the target is a server of this capture, nothing is sent (--allow-production, where that is meant)")
    return lines


def _few(words: tuple[str, ...]) -> list[str]:
    """Of a policy in words at most 20 lines."""
    return [*words] if len(words) <= 20 else [*words[:19], f"     … {len(words) - 19:,} more lines (replay policy FILE)"]


def _factor(plan: Plan) -> float:
    """What the numbers of a plan are multiplied by to be those of one pass."""
    return 1.0 if plan.whole or not plan.share_read else 1 / plan.share_read


def _selected(settings: Settings, plan: Plan) -> int:
    """Requests of all passes, up to `--limit`. There are counts."""
    assert plan.counts is not None
    every = int(plan.counts["selected"] * _factor(plan)) * settings.loop
    return every if settings.selection.limit is None else min(every, settings.selection.limit)


def _passes(settings: Settings, plan: Plan) -> float:
    """How often the captures are gone through: `--loop`, or until `--limit`, which may end in a pass."""
    each = int(plan.counts["selected"] * _factor(plan)) if plan.counts is not None else 0
    return _selected(settings, plan) / each if each else settings.loop


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
    return int(plan.span_ns * _passes(settings, plan))


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
        most = "" if settings.duration_ns is None else f", {units.show_duration(settings.duration_ns)} at most (--duration)"
        return f"as fast as answers come{most}"
    if settings.pace.kind == "rate" and plan.counts is not None:
        ns = _selected(settings, plan) / settings.pace.value * 1e9
    else:
        passes = _passes(settings, plan)
        about = about if passes == int(passes) else "about "
        ns = (plan.span_ns or 0) * passes / settings.pace.value
    return report.duration_text(ns, settings.duration_ns, about)


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
