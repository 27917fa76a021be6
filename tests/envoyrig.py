"""A real Envoy between a client, a primary and shadow services that record what they get; and the traffic to the primary as a capture."""

import asyncio
import contextlib
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import yaml

ENVOY = shutil.which("envoy", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("envoy")
TCPDUMP = shutil.which("tcpdump") or ("/usr/sbin/tcpdump" if pathlib.Path("/usr/sbin/tcpdump").exists() else None)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Recorder:
    """An HTTP/1.1 server in a thread that answers 200 and keeps (method, target, headers, body, trailers) of each request."""

    def __init__(self, interim=False):
        self.rows = []
        self.interim = interim
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.ready.wait(10)

    def _run(self):
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24))
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()

    async def _serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head[:-4].split(b"\r\n")
                method, target, _ = first.split(b" ", 2)
                headers = [tuple(part.strip() for part in line.split(b":", 1)) for line in lines]
                names = {name.lower(): value for name, value in headers}
                body, trailers = b"", []
                if names.get(b"transfer-encoding", b"").lower() == b"chunked":
                    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                        body += (await reader.readexactly(size + 2))[:-2]
                    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                        trailers.append(line[:-2])
                elif b"content-length" in names:
                    body = await reader.readexactly(int(names[b"content-length"]))
                self.rows.append((method, target, headers, body, trailers))
                if self.interim:
                    writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()

    def wait(self, count, seconds=20):
        end = time.monotonic() + seconds
        while len(self.rows) < count and time.monotonic() < end:
            time.sleep(0.02)
        return len(self.rows)

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def bootstrap(port, clusters, routes, *, trailers=False, access_log=None):
    """An Envoy bootstrap: one listener, a cluster a name with its port, and these virtual hosts. trailers: go on to the clusters."""

    def cluster(name, at):
        endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": at}}}}
        options = {"@type": HTTP_OPTIONS, "explicit_http_config": {"http_protocol_options": {"enable_trailers": trailers}}}
        more = {"typed_extension_protocol_options": {HTTP_OPTIONS.rpartition("/")[2]: options}} if trailers else {}
        return more | {"name": name, "connect_timeout": "2s", "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}}

    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "generate_request_id": True,
        "http_protocol_options": {"enable_trailers": True, "accept_http_10": True},
        "route_config": {"name": "local", "virtual_hosts": routes},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
        ],
    }
    if access_log is not None:
        log = {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": str(access_log)}
        manager["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": log}]
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster(name, at) for name, at in clusters.items()]}}


@contextlib.contextmanager
def envoy(folder, config, port):
    """Envoy with this bootstrap, accepting connections."""
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    with open(folder / "envoy.log", "wb") as log:
        process = subprocess.Popen([ENVOY, "-c", str(file), "--base-id", str(port), "--concurrency", "1", "-l", "error"], stdout=log, stderr=log)
    try:
        for _ in range(400):
            assert process.poll() is None, (folder / "envoy.log").read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def captured(path, port):
    """tcpdump on the loopback device, for one port; the file is whole when the block has ended."""
    process = subprocess.Popen(
        [TCPDUMP, "-i", "lo", "-s", "0", "-B", "65536", "-U", "--immediate-mode", "-w", str(path), f"tcp port {port}"], stderr=subprocess.PIPE
    )
    said = b""
    while b"listening on" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    try:
        yield
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def exchange(port, requests, connections=8):
    """Sends requests (bytes) over some connections, one after the other on each, and gives the statuses."""
    statuses = [None] * len(requests)

    def work(first):
        with socket.create_connection(("127.0.0.1", port), 10) as one, one.makefile("rb") as file:
            for at in range(first, len(requests), connections):
                one.sendall(requests[at])
                while True:
                    line = file.readline()
                    if not line:
                        return
                    status = int(line.split(b" ")[1])
                    length = 0
                    while (field := file.readline()) not in (b"\r\n", b""):
                        if field.lower().startswith(b"content-length:"):
                            length = int(field.split(b":")[1])
                    if status >= 200:
                        break
                file.read(length)
                statuses[at] = status

    threads = [threading.Thread(target=work, args=(i,)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def mirrored(folder, envoy_routes, policy, requests, shadows=("shadow", "other"), *, front=False, trailers=False, options=(), **more):
    """(what each shadow got from Envoy, what it got from replay, the report of replay, what the primary got).

    policy: text, `{name}` for the URL of a shadow, or None: Envoy's own.  front: the capture is of the traffic to Envoy, not of that to the primary.
    """
    primary = Recorder(**more)
    ours, theirs = ({name: Recorder() for name in shadows} for _ in range(2))
    port = free_port()
    clusters = {"primary": primary.port} | {name: one.port for name, one in theirs.items()}
    config = bootstrap(port, clusters, envoy_routes, trailers=trailers)
    with envoy(folder, config, port), captured(folder / "primary.pcap", port if front else primary.port):
        statuses = exchange(port, requests)
        assert set(statuses) == {200}, [(requests[i][:200], s) for i, s in enumerate(statuses) if s != 200][:3]
        settle(theirs.values())
    file = folder / "policy.yaml"
    if policy is None:
        file.write_text(yaml.safe_dump(bootstrap(port, {"primary": primary.port} | {name: one.port for name, one in ours.items()}, envoy_routes)))
    else:
        file.write_text(policy.format(**{name: f"http://127.0.0.1:{one.port}" for name, one in ours.items()}))
    words = [word.format(**{name: f"127.0.0.1:{one.port}" for name, one in ours.items()}) for word in options]
    own = [dict(row[2]).get(b"x-forwarded-for", b"").rpartition(b",")[2].decode() for one in theirs.values() for row in one.rows[:1]]
    command = [sys.executable, "-m", "replay", "run", str(folder / "primary.pcap"), "--policy", str(file), "--pace", "max", "--json", "-q"]
    done = subprocess.run([*command, "--mirror-headers", f"envoy:{own[0] if own else '127.0.0.1'}", "--max-body", "64MiB", *words], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    settle(ours.values())
    for one in (primary, *ours.values(), *theirs.values()):
        one.stop()
    return {n: one.rows for n, one in theirs.items()}, {n: one.rows for n, one in ours.items()}, json.loads(done.stdout), primary.rows


def settle(recorders, seconds=0.4):
    """Until nothing more arrives."""
    before = -1
    while (now := sum(len(one.rows) for one in recorders)) != before:
        before = now
        time.sleep(seconds)
