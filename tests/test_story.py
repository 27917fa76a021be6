"""The story for which people mirror traffic, run for real: v1 is recorded, v2 is judged, and one command names what is wrong with it."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import endtoend
import pytest
import story

from replay.histogram import Histogram
from replay.units import show_duration


@contextlib.contextmanager
def shop(version):
    """The port of a shop of this version, a process of its own."""
    process = subprocess.Popen([sys.executable, story.__file__, "0", version], stdout=subprocess.PIPE)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def visit(port, seed, count):
    """A client that does what people do, on one connection."""
    rng = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.connect()
    connection.sock.setsockopt(6, 1, 1)
    for _ in range(count):
        kind, n = rng.choice(("account", "search", "order", "buy", "static", "missing")), rng.randrange(1, 1000)
        method, target, body, headers = {
            "account": ("GET", f"/account/{n}", None, {"Authorization": story.OLD}),
            "search": ("GET", f"/search?q=shoes+{n}", None, {}),
            "order": ("GET", f"/orders/{n}", None, {}),
            "buy": ("POST", "/orders", json.dumps({"item": n}), {"Content-Type": "application/json"}),
            "static": ("GET", f"/static/app-{n}.js", None, {}),
            "missing": ("GET", "/missing", None, {}),
        }[kind]
        connection.request(method, target, body, headers)
        connection.getresponse().read()
    connection.close()


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Real traffic of v1, recorded by tcpdump."""
    if os.geteuid() != 0 or not shutil.which("tcpdump"):
        pytest.skip("recording needs tcpdump, and root")
    folder = tmp_path_factory.mktemp("story")
    with shop("v1") as port, open(folder / "tcpdump.err", "wb") as errors:
        recorder = subprocess.Popen(
            ["tcpdump", "-i", "lo", "-s", "0", "-B", "32768", "--immediate-mode", "-U", "-w", folder / "v1.pcap", f"tcp port {port}"], stderr=errors
        )
        try:
            endtoend.wait_until(lambda: b"listening on" in (folder / "tcpdump.err").read_bytes(), "tcpdump")
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda seed: visit(port, seed, 60), range(8)))
            endtoend.wait_until(lambda: len(endtoend.show(folder / "v1.pcap")) == 480, "all of the traffic")
        finally:
            recorder.send_signal(signal.SIGINT)
            recorder.wait(endtoend.PATIENCE_S)
    return folder / "v1.pcap"


GATES = ("--fail-if", "status_change > 0.5%", "--fail-if", "endpoints.*.slower > 20%")


@pytest.fixture(scope="module")
def judged(capture):
    """One command against v2: (what it said, its report, its page)."""
    folder = capture.parent
    with shop("v2") as port:
        done = endtoend.command(
            "run", capture, "--to", f"http://127.0.0.1:{port}", "--pace", "4x", "--report", folder / "v2.json", "--html", folder / "v2.html", *GATES, code=1
        )
    return done.stdout.decode(), endtoend.balanced(json.loads((folder / "v2.json").read_text())), folder / "v2.html"


def test_the_first_byte_stands_beside_production(judged):
    """What is compared is of one kind: `latency` is the whole reply from due time, production is known to its first byte."""
    said, report, page = judged
    lines = {line[:16].strip(): line for line in said.splitlines()}
    order = [line[:16].strip() for line in said.splitlines()]
    assert order.index("latency") + 1 == order.index("first byte") == order.index("in production") - 1
    for label, name in (("latency", "latency_us"), ("first byte", "response_us"), ("in production", "production_us")):
        assert f"p99 {show_duration(report[name]['p99'] * 1000)}," in lines[label]
    assert "whole reply" in lines["latency"] and "first byte" in lines["in production"] and len(said.splitlines()) <= 25
    text = page.read_text()
    for label, name in (("p99 whole reply, from due time", "latency_us"), ("p99 first byte", "response_us"), ("p99 first byte in production", "production_us")):
        assert f"<span>{label}</span><b>{show_duration(report[name]['p99'] * 1000)}</b>" in text


def test_one_command_names_all_three(judged):
    said, report, _ = judged
    assert "401 and 403 are" in said and "see -H and --auth-file" in said
    assert re.search(r"hint: GET /orders/\{n\}: \d+(\.\d)? % of the answers have another status \(200>500", said)
    assert re.search(r"hint: GET /search: .* of the replies begin more than twice as late as in production", said)
    assert "gate failed: status_change > 0.5%" in said and "gate failed: endpoints.*.slower > 20%" in said
    assert {row["endpoint"] for row in report["endpoints"][:3]} == {"GET /account/{n}", "GET /search", "GET /orders/{n}"}
    assert len(said.splitlines()) <= 25


def test_the_numbers_are_those_of_the_services(judged):
    _, report, _ = judged
    assert report["ledger"]["answered"] == report["ledger"]["found"] == 480
    rows = {row["endpoint"]: row for row in report["endpoints"]}
    assert set(rows) == {"GET /account/{n}", "GET /search", "GET /orders/{n}", "POST /orders", "GET /static/app-{n}.js", "GET /missing"}
    assert rows["GET /account/{n}"]["status_change"] == {"200>401": rows["GET /account/{n}"]["requests"]}
    assert set(rows["GET /orders/{n}"]["status_change"]) == {"200>500"} and rows["GET /orders/{n}"]["captured"] == {"2xx": rows["GET /orders/{n}"]["requests"]}
    assert rows["GET /search"]["response_us"]["p50"] >= 39_000 and rows["GET /search"]["production_us"]["p50"] < 30_000
    for name in ("POST /orders", "GET /static/app-{n}.js", "GET /missing"):
        assert rows[name]["changed"] == 0
    assert report["status_captured"]["404"] == rows["GET /missing"]["requests"]


def test_v1_against_itself_passes(capture):
    with shop("v1") as port:
        endtoend.command("run", capture, "--to", f"http://127.0.0.1:{port}", "--pace", "4x", "--fail-if", "status_change > 0.5%", code=0)


def test_a_new_token_mends_what_the_hint_says(capture):
    with shop("v2") as port:
        report = endtoend.run(capture, "--to", f"http://127.0.0.1:{port}", "--pace", "max", "--path", "^/account", "-H", f"Authorization: {story.NEW}")
    assert report["status_change"] == {} and set(report["status"]) == {"200"}


# ---- the page ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("needs chromium")
    return found


def browsed(chromium, page, *options):
    """The finished process of a browser without a window and without a network."""
    return subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * 0.0.0.0", "--no-first-run",
         f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", *options, page.as_uri()],
        capture_output=True, timeout=90, cwd=page.parent,
    )  # fmt: skip


def test_the_page_shows_them_in_a_browser(judged, chromium):
    """The page as a browser sees it: nothing is loaded, nothing fails, all three are there, and the plots are drawn."""
    _, report, page = judged
    text = page.read_text()
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|<script", text), "the page needs something else"
    done = browsed(chromium, page, "--dump-dom")
    dom = done.stdout.decode()
    assert not re.search(rb"CONSOLE.*(error|refused)", done.stderr, re.I), done.stderr.decode()
    for row in report["endpoints"]:
        assert f">{row['endpoint']}<" in dom.replace("&gt;", ">")
    for text in ("401 and 403 are", "GET /search: ", "200&gt;500", "failed", report["digest"]):
        assert text in dom
    assert dom.count("<svg") == 7 and dom.count("<path") > 12


def test_the_page_is_drawn_light_dark_and_on_paper(judged, chromium):
    _, _, page = judged
    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        shot = page.with_name(f"{name}.png")
        browsed(chromium, page, f"--screenshot={shot}", "--window-size=1200,2600", "--hide-scrollbars", *options)
        assert shot.read_bytes().startswith(b"\x89PNG") and shot.stat().st_size > 40_000
    paper = page.with_suffix(".pdf")
    browsed(chromium, page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000


def test_a_page_of_hostile_names_holds_no_markup(tmp_path):
    targets = [b"/<script>alert(1)</script>", b"/\"'><img/src=x>", b"/a&b", b"/\xff\xfe"]
    capture = endtoend.write(tmp_path / "<b>.pcap", endtoend.conversation([endtoend.request(target) for target in targets * 5]))
    with endtoend.Sink(tmp_path / "log") as sink:
        endtoend.run(capture, "--pace", "max", "--to", sink.url, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "<img" not in text and "<b>.pcap" not in text and "&lt;script&gt;" in text


# ---- reports -----------------------------------------------------------------------------------------------------------------


def test_two_reports_are_one(judged, tmp_path):
    _, report, page = judged
    one = page.with_name("v2.json")
    whole = json.loads(endtoend.command("report", "--json", one, one).stdout)
    endtoend.balanced(whole)
    assert whole["ledger"]["answered"] == 960 and whole["status_change"] == {key: 2 * n for key, n in report["status_change"].items()}
    for key in ("latency_us", "production_us", "response_us"):
        assert Histogram.decode(whole[key]["hdr"]).total == 960
        assert {q: whole[key][q] for q in ("p50", "p99", "max")} == {q: report[key][q] for q in ("p50", "p99", "max")}
    assert [row["endpoint"] for row in whole["endpoints"][:2]] == [row["endpoint"] for row in report["endpoints"][:2]]
    assert sum(whole["timeline"]["columns"]["sent"]) == 960
    endtoend.command("report", one, one, "--fail-if", "status_change > 0.5%", code=1)
    endtoend.command("report", one, "--html", tmp_path / "a.html", "--report", tmp_path / "sum.json", code=1)  # its gates failed
    assert json.loads((tmp_path / "sum.json").read_text())["ledger"] == report["ledger"]


def test_reports_side_by_side(judged, capture, tmp_path):
    _, _, page = judged
    with shop("v1") as port:
        endtoend.command("run", capture, "--to", f"http://127.0.0.1:{port}", "--pace", "4x", "--report", tmp_path / "v1.json")
    said = endtoend.command("report", "--compare", tmp_path / "v1.json", page.with_name("v2.json"), "--html", tmp_path / "both.html").stdout.decode()
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert re.search(r"digest +(\w+) +\1$", lines["digest"])
    assert "100 % changed" in lines["GET /account/{n}"] and "0 % changed" in lines["GET /account/{n}"]
    assert "(+" in lines["first byte p99"]
    assert "note: " not in said or "digests" not in said
    html = (tmp_path / "both.html").read_text()
    assert "GET /account/{n}" in html and html.count("<svg") >= 3


@pytest.mark.parametrize("content, word", [("{}", "no report"), ("[", "no JSON"), ('{"schema": 9, "ledger": {}, "latency_us": {}}', "schema 9")])
def test_what_is_no_report_is_an_error(content, word, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert word in endtoend.command("report", tmp_path / "a.json", code=2).stderr.decode()
