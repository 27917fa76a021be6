"""Requests and replies of a connection: docs/design.md H6 to H12 and S1. One `Reader` a connection, fed by streams.py. Memory is not bounded here."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import framing, rewrite
from .framing import HTTP2, MAYBE, NO, YES
from .streams import Segment, Table

MAX_HEAD, MAX_LINES, HOLD = 65536, 256, 65536


@dataclass(eq=False)
class Message:
    """A request."""

    ts_ns: int
    client: tuple[bytes, int]
    server: tuple[bytes, int]
    seq: int
    ack: int | None  # of its first packet
    starts: bool  # it begins a segment
    index: int
    head_bytes: bytes
    head: framing.Head
    trust: str  # certain, unconfirmed, ambiguous
    epoch: int
    doubt_ack: int
    follows: bool  # client data just before it acknowledged as much
    body: bytes = b""
    whole: bool = False
    incomplete: str | None = None
    ambiguous: bool = False  # of its own
    status: int | None = None
    response_ns: int | None = None
    answered: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def host(self) -> bytes | None:
        return self.head.hosts[0] if self.head.hosts else None

    def withheld(self, suffix: bytes | None = b"-shadow") -> str | None:
        """S1: the first reason that applies."""
        if self.head.method == b"CONNECT":
            return "connect"
        if self.head.upgrade and (self.status == 101 or (self.status is None and [u.lower() for u in self.head.upgrade] != [b"h2c"])):
            return "upgrade"
        if self.ambiguous or self.trust == "ambiguous":
            return "ambiguous"
        if self.trust == "unconfirmed":
            return "unconfirmed"
        reason, host = rewrite.host_of(self.head_bytes)
        if reason:
            return reason
        if self.head.marked or (suffix is not None and rewrite.carries_suffix(host or b"", suffix)):
            return "loop"
        return None


@dataclass
class Place:
    """Where a message, or what may become one, begins."""

    ts_ns: int
    seq: int
    ack: int | None
    starts: bool
    follows: bool = False


class Side:
    def __init__(self) -> None:
        self.role: str | None = None  # requests, replies, other
        self.state: str | None = None  # start, resync, head, length, chunked, peek, hold, until_end, skip
        self.buffer = b""
        self.place = Place(0, 0, None, False)
        self.resynced = False
        self.certain = True  # replies: the next one belongs to the oldest open request
        self.spoke = False
        self.left = 0
        self.chunks = framing.Chunks()
        self.current: Message | None = None
        self.trust, self.epoch, self.doubt_ack = "certain", 0, 0
        self.peeked_from = ""
        self.data_ack: int | None = None  # of the data that was read last
        # The position behind an interim reply that nobody asked for: a body comes there, of a request that is not in the capture.
        self.interim: int | None = None


class Reader:
    """sink: a list that gets each Message, in the order in which their heads ended."""

    def __init__(self, ends: tuple[Any, Any], sink: list[Message], max_head: int = MAX_HEAD) -> None:
        self.ends, self.sink, self.max_head = ends, sink, max_head
        self.sides = (Side(), Side())
        self.open: list[Message] = []  # without their final reply
        self.index = 0
        self.malformed_lines = 0
        self.other: str | None = None
        self.orphans = 0

    # ---- what streams.py calls ----

    def begins(self, side: int, from_syn: bool) -> None:
        s = self.sides[side]
        if s.state is None:
            s.state = "start" if from_syn else "resync"
            if not from_syn:
                s.certain = self.sides[1 - side].certain = False

    def data(self, side: int, data: bytes, ts_ns: int, seq: int, ack: int | None, starts: bool) -> None:
        """Ordered bytes of one flow, all of one segment."""
        s = self.sides[side]
        open_line = s.state == "head" and (s.resynced or (s.trust != "certain" and ack != s.place.ack))
        if open_line and starts and s.role != "replies" and self.judge(s, s.buffer) != YES:
            # what looked like the beginning of a request line may be the end of a body, and this the beginning (H7)
            line = framing.request_line(data)
            if ack != s.place.ack or line == YES:
                self.belies(side, s.place.ack)
                s.state, s.buffer = "resync", b""
            elif line == MAYBE:
                s.place.follows = True
        self.feed(side, data, ts_ns, seq, ack, starts)
        if len(data) > 1:  # one byte may be a keep-alive probe
            s.data_ack = ack

    def feed(self, side: int, data: bytes, ts_ns: int, seq: int, ack: int | None, starts: bool) -> None:
        s = self.sides[side]
        at = 0
        while at < len(data) and s.state not in ("skip", "until_end"):
            place = Place(ts_ns, (seq + at) % 2**32, ack, starts and at == 0)
            at += self.read(side, data[at:], place)

    def gap(self, side: int, length: int, reason: str) -> None:
        s = self.sides[side]
        if s.state in ("skip", "until_end"):
            return
        if s.state == "length" and length <= s.left:
            s.left -= length
            self.fail(s.current, reason)
            if not s.left:
                self.message_ends(side)
        elif s.state == "chunked" and s.chunks.state == "data" and length <= s.chunks.left:
            s.chunks.skip(length)
            self.fail(s.current, reason)
        else:
            self.cut(side, reason)
            self.lost(side)

    def end(self, side: int, reason: str) -> None:
        s = self.sides[side]
        if s.role == "requests":
            if s.state == "hold":
                self.hold_over(side)
            self.cut(side, reason)
            if s.state != "skip":
                s.state, s.buffer = "start", b""
                s.epoch += 1
                if s.trust == "certain":
                    s.trust = "unconfirmed"
        elif s.role == "replies":
            self.open.clear()
            if s.state != "skip":
                s.state, s.buffer = "resync", b""

    def over(self) -> None:
        self.open.clear()

    # ---- reading ----

    def read(self, side: int, data: bytes, place: Place) -> int:
        """How many bytes were taken."""
        s = self.sides[side]
        if s.state == "start":
            blank = len(data) - len(data.lstrip(b"\r\n"))
            if blank:
                return blank
            return self.begin(side, data, place, False)
        if s.state == "resync":
            if not place.starts or self.judge(s, data) in (NO, HTTP2):
                return len(data)
            if s.role != "replies":
                s.epoch += 1
                if s.trust == "certain":
                    s.trust = "unconfirmed"
            return self.begin(side, data, place, True)
        if s.state == "head":
            return self.read_head(side, data, place)
        if s.state == "length":
            return self.read_length(side, data, place)
        if s.state == "chunked":
            return self.read_chunked(side, data, place)
        if s.state == "peek":
            return self.read_peek(side, data)
        assert s.state == "hold"
        if not s.buffer:
            s.place = place
        s.buffer += data
        if len(s.buffer) > HOLD:
            self.hold_over(side)
        return len(data)

    def begin(self, side: int, data: bytes, place: Place, resynced: bool) -> int:
        s = self.sides[side]
        s.state, s.place, s.resynced, s.buffer = "head", place, resynced, b""
        place.follows = s.data_ack is not None and place.ack is not None and not 0 < (place.ack - s.data_ack) % 2**32 < 2**31
        return self.read_head(side, data, place)

    def judge(self, s: Side, data: bytes) -> int:
        """Does a message of this flow's role begin here (R8, H1)?"""
        found = NO
        if s.role != "replies":
            found = framing.request_line(data)
        if s.role != "requests" and found in (NO, MAYBE):
            reply = framing.status_line(data)
            found = reply if reply == YES or found == NO else found
        return found

    def read_head(self, side: int, data: bytes, place: Place) -> int:
        s = self.sides[side]
        before = len(s.buffer)
        s.buffer += data
        judged = self.judge(s, s.buffer)
        if judged == MAYBE and len(s.buffer) <= self.max_head:
            return len(data)
        if judged != YES:
            return self.no_message(side, judged, before, place, len(data))
        if s.role is None:
            s.role = "requests" if framing.request_line(s.buffer) == YES else "replies"
        length = framing.head_length(s.buffer)
        if length == 0 and len(s.buffer) <= self.max_head:
            return len(data)
        if length == 0 or length > self.max_head or s.buffer[:length].count(b"\n") - 2 > MAX_LINES:
            self.cut(side, "head_too_large")
            self.lost(side)
            return len(data)
        head, s.buffer = s.buffer[:length], b""
        s.spoke = True
        if s.role == "requests":
            self.request(side, head)
        else:
            self.reply(side, head)
        return length - before

    def no_message(self, side: int, judged: int, before: int, place: Place, length: int) -> int:
        s = self.sides[side]
        s.buffer = b""
        if not s.resynced:
            if judged == HTTP2 or (not s.spoke and s.role is None):
                self.is_other(side, "http2" if judged == HTTP2 else "other")
                return length
            if s.role == "requests":
                self.malformed_lines += 1
        self.belies(side, place.ack if not before else s.place.ack)
        if s.resynced:
            s.state = "resync"
        else:
            self.lost(side)
        # of a line that goes over segments, the last segment may begin a message itself
        return 0 if before and place.starts else length

    def belies(self, side: int, ack: int | None) -> None:
        """H8: bytes that are no request line, sent before the server said anything new: what looked like a request before them is part of the same
        upload, and no reply confirms it."""
        if self.sides[side].role == "requests":
            for m in self.open:
                if m.trust != "certain" and m.ack is not None and m.ack == ack:
                    m.follows = True

    def is_other(self, side: int, kind: str) -> None:
        self.sides[side].role, self.sides[side].state = "other", "skip"
        self.other = self.other or kind

    def lost(self, side: int) -> None:
        """H7: look for the next message."""
        s = self.sides[side]
        s.state, s.buffer = "resync", b""
        if s.role != "requests":  # the first reply may be lost, so that the role is not known yet
            s.certain = False
        if s.role != "replies":
            self.sides[1 - side].certain = False

    # ---- requests ----

    def message(self, side: int, data: bytes, head: framing.Head) -> Message:
        s = self.sides[side]
        place = s.place
        if place.ack is not None and place.ack == s.interim:
            place.follows = True
        self.index += 1
        m = Message(
            place.ts_ns, self.ends[side], self.ends[1 - side], place.seq, place.ack, place.starts, self.index - 1, data, head,
            s.trust, s.epoch, s.doubt_ack, place.follows, ambiguous=head.ambiguous or head.hosts_differ,
        )  # fmt: skip
        self.sink.append(m)
        return m

    def request(self, side: int, data: bytes) -> None:
        s = self.sides[side]
        head = framing.parse_head(data)
        m = s.current = self.message(side, data, head)
        self.open.append(m)
        if head.malformed:
            self.cut(side, "malformed")
            self.lost(side)
        elif head.framing == "length" and head.length:
            s.left, s.state = head.length, "length"
        elif head.framing == "chunked":
            s.chunks, s.state = framing.Chunks(), "chunked"
        else:
            self.message_ends(side)

    @staticmethod
    def fail(m: Message | None, reason: str) -> None:
        if m is not None and m.incomplete is None:
            m.incomplete = reason

    def cut(self, side: int, reason: str) -> None:
        """The message that is being read, if there is one, does not become whole (H12)."""
        s = self.sides[side]
        if s.role not in ("requests", None):
            return
        if s.state == "head" and framing.request_line(s.buffer) == YES:
            line = framing.REQUEST_LINE.match(s.buffer)
            assert line
            m = self.message(side, line[0], framing.Head(line[1], line[2], 10 if line[3] == b"0" else 11))
            self.fail(m, reason)
        elif s.current is not None:
            self.fail(s.current, reason)
            s.current = None

    def doubt(self, side: int, m: Message) -> None:
        """H4: what follows an ambiguous message is not trusted, and its answers may be others than one thinks."""
        s = self.sides[side]
        if m.head.ambiguous or (s.state == "chunked" and s.chunks.ambiguous):
            s.trust, s.doubt_ack = "ambiguous", m.ack if m.ack is not None else 0
            s.epoch += 1
            self.sides[1 - side].certain = False

    def message_ends(self, side: int) -> None:
        s = self.sides[side]
        if s.role != "requests":
            s.state = "start"
            return
        m = s.current
        assert m is not None
        if s.state == "chunked":
            m.body = bytes(s.chunks.body)
            m.ambiguous |= s.chunks.ambiguous
        self.doubt(side, m)
        s.current, s.state = None, "start"
        m.whole = m.incomplete is None
        if m.answered:
            self.decide(side, m)
        elif m.head.method == b"CONNECT" or m.head.upgrade:
            s.state, s.buffer = "hold", b""

    @staticmethod
    def refused(m: Message, data: bytes) -> bool:
        """H9: perhaps the body does not come."""
        return m.head.expects and m.answered and m.status != 101 and framing.request_line(data) in (YES, MAYBE)

    def read_length(self, side: int, data: bytes, place: Place) -> int:
        s = self.sides[side]
        m = s.current
        if m is not None and not m.body and self.refused(m, data):
            s.peeked_from, s.state, s.place, s.buffer = "length", "peek", place, b""
            return 0
        piece = data[: s.left]
        s.left -= len(piece)
        if m is not None:
            m.body += piece
        if not s.left:
            self.message_ends(side)
        return len(piece)

    def read_chunked(self, side: int, data: bytes, place: Place) -> int:
        s = self.sides[side]
        m = s.current
        if m is not None and not s.chunks.begun and self.refused(m, data):
            s.peeked_from, s.state, s.place, s.buffer = "chunked", "peek", place, b""
            return 0
        taken = s.chunks.feed(data)
        if s.chunks.state == "done":
            self.message_ends(side)
        elif s.chunks.state == "bad":
            self.cut(side, "malformed")
            self.lost(side)
            return len(data)
        return taken

    def read_peek(self, side: int, data: bytes) -> int:
        """H9: the body was refused; is this the next request, or the body all the same?"""
        s = self.sides[side]
        s.buffer += data
        line = framing.request_line(s.buffer)
        if line == MAYBE and len(s.buffer) < self.max_head and not (s.peeked_from == "length" and len(s.buffer) >= s.left):
            return len(data)
        held, place = s.buffer, s.place
        s.buffer = b""
        if line == YES:
            s.state = s.peeked_from
            self.cut(side, "body_refused")
            s.state = "start"
            if s.peeked_from == "length" and len(held) >= s.left and (len(held) == s.left or framing.request_line(held[s.left :]) in (YES, MAYBE)):
                # it may as well be the whole body: what the server took it for is not known (H4)
                s.trust, s.doubt_ack = "ambiguous", place.ack if place.ack is not None else 0
                s.epoch += 1
                self.sides[1 - side].certain = False
        else:
            s.state = s.peeked_from
            if s.current is not None:
                s.current.head.expects = False
        self.feed(side, held, place.ts_ns, place.seq, place.ack, place.starts)
        return len(data)

    # ---- tunnels (H10) ----

    def decide(self, side: int, m: Message) -> None:
        s = self.sides[side]
        if m.status == 101 or (m.head.method == b"CONNECT" and m.status is not None and 200 <= m.status <= 299):
            for each in self.sides:
                if each.current is None:
                    each.state, each.buffer = "skip", b""
            self.other = self.other or "tunnel"
        elif s.state == "hold":
            self.release(side)

    def release(self, side: int) -> None:
        s = self.sides[side]
        held, s.buffer, s.state = s.buffer, b"", "start"
        if held:
            self.feed(side, held, s.place.ts_ns, s.place.seq, s.place.ack, s.place.starts)

    def hold_over(self, side: int) -> None:
        """No answer: a request line means that it was refused."""
        s = self.sides[side]
        if framing.request_line(s.buffer) == YES:
            self.release(side)
        else:
            s.state, s.buffer = "skip", b""

    # ---- replies ----

    def match(self, side: int, seq: int) -> Message | None:
        """H11: whose reply begins here."""
        s = self.sides[side]
        if s.certain:
            m = self.open[0] if self.open else None
        else:
            m = next((each for each in self.open if each.ack == seq and not each.follows), None)
            if m is not None:
                del self.open[: self.open.index(m)]
                s.certain = True
        if m is not None and m.ack == seq and not m.follows:
            self.confirm(1 - side, m)
        return m

    def confirm(self, side: int, m: Message) -> None:
        """H8."""
        s = self.sides[side]
        if m.trust == "certain":
            return
        if s.state == "head" and s.buffer and s.place.ack is not None and s.place.ack == m.ack and self.judge(s, s.buffer) != YES:
            return  # what came behind it before the answer is no request line so far
        if m.trust == "ambiguous" and (not m.starts or m.ack is None or not 0 < (m.ack - m.doubt_ack) % 2**32 < 2**31):
            return
        if s.epoch == m.epoch:
            s.trust = "certain"
        for each in self.sink[self.sink.index(m) :]:
            if each.client == m.client and each.server == m.server and each.epoch == m.epoch:
                each.trust = "certain"

    def reply(self, side: int, data: bytes) -> None:
        s = self.sides[side]
        head = framing.parse_head(data, reply=True)
        m = self.match(side, s.place.seq)
        s.state = "start"
        if 100 <= head.status <= 199 and head.status != 101:
            if m is None:
                self.sides[1 - side].interim = (s.place.seq + len(data)) % 2**32
            return
        if m is None:
            self.orphans += head.status != 408
            s.certain = False
            s.state = "resync"
            return
        m.status, m.answered = head.status, True
        m.response_ns = s.place.ts_ns - m.ts_ns if s.place.ts_ns >= m.ts_ns else None  # a capture out of order says nothing
        tunnel = m.head.method == b"CONNECT" and 200 <= head.status <= 299
        fields = framing.Head(version=head.version)
        framing.set_framing(fields, framing.parse_fields(re.findall(rb"[^\n]*\n", data)[1:-1], framing.Head()))
        if m.head.method == b"HEAD" or head.status in (101, 204, 304) or tunnel:
            pass
        elif fields.framing == "chunked" and not fields.malformed:
            s.chunks, s.state = framing.Chunks(), "chunked"
        elif fields.framing == "length" and not fields.malformed:
            if fields.length:
                s.left, s.state = fields.length, "length"
        else:
            s.state = "until_end"
        last = self.open[-1] is m
        if self.open[0] is m:
            self.open.pop(0)
        if m.whole and (tunnel or head.status == 101 or (last and self.sides[1 - side].state == "hold")):
            self.decide(1 - side, m)


def read(segments: Iterable[Segment], max_head: int = MAX_HEAD) -> tuple[list[Message], list[Reader]]:
    """The requests of a capture in the order of their first bytes, and the reader of each connection."""
    sink: list[Message] = []
    readers: list[Reader] = []

    def fresh(ends: tuple[Any, Any]) -> Reader:
        readers.append(Reader(ends, sink, max_head))
        return readers[-1]

    table = Table(fresh)
    for segment in segments:
        table.feed(segment)
    table.end()
    return sorted(sink, key=lambda m: m.ts_ns), readers
