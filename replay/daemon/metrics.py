"""The engine's counters as Prometheus metrics, read when they are asked for. Each family stands in `FAMILIES`: name, type, labels, meaning.

Must not know: HTTP. Names are stable once released; they are only ever added. Reasons that the engine knows are there from the start with 0, so that
a rate sees the first one.
"""

from __future__ import annotations

import bisect
import itertools
import operator
import platform
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from replay import __version__, _fastpath
from replay.histogram import slot_ends

__all__ = ["BOUNDS_S", "Counted", "FAMILIES", "Family", "buckets", "registry"]

Counts = dict[str, Any]
Samples = Iterable[tuple[tuple[str, ...], float]]


class Health(Protocol):
    """alive: its threads run.  ready: it captures.  why: what is wrong, else ""."""

    @property
    def alive(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def why(self) -> str: ...


class Counted(Protocol):
    """What is asked at each scrape; any thread may call it at any time."""

    def snapshot(self) -> Counts: ...
    def histograms(self) -> list[dict[str, bytes]]: ...
    def health(self) -> Health: ...


#: Upper bounds of the buckets, seconds: powers of the square root of 2, as a native histogram of schema 1 has them, from 61 us to 64 s.
BOUNDS_S = tuple(2.0 ** (k / 2) for k in range(-28, 13))

_ENDS_US = [end + 1 for end in slot_ends()]  # a slot holds whole microseconds, cut off: up to one more
_MIDDLES_S = [(begin + end) / 2e6 for begin, end in zip([0, *_ENDS_US], _ENDS_US, strict=False)]
_CUTS = [bisect.bisect_right(_ENDS_US, bound * 1e6) for bound in BOUNDS_S]
_LABELS = [repr(bound) for bound in BOUNDS_S]


def buckets(counts: bytes) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets (upper bound as text, count) and the sum in seconds, of the engine's counts of a histogram.

    Slots are 0.1 % wide: so far can a count be from its bucket, and the sum from the truth."""
    used = -(-len(counts.rstrip(b"\0")) // 8)  # most slots are 0, and so is all that lies behind the last one
    slots = array("q", counts[: 8 * used])
    total = [0, *itertools.accumulate(slots)]
    found = [(label, float(total[min(cut, used)])) for label, cut in zip(_LABELS, _CUTS, strict=True)]
    return [*found, ("+Inf", float(total[-1]))], sum(map(operator.mul, slots, _MIDDLES_S))


# ---- the families --------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """One scrape: everything is read once. targets: names, as the report has them."""

    counts: Counts
    targets: list[str]
    health: Health

    @property
    def ingest(self) -> Counts:
        return self.counts["ingest"] or {}

    @property
    def live(self) -> bool:
        """A tap's, not a run's."""
        return "tap" in self.counts

    @property
    def senders(self) -> Iterator[tuple[str, Counts]]:
        return zip(self.targets, self.counts["senders"], strict=True)


class Family(NamedTuple):
    """A metric. kind: counter, gauge.  read: its samples (values of the labels, number), or None where there is no such thing."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    read: Callable[[View], Samples | None]


def _one(*path: str) -> Callable[[View], Samples | None]:
    """A number of the reading half, at this place; 0 before there is any."""

    def read(view: View) -> Samples:
        found: Any = view.ingest
        for key in path:
            found = found.get(key, {}) if isinstance(found, dict) else found
        return [((), found or 0)]

    return read


def _by(known: Iterable[str | None], *path: str) -> Callable[[View], Samples]:
    """Numbers by name; those that are known are there with 0."""
    names = [name for name in known if name is not None]

    def read(view: View) -> Samples:
        found: Any = view.ingest
        for key in path:
            found = found.get(key, {})
        return [((name,), count) for name, count in (dict.fromkeys(names, 0) | found).items()]

    return read


def _each(key: str) -> Callable[[View], Samples]:
    """A number a target."""
    return lambda view: [((target,), sender[key]) for target, sender in view.senders]


def _each_by(key: str, known: Iterable[str] = ()) -> Callable[[View], Samples]:
    """Numbers a target by name."""
    names = dict.fromkeys(known, 0)
    return lambda view: [((target, str(name)), count) for target, sender in view.senders for name, count in (names | sender[key]).items()]


def _dropped(view: View) -> Samples:
    """What stood in no queue when the run was stopped counts at each target, as in the report."""
    for (target, sender), (_, unqueued) in zip(view.senders, _queued(view), strict=True):
        counts = dict.fromkeys(_DROPPED, 0) | ({"queue_full": 0} if view.live else {}) | sender["dropped"]
        counts["stopped"] += unqueued
        for reason, count in counts.items():
            yield (target, reason), count


def _waiting(view: View) -> Samples:
    """What is selected, queued at this target, and has not left."""
    if view.live:  # its senders come and go, and each selects for itself
        return [((target,), sender["waiting"]) for target, sender in view.senders]
    return [
        ((target,), max(0, meant - unqueued - sender["sent"] - sum(sender["dropped"].values())))
        for (target, sender), (meant, unqueued) in zip(view.senders, _queued(view), strict=True)
    ]


def _queued(view: View) -> list[tuple[int, int]]:
    """Of each target: copies meant for it, and those that never got into its queue."""
    routed = None if view.live else view.ingest.get("routed")
    if routed is not None:
        return list(zip(routed["queued"], routed["unqueued"], strict=True))
    each = view.ingest.get("unqueued_each") or [0] * len(view.targets)
    return [(view.ingest.get("selected", 0), unqueued) for unqueued in each]


def _fanout(view: View) -> Samples:
    if view.live:
        return [((), view.ingest.get("fanout", 0))]
    routed = view.ingest.get("routed")
    return [((), view.ingest.get("selected", 0) * max(len(view.targets) - 1, 0) if routed is None else routed["fanout"])]


_DROPPED = tuple(reason for reason in _fastpath.SENDER_REASONS[1:] if reason not in ("reset", "closed", "timeout", "garbage"))
_UNANSWERED = ("stopped", "reset", "closed", "timeout", "garbage")

#: Counted in the order of the pipe: reading, the ledger, sending, the program itself.
FAMILIES: list[Family] = [
    Family("replay_packets_read", "counter", (), "Packets read.", _one("packets", "read")),
    Family("replay_packets_skipped", "counter", ("reason",), "Packets that are no TCP segment, by what they are.", _by((), "packets", "skipped")),
    Family("replay_packets_cut", "counter", (), "Packets that were longer than what was captured of them.", _one("packets", "cut_frames")),
    Family("replay_segments", "counter", (), "TCP segments read.", _one("segments")),
    Family("replay_captured_connections", "counter", (), "TCP connections seen.", _one("connections")),
    Family("replay_other_flows", "counter", ("protocol",), "Directions of connections that are not HTTP/1, by protocol.", _by(_fastpath.OTHER, "other")),
    Family("replay_gaps", "counter", (), "Holes in streams.", _one("gaps")),
    Family("replay_gap_bytes", "counter", (), "Bytes that are missing in streams.", _one("gap_bytes")),
    Family("replay_overlap_conflicts", "counter", (), "Segments whose later copy had other bytes.", _one("overlap_conflict")),
    Family("replay_repeated_segments", "counter", (), "Segments that were there before.", _one("repeated")),
    Family("replay_evicted_connections", "counter", (), "Connections given up because of a bound.", _one("evicted")),
    Family("replay_memory_refused", "counter", (), "Times that reading met its bound on memory.", _one("no_memory")),
    Family("replay_ingest_memory_bytes", "gauge", (), "Bytes of messages that are not whole, and of requests that wait in order.", _one("memory")),
    Family("replay_requests_found", "counter", (), "Whole requests.", _one("found")),
    Family("replay_requests_filtered", "counter", ("reason",), "Found, and left out by a filter.", _by(_fastpath.FILTERED, "filtered")),
    Family("replay_requests_withheld", "counter", ("reason",), "Found, and not sent because it would be wrong to.", _by(_fastpath.WITHHELD, "withheld")),
    Family("replay_requests_sampled_out", "counter", ("reason",), "Found, and outside the share.", _by(("share", "no_key", "max_cpu"), "sampled_out")),
    Family("replay_requests_selected", "counter", (), "Found, and chosen to be sent.", _one("selected")),
    Family("replay_requests_writes", "counter", (), "Selected ones whose method is neither GET, HEAD, OPTIONS nor TRACE.", _one("writes")),
    Family("replay_requests_fanout", "counter", (), "Copies beyond the first, where there are several targets.", _fanout),
    Family("replay_requests_sent", "counter", ("target",), "At least one byte was accepted by the kernel.", _each("sent")),
    Family("replay_requests_dropped", "counter", ("target", "reason"), "Selected, and not a byte sent.", _dropped),
    Family("replay_requests_answered", "counter", ("target", "code"), "Sent, and answered with a whole reply of this status.", _each_by("status")),
    Family("replay_requests_unanswered", "counter", ("target", "reason"), "Sent, and not answered.", _each_by("unanswered", _UNANSWERED)),
    Family("replay_requests_incomplete", "counter", ("reason",), "Requests that were not whole.", _by(_fastpath.INCOMPLETE, "incomplete")),
    Family("replay_requests_lost_estimated", "counter", (), "Requests of which only the reply was seen: lost without a trace.", _one("lost_estimated")),
    Family("replay_status_compared", "counter", ("target",), "Answered, and the status in production is known.", _each("status_known")),
    Family("replay_status_same", "counter", ("target",), "Answered with the status that production gave.", _each("status_same")),
    Family("replay_requests_waiting", "gauge", ("target",), "Selected requests that are neither sent nor dropped yet: the queue.", _waiting),
    Family("replay_requests_under_way", "gauge", ("target",), "Requests sent whose reply is missing.", _each("under_way")),
    Family("replay_shadow_connections", "gauge", ("target",), "Connections open.", _each("connections_open")),
    Family("replay_shadow_connections_opened", "counter", ("target",), "Connections made.", _each("connections_opened")),
    Family("replay_shadow_connect_failures", "counter", ("target",), "Connections that could not be made.", _each("connect_failed")),
    Family("replay_shadow_retries", "counter", ("target",), "Requests tried again: no byte had been sent, or they stood behind a close.", _each("retried")),
    Family("replay_shadow_limits", "counter", ("target", "limit"), "Times that a limit of this machine was met.",
           _each_by("limits", ("descriptors", "local_ports", "memory"))),
    Family("replay_shadow_sent_bytes", "counter", ("target",), "Bytes sent.", _each("bytes_sent")),
    Family("replay_shadow_received_bytes", "counter", ("target",), "Bytes of replies, read and thrown away.", _each("bytes_received")),
    Family("replay_capturing", "gauge", (), "1 while it captures (what /readyz says, but for a tap that has expired), else 0.",
           lambda view: [((), int(view.health.ready and not (view.counts.get("tap") or {}).get("expired")))]),
]  # fmt: skip

#: name, key of the engine's histograms, meaning.
HISTOGRAMS = (
    ("replay_lag_seconds", "lag_us", "Sent minus due."),
    ("replay_latency_seconds", "latency_us", "Whole reply minus due."),
    ("replay_service_seconds", "service_us", "Whole reply minus sent."),
    ("replay_production_seconds", "production_us", "In production: first byte of the reply minus first byte of the request."),
)

BUILD = ("replay_build", "What runs here.")


# ---- the collector -------------------------------------------------------------------------------------------------------


def target_names(targets: Iterable[Any]) -> list[str]:
    """The names of targets, as in the report: the URL, and `#2` for the second of the same. None is a dry run."""
    names: list[str] = []
    for target in targets:
        url = "dry-run" if target is None else target.url
        again = sum(name.partition("#")[0] == url for name in names)
        names.append(f"{url}#{again + 1}" if again else url)
    return names


class _Collector(Collector):
    """Reads the counters once a scrape. Two scrapes at a time wait for each other, so that reading costs no more than one."""

    def __init__(self, counted: Counted, families: Iterable[Family]) -> None:
        self._counted, self._families, self._one_at_a_time = counted, list(families), threading.Lock()

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self._one_at_a_time:
            return list(self._collected())

    def _collected(self) -> Iterator[Metric]:
        counts = self._counted.snapshot()
        names = target_names(counts["targets"])
        view = View(counts, names, self._counted.health())
        yield InfoMetricFamily(*BUILD, value={"version": __version__, "python": platform.python_version(), "kernel": platform.release()})
        for family in self._families:
            samples = family.read(view)
            if samples is None:
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for values, number in samples:
                metric.add_metric(values, number)
            yield metric
        measured = self._counted.histograms()
        for name, key, text in HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=("target",))
            for target, one in zip(names, measured, strict=False):
                histogram.add_metric((target,), *buckets(one[key]))
            yield histogram


def registry(counted: Counted, families: Iterable[Family] = FAMILIES) -> CollectorRegistry:
    """All metrics of an engine, and the usual ones of its process (process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds …)."""
    found = CollectorRegistry()
    found.register(_Collector(counted, families))
    ProcessCollector(registry=found)
    return found
