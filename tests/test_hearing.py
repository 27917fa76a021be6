"""Replies that are captured or not, and changes between the two: the books hold, nothing is invented, nothing is lost that
need not be, and no loss is reported that was none."""

import contextlib
import random
import threading
import time
from types import SimpleNamespace

import packetmake as net
import pytest
import ringmake
from hypothesis import given, settings
from hypothesis import strategies as st
from test_routes import mirror, policy

from replay import _fastpath
from replay.capture import bpfasm
from replay.policy.compiled import compile_policy
from replay.policy.model import Block
from replay.tap import daemon
from replay.tap.hearing import Hearing

_policy = compile_policy(policy(([Block()], [mirror(0)])))


def routes():
    return _fastpath.Routes(_policy.blocks, _policy.routes, _policy.mirrors, 1)

SERVER = (b"\x0a\0\0\x02", 80)


# ---- when ---------------------------------------------------------------------------------------------------------------------------


def test_until_nothing_has_needed_them_for_a_while():
    one = Hearing(60.0)
    assert one.wanted and not one.look(1000.0, 0) and not one.look(1059.9, 0)
    assert one.look(1060.0, 0) and not one.wanted
    assert not one.look(5000.0, 0) and one.look(5000.1, 1) and one.wanted
    assert not one.look(5050.0, 2) and not one.look(5109.0, 2) and one.look(5110.0, 2) and not one.wanted


def test_a_need_at_the_beginning_puts_it_off():
    one = Hearing(10.0)
    for second in range(100):
        assert not one.look(float(second), second)
    assert not one.look(108.0, 99) and one.look(109.0, 99)


def test_a_need_that_comes_back_soon_makes_it_wait_longer():
    one, now, asking, waits = Hearing(1.0), 0.0, 0, []
    one.look(now, 0)
    for _ in range(8):
        began = now
        while not one.look(now := now + 0.125, asking):
            pass
        waits.append(now - began)
        asking += 1
        assert one.look(now := now + 0.125, asking)
    assert waits == [1, 2, 4, 8, 16, 16, 16, 16], "twice as long each time, up to a bound"
    while not one.look(now := now + 0.125, asking):
        pass
    assert one.look(now := now + 1000.0, asking + 1) and one.changes == 18
    began = now
    while not one.look(now := now + 0.125, asking + 1):
        pass
    assert now - began == 1, "forgotten after a long calm"


def test_it_does_not_wait_while_nothing_is_captured():
    one = Hearing(60.0)
    assert not one.look(1000.0, 0)
    one.rest()
    assert not one.look(5000.0, 0) and not one.look(5059.0, 0) and one.look(5060.0, 0)
    one.rest()
    assert not one.wanted and not one.look(9000.0, 0) and one.look(9000.1, 1)


class Lane:
    """Takes new rules when it is told to; else it is late."""

    def __init__(self):
        self.takes, self.waited, self.asking, self.changing = True, [], 0, False
        self.ingest, self.ways, self.tapped = self, [], None

    def adopt(self, rules, timeout):
        self.waited.append((rules, round(timeout, 1)))
        self.changing = not self.takes
        return self.takes


def test_a_lane_that_is_late_is_asked_again(monkeypatch, caplog):
    """With little patience, so that everything else goes on; and whatever filter is attached meanwhile."""
    fails = []

    def attach(tap):
        if fails:
            raise daemon.TapError("no room for filters")
        tap._heard, tap._filtered = tap.shop.hears or tap._hears is not False, True

    def turn(now):
        tap._hear(now)
        tap._going_on(tap._mend, now)

    monkeypatch.setattr(daemon.Tap, "_attach", attach)
    tap, lane, hearing = daemon.Tap(SimpleNamespace()), Lane(), Hearing(1.0)
    tap._book.lanes.append(lane)
    tap._shop = Shop(hearing)
    tap._hears, tap._told, tap._filtered, tap.state = True, True, True, "capturing"
    caplog.set_level("INFO", "replay.tap")
    turn(10.0)
    assert not lane.waited
    lane.takes = False
    turn(11.0)
    assert lane.waited == [(False, 5.0)] and tap._heard, "it may still wait for a reply"
    for now in (11.1, 16.0, 21.0):  # it has not even taken what it was given
        turn(now)
    assert lane.waited[1:] == [] and [one.message for one in caplog.records] == ["a capture thread does not take new rules yet; it goes on by those of before until it does"]
    lane.takes, lane.changing = True, False
    turn(26.0)
    turn(30.0)
    assert lane.waited[1:] == [(False, 0.2)] and caplog.records[1].message == "replies are not captured any more: nothing has needed them for a while"
    tap.state, lane.asking = "away", 1
    turn(40.0)
    assert len(lane.waited) == 2 and not tap._heard
    fails.append(1)
    tap.state = "capturing"
    turn(41.0)
    assert len(lane.waited) == 2 and caplog.records[2].message == "no room for filters; the tap goes on as before"
    fails.clear()
    for now in (42.0, 42.9, 43.8, 44.7, 45.6):
        lane.asking += 1
        turn(now)
        assert len(lane.waited) == 2
    lane.asking += 1
    turn(46.0)
    assert lane.waited[2:] == [(True, 5.0)] and caplog.records[3].message == "replies are captured again: some requests cannot be told without"


class Shop:
    def __init__(self, hearing):
        self.hearing, self.settings = hearing, SimpleNamespace(replies="auto")

    @property
    def hears(self):
        return self.hearing.wanted

    def ingest(self, source, ways):
        return self.hears


# ---- what -----------------------------------------------------------------------------------------------------------------------------


def request(target, more=b"", body=b""):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"GET %s HTTP/1.1\r\nHost: a\r\n%s%s\r\n" % (target, length, more) + body


class Tap:
    """An engine that reads a ring, and a filter in front of it; the two change one after the other, as in a tap."""

    def __init__(self, hears=True, **rules):
        self.given, self.stop, self.ends, self.pool = rules, _fastpath.Stop(), _fastpath.Stop(), _fastpath.Pool(64 << 20)
        self.queue, self.ring = _fastpath.Queue(self.pool, 64), ringmake.Ring(4)
        self.ingest = self.rules(self.ring.open(self.ends), hears)
        self.filter(hears)
        self.rows, self.waiting, self.clock = [], [], time.time_ns()
        self.thread = threading.Thread(target=self.ingest.run)
        self.thread.start()

    def rules(self, source, hears):
        return _fastpath.Ingest(source, [self.queue], self.pool, self.stop, live=True, last=True, marker=True, replies=hears, **self.given)

    def filter(self, hears, whole=False):
        self.program = bpfasm.build(bpfasm.Rules(ports=[80], replies=(0 if whole else 512) if hears else None))

    def capture(self, frame):
        self.clock += 20_000
        kept = bpfasm.run(self.program, frame)
        if kept:
            self.waiting.append((self.clock, frame[:kept], len(frame)))

    def read(self):
        if self.waiting:
            self.ring.put(self.waiting)
        self.waiting = []
        while (batch := self.queue.get(0)) is not None:
            self.rows += [batch[i] for i in range(len(batch))]

    def adopt(self, hears):
        self.read()
        assert self.ingest.adopt(self.rules(_fastpath.PacketSource(), hears), 10.0)
        self.clock = max(self.clock, time.time_ns())  # what is captured from now on is of later

    def end(self):
        """(targets, counters)."""
        self.read()
        self.ends.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        while not self.queue.done:
            batch = self.queue.get(0.1)
            if batch is not None:
                self.rows += [batch[i] for i in range(len(batch))]
        batch = None
        found = self.ingest.counters()
        self.ring.close()
        assert found["found"] == sum(found["withheld"].values()) + found["selected"] + sum(found["sampled_out"].values())
        assert found["memory"] == 0 and found["packets"]["read"] == found["segments"] + sum(found["packets"]["skipped"].values())
        return [row["target"].decode() for row in self.rows], found


@contextlib.contextmanager
def tapped(hears=True, **rules):
    tap = Tap(hears, **rules)
    try:
        yield tap
    finally:
        tap.ends.set()
        tap.stop.set()
        tap.thread.join(20)


class Talk:
    """A connection: its packets, as both sides send them."""

    def __init__(self, tap, number):
        self.tap, self.client, self.asked, self.said = tap, (b"\x0a\0" + number.to_bytes(2, "big"), 40000), 1000 * number, 7000 * number

    def put(self, towards, flags, payload=b""):
        ends, seq, ack = ((self.client, SERVER), self.asked, self.said) if towards else ((SERVER, self.client), self.said, self.asked)
        self.tap.capture(net.frame(*ends, seq, ack, flags, payload))
        size = len(payload) + (flags & (net.SYN | net.FIN) != 0)
        if towards:
            self.asked += size
        else:
            self.said += size

    def begin(self):
        self.put(True, net.SYN)
        self.put(False, net.SYN | net.ACK)
        self.put(True, net.ACK)
        return self

    def ask(self, data):
        self.put(True, net.ACK | net.PSH, data)

    def answer(self, data=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", pieces=1):
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            self.put(False, net.ACK | net.PSH, data[at : at + step])
            self.put(True, net.ACK)

    def turns(self, name, count=3):
        """Requests for /name/0 and so on, each answered before the next."""
        for n in range(count):
            self.ask(request(b"/%s/%d" % (name, n)))
            self.answer()

    def close(self, first=True):
        self.put(first, net.FIN | net.ACK)
        self.put(not first, net.FIN | net.ACK)
        self.put(first, net.ACK)


@pytest.mark.parametrize("hears", [True, False])
def test_each_request_is_taken_once(hears):
    with tapped(hears) as tap:
        talks = [Talk(tap, n).begin() for n in range(1, 60)]
        for turn in range(3):
            for n, talk in enumerate(talks):
                talk.ask(request(b"/%d/%d" % (n, turn)))
                talk.answer()
            tap.read()
        for talk in talks:
            talk.close()
        targets, found = tap.end()
    assert sorted(targets) == sorted(f"/{n}/{turn}" for n in range(59) for turn in range(3))
    assert found["matched"] == hears * 3 * 59 and found["gaps"] == found["lost_estimated"] == found["asking"] == 0


def test_a_connection_from_before_is_joined_when_replies_are_heard_again():
    with tapped(False) as tap:
        old = Talk(tap, 5)
        old.turns(b"deaf")
        tap.read()
        assert tap.ingest.asking == 3
        tap.filter(True)
        tap.adopt(True)
        old.turns(b"heard")
        tap.adopt(False)
        tap.filter(False)
        old.turns(b"later")
        targets, found = tap.end()
    assert targets == [f"/{when}/{n}" for when in ("heard", "later") for n in range(3)]
    assert found["withheld"] == {"unconfirmed": 3} and found["asking"] == 4 and found["gaps"] == found["lost_estimated"] == 0


@pytest.mark.parametrize("refused", [True, False])
def test_an_upgrade_whose_answer_was_not_heard(refused):
    """Refused, its connection goes on as HTTP behind the first reply of it that is heard; accepted, nothing of it is ever taken for a request."""
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.ask(request(b"/first"))
        one.answer()
        one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        one.answer() if refused else one.answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        say, hear = (request, one.answer) if refused else (lambda target: b"\x81\x05" + target, lambda: one.answer(b"\x81\x02ok"))
        one.ask(say(b"/deaf"))
        hear()
        tap.filter(True)
        tap.adopt(True)
        for n in range(3):
            one.ask(say(b"/heard/%d" % n))
            hear()
        one.close()
        targets, found = tap.end()
    assert targets == (["/first", "/heard/1", "/heard/2"] if refused else ["/first"])
    assert found["withheld"] == ({"upgrade": 1, "unconfirmed": 2} if refused else {"upgrade": 1}) and found["lost_estimated"] == found["gaps"] == 0


def test_a_body_that_is_announced_is_taken_where_the_answer_is_heard():
    with tapped(True) as tap:
        one = Talk(tap, 3).begin()
        for hears in (True, False, True):
            tap.filter(hears)
            tap.adopt(hears)
            one.ask(request(b"/%d" % hears, b"Expect: 100-continue\r\n", b"body")[:-4])
            one.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
            one.ask(b"body")
            one.answer()
        one.ask(request(b"/end"))
        one.answer()
        targets, found = tap.end()
    assert targets == ["/1", "/1", "/end"] and found["withheld"] == {"ambiguous": 1} and found["asking"] == 3


@pytest.mark.parametrize("first", [False, True])
def test_an_announced_body_is_never_read_as_a_request(first):
    """It begins like one, and what is heard changes between the announcement and the body: whether it was refused is not known, so nothing of it is mirrored."""
    body = request(b"/smuggled")
    with tapped(first) as tap:
        one = Talk(tap, 3).begin()
        one.ask(b"POST /up HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        if first:
            tap.adopt(False)
            tap.filter(False)
        else:
            tap.filter(True)
            tap.adopt(True)
        one.ask(body)
        one.answer()
        one.close()
        targets, found = tap.end()
    assert not targets and found["withheld"] == {"ambiguous": 1}


def test_a_tunnel_of_plain_http_is_not_mirrored_when_its_answer_was_not_heard():
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.ask(b"CONNECT there:80 HTTP/1.1\r\nHost: there:80\r\n\r\n")
        one.answer(b"HTTP/1.1 200 OK\r\n\r\n")
        tap.filter(True)
        tap.adopt(True)
        one.turns(b"inside")
        one.close()
        targets, found = tap.end()
    assert not targets and found["withheld"] == {"connect": 1}


def test_what_is_held_behind_an_upgrade_asks_for_replies():
    """Its answer was not heard, and the tap fell silent again: what comes makes it listen."""
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        one.answer()
        tap.read()
        asked = tap.ingest.asking
        one.ask(request(b"/behind"))
        tap.read()
        assert tap.ingest.asking == asked + 1


@pytest.mark.parametrize("loose", [False, True])
def test_what_is_held_to_the_end_is_in_doubt(loose):
    """The upgrade may have been refused, and may not: what follows looks like requests, behind an empty line that is one too many."""
    with tapped(False, loose=loose) as tap:
        one = Talk(tap, 3).begin()
        one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        one.answer()
        for n in range(3):
            one.ask(b"\r\n" + request(b"/%d" % n))
            one.answer()
        one.close()
        targets, found = tap.end()
    assert targets == (["/0", "/1", "/2"] if loose else []) and found["found"] == 4
    assert found["withheld"] == {"upgrade": 1} | ({} if loose else {"unconfirmed": 3})


def test_requests_under_way_when_nothing_is_heard_any_more():
    """A request that waits for a reply which will not be heard is settled at once; bytes that wait for the server's do not wait on."""
    with tapped(True) as tap:
        late, up = Talk(tap, 1), Talk(tap, 2).begin()
        late.ask(request(b"/unconfirmed"))
        up.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        tap.adopt(False)
        tap.filter(False)
        late.answer()
        up.answer()
        fresh = Talk(tap, 3).begin()
        fresh.ask(request(b"/fresh"))
        tap.read()
        time.sleep(0.2)
        assert tap.ingest.counters()["withheld"] == {"unconfirmed": 1, "upgrade": 1}
        targets, found = tap.end()
    assert targets == ["/fresh"] and found["withheld"] == {"unconfirmed": 1, "upgrade": 1} and found["lost_estimated"] == found["gaps"] == 0


@pytest.mark.parametrize("hears", [True, False])
@pytest.mark.parametrize("lost", [0, 5])
def test_a_packet_that_is_lost_behind_the_tap_comes_again(hears, lost):
    """Where no acknowledgement tells that the server has it, it is waited for over several of its retransmissions, not for 50 ms and 64 packets."""
    data = request(b"/long", b"Cookie: " + b"c" * 2000 + b"\r\n", b"u" * 200_000)
    pieces = [data[at : at + 1400] for at in range(0, len(data), 1400)]
    with tapped(hears) as tap:
        one = Talk(tap, 3).begin()
        began = one.asked
        for n, piece in enumerate(pieces):
            one.asked = began + 1400 * n
            if n != lost:
                one.ask(piece)
            one.asked = began + 1400 * min(n + 1, lost)  # what the server acknowledges
            one.put(False, net.ACK)
        tap.read()
        time.sleep(0.2)
        tap.clock = time.time_ns()
        one.asked = began + 1400 * lost
        one.ask(pieces[lost])
        one.asked = began + len(data)
        one.answer()
        one.ask(request(b"/next"))
        one.answer()
        targets, found = tap.end()
    assert targets == ["/long", "/next"] and found["gaps"] == 0 and not found["incomplete"] and found["lost_estimated"] == 0


def test_a_packet_that_never_comes_is_a_gap_in_the_end():
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.asked += 500
        for n in range(100):
            one.ask(request(b"/%d" % n))
        tap.read()
        time.sleep(0.1)
        assert tap.ingest.counters()["gaps"] == 0
        tap.clock += 3_100_000_000
        one.ask(request(b"/behind"))
        tap.read()
        time.sleep(0.1)
        assert tap.ingest.counters()["gaps"] == 1
        targets, found = tap.end()
    assert not targets and found["gaps"] == 1 and found["gap_bytes"] == 500 and found["withheld"] == {"unconfirmed": 101}


@pytest.mark.parametrize("first", [True, False])
def test_what_is_no_http_counts_no_gap(first):
    """TLS, of which one side is not heard for a while; and a download that began before the tap."""
    with tapped(first) as tap:
        secret, load = Talk(tap, 3).begin(), Talk(tap, 4)
        secret.ask(b"\x16\x03\x01\x02\0" + b"z" * 500)
        secret.answer(b"\x16\x03\x03\x05\0" + b"s" * 900)
        for hears in (not first, first, not first):
            for n in range(30):
                secret.ask(b"\x17\x03\x03" + b"a" * 200)
                secret.answer(b"\x17\x03\x03" + b"r" * 3000)
                load.answer(b"x" * 1400, 1)
                if n % 10 == 0:
                    tap.read()
            tap.filter(hears)
            tap.adopt(hears)
        time.sleep(0.2)
        secret.ask(b"\x17\x03\x03" + b"a" * 200)
        secret.answer(b"\x17\x03\x03" + b"r" * 3000)
        secret.close()
        targets, found = tap.end()
    assert not targets and found["gaps"] == found["found"] == 0 and found["other"] == {"tls": 1}


@pytest.mark.parametrize("heard", [True, False])
def test_a_tunnel_does_not_keep_a_former_policy(heard):
    """A WebSocket may last for weeks; its request has left long before."""
    with tapped(True, routes=routes(), suffix=None) as tap:
        other = Talk(tap, 100).begin()
        for n in range(1, 12):
            one = Talk(tap, n)
            if not heard:
                tap.adopt(False)
                tap.filter(False)
            one.begin()
            one.ask(request(b"/ws", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
            one.answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            one.ask(b"\x81\x05hello")
            tap.read()
            tap.filter(True)
            tap.given["routes"] = routes()
            tap.adopt(True)
            other.ask(request(b"/%d" % n))
            other.answer()
        tap.read()
        time.sleep(0.1)
        tap.adopt(True)
        other.ask(request(b"/last"))
        tap.read()
        deadline = time.monotonic() + 5
        while tap.ingest.retiring and time.monotonic() < deadline:
            time.sleep(0.05)
        assert tap.ingest.retiring == 0
        targets, found = tap.end()
    assert found["withheld"] == {"upgrade": 11} and found["selected"] == 12


def test_a_change_of_what_is_heard_is_no_change_of_policy():
    """A request that does not go on refers to the policy that chose it; each change would keep one more."""
    with tapped(True, routes=routes(), suffix=None) as tap:
        slow, other = Talk(tap, 3).begin(), Talk(tap, 4).begin()
        for n in range(20):
            slow.ask(request(b"/slow", b"", b"b" * 500)[:100] if n == 0 else b"b")
            other.ask(request(b"/%d" % n))
            other.answer()
            hears = n % 2 == 1
            tap.filter(hears)
            tap.adopt(hears)
            assert tap.ingest.retiring == 0
        tap.given["routes"] = routes()
        tap.adopt(True)
        assert tap.ingest.retiring == 1, "that one is another"
        tap.adopt(False)
        other.ask(request(b"/last"))
        targets, found = tap.end()
    assert targets == [*(f"/{n}" for n in range(20)), "/last"] and found["selected"] == 21


def test_an_old_upgrade_that_waits_does_not_keep_its_policy_for_ever():
    """Nothing answers it, heard or not: after 30 s it is withheld, and of it no more is kept than that it is there."""
    with tapped(True, routes=routes(), suffix=None) as tap:
        up, other = Talk(tap, 3).begin(), Talk(tap, 4).begin()
        up.ask(request(b"/ws", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        tap.given["routes"] = routes()
        tap.adopt(True)
        assert tap.ingest.retiring == 1
        tap.clock += 40_000_000_000
        for n in range(3):
            other.ask(request(b"/%d" % n))
            tap.read()
            time.sleep(0.05)
        assert tap.ingest.retiring == 0 and tap.ingest.counters()["memory"] == 0
        found = tap.end()[1]
    assert found["withheld"] == {"upgrade": 1} and found["selected"] == 3


def test_what_the_ring_still_holds_of_the_filter_of_before():
    """Read by an engine that hears already: no reply is missed that was not captured, no body is taken for a request."""
    with tapped(False) as tap:
        one, old = Talk(tap, 6).begin(), Talk(tap, 7)
        tap.read()
        one.ask(request(b"/announced", b"Expect: 100-continue\r\n", b"b" * 40)[:-40])
        one.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
        one.ask(b"b" * 40)
        old.ask(request(b"/old"))
        old.answer()
        fresh = Talk(tap, 8).begin()
        fresh.ask(request(b"/fresh") + request(b"/fresh/2"))
        fresh.answer()
        backlog, tap.waiting = tap.waiting, []
        tap.filter(True)
        tap.adopt(True)
        tap.waiting = backlog
        fresh.answer()
        for n in range(3):
            fresh.ask(request(b"/fresh/%d" % (3 + n)))
            fresh.answer()
        targets, found = tap.end()
    assert targets == ["/fresh", *(f"/fresh/{2 + n}" for n in range(4))] and found["withheld"] == {"ambiguous": 1, "unconfirmed": 1}
    assert found["lost_estimated"] == found["gaps"] == 0 and found["matched"] >= 3


@pytest.mark.parametrize("begins", [True, False])
def test_a_client_is_not_taken_for_the_server(begins):
    """The server's bytes looked like a request first. Who opened the connection is the client; where that was not seen, nobody is guessed to be the server."""
    with tapped(True) as tap:
        tap.filter(True, whole=True)
        one = Talk(tap, 3)
        if begins:
            one.begin()
        one.answer(request(b"/server"))
        tap.adopt(False)
        tap.filter(False)
        one.turns(b"deaf")
        tap.filter(True)
        tap.adopt(True)
        one.turns(b"heard")
        targets, found = tap.end()
    if begins:
        assert targets == ["/server", *(f"/{what}/{n}" for what in ("deaf", "heard") for n in range(3))]
    assert found["found"] == 7


@pytest.mark.parametrize("hears", [True, False])
@pytest.mark.parametrize("stray", ["SYN/ACK of the client first", "SYN of the server later"])
def test_who_opened_is_not_turned_round(hears, stray):
    with tapped(hears) as tap:
        one = Talk(tap, 3)
        if "first" in stray:
            one.put(True, net.SYN | net.ACK)
            one.asked -= 1
        one.begin()
        one.ask(request(b"/0"))
        one.answer()
        if "later" in stray:
            tap.filter(True)  # a filter that cannot tell
            one.put(False, net.SYN)
            one.said -= 1
            tap.filter(hears)
        for turn in (not hears, hears):
            tap.filter(turn)
            tap.adopt(turn)
            one.ask(request(b"/%d" % turn))
            one.answer()
        targets, found = tap.end()
    assert targets == ["/0", *(f"/{turn:d}" for turn in (not hears, hears))] and not found["withheld"]


def test_what_waited_for_its_reply_goes_on_in_order():
    """A refused upgrade and what was sent behind it at once; and what a reply makes certain, before what is certain without one."""
    with tapped(True) as tap:
        up, old = Talk(tap, 3).begin(), Talk(tap, 4)
        up.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n") + request(b"/next"))
        up.answer()
        up.answer()
        old.ask(request(b"/a"))
        old.ask(request(b"/b"))
        old.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        old.answer()
        old.ask(request(b"/c"))
        old.answer()
        old.answer()
        targets, found = tap.end()
    assert targets == ["/up", "/next", "/a", "/b", "/c"] and not found["withheld"]


def test_a_refused_upgrade_to_http2_is_proven_by_what_follows():
    """A client that was answered 101 would go on with HTTP/2's preface."""
    with tapped(False) as tap:
        for n, behind in enumerate((request(b"/behind"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")):
            one = Talk(tap, 3 + n).begin()
            one.ask(request(b"/up/%d" % n, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"))
            one.answer()
            one.ask(behind)
            one.answer()
            one.ask(request(b"/more/%d" % n))
            one.answer()
        targets, found = tap.end()
    assert targets == ["/up/0", "/behind", "/more/0", "/up/1"] and found["asking"] == 2 and not found["withheld"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_server_that_talks_like_a_client(number):
    """Both sides ask, as far as can be seen: neither is taken for a server whose bytes may be left aside."""
    with tapped(True) as tap:
        tap.filter(True, whole=True)
        one = Talk(tap, number).begin()
        one.ask(request(b"/a", b"", b"b" * 100)[:-50])
        one.answer(request(b"/server", b"", b"b" * 100))
        tap.read()
        tap.adopt(False)
        tap.filter(False)
        one.ask(b"b" * 50)
        for n in range(3):
            one.ask(request(b"/%d" % n))
        targets, found = tap.end()
    assert targets == ["/server", "/a", "/0", "/1", "/2"] and not found["incomplete"]


@pytest.mark.parametrize("born", [True, False])
def test_a_reply_that_is_heard_late_is_no_request(born):
    """The rest of its body looks like requests, and begins with them as far as the tap can tell."""
    with tapped(born) as tap:
        one = Talk(tap, 3).begin()
        if born:
            one.ask(request(b"/0"))
            one.answer()
            tap.adopt(False)
            tap.filter(False)
        one.ask(request(b"/1"))
        tap.read()
        tap.filter(True, whole=True)
        tap.adopt(True)
        for n in range(5):
            one.answer(request(b"/evil/%d" % n))
        one.ask(request(b"/2"))
        one.answer()
        targets, found = tap.end()
    assert targets == ["/0", "/1", "/2"][not born :] and not found["withheld"]


def test_an_upgrade_to_http2_is_taken_without_its_answer():
    """Unheard, it is not known what was switched to; the request is one all the same, and what follows is read when replies are heard."""
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.ask(request(b"/h2c", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"))
        tap.read()
        deadline = time.monotonic() + 5
        while tap.ingest.counters()["selected"] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert tap.ingest.counters()["selected"] == 1
        assert tap.end()[0] == ["/h2c"]


@pytest.mark.parametrize("hears", [True, False])
def test_what_is_held_does_not_fill_the_memory(hears):
    """Bytes behind upgrades that nobody answers, of many connections: half of what heads may have is theirs, and a head that comes in two is read."""
    with tapped(hears, max_memory=4 << 20) as tap:
        split = Talk(tap, 1).begin()
        head = request(b"/split")
        split.ask(head[:10])
        for n in range(2, 120):
            one = Talk(tap, n).begin()
            one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
            for _ in range(3):
                one.ask(b"GET /" + b"x" * 18_000)
            if n % 4 == 0:
                tap.read()
        split.ask(head[10:])
        targets, found = tap.end()
    assert "/split" in targets and found["withheld"]["upgrade"] == 118 and found["no_memory"] > 60


def test_a_tunnel_that_is_not_heard_is_not_held():
    """Its first bytes are no request, whatever was answered."""
    with tapped(False, max_memory=4 << 20) as tap:
        for n in range(1, 200):
            one = Talk(tap, n).begin()
            one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
            for _ in range(3):
                one.ask(b"\x81\xfe\x40\0" + b"x" * 16_000)
            if n % 4 == 0:
                tap.read()
        targets, found = tap.end()
    assert not targets and found["withheld"] == {"upgrade": 199} and found["no_memory"] == 0 and found["asking"] == 199


def test_what_is_not_taken_asks_for_nothing():
    with tapped(False, share=0, sample_by="connection") as tap:
        for n in range(1, 50):
            one = Talk(tap, n)
            one.ask(request(b"/old"))
            one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
        tap.read()
        assert tap.ingest.asking == 0
        one.ask(request(b"/up", b"Expect: 100-continue\r\n", b"b" * 40))  # of its body another request may be a part
        tap.end()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_changes_at_any_moment(seed):
    """Connections that the tap saw begin, with plain requests in any order, cut anywhere, some pipelined, while what is heard changes at any packet: each
    request is taken, once, in order, and nothing is reported that was not."""
    chance = random.Random(seed)
    hears = chance.random() < 0.5
    with tapped(hears) as tap:
        talks, sent = [], []

        def steps(number):
            talk = Talk(tap, number).begin()
            yield
            for turn in range(chance.randrange(1, 7)):
                together = [b"/%d/%d/%d" % (number, turn, n) for n in range(chance.choice([1, 1, 1, 3]))]
                data = b"".join(request(target, body=b"b" * chance.choice([0, 0, 10, 3000])) for target in together)
                sent.extend((number, target.decode()) for target in together)
                cut = chance.choice([len(data), len(data), chance.randrange(1, len(data))])
                for piece in (data[:cut], data[cut:]):
                    if piece:
                        talk.ask(piece)
                        yield
                for _ in together:
                    size = chance.choice([0, 2, 900])
                    pieces = chance.choice([1, 1, 3]) if len(together) == 1 else 1  # behind a head that is cut in two the next reply is not known
                    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size, pieces)
                    yield
            if chance.random() < 0.7:
                talk.close(chance.random() < 0.5)

        number, later = 0, []
        while number < 25 or talks:
            if number < 25 and (not talks or chance.random() < 0.2):
                number += 1
                talks.append(steps(number))
            one = chance.choice(talks)
            if next(one, 0) == 0:
                talks.remove(one)
            if chance.random() < 0.1:
                tap.read()
            if later and chance.random() < 0.5:
                later.pop(0)()
            elif not later and chance.random() < 0.1:
                hears = not hears
                later = [lambda hears=hears: tap.adopt(hears), lambda hears=hears: tap.filter(hears)]
                if hears:
                    later.reverse()
        targets, found = tap.end()
    assert sorted(targets) == sorted(target for _, target in sent)
    for number in range(1, 26):
        own = [target for target in targets if target.startswith(f"/{number}/")]
        assert own == [target for n, target in sent if n == number], "in their order"
    assert not found["withheld"] and found["lost_estimated"] == found["gaps"] == found["asking"] == 0 and not found["incomplete"], found
