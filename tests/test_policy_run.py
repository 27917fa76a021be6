"""`replay run --policy`, into real servers: what each target got, the ledger, the report, what does not go together."""

import json

import endtoend
import pytest
from endtoend import Sink, run, show
from policymake import VIRTUAL_SERVICE

DEMO = endtoend.ROOT / "replay" / "data" / "demo.pcap"


def rows_of(sink):
    return sorted((row["method"], row["target"], row["host"], row["body_sha256"]) for row in sink.stop())


def test_a_virtual_service_without_the_mesh(tmp_path):
    (tmp_path / "vs.yaml").write_text(VIRTUAL_SERVICE)
    with Sink(tmp_path / "log") as sink:
        report = run(DEMO, "--policy", tmp_path / "vs.yaml", "--mesh", "istio-1.27", "--resolve", f"customer.tutorial:version-v2={sink.url}", "--pace", "max")
        got = rows_of(sink)
    asked = [row for row in show(DEMO) if (row["host"] or "").partition(":")[0] == "customer" and not row["withheld"]]
    assert {host for _, _, host, _ in got} == {"customer-shadow:8080"}
    every = sorted((row["method"], row["target"], row["shadow_host"], row["body_sha256"]) for row in asked)
    assert 0.25 < len(got) / len(asked) < 0.75 and all(row in every for row in got)
    assert report["ledger"]["sent"] == report["ledger"]["answered"] == len(got)
    assert report["routing"]["routes"][0]["mirrors"][0]["copies"] == len(got)
    assert report["ledger"]["by_reason"]["filtered"]["no_route"] == report["ledger"]["filtered"] > 100


def test_several_mirrors_into_several_servers(tmp_path):
    with Sink(tmp_path / "a") as a, Sink(tmp_path / "b") as b:
        (tmp_path / "p.yaml").write_text(
            f"routes:\n- {{name: none, match: {{path: {{prefix: /orders}}}}, mirror: []}}\n"
            f"- name: two\n  match: {{host: customer}}\n  mirror:\n"
            f"  - {{to: '{a.url}'}}\n"
            f"  - {{to: '{b.url}', host: {{literal: 'other:1'}}, rewrite-path: {{prefix: /, with: /v2/}}, set-headers: {{x-a: b}}}}\n"
            f"- {{name: rest, mirror: {{to: '{b.url}', host: keep}}}}\n"
        )
        results = tmp_path / "results.jsonl"
        report = run(
            DEMO, "--policy", tmp_path / "p.yaml", "--pace", "max", "--methods", "GET", "--loop", "2", "--results", results, "--access-log", tmp_path / "access"
        )
        got_a, got_b = a.stop(), b.stop()
    asked = [row for row in show(DEMO, "--methods", "GET") if not row["withheld"] and not row["target"].startswith("/orders")]
    customers = [row for row in asked if row["host"].partition(":")[0] == "customer"]
    assert sorted(row["target"] for row in got_a) == sorted([row["target"] for row in customers] * 2)
    assert {row["host"] for row in got_a} == {"customer-shadow:8080"}
    copies = [row for row in got_b if row["host"] == "other:1"]
    assert sorted(row["target"] for row in copies) == sorted(["/v2" + row["target"] for row in customers] * 2) and all(
        ["x-a", "b"] in row["headers"] for row in copies
    )
    rest = [row for row in got_b if row["host"] != "other:1"]
    assert sorted((row["target"], row["host"]) for row in rest) == sorted([(row["target"], row["host"]) for row in asked if row not in customers] * 2)
    assert all(["x-shadow-replay", "1"] in row["headers"] for row in rest)
    ledger = report["ledger"]
    assert ledger["fanout"] == 2 * len(customers) and ledger["sent"] == ledger["answered"] == len(got_a) + len(got_b)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == ledger["sent"] and len((tmp_path / "access").read_text().splitlines()) == ledger["sent"]
    assert sum(one["sent"] for one in report["targets"].values()) == ledger["sent"]


def test_a_dry_run_counts_each_copy_and_a_server_of_the_capture_is_no_target(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("routes:\n- mirror: [{to: 'http://127.0.0.1:9'}, {to: 'http://127.0.0.1:10', percent: 10}]\n")
    report = run(DEMO, "--policy", file, "--dry-run")
    assert report["ledger"]["dropped"] == report["ledger"]["by_reason"]["dropped"]["dry_run"] == report["ledger"]["selected"] + report["ledger"]["fanout"]
    assert 0 < report["ledger"]["fanout"] < report["ledger"]["selected"]
    server = show(DEMO)[0]["server"]
    file.write_text(f"routes:\n- mirror: [{{to: 'http://127.0.0.1:9'}}, {{to: 'http://{server}'}}]\n")
    report = run(DEMO, "--policy", file, code=3)
    assert report["ledger"]["by_reason"]["dropped"] == {"guard": report["ledger"]["selected"] + report["ledger"]["fanout"]}


@pytest.mark.parametrize(
    "options, said",
    [
        (["--percent", "5"], "not together with --percent"),
        (["--to", "http://127.0.0.1:9"], "the address of a destination is given with --resolve"),
        (["--set-host", "a"], "not together with --set-host"),
        (["-H", "a: b"], "not together with --set-header"),
        (["--mirror-headers", "envoys"], "is neither none nor envoy"),
        (["--resolve", "nothing"], "there is no ="),
    ],
)
def test_what_does_not_go_together(tmp_path, options, said):
    (tmp_path / "p.yaml").write_text("routes:\n- mirror: {to: 'http://127.0.0.1:9'}\n")
    assert said in endtoend.command("run", DEMO, "--policy", tmp_path / "p.yaml", *options, code=2).stderr.decode()


def test_an_unresolved_destination_ends_before_anything_is_sent(tmp_path):
    (tmp_path / "vs.yaml").write_text(VIRTUAL_SERVICE)
    said = endtoend.command("run", DEMO, "--policy", tmp_path / "vs.yaml", code=2).stderr.decode()
    assert "give it with --resolve 'customer.tutorial:version-v2=ADDRESS:PORT'" in said
    assert "--mesh belongs to a policy" in endtoend.command("run", DEMO, "--mesh", "envoy", code=2).stderr.decode()


def test_headers_that_envoy_adds(tmp_path):
    (tmp_path / "capture").mkdir()
    endtoend.write(
        tmp_path / "capture" / "a.pcap", endtoend.conversation([endtoend.request(b"/a", extra=b"X-Forwarded-For: 10.0.0.1\r\n"), endtoend.request(b"/b")])
    )
    with Sink(tmp_path / "log") as sink:
        run(tmp_path / "capture", "--to", sink.url, "--pace", "max", "--mirror-headers", "envoy:10.9.9.9")
        first, second = (dict(row["headers"]) for row in sink.stop())
    assert first["X-Forwarded-For"] == "10.0.0.1,10.9.9.9" and second["x-forwarded-for"] == "10.9.9.9"
    assert first["x-envoy-internal"] == second["x-envoy-internal"] == "true"
