"""Real taps for the tests: an nginx as production, sinks as shadows, `replay tap` as a process, network namespaces of their own."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

COMMAND = [sys.executable, "-m", "replay"]
PATIENCE_S = 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: AF_PACKET and network namespaces")


def needs(*programs):
    missing = [one for one in programs if shutil.which(one) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def free_port(host="127.0.0.1"):
    with socket.socket() as one:
        one.bind((host, 0))
        return one.getsockname()[1]


def eventually(what, seconds=PATIENCE_S, every=0.02):
    """what() until it is true; its value. Raises AssertionError with what it was last."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {found!r}"
        time.sleep(every)


def inside(netns, words):
    return ["ip", "netns", "exec", netns, *words] if netns else list(words)


class Process:
    """A process that is ended at the end of the test."""

    def __init__(self, words, netns=None, **more):
        self.process = subprocess.Popen(inside(netns, words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        self.said = ""

    def end(self, number=signal.SIGTERM):
        """(exit code, standard output, standard error)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"it does not end: {err}") from None
        return self.process.returncode, out, self.said + err

    def wait_for(self, text):
        """Reads standard error up to a line that holds this."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            line = self.process.stderr.readline()
            self.said += line
            if text in line:
                return line
            if not line and self.process.poll() is not None:
                break
        raise AssertionError(f"{text!r} was not said: {self.said}")


@contextlib.contextmanager
def ended(process):
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        with contextlib.suppress(ValueError):  # its output was read already
            process.process.communicate()


class Sink(Process):
    """`replay sink`; `address` once it listens."""

    def __init__(self, *words, listen="127.0.0.1:0", netns=None):
        super().__init__([*COMMAND, "sink", "--listen", listen, "--json", *words], netns)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), (line, self.process.communicate())
        self.address = line.split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def totals(self):
        code, out, err = self.end()
        assert code == 0, err
        return json.loads(out.splitlines()[-1])


class Nginx:
    """Production. `logged` are (method, target, host) of each request it answered."""

    def __init__(self, folder, host="127.0.0.1", netns=None, port=None, workers=1, log=True):
        self.folder = pathlib.Path(folder)
        self.port = port or free_port()
        self.host = host
        access = f"log_format tap '$request_method $request_uri $host'; access_log {folder}/access.log tap;" if log else "access_log off;"
        (self.folder / "nginx.conf").write_text(
            f"worker_processes {workers}; daemon off; master_process {'on' if workers > 1 else 'off'}; pid {folder}/pid; error_log {folder}/error.log;"
            "events { worker_connections 4096; } http { "
            f"{access} keepalive_requests 1000000000; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;"
            f"uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;"
            f'server {{ listen {host}:{self.port}; location / {{ return 200 "hello\\n"; }} location /count {{ stub_status; access_log off; }} }} }}\n'
        )
        self.process = subprocess.Popen(inside(netns, ["nginx", "-c", f"{folder}/nginx.conf", "-p", str(folder)]), stderr=subprocess.DEVNULL)
        self.url = f"http://{host}:{self.port}"
        if netns is None:
            eventually(self._listens)
        else:
            time.sleep(0.5)

    def _listens(self):
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False

    def logged(self):
        return [tuple(line.split(" ")) for line in (self.folder / "access.log").read_text().splitlines()]

    def requests(self):
        """What nginx itself counted, this question included."""
        text = urllib.request.urlopen(f"{self.url}/count", timeout=5).read().decode()
        return int(text.splitlines()[2].split()[2])

    def close(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def nginx(tmp_path):
    folder = tmp_path / "nginx"
    folder.mkdir()
    found = Nginx(folder)
    yield found
    found.close()


class Tap(Process):
    """`replay tap`, capturing from when it is made."""

    def __init__(self, *words, netns=None, ready=True):
        super().__init__([*COMMAND, "tap", *map(str, words), "--json"], netns)
        if ready:
            self.wait_for("rights:")
            time.sleep(0.3)  # the first block of the ring is asked for

    def report(self, code=0):
        found, out, err = self.end()
        assert found == code, (found, err)
        return json.loads(out)

    def ask(self):
        """SIGUSR1: the ledger of now, as text."""
        self.process.send_signal(signal.SIGUSR1)
        return self.wait_for("found ")

    @property
    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def get(url, host=None, headers=(), data=None):
    asked = urllib.request.Request(url, data=data, headers=dict(headers) | ({"Host": host} if host else {}))
    with urllib.request.urlopen(asked, timeout=10) as reply:
        return reply.read()


class Namespaces:
    """Two network namespaces with a veth between them, and one from each to here on request; named after the test's process."""

    made = itertools.count()

    def __init__(self, *names):
        self.tag = f"{os.getpid() % 100000}{chr(97 + next(self.made) % 26)}"
        self.names = {name: f"rtap{self.tag}{name}" for name in names}
        for name in self.names.values():
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")

    @staticmethod
    def ip(*words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def __getitem__(self, name):
        return self.names[name]

    def link(self, a, b, address_a, address_b, device_a="eth0", device_b="eth0"):
        """A veth between two of them; b None: its other end stays here."""
        first, second = f"ra{self.tag}{a}"[:15], f"rb{self.tag}{a}"[:15]
        self.ip("link", "add", first, "type", "veth", "peer", "name", second)
        self.ip("link", "set", first, "netns", self.names[a])
        self.ip("-n", self.names[a], "link", "set", first, "name", device_a)
        self.ip("-n", self.names[a], "addr", "add", address_a, "dev", device_a)
        self.ip("-n", self.names[a], "link", "set", device_a, "up")
        if b is None:
            self.ip("addr", "add", address_b, "dev", second)
            self.ip("link", "set", second, "up")
            return second
        self.ip("link", "set", second, "netns", self.names[b])
        self.ip("-n", self.names[b], "link", "set", second, "name", device_b)
        self.ip("-n", self.names[b], "addr", "add", address_b, "dev", device_b)
        self.ip("-n", self.names[b], "link", "set", device_b, "up")
        return device_b

    def close(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
