"""`replay tap` on a loopback interface: real packets, a real nginx as production, real sinks as shadows."""

import collections
import concurrent.futures
import contextlib
import ctypes
import errno
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from endtoend import balanced
from tapmake import COMMAND, Nginx, Sink, Tap, ended, eventually, get, needs, needs_root, nginx  # noqa: F401

from replay.capture.recording import Recording

pytestmark = [needs_root, needs("nginx", "ip")]


def read(path):
    with open(path) as file:
        return file.read()


def seen(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_once(nginx, tmp_path):  # noqa: F811
    log = tmp_path / "shadow.jsonl"
    with ended(Sink("--access-log", log)) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        for i in range(50):
            get(f"{nginx.url}/one/{i}", headers={"X-N": str(i)})
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: get(f"{nginx.url}/many/{i}", data=b"x" * i), range(200)))
        eventually(lambda: len(log.read_text().splitlines()) >= 250)
        report = balanced(tap.report())
    asked = collections.Counter((method, target) for method, target, _ in nginx.logged())
    got = seen(log)
    assert collections.Counter((one["method"], one["target"]) for one in got) == asked
    assert {one["host"] for one in got} == {f"127.0.0.1-shadow:{nginx.port}"}
    assert {dict(one["headers"])["x-shadow-replay"] for one in got} == {"1"}
    assert report["ledger"]["found"] == report["ledger"]["answered"] == 250
    assert report["packets"]["kernel_drops"] == report["packets"]["cut_frames"] == 0
    assert report["lag_us"]["p50"] < 100_000


def test_what_captures_and_writes_awaits_its_turn(nginx, tmp_path):  # noqa: F811
    """Production keeps the core that it has when the tap wakes up. The sender does not wait: its queue is shorter than the ring."""
    words = ("--record", tmp_path / "all.pcapng", "--access-log", tmp_path / "log")
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, *words)) as tap:
        get(nginx.url)
        policies = [os.sched_getscheduler(int(task)) for task in os.listdir(f"/proc/{tap.process.pid}/task") if int(task) != tap.process.pid]
        assert policies.count(os.SCHED_BATCH) == 4, "ingest, recording, notes, judge"
        assert os.sched_getscheduler(tap.process.pid) == os.sched_getscheduler(0)


def test_a_share_is_the_same_share_as_offline(nginx, tmp_path):  # noqa: F811
    """What the tap takes is what its recording gives at the same percentage and seed."""
    log = tmp_path / "shadow.jsonl"
    pcap = tmp_path / "lo.pcap"
    with (
        ended(Sink("--access-log", log)) as shadow,
        subprocess.Popen(["tcpdump", "-i", "lo", "-B", "32768", "-s", "3000", "-Z", "root", "-w", pcap, f"port {nginx.port}"], stderr=subprocess.PIPE) as tcpdump,
        ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 30, "--seed", 7)) as tap,
    ):
        tcpdump.stderr.readline()
        for i in range(300):
            get(f"{nginx.url}/{i}")
        time.sleep(0.5)
        report = balanced(tap.report())
        time.sleep(1.2)  # it asks for its ring once a second
        tcpdump.terminate()
        tcpdump.wait()
    offline = subprocess.run([*COMMAND, "run", pcap, "-p", "30", "--seed", "7", "--json"], capture_output=True, check=True)
    whole = json.loads(offline.stdout)["ledger"]
    assert (report["ledger"]["found"], report["ledger"]["selected"]) == (whole["found"], whole["selected"]) and 0 < whole["selected"] < 300
    assert len(seen(log)) == whole["selected"]


def test_an_open_connection_is_joined(nginx):  # noqa: F811
    """Connections that stood before the tap came: their requests count once their replies confirm where they begin."""
    with socket.create_connection(("127.0.0.1", nginx.port)) as old:
        old.sendall(b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n")
        old.recv(1000)
        with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
            for i in range(5):
                old.sendall(b"GET /after/%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
                old.recv(1000)
                time.sleep(0.05)
            time.sleep(0.3)
            report = balanced(tap.report())
            assert shadow.totals()["requests"] == report["ledger"]["sent"] == 5


def test_a_slow_upload_holds_nobody_up(nginx):  # noqa: F811
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        with socket.create_connection(("127.0.0.1", nginx.port)) as slow:
            slow.sendall(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
            for i in range(20):
                get(f"{nginx.url}/{i}")
            eventually(lambda: "found 20" in tap.ask(), every=0.2)
            slow.sendall(b"67890")
            slow.recv(1000)
            eventually(lambda: "found 21" in tap.ask(), every=0.2)
        assert balanced(tap.report())["ledger"]["answered"] == 21


# ---- never into production, never in a loop -----------------------------------------------------------------------------------------


def refused(*words):
    done = subprocess.run([*COMMAND, "tap", *map(str, words)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 3, (done.returncode, done.stderr)
    return done.stderr


def test_production_as_the_target_is_refused(nginx):  # noqa: F811
    before = nginx.requests()
    assert "tapped" in refused("lo", "--port", nginx.port, "--to", nginx.url, "-p", 1)
    assert "tapped" in refused("lo", "--port", nginx.port, "--to", f"http://localhost:{nginx.port}", "-p", 1)
    assert nginx.requests() == before + 1


def test_without_a_port_the_shadow_on_the_same_interface_is_refused(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        assert "--port" in refused("lo", "--to", f"http://{shadow.address}", "-p", 1)


def test_a_shadow_that_turns_out_to_serve_others_ends_it(nginx):  # noqa: F811
    """The guard of the design, live: a captured server is the target."""
    with (
        ended(Sink()) as shadow,
        ended(Tap("lo", "--port", nginx.port, "--port", 1, "--to", f"http://{shadow.address}", "-p", 100)) as tap,
    ):
        get(f"{nginx.url}/1")
        time.sleep(0.2)
        assert balanced(tap.report())["ledger"]["sent"] == 1
    with ended(Sink()) as shadow:
        words = ("lo", "--port", shadow.port, "--to", f"http://{shadow.address}", "-p", 100)
        assert "tapped" in refused(*words)


def test_tapping_the_target_itself_does_not_amplify(nginx):  # noqa: F811
    """--allow-production: originals are mirrored into the very server that is tapped, and the copies are not mirrored again."""
    words = ("lo", "--port", nginx.port, "--to", nginx.url, "-p", 100, "--allow-production", "--shadow-suffix", "off")
    with ended(Tap(*words)) as tap:
        for i in range(40):
            get(f"{nginx.url}/{i}")
            time.sleep(0.05)
        report = balanced(tap.report())
    assert report["ledger"]["sent"] == 40 and report["ledger"]["found"] == 40
    assert len(nginx.logged()) == 80


def test_our_own_connections_are_left_out_by_their_ports(nginx, tmp_path):  # noqa: F811
    """After the rights were dropped no mark is left: the local ports tell."""
    log = tmp_path / "shadow.jsonl"
    with ended(Sink("--access-log", log)) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/1")
            eventually(lambda: log.read_text())
            mine = [line for line in subprocess.run(["ss", "-tnH", f"dport = :{shadow.port}"], capture_output=True, text=True).stdout.splitlines()]
            last = int(read("/proc/sys/net/ipv4/ip_local_port_range").split()[1])
            assert mine and all(int(line.split()[3].rpartition(":")[2]) > last for line in mine)
            tap.report()


def test_clients_and_services_with_one_of_our_ports_are_heard(nginx, tmp_path):  # noqa: F811
    """Only what goes to the target is ours."""
    log = tmp_path / "shadow.jsonl"
    first = int(read("/proc/sys/net/ipv4/ip_local_port_range").split()[1]) + 1
    (tmp_path / "service").mkdir()
    with ended(Sink("--access-log", log)) as shadow, contextlib.closing(Nginx(tmp_path / "service", port=first + 700)) as service:
        words = ("lo", "--port", nginx.port, "--port", service.port, "--to", f"http://{shadow.address}", "-p", 100)
        with ended(Tap(*words)) as tap:
            tap.wait_for("our own connections to the target are made from ports")
            for i in range(3):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", first + 500 + i))
                    one.connect(("127.0.0.1", nginx.port))
                    one.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
                    assert one.recv(1000)
            get(f"http://127.0.0.1:{service.port}/service")
            time.sleep(0.3)
            assert balanced(tap.report())["ledger"]["found"] == 4
    assert sorted(json.loads(line)["target"] for line in log.read_text().splitlines()) == ["/0", "/1", "/2", "/service"]


def test_marked_requests_are_withheld(nginx):  # noqa: F811
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        get(f"{nginx.url}/1", headers={"x-shadow-replay": "1"})
        get(f"{nginx.url}/2", host="a-shadow")
        get(f"{nginx.url}/3")
        time.sleep(0.3)
        report = balanced(tap.report())
    assert report["ledger"]["by_reason"]["withheld"] == {"loop": 2} and report["ledger"]["sent"] == 1


def test_excluded_clients(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--exclude-client", "127.0.0.2")
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/1")
            with socket.create_connection(("127.0.0.1", nginx.port), source_address=("127.0.0.2", 0)) as other:
                other.sendall(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
                other.recv(1000)
            time.sleep(0.3)
            assert balanced(tap.report())["ledger"]["found"] == 1


# ---- usage ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["lo", "--to", "http://127.0.0.1:1"], 2, "-p 1"),
        (["lo", "-p", "1"], 2, "--to URL is missing"),
        (["nosuch0", "-p", "1", "--to", "http://127.0.0.1:1"], 4, "there are"),
        (["lo", "-p", "1", "--to", "http://no.such.name.invalid"], 5, "cannot be resolved"),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--netns", "nosuch"], 2, "ip netns"),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "-f", "port (", "--port", "2"], 2, "pcap-filter"),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "-f", "tcp and (vlan 7)", "--port", "2"], 2, "the VLAN's own interface"),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--user", "no-such-user", "--port", "2"], 2, "--user"),
        *((["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--user", one, "--port", "2"], 2, "from 0 to 4294967294") for one in ("4294967295", "99999999999", "\u00b2", "-1")),
        *((["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--max-rate", one], 2, "500/s or 10k/s") for one in ("0", "2x", "max", "5/m", "original", "-1", "nan")),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--ring", "1k"], 2, "1MiB"),
        (["lo", "-p", "1", "--to", "http://127.0.0.1:1", "--port", "2", "--limit", "9", "--workers", "2"], 2, "--workers 1"),
    ],
)
def test_what_is_wrong_is_said(words, code, said):
    done = subprocess.run([*COMMAND, "tap", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_without_the_right_three_ways_are_named():
    def without_raw_sockets():
        libc = ctypes.CDLL(None)
        libc.prctl(24, 13, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_RAW: what is executed has it no more

    words = [*COMMAND, "tap", "lo", "-p", "1", "--port", "1", "--to", "http://127.0.0.1:2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, preexec_fn=without_raw_sockets)
    assert done.returncode == 4, done.stderr
    assert all(word in done.stderr for word in ("CAP_NET_RAW", "setcap", "AmbientCapabilities", "NET_RAW]")), done.stderr


# ---- by a policy --------------------------------------------------------------------------------------------------------------------


def test_a_policy_decides(nginx, tmp_path):  # noqa: F811
    """Two mirrors on one route, one on another, none on a third; each shadow gets its own, with the marker."""
    logs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with ended(Sink("--access-log", logs[0])) as one, ended(Sink("--access-log", logs[1])) as two:
        policy = tmp_path / "policy.yaml"
        policy.write_text(
            "routes:\n- {name: none, match: {path: {prefix: /private}}, mirror: []}\n"
            f"- name: two\n  match: {{path: {{prefix: /both}}}}\n  mirror: [{{to: 'http://{one.address}'}}, {{to: 'http://{two.address}', host: keep}}]\n"
            f"- {{name: rest, mirror: {{to: 'http://{one.address}'}}}}\n"
        )
        with ended(Tap("lo", "--port", nginx.port, "--policy", policy)) as tap:
            for path in ("private/1", "both/1", "both/2", "rest/1"):
                get(f"{nginx.url}/{path}")
            eventually(lambda: len(logs[0].read_text().splitlines()) >= 3 and len(logs[1].read_text().splitlines()) >= 2)
            report = balanced(tap.report())
    assert sorted(row["target"] for row in seen(logs[0])) == ["/both/1", "/both/2", "/rest/1"]
    assert sorted(row["target"] for row in seen(logs[1])) == ["/both/1", "/both/2"]
    assert {row["host"] for row in seen(logs[1])} == {f"127.0.0.1:{nginx.port}"} and {dict(row["headers"])["x-shadow-replay"] for log in logs for row in seen(log)} == {"1"}
    ledger = report["ledger"]
    assert (ledger["found"], ledger["selected"], ledger["fanout"], ledger["sent"]) == (4, 3, 2, 5)
    assert [route["matched"] for route in report["routing"]["routes"]] == [1, 2, 1]


def test_a_stuck_mirror_of_a_policy_holds_up_neither_reading_nor_the_other(nginx, tmp_path):  # noqa: F811
    with ended(Sink("--misbehave", "never")) as stuck, ended(Sink()) as fine:
        policy = tmp_path / "policy.yaml"
        policy.write_text(f"routes:\n- mirror: [{{to: 'http://{stuck.address}'}}, {{to: 'http://{fine.address}'}}]\n")
        words = ("lo", "--port", nginx.port, "--policy", policy, "-c", 8, "--timeout", "20s", "--drain", "1s")
        with ended(Tap(*words)) as tap:
            pressed(nginx, 600)
            eventually(lambda: "found 600" in tap.ask(), every=0.3)
            time.sleep(0.5)
            report = balanced(tap.report())
        assert fine.totals()["requests"] >= 550
    assert report["ledger"]["selected"] + report["ledger"]["fanout"] == 1200


# ---- a daemon ---------------------------------------------------------------------------------------------------------------------


def test_rights_are_dropped(nginx):  # noqa: F811
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        status = dict(line.split(":", 1) for line in read(f"/proc/{tap.process.pid}/status").splitlines() if ":" in line)
        assert status["Uid"].split() == ["65534"] * 4 and int(status["CapPrm"], 16) == 0 and status["NoNewPrivs"].split() == ["1"]
        for task in os.listdir(f"/proc/{tap.process.pid}/task"):
            about = read(f"/proc/{tap.process.pid}/task/{task}/status")
            assert "CapEff:\t0000000000000000" in about and "NoNewPrivs:\t1" in about
        get(f"{nginx.url}/1")
        time.sleep(0.2)
        assert tap.report()["ledger"]["answered"] == 1


def test_a_user_by_its_number(nginx):  # noqa: F811
    with ended(Tap("lo", "--port", nginx.port, "--to", "http://127.0.0.1:1", "-p", 100, "--user", "4294967294")) as tap:
        status = dict(line.split(":", 1) for line in read(f"/proc/{tap.process.pid}/status").splitlines() if ":" in line)
        assert status["Uid"].split() == status["Gid"].split() == ["4294967294"] * 4 and "runs as 4294967294" in tap.said
        tap.report()


def test_a_user_that_it_does_not_become_is_refused():
    """As where a kernel or a sandbox says that it was done."""
    code = "import os\nos.setresuid = lambda *ids: None\nfrom replay.tap import privileges\nprivileges.drop('nobody')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "UsageError: --user nobody: it did not become 65534:" in done.stderr, done.stderr


def test_more_cores_than_there_are_bound_nothing(nginx):  # noqa: F811
    with ended(Tap("lo", "--port", nginx.port, "--dry-run", "-p", 100, "--max-cpu", 50)) as tap:
        assert f"--max-cpu 50: there are {os.cpu_count()} cores, so it bounds nothing; 50% is half of one" in tap.said
        tap.report()


def test_sigterm_drains(nginx):  # noqa: F811
    with ended(Sink("--delay", "700ms")) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: get(f"{nginx.url}/{i}"), range(40)))
        time.sleep(0.1)
        report = balanced(tap.report())
    assert report["ledger"]["answered"] == 40


def test_kill_leaves_nothing_behind(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)
        before = set(read("/proc/net/packet").splitlines())
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/1")
            assert set(read("/proc/net/packet").splitlines()) != before
            tap.end(signal.SIGKILL)
        eventually(lambda: set(read("/proc/net/packet").splitlines()) <= before)
        get(f"{nginx.url}/2")
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/3")
            time.sleep(0.2)
            assert balanced(tap.report())["ledger"]["answered"] == 1


def test_reload_by_a_changed_configuration(nginx, tmp_path):  # noqa: F811
    """As Kubernetes changes a ConfigMap: a symlink is swapped. No request is lost over it; a bad file is refused."""
    folders = []
    for n, text in enumerate(("percent: 100", "percent: 0", "percent: 101", "percent: 100\npath: /kept")):
        folders.append(tmp_path / f"v{n}")
        folders[-1].mkdir()
        (folders[-1] / "tap.yaml").write_text(text)
        folders[-1].chmod(0o755)
    tmp_path.chmod(0o755)
    link = tmp_path / "data"

    def swap(n):
        (tmp_path / "new").symlink_to(folders[n])
        os.rename(tmp_path / "new", link)

    swap(0)
    with ended(Sink()) as shadow:
        with ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "--config", link / "tap.yaml", "--user", "root")) as tap:
            for i in range(10):
                get(f"{nginx.url}/{i}")
            time.sleep(0.2)
            swap(1)
            tap.wait_for("reloaded")
            for i in range(10):
                get(f"{nginx.url}/{i}")
            swap(2)
            tap.wait_for("refused")
            for i in range(10):
                get(f"{nginx.url}/{i}")
            time.sleep(0.2)  # what is in the ring still goes by the rules of now
            swap(3)
            tap.process.send_signal(signal.SIGHUP)
            tap.wait_for("reloaded")
            get(f"{nginx.url}/kept")
            get(f"{nginx.url}/other")
            time.sleep(0.3)
            report = balanced(tap.report())
        assert report["ledger"]["found"] == 32 and report["ledger"]["sent"] == 11 == shadow.totals()["requests"]
        assert report["ledger"]["by_reason"]["sampled_out"] == {"share": 20}


def test_a_configuration_in_which_nothing_stands_yet_is_watched(nginx, tmp_path):  # noqa: F811
    config = tmp_path / "tap.yaml"
    config.write_text("# percent: 0\n")
    with ended(Tap("lo", "--port", nginx.port, "--dry-run", "--config", config, "-p", 100, "--user", "root")) as tap:
        config.write_text("path: /kept\n")
        tap.wait_for("reloaded")
        config.write_text("# path: /kept\n")
        tap.wait_for("reloaded")
        tap.process.send_signal(signal.SIGHUP)
        tap.wait_for("reloaded (SIGHUP)")
        balanced(tap.report())


def test_reload_moves_to_another_target(nginx, tmp_path):  # noqa: F811
    with ended(Sink()) as first, ended(Sink()) as second:
        config = tmp_path / "tap.yaml"
        config.write_text(f"to: http://{first.address}\npercent: 100\n")
        with ended(Tap("lo", "--port", nginx.port, "--config", config, "--user", "root")) as tap:
            sent = 0
            for _ in range(10):
                get(f"{nginx.url}/{sent}")
                sent += 1
            config.write_text(f"to: http://{second.address}\npercent: 100\n")
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:  # traffic goes on while it moves
                get(f"{nginx.url}/{sent}")
                sent += 1
            time.sleep(0.3)
            report = balanced(tap.report())
        assert report["ledger"]["sent"] == sent == report["ledger"]["answered"]
        assert first.totals()["requests"] + (moved := second.totals()["requests"]) == sent and moved > 0


def test_expires(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--expires", "2020-01-01T00:00:00Z")
        with ended(Tap(*words)) as tap:
            get(f"{nginx.url}/1")
            tap.wait_for("--expires has passed")
            time.sleep(0.2)
            assert tap.process.poll() is None
            assert balanced(tap.report())["ledger"]["found"] == 0


def test_duration(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        with ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--duration", "1s")) as tap:
            get(f"{nginx.url}/1")
            out, _ = tap.process.communicate(timeout=10)
            assert tap.process.returncode == 0 and json.loads(out)["ledger"]["answered"] == 1


def test_max_rate_lowers_the_share_that_is_taken(nginx):  # noqa: F811
    """In the metric that the alert ReplayShareLowered looks at; without the option it is what was asked for."""
    with ended(Sink()) as shadow:
        for words in (("--max-rate", "10/s"), ()):
            tapped = Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 50, "--metrics", "127.0.0.1:0", *words, ready=False)
            with ended(tapped) as tap:
                address = tap.wait_for("metrics at").split("/")[2]
                time.sleep(0.3)
                pressed(nginx, 400)
                time.sleep(1.5)
                text = get(f"http://{address}/metrics").decode()
                ledger = balanced(tap.report())["ledger"]
            over = ledger["by_reason"]["dropped"].get("max_rate", 0)
            passed = 1 - over / ledger["selected"]
            assert (passed < 0.6) if words else (passed == 1)
            assert float(re.search(r"^replay_effective_share_ratio (\S+)", text, re.M)[1]) == pytest.approx(0.5 * passed, abs=2e-6)
            assert "replay_share_ratio 0.5" in text


def test_limit(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        with ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--limit", 5)) as tap:
            for i in range(20):
                get(f"{nginx.url}/{i}")
            out, err = tap.process.communicate(timeout=10)
            assert tap.process.returncode == 0 and balanced(json.loads(out))["ledger"]["answered"] == 5 and "--limit is reached" in err, err
        assert shadow.totals()["requests"] == 5


def test_max_rate(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        with ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--max-rate", "10/s")) as tap:
            began = time.monotonic()
            for i in range(100):
                get(f"{nginx.url}/{i}")
            took = time.monotonic() - began
            time.sleep(0.3)
            report = balanced(tap.report())
    assert report["ledger"]["found"] == 100
    assert report["ledger"]["sent"] <= 10 * took + 5 and report["ledger"]["by_reason"]["dropped"] == {"max_rate": 100 - report["ledger"]["sent"]}


# ---- a shadow that fails -------------------------------------------------------------------------------------------------------------


def pressed(nginx, n, at_once=8):  # noqa: F811
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda i: get(f"{nginx.url}/{i}"), range(n)))


def test_a_dead_shadow_comes_back(nginx):  # noqa: F811
    """Nobody listens, then somebody does: the breaker opens and closes, everything is accounted for, nothing is restarted."""
    with socket.socket() as keep:
        keep.bind(("127.0.0.1", 0))
        port = keep.getsockname()[1]
    with ended(Tap("lo", "--port", nginx.port, "--to", f"http://127.0.0.1:{port}", "-p", 100)) as tap:
        pressed(nginx, 20)
        tap.wait_for("nothing is sent")
        pressed(nginx, 200)
        with ended(Sink(listen=f"127.0.0.1:{port}")) as shadow:

            def back():
                pressed(nginx, 3)
                return "answered 0" not in [tap.ask(), tap.wait_for("http://")][1]

            eventually(back, seconds=60, every=0.3)  # the breaker waits up to 30 s
            time.sleep(0.5)
            before = shadow.port and int(tap.process.poll() is None)
            pressed(nginx, 50)
            time.sleep(0.3)
            report = balanced(tap.report())
            assert before and report["ledger"]["answered"] == shadow.totals()["requests"] >= 50
    assert set(report["ledger"]["by_reason"]["dropped"]) <= {"breaker", "target_down", "queue_full", "expired"}


@pytest.mark.parametrize("how", ["reset", "close", "never", "stall", "slow"])
def test_a_shadow_that_misbehaves_is_let_alone(nginx, how):  # noqa: F811
    with ended(Sink("--misbehave", how)) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--timeout", "500ms", "--drain", "1s")
        with ended(Tap(*words)) as tap:
            for _ in range(6):
                pressed(nginx, 60)
                time.sleep(0.2)
            report = balanced(tap.report())
    assert report["ledger"]["found"] == 360
    assert report["ledger"]["by_reason"]["dropped"].get("breaker", 0) > 0


# ---- recording -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pcapng", "pcapng.zst"])
def test_todays_traffic_is_tomorrows_replay(nginx, tmp_path, suffix):  # noqa: F811
    """What was recorded gives, offline, the requests that were mirrored; the files are the owner's alone."""
    path = tmp_path / f"tap.{suffix}"
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 50, "--seed", 3, "--record", path, "--record-files", 1)
        with ended(Tap(*words)) as tap:
            pressed(nginx, 100)
            time.sleep(0.3)
            report = balanced(tap.report())
    assert path.stat().st_mode & 0o777 == 0o600
    offline = json.loads(subprocess.run([*COMMAND, "run", path, "-p", "50", "--seed", "3", "--json"], capture_output=True, check=True).stdout)
    names = ("found", "selected")
    assert [offline["ledger"][name] for name in names] == [report["ledger"][name] for name in names] and offline["ledger"]["found"] == 100
    assert offline["digest"] == report["digest"]


def test_recordings_take_turns(nginx, tmp_path):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 0, "--record", tmp_path / "tap.pcapng", "--record-files", 3)
        with ended(Tap(*words, "--record-every", "700ms")) as tap:
            for n in range(4):
                get(f"{nginx.url}/{n}")
                time.sleep(0.75)
            tap.report()
    names = sorted(path.name for path in tmp_path.glob("tap*"))
    assert names == ["tap-0.pcapng", "tap-1.pcapng", "tap-2.pcapng"]
    shown = subprocess.run([*COMMAND, "show", *map(str, tmp_path.glob("tap-*"))], capture_output=True, text=True, check=True)
    assert 2 <= len(shown.stdout.splitlines()) <= 4  # the oldest were written over


@pytest.mark.parametrize("suffix", ["pcapng", "pcapng.zst"])
def test_files_that_a_recording_did_not_get_to_are_captures_without_packets(nginx, tmp_path, suffix):  # noqa: F811
    """They stay where the tap became somebody who may not remove them; whoever replays them all is not told to record anything again."""
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--record", tmp_path / f"tap.{suffix}", "--record-files", 4)
        with ended(Tap(*words)) as tap:
            pressed(nginx, 20)
            time.sleep(0.3)
            tap.report()
    files = sorted(tmp_path.glob("tap-*"))
    assert len(files) == 4  # nobody may not remove them from root's folder
    done = subprocess.run([*COMMAND, "run", "--json", *map(str, files)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["ledger"]["found"] == 20 and said["faults"] == [] and "warning" not in done.stderr
    again = Recording(str(tmp_path / f"tap.{suffix}"), [], size=1 << 20, every_ns=0, files=4)
    assert files[again._at].stat().st_size < 600  # one that has nothing in it is taken first
    again.close()
    assert sorted(tmp_path.glob("tap-*")) == files


class Handed:
    """A recorder that has these packets, one a buffer."""

    def __init__(self):
        self.waiting, self.added, self.off, self.got_packets, self.got_bytes = [], 0, False, 0, 0

    def add(self, packet):
        self.waiting.append(struct.pack("=IIIIIII", 6, 32 + len(packet), 0, 0, 0, len(packet), len(packet)) + packet + struct.pack("=I", 32 + len(packet)))
        self.added += 1

    def get(self):
        if not self.waiting:
            return None
        data = self.waiting.pop(0)
        self.got_packets, self.got_bytes = 1, len(data) - 32
        return data

    def give_up(self):
        self.off = True

    def counters(self):
        return {"packets": self.added, "left_out": 0, "ended": self.off}


@pytest.mark.parametrize("suffix", ["pcapng", "pcapng.zst"])
def test_quiet_time_leaves_a_recording_as_it_is(tmp_path, suffix):
    """A file without a packet is not turned over, neither by time nor by SIGHUP: the next one holds what was captured before."""
    recorder = Handed()
    recording = Recording(str(tmp_path / f"tap.{suffix}"), [recorder], size=1 << 20, every_ns=60_000_000, files=3)
    recording.start()
    recorder.add(bytes(100))
    eventually(lambda: recording._at == 1)
    for _ in range(8):
        recording.rotate()
        time.sleep(0.06)
    recorder.add(bytes(40))
    eventually(lambda: recording._at == 2)
    time.sleep(0.3)
    recording.end()
    assert recording.counters() == {"packets": 2, "bytes": 140, "left_out": 0}
    shown = [json.loads(subprocess.run([*COMMAND, "run", "--json", tmp_path / f"tap-{n}.{suffix}"], capture_output=True).stdout) for n in (0, 1)]
    assert [one["packets"]["read"] for one in shown] == [1, 1]


@pytest.mark.parametrize("suffix", ["pcapng", "pcapng.zst"])
def test_what_a_full_disk_did_not_take_is_left_out(tmp_path, monkeypatch, suffix):
    """Recorded is what is whole in the file, in the middle of a buffer too."""
    recorder, room = Handed(), 2000

    def write(handle, data, real=os.write):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        took = real(handle, bytes(data)[:room])
        room -= took
        return took

    recording = Recording(str(tmp_path / f"tap.{suffix}"), [recorder], size=1 << 20, every_ns=0, files=1)
    for _ in range(100):
        recorder.add(random.randbytes(100))
    monkeypatch.setattr(os, "write", write)
    recording.start()
    eventually(lambda: recorder.off)
    eventually(lambda: recording.counters()["left_out"])
    recorder.add(bytes(100))
    recording.end()
    monkeypatch.undo()
    counted = recording.counters()
    in_file = json.loads(subprocess.run([*COMMAND, "run", "--json", tmp_path / f"tap.{suffix}"], capture_output=True).stdout)["packets"]["read"]
    assert counted["packets"] + counted["left_out"] == 101 and counted["bytes"] == 100 * counted["packets"]
    assert counted["packets"] == in_file > 0 if suffix == "pcapng" else counted["packets"] <= in_file


def test_files_that_a_recording_did_not_get_to_are_removed(tmp_path):
    (tmp_path / "tap-3.pcapng").write_bytes(b"of yesterday")
    (tmp_path / "tap-4.pcapng").write_bytes(b"")
    recording = Recording(str(tmp_path / "tap.pcapng"), [], size=1 << 20, every_ns=0, files=8)
    assert len(list(tmp_path.iterdir())) == 8
    recording.start()
    recording.end()
    left = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(left) == {"tap-0.pcapng", "tap-3.pcapng", "tap-4.pcapng"} and left["tap-0.pcapng"] > 0 and left["tap-3.pcapng"] == 12


def test_a_tap_that_saw_nothing_asks_whether_there_was_traffic():
    with socket.socket() as nobody:  # a port at which nobody listens
        nobody.bind(("127.0.0.1", 0))
        free_port = str(nobody.getsockname()[1])
    done = subprocess.run([*COMMAND, "tap", "lo", "--port", free_port, "-p", "1", "--dry-run", "--duration", "300ms"], capture_output=True, text=True)
    assert done.returncode == 0 and "no connection was seen on lo: was there traffic while it listened?" in done.stdout


def said_by(*words):
    done = subprocess.run([*COMMAND, "tap", *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_tap_that_could_see_nothing_says_why_and_not_that_there_was_no_traffic():
    code, out, error = said_by("nosuch*", "-p", "1", "--dry-run", "--duration", "300ms")
    assert code == 0 and "no interface yet (nosuch* names none that is here)" in error and "note: nosuch* is no interface here" in out
    assert "traffic" not in out
    code, out, error = said_by("lo", "-p", "1", "--dry-run", "--duration", "300ms", "--expires", "2020-01-01T00:00:00Z")
    assert code == 0 and "note: --expires had passed (2020-01-01T00:00:00.000Z)" in out and "traffic" not in out


@pytest.mark.parametrize("option, said", [("--fail-if", "does not judge"), ("--pace", "--max-rate"), ("--html", "replay report")])
def test_options_of_a_run_say_what_a_tap_has_instead(option, said):
    code, _, error = said_by("lo", "-p", "1", option, "x")
    assert code == 2 and f"{option} belongs to `replay run`" in error and said in error


def test_what_sigusr1_tells_is_json_where_the_log_is():
    words = ("lo", "--port", 9, "-p", 100, "--dry-run", "--log-format", "json")
    with ended(Tap(*words)) as tap:
        rows = [json.loads(line) for line in tap.ask().splitlines() if line]
        assert {"part": "ledger", "level": "info"}.items() <= rows[-1].items() and rows[-1]["message"].startswith("found ")


REFUSED = [  # words, exit code, what is said
    (("lo", "--port", "9", "-p", "1", "--nonsense"), 2, "No such option"),
    (("lo", "--port", "9", "-p", "1", "--pace", "x"), 2, "belongs to `replay run`"),
    (("lo", "--port", "9", "-p", "101"), 2, "percent"),
    (("lo", "--port", "9", "--to", "http://127.0.0.1:1"), 2, "has no default share"),
    (("lo", "--port", "9", "-p", "1", "--to", "http://127.0.0.1:9"), 3, "--allow-production"),
    (("norsuch9", "--port", "9", "-p", "1", "--to", "http://127.0.0.1:1"), 4, "norsuch9"),
    (("lo", "--port", "9", "-p", "1", "--to", "http://norsuch.invalid:1"), 5, "norsuch.invalid"),
]


@pytest.mark.parametrize("words, wanted, text", REFUSED, ids=[f"{code} {text}" for _, code, text in REFUSED])
def test_refusals_are_json_where_the_log_is(words, wanted, text):
    for form in (("--log-format", "json"), ("--log-format=json",)):
        code, out, error = said_by(*words, *form)
        rows = [json.loads(line) for line in error.splitlines()]
        assert code == wanted and text in rows[-1]["message"] and rows[-1]["level"] == "error" and not out
    code, _, error = said_by(*words)
    assert code == wanted and text in error and not error.startswith("{")


def test_what_is_told_before_the_log_begins_is_json_where_it_is(tmp_path):
    """The options of -v and the warnings of a policy, whether it starts or is refused; the format may come from the configuration."""
    policy, config = tmp_path / "policy.yaml", tmp_path / "tap.yaml"
    policy.write_text("routes:\n- mirror: [{to: 'http://127.0.0.1:1', percent: 0}]\n")
    config.write_text("log-format: json\n")
    words = ("lo", "--policy", str(policy), "--mesh", "envoy", "--config", str(config), "-v", "--duration", "300ms")
    for more, code in ((("--port", "9"), 0), (("--port", "1"), 3)):
        found, _, error = said_by(*words, *more)
        rows = [json.loads(line) for line in error.splitlines()]
        assert found == code and sum("--mesh envoy has no effect" in row["message"] and row["level"] == "warning" for row in rows) == 1
        assert any(row["part"] == "options" and row["message"].split()[:2] == ["duration", "300"] for row in rows)
        assert (rows[-1]["level"] == "error") == (code == 3)
    config.write_text("no-such-key: 1\n")
    code, _, error = said_by(*words, "--log-format", "json")
    assert code == 2 and "no-such-key" in json.loads(error)["message"]


def test_only_the_ring_hears_all_protocols(nginx):  # noqa: F811
    """What looked for the check of the target costs production nothing afterwards: no second socket is handed each packet."""
    with ended(Sink()) as shadow, ended(Tap("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100)) as tap:
        folder = f"/proc/{tap.process.pid}/fd"
        mine = {os.readlink(f"{folder}/{fd}").removeprefix("socket:[").removesuffix("]") for fd in os.listdir(folder)}
        with open(f"/proc/{tap.process.pid}/net/packet") as table:
            protocols = sorted(row.split()[3] for row in list(table)[1:] if row.split()[8] in mine)
        assert protocols == ["0003", "ffff"]


DOWN_BETWEEN = """
import socket, subprocess
from replay.capture import afpacket

def set(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

set("up")
snoop = afpacket.Snoop()
for state in ("down", "up"):
    with snoop.listening([(0x06, 0, 0, 65536)], 1):
        set(state)
with snoop.listening([(0x06, 0, 0, 65536)], 1), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.sendto(b"seen", ("127.0.0.1", 9))
    assert any(packet.endswith(b"seen") for packet in snoop.packets(2))
"""


@needs_root
@needs("ip", "unshare")
def test_the_check_of_the_target_sees_after_its_interface_was_down():
    subprocess.run(["unshare", "-n", sys.executable, "-c", DOWN_BETWEEN], check=True)


def test_a_full_disk_ends_the_recording_only(nginx):  # noqa: F811
    with ended(Sink()) as shadow:
        words = ("lo", "--port", nginx.port, "--to", f"http://{shadow.address}", "-p", 100, "--record", "/dev/full", "--record-files", 1)
        done = Tap(*words, ready=False)
        with ended(done) as tap:
            tap.wait_for("the recording ends")
            time.sleep(0.5)  # the ring is asked for its first block
            pressed(nginx, 30)
            time.sleep(0.3)
            report = balanced(tap.report())
    assert report["ledger"]["answered"] == 30
    assert any(re.fullmatch(r"[\d,]+ packets are not in --record: the disk was full or slow", note) for note in report["notes"])
