"""Replies that are captured or not, and changes between the two: the books hold, nothing is invented, nothing is lost that
need not be, and no loss is reported that was none."""

import contextlib
import random
import threading
import time

import packetmake as net
import pytest
import ringmake
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import _fastpath
from replay.capture import bpfasm
from replay.tap.hearing import Hearing

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


# ---- what -----------------------------------------------------------------------------------------------------------------------------


def request(target, more=b"", body=b""):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"GET %s HTTP/1.1\r\nHost: a\r\n%s%s\r\n" % (target, length, more) + body


class Tap:
    """An engine that reads a ring, and a filter in front of it; the two change one after the other, as in a tap."""

    def __init__(self, hears=True):
        self.stop, self.ends, self.pool = _fastpath.Stop(), _fastpath.Stop(), _fastpath.Pool(64 << 20)
        self.queue, self.ring = _fastpath.Queue(self.pool, 64), ringmake.Ring(4)
        self.ingest = self.rules(self.ring.open(self.ends), hears)
        self.filter(hears)
        self.rows, self.waiting, self.clock = [], [], time.time_ns()
        self.thread = threading.Thread(target=self.ingest.run)
        self.thread.start()

    def rules(self, source, hears):
        return _fastpath.Ingest(source, [self.queue], self.pool, self.stop, live=True, last=True, marker=True, replies=hears)

    def filter(self, hears):
        self.program = bpfasm.build(bpfasm.Rules(ports=[80], replies=512 if hears else None))

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
def tapped(hears=True):
    tap = Tap(hears)
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
        for n in range(3):
            old.ask(request(b"/deaf/%d" % n))
            old.answer()
        tap.read()
        assert tap.ingest.asking == 3
        tap.filter(True)
        tap.adopt(True)
        for n in range(3):
            old.ask(request(b"/heard/%d" % n))
            old.answer()
        tap.adopt(False)
        tap.filter(False)
        for n in range(3):
            old.ask(request(b"/later/%d" % n))
            old.answer()
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
        for n in range(3):
            one.ask(request(b"/inside/%d" % n))
            one.answer()
        one.close()
        targets, found = tap.end()
    assert not targets and found["withheld"] == {"connect": 1}


def test_what_is_held_behind_an_upgrade_asks_for_replies():
    """Its answer was not heard, and the tap fell silent again: what comes makes it listen."""
    with tapped(False) as tap:
        one = Talk(tap, 3).begin()
        one.ask(request(b"/up", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"))
        one.answer()
        tap.read()
        asked = tap.ingest.asking
        one.ask(request(b"/behind"))
        tap.read()
        assert tap.ingest.asking == asked + 1


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
        assert tap.ingest.counters()["withheld"] == {"unconfirmed": 1}
        targets, found = tap.end()
    assert targets == ["/fresh"] and found["withheld"] == {"unconfirmed": 1, "upgrade": 1} and found["lost_estimated"] == found["gaps"] == 0


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
