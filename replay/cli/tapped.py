"""What is told of a tap while it runs: the ledger of now (SIGUSR1), and the line for the service manager."""

from __future__ import annotations

from typing import Any

from replay import units

__all__ = ["live_lines", "status_line"]


def _part(name: str, found: dict[Any, int]) -> str:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(found.items(), key=lambda item: -item[1]))
    return f", {name} {sum(found.values()):,} ({reasons})" if found else ""


def live_lines(seen: dict[str, Any]) -> list[str]:
    """A snapshot of the tap as a few lines."""
    ingest, tap = seen["ingest"], seen["tap"]
    lines = [f"{seen['state']} for {units.show_duration(seen['elapsed_s'] * 1e9)}: {tap['kernel_packets']:,} packets, kernel drops {tap['kernel_drops']:,}"]
    lines[0] += f", cut frames {tap['cut_frames']:,}, {ingest['connections']:,} connections, {len(tap['interfaces'])} interface"
    lines[0] += "" if len(tap["interfaces"]) == 1 else "s"
    parts = (_part(name.replace("_", " "), ingest[name]) for name in ("filtered", "withheld", "sampled_out"))
    lines.append(f"found {ingest['found']:,}{''.join(parts)}, selected {ingest['selected']:,}{_part('incomplete', ingest['incomplete'])}")
    for target, breaker, one in zip(seen["targets"], tap["breakers"], seen["senders"], strict=True):
        lines.append(
            f"{target.url if target else 'dry run'}: sent {one['sent']:,}, answered {one['answered']:,}{_part('unanswered', one['unanswered'])}"
            f"{_part('dropped', one['dropped'])}, under way {one['under_way']:,}, waiting {one['waiting']:,}, connections {one['connections_open']:,},"
            f" breaker {breaker}"
        )
    if tap["effective_ppm"] < tap["share_ppm"]:
        lines.append(f"{units.show_share(tap['effective_ppm'])} is taken of the {units.show_share(tap['share_ppm'])} that was asked for")
    return lines


def status_line(seen: dict[str, Any]) -> str:
    ingest, tap = seen["ingest"], seen["tap"]
    sent = sum(one["sent"] for one in seen["senders"])
    found = ingest["found"] if ingest else 0
    return f"{seen['state']}: found {found:,}, sent {sent:,}, kernel drops {tap['kernel_drops']:,}, {units.show_share(tap['effective_ppm'])}"
