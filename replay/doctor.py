"""What this machine can do: a list of checks, each of which looks at one thing and says how to mend it.

A check is a function that takes what the person means to do (`Subject`) and gives a `Finding`, or None where it does not apply. `CHECKS` is the list of them,
in the order in which they are told; those of a tap stand in `replay.tap.checks`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import importlib.metadata
import importlib.util
import os
import platform
import resource
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from replay import extras
from replay.settings import Target
from replay.units import show_bytes, show_count, show_duration

__all__ = ["CHECKS", "Check", "Finding", "Subject", "examine", "read_text"]

OK, WARN, BAD = "ok", "warn", "bad"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is meant to be done. targets: shadow services.  connections: to each.  memory: bytes for a run.

    interfaces, ports, ring: of a tap; no interface: none is meant.
    """

    targets: tuple[Target, ...] = ()
    connections: int = 256
    memory: int = 128 << 20
    interfaces: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    ring: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """name: what was looked at.  state: ok, warn (works, but worse than it could) or bad (something will not work).  text: what is there.  fix: what to do."""

    name: str
    state: str
    text: str
    fix: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return {"name": self.name, "state": self.state, "text": self.text, "fix": self.fix}


Check = Callable[[Subject], Finding | None]


def examine(subject: Subject, more: Iterable[Check] = ()) -> list[Finding]:
    """Runs every check, then those of other parts of the package. One that fails itself is a finding too."""
    found = []
    for check in (*CHECKS, *more):
        try:
            finding = check(subject)
        except Exception as error:  # a doctor that dies of one symptom is no help
            finding = Finding(check.__name__.replace("_", " "), WARN, f"could not be looked at: {type(error).__name__}: {error}")
        if finding is not None:
            found.append(finding)
    return found


def read_text(path: str) -> str | None:
    """What a file of /proc or /sys says, without the line end; None when it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


# ---- the program ---------------------------------------------------------------------------------------------------------------------


def program(subject: Subject) -> Finding | None:
    from replay import __version__

    text = f"replay {__version__}, Python {platform.python_version()}, Linux {platform.release()}, {platform.machine()}"
    if platform.machine() not in ("x86_64", "aarch64"):
        return Finding("program", WARN, text, "only x86-64 and aarch64 are tested; please report what works here")
    return Finding("program", OK, text)


def name_taken(subject: Subject) -> Finding | None:
    """Another distribution that installs a package `replay` overwrites files of this one."""
    for other in ("replay-rec", "replay"):
        try:
            version = importlib.metadata.version(other)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Finding("name", BAD, f"{other} {version} installs a package `replay` too", f"use separate environments: pip uninstall {other}, or pipx install shadow-replay")
    return Finding("name", OK, "no other package called `replay` is installed")


def zstd(subject: Subject) -> Finding | None:
    from replay import _fastpath

    try:
        _fastpath.blocks_zstd()
    except ImportError:
        return Finding("zstd", WARN, "captures that end in .zst cannot be read", "pip install backports.zstd")
    return Finding("zstd", OK, "compressed captures can be read")


def patterns(subject: Subject) -> Finding | None:
    if importlib.util.find_spec("re2") is None:
        return Finding("policy", WARN, "google-re2 is not installed: of regular expressions in a --policy only literal text works", extras.how("policy"))
    return Finding("policy", OK, "regular expressions of policies work (RE2)")


def packet_filter(subject: Subject) -> Finding | None:
    if ctypes.util.find_library("pcap"):
        return Finding("filter", OK, "libpcap is there, for --bpf")
    return Finding("filter", WARN, "libpcap was not found: --bpf does not work", "install it (Debian: apt-get install libpcap0.8; Alpine: apk add libpcap)")


# ---- the machine ---------------------------------------------------------------------------------------------------------------------


def processors(subject: Subject) -> Finding | None:
    count = len(os.sched_getaffinity(0))
    text = f"{count} of {os.cpu_count()} usable"
    quota = (read_text("/sys/fs/cgroup/cpu.max") or "max").split()
    if quota[0] != "max" and len(quota) == 2 and int(quota[0]) / int(quota[1]) < count:
        share = int(quota[0]) / int(quota[1])
        return Finding("processors", WARN, f"{text}, but this container may use {share:.2g} of them and is then put to sleep", "raise its CPU limit: sleep shows as lag")
    if count < 2:
        return Finding("processors", WARN, f"{text}: reading, sending and judging share it", "give it two for high rates")
    return Finding("processors", OK, text)


def memory(subject: Subject) -> Finding | None:
    available = next((int(line.split()[1]) << 10 for line in (read_text("/proc/meminfo") or "").splitlines() if line.startswith("MemAvailable")), None)
    limit = read_text("/sys/fs/cgroup/memory.max")
    if limit and limit != "max":
        used = int(read_text("/sys/fs/cgroup/memory.current") or 0)
        available = min(available if available is not None else int(limit), int(limit) - used)
    if available is None:
        return None
    need, what, lower = subject.memory + (96 << 20), "a run", "--max-memory"
    if subject.interfaces:
        need, what, lower = need + subject.ring, "a tap with its ring", "--ring or --max-memory"
    text = f"{show_bytes(available)} available, {what} takes up to {show_bytes(need)}"
    if available < need:
        return Finding("memory", BAD, text, f"lower {lower}, or raise the container's limit")
    return Finding("memory", OK, text)


def open_files(subject: Subject) -> Finding | None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = subject.connections * max(len(subject.targets), 1) + 128
    shown = "no limit" if hard == resource.RLIM_INFINITY else show_count(hard)
    if hard != resource.RLIM_INFINITY and hard < need:
        return Finding("open files", BAD, f"at most {shown}, {show_count(need)} are needed for {show_count(subject.connections)} connections", "raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower --connections")
    return Finding("open files", OK, f"at most {shown}, {show_count(need)} are needed")


def local_ports(subject: Subject) -> Finding | None:
    low, high = (int(word) for word in (read_text("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split())
    count = high - low + 1
    if count < 2 * subject.connections:
        return Finding("local ports", BAD, f"{show_count(count)} for {show_count(subject.connections)} connections", "sysctl net.ipv4.ip_local_port_range='1024 65535', or lower --connections")
    if count < 10_000:
        return Finding("local ports", WARN, f"{show_count(count)}: a target that closes after each request uses them up at {count // 60}/s", "sysctl net.ipv4.ip_local_port_range='1024 65535'")
    return Finding("local ports", OK, show_count(count))


def timer(subject: Subject) -> Finding | None:
    """How late a thread wakes up that asked for a millisecond."""
    late = []
    for _ in range(31):
        began = time.perf_counter_ns()
        time.sleep(0.001)
        late.append(time.perf_counter_ns() - began - 1_000_000)
    typical, worst = statistics.median(late), max(late)
    text = f"wakes {show_duration(typical)} late, at worst {show_duration(worst)}"
    if typical > 1_000_000 or worst > 20_000_000:
        return Finding("timer", WARN, text, "the machine is busy, or a slow virtual one: requests will be late by as much (lag)")
    return Finding("timer", OK, text)


def clock(subject: Subject) -> Finding | None:
    """Whether the kernel calls its clock synchronised, which --start-at on several machines needs."""

    class Timex(ctypes.Structure):
        _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long),
                    ("status", ctypes.c_int), ("rest", ctypes.c_long * 40)]  # fmt: skip

    state = Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        return None
    if state.status & 0x40:
        return Finding("clock", WARN, "not synchronised: shards started with --start-at on several machines may begin apart", "run an NTP client (chrony, systemd-timesyncd)")
    return Finding("clock", OK, f"synchronised, off by at most {show_duration(state.maxerror * 1000)}")


# ---- rights ----------------------------------------------------------------------------------------------------------------------------

_RIGHTS = "run it as root, in a container with NET_RAW, or: setcap cap_net_raw+ep on a copy of the python that runs it"


def live_capture(subject: Subject) -> Finding | None:
    """A packet socket with the ring that `replay tap` reads."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:  # protocol 0: it receives nothing
            probe.setsockopt(263, 10, struct.pack("i", 2))  # SOL_PACKET, PACKET_VERSION, TPACKET_V3
            probe.setsockopt(263, 5, struct.pack("7I", 1 << 16, 2, 2048, 64, 10, 0, 0))  # PACKET_RX_RING
    except PermissionError:
        return Finding("live capture", WARN, "not allowed: captures can be replayed, `replay tap` cannot run", _RIGHTS)
    except OSError as error:
        return Finding("live capture", WARN, f"no ring of packets (TPACKET_V3): {os.strerror(error.errno or 0)}", "a kernel from 3.2 on has it; gVisor and some sandboxes do not")
    return Finding("live capture", OK, "packet sockets with a ring are allowed")


def own_mark(subject: Subject) -> Finding | None:
    """Connections to the shadow carry a mark, by which a tap on this machine leaves them out."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_MARK", 36), 0x53484457)
        except PermissionError:
            return Finding("mark", WARN, "own connections cannot be marked (SO_MARK)", f"needed where a tap runs on the same machine: {_RIGHTS}; before Linux 5.17 NET_ADMIN (cap_net_admin) too")
        except OSError as error:
            return Finding("mark", WARN, f"own connections cannot be marked (SO_MARK): {os.strerror(error.errno or 0)}")
    return Finding("mark", OK, "own connections carry a mark")


# ---- the target ---------------------------------------------------------------------------------------------------------------------------


def target(subject: Subject) -> Finding | None:
    if not subject.targets:
        return None
    texts = []
    for one in subject.targets:
        if one.scheme == "unix":
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.connect(one.host)
            except OSError as error:
                return Finding("target", BAD, f"{one.url}: {os.strerror(error.errno or 0)}", "is the shadow service started, and may this user write to its socket?")
            texts.append(f"{one.url}: a connection stands")
            continue
        try:
            found = socket.getaddrinfo(one.host, one.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return Finding("target", BAD, f"{one.url}: the name cannot be resolved: {error}", "check the name in --to, and the resolver of this machine or container")
        began = time.perf_counter_ns()
        try:
            with socket.create_connection((one.host, one.port), timeout=2):
                took = time.perf_counter_ns() - began
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else "no answer within 2 s"
            advice = "is the shadow service started, and does it listen on this address?" if error.errno == errno.ECONNREFUSED else "is there a firewall or network policy between?"
            return Finding("target", BAD, f"{one.url}: {why}", advice)
        n = len({entry[4][0] for entry in found})
        texts.append(f"{one.url}: {n} address{'' if n == 1 else 'es'}, a connection stands after {show_duration(took)}")
    return Finding("target", OK, "; ".join(texts))


CHECKS: list[Check] = [
    program, name_taken, zstd, patterns, packet_filter, processors, memory, open_files, local_ports, timer, clock, live_capture, own_mark, target,
]  # fmt: skip

