"""What a tap tells of each request: the access log and results, over a rotation; targets behind TLS and on Unix sockets; policies that change."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time

import pytest
from endtoend import balanced
from ownserver import OwnServer, requests_of
from tapmake import Sink, Tap, ended, eventually, get, needs, needs_root, nginx  # noqa: F401

from replay.settings import Tls
from replay.tap.notes import NotesFile
from replay.tap.spoken import speak

pytestmark = [needs_root, needs("nginx", "ip")]


@pytest.fixture
def folder():
    """One that `nobody` may write in."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield pathlib.Path(name)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_access_log_and_results_over_a_rotation(nginx, folder):  # noqa: F811
    """Each request that ended stands in both, once; what a rotation took away stays as it is; both are their owner's alone."""
    log, results = folder / "access.log", folder / "results.jsonl"
    with ended(Sink("--status", "404")) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--access-log", log, "--results", results)
        with ended(Tap(*words)) as tap:
            for i in range(20):
                get(f"{nginx.url}/a/{i}", data=b"x" * 30)
            eventually(lambda: len(lines(log)) == len(lines(results)) == 20)
            log.rename(folder / "access.log.1")
            results.rename(folder / "results.jsonl.1")
            tap.process.send_signal(signal.SIGHUP)
            eventually(lambda: log.exists() and results.exists())
            for i in range(15):
                get(f"{nginx.url}/b/{i}")
            report = balanced(tap.report())
    assert [len(lines(folder / name)) for name in ("access.log.1", "access.log", "results.jsonl.1", "results.jsonl")] == [20, 15, 20, 15]
    assert all(mode(folder / name) == 0o600 for name in ("access.log.1", "access.log", "results.jsonl.1", "results.jsonl"))
    found = [json.loads(line) for line in lines(results)]
    assert {row["target"] for row in found} == {f"/b/{i}" for i in range(15)}
    assert all((row["outcome"], row["shadow_status"], row["host"]) == ("answered", 404, f"127.0.0.1:{nginx.port}") for row in found)
    assert all('"GET /b/' in line and " 404 - " in line for line in lines(log))
    assert report["ledger"]["answered"] == 35 and report["results"] == {"lines": 35, "lost": 0}


def test_results_and_new_senders(nginx, folder):  # noqa: F811
    """A reload that makes new senders loses no line of the old ones."""
    results, config = folder / "results.jsonl.zst", folder / "tap.yaml"
    with ended(Sink()) as one, ended(Sink()) as two:
        config.write_text(f"to: http://{one.address}\n")
        with ended(Tap("lo", "--port", nginx.port, "-p", 100, "--results", results, "--config", config)) as tap:
            for turn in range(6):
                for i in range(10):
                    get(f"{nginx.url}/{turn}/{i}")
                config.write_text(f"to: http://{(one, two)[turn % 2 == 0].address}\n")
                tap.wait_for("reloaded")
            report = balanced(tap.report())
    done = subprocess.run(["zstd", "-dc", results], capture_output=True, text=True) if (pathlib.Path("/usr/bin/zstd").exists()) else None
    if done is not None:
        assert sorted(json.loads(line)["target"] for line in done.stdout.splitlines()) == sorted(f"/{turn}/{i}" for turn in range(6) for i in range(10))
    assert report["ledger"]["answered"] == 60 and report["results"] == {"lines": 60, "lost": 0}


def test_what_found_its_queue_full_is_lost_to_the_results(nginx, folder):  # noqa: F811
    """No sender saw it, so there is no line of it; it is counted, and the report says why."""
    words = ("-p", 100, "-c", 2, "--max-memory", "4MiB", "--timeout", "60s", "--max-age", "60s", "--drain", "100ms", "--results", folder / "results.jsonl")
    with ended(Sink("--misbehave", "never")) as stuck, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{stuck.address}", *words)) as tap:
        for i in range(300):
            get(f"{nginx.url}/{i}", data=b"x" * 60_000)
        eventually(lambda: "found 300" in tap.ask(), every=0.2)
        report = balanced(tap.report())
    full = report["ledger"]["by_reason"]["dropped"]["queue_full"]
    assert full > 0 and report["results"] == {"lines": 300 - full, "lost": full} and len(lines(folder / "results.jsonl")) == 300 - full
    assert f"{full} requests are in neither --results nor --access-log: {full} found their queue full (queue_full)" in report["notes"]


def test_a_file_that_cannot_be_made_anew_goes_on(folder, caplog):
    file = NotesFile("--access-log", str(folder / "log"))
    file.write(b"one\n")
    (folder / "log").rename(folder / "log.1")
    (folder / "log").mkdir()
    file.rotate()
    file.write(b"two\n")
    file.close()
    assert lines(folder / "log.1") == ["one", "two"] and "goes on in the file of before" in caplog.text


def test_a_full_disk_ends_the_log_and_nothing_else(caplog):
    file = NotesFile("--access-log", "/dev/full")
    for _ in range(100_000):
        file.write(b"a line of the log\n")
    file.flush()
    file.close()
    assert caplog.text.count("No space left on device: nothing more is written there, the tap goes on") == 1


# ---- other targets -------------------------------------------------------------------------------------------------------------------


class Shadow(OwnServer):
    """A server that answers 200 to what it reads, over TLS or on a Unix socket."""

    def __init__(self, where, context=None):
        self.heads = []
        super().__init__(where, context)

    def talk(self, peer):
        for head, _ in requests_of(peer):
            self.heads.append(head)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path / "key.pem", "-out", path / "cert.pem", "-days", "2", "-subj", "/CN=shadow.example"]
    subprocess.run([*words, "-addext", "subjectAltName=DNS:shadow.example"], check=True, capture_output=True)
    return path


@needs("openssl")
def test_a_target_behind_tls(nginx, certificate):  # noqa: F811
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    shadow = Shadow(("127.0.0.1", 0), context)
    try:
        words = ("--to", f"https://127.0.0.1:{shadow.port}", "--cacert", certificate / "cert.pem", "--sni", "shadow.example")
        with ended(Tap("lo", "--port", nginx.port, "-p", 100, *words)) as tap:
            for i in range(30):
                get(f"{nginx.url}/{i}")
            eventually(lambda: len(shadow.heads) >= 30)
            report = balanced(tap.report())
    finally:
        shadow.close()
    assert report["ledger"]["found"] == report["ledger"]["answered"] == 30
    assert all(f"Host: 127.0.0.1-shadow:{nginx.port}".encode() in head and b"x-shadow-replay: 1" in head for head in shadow.heads)


@needs("openssl")
def test_a_certificate_that_is_not_trusted_costs_requests_and_nothing_else(nginx, certificate):  # noqa: F811
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    shadow = Shadow(("127.0.0.1", 0), context)
    try:
        with ended(Tap("lo", "--port", nginx.port, "-p", 100, "--to", f"https://127.0.0.1:{shadow.port}", "--drain", "1s")) as tap:
            for i in range(5):
                get(f"{nginx.url}/{i}")
            eventually(lambda: "found 5" in tap.ask(), every=0.2)
            if "is not trusted" not in tap.said:
                tap.wait_for("is not trusted")
            code, out, err = tap.end()
    finally:
        shadow.close()
    assert code == 0 and not shadow.heads and "its certificate is not trusted" in err
    assert balanced(json.loads(out))["ledger"]["dropped"] == 5


class Renewed:
    """A tap of nginx with a shadow behind TLS, and their certificates in one folder, to which the configuration gives names."""

    def __init__(self, stack, nginx, folder, mode=0o644, **options):  # noqa: F811
        self.nginx, self.folder, self.asked = nginx, folder, 0
        self.config = folder / "tap.yaml"
        for name in ("old", "new"):
            self.certify(name)
        shutil.copyfile(folder / "old.pem", folder / "ca.pem")
        (folder / "ca.pem").chmod(mode)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serve("old")
        self.shadow = Shadow(("127.0.0.1", 0), self.context)
        stack.callback(self.shadow.close)
        self.write(**options)
        to = ("--to", f"https://127.0.0.1:{self.shadow.port}", "--sni", "shadow.example", "--drain", "1s")
        self.tap = stack.enter_context(ended(Tap("lo", "--port", nginx.port, *to, "--config", self.config)))
        self.comes_back()  # the relay has tried it
        self.early = self.asked - len(self.shadow.heads)

    def certify(self, name):
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        files = ["-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.pem"]
        subprocess.run([*words, *files, "-addext", "subjectAltName=DNS:shadow.example"], check=True, capture_output=True)

    def serve(self, name):
        """Connections from now on get this certificate."""
        self.context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def write(self, **options):
        self.config.write_text("".join(f"{name.replace('_', '-')}: {value}\n" for name, value in ({"percent": 100} | options).items()))

    def reload(self, **options):
        """What the log says of it."""
        self.write(**options)
        return self.said()

    def said(self):
        while True:
            line = self.tap.wait_for("daemon: ")
            if "reloaded (" in line or "configuration is refused" in line:
                return line

    def hangup(self):
        self.tap.process.send_signal(signal.SIGHUP)
        return self.said()

    def ask(self):
        self.asked += 1
        get(f"{self.nginx.url}/{self.asked}")

    def answered(self, count=5):
        """These are mirrored, each of them."""
        before = len(self.shadow.heads)
        for _ in range(count):
            self.ask()
        eventually(lambda: len(self.shadow.heads) == before + count)

    def not_trusted(self):
        """These are not, and the log says why."""
        before = len(self.shadow.heads)
        for _ in range(5):
            self.ask()
        self.tap.wait_for("its certificate is not trusted")
        assert len(self.shadow.heads) == before

    def comes_back(self):
        def sent():
            before = len(self.shadow.heads)
            self.ask()
            time.sleep(0.2)
            return len(self.shadow.heads) > before

        eventually(sent)


@needs("openssl")
def test_verification_that_a_reload_switches_on_is_done(nginx, folder):  # noqa: F811
    with contextlib.ExitStack() as stack:
        one = Renewed(stack, nginx, folder, insecure="true")
        one.answered()
        assert "reloaded" in one.reload(insecure="false")
        one.not_trusted()
        assert "reloaded" in one.reload(cacert=folder / "old.pem")
        one.comes_back()
        assert "reloaded" in one.reload(cacert=folder / "new.pem")
        one.not_trusted()
        balanced(one.tap.report())


@needs("openssl")
def test_certificates_that_are_renewed_under_their_names(nginx, folder):  # noqa: F811
    """SIGHUP takes them up; a share that changes loses nothing over it, nor does a file that does not hold what it should."""
    with contextlib.ExitStack() as stack:
        one = Renewed(stack, nginx, folder, cacert=folder / "ca.pem")
        one.answered()
        spoken = speak(Tls(cacert=str(folder / "ca.pem")), None)
        shutil.copyfile(folder / "old.pem", folder / "ca.pem")
        assert speak(spoken.tls, spoken) is spoken, "files that are the same cost no connection"
        assert "reloaded" in one.hangup()
        one.answered()
        (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
        line = one.hangup()
        assert "refused" in line and "--cacert" in line
        one.answered()
        (folder / "ca.pem").unlink()
        assert "refused" in one.hangup()
        one.answered()
        one.serve("new")
        shutil.copyfile(folder / "new.pem", folder / "ca.pem")
        assert "reloaded" in one.hangup()
        one.answered()
        one.serve("old")
        shutil.copyfile(folder / "old.pem", folder / "ca.pem")
        assert "reloaded" in one.hangup()
        one.answered()
        assert balanced(one.tap.report())["ledger"]["dropped"] == one.early


@needs("openssl")
def test_a_certificate_that_only_root_may_read(nginx, folder):  # noqa: F811
    """It was read in time. A reload that leaves it as it is goes on with that; one that would have to read it is refused."""
    with contextlib.ExitStack() as stack:
        one = Renewed(stack, nginx, folder, mode=0o600, cacert=folder / "ca.pem")
        one.answered()
        assert "reloaded" in one.reload(max_rate=1000, cacert=folder / "ca.pem")
        one.answered()
        shutil.copyfile(folder / "new.pem", folder / "ca.pem")
        line = one.hangup()
        assert "refused" in line and "ca.pem: the user that this runs as may not read it" in line
        one.answered()
        assert "reloaded" in one.reload(cacert=folder / "old.pem")
        one.answered()
        balanced(one.tap.report())


def test_a_target_on_a_unix_socket_that_comes_later(nginx, folder):  # noqa: F811
    path = str(folder / "shadow.sock")
    with ended(Tap("lo", "--port", nginx.port, "-p", 100, "--to", f"unix:{path}", "--drain", "1s")) as tap:
        get(f"{nginx.url}/early")
        eventually(lambda: "found 1" in tap.ask(), every=0.2)
        time.sleep(0.5)
        shadow = Shadow(path)
        try:
            sent = 0
            while not shadow.heads:
                assert sent < 400, "it does not come back"
                sent += 1
                get(f"{nginx.url}/later/{sent}")
                time.sleep(0.05)
            report = balanced(tap.report())
        finally:
            shadow.close()
    ledger = report["ledger"]
    assert ledger["found"] == sent + 1 and ledger["answered"] >= 1 and ledger["unanswered"] == 0


def test_a_reload_to_another_scheme(nginx, folder):  # noqa: F811
    config = folder / "tap.yaml"
    shadow = Shadow(str(folder / "shadow.sock"))
    try:
        with ended(Sink()) as sink:
            config.write_text(f"to: http://{sink.address}\n")
            with ended(Tap("lo", "--port", nginx.port, "-p", 100, "--config", config)) as tap:
                for turn in range(4):
                    for i in range(5):
                        get(f"{nginx.url}/{turn}/{i}")
                    eventually(lambda turn=turn: f"found {5 * turn + 5}" in tap.ask(), every=0.2)
                    if turn == 1:
                        eventually(lambda: len(shadow.heads) == 5)
                    config.write_text(f"to: unix:{folder}/shadow.sock\n" if turn % 2 == 0 else f"to: http://{sink.address}\n")
                    tap.wait_for("reloaded")
                    time.sleep(0.8)  # the relay has tried its target
                report = balanced(tap.report())
    finally:
        shadow.close()
    assert report["ledger"]["answered"] == 20 and len(shadow.heads) == 10


# ---- policies ------------------------------------------------------------------------------------------------------------------------


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_changed_policy_is_taken_up_and_loses_nothing(nginx, folder):  # noqa: F811
    """An upload that began under the policy of before goes where that said; what comes later goes by the new one; a bad file is refused."""
    logs = [folder / "one.jsonl", folder / "two.jsonl"]
    with ended(Sink("--access-log", logs[0])) as one, ended(Sink("--access-log", logs[1])) as two:
        policy = folder / "policy.yaml"
        policy.write_text(f"routes:\n- mirror: [{{to: 'http://{one.address}', set-headers: {{x-policy: first}}}}]\n")
        with ended(Tap("lo", "--port", nginx.port, "--policy", policy)) as tap:
            get(f"{nginx.url}/first")
            with socket.create_connection(("127.0.0.1", nginx.port)) as slow:
                slow.sendall(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
                time.sleep(0.3)
                for turn in range(3):
                    target = two if turn % 2 == 0 else one
                    policy.write_text(f"routes:\n- {{match: {{path: /not}}, mirror: []}}\n- mirror: [{{to: 'http://{target.address}', set-headers: {{x-policy: later}}}}]\n")
                    tap.wait_for("reloaded")
                    for path in ("not", f"later/{turn}"):
                        get(f"{nginx.url}/{path}")
                policy.write_text("routes:\n- mirror: [{to: nowhere at all}]\n")
                assert "p" in tap.wait_for("refused, the old one goes on")
                get(f"{nginx.url}/still")
                slow.sendall(b"67890")
                slow.recv(1000)
                eventually(lambda: "found 9" in tap.ask(), every=0.2)
            report = balanced(tap.report())
    got = [{row["target"]: dict(row["headers"])["x-policy"] for row in rows(log)} for log in logs]
    assert got == [{"/first": "first", "/slow": "first", "/later/1": "later"}, {"/later/0": "later", "/later/2": "later", "/still": "later"}]
    assert report["ledger"]["by_reason"]["filtered"] == {"not_mirrored": 3} and report["ledger"]["answered"] == 6


def test_a_policy_in_a_folder_is_watched(nginx, folder):  # noqa: F811
    policies = folder / "policies"
    policies.mkdir()
    policy = "routes:\n- mirror: [{{to: 'http://{}', percent: {}}}]\n"
    with ended(Sink()) as shadow:
        (policies / "a.yaml").write_text(policy.format(shadow.address, 100))
        with ended(Tap("lo", "--port", nginx.port, "--policy", policies)) as tap:
            get(f"{nginx.url}/first")
            (policies / "a.yaml").write_text(policy.format(shadow.address, 0))
            tap.wait_for("reloaded")
            get(f"{nginx.url}/second")
            code, out, said = tap.end()
    assert code == 0 and "cannot be read" not in said and balanced(json.loads(out))["ledger"]["selected"] == 1


def test_many_reloads_of_a_policy_under_load(nginx, folder):  # noqa: F811
    """Requests all the while, a new policy as fast as it is taken up: each request goes to exactly one of the shadows."""
    with ended(Sink()) as one, ended(Sink()) as two:
        policy = folder / "policy.yaml"
        said = "routes:\n- mirror: [{{to: 'http://{}'}}]\n"
        policy.write_text(said.format(one.address))
        with ended(Tap("lo", "--port", nginx.port, "--policy", policy, "--max-age", "60s", "--drain", "20s")) as tap:
            ends, asked = threading.Event(), [0]

            def load():
                while not ends.is_set():
                    get(f"{nginx.url}/x", data=b"x" * 5000)
                    asked[0] += 1

            loader = threading.Thread(target=load)
            loader.start()
            for turn in range(8):
                policy.write_text(said.format((one, two)[turn % 2 == 0].address))
                tap.wait_for("reloaded")
            ends.set()
            loader.join()
            eventually(lambda: f"found {asked[0]:,}" in tap.ask(), every=0.3)
            report = balanced(tap.report())
        # On a machine that is busy elsewhere a queue may have been full for a moment; nothing else may take a request.
        assert set(report["ledger"]["by_reason"]["dropped"]) <= {"queue_full"}
        assert report["ledger"]["found"] == asked[0] == report["ledger"]["sent"] + report["ledger"]["dropped"]
        assert one.totals()["requests"] + two.totals()["requests"] == report["ledger"]["sent"]


def test_max_cpu_and_a_policy(nginx, folder):  # noqa: F811
    """What --max-cpu holds back has a reason of its own, in a policy as well."""
    policy = folder / "policy.yaml"
    policy.write_text("routes:\n- mirror: [{to: 'http://127.0.0.1:9', percent: 50}]\n")
    with ended(Tap("lo", "--port", nginx.port, "--policy", policy, "--dry-run", "--max-cpu", "0.001")) as tap:
        end = time.monotonic() + 20
        asked = 0
        while time.monotonic() < end and "max_cpu" not in tap.ask():
            for _ in range(100):
                get(f"{nginx.url}/{asked}")
                asked += 1
        eventually(lambda: f"found {asked:,}," in tap.ask(), every=0.2)
        report = balanced(tap.report())
    out = report["ledger"]["by_reason"]["sampled_out"]
    assert out["max_cpu"] > 0 and out["share"] > 0 and sum(out.values()) + report["ledger"]["selected"] == asked


def test_a_long_policy_is_told_whole(folder):
    policy = folder / "policy.yaml"
    policy.write_text("routes:\n" + "".join(f"- {{name: r{chr(97 + n)}, match: {{path: {{prefix: /{chr(97 + n)}}}}}, mirror: [{{to: 'http://127.0.0.1:9'}}]}}\n" for n in range(18)))
    with ended(Tap("lo", "--port", "1", "--policy", policy, "--dry-run")) as tap:
        assert all(f"r{chr(97 + n)}" in tap.said for n in range(18)), tap.said
        tap.report()


def test_what_finds_its_queue_full_is_told_of_its_target(nginx):  # noqa: F811
    """In the report and in the metrics; the ledger of each target adds up by itself."""
    with ended(Sink("--misbehave", "never")) as stuck, ended(Sink()) as fine:
        urls = [f"http://{one.address}" for one in (stuck, fine)]
        words = ("--to", urls[0], "--to", urls[1], "-p", 100, "-c", 2, "--max-memory", "8MiB", "--timeout", "60s", "--max-age", "60s", "--drain", "100ms", "--metrics", "127.0.0.1:0")
        with ended(Tap("lo", "--port", nginx.port, *words, ready=False)) as tap:
            address = tap.wait_for("metrics at").split("/")[2]
            time.sleep(0.3)
            for i in range(300):
                get(f"{nginx.url}/{i}", data=b"x" * 60_000)
            eventually(lambda: "found 300" in tap.ask(), every=0.2)
            text = get(f"http://{address}/metrics").decode()
            report = balanced(tap.report())
    dropped = [report["targets"][url]["dropped"].get("queue_full", 0) for url in urls]
    assert dropped[0] > 0 and sum(dropped) == report["ledger"]["by_reason"]["dropped"]["queue_full"]
    assert f'replay_requests_dropped_total{{reason="queue_full",target="{urls[0]}"}}' in text and 'target="any"' not in text
    assert all(report["targets"][url]["sent"] + sum(report["targets"][url]["dropped"].values()) == 300 for url in urls)
