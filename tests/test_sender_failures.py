"""What servers and networks do to a sender: each failure by name, every request accounted for, nothing sent twice."""

import collections
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from shadow_servers import DRIVERS, MS, OK_REPLY, Run, Server, address, ok, request, send, until

HEAD, HTTP10 = 1, 4


@pytest.fixture(autouse=True, params=DRIVERS)
def driver(request, monkeypatch):
    monkeypatch.setattr(Run, "driver", request.param)
    return request.param


def rows(n, flows=8, flags=0, **options):
    return [(request(i, flow=i % flows, **options), 0, i % flows, flags) for i in range(n)]


def logged_once(server, c):
    """answered ⊆ logged ⊆ sent, and nothing twice."""
    ids = server.ids()
    assert len(ids) == len(set(ids)), [i for i, n in collections.Counter(ids).items() if n > 1]
    assert c["answered"] <= len(ids) <= c["sent"]


def replies(*parts, then=None):
    """A server that reads one request and sends these parts, a moment between them; then goes on as `then` says.

    When it closes it reads what is left, unlogged: unread bytes would make a reset out of the close."""

    def serve(peer):
        while peer.next():
            for part in parts:
                peer.send(part)
                time.sleep(0.005)
            if then == "close":
                peer.sock.shutdown(socket.SHUT_WR)
                while peer.sock.recv(65536):
                    pass
                return
            if then == "reset":
                peer.reset()
                return

    return serve


@pytest.mark.parametrize(
    "parts, then, status",
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], None, 200),
        ([b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r\no", b"k"], None, 200),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n", OK_REPLY], None, 200),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\no", b"k\r\n0\r\nX: y\r\n\r\n"], None, 200),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil", b" the end"], "close", 200),
        ([b"HTTP/1.0 200 OK\r\n\r\nuntil", b" the end"], "close", 200),
        ([b"HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"], "close", 503),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], "close", 200),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], None, 204),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], None, 101),
    ],
    ids=["length", "in pieces", "interim", "chunked", "until close", "1.0 until close", "says close", "1.0", "204", "101"],
)
@pytest.mark.parametrize("pipeline", [1, 8])
def test_answers(parts, then, status, pipeline):
    with Server(replies(*parts, then=then)) as server:
        c = send([server.address], rows(12, 3), connections=2, pipeline=pipeline)
        logged_once(server, c)
        assert c["status"] == {status: c["answered"]}
        if pipeline == 1:
            assert c["answered"] == 12
        if b"103" in b"".join(parts):
            assert c["interim"] == 2 * c["answered"]
        if status == 101:
            assert server.count == c["connections_opened"] > 1


def test_head_has_no_body():
    with Server(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")) as server:
        c = send([server.address], rows(6, 1, HEAD, method=b"HEAD"))
        assert c["answered"] == 6 and server.count == 1


def test_http10_requests_are_never_followed_on_their_connection_before_the_reply():
    """Without Connection: keep-alive in the reply the connection is over; with it, it goes on."""
    for keep, most in ((b"", 12), (b"Connection: keep-alive\r\n", 1)):
        with Server(replies(b"HTTP/1.1 200 OK\r\n%sContent-Length: 0\r\n\r\n" % keep)) as server:
            c = send([server.address], rows(12, 1, HTTP10, version=b"1.0"), pipeline=8)
            assert c["answered"] == 12 and server.count == most and c["retried"] == 0


@pytest.mark.parametrize(
    "reply, reason",
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, "garbage"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", "garbage"),
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "closed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed"),
    ],
    ids=["banner", "two lengths", "head too large", "bad chunk", "nothing", "short", "no last chunk", "interim only"],
)
def test_no_whole_reply(reply, reason):
    with Server(replies(reply, then="close")) as server:
        c = send([server.address], rows(6, 6), connections=2)
        assert c["unanswered"] == {reason: 6} and c["answered"] == 0
        logged_once(server, c)


def test_reset_in_the_middle():
    with Server(replies(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", then="reset")) as server:
        c = send([server.address], rows(6, 6), connections=2)
        assert c["unanswered"] == {"reset": 6}
        logged_once(server, c)


def test_black_hole():
    with Server(lambda peer: time.sleep(5)) as server:
        before = time.monotonic()
        c = send([server.address], rows(8, 8), connections=4, timeout_ns=100 * MS)
        assert c["unanswered"] == {"timeout": 8} and c["connections_opened"] == 8
        assert 0.2 <= time.monotonic() - before < 1


def test_endless_reply():
    def serve(peer):
        peer.next()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(bytes(1 << 16))

    with Server(serve) as server, Server(ok) as other:
        c = send([server.address], rows(2, 2), timeout_ns=200 * MS)
        assert c["unanswered"] == {"timeout": 2}
        # one connection that never ends does not keep the others from being answered
        c = send([server.address, other.address], rows(200, 200), connections=2, rate=1000.0, timeout_ns=500 * MS)
        assert c["answered"] >= 100


def test_slow_reader():
    """Reads a large request little by little: one request, whole, and no spinning meanwhile."""

    def serve(peer):
        time.sleep(0.3)
        ok(peer)

    with Server(serve) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        run = Run([server.address]).start().push([(request(1, b"PUT", bytes(4_000_000)), 0, 1)]).end()
        until(lambda: run.sender.counters()["sent"] == 1)
        time.sleep(0.1)
        cpu, stuck = time.process_time(), run.sender.counters()["bytes_sent"]
        time.sleep(0.1)
        assert run.sender.counters()["bytes_sent"] == stuck < 4_000_000
        assert time.process_time() - cpu < 0.05
        c = run.join()
        assert c["answered"] == 1 and c["bytes_sent"] == len(request(1, b"PUT", bytes(4_000_000)))


def test_never_reads():
    with Server(lambda peer: time.sleep(5)) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c = send([server.address], [(request(1, b"PUT", bytes(8_000_000)), 0, 1), (request(2), 0, 1)], timeout_ns=150 * MS)
        assert c["unanswered"] == {"timeout": 2}
        assert c["bytes_sent"] < 4_000_000, "what waits in the kernel is bounded"


def test_reply_before_the_request_is_finished():
    """An early 413 counts as answered; the connection is closed, the next request goes elsewhere."""

    def serve(peer):
        if peer.server.count == 1:
            peer.sock.recv(10_000)
            peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            peer.sock.recv(1)
            time.sleep(0.2)
        else:
            ok(peer)

    with Server(serve) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c = send([server.address], [(request(1, b"PUT", bytes(8_000_000)), 0, 1), (request(2), 0, 1)])
        assert c["status"] == {413: 1, 200: 1} and c["connections_opened"] == 2 and c["retried"] == 0


def test_surplus_closes_the_connection():
    with Server(replies(OK_REPLY + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as server:
        c = send([server.address], rows(5, 1))
        assert c["answered"] == 5 and c["surplus"] == 5 and c["connections_opened"] == 5


def test_line_ends_after_a_reply_are_no_surplus():
    with Server(replies(OK_REPLY + b"\r\n")) as server:
        c = send([server.address], rows(5, 1))
        assert c["answered"] == 5 and c["surplus"] == 0 and c["connections_opened"] == 1


def test_server_closes_idle_connections():
    """Closed between two requests: seen before the next one is written, which goes over a new connection."""
    with Server(replies(OK_REPLY, then="close")) as server:
        c = send([server.address], [(request(i), i * 30 * MS, 1) for i in range(8)], speed=1.0)
        assert c["answered"] == 8 and c["connections_opened"] == 8 and c["connect_failed"] == 0
        logged_once(server, c)


def test_half_close():
    """The server says that it will send no more, and goes on reading: its connection is not used again."""

    def serve(peer):
        peer.next()
        peer.send(OK_REPLY)
        peer.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert peer.next() is None

    with Server(serve) as server:
        c = send([server.address], [(request(i), i * 20 * MS, 1) for i in range(4)], speed=1.0)
        assert c["answered"] == 4 == len(server.ids())


@pytest.mark.parametrize("pipeline", [2, 16])
def test_said_close_those_behind_go_again_once(pipeline):
    """Every third reply says close; what stood behind it was not processed (RFC 9112 9.6) and goes again."""

    def serve(peer):
        n = 0
        while peer.next():
            n += 1
            peer.send(OK_REPLY if n < 3 else b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            if n == 3:
                peer.sock.shutdown(socket.SHUT_WR)
                while peer.sock.recv(65536):  # unread data would make a reset out of the close
                    pass
                return

    with Server(serve) as server:
        c = send([server.address], rows(60, 4), connections=2, pipeline=pipeline)
        assert c["answered"] == 60 and c["unanswered"] == {}
        assert c["retried"] > 0 and c["sent"] == 60
        assert sorted(server.ids()) == list(range(60))
        for flow in range(4):
            ids = [i for i, f, _, _ in server.log if f == flow]
            assert ids == sorted(ids)


def test_just_closed_those_behind_are_never_sent_again():
    """Two answers, then an end without a word: who knows what the server did with the rest."""

    def serve(peer):
        for _ in range(2):
            if not peer.next():
                return
            peer.send(OK_REPLY)
        time.sleep(0.01)

    with Server(serve) as server:
        c = send([server.address], rows(40, 2), connections=1, pipeline=8)
        assert c["retried"] == 0 and c["unanswered"] and set(c["unanswered"]) <= {"closed", "reset"}
        logged_once(server, c)


def test_a_server_that_always_closes_makes_pipelining_stop():
    with Server(replies(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", then="close")) as server:
        c = send([server.address], rows(40, 2), connections=2, pipeline=16)
        assert c["answered"] + sum(c["unanswered"].values()) == 40 and c["pipeline"] == 1
        logged_once(server, c)


# ---- connecting ----


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_never_connected():
    before = time.monotonic()
    c = send([address("127.0.0.1", free_port())], rows(50), never_ns=150 * MS)
    assert c["dropped"] == {"target_down": 50} and c["never_connected"] and c["errno"] == 111
    assert 0.15 <= time.monotonic() - before < 1
    assert 3 <= c["connect_failed"] <= 12, "with backoff, one at a time"


def test_never_connected_ends_what_is_still_to_come():
    run = Run([address("127.0.0.1", free_port())], speed=1.0, never_ns=50 * MS).start()
    run.push([(request(i), i * 3600 * 10**9, i) for i in range(20)], rows_per_batch=1)
    until(lambda: run.sender.counters()["never_connected"])
    run.push(rows(10))
    assert run.end().join()["dropped"] == {"target_down": 30}


def test_connect_timeout():
    """A backlog that is full lets connects hang."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fill = []
    for _ in range(8):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(full.getsockname())
        fill.append(one)
    time.sleep(0.05)
    c = send([address(*full.getsockname())], rows(3, 3), connect_timeout_ns=50 * MS, never_ns=200 * MS)
    for one in [*fill, full]:
        one.close()
    assert c["dropped"] == {"target_down": 3} and c["errno"] == 110


def test_unreachable():
    c = send([address("255.255.255.255", 9)], rows(3), never_ns=50 * MS)  # refused by our own kernel
    assert c["dropped"] == {"target_down": 3} and c["never_connected"] and c["errno"] != 0


def test_down_for_good_after_it_was_there():
    with Server(ok) as server:
        run = Run([server.address], rate=200.0, timeout_ns=200 * MS).start().push(rows(40))
        until(lambda: run.sender.counters()["answered"] >= 3)
        server.kill()
        c = run.end().join()
        assert c["dropped"]["target_down"] > 20 and not c["never_connected"]
        logged_once(server, c)


@pytest.mark.parametrize("pipeline", [1, 8])
def test_restart_in_the_middle(pipeline):
    """answered ⊆ logged ⊆ sent, nothing twice, what was not sent goes to the new process."""
    with Server(ok) as first:
        run = Run([first.address], rate=2000.0, connections=8, pipeline=pipeline).start()
        feeder = threading.Thread(target=lambda: run.push(rows(3000, 100)).end())
        feeder.start()
        until(lambda: run.sender.counters()["answered"] > 300)
        first.kill()
        time.sleep(0.3)
        with Server(ok, port=first.address[1]) as second:
            feeder.join()
            c = run.join()
            ids = first.ids() + second.ids()
            assert len(ids) == len(set(ids))
            assert c["answered"] <= len(ids) <= c["sent"] == 3000
            assert c["connect_failed"] > 0 and len(second.log) > 1000
            assert sum(c["unanswered"].values()) <= 8 * pipeline


def test_accepts_and_closes_at_once():
    """No busy loop, no end without a word."""
    with Server(lambda peer: None) as server:
        c = send([server.address], rows(20, 20), connections=2, timeout_ns=500 * MS)
        assert sum(c["unanswered"].values()) + sum(c["dropped"].values()) == 20
        assert c["connections_opened"] <= 60


CHILD = """
import resource, socket, sys
sys.path[:0] = {path!r}
from shadow_servers import Run, request
run = Run([{address!r}], connections=64, rate=1e6)
with socket.socket() as probe:
    free = probe.fileno()
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 10, free + 10))
c = run.start().push([(request(i), 0, i) for i in range(200)]).end().join()
assert c["answered"] == 200, c
assert c["limits"]["descriptors"] >= 1, c
assert 1 <= c["connections_opened"] <= 10, c
print("done")
"""


def test_out_of_descriptors():
    """In a process of its own: the limit is for all of it. The connections that there are do the work."""
    with Server(ok) as server:
        program = CHILD.format(path=[p for p in sys.path if p], address=server.address)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr


def test_no_descriptor_at_all():
    """None free from the first moment: waits without spinning, and says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Server(ok) as server:
        run = Run([server.address], never_ns=150 * MS)
        with socket.socket() as other:
            top = max(server.socket.fileno(), other.fileno())
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            cpu = time.process_time()
            run.start().push(rows(5)).end()
            run.thread.join(5)
            assert time.process_time() - cpu < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        c = run.join()
        assert top and c["dropped"] == {"target_down": 5}
        assert 1 <= c["limits"]["descriptors"] < 20 and c["errno"] == 24


# ---- the end ----


def test_drain_cuts_off_what_does_not_answer():
    def serve(peer):
        while got := peer.next():
            if got[0] == 3:
                time.sleep(5)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        before = time.monotonic()
        c = send([server.address], rows(6, 6), drain_ns=150 * MS)
        assert c["answered"] == 5 and c["unanswered"] == {"stopped": 1}
        assert 0.15 <= time.monotonic() - before < 1


def test_drain_waits_for_replies():
    with Server(replies(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n", b"\r\n")) as server:
        assert send([server.address], rows(6, 6), drain_ns=2000 * MS)["answered"] == 6


def test_replies_under_way_at_a_stop_may_still_come():
    def serve(peer):
        while peer.next():
            time.sleep(0.03)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        run = Run([server.address], connections=4).start().push(rows(100, 100))
        until(lambda: len(server.ids()) >= 8)
        run.stop.set()
        c = run.end().join()
        assert c["unanswered"] == {} and c["dropped"]["stopped"] == 100 - c["answered"]
        assert sorted(server.ids()) == sorted(set(server.ids())) and len(server.ids()) == c["sent"]


# ---- nginx ----

NGINX = """
worker_processes 1; daemon off; master_process off; pid {root}/nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
    log_format ids '$http_x_id $status $request_length';
    access_log {root}/access.log ids;
    client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c; uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
    keepalive_requests {keep};
    server {{ listen 127.0.0.1:{port}; client_max_body_size 1m;
        location / {{ return 200 "hello\\n"; }}
        location /file {{ root {root}; }}
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path):
    if not shutil.which("nginx"):
        pytest.skip("needs nginx")
    running = []

    def start(keep=1000, port=None):
        port = port or free_port()
        (tmp_path / "nginx.conf").write_text(NGINX.format(root=tmp_path, port=port, keep=keep))
        command = ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running.append(process)

        def there():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        until(there)
        start.log = lambda: [int(line.split()[0]) for line in (tmp_path / "access.log").read_text().splitlines() if line[0].isdigit()]
        start.process = process
        return address("127.0.0.1", port)

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("pipeline", [1, 16])
@pytest.mark.parametrize("keep", [1000, 7])
def test_nginx_closes_after_so_many_requests(nginx, keep, pipeline):
    n = 20_000 if keep == 1000 else 2000
    c = send([nginx(keep)], rows(n, 200), connections=8, pipeline=pipeline)
    assert c["answered"] == n == c["status"][200] and c["unanswered"] == {} and c["connect_failed"] == 0
    assert c["connections_opened"] >= n // keep
    until(lambda: len(nginx.log()) >= n)
    assert sorted(nginx.log()) == list(range(n))


def test_nginx_methods_bodies_and_versions(nginx):
    where = nginx()
    data = [
        (request(0), 0, 0),
        (request(1, b"HEAD"), 0, 0, HEAD),
        (request(2, b"POST", bytes(500_000)), 0, 0),
        (request(3, version=b"1.0"), 0, 0, HTTP10),
        (request(4, b"POST", bytes(2_000_000)), 0, 1),
        (request(5, b"PROPFIND"), 0, 0),
        (b"GET / HTTP/1.1\r\nX-Id: 6\r\n\r\n", 0, 2),
        (request(7, extra=b"Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n", 0, 3),
    ]
    c = send([where], data)
    assert c["answered"] == 8 and c["status"][413] == 1 and c["status"][400] == 1
    until(lambda: len(nginx.log()) == 8)


@pytest.mark.parametrize("pipeline", [1, 16])
def test_nginx_killed_and_started_again(nginx, pipeline):
    where = nginx()
    run = Run([where], rate=4000.0, connections=8, pipeline=pipeline).start()
    feeder = threading.Thread(target=lambda: run.push(rows(8000, 300)).end())
    feeder.start()
    until(lambda: run.sender.counters()["answered"] > 1000)
    nginx.process.kill()
    nginx.process.wait()
    time.sleep(0.2)
    nginx(port=where[1])
    feeder.join()
    c = run.join()
    # nginx logs a request after its answer: the one of the moment it was killed may be missing in its log, the last one come a little later
    until(lambda: c["answered"] - 1 <= len(nginx.log()))
    log = nginx.log()
    assert len(log) == len(set(log)), "nothing twice"
    assert c["answered"] - 1 <= len(log) <= c["sent"] and c["sent"] == 8000
    # those under way; and those of new connections that the dying process' socket still took in
    assert sum(c["unanswered"].values()) <= 3 * 8 * pipeline


FORBIDDEN = """
import ctypes, struct, sys
sys.path.insert(0, TESTS)
from shadow_servers import Server, ok, request, send
from replay._fastpath import Pool, Queue, Sender, Stop

# of each system call: its number; 425 (io_uring_setup) fails with EPERM, all others are allowed
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x00050001, 0x06, 0, 0, 0x7FFF0000)
filter_ = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(filter_)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
with Server(ok) as server:
    c = send([server.address], [(request(i), 0, i % 3) for i in range(50)], driver="auto")
    print(c["answered"], c["driver"])
    try:
        Sender(Queue(Pool()), [server.address], stop=Stop(), driver="io_uring")
    except OSError as error:
        print(error.errno, error.filename)
"""


def test_where_io_uring_is_forbidden_epoll_does_it():
    """As containers do it, with seccomp. Asked for by name it is an error."""
    code = f"TESTS = {str(pathlib.Path(__file__).parent)!r}\n" + FORBIDDEN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["50", "epoll", "1", "io_uring"], done.stderr
