"""A capture cut into several files anywhere gives what the whole gives: the files are joined by time, and nothing else tells them apart."""

import pathlib
import struct

import pcapmake as make
import pytest
from engine import found

CAPTURES = pathlib.Path(__file__).resolve().parents[1] / "captures"


def packets_of(path):
    """(header, records) of a little-endian pcap file; read here with struct alone."""
    data = path.read_bytes()
    assert data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1")
    at, records = 24, []
    while at < len(data):
        size = 16 + struct.unpack_from("<I", data, at + 8)[0]
        records.append(data[at : at + size])
        at += size
    return data[:24], records


def same(got, whole):
    rows, counters, faults = got
    assert faults == []
    assert rows == whole[0]
    assert counters == whole[1]


@pytest.mark.parametrize("name", ["websocket", "connect-proxy", "mid-stream", "curl-keepalive", "expect-continue", "ipv6", "snaplen"])
def test_cut_into_two_at_every_packet(tmp_path, name):
    path = CAPTURES / name / "capture.pcap"
    header, records = packets_of(path)
    whole = found(path, incomplete=True)
    first, second = tmp_path / "part1", tmp_path / "part2"
    for at in range(len(records) + 1):
        first.write_bytes(header + b"".join(records[:at]))
        second.write_bytes(header + b"".join(records[at:]))
        same(found([first, second], incomplete=True), whole)


@pytest.mark.parametrize("name", ["websocket", "node-clients", "packet-loss", "vlan", "python-pipelining"])
def test_a_file_a_packet(tmp_path, name):
    path = CAPTURES / name / "capture.pcap"
    header, records = packets_of(path)
    whole = found(path, incomplete=True)
    paths = []
    for at, record in enumerate(records):
        paths.append(tmp_path / f"part{at}")
        paths[-1].write_bytes(header + record)
    same(found(paths, incomplete=True), whole)


def test_names_in_another_order_change_nothing(tmp_path):
    """As long as no two packets have the same time, of which there are none here."""
    path = CAPTURES / "curl-keepalive" / "capture.pcap"
    header, records = packets_of(path)
    assert len({record[:8] for record in records}) == len(records)
    whole = found(path, incomplete=True)
    paths = []
    for at in range(0, len(records), 7):
        paths.append(tmp_path / f"part{at}")
        paths[-1].write_bytes(header + b"".join(records[at : at + 7]))
    same(found(paths[::-1], incomplete=True), whole)
    same(found(paths[3:] + paths[:3], incomplete=True), whole)


def test_parts_may_be_of_different_kinds(tmp_path):
    path = CAPTURES / "curl-keepalive" / "capture.pcap"
    header, records = packets_of(path)
    unit = 1 if header[:4] == b"\x4d\x3c\xb2\xa1" else 1000
    link = struct.unpack("<I", header[20:])[0]
    packets = []
    for record in records:
        seconds, rest, _, wirelen = struct.unpack_from("<IIII", record)
        packets.append((seconds * 10**9 + rest * unit, record[16:], wirelen))
    whole = found(path, incomplete=True)
    kinds = (
        lambda p: make.pcapng(p, tsresol=9, link=link),
        lambda p: make.gzipped(make.pcap(p, nanoseconds=True, link=link)),
        lambda p: make.zstded(make.pcapng(p, tsresol=9, big_endian=True, link=link)),
        lambda p: make.pcap(p, nanoseconds=True, big_endian=True, link=link),
    )
    paths = []
    for at in range(0, len(packets), 5):
        paths.append(tmp_path / f"part{at}")
        paths[-1].write_bytes(kinds[at // 5 % 4](packets[at : at + 5]))
    same(found(paths, incomplete=True), whole)


def test_each_direction_in_its_own_file(tmp_path):
    """Two taps, one a direction, as some network cards and mirror ports record."""
    for name in ("websocket", "curl-keepalive", "node-clients"):
        path = CAPTURES / name / "capture.pcap"
        header, records = packets_of(path)
        whole = found(path, incomplete=True)
        servers = {row["server"] for row in whole[0]}
        assert servers
        ports = {port for _, port in servers}
        parts = ([], [])
        for record in records:
            ip = record.index(b"\x45", 16)
            parts[struct.unpack_from(">H", record, ip + 20)[0] in ports].append(record)
        assert all(parts)
        for at, part in enumerate(parts):
            (tmp_path / f"{name}{at}").write_bytes(header + b"".join(part))
        rows, counters, _ = found([tmp_path / f"{name}0", tmp_path / f"{name}1"], incomplete=True)
        assert counters["found"] == whole[1]["found"]
        key = ("client", "server", "head", "body_sha256", "status", "withheld", "incomplete", "ts_ns")
        assert [[row[name] for name in key] for row in rows] == [[row[name] for name in key] for row in whole[0]]


def test_the_rotated_capture_in_any_order():
    paths = sorted((CAPTURES / "rotated").glob("*.pcapng"))
    rows, counters, faults = found(paths)
    assert faults == [] and counters["incomplete"] == {} and counters["found"] > 30
    assert found(paths[::-1])[0] == rows
