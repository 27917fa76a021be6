"""replay doctor for a tap: real interfaces, real packets, in a network namespace of the test's own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import endtoend
import pytest
from tapmake import needs, needs_root

from replay import doctor
from replay.capture.afpacket import TapError, check_ring
from replay.tap import checks

pytestmark = [needs_root, needs("ip")]


def finding(check, *interfaces, **more):
    return check(doctor.Subject(interfaces=interfaces, **more))


def test_without_interfaces_nothing_is_asked_of_a_tap():
    assert [one for one in (check(doctor.Subject()) for check in checks.CHECKS) if one is not None and one.name != "metrics"] == []


def test_the_ring_and_the_kernel_of_this_machine():
    assert finding(checks.ring, "lo").state == "ok" and "64 MiB" in finding(checks.ring, "lo").text
    for check in (checks.kernel_filter, checks.time_stamps, checks.reserved_ports, checks.dropped_user):
        found = finding(check, "lo")
        assert found.state == "ok" or found.fix, found


def test_a_ring_that_the_kernel_would_kill_for_is_refused(tmp_path):
    """Rings are given however little is left: the node's processes pay for it."""
    some = tmp_path / "meminfo"
    some.write_text("MemTotal:       4194304 kB\nMemAvailable:   1048576 kB\n")
    check_ring(512 << 20, some)
    with pytest.raises(TapError, match=r"--ring 513 MiB: more than half of the 1 GiB of memory that is available.*Lower --ring"):
        check_ring(513 << 20, some)
    some.write_text("MemAvailable:   1024 kB\n")
    check_ring(64 << 20, some)  # what is usual, the kernel may make smaller
    some.write_text("MemTotal:       4194304 kB\n")
    check_ring(16 << 30, some)
    check_ring(16 << 30, tmp_path / "none")
    found = finding(checks.ring, "lo", ring=1 << 50)
    assert found.state == "bad" and "of memory that is available" in found.text and "lower --ring" in found.fix


@pytest.mark.parametrize("size", ["1k", "1023KiB", "17GiB"])
def test_a_ring_is_of_a_size_that_a_tap_takes(size):
    assert b"--ring" in endtoend.command("doctor", "-i", "lo", "--ring", size, code=2).stderr


def test_the_memory_of_a_tap_is_that_of_its_ring_too(monkeypatch):
    said = {"/proc/meminfo": "MemAvailable:   524288 kB"}
    monkeypatch.setattr(doctor, "read_text", said.get)
    assert finding(doctor.memory, ring=400 << 20).state == "ok"
    assert "a tap with its ring takes up to 480 MiB" in finding(doctor.memory, "lo", ring=256 << 20).text
    found = finding(doctor.memory, "lo", ring=400 << 20)
    assert found.state == "bad" and "512 MiB available, a tap with its ring takes up to 624 MiB" in found.text and "lower --ring" in found.fix


def test_without_the_right_three_ways_are_named():
    drop = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0\n"
    code = drop + "from replay import doctor\nfrom replay.tap import checks\ns = doctor.Subject(interfaces=('lo',))\nprint(checks.ring(s), checks.traffic(s))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "state='bad'" in done.stdout and all(word in done.stdout for word in ("CAP_NET_RAW", "setcap", "NET_RAW]")) and done.stdout.rstrip().endswith("None"), done
    assert done.stdout.count("setcap") == 1, done  # told once


def test_interfaces_are_named():
    found = finding(checks.interfaces, "lo")
    assert found.state == "ok" and "lo (" in found.text
    found = finding(checks.interfaces, "nosuch0")
    assert found.state == "bad" and "lo" in found.text
    found = finding(checks.interfaces, "nosuch*")
    assert found.state == "warn" and "pattern" in found.fix


@contextlib.contextmanager
def talking(data):
    """A client that says this on new connections to a server of lo, again and again; the server's port."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def serve():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(4096)

        def talk():
            while not stop.wait(0.02):
                with contextlib.suppress(OSError), socket.create_connection(server.getsockname()) as one:
                    one.sendall(data)

        threads = [threading.Thread(target=serve), threading.Thread(target=talk)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def other_interface():
    """A pair of interfaces on which nothing happens."""
    name = f"rdoc{os.getpid() % 100000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_where_requests_are_to_be_seen(monkeypatch):
    monkeypatch.setattr(checks, "LOOK_S", 0.5)
    with talking(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n") as port, other_interface() as other:
        seen = checks.look(0.5, (port,))["lo"]
        assert seen.requests >= 3 and seen.packets > 3 * seen.requests and not seen.tls, "each packet of lo counts once"
        assert finding(checks.traffic, "lo", ports=(port,)).state == "ok"
        found = finding(checks.traffic, other, ports=(port,))
        assert found.state == "warn" and found.fix.endswith("replay tap lo")
        found = finding(checks.traffic, "lo", ports=(1,))
        assert found.state == "warn" and "no TCP packet of port 1" in found.text


@pytest.mark.parametrize("data, word", [(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(190), "TLS"), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2")])
def test_what_a_tap_cannot_read_is_named(monkeypatch, data, word):
    monkeypatch.setattr(checks, "LOOK_S", 0.5)
    with talking(data) as port:
        found = finding(checks.traffic, "lo", ports=(port,))
    assert found.state == "warn" and word in found.text and "plain HTTP/1" in found.fix


def test_a_node_of_a_cluster():
    """The names that a CNI gives its interfaces, in a namespace of our own; through the command line."""
    name = f"rdoc{os.getpid() % 100000}ns"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            ["link", "set", "lo", "up"],
            ["link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net"],
            ["link", "add", "lxc0a1b2c3d4e5f", "type", "veth", "peer", "name", "eth9"],
        ):
            subprocess.run(["ip", "-n", name, *words], check=True)
        words = ["ip", "netns", "exec", name, *endtoend.COMMAND, "doctor", "-i", "lxc*", "--port", "8080", "--json"]
        done = subprocess.run(words, capture_output=True, text=True)
        found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert found["CNI"]["state"] == "warn" and "Cilium" in found["CNI"]["text"] and "--netns" in found["CNI"]["fix"]
    assert "lxc0a1b2c3d4e5f" in found["interfaces"]["text"] and "down" in found["interfaces"]["text"]
    assert found["traffic"]["state"] == "warn" and found["ring"]["state"] == "ok"


def test_names_that_cnis_give():
    for name, what in (("cali0123456789a", "Calico"), ("cni0", "Flannel"), ("eni0123456789a", "AWS"), ("ovn-k8s-mp0", "OVN"), ("lxc_health", None), ("eth0", None)):
        import re

        there = [told for pattern, told, _ in checks._CNI if re.fullmatch(pattern, name)]
        assert (what is None and not there) or (what and what in there[0]), name
