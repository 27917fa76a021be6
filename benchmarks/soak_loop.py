"""Does a mirror ever feed itself? A tap of the very interface and port that it sends to, and of what its shadow calls, for a minute.

    python benchmarks/soak_loop.py [--seconds 60] [--rate 500]        (as root)

Three productions are tapped at once on lo, each with a client at an even rate. One is the target of its own mirror (`--allow-production`); so is the second, and the copies keep the Host of their originals. What the tap sends itself it
must not even find. The third's shadow is a proxy that hands each copy on to production, where it is seen again by way of a connection that is not ours: there the marker tells. Each has to send exactly the originals.
"""

import contextlib
import json
import subprocess
import time

import inputs
import measure
import servers
import tapping

QUESTION = "Does a mirror ever feed itself?"
PROXY = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{to}; }} }}
}}
"""


class Proxy:
    """An nginx that hands everything on to a port. As a context manager."""

    def __init__(self, folder, to):
        self.port = servers.free_port()
        folder.mkdir()
        (folder / "nginx.conf").write_text(PROXY.format(folder=folder, port=self.port, to=to))
        self.process = subprocess.Popen([tapping.program("nginx"), "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)

    def __enter__(self):
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


def main():
    parser = measure.arguments(__doc__, seconds=60, rate=500)
    asked = parser.parse_args()
    tapping.apart("nginx")
    checks = tapping.Checks()
    path, originals = inputs.cached(requests=asked.rate * asked.seconds, connections=64, bodies=0.0)
    with measure.scratch() as folder, contextlib.ExitStack() as stack:
        for name in ("a", "b", "c"):
            (folder / name).mkdir()
        with servers.Nginx(folder / "a") as a, servers.Nginx(folder / "b") as b, servers.Nginx(folder / "c") as c, Proxy(folder / "proxy", c.port) as proxy:
            own = ["--allow-production", "-p", 100]
            ways = {
                "target is the tapped port": (a, [*own, "--to", a.url]),
                "the same, copies with the Host of their originals": (b, [*own, "--to", b.url, "--shadow-suffix", "off"]),
                "the shadow calls production": (c, ["-p", 100, "--to", f"http://127.0.0.1:{proxy.port}"]),
            }
            before = {name: nginx.count() for name, (nginx, _) in ways.items()}
            taps = {name: stack.enter_context(tapping.Tap("lo", nginx.port, *words)) for name, (nginx, words) in ways.items()}
            clients = {name: stack.enter_context(tapping.evenly(nginx.url, path, asked.rate)) for name, (nginx, _) in ways.items()}
            answered = {name: json.loads(client.end(0, seconds=asked.seconds * 3 + 60)[0])["ledger"]["answered"] for name, client in clients.items()}
            time.sleep(1)
            reports = {name: tap.report() for name, tap in taps.items()}
            served = {name: nginx.count() - before[name] for name, (nginx, _) in ways.items()}
    for name, report in reports.items():
        ledger = report["ledger"]
        through = name.startswith("the shadow")
        checks.is_(f"{name}: originals answered", answered[name], originals)
        copies = ledger["sent"]
        checks.holds(f"{name}: sent", copies, f"{originals:,}, but what was dropped with a count: {ledger['dropped']:,}", copies == originals - ledger["dropped"])
        checks.is_(f"{name}: found", ledger["found"], originals + (copies if through else 0))
        checks.is_(f"{name}: withheld", ledger["by_reason"]["withheld"], {"loop": copies} if through else {})
        checks.is_(f"{name}: production served", served[name], originals + copies)
        checks.is_(f"{name}: kernel drops", report["packets"]["kernel_drops"], 0)
    checks.tell("soak_loop", QUESTION, asked)


if __name__ == "__main__":
    main()
