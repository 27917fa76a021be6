"""Connections and streams: segments in, ordered bytes and gaps out. docs/design.md R1 to R7, in the plainest Python; memory is not bounded here.

Must not know: HTTP. What it finds goes to a reader, one a connection:

    reader.begins(side, from_syn)                                 before the first of the next two
    reader.data(side, data, ts_ns, seq, ack or None, starts)     all of one segment; starts: begins where the segment began
    reader.gap(side, length, reason)                              "gap" or "cut_by_snaplen"
    reader.end(side, reason)                                      no more bytes of this flow: "closed" or "cut_at_end"
    reader.over()                                                 nor of the other

The two flows of a connection are read in the order in which they were sent: a segment that acknowledges bytes of the other side is read
after those bytes, or after the gap that they became.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FIN, SYN, RST, ACK = 1, 2, 4, 16
HOLD_NS, HOLD_SOON_NS, HOLD_PACKETS, HOLD_PACKETS_MOST = 50_000_000, 10_000_000, 64, 1024  # R4
WAIT_NS = 30_000_000_000
FLOW_WAITS = 4 << 20
QUIET_NS = 120_000_000_000  # R7
FITS_AHEAD, FITS_BEHIND, ASIDE = 64 << 20, 1 << 20, 64 << 10


def _hold_is_over(ns: int, packets: int) -> bool:
    """R4"""
    return ns >= HOLD_NS or (ns >= HOLD_SOON_NS and packets >= HOLD_PACKETS) or packets >= HOLD_PACKETS_MOST


class Segment(NamedTuple):
    """A TCP segment. src, dst: (address, port); payload as captured, `missing` bytes of it were cut off."""

    ts_ns: int
    src: tuple[bytes, int]
    dst: tuple[bytes, int]
    seq: int
    ack: int
    flags: int
    payload: bytes
    missing: int


@dataclass
class Piece:
    """Bytes that wait, of one segment."""

    at: int
    data: bytes
    missing: int  # cut off behind them
    ts_ns: int
    ack: int | None
    starts: bool

    @property
    def end(self) -> int:
        return self.at + len(self.data)


@dataclass
class Flow:
    started: bool = False
    from_syn: bool = False
    base: int = 0  # sequence number of position 0
    next: int = 0  # position expected next
    ended: bool = False
    spoke: bool = False  # bytes or a gap were read
    fin: int | None = None
    waiting: list[Piece] = field(default_factory=list)  # by position, without overlap
    acks: list[tuple[int, int, int]] = field(default_factory=list)  # (position, ts_ns, packets of the connection so far), rising
    other_syn: int | None = None  # R6: not proven yet
    aside: list[Segment] = field(default_factory=list)  # R7

    def begin(self, seq: int, from_syn: bool) -> None:
        self.started, self.from_syn, self.base, self.next = True, from_syn, seq, 0

    def position(self, seq: int) -> int:
        """R1: ahead up to 2^30 bytes, else behind."""
        delta = (seq - self.base - self.next) % 2**32
        return self.next + (delta if delta <= 2**30 else delta - 2**32)

    @property
    def acked(self) -> int:
        return self.acks[-1][0] if self.acks else 0

    def hole(self) -> int:
        """Where the hole at `next` ends; `next` when there is none. What is acknowledged, or lies before a FIN, exists."""
        ends = [self.waiting[0].at] if self.waiting else []
        if not ends and self.fin is not None:
            ends.append(self.fin)
        if not ends and self.acked > self.next + 1:  # one more: the number of a FIN that was not captured
            ends.append(self.acked)
        return max(self.next, min(ends, default=self.next))


class Connection:
    """Two flows; side 0 is that of the endpoint that is lower as (address, port)."""

    def __init__(self, ends: tuple[Any, Any], reader: Any) -> None:
        self.ends, self.reader = ends, reader
        self.flows = (Flow(), Flow())
        self.packets = 0
        self.last_ns = 0
        self.progress_ns: int | None = None  # since when bytes wait and none came in order (R4)
        self.reset = False

    # ---- reading in order ----

    def must_wait(self, side: int, ack: int | None) -> bool:
        """The other side's bytes up to `ack` come first."""
        other = self.flows[1 - side]
        if ack is None or not other.started or other.ended:
            return False
        at = other.position(ack)
        if other.fin is not None and other.next >= other.fin:
            return False
        return other.next < at <= other.next + FITS_AHEAD

    def read(self, side: int, piece: Piece) -> None:
        f = self.flows[side]
        skip = f.next - piece.at
        if skip < len(piece.data):
            self.begins(side)
            seq = (f.base + f.next) % 2**32
            f.next = piece.end
            self.reader.data(side, piece.data[skip:], piece.ts_ns, seq, piece.ack, piece.starts and skip == 0)
        if piece.missing and piece.end <= f.next < piece.end + piece.missing:
            end = piece.end + piece.missing
            if f.waiting:
                end = min(end, f.waiting[0].at)
            self.gap(side, end, "cut_by_snaplen")

    def begins(self, side: int) -> None:
        f = self.flows[side]
        if not f.spoke:
            f.spoke = True
            self.reader.begins(side, f.from_syn)

    def gap(self, side: int, end: int, reason: str) -> None:
        f = self.flows[side]
        if end > f.next:
            self.begins(side)
            length, f.next = end - f.next, end
            self.reader.gap(side, length, reason)

    def step(self, side: int) -> bool:
        """Reads what may be read next of this flow."""
        f = self.flows[side]
        if f.waiting and f.waiting[0].at <= f.next and not self.must_wait(side, f.waiting[0].ack):
            self.read(side, f.waiting.pop(0))
            return True
        if f.fin is not None and not f.ended and not f.waiting and f.next >= f.fin:
            if f.next > f.fin:
                f.fin = None
                return False
            f.ended = True
            self.reader.end(side, "closed")
            return True
        return False

    def settle(self, ts_ns: int) -> None:
        any_progress = False
        while self.step(0) or self.step(1):
            any_progress = True
        if not (self.flows[0].waiting or self.flows[1].waiting):
            self.progress_ns = None
        elif any_progress or self.progress_ns is None:
            self.progress_ns = ts_ns

    def close_acknowledged(self, ts_ns: int) -> None:
        """R4: the other side has the bytes of the hole, and they did not come for a while since it said so."""
        again = True
        while again:
            again = False
            for side in (0, 1):
                f = self.flows[side]
                end = f.hole()
                since = next(((ts, packets) for at, ts, packets in f.acks if at >= end), None)
                if end > f.next and since and _hold_is_over(ts_ns - since[0], self.packets - since[1]):
                    self.gap(side, end, "gap")
                    self.settle(ts_ns)
                    again = True

    def force(self, ts_ns: int) -> bool:
        """Waits no longer: closes one hole, or reads bytes without those that they acknowledge. False: nothing waits."""
        self.settle(ts_ns)
        holes = [side for side in (0, 1) if self.flows[side].hole() > self.flows[side].next]
        ready = [s for s in holes if not (self.flows[s].waiting and self.must_wait(s, self.flows[s].waiting[0].ack))]
        stuck = [side for side in (0, 1) if self.flows[side].waiting]
        if ready or holes:
            side = min(ready or holes, key=lambda s: (not self.flows[s].waiting, self.flows[s].waiting[0].ts_ns if self.flows[s].waiting else 0))
            self.gap(side, self.flows[side].hole(), "gap")
        elif stuck:
            side = min(stuck, key=lambda s: self.flows[s].waiting[0].ts_ns)
            self.read(side, self.flows[side].waiting.pop(0))
        else:
            return False
        self.settle(ts_ns)
        return True

    def finish(self, reason: str) -> None:
        while self.force(self.last_ns):
            pass
        for side in (0, 1):
            if not self.flows[side].ended:
                self.flows[side].ended = True
                self.reader.end(side, reason)
        self.reader.over()

    # ---- segments ----

    def keep(self, side: int, piece: Piece) -> None:
        """R2: into the free places between what waits."""
        f = self.flows[side]
        for there in list(f.waiting):
            if there.end <= piece.at:
                continue
            if there.at >= piece.end:
                break
            if there.at > piece.at:
                cut = there.at - piece.at
                self.insert(f, Piece(piece.at, piece.data[:cut], 0, piece.ts_ns, piece.ack, piece.starts))
            piece = Piece(there.end, piece.data[max(0, there.end - piece.at) :], piece.missing, piece.ts_ns, piece.ack, False)
        if piece.data or piece.missing:
            self.insert(f, piece)

    @staticmethod
    def insert(f: Flow, piece: Piece) -> None:
        at = len(f.waiting)
        while at and f.waiting[at - 1].at > piece.at:
            at -= 1
        f.waiting.insert(at, piece)

    def acknowledge(self, f: Flow, ack: int, ts_ns: int) -> None:
        if f.started and not f.ended:
            at = f.position(ack)
            if f.acked < at <= f.next + FITS_AHEAD:
                f.acks.append((at, ts_ns, self.packets))

    def fits(self, side: int, s: Segment) -> bool:
        f = self.flows[side]
        return not f.started or -FITS_BEHIND <= f.position(s.seq) <= f.next + FITS_AHEAD

    def feed(self, side: int, s: Segment) -> bool:
        """False: the segment begins a new connection; nothing of it was taken."""
        self.packets += 1
        f, other = self.flows[side], self.flows[1 - side]
        length = len(s.payload) + s.missing
        seq = s.seq
        quiet = f.spoke or other.spoke or f.waiting or other.waiting
        if s.flags & SYN:
            seq = (seq + 1) % 2**32
            if not f.started or (not quiet and f.position(seq) != 0):
                f.begin(seq, True)
            elif f.position(seq) != 0 or not f.from_syn:
                if s.flags & ACK and other.other_syn is not None and s.ack == (other.other_syn + 1) % 2**32:
                    return False
                f.other_syn = s.seq
                return True
            if s.flags & ACK and not other.started:
                other.begin(s.ack, True)
        elif s.flags & RST:
            if f.started and f.position(seq) == f.next and not self.reset:
                self.reset = True
                self.finish("closed")
            return True
        elif s.flags & ACK:
            self.acknowledge(other, s.ack, s.ts_ns)
        if length:
            if f.other_syn is not None and seq == (f.other_syn + 1) % 2**32 and f.position(seq) != f.next:
                return False
            if not f.started:
                f.begin(seq, False)
            at = f.position(seq)
            if at + length > f.next:
                if f.ended and at <= f.next:
                    f.ended, f.fin, self.reset = False, None, False
                skip = min(max(0, f.next - at), len(s.payload))
                self.keep(side, Piece(at + skip, s.payload[skip:], s.missing, s.ts_ns, s.ack if s.flags & ACK else None, skip == 0))
        if s.flags & FIN and f.started:
            at = f.position(seq) + length
            if (f.fin is None or at == f.next) and f.next <= at <= f.next + FITS_AHEAD:
                f.fin = at
        self.settle(s.ts_ns)
        self.close_acknowledged(s.ts_ns)
        while sum(len(p.data) for p in f.waiting) > FLOW_WAITS:
            self.force(s.ts_ns)
        self.last_ns = max(self.last_ns, s.ts_ns)
        return True


class Table:
    """All connections of a capture. new_reader(ends): called when one begins; ends: (side 0, side 1)."""

    def __init__(self, new_reader: Callable[[tuple[Any, Any]], Any]) -> None:
        self.new_reader = new_reader
        self.connections: dict[tuple[Any, Any], Connection] = {}

    def fresh(self, ends: tuple[Any, Any]) -> Connection:
        if ends in self.connections:
            self.connections[ends].finish("closed")
        c = self.connections[ends] = Connection(ends, self.new_reader(ends))
        return c

    def feed(self, s: Segment) -> None:
        ends = (s.src, s.dst) if s.src <= s.dst else (s.dst, s.src)
        side = int(s.src != ends[0])
        c = self.connections.get(ends)
        if c is None:
            if not (s.payload or s.missing or s.flags & SYN):
                return
            c = self.fresh(ends)
        elif not s.flags & (SYN | RST) and self.reused(c, side, s):
            return
        if not c.feed(side, s):
            syn = c.flows[1 - side].other_syn
            c = self.fresh(ends)
            if s.flags & SYN and syn is not None:
                c.flows[1 - side].begin((syn + 1) % 2**32, True)
            elif not s.flags & SYN:
                c.flows[side].begin(s.seq, True)
            c.feed(side, s)
        for each in self.connections.values():
            while each.progress_ns is not None and s.ts_ns - each.progress_ns > WAIT_NS:
                each.progress_ns = s.ts_ns
                each.force(s.ts_ns)

    def reused(self, c: Connection, side: int, s: Segment) -> bool:
        """R7. True: the segment was dealt with here."""
        f, other = c.flows[side], c.flows[1 - side]
        length = len(s.payload) + s.missing
        for old in other.aside:
            if s.flags & ACK and (old.seq + len(old.payload) + old.missing) % 2**32 == s.ack:
                fresh = self.fresh(c.ends)
                fresh.feed(1 - side, old)
                fresh.feed(side, s)
                return True
        if not length or c.fits(side, s):
            return False
        if all(flow.ended for flow in c.flows) or c.reset or s.ts_ns - c.last_ns > QUIET_NS:
            self.fresh(c.ends).feed(side, s)
            return True
        for old in f.aside:
            if (old.seq + len(old.payload) + old.missing) % 2**32 == s.seq:
                fresh = self.fresh(c.ends)
                fresh.feed(side, old)
                fresh.feed(side, s)
                return True
            if old.seq == s.seq:
                return True
        if sum(len(old.payload) for old in f.aside) + len(s.payload) <= ASIDE:
            f.aside.append(s)
        return True

    def end(self) -> None:
        """The capture ends."""
        for c in self.connections.values():
            c.finish("cut_at_end")
