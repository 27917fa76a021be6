"""The targets: functions of bytes that raise when an invariant does not hold. They need no fuzzer."""

import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import engine
import packetmake as net
import pcapmake

from replay import _fastpath
from replay.capture import envoytap, gor
from replay.capture.records import Records

START = 1_700_000_000_000_000_000
SMALL = 1 << 18  # windows are an eighth of what may be read
# gzip and zstd: what unpacks may be much, so it is read in a thread of its own, while its requests are taken.
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16)))

_file = os.memfd_create("capture")  # one for all inputs


def _capture(data):
    """A path that reads as this file, in memory, until the next call."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    return f"/proc/self/fd/{_file}"


def _read(path, data, **options):
    """What is found, and how: small captures in this thread and with small windows, which is quick under a sanitizer."""
    packed = data.startswith(PACKED)
    return engine.found(path, here=not packed, most_bytes=0 if packed else max(SMALL, 2 * len(data)), max_memory=8 << 20, max_connections=256, **options)


def _found(data, **options):
    return _read(_capture(data), data, **options)


def reader(data):
    """Any file is read to its end or refused; every packet is a segment or skipped under a name; memory is given back; a second reading gives the same."""
    rows, counters, faults = _found(data, incomplete=True)
    again, same, _ = _found(data, incomplete=True)
    assert rows == again and counters["digest"] == same["digest"]
    assert all(isinstance(fault["code"], str) for fault in faults)


def _segments(data):
    """Instructions as packets of up to four connections: an opcode, a step of the sequence number, a step of the acknowledgement, a length, bytes."""
    packets, at, ts = [], 0, START
    seq = [[1000, 5000] for _ in range(4)]
    while at + 6 <= len(data) and len(packets) < 400:
        op, step, back, length, missing, wait = struct.unpack_from("BbbBBB", data, at)
        at += 6
        payload = data[at : at + length]
        at += length
        which, side = op & 3, op >> 2 & 1
        client = (b"\x0a\0\0" + bytes([which + 1]), 40000 + which)
        ends = (client, net.SERVER) if side == 0 else (net.SERVER, client)
        flags = (net.ACK, net.ACK | net.PSH, net.SYN, net.SYN | net.ACK, net.FIN | net.ACK, net.RST, net.ACK, 0)[op >> 3 & 7]
        frame = net.frame(*ends, seq[which][side] + step, seq[which][1 - side] + back, flags, payload)
        ts += wait * wait * 20_000
        packets.append((ts, frame[: len(frame) - missing % 40] if op & 0x80 else frame, len(frame)))
        seq[which][side] += step * 8 if op & 0x40 else len(payload) + (flags & (net.SYN | net.FIN) != 0)
    return pcapmake.pcap(packets, nanoseconds=True)


def reassembly(data):
    """Segments of any order, overlap and loss: the books balance, and without the snap length's cuts nothing is called cut by it."""
    rows, counters, _ = _found(_segments(data), incomplete=True)
    assert counters["segments"] <= 400 and len(rows) <= 400
    if not any(packet & 0x80 for packet in data):
        assert "cut_by_snaplen" not in counters["incomplete"]


def http1(data):
    """A client's stream, whole and cut into segments, with a reply after each: nothing is sent that is not whole, and what is sent is framed as it was captured."""
    size = data[0] % 97 + 1 if data else 1
    stream = data[1:]
    pieces = [stream[i : i + size * 16] for i in range(0, len(stream), size * 16)]
    parts = []
    for piece in pieces:
        parts += [piece, ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")] if data and data[0] & 1 else [piece]
    capture = pcapmake.pcap(net.talk(*parts, mss=60000), nanoseconds=True)
    shown, counters, _ = _found(capture, incomplete=True)
    sent, selected, _ = _found(capture, show=False)
    assert len(sent) == selected["selected"] == sum(row["incomplete"] is None and row["withheld"] is None for row in shown)
    for row in sent:
        head = row["data"][: row["data"].find(b"\r\n\r\n") + 4]
        assert head.count(b"\n") == head.count(b"\r\n"), "a bare line end is ambiguous"
        assert b"\0" not in head
        lower = b"\n" + head.lower()
        assert lower.count(b"\ncontent-length:") <= 1 and not (b"\ncontent-length:" in lower and b"\ntransfer-encoding:" in lower)
    assert counters["found"] == selected["found"]


def reply(data):
    """A server's stream gives the same replies whether it is fed whole or in pieces."""
    size = data[0] + 1 if data else 1
    head = bool(data and data[0] & 1)
    stream = data[1:]
    whole, cut = _fastpath.ReplyForTests(), _fastpath.ReplyForTests()
    first = whole.feed(stream, head) if stream else []
    second = []
    for at in range(0, len(stream), size):
        second += cut.feed(stream[at : at + size], head)
    assert (first, whole.bad) == (second, cut.bad)
    assert whole.end() == cut.end()


def _records(data, piece=4096, **options):
    for reader_of in (gor, envoytap):
        reader_of._PIECE = piece
    records = Records([_capture(data)])
    rows, counters, _ = _read([], data, records=records, **options)
    return rows, counters, records.faults


def records(data):
    """A tap file of Envoy or a .gor file, of any bytes: read to its end twice, in pieces of two sizes, with the same result; each record is a request, incomplete or a fault; what may be sent is a request."""
    rows, counters, faults = _records(data, incomplete=True)
    # Of a damaged gzip stream the last bytes before the damage come out or not, as it is read.
    again, same, _ = _records(data, piece=4096 if data.startswith(PACKED) else 16 + len(data) % 61, incomplete=True)
    assert rows == again and counters["digest"] == same["digest"]
    assert all(fault.message for fault in faults)
    sent, selected, _ = _records(data, show=False)
    assert len(sent) == selected["selected"] == sum(row["incomplete"] is None and row["withheld"] is None for row in rows)
    for row in sent:
        head = row["data"][: row["data"].find(b"\r\n\r\n") + 4]
        assert head.count(b"\n") == head.count(b"\r\n") and b"\0" not in head


TARGETS = {"reader": reader, "reassembly": reassembly, "http1": http1, "reply": reply, "records": records}
