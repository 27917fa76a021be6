"""Real processes for the tests from end to end: the command line, sinks, an nginx; and captures whose requests are known."""

import collections
import contextlib
import hashlib
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import unittest.mock

import packetmake as net
import pcapmake
import trafficgen

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEMO = ROOT / "replay" / "data" / "demo.pcap"
EMPTY = hashlib.sha256(b"").hexdigest()
COMMAND = [sys.executable, "-m", "replay"]
PATIENCE_S = 20
HOST_NAME = b"a.example"


def folder(name):
    """The files of a case of captures/."""
    return sorted(path for path in (ROOT / "captures" / name).iterdir() if ".pcap" in path.name)


# ---- the command line --------------------------------------------------------------------------------------------------------


def command(*arguments, code=0, **more):
    """The finished process of `replay ARGUMENTS`, with its output as bytes. Raises AssertionError for another exit code (None: any)."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=120, **more)
    assert code is None or done.returncode == code, (done.returncode, done.stderr.decode())
    return done


def show(*arguments):
    """The objects of `replay show --json`."""
    return [json.loads(line) for line in command("show", "--json", *arguments).stdout.splitlines()]


def run(*arguments, code=0, **more):
    """The report of `replay run --json`; its books balance."""
    return balanced(json.loads(command("run", "--json", *arguments, code=code, **more).stdout))


def started(*arguments, **more):
    """A process of `replay ARGUMENTS` under way."""
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more)


def balanced(report):
    """The report, after the identities of the ledger were checked on it."""
    ledger = report["ledger"]
    assert ledger["found"] == ledger["filtered"] + ledger["sampled_out"] + ledger["withheld"] + ledger["selected"], ledger
    assert ledger["selected"] + ledger["fanout"] == ledger["sent"] + ledger["dropped"], ledger
    assert ledger["sent"] == ledger["answered"] + ledger["unanswered"], ledger
    assert ledger["answered"] == sum(report["status"].values()), (ledger, report["status"])
    for name in ("filtered", "sampled_out", "withheld", "dropped", "unanswered"):
        assert ledger[name] == sum(ledger["by_reason"].get(name, {}).values()), (name, ledger)
    return report


def outcome(report):
    """(sent, answered, dropped, unanswered by reason)."""
    ledger = report["ledger"]
    return ledger["sent"], ledger["answered"], ledger["dropped"], ledger["by_reason"]["unanswered"]


# ---- captures ----------------------------------------------------------------------------------------------------------------


def request(target, method=b"GET", body=b"", extra=b"", host=HOST_NAME):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%s %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s" % (method, target, host, length, extra, body)


REPLY = ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def conversation(requests, number=0, **more):
    """The packets of a connection on which these requests were sent and answered. number: another client each."""
    parts = [part for one in requests for part in (one, REPLY)]
    return net.talk(*parts, **{"client": (b"\x0a\1" + number.to_bytes(2, "big"), 40000)} | more)


def write(path, *conversations):
    """A capture of these lists of packets, merged by time; the path."""
    packets = sorted((packet for one in conversations for packet in one), key=lambda packet: packet[0])
    path.write_bytes(pcapmake.pcap(packets, nanoseconds=True))
    return path


def unique(path, count, connections=1, step_ns=100_000, **more):
    """A capture of `count` requests with targets /0, /1 … in order of time, round the connections."""
    talks = []
    for each in range(connections):
        requests = [request(b"/%d" % i, **more) for i in range(each, count, connections)]
        talks.append(conversation(requests, each, step_ns=step_ns * connections, start_ns=1_700_000_000_000_000_000 + each * step_ns))
    return write(path, *talks)


def generated(path, flavour, wanted=lambda made: True, connections=150, seed=20):
    """A capture of trafficgen's connections, of requests that are `wanted`. (the whole requests in it, the parts of others)."""
    rng, make = random.Random(seed), trafficgen.request

    def chosen(*arguments):
        while True:
            made = make(*arguments)
            if wanted(made):
                return made

    with unittest.mock.patch.object(trafficgen, "request", chosen):
        talks = [trafficgen.connection(rng, i, frozenset(flavour)) for i in range(connections)]
    packets = trafficgen.interleave(rng, talks)
    for damage in ("lose", "reorder"):
        if damage.replace("lose", "loss") in flavour:
            packets = getattr(trafficgen, damage)(rng, packets)
    path.write_bytes(pcapmake.pcap(trafficgen.frames(rng, packets, 262144), nanoseconds=True))
    by_connection = collections.defaultdict(list)
    for packet in packets:
        by_connection[id(packet.connection)].append(packet)
    truths = [trafficgen.truth(c, by_connection[id(c)]) for c in talks]
    return [row for whole, _ in truths for row in whole], [row for _, parts in truths for row in parts]


# ---- what was logged ---------------------------------------------------------------------------------------------------------


def expected(rows, copies=1):
    """What a server logs for rows of `show`: a multiset of (method, target, host, digest of the body)."""
    wanted = [(row["method"], origin_form(row["target"]), row["shadow_host"], row["body_sha256"]) for row in rows if row["withheld"] is None]
    return collections.Counter(wanted * copies)


def origin_form(target):
    """Of an absolute target, what is sent of it."""
    scheme, mark, rest = target.partition("://")
    if not mark or not scheme.isalpha():
        return target
    path = rest.find("/")
    return rest[path:] if path >= 0 else "/"


def logged(rows):
    """The same of what a sink or an nginx logged."""
    return collections.Counter((row["method"], row["target"], row["host"], row["body_sha256"]) for row in rows)


# ---- servers -----------------------------------------------------------------------------------------------------------------


def free_port():
    """A port of 127.0.0.1 where nobody listens, and which the kernel gives to nobody: below those that outgoing connections have."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition, what, seconds=PATIENCE_S, step=0.01):
    """Until condition() is true; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(step)


def ended(process, seconds=PATIENCE_S):
    """Waits for it and closes its pipes; what came on them is lost."""
    try:
        process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode


def until_logged(log, lines):
    """Waits until a log has so many lines: what a busy machine has done by then, not what a quiet one does in a second."""
    end = time.monotonic() + PATIENCE_S
    while not log.exists() or log.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end, f"{log.name} has fewer than {lines} lines"
        time.sleep(0.01)


class Sink:
    """`replay sink` as a process. `rows` after `stop`."""

    def __init__(self, log, *options, port=0):
        self.log = log
        self.process = started("sink", "--json", "--listen", f"127.0.0.1:{port}", "--access-log", log, *options)
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on "), (line, self.process.communicate())
        self.port = int(line.rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"
        self.totals = None

    def stop(self, number=signal.SIGTERM):
        """Its rows, in the order in which they were logged."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=PATIENCE_S)
        if number != signal.SIGKILL:
            assert self.process.returncode == 0, errors.decode()
            self.totals = json.loads(out)
        return self.rows

    @property
    def rows(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        if not self.process.stdout.closed:
            self.process.communicate()


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log info;
events {{ worker_connections 4096; }}
http {{
    log_format whole escape=json '{{"method":"$request_method","target":"$request_uri","host":"$http_host","length":"$http_content_length",'
        '"file":"$request_body_file","line":"$request","status":$status,"connection":$connection,"id":"$http_x_id"}}';
    access_log off; client_body_in_file_only on; client_body_temp_path {folder}/bodies; client_max_body_size 0; client_body_buffer_size 64k;
    proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests {keepalive}; keepalive_timeout 60s; large_client_header_buffers 8 128k; merge_slashes off;
    server {{
        listen 127.0.0.1:{port} backlog=4096; server_name _; access_log {folder}/access.log whole;
        # Only a request that is passed on has its body read.
        location / {{ proxy_pass http://unix:{folder}/inner; proxy_pass_request_body off; proxy_set_header Content-Length ""; }}
    }}
    server {{ listen unix:{folder}/inner backlog=4096; return 200 "ok"; }}
}}
"""


class Nginx:
    """A real nginx, one process. `rows(n)` waits for n lines since the last call and digests their bodies."""

    def __init__(self, folder, port=None, keepalive=1_000_000):
        folder.mkdir(exist_ok=True)
        self.folder, self.port, self.read = folder, port or free_port(), 0
        self.url = f"http://127.0.0.1:{self.port}"
        with contextlib.suppress(FileNotFoundError):
            (folder / "inner").unlink()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=self.port, keepalive=keepalive))
        self.output = open(folder / "output", "wb")
        self.process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")], stdout=self.output, stderr=self.output
        )
        wait_until(self._answers, "nginx")

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "output").read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def rows(self, count):
        """At least so many lines; all that are there after a moment of quiet."""
        wait_until(lambda: len(self._lines()) >= self.read + count, f"{count} lines of nginx", 5)
        time.sleep(0.03)
        new = self._lines()[self.read :]
        self.read += len(new)
        return [self._digested(json.loads(line)) for line in new]

    def _lines(self):
        data = (self.folder / "access.log").read_bytes()
        return data[: data.rfind(b"\n") + 1].decode().splitlines()

    def _digested(self, row):
        file = row.pop("file")
        row["body_sha256"] = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest() if file else EMPTY
        return row

    def stop(self, number=signal.SIGQUIT):
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.output.close()


LOGGING_SERVER = r"""
import os, socket, sys, threading, time
def serve(peer):
    held = b""
    while True:
        while b"\r\n\r\n" not in held:
            more = peer.recv(65536)
            if not more:
                return
            held += more
        head, held = held.split(b"\r\n\r\n", 1)
        os.write(log, head.split(b" ")[1] + b"\n")
        time.sleep(0.003)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def guarded(peer):
    try:
        serve(peer)
    except OSError:
        pass
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
print("listening", flush=True)
while True:
    threading.Thread(target=guarded, args=(server.accept()[0],), daemon=True).start()
"""


class LoggingServer:
    """A server, a process of its own, that logs the target of each request before it answers: whenever it is killed, the log is true."""

    def __init__(self, log, port):
        self.process = subprocess.Popen([sys.executable, "-c", LOGGING_SERVER, str(port), log], stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"listening\n"

    def stop(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


def access_log(path):
    """(target, status, flag, whether a byte was sent) of each line of the access log of a run."""
    found = []
    for line in path.read_text().splitlines():
        words = line.split('"')
        status, flag, *_ = words[2].split()
        found.append((words[1].split(" ")[1], int(status), flag, words[-2] != "-"))
    return found
