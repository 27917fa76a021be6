"""The pipe, put together: captures -> ingest -> queues -> senders, each a thread without the GIL, and what they counted.

Here is what a run is (threads, passes, guards, the order of stopping); what is asked for stands in `settings`, what is told in `report`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay import _fastpath, process
from replay.capture import records, source
from replay.errors import CaptureError, ReplayError, TargetError, UsageError
from replay.histogram import Histogram
from replay.settings import Selection, Settings, Target

if TYPE_CHECKING:  # it loads OpenSSL, which most runs do not need
    from replay.relay import Relay

__all__ = ["Counts", "Health", "Listing", "Plan", "Replay", "masked_target", "plan", "resolve", "routes_of"]

#: A target with what looks like a credential masked, as lines of --results have it.
masked_target = _fastpath.masked_target

#: How much of the captures is read before the first request is sent: for the plan, and for the guard.
PLAN_BYTES = 64 << 20

#: Batches (of 128 requests at most) that reading may be ahead of a sender: enough for any pace, and little memory. More where requests have due times, so
#: that reading, which stands back for the sender then, may be held up for a while; and where so many may be under way that fewer do not fill the connections.
_QUEUE_BATCHES = 16
_QUEUE_BATCHES_MOST = 64

#: Requests under way for which reading is one batch ahead.
_UNDER_WAY_A_BATCH = 32

#: Requests that ended and were not judged or logged yet, over all targets; beyond that they are counted as lost.
_OUTCOMES = 1 << 17

#: Targets that the judge tells apart.
_TARGETS_MOST = 1024

#: Bytes of a head that a line of the access log needs.
_LOGGED_HEAD = 8192

#: Bytes of a usual batch, and some.
_BATCH_MOST = 1 << 20

#: Batches that a listing may be ahead of its reader.
_LISTING_BATCHES = 64

Counts = dict[str, Any]
Address = tuple[bytes, int]


def _thread(name: str, body: Callable[[], None], failures: list[BaseException]) -> threading.Thread:
    """A thread whose exception is kept for the one who waits for it."""

    def run() -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    return threading.Thread(target=run, name=name, daemon=True)


def _added(a: Any, b: Any) -> Any:
    """Counters of two passes as one: numbers and dicts of numbers are added up."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {key: _added(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in a | b}
    if isinstance(a, bool) or isinstance(b, bool):
        return a or b
    return a + b


def _rules(selection: Selection) -> dict[str, Any]:
    """The keyword arguments of an Ingest, the packet filter among them. Raises UsageError."""
    rules = selection.for_ingest()
    if selection.bpf is not None:
        from replay.capture.bpf import compile_filter

        rules["packet_filter"] = compile_filter(selection.bpf)
    if selection.routing is not None:
        rules["routes"] = routes_of(selection)
    stop = _fastpath.Stop()
    try:  # the engine knows which headers may be set; it says so here, before anything runs
        _fastpath.Ingest(_fastpath.Capture([], stop=stop), [], _fastpath.Pool(), stop, **rules)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return rules


def routes_of(selection: Selection) -> _fastpath.Routes:
    """The compiled policy, with counters of its own. Raises UsageError."""
    routing = selection.routing
    assert routing is not None
    try:
        return _fastpath.Routes(routing.blocks, routing.routes, routing.mirrors, len(routing.targets), seed=selection.seed)
    except ValueError as error:
        raise UsageError(f"{routing.source}: {error}") from None


_FIRST = ("first_ns", "first_packet_ns")
_LAST = ("last_ns", "last_packet_ns", "end_offset_ns", "finished", "ended", "memory")


def _passes(all_counts: list[Counts]) -> Counts:
    """Counters of all passes over the captures."""
    total = dict(all_counts[0])
    for one in all_counts[1:]:
        for key, value in one.items():
            if key in _FIRST:
                total[key] = value if total[key] is None else total[key]
            elif key in _LAST:
                total[key] = total[key] if value is None else value
            elif key == "gap_largest":
                total[key] = max(total[key], value)
            elif key == "digest":
                pass  # the passes choose the same; the digest is that of one
            else:
                total[key] = _added(total[key], value)
    return total


def resolve(target: Target) -> list[Address]:
    """The addresses of a target, IPv4 mapped into IPv6; none of a Unix socket. Raises TargetError."""
    if target.scheme == "unix":
        return []
    import socket  # not for a dry run

    try:
        # as bytes: else the codec for names of other alphabets is loaded
        found = socket.getaddrinfo(target.host.encode() if target.host.isascii() else target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TargetError(f"{target.url}: the name {target.host!r} cannot be resolved: {why}; check the name in --to") from None
    addresses: dict[Address, None] = {}
    for family, _, _, _, where in found:
        if family == socket.AF_INET:
            addresses[bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(where[0]).packed, target.port] = None
        elif family == socket.AF_INET6:
            addresses[ipaddress.IPv6Address(str(where[0]).partition("%")[0]).packed, target.port] = None
    return list(addresses)


_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


def guarded(addresses: list[Address]) -> list[Address]:
    """The addresses that nothing may be sent to when they are captured servers: of this machine all, when one of them is meant.

    A server that listens on the wildcard address is reached by each address of its machine, and so is a target that names it."""
    own = local_addresses()
    found = dict.fromkeys(addresses)
    for packed, port in addresses:
        address = ipaddress.IPv6Address(packed)
        plain = address.ipv4_mapped or address
        if plain.is_unspecified or packed in own or (isinstance(plain, ipaddress.IPv4Address) and plain in _LOOPBACK):
            found |= dict.fromkeys((one, port) for one in own)
    return list(found)


def local_addresses() -> set[bytes]:
    """This machine's addresses (of this network namespace) as 16 bytes, as the kernel lists them; loopback and wildcard always."""
    mapped = bytes(10) + b"\xff\xff"
    found = {mapped + bytes((127, 0, 0, 1)), mapped + bytes(4), ipaddress.IPv6Address("::1").packed, bytes(16)}
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            found |= {bytes.fromhex(line.split()[0]) for line in file}
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/net/fib_trie", encoding="ascii") as file:
            before = ""
            for line in file:  # a leaf "|-- 10.0.0.2", and below it "/32 host LOCAL"
                if "/32 host LOCAL" in line and "|--" in before:
                    found.add(mapped + ipaddress.IPv4Address(before.split()[-1]).packed)
                before = line if "|--" in line else before
    return found


# ---- before the run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before the first byte is sent.

    counts: of what was read.  whole: all captures were read; else the numbers are those of their beginning.
    share_read: how much of the captures that was, 0 to 1; None with a pipe (nothing was read).  guard: a server of the captures is a target.
    """

    counts: Counts | None
    whole: bool
    share_read: float | None
    guard: bool

    @property
    def span_ns(self) -> int | None:
        """From the first to the last request, silences cut; an estimate unless `whole`."""
        if self.counts is None:
            return None
        span: int = self.counts["end_offset_ns"]
        if self.whole or not self.share_read:
            return span
        return int(span / self.share_read)


def plan(paths: list[str], selection: Selection, addresses: list[Address], stop: _fastpath.Stop, most_bytes: int = PLAN_BYTES) -> Plan:
    """Reads the beginning of the captures, as they will be read, without keeping a request. With a pipe or standard input among them nothing is read."""
    packets, others = records.split(paths)
    capture = _fastpath.Capture(packets, stop=stop, most_bytes=most_bytes)
    if not paths or "-" in paths or capture.progress()["bytes_total"] is None:
        return Plan(None, False, None, False)
    guard = _fastpath.Guard(addresses)
    rules = _rules(selection)
    some = records.Beginning(others, most_bytes) if others else None
    ingest = _fastpath.Ingest(capture, [], _fastpath.Pool(), stop, guard=guard, limit=selection.limit or 0, records=some, **rules)
    failures: list[BaseException] = []
    thread = _thread("plan", ingest.run, failures)
    thread.start()
    _join([thread], failures)
    progress, counts = capture.progress(), ingest.counters()
    if "routes" in rules:
        counts["routed"] = rules["routes"].counters()
    whole = (progress["complete"] or not packets) and (some is None or some.whole) or counts["finished"]
    read, total = progress["bytes_read"], progress["bytes_total"]
    if some is not None:
        read, total = read + some.bytes_read, total + some.bytes_total
    return Plan(counts, whole, min(1.0, read / max(total, 1)), guard.tripped)


def _join(threads: list[threading.Thread], failures: list[BaseException]) -> None:
    """Waits, letting signals through; raises what a thread raised."""
    for thread in threads:
        while thread.is_alive():
            thread.join(0.05)
    if failures:
        raise failures[0]


# ---- show --------------------------------------------------------------------------------------------------------------


class Listing:
    """The requests of captures, as rows. Iterate once; then `counts` and `faults` are final. `close` ends it early.

    as_sent: rows hold what would be sent, whole; without it captured heads."""

    def __init__(
        self, captures: tuple[str, ...], selection: Selection, *, incomplete: bool = False, digests: bool = True, as_sent: bool = False
    ) -> None:  # fmt: skip
        self.stop = _fastpath.Stop()
        self.paths, self.errors = source.expand(captures)
        self._budget = selection.batch_budget
        packets, others = records.split(self.paths)
        self._records = records.Records(others) if others else None
        self._capture = _fastpath.Capture(packets, stop=self.stop)
        self._pool = _fastpath.Pool(selection.batch_budget)
        self._queue = _fastpath.Queue(self._pool, _LISTING_BATCHES)
        self._ingest = _fastpath.Ingest(
            self._capture, [self._queue], self._pool, self.stop, show=not as_sent, incomplete=incomplete, digests=digests,
            limit=selection.limit or 0, records=self._records, **_rules(selection),
        )  # fmt: skip
        self._failures: list[BaseException] = []
        self._thread = _thread("ingest", self._ingest.run, self._failures)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows as `_fastpath.Requests` gives them, `head` included."""
        for batch in self.batches():
            for at in range(len(batch)):
                yield batch[at]

    def batches(self) -> Iterator[_fastpath.Requests]:
        """The same as batches. Raises ReplayError when so many are kept that there is no memory for the next one."""
        self._thread.start()
        waited = 0
        while not self._queue.done:
            batch = self._queue.get(0.05)
            if batch is not None:
                waited = 0
                yield batch
            elif self._pool.held >= self._budget - _BATCH_MOST:
                waited += 1
                if waited > 20:
                    self.stop.set()
                    raise ReplayError("so many batches are kept that max_memory is spent: let go of them or copy what is needed, or raise max_memory")
        _join([self._thread], self._failures)

    def close(self) -> None:
        """Ends reading. What was counted stays."""
        self.stop.set()
        if self._thread.ident is not None:
            while self._thread.is_alive() or not self._queue.done:
                self._queue.get(0.01)

    @property
    def counts(self) -> Counts:
        return self._ingest.counters()

    @property
    def faults(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._capture.faults
        return found + ([fault.as_dict() for fault in self._records.faults] if self._records is not None else [])


@dataclass(frozen=True, slots=True)
class Health:
    """alive: the threads run that should.  ready: requests are captured, or read.  why: what is wrong, else ""."""

    alive: bool
    ready: bool
    why: str = ""


# ---- run ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Way:
    """One target's part of a run."""

    target: Target | None
    addresses: list[Address]
    queue: _fastpath.Queue
    sender: _fastpath.Sender
    outcomes: _fastpath.Outcomes | None
    onward: _fastpath.Outcomes | None = None
    relay: Relay | None = None
    thread: threading.Thread | None = None
    late: bool = False  # requests waited for a connection when the run ended


@dataclass(slots=True)
class Replay:
    """One run. `prepare`, `start`, then `running` and `snapshot` until it is over, then `result`.

    stop() may be called at any time, from a signal handler too.
    log: `outcomes` gives each request that ended.  results: `lines` gives a line of JSON for each.  judged: endpoints and a time line are counted.
    """

    settings: Settings
    log: bool = False
    results: bool = False
    judged: bool = True
    errors: list[CaptureError] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    plan: Plan | None = None
    stopped: bool = False
    refused: bool = False
    _stop: _fastpath.Stop = field(default_factory=_fastpath.Stop)
    _stop_reading: _fastpath.Stop = field(default_factory=_fastpath.Stop)
    _guard: Any = None
    _pool: Any = None
    _ways: list[_Way] = field(default_factory=list)
    _addresses: list[list[Address]] = field(default_factory=list)
    _rules: dict[str, Any] = field(default_factory=dict)
    # (counters of the passes that ended, the capture and the ingest of now, passes begun): replaced as a whole, so that any thread may read it.
    _now: tuple[Counts | None, Any, Any, int] = (None, None, None, 0)
    _faults: dict[tuple[str, str, Any], dict[str, Any]] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)
    _failures: list[BaseException] = field(default_factory=list)
    _began: float = 0.0
    _start: _fastpath.Start = field(default_factory=_fastpath.Start)
    _judge: Any = None
    _judge_thread: threading.Thread | None = None
    _lines: Any = None
    _finishing: bool = False
    # Of each sender, when the run was ended early: requests taken up, and how far into the captures the last one was.
    _begun: list[tuple[int, int]] | None = None
    _swept: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0

    # -- before --

    def prepare(self) -> Plan:
        """Names, addresses, the beginning of the captures. Nothing is sent. Raises UsageError, TargetError."""
        s = self.settings
        self.started_at = time.time()
        self.paths, self.errors = source.expand(s.captures)
        if s.loop != 1 and (once := source.read_once(self.paths)) is not None:
            raise UsageError(f"--loop needs captures that can be read again; {once} cannot, write it to a file first")
        if len(s.targets) > _TARGETS_MOST:
            raise UsageError(f"{len(s.targets):,} targets: at most {_TARGETS_MOST:,} in one run")
        self._addresses = [resolve(target) for target in s.targets]
        every = [address for one in self._addresses for address in one]
        if not s.allow_production:
            self._guard = _fastpath.Guard(guarded(every))
        self._rules = _rules(s.selection)
        if any(target.scheme == "https" for target in s.targets):
            from replay.relay import context

            context(s.tls)  # a wrong file is said before anything runs
        if s.dry_run:  # reads everything at once itself
            self.plan = Plan(None, False, None, False)
        else:
            self.plan = plan(self.paths, s.selection, [] if s.allow_production else guarded(every), self._stop)
        self.refused = self.plan.guard
        return self.plan

    def start(self) -> None:
        """Starts the threads."""
        s = self.settings
        self._pool = _fastpath.Pool(s.selection.batch_budget)
        process.descriptors(s.connections * len(s.targets) + 128)
        if not self.refused:
            targets: list[tuple[Target | None, list[Address]]] = list(zip(s.targets, self._addresses, strict=True))
            dry: list[tuple[Target | None, list[Address]]] = [(None, [])] * (len(s.targets) if s.selection.routing is not None else 1)
            try:
                for target, addresses in dry if s.dry_run else targets:
                    self._ways.append(self._way(target, addresses))
            except BaseException:
                self._stop_relays()
                raise
        sources = [way.outcomes for way in self._ways if way.outcomes is not None]
        if sources:
            self._lines = _fastpath.Lines() if self.results else None
            onward = [way.onward for way in self._ways if way.onward is not None]
            names = [way.target.url for way in self._ways if way.target is not None]
            self._judge = _fastpath.Judge(sources, forward=onward, lines=self._lines, names=names)
            self._judge_thread = _thread("judge", self._judging, self._failures)
            self._judge_thread.start()
        self._began = time.monotonic() + self._ahead_s()
        self._threads = [_thread("ingest", self._read, self._failures)]
        for way in self._ways:
            way.thread = _thread(f"sender {way.target.url if way.target else ''}", self._sending(way.sender), self._failures)
            self._threads.append(way.thread)
        for thread in self._threads:
            thread.start()

    def _way(self, target: Target | None, addresses: list[Address]) -> _Way:
        s = self.settings
        batches = min(max(_QUEUE_BATCHES, s.connections * s.pipeline // _UNDER_WAY_A_BATCH), _QUEUE_BATCHES_MOST) if not s.dry_run else _QUEUE_BATCHES
        queue = _fastpath.Queue(self._pool, _QUEUE_BATCHES_MOST if self._paced else batches, yields=not self._paced and not s.dry_run, prompt=self._paced)
        waiting = max(_OUTCOMES // max(len(s.targets), 1), 4096)
        wanted = self.log or self.results or (self.judged and not s.dry_run)
        outcomes = _fastpath.Outcomes(waiting, head=_LOGGED_HEAD if self.log else 0, wait=s.dry_run, records=self.log or self.results) if wanted else None
        rate = s.pace.value if s.pace.kind == "rate" else 0.0
        speed = s.pace.value if s.pace.kind == "original" else 1.0
        relay = None
        if target is not None and target.scheme != "http":
            from replay.relay import Relay

            relay = Relay(target, s.tls, addresses, max(s.connect_timeout_ns / 1e9, 0.05))
            relay.start(lambda: not self.stopped)
        try:
            sender = _fastpath.Sender(
                queue, [relay.address] if relay else addresses, stop=self._stop, speed=speed, rate=rate, asap=s.pace.kind == "max" or s.dry_run,
                connections=s.connections, pipeline=s.pipeline, connect_timeout_ns=s.connect_timeout_ns, timeout_ns=s.timeout_ns,
                drain_ns=s.drain_ns, dry_run=s.dry_run, guard=self._guard, outcomes=outcomes, driver=s.driver,
                start_at_ns=s.start_at_ns or 0, start=self._start,
            )  # fmt: skip
        except OSError as error:
            if error.filename == "io_uring":
                raise UsageError(
                    f"--driver io_uring: {error.strerror}: this kernel lacks it, or does not allow it (it needs 6.1, and kernel.io_uring_disabled = 0); "
                    "use --driver epoll"
                ) from None
            raise ReplayError(f"cannot make a sender: {error.strerror}; raise the limit on open files (ulimit -n), or lower --connections") from None
        return _Way(target, addresses, queue, sender, outcomes, _fastpath.Outcomes(waiting) if self.log else None, relay)

    def _stop_relays(self) -> None:
        for way in self._ways:
            if way.relay is not None:
                way.relay.stop()

    @property
    def _paced(self) -> bool:
        """Whether requests have due times."""
        return self.settings.pace.kind != "max" and not self.settings.dry_run

    def _ahead_s(self) -> float:
        """Seconds until `--start-at`; 0 without one, and in a dry run."""
        s = self.settings
        return 0.0 if s.start_at_ns is None or s.dry_run else max(0.0, s.start_at_ns / 1e9 - time.time())

    def _sending(self, sender: _fastpath.Sender) -> Callable[[], None]:
        """The body of a sender's thread: it begins at `--start-at`, or now. Reading goes on meanwhile, as far as there is room."""

        def body() -> None:
            while not self.stopped and not self._finishing and (left := self._ahead_s()) > 0:
                time.sleep(min(left, 0.05))
            sender.run()

        return body

    def _judging(self) -> None:
        """The judge's thread."""
        if self._paced:
            process.stand_back()
        self._judge.run()

    def _read(self) -> None:
        """The ingest thread: one pass after the other."""
        s = self.settings
        offset, selected, left = 0, 0, s.selection.limit
        # A few captures that are gone through many times are read once: requests that have room in half of what may wait are handed out again from there.
        keeps = s.loop > 1 and left is None and s.selection.routing is None
        kept = _fastpath.Kept(self._pool, s.selection.batch_budget // 2) if keeps else None
        queues = [way.queue for way in self._ways]
        if self._paced:  # a batch takes 0.1 ms to read, by which requests would be late where both share a core
            process.stand_back()
        try:
            for turn in range(s.loop):
                packets, others = records.split(self.paths)
                capture = _fastpath.Capture(packets, stop=self._stop_reading)
                requests = records.Records(others) if others else None
                ingest = _fastpath.Ingest(
                    capture, queues, self._pool, self._stop_reading, limit=left or 0, guard=self._guard,
                    offset_ns=offset, selected_before=selected, loop=turn, last=False, record=self.results, records=requests, kept=kept, **self._rules,
                )  # fmt: skip
                before = self._now[0]
                self._now = (before, capture, ingest, turn + 1)
                ingest.run()
                counts = ingest.counters()
                for fault in capture.faults + ([one.as_dict() for one in requests.faults] if requests is not None else []):
                    self._faults.setdefault((fault["path"], fault["code"], fault["offset"]), fault)
                self._now = (counts if before is None else _passes([before, counts]), capture, None, turn + 1)
                selected += counts["selected"]
                if left is not None:
                    left -= counts["selected"]
                if left == 0 or self._stop_reading.is_set() or not counts["found"]:
                    break
                # The next pass begins as long after this one's last request as requests were apart on average.
                span = counts["end_offset_ns"] - offset
                offset = counts["end_offset_ns"] + span // max(counts["found"] - 1, 1)
                if kept is not None and kept.whole and not counts["unqueued"]:
                    del ingest, requests  # their memory
                    self._repeat(_fastpath.Repeat(kept, queues, self._stop_reading, counts, s.loop - 1, offset), capture)
                    break
                kept = None
        finally:
            for queue in queues:
                queue.end()

    def _repeat(self, repeat: _fastpath.Repeat, capture: _fastpath.Capture) -> None:
        """All passes but the first, from memory."""
        self._now = (None, capture, repeat, 1)
        repeat.run()
        self._now = (repeat.counters(), capture, None, 1 + repeat.begun)

    # -- during --

    def stop(self) -> None:
        """Ends everything within some 0.1 s; the numbers still add up."""
        self._cut()
        self.stopped = True
        self._stop_reading.set()
        self._stop.set()

    @property
    def running(self) -> bool:
        """False when all threads have ended. Call it now and then: `--duration` ends here."""
        limit = self.settings.duration_ns
        if limit is not None and not self._finishing and time.monotonic() - self._began >= limit / 1e9:
            self.finish()
        if self._failures:
            self.stop()
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Until all is over, at most so long, and not beyond the end of `--duration`."""
        limit = self.settings.duration_ns
        if limit is not None and not self._finishing:
            seconds = min(seconds, max(0.001, limit / 1e9 - (time.monotonic() - self._began)))
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self.settings.loop > 1 and self._ways and all(way.sender.counters()["never_connected"] for way in self._ways):
            self._stop_reading.set()  # nothing is sent any more: further passes would be handed out to be dropped

    def outcomes(self, most: int = 4096) -> Iterator[tuple[Target | None, list[Address], dict[str, Any]]]:
        """Requests that ended since the last call, with `log` only."""
        for way in self._ways:
            if way.onward is not None:
                for one in way.onward.get(most):
                    yield way.target, way.addresses, one

    def lines(self) -> bytes | None:
        """A block of whole lines of JSON, with `results` only; None when there is none now."""
        block: bytes | None = self._lines.take() if self._lines is not None else None
        return block

    def finish(self) -> None:
        """Begins nothing more, as at the end of `--duration`: what is under way is drained, the rest is dropped as stopped."""
        if not self._finishing:
            self._cut()
            self._finishing = True
            self._stop_reading.set()
            for way in self._ways:
                way.late = bool(way.sender.counters()["waiting"])
                way.sender.finish()

    def _cut(self) -> None:
        """Keeps how far the senders were: what is left then is taken up to be dropped."""
        if self._begun is None and any(thread.is_alive() for thread in self._threads):
            self._begun = self._position()

    def _position(self) -> list[tuple[int, int]]:
        return [(counts["taken"], counts["position_ns"]) for counts in (way.sender.counters() for way in self._ways)]

    def settle(self) -> None:
        """When nothing runs any more: accounts for what a stop left over, and lets the judge read to the end. Then outcomes and lines are complete."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.05)
        if not self._swept:
            self._swept = True
            for way in self._ways:
                if not self._failures:
                    way.sender.sweep()
            self.ended_at = time.time()
            self._stop_relays()
            if self._judge is not None and self._judge_thread is not None:
                self._judge.end()
                self._judge_thread.join()

    def judgement(self) -> Counts | None:
        """What the judge counted so far: `endpoints`, `timeline`, `response` (a histogram), `judged`; None without one."""
        if self._judge is None:
            return None
        found: Counts = self._judge.counters() | {
            "endpoints": self._judge.endpoints(),
            "timeline": self._judge.timeline(),
            "response": self._judge.response(),
            "forward_lost": self._judge.forward_lost,
            "results": None if self._lines is None else {"lines": self._lines.lines - self._lines.lost, "lost": self._lines.lost},
        }
        return found

    def snapshot(self) -> Counts:
        """Counters of now: `ingest`, `senders` (one a target, as `targets`), `read` (bytes), `elapsed_s`. Any thread may ask."""
        ended, capture, running, begun = self._now
        ways = tuple(self._ways)
        passes = ([ended] if ended is not None else []) + ([running.counters()] if running is not None else [])
        read = capture.progress() if capture is not None else {"bytes_read": 0, "bytes_total": None}
        if isinstance(running, _fastpath.Repeat):
            begun += running.begun
            read["bytes_read"] = int((read["bytes_read"] or 0) * running.share)
        ingest = self._routed(_passes(passes)) if passes else None
        if ingest is not None and "routed" not in ingest:
            ingest["unqueued_each"] = [way.queue.full for way in ways]
        return {
            "ingest": ingest,
            "senders": [way.sender.counters() for way in ways],
            "targets": [way.target for way in ways],
            "read": read,
            "passes": begun,
            "elapsed_s": max(0.0, time.monotonic() - self._began),
        }

    def histograms(self) -> list[dict[str, bytes]]:
        """Of each target `lag_us`, `latency_us`, `service_us`, `production_us`, as `histogram.Histogram` reads them."""
        return [way.sender.histograms() for way in self._ways]

    def health(self) -> Health:
        """Whether the threads run. Any thread may ask, before the start and after the end too."""
        if self._failures:
            error = self._failures[0]
            return Health(False, False, f"a thread ended with {type(error).__name__}: {error}")
        if self.refused or self.stopped:
            return Health(True, False, "refused: the target is a server of the captures" if self.refused else "it was stopped")
        if not self._threads:
            return Health(True, False, "it has not begun yet")
        running = any(thread.is_alive() for thread in self._threads)
        return Health(True, running, "" if running else "it is over")

    def _routed(self, ingest: Counts) -> Counts:
        """With a policy: what its routes counted, over all passes."""
        routes = self._rules.get("routes")
        return ingest if routes is None else ingest | {"routed": routes.counters()}

    def lag_us(self) -> int | None:
        """p99 of sent minus due over all targets, so far; None when nothing was sent."""
        total = Histogram()
        for way in self._ways:
            total.add(Histogram(way.sender.histograms()["lag_us"]))
        return total.percentile(0.99)

    # -- after --

    def result(self) -> Counts:
        """Everything that was counted; all threads have ended. Raises what a thread raised."""
        self.settle()
        _join(self._threads, self._failures)
        found = self.snapshot()
        ingest = found["ingest"]
        if ingest is None:
            raise ReplayError("nothing was read, though no thread failed: please report this")
        return found | self._told() | {"begun": self._begun}

    def so_far(self) -> Counts:
        """As `result`, while it runs: the numbers need not add up yet."""
        found = self.snapshot()
        return found | self._told() | {"begun": self._begun or self._position()}

    def _told(self) -> Counts:
        return {
            "judged": self.judgement(),
            "addresses": [way.addresses for way in self._ways],
            "histograms": self.histograms(),
            "faults": list(self._faults.values()),
            "guard": self.refused or (self._guard is not None and bool(self._guard.tripped)),
            "never_connected": any(self._never(way) for way in self._ways),
            "interrupted": self.stopped,
        }

    def _never(self, way: _Way) -> bool:
        """Requests were to be sent, and no connection ever stood, whatever ended the run."""
        counts = way.sender.counters()
        tried = way.late or counts["connect_failed"] or counts["dropped"].get("target_down")
        return way.target is not None and bool(counts["never_connected"] or (tried and not counts["connections_opened"]))
