"""Two threads read as one does: the same requests in the same order, the same counters, whatever is in the captures and however windows end."""

import itertools
import pathlib
import random

import pcapmake as make
import pytest

from replay import _fastpath

ROOT = pathlib.Path(__file__).parent.parent
CAPTURES = sorted(str(path) for path in (ROOT / "captures").glob("*/*.pcap*"))


def read(paths, threads, show=True, **more):
    """(rows, counters) of captures; send rows as (bytes as they will be sent, order, …)."""
    stop = _fastpath.Stop()
    pool = _fastpath.Pool(256 << 20)
    queue = _fastpath.Queue(pool, 1 << 14)
    source = _fastpath.Capture(paths, stop=stop)
    ingest = _fastpath.Ingest(source, [queue], pool, stop, show=show, incomplete=show, threads=threads, **more)
    ingest.run()
    rows = []
    while not queue.done:
        batch = queue.get(0.01)
        if batch is not None:
            rows += [(batch[at] if show else None, batch.data(at)) for at in range(len(batch))]
    counters = ingest.counters()
    counters.pop("memory")
    return rows, counters, source.faults


@pytest.mark.parametrize("show", [True, False], ids=["show", "send"])
@pytest.mark.parametrize("paths", [[one] for one in CAPTURES] + [CAPTURES], ids=[pathlib.Path(one).parent.name + "/" + pathlib.Path(one).name for one in CAPTURES] + ["all"])
def test_the_same_of_each_capture(paths, show):
    assert read(paths, 2, show) == read(paths, 1, show)


def test_the_same_of_a_capture_of_many_windows(tmp_path):
    """Bodies over several windows, a connection in the middle of each window's end, some packets lost, some late: 12 MB."""
    rng = random.Random(5)
    talks = []
    for number in range(40):
        talk = make.Talk(client=(b"\x0a\0\0\1", 20_000 + number), step=50_000).open()
        for index in range(30):
            body = rng.randbytes(rng.choice((0, 0, 200, 20_000)))
            talk.say(0, b"POST /%d/%d HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n" % (number, index, len(body)) + body)
            talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"x" * 900)
        talks.append(talk.end().packets)
    packets = [packet for group in itertools.zip_longest(*talks) for packet in group if packet is not None]
    for _ in range(300):
        at = rng.randrange(len(packets) - 1)
        packets[at], packets[at + 1] = packets[at + 1], packets[at]
    del packets[:: len(packets) // 50]
    path = tmp_path / "many.pcap"
    path.write_bytes(make.pcap(sorted(packets, key=lambda packet: packet[0] + rng.randrange(200_000))))
    for show in (True, False):
        one, two = read([str(path)], 1, show), read([str(path)], 2, show)
        assert two == one
        assert len(one[0]) > 500
        again = read([str(path), str(path)], 2, show)
        assert again == read([str(path), str(path)], 1, show)


def test_a_limit_is_read_by_one_thread():
    paths = [path for path in CAPTURES if "wrk-load" in path]
    assert read(paths, 2, False, limit=5) == read(paths, 1, False, limit=5)


def test_a_stop_ends_both_threads():
    stop = _fastpath.Stop()
    pool = _fastpath.Pool()
    ingest = _fastpath.Ingest(_fastpath.Capture(CAPTURES, stop=stop), [], pool, stop, threads=2)
    stop.set()
    ingest.run()
    counters = ingest.counters()
    assert counters["ended"] and counters["packets"]["read"] == counters["segments"] + sum(counters["packets"]["skipped"].values())


def test_threads_is_one_or_two():
    stop = _fastpath.Stop()
    for wrong in (0, 3):
        with pytest.raises(ValueError, match="threads"):
            _fastpath.Ingest(_fastpath.Capture([], stop=stop), [], _fastpath.Pool(), stop, threads=wrong)
