"""The quality card of a capture: what is in it, what is missing, how what is missing distorts the rest, and what to do about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from replay.judge import loss
from replay.units import show_bytes, show_count, show_duration, show_rate

__all__ = ["Card", "SIZES", "STEP_NS", "chart", "hints", "text"]

#: Names of body sizes, and the first size that is too large for each.
SIZES = (("no body", 1), ("< 1 KiB", 1 << 10), ("< 10 KiB", 10 << 10), ("< 100 KiB", 100 << 10), ("< 1 MiB", 1 << 20), (">= 1 MiB", 1 << 62))
_LENGTH = re.compile(rb"(?i)\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n")
#: Of the rate over time.
STEP_NS = 100_000_000
_MOST_KEYS = 20_000
_CHART = 60
_BLOCKS = " ▁▂▃▄▅▆▇█"


class Card:
    """Fed with rows of a listing (incomplete ones too) and then with its counters. name: gives the endpoint of a method and a target.

    What is selected is selected among whole requests; those that are not whole (`parts`) are listed whatever they are, and belong to the picture only where
    nothing was left out."""

    def __init__(self, name: Callable[[bytes, bytes], bytes]) -> None:
        self._name = name
        self.found = loss.Mix()
        self.heads = loss.Mix()
        self.hosts: Counter[bytes] = Counter()
        self.endpoints: Counter[bytes] = Counter()
        self.status: Counter[int] = Counter()
        self.parts: tuple[Counter[bytes], Counter[bytes], Counter[int]] = (Counter(), Counter(), Counter())  # hosts, endpoints, status of those not whole
        self.times: Counter[int] = Counter()
        self.bytes = 0
        self.bodies_cut = 0
        self.bodies = 0
        self.rows = 0
        self.whole = 0

    def add(self, row: dict[str, Any]) -> None:
        """One request, whole or not."""
        self.rows += 1
        method, size = row["method"], _size(row)
        self.heads.add(method, size)
        whole = row["incomplete"] is None
        hosts, endpoints, status = (self.hosts, self.endpoints, self.status) if whole else self.parts
        if whole:
            self.whole += 1
            self.found.add(method, size)
            self.times[row["ts_ns"] // STEP_NS] += 1
            if len(self.times) > _MOST_KEYS * 50:
                self.times = Counter(dict(self.times.most_common(_MOST_KEYS)))
        self.bytes += len(row["head"]) + row["body_len"]
        if size != SIZES[0][0]:
            self.bodies += 1
            self.bodies_cut += row["incomplete"] == "cut_by_snaplen"
        if row["host"] is not None or whole:
            _count(hosts, row["host"] if row["host"] is not None else b"(none)")
        _count(endpoints, self._name(method, row["target"]))
        if row["status"]:
            status[row["status"]] += 1

    def add_groups(self, groups: Iterable[tuple[bytes, bytes, bytes | None, int | None, int, int, int]], steps: Mapping[int, int]) -> None:
        """Many whole requests at once, as `_fastpath.tally` counts them with the ends of `SIZES` and `STEP_NS`."""
        for method, endpoint, host, status, at, count, size_bytes in groups:
            self.rows += count
            self.whole += count
            size = SIZES[at][0]
            self.heads.add(method, size, count)
            self.found.add(method, size, count)
            self.bytes += size_bytes
            self.bodies += count if at else 0
            _count(self.hosts, host if host is not None else b"(none)", count)
            _count(self.endpoints, endpoint, count)
            if status:
                self.status[status] += count
        self.times.update(steps)
        if len(self.times) > _MOST_KEYS * 50:
            self.times = Counter(dict(self.times.most_common(_MOST_KEYS)))

    def as_dict(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The object that `replay inspect --json` prints. counts: of the ingest."""
        incomplete = sum(counts["incomplete"].values())
        messages = counts["found"] + incomplete
        estimate = loss.estimate(counts, messages, round(self.bytes * messages / max(self.rows, 1)))
        hosts, endpoints, status, heads, listed = self.hosts, self.endpoints, self.status, self.found, self.whole
        if not counts["filtered"] and not counts["sampled_out"]:
            hosts, endpoints, status = hosts + self.parts[0], endpoints + self.parts[1], status + self.parts[2]
            heads, listed = self.heads, self.rows
        connections = counts["connections"]
        packets = counts["packets"]
        card: dict[str, Any] = {
            "first_ns": counts["first_packet_ns"],
            "last_ns": counts["last_packet_ns"],
            "packets": {"read": packets["read"], "skipped": packets["skipped"], "kernel_drops": 0, "cut_frames": packets["cut_frames"]},
            "links": counts["links"],
            "layers": counts["layers"],
            "connections": connections,
            "requests": counts["found"],
            "incomplete": counts["incomplete"],
            "lost_estimated": estimate.lost,
            "loss": {"packets": estimate.rate, "from": estimate.source, "requests": messages + estimate.lost},
            "shares": {
                "one_sided": _share(counts["one_sided"], connections),
                "mid_stream": _share(counts["mid_stream"], connections),
                "tls": _share(counts["other"].get("tls", 0), connections),
                "http2": _share(counts["other"].get("http2", 0), connections),
                "cut": _share(counts["incomplete"].get("cut_by_snaplen", 0), messages),
                "cut_frames": _share(packets["cut_frames"], packets["read"]),
                "bodies_cut": _share(self.bodies_cut, self.bodies),
                "incomplete": _share(incomplete, messages),
                "withheld": _share(sum(counts["withheld"].values()), counts["found"]),
                "repeated": _share(counts["repeated"], counts["segments"]),
                "answered": _share(sum(status.values()), listed),
            },
            "withheld": counts["withheld"],
            "filtered": counts["filtered"],
            "sampled_out": counts["sampled_out"],
            "listed": listed,
            "other": counts["other"],
            "gaps": {"count": counts["gaps"], "bytes": counts["gap_bytes"], "largest": counts["gap_largest"]},
            "overlap_conflicts": counts["overlap_conflict"],
            "mix": loss.distortion(self.found, heads),
            "hosts": _top(hosts),
            "endpoints": _top(endpoints, 20),
            "status": {str(code): count for code, count in sorted(status.items())},
            "rate": self._rate(),
        }
        card["hints"] = hints(card)
        return card

    def _rate(self) -> dict[str, Any]:
        """Requests a second over time, in at most 60 steps; the busiest second."""
        if not self.times:
            return {"mean": None, "peak": None, "step_s": None, "counts": []}
        first, last = min(self.times), max(self.times)
        span = last - first + 1
        width = -(-span // _CHART)
        counts = [0] * -(-span // width)
        seconds: Counter[int] = Counter()
        for at, count in self.times.items():
            counts[(at - first) // width] += count
            seconds[at // 10] += count
        step_s = width * STEP_NS / 1e9
        return {"mean": sum(counts) / (span * STEP_NS / 1e9), "peak": max(seconds.values()), "step_s": step_s, "counts": counts}


def _size(row: dict[str, Any]) -> str:
    """The size of its body; of one that is not whole as its head says."""
    size: int | None = row["body_len"]
    if row["incomplete"] is not None:
        match = _LENGTH.search(row["head"])
        size = int(match[1]) if match else None if row["framing"] == "chunked" else size
    if size is None:
        return "unknown"
    return next(name for name, end in SIZES if size < end)


def _count(counter: Counter[bytes], key: bytes, count: int = 1) -> None:
    """Counts, with a bound on how much is told apart: a hostile capture has a new host in each request."""
    counter[key[:200]] += count
    if len(counter) > _MOST_KEYS:
        kept = counter.most_common(_MOST_KEYS // 2)
        counter.clear()
        counter.update(dict(kept))


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _top(counter: Counter[bytes], most: int = 10) -> dict[str, int]:
    return {_text(key): count for key, count in counter.most_common(most)}


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ---- hints -------------------------------------------------------------------------------------------------------------------------


def hints(card: dict[str, Any]) -> list[str]:
    """What to do, the most important first."""
    found = []
    shares, packets = card["shares"], card["packets"]
    if not packets["read"]:
        return ["there is no packet: check the filter and the interface it was recorded with"]
    if not card["connections"]:
        return ["there is no TCP connection with data: check the filter and the interface it was recorded with"]
    if shares["cut_frames"] > 0 and (shares["cut"] > 0 or not card["requests"]):
        what = f"{100 * shares['bodies_cut']:.0f} % of the bodies" if shares["bodies_cut"] >= 0.005 else f"{show_count(packets['cut_frames'])} packets"
        found.append(f"the snap length cut {what}: capture again with tcpdump -s 0")
    if shares["one_sided"] > 0.05:
        found.append(f"{_percent(shares['one_sided'])} of the connections have one direction only: record both, with a filter like 'tcp port 8080' instead of 'dst port 8080'")
    loss_rate = card["loss"]["packets"]
    if loss_rate is not None and loss_rate >= 0.002:
        found.append(
            f"about {_percent(loss_rate)} of the packets are missing, and with them some {show_count(card['lost_estimated'])} requests without a trace: "
            "give tcpdump a larger buffer (-B 65536), a tighter filter or a faster disk, or sample connections where they are recorded"
        )
    worst = card["mix"]["distortion"]
    if worst["points"] >= 1:
        found.append(
            f"what is whole is not the mix of production: {worst['what']} is {abs(worst['points']):.1f} points too {'rare' if worst['points_signed'] < 0 else 'frequent'}, "
            "since what is missing hits requests of many packets most"
        )
    if shares["mid_stream"] > 0.3:
        found.append(f"{_percent(shares['mid_stream'])} of the connections began before the capture: record for longer than connections live, or restart clients meanwhile")
    if shares["tls"] > 0.2:
        found.append(f"{_percent(shares['tls'])} of the connections are TLS, which cannot be read: record behind the TLS end (between proxy and service)")
    if shares["http2"] > 0.2:
        found.append(f"{_percent(shares['http2'])} of the connections are HTTP/2, which is not read yet: record where HTTP/1 is spoken")
    if card["withheld"].get("unconfirmed"):
        count = card["withheld"]["unconfirmed"]
        found.append(f"{show_count(count)} requests behind a gap or a start in mid-stream are not confirmed, so they would not be sent; --resync loose takes them")
    if shares["repeated"] > 0.3:
        found.append(f"{_percent(shares['repeated'])} of the segments are there twice: was it recorded on two interfaces (-i any)? each request counts once")
    if card["overlap_conflicts"]:
        found.append(f"{show_count(card['overlap_conflicts'])} segments repeat bytes with another content: two networks with equal addresses? see --split-by-network")
    if not card["requests"] and not found:
        found.append("there is no whole HTTP/1 request: `replay show --incomplete -v` says what there is")
    if card["requests"] and shares["answered"] < 0.5 and shares["one_sided"] <= 0.05:
        found.append(f"only {_percent(shares['answered'])} of the requests have a captured reply, so statuses and latencies of production are known of those alone")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# ---- for a person --------------------------------------------------------------------------------------------------------------------


def text(card: dict[str, Any]) -> list[str]:
    """The card in lines."""
    packets, shares, n = card["packets"], card["shares"], card["requests"]
    first, last = card["first_ns"], card["last_ns"]
    lines = []

    def line(name: str, words: str) -> None:
        if words:
            lines.append(f"{name:<12} {words}")

    if first is not None:
        line("time", f"{_moment(first)} to {_moment(last)} UTC ({show_duration(last - first)})")
    skipped = f", skipped {_counts(packets['skipped'])}" if packets["skipped"] else ""
    cut = f", {show_count(packets['cut_frames'])} cut by the snap length" if packets["cut_frames"] else ""
    line("packets", f"{show_count(packets['read'])} ({', '.join([*card['links'], *card['layers']])}){skipped}{cut}")
    parts = [f"{_percent(shares[key])} {word}" for key, word in (("mid_stream", "mid-stream"), ("one_sided", "one-sided"), ("tls", "TLS"), ("http2", "HTTP/2")) if shares[key]]
    line("connections", f"{show_count(card['connections'])}" + (f": {', '.join(parts)}" if parts else ""))
    line("requests", f"{show_count(n)} whole" + (f", not whole: {_counts(card['incomplete'])}" if card["incomplete"] else ""))
    loss_rate = card["loss"]["packets"]
    if loss_rate:
        line("loss", f"about {_percent(loss_rate)} of the packets; {show_count(card['lost_estimated'])} requests without a trace, {show_count(card['loss']['requests'])} in production")
    if card["gaps"]["count"]:
        line("gaps", f"{show_count(card['gaps']['count'])}, {show_bytes(card['gaps']['bytes'])}, the largest {show_bytes(card['gaps']['largest'])}")
    if shares["repeated"]:
        line("repeated", f"{_percent(shares['repeated'])} of the segments")
    if card["withheld"]:
        line("withheld", _counts(card["withheld"]))
    if card["filtered"]:
        line("filtered", _counts(card["filtered"]))
    if card["sampled_out"]:
        line("sampled out", _counts(card["sampled_out"]))
    if card["rate"]["counts"]:
        rate = card["rate"]
        line("rate", f"{chart(rate['counts'])} {show_rate(rate['mean'])} on average, {show_count(rate['peak'])} in the busiest second")
    for key, what in (("method", "methods"), ("size", "bodies")):
        rows = [f"{name} {_percent(one['found'])}" + (f" ({_percent(one['estimated'])})" if abs(one["found"] - one["estimated"]) >= 0.005 else "") for name, one in card["mix"][key].items()]
        line(what, ", ".join(rows[:8]))
    line("hosts", _shares(card["hosts"], card["listed"]))
    line("endpoints", _shares(card["endpoints"], card["listed"], 6))
    line("status", _shares(card["status"], sum(card["status"].values())) + f" (of {_percent(shares['answered'])} a reply is known)" if card["status"] else "")
    if card["mix"]["distortion"]["points"] >= 0.5:
        lines.append(f"{'':<12} in brackets: an estimate of production's share, where loss distorts it")
    return lines + [f"hint: {hint}" for hint in card["hints"]]


def chart(counts: list[int]) -> str:
    """A bar a step."""
    top = max(counts) or 1
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // top)] for count in counts)


def _counts(counts: dict[str, int], most: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {show_count(count)}" for name, count in ordered[:most]) + (", …" if len(ordered) > most else "")


def _shares(counts: dict[str, int], total: int, most: int = 5) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {_percent(count / max(total, 1))}" for name, count in ordered[:most]) + (", …" if len(ordered) > most else "")


def _moment(ns: int) -> str:
    import datetime

    try:
        return f"{datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{ns / 1e9:.3f}"
