"""`replay tap` as a daemon: its metrics, its health, word to a service manager, its rights as a unit or a pod gives them. Real packets, a real nginx."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import prometheus_client
import pytest
import scrape
import yaml
from endtoend import balanced
from ownserver import OwnServer, requests_of
from tapmake import COMMAND, Namespaces, Nginx, Sink, Tap, ended, eventually, free_port, get, inside, needs, needs_root, nginx  # noqa: F401

import replay
from replay.daemon.live import LIVE_FAMILIES

pytestmark = [needs_root, needs("nginx", "ip")]

DEPLOY = pathlib.Path(__file__).resolve().parents[1] / "deploy"


def metrics_of(tap):
    """The address that it said."""
    return tap.wait_for("metrics at http://").split("http://")[1].split("/")[0]


@contextlib.contextmanager
def tapping(nginx, *words, target=None, percent=100, **more):  # noqa: F811
    """(tap, address of its metrics, sink or None)."""
    with contextlib.ExitStack() as stack:
        sink = None
        if target is None:
            sink = stack.enter_context(ended(Sink()))
            target = f"http://{sink.address}"
        tap = Tap("lo", "--port", nginx.port, "--to", target, "-p", percent, "--metrics", "127.0.0.1:0", *words, ready=False, **more)
        stack.enter_context(ended(tap))
        address = metrics_of(tap)
        eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
        time.sleep(0.3)
        yield tap, address, sink


def text_of(address):
    status, _, body = scrape.get(address)
    assert status == 200, body
    return body.decode()


def test_metrics_are_the_ledger_of_the_tap(nginx):  # noqa: F811
    with tapping(nginx, percent=50) as (tap, address, sink):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: get(f"{nginx.url}/{i}", headers={"x-shadow-replay": "1"} if i % 10 == 0 else {}), range(200)))
        eventually(lambda: scrape.value(text_of(address), "replay_requests_found_total") == 200)
        eventually(lambda: scrape.value(text_of(address), "replay_requests_waiting") + scrape.value(text_of(address), "replay_requests_under_way") == 0)
        text = text_of(address)
        report = balanced(tap.report())
    ledger = report["ledger"]
    assert ledger["by_reason"]["withheld"] == {"loop": 20} and 0 < ledger["sent"] < 180
    for name in ("found", "selected", "fanout", "filtered", "sampled_out", "withheld", "sent", "dropped", "answered", "unanswered"):
        assert scrape.value(text, f"replay_requests_{name}_total") == ledger[name], name
    assert scrape.value(text, "replay_lag_seconds_count") == ledger["sent"]
    assert scrape.value(text, "replay_kernel_dropped_packets_total") == 0 and scrape.value(text, "replay_kernel_packets_total") > 400
    assert scrape.value(text, "replay_share_ratio") == scrape.value(text, "replay_effective_share_ratio") == 0.5
    assert scrape.value(text, "replay_breaker_state", state="closed") == 1
    assert scrape.value(text, "replay_interface_up", interface="lo") == 1
    assert scrape.value(text, "replay_ring_bytes") == 64 << 20
    known = scrape.families(text)
    promised = {f"{one.name}_total" if one.kind == "counter" else one.name for one in LIVE_FAMILIES if not one.name.startswith("replay_record")}
    promised.remove("replay_config_last_reload_success_timestamp_seconds")  # nothing to reload
    assert promised <= known.keys(), promised - known.keys()


def test_a_dead_shadow_is_a_metric_and_no_state_of_the_tap(nginx):  # noqa: F811
    with tapping(nginx, target=f"http://127.0.0.1:{free_port()}") as (tap, address, _):

        def opened():
            get(f"{nginx.url}/x")
            return scrape.value(text_of(address), "replay_breaker_state", state="open") == 1

        eventually(opened, every=0.05)
        assert scrape.get(address, "/readyz")[0] == scrape.get(address, "/healthz")[0] == 200
        for i in range(20):
            get(f"{nginx.url}/{i}")
        eventually(lambda: sum(scrape.value(text_of(address), "replay_requests_dropped_total", reason=reason) for reason in ("breaker", "target_down")) >= 20)
        assert scrape.value(text_of(address), "replay_breaker_changes_total", state="open") >= 1
        balanced(tap.report())


def test_of_several_interfaces_one_that_is_up_is_enough():
    name = f"rops{os.getpid() % 100000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        words = ("lo", name, "--port", 1, "--to", "http://127.0.0.1:2", "-p", 1, "--metrics", "127.0.0.1:0")
        with ended(Tap(*words, ready=False)) as tap:
            address = metrics_of(tap)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            text = text_of(address)
            assert scrape.value(text, "replay_capturing") == scrape.value(text, "replay_interface_up", interface="lo") == 1
            assert scrape.value(text, "replay_interface_up", interface=name) == 0
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)


def test_workers_whose_interface_was_made_anew_are_not_ready():
    name = f"rops{os.getpid() % 100000}"
    made = ["ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}p"]
    subprocess.run(made, check=True)
    try:
        words = (name, "--port", 1, "--to", "http://127.0.0.1:2", "-p", 1, "--metrics", "127.0.0.1:0", "--workers", 2)
        with ended(Tap(*words, ready=False)) as tap:
            address = metrics_of(tap)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            subprocess.run(["ip", "link", "del", name], check=True)
            subprocess.run(made, check=True)
            eventually(lambda: b"restart it" in scrape.get(address, "/readyz")[2])
            tap.wait_for("cannot be listened to again")
            time.sleep(2)  # the check of the target is over
            assert scrape.get(address, "/readyz")[0] == 503 and scrape.value(text_of(address), "replay_interface_up", interface=name) == 0
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)


def test_a_tap_that_has_expired_is_ready_and_captures_nothing(nginx):  # noqa: F811
    with tapping(nginx, "--expires", "2020-01-01T00:00:00Z") as (tap, address, _):
        text = text_of(address)
        assert scrape.value(text, "replay_expired") == 1
        assert scrape.value(text, "replay_capturing") == scrape.value(text, "replay_interface_up", interface="lo") == 0


def test_an_interface_that_goes_away_is_not_ready_and_alive():
    name = f"rops{os.getpid() % 100000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        words = (name, "--port", 1, "--to", "http://127.0.0.1:2", "-p", 1, "--metrics", "127.0.0.1:0")
        with ended(Tap(*words, ready=False)) as tap:
            address = metrics_of(tap)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            assert scrape.value(text_of(address), "replay_interface_up", interface=name) == 1
            subprocess.run(["ip", "link", "set", name, "down"], check=True)
            body = eventually(lambda: (found := scrape.get(address, "/readyz"))[0] == 503 and found)[2]
            assert b"no interface is up" in body and scrape.value(text_of(address), "replay_capturing") == 0
            assert scrape.value(text_of(address), "replay_interface_up", interface=name) == 0
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            subprocess.run(["ip", "link", "del", name], check=True)
            status, _, body = eventually(lambda: (found := scrape.get(address, "/readyz"))[0] == 503 and found)
            assert b"interface" in body and scrape.get(address, "/healthz")[0] == 200
            assert scrape.value(text_of(address), "replay_capturing") == 0
            assert scrape.value(text_of(address), "replay_interface_up", interface=name) == 0
            subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            balanced(tap.report())
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)


def test_word_to_the_service_manager_and_reloads(nginx, tmp_path):  # noqa: F811
    """READY once it captures, the watchdog, RELOADING around a reload, STOPPING; the metrics tell what became of each configuration."""
    tmp_path.chmod(0o755)
    config = tmp_path / "tap.yaml"
    config.write_text("percent: 100\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, ended(Sink()) as sink:
        manager.bind(str(tmp_path / "notify"))
        said = []

        def listen():
            with contextlib.suppress(OSError):
                while data := manager.recv(4096):
                    said.append(dict(line.split("=", 1) for line in data.decode().split("\n")))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        heard = 0

        def until(word):
            """The next message with this word."""

            def there():
                return next((n for n in range(heard, len(said)) if word in said[n]), None) is not None

            nonlocal heard
            eventually(there)
            heard = next(n for n in range(heard, len(said)) if word in said[n]) + 1
            return said[heard - 1]

        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        words = ("lo", "--port", nginx.port, "--to", f"http://{sink.address}", "--config", config, "--metrics", "127.0.0.1:0", "--user", "root", "--log-format", "json")
        process = subprocess.Popen([*COMMAND, "tap", *map(str, words), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            until("READY")
            lines = []
            while not lines or "metrics at" not in lines[-1]["message"]:
                lines.append(json.loads(process.stderr.readline()))
            address = lines[-1]["message"].split("/")[2]
            get(f"{nginx.url}/1")
            until("WATCHDOG")
            config.write_text("percent: 0\n")
            until("RELOADING")
            until("READY")
            eventually(lambda: scrape.value(text_of(address), "replay_share_ratio") == 0)
            get(f"{nginx.url}/2")
            config.write_text("percent: 0\npercnt: 5\n")
            until("RELOADING")
            until("READY")
            text = text_of(address)
            assert scrape.value(text, "replay_config_last_reload_successful") == 0 and scrape.value(text, "replay_config_reloads_total", result="refused") == 1
            config.write_text("percent: 0\nring: 1MiB\n")
            eventually(lambda: scrape.value(text_of(address), "replay_config_reloads_total", result="refused") == 2)
            config.write_text("percent: 100\n")
            process.send_signal(signal.SIGHUP)
            eventually(lambda: scrape.value(text_of(address), "replay_config_last_reload_successful") == 1)
            get(f"{nginx.url}/3")
            eventually(lambda: scrape.value(text_of(address), "replay_requests_sent_total") == 2)
            assert scrape.value(text_of(address), "replay_log_messages_total", level="error") == 2
            process.send_signal(signal.SIGTERM)
            assert until("STOPPING")["STATUS"]
            out, errors = process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            manager.shutdown(socket.SHUT_RDWR)
            listener.join(5)
    assert process.returncode == 0, errors
    assert balanced(json.loads(out))["ledger"]["sent"] == 2
    refusals = [row["message"] for row in map(json.loads, errors.splitlines()) if row["level"] == "error"]
    assert len(refusals) == 2 and "'percnt'; did you mean 'percent'" in refusals[0] and "--ring" in refusals[1]


def capabilities(pid):
    """Of all its threads: (effective, permitted, bounding has NET_RAW, no_new_privs)."""
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        status = pathlib.Path(f"/proc/{pid}/task/{task}/status").read_text()
        found.add(tuple(re.search(rf"{name}:\s+(\w+)", status)[1] for name in ("CapEff", "CapPrm", "CapAmb", "NoNewPrivs")))
    return found


@pytest.mark.parametrize(
    ("how", "inherits"),
    [
        # As deploy/systemd has it: a user of no rights, with the one capability.
        ("--reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw --bounding-set=-all,+net_raw --no-new-privs", True),
        # As deploy/helm has it: root with three.
        ("--inh-caps=-all --ambient-caps=-all --bounding-set=-all,+net_raw,+setuid,+setgid --no-new-privs", False),
    ],
    ids=["unit", "pod"],
)
def test_with_the_rights_of_a_unit_and_of_a_pod(nginx, tmp_path, how, inherits):  # noqa: F811
    """It taps, and then has no right at all, in no thread. Whoever runs as nobody must be able to read the program."""
    probe = subprocess.run(["setpriv", *shlex.split(how), sys.executable, "-c", "import replay"], capture_output=True, cwd="/", env=os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))})
    if probe.returncode:
        pytest.skip(f"needs a Python that others may read, and setpriv: {probe.stderr.decode()[-200:]}")
    with ended(Sink()) as sink:
        words = ("lo", "--port", nginx.port, "--to", f"http://{sink.address}", "-p", 100, "--metrics", "127.0.0.1:0", "--json")
        process = subprocess.Popen(["setpriv", *shlex.split(how), *COMMAND, "tap", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        tap = Tap.__new__(Tap)
        tap.process, tap.said = process, ""
        with ended(tap):
            address = metrics_of(tap)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            time.sleep(0.3)
            assert capabilities(process.pid) == {("0000000000000000", "0000000000000000", "0000000000000000", "1")}
            assert os.stat(f"/proc/{process.pid}/task").st_uid == 65534
            get(f"{nginx.url}/1")
            eventually(lambda: scrape.value(text_of(address), "replay_service_seconds_count") == 1)
            assert balanced(tap.report())["ledger"]["answered"] == 1


@pytest.fixture
def stack_of_folders():
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_configuration_that_cannot_be_read_after_the_drop_is_told(nginx, tmp_path):  # noqa: F811
    tmp_path.chmod(0o700)
    config = tmp_path / "tap.yaml"
    config.write_text("percent: 100\n")
    with ended(Tap("lo", "--port", nginx.port, "--to", f"http://127.0.0.1:{free_port()}", "--config", config, ready=False)) as tap:
        assert "a change of it cannot be taken up" in tap.wait_for("cannot be read by the user")
        balanced(tap.report())


class Heads(OwnServer):
    """A shadow that keeps the heads it got."""

    def __init__(self):
        self.heads = []
        super().__init__()

    def talk(self, peer):
        for head, _ in requests_of(peer):
            self.heads.append(head)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_files_for_root_alone_do_not_block_a_reload(nginx, stack_of_folders):  # noqa: F811
    """Their change is told to be out of reach at the start; what stood in them goes on, and percent: 0 stops the mirror."""
    folder = pathlib.Path(stack_of_folders.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    config, token, headers, clients, pipe = (folder / name for name in ("tap.yaml", "token", "headers", "clients", "pipe"))
    config.write_text("percent: 100\n")
    for file, text in ((token, "new"), (headers, "X-Of-Root: 1\n"), (clients, "10.99.0.0/16\n")):
        file.touch(mode=0o600)
        file.write_text(text)
    os.mkfifo(pipe, 0o600)
    with contextlib.closing(Heads()) as shadow:
        words = ["lo", "--port", nginx.port, "--to", f"http://127.0.0.1:{shadow.port}", "--config", config, "--auth-file", token, "-H", f"@{headers}"]
        writer = subprocess.Popen(["sh", "-c", f"echo 'X-Of-A-Pipe: 1' > {pipe}"])
        with ended(Tap(*words, "--exclude-client", f"@{clients}", "-H", f"@{pipe}", ready=False)) as tap:
            assert writer.wait(10) == 0
            told = [tap.wait_for("cannot be read by the user") for _ in range(3)]
            assert all(any(f"{file} cannot" in line for line in told) for file in (token, headers, clients))
            time.sleep(0.3)
            get(f"{nginx.url}/1", headers={"Authorization": "Bearer old"})
            eventually(lambda: len(shadow.heads) == 1)
            config.write_text("percent: 100\npath: /2\n")
            tap.wait_for("reloaded (")
            for option, file in (("--auth-file", token), ("-H", headers), ("--exclude-client", clients)):
                assert f"{option} {file} cannot be read any more (Permission denied)" in tap.said
            get(f"{nginx.url}/2", headers={"Authorization": "Bearer old"})
            eventually(lambda: len(shadow.heads) == 2)
            for head in shadow.heads:
                assert all(line in head for line in (b"Authorization: Bearer new", b"X-Of-Root: 1", b"X-Of-A-Pipe: 1")), head
            config.write_text("percent: 0\n")
            assert "cannot be read" not in tap.wait_for("reloaded (")
            get(f"{nginx.url}/3")
            token.write_text("newer")
            token.chmod(0o644)
            assert str(token) in tap.wait_for("reloaded (")
            assert tap.said.count("cannot be read any more") == 3
            report = balanced(tap.report())
        assert report["ledger"]["answered"] == 2 and report["ledger"]["by_reason"]["sampled_out"] == {"share": 1}


def test_a_private_installation(nginx, tmp_path, stack_of_folders):  # noqa: F811
    """Nobody may read the program: what it needs after the drop was imported before. Scrapes, a reload, the ledger, a stop, a report."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for module in (replay, prometheus_client):
        shutil.copytree(pathlib.Path(module.__file__).parent, private / module.__name__, ignore=shutil.ignore_patterns("__pycache__", "*.pxi", "*.c"))
    readable = stack_of_folders.enter_context(tempfile.TemporaryDirectory())
    os.chmod(readable, 0o755)
    config = pathlib.Path(readable) / "tap.yaml"
    config.write_text("percent: 100\n")
    environment = os.environ | {"PYTHONPATH": str(private), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with ended(Sink()) as sink:
        words = ("lo", "--port", nginx.port, "--to", f"http://{sink.address}", "--config", config, "--metrics", "127.0.0.1:0", "--report", tmp_path / "report.json", "--json")
        tap = Tap.__new__(Tap)
        tap.process = subprocess.Popen([*COMMAND, "tap", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd="/")
        tap.said = ""
        with ended(tap):
            address = metrics_of(tap)
            eventually(lambda: scrape.get(address, "/readyz")[0] == 200)
            time.sleep(0.3)
            get(f"{nginx.url}/1")
            eventually(lambda: scrape.value(text_of(address), "replay_service_seconds_count") == 1)
            assert b"# EOF" in scrape.get(address, headers={"Accept": "application/openmetrics-text; version=1.0.0"})[2]
            assert scrape.get(address, headers={"Accept-Encoding": "gzip"})[1]["Content-Encoding"] == "gzip"
            config.write_text("percent: 200\n")
            assert "more than 100" in tap.wait_for("is refused")
            config.write_text("percent: 0\nmethods: GET\n")
            tap.wait_for("reloaded (")
            assert "found 1" in tap.ask()
            get(f"{nginx.url}/2")
            eventually(lambda: scrape.value(text_of(address), "replay_requests_sampled_out_total") == 1)
            assert balanced(tap.report())["ledger"]["answered"] == 1
        assert json.loads((tmp_path / "report.json").read_text())["ledger"]["found"] == 2


def test_configurations_that_we_ship_are_understood(nginx, tmp_path):  # noqa: F811
    """The unit's and the chart's: each key is an option, each value is read."""
    chart = yaml.safe_load((DEPLOY / "helm" / "shadow-replay" / "ci" / "test-values.yaml").read_text())["config"]
    unit = yaml.safe_load((DEPLOY / "systemd" / "tap.yaml").read_text())
    for n, config in enumerate((chart, unit)):
        path = tmp_path / f"{n}.yaml"
        path.write_text(yaml.safe_dump(config | {"to": [f"http://127.0.0.1:{free_port()}"]}))
        done = subprocess.run([*COMMAND, "tap", "lo", "--config", str(path), "--duration", "300ms", "--json"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["policy"]["percent"] == 1


def test_the_words_of_unit_and_chart_are_understood():
    """The command lines that we ship name options that exist."""
    known = set(re.findall(r"--[a-z][a-z-]+", subprocess.run([*COMMAND, "tap", "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}).stdout))
    for path in ("systemd/replay-tap.service", "helm/shadow-replay/templates/daemonset.yaml", "helm/shadow-replay/values.yaml"):
        lines = [line for line in (DEPLOY / path).read_text().splitlines() if not line.startswith("#") and ("ExecStart=" in line or "- --" in line or "extraArgs" in line)]
        words = set(re.findall(r"--[a-z][a-z-]+", "\n".join(lines)))
        assert words and words <= known, (path, words - known)


@pytest.fixture
def node(tmp_path):
    """(namespaces: a node n and its pod p with a server at 10.81.0.2:9917, what asks from the node)."""
    found = Namespaces("n", "p")
    found.link("n", "p", "10.81.0.1/24", "10.81.0.2/24", "pod0")
    Namespaces.ip("-n", found["n"], "addr", "add", "fd81::1/64", "dev", "pod0", "nodad")
    server = Nginx(tmp_path, host="10.81.0.2", netns=found["p"], port=9917)

    def ask(*urls):
        for url in urls:
            eventually(lambda url=url: not subprocess.run(inside(found["n"], ["curl", "-gsf", "-o", "/dev/null", "--max-time", "2", url])).returncode)

    yield found, ask
    server.close()
    found.close()


OWN = ("http://127.0.0.1:9917/metrics", "http://10.81.0.1:9917/healthz", "http://[::1]:9917/readyz", "http://[fd81::1]:9917/metrics", "http://127.8.8.8:9917/metrics")


@pytest.mark.parametrize(
    ("metrics", "words", "asked", "found"),
    [
        (":9917", (), OWN, 0),
        ("0.0.0.0:9917", (), (OWN[0], OWN[1], OWN[4]), 0),
        ("127.0.0.1:9917", (), OWN[:1], 0),
        ("[fd81::1]:9917", (), OWN[3:4], 0),
        (":9917", ("--port", 9917), OWN, 5),
        (":9917", ("--port", 9918), OWN, 0),
    ],
    ids=["all addresses", "all of IPv4", "one", "one of IPv6", "its port is asked for", "another port is asked for"],
)
@needs("curl")
def test_what_the_taps_own_metrics_are_asked_is_no_production(node, metrics, words, asked, found):
    """Scrapes and probes of the tap come all the time. A pod's server that has its port is production."""
    namespaces, ask = node
    with ended(Tap("any", "--dry-run", "-p", 100, "--metrics", metrics, *words, netns=namespaces["n"])) as tap:
        ask("http://10.81.0.2:9917/pod", *asked)
        pod = 0 if 9918 in words else 1
        eventually(lambda: f"found {found + pod}" in tap.ask(), every=0.2)
        time.sleep(0.3)
        assert balanced(tap.report())["ledger"]["found"] == found + pod


@needs("curl")
def test_a_server_of_another_namespace_at_our_metrics_address_is_production(node, tmp_path):
    """--netns: what is tapped has a loopback of its own."""
    namespaces, ask = node
    (tmp_path / "lo").mkdir()
    server = Nginx(tmp_path / "lo", host="127.0.0.1", netns=namespaces["n"], port=free_port())
    try:
        with ended(Tap("lo", "--dry-run", "-p", 100, "--metrics", f"127.0.0.1:{server.port}", "--netns", namespaces["n"])) as tap:
            ask(server.url)
            assert balanced(tap.report())["ledger"]["found"] == 1
    finally:
        server.close()


def test_scrapes_do_not_hold_the_tap_up(nginx):  # noqa: F811
    """Scraped without a rest from four sides while it works: each request is still mirrored, and counters never go back."""
    with tapping(nginx) as (tap, address, sink):
        stop, seen, wrong = time.monotonic() + 3, [], []

        def scraping():
            last = 0
            while time.monotonic() < stop:
                now = scrape.value(text_of(address), "replay_requests_found_total")
                if now < last:
                    wrong.append((last, now))
                last = now
                seen.append(now)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            work = [pool.submit(scraping) for _ in range(4)]
            sent = 0
            while time.monotonic() < stop:
                list(pool.map(lambda i: get(f"{nginx.url}/{i}"), range(20)))
                sent += 20
            for one in work:
                one.result()
        time.sleep(0.3)
        report = balanced(tap.report())
        assert report["ledger"]["answered"] == sent == sink.totals()["requests"]
    assert len(seen) > 20 and not wrong
