"""Files that are mapped: cut short or grown while they are read, and the same results as when they are read in pieces."""

import json
import os
import subprocess
import sys
import threading

import packetmake
import pcapmake
import pytest

from replay._fastpath import Capture, Ingest, Pool, Queue, Stop, packets_for_tests

BODY = bytes(range(1, 256)) * 40  # no zero in it: what a page that is gone reads as


def requests(count, first=0):
    """Packets of `count` connections, each a request with a body that names it and carries BODY, and its reply."""
    packets = []
    for i in range(first, first + count):
        body = b"%08d" % i + BODY
        request = b"POST /%d HTTP/1.1\r\nHost: shop:8080\r\nContent-Length: %d\r\n\r\n" % (i, len(body)) + body
        packets += packetmake.talk(
            ("c", request),
            ("s", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            client=(bytes((10, 1, i >> 8 & 255, i & 255)), 40000 + i % 20000),
            start_ns=1_700_000_000_000_000_000 + i * 10_000_000,
        )
    return packets


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(path, requests): a capture of more than two steps of 8 MiB."""
    path = tmp_path_factory.mktemp("large") / "large.pcap"
    path.write_bytes(pcapmake.pcap(requests(2000)))
    assert path.stat().st_size > 20 << 20
    return path, 2000


def copy(large, tmp_path):
    path = tmp_path / "copy.pcap"
    path.write_bytes(large[0].read_bytes())
    return path


def test_cut_short_between_two_takes(large, tmp_path):
    """The walk meets pages that are gone: it ends there, with a word, and gives out nothing of them."""
    path = copy(large, tmp_path)
    whole = packets_for_tests(Capture([str(large[0])], stop=Stop()))

    class Cutting(threading.Thread):
        def run(self):
            os.truncate(path, 10 << 20)

    capture = Capture([str(path)], stop=Stop())
    begun = packets_for_tests(capture, most=1, batch=64)
    cutting = Cutting()
    cutting.start()
    cutting.join()
    rest = packets_for_tests(capture, batch=64)
    assert begun[0] == whole[0]
    assert 0 < len(rest) < len(whole)
    got = [packet for packet in rest if packet[1]]
    assert got == whole[64 : 64 + len(got)] or got[:-1] == whole[64 : 63 + len(got)]  # the page of the cut reads as zeros behind it
    assert [fault["code"] for fault in capture.faults] in (["changed"], ["cut"])


def test_cut_short_behind_what_was_walked(large, tmp_path):
    """Requests borrow from pages that go away before they are copied: none comes out with zeros, and each is counted."""
    path = copy(large, tmp_path)
    stop, pool = Stop(), Pool(1 << 20)  # a small budget: reading waits in the middle
    queue = Queue(pool, 4)
    ingest = Ingest(Capture([str(path)], stop=stop), [queue], pool, stop)
    thread = threading.Thread(target=ingest.run)
    thread.start()
    rows = []

    def take():
        batch = queue.get(0.2)
        for i in range(len(batch or ())):
            data = batch.data(i)
            head, body = data.split(b"\r\n\r\n", 1)
            assert body == b"%08d" % int(head.split()[1][1:]) + BODY, "bytes that nobody sent"
            rows.append(batch[i]["n"])

    take()
    while ingest.counters()["found"] - len(rows) < 20 and not queue.done:  # it reads until the budget is spent
        threading.Event().wait(0.01)
        if not ingest.counters()["found"]:
            take()
    os.truncate(path, 4096)
    while not queue.done:
        take()
    thread.join()
    counters = ingest.counters()
    assert counters["found"] == counters["selected"] == len(rows) < 2000
    assert sum(counters["incomplete"].values()) > 0


def test_grows_while_it_is_read(tmp_path):
    path = tmp_path / "growing.pcap"
    packets = requests(40)
    half = len(packets) // 2
    path.write_bytes(pcapmake.pcap(packets[:half]))
    capture = Capture([str(path)], stop=Stop())
    begun = packets_for_tests(capture, most=1, batch=1)
    with open(path, "ab") as file:
        for packet in packets[half:]:
            file.write(pcapmake.pcap_record(packet))
    rest = packets_for_tests(capture)
    assert len(begun) + len(rest) == len(packets)
    assert capture.faults == []


def test_the_same_as_in_pieces(large, tmp_path):
    """In processes of their own, as it is decided when the module is loaded: one thread and two, alone and merged with another capture."""
    other = tmp_path / "other.pcap"
    other.write_bytes(pcapmake.pcap(requests(50, first=5000)))
    empty = tmp_path / "empty.pcap"
    empty.write_bytes(b"")

    def show(how, *more):
        done = subprocess.run(
            [sys.executable, "-m", "replay", "run", "-q", "--json", "--dry-run", "--pace", "max", *more],
            capture_output=True,
            env=os.environ | {"REPLAY_READ": how},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        return report["ledger"], report["digest"]

    for more in ([large[0]], [large[0], other], [large[0], other, empty, "--threads", "2"], [large[0], "--threads", "2"]):
        assert show("mapped", *more) == show("pieces", *more)
