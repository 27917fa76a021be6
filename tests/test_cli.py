"""The command line as a person meets it: help, errors that say what to do, exit codes, JSON, configuration. Sending is in test_replay_*."""

import importlib
import itertools
import json
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys

import endtoend
import pytest

from replay.errors import UsageError

DEMO = pathlib.Path(__file__).resolve().parents[1] / "replay" / "data" / "demo.pcap"
LEDGER = ("found", "filtered", "sampled_out", "withheld", "selected", "fanout", "sent", "dropped", "answered", "unanswered")


def replay(*words, stdin=None, timeout=60, **env):
    done = subprocess.run(
        [sys.executable, "-m", "replay", *map(str, words)], input=stdin, capture_output=True, timeout=timeout, env=os.environ | {"COLUMNS": "120"} | env
    )
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def adds_up(report):
    n = report["ledger"]
    assert n["found"] == n["filtered"] + n["sampled_out"] + n["withheld"] + n["selected"]
    assert n["selected"] + n["fanout"] == n["sent"] + n["dropped"]
    assert n["sent"] == n["answered"] + n["unanswered"]
    for name, reasons in n["by_reason"].items():
        assert n[name] == sum(reasons.values()), name
    return n


# ---- errors of usage ----


@pytest.mark.parametrize("typed, meant", [("--precent", "--percent"), ("--percnt", "--percent"), ("--tiemout", "--timeout"), ("--sed", "--seed"), ("--shard-of", "--shard")])
def test_an_option_with_a_typo_is_answered_with_the_nearest_one(typed, meant):
    code, _, said = replay("run", typed, "5", DEMO)
    assert code == 2 and re.search(rf"[Dd]id you mean '?{meant}'?\?$", said.strip()), said  # with or without quotes, by the version of click


@pytest.mark.parametrize(
    "words, said",
    [
        (["shwo", DEMO], "did you mean 'show'"),
        ([DEMO], "replay run"),
        (["run"], "CAPTURE"),
        (["run", "--precent", "5", DEMO], "--percent"),
        (["run", "--seed", str(1 << 64), DEMO], "has more than 64 bits"),
        (["run", "-p", "101", DEMO], "more than 100 %"),
        (["run", "-p", "0.00001", DEMO], "finer than a millionth"),
        (["run", "-p", "five", DEMO], "no percentage"),
        (["run", "--pace", "fast", DEMO], "500/s"),
        (["run", "--pace", "0x", DEMO], "no pace"),
        (["run", "--sample-by", "conection", DEMO], "did you mean 'connection'"),
        (["run", "--sample-by", "header", DEMO], "header:NAME"),
        (["run", "--methods", "GE T(", DEMO], "no method"),
        (["run", "--path", "(", DEMO], "--path"),
        (["run", "--client", "10.0.0.0/99", DEMO], "no network"),
        (["run", "--port", "70000", DEMO], "out of range"),
        (["run", "--since", "yesterday", DEMO], "2026-08-01"),
        (["run", "--since", "200", "--until", "100", DEMO], "--since"),
        (["run", "--bpf", "port and", DEMO], "--bpf"),
        (["run", "-H", "no colon", DEMO], "colon"),
        (["run", "-H", "Host: x", DEMO], "--set-host"),
        (["run", "-H", "@/nowhere/at/all", DEMO], "No such file"),
        (["run", "--remove-header", "content-length", DEMO], "content-length"),
        (["run", "--remove-header", "Cookie:", DEMO], "'Cookie:' is no name of a header (RFC 9110 5.1); write Cookie"),
        (["run", "--remove-header", "Cookie: a=b", DEMO], "write Cookie"),
        (["show", "--remove-header", "", DEMO], "'' is no name of a header"),
        (["run", "--remove-header", "x y", DEMO], "'x y' is no name of a header"),
        (["run", "--set-host", "a b", DEMO], "no host"),
        (["run", "--shadow-suffix", "a b", DEMO], "off"),
        (["run", "--trace", "maybe", DEMO], "unsample"),
        (["run", "--timeout", "soon", DEMO], "no duration"),
        (["run", "--max-body", "much", DEMO], "no size"),
        (["run", "--connections", "0", DEMO], "out of range"),
        (["run", "--pipeline", "65", DEMO], "out of range"),
        (["run", "--limit", "0", DEMO], "at least 1"),
        (["run", "--to", "https://shadow/path", DEMO], "write https://shadow"),
        (["run", "--to", "ftp://shadow", DEMO], "http://host:port"),
        (["run", "--to", "http://shadow/path", DEMO], "no path"),
        (["run", "--to", "http://user:secret@shadow", DEMO], "Authorization"),
        (["run", "--to", "http://:80", DEMO], "no host"),
        (["run", "--to", "http://shadow:99999", DEMO], "http://host:port"),
        (["run", "--loop", "2", "-"], "--loop"),
        (["run", "--report", "/nowhere/at/all.json", DEMO], "no folder"),
        (["run", "--access-log", "/nowhere/at/all.log", DEMO], "No such file"),
        (["run", "--report", "-", DEMO], "--report -: would be a file of that name; --json prints the report on standard output"),
        (["run", "--html", "-", DEMO], "--html -: would be a file"),
        (["report", "--report", "-", DEMO], "--report -"),
        (["sink", "--body", "much"], "no size"),
        (["sink", "--body", "65MiB"], "out of range"),
        (["show", "--jsn", DEMO], "--json"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40].replace(str(DEMO), "") if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_says_what_to_write(words, said):
    code, out, error = replay(*words, stdin=b"")
    assert code == 2, error
    assert said in error
    assert "secret" not in error
    assert out == ""


def test_a_pipe_cannot_be_gone_through_twice(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/stdin", "/dev/fd/0", "-"):
        code, out, error = replay("run", path, "--loop", "2", "--limit", "300", "--pace", "max", stdin=DEMO.read_bytes())
        assert (code, out) == (2, "") and "--loop needs captures that can be read again" in error, (path, error)
    with DEMO.open("rb") as file:  # what is no pipe begins anew
        done = subprocess.run([sys.executable, "-m", "replay", "run", "/dev/stdin", "--loop", "2", "--json"], stdin=file, capture_output=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["passes"] == 2


def test_an_unknown_name_of_a_target_ends_with_5():
    code, _, error = replay("run", "--to", "http://no-such-host.invalid", DEMO)
    assert code == 5 and "no-such-host.invalid" in error


@pytest.mark.parametrize("verb", [[], ["run"], ["show"], ["sink"], ["demo"]], ids=str)
def test_help_is_there(verb):
    code, out, error = replay(*verb, "--help")
    assert code == 0 and "Usage: replay" in out and not error
    assert max(map(len, out.splitlines())) <= 120


def test_both_names_of_the_command(tmp_path):
    code, out, _ = replay("--version")
    assert code == 0 and out.startswith("replay 0.")


# ---- captures ----


@pytest.mark.parametrize("verb", ["show", "run"])
@pytest.mark.parametrize(
    "name, content, said",
    [
        ("missing.pcap", None, "no such file"),
        ("empty.pcap", b"", "is empty"),
        ("text.pcap", b"hello, this is text\n", "expected pcap or pcapng"),
        ("notes.gz", b"\x1f\x8b\x08\0 nothing", "compress"),
        ("cut.pcap", DEMO.read_bytes()[:10], "header"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_bad_capture_ends_with_4_and_says_what_was_found(verb, name, content, said, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, _, error = replay(verb, path)
    assert code == 4
    assert str(path) in error and said in error


def test_nothing_is_planned_where_nothing_could_be_read(tmp_path):
    code, _, error = replay("run", "--to", "http://127.0.0.1:9", tmp_path / "missing.pcap")
    assert code == 4 and "no such file" in error and "planned:" not in error


PLANNED = [  # one pass: 225 requests in 9.36 s, 11 of them writes
    ({}, "225 requests, 11 of them writes, 9.36 s"),
    ({"loop": 3}, "675 requests, 33 of them writes, 28.1 s"),
    ({"loop": 3, "limit": 10}, "10 requests, 1 of them writes, 807 ms"),
    ({"loop": 3, "limit": 450}, "450 requests, 22 of them writes, 18.7 s"),
    ({"loop": 3, "limit": 300}, "300 requests, about 14 of them writes, about 12.5 s"),
    ({"loop": 3, "limit": 300, "pace": "100/s"}, "300 requests, about 14 of them writes, 3 s"),
    ({"limit": 1000}, "225 requests, 11 of them writes, 9.36 s"),
    ({"duration": "2s"}, "225 requests, 11 of them writes, 2 s (--duration; 9.36 s without)"),
    ({"duration": "2s", "pace": "max"}, "225 requests, 11 of them writes, as fast as answers come, 2 s at most (--duration)"),
]


@pytest.mark.parametrize("options, said", PLANNED, ids=[" ".join(f"{name} {value}" for name, value in options.items()) or "one pass" for options, _ in PLANNED])
def test_what_is_planned(options, said):
    from replay import api, engine
    from replay.cli import planned

    settings, _, _ = api._settings((str(DEMO),), "http://127.0.0.1:9", dict(options))
    plan = engine.plan([str(DEMO)], settings.selection, [], engine._fastpath.Stop())
    assert planned.introduction(settings, plan)[1] == f"planned: {said}"


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "9.36 s"), (("--duration", "2s"), "2 s (--duration; 9.36 s without)"), (("--duration", "20s"), "9.36 s"), (("--pace", "max"), "as long as it takes (pace max)"),
        (("--pace", "max", "--duration", "2s"), "at most 2 s (--duration)"), (("--loop", "3", "--limit", "450", "--pace", "50/s", "--duration", "2s"), "2 s (--duration; 9 s without)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_how_long_a_run_would_take(words, said):
    code, out, _ = replay("run", DEMO, *words)
    assert code == 0 and re.search(r"^would take +(.*)$", out, re.MULTILINE)[1] == said


@pytest.mark.parametrize("verb", ["show", "run", "inspect"])
def test_an_empty_file_beside_others_is_a_warning(verb, tmp_path):
    """A ring of files that a recorder did not come round leaves such ones."""
    (tmp_path / "rec-0.pcap").write_bytes(DEMO.read_bytes())
    (tmp_path / "rec-1.pcap").write_bytes(b"")
    code, out, error = replay(verb, tmp_path / "rec-*.pcap")
    assert code == 0 and "226" in out + error
    assert f"warning: {tmp_path / 'rec-1.pcap'}, offset 0: is empty" in error
    (tmp_path / "rec-0.pcap").write_bytes(b"")
    code, _, error = replay(verb, tmp_path)
    assert code == 4 and "warning" not in error and error.count("is empty") == 2


def test_what_a_file_may_be_is_told_whole(tmp_path):
    (tmp_path / "notes.txt").write_text("neither")
    assert "expected pcap or pcapng, plain or compressed with gzip or zstd, Envoy tap files, or .gor; found" in replay("show", tmp_path / "notes.txt")[2]


def test_when_replies_are_asked_for():
    for wrong, said in (("auto:0s", "'auto:0s': the time must be longer than 0"), ("auto:soon", "soon"), ("head", "did you mean 'heads'?"), ("none:1s", "none of auto, heads, whole, none")):
        code, _, error = replay("tap", "lo", "-p", "1", "--dry-run", "--replies", wrong)
        assert code == 2 and said in error and "--replies" in error, error


def test_the_options_of_a_tap_are_told_as_people_write_them():
    code, _, error = replay("tap", "-v", "lo", "--since", "2026-08-01T10:00:00Z")  # no share: it does not begin
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in error.splitlines() if line.startswith("  ")}
    assert code == 2 and "no default share" in error
    assert told["percent"] == "- (default)"
    assert (told["ring"], told["record-size"], told["block-timeout"], told["max-age"]) == (
        "64 MiB (default)", "256 MiB (default)", "5 ms (default)", "10 s (default)",
    )  # fmt: skip
    assert "capture time" not in replay("tap", "--help")[1]


def test_the_demo_names_a_command_that_is_there(monkeypatch, tmp_path):
    """As after `make demo`, where nobody has put .venv/bin on the path."""
    from replay.cli.demo import _command

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "replay").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert _command() == "bin/replay"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert _command() == "replay"


@pytest.mark.parametrize(("names", "said"), [(["lo"], "1 interface"), (["a", "b"], "2 interfaces"), ([], "0 interfaces")])
def test_the_live_ledger_counts_interfaces(names, said):
    from replay.cli.tapped import live_lines

    tap = {"kernel_packets": 1, "kernel_drops": 0, "cut_frames": 0, "interfaces": dict.fromkeys(names), "breakers": [], "effective_ppm": 1, "share_ppm": 1}
    ingest = {"connections": 1, "found": 0, "filtered": {}, "withheld": {}, "sampled_out": {}, "selected": 0, "incomplete": {}}
    lines = live_lines({"state": "capturing", "elapsed_s": 1.0, "tap": tap, "ingest": ingest, "targets": [], "senders": []})
    assert lines[0].endswith(f", {said}")


def test_a_target_that_is_not_there_yet_is_told_of_at_once():
    with socket.socket() as taken:  # bound, and not listening: refused
        taken.bind(("127.0.0.1", 0))
        words = ("run", "--to", f"http://127.0.0.1:{taken.getsockname()[1]}", "--pace", "max", "--duration", "1s", DEMO)
        _, _, error = replay(*words)
        quiet = replay(*words, "-q")[2]
    assert error.count("is not reachable yet (Connection refused), trying for up to 10 s") == 1
    assert "yet" not in quiet


@pytest.mark.parametrize("verb", ["show", "run"])
def test_of_several_captures_a_bad_one_does_not_stop_the_others(verb, tmp_path):
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(b"no")
    code, out, error = replay(verb, "--json", bad, DEMO)
    assert code == 4 and str(bad) in error
    found = len(out.splitlines()) if verb == "show" else json.loads(out)["ledger"]["found"]
    assert found == 226


def test_a_folder_without_a_capture(tmp_path):
    (tmp_path / "README").write_text("nothing")
    code, _, error = replay("run", tmp_path)
    assert code == 4 and "no capture" in error


def test_a_capture_without_http_is_readable_but_nothing_to_run():
    tls = DEMO.parents[2] / "captures" / "tls" / "capture.pcap"
    assert replay("show", tls)[0] == 0
    code, out, _ = replay("run", tls)
    assert code == 4 and "TLS" in out


def test_a_cut_capture_is_read_to_the_cut(tmp_path):
    path = tmp_path / "cut.pcap"
    path.write_bytes(DEMO.read_bytes()[:-7])
    code, out, error = replay("show", "--json", path)
    assert code == 0 and "ends inside a packet" in error
    assert 220 <= len(out.splitlines()) <= 226


def test_standard_input():
    code, out, _ = replay("show", "--json", "-", stdin=DEMO.read_bytes())
    assert code == 0 and out == replay("show", "--json", DEMO)[1]


# ---- show ----

KEYS = [
    "n", "ts_ns", "client", "server", "flow", "index", "method", "target", "version", "host", "shadow_host", "headers", "body_len", "body_sha256", "framing", "withheld", "status", "response_us",
]  # fmt: skip


def test_show_prints_an_object_a_request():
    code, out, error = replay("show", "--json", DEMO)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 226 and "found 226" in error
    assert all(list(row) == KEYS for row in rows)
    assert [row["n"] for row in rows] == list(range(226))
    assert [row["ts_ns"] for row in rows] == sorted(row["ts_ns"] for row in rows)
    assert {row["shadow_host"] for row in rows if not row["withheld"]} == {"customer-shadow:8080", "preference-shadow:8080", "recommendation-shadow:8080"}
    assert all(["Host", row["host"]] in row["headers"] or ["host", row["host"]] in row["headers"] for row in rows)
    assert replay("show", "--json", "-q", DEMO)[2] == ""


def test_show_for_people_is_a_line_a_request():
    code, out, _ = replay("show", DEMO)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 226
    assert sum("POST" in line for line in lines) > 3
    assert sum("[withheld: upgrade]" in line for line in lines) == 1


def test_what_has_no_request_line_is_counted(tmp_path):
    talk = endtoend.conversation([endtoend.request(b"/1"), b"\x01\x02 this is no request\r\n\r\n"], 0)
    capture = endtoend.write(tmp_path / "a.pcap", talk)
    code, out, error = replay("show", "--incomplete", capture)
    assert code == 0 and len(out.splitlines()) == 1
    assert "incomplete malformed 1 (1 of them without a request line, so without a line here)" in error
    assert "of them" not in replay("show", capture)[2]


def test_the_first_column_of_show_is_the_number_that_explain_takes():
    words = ("--path", "^/orders", "--incomplete", DEMO)
    rows = [json.loads(line) for line in replay("show", "--json", *words)[1].splitlines()]
    assert [int(line.split()[0]) for line in replay("show", *words)[1].splitlines()] == [row["n"] for row in rows] and len(rows) > 3
    loss = DEMO.parents[2] / "captures" / "packet-loss"
    lines = replay("show", "--incomplete", loss)[1].splitlines()
    assert {line.split()[0] == "-" for line in lines if "[incomplete: " in line} == {True}


@pytest.mark.parametrize(
    "words, left",
    [
        (["--methods", "safe"], lambda r: r["method"] in ("GET", "HEAD", "OPTIONS")),
        (["--methods", "POST,PUT"], lambda r: r["method"] in ("POST", "PUT")),
        (["--path", "^/orders"], lambda r: r["target"].startswith("/orders")),
        (["--match-host", "^customer"], lambda r: r["host"].startswith("customer")),
        (["--client", "10.9.0.4"], lambda r: r["client"].startswith("10.9.0.4:")),
        (["--server", "10.8.0.12/31"], lambda r: r["server"].split(":")[0] in ("10.8.0.12", "10.8.0.13")),
        (["--port", "8080"], lambda r: True),
        (["--port", "81"], lambda r: False),
        (["--bpf", "host 10.9.0.1"], lambda r: "10.9.0.1" in (r["client"].split(":")[0], r["server"].split(":")[0])),
        (["--until", "1970-01-02"], lambda r: False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_filters(words, left):
    everything = [json.loads(line) for line in replay("show", "--json", DEMO)[1].splitlines()]
    rows = [json.loads(line) for line in replay("show", "--json", *words, DEMO)[1].splitlines()]
    name = ("client", "server", "method", "target", "index")
    assert [[r[k] for k in name] for r in rows] == [[r[k] for k in name] for r in everything if left(r)]
    code, out, _ = replay("run", "--json", *words, DEMO)
    report = json.loads(out)
    n = adds_up(report)
    if "--bpf" not in words:
        assert n["found"] == 226 and n["filtered"] == 226 - len(rows)
    assert code == 0


def test_limit():
    assert len(replay("show", "--json", "--limit", "7", DEMO)[1].splitlines()) == 7
    assert adds_up(json.loads(replay("run", "--json", "--limit", "7", DEMO)[1]))["selected"] == 7


def test_terminal_escapes_of_a_capture_do_not_reach_the_terminal(tmp_path):
    import pcapmake  # noqa: F401  (beside this file)

    code, out, _ = replay("show", DEMO)
    assert code == 0 and "\x1b" not in out


# ---- run, without sending ----


def test_without_a_target_it_is_a_dry_run_that_ends_in_the_command_to_send():
    code, out, error = replay("run", "-p", "50", "-H", "X-Run: a b", DEMO)
    assert code == 0 and "dry run" in error
    last = out.splitlines()[-1]
    assert last.startswith("to send: ")
    assert shlex.split(last.removeprefix("to send: ")) == ["replay", "run", "-p", "50", "-H", "X-Run: a b", str(DEMO), "--to", "http://SHADOW:PORT"]
    assert len(out.splitlines()) <= 25


def test_the_command_to_send_keeps_captures_that_look_like_options(tmp_path):
    """Behind -- everything is a capture."""
    for name in ("-x.pcap", "--dry-run"):
        (tmp_path / name).write_bytes(DEMO.read_bytes())
        done = subprocess.run([sys.executable, "-m", "replay", "run", "--dry-run", "--limit", "3", "--", name], capture_output=True, cwd=tmp_path, timeout=60)
        words = shlex.split(done.stdout.decode().splitlines()[-1].removeprefix("to send: "))
        assert words == ["replay", "run", "--to", "http://SHADOW:PORT", "--limit", "3", "--", name]


def test_what_a_stop_leaves_to_do():
    from replay import report

    stopped = json.loads(replay("run", DEMO, "--json")[1]) | {"interrupted": True}
    assert report.hint(stopped) == "the dry run was stopped; its numbers are of what had been read"
    assert report.hint(stopped | {"dry_run": False}) == "the run was stopped before anything was sent"
    assert "writes included" in report.hint(stopped | {"dry_run": False, "ledger": stopped["ledger"] | {"sent": 1}})


def test_json_is_the_only_thing_on_standard_output_and_equals_the_report(tmp_path):
    code, out, _ = replay("run", "--json", "--report", tmp_path / "r.json", "--percent", "10", DEMO)
    report = json.loads(out)
    assert code == 0 and report == json.loads((tmp_path / "r.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    n = adds_up(report)
    assert set(LEDGER) | {"by_reason"} == set(n)
    assert n["by_reason"]["dropped"] == {"dry_run": n["selected"]}
    for key in (
        "schema", "version", "started", "ended", "command", "inputs", "policy", "seed", "digest", "ledger", "incomplete", "packets", "lost_estimated",
        "status", "status_change", "latency_us", "service_us", "lag_us", "production_us", "rate", "targets",
    ):  # fmt: skip
        assert key in report
    assert report["schema"] == 1
    assert set(report["packets"]) == {"read", "skipped", "kernel_drops", "cut_frames"}
    assert set(report["latency_us"]) == {"p50", "p90", "p99", "p99_9", "max", "hdr"}


def test_samples_are_repeatable_and_nest():
    def chosen(*words):
        return {row[0]: row for row in ((json.loads(line)["n"], line) for line in replay("show", "--json", *words, DEMO)[1].splitlines())}

    def digest(*words):
        return json.loads(replay("run", "--json", *words, DEMO)[1])["digest"]

    ten = json.loads(replay("run", "--json", "-p", "10", DEMO)[1])["ledger"]
    fifty = json.loads(replay("run", "--json", "-p", "50", DEMO)[1])["ledger"]
    assert 0 < ten["selected"] < fifty["selected"] < 225
    assert json.loads(replay("run", "--json", "-p", "0", DEMO)[1])["ledger"]["selected"] == 0
    assert digest("-p", "50") == digest("-p", "50") != digest("-p", "50", "--seed", "1")
    assert len({digest("-p", "50", "--seed", seed) for seed in ("0", str(1 << 62), str((1 << 64) - 1))}) == 3


def test_credentials_are_masked_in_the_report():
    report = json.loads(replay("run", "--json", "-H", "Authorization: Bearer abcdef", "--add-header", "X-Plain: shown", DEMO)[1])
    assert "abcdef" not in report["command"] and "Authorization: ***" in report["command"] and "X-Plain: shown" in report["command"]


# ---- configuration ----


def test_config_gives_options_and_the_command_line_wins(tmp_path):
    path = tmp_path / "replay.yaml"
    path.write_text("percent: 0\nmethods: [GET, POST]\nshadow-suffix: off\nset-header:\n  X-A: 1\njson: true\n")
    report = json.loads(replay("run", "--config", path, DEMO)[1])
    assert report["ledger"]["selected"] == 0 and report["policy"]["methods"] == ["GET", "POST"] and report["policy"]["shadow_suffix"] is None
    code, out, error = replay("run", "--config", path, "-p", "100", "-v", DEMO)
    assert json.loads(out)["ledger"]["selected"] > 0 and code == 0
    said = {line.split()[0]: line for line in error.splitlines() if line.startswith("  ")}
    assert said["percent"].endswith("(command line)") and said["methods"].endswith(f"({path})") and said["pace"].endswith("(default)")


@pytest.mark.parametrize(
    "text, said",
    [
        ("precent: 5\n", "line 1: unknown key 'precent'; did you mean 'percent'?"),
        ("seed: 1\npercent: many\n", "line 2: percent: "),
        ("- percent\n", "expected keys"),
        ("percent: [1, 2\n", "no YAML"),
        ("quiet: perhaps\n", "line 1: quiet: "),
        ("limit: {a: 1}\n", "line 1: limit: "),
        ('seed: 1\nremove-header: ["Cookie:"]\n', "line 2: remove-header: 'Cookie:' is no name of a header"),
        ("config: x\n", "unknown key"),
    ],
)
def test_a_wrong_configuration_names_key_and_place(text, said, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, out, error = replay("run", "--config", path, DEMO)
    assert code == 2 and out == ""
    assert str(path) in error and said in error


def command(verb):
    """A verb as an object, where a process each would take long."""
    return getattr(importlib.import_module(f"replay.cli.{verb}"), verb)


def parsed(verb, text, tmp_path):
    """The parameters that a verb takes from this configuration."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with command(verb).make_context(verb, ["--config", str(path), "somewhere"]) as ctx:
        return dict(ctx.params)


@pytest.mark.parametrize(
    "verb, text, typed",
    [
        ("run", "seed: 010", ["--seed", "010"]),  # 8 to YAML
        ("tap", "port: [8080, 010]", ["--port", "8080", "--port", "010"]),
        ("show", "limit: 1_000", ["--limit", "1000"]),  # what only YAML can read
        ("inspect", "seed: 1.2345678901e+10", ["--seed", "12345678901"]),  # as Helm writes it
        ("tap", "expires: 2099-12-31", ["--expires", "2099-12-31"]),
        ("tap", "expires: 2099-1-2 10:00:00 +2", ["--expires", "2099-01-02T08:00:00Z"]),
        ("run", "path: 1.10", ["--path", "1.10"]),
        ("run", 'path: "off"', ["--path", "off"]),
        ("run", "path: =", ["--path", "="]),
        ("tap", "record: 'no'", ["--record", "no"]),
        ("run", "shadow-suffix: off", ["--shadow-suffix", "off"]),
        ("tap", "shadow-suffix: false", ["--shadow-suffix", "off"]),  # what Helm makes of it
        ("tap", "dry-run: no\ninsecure: on", ["--no-dry-run", "--insecure"]),
        ("run", "bpf: |\n  tcp\n", ["--bpf", "tcp\n"]),
        ("run", "methods: [GET, POST]", ["--methods", "GET,POST"]),
        ("tap", "set-header: {X: true, Y: 1.10, Z: off}", ["-H", "X: true", "-H", "Y: 1.10", "-H", "Z: off"]),
        ("run", "add-header: {X: 2026-01-01, Y: ''}", ["--add-header", "X: 2026-01-01", "--add-header", "Y: "]),
        ("run", "add-header: &h {X: 1, Y: 2}\nset-header: {<<: *h, X: 3}", ["--add-header", "X: 1", "--add-header", "Y: 2", "-H", "X: 3", "-H", "Y: 2"]),
        ("run", "resolve: {shop-v2: http://a:1, 'shop:v3': b:2}", ["--resolve", "shop-v2=http://a:1", "--resolve", "shop:v3=b:2"]),
        ("policy", "resolve: {shop-v2: 10.0.0.1:80}", ["--resolve", "shop-v2=10.0.0.1:80"]),
    ],
)
def test_a_configuration_is_read_as_it_would_be_typed(verb, text, typed, tmp_path):
    with command(verb).make_context(verb, [*typed, "somewhere"]) as ctx:
        wanted = dict(ctx.params)
    assert parsed(verb, text, tmp_path) == wanted


@pytest.mark.parametrize(
    "verb, text, said",
    [
        ("tap", "record: false", "line 1: record: a bare false says whether, and this wants a value; leave the line out, or quote it where the text 'false' is meant"),
        ("run", "access-log: off", "leave the line out"),
        ("run", "seed: 1\npath: off", "line 2: path: a bare off"),
        ("tap", "match-host: Off", "'Off'"),
        ("inspect", "methods: [GET, on]", "methods: a bare on"),
        ("tap", "shadow-suffix: yes", "shadow-suffix: a bare yes"),
        ("run", "timeout: 1:30", "'1:30' is no duration"),
        ("tap", "expires: 12:30:00", "'12:30:00' is no time"),
        ("run", "percent:", "percent: there is no value; leave the line out"),
        ("run", "path: null", "the text 'null'"),
        ("run", "dry-run: 'yes'", "'yes' is neither true nor false"),
        ("run", "path: !!binary YQ==", "the tag !!binary means nothing here"),
        ("tap", "set-header: {X-A: 1, X-None: null}", "set-header: X-None has no value"),
        ("run", "set-header:\n  X-List: [a, b]\n", "line 1: set-header: X-List has a list"),
        ("run", "add-header: {X-Map: {a: b}}", "add-header: X-Map has a map"),
        ("run", "resolve: {shop: {v2: http://a}}", "resolve: shop has a map"),
        ("run", "seed: 1\nset-header:\n  X-A: 1\n  X-B: 2\n  X-A: 3\n", "line 3: the key 'X-A' of set-header stands there more than once"),
        ("run", "set-header: [X-A: 1]", "set-header: a map stands where one value belongs; write each in quotes"),
        ("run", "client: {a: b}", "client: a map stands where single values belong"),
        ("tap", "set_header: {}\nset-header: {}\n", "more than once"),
        ("run", "[a]: 1", "unknown key a list"),
        ("run", "just words", "found a single value"),
    ],
)
def test_what_would_mean_something_else_than_it_looks_is_refused(verb, text, said, tmp_path):
    with pytest.raises(UsageError) as caught:
        parsed(verb, text, tmp_path)
    assert said in str(caught.value) and str(tmp_path / "c.yaml") in str(caught.value)


def test_an_empty_configuration_changes_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert replay("run", "--config", path, DEMO)[0] == 0
    assert replay("run", "--config", tmp_path / "missing.yaml", DEMO)[0] == 2


# ---- outputs that go away ----


@pytest.mark.parametrize("words", [["show"], ["show", "--json"]], ids=str)
def test_a_reader_that_goes_away_is_no_error(words):
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m replay {' '.join(words)} {shlex.quote(str(DEMO))} {shlex.quote(str(DEMO))} | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_is_named():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    code, _, error = replay("run", "--report", "/dev/full", DEMO)
    assert code == 2 and "--report" in error and "No space" in error


def test_a_full_standard_output_is_named():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    for words in (["run"], ["show"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([sys.executable, "-m", "replay", *words, str(DEMO)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 2 and "standard output: No space left on device" in done.stderr


@pytest.mark.parametrize("words", [("run", "-q", DEMO), ("show", DEMO), ("inspect", DEMO), ("--version",), ("policy", "--schema")], ids=lambda words: words[0])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_an_empty_one(words, closed, tmp_path):
    """As `>/dev/null`: the verb does what it does. Its descriptor is not given to the next file that is opened."""
    line = shlex.join([sys.executable, "-m", "replay", *map(str, words)])
    done = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "internal" not in done.stderr
    assert done.stdout == (subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60).stdout if closed == "2>&-" else "")


def test_errors_do_not_go_to_standard_output_when_standard_error_is_closed(tmp_path):
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m replay show {tmp_path}/none.pcap 2>&-", shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and done.stdout == ""


@pytest.mark.parametrize("verb", ["show", "run"])
def test_a_closed_standard_input_is_an_empty_capture(verb):
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m replay {verb} - <&-", shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and "-, offset 0: is empty" in done.stderr


# ---- files that are written ----


@pytest.mark.parametrize("option, name", [("--report", "own.pcap"), ("--html", "own.pcap"), ("--access-log", "own.pcap"), ("--results", "own.json")])
@pytest.mark.parametrize("way", ["itself", "link", "hard link", "folder", "standard input"])
def test_an_output_is_not_the_capture(option, name, way, tmp_path):
    own = tmp_path / "in" / name
    own.parent.mkdir()
    own.write_bytes(DEMO.read_bytes())
    word, out = own, own
    if "link" in way:
        out = tmp_path / f"link-{name}"
        os.symlink(own, out) if way == "link" else os.link(own, out)
    elif way == "folder":
        word = own.parent
    elif way == "standard input":
        word = "-"
    with own.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-m", "replay", "run", str(word), option, str(out)], stdin=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{option} {out}: CAPTURE " in done.stderr and "is the same file" in done.stderr
    assert own.read_bytes() == DEMO.read_bytes()


def test_outputs_are_files_of_their_own(tmp_path):
    one = tmp_path / "x.json"
    for first, second in itertools.permutations(("--report", "--html", "--results", "--access-log"), 2):
        code, _, error = replay("run", DEMO, first, one, second, f"{tmp_path}/./x.json")
        assert code == 2 and first in error and second in error and "is the same file" in error and not one.exists()
    (tmp_path / "c.yaml").write_text("percent: 5\n")
    (tmp_path / "t").write_text("token\n")
    for words in (("--config", tmp_path / "c.yaml"), ("--auth-file", tmp_path / "t")):
        code, _, error = replay("run", DEMO, *words, "--access-log", words[1])
        assert code == 2 and f"{words[0]} {words[1]} is the same file" in error and words[1].stat().st_size > 5
    code, _, error = replay("tap", "lo", "-p", "1", "--dry-run", "--record", tmp_path / "r.json", "--record-files", "3", "--report", tmp_path / "r-1.json")
    assert code == 2 and "--record" in error and "--report" in error and not list(tmp_path.glob("r*"))
    assert replay("run", "-q", DEMO, "--report", one, "--html", os.devnull, "--access-log", os.devnull)[0] == 0  # a device may be given twice
    assert replay("run", "-q", DEMO, "--report", one)[0] == 0
    for words, other in (((one, "--html", one), "REPORT"), ((one, "--html", tmp_path / "y", "--report", tmp_path / "y"), "--report")):
        code, _, error = replay("report", *words)
        assert code == 2 and "--html" in error and other in error and json.loads(one.read_text())["schema"] == 1
    assert replay("report", "-q", one, one, "--report", one)[0] == 0  # a sum may replace what is in it


# ---- what a person is told ----


def test_credentials_stay_out_of_the_report_but_in_the_command_that_is_shown():
    words = ["run", "-H", "Authorization: Bearer abcdef", DEMO]
    assert "abcdef" not in replay(*words, "--json")[1]
    assert "abcdef" in replay(*words)[1].splitlines()[-1]


def test_a_dry_run_of_a_configuration_ends_in_a_command_that_sends(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dry-run: true\nto: http://127.0.0.1:9\n")
    last = shlex.split(replay("run", "--config", path, DEMO)[1].splitlines()[-1].removeprefix("to send: "))
    assert last == ["replay", "run", "--config", str(path), str(DEMO), "--no-dry-run"]
    assert replay(*last[1:], "--limit", "1", "--pace", "max", "--connect-timeout", "50ms")[0] == 5  # it tries


def test_quiet_still_gives_the_result_and_the_error():
    code, out, error = replay("run", "-q", DEMO)
    assert code == 0 and out.startswith("found") and error == ""
    code, out, error = replay("run", "-q", "--to", "http://10.8.0.12:8080", DEMO)
    assert code == 3 and "--allow-production" in error


def test_everything_filtered_out_is_said():
    code, out, _ = replay("run", "--methods", "PURGE", DEMO)
    assert code == 0 and out.splitlines()[-1].startswith("next: every request was filtered out (method 226)")


def test_many_without_the_key_are_said():
    code, out, _ = replay("run", "-p", "50", "--sample-by", "header:x-none", DEMO)
    assert code == 0 and any("lack what --sample-by names" in line for line in out.splitlines())


@pytest.mark.parametrize(
    "words, said",
    [
        (["--methods", "get"], "did you mean 'GET'?"),
        (["--methods", "save"], "did you mean 'safe'?"),
        (["--max-head", "10"], "out of range"),
        (["--to", "unix:run/x"], "unix:/path"),
    ],
    ids=str,
)
def test_more_wrong_usage(words, said):
    code, _, error = replay("run", *words, DEMO)
    assert code == 2 and said in error


def test_a_key_twice_in_a_configuration(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("percent: 5\nseed: 1\npercent: 6\n")
    code, _, error = replay("run", "--config", path, DEMO)
    assert code == 2 and "line 1: the key 'percent' stands there more than once" in error


def test_effective_values_are_values():
    error = replay("run", "-v", DEMO)[2]
    said = {line.split()[0]: line.split()[1] for line in error.splitlines() if line.startswith("  ")}
    assert said["percent"] == "100" and said["methods"] == "all" and said["max-head"] == "64"
