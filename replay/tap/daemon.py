"""The tap as a whole: lanes of ring -> ingest -> queues -> senders, and the control that looks after them some ten times a second.

Here is the order of things: what is opened before rights are dropped, what runs when, what changes without a restart, how it ends. No packet and no request
passes through here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from replay import _fastpath, process
from replay.capture.afpacket import TapError, Tapped, check_ring, in_namespace, open_socket
from replay.capture.bpfasm import Instruction
from replay.capture.recording import Recording
from replay.engine import Health, resolve, routes_of
from replay.errors import GuardError, ReplayError, UsageError
from replay.settings import Target
from replay.tap import privileges
from replay.tap.breaker import Breaker
from replay.tap.counts import Book
from replay.tap.hearing import Hearing
from replay.tap.lanes import Lane, Way
from replay.tap.notes import Notes, notes_of
from replay.tap.place import OWN_PORTS, REJECT_ALL, Place
from replay.tap.settings import TapSettings
from replay.tap.sums import sum_senders
from replay.tap.targets import Targets
from replay.tap.workshop import BATCH_BYTES, Workshop

__all__ = ["Tap"]

Counts = dict[str, Any]

_log = logging.getLogger("replay.tap")

#: A thread that works without a rest, or is silent, for so long hangs. Names that take their time at a reload are meant to fit in.
_HUNG_S = 25.0
#: A lane is waited for no longer when it should take new rules: it takes them between two blocks of the ring.
_ADOPT_S = 5.0
#: What only a change of these asks for new senders; of the others new rules are enough.
_SENDER_FIELDS = (
    "targets", "connections", "pipeline", "connect_timeout_ns", "timeout_ns", "drain_ns", "max_age_ns", "allow_production", "dry_run", "tls",
)  # fmt: skip
#: What decides whether targets are checked, and what is tapped: a change of these asks for a check of all targets, also of those that stay.
_CHECK_FIELDS = ("allow_production", "dry_run", "direction")
_CHECK_SELECTION = ("ports", "server")
#: A check of the targets that was not passed, or could not be made, is made again.
_AGAIN_S = 10.0
#: … and one is made so long after each change of interfaces, addresses and routes.
_LATER_S = (0.0, 2.0, 5.0, 15.0)
#: What is fixed when the sockets are opened.
_FIXED_FIELDS = (
    "captures", "netns", "ring_bytes", "block_ms", "workers", "user", "record", "record_size", "record_every_ns", "record_files", "access_log", "results",
)  # fmt: skip
#: Former policies that may have requests under way; beyond that a further one has to wait.
_RETIRING_MOST = 8


def _differ(one: object, other: object, names: tuple[str, ...]) -> bool:
    return any(getattr(one, name) != getattr(other, name) for name in names)


def _take(program: list[Instruction], by: Callable[[list[Instruction]], None]) -> None:
    """Raises TapError where the kernel refuses it."""
    try:
        by(program)
    except OSError as error:
        raise TapError(
            f"the kernel does not take a filter of {len(program)} instructions: {error.strerror}; raise net.core.optmem_max (sysctl),"
            " or name fewer addresses and ports, or networks in place of addresses"
        ) from None


def _warn_of_ports(settings: TapSettings) -> None:
    first, last = OWN_PORTS
    shared = [port for port in settings.selection.ports if first <= port <= last]
    if shared:
        _log.warning(
            "--port %s: our own connections to the target are made from ports %d to %d, and may have this one when its service starts;"
            " give the service a lower port, or let net.ipv4.ip_local_port_range end above it: ours are those behind",
            ", ".join(map(str, shared)), first, last,
        )  # fmt: skip


class Tap:
    """One tap. `prepare` (sockets, guards, rights), `start`, then `tick` now and then until `running` is false, then `result`.

    drain() asks it to drain and end, stop() to end at once; reload(settings) changes what can change. All from one thread; what only reads (snapshot,
    histograms, health) from any. What happens is told to the logger `replay.tap`.
    """

    def __init__(self, settings: TapSettings) -> None:
        self.settings = settings
        self.recording: Recording | None = None
        self.notes = Notes()
        self.started_at = time.time()
        self.ended_at = 0.0
        self.place: Place | None = None
        self.state = "starting"  # capturing, away (no interface is up), expired, draining, ended
        self.dropped_rights = ""
        self.breakers: dict[str, Breaker] = {}
        self._stop_reading = _fastpath.Stop()
        self._stop = _fastpath.Stop()
        self._asked_to_stop = False
        self._stopping_since: float | None = None
        self._queues_ended = False
        self._targets: Targets | None = None
        self._shop: Workshop | None = None
        self._book = Book()
        self._failures: list[BaseException] = []
        self._began = 0.0
        self._next: dict[str, float] = {}
        self._cpu = (0.0, 0.0)
        self._reloads = 0
        self._heard = False  # production's replies pass the filter that is in place
        self._hears: bool | None = None  # … the lanes read them; None: not every lane has the settings of now
        self._told = False  # … what was said of that last
        self._behind: list[Lane] = []  # whose senders are not those of the settings
        self._filtered = False  # the filter that is in place is the one of now
        self._lets_in = False  # … and lets something through
        self._refused = ""  # why nothing may be captured or sent: the targets did not stand a check that was made again
        self._names: set[str] = set()  # interfaces that were told of
        self._later: list[float] = []  # when the targets are checked once more
        self._deaf = False  # an interface is back, and a socket could not be bound to it
        self._at: object = None  # what the filter was made for
        self._last_drops = 0
        self._signs: dict[int, tuple[int, float]] = {}
        self._ticked = 0.0

    # -- before --------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Opens everything, checks the target, drops the rights. Nothing is sent. Raises UsageError, TapError, TargetError, GuardError."""
        s = self.settings
        process.descriptors(s.connections * max(len(s.targets), 1) + 128)
        self.place = place = Place.find(s)
        self._targets = targets = Targets(s, place)
        targets.refuse_production()
        self.notes = notes_of(s.access_log, s.results, privileges.owner(s.user))
        hearing = Hearing(s.settle_ns / 1e9)
        self._shop = shop = Workshop(s, place, targets, self.notes, self.breakers, self._failures, self._stop, self._stop_reading, hearing)
        # Each queue has room for its two slots, the batch that is open and the one that is being sent.
        shop.pool = _fastpath.Pool(max(s.selection.batch_budget, 4 * BATCH_BYTES * max(len(s.targets), 1) * s.workers))
        if s.selection.routing is not None:
            shop.routes = routes_of(s.selection)
        check_ring(s.ring_bytes)
        tapped: list[Tapped] = []
        try:
            for n in range(s.workers):
                tapped.append(self._open(tapped[0] if n else s.workers > 1))
            targets.listen()
            place.checked = targets.check()
            recorders = self._record()
            self.dropped_rights = privileges.drop(s.user)
            shop.guard = targets.new_guard()
            for one, recorder in zip(tapped, recorders, strict=True):
                self._book.lanes.append(shop.lane(one, recorder))
        except BaseException:
            for one in tapped:
                one.close()
            raise

    def _open(self, fanout: Tapped | bool) -> Tapped:
        s, place = self.settings, self.place
        assert place is not None
        return in_namespace(
            s.netns,
            lambda: open_socket(
                place.single, REJECT_ALL, ring_bytes=s.ring_bytes // s.workers, block_ms=s.block_ms, fanout=fanout,
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
        """The recording goes on in its next file; the access log and results under their names, whatever was there before."""
        if self.recording is not None:
            self.recording.rotate()
        self.notes.rotate()

    @property
    def shop(self) -> Workshop:
        assert self._shop is not None, "prepare() comes first"
        return self._shop

    @property
    def targets(self) -> Targets:
        assert self._targets is not None, "prepare() comes first"
        return self._targets

    @property
    def _needs_replies(self) -> bool:
        """They are wanted, or a lane may still wait for some."""
        return self.shop.hears or self._hears is not False

    def _programs(self, *, idle: bool = False) -> list[list[Instruction]]:
        """The filter of now, for each socket. Raises TapError, UsageError."""
        place, shop = self.place, self.shop
        assert place is not None
        if idle:
            return [REJECT_ALL] * len(self._book.lanes)
        excluded, sample, ends = self.targets.excluded(), shop.kernel_sample(), self.targets.ends()
        replies = shop.reply_bytes if self._needs_replies else None
        kinds = {lane.tapped.ethernet for lane in self._book.lanes}
        made = {ethernet: place.program(excluded, ethernet=ethernet, sample=sample, replies=replies, ends=ends) for ethernet in kinds}
        return [made[lane.tapped.ethernet] for lane in self._book.lanes]

    def _attach(self) -> None:
        """The filter of now, on each socket. Raises TapError, UsageError; then that of before stays, until `_mend`."""
        self._filtered = False
        assert self.place is not None
        idle = self.state not in ("capturing", "starting") or not self.place.checked
        for lane, program in zip(self._book.lanes, self._programs(idle=idle), strict=True):
            _take(program, lane.tapped.attach)
        self._filtered, self._lets_in = True, not idle
        self._heard = not idle and self._needs_replies

    def leave_out(self, host: str, port: int) -> None:
        """A server of this process is there (0.0.0.0 or ::, all addresses): what it is asked is no production. Between prepare and start."""
        assert self.place is not None, "prepare() comes first"
        address = ipaddress.ip_address(host.partition("%")[0])
        self.place.served = (address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed, port)

    def start(self) -> None:
        """Starts the threads, and lets packets in."""
        _warn_of_ports(self.settings)
        self._began = self._ticked = time.monotonic()
        self._cpu = (time.process_time(), self._began)
        if self.recording is not None:
            self.recording.start()
        self.notes.start()
        for lane in self._book.lanes:
            for way in lane.ways:
                way.thread.start()
            lane.thread.start()
        self.state = "capturing" if self.place and self.place.up else "away"
        if self.place is not None:
            self._at, self._names = self.place.found, {one.name for one in self.place.interfaces}
        self._hears = self._told = self.shop.hears
        self._expire(time.time())
        self._attach()

    # -- during --------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begins the end: what is in the ring and on its way is still accounted for, bounded by --drain."""
        self._asked_to_stop = True

    def stop(self) -> None:
        """Ends at once; the numbers still add up."""
        self.drain()
        self._stop_reading.set()
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
        if self._refused:
            return Health(True, False, f"a target leads to production: {self._refused}")
        if self.state == "capturing" and self._deaf:
            return Health(True, False, "its interface is back, and cannot be listened to again: restart it")
        if self.state == "capturing" and self.place is not None and not self.place.checked:
            return Health(True, False, "the target is checked again")
        if self.state == "capturing" and not self._lets_in:
            return Health(True, False, "its filter could not be put in place")
        away = "no interface is up" if self.place is not None and self.place.interfaces else "no interface is there"
        why = {"away": away, "expired": "--expires has passed: idle, as it was asked to be"}.get(self.state, "")
        return Health(True, self.state != "away", why)

    def _hung(self, now: float) -> str:
        """The name of a thread that is gone, or gave no sign of life for too long; else ""."""
        if now - self._ticked > _HUNG_S:
            return "the main loop"
        for n, lane in enumerate(self._book.lanes):
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
        return self._targets is not None and self._targets.guarded

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
        if self.settings.selection.limit and not self._asked_to_stop and not all(lane.thread.is_alive() for lane in self._book.lanes):
            _log.info("--limit is reached")
            self.drain()
        if self._asked_to_stop:
            self._end(now)
            return
        if self.place is not None and self._due("news", now, 0.2):
            self._going_on(self._news)
        self._break(now)
        self._hear(now)
        self._going_on(self._mend, now)
        if self._due("second", now, 1.0):
            self._going_on(self._expire, time.time())
            self._book.retire()
            if self.settings.max_rate:
                self._book.rate(now)
            self.targets.tell_failures()
            self.targets.let_go(way.name for way in self._book.ways())
            self._drops()
            self._going_on(self._lower, now)
        if self.settings.targets and not self.settings.dry_run:
            self._going_on(self._resolve, now)

    def _going_on(self, what: Callable[..., None], *given: float) -> None:
        """What cannot be changed stays as it was, and is said: a tap that runs does not end over it."""
        try:
            what(*given)
        except ReplayError as error:
            if self._due("trouble", time.monotonic(), 60.0):
                _log.error("%s; the tap goes on as before", error)

    def _drops(self) -> None:
        drops = self._book.kernel_drops()
        if drops > self._last_drops and self._due("drops", time.monotonic(), 60.0):
            _log.warning("the kernel dropped %d packets: the ring was full; raise --ring, or narrow the filter", drops - self._last_drops)
            self._last_drops = drops

    def _news(self) -> None:
        """Interfaces, addresses and routes that came or went."""
        place = self.place
        assert place is not None
        news = place.netlink.changed()
        if news:
            place.look()
        unhooked = news and any(lane.tapped.unhooked for lane in self._book.lanes)  # also when it is back already, as if nothing had been
        if unhooked:
            place.checked = set()
        changed = unhooked or place.found != self._at
        if changed:
            self._at = place.found
            if self.state in ("capturing", "away"):
                self.state = "capturing" if place.up else "away"
            if not place.checked:
                self._attach()  # before a socket is bound to what is not checked
            self._rebind()
        now = time.monotonic()
        if changed:
            self._later = [now + seconds for seconds in _LATER_S]
        asked = self.state == "capturing" and bool(self._refused or place.up - place.checked or (self._later and now >= self._later[0]))
        admit = asked and now >= self._next.get("admit", 0.0)
        try:
            if admit:
                self._admit()
        finally:
            if changed or admit:
                self._tell_names()
                self._attach()

    def _rebind(self) -> None:
        """A single interface that came back is listened to again. Raises TapError."""
        assert self.place is not None
        try:
            for lane in self._book.lanes:
                self.place.rebind(lane.tapped)
        except TapError:
            self._deaf = True
            raise
        self._deaf = False

    def _tell_names(self) -> None:
        """Which interfaces came and went."""
        assert self.place is not None
        now, names = {one.name for one in self.place.interfaces}, self._names
        self._names = now
        some = [(word, sorted(them)) for word, them in (("came:", now - names), ("went:", names - now)) if them]
        if some:
            told = [f"{word} {', '.join(them[:8])}{' …' if len(them) > 8 else ''}" for word, them in some]
            _log.info("interfaces %s; %d tapped", "; ".join(told), len(now))

    def _admit(self) -> None:
        """The targets are checked again, before anything is captured from an interface that came, or came up: the last check could not look there. And
        some seconds later once more, for an interface is up before its addresses, routes and neighbours are there.

        Raises TapError, and then nothing is captured there until it works."""
        place, began = self.place, time.monotonic()
        assert place is not None
        self._next["admit"] = began + _AGAIN_S
        self._later = [at for at in self._later if at > began]
        try:
            self.targets.refuse_production()
            place.checked = self.targets.check()
        except GuardError as error:
            self._refuse(str(error))
            return
        self._allow()
        now = time.monotonic()
        self._next["admit"] = now + 2 * (now - began)  # where interfaces come all the time there is more to do than this

    def _refuse(self, why: str) -> None:
        """Nothing is captured or sent, until a check is passed: routes and addresses may be on their way, so that this alone does not end a tap."""
        assert self.place is not None
        self.place.checked = set()
        if why != self._refused:
            _log.error("%s; nothing is captured or sent until a check is passed, which is made again each %.0f s", why, _AGAIN_S)
        self._refused = why
        for way in self._book.ways():
            way.sender.set_gate(0)

    def _allow(self) -> None:
        """A check was passed."""
        if not self._refused:
            return
        self._refused = ""
        _log.info("the targets stand the check: captured and sent again")
        for url, breaker in self.breakers.items():
            for way in self._senders(url):
                way.sender.set_gate(breaker.passes)

    def _senders(self, url: str) -> list[Way]:
        return [way for lane in self._book.lanes for way in lane.ways if way.target is not None and way.target.url == url]

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
                    way.sender.set_gate(0 if self._refused else breaker.passes)

    def _expire(self, wall: float) -> None:
        at = self.settings.expires_at
        if at is not None and wall >= at and self.state in ("capturing", "away"):
            self.state = "expired"
            _log.warning("--expires has passed: idle, nothing is captured or sent; end it, or give a later date and reload")
            self._attach()
        elif self.state == "expired" and (at is None or wall < at):
            self.state = "capturing" if self.place and self.place.up else "away"
            self._attach()

    def _hear(self, now: float) -> None:
        """--replies auto: they are captured while something needs them."""
        shop = self.shop
        if self.state == "capturing":
            shop.hearing.look(now, sum(lane.ingest.asking for lane in self._book.lanes))
        else:
            shop.hearing.rest()

    def _mend(self, now: float) -> None:
        """Does what is to be done, or could not be done when it was: not with each tick, for waiting for a lane holds everything else up."""
        stale = bool(self._behind) or self.shop.hears != self._hears
        if (stale or not self._filtered) and self._due("mend", now, _ADOPT_S):
            if stale:
                self._adopt(new_ways=False)
            else:
                self._attach()
            if self._filtered and not self._behind and self._hears is not None:
                del self._next["mend"]

    def _lower(self, now: float) -> None:
        """--max-cpu: over it the share is lowered, a step a second; below it, it comes back."""
        cpu, before = time.process_time(), self._cpu
        self._cpu = (cpu, now)
        most = self.settings.max_cpu
        if most <= 0 and self.shop.share < 1.0:  # a reload took the bound away
            self.shop.share = 1.0
            _log.info("--max-cpu is not asked for any more; all of the asked share is taken again")
            self._adopt(new_ways=False)
        if most <= 0 or now - before[1] <= 0:
            return
        used = (cpu - before[0]) / (now - before[1])
        share = self.shop.share
        if used > most:
            share = max(share * max(most / used, 0.5), 0.001)
        elif used < most * 0.8 and share < 1.0:
            share = min(share * 1.25, 1.0)
        if share != self.shop.share:
            self.shop.share = share
            _log.warning("--max-cpu: %.0f %% of a core was used; %.1f %% of the asked share is taken", used * 100, share * 100)
            self._adopt(new_ways=False)

    # -- what changes --------------------------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> None:
        changed = self.targets.look(now, any(breaker.state == "open" for breaker in self.breakers.values()))
        if changed and self.targets.move(changed):
            self._adopt(new_ways=True)
            if self._refused:
                self._refuse(self._refused)  # those senders too

    def _adopt(self, *, new_ways: bool) -> None:
        """Rules, and if need be senders, by the settings of now; no packet is lost over it. What does not work is left to `_mend`.

        Raises TapError, UsageError, ReplayError."""
        shop = self.shop
        hears, before = shop.hears, self._hears
        until = time.monotonic() + (_ADOPT_S if new_ways or before is not None else 0.2)
        if new_ways:
            shop.guard = self.targets.new_guard()
            self._behind = list(self._book.lanes)
        if new_ways or (hears and not self._heard):
            self._attach()  # before a request may wait for a reply, and before we connect to somebody else
        self._hears = None
        late, ready = False, []
        for lane in self._book.lanes:
            if lane.ingest.changing:  # what it was given last time
                late = True
                continue
            fresh = any(lane is one for one in self._behind)
            ways = shop.ways() if fresh else lane.ways
            ready.append((lane, fresh, ways, shop.ingest(_fastpath.PacketSource(), ways)))
        for lane, fresh, ways, rules in ready:
            if fresh:
                for way in ways:
                    way.thread.start()
            if not lane.ingest.adopt(rules, max(until - time.monotonic(), 0.2)):
                late = True
            if fresh:
                self._book.replace(lane, ways)
                self._behind = [one for one in self._behind if one is not lane]
        if late and self._due("late", time.monotonic(), 60.0):
            _log.error("a capture thread does not take new rules yet; it goes on by those of before until it does")
        if new_ways:
            for breaker in self.breakers.values():
                breaker.renewed()
        self._hears = None if late else hears
        self._attach()
        if late or hears == self._told:
            return
        self._told = hears
        if shop.settings.replies != "auto":
            _log.info("replies are %s", "captured again" if hears else "not captured any more")
        elif hears:
            _log.info("replies are captured again: some requests cannot be told without")
        else:
            _log.info("replies are not captured any more: nothing has needed them for a while")

    def reload(self, settings: TapSettings) -> list[str]:
        """Goes on by other settings. Returns names of those that need a restart, which are left as they are.

        Raises UsageError, TargetError, GuardError, TapError; then the old settings stay."""
        shop, place, targets = self.shop, self.place, self.targets
        assert place is not None
        if self._asked_to_stop:
            raise UsageError("the tap is ending; what it goes on by does not change any more")
        fixed = [name for name in _FIXED_FIELDS if getattr(settings, name) != getattr(self.settings, name)]
        settings = replace(settings, **{name: getattr(self.settings, name) for name in fixed})
        before, addresses, routes, guard, checked = self.settings, targets.addresses, shop.routes, shop.guard, place.checked
        policy = settings.selection.routing != before.selection.routing
        if policy and (settings.selection.routing is None or before.selection.routing is None):
            raise UsageError("--policy: from a policy to a percentage, and back, it takes a restart; the old one goes on")
        if policy and any(lane.ingest.retiring >= _RETIRING_MOST for lane in self._book.lanes):
            raise UsageError(f"--policy: requests that {_RETIRING_MOST} former policies chose are not whole yet; the old one goes on, try it again later")
        spoken, speaks = targets.spoken, targets.speaks(settings)
        new_ways = policy or _differ(settings, before, _SENDER_FIELDS) or speaks is not spoken
        # Those that stood a check already need no other one, where there was any.
        known = {address for one in addresses.values() for address in one}
        again = bool(place.up - place.checked) or _differ(settings, before, _CHECK_FIELDS) or _differ(settings.selection, before.selection, _CHECK_SELECTION)
        touched = False
        self._use(settings)
        try:
            shop.ingest(_fastpath.PacketSource(), [])  # the rules can be meant
            if policy:
                shop.routes = routes_of(settings.selection)
            if new_ways:
                targets.addresses = {target.url: addresses.get(target.url) or resolve(target) for target in settings.targets}
                targets.prepare_relays(speaks)
            place.look()
            if new_ways or again:
                targets.refuse_production()
                seen = targets.check(None if again else {one for one in targets.every() if one not in known})
                place.checked = seen if again else place.checked & seen
            for lane, program in zip(self._book.lanes, self._programs(), strict=True):  # before a lane has the new rules
                _take(program, lane.tapped.would_take)
            touched = True
            targets.speak(speaks)
            self._adopt(new_ways=new_ways)
        except ReplayError:
            targets.addresses, shop.routes, shop.guard, place.checked = addresses, routes, guard, checked
            targets.speak(spoken)
            self._use(before)
            with contextlib.suppress(ReplayError):
                place.look()
            if touched:  # a lane may have the new rules, or senders, already
                self._hears = None
                with contextlib.suppress(ReplayError):  # else `_mend` goes on with it
                    self._adopt(new_ways=new_ways)
            raise
        if place.checked:
            self._allow()
        if settings.max_rate != before.max_rate and not new_ways:
            for lane in self._book.lanes:
                for way in lane.ways:
                    way.sender.set_rate(settings.max_rate / settings.workers)
        self.breakers = shop.breakers = {url: one for url, one in self.breakers.items() if url in targets.addresses}
        self._reloads += 1
        if settings.selection.ports != before.selection.ports:
            _warn_of_ports(settings)
        self._going_on(self._expire, time.time())
        return fixed

    def _use(self, settings: TapSettings) -> None:
        """These are the settings of now, for everybody."""
        self.settings = self.shop.settings = self.targets.settings = settings
        assert self.place is not None
        self.place.settings = settings
        self.shop.hearing.settle_s = settings.settle_ns / 1e9

    # -- the end -------------------------------------------------------------------------------------------------------------

    def _end(self, now: float) -> None:
        """One step of draining: reading ends first, then each queue, then the senders; all of it bounded."""
        lanes = self._book.lanes
        if self._stopping_since is None:
            self._stopping_since = now
            self.state = "draining"
            for lane in lanes:
                with contextlib.suppress(OSError):
                    lane.tapped.attach(REJECT_ALL)
                    lane.tapped.statistics()
        if now - self._stopping_since < 2e-3 * self.settings.block_ms and not self._stop.is_set():
            return  # the block that is being filled is handed over first
        self._stop_reading.set()
        if any(lane.thread.is_alive() for lane in lanes):
            if now - self._stopping_since > 5.0:
                self._stop.set()
            return
        if not self._queues_ended:
            self._queues_ended = True
            for lane in lanes:
                lane.let_go()
                for way in lane.ways:
                    way.queue.end()
        if any(way.thread.is_alive() for way in self._book.ways()):
            if now - self._stopping_since > self.settings.drain_ns / 1e9 + 0.5:
                self._stop.set()
            return
        for way in self._book.ways():
            way.sweep()
        if self.recording is not None:
            self.recording.end()
        self.notes.end()
        self.state = "ended"
        self.ended_at = time.time()

    def close(self) -> None:
        """Sockets are closed; call it when it has ended, or was never started."""
        for lane in self._book.lanes:
            lane.tapped.close()
        if self.recording is not None:
            self.recording.close()
        if self._targets is not None:
            self._targets.close()
        if self.place is not None:
            self.place.close()

    # -- told ----------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Counts:
        """Counters of now, plain values: `ingest`, `targets` and `senders` (in one order, those of before a reload too), `tap`, `state`. Any thread may ask."""
        with self._book.lock:
            return self._snapshot()

    def _snapshot(self) -> Counts:
        s, shop, book = self.settings, self._shop, self._book
        names = book.names()
        known = {target.url: target for target in s.targets}
        ingest = book.ingested()
        if ingest is not None and shop is not None and shop.routes is not None:
            ingest |= {"routed": shop.routes.counters()}
        effective = shop.effective if shop is not None else s.selection.share
        if s.max_rate:
            effective = int(effective * book.passed)
        place = self.place
        interfaces = place.interfaces if place is not None else []
        heard = place.checked if place is not None and self._lets_in and not self._refused and not self._deaf else set()
        return {
            "state": self.state,
            "elapsed_s": time.monotonic() - self._began if self._began else 0.0,
            "ingest": ingest,
            "targets": [known.get(name) or (Target(name, "", 0) if name else None) for name in names],
            "senders": book.senders(),
            "tap": {
                **book.captured(),
                "interfaces": {one.name: {"up": one.number in heard} for one in interfaces},
                "away": place.away if place is not None else [],
                "share_ppm": s.selection.share,
                "effective_ppm": 0 if self.state == "expired" else effective,
                "kernel_ppm": shop.in_kernel if shop is not None else s.selection.share,
                "replies": int(self._heard),
                "expired": int(self.state == "expired"),
                "breakers": [self.breakers[name].state if name in self.breakers else "closed" for name in names],
                "breaker_changes": [dict(self.breakers[name].changes) if name in self.breakers else {} for name in names],
                "queued_bytes": shop.pool.held if shop is not None and shop.pool is not None else 0,
                "recorded": self.recording.counters() if self.recording is not None else None,
                "noted": self.notes.counters(),
                "reloads": self._reloads,
            },
        }

    def histograms(self) -> list[dict[str, bytes]]:
        """Of each target of `snapshot` `lag_us` (sent minus captured), `latency_us`, `service_us`, `production_us`, as `histogram.Histogram` reads them."""
        return self._book.histograms()

    def result(self) -> Counts:
        """Everything that was counted, as `report.build` takes it; it has ended. Raises what a thread raised."""
        if self._failures:
            raise self._failures[0]
        for way in self._book.ways():
            way.sweep()
        found = self.snapshot()
        return found | {
            "addresses": [self.targets.addresses.get(target.url, []) if target is not None else [] for target in found["targets"]],
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
