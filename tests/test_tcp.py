"""Streams out of segments: rules R1 to R8 of docs/design.md, each by hand-made packets."""

import hashlib
import itertools
import os
import random

import pcapmake as make
import pytest
from engine import read, targets

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DATA = make.PSH | make.ACK
BODY = b"0123456789abcdef"


def get(n=0):
    return b"GET /%d HTTP/1.1\r\nHost: a.example\r\n\r\n" % n


def post(n=0, body=BODY):
    return b"POST /%d HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n%s" % (n, len(body), body)


def seen(packets, **options):
    """(target, why it is not sent, status when whole) of each request, and the counters."""
    rows, counters = read(packets, incomplete=True, **options)
    return [(row["target"].decode(), row["incomplete"] or row["withheld"], None if row["incomplete"] else row["status"]) for row in rows], counters


def hashes(rows):
    return [row["body_sha256"] for row in rows]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def pieces(data, cuts):
    """(offset, bytes) of data cut at places."""
    edges = [0, *cuts, len(data)]
    return [(a, data[a:b]) for a, b in itertools.pairwise(edges)]


# ---- R1, R4: order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1000, 2**32 - 40, 2**31 - 40, 2**32 - 1])
def test_five_segments_in_every_order(number):
    for order in itertools.permutations(pieces(post(), [9, 30, 65, 70])):
        one = make.Talk(numbers=(number, 5)).open()
        first = one.seq[0]
        for at, data in order:
            one.raw(0, first + at, DATA, data)
        one.seq[0] += len(post())
        one.tell(OK).ask(get(1)).tell(OK).end()
        rows, counters = read(one.packets)
        assert targets(rows) == ["/0", "/1"]
        assert hashes(rows) == [sha(BODY), sha(b"")]
        assert [row["withheld"] for row in rows] == [None, None]
        assert counters["gaps"] == counters["overlap_conflict"] == 0


def test_shuffled_duplicated_overlapping_anything():
    """Random segments of a pipelined conversation, displaced by a few places: always the same requests."""
    rng = random.Random(7)
    requests = [post(n, rng.randbytes(rng.randrange(80))) if n % 3 else get(n) for n in range(12)]
    stream = b"".join(requests)
    for _ in range(300):
        number = rng.choice((7, 2**32 - rng.randrange(1, 900)))
        cuts = sorted(rng.sample(range(1, len(stream)), rng.randrange(1, 40)))
        sent = [(at, data) for at, data in pieces(stream, cuts)]
        for at, data in list(sent):
            if rng.random() < 0.3:  # again, with some bytes more or less at either end
                a, b = max(0, at - rng.randrange(30)), min(len(stream), at + len(data) + rng.randrange(30))
                sent.insert(rng.randrange(len(sent) + 1), (a, stream[a:b]))
        far = rng.randrange(1, 8)
        places = [k + rng.uniform(0, far) for k in range(len(sent))]
        order = sorted(range(len(sent)), key=places.__getitem__)
        one = make.Talk(numbers=(number, 99), step=10_000).open()
        first = one.seq[0]
        for k in order:
            one.raw(0, first + sent[k][0], DATA, sent[k][1])
        one.seq[0] = first + len(stream)
        one.ack(1).tell(OK * 12).end()
        rows, counters = read(one.packets)
        rows.sort(key=lambda row: row["index"])  # they come by the time of their first byte (W1)
        assert [row["head"] for row in rows] == [request[: request.index(b"\r\n\r\n") + 4] for request in requests]
        assert hashes(rows) == [sha(request[request.index(b"\r\n\r\n") + 4 :]) for request in requests]
        assert counters["overlap_conflict"] == 0 and counters["gaps"] == 0 and counters["withheld"] == {}
        assert [row["status"] for row in rows] == [200] * 12


def test_reply_recorded_before_its_request():
    """Packets of the two directions change places: causality puts them right (R4)."""
    one = make.Talk(step=100_000).open()
    for n in range(10):
        one.ask(get(n)).tell(OK)
    packets = one.end().packets
    for first in (3, 4):
        swapped = list(packets)
        for at in range(first, 22, 2):
            swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
        assert seen(swapped)[0] == [(f"/{n}", None, 200) for n in range(10)]


def test_acknowledged_before_it_is_seen():
    """An ACK in front of its data makes no gap within 50 ms, nor within 10 ms or 64 packets, nor where time stands still within 1,024; then the bytes are given up."""
    for delay, late in ((0.04, False), (0.06, True)):
        one = make.Talk(step=0).open().ask(get(0)).tell(OK)
        first = one.seq[0]
        one.seq[0] += len(post(1))
        one.ack(1).skip(delay)
        one.ack(1)
        one.raw(0, first, DATA, post(1)).tell(OK).ask(get(2)).tell(OK).end()
        rows, counters = seen(one.packets)
        assert (counters["gaps"] > 0) == late
        assert ("/1", None, 200) in rows or late
        assert rows[-1] == ("/2", None, 200)
    for packets, seconds, late in ((40, 0.02, False), (80, 0.005, False), (80, 0.02, True), (900, 0, False), (1100, 0, True)):
        one = make.Talk(step=0).open().ask(get(0)).tell(OK)
        first = one.seq[0]
        one.seq[0] += len(post(1))
        for _ in range(packets):
            one.ack(1).skip(seconds / packets)
        one.raw(0, first, DATA, post(1)).tell(OK).end()
        assert (seen(one.packets)[1]["gaps"] > 0) == late, (packets, seconds)


@pytest.mark.parametrize("ahead_ms", [0, 1, 2, 5, 9])
def test_a_file_for_each_direction_whose_clocks_differ(ahead_ms):
    """The server's packets are stamped earlier than the client's that they answer, with a hundred packets a reply: all bytes are there, so nothing is lost."""
    one = make.Talk(step=10_000).open()
    for n in range(20):
        one.ask(get(n))
        one.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(100):
            one.tell(b"x" * 1000)
        one.skip(0.06)
    one.end()
    packets = sorted(((ts - ahead_ms * 1_000_000 if data[26:30] != one.packets[0][1][26:30] else ts), data) for ts, data in one.packets)
    rows, counters = seen(packets)
    assert rows == [(f"/{n}", None, 200) for n in range(20)] and not counters["gaps"], counters


# ---- R2: overlap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start,end", [(70, 80), (70, 82), (65, 80), (65, 85), (72, 75), (60, 97)])
def test_first_copy_wins_whatever_it_covers(start, end):
    """Bytes 70 to 80 wait, then a copy of [start, end) that differs in every byte."""
    good = post(0, bytes(range(65, 65 + 40)))
    one = make.Talk().open()
    first = one.seq[0]
    one.raw(0, first + 70, DATA, good[70:80])
    one.raw(0, first + start, DATA, b"." * (end - start))
    one.raw(0, first, DATA, good[:50]).raw(0, first + 50, DATA, good[50:])
    one.seq[0] += len(good)
    one.tell(OK).end()
    rows, counters = read(one.packets)
    expected = bytearray(good)
    for at in (*range(start, 70), *range(80, end)):
        expected[at] = ord(".")
    head = good.index(b"\r\n\r\n") + 4
    assert len(good) == 97 and head < 60
    assert [row["head"] for row in rows] == [good[:head]]
    assert hashes(rows) == [sha(expected[head:])]
    assert counters["overlap_conflict"] >= 1


def test_a_conflict_is_counted_once_a_segment_and_changes_nothing():
    one = make.Talk().open()
    first = one.seq[0]
    data = post()
    one.raw(0, first + 20, DATA, data[20:]).raw(0, first + 20, DATA, b"?" * len(data[20:])).raw(0, first + 20, DATA, data[20:]).raw(0, first, DATA, data[:20])
    one.seq[0] += len(data)
    rows, counters = read(one.tell(OK).end().packets)
    assert (targets(rows), hashes(rows), counters["overlap_conflict"]) == (["/0"], [sha(BODY)], 1)


def test_a_later_copy_of_what_was_read_changes_nothing():
    one = make.Talk().open()
    first = one.seq[0]
    one.ask(post()).raw(0, first, DATA, b"Z" * len(post())).tell(OK).end()
    rows, _ = read(one.packets)
    assert (targets(rows), hashes(rows)) == (["/0"], [sha(BODY)])


# ---- R3: beginnings -------------------------------------------------------------------------------------------------


def test_data_on_a_syn():
    """TCP Fast Open: the request, or a part of it, is on the SYN."""
    for cut in range(1, len(post()) + 1):
        one = make.Talk()
        one.raw(0, one.seq[0], make.SYN, post()[:cut])
        one.seq[0] += 1 + cut
        one.raw(1, one.seq[1], make.SYN | make.ACK)
        one.seq[1] += 1
        if cut < len(post()):
            one.ask(post()[cut:])
        one.tell(OK).end()
        rows, _ = read(one.packets)
        assert (targets(rows), hashes(rows), rows[0]["withheld"], rows[0]["status"]) == (["/0"], [sha(BODY)], None, 200)


def test_data_on_a_syn_that_was_not_taken_is_sent_again():
    one = make.Talk()
    one.raw(0, one.seq[0], make.SYN, post()[:30])
    one.open().ask(post()).tell(OK).end()
    rows, _ = read(one.packets)
    assert (targets(rows), hashes(rows)) == (["/0"], [sha(BODY)])


@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_handshake_that_is_there_in_part(without):
    """The SYN or the SYN/ACK alone tell where the request's flow begins."""
    packets = make.Talk().open().ask(post()).tell(OK).ask(get(1)).tell(OK).end().packets
    rows, counters = seen([packet for at, packet in enumerate(packets) if at not in without])
    assert rows == [("/0", None, 200), ("/1", None, 200)]


@pytest.mark.parametrize("confirmed", [True, False])
def test_without_a_handshake(confirmed):
    """Mid-stream: the first request is sure only when a reply begins where it acknowledged (H8)."""
    one = make.Talk().open()
    del one.packets[:]
    one.ask(post())
    one.tell(OK) if confirmed else one.ack(1)
    rows, _ = seen(one.packets)
    assert rows == [("/0", None if confirmed else "unconfirmed", 200 if confirmed else None)]


def test_every_place_to_begin():
    """A capture that begins anywhere: what is found are the later requests, whole and true, never anything else."""
    one = make.Talk().open()
    for n in range(6):
        one.ask(post(n, get(90 + n) + b"!"), cuts=(20, 70)).tell(OK)
    packets = one.end().packets
    whole, _ = read(packets)
    true = {row["head"] for row in whole}
    assert targets(whole) == [f"/{n}" for n in range(6)]
    for start in range(len(packets)):
        rows, counters = read(packets[start:])
        sent = [row for row in rows if not row["withheld"]]
        assert all(row["head"] in true for row in sent), start
        if start < 20:
            assert sent[-1]["target"] == b"/5", "the last one is confirmed by its reply"
    assert seen(packets[start:])[0] == []


@pytest.mark.parametrize("tail", [b"x", b"12345", b"true", b"deadBEEF", b"GET", b"A" * 32, b"GET /forged"])
def test_the_end_of_a_body_is_not_the_beginning_of_a_request_line(tail):
    """It begins a segment and could begin a request line: what follows is found, or withheld, never sent with it in front."""
    for answered in (True, False):
        one = make.Talk().open()
        del one.packets[:]
        one.ask(tail)
        if answered:
            one.tell(OK)
        one.ask(get(1)).tell(OK)
        if not answered:
            one.tell(OK)
        one.ask(get(2)).tell(OK).end()
        rows, counters = read(one.packets)
        sent = [row["head"] for row in rows if not row["withheld"]]
        assert sent in ([get(1), get(2)], [get(2)])
        assert len(sent) == 2 or not answered
        assert [row["status"] for row in rows if not row["withheld"]] == [200] * len(sent)


def test_probe_before_anything_else():
    for data in (b"", b"\0"):
        one = make.Talk().open().ask(post()).tell(OK)
        del one.packets[:]
        one.raw(0, one.seq[0] - 1, make.ACK, data).ack(1).ask(post(1)).tell(OK).end()
        rows, _ = seen(one.packets)
        assert rows == [("/1", None, 200)]


@pytest.mark.parametrize("data", [b"", b"\0", b"f"])
def test_keep_alive_probes(data):
    one = make.Talk().open()
    for n in range(3):
        one.ask(post(n)).tell(OK)
        for _ in range(3):
            one.skip(30).raw(0, one.seq[0] - 1, make.ACK, data).ack(1).raw(1, one.seq[1] - 1, make.ACK, data).ack(0)
    rows, counters = seen(one.end().packets)
    assert rows == [(f"/{n}", None, 200) for n in range(3)]
    assert counters["overlap_conflict"] == 0 and counters["gaps"] == 0


def test_probes_of_a_closed_window():
    """The next byte alone, again and again, until the window opens."""
    for cut in range(1, len(post())):
        one = make.Talk().open().ask(post()[:cut])
        for _ in range(3):
            one.skip(5).raw(0, one.seq[0], make.ACK, post()[cut : cut + 1]).ack(1)
        one.ask(post()[cut:]).tell(OK).ask(get(1)).tell(OK).end()
        rows, counters = seen(one.packets)
        assert rows == [("/0", None, 200), ("/1", None, 200)]


# ---- directions -----------------------------------------------------------------------------------------------------


def one_way(side):
    one = make.Talk().open()
    for n in range(5):
        one.ask(post(n)).tell(OK)
    ports = ((40000).to_bytes(2, "big"), (80).to_bytes(2, "big"))
    return [packet for packet in one.end().packets if packet[1][34:36] == ports[side]]


def test_requests_alone():
    rows, counters = seen(one_way(0))
    assert rows == [(f"/{n}", None, None) for n in range(5)]
    assert counters["lost_estimated"] == 0


def test_requests_alone_without_a_beginning():
    rows, counters = seen(one_way(0)[1:])
    assert rows == [(f"/{n}", "unconfirmed", None) for n in range(5)]
    rows, counters = seen(one_way(0)[2:])
    assert rows == [(f"/{n}", "unconfirmed", None) for n in range(5)]
    rows, counters = seen(one_way(0)[2:], loose=True)
    assert rows == [(f"/{n}", None, None) for n in range(5)]


def test_replies_alone():
    rows, counters = seen(one_way(1))
    assert rows == [] and counters["lost_estimated"] == 5
    assert counters["other"] == {}


# ---- R4, R5: gaps ---------------------------------------------------------------------------------------------------


def lossy(lose, *, acks=True, after=0, step=1_000_000):
    """Four requests, POST with bodies of two segments; the segments in `lose` are not recorded. Numbers: 3 a request (head, body, reply)."""
    one = make.Talk(step=step).open()
    for n in range(4):
        for k, data in enumerate((post(n)[:-8], post(n)[-8:])):
            one.ask(data)
            if 3 * n + k in lose:
                del one.packets[-1]
        if acks:
            one.ack(1)
        one.tell(OK)
        if 3 * n + 2 in lose:
            del one.packets[-1]
    one.skip(after)
    return one.end().packets


ALL = [(f"/{n}", None, 200) for n in range(4)]


def test_a_gap_in_a_body_costs_that_request_alone():
    for n in range(4):
        for acks in (True, False):
            rows, counters = seen(lossy([3 * n + 1], acks=acks))
            assert rows == ALL[:n] + [(f"/{n}", "gap", None)] + ALL[n + 1 :], n
            assert counters["gaps"] == 1 and counters["gap_bytes"] == 8
            assert counters["incomplete"] == {"gap": 1} and counters["withheld"] == {}


def test_a_gap_in_a_head_costs_that_request_and_is_counted():
    for n in range(4):
        rows, counters = seen(lossy([3 * n]))
        assert rows == ALL[:n] + ALL[n + 1 :], "those that follow are confirmed by their replies"
        assert counters["gaps"] == 1 and counters["found"] == 3
        assert counters["lost_estimated"] == 1, "a reply without a request"


def test_a_whole_request_that_is_not_there():
    for n in range(4):
        rows, counters = seen(lossy([3 * n, 3 * n + 1]))
        assert rows == ALL[:n] + ALL[n + 1 :]
        assert counters["lost_estimated"] == 1 and counters["incomplete"] == {}


def test_a_lost_reply_costs_no_request():
    for n in range(4):
        rows, counters = seen(lossy([3 * n + 2]))
        assert rows == [(target, why, None if target == f"/{n}" else status) for target, why, status in ALL]
        assert counters["withheld"] == {} and counters["lost_estimated"] == 0


def test_every_pair_of_lost_segments_gives_nothing_untrue():
    true = {row["head"]: row["body_sha256"] for row in read(lossy([]))[0]}
    for lose in itertools.combinations(range(12), 2):
        rows, counters = read(lossy(lose), incomplete=True)
        whole = [row for row in rows if not row["incomplete"]]
        assert all(true[row["head"]] == row["body_sha256"] for row in whole), lose
        hit = {at // 3 for at in lose if at % 3 < 2}
        assert targets(rows) == [f"/{n}" for n in range(4) if n not in hit], lose


def unanswered_hole(seconds):
    """Only requests are recorded, so nothing acknowledges; the first half of the second request is missing."""
    one = make.Talk(step=1000)
    one.raw(0, one.seq[0], make.SYN)
    one.seq[0] += 1
    one.ask(get(0)).ask(post(1)[:-8])
    del one.packets[-1]
    one.ask(post(1)[-8:]).ask(get(2)).skip(seconds)
    other = make.Talk(client=(b"\x0a\0\0\1", 41000), at=one.at).open().ask(get(7)).tell(OK)
    return one, other


def test_a_hole_closes_by_time_when_nobody_acknowledges():
    for seconds, gaps in ((29, 0), (31, 1)):
        one, other = unanswered_hole(seconds)
        late = make.Talk(client=(b"\x0a\0\0\1", 41000), at=other.at)
        packets = one.packets + other.packets
        # The missing bytes come now: too late after 30 s of capture time.
        first = one.seq[0] - len(get(2)) - len(post(1))
        one.packets = packets
        one.at = late.at
        one.raw(0, first, DATA, post(1)[:-8])
        rows, counters = seen(packets)
        assert counters["gaps"] == gaps
        assert [row[0] for row in rows] == (["/0", "/2", "/7"] if gaps else ["/0", "/2", "/7", "/1"]), "ordered by their first bytes"


def test_what_was_sent_again_does_not_change_places_when_it_is_sent_on():
    """Shown in the order of first bytes; sent in the order of the connection (the shadow must see a client do one thing after the other)."""
    one = make.Talk(step=1000).open().ask(get(0))
    again = one.seq[0]
    one.seq[0] += len(get(1))
    one.ask(get(2)).raw(0, again, make.PSH | make.ACK, get(1))
    packets = one.packets
    assert targets(read(packets)[0]) == ["/0", "/2", "/1"]
    rows, _ = read(packets, show=False)
    assert targets(rows) == ["/0", "/1", "/2"]
    assert [row["ts_ns"] for row in rows] != sorted(row["ts_ns"] for row in rows)


def test_holes_close_at_the_end_of_the_capture_and_of_the_connection():
    one, _ = unanswered_hole(0)
    rows, counters = seen(one.packets)
    assert ([row[0] for row in rows], counters["gaps"]) == (["/0", "/2"], 1)
    one.raw(0, one.seq[0], make.RST)
    rows, counters = seen(one.packets)
    assert [row[0] for row in rows] == ["/0", "/2"] and counters["gaps"] == 1
    one, _ = unanswered_hole(0)
    one.raw(0, one.seq[0], make.FIN | make.ACK)
    rows, counters = seen(one.packets)
    assert [row[0] for row in rows] == ["/0", "/2"] and counters["gaps"] == 1


def test_a_hole_closes_when_too_much_waits():
    """4 MiB of one flow; the table's budget."""
    body = bytes(6 << 20)
    one = make.Talk(mtu=60000, step=1000).open().ask(get(0)).ask(get(1))
    del one.packets[-1]
    one.ask(post(2, body)).ask(get(3))
    rows, counters = seen(one.packets)
    assert [row[0] for row in rows] == ["/0", "/2", "/3"]
    assert hashes(read(one.packets)[0])[1] == sha(body)
    packets = []
    for port in range(40):  # 40 flows with 200 kB each that wait, 4 MB allowed
        one = make.Talk(client=(b"\x0a\0\0\1", 40000 + port), mtu=60000, step=10, at=make.START_NS + port, packets=packets).open().ask(get(0))
        del packets[-1]
        one.ask(post(port, bytes(200_000)))
    rows, counters = seen(sorted(packets), max_memory=8 << 20)
    assert counters["gaps"] == 40


def test_cut_segments_are_gaps_at_once():
    """R5: missing by the snap length, unless another copy is whole."""
    for whole_copy in (False, True):
        one = make.Talk().open()
        first = one.seq[0]
        one.ask(post(0), caplen=54 + 30)
        if whole_copy:
            one.packets.insert(-1, (one.packets[-1][0], make.segment(b"\x0a\0\0\1", b"\x0a\0\0\2", 40000, 80, first, one.seq[1], DATA, post(0))))
        rows, counters = seen(one.tell(OK).ask(get(1)).tell(OK).end().packets)
        assert rows == [("/0", None, 200) if whole_copy else ("/0", "cut_by_snaplen", None), ("/1", None, 200)]
        assert counters["incomplete"] == ({} if whole_copy else {"cut_by_snaplen": 1})
    one = make.Talk().open().ask(post(0), caplen=54 + len(post(0)) - 3).tell(OK).ask(get(1)).tell(OK).end()
    rows, counters = seen(one.packets)
    assert rows == [("/0", "cut_by_snaplen", None), ("/1", None, 200)]
    assert counters["gap_bytes"] == 3


# ---- FIN, R6: RST and SYN -------------------------------------------------------------------------------------------


def test_fin_before_missing_data():
    for cut in range(1, len(post())):
        one = make.Talk().open()
        first = one.seq[0]
        one.raw(0, first + len(post()), make.FIN | make.ACK).raw(0, first + cut, DATA, post()[cut:]).raw(0, first, DATA, post()[:cut])
        one.seq[0] += len(post()) + 1
        one.tell(OK).end(1)
        rows, counters = read(one.packets)
        assert (targets(rows), hashes(rows), rows[0]["status"]) == (["/0"], [sha(BODY)], 200)


def test_fin_with_the_last_data_and_replies_after_it():
    one = make.Talk().open().ask(get(0))
    one.ask(post(1), flags=make.FIN | DATA)
    one.seq[0] += 1
    one.tell(OK).tell(OK).end(1)
    assert seen(one.packets)[0] == [("/0", None, 200), ("/1", None, 200)]


def test_a_connection_that_ends_inside_a_message():
    for end in ("fin", "rst"):
        one = make.Talk().open().ask(get(0)).tell(OK).ask(post(1)[:-3])
        one.end() if end == "fin" else one.raw(0, one.seq[0], make.RST)
        rows, counters = seen(one.packets)
        assert rows == [("/0", None, 200), ("/1", "closed", None)]
        assert counters["incomplete"] == {"closed": 1}
    one = make.Talk().open().ask(get(0)).tell(OK).ask(post(1)[:-3])
    assert seen(one.packets)[1]["incomplete"] == {"cut_at_end": 1}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("away", [1, -1, 5, 10_000, -10_000, 2**31, 2**30])
def test_wild_resets_and_syns_change_nothing(side, away):
    one = make.Talk().open()
    for n in range(3):
        one.ask(post(n)[:30])
        for flags in (make.RST, make.RST | make.ACK, make.SYN, make.SYN | make.ACK, make.FIN | make.ACK if abs(away) > 100 else make.RST):
            one.raw(side, one.seq[side] + away, flags, ack=one.seq[1 - side])
        one.ask(post(n)[30:]).tell(OK)
    rows, counters = seen(one.end().packets)
    assert rows == [(f"/{n}", None, 200) for n in range(3)]
    assert counters["connections"] == 1


def test_a_true_reset_ends_and_bytes_after_it_prove_it_was_none():
    one = make.Talk().open().ask(get(0)).tell(OK)
    one.raw(0, one.seq[0], make.RST).raw(0, one.seq[0], make.RST)
    rows, counters = seen(one.packets)
    assert rows == [("/0", None, 200)]
    one.ask(get(1)).tell(OK).end()
    rows, counters = seen(one.packets)
    assert [row[0] for row in rows] == ["/0", "/1"]


# ---- R7: ports used again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["fin", "rst", "nothing"])
@pytest.mark.parametrize("number", [5_000_000, 2**32 - 3, 1000 + 300])
def test_ports_used_again_with_a_handshake(ending, number):
    one = make.Talk().open().ask(get(0)).tell(OK).ask(post(1)[:-3])
    if ending != "nothing":
        one.end() if ending == "fin" else one.raw(0, one.seq[0], make.RST)
    make.Talk(numbers=(number, number ^ 0x5000_0000), at=one.at, packets=one.packets).open().ask(post(2)).tell(OK).ask(get(3)).tell(OK).end()
    rows, counters = seen(one.packets)
    assert rows == [("/0", None, 200), ("/1", "closed", None), ("/2", None, 200), ("/3", None, 200)]
    assert counters["connections"] == 2


@pytest.mark.parametrize("ending", ["fin", "rst", "quiet", "nothing"])
def test_ports_used_again_without_a_handshake(ending):
    """Numbers that fit neither stream: a new connection, at once after an end, else when something confirms it."""
    one = make.Talk().open().ask(get(0)).tell(OK)
    if ending == "fin":
        one.end()
    elif ending == "rst":
        one.raw(0, one.seq[0], make.RST)
    elif ending == "quiet":
        one.skip(121)
    two = make.Talk(numbers=(3_000_000_000, 2_000_000_000), at=one.at, packets=one.packets)
    two.ask(post(1)).tell(OK).ask(get(2)).tell(OK).end()
    rows, counters = seen(one.packets)
    assert rows == [("/0", None, 200), ("/1", None, 200), ("/2", None, 200)]
    assert counters["connections"] == 2


def test_a_single_stray_segment_is_kept_aside_and_forgotten():
    one = make.Talk().open().ask(get(0)).tell(OK)
    for n in range(5):
        one.raw(0, 3_000_000_000 + 10_000_000 * n, DATA, get(50 + n))
    one.ask(get(1)).tell(OK).end()
    rows, counters = seen(one.packets)
    assert rows == [("/0", None, 200), ("/1", None, 200)]
    assert counters["connections"] == 1


def test_aside_is_bounded():
    one = make.Talk(step=1000).open().ask(get(0)).tell(OK)
    for n in range(500):
        one.raw(0, 1_500_000_000 + 1_000_000 * n, DATA, b"x" * 1400)
    one.ask(get(1)).tell(OK).end()
    assert seen(one.packets)[0] == [("/0", None, 200), ("/1", None, 200)]


def test_the_same_ports_a_hundred_times():
    packets = []
    at = make.START_NS
    for n in range(100):
        one = make.Talk(numbers=(n * 77_777_777 % 2**32, n * 99_999_999 % 2**32), at=at, packets=packets).open().ask(post(n)).tell(OK).end()
        at = one.at
    rows, counters = seen(packets)
    assert rows == [(f"/{n}", None, 200) for n in range(100)]
    assert counters["connections"] == 100


# ---- bounds ---------------------------------------------------------------------------------------------------------


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_flood_of_half_open_connections_costs_nothing():
    """A real conversation goes on through 60,000 SYNs, and memory does not follow their number."""
    for limit in (1000, 262144):
        talk = make.Talk(step=1000).open().ask(post(0)[:40])
        for n in range(60_000):
            talk.packets.append((talk.at, make.segment(b"\x0b" + n.to_bytes(3, "big"), b"\x0a\0\0\2", 1024 + n % 60000, 80, n * 65537, 0, make.SYN, pad=False)))
        talk.ask(post(0)[40:]).tell(OK).end()
        data = list(talk.packets)
        before = resident()
        rows, counters = seen(data, max_connections=limit)
        assert rows == [("/0", None, 200)]
        assert counters["connections"] == 1
        assert resident() - before < 60 << 20 or "asan" in os.environ.get("LD_PRELOAD", "")
        if limit == 1000:
            assert counters["evicted"] == 60_001 - limit
        del data, talk


def test_more_connections_than_allowed():
    """The one that is quiet for longest goes, and what it had begun is counted."""
    packets = []
    for n in range(40):
        make.Talk(client=(b"\x0a\0\0\1", 40000 + n), at=make.START_NS + n * 10**7, packets=packets).open().ask(post(n)[:-1])
    rows, counters = seen(packets, max_connections=16)
    assert counters["evicted"] == 24
    assert counters["incomplete"] == {"evicted": 24, "cut_at_end": 16}
    assert sorted(row[0] for row in rows if row[1] == "evicted") == sorted(f"/{n}" for n in range(24))
    assert counters["connections"] == 40


def test_ended_connections_make_room_first():
    packets = []
    slow = make.Talk(client=(b"\x0a\0\0\1", 39999), packets=packets).open().ask(post(0)[:-1])
    for n in range(100):
        make.Talk(client=(b"\x0a\0\0\1", 40000 + n), at=slow.at + n * 10**8, packets=packets).open().ask(get(n)).tell(OK).end()
    slow.skip(1000)
    slow.ask(post(0)[-1:]).tell(OK)
    rows, counters = seen(packets, max_connections=16)
    assert len(rows) == 101 and counters["evicted"] == 0 and counters["incomplete"] == {}


# ---- D2: lengths ----------------------------------------------------------------------------------------------------


def test_padding_is_never_data():
    """Pure ACKs and small segments are padded to 60 bytes with 0xaa here; nothing of it shows."""
    body = b"x" * 3
    for four in (True, False):
        ends = {} if four else {"client": (bytes(15) + b"\1", 40000), "server": (bytes(15) + b"\2", 80)}
        one = make.Talk(**ends).open()
        for n in range(5):
            one.ask(post(n, body), cuts=range(1, len(post(n, body)), 2)).ack(1).ack(0).tell(OK).ack(0)
        rows, counters = seen(one.end().packets)
        assert rows == [(f"/{n}", None, 200) for n in range(5)]
        assert counters["overlap_conflict"] == 0


@pytest.mark.parametrize("size", [65_000, 65_495])
def test_super_packets(size):
    body = bytes(range(256)) * 1000
    one = make.Talk(mtu=size).open().ask(post(0, body)).tell(OK).ask(get(1)).tell(OK).end()
    rows, counters = read(one.packets)
    assert (targets(rows), hashes(rows)) == (["/0", "/1"], [sha(body), sha(b"")])


@pytest.mark.parametrize("four", [True, False])
def test_total_length_zero_means_the_captured_length(four):
    """Segmentation offload over 64 KB (BIG TCP) leaves the field zero."""
    body = bytes(range(256)) * 1000
    ends = {} if four else {"client": (bytes(15) + b"\1", 40000), "server": (bytes(15) + b"\2", 80)}
    one = make.Talk(mtu=200_000, **ends).open().ask(post(0, body), total=0, pad=False).tell(OK).ask(get(1), total=0, pad=False).tell(OK).end()
    rows, counters = read(one.packets)
    assert (targets(rows), hashes(rows)) == (["/0", "/1"], [sha(body), sha(b"")])
