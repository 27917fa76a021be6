"""What is in deploy/ holds: each file passes the tool of its kind, and each query names a metric that exists."""

import contextlib
import copy
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import endtoend
import pytest
import scrape
import yaml

from replay.daemon import metrics, server
from replay.daemon.live import BREAKER, LIVE_FAMILIES
from replay.engine import Health, Replay
from replay.settings import Selection, Settings, target
from replay.units import Pace

DEPLOY = pathlib.Path(__file__).resolve().parents[1] / "deploy"
CHART = DEPLOY / "helm" / "shadow-replay"
ALERTS = CHART / "files" / "alerts.yaml"
UNIT = DEPLOY / "systemd" / "replay-tap.service"


def program(name):
    """Its path, beside our Python too; the test skips where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def quiet(*command, **more):
    """Its output; it ended well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# ---- systemd -------------------------------------------------------------------------------------------------------------------


def test_unit_is_sound():
    assert quiet(program("systemd-analyze"), "verify", UNIT) == ""


def test_unit_is_hardened():
    said = quiet(program("systemd-analyze"), "security", "--offline=true", "--threshold=25", "--no-pager", UNIT)
    assert float(re.search(r"Overall exposure level for replay-tap.service: ([\d.]+)", said)[1]) <= 2.5


def test_unit_gives_one_capability_and_one_writable_place():
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#"))
    assert lines["CapabilityBoundingSet"] == lines["AmbientCapabilities"] == "CAP_NET_RAW"
    assert lines["DynamicUser"] == "yes" and lines["ProtectSystem"] == "strict" and lines["StateDirectory"] == "replay"
    assert lines["Type"] == "notify" and "$MAINPID" in lines["ExecReload"] and lines["WatchdogSec"]


# ---- image ---------------------------------------------------------------------------------------------------------------------


def test_dockerfile_is_clean():
    assert quiet(program("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile") == ""


def test_dockerfile_copies_what_a_build_needs():
    """Nothing that the build reads is left out of the context."""
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for needed in ("replay", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        assert (DEPLOY.parent / needed).exists() and needed not in ignored


# ---- chart ---------------------------------------------------------------------------------------------------------------------

# In a process of its own: Helm is a library with threads and signal handlers of its own.
HELM = """
import json, sys
import helm_python as helm
asked = json.load(sys.stdin)
answer = {}
if "lint" in asked:
    answer["lint"] = helm.lint(asked["chart"], asked["lint"], strict=True)
if "render" in asked:
    with helm.Chart.load(asked["chart"]) as chart:
        try:
            answer["files"] = chart.render(asked["render"], name="mirror", namespace="shadow")
        except helm.HelmError as error:
            answer["error"] = str(error)
if "package" in asked:
    answer["package"] = helm.package(asked["chart"], destination=asked["package"])
json.dump(answer, sys.stdout)
"""


def helm(**asked):
    if subprocess.run([sys.executable, "-c", "import helm_python"], capture_output=True).returncode:
        pytest.skip("needs helm-python-sdk")
    done = subprocess.run([sys.executable, "-c", HELM], input=json.dumps({"chart": str(CHART)} | asked), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LEAST = {"config": {"to": "http://shadow:8080", "percent": 1}}


def rendered(values):
    """kind -> object of what Helm makes of these values."""
    answer = helm(render=values)
    assert "error" not in answer, answer
    objects = [one for name, text in answer["files"].items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]
    assert len({one["kind"] for one in objects}) == len(objects)
    return {one["kind"]: one for one in objects}


@pytest.fixture(scope="module")
def everything():
    return yaml.safe_load((CHART / "ci" / "test-values.yaml").read_text())


def test_chart_lints_and_packs(everything, tmp_path):
    for values in (LEAST, everything):
        lint = helm(lint=values)["lint"]
        assert not lint["errors"] and [one["error"] for one in lint["messages"]] in ([], ["icon is recommended"]), lint
    assert pathlib.Path(helm(package=str(tmp_path))["package"]).stat().st_size > 3000


def test_what_it_asks_of_a_cluster(everything):
    assert sorted(rendered(LEAST)) == ["ConfigMap", "DaemonSet", "ServiceAccount"]
    made = rendered(everything)
    assert sorted(made) == ["ConfigMap", "DaemonSet", "PodMonitor", "PrometheusRule", "ServiceAccount"]
    pod = made["DaemonSet"]["spec"]["template"]["spec"]
    (tap,) = pod["containers"]
    rights = tap["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_RAW", "SETUID", "SETGID"]}
    assert rights["readOnlyRootFilesystem"] and not rights["privileged"] and not rights["allowPrivilegeEscalation"]
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet" and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert tap["resources"]["limits"]["memory"] and tap["resources"]["requests"]["cpu"]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"} and pod["tolerations"] == [{"operator": "Exists"}]
    assert not any("subPath" in mount for mount in tap["volumeMounts"]), "a file of its own is never swapped"
    port = tap["ports"][0]
    assert tap["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert tap["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    labels = made["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (made["DaemonSet"]["spec"]["selector"], made["PodMonitor"]["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert made["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert made["PrometheusRule"]["spec"]["groups"] == yaml.safe_load(ALERTS.read_text())["groups"]


def test_manifests_are_what_kubernetes_knows(everything):
    """Against the schemas of Kubernetes itself, the oldest and the newest there are that the chart is for."""
    if subprocess.run([sys.executable, "-c", "import kubernetes_validate"], capture_output=True).returncode:
        pytest.skip("needs kubernetes-validate")
    made = rendered(everything)
    code = (
        "import json, sys, kubernetes_validate as k\n"
        "for one in json.load(sys.stdin):\n"
        "    for version in ('1.25', k.latest_version()):\n"
        "        k.validate(one, version, strict=True)\n"
    )
    quiet(sys.executable, "-W", "ignore", "-c", code, input=json.dumps([made[kind] for kind in ("ConfigMap", "DaemonSet", "ServiceAccount")]))


def test_the_config_map_is_a_configuration(everything, tmp_path):
    made = rendered(everything)
    text = made["ConfigMap"]["data"]["tap.yaml"]
    assert yaml.safe_load(text) == everything["config"]
    mount = made["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]
    assert f"{mount['mountPath']}/tap.yaml" in made["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"]


def test_a_policy_in_place_of_target_and_share():
    """As an object or as text; the pods roll when it changes, for a tap takes it up by a restart only."""
    routes = {"version": 1, "routes": [{"mirror": {"to": "http://10.0.0.7:8080", "percent": 1}}]}
    sums = set()
    for policy in (routes, yaml.safe_dump(routes), routes | {"version": "1"}):
        made = rendered({"config": {"port": [8080]}, "policy": policy})
        assert yaml.safe_load(made["ConfigMap"]["data"]["policy.yaml"])["routes"] == routes["routes"]
        template = made["DaemonSet"]["spec"]["template"]
        words = template["spec"]["containers"][0]["args"]
        assert words[words.index("--policy") + 1] == "/etc/replay/policy.yaml"
        sums.add(template["metadata"]["annotations"]["checksum/policy"])
    assert len(sums) == 3
    made = rendered(LEAST)
    assert "policy.yaml" not in made["ConfigMap"]["data"] and "--policy" not in made["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "missing properties 'to', 'percent'"),
        ({"policy": {"routes": []}}, "/config/"),
        ({"config": {"policy": "/etc/x"}}, "policy"),
        ({"config": {"to": "http://x"}}, "missing property 'percent'"),
        ({"config": {"to": "shadow", "percent": 1}}, "'/config/to'"),
        ({"config": {"to": "http://x", "percent": 101}}, "maximum"),
        ({"config": {"to": "http://x", "percent": 1, "metrics": ":1"}}, "metrics"),
        ({"config": {"to": "http://x", "percent": 1, "seed": (1 << 53) + 1}}, "maximum"),
        ({"confg": {}}, "'confg' not allowed"),
        ({"image": {"repository": "x", "digest": "abc"}}, "digest"),
        ({"interface": "-v"}, "interface"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused(change, message):
    answer = helm(render=copy.deepcopy(LEAST) | change)
    assert message in answer.get("error", ""), answer


def test_a_seed_comes_through_whole():
    """Helm reads numbers as floats."""
    for seed in ((1 << 53) - 1, str((1 << 64) - 1)):
        assert yaml.safe_load(rendered({"config": LEAST["config"] | {"seed": seed}})["ConfigMap"]["data"]["tap.yaml"])["seed"] == seed


def test_an_image_by_digest():
    digest = "sha256:" + "a" * 64
    assert rendered(LEAST | {"image": {"repository": "r/x", "digest": digest}})["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["image"] == f"r/x@{digest}"


# ---- queries -------------------------------------------------------------------------------------------------------------------


class Tapped:
    """A replay that says what a tap says beside it."""

    def __init__(self, replay):
        self.replay = replay

    def snapshot(self):
        seen = self.replay.snapshot()
        ways = len(seen["targets"])
        tap = {
            "kernel_packets": 1000, "kernel_drops": 3, "ring_bytes": 64 << 20, "ring_used": 0.25, "interfaces": {"eth0": {"up": True}, "eth1": {"up": False}},
            "share_ppm": 10_000, "effective_ppm": 5_000, "kernel_ppm": 1_000_000, "replies": 1, "shortened": 6, "expired": 0, "queued_bytes": 5, "breakers": ["open"] * ways, "breaker_changes": [dict.fromkeys(BREAKER, 1)] * ways,
            "recorded": {"packets": 1, "bytes": 2, "left_out": 0},
        }  # fmt: skip
        daemon = {
            "reloads_applied": 1, "reloads_refused": 1, "reload_good": False, "reload_time_s": 1e9, "log": {"info": 1, "warning": 1, "error": 0, "debug": 0},
            "log_left_out": 0,
        }  # fmt: skip
        return seen | {"tap": tap, "daemon": daemon}

    def histograms(self):
        return self.replay.histograms()

    def health(self):
        return Health(True, True)


@pytest.fixture(scope="module")
def tapped(tmp_path_factory):
    """Counters with something in most of them: some answered, some not, to a sink that closes now and then."""
    folder = tmp_path_factory.mktemp("tapped")
    path = endtoend.unique(folder / "a.pcap", 300, connections=8)
    with endtoend.Sink(folder / "sink.log", "--misbehave", "close", "--every", "9") as sink:
        replay = Replay(Settings(captures=(str(path),), selection=Selection(share=500_000), targets=(target(sink.url),), pace=Pace("max")))
        replay.prepare()
        replay.start()
        while replay.running:
            replay.wait(0.05)
        replay.result()
    return Tapped(replay)


@pytest.fixture(scope="module")
def exposed(tapped):
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry(tapped, LIVE_FAMILIES)).decode()


def dashboard():
    return json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())


def dashboard_queries():
    """(where, query, variables filled in)."""
    board = dashboard()
    found = [(panel["title"], one["expr"]) for panel in board["panels"] for one in panel.get("targets", ())]
    found += [(one["name"], one["expr"]) for one in board["annotations"]["list"]]
    found += [(one["name"], re.search(r"label_values\((.*), \w+\)", one["definition"])[1]) for one in board["templating"]["list"] if one["type"] == "query"]
    return [(where, re.sub(r"\$(job|instance|target)\b", ".*", text.replace("$__rate_interval", "1m"))) for where, text in found]


def alert_rules():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def queries():
    return dashboard_queries() + [(rule["alert"], rule["expr"]) for rule in alert_rules()]


ADDED = {"job", "instance", "le"}  # by Prometheus, and by histograms


@pytest.mark.parametrize(("where", "query"), queries(), ids=[f"{at}" for at in range(len(queries()))])
def test_each_query_names_what_exists(exposed, where, query):
    known = scrape.series(exposed)
    names = re.findall(r"\b((?:replay|process)_\w+)", query)
    assert names, (where, query)
    assert set(names) <= known.keys(), (where, set(names) - known.keys())
    labels = set().union(*(known[name] for name in names)) | ADDED
    asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", query))
    for words in re.findall(r"(?:by|on|group_left|without)\s*\(([^)]*)\)", query):
        asked |= {word.strip() for word in words.split(",") if word.strip()}
    assert asked <= labels, (where, asked - labels)


def test_each_live_metric_is_exposed(exposed):
    known = scrape.families(exposed)
    assert {f"{one.name}_total" if one.kind == "counter" else one.name for one in LIVE_FAMILIES} <= known.keys()


def test_dashboard_is_laid_out():
    """Panels have numbers of their own and do not lie on each other; each has a query and a unit."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["targets"] and panel["fieldConfig"]["defaults"]["unit"])


def test_alerts_are_sound():
    assert "SUCCESS" in quiet(program("promtool"), "check", "rules", "--lint-fatal", ALERTS)
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("info", "warning") and rule["annotations"]["summary"], "a mirror wakes nobody"


CASES = {  # alert -> series (name and labels, values from minute 0 on), labels of the alert
    "ReplayNotCapturing": ([("replay_capturing{}", "0x60")], {}),
    "ReplaySeesNoRequests": ([("replay_capturing{}", "1x60"), ("replay_requests_found_total{}", "7x60")], {}),
    "ReplayKernelDrops": ([("replay_kernel_dropped_packets_total{}", "0+10x60"), ("replay_kernel_packets_total{}", "0+1000x60")], {}),
    "ReplayRequestsDropped": (
        [('replay_requests_dropped_total{target="T",reason="queue_full"}', "0+5x60"), ("replay_requests_selected_total{}", "0+100x60")],
        {"target": "T"},
    ),
    "ReplayBreakerOpen": (  # of a shadow that hangs: a probe each few seconds, which comes to nothing
        [(f'replay_breaker_state{{target="T",state="{state}"}}', values) for state, values in (("closed", "0x60"), ("open", "1 0 " * 30), ("probing", "0 1 " * 30))],
        {"target": "T"},
    ),
    "ReplayUnanswered": (
        [('replay_requests_unanswered_total{target="T",reason="timeout"}', "0+10x60"), ('replay_requests_sent_total{target="T"}', "0+100x60")],
        {"target": "T"},
    ),
    "ReplayShadowErrors": (
        [('replay_requests_answered_total{target="T",code="503"}', "0+10x60"), ('replay_requests_answered_total{target="T",code="200"}', "0+90x60")],
        {"target": "T", "instance": None},
    ),
    "ReplayStatusDiffers": (
        [('replay_status_same_total{target="T"}', "0+80x60"), ('replay_status_compared_total{target="T"}', "0+100x60")],
        {"target": "T", "instance": None},
    ),
    "ReplayLag": (
        [('replay_lag_seconds_bucket{target="T",le="1.0"}', "0+10x60"), ('replay_lag_seconds_bucket{target="T",le="2.0"}', "0+100x60"), ('replay_lag_seconds_bucket{target="T",le="+Inf"}', "0+100x60")],
        {"target": "T"},
    ),
    "ReplayShareLowered": ([("replay_share_ratio{}", "0.1x60"), ("replay_effective_share_ratio{}", "0.05x60")], {}),
    "ReplayConfigurationRefused": ([("replay_config_last_reload_successful{}", "0x60")], {}),
    "ReplayExpired": ([("replay_expired{}", "1x60")], {}),
    "ReplayMemory": ([("process_resident_memory_bytes{}", "330000000x60"), ("replay_ring_bytes{}", "67108864x60")], {}),
    "ReplayVersionsDiffer": ([('replay_build_info{version="1"}', "1x120"), ('replay_build_info{version="2"}', "1x120")], {"instance": None}),
}  # fmt: skip

WELL = [
    ("replay_capturing{}", "1x120"), ("replay_requests_found_total{}", "0+100x120"), ("replay_requests_selected_total{}", "0+100x120"),
    ("replay_kernel_packets_total{}", "0+1000x120"), ("replay_kernel_dropped_packets_total{}", "0x120"), ('replay_requests_sent_total{target="T"}', "0+100x120"),
    ('replay_requests_dropped_total{target="T",reason="queue_full"}', "0x120"), ('replay_requests_dropped_total{target="T",reason="stopped"}', "0+50x120"),
    ('replay_requests_unanswered_total{target="T",reason="timeout"}', "0x120"), ('replay_requests_answered_total{target="T",code="200"}', "0+100x120"),
    ('replay_status_same_total{target="T"}', "0+100x120"), ('replay_status_compared_total{target="T"}', "0+100x120"), ("replay_share_ratio{}", "0.1x120"),
    ("replay_effective_share_ratio{}", "0.1x120"), ("replay_config_last_reload_successful{}", "1x120"), ("replay_expired{}", "0x120"),
    ("process_resident_memory_bytes{}", "90000000x120"), ('replay_build_info{version="1"}', "1x120"), ("replay_ring_bytes{}", "67108864x120"),
    *((f'replay_breaker_state{{target="T",state="{state}"}}', f"{int(state == 'closed')}x120") for state in BREAKER),
]  # fmt: skip

AS_ASKED = {  # what is no trouble: series, alerts that keep quiet
    "expired": (
        [("replay_capturing{}", "0x60"), ("replay_expired{}", "1x60"), ("replay_share_ratio{}", "0.1x60"), ("replay_effective_share_ratio{}", "0x60")],
        ["ReplayNotCapturing", "ReplayShareLowered"],
    ),
    "--max-rate": (
        [('replay_requests_dropped_total{target="T",reason="max_rate"}', "0+50x60"), ("replay_requests_selected_total{}", "0+100x60")],
        ["ReplayRequestsDropped"],
    ),
    "--ring 1GiB": ([("process_resident_memory_bytes{}", "1163741824x60"), ("replay_ring_bytes{}", "1073741824x60")], ["ReplayMemory"]),
}


def series_of(rows):
    """Rows of CASES with the labels that a scrape adds."""
    return [{"series": name.replace("{}", '{job="j",instance="i"}').replace("{target", '{job="j",instance="i",target').replace("{version", '{job="j",instance="i",version'), "values": values} for name, values in rows]  # fmt: skip


def test_each_alert_goes_off_when_it_should_and_only_then(tmp_path):
    """promtool's unit tests: the case of each alert, and a tap that is well."""
    promtool = program("promtool")
    assert sorted(CASES) == sorted(rule["alert"] for rule in alert_rules())
    tests = []
    for name, (rows, labels) in CASES.items():
        rule = next(rule for rule in alert_rules() if rule["alert"] == name)
        wanted = {key: value for key, value in ({"job": "j", "instance": "i"} | labels | rule["labels"]).items() if value is not None}
        tests.append({"interval": "1m", "input_series": series_of(rows), "name": name, "alert_rule_test": [{"eval_time": "115m" if "120" in rows[0][1] else "59m", "alertname": name, "exp_alerts": [{"exp_labels": wanted}]}]})  # fmt: skip
    well = [{"eval_time": "110m", "alertname": name, "exp_alerts": []} for name in CASES]
    tests.append({"interval": "1m", "input_series": series_of(WELL), "name": "well", "alert_rule_test": well})
    for name, (rows, alerts) in AS_ASKED.items():
        asked = [{"eval_time": "59m", "alertname": alert, "exp_alerts": []} for alert in alerts]
        tests.append({"interval": "1m", "input_series": series_of(rows), "name": name, "alert_rule_test": asked})
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        del rule["annotations"]  # their numbers are not what is tested
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}))
    quiet(promtool, "test", "rules", tmp_path / "test.yaml")


@contextlib.contextmanager
def prometheus(folder, scraped):
    """A real Prometheus that scrapes this address each half second; a function that asks it."""
    binary, port = program("prometheus"), endtoend.free_port()
    (folder / "p.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
                "rule_files": [str(ALERTS)],
                "scrape_configs": [{"job_name": "tap", "static_configs": [{"targets": [scraped]}]}],
            }
        )
    )
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [binary, f"--config.file={folder}/p.yaml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=log, stderr=log,
        )  # fmt: skip

        def ask(query):
            connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=10)
            try:
                connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
                return json.loads(connection.getresponse().read())
            except OSError:
                return {"status": "down"}
            finally:
                connection.close()

        try:
            yield ask
        finally:
            process.terminate()
            process.wait(20)


def test_a_real_prometheus_answers_each_query(tapped, tmp_path):
    """Scraped over HTTP; every query of the dashboard and the alerts is understood, and those that do not look for trouble find something."""
    with server.MetricsServer(("127.0.0.1", 0), tapped, metrics.registry(tapped, LIVE_FAMILIES)) as served, prometheus(tmp_path, served.address) as ask:
        endtoend.wait_until(lambda: ask('count_over_time(replay_capturing{job="tap"}[1m]) >= 4').get("data", {}).get("result"), "four scrapes", seconds=60, step=0.2)
        assert ask("up")["data"]["result"][0]["value"][1] == "1"
        empty = []
        for where, query in queries():
            answer = ask(query)
            assert answer["status"] == "success", (where, query, answer)
            if not answer["data"]["result"] and not re.search(r"[<>]|== [01]", query):
                empty.append((where, query))
        assert not empty
        for name, labels in (("replay_requests_answered_total", {"code": "200"}), ("replay_requests_unanswered_total", {"reason": "closed"})):
            chosen = ",".join(f'{key}="{value}"' for key, value in labels.items())
            got = float(ask(f"sum({name}{{{chosen}}})")["data"]["result"][0]["value"][1])
            assert got == sum(
                count for sender in tapped.snapshot()["senders"] for key, count in (sender["status"] | sender["unanswered"]).items() if str(key) in labels.values()
            )


def test_readme_names_what_is_there():
    text = (DEPLOY / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DEPLOY / path).exists(), path
