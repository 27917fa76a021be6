"""The sample (docs/design.md S2): XXH64 against the xxhash package, shares that nest, the same choice whatever the order of packets and files."""

import packetmake
import pcapmake
import pytest
import xxhash
from enginerun import run
from hypothesis import given, settings
from hypothesis import strategies as st

from replay._fastpath import sample_hash
from replay._reference import sampling

SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("xxh64", [sample_hash, sampling.xxh64], ids=["fastpath", "reference"])
@pytest.mark.parametrize("length", [*range(100), 127, 128, 129, 1000, 4096])
def test_every_length(xxh64, length):
    data = bytes(range(256)) * 16
    for seed in (0, 1, 2**64 - 1):
        assert xxh64(data[:length], seed) == xxhash.xxh64_intdigest(data[:length], seed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), SEEDS)
def test_xxh64(data, seed):
    assert sample_hash(data, seed) == sampling.xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)


def client(i):
    return bytes([10, 1, i // 250, i % 250 + 1]), 20000 + i


HEADS = [
    b"GET /p%d?k=%d&x HTTP/1.1\r\nHost: h%d\r\nX-User: %s\r\nCookie: a=b; id=%d\r\n\r\n",
    b"GET /q%d?x=1&k=%d HTTP/1.1\r\nhost: h%d\r\nx-user:  %s \r\nCOOKIE: id=%d\r\n\r\n",
    b"DELETE /r%d?kk=%d HTTP/1.1\r\nHost: h%d\r\nX-Userx: %s\r\nCookie: idx=%d\r\n\r\n",
]


def traffic(count=300):
    """Connections of three requests each, the packets of all of them."""
    packets = []
    for i in range(count):
        parts = []
        for j in range(3):
            parts += [HEADS[(i + j) % 3] % (i % 40, i % 30, i, b"u%d" % (i % 25), i % 20), ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]
        packets += packetmake.talk(*parts, client=client(i), start_ns=1_700_000_000_000_000_000 + i * 3_000_000, seq=2**32 - 100 + i, step_ns=1_000_000)
    return sorted(packets, key=lambda p: p[0])


PACKETS = traffic()
CAPTURE = pcapmake.pcap(PACKETS)
ALL = run(CAPTURE)[0]


def chosen(*captures, **options):
    """What is selected, each named by where it stands in the capture."""
    rows, counters = run(*captures, show=False, **options)
    assert len(rows) == counters["selected"]
    return {(r["client"], r["seq"]) for r in rows}, counters


def test_all_and_nothing_are_exact():
    everything, counters = chosen(CAPTURE, share=1_000_000)
    assert len(everything) == len(ALL) == 900 and not counters["sampled_out"]
    nothing, counters = chosen(CAPTURE, share=0)
    assert not nothing and counters["sampled_out"] == {"share": 900}


@pytest.mark.parametrize("sample_by", ["request", "connection", "connection:kernel", "client-ip", "path", "header:X-User", "cookie:id", "query:k"])
@pytest.mark.parametrize("share", [1, 10_000, 250_000, 500_000, 999_999, 1_000_000])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_engine_and_oracle_choose_alike(sample_by, share, seed):
    expected, no_key = set(), 0
    for row in ALL:
        key = sampling.key_of(sample_by, row["client"], row["server"], row["seq"], row["head"])
        no_key += key is None
        if sampling.is_taken(key, share, seed, sample_by):
            expected.add((row["client"], row["seq"]))
    got, counters = chosen(CAPTURE, share=share, sample_by=sample_by, seed=seed)
    assert got == expected
    assert counters["sampled_out"].get("no_key", 0) == no_key


@pytest.mark.parametrize("sample_by", ["request", "connection", "connection:kernel", "path"])
def test_samples_nest(sample_by):
    before = set()
    for share in (1000, 10_000, 50_000, 100_000, 300_000, 500_000, 900_000, 1_000_000):
        taken, _ = chosen(CAPTURE, share=share, sample_by=sample_by)
        assert before <= taken
        before = taken


def test_the_share_is_about_right_and_the_seed_matters():
    half, _ = chosen(CAPTURE, share=500_000)
    other, _ = chosen(CAPTURE, share=500_000, seed=1)
    assert 380 < len(half) < 520 and 380 < len(other) < 520  # 900 requests: 450, three standard deviations are 45
    assert half != other


def test_identical_requests_are_not_all_or_none():
    same = packetmake.talk(*[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ("reply", b"HTTP/1.1 204 No\r\n\r\n")] * 200)
    taken, _ = chosen(pcapmake.pcap(same), share=500_000)
    assert 60 < len(taken) < 140


def test_the_sample_does_not_depend_on_files_or_the_order_of_packets():
    expected, counters = chosen(CAPTURE, share=300_000)
    for pieces in (2, 5):
        files = [pcapmake.pcap(PACKETS[at::pieces]) for at in range(pieces)]
        assert chosen(*files, share=300_000)[0] == expected
    late = list(PACKETS)
    for at in range(0, len(late) - 8, 8):
        late[at], late[at + 5] = late[at + 5], late[at]
    assert chosen(pcapmake.pcap(late), share=300_000)[0] == expected
    twice = [p for p in PACKETS for _ in range(2)]
    assert chosen(pcapmake.pcap(twice), share=300_000)[0] == expected
    assert chosen(CAPTURE, share=300_000)[1]["digest"] == counters["digest"]


def test_a_missing_key_is_no_key():
    _, counters = chosen(CAPTURE, share=1_000_000, sample_by="query:k")
    assert counters["sampled_out"] == {"no_key": 300}
