"""Lanes and ways: a worker's ring, connections and rules, and what leads from there to each target.

Must not know: how they are made, what is done with their counts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from replay import _fastpath
from replay.capture.afpacket import Tapped
from replay.settings import Target

__all__ = ["Lane", "Way"]


@dataclass(slots=True)
class Way:
    """One target's part of a lane."""

    target: Target | None
    queue: _fastpath.Queue
    sender: _fastpath.Sender
    thread: threading.Thread
    swept: bool = False

    @property
    def name(self) -> str:
        """Of its target; "" is a dry run."""
        return self.target.url if self.target else ""

    def counters(self) -> dict[str, Any]:
        """The sender's, with what found the queue full."""
        counts = self.sender.counters()
        full = self.queue.full
        return counts | {"dropped": counts["dropped"] | {"queue_full": full}} if full else counts

    def sweep(self) -> None:
        """Its thread has ended: what a stop left in the queue is accounted for, and nothing more is told of it."""
        self.sender.sweep()
        self.swept = True


@dataclass(slots=True)
class Lane:
    """One worker: its own socket, connections, and senders. leaving: ways of before, that requests of a former policy may still take."""

    tapped: Tapped
    ring: _fastpath.LiveRing
    ingest: _fastpath.Ingest
    thread: threading.Thread
    ways: list[Way]
    leaving: list[Way] = field(default_factory=list)

    def let_go(self) -> None:
        """Ways that nothing comes to any more end, in time."""
        if self.leaving and ((self.ingest.retiring == 0 and not self.ingest.changing) or not self.thread.is_alive()):
            for way in self.leaving:
                way.queue.end()
            self.leaving = []
