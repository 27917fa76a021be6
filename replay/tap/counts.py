"""What a tap has counted, over all its lanes, and over the senders that have ended: plain values, for whoever asks, from any thread.

Must not know: how lanes are made, when they change.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from replay.tap.lanes import Lane, Way
from replay.tap.sums import sum_histograms, sum_ingests, sum_senders

__all__ = ["Book", "HISTOGRAMS"]

Counts = dict[str, Any]

HISTOGRAMS = ("lag_us", "latency_us", "service_us", "production_us")
#: The fullest that the ring was is told for so long.
_RING_MOST_S = 60.0
#: What --max-rate let pass is of so long.
_RATED_S = 60.0


class Book:
    """lanes: those that run.  old: ways that nobody selects for any more.  lock: held where counters change hands, so that whoever reads them (the metrics
    have a thread of their own) finds each exactly once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.lanes: list[Lane] = []
        self.old: list[Way] = []
        self._senders: dict[str, Counts] = {}
        self._histograms: dict[str, dict[str, bytes]] = {}
        self._ring_most: deque[tuple[float, float]] = deque()
        self._rated: deque[tuple[float, int, int]] = deque()

    def replace(self, lane: Lane, ways: list[Way]) -> None:
        """The lane goes on with other ways; those of before end when nothing comes to them any more."""
        with self.lock:
            before, lane.ways = lane.ways, ways
            self.old = self.old + before
        lane.leaving = lane.leaving + before
        lane.let_go()

    def retire(self) -> None:
        """Senders that are done: what they counted is kept, they are not."""
        for lane in self.lanes:
            lane.let_go()
        with self.lock:
            left = []
            for way in self.old:
                if way.thread.is_alive():
                    left.append(way)
                else:
                    self._keep(way)
            self.old = left

    def _keep(self, way: Way) -> None:
        way.sweep()
        counts, old = way.counters(), self._senders.get(way.name)
        self._senders[way.name] = counts if old is None else sum_senders([old, counts])
        one, before = way.sender.histograms(), self._histograms.get(way.name)
        self._histograms[way.name] = {key: sum_histograms(key, [one[key]], before) for key in HISTOGRAMS}

    def ways(self) -> list[Way]:
        return [*(way for lane in self.lanes for way in lane.ways), *self.old]

    def names(self) -> list[str]:
        """Targets of now and of before, by their URLs; "" is a dry run."""
        return list(dict.fromkeys([*(way.name for way in self.ways()), *self._senders]))

    def senders(self) -> list[Counts]:
        """Of each of `names`."""
        found = []
        every = self.ways()
        for name in self.names():
            counted = [way.counters() for way in every if way.name == name]
            if name in self._senders:
                counted.append(self._senders[name])
            found.append(sum_senders(counted))
        return found

    def rate(self, now: float) -> None:
        """Looks how much --max-rate lets pass; once a second."""
        with self.lock:
            counts = self.senders()
            self._rated.append((now, sum(one["taken"] for one in counts), sum(one["dropped"].get("max_rate", 0) for one in counts)))
            while self._rated[0][0] < now - _RATED_S:
                self._rated.popleft()

    @property
    def passed(self) -> float:
        """What --max-rate let pass in the last minute of what senders took up, 0 to 1."""
        if not self._rated:
            return 1.0
        (_, taken, over), (_, before, over_before) = self._rated[-1], self._rated[0]
        return 1.0 - (over - over_before) / (taken - before) if taken > before else 1.0

    def histograms(self) -> list[dict[str, bytes]]:
        """Of each of `names`."""
        found = []
        with self.lock:
            every = self.ways()
            for name in self.names():
                counted, before = [way.sender.histograms() for way in every if way.name == name], self._histograms.get(name)
                found.append({key: sum_histograms(key, [one[key] for one in counted], before) for key in HISTOGRAMS})
        return found

    def ingested(self) -> Counts | None:
        if not self.lanes:
            return None
        found = sum_ingests([lane.ingest.counters() for lane in self.lanes])
        found["packets"]["cut_frames"] = sum(lane.ring.counters(False)["cut_frames"] for lane in self.lanes)  # what was shortened as asked is none
        return found

    def captured(self) -> Counts:
        rings = [lane.ring.counters() for lane in self.lanes]
        return {
            "kernel_packets": sum(one["packets"] for one in rings),
            "kernel_drops": self.kernel_drops(),
            "cut_frames": sum(one["cut_frames"] for one in rings),
            "shortened": sum(one["shortened"] for one in rings),
            "bytes": sum(one["bytes"] for one in rings),
            "copied_bytes": sum(one["copied_bytes"] for one in rings),
            "ring_bytes": sum(lane.tapped.block_size * lane.tapped.block_count for lane in self.lanes),
            "ring_used": self._ring_used(max((one["ring_most"] for one in rings), default=0.0)),
            "newest_ns": max((one["newest_ns"] or 0 for one in rings), default=0) or None,
        }

    def kernel_drops(self) -> int:
        with self.lock:
            return sum(lane.tapped.statistics() for lane in self.lanes)

    def _ring_used(self, most: float) -> float:
        """The fullest that the ring was of late; each look at the ring empties its own mark, and there are several who look."""
        now = time.monotonic()
        self._ring_most.append((now, most))
        while self._ring_most[0][0] < now - _RING_MOST_S:
            self._ring_most.popleft()
        return max(share for _, share in self._ring_most)
