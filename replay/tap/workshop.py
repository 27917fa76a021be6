"""Lanes and ways are made here, by the settings of now.

Must not know: when they change, what they have counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replay import _fastpath
from replay.capture.afpacket import Tapped
from replay.errors import ReplayError, UsageError
from replay.process import await_turn
from replay.settings import Target
from replay.tap.breaker import Breaker
from replay.tap.hearing import Hearing
from replay.tap.lanes import Lane, Way
from replay.tap.notes import Notes
from replay.tap.place import OWN_PORTS, REPLY_BYTES, Place
from replay.tap.settings import TapSettings
from replay.tap.targets import Targets
from replay.units import MILLION

__all__ = ["BATCH_BYTES", "Workshop"]

#: Batches that may wait for a sender, and the bytes that one counts for; a batch is a block's worth of requests or less. Beyond that the newest is dropped.
_QUEUE_BATCHES, BATCH_BYTES = 64, 400 << 10


@dataclass(slots=True)
class Workshop:
    """What lanes and ways are made of. settings, guard, routes, share (of the asked share, as --max-cpu lowers it): those of now."""

    settings: TapSettings
    place: Place
    targets: Targets
    notes: Notes
    breakers: dict[str, Breaker]
    failures: list[BaseException]
    stop: _fastpath.Stop
    stop_reading: _fastpath.Stop
    hearing: Hearing
    pool: Any = None
    guard: _fastpath.Guard | None = None
    routes: _fastpath.Routes | None = None
    share: float = 1.0
    twins: _fastpath.Twins | None = field(init=False)  # None: one interface, where nothing is seen twice

    def __post_init__(self) -> None:
        self.twins = _fastpath.Twins() if self.place.moving else None

    def thread(self, name: str, body: Callable[[], None], *, patient: bool) -> threading.Thread:
        """patient: production does not lose its core to this thread's waking up. The ring has room for what comes meanwhile; a sender's queue has not."""

        def run() -> None:
            if patient:
                await_turn()
            try:
                body()
            except BaseException as error:
                self.failures.append(error)

        return threading.Thread(target=run, name=name, daemon=True)

    def ways(self) -> list[Way]:
        s = self.settings
        dry: list[Target | None] = [None] * (len(s.targets) if s.selection.routing is not None else 1)
        targets: list[Target | None] = dry if s.dry_run or not s.targets else list(s.targets)
        ways = []
        # One queue alone must not take the memory of all; slots are a power of two.
        most = max(s.selection.batch_budget * 3 // 4 // BATCH_BYTES // (len(targets) * s.workers), 2)
        slots = min(_QUEUE_BATCHES, 1 << (most.bit_length() - 1))
        outcomes = self.notes.begin(targets, [[] if one is None else self.targets.addresses[one.url] for one in targets])
        for target, noted in zip(targets, outcomes, strict=True):
            queue = _fastpath.Queue(self.pool, slots)
            try:
                sender = _fastpath.Sender(
                    queue, [] if target is None else self.targets.reached(target), stop=self.stop, live=target is not None, asap=target is None,
                    dry_run=target is None, connections=max(s.connections // s.workers, 1), pipeline=s.pipeline,
                    connect_timeout_ns=s.connect_timeout_ns, timeout_ns=s.timeout_ns, drain_ns=s.drain_ns, expire_ns=s.max_age_ns, guard=self.guard,
                    rate_most=s.max_rate / s.workers, ports=(OWN_PORTS[0], OWN_PORTS[1] - OWN_PORTS[0] + 1), outcomes=noted,
                )  # fmt: skip
            except OSError as error:
                raise ReplayError(f"cannot make a sender: {error.strerror}; raise the limit on open files (ulimit -n)") from None
            way = Way(target, queue, sender, self.thread(f"sender {target.url if target else ''}", sender.run, patient=target is None))
            ways.append(way)
            if target is not None:
                sender.set_gate(self.breakers.setdefault(target.url, Breaker(s.timeout_ns / 1e9)).passes)
        self.notes.started(ways)
        return ways

    def ingest(self, source: Any, ways: list[Way]) -> _fastpath.Ingest:
        """By the settings of now. Raises UsageError."""
        s = self.settings
        if s.selection.limit and s.workers > 1:
            raise UsageError("--limit: each worker would count for itself; take it with --workers 1")
        rules = s.selection.for_ingest()
        if self.routes is not None and ways:
            rules["routes"] = self.routes
        rules["low"] = round(self.share * MILLION)
        rules["replies"] = self.hears
        try:
            return _fastpath.Ingest(
                source, [way.queue for way in ways], self.pool, self.stop, guard=self.guard, live=True, last=False, marker=True,
                twins=self.twins, locality=self.place.locality, record=self.notes.results is not None,
                slack_ns=3 * s.block_ms * 10**6 + 20 * 10**6, batch_ns=max(s.block_ms, 1) * 10**6, limit=s.selection.limit or 0, **rules,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None

    def lane(self, tapped: Tapped, recorder: _fastpath.Recorder | None) -> Lane:
        ring = _fastpath.LiveRing(
            tapped.socket.fileno(), stop=self.stop_reading, block_size=tapped.block_size, block_count=tapped.block_count, recorder=recorder
        )
        ways = self.ways()
        ingest = self.ingest(ring, ways)
        return Lane(tapped, ring, ingest, self.thread("ingest", ingest.run, patient=True), ways)

    # -- the share -----------------------------------------------------------------------------------------------------------

    @property
    def effective(self) -> int:
        """What is taken now of what the filters leave, in parts per million."""
        return int(self.settings.selection.share * self.share)

    @property
    def in_kernel(self) -> int:
        """Of connections, what the filter lets through, in parts per million: what is taken, or a little more."""
        s = self.settings.selection
        return min(self.effective + (self.share < 1.0), MILLION) if s.sample_by == "connection:kernel" and s.routing is None else MILLION

    def kernel_sample(self) -> tuple[int, int] | None:
        """What the filter has to know of the sample, so that it takes what the engine would (docs/design.md S2b)."""
        share = self.in_kernel
        return None if share >= MILLION else (-(-((share << 64) // MILLION) >> 32), self.settings.selection.seed)

    # -- production's replies ------------------------------------------------------------------------------------------------

    @property
    def hears(self) -> bool:
        """Production's replies are captured."""
        s = self.settings
        return s.record is not None or s.replies in ("heads", "whole") or (s.replies == "auto" and self.hearing.wanted)

    @property
    def reply_bytes(self) -> int:
        """Of each of them, where they are: as `bpfasm.Rules` has it. A later run needs them whole, and a tcpdump expression is asked about whole packets."""
        s = self.settings
        return 0 if s.replies == "whole" or s.record is not None or s.selection.bpf is not None else REPLY_BYTES
