"""Random mutations of every capture through the reading half: no crash, no hang, books that balance, memory that is given back.

REPLAY_MUTATIONS=100000 does so many instead of a few thousand. A failure names its number: `mutated(NUMBER)` gives that input again.
"""

import faulthandler
import gzip
import os
import pathlib
import random
import struct
import sys
import time

import endtoend
import engine
import packetmake as net
import pytest

from replay._fastpath import Capture, Stop

COUNT = int(os.environ.get("REPLAY_MUTATIONS", "4000"))
CHUNKS = 6
WINDOW = 40_000  # bytes of a capture at a time: many small inputs find more than few large ones
CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "captures" / "corpus"
FILES = sorted(
    [path for folder in (endtoend.ROOT / "captures").iterdir() if folder.is_dir() for path in folder.iterdir() if ".pcap" in path.name]
    + [endtoend.DEMO]
    + [path for path in CORPUS.glob("*") if not path.name.endswith(".json")],
    key=lambda path: (path.parent == CORPUS, str(path)),
)
EXTREMES = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 14, 20, 40, 65535, 262144, 262145)
WORDS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: -1\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"Host: b\r\n", b"Expect: 100-continue\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0", b"\n", b"\r", b" ", b"\x16\x03\x01",
)  # fmt: skip
_held: dict[pathlib.Path, tuple[bytes, list[int]]] = {}


def content(path):
    """(the bytes of a capture without its compression, where its records begin: empty unless it is pcap)."""
    if path not in _held:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        records = []
        if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d"):
            order, at = "<" if data[0] in b"\xd4\x4d" else ">", 24
            while at + 16 <= len(data):
                records.append(at)
                at += 16 + struct.unpack_from(order + "I", data, at + 8)[0]
        _held[path] = data, records
    return _held[path]


def window(rng, path):
    """A part of a capture: from any of its records on, or its beginning."""
    data, records = content(path)
    if len(data) <= WINDOW:
        return data
    at = rng.choice(records) if records and rng.random() < 0.8 else 24
    return data[:24] + data[at : at + WINDOW]


def place(rng, data):
    """Anywhere; more often near the beginning, where the headers are."""
    return rng.randrange(len(data)) if rng.random() < 0.8 else rng.randrange(min(len(data), 200))


def overwrite(rng, data, other):
    """One change in place that leaves all lengths alone."""
    at = place(rng, data)
    length = min(len(data) - at, int(2 ** rng.uniform(0, 9)))
    kind = rng.randrange(7)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        size = min(len(data) - at, rng.choice((1, 2, 4)))
        data[at : at + size] = (rng.choice(EXTREMES) & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("big", "little")))
    elif kind == 3:
        data[at : at + length] = bytes(length)
    elif kind == 4:
        word = rng.choice(WORDS)[: len(data) - at]
        data[at : at + len(word)] = word
    elif kind == 5:
        begin = rng.randrange(max(1, len(other) - length))
        part = other[begin : begin + length]
        data[at : at + len(part)] = part
    else:
        there = rng.randrange(len(data) - length + 1)
        part = data[there : there + length]
        data[at : at + length] = part


def shift(rng, data, other):
    """One change after which what follows stands elsewhere, or is gone."""
    at = place(rng, data)
    length = min(len(data) - at, int(2 ** rng.uniform(0, 12)))
    kind = rng.randrange(5)
    if kind == 0:
        del data[at : at + length]
    elif kind == 1:
        data[at:at] = rng.randbytes(length)
    elif kind == 2:
        data[at:at] = data[at : at + length]
    elif kind == 3:
        data[at:at] = rng.choice(WORDS)
    else:
        del data[max(1, at) :]


def record(order, head, frame, wirelen=None):
    """A record of pcap with this frame; the other numbers of its head stay."""
    return head[:8] + struct.pack(order + "II", len(frame), len(frame) if wirelen is None else wirelen) + frame


def packets_mutated(rng, path, other):
    """Packets in another order, repeated, left out, changed, some of another capture: each is found by whoever reads the file."""
    data, records = content(path)
    order = "<" if data[0] in b"\xd4\x4d" else ">"
    first = rng.randrange(max(1, len(records) - 150)) if rng.random() < 0.7 else 0
    ends = [*records[1:], len(data)]
    packets = [data[a:b] for a, b in zip(records[first : first + 150], ends[first : first + 150], strict=False)]
    strange, theirs = content(other)
    if theirs and strange[:4] == data[:4] and rng.random() < 0.3:
        packets += [strange[a:b] for a, b in zip(theirs[:20], [*theirs[1:21], len(strange)], strict=False)]
    for _ in range(int(2 ** rng.uniform(0, 5))):
        at, there = rng.randrange(len(packets)), rng.randrange(len(packets))
        frame = bytearray(packets[at][16:])
        kind = rng.randrange(9)
        if kind == 0:
            packets[at], packets[there] = packets[there], packets[at]
        elif kind == 1:
            packets.insert(at, packets[there])
        elif kind == 2 and len(packets) > 1:
            del packets[at]
        elif kind == 3:  # its time is another's
            packets[at] = packets[there][:8] + packets[at][8:]
        elif kind == 4:  # cut by a snap length
            wirelen = len(frame)
            packets[at] = record(order, packets[at], bytes(frame[: rng.randrange(len(frame) + 1)]), wirelen)
        elif kind == 5 and len(frame) > 14:  # the heads of one, the rest of the other
            mine, end = rng.randrange(min(len(frame), 120)), packets[there][16:]
            packets[at] = record(order, packets[at], bytes(frame[:mine]) + end[rng.randrange(len(end) + 1) :])
        elif frame:
            change = shift if rng.random() < 0.15 else overwrite
            for _ in range(rng.choice((1, 1, 1, 4))):
                if frame:
                    change(rng, frame, packets[there][16:] or b"x")
            packets[at] = record(order, packets[at], bytes(frame))
    return data[:24] + b"".join(packets)


def mutated(number):
    """(bytes of a capture, options of Ingest), always the same for a number."""
    rng = random.Random(number)
    path = FILES[number % len(FILES)] if rng.random() < 0.7 else rng.choice(FILES)
    other = rng.choice(FILES)
    kind, other_data = rng.random(), content(other)[0]
    if content(path)[1] and kind < 0.6:
        data = bytearray(packets_mutated(rng, path, other))
        if kind < 0.05:
            overwrite(rng, data, other_data)
    else:
        data = bytearray(window(rng, path))
        for _ in range(int(2 ** rng.uniform(0, 6))):
            if data:
                (shift if rng.random() < 0.05 else overwrite)(rng, data, other_data)
    if rng.random() < 0.05:
        data = bytearray(gzip.compress(bytes(data), 1))
        if rng.random() < 0.5:
            overwrite(rng, data, other_data)
    options = {"incomplete": True}
    if rng.random() < 0.3:
        options["show"] = False
        options["incomplete"] = False
    if rng.random() < 0.2:
        options["loose"] = True
    if rng.random() < 0.1:
        options["split_by_network"] = True
    if rng.random() < 0.1:
        options["max_memory"] = 2 << 20
    if rng.random() < 0.1:
        options["max_connections"] = rng.choice((1, 2, 5))
    if rng.random() < 0.1:
        options |= {"max_head": rng.choice((100, 1000)), "max_body": rng.choice((0, 1, 1000))}
    if rng.random() < 0.1:
        options["share"] = 500_000
    return bytes(data), options


@pytest.fixture(autouse=True)
def no_endless_wait():
    """A hang in the engine is seen, with where it is."""
    faulthandler.dump_traceback_later(60 + COUNT // 20, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def stable(counters):
    """What does not depend on how threads were scheduled."""
    return {name: counters[name] for name in ("found", "filtered", "withheld", "sampled_out", "selected", "incomplete", "digest", "lost_estimated")}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_mutations(chunk):
    total = slowest = 0
    failed = []
    for number in range(chunk, COUNT, CHUNKS):
        data, options = mutated(number)
        began = time.process_time()
        try:
            rows, counters, _ = engine.found_in(data, **options)
            if number % 20 == chunk:
                again = engine.found_in(data, **options)
                assert stable(again[1]) == stable(counters)
        except Exception as error:
            failed.append(f"mutation {number}: {type(error).__name__}: {error}")
            continue
        slowest = max(slowest, time.process_time() - began)
        total += len(rows)
    assert not failed, f"{len(failed)} failed:\n" + "\n".join(failed[:10])
    assert total > 0 or not COUNT
    assert slowest < 5


@pytest.mark.parametrize("path", FILES[:12], ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nothing_but_the_beginning(path):
    """The first bytes alone, one by one: what is said is said of a file that is cut."""
    data = content(path)[0]
    for length in [*range(0, 120, 3), 1000]:
        engine.found_in(data[:length])


def test_the_captures_are_whole():
    """The unmutated windows are captures: what is mutated begins as something sane."""
    assert len(FILES) >= 25
    for path in FILES[:25]:
        if content(path)[0][:4] == b"\x28\xb5\x2f\xfd":
            continue
        _, counters, faults = engine.found_in(content(path)[0])
        assert not faults and counters["packets"]["read"] > 0, path
    assert Capture([str(FILES[0])], stop=Stop()).faults == []


def test_memory_is_given_back_when_a_limit_ends_it(tmp_path):
    engine.found(endtoend.unique(tmp_path / "unique.pcap", 6, 3), limit=1)


@pytest.mark.parametrize("flags", [net.FIN | net.ACK, net.FIN, net.RST, net.RST | net.ACK], ids=["FIN ACK", "FIN", "RST", "RST ACK"])
def test_bytes_behind_an_end_and_a_gap_give_their_memory_back(flags):
    """Found by mutations 127451, 277464, 296529 and 400621."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"
    packets = [net.frame(net.CLIENT, net.SERVER, 1000, 1, net.ACK, head), net.frame(net.CLIENT, net.SERVER, 1000 + len(head), 1, flags)]
    packets.append(net.frame(net.CLIENT, net.SERVER, 1100 + len(head), 1, net.ACK, head))
    engine.read([(1_700_000_000_000_000_000 + i, packet) for i, packet in enumerate(packets)])
