"""The tap as a whole: lanes of ring -> ingest -> queues -> senders, and the control that looks after them some ten times a second.

Here is the order of things: what is opened before rights are dropped, what runs where, what changes without a restart, how it ends. No packet and no request
passes through here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from replay import _fastpath
from replay.capture.afpacket import Snoop, Tapped, in_namespace, open_socket
from replay.capture.netlink import Network
from replay.capture.recording import Recording
from replay.engine import Health, guarded, resolve, routes_of
from replay.errors import GuardError, ReplayError, TargetError, UsageError
from replay.settings import Target
from replay.tap import privileges, probe
from replay.tap.breaker import Breaker
from replay.tap.place import OWN_PORTS, REJECT_ALL, Place, within
from replay.tap.settings import TapSettings
from replay.tap.sums import sum_histograms, sum_ingests, sum_senders
from replay.units import MILLION

__all__ = ["Tap"]

Address = tuple[bytes, int]
Counts = dict[str, Any]

_log = logging.getLogger("replay.tap")

#: Batches that may wait for a sender, and the bytes that one counts for; a batch is a block's worth of requests or less. Beyond that the newest is dropped.
_QUEUE_BATCHES, _BATCH_BYTES = 64, 400 << 10
_RESOLVE_S = 30.0
#: A thread that works without a rest, or is silent, for so long hangs. Names that take their time at a reload are meant to fit in.
_HUNG_S = 25.0
#: The fullest that the ring was is told for so long.
_RING_MOST_S = 60.0
_HISTOGRAMS = ("lag_us", "latency_us", "service_us", "production_us")
#: What only a change of these asks for new senders; of the others new rules are enough.
_SENDER_FIELDS = (
    "targets", "connections", "pipeline", "connect_timeout_ns", "timeout_ns", "drain_ns", "max_age_ns", "allow_production", "dry_run",
)  # fmt: skip
#: What is fixed when the sockets are opened.
_FIXED_FIELDS = ("captures", "netns", "ring_bytes", "block_ms", "workers", "user", "record", "record_size", "record_every_ns", "record_files")


@dataclass(slots=True)
class _Way:
    """One target's part of a lane."""

    target: Target | None
    addresses: list[Address]
    queue: _fastpath.Queue
    sender: _fastpath.Sender
    thread: threading.Thread


@dataclass(slots=True)
class _Lane:
    """One worker: its own socket, connections, and senders."""

    tapped: Tapped
    ring: _fastpath.LiveRing
    ingest: _fastpath.Ingest
    thread: threading.Thread
    ways: list[_Way]


@dataclass(slots=True)
class _Retired:
    """What ways that ended have counted."""

    senders: dict[str, Counts] = field(default_factory=dict)
    histograms: dict[str, dict[str, bytes]] = field(default_factory=dict)


class Tap:
    """One tap. `prepare` (sockets, guards, rights), `start`, then `tick` now and then until `running` is false, then `result`.

    drain() asks it to drain and end, stop() to end at once; reload(settings) changes what can change. All from one thread; what only reads (snapshot,
    histograms, health) from any. What happens is told to the logger `replay.tap`.
    """

    def __init__(self, settings: TapSettings) -> None:
        self.settings = settings
        self.recording: Recording | None = None
        self.started_at = time.time()
        self.ended_at = 0.0
        self.place: Place | None = None
        self.state = "starting"  # capturing, away (no interface), expired, draining, ended
        self.dropped_rights = ""
        self.share = 1.0  # of the asked share, as --max-cpu lowers it
        self.breakers: dict[str, Breaker] = {}
        self._stop_reading = _fastpath.Stop()
        self._stop = _fastpath.Stop()
        self._asked_to_stop = False
        self._stopping_since: float | None = None
        self._guards: list[_fastpath.Guard] = []
        self._guard: _fastpath.Guard | None = None
        self._addresses: dict[str, list[Address]] = {}
        self._pool: Any = None
        self._routes: _fastpath.Routes | None = None
        self._lanes: list[_Lane] = []
        self._old: list[_Way] = []
        self._retired = _Retired()
        self._failures: list[BaseException] = []
        self._snoop: Snoop | None = None
        self._began = 0.0
        self._next: dict[str, float] = {}
        self._resolving: threading.Thread | None = None
        self._resolved: dict[str, list[Address]] | None = None
        self._cpu = (0.0, 0.0)
        self._reloads = 0
        self._last_drops = 0
        #: Held where counters change hands, so that whoever reads them (the metrics have a thread of their own) finds each exactly once.
        self._counting = threading.RLock()
        self._signs: dict[int, tuple[int, float]] = {}
        self._ring_most: deque[tuple[float, float]] = deque()
        self._ticked = 0.0

    # -- before --------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Opens everything, checks the target, drops the rights. Nothing is sent. Raises UsageError, TapError, TargetError, GuardError."""
        s = self.settings
        self.place = Place.find(s)
        self._addresses = {target.url: resolve(target) for target in s.targets}
        self._refuse_production()
        # Each queue has room for its two slots, the batch that is open and the one that is being sent.
        self._pool = _fastpath.Pool(max(s.selection.batch_budget, 4 * _BATCH_BYTES * max(len(s.targets), 1) * s.workers))
        if s.selection.routing is not None:
            self._routes = routes_of(s.selection)
        tapped = [self._open(n) for n in range(s.workers)]
        try:
            self._check_targets()
            recorders = self._record()
            self.dropped_rights = privileges.drop(s.user)
            self._guard = self._new_guard()
            for one, recorder in zip(tapped, recorders, strict=True):
                self._lanes.append(self._lane(one, recorder))
        except BaseException:
            for one in tapped:
                one.close()
            raise

    def _open(self, n: int) -> Tapped:
        s, place = self.settings, self.place
        assert place is not None
        group = os.getpid() & 0xFFFF
        return in_namespace(
            s.netns,
            lambda: open_socket(
                place.single, REJECT_ALL, ring_bytes=s.ring_bytes // s.workers, block_ms=s.block_ms, fanout=(group, s.workers),
            ),
        )  # fmt: skip

    def _record(self) -> list[_fastpath.Recorder | None]:
        """A recorder for each lane, and the files, when that is asked for. Raises UsageError."""
        s = self.settings
        if s.record is None:
            return [None] * s.workers
        recorders = [_fastpath.Recorder() for _ in range(s.workers)]
        self.recording = Recording(s.record, recorders, size=s.record_size, every_ns=s.record_every_ns, files=s.record_files)
        return [*recorders]

    def rotate(self) -> None:
        """The recording goes on in its next file."""
        if self.recording is not None:
            self.recording.rotate()

    def _every(self) -> list[Address]:
        return [address for one in self._addresses.values() for address in one]

    def _new_guard(self) -> _fastpath.Guard | None:
        if self.settings.allow_production:
            return None
        guard = _fastpath.Guard(guarded(self._every()))
        self._guards.append(guard)
        return guard

    def _refuse_production(self) -> None:
        """What addresses and ports alone tell: the target is a server that is tapped. Raises GuardError."""
        s, place = self.settings, self.place
        assert place is not None
        if s.allow_production or s.dry_run:
            return
        for target in s.targets:
            for packed, port in self._addresses[target.url]:
                here = place.is_local(packed)
                named = within(packed, s.selection.server)
                tapped = named if s.selection.server else {"in": here, "out": not here, "both": True}[s.direction] and here
                if tapped and port in s.selection.ports:
                    raise GuardError(
                        f"{target.url}: refused: its address and port are tapped, what is mirrored would reach production."
                        " Give the address of a shadow service. If this is meant: --allow-production"
                    )

    def _check_targets(self, only: set[Address] | None = None) -> None:
        """Connects to each new address once, without a byte. Raises GuardError."""
        s, place = self.settings, self.place
        assert place is not None
        if s.allow_production or s.dry_run:
            return
        if self._snoop is None:
            self._snoop = in_namespace(s.netns, lambda: Snoop(place.single, REJECT_ALL))
        ethernet = place.single is None or place.single.hatype in (1, 772)
        self._snoop.attach(place.program((), ethernet=ethernet, connects=True))
        try:
            for target in s.targets:
                wanted = [one for one in self._addresses[target.url] if only is None or one in only]
                probe.check(self._snoop, place, target, wanted, s.connect_timeout_ns / 1e9)
        finally:
            self._snoop.attach(REJECT_ALL)

    # -- lanes and ways ------------------------------------------------------------------------------------------------------

    def _excluded(self) -> list[Network]:
        """Clients whose requests are not mirrored: what the shadow itself calls would go round."""
        if self.settings.exclude_clients is not None:
            return list(self.settings.exclude_clients)
        place = self.place
        assert place is not None
        return [(packed, 128) for packed, _ in dict.fromkeys(self._every()) if not place.is_own(packed)]

    def _thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                body()
            except BaseException as error:
                self._failures.append(error)

        return threading.Thread(target=run, name=name, daemon=True)

    def _ways(self) -> list[_Way]:
        s = self.settings
        dry: list[Target | None] = [None] * (len(s.targets) if s.selection.routing is not None else 1)
        targets: list[Target | None] = dry if s.dry_run or not s.targets else list(s.targets)
        ways = []
        # One queue alone must not take the memory of all; slots are a power of two.
        most = max(s.selection.batch_budget * 3 // 4 // _BATCH_BYTES // (len(targets) * s.workers), 2)
        slots = min(_QUEUE_BATCHES, 1 << (most.bit_length() - 1))
        for target in targets:
            addresses = [] if target is None else self._addresses[target.url]
            queue = _fastpath.Queue(self._pool, slots)
            try:
                sender = _fastpath.Sender(
                    queue, addresses, stop=self._stop, live=target is not None, asap=target is None, dry_run=target is None,
                    connections=max(s.connections // s.workers, 1), pipeline=s.pipeline, connect_timeout_ns=s.connect_timeout_ns,
                    timeout_ns=s.timeout_ns, drain_ns=s.drain_ns, expire_ns=s.max_age_ns, guard=self._guard,
                    rate_most=s.max_rate / s.workers, ports=(OWN_PORTS[0], OWN_PORTS[1] - OWN_PORTS[0] + 1),
                )  # fmt: skip
            except OSError as error:
                raise ReplayError(f"cannot make a sender: {error.strerror}; raise the limit on open files (ulimit -n)") from None
            ways.append(_Way(target, addresses, queue, sender, self._thread(f"sender {target.url if target else ''}", sender.run)))
            if target is not None:
                self.breakers.setdefault(target.url, Breaker(s.timeout_ns / 1e9))
        return ways

    def _ingest(self, source: Any, ways: list[_Way]) -> _fastpath.Ingest:
        """An Ingest by the settings of now. Raises UsageError."""
        s = self.settings
        rules = s.selection.for_ingest()
        if self._routes is not None and ways:
            rules["routes"] = self._routes
        rules["share"] = self._share
        try:
            return _fastpath.Ingest(
                source, [way.queue for way in ways], self._pool, self._stop, guard=self._guard, live=True, last=False, marker=True,
                twins=self.place is not None and self.place.moving,
                slack_ns=3 * s.block_ms * 10**6 + 20 * 10**6, batch_ns=max(s.block_ms, 1) * 10**6, limit=s.selection.limit or 0, **rules,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _lane(self, tapped: Tapped, recorder: _fastpath.Recorder | None) -> _Lane:
        ring = _fastpath.LiveRing(
            tapped.socket.fileno(), stop=self._stop_reading, block_size=tapped.block_size, block_count=tapped.block_count, recorder=recorder
        )
        ways = self._ways()
        ingest = self._ingest(ring, ways)
        return _Lane(tapped, ring, ingest, self._thread("ingest", ingest.run), ways)

    def _attach(self) -> None:
        """The filter of now, on each socket."""
        place = self.place
        assert place is not None
        idle = self.state == "expired" or not place.interfaces
        excluded = self._excluded()
        for lane in self._lanes:
            program = place.program(excluded, ethernet=lane.tapped.ethernet, sample=self._kernel_sample())
            lane.tapped.attach(REJECT_ALL if idle else program)

    @property
    def _share(self) -> int:
        """What is taken now, in parts per million."""
        return int(self.settings.selection.share * self.share)

    @property
    def _kernel_share(self) -> int:
        """Of connections, what the filter lets through, in parts per million."""
        s = self.settings.selection
        return self._share if s.sample_by == "connection:kernel" and s.routing is None else MILLION

    def _kernel_sample(self) -> tuple[int, int] | None:
        """What the filter has to know of the sample, so that it takes what the engine would (docs/design.md S2b)."""
        share = self._kernel_share
        return None if share >= MILLION else (-(-((share << 64) // MILLION) >> 32), self.settings.selection.seed)

    def start(self) -> None:
        """Starts the threads, and lets packets in."""
        self._began = self._ticked = time.monotonic()
        self._cpu = (time.process_time(), self._began)
        if self.recording is not None:
            self.recording.start()
        for lane in self._lanes:
            for way in lane.ways:
                way.thread.start()
            lane.thread.start()
        self.state = "capturing" if self.place and self.place.interfaces else "away"
        self._expire(time.time())
        self._attach()

    # -- during --------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begins the end: what is in the ring and on its way is still accounted for, bounded by --drain."""
        self._asked_to_stop = True
        self._stop_reading.set()

    def stop(self) -> None:
        """Ends at once; the numbers still add up."""
        self.drain()
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Looks after what has to be looked after, and rests for so long."""
        self.tick()
        if seconds > 0:
            time.sleep(seconds)

    def health(self) -> Health:
        """Any thread may ask. A dead shadow is no state of ours: it is a metric, or one shadow would make each node unready."""
        if self._failures:
            error = self._failures[0]
            return Health(False, False, f"a thread ended with {type(error).__name__}: {error}")
        if self._asked_to_stop:
            return Health(True, False, "draining")
        if self.state == "starting":
            return Health(True, False, "it has not begun yet")
        hung = self._hung(time.monotonic())
        if hung:
            return Health(False, False, f"{hung} ended or hangs")
        why = {"away": "no interface is there", "expired": "--expires has passed: idle, as it was asked to be"}.get(self.state, "")
        return Health(True, self.state != "away", why)

    def _hung(self, now: float) -> str:
        """The name of a thread that is gone, or gave no sign of life for too long; else ""."""
        if now - self._ticked > _HUNG_S:
            return "the main loop"
        for n, lane in enumerate(self._lanes):
            takes = lane.ring.counters(False)["takes"]
            before, since = self._signs.get(n, (-1, now))
            self._signs[n] = (takes, now if takes != before else since)
            if not lane.thread.is_alive() or (takes == before and now - since > _HUNG_S):
                return f"capture thread {n}"
            for way in lane.ways:
                if not way.thread.is_alive() or way.sender.counters()["busy_ns"] > _HUNG_S * 1e9:
                    return way.thread.name
        return ""

    @property
    def running(self) -> bool:
        return self.state != "ended"

    @property
    def guarded(self) -> bool:
        """A guard has stopped the sending for good."""
        return any(guard.tripped for guard in self._guards)

    def _due(self, name: str, now: float, every: float) -> bool:
        if now < self._next.get(name, 0.0):
            return False
        self._next[name] = now + every
        return True

    def tick(self) -> None:
        """What has to be looked after: call it some ten times a second, from one thread."""
        now = self._ticked = time.monotonic()
        if self._failures:
            self.stop()
        if self.guarded and not self._asked_to_stop:
            _log.error("a captured server is the target: nothing more is sent; give the address of a shadow service")
            self.drain()
        limit = self.settings.duration_ns
        if limit is not None and now - self._began >= limit / 1e9 and not self._asked_to_stop:
            self.drain()
        if self._asked_to_stop:
            self._end(now)
            return
        if self.place is not None and self._due("news", now, 0.2):
            self._news()
        self._break(now)
        if self._due("second", now, 1.0):
            self._expire(time.time())
            self._retire()
            self._drops()
            self._lower(now)
        if self.settings.targets and not self.settings.dry_run:
            self._resolve(now)

    def _drops(self) -> None:
        with self._counting:
            drops = sum(lane.tapped.statistics() for lane in self._lanes)
        if drops > self._last_drops and self._due("drops", time.monotonic(), 60.0):
            _log.warning("the kernel dropped %d packets: the ring was full; raise --ring, or narrow the filter", drops - self._last_drops)
            self._last_drops = drops

    def _news(self) -> None:
        """Interfaces, addresses and routes that came or went."""
        place = self.place
        assert place is not None
        if not place.netlink.changed():
            return
        before = (place.interfaces, place.local, place.inside, place.own)
        names = {one.name for one in place.interfaces}
        place.look()
        if (place.interfaces, place.local, place.inside, place.own) == before:
            return
        if {one.name for one in place.interfaces} != names:
            came = sorted({one.name for one in place.interfaces} - names)
            went = sorted(names - {one.name for one in place.interfaces})
            told = [f"{word} {', '.join(some[:8])}{' …' if len(some) > 8 else ''}" for word, some in (("came:", came), ("went:", went)) if some]
            _log.info("interfaces %s; %d tapped", "; ".join(told), len(place.interfaces))
        for lane in self._lanes:
            place.rebind(lane.tapped)
        if self.state in ("capturing", "away"):
            self.state = "capturing" if place.interfaces else "away"
        self._attach()

    def _senders(self, url: str) -> list[_Way]:
        return [way for lane in self._lanes for way in lane.ways if way.target is not None and way.target.url == url]

    def _break(self, now: float) -> None:
        for url, breaker in self.breakers.items():
            ways = self._senders(url)
            if not ways:
                continue
            counts = sum_senders([way.sender.counters() for way in ways])
            if breaker.look(now, counts):
                if breaker.state == "open":
                    _log.warning("%s: nothing is sent for %.1f s: %s", url, breaker.until - now, breaker.reason)
                elif breaker.state == "closed":
                    _log.info("%s: answers again, requests are sent", url)
                for way in ways:
                    way.sender.set_gate(breaker.passes)

    def _expire(self, wall: float) -> None:
        at = self.settings.expires_at
        if at is not None and wall >= at and self.state in ("capturing", "away"):
            self.state = "expired"
            _log.warning("--expires has passed: idle, nothing is captured or sent; end it, or give a later date and reload")
            self._attach()
        elif self.state == "expired" and (at is None or wall < at):
            self.state = "capturing" if self.place and self.place.interfaces else "away"
            self._attach()

    def _lower(self, now: float) -> None:
        """--max-cpu: over it the share is lowered, a step a second; below it, it comes back."""
        cpu, before = time.process_time(), self._cpu
        self._cpu = (cpu, now)
        most = self.settings.max_cpu
        if most <= 0 or now - before[1] <= 0:
            return
        used = (cpu - before[0]) / (now - before[1])
        share = self.share
        if used > most:
            share = max(share * max(most / used, 0.5), 0.001)
        elif used < most * 0.8 and share < 1.0:
            share = min(share * 1.25, 1.0)
        if share != self.share:
            self.share = share
            _log.warning("--max-cpu: %.0f %% of a core was used; %.1f %% of the asked share is taken", used * 100, share * 100)
            self._adopt(new_ways=False)

    # -- what changes --------------------------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> None:
        """Names are looked up again every 30 s, and sooner when nothing answers, in a thread: a resolver may hang."""
        if self._resolving is not None:
            if self._resolving.is_alive():
                return
            self._resolving, found, self._resolved = None, self._resolved, None
            if found is not None:
                self._move(found)
            return
        down = any(breaker.state == "open" for breaker in self.breakers.values())
        if not self._due("resolve", now, 5.0 if down else _RESOLVE_S):
            if down and self._next["resolve"] > now + 5.0:
                self._next["resolve"] = now + 5.0
            return
        if self._reloads == 0 and now - self._began < 1.0:
            return  # they were looked up just now
        targets = self.settings.targets

        def look() -> None:
            found = {}
            for target in targets:
                try:
                    found[target.url] = resolve(target)
                except TargetError as error:
                    _log.warning("%s; the old addresses are used", error)
            self._resolved = found

        self._resolving = threading.Thread(target=look, name="resolver", daemon=True)
        self._resolving.start()

    def _move(self, found: dict[str, list[Address]]) -> None:
        """To the addresses that the names have now."""
        changed = {url: now for url, now in found.items() if url in self._addresses and set(now) != set(self._addresses[url])}
        if not changed:
            return
        before = self._addresses
        fresh = {address for url, now in changed.items() for address in now if address not in before[url]}
        self._addresses = before | changed
        try:
            self._refuse_production()
            self._check_targets(fresh)
        except GuardError as error:
            self._addresses = before
            _log.error("%s; the old addresses are used", error)
            return
        for url in changed:
            _log.info("%s: has %d addresses now, %d of them new", url, len(changed[url]), len(fresh & set(changed[url])))
        self._adopt(new_ways=True)

    def _adopt(self, *, new_ways: bool) -> None:
        """Rules, and if need be senders, by the settings of now; no packet is lost over it."""
        if new_ways:
            self._guard = self._new_guard()
            self._guards = self._guards[-8:] if not self.guarded else self._guards
        for lane in self._lanes:
            before = lane.ways
            ways = self._ways() if new_ways else before
            rules = self._ingest(_fastpath.PacketSource(), ways)
            if new_ways:
                for way in ways:
                    way.thread.start()
            if not lane.ingest.adopt(rules, 5.0):
                if not new_ways:
                    continue
                _log.error("the capture thread does not take new rules; the old senders stay")
            with self._counting:
                lane.ways = ways
                if new_ways:
                    self._old = self._old + before
            if new_ways:
                for way in before:
                    way.queue.end()
        self._attach()

    def reload(self, settings: TapSettings) -> list[str]:
        """Goes on by other settings. Returns names of those that need a restart, which are left as they are.

        Raises UsageError, TargetError, GuardError; then the old settings stay."""
        if settings.selection.routing != self.settings.selection.routing:
            raise UsageError("--policy: a changed policy is taken up by a restart only; the old one goes on")
        fixed = [name for name in _FIXED_FIELDS if getattr(settings, name) != getattr(self.settings, name)]
        settings = replace(settings, **{name: getattr(self.settings, name) for name in fixed})
        before, addresses = self.settings, self._addresses
        new_ways = any(getattr(settings, name) != getattr(before, name) for name in _SENDER_FIELDS)
        self.settings = settings
        place = self.place
        assert place is not None
        try:
            self._ingest(_fastpath.PacketSource(), [])  # the rules can be meant
            if new_ways:
                self._addresses = {target.url: addresses.get(target.url) or resolve(target) for target in settings.targets}
                place.settings = settings
                self._refuse_production()
                known = {address for one in addresses.values() for address in one}
                self._check_targets({one for one in self._every() if one not in known})
            place.settings = settings
            place.look()
            self._adopt(new_ways=new_ways)
        except (UsageError, TargetError, GuardError):
            self.settings, self._addresses = before, addresses
            place.settings = before
            raise
        if settings.max_rate != before.max_rate and not new_ways:
            for lane in self._lanes:
                for way in lane.ways:
                    way.sender.set_rate(settings.max_rate / settings.workers)
        self.breakers = {url: one for url, one in self.breakers.items() if url in self._addresses}
        self._reloads += 1
        self._expire(time.time())
        return fixed

    def _retire(self) -> None:
        """Senders that are done: what they counted is kept, they are not."""
        with self._counting:
            left = []
            for way in self._old:
                if way.thread.is_alive():
                    left.append(way)
                else:
                    self._count(way)
            self._old = left

    def _count(self, way: _Way) -> None:
        way.sender.sweep()
        name = way.target.url if way.target else ""
        counts = _counted(way)
        old = self._retired.senders.get(name)
        self._retired.senders[name] = counts if old is None else sum_senders([old, counts])
        one = way.sender.histograms()
        before = self._retired.histograms.get(name)
        self._retired.histograms[name] = {key: sum_histograms(key, [one[key]], before) for key in _HISTOGRAMS}

    # -- the end -------------------------------------------------------------------------------------------------------------

    def _end(self, now: float) -> None:
        """One step of draining: reading ends first, then each queue, then the senders; all of it bounded."""
        if self._stopping_since is None:
            self._stopping_since = now
            self.state = "draining"
            for lane in self._lanes:
                with contextlib.suppress(OSError):
                    lane.tapped.attach(REJECT_ALL)
                    lane.tapped.statistics()
        if any(lane.thread.is_alive() for lane in self._lanes):
            if now - self._stopping_since > 5.0:
                self._stop.set()
            return
        for lane in self._lanes:
            for way in lane.ways:
                if not self._next.get("queues ended"):
                    way.queue.end()
        self._next["queues ended"] = 1.0
        ways = [way for lane in self._lanes for way in lane.ways] + self._old
        if any(way.thread.is_alive() for way in ways):
            if now - self._stopping_since > self.settings.drain_ns / 1e9 + 0.5:
                self._stop.set()
            return
        if self.recording is not None:
            self.recording.end()
        self.state = "ended"
        self.ended_at = time.time()

    def close(self) -> None:
        """Sockets are closed; call it when it has ended, or was never started."""
        for lane in self._lanes:
            lane.tapped.close()
        if self.recording is not None:
            self.recording.close()
        if self._snoop is not None:
            self._snoop.close()
        if self.place is not None:
            self.place.close()

    # -- told ----------------------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        """Targets of now and of before, by their URLs; "" is a dry run."""
        return list(dict.fromkeys([*(way.target.url if way.target else "" for lane in self._lanes for way in lane.ways), *self._retired.senders]))

    def _ways_of(self, name: str) -> list[_Way]:
        every = [*(way for lane in self._lanes for way in lane.ways), *self._old]
        return [way for way in every if (way.target.url if way.target else "") == name]

    def snapshot(self) -> Counts:
        """Counters of now, plain values: `ingest`, `targets` and `senders` (in one order, those of before a reload too), `tap`, `state`. Any thread may ask."""
        with self._counting:
            return self._snapshot()

    def _snapshot(self) -> Counts:
        names = self._names()
        senders = []
        for name in names:
            counted = [_counted(way) for way in self._ways_of(name)]
            if name in self._retired.senders:
                counted.append(self._retired.senders[name])
            senders.append(sum_senders(counted))
        known = {target.url: target for target in self.settings.targets}
        s = self.settings
        return {
            "state": self.state,
            "elapsed_s": time.monotonic() - self._began if self._began else 0.0,
            "ingest": self._ingested(),
            "targets": [known.get(name) or (Target(name, "", 0) if name else None) for name in names],
            "senders": senders,
            "tap": {
                **self._captured(),
                "share_ppm": s.selection.share,
                "effective_ppm": 0 if self.state == "expired" else self._share,
                "kernel_ppm": self._kernel_share,
                "expired": int(self.state == "expired"),
                "breakers": [self.breakers[name].state if name in self.breakers else "closed" for name in names],
                "breaker_changes": [dict(self.breakers[name].changes) if name in self.breakers else {} for name in names],
                "queued_bytes": self._pool.held if self._pool is not None else 0,
                "recorded": self.recording.counters() if self.recording is not None else None,
                "reloads": self._reloads,
            },
        }

    def _ingested(self) -> Counts | None:
        if not self._lanes:
            return None
        found = sum_ingests([lane.ingest.counters() for lane in self._lanes])
        found["packets"]["cut_frames"] = sum(lane.ring.counters(False)["cut_frames"] for lane in self._lanes)  # what was shortened as asked is none
        return found if self._routes is None else found | {"routed": self._routes.counters()}

    def _captured(self) -> Counts:
        rings = [lane.ring.counters() for lane in self._lanes]
        interfaces = self.place.interfaces if self.place is not None else []
        return {
            "kernel_packets": sum(one["packets"] for one in rings),
            "kernel_drops": sum(lane.tapped.statistics() for lane in self._lanes),
            "cut_frames": sum(one["cut_frames"] for one in rings),
            "shortened": sum(one["shortened"] for one in rings),
            "bytes": sum(one["bytes"] for one in rings),
            "ring_bytes": sum(lane.tapped.block_size * lane.tapped.block_count for lane in self._lanes),
            "ring_used": self._ring_used(max((one["ring_most"] for one in rings), default=0.0)),
            "newest_ns": max((one["newest_ns"] or 0 for one in rings), default=0) or None,
            "interfaces": {one.name: {"up": one.up} for one in interfaces},
        }

    def _ring_used(self, most: float) -> float:
        """The fullest that the ring was of late; each look at the ring empties its own mark, and there are several who look."""
        now = time.monotonic()
        self._ring_most.append((now, most))
        while self._ring_most[0][0] < now - _RING_MOST_S:
            self._ring_most.popleft()
        return max(share for _, share in self._ring_most)

    def histograms(self) -> list[dict[str, bytes]]:
        """Of each target of `snapshot` `lag_us` (sent minus captured), `latency_us`, `service_us`, `production_us`, as `histogram.Histogram` reads them."""
        found = []
        with self._counting:
            for name in self._names():
                counted, before = [way.sender.histograms() for way in self._ways_of(name)], self._retired.histograms.get(name)
                found.append({key: sum_histograms(key, [one[key] for one in counted], before) for key in _HISTOGRAMS})
        return found

    def result(self) -> Counts:
        """Everything that was counted, as `report.build` takes it; it has ended. Raises what a thread raised."""
        if self._failures:
            raise self._failures[0]
        for way in [*(way for lane in self._lanes for way in lane.ways), *self._old]:
            way.sender.sweep()
        found = self.snapshot()
        return found | {
            "addresses": [self._addresses.get(target.url, []) if target is not None else [] for target in found["targets"]],
            "histograms": self.histograms(),
            "faults": [],
            "passes": 1,
            "read": {"bytes_read": found["tap"]["bytes"], "bytes_total": None},
            "guard": self.guarded,
            "never_connected": False,
            "interrupted": False,
            "limited_by": None,
            "judged": None,
        }


def _counted(way: _Way) -> Counts:
    """Counters of a way's sender, with what found its queue full."""
    counts = way.sender.counters()
    full = way.queue.full
    return counts | {"dropped": counts["dropped"] | {"queue_full": full}} if full else counts
