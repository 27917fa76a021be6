"""Every kind of capture file gives the same requests; what is wrong with one is said, and what precedes it is used."""

import functools
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys

import pcapmake as make
import pytest
from engine import found, targets, values

from replay.capture.source import as_error, expand, looks_like_capture

HERE = pathlib.Path(__file__).parent
MICRO = 1000


def exchange(count=3, start=make.START_NS, port=40000, prefix="", step=1_000_000):
    """Packets of a conversation of `count` requests, GET and POST in turn."""
    talk = make.Talk(at=start, client=(b"\x0a\0\0\1", port), step=step).open()
    for at in range(count):
        body = b"x" * at
        talk.ask(b"%s /%s%d HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n%s" % (b"POST" if at % 2 else b"GET", prefix.encode(), at, len(body), body))
        talk.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return talk.end().packets


PACKETS = exchange()
PATHS = ["/0", "/1", "/2"]


def saved(tmp_path, data, name="capture"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@functools.cache
def plain_rows():
    """What must come out, whatever the file."""
    path = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"formats-{os.getpid()}.pcap"
    try:
        path.write_bytes(make.pcap(PACKETS))
        return values(found(path)[0])
    finally:
        path.unlink()


PLAIN = {
    "pcap": make.pcap(PACKETS),
    "pcap big-endian": make.pcap(PACKETS, big_endian=True),
    "pcap ns": make.pcap(PACKETS, nanoseconds=True),
    "pcap ns big-endian": make.pcap(PACKETS, nanoseconds=True, big_endian=True),
    "modified": make.pcap(PACKETS, modified=True),
    "modified big-endian": make.pcap(PACKETS, modified=True, big_endian=True),
    "pcap, time zone field set": make.pcap(PACKETS, zone=3600),
    "pcap, link type with FCS length above it": make.pcap(PACKETS, link=1 | 0x24000000),
    "pcap, snap length 0": make.pcap(PACKETS, snaplen=0),
    "pcapng": make.pcapng(PACKETS),
    "pcapng big-endian": make.pcapng(PACKETS, big_endian=True),
    "pcapng, tenths of microseconds": make.pcapng(PACKETS, tsresol=7),
    "pcapng ns": make.pcapng(PACKETS, tsresol=9),
    "pcapng ns big-endian": make.pcapng(PACKETS, tsresol=9, big_endian=True),
    "pcapng ps, offset": make.pcapng(PACKETS, tsresol=12, tsoffset=1_699_999_999),
    "pcapng milliseconds": make.pcapng(PACKETS, tsresol=3),
    "pcapng, offset": make.pcapng(PACKETS, tsoffset=-7200),
    "pcapng, offset big-endian": make.pcapng(PACKETS, tsoffset=1_000_000_000, big_endian=True),
    "pcapng, obsolete blocks": make.pcapng(PACKETS, blocks="pb", tsresol=9),
    "pcapng, obsolete blocks, drops": make.section() + make.interface() + b"".join(make.obsolete(p, drops=7) for p in PACKETS),
    "pcapng, kinds mixed": make.pcapng(PACKETS, blocks=("epb", "pb"), tsresol=6),
    "pcapng, other blocks and comments": make.pcapng(PACKETS, with_noise=True, options=make.option(1, b"a comment") + make.option(0, b"")),
    "pcapng, the same big-endian": make.pcapng(PACKETS, with_noise=True, big_endian=True, options=make.option(1, b"odd", big_endian=True)),
    "pcapng, options unpadded at their end": make.section(options=make.option(4, b"x")) + make.interface() + b"".join(map(make.enhanced, PACKETS)),
    "pcapng, section length given": make.section(length=4096) + make.interface() + b"".join(map(make.enhanced, PACKETS)),
    "pcapng, several sections of both orders": b"".join(
        make.pcapng([p], big_endian=at % 2 == 1, tsresol=(None, 9, 6, 3)[at % 4]) for at, p in enumerate(PACKETS)
    ),
    "pcapng, section without packets": make.pcapng([]) + make.pcapng(PACKETS[:4]) + make.pcapng([]) + make.pcapng(PACKETS[4:], big_endian=True) + make.section(),
}
PACKINGS = {
    "plain": lambda data: data,
    "gzip": make.gzipped,
    "gzip, members": functools.partial(make.gzipped, members=7),
    "gzip, padded": lambda data: make.gzipped(data) + bytes(512),
    "zstd": make.zstded,
    "zstd, frames": functools.partial(make.zstded, frames=5, skippable=True),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", PLAIN)
def test_every_kind_of_file_gives_the_same_requests(tmp_path, name, packing):
    rows, counters, faults = found(saved(tmp_path, PACKINGS[packing](PLAIN[name])))
    assert values(rows) == plain_rows()
    assert targets(rows) == PATHS
    assert faults == []
    assert counters["packets"] == {"read": len(PACKETS), "skipped": {}, "cut_frames": 0}


def test_times_are_exact_in_every_unit(tmp_path):
    packets = exchange(step=1_234_567)
    first = [packet[0] for packet in packets][3]

    def time(data):
        rows, _, faults = found(saved(tmp_path, data))
        assert faults == [] and targets(rows) == PATHS
        return rows[0]["ts_ns"]

    assert time(make.pcap(packets, nanoseconds=True)) == first
    assert time(make.pcap(packets)) == first // 1000 * 1000
    for digits in range(3, 13):
        unit = max(1, 10 ** (9 - digits))
        assert time(make.pcapng(packets, tsresol=digits, tsoffset=1_699_999_000)) == first // unit * unit
    for bits in (10, 20, 24, 30, 32, 33):  # powers of two: off by less than a tick
        assert 0 <= first - time(make.pcapng(packets, tsresol=0x80 | bits, tsoffset=1_699_999_000)) <= 10**9 / 2**bits + 1


def test_several_interfaces_each_with_its_own_link_and_clock(tmp_path):
    raw = [(ts, data[14:][: struct.unpack(">H", data[16:18])[0]]) for ts, data in PACKETS]
    clocks = [(None, None), (9, 5), (0x80 | 30, None), (3, -100)]
    for big_endian in (False, True):
        data = make.section(big_endian=big_endian)
        data += b"".join(make.interface(link=(1, 101, 228, 1)[at], tsresol=a, tsoffset=b, big_endian=big_endian) for at, (a, b) in enumerate(clocks))
        for at in range(len(PACKETS)):
            k = at % 4
            ts, payload = raw[at] if k in (1, 2) else PACKETS[at]
            data += make.enhanced((ts, payload, None, k), big_endian=big_endian, tsresol=clocks[k][0], tsoffset=clocks[k][1])
        rows, counters, faults = found(saved(tmp_path, data))
        assert (targets(rows), faults, counters["segments"]) == (PATHS, [], len(PACKETS))


def test_interfaces_described_late(tmp_path):
    data = make.section() + make.interface() + b"".join(map(make.enhanced, PACKETS[:5]))
    data += make.interface(tsresol=9) + b"".join(make.enhanced((ts, p, None, 1), tsresol=9) for ts, p in PACKETS[5:])
    rows, _, faults = found(saved(tmp_path, data))
    assert (values(rows), faults) == (plain_rows(), [])


def test_simple_packets_have_the_time_of_the_one_before(tmp_path):
    rows, counters, faults = found(saved(tmp_path, make.pcapng(PACKETS, blocks="spb")))
    assert (targets(rows), faults) == (PATHS, [])
    assert [row["ts_ns"] for row in rows] == [0, 0, 0]
    data = make.section() + make.interface() + make.enhanced(PACKETS[0]) + b"".join(map(make.simple, PACKETS[1:]))
    rows, _, _ = found(saved(tmp_path, data))
    assert targets(rows) == PATHS
    assert {row["ts_ns"] for row in rows} == {PACKETS[0][0]}


def test_simple_packets_are_as_long_as_the_snap_length_says(tmp_path):
    def cut(packet):
        return make.block(make.SIMPLE_PACKET, struct.pack("<I", len(packet[1])) + packet[1][:62])

    data = make.section() + make.interface(snaplen=62) + b"".join(map(cut, PACKETS))
    rows, counters, faults = found(saved(tmp_path, data))
    assert (rows, faults) == ([], [])
    assert counters["packets"]["cut_frames"] == sum(len(p) > 62 for _, p in PACKETS)


@pytest.mark.parametrize("version", [(2, 4), (2, 3), (2, 2), (543, 0)], ids=str)
def test_old_versions_of_pcap_exchange_the_lengths(tmp_path, version):
    data = bytearray(make.pcap_header(version=version))
    for packet in PACKETS:
        record = bytearray(make.pcap_record(packet))
        if version != (2, 4):
            record[8:12], record[12:16] = record[12:16], record[8:12]
        data += record
    rows, _, faults = found(saved(tmp_path, data))
    assert (values(rows), faults) == (plain_rows(), [])


def test_zero_bytes_between_members_and_trailing_bytes_after_them(tmp_path):
    for pack in (make.gzipped, make.zstded):
        rows, _, faults = found(saved(tmp_path, pack(PLAIN["pcap"]) + b"something else"))
        assert values(rows) == plain_rows()
        assert [(fault["code"], fault["fatal"]) for fault in faults] == [("trailing", False)]


# ---- standard input, folders, globs ---------------------------------------------------------------------------------

CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from engine import found, targets
rows, counters, faults = found(["-", *sys.argv[2:]])
print(json.dumps([targets(rows), counters["packets"]["read"], [fault["code"] for fault in faults]]))
"""


def from_pipe(data, *paths, pieces=1):
    """What a process finds that reads `data` from a pipe, written in so many pieces."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(HERE), *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        for piece in make.pieces(data, pieces):
            child.stdin.write(piece)
            child.stdin.flush()
        child.stdin.close()
        out = child.stdout.read()
    assert child.returncode == 0
    return json.loads(out)


@pytest.mark.parametrize("packing", ["plain", "gzip, members", "zstd, frames"])
@pytest.mark.parametrize("name", ["pcap", "pcapng, several sections of both orders"])
def test_standard_input(name, packing):
    assert from_pipe(PACKINGS[packing](PLAIN[name]), pieces=9) == [PATHS, len(PACKETS), []]


def test_standard_input_that_is_empty_cut_or_foreign():
    assert from_pipe(b"") == [[], 0, ["empty"]]
    assert from_pipe(PLAIN["pcap"][:-1]) == [PATHS, len(PACKETS) - 1, ["cut"]]
    assert from_pipe(b"hello, world") == [[], 0, ["unknown_format"]]


def test_standard_input_beside_a_file(tmp_path):
    path = saved(tmp_path, make.pcap(exchange(start=make.START_NS + 500_000, port=40001, prefix="b")))
    assert from_pipe(PLAIN["pcap"], path, pieces=5) == [["/0", "/b0", "/1", "/b1", "/2", "/b2"], 2 * len(PACKETS), []]


def test_a_named_pipe(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())", path], stdin=subprocess.PIPE)
    with writer:
        writer.stdin.write(make.gzipped(PLAIN["pcapng"]))
        writer.stdin.close()
        rows, _, faults = found(path)
    assert (values(rows), faults) == (plain_rows(), [])


def test_the_name_says_nothing_the_content_all(tmp_path):
    for name in ("x.pcap.gz", "x.pcapng", "x.zst", "x.txt", "x"):
        rows, _, faults = found(saved(tmp_path, PLAIN["pcap ns"], name))
        assert (targets(rows), faults) == (PATHS, [])


def test_folders_and_globs(tmp_path):
    folder = tmp_path / "captures"
    (folder / "deeper" / ".hidden").mkdir(parents=True)
    packets = exchange(count=6)
    parts = [packets[at : at + 2] for at in range(0, len(packets), 2)]
    for at, part in enumerate(parts):  # part2 comes before part10 in order of names
        kind = (make.pcap, make.pcapng, lambda p: make.gzipped(make.pcap(p)), lambda p: make.zstded(make.pcapng(p)))[at % 4]
        saved(folder / "deeper" if at % 3 == 0 else folder, kind(part), f"part{at + 5}{('.pcap', '.pcapng', '', '.zst')[at % 4]}")
    saved(folder, b"about", "README.md")
    saved(folder / "deeper" / ".hidden", make.pcap(PACKETS), "not.pcap")
    expected = [f"/{n}" for n in range(6)]

    def through(*words):
        paths, errors = expand([str(word) for word in words])
        assert errors == []
        rows, counters, faults = found(paths)
        assert faults == []
        return targets(rows), len(paths)

    assert through(folder) == (expected, len(parts))
    assert through(folder / "**" / "part*") == (expected, len(parts))
    assert through(folder / "part*", folder / "deeper" / "part*", folder) == (expected, len(parts)), "each once"
    os.symlink(folder / "part6.pcapng", folder / "link.pcapng")
    assert through(folder)[1] == len(parts)
    names = [pathlib.Path(path).name for path in expand([str(folder / "part*")])[0]]
    assert names == sorted(names, key=lambda name: int("".join(filter(str.isdigit, name.split(".")[0]))))


def test_words_that_name_nothing(tmp_path):
    paths, errors = expand([str(tmp_path), str(tmp_path / "*.pcap"), str(tmp_path / "none.pcap"), "-"])
    assert paths == [str(tmp_path / "none.pcap"), "-"]
    assert ["no capture" in str(error) for error in errors] == [True, True]
    assert "found no file" in str(errors[0]) and "Check the path" in str(errors[1])


def test_a_file_whose_name_holds_magic_is_itself(tmp_path):
    path = saved(tmp_path, PLAIN["pcap"], "a[1]*.pcap")
    assert expand([str(path)]) == ([str(path)], [])
    assert looks_like_capture(str(path)) and not looks_like_capture(str(tmp_path / "none"))


# ---- several files --------------------------------------------------------------------------------------------------


def test_merged_by_time_in_any_order_of_names(tmp_path):
    rng = random.Random(5)
    paths, expected = [], []
    for at in range(20):  # more than stay open at once
        start = make.START_NS + rng.randrange(20) * 777_000
        packets = exchange(start=start, port=41000 + at, prefix=f"{at}-")
        expected += [(packets[3 + 2 * k][0], at, f"/{at}-{k}") for k in range(3)]
        kind = list(PLAIN)[at % 6]
        data = {
            "pcap": make.pcap, "pcap ns": lambda p: make.pcap(p, nanoseconds=True), "modified": lambda p: make.pcap(p, modified=True),
        }.get(kind, lambda p: make.pcapng(p, tsresol=9))(packets)
        paths.append(saved(tmp_path, data if at % 2 else make.gzipped(data), f"f{at}"))
    for _ in range(3):
        rows, counters, faults = found(paths)
        assert faults == [] and counters["connections"] == 20
        assert [row["ts_ns"] for row in rows] == sorted(row["ts_ns"] for row in rows)
        assert sorted(targets(rows)) == sorted(target for _, _, target in expected)
        rng.shuffle(paths)


def test_equal_times_go_in_the_order_of_names(tmp_path):
    packets = exchange(step=0)
    one = saved(tmp_path, make.pcap(packets[:5]), "z")
    two = saved(tmp_path, make.pcap(packets[5:]), "a")
    assert targets(found([one, two])[0]) == PATHS


def test_the_same_capture_twice_counts_once(tmp_path):
    path = saved(tmp_path, PLAIN["pcap"])
    other = saved(tmp_path, PLAIN["pcapng"], "other")
    rows, counters, _ = found([path, other])
    assert values(rows) == plain_rows()
    assert counters["packets"]["read"] == 2 * len(PACKETS) and counters["repeated"] > 0


def test_a_bad_file_leaves_the_others_alone(tmp_path):
    good = saved(tmp_path, PLAIN["pcap"], "good")
    bad = saved(tmp_path, b"\0" * 100, "bad")
    for paths in ([good, bad], [bad, good], [bad, tmp_path / "none", good, tmp_path]):
        rows, _, faults = found(paths)
        assert values(rows) == plain_rows()
        assert all(fault["fatal"] for fault in faults) and len(faults) == len(paths) - 1


# ---- faults ---------------------------------------------------------------------------------------------------------

HEADER = make.pcap_header()
NG = make.section() + make.interface()
ONE = make.enhanced(PACKETS[0])
BEFORE = make.enhanced(PACKETS[0]) + make.enhanced(PACKETS[1])
FAULTS = [  # bytes, code, a piece of the message, offset, packet, count, fatal, packets that are used
    ("empty", b"", "empty", "is empty", 0, None, 1, True, 0),
    ("text", b"GET / HTTP/1.1\r\n", "unknown_format", "found text, 'GET / HTTP/1.1", 0, None, 1, True, 0),
    ("zeros", bytes(64), "unknown_format", "found zeros", 0, None, 1, True, 0),
    ("xz", b"\xfd7zXZ\0\0\0", "unknown_format", "xz -dc", 0, None, 1, True, 0),
    ("bzip2", b"BZh91AY&SY", "unknown_format", "bzip2 -dc", 0, None, 1, True, 0),
    ("zip", b"PK\x03\x04abc", "unknown_format", "zip archive", 0, None, 1, True, 0),
    ("snoop", b"snoop\0\0\0\0\0\0\2", "unknown_format", "snoop capture", 0, None, 1, True, 0),
    ("bytes", b"\x01\x02\x03\x80\x90", "unknown_format", "the bytes 01 02 03 80 90", 0, None, 1, True, 0),
    ("two bytes of text", b"hi", "unknown_format", "text, 'hi'", 0, None, 1, True, 0),
    ("magic alone", HEADER[:4], "cut", "inside its header (4 of 24 bytes)", 0, None, 1, True, 0),
    ("header cut", HEADER[:23], "cut", "inside its header (23 of 24 bytes)", 0, None, 1, True, 0),
    ("section cut", NG[:27], "cut", "inside its header (27 of at least 28 bytes)", 0, None, 1, True, 0),
    ("packet cut", make.pcap(PACKETS[:2])[:-1], "cut", "inside a packet or block", 24 + 76, 2, 1, False, 1),
    ("block cut", NG + BEFORE[:-1], "cut", "inside a packet or block", len(NG + ONE), 2, 1, False, 1),
    ("caplen", HEADER + make.pcap_record(PACKETS[0]) + struct.pack("<IIII", 1, 1, 1 << 21, 1 << 21), "corrupt", "captured length of 2097152", 24 + 76, 2, 1, False, 1),
    ("caplen at once", HEADER + b"\xff" * 16, "corrupt", "captured length of 4294967295", 24, 1, 1, True, 0),
    ("block length", NG + ONE + struct.pack("<III", 6, 8, 8), "corrupt", "block length of 8", len(NG + ONE), 2, 1, False, 1),
    ("block lengths differ", NG + BEFORE[:-4] + b"\4\0\0\0" + bytes(40), "corrupt", "at its beginning and 4 at its end", len(NG + ONE), 2, 1, False, 1),
    ("section magic", NG + ONE + struct.pack("<IIIIII", 0x0A0D0D0A, 28, 0, 0, 0, 0) + bytes(20), "corrupt", "byte order magic", len(NG + ONE), 2, 1, False, 1),
    ("short section", struct.pack("<IIIII", 0x0A0D0D0A, 20, 0x1A2B3C4D, 1, 20), "corrupt", "20 bytes, at least 28", 0, None, 1, True, 0),
    ("short interface", make.section() + struct.pack("<IIII", 1, 16, 1, 16), "corrupt", "16 bytes, at least 20", 28, 1, 1, True, 0),
    ("no interface", make.section() + make.enhanced(PACKETS[0]) * 3, "bad_interface", "never described (the first one: 0 of 0)", 28, 1, 3, True, 0),
    ("wrong interface", NG + ONE + make.enhanced((*PACKETS[1], None, 9)) + ONE, "bad_interface", "(the first one: 9 of 1)", len(NG + ONE), 2, 1, False, 2),
    ("no interface in the second section", NG + ONE + make.section() + ONE, "bad_interface", "0 of 0", len(NG + ONE) + 28, 2, 1, False, 1),
    ("packet longer than its block", NG + make.block(6, struct.pack("<IIIII", 0, 0, 0, 5000, 5000) + bytes(40)) + ONE, "bad_length", "does not fit", len(NG), 1, 1, False, 1),
    ("packet block too short", NG + make.block(6, bytes(8)) * 2 + ONE, "bad_length", "does not fit", len(NG), 1, 2, False, 1),
    ("huge packet block", NG + make.block(6, struct.pack("<IIIII", 0, 0, 0, 3 << 20, 3 << 20) + bytes(3 << 20)) + ONE, "bad_length", "does not fit", len(NG), 1, 1, False, 1),
    ("gzip of text", make.gzipped(b"not a capture"), "unknown_format", "inside the compression", 0, None, 1, True, 0),
    ("zstd of text", make.zstded(b"not a capture"), "unknown_format", "inside the compression", 0, None, 1, True, 0),
    ("gzip of gzip", make.gzipped(make.gzipped(PLAIN["pcap"])), "nested", "compressed twice", 0, None, 1, True, 0),
    ("zstd of gzip", make.zstded(make.gzipped(PLAIN["pcap"])), "nested", "compressed twice", 0, None, 1, True, 0),
    ("zstd cut in its first block", make.zstded(PLAIN["pcap"])[:40], "cut", "the compressed data ends before its first block is whole", 0, None, 1, True, 0),
    ("gzip of nothing", make.gzipped(b""), "empty", "is empty", 0, None, 1, True, 0),
    ("gzip header damaged", b"\x1f\x8b\xff" + bytes(20), "compression", "damaged", None, None, 1, True, 0),
]


@pytest.mark.parametrize("data,code,piece,offset,packet,count,fatal,used", [pytest.param(*row[1:], id=row[0]) for row in FAULTS])
def test_faults_say_what_where_and_what_was_used(tmp_path, data, code, piece, offset, packet, count, fatal, used):
    path = saved(tmp_path, data)
    rows, counters, faults = found(path)
    assert len(faults) == 1, faults
    (fault,) = faults
    assert (fault["path"], fault["code"], fault["packet"], fault["count"], fault["fatal"]) == (str(path), code, packet, count, fatal), fault
    assert piece in fault["message"]
    assert fault["offset"] == offset or offset is None
    assert counters["packets"]["read"] == used
    error = str(as_error(fault))
    assert str(path) in error and fault["message"] in error


JOINED = {f"pcap, {name}": make.pcap(PACKETS, **how) for name, how in (
    ("little", {}), ("big", {"big_endian": True}), ("ns", {"nanoseconds": True}), ("ns, big", {"nanoseconds": True, "big_endian": True}), ("modified", {"modified": True})
)}  # fmt: skip


@pytest.mark.parametrize("packing", ["plain", "gzip"])
@pytest.mark.parametrize("second", [*JOINED, "pcapng"])
@pytest.mark.parametrize("first", [*JOINED, "pcapng"])
def test_captures_that_are_joined_are_told(first, second, packing, tmp_path):
    """cat a.pcap b.pcap, zcat a.pcap.gz b.pcap.gz: the first is used. Sections of pcapng may follow each other."""
    every = JOINED | {"pcapng": make.pcapng(PACKETS)}
    data = [every[first], every[second]]
    rows, counters, faults = found(saved(tmp_path, b"".join(data) if packing == "plain" else b"".join(map(make.gzipped, data))))
    if first == second == "pcapng":
        assert (counters["packets"]["read"], faults) == (2 * len(PACKETS), [])
        return
    assert counters["packets"]["read"] == len(PACKETS) and len(rows) == len(PATHS)
    (fault,) = faults
    assert (fault["code"], fault["fatal"], fault["offset"], fault["packet"]) == ("corrupt", False, len(every[first]), len(PACKETS) + 1)
    assert "another capture begins here" in fault["message"] and "give the files one by one" in fault["message"]


def test_a_record_without_a_byte_is_no_capture(tmp_path):
    empty = struct.pack("<IIII", 0xA1B2C3D4, 0x0004_0003, 0, 0) + struct.pack("<IIII", 1, 1, 0, 0)
    assert found(saved(tmp_path, HEADER + empty + b"".join(map(make.pcap_record, PACKETS))))[1]["packets"]["read"] == len(PACKETS) + 2


def test_what_is_no_file(tmp_path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    with server:
        expected = [(tmp_path / "none", "missing"), (tmp_path, "folder"), ("/dev/null", "device"), (tmp_path / "socket", "device"), (tmp_path / "a" / "b", "missing")]
        for path, code in expected:
            rows, _, faults = found(path)
            assert [(fault["code"], fault["fatal"]) for fault in faults] == [(code, True)], path
            assert rows == []


def test_a_large_block_that_holds_no_packet_is_passed_over(tmp_path):
    data = NG + make.block(make.CUSTOM, bytes(3 << 20)) + b"".join(map(make.enhanced, PACKETS))
    rows, _, faults = found(saved(tmp_path, data))
    assert (values(rows), faults) == (plain_rows(), [])


def test_damage_inside_compressed_data_costs_what_follows_it(tmp_path):
    packets = exchange(count=400)
    whole = [f"/{n}" for n in range(400)]
    for pack in (make.gzipped, make.zstded):
        data = bytearray(pack(make.pcap(packets)))
        at = len(data) * 2 // 3
        data[at : at + 8] = b"\xff\0\xff\0\xff\0\xff\0"
        rows, _, faults = found(saved(tmp_path, data))
        assert faults and faults[0]["code"] in ("compression", "corrupt")
        assert len(rows) < 400 and whole[: len(rows)] == targets(rows)
    members = make.gzipped(make.pcap(packets), members=4)
    rows, _, faults = found(saved(tmp_path, members[:-300]))
    assert [fault["code"] for fault in faults] == ["cut"]
    assert len(rows) >= 290 and whole[: len(rows)] == targets(rows)


def test_random_bytes_behind_each_magic_never_crash(tmp_path):
    rng = random.Random(11)
    starts = [HEADER, make.pcap_header(big_endian=True), NG, make.section(big_endian=True), make.gzipped(HEADER)[:-8], make.zstded(HEADER)[:-4], NG + BEFORE]
    for at in range(300):
        found(saved(tmp_path, starts[at % len(starts)] + rng.randbytes(rng.randrange(300))))
    whole = [PLAIN["pcap"], PLAIN["pcapng, several sections of both orders"], make.gzipped(PLAIN["pcap"]), make.zstded(PLAIN["pcapng"])]
    for at in range(400):
        data = bytearray(whole[at % len(whole)])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        found(saved(tmp_path, data))


# ---- cut off --------------------------------------------------------------------------------------------------------

CUT = {
    "pcap": PLAIN["pcap"],
    "modified": PLAIN["modified big-endian"],
    "pcapng": PLAIN["pcapng, several sections of both orders"],
    "pcapng, other blocks": PLAIN["pcapng, other blocks and comments"],
    "gzip": make.gzipped(PLAIN["pcap"]),
    "gzip, members": make.gzipped(PLAIN["pcapng"], members=3),
    "zstd": make.zstded(PLAIN["pcap"]),
    "zstd, frames": make.zstded(PLAIN["pcapng"], frames=3, skippable=True),
}
SKIPPED = make.zstded(b"", skippable=True)[:13]


@pytest.mark.parametrize("name", CUT)
def test_cut_off_at_every_byte(tmp_path, name):
    data = CUT[name]
    whole = [{key: row[key] for key in ("ts_ns", "head", "body_sha256", "withheld")} for row in plain_rows()]
    before = 0
    for end in range(len(data) + 1):
        rows, counters, faults = found(saved(tmp_path, data[:end]))
        assert [{key: row[key] for key in whole[0]} for row in rows] == whole[: len(rows)], end
        assert len(rows) >= before, "a longer file never gives less"
        before = len(rows)
        codes = [fault["code"] for fault in faults]
        if end <= len(SKIPPED) and data.startswith(SKIPPED):
            # Below four bytes the magic of a skippable frame is text; when it is whole, nothing is in the file.
            assert codes == ["empty" if end in (0, len(SKIPPED)) else "unknown_format" if end < 4 else "cut"]
            continue
        assert codes in ([], ["cut"]) if end else codes == ["empty"], (end, faults)
        if end in (1, len(data) - 1):
            assert codes == ["cut"], (end, faults)
            assert faults[0]["fatal"] == (end == 1 or name == "zstd"), "one block of zstd gives all or nothing"
        assert sum(counters["incomplete"].values()) <= 1
    assert before == len(whole) and faults == []

