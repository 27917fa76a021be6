"""What the benchmarks send to, each on the server's core, with a count of its own: an nginx with one worker, and `replay sink`."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

import measure

PATIENCE_S = 10

#: No log (but where one is asked for), no file, no limit on a connection's requests; a buffer in which a batch of pipelined heads has room, so that the server reads as rarely as it can.
NGINX = """
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log error;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; multi_accept on; }}
http {{
    log_format targets "$request_uri";
    access_log {log};
    keepalive_requests 4000000000;
    keepalive_timeout 60s;
    client_header_buffer_size 32k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} backlog=8192;
        location / {{ return 200 "ok"; keepalive_timeout {keep}; }}
        location = /served {{ stub_status; access_log off; }}
    }}
}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def seconds_used(pid):
    """CPU time of a process so far, to the nanosecond: its clock, whose number follows from the pid (clock_getcpuclockid)."""
    return time.clock_gettime(~pid << 3 | 2)


class Nginx:
    """An nginx with one worker on a core, and its own count of requests. As a context manager.

    keep: how long a connection is kept open for a next request, "0" for not at all.  log: the target of each request, a line each, in `folder/log`.  host: where it listens.
    """

    def __init__(self, folder, core=measure.SERVER, keep="60s", log=False, host="127.0.0.1"):
        self.folder, self.core, self.keep, self.log, self.host = pathlib.Path(folder), core, keep, log, host
        self.asked = 0  # status pages that we asked for ourselves; they are in nginx's count

    def __enter__(self):
        self.port = free_port()
        log = f"{self.folder}/log targets buffer=256k" if self.log else "off"
        (self.folder / "nginx.conf").write_text(NGINX.format(folder=self.folder, port=self.port, keep=self.keep, host=self.host, log=log))
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        said = self.folder / "said"
        with open(said, "wb") as output:
            self.process = subprocess.Popen([program, "-p", self.folder, "-e", self.folder / "error.log", "-c", self.folder / "nginx.conf"], stdout=output, stderr=output, **measure.on(self.core))
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._line = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"nginx does not start: {said.read_text()}") from None
                time.sleep(0.02)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (pids := children.read_text().split()):
            time.sleep(0.02)
        self.worker = int(pids[0])
        return self

    def __exit__(self, *_):
        self._line.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def count(self):
        """Requests that it has answered, by its own count, without ours."""
        return self._counts()[2] - self.asked

    def accepted(self):
        """Connections that it has accepted, by its own count."""
        return self._counts()[0]

    def _counts(self):
        said = b""
        while b"Waiting" not in said.partition(b"\r\n\r\n")[2]:
            try:
                if not said:
                    self._line.sendall(b"GET /served HTTP/1.1\r\nHost: x\r\n\r\n")
                more = self._line.recv(4096)
            except ConnectionError:
                more = b""
            if not more and said:
                raise SystemExit("nginx has closed the connection of its status")
            if not more:  # it was idle for long
                self._line.close()
                self._line = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
            said += more
        self.asked += 1
        return [int(one) for one in said.partition(b"requests\n")[2].split()[:3]]

    def watched(self):
        return Watched(self)


class Watched:
    """How many requests an nginx serves, and how busy it is, while something runs: samples, 20 a second. As a context manager.

    The middle of the run counts: from a tenth to nine tenths of what was served, so that neither start-up nor the last stragglers are in it.
    """

    def __init__(self, server):
        self.server, self.samples, self._ended = server, [], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while True:
            self._sample()
            if self._ended.wait(0.05):
                return

    def _sample(self):
        before = time.monotonic()
        served = self.server.count()
        self.samples.append(((before + time.monotonic()) / 2, served, seconds_used(self.server.worker)))

    def __enter__(self):
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._sample()

    @property
    def served(self):
        return self.samples[-1][1] - self.samples[0][1]

    @property
    def server_cpu(self):
        """Seconds of the worker, all of the run."""
        return self.samples[-1][2] - self.samples[0][2]

    def middle(self):
        """(served a second, share of its core that the worker used) in the middle of the run."""
        first = self.samples[0][1]
        inside = [one for one in self.samples if 0.1 * self.served <= one[1] - first <= 0.9 * self.served]
        if len(inside) < 2:  # too short for a middle
            inside = [one for i, one in enumerate(self.samples) if i == 0 or one[1] > self.samples[i - 1][1]]
        a, b = inside[0], inside[-1]
        if a[0] == b[0]:
            a, b = self.samples[0], self.samples[-1]
        return (b[1] - a[1]) / (b[0] - a[0]), (b[2] - a[2]) / (b[0] - a[0])


class Sink:
    """`replay sink` on its core, started anew for each thing that is watched, so that its totals are of that alone."""

    def __init__(self, *arguments, core=measure.SERVER):
        self.arguments, self.core = arguments, core
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def watched(self):
        return SinkWatched(self)


class SinkWatched:
    """A sink while it runs, and what it counted when it has ended. As a context manager."""

    def __init__(self, sink):
        self.sink = sink

    def __enter__(self):
        command = [*measure.REPLAY, "sink", "--listen", f"127.0.0.1:{self.sink.port}", "--json", *self.sink.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **measure.on(self.sink.core))
        if not self.process.stdout.readline().startswith("listening on "):
            raise SystemExit("replay sink does not start")
        self._began, self._used = time.monotonic(), seconds_used(self.process.pid)
        return self

    def __exit__(self, kind, *_):
        self.wall, self.server_cpu = time.monotonic() - self._began, seconds_used(self.process.pid) - self._used
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=PATIENCE_S)[0]
        if kind is None:
            self.totals = json.loads(said)
            self.served = self.totals["requests"]
            if self.totals["bad"]:
                raise SystemExit(f"the sink counted {self.totals['bad']} bad requests: nothing of this benchmark holds")

    def middle(self):
        """(served a second, share of its core), of all of the run: the sink does not tell while it runs."""
        return self.served / self.wall, self.server_cpu / self.wall
