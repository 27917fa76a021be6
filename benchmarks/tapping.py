"""What the programs about the live tap share: a network of their own, tools beside production, load on it, what a process holds, and what must hold.

Everything happens in a network namespace that the program makes for itself: nobody else's traffic is tapped, nobody else's tap copies ours, and what is left behind there can be counted.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import measure
import servers

CONNECTIONS = 64
PATIENCE_S = 60
RING = 64 << 20
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def apart(*programs):
    """Puts this process, and what it starts from now on, into a network namespace with a loopback interface and nothing else. Ends where a program or the right is absent."""
    absent = measure.missing("ip", *programs)
    if absent or os.geteuid() != 0:
        raise SystemExit(f"needs root and {', '.join(absent) or 'nothing else'}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        raise SystemExit(f"no network namespace of our own: {os.strerror(ctypes.get_errno())}")
    ip("link", "set", "lo", "up")


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True)


class Elsewhere:
    """A host beside ours: a network namespace without a name, at the other end of a veth. It ends with us. As a context manager.

    device, address: of our end (10.201.NUMBER.1).  there: its address (10.201.NUMBER.2); what it does not know goes to us.
    """

    def __init__(self, number):
        self.device, self.address, self.there = f"veth{number}", f"10.201.{number}.1", f"10.201.{number}.2"

    def __enter__(self):
        self._holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == ours:
            time.sleep(0.01)
        ip("link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self._holder.pid)
        ip("addr", "add", f"{self.address}/24", "dev", self.device)
        ip("link", "set", self.device, "up")
        for words in (["link", "set", "lo", "up"], ["addr", "add", f"{self.there}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["route", "add", "default", "via", self.address]):
            subprocess.run(self.inside(["ip", *words]), check=True)
        return self

    def __exit__(self, *_):
        self._holder.kill()
        self._holder.wait()

    def inside(self, words):
        """The command line, run there."""
        return ["nsenter", "-t", str(self._holder.pid), "-n", *map(str, words)]


# ---- processes -----------------------------------------------------------------------------------------------------------------


class Tool:
    """A process beside production; what it says goes to files, so that it never waits for us. started: a text on standard error that says that it captures."""

    def __init__(self, words, started=None, **more):
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.words = [str(word) for word in words]
        self.process = subprocess.Popen(self.words, stdout=self._out, stderr=self._err, **more)
        self.pid = self.process.pid
        if started is not None:
            self.wait_for(started)
            time.sleep(0.5)
        self.before = servers.seconds_used(self.pid)

    def said(self):
        """Standard error up to now."""
        self._err.seek(0)
        return self._err.read()

    def wait_for(self, text, seconds=PATIENCE_S):
        until = time.monotonic() + seconds
        while text not in self.said():
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(self.words)} does not say {text!r}: {self.said()[-3000:]}")
            time.sleep(0.02)

    def used(self):
        return servers.seconds_used(self.pid) - self.before

    def rss(self):
        return held(self.pid)["rss"]

    def end(self, number=signal.SIGTERM, seconds=PATIENCE_S):
        """(standard output, standard error), once it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(seconds)
        self._out.seek(0)
        return self._out.read(), self.said()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Tap(Tool):
    """`replay tap`, capturing from when it is made."""

    def __init__(self, interface, ports, *words, **more):
        ports = [word for port in ([ports] if isinstance(ports, int) else ports) for word in ("--port", port)]
        super().__init__([*measure.REPLAY, "tap", interface, *ports, "--json", *words], "rights:", **more)

    def report(self, seconds=PATIENCE_S):
        """Its report, whose ledger adds up, once it has drained."""
        out, err = self.end(seconds=seconds)
        if self.process.returncode:
            raise SystemExit(f"the tap ended with {self.process.returncode}: {err[-3000:]}")
        report = json.loads(out)
        one = report["ledger"]
        if one["found"] != one["filtered"] + one["sampled_out"] + one["withheld"] + one["selected"]:
            raise SystemExit(f"what was found does not add up: {one}")
        if one["selected"] + one["fanout"] != one["sent"] + one["dropped"] or one["sent"] != one["answered"] + one["unanswered"]:
            raise SystemExit(f"what was selected does not add up: {one}")
        return report


    def ask(self):
        """SIGUSR1: {found, selected, sent, answered, breaker} of now."""
        before = len(self.said())
        self.process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + PATIENCE_S
        while (said := _LEDGER.findall(self.said()[before:])) == []:
            if time.monotonic() > until or self.process.poll() is not None:
                raise SystemExit(f"the tap does not say its ledger: {self.said()[-3000:]}")
            time.sleep(0.02)
        found, selected, sent, answered, breaker = said[-1]
        return {name: int(value.replace(",", "")) for name, value in zip(("found", "selected", "sent", "answered"), (found, selected, sent, answered), strict=True)} | {"breaker": breaker}


_LEDGER = re.compile(r"found ([\d,]+), selected ([\d,]+)(?:.*\n)+?.*: sent ([\d,]+), answered ([\d,]+), .*breaker (\w+)")


def tcpdump(port, path):
    return Tool(["tcpdump", "-i", "lo", "-s", "0", "-Z", "root", "-w", path, f"tcp port {port}"], "listening")


def held(pid):
    """What a process holds: rss (bytes), files, threads."""
    found = {"files": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task"))}
    with open(f"/proc/{pid}/status") as file:
        return found | {"rss": next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))}


class Watch:
    """What a process holds while something runs, five times a second. As a context manager; `most(name)`, `last(name)`."""

    def __init__(self, pid):
        self._pid, self.seen, self._ended = pid, [], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self._ended.wait(0.2):
            self.seen.append(held(self._pid))

    def __enter__(self):
        self.seen.append(held(self._pid))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def most(self, name):
        return max(one[name] for one in self.seen)

    def last(self, name):
        return self.seen[-1][name]


# ---- load ----------------------------------------------------------------------------------------------------------------------

#: Each request has a target of its own, /THREAD.N, so that a log tells which one it was. setup() runs once, init() in each thread.
EACH_ITS_OWN = """
local before = 0
function setup(thread) before = before + 1; thread:set("me", before) end
function init(args) n = 0; head = "GET /" .. (args[1] or "") .. me .. "."; tail = " HTTP/1.1\\r\\nHost: production.example\\r\\n\\r\\n" end
function request() n = n + 1; return head .. n .. tail end
"""
#: So many requests in one write, as browsers and proxies do not, but as fast as it goes.
PIPELINED = """
function init(args) local one = wrk.format("GET", "/"); local all = {}; for i = 1, tonumber(args[1]) do all[i] = one end; batch = table.concat(all) end
function request() return batch end
"""


class Wrk:
    """wrk at production, while it runs and afterwards. As a context manager; `rate`, `errors` once it has ended; a reply that takes two seconds is none: that is the machine's.

    mark: begins each target, which is then each request's own.  depth: requests in one write.  inside: of an `Elsewhere`."""

    def __init__(self, url, seconds, connections=CONNECTIONS, mark=None, header=None, depth=1, core=measure.CLIENT, inside=list):
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", *(["-H", header] if header else [])]
        argument = [mark] if mark is not None else [str(depth)] if depth > 1 else []
        if argument:
            script = tempfile.NamedTemporaryFile("w", suffix=".lua")
            script.write(EACH_ITS_OWN if mark is not None else PIPELINED)
            script.flush()
            self._script = script  # owns: until wrk has read it
            words += ["-s", script.name]
        self.process = subprocess.Popen(inside([*words, f"{url}/", *argument]), stdout=subprocess.PIPE, text=True, **measure.on(core))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
        self.wait()

    def wait(self):
        self.said = self.process.communicate()[0]
        lines = self.said.splitlines()
        self.rate = next((float(line.split()[1]) for line in lines if line.startswith("Requests/sec")), 0.0)
        self.errors = [line.strip() for line in lines if "Socket errors" in line or "Non-2xx" in line]
        return self


def wrk(url, seconds, **more):
    return Wrk(url, seconds, **more).wait()


def unmarked():
    """Takes the rights from a client that it would mark its sockets with, for a tap leaves marked ones out (PR_CAPBSET_DROP of CAP_NET_ADMIN and CAP_NET_RAW)."""
    libc = ctypes.CDLL(None)
    libc.prctl(24, 12, 0, 0, 0)
    libc.prctl(24, 13, 0, 0, 0)


def evenly(url, path, rate, connections=32, core=None, loop=1):
    """`replay run` as a client of production at an even rate, with neither suffix nor marker, as a Tool; its report is its output. core: the only one that it has."""
    client = [*measure.REPLAY, "run", "-q", "--json", path, "--to", url, "--pace", f"{rate}/s", "-c", connections, "--set-host", "production.example", "--loop", loop]

    def prepare():
        if core is not None:
            os.sched_setaffinity(0, {core})
        unmarked()

    return Tool(client, preexec_fn=prepare)


# ---- what must hold ------------------------------------------------------------------------------------------------------------


class Checks:
    """What must hold, what was found, and whether it does. `tell` prints all and ends with 1 when something does not."""

    def __init__(self):
        self.rows = []

    def holds(self, what, found, wanted, true):
        """One more. found, wanted: as people read them."""
        self.rows.append({"what": what, "found": found, "wanted": wanted, "holds": bool(true)})
        measure.note(f"{what}: {found}")

    def is_(self, what, found, wanted):
        self.holds(what, found, wanted, found == wanted)

    def at_most(self, what, found, most):
        self.holds(what, found, f"≤ {measure.number(most)}", found <= most)

    def within(self, what, found, wanted, of):
        self.holds(what, found, f"{wanted:,} ± {of}", abs(found - wanted) <= of)

    def tell(self, name, question, asked, more=None):
        measure.note("")
        where = measure.surroundings()
        load = os.getloadavg()[0]
        result = {"benchmark": name, "question": question, **where, "load": load, "others_cores": measure.others_cores(), "checks": self.rows, **(more or {})}
        if asked.json:
            print(json.dumps(result, indent=2))
        else:
            machine = where["machine"]
            print(f"{question}\n{machine['cpu']}, {machine['cores_used']} cores, Linux {machine['kernel']}, Python {machine['python']}; commit {result['commit']}\n")
            rows = [[one["what"], shown(one["found"]), shown(one["wanted"]), "holds" if one["holds"] else "DOES NOT HOLD"] for one in self.rows]
            print(measure.table(rows, ["", "found", "wanted", ""]))
            for key, value in (more or {}).items():
                print(f"{key}: {shown(value)}")
            print(f"Load average {load:.1f} on {os.cpu_count()} cores; others used {result['others_cores']:.2f} cores meanwhile.")
        sys.exit(any(not one["holds"] for one in self.rows))


def shown(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(one)}" for key, one in value.items()) or "none"
    return measure.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def mb(value):
    return round(value / 1e6, 1)


def sink(core, *words, port=None, inside=None):
    """A `replay sink` that tells its totals when it ends, as a Tool with a `port`."""
    at = f"0.0.0.0:{port or servers.free_port()}"
    words = [*measure.REPLAY, "sink", "--listen", at, "--json", *words]
    found = Tool(inside(words) if inside else words, **measure.on(core))
    found.port = int(at.rpartition(":")[2])
    until = time.monotonic() + PATIENCE_S
    while "listening on" not in _text(found._out):
        if time.monotonic() > until or found.process.poll() is not None:
            raise SystemExit(f"replay sink does not start: {found.said()}")
        time.sleep(0.02)
    return found


def totals(found):
    """What a sink has counted, once it has ended."""
    return json.loads(found.end()[0].splitlines()[-1])


def _text(file):
    file.seek(0)
    return file.read()


def lines_of(path):
    """The lines of a log, without the whole of it in memory."""
    with pathlib.Path(path).open("rb") as file:
        yield from file


def program(name):
    return shutil.which(name) or f"/usr/sbin/{name}"
