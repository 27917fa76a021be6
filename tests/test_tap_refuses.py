"""A target that leads to production is refused whenever it could be seen: at a reload, after an interface was made anew, when one comes later."""

import subprocess
import time

import pytest
from tapmake import Tap, ended, eventually, inside, needs, needs_root
from test_tap_netns import Net

pytestmark = [needs_root, needs("nginx", "ip", "curl", "nft")]

SHADOW = "http://10.79.0.2:9090"
TRANSLATED = "http://198.51.100.7:80"


@pytest.fixture
def net(tmp_path):
    found = Net(tmp_path)
    yield found
    found.close()


def translate(net, port=8080):
    """Outside there is nothing at this address; on the node it is the pod's server."""
    net.nft(
        "add table ip nat",
        "add chain ip nat out { type nat hook output priority -100; }",
        f"add rule ip nat out ip daddr 198.51.100.7 tcp dport 80 dnat to 10.78.0.2:{port}",
    )


class Configured(Tap):
    """A tap on the node, by a file that `reload` writes anew."""

    def __init__(self, net, *words, **options):
        self.config = net.log.with_name("tap.yaml")
        self.write(options)
        super().__init__(*words, "--config", self.config, "--user", "root", netns=net.names["n"])

    def write(self, options):
        self.config.write_text("".join(f"{name.replace('_', '-')}: {value}\n" for name, value in ({"percent": 100} | options).items()))

    def reload(self, **options):
        """What the log says of it."""
        self.write(options)
        while True:
            line = self.wait_for("daemon: ")
            if "reloaded (" in line or "configuration is refused" in line:
                return line


def anew(net):
    """The pod's interface is deleted and made again, under another number."""
    ip, n = net.names.ip, net.names["n"]
    ip("-n", n, "link", "del", "pod0")
    ip("-n", n, "link", "add", "filler", "type", "bridge")
    back(net)


def back(net):
    net.names.link("p", "n", "10.78.0.2/24", "10.78.0.1/24", "eth0", "pod0")
    net.names.ip("-n", net.names["p"], "route", "add", "default", "via", "10.78.0.1")


def asks(net, path, port=8080):
    """A request of the node to the pod; patient, for a pod that comes back has to be found first."""
    words = ["curl", "-s", "-o", "/dev/null", "--max-time", "1", f"http://10.78.0.2:{port}{path}"]
    eventually(lambda: not subprocess.run(inside(net.names["n"], words)).returncode)
    time.sleep(0.4)


def production(net):
    """What the pod's server was asked."""
    return [line.split(" ")[1] for line in (net.log.parent / "p" / "access.log").read_text().splitlines()]


def test_a_reload_is_checked_where_the_interface_was_made_anew(net):
    translate(net)
    with ended(Configured(net, "pod0", port=8080, to=SHADOW)) as tap:
        anew(net)
        time.sleep(1)
        assert "shows up at 10.78.0.2:8080" in tap.reload(port=8080, to=TRANSLATED)
        asks(net, "/after")
        tap.report()
    assert production(net) == ["/after"] == net.seen()


def test_production_is_not_allowed_any_more(net):
    """The first check comes when the rights were dropped; what it looks through was opened before, and it looks at targets that are there already."""
    translate(net)
    with ended(Configured(net, "pod0", port=8080, to=SHADOW, allow_production="true")) as tap:
        assert "reloaded" in tap.reload(port=8080, to=SHADOW, allow_production="false")
        asks(net, "/guarded")
        assert net.seen() == ["/guarded"]
        assert "shows up at 10.78.0.2:8080" in tap.reload(port=8080, to=TRANSLATED)
        assert "reloaded" in tap.reload(port=8080, to=TRANSLATED, allow_production="true")
        assert "shows up at 10.78.0.2:8080" in tap.reload(port=8080, to=TRANSLATED, allow_production="false")
        tap.report()


@pytest.mark.parametrize(
    ("interface", "before", "after", "to", "said"),
    [
        ("any", {"port": 9999}, {"port": "[9999, 8080]"}, "http://10.78.0.2:8080", "its address and port are tapped"),
        ("any", {"port": 9999}, {"port": "[9999, 8080]"}, TRANSLATED, "shows up at 10.78.0.2:8080"),
        ("pod0", {"port": 8080, "direction": "out"}, {"port": 8080}, TRANSLATED, "shows up at 10.78.0.2:8080"),
        ("pod0", {"port": 8080, "server": "10.78.0.9"}, {"port": 8080, "server": "10.78.0.2"}, TRANSLATED, "shows up at 10.78.0.2:8080"),
    ],
    ids=["port", "port-translated", "direction", "server"],
)
def test_a_reload_that_taps_the_target_is_refused(net, interface, before, after, to, said):
    translate(net)
    with ended(Configured(net, interface, to=to, **before)) as tap:
        assert said in tap.reload(to=to, **after)
        asks(net, "/after")
        tap.report()
    assert production(net) == ["/after"]


def test_a_check_that_saw_nothing_is_made_again_when_the_interface_is_up(net):
    """Down while a reload is checked: the target is taken, and nothing is captured or sent when the interface is back. Another target ends that."""
    translate(net)
    ip, n = net.names.ip, net.names["n"]
    with ended(Configured(net, "pod0", port=8080, to=SHADOW)) as tap:
        ip("-n", n, "link", "set", "pod0", "down")
        time.sleep(0.5)
        assert "reloaded" in tap.reload(port=8080, to=TRANSLATED)
        ip("-n", n, "link", "set", "pod0", "up")
        tap.wait_for("shows up at 10.78.0.2:8080, which is tapped")
        for i in range(5):
            asks(net, f"/{i}")
        assert production(net) == [f"/{i}" for i in range(5)] and net.seen() == []
        assert "reloaded" in tap.reload(port=8080, to=SHADOW)
        time.sleep(0.3)
        asks(net, "/mirrored")
        assert net.seen() == ["/mirrored"]
        tap.report()


def test_a_check_is_made_again_when_an_interface_comes(net):
    """A pattern that fits nothing at the start; and beside an interface that is captured from already. What was right at the start is right still."""
    translate(net)
    ip, n = net.names.ip, net.names["n"]
    ip("-n", n, "link", "del", "pod0")
    with net.tap("pod*", "--port", 8080, to=TRANSLATED) as tap, net.tap("pod*", "lo", "--port", 8080, to=TRANSLATED) as beside, net.tap("pod*", "--port", 8080) as right:
        back(net)
        for one in (tap, beside):
            one.wait_for("shows up at 10.78.0.2:8080, which is tapped")
        right.wait_for("came: pod0")
        time.sleep(1)
        for i in range(3):
            asks(net, f"/{i}")
        net.get("n", "http://127.0.0.1:8080/on-the-node")
        assert production(net) == [f"/{i}" for i in range(3)] == net.seen()
        assert [one.report()["ledger"]["found"] for one in (tap, beside, right)] == [0, 0, 3]


def test_a_check_is_made_again_when_a_pod_is_later_than_its_interface(net):
    """The interface is up, and nobody behind it answers for the address yet: nothing shows up, and nothing tells that it would now."""
    translate(net)
    ip, n, p = net.names.ip, net.names["n"], net.names["p"]
    ip("-n", p, "addr", "flush", "dev", "eth0")
    ip("-n", n, "link", "set", "pod0", "down")
    with net.tap("pod0", "--port", 8080, to=TRANSLATED) as tap:
        ip("-n", n, "link", "set", "pod0", "up")
        time.sleep(1)
        ip("-n", p, "addr", "add", "10.78.0.2/24", "dev", "eth0")
        tap.wait_for("shows up at 10.78.0.2:8080, which is tapped")
        asks(net, "/after")
        tap.report()
    assert production(net) == ["/after"]


def test_an_address_that_makes_the_target_this_nodes_holds_everything_back_until_it_goes(net):
    ip, n = net.names.ip, net.names["n"]
    with net.tap("eth0", "--port", 8099, to="http://10.77.0.2:8099") as tap:
        ip("-n", n, "addr", "add", "10.77.0.2/32", "dev", "lo")
        tap.wait_for("its address and port are tapped")
        ip("-n", n, "addr", "del", "10.77.0.2/32", "dev", "lo")
        tap.wait_for("the targets stand the check")
        tap.report()
