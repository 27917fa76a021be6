"""Files as memory (REPLAY_READ=map) are read as in pieces (REPLAY_READ=read): the same requests, counters and faults; and a file that shrinks under its reader ends, it does not crash."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import time

import endtoend
import pcapmake as make
import pytest
from test_reading_threads import CAPTURES, ROOT, read

CORPUS = sorted(str(path) for path in (ROOT.parent / "shared" / "captures").glob("*/*.pcap*"))


def both_ways(monkeypatch, paths, **more):
    monkeypatch.setenv("REPLAY_READ", "read")
    pieces = read(paths, 1, **more)
    monkeypatch.setenv("REPLAY_READ", "map")
    assert read(paths, 1, **more) == pieces
    assert read(paths, 2, **more) == pieces
    return pieces


@pytest.mark.parametrize("show", [True, False], ids=["show", "send"])
@pytest.mark.parametrize("paths", [[one] for one in CAPTURES] + [CAPTURES, CAPTURES[:2]], ids=[pathlib.Path(one).parent.name + "/" + pathlib.Path(one).name for one in CAPTURES] + ["all", "two"])
def test_the_same_of_each_capture(monkeypatch, paths, show):
    both_ways(monkeypatch, paths, show=show)


@pytest.mark.skipif(not CORPUS, reason="needs ../shared/captures beside this checkout")
def test_the_same_of_strangers_captures(monkeypatch):
    """Real ones, and hostile ones: whatever is wrong with a file is said in the same words."""
    for path in CORPUS:
        both_ways(monkeypatch, [path], show=False)


def talk(requests, body):
    conversation = make.Talk(client=(b"\x0a\0\0\1", 20_000), step=50_000).open()
    for index in range(requests):
        conversation.say(0, b"POST /%d HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n" % (index, len(body)) + body)
        conversation.say(1, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return conversation.end().packets


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A capture of 52 MB, requests of 20 KB over many segments: they lie across the ends of what is mapped at once."""
    path = tmp_path_factory.mktemp("large") / "large.pcap"
    path.write_bytes(make.pcap(talk(2_500, bytes(range(256)) * 80)))
    assert path.stat().st_size > 48 << 20
    return path


def test_the_same_of_a_large_capture(monkeypatch, large):
    rows, counters, faults = both_ways(monkeypatch, [str(large)], show=False)
    assert len(rows) == counters["found"] == 2_500
    assert faults == []


def test_one_of_two_files_ends_first(large, tmp_path):
    """The latest packet may be of a file that is over while the other one is mapped: nothing behind its mapping is touched. In a process of its own, which that would kill."""
    data = large.read_bytes()
    shorter = tmp_path / "shorter.pcap"
    for size in range(2 << 20, 24 << 20, 1_711_111):
        shorter.write_bytes(data[:size])
        found = set()
        for how in ("map", "read"):
            words = [sys.executable, "-m", "replay", "run", str(shorter), str(large), "--dry-run", "--quiet"]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"REPLAY_READ": how, "PYTHONPATH": os.pathsep.join(sys.path)})
            assert done.returncode == 0, (size, how, done.returncode, done.stderr)
            found.add(done.stdout)
        assert len(found) == 1, size


def test_what_costs_less_is_found_out(monkeypatch, large, tmp_path):
    """Without a word pieces are read and mapped in turn, and nothing of it shows."""
    monkeypatch.setenv("REPLAY_READ", "read")
    twice = [str(large), str(tmp_path / "later.pcap")]
    pathlib.Path(twice[1]).write_bytes(make.pcap([(ts + 10**12, *rest) for ts, *rest in talk(1_500, b"x" * 30_000)]))
    pieces = read(twice, 1, show=False)
    monkeypatch.delenv("REPLAY_READ")
    assert read(twice, 1, show=False) == pieces


def test_the_same_of_a_file_that_is_cut(monkeypatch, large, tmp_path):
    short = tmp_path / "short.pcap"
    short.write_bytes(large.read_bytes()[: (20 << 20) + 77])
    rows, _, faults = both_ways(monkeypatch, [str(short)], show=False)
    assert [fault["code"] for fault in faults] == ["cut"] and 500 < len(rows) < 1_500


SHRINKS = """
    import faulthandler, os, sys
    from replay import _fastpath
    faulthandler.enable()
    path, cut = sys.argv[1], int(sys.argv[2])
    stop, pool = _fastpath.Stop(), _fastpath.Pool(256 << 20)
    queue = _fastpath.Queue(pool, 1 << 14)
    source = _fastpath.Capture([path], stop=stop)
    _fastpath.packets_for_tests(source, most=400)  # the file is mapped now
    os.truncate(path, cut)
    ingest = _fastpath.Ingest(source, [queue], pool, stop)
    ingest.run()
    bodies = []
    while not queue.done:
        batch = queue.get(0.01)
        if batch is not None:
            bodies += [batch.data(at) for at in range(len(batch))]
    print(len(bodies), sum(body.count(b"\\0" * 600) for body in bodies), [fault["code"] for fault in source.faults], ingest.counters()["unqueued"])
"""


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
@pytest.mark.parametrize("cut", [5 << 20, (5 << 20) + 123, 0])
def test_a_file_that_shrinks_under_its_reader_ends_there(tmp_path, kind, cut):
    """Requests before that are whole, none is made of zeros (but for what lies in the page that is cut itself), the fault is named, and the process lives."""
    path = tmp_path / f"shrinks.{kind}"
    path.write_bytes(getattr(make, kind)(talk(600, b"x" * 20_000)))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHRINKS), str(path), str(cut)], capture_output=True, text=True, timeout=60,
        env=os.environ | {"REPLAY_READ": "map", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found, zeros, rest = done.stdout.split(" ", 2)
    assert "unreadable" in rest or (cut % 4096 and kind == "pcapng" and "corrupt" in rest)
    assert int(zeros) <= (cut % 4096 > 0)
    assert int(found) <= cut // 20_000
    assert int(found) >= cut // 23_000 - 40  # those that were taken first


OTHERS_MIND = """
    import os, signal, sys
    from replay import _fastpath
    path, late = sys.argv[1:]
    def mapped():
        source = _fastpath.Capture([path], stop=_fastpath.Stop())
        _fastpath.packets_for_tests(source, most=400)
        with open("/proc/self/maps") as lines:
            return any(os.path.basename(path) in line for line in lines)
    before = mapped()
    if late == "late":
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # by somebody who does not know that there was a handler
    print(before, mapped())
"""


@pytest.mark.parametrize(("late", "said"), [("never", "True True"), ("late", "True False")])
def test_where_others_mind_such_faults_files_are_read(large, late, said):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OTHERS_MIND), str(large), late], capture_output=True, text=True, timeout=60,
        env=os.environ | {"REPLAY_READ": "map", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said


def test_faults_of_others_go_where_they_went(tmp_path):
    """Somebody else's SIGBUS in the same process: their handler still gets it."""
    program = """
        import faulthandler, mmap, os, sys
        from replay import _fastpath
        path, own = sys.argv[1:]
        faulthandler.enable()
        _fastpath.packets_for_tests(_fastpath.Capture([path], stop=_fastpath.Stop()), most=10)
        with open(own, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 8192)
            os.truncate(own, 0)
            memory[5000]
    """
    path, own = tmp_path / "one.pcap", tmp_path / "own"
    path.write_bytes(make.pcap(talk(5, b"x")))
    own.write_bytes(bytes(8192))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path), str(own)], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"REPLAY_READ": "map", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode < 0
    assert "Bus error" in done.stderr


@pytest.mark.parametrize("loop", ["1", "3"])
def test_a_file_that_shrinks_while_requests_of_it_wait(tmp_path, loop):
    """What the window borrows from a mapping is copied before that goes; what was lost counts once for each pass that knew of it."""
    capture = endtoend.unique(tmp_path / "unique.pcap", 15_000, 20)
    with endtoend.Sink(tmp_path / "log") as sink:
        run = endtoend.started("run", "--json", "--pace", "4000/s", "--loop", loop, "--to", sink.url, capture, env=os.environ | {"REPLAY_READ": "map"})
        for line in run.stderr:
            if b"planned" in line:
                break
        time.sleep(0.3)
        os.truncate(capture, 0)
        out, errors = run.communicate(timeout=endtoend.PATIENCE_S)
    assert run.returncode in (0, 4), (run.returncode, errors[-500:])
    report = endtoend.balanced(json.loads(out))
    assert 0 < report["ledger"]["answered"] < 15_000 * report["passes"], "passes from memory have what the first one found, where none of it was lost"
