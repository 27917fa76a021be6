"""Link layers, tunnels and IP, built by scapy: the innermost TCP segment comes out whole, whatever it is wrapped in."""

import pathlib
import random
import re

import pytest

scapy_all = pytest.importorskip("scapy.all")
from scapy.all import (  # noqa: E402
    AH,
    GRE,
    IP,
    LLC,
    PPP,
    SNAP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Dot3,
    Ether,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PPPoE,
    Raw,
    fragment,
    fragment6,
)
from scapy.contrib.erspan import ERSPAN_I, ERSPAN_II, ERSPAN_III  # noqa: E402
from scapy.contrib.geneve import GENEVE  # noqa: E402
from scapy.contrib.mpls import MPLS  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402

from replay._fastpath import DECODE_LAYERS, DECODE_LINKS, DecoderForTests  # noqa: E402

DATA = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
T = TCP(sport=40000, dport=80, seq=0xFFFFFFF0, ack=77, flags="PA")
I4 = IP(src="10.0.0.1", dst="10.0.0.2")
I6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
E = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OUT = IP(src="192.0.2.1", dst="192.0.2.2")
OUT6 = IPv6(src="2001:db8:f::1", dst="2001:db8:f::2")
INNER = E / I4 / T / DATA

WRAPPED = [  # packet, link type, id
    (E / I4 / T / DATA, 1, "ethernet"),
    (E / IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01\x01\x01\x00") / T / DATA, 1, "ipv4 options"),
    (E / I6 / T / DATA, 1, "ipv6"),
    (E / Dot1Q(vlan=5) / I4 / T / DATA, 1, "vlan"),
    (E / Dot1AD(vlan=5) / Dot1Q(vlan=6) / I4 / T / DATA, 1, "qinq"),
    (E / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / I4 / T / DATA, 1, "three vlans"),
    (Dot3(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x800) / I4 / T / DATA, 1, "snap"),
    (E / MPLS(label=16, s=0) / MPLS(label=17, s=1) / I4 / T / DATA, 1, "mpls"),
    (E / MPLS(label=16, s=1) / Raw(b"\0\0\0\0") / INNER, 1, "mpls pseudo-wire with control word"),
    (E / PPPoE(sessionid=3) / PPP(proto=0x21) / I4 / T / DATA, 1, "pppoe"),
    (E / PPPoE(sessionid=3) / PPP(proto=0x57) / I6 / T / DATA, 1, "pppoe ipv6"),
    (E / OUT / I4 / T / DATA, 1, "ipip"),
    (E / OUT / I6 / T / DATA, 1, "6in4"),
    (E / OUT6 / I4 / T / DATA, 1, "4in6"),
    (E / OUT / GRE() / I4 / T / DATA, 1, "gre"),
    (E / OUT / GRE(chksum_present=1, key_present=1, key=7, seqnum_present=1, sequence_number=9) / I4 / T / DATA, 1, "gre checksum key sequence"),
    (E / OUT / GRE(proto=0x6558) / INNER, 1, "gre transparent ethernet"),
    (E / OUT / GRE(proto=0x88BE) / ERSPAN_I() / INNER, 1, "erspan i"),
    (E / OUT / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II() / INNER, 1, "erspan ii"),
    (E / OUT / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III() / INNER, 1, "erspan iii"),
    (E / OUT / UDP(sport=5555, dport=4789) / VXLAN(vni=42) / INNER, 1, "vxlan"),
    (E / OUT / UDP(sport=5555, dport=8472) / VXLAN(vni=42) / INNER, 1, "vxlan of linux"),
    (E / OUT / UDP(sport=5555, dport=4789) / VXLAN(vni=1) / E / OUT / UDP(sport=5555, dport=4789) / VXLAN(vni=2) / INNER, 1, "vxlan in vxlan"),
    (E / OUT / UDP(sport=5555, dport=6081) / GENEVE(vni=42, proto=0x6558) / INNER, 1, "geneve"),
    (E / OUT / UDP(sport=5555, dport=3544) / I6 / T / DATA, 1, "teredo"),
    (E / IP(src="10.0.0.1", dst="10.0.0.2", proto=51) / AH(nh=6, icv=b"\0" * 12, payloadlen=4) / T / DATA, 1, "ah"),
    (E / I6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / T / DATA, 1, "ipv6 extension headers"),
    (E / I6 / IPv6ExtHdrFragment(offset=0, m=0) / T / DATA, 1, "atomic fragment"),
    (I4 / T / DATA, 101, "raw 101"),
    (I6 / T / DATA, 12, "raw 12"),
    (I4 / T / DATA, 228, "raw ipv4"),
    (I6 / T / DATA, 229, "raw ipv6"),
]


def expect(got, six):
    assert got is not None
    assert got["data"] == DATA
    assert (got["sport"], got["dport"], got["seq"], got["ack"]) == (40000, 80, 0xFFFFFFF0, 77)
    assert got["flags"] == 0x18
    assert got["missing"] == 0
    if six:
        assert got["src"].hex() == "20010db8000000000000000000000001"
    else:
        assert got["src"] == b"\0" * 10 + b"\xff\xff" + bytes([10, 0, 0, 1])


@pytest.mark.parametrize("packet,link", [pytest.param(p, link, id=name) for p, link, name in WRAPPED])
def test_innermost_segment(packet, link):
    six = packet.getlayer(TCP).underlayer is not None and IPv6 in packet and (IP not in packet or packet[IPv6].src == "2001:db8::1")
    expect(DecoderForTests().decode(bytes(packet), link), six)


@pytest.mark.parametrize("packet,link", [pytest.param(p, link, id=name) for p, link, name in WRAPPED])
def test_every_truncation_is_a_segment_or_counted(packet, link):
    whole = bytes(packet)
    decoder = DecoderForTests()
    segments = 0
    for n in range(len(whole) + 1):
        got = decoder.decode(whole[:n], link, wirelen=len(whole))
        if got is not None:
            segments += 1
            assert got["data"] + DATA[len(got["data"]):] == DATA, "what is there is the beginning of the data"
            assert len(got["data"]) + got["missing"] == len(DATA), "what the snap length cut is known"
    assert segments + sum(decoder.skipped().values()) == len(whole) + 1
    assert segments >= len(DATA)


def test_cooked_null_hdlc_nflog():
    ip = bytes(I4 / T / DATA)
    d = DecoderForTests()
    expect(d.decode(b"\0\0\0\1\0\6" + b"\0" * 8 + b"\x08\0" + ip, 113), False)
    expect(d.decode(b"\x08\0\0\0\0\0\0\1\0\1\4\6" + b"\0" * 8 + ip, 276), False)
    expect(d.decode(b"\2\0\0\0" + ip, 0), False)
    expect(d.decode(b"\0\0\0\2" + ip, 0), False)
    expect(d.decode(b"\0\0\0\2" + ip, 108), False)
    expect(d.decode(b"\x1e\0\0\0" + bytes(I6 / T / DATA), 0), True)
    expect(d.decode(b"\x0f\0\x08\0" + ip, 104), False)
    expect(d.decode(b"\xff\3\0\x21" + ip, 9), False)
    expect(d.decode(b"\x21" + ip, 9), False)
    nflog = b"\2\0\0\0" + b"\x08\0\x01\0abcd" + (4 + len(ip)).to_bytes(2, "little") + b"\x09\0" + ip
    expect(d.decode(nflog, 239), False)
    assert d.skipped() == {}


def test_padding_is_no_data_and_total_length_zero_is_offload():
    d = DecoderForTests()
    short = bytes(E / I4 / TCP(sport=1, dport=2, flags="A"))
    assert d.decode(short + b"\0" * 6)["data"] == b""
    zero = bytearray(bytes(E / I4 / T / DATA))
    zero[16:18] = b"\0\0"
    assert d.decode(bytes(zero))["data"] == DATA


def test_bogus_total_length_claims_nothing_that_was_not_cut():
    d = DecoderForTests()
    long = bytearray(bytes(E / I4 / T / DATA))
    long[16:18] = (9000).to_bytes(2, "big")
    got = d.decode(bytes(long))
    assert (got["data"], got["missing"]) == (DATA, 0)
    got = d.decode(bytes(long), wirelen=len(long) + 50)
    assert (got["data"], got["missing"]) == (DATA, 50)


FRAGMENTED = [
    pytest.param(lambda: fragment(IP(src="10.0.0.1", dst="10.0.0.2", id=9) / T / DATA, fragsize=16), 228, id="ipv4"),
    pytest.param(lambda: fragment6(IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(id=9) / T / DATA, 64), 229, id="ipv6"),
    pytest.param(lambda: fragment(IP(src="192.0.2.1", dst="192.0.2.2", id=9) / UDP(sport=1, dport=4789) / VXLAN() / INNER, fragsize=32), 228,
                 id="vxlan in fragments"),
]


@pytest.mark.parametrize("pieces,link", FRAGMENTED)
def test_fragments_in_any_order(pieces, link):
    frames = [bytes(p) for p in pieces()]
    assert len(frames) > 2
    for seed in range(30):
        order = frames[:]
        random.Random(seed).shuffle(order)
        if seed % 2:
            order.insert(1, order[0])  # a duplicate changes nothing
        d = DecoderForTests()
        got = [d.decode(f, link, ts_ns=i) for i, f in enumerate(order)]
        assert [g for g in got[:-1] if g is not None] == []
        expect(got[-1], link == 229)
        assert got[-1]["ts_ns"] == order.index(frames[0]), "the time of the packet that holds the first byte"
        assert d.fragment_bytes == 0


def test_overlapping_fragments_drop_the_datagram():
    frames = [bytes(p) for p in fragment(IP(src="10.0.0.1", dst="10.0.0.2", id=9) / T / DATA, fragsize=16)]
    evil = bytearray(frames[1])
    evil[25] ^= 1
    d = DecoderForTests()
    assert [d.decode(f, 228) for f in [frames[0], frames[1], bytes(evil), *frames[2:]]] == [None] * (len(frames) + 1)
    assert d.skipped()["fragment_overlap"] == len(frames) - 1


def test_fragments_are_bounded_in_time_and_bytes():
    d = DecoderForTests()
    for i in range(70_000):
        one = bytearray(FIRST)
        one[4:6] = (i & 0xFFFF).to_bytes(2, "big")
        one[15] = i >> 16
        d.decode(bytes(one), 228, ts_ns=i)
        assert d.fragment_bytes <= 5 * 1024 * 1024
    d.decode(FIRST, 228, ts_ns=10**12)
    assert d.fragment_bytes < 1000, "after 30 s of capture time nothing of the others is left"


FIRST = bytes(IP(src="10.0.0.1", dst="10.0.0.2", id=1, flags="MF") / Raw(b"y" * 64))


def test_the_list_of_what_is_read_is_whole():
    """docs/usage.md names each link type and each layer, and no link type that is not read."""
    root = pathlib.Path(__file__).resolve().parents[1]
    text = re.search(r"(?s)## Link types and tunnels\n(.*?)\n## ", (root / "docs" / "usage.md").read_text())[1]
    links = next(line for line in text.splitlines() if line.startswith("| link types"))
    assert {int(number) for group in re.findall(r"\(([\d, ]+)\)", links) for number in group.split(",")} == set(DECODE_LINKS)
    for layer in DECODE_LAYERS:
        assert layer.replace("_", " ").replace("gtp", "gtp-u") in text.lower(), layer
    source = (root / "replay" / "fastpath" / "decode.pxi").read_text()
    ports = re.search(r"bint decode_is_tunnel.*?return (.*?)\n", source, re.DOTALL)[1]
    udp = next(line for line in text.splitlines() if line.startswith("| UDP"))
    assert set(re.findall(r"\d{4}", ports)) == set(re.findall(r"\d{4}", udp))


def test_depth_is_bounded():
    d = DecoderForTests()
    assert d.decode(bytes(E)[:12] + b"\x81\0\0\5" * 300 + b"\x08\0" + bytes(I4 / T / DATA)) is None
    ip = bytes(I4 / T / DATA)
    for _ in range(2000):
        head = bytearray(bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=4, len=min(65535, len(ip) + 20))))
        ip = bytes(head) + ip
    assert d.decode(ip, 228) is None
    assert d.skipped()["nesting"] == 2


def test_other_protocols_are_counted_by_name():
    d = DecoderForTests()
    d.decode(bytes(E / I4 / UDP(sport=1, dport=53) / Raw(b"x")))
    d.decode(bytes(Ether(type=0x0806) / Raw(b"x")))
    d.decode(b"whatever", 127)
    d.decode(b"", 1)
    d.decode(bytes(E / IP(proto=132) / Raw(b"x")))
    skipped = d.skipped()
    assert skipped["udp"] == 1 and skipped["arp"] == 1 and skipped["link_127"] == 1 and skipped["sctp"] == 1 and skipped["empty"] == 1


@pytest.mark.parametrize("link", [0, 1, 9, 12, 50, 101, 104, 108, 113, 228, 229, 239, 276, 999])
def test_random_bytes_never_harm(link):
    rng = random.Random(link)
    d = DecoderForTests()
    packets = [bytes(p) for p, _, _ in WRAPPED]
    segments = n = 0
    for _ in range(4000):
        if rng.random() < 0.3:
            data = rng.randbytes(rng.randrange(120))
        else:
            data = bytearray(rng.choice(packets))
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.getrandbits(8)
            data = bytes(data[: rng.randint(0, len(data))])
        n += 1
        if d.decode(data, link, wirelen=len(data) + rng.choice((0, 0, 1, 1000))) is not None:
            segments += 1
    assert segments + sum(d.skipped().values()) == n


def test_the_usual_packet_is_decoded_as_any_other():
    """Ethernet, IPv4, TCP have a way of their own (`decode_usual`), which `split_by_network` closes: both say the same of whole, cut and damaged packets, and count the same."""
    rng = random.Random(7)
    usual = [bytes(E / I4 / TCP(sport=40000, dport=80, seq=5, ack=77, flags="PA", options=options) / Raw(data)) for options in ([], [("Timestamp", (1, 2))], [("NOP", None)] * 40) for data in (b"", DATA, DATA * 30)]
    usual += [packet + b"\0" * 6 for packet in usual]  # padding behind the end
    quick, slow, found = DecoderForTests(), DecoderForTests(split_by_network=True), 0
    for _ in range(20_000):
        data = bytearray(rng.choice(usual))
        for _ in range(rng.choice((0, 0, 1, 2))):
            data[rng.randrange(12, min(60, len(data)))] = rng.choice((0, 1, 5, 6, 0x20, 0x40, 0x45, 0x46, 0x50, 0xF0, 0xFF, rng.getrandbits(8)))
        data = bytes(data[: rng.choice((len(data), len(data), rng.randint(0, len(data))))])
        wirelen = len(data) + rng.choice((0, 0, 1, 40, 2000))
        segments = [decoder.decode(data, 1, wirelen=wirelen) for decoder in (quick, slow)]
        if segments[1] is not None:
            found += 1
            segments[1]["network"] = 0
            segments[0]["network"] = 0
        assert segments[0] == segments[1], (data, wirelen)
    assert found > 10_000
    assert quick.skipped() == slow.skipped() and quick.cut_frames == slow.cut_frames > 1_000


@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("255.255.255.255", "0.0.0.1"), ("9.255.255.255", "10.0.0.0")])
@pytest.mark.parametrize("ports", [(40000, 80), (80, 40000), (8080, 8081)])
def test_packets_of_both_ways_are_of_one_connection(tmp_path, ends, ports):
    """The usual packet's key is the one that others get: half of a conversation has IP options."""
    from pcapmake import pcap

    from replay._fastpath import Capture, Ingest, Pool, Queue, Stop

    packets, seqs = [], [1000, 5000]
    for number in range(8):
        side, flags = number % 2, "S" if number == 0 else "SA" if number == 1 else "PA"
        data = b"" if number < 2 else DATA if side == 0 else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        options = [scapy_all.IPOption(b"\x01\x01\x01\x01")] if number in (1, 2, 5, 7) else []
        head = E / IP(src=ends[side], dst=ends[1 - side], options=options) / TCP(sport=ports[side], dport=ports[1 - side], seq=seqs[side], ack=seqs[1 - side] if number else 0, flags=flags)
        packets.append((1_700_000_000_000_000_000 + number * 1_000_000, bytes(head / Raw(data)) if data else bytes(head)))
        seqs[side] += len(data) + (number < 2)
    path = tmp_path / "one.pcap"
    path.write_bytes(pcap(packets))
    stop, pool = Stop(), Pool(1 << 26)
    ingest = Ingest(Capture([str(path)], stop=stop), [Queue(pool, 64)], pool, stop)
    ingest.run()
    counters = ingest.counters()
    assert (counters["connections"], counters["found"], counters["matched"], counters["segments"]) == (1, 3, 3, 8)
