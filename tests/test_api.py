"""The package from Python: the same requests and reports as the command line's, columns without a copy, and the examples of the docstrings."""

import doctest
import gc
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import weakref

import endtoend
import numpy
import pytest

import replay
import replay.api
import replay.batch
import replay.embedded
from replay.errors import CaptureError, ReplayError, TargetError, UsageError

DEMO = str(endtoend.DEMO)
HOME = str(pathlib.Path(replay.__file__).parents[1])
CASES = ["chunked-upload", "node-clients", "ipv6", "packet-loss", "connect-proxy"]


@pytest.mark.parametrize("module", [replay.api, replay.batch, replay.embedded], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(module, extraglobs={"DEMO": DEMO}, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and (found.attempted > 0 or module is replay.batch)


def blocks(path):
    """The Python examples of a document: indented or fenced blocks that import replay."""
    text = path.read_text()
    fenced = re.findall(r"(?ms)^```python\n(.*?)^```", text)
    indented = [re.sub(r"(?m)^    ", "", block) for block in re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", text) if "import replay" in block]
    return [block for block in fenced + indented if "import replay" in block]


def test_examples_of_the_documents(tmp_path, monkeypatch):
    """Each Python example in README and docs/ runs as it stands, with a capture and a shadow service where it says they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traffic.pcap").write_bytes(endtoend.DEMO.read_bytes())
    ran = 0
    with replay.sink() as url:
        for path in [endtoend.ROOT / "README.md", *sorted((endtoend.ROOT / "docs").glob("*.md"))]:
            for block in blocks(path):
                code = block.replace("http://shadow:8080", url)
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": HOME})
                assert done.returncode == 0, (path.name, block, done.stderr)
                ran += 1
    assert ran >= 1


# ---- read ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_objects_are_those_of_show(case):
    captures = endtoend.folder(case)
    shown = endtoend.show(*captures)
    found = list(replay.read(*captures))
    assert len(found) == len(shown)
    for request, row in zip(found, shown, strict=True):
        mine = {
            "n": request.number, "ts_ns": request.time_ns, "client": request.client, "server": request.server, "flow": request.connection, "index": request.index,
            "method": request.method, "target": request.target, "version": request.version, "host": request.host, "headers": [list(one) for one in request.headers],
            "body_len": request.body_length, "body_sha256": request.body_sha256, "framing": request.framing, "withheld": request.withheld, "status": request.status,
            "response_us": request.response_us,
        }  # fmt: skip
        assert mine == {key: value for key, value in row.items() if key != "shadow_host"}


@pytest.mark.parametrize("case", CASES)
def test_columns_are_those_of_the_objects(case):
    captures = endtoend.folder(case)
    requests, at = list(replay.read(*captures)), 0
    for batch in replay.read(*captures).batches():
        begins, arena = batch.begins, batch.arena
        for i in range(len(batch)):
            request = requests[at]
            at += 1
            row = batch.rows[i]
            assert (row["ts_ns"], row["flow"], row["index"], row["n"], row["body_len"]) == (request.time_ns, request.connection, request.index, request.number, request.body_length)
            assert row["status"] == (request.status or 0) and row["method_len"] == len(request.method)
            head = arena[begins[i] : begins[i] + batch["head_len"][i]].tobytes()
            assert head == request.head == batch.data(i)
            assert head[row["target_at"] : row["target_at"] + row["target_len"]].decode("latin-1") == request.target
    assert at == len(requests)


def test_columns_are_no_copies_and_keep_their_memory():
    batch = next(iter(replay.read(DEMO).batches()))
    rows, arena = batch.rows, batch.arena
    assert not rows.flags.writeable and not arena.flags.writeable and not rows.flags.owndata and not arena.flags.owndata
    assert numpy.shares_memory(batch["ts_ns"], rows)
    with pytest.raises(ValueError, match="read-only"):
        rows["status"][0] = 1
    before, gone = arena.tobytes(), weakref.ref(batch.requests) if hasattr(batch.requests, "__weakref__") else None
    del batch
    gc.collect()
    assert arena.tobytes() == before and rows["ts_ns"][0] > 0 and (gone is None or gone() is not None)


def test_as_sent_is_what_a_server_gets(tmp_path):
    """The bytes of `as_sent`, sent by hand, are what a replay sends."""
    capture = endtoend.folder("chunked-upload")
    sent = [batch.data(i) for batch in replay.read(*capture, as_sent=True).batches() for i in range(len(batch))]
    assert sent and all(b"-shadow" in data.split(b"\r\n\r\n")[0] for data in sent)
    assert len(sent) == endtoend.run(*capture)["ledger"]["selected"]
    for data, request in zip(sent, (r for r in replay.read(*capture) if not r.withheld), strict=True):
        head, _, body = data.partition(b"\r\n\r\n")
        assert len(body) >= request.body_length


def test_options_are_those_of_the_command_line():
    whole = list(replay.read(DEMO))
    assert [r.number for r in replay.read(DEMO, methods=["POST", "PUT"])] == [r.number for r in whole if r.method in ("POST", "PUT") and not r.withheld]
    assert [r.number for r in replay.read(DEMO, percent="10%", seed=7)] == [row["n"] for row in endtoend.show("-p", "10", "--seed", "7", DEMO)]
    assert [r.number for r in replay.read(DEMO, client="10.9.0.1", limit=3)] == [row["n"] for row in endtoend.show("--client", "10.9.0.1", "--limit", "3", DEMO)]
    for same in ({"X-A": "1", "X-B": "2"}, ["X-A: 1", "X-B:2"], [("X-A", "1"), ("X-B", "2")]):
        batch = next(replay.read(DEMO, as_sent=True, limit=1, set_header=same).batches())
        assert b"\r\nX-A: 1\r\n" in batch.data(0) and b"\r\nX-B: 2\r\n" in batch.data(0)
    halves = [{r.number for r in replay.read(DEMO, shard=f"{i}/2")} for i in (1, 2)]
    assert halves[0] | halves[1] == {r.number for r in whole} and not halves[0] & halves[1]
    assert {r.incomplete for r in replay.read(*endtoend.folder("packet-loss"), incomplete=True)} == {None, "gap"}


WRONG = [
    ({"percnt": 5}, "did you mean 'percent'"), ({"percent": 101}, "more than 100"), ({"methods": "get"}, "did you mean 'GET'"), ({"client": "x"}, "no network"),
    ({"trace": "x"}, "keep"), ({"split_by_network": "yes"}, "neither True nor False"), ({"limit": 0}, "out of range"), ({"since": 5, "until": 4}, "leaves nothing"),
    ({"path": "("}, "regular expression"), ({"shard": "3/2"}, "shard"), ({"set_header": ["X-A"]}, "set_header: 'X-A' has no colon; write {'Name': 'value'}"),
    ({"add_header": [5]}, "add_header: 5 is no header"), ({"set_header": {"X-A": 1}}, "set_header: ('X-A', 1) is no header"), ({"set_header": 5}, "set_header"),
    ({"percent": 1e-7}, "finer than a millionth; the nearest would be 0 %"), ({"percent": 99.99999}, "finer than a millionth"), ({"percent": float("nan")}, "no percentage"),
    ({"percent": -1.0}, "no percentage"), ({"percent": 100.1}, "more than 100"), ({"max_hops": 0}, "max_hops: 0 is out of range"),
    ({"remove_header": "Cookie:"}, "remove_header: 'Cookie:' is no name of a header (RFC 9110 5.1); write Cookie"),
]  # fmt: skip


def test_an_output_is_not_the_capture(tmp_path):
    own = tmp_path / "own.json"
    own.write_bytes(pathlib.Path(DEMO).read_bytes())
    for option in ("results", "access_log"):
        with pytest.raises(UsageError, match="is the same file"):
            replay.run(own, **{option: own})
    with pytest.raises(UsageError, match="is the same file"):
        replay.run(DEMO, results=tmp_path / "a.json", access_log=tmp_path / "a.json")
    assert own.read_bytes() == pathlib.Path(DEMO).read_bytes()


@pytest.mark.parametrize("options, word", WRONG, ids=[str(one) for one, _ in WRONG])
def test_wrong_options_are_errors_at_once(options, word):
    with pytest.raises(UsageError, match=re.escape(word)):
        replay.read(DEMO, **options)


@pytest.mark.parametrize("percent, ppm", [(100 / 3, 333_333), (0.1 + 0.2, 3_000), (0.0, 0), (100.0, 1_000_000), (1e-4, 1), (99.9999, 999_999), (5, 50_000), ("0.5%", 5_000)])
def test_a_percentage_is_exact_to_a_millionth(percent, ppm):
    assert replay.api._selection({"percent": percent})[0].share == ppm


def test_hops_from_python(tmp_path):
    talk = endtoend.conversation([endtoend.request(b"/1"), endtoend.request(b"/2", extra=b"x-shadow-replay: 1\r\n")], 0)
    capture = endtoend.write(tmp_path / "a.pcap", talk)
    with replay.sink() as url:
        ledgers = [replay.run(capture, to=url, pace="max", max_hops=hops)["ledger"] for hops in (1, 2)]
    assert [(one["answered"], one["by_reason"]["withheld"]) for one in ledgers] == [(1, {"loop": 1}), (2, {})]


WRONG_RUN = [
    ({"insecure": "false"}, "insecure: 'false' is neither True nor False"), ({"dry_run": "no"}, "dry_run: 'no' is neither"), ({"allow_empty": 0}, "allow_empty: 0 is neither"),
    ({"insecure": True}, "insecure are for https targets, and there is none"), ({"sni": "shadow"}, "cacert, cert, key, sni and insecure are for https targets"),
    ({"to": "https://127.0.0.1:9", "key": "k.pem"}, "key: without cert"), ({"to": "https://127.0.0.1:9", "insecure": True, "cacert": "a.pem"}, "insecure and cacert"),
]  # fmt: skip


@pytest.mark.parametrize("options, word", WRONG_RUN, ids=[" ".join(one) for one, _ in WRONG_RUN])
def test_wrong_options_of_a_run_are_errors_at_once(options, word):
    with pytest.raises(UsageError, match=re.escape(word)):
        replay.run(DEMO, **{"to": "http://127.0.0.1:9", "duration": "1s"} | options)


def test_captures_that_are_not_there(tmp_path):
    with pytest.raises(CaptureError, match="nowhere"):
        list(replay.read(tmp_path / "nowhere.pcap"))
    (tmp_path / "junk.pcap").write_bytes(b"this is no capture, but a text of some length")
    with pytest.raises(CaptureError):
        list(replay.read(tmp_path / "junk.pcap"))
    with pytest.raises(UsageError, match="no capture"):
        replay.read()


def test_keeping_all_batches_ends_with_a_word(tmp_path):
    """Not with a wait that never ends."""
    capture = endtoend.unique(tmp_path / "a.pcap", 9000, connections=9, extra=b"X: %s\r\n" % (b"y" * 900))
    with pytest.raises(ReplayError, match="max_memory"):
        list(replay.read(capture, max_memory="4MiB").batches())
    assert sum(len(batch) for batch in list(replay.read(capture).batches())) == 9000


def test_a_pipe_is_read_once(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    capture = replay.read(fifo)
    with subprocess.Popen(["cp", DEMO, fifo]):
        assert len(list(capture)) == 226
    with pytest.raises(ReplayError, match="a pipe"):
        next(iter(capture))
    assert capture.counts["found"] == 226


def test_a_reading_that_is_left_early_ends():
    for request in replay.read(DEMO):
        assert request.number == 0
        break
    capture = replay.read(DEMO)
    assert len(list(capture)) == len(list(capture)) == 226


# ---- run ------------------------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_report_of_the_command_line(tmp_path):
    seen = []
    with replay.sink(status=404) as url:
        report = replay.run(DEMO, to=url, pace="max", results=tmp_path / "r.jsonl", fail_if=["status_change > 50%", "ledger.unanswered > 1%"], progress=seen.append)
    endtoend.balanced(report)
    assert report["ledger"]["answered"] == 225 and seen and not report.passed
    assert [gate["failed"] for gate in report["gates"]] == [True, False]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 225
    assert set(seen[-1]) >= {"elapsed_s", "read", "passes", "ingest", "senders"} and seen[-1]["senders"][0]["sent"] <= 225
    assert not report.check("status.404 >= 225") and report.check("status.404 > 225") and report.check("status.404 > 225").value == "225"
    for wrong in ("latency", "ledger", "hdr"):
        with pytest.raises(ReplayError, match="there are latency_us"):
            report.histogram(wrong)
    assert report.check("status.404 >= 225").failed and report.histogram("latency_us").total == 225
    assert "gate failed" in report.summary() and "<svg" in report.html()
    report.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(report))
    dry = replay.run(pathlib.Path(DEMO))
    assert dry["dry_run"] and dry["ledger"]["by_reason"]["dropped"] == {"dry_run": 225} and dry["digest"] == report["digest"]


def test_a_run_by_a_policy(tmp_path):
    """policy, resolve, mesh, threads, access_log and mirror_headers are those of the command line, what does not go together too."""
    (tmp_path / "vs.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: c, namespace: t}\nspec:\n  hosts: [customer]\n  http:\n"
        "  - route: [{destination: {host: customer, subset: v1}}]\n    mirror: {host: customer, subset: v2}\n    mirror_percent: 50\n"
    )
    with replay.sink() as url:
        names = {"mesh": "istio-1.27", "resolve": f"customer.t:v2={url}"}
        ours = replay.run(DEMO, policy=tmp_path / "vs.yaml", **names, pace="max", threads=2, access_log=tmp_path / "access", mirror_headers="envoy:10.9.9.9")
        theirs = endtoend.run(DEMO, "--policy", tmp_path / "vs.yaml", "--mesh", "istio-1.27", "--resolve", names["resolve"], "--pace", "max")
        plain = replay.run(DEMO, to=url, pace="max", limit=5, mirror_headers="envoy")
        warned = replay.run(DEMO, policy=tmp_path / "vs.yaml", mesh="istio-1.27", resolve=[names["resolve"], "nobody=http://127.0.0.1:9"], dry_run=True)
    assert any("'nobody' is the address of no destination" in note for note in warned["notes"])
    endtoend.balanced(ours)
    assert 0 < ours["ledger"]["sent"] == ours["ledger"]["answered"] == len((tmp_path / "access").read_text().splitlines()) and plain["ledger"]["answered"] == 5
    assert ours["routing"]["routes"] == theirs["routing"]["routes"] and ours["digest"] == theirs["digest"] and ours["ledger"] == theirs["ledger"]
    for options, word in (
        ({"percent": 5}, "not together with percent"), ({"to": "http://127.0.0.1:9"}, "not together with to"), ({"mesh": "no"}, "there are istio-1.27"),
        ({"mirror_headers": "x"}, "mirror_headers: 'x' is neither"), ({"resolve": "nothing"}, "there is no ="), ({}, "give it with --resolve"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(word)):
            replay.run(DEMO, policy=[str(tmp_path / "vs.yaml")], **options)
    with pytest.raises(UsageError, match="--mesh belongs to a policy"):
        replay.run(DEMO, mesh="envoy")
    with pytest.raises(UsageError, match="threads"):
        replay.read(DEMO, threads=65)


def test_a_run_that_stop_if_ends_says_so(tmp_path):
    capture = endtoend.unique(tmp_path / "a.pcap", 2000, step_ns=5_000_000)
    with replay.sink(status=503) as url:
        report = replay.run(capture, to=url, stop_if="status.5xx > 50%")
    assert report["stopped_by"] == "status.5xx > 50%" and report.exit_code == 1 and "stopped by --stop-if" in report.summary()


def test_errors_of_a_run(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'pace'"):
        replay.run(DEMO, pase="max")
    for typed, meant in (("too", "to"), ("progres", "progress")):  # arguments of its own are options as well
        with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
            replay.run(DEMO, **{typed: "http://127.0.0.1:1"})
    with pytest.raises(UsageError, match="did you mean 'as_sent'"):
        replay.read(DEMO, as_send=True)
    with pytest.raises(UsageError, match="fail-if"):
        replay.run(DEMO, fail_if="nonsense")
    with pytest.raises(CaptureError):
        replay.run(tmp_path / "nowhere.pcap")
    with pytest.raises(TargetError):
        replay.run(DEMO, to="http://no-such-host.invalid")


def test_a_run_that_could_not_be_has_not_passed(tmp_path):
    """The exit codes of the command line, from Python."""
    down = replay.run(DEMO, to=f"http://127.0.0.1:{endtoend.free_port()}", pace="max", duration=0.3)
    assert down["never_connected"] and down.exit_code == 5 and not down.passed and not down["gates"]
    with replay.sink() as url:
        port = int(url.rpartition(":")[2])
        capture = endtoend.write(tmp_path / "own.pcap", endtoend.conversation([endtoend.request(b"/")], server=(b"\x7f\0\0\1", port)))
        refused = replay.run(capture, to=url, pace="max", fail_if="ledger.sent > 1")
        assert refused["guard"] and refused.exit_code == 3 and not refused.passed
        half = replay.run(DEMO, tmp_path / "nowhere.pcap", to=url, pace="max")
        assert half["ledger"]["answered"] == 225 and half.exit_code == 4 and not half.passed and half["faults"][0]["fatal"]
        none = replay.run(DEMO, str(tmp_path / "none-*.pcap"), to=url, pace="max")
        assert none["ledger"]["answered"] == 225 and none.exit_code == 4 and not none.passed and "none-" in str(none.errors[0])
        whole = replay.run(DEMO, to=url, pace="max", fail_if="ledger.unanswered > 1%")
        assert whole.exit_code == 0 and whole.passed and not whole.errors
        failed = replay.run(DEMO, to=url, pace="max", fail_if="ledger.answered > 1")
        assert failed.exit_code == 1 and not failed.passed
    assert replay.run(DEMO).passed  # a dry run


def test_an_exception_in_the_callback_ends_the_run(tmp_path):
    def broken(_):
        raise ZeroDivisionError

    capture = endtoend.unique(tmp_path / "a.pcap", 1000, step_ns=50_000_000)
    with replay.sink() as url, pytest.raises(ZeroDivisionError):
        replay.run(capture, to=url, progress=broken)


def test_importing_the_package_loads_little():
    code = "import sys, replay\nprint(sorted({'numpy', 'click', 'yaml', 'rich', 'replay._fastpath'} & set(sys.modules)))\nassert callable(replay.read)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("words", [["-c", "import replay; replay.read('x')"], ["-m", "replay", "show", "x"]], ids=["package", "command"])
def test_a_source_tree_that_is_not_built_is_told_apart(tmp_path, words):
    """A checkout lies in the current folder, and Python takes it for the package: no riddle, but what to do."""
    source = pathlib.Path(replay.__file__).parent
    shutil.copytree(source, tmp_path / "replay", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=clean)
    assert done.returncode != 0 and f"{tmp_path / 'replay'}: that is a source tree which is not built" in done.stderr, done.stderr
