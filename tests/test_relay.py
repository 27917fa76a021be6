"""https:// targets and Unix sockets, with real servers that speak TLS: verification, client certificates, SNI, and the ledger under faults."""

import collections
import socket
import ssl
import subprocess
import time

import endtoend
import pytest
from ownserver import OwnServer, requests_of

import replay
from replay import relay
from replay.errors import TargetError, UsageError
from replay.settings import Tls, target


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, a server's certificate for localhost and shadow.example, a client's, and one of a stranger."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
    for name, names in (("server", "DNS:localhost,DNS:shadow.example"), ("client", "DNS:client")):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text(f"subjectAltName={names}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "ext")
    return folder


class TlsServer(OwnServer):
    """Answers every request of a connection; `seen` has the targets, `names` what clients asked for (SNI), `clients` their certificates."""

    def __init__(self, certificates=None, *, want_client=False, close_after=None, path=None):
        self.seen, self.names, self.clients, self.close_after = [], [], [], close_after
        context = None
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
            context.sni_callback = lambda sock, name, context: self.names.append(name)
            if want_client:
                context.load_verify_locations(certificates / "ca.pem")
                context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(("127.0.0.1", 0) if path is None else path, context)

    def talk(self, peer):
        if self.context is not None:
            self.clients.append(peer.getpeercert())
        for answered, (head, body) in enumerate(requests_of(peer), 1):
            self.seen.append((head.split(b" ")[1].decode(), len(body)))
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000) if b"/large" in head else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            if answered == self.close_after:
                return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()


def test_an_https_target(certificates, tmp_path):
    capture = endtoend.unique(tmp_path / "a.pcap", 300, connections=20)
    with TlsServer(certificates) as server:
        report = endtoend.run(capture, "--pace", "max", "--to", f"https://localhost:{server.port}", "--cacert", certificates / "ca.pem", "--access-log", tmp_path / "log")
    assert report["ledger"]["answered"] == 300 and report["status"] == {"200": 300}
    assert collections.Counter(path for path, _ in server.seen) == {f"/{i}": 1 for i in range(300)}
    assert set(server.names) == {"localhost"}
    assert list(report["targets"]) == [f"https://localhost:{server.port}"]
    assert f'"127.0.0.1:{server.port}"' in (tmp_path / "log").read_text()


def test_large_bodies_both_ways(certificates, tmp_path):
    requests = [endtoend.request(b"/large/%d" % i, b"POST", bytes(700_000 + i)) for i in range(12)]
    capture = endtoend.write(tmp_path / "a.pcap", *(endtoend.conversation(requests[k::4], k) for k in range(4)))
    with TlsServer(certificates) as server:
        report = endtoend.run(capture, "--pace", "max", "--to", f"https://localhost:{server.port}", "--cacert", certificates / "ca.pem")
    assert report["ledger"]["answered"] == 12
    assert sorted(server.seen) == sorted((f"/large/{i}", 700_000 + i) for i in range(12))
    assert report["targets"][f"https://localhost:{server.port}"]["bytes_received"] > 12 * 200_000


REFUSED = [  # options, a word of what is said
    ((), "not trusted"),
    (("--cacert", "other.pem"), "not trusted"),
    (("--cacert", "ca.pem", "--sni", "wrong.example"), "not trusted"),
]


@pytest.mark.parametrize("options, word", REFUSED, ids=["unknown authority", "another authority", "another name"])
def test_a_certificate_that_is_not_trusted_is_exit_5(certificates, options, word, tmp_path):
    words = [certificates / one if one.endswith(".pem") else one for one in options]
    with TlsServer(certificates) as server:
        done = endtoend.command("run", endtoend.DEMO, "--to", f"https://localhost:{server.port}", *words, code=5)
    assert word in done.stderr.decode() and "--cacert" in done.stderr.decode() and not server.seen


def test_sni_and_insecure(certificates):
    common = (endtoend.DEMO, "--pace", "max", "--limit", "5")
    with TlsServer(certificates) as server:
        url = f"https://127.0.0.1:{server.port}"
        endtoend.run(*common, "--to", url, "--insecure")
        assert set(server.names) == {None}
        server.names.clear()
        endtoend.run(*common, "--to", url, "--cacert", certificates / "ca.pem", "--sni", "shadow.example")
        assert set(server.names) == {"shadow.example"}


def test_a_client_certificate(certificates):
    mine = ("--cert", certificates / "client.pem", "--key", certificates / "client.key")
    common = (endtoend.DEMO, "--pace", "max", "--limit", "5", "--cacert", certificates / "ca.pem")
    with TlsServer(certificates, want_client=True) as server:
        url = f"https://localhost:{server.port}"
        report = endtoend.run(*common, "--to", url, *mine)
        assert report["ledger"]["answered"] == 5 and all(client["subject"] for client in server.clients)
        done = endtoend.command("run", *common, "--to", url, code=5)
        assert "--cert" in done.stderr.decode()


def test_a_target_that_speaks_no_tls_is_told(tmp_path):
    with endtoend.Sink(tmp_path / "log") as sink:
        done = endtoend.command("run", endtoend.DEMO, "--to", sink.url.replace("http", "https"), "--insecure", code=5)
    assert "does it speak TLS" in done.stderr.decode()


@pytest.mark.parametrize("close_after", [1, 3])
def test_a_target_that_closes(certificates, close_after, tmp_path):
    """Each request is in the ledger once, and none twice at the server."""
    capture = endtoend.unique(tmp_path / "a.pcap", 60, connections=6)
    with TlsServer(certificates, close_after=close_after) as server:
        report = endtoend.run(capture, "--pace", "200/s", "--to", f"https://localhost:{server.port}", "--cacert", certificates / "ca.pem")
    ledger, seen = report["ledger"], collections.Counter(path for path, _ in server.seen)
    assert ledger["sent"] + ledger["dropped"] == 60 and max(seen.values()) == 1
    assert ledger["answered"] <= len(seen) <= ledger["sent"] and ledger["answered"] > 30


def test_a_target_that_goes_and_comes_again(certificates, tmp_path):
    """While it is down nothing is sent into the void for long: the relay does not listen, the sender sees a target that is down."""
    capture = endtoend.unique(tmp_path / "a.pcap", 250, connections=250, step_ns=15_000_000)
    server = TlsServer(certificates)
    port = server.port
    process = endtoend.started("run", "--json", capture, "--to", f"https://localhost:{port}", "--cacert", certificates / "ca.pem", "--timeout", "8s")
    try:
        endtoend.wait_until(lambda: len(server.seen) > 20, "the first requests")
        server.down()
        time.sleep(0.7)
        before = len(server.seen)
        server.listen(("127.0.0.1", port))
        out, errors = process.communicate(timeout=40)
        server.down()
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, errors
    import json

    report = endtoend.balanced(json.loads(out))
    seen = collections.Counter(path for path, _ in server.seen)
    assert max(seen.values()) == 1 and len(server.seen) - before > 20, report["ledger"]
    assert report["ledger"]["answered"] <= len(seen) <= report["ledger"]["sent"]


def test_a_unix_socket(tmp_path):
    path, capture = tmp_path / "shadow.sock", endtoend.unique(tmp_path / "a.pcap", 225, connections=9)
    with TlsServer(path=path) as server:
        report = endtoend.run(capture, "--pace", "max", "--to", f"unix:{path}", "--access-log", tmp_path / "log")
    assert report["ledger"]["answered"] == 225 == len(server.seen) and list(report["targets"]) == [f"unix:{path}"]
    done = endtoend.command("run", endtoend.DEMO, "--to", f"unix:{tmp_path}/nobody.sock", "--duration", "1s", code=5)
    assert "No such file" in done.stderr.decode()


def test_from_python(certificates):
    with TlsServer(certificates) as server:
        report = replay.run(endtoend.DEMO, to=f"https://localhost:{server.port}", cacert=certificates / "ca.pem", pace="max")
        assert report["ledger"]["answered"] == 225
        with pytest.raises(TargetError, match="not trusted"):
            replay.run(endtoend.DEMO, to=f"https://localhost:{server.port}", pace="max")


WRONG = [
    (("--to", "http://127.0.0.1:1", "--insecure"), "for https targets"),
    (("--to", "https://127.0.0.1:1", "--key", "x"), "--cert"),
    (("--to", "https://127.0.0.1:1", "--cacert", "nowhere.pem"), "nowhere.pem"),
    (("--to", "https://127.0.0.1:1", "--cacert", __file__), "PEM"),
    (("--to", "https://127.0.0.1:1", "--cert", "nowhere.pem"), "nowhere.pem"),
    (("--to", "unix:relative"), "unix:/path"),
    (("--to", "unix:/" + "x" * 200), "107 bytes"),
    (("--to", "https://127.0.0.1:1/path"), "no path"),
]


@pytest.mark.parametrize("options, word", WRONG, ids=[" ".join(one)[:50] for one, _ in WRONG])
def test_wrong_options(options, word):
    assert word in endtoend.command("run", endtoend.DEMO, *options, code=2).stderr.decode()


def test_strangers_are_not_passed_on(certificates):
    """A connection to the relay's port that does not belong to this user is closed, before the target hears of it."""
    with TlsServer(certificates) as server:
        one = relay.Relay(target(f"https://localhost:{server.port}"), Tls(cacert=str(certificates / "ca.pem")), [(bytes(10) + b"\xff\xff\x7f\0\0\1", server.port)], 2.0)
        one.start()
        try:
            before = relay._is_ours
            relay._is_ours = lambda port, to: False
            with socket.create_connection(("127.0.0.1", one.port), timeout=5) as stranger:
                assert stranger.recv(1) == b""
        finally:
            relay._is_ours = before
            with socket.create_connection(("127.0.0.1", one.port), timeout=5) as ours:
                ours.sendall(b"GET /mine HTTP/1.1\r\n\r\n")
                assert ours.recv(100).startswith(b"HTTP/1.1 200")
            one.stop()
    assert server.seen == [("/mine", 0)]


def test_the_guard_holds_for_https(certificates, tmp_path):
    """A capture of traffic to the target's own address is refused, TLS or not."""
    with TlsServer(certificates) as server:
        capture = endtoend.write(tmp_path / "a.pcap", endtoend.conversation([endtoend.request(b"/1")], server=(b"\x7f\0\0\1", server.port)))
        report = endtoend.run(capture, "--to", f"https://localhost:{server.port}", "--insecure", code=3)
    assert report["guard"] and not server.seen
    with pytest.raises(UsageError):
        relay.context(Tls(cacert="/nowhere"))


def test_a_listener_that_a_connection_of_the_same_turn_ended():
    """Its own event comes behind that one, and the thread goes on."""
    one = relay.Relay(target("unix:/nowhere/at-all"), Tls(), [], 0.1)
    one._listen()
    real, key = one._selector, one._selector.get_key(one._listener)

    class Turn:
        """One turn in which the listener's event comes when the listener is gone; then the real one's."""

        def select(self, timeout):
            one._selector = real
            real.unregister(one._listener)
            one._listener.close()
            one._listener = None
            one._next_try = time.monotonic() + 0.2
            return [(key, 1)]

    one._selector.register(one._woken, 1, None)
    one._selector = Turn()
    one._thread.start()
    time.sleep(0.5)
    try:
        assert one._thread.is_alive() and one.failed  # it tries again
    finally:
        one.stop()
