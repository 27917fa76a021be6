"""What `replay doctor` looks at for a tap: the ring, the interfaces and what is to be seen on them, what passes them by, the kernel's settings.

Each check is a function as `replay.doctor` has them; those that need interfaces do not apply where the person named none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

import replay
from replay.capture.afpacket import GRANTS, TapError, check_ring, choose, open_socket
from replay.capture.bpfasm import Rules, build
from replay.capture.netlink import Interface, Netlink
from replay.doctor import BAD, OK, WARN, Check, Finding, Subject, read_text
from replay.tap.place import REJECT_ALL, own_ports
from replay.units import show_bytes, show_count

__all__ = ["CHECKS", "Seen", "look"]

#: How long is looked for traffic, and at how many packets at most.
LOOK_S, LOOK_PACKETS = 2.0, 50_000

_REQUEST = re.compile(rb"[A-Z]{3,16} [^ \r\n]{1,2048} HTTP/1\.[01]\r?\n")
_TLS = re.compile(rb"\x16\x03[\x00-\x04][\x00-\x3f].[\x01\x02]", re.DOTALL)
_HTTP2 = b"PRI * HTTP/2.0\r\n"


# ---- rights and memory -----------------------------------------------------------------------------------------------------------------


def ring(subject: Subject) -> Finding | None:
    """The ring as a tap opens it, behind a filter that lets nothing through."""
    if not subject.interfaces:
        return None
    try:
        check_ring(subject.ring)
        tapped = open_socket(None, REJECT_ALL, ring_bytes=subject.ring, block_ms=5)
    except TapError as error:
        if isinstance(error.__context__, PermissionError):  # its words hold the fix already
            return Finding("ring", BAD, "a packet socket needs the right CAP_NET_RAW", "; or ".join(GRANTS))
        return Finding("ring", BAD, str(error), "lower --ring, or run it where packet sockets with a ring are allowed (gVisor and some sandboxes have none)")
    got = tapped.block_size * tapped.block_count
    tapped.close()
    if got < subject.ring:
        return Finding("ring", WARN, f"the kernel gives {show_bytes(got)} of {show_bytes(subject.ring)}", "its memory is short or in pieces: free some, or lower --ring")
    return Finding("ring", OK, f"{show_bytes(got)} in blocks of {show_bytes(tapped.block_size)}")


def dropped_user(subject: Subject) -> Finding | None:
    """As root it becomes nobody, who must be able to read the program."""
    if not subject.interfaces or os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam("nobody")
    except KeyError:
        return Finding("user", WARN, "there is no user `nobody` to become", "name another with --user, by its number if need be")
    path = os.path.dirname(os.path.abspath(replay.__file__))
    while True:
        mode = os.stat(path).st_mode
        if not mode & stat.S_IXOTH:
            return Finding("user", WARN, f"nobody may not enter {path}: what is read after the rights are dropped cannot be", f"install it where others may read it, or chmod o+rx {path}")
        if path == "/":
            return Finding("user", OK, "it can become nobody, and go on")
        path = os.path.dirname(path)


def metrics(subject: Subject) -> Finding | None:
    if importlib.util.find_spec("prometheus_client") is None:
        return Finding("metrics", WARN, "prometheus-client is not installed: --metrics does not work", "pip install 'shadow-replay[metrics]' (in a checkout of the source: pip install '.[metrics]')")
    return Finding("metrics", OK, "--metrics works")


# ---- interfaces --------------------------------------------------------------------------------------------------------------------------


def _chosen(subject: Subject) -> tuple[list[Interface], list[Interface]]:
    """(those that the person's words mean, all). Raises TapError."""
    with contextlib.closing(Netlink()) as netlink:
        return choose(subject.interfaces, netlink)[0], netlink.interfaces()


def interfaces(subject: Subject) -> Finding | None:
    if not subject.interfaces:
        return None
    words = " ".join(subject.interfaces)
    try:
        wanted, every = _chosen(subject)
    except TapError as error:
        return Finding("interfaces", BAD, str(error), "name one of these")
    names = ", ".join(one.name for one in every)
    if not wanted:
        return Finding("interfaces", WARN, f"{words} means none now; there are {names}", "is the pattern right? Those that come later are tapped when they come")
    down = [one.name for one in wanted if not one.up]
    shown = ", ".join(f"{one.name} ({one.kind or 'device'}, mtu {one.mtu}{'' if one.up else ', down'})" for one in wanted[:12])
    shown += f" and {len(wanted) - 12} more" if len(wanted) > 12 else ""
    if len(down) == len(wanted):
        return Finding("interfaces", WARN, f"{shown}: none is up", f"ip link set {down[0]} up")
    return Finding("interfaces", OK, shown)


@dataclass(slots=True)
class Seen:
    """What was seen of an interface: TCP packets, beginnings of requests, of TLS, of HTTP/2."""

    packets: int = 0
    requests: int = 0
    tls: int = 0
    http2: int = 0


def look(seconds: float, ports: tuple[int, ...] = ()) -> dict[str, Seen]:
    """By interface, what TCP packets (to and from these ports) there are in so many seconds. Raises OSError without the right."""
    from replay.capture.afpacket import Tapped

    found: dict[str, Seen] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as tap:
        with contextlib.suppress(OSError):
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        Tapped(tap, 0, True, 0, 0).attach(build(Rules(ports=ports, loopback_once=True, ethernet=None), []))
        Tapped(tap, 0, True, 0, 0).bind(0)
        end = time.monotonic() + seconds
        for _ in range(LOOK_PACKETS):
            left = end - time.monotonic()
            if left <= 0:
                break
            tap.settimeout(left)
            try:
                data, where = tap.recvfrom(4096)
            except TimeoutError:
                break
            seen = found.setdefault(where[0], Seen())
            seen.packets += 1
            seen.requests += bool(_REQUEST.search(data[40:]))
            seen.tls += bool(_TLS.search(data[40:200]))
            seen.http2 += _HTTP2 in data[40:]
    return found


def traffic(subject: Subject) -> Finding | None:
    """Where requests are to be seen, and whether the person's words are among those."""
    if not subject.interfaces:
        return None
    try:
        wanted = {one.name for one in _chosen(subject)[0]}
        seen = look(LOOK_S, subject.ports)
    except (OSError, TapError):
        return None  # said by `ring` and `interfaces`
    ports = f" of port {', '.join(map(str, subject.ports))}" if subject.ports else ""
    ordered = sorted(seen.items(), key=lambda item: (-item[1].requests, -item[1].packets))
    told = "; ".join(f"{name}: {show_count(one.packets)} packets, {show_count(one.requests)} requests" for name, one in ordered[:6]) or f"no TCP packet{ports}"
    told += f" in {LOOK_S:g} s"
    here = sum(one.requests for name, one in seen.items() if name in wanted)
    elsewhere = [name for name, one in ordered if one.requests and name not in wanted]
    total = Counter({"tls": sum(one.tls for one in seen.values()), "http2": sum(one.http2 for one in seen.values())})
    if here:
        return Finding("traffic", OK, told)
    if elsewhere:
        return Finding("traffic", WARN, told, f"requests are to be seen on {', '.join(elsewhere[:4])}: replay tap {elsewhere[0]}")
    if total["tls"] or total["http2"]:
        what = "TLS" if total["tls"] else "HTTP/2"
        return Finding("traffic", WARN, f"{told}, and {what}", "tap where it is plain HTTP/1: behind the proxy that ends it, or lo between a sidecar and its service")
    return Finding("traffic", WARN, told, "is there traffic now? Try it with -i any; if the service runs in a pod, look at `CNI` here")


_CNI = (  # pattern of a name, what it is, what a tap sees
    (r"cilium_(host|net)|lxc[0-9a-f]{6,}", "Cilium", "with eBPF host routing, requests to pods pass the pods' interfaces (lxc*) by"),
    (r"cali[0-9a-f]{6,}", "Calico", ""),
    (r"cni0|flannel\.\d+", "Flannel", ""),
    (r"eni[0-9a-f]{6,}", "AWS VPC CNI", ""),
    (r"azv[0-9a-f]{6,}", "Azure CNI", ""),
    (r"ovn-k8s-.*|br-int|genev_sys_\d+", "OVN", "what Open vSwitch forwards in hardware passes by"),
    (r"weave|vethwe.*", "Weave", ""),
)
_KINDS = {
    "netkit": "netkit devices hand packets to pods past their host's end",
    "ipvlan": "ipvlan children take their packets below the host's end",
    "macvlan": "macvlan children take their packets below the host's end",
}


def _xdp() -> list[str]:
    """Interfaces with an XDP program, which may redirect packets before any tap sees them; [] where that cannot be told."""
    if shutil.which("ip") is None:
        return []
    try:
        done = subprocess.run(["ip", "-j", "-d", "link", "show"], capture_output=True, timeout=3)
        return [one["ifname"] for one in json.loads(done.stdout or b"[]") if one.get("xdp")]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []


def cni(subject: Subject) -> Finding | None:
    """What is known to pass interfaces of the host by."""
    if not subject.interfaces:
        return None
    with contextlib.closing(Netlink()) as netlink:
        every = netlink.interfaces()
    names = [one.name for one in every]
    there = [(what, problem) for pattern, what, problem in _CNI if any(re.fullmatch(pattern, name) for name in names)]
    problems = [f"{what}: {problem}" for what, problem in there if problem]
    problems += [text for kind, text in _KINDS.items() if any(one.kind == kind for one in every)]
    problems += [f"{name} has an XDP program, which may take packets before a tap sees them" for name in _xdp()]
    away = sum(one.away for one in every)
    text = ", ".join(what for what, _ in there) or "none that is known"
    text += f"; {show_count(away)} interfaces lead into other network namespaces" if away else ""
    if problems:
        return Finding("CNI", WARN, f"{text}; {'; '.join(problems)}", "tap what enters the node (-i default), or in the pod's own namespace (replay tap eth0 --netns PID)")
    return Finding("CNI", OK, text)


# ---- the kernel --------------------------------------------------------------------------------------------------------------------------


def kernel_filter(subject: Subject) -> Finding | None:
    if not subject.interfaces:
        return None
    jit = read_text("/proc/sys/net/core/bpf_jit_enable")
    if jit == "0":
        return Finding("kernel filter", WARN, "filters are interpreted, which costs each packet of this node some 100 ns", "sysctl net.core.bpf_jit_enable=1")
    return Finding("kernel filter", OK, "filters are compiled" if jit else "whether filters are compiled cannot be told here")


def time_stamps(subject: Subject) -> Finding | None:
    """Each packet is stamped; a slow clock costs production."""
    if not subject.interfaces:
        return None
    source = read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm", "jiffies", "refined-jiffies"):
        return Finding("time stamps", WARN, f"the kernel's clock is {source}: each packet's time stamp is slow or coarse", "see dmesg for why the TSC is not used (clocksource=tsc)")
    return Finding("time stamps", OK, f"from {source or 'the kernel'}")


def reserved_ports(subject: Subject) -> Finding | None:
    """Connections to the shadow come from ports that nobody else's connections have; they are told apart by them."""
    if not subject.interfaces:
        return None
    first, last = own_ports()
    low, high = (int(word) for word in (read_text("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split()[:2])
    if first <= high and last >= low:
        return Finding("own ports", WARN, f"{first} to {last} overlap those of others ({low} to {high})", "sysctl net.ipv4.ip_local_port_range='32768 60999'")
    return Finding("own ports", OK, f"{first} to {last} are left for connections to the shadow")


CHECKS: list[Check] = [ring, dropped_user, metrics, interfaces, traffic, cni, kernel_filter, time_stamps, reserved_ports]
