"""Servers that misbehave on purpose, and the door to a Sender: for the tests of sending."""

import ipaddress
import socket
import threading
import time

import pytest

from replay._fastpath import Pool, Queue, Sender, Stop, push_for_tests

MS = 1_000_000
OK_REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def address(host, port):
    ip = ipaddress.ip_address(host)
    return (ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed), port


def request(i, method=b"GET", body=b"", extra=b"", version=b"1.1", flow=0):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%s /r/%d HTTP/%s\r\nHost: a.example-shadow\r\nX-Id: %d\r\nX-Flow: %d\r\n%s%s\r\n%s" % (
        method, i, version, i, flow, length, extra, body)  # fmt: skip


class Peer:
    """One accepted connection: reads requests, logs them."""

    def __init__(self, server, sock, number):
        self.server, self.sock, self.number, self.buffer = server, sock, number, b""

    def next(self):
        """(id, method, body) of the next request, or None at the end."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                return None
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"Content-Length", 0))
        while len(self.buffer) < length:
            if not self._more():
                return None
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        got = int(fields[b"X-Id"]), head.split(b" ", 1)[0], body
        with self.server.lock:
            self.server.log.append((got[0], int(fields[b"X-Flow"]), self.number, time.monotonic()))
        return got

    def _more(self):
        try:
            data = self.sock.recv(65536)
        except OSError:
            return False
        self.buffer += data
        return bool(data)

    def send(self, data):
        self.sock.sendall(data)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.sock.close()


class Server:
    """`serve(peer)` runs in a thread a connection; the log is (id, flow, connection, time)."""

    def __init__(self, serve, host="127.0.0.1", port=0):
        self.serve, self.lock, self.log, self.count, self.now, self.peak, self.peers = serve, threading.Lock(), [], 0, 0, 0, []
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((host, port))
        self.socket.listen(1024)
        self.address = address(host, self.socket.getsockname()[1])
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.count += 1
                self.now += 1
                self.peak = max(self.peak, self.now)
                peer = Peer(self, sock, self.count)
                self.peers.append(sock)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        try:
            self.serve(peer)
        except OSError:
            pass
        finally:
            peer.sock.close()
            with self.lock:
                self.now -= 1

    def ids(self):
        with self.lock:
            return [one[0] for one in self.log]

    def close(self):
        # shutdown wakes the thread in accept(); close alone would leave the port open until its next connection
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        self.thread.join(5)

    def kill(self):
        """As if the process died: no more connections, those that are there reset."""
        self.close()
        with self.lock:
            peers = list(self.peers)
        for sock in peers:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            except OSError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def ok(peer):
    while peer.next():
        peer.send(OK_REPLY)


def check(c):
    """The identities of the ledger, at the end of a run."""
    assert c["taken"] == c["sent"] + sum(c["dropped"].values()), c
    assert c["sent"] == c["answered"] + sum(c["unanswered"].values()), c
    assert c["under_way"] == c["waiting"] == 0, c
    assert c["connections_open"] == 0, c
    assert sum(c["status"].values()) == c["answered"]
    return c


def _has_io_uring():
    try:
        Sender(Queue(Pool()), [address("127.0.0.1", 1)], stop=Stop(), driver="io_uring")
    except OSError:
        return False
    return True


HAS_IO_URING = _has_io_uring()
DRIVERS = [pytest.param("io_uring", marks=pytest.mark.skipif(not HAS_IO_URING, reason="needs io_uring, which this machine lacks or forbids")), "epoll"]


class Run:
    """A sender in its thread. `rows` as push_for_tests takes them. `driver`: of all that do not name one; the tests run once with each."""

    driver = "auto"

    def __init__(self, addresses, *, budget=48 << 20, slots=1024, **options):
        self.stop, self.pool = Stop(), Pool(budget)
        self.queue = Queue(self.pool, slots)
        options.setdefault("driver", self.driver)
        options.setdefault("asap", not ("speed" in options or "rate" in options))
        self.sender = Sender(self.queue, addresses, stop=self.stop, **options)
        self.thread = threading.Thread(target=self.sender.run, daemon=True)
        self.pushed = 0

    def start(self):
        self.thread.start()
        return self

    def push(self, rows, **options):
        rows = list(rows)
        options.setdefault("nth", range(self.pushed, self.pushed + len(rows)))
        self.pushed += push_for_tests(self.queue, rows, stop=self.stop, **options)
        return self

    def end(self):
        self.queue.end()
        return self

    def join(self, timeout=20):
        self.thread.join(timeout)
        if self.thread.is_alive():
            counters = self.sender.counters()
            self.stop.set()
            self.thread.join(2)
            raise AssertionError(f"the sender did not end: {counters}")
        self.sender.sweep()
        c = check(self.sender.counters())
        assert c["taken"] == self.pushed
        assert self.pool.held == 0, "a batch was not given back"
        return c


def send(addresses, rows, timeout=20, **options):
    """Sends these rows; the counters at the end."""
    return Run(addresses, **options).start().push(rows).end().join(timeout)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
