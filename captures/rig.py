"""The bench that the recipes share: a network namespace of its own, a recorder on `lo`, servers that log, and the list of what was truly sent.

Needs root and Linux. Nothing here reads a capture: the truth comes from the clients' scripts and the servers' logs.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    log_format truth escape=json '{{"client":"$remote_addr","client_port":$remote_port,"server":"$server_addr","server_port":$server_port,'
        '"line":"$request","host":"$http_host","status":$status,"connection":$connection,"nth":$connection_requests}}';
    access_log {folder}/access.log truth;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    default_type application/json;
    keepalive_requests 1000;
    {servers}
}}
"""

# Room for a quarter of a second at full speed: with the default, and its slot of 256 kB a packet, the kernel drops packets even here.
RING = ("-U", "--immediate-mode", "-B", "131072")

CASE = pathlib.Path(sys.argv[0]).resolve().parent


def own_network(*addresses):
    """Starts the recipe again inside a new network namespace whose `lo` has the addresses; returns there."""
    if os.geteuid() != 0:
        sys.exit("recording needs root (network namespace, tcpdump)")
    if os.environ.get("REPLAY_RIG") != "1":
        os.environ["REPLAY_RIG"] = "1"
        os.execvp("unshare", ["unshare", "-n", "--", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in addresses:
        subprocess.run(["ip", "addr", "add", address + ("/128" if ":" in address else "/32"), "dev", "lo"], check=True)


class Recorder:
    """tcpdump (or dumpcap, by `command`) writing `name` into the case's folder, from __enter__ to __exit__."""

    def __init__(self, name="capture.pcap", *, interface="lo", snap=262144, expression="tcp", command=None):
        self.path = CASE / name
        self.command = command or ["tcpdump", "-i", interface, "-w", str(self.path), *RING, "-Z", "root", "-s", str(snap), *expression.split()]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE)
        self.said = b""
        while b"istening on" not in self.said and b"File: " not in self.said:
            piece = os.read(self.process.stderr.fileno(), 4096)
            if not piece:
                raise SystemExit(f"{self.command[0]} did not start: {self.said.decode()}")
            self.said += piece
        time.sleep(0.2)
        return self

    def __exit__(self, *_):
        time.sleep(0.7)  # what is under way in the ring
        self.process.send_signal(signal.SIGINT)
        self.said += self.process.communicate(timeout=10)[1]
        drops = re.findall(rb"(\d+) packets dropped|received/dropped on interface .*?: \d+/(\d+)", self.said)
        if not drops or any(int(a or b) for a, b in drops):
            raise SystemExit(f"the recorder lost packets: {self.said.decode()}")


class Nginx:
    """nginx with the given server blocks; `requests(bodies)` is its log as truth. {folder} in them is a scratch folder."""

    def __init__(self, servers):
        self.servers = servers

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rig-"))
        os.chmod(self.folder, 0o777)
        conf = self.folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=self.folder, servers=self.servers.replace("{folder}", str(self.folder))))
        self.process = subprocess.Popen(["nginx", "-c", str(conf), "-e", str(self.folder / "error.log"), "-g", "user root;"])
        for _ in range(100):
            if (self.folder / "nginx.pid").exists() and (self.folder / "nginx.pid").read_text().strip():
                break
            time.sleep(0.02)
        time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(10)
        self.log = [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]
        self.stored = {p.name: p.read_bytes() for p in self.folder.glob("store/**/*") if p.is_file()}
        shutil.rmtree(self.folder)

    def requests(self, body_of=lambda target: b""):
        """The log as truth. body_of: target -> what the client sent as body."""
        rows = []
        for row in self.log:
            method, target, version = row["line"].split(" ")
            client, server = address(row["client"], row["client_port"]), address(row["server"], row["server_port"])
            rows.append(truth(client, server, method, target, row["host"] or None, body_of(target), row["status"], version.removeprefix("HTTP/")))
        return rows


def address(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def truth(client, server, method, target, host, body=b"", status=200, version="1.1", **more):
    """One row of requests.json. client, server: `ip:port`, or socket names."""
    client, server = (a if isinstance(a, str) else address(*a[:2]) for a in (client, server))
    return {
        "client": client,
        "server": server,
        "method": method,
        "target": target,
        "version": version,
        "host": host,
        "body_len": len(body),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "status": status,
        **more,
    }


def write_truth(rows):
    """requests.json: a row a line, connections by their client's address, the order on a connection kept."""
    rows = sorted(rows, key=lambda row: (row["client"], row["server"]))
    (CASE / "requests.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n" if rows else "[]\n")
    sizes = {p.name: p.stat().st_size for p in sorted(CASE.iterdir()) if ".pcap" in p.name}
    print(f"{CASE.name}: {len(rows)} requests, {sizes}")


def compress(path, how):
    """Replaces the file by a compressed one, PATH.gz or PATH.zst."""
    if how == "gz":
        pathlib.Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
        path.unlink()
    else:
        subprocess.run(["zstd", "-q", "-19", "-f", "--rm", str(path)], check=True)


def serve(address, handle, *, family=socket.AF_INET):
    """A server of our own: `handle(socket, peer)` in a thread a connection. Returns the listening socket."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(64)

    def accept():
        while True:
            try:
                one, peer = listener.accept()
            except OSError:
                return
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=handle, args=(one, peer), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def connect(server, client=None):
    """A connected socket without Nagle: each send is a segment of its own (up to the MTU of `lo`)."""
    one = socket.create_connection(server, source_address=client, timeout=10)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def read_until(one, ending):
    """Reads up to and including `ending`, nothing after it; b"" when the other side closed first."""
    got = b""
    while not got.endswith(ending):
        byte = one.recv(1)
        if not byte:
            return b""
        got += byte
    return got


def read_exactly(one, count):
    got = b""
    while len(got) < count:
        piece = one.recv(min(65536, count - len(got)))
        if not piece:
            return got
        got += piece
    return got


def read_reply(one, *, head_only=False):
    """One reply of a server of ours or nginx, which frame by Content-Length or chunks: (status, head, body)."""
    head = read_until(one, b"\r\n\r\n")
    if not head:
        return 0, head, b""
    status = int(head.split(b" ", 2)[1])
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
    if head_only or status in (204, 304) or status < 200:
        return status, head, b""
    if fields.get(b"transfer-encoding") == b"chunked":
        body = b""
        while True:
            size = b""
            while not size.endswith(b"\r\n"):
                size += one.recv(1)
            count = int(size, 16)
            body += read_exactly(one, count)
            read_exactly(one, 2)
            if count == 0:
                return status, head, body
    return status, head, read_exactly(one, int(fields.get(b"content-length", b"0")))


def run(*command, **more):
    """A client program; its output is thrown away, its failure is ours unless check=False."""
    more.setdefault("check", True)
    return subprocess.run(command, capture_output=True, timeout=60, **more)


def read_pcap(path):
    """(24-byte header, [(16-byte record header, frame)]) of a little-endian pcap."""
    raw = path.read_bytes()
    at, packets = 24, []
    while at + 16 <= len(raw):
        length = int.from_bytes(raw[at + 8 : at + 12], "little")
        packets.append((raw[at : at + 16], raw[at + 16 : at + 16 + length]))
        at += 16 + length
    return raw[:24], packets


def write_pcap(path, header, packets):
    path.write_bytes(header + b"".join(record + frame for record, frame in packets))
