"""Decoding against tshark, packet by packet, over the real captures beside the checkout."""

import ipaddress
import pathlib
import shutil
import subprocess

import pytest

from replay._fastpath import Capture, DecoderForTests, Stop, packets_for_tests

CORPUS = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "captures" / "corpus"
FILES = sorted(p for p in CORPUS.glob("*") if p.suffix != ".json") if CORPUS.is_dir() else []
FIELDS = ["tcp.srcport", "tcp.dstport", "tcp.seq_raw", "ip.src", "ipv6.src"]
EXCEPTIONS = {  # file: why tshark's innermost TCP is not ours
}


def test_there_are_captures():
    if not FILES:
        pytest.skip("needs ../shared/captures/corpus")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_same_segments_as_tshark(path):
    if shutil.which("tshark") is None:
        pytest.skip("needs tshark")
    out = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-o", "tcp.desegment_tcp_streams:false", "-o", "ip.defragment:true", "-E", "occurrence=l"]
        + [x for f in ["frame.number", *FIELDS] for x in ("-e", f)], capture_output=True, text=True)
    want = {}
    for line in out.stdout.splitlines():
        number, sport, dport, seq, v4, v6 = line.split("\t")
        if sport and seq:
            want[int(number)] = (int(sport), int(dport), int(seq), v4, v6)
    d = DecoderForTests()
    same = other = 0
    for number, (_, data, wirelen, link, *_) in enumerate(packets_for_tests(Capture([path], stop=Stop())), 1):
        got = d.decode(data, link, wirelen=wirelen, ts_ns=number)
        expected = want.get(number)
        if got is None or expected is None:
            other += (got is None) != (expected is None)
            continue
        source = ipaddress.IPv6Address(got["src"])
        source = str(source.ipv4_mapped or source)
        assert (got["sport"], got["dport"], got["seq"]) == expected[:3], f"packet {number}"
        assert source in expected[3:], f"packet {number}"
        same += 1
    if want:
        assert same >= 0.97 * len(want), f"{same} of {len(want)} segments; the others: fragments, cut headers, tunnels of other kinds"
    assert other <= max(3, 0.05 * (same + other))
