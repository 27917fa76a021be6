"""`replay tap` over veth, in network namespaces of its own: direction, address translation, interfaces that come and go.

client 10.77.0.2 ---- eth0 10.77.0.1 [node] 10.78.0.1 pod0 ---- 10.78.0.2 eth0 [pod]
                                    10.79.0.1 shw0 ---- 10.79.0.2 eth0 [shadow]
"""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
from endtoend import balanced
from tapmake import Namespaces, Nginx, Sink, Tap, ended, eventually, inside, needs, needs_root

pytestmark = [needs_root, needs("nginx", "ip", "curl")]


class Net:
    """The picture above, with an nginx on the node (8080), in the pod (8080) and at the client (8080), and a sink as the shadow."""

    def __init__(self, folder):
        self.stack = contextlib.ExitStack()
        self.known = 0
        self.names = Namespaces("c", "n", "p", "s")
        self.stack.callback(self.names.close)
        self.names.link("n", "c", "10.77.0.1/24", "10.77.0.2/24")
        self.names.link("p", "n", "10.78.0.2/24", "10.78.0.1/24", "eth0", "pod0")
        self.names.link("s", "n", "10.79.0.2/24", "10.79.0.1/24", "eth0", "shw0")
        ip = self.names.ip
        ip("-n", self.names["n"], "route", "add", "default", "via", "10.77.0.2")
        ip("-n", self.names["p"], "route", "add", "default", "via", "10.78.0.1")
        ip("-n", self.names["s"], "route", "add", "default", "via", "10.79.0.1")
        ip("-n", self.names["c"], "route", "add", "default", "via", "10.77.0.1")
        subprocess.run(inside(self.names["n"], ["sysctl", "-qw", "net.ipv4.ip_forward=1"]), check=True)
        for name, host in (("n", "10.77.0.1"), ("p", "10.78.0.2"), ("c", "10.77.0.2")):
            where = folder / name
            where.mkdir()
            self.stack.callback(Nginx(where, "0.0.0.0" if name == "n" else host, self.names[name], 8080).close)
        self.log = folder / "shadow.jsonl"
        self.shadow = self.stack.enter_context(ended(Sink("--access-log", self.log, listen="10.79.0.2:9090", netns=self.names["s"])))

    def tap(self, *words, to="http://10.79.0.2:9090", **more):
        return ended(Tap(*words, "--to", to, "-p", 100, netns=self.names["n"], **more))

    def get(self, name, url):
        done = subprocess.run(inside(self.names[name], ["curl", "-s", "-o", "/dev/null", "--max-time", "5", url]))
        assert done.returncode == 0, (name, url, done.returncode)

    def seen(self):
        """Targets that reached the shadow since the last call."""
        lines = self.log.read_text().splitlines()
        found, self.known = lines[self.known :], len(lines)
        return [json.loads(line)["target"] for line in found]

    def nft(self, *lines):
        for line in lines:
            subprocess.run(inside(self.names["n"], ["nft", line]), check=True)

    def close(self):
        self.stack.close()


@pytest.fixture
def net(tmp_path):
    """For tests that change it."""
    found = Net(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """For those that leave it as it is: what the shadow saw is forgotten before each (`seen` gives what is new)."""
    found = Net(tmp_path_factory.mktemp("net"))
    yield found
    found.close()


def traffic(net):
    net.get("c", "http://10.77.0.1:8080/client-to-node")
    net.get("n", "http://10.77.0.2:8080/node-to-client")
    net.get("c", "http://10.78.0.2:8080/client-to-pod")
    net.get("p", "http://10.77.0.2:8080/pod-to-client")
    net.get("n", "http://10.78.0.2:8080/node-to-pod")
    net.get("p", "http://10.78.0.1:8080/pod-to-node")
    net.get("n", "http://127.0.0.1:8080/node-to-itself")
    time.sleep(0.3)


IN = ["/client-to-node", "/client-to-pod", "/node-to-pod", "/pod-to-node", "/node-to-itself"]
OUT = ["/node-to-client", "/pod-to-client"]


@pytest.mark.parametrize(
    ("interface", "direction", "expected"),
    [
        (["eth0"], "in", ["/client-to-node", "/client-to-pod"]),
        (["eth0"], "out", OUT),
        (["eth0"], "both", ["/client-to-node", "/client-to-pod", *OUT]),
        (["pod0"], "in", ["/client-to-pod", "/node-to-pod", "/pod-to-node"]),
        (["pod0"], "out", ["/pod-to-client"]),
        (["any"], "in", IN),
        (["any"], "out", OUT),
        (["any"], "both", [*IN, *OUT]),
        (["default"], "in", ["/client-to-node", "/client-to-pod"]),
        (["pod*", "lo"], "in", ["/client-to-pod", "/node-to-pod", "/pod-to-node", "/node-to-itself"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) and not str(value[0]).startswith("/") else None,
)
@pytest.mark.parametrize("port", [("--port", 8080), ()], ids=["port", "any-port"])
def test_whose_requests(kept, interface, direction, expected, port):
    """Each request once, where its server lives: on this node, elsewhere, or both. Without a port the filter lets both sides of each call pass, and the engine tells them apart."""
    # Of all interfaces and ports the shadow is one too, on this node: it has to be meant. Its own copies are known by their mark.
    meant = () if port or interface != ["any"] else ("--allow-production",)
    with kept.tap(*interface, *port, "--direction", direction, *meant) as tap:
        traffic(kept)
        report = balanced(tap.report())
    assert sorted(kept.seen()) == sorted(expected)
    assert report["ledger"]["found"] == report["ledger"]["answered"] == len(expected)


@needs("nft")
def test_translated_on_the_node(net):
    """A service address of the node that is translated to the pod: tapped before, behind, and on both sides of the translation, each request once."""
    net.nft("add table ip nat", "add chain ip nat pre { type nat hook prerouting priority -100; }", "add rule ip nat pre tcp dport 9000 dnat to 10.78.0.2:8080")
    with net.tap("eth0", "--port", 9000) as before, net.tap("pod0", "--port", 8080) as behind, net.tap("any", "--port", 9000, "--port", 8080) as both:
        for i in range(5):
            net.get("c", f"http://10.77.0.1:9000/{i}")
        time.sleep(0.3)
        assert [balanced(one.report())["ledger"]["sent"] for one in (before, behind, both)] == [5, 5, 5]
    assert sorted(net.seen()) == sorted(f"/{i}" for i in range(5) for _ in range(3))


@needs("nft")
def test_translated_on_the_node_with_several_workers(net):
    """The kernel shares connections out by addresses, which are others behind the translation: the two views of one may come to two workers."""
    net.nft("add table ip nat", "add chain ip nat pre { type nat hook prerouting priority -100; }", "add rule ip nat pre tcp dport 9000 dnat to 10.78.0.2:8080")
    with net.tap("any", "--port", 9000, "--port", 8080, "--workers", 3) as tap:
        for i in range(30):
            net.get("c", f"http://10.77.0.1:9000/{i}")
        time.sleep(0.3)
        report = balanced(tap.report())
        assert report["ledger"]["sent"] == report["other"]["seen_twice"] == 30
    assert sorted(net.seen()) == sorted(f"/{i}" for i in range(30))


@needs("nft")
def test_a_target_that_is_translated_to_production_is_refused(net):
    """The address is another one, outside; only the connection itself shows where it leads."""
    net.nft(
        "add table ip nat",
        "add chain ip nat out { type nat hook output priority -100; }",
        "add rule ip nat out ip daddr 198.51.100.7 tcp dport 80 dnat to 10.78.0.2:8080",
    )
    words = [sys.executable, "-m", "replay", "tap", "any", "--port", "8080", "--to", "http://198.51.100.7:80", "-p", "100"]
    done = subprocess.run(inside(net.names["n"], words), capture_output=True, text=True, timeout=30)
    assert done.returncode == 3 and "10.78.0.2:8080" in done.stderr, done.stderr
    assert net.seen() == []


def test_the_shadows_own_calls_are_left_out(kept):
    """What the shadow asks of a tapped service would be mirrored to it again."""
    with kept.tap("any", "--port", 8080) as tap:
        kept.get("s", "http://10.78.0.2:8080/from-the-shadow")
        kept.get("c", "http://10.78.0.2:8080/from-a-client")
        time.sleep(0.3)
        assert balanced(tap.report())["ledger"]["found"] == 1
    assert kept.seen() == ["/from-a-client"]


def test_an_interface_that_goes_down_and_away_and_comes_back(net):
    ip, n = net.names.ip, net.names["n"]
    with net.tap("pod0", "--port", 8080) as tap:
        net.get("n", "http://10.78.0.2:8080/before")
        ip("-n", n, "link", "set", "pod0", "down")
        time.sleep(0.5)
        ip("-n", n, "link", "set", "pod0", "up")
        time.sleep(1)  # the target is checked first
        eventually(lambda: not subprocess.run(inside(n, ["curl", "-s", "-o", "/dev/null", "--max-time", "1", "http://10.78.0.2:8080/up"])).returncode)
        ip("-n", n, "link", "del", "pod0")
        tap.wait_for("went: pod0")
        net.names.link("p", "n", "10.78.0.2/24", "10.78.0.1/24", "eth0", "pod0")
        ip("-n", net.names["p"], "route", "add", "default", "via", "10.78.0.1")
        tap.wait_for("came: pod0")
        time.sleep(1.5)
        net.get("n", "http://10.78.0.2:8080/back")
        time.sleep(0.3)
        balanced(tap.report())
    assert {"/before", "/up", "/back"} <= set(net.seen())


def test_an_interface_that_comes_back_under_its_number(net):
    """It moves to another namespace and back, so quickly that nobody saw it away, or not; then it is made anew under the same number."""
    ip, n, s = net.names.ip, net.names["n"], net.names["s"]

    def away_and_back(seconds):
        ip("-n", n, "link", "set", "pod0", "netns", s)
        time.sleep(seconds)
        ip("-n", s, "link", "set", "pod0", "netns", n)
        ip("-n", n, "addr", "add", "10.78.0.1/24", "dev", "pod0")
        ip("-n", n, "link", "set", "pod0", "up")

    def anew(number):
        ip("-n", n, "link", "del", "pod0")
        ip("-n", n, "link", "add", "pod0", "index", number, "type", "veth", "peer", "name", "eth0", "netns", net.names["p"])
        for name, device, address in ((n, "pod0", "10.78.0.1/24"), (net.names["p"], "eth0", "10.78.0.2/24")):
            ip("-n", name, "addr", "add", address, "dev", device)
            ip("-n", name, "link", "set", device, "up")

    number = ip("-n", n, "-o", "link", "show", "pod0").split(":")[0]
    with net.tap("pod0", "--port", 8080) as tap:
        for path, change in (("/slowly", lambda: away_and_back(1)), ("/quickly", lambda: away_and_back(0)), ("/anew", lambda: anew(number))):
            change()
            assert ip("-n", n, "-o", "link", "show", "pod0").split(":")[0] == number
            time.sleep(2)
            net.get("n", f"http://10.78.0.2:8080{path}")
        time.sleep(0.3)
        balanced(tap.report())
    assert net.seen() == ["/slowly", "/quickly", "/anew"]


def test_one_of_two_named_interfaces_goes_away_and_comes_back(net):
    with net.tap("eth0", "pod0", "--port", 8080) as tap:
        net.names.ip("-n", net.names["n"], "link", "del", "pod0")
        tap.wait_for("went: pod0; 1 tapped")
        net.get("c", "http://10.77.0.1:8080/the-other")
        net.names.link("p", "n", "10.78.0.2/24", "10.78.0.1/24", "eth0", "pod0")
        net.names.ip("-n", net.names["p"], "route", "add", "default", "via", "10.78.0.1")
        tap.wait_for("came: pod0; 2 tapped")
        time.sleep(1.5)
        net.get("n", "http://10.78.0.2:8080/back")
        time.sleep(0.3)
        balanced(tap.report())
    assert net.seen() == ["/the-other", "/back"]


def test_a_default_route_over_two_interfaces(net):
    n = net.names["n"]
    net.names.link("c", "n", "10.76.0.2/24", "10.76.0.1/24", "eth1", "eth1")
    hops = ("nexthop", "via", "10.77.0.2", "dev", "eth0", "nexthop", "via", "10.76.0.2", "dev", "eth1")
    net.names.ip("-n", n, "route", "replace", "default", *hops)
    with net.tap("default", "--port", 8080) as tap:
        net.get("c", "http://10.77.0.1:8080/one")
        net.get("c", "http://10.76.0.1:8080/other")
        time.sleep(0.3)
        balanced(tap.report())
    assert net.seen() == ["/one", "/other"]


def test_a_bridge_with_a_way_out_leads_to_other_nodes(net):
    """Two nodes on a second network, each with a bridge of its own and no default route over it: a call is mirrored where it is served alone."""
    ip = net.names.ip
    for name, mine, other in (("n", 1, 2), ("c", 2, 1)):
        there = net.names[name]
        way = ("local", f"10.77.0.{mine}", "remote", f"10.77.0.{other}", "dev", "eth0")
        ip("-n", there, "link", "add", "up1", "type", "vxlan", "id", "50", "dstport", "4790", *way)
        ip("-n", there, "link", "add", "br1", "type", "bridge")
        ip("-n", there, "link", "set", "up1", "master", "br1")
        ip("-n", there, "addr", "add", f"10.50.0.{mine}/24", "dev", "br1")
        for device in ("up1", "br1"):
            ip("-n", there, "link", "set", device, "up")
    where = net.log.parent / "second"
    where.mkdir()
    server = Nginx(where, "10.50.0.2", net.names["c"], 8080)
    try:
        with net.tap("br1", "--port", 8080) as tap:
            net.get("n", "http://10.50.0.2:8080/elsewhere")
            net.get("c", "http://10.50.0.1:8080/here")
            time.sleep(0.3)
            balanced(tap.report())
    finally:
        server.close()
    assert net.seen() == ["/here"]


def test_servers_behind_a_local_route(net):
    """AnyIP: the node takes a whole network in, and has none of its addresses. One that only marked packets are asked about is none."""
    ip, n = net.names.ip, net.names["n"]
    ip("-n", n, "route", "add", "local", "192.0.2.0/24", "dev", "lo")
    ip("-n", n, "route", "add", "local", "10.77.0.0/25", "dev", "lo", "table", "100")
    with net.tap("any", "--port", 8080) as tap:
        net.get("c", "http://192.0.2.77:8080/any-address")
        net.get("n", "http://10.77.0.2:8080/elsewhere")
        time.sleep(0.3)
        balanced(tap.report())
    assert net.seen() == ["/any-address"]


def test_interfaces_that_fit_a_pattern_later(net):
    """The rights were dropped when the second one came."""
    with net.tap("late*", "--port", 8080, ready=True) as tap:
        net.names.link("p", "n", "10.80.0.2/24", "10.80.0.1/24", "eth1", "late0")
        tap.wait_for("came: late0")
        time.sleep(1)
        subprocess.run(inside(net.names["p"], ["ip", "addr", "add", "10.78.0.2/32", "dev", "lo"]), check=False)
        net.get("p", "http://10.80.0.1:8080/late")
        time.sleep(0.3)
        assert balanced(tap.report())["ledger"]["sent"] == 1
    assert net.seen() == ["/late"]


def test_from_outside_of_the_namespace(kept):
    """--netns: listens there, sends from here."""
    with ended(Sink()) as here, ended(Tap("eth0", "--port", 8080, "--to", f"http://{here.address}", "-p", 100, "--netns", kept.names["n"])) as tap:
        kept.get("c", "http://10.77.0.1:8080/1")
        time.sleep(0.3)
        assert balanced(tap.report())["ledger"]["answered"] == 1
        assert here.totals()["requests"] == 1


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_frames_of_every_size(net, mtu):
    """Jumbo frames and super-packets: a large body over many segments arrives whole; nothing is cut."""
    for name, device in (("n", "eth0"), ("c", "eth0")):
        net.names.ip("-n", net.names[name], "link", "set", device, "mtu", str(mtu))
    with net.tap("eth0", "--port", 8080) as tap:
        words = ["curl", "-s", "-o", "/dev/null", "--data-binary", "@-", "http://10.77.0.1:8080/large"]
        subprocess.run(inside(net.names["c"], words), input=b"x" * 900_000, check=True)
        time.sleep(0.4)
        report = balanced(tap.report())
    assert report["ledger"]["answered"] == 1 and report["packets"]["cut_frames"] == 0
    assert json.loads(net.log.read_text().splitlines()[0])["target"] == "/large"


TUNNEL = """
import ctypes, fcntl, os, select, struct, sys
ends = []
for name in sys.argv[1:]:
    with open(f"/run/netns/{name}") as there:
        assert ctypes.CDLL(None).setns(there.fileno(), 0x40000000) == 0
    ends.append(os.open("/dev/net/tun", os.O_RDWR))
    fcntl.ioctl(ends[-1], 0x400454CA, struct.pack("16sH", b"tunx0", 0x1001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        packet = os.read(end, 70000)
        try:
            os.write(ends[end == ends[0]], packet)
        except OSError:
            pass
"""


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun")
def test_interfaces_without_an_ethernet_header(net):
    """Beside others, and alone: what their packets begin with the filter asks the interface."""
    tunnel = subprocess.Popen([sys.executable, "-c", TUNNEL, net.names["n"], net.names["c"]], stdout=subprocess.PIPE, text=True)
    try:
        assert tunnel.stdout.readline() == "ready\n"
        for name, address in (("n", "10.90.0.1/30"), ("c", "10.90.0.2/30")):
            net.names.ip("-n", net.names[name], "addr", "add", address, "dev", "tunx0")
            net.names.ip("-n", net.names[name], "link", "set", "tunx0", "up")
        for words in (["tunx0"], ["tun*"], ["any"], ["eth0", "tunx0"], ["any", "-f", "tcp and not port 81"]):
            with net.tap(*words, "--port", 8080) as tap:
                net.get("c", "http://10.90.0.1:8080/tunnelled")
                net.get("c", "http://10.77.0.1:8080/plain")
                plain = ["/plain"] if words[0] in ("any", "eth0") else []
                eventually(lambda plain=plain: len(net.log.read_text().splitlines()) >= net.known + 1 + len(plain))
                assert sorted(net.seen()) == [*plain, "/tunnelled"], words
                balanced(tap.report())
    finally:
        tunnel.kill()
        tunnel.communicate()
