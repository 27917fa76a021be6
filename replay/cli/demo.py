"""`replay demo`: the whole story in half a minute, with a capture that is shipped and a shadow service that is embedded."""

from __future__ import annotations

import collections
import importlib.resources
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

import click

import replay
from replay.cli import options
from replay.cli.run import perform
from replay.errors import ReplayError, UsageError
from replay.settings import Selection, Settings, target
from replay.units import Pace


@click.command(short_help="the whole story in half a minute, nothing else needed")
@click.option("-p", "--percent", type=options.SHARE, default="50", show_default=True, help="This share of the requests.")
@click.option("--pace", type=options.PACE, default="2x", show_default=True, help="original, 2x, 500/s or max.")
@click.option("--save", metavar="FILE.pcap", help="Only write the shipped capture there, to try other verbs on it.")
@click.pass_context
def demo(ctx: click.Context, percent: int, pace: Pace, save: str | None) -> None:
    """Replays a capture of a small shop (nginx and six kinds of clients, ten seconds) against an embedded shadow service.

    Half of the requests, twice as fast; each Host gets -shadow. In the end: what was found and sent, and what the shadow service saw.
    """
    if save is not None:
        _save(save)
        return
    with tempfile.TemporaryDirectory(prefix="replay-demo-") as folder:
        log = os.path.join(folder, "seen.jsonl")
        with importlib.resources.as_file(importlib.resources.files("replay.data") / "demo.pcap") as capture:
            sink, where = _start_sink(log)
            try:
                print(f"1. An embedded shadow service listens on {where}.")
                print("2. The capture of a small shop is replayed to it, as by:")
                print(f"   replay run {capture} --to http://{where} -p {percent / 10_000:g} --pace {pace}")
                print(flush=True)
                settings = Settings(captures=(str(capture),), selection=Selection(share=percent), targets=(target(f"http://{where}"),), pace=pace)
                code = perform(settings, words=["demo"], log=None, report_file=os.path.join(folder, "report.json"), as_json=False, quiet=False)
            finally:
                totals = _end_sink(sink)
        with open(os.path.join(folder, "report.json"), encoding="utf-8") as file:
            ledger = json.load(file)["ledger"]
        print()
        print("3. What the shadow service saw:")
        _show_seen(log, totals)
        if code == 0 and totals["requests"] != ledger["sent"]:
            raise ReplayError(f"the ledger says {ledger['sent']} sent, the shadow service saw {totals['requests']}: please report this")
        if code == 0:
            print(f"\nThe ledger and the shadow service agree: {totals['requests']:,} requests, each exactly once.")
            print(f"By hand (that service is gone; this one stays): {_command()} sink --listen 127.0.0.1:9090")
            print(f"Next, a capture of your own: {_command()} show CAPTURE")
    ctx.exit(code)


def _command() -> str:
    """What to type for `replay`: where it is not on the path, as in a checkout after `make demo`, its file."""
    own = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "replay")
    return "replay" if shutil.which("replay") or not os.access(own, os.X_OK) else shlex.quote(os.path.relpath(own))


def _save(path: str) -> None:
    try:
        with open(path, "wb") as file:
            file.write((importlib.resources.files("replay.data") / "demo.pcap").read_bytes())
    except OSError as error:
        raise UsageError(f"--save {path}: {error.strerror}") from None
    print(f"a capture of a small shop, 226 requests in ten seconds: replay inspect {path}")


def _start_sink(log: str) -> tuple[subprocess.Popen[str], str]:
    """The embedded service as a process of its own: (process, host:port)."""
    words = ["sink", "--listen", "127.0.0.1:0", "--access-log", log, "--json"]
    # This very package, wherever it is, and not what the folder that we stand in may hold.
    home = {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(replay.__file__)))}
    process = subprocess.Popen([sys.executable, "-P", "-m", "replay", *words], stdout=subprocess.PIPE, text=True, env=os.environ | home)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        process.kill()
        raise ReplayError("the embedded shadow service did not start")
    return process, line.split()[-1]


def _end_sink(process: subprocess.Popen[str]) -> dict[str, Any]:
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=10)
    totals: dict[str, Any] = json.loads(said.splitlines()[-1])
    return totals


def _show_seen(log: str, totals: dict[str, Any]) -> None:
    hosts: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    with open(log, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            hosts[row["host"]] += 1
            examples.setdefault(row["host"], f"{row['method']} {row['target']}")
    for host, n in hosts.most_common():
        print(f"   {n:>5}  {host:<32} such as {examples[host]}")
    print(f"   {totals['requests']:>5}  in all, over {totals['connections']} connections")
