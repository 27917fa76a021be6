"""`replay doctor`: what this machine can do, each problem with its fix."""

from __future__ import annotations

import json
import sys

import click

from replay import doctor as checking
from replay.cli import options, sending
from replay.settings import target
from replay.tap import checks

_MARKS = {"ok": "ok", "warn": "WARN", "bad": "BAD"}


@click.command(short_help="what this machine can do; each problem with its fix", context_settings={"allow_extra_args": True})
@click.option("--to", "to", multiple=True, metavar="URL", help="Also look whether this shadow service is there (a connection, no request).")
@click.option("-i", "--interface", multiple=True, metavar="IFACE", help="Look at what a tap of this would see: a name, a pattern, default or any (repeatable).")
@click.option("--port", type=options.PORT, multiple=True, help="Of the servers that are meant to be tapped (repeatable).")
@click.option("--ring", type=sending.RING, default="64MiB", show_default=True, help="The ring that a tap is meant to have.")
@click.option("-c", "--connections", type=options.COUNT, default="256", show_default=True, help="So many are meant to be opened.")
@click.option("--max-memory", type=options.SIZE, default="128MiB", show_default=True, help="So much is meant to be used.")
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON object on standard output.")
@click.pass_context
def doctor(
    ctx: click.Context, /, to: tuple[str, ...], interface: tuple[str, ...], port: tuple[int, ...], ring: int, connections: int, max_memory: int, as_json: bool
) -> None:
    """Looks at this machine: its rights, limits, clock, and the target; with -i at what a tap needs, and for two seconds at what it would see.

    Ends with 1 when something will not work."""
    if ctx.args:
        raise click.UsageError(f"{ctx.args[0]!r} stands alone; an interface is named with -i: replay doctor -i {ctx.args[0]}", ctx)
    if not interface and (port or ctx.get_parameter_source("ring") is not click.core.ParameterSource.DEFAULT):
        print(f"replay doctor: {'--port' if port else '--ring'} is of no effect without -i: name the interface, such as -i default or -i any", file=sys.stderr)
    subject = checking.Subject(tuple(target(text) for text in to), connections, max_memory, interface, port, ring)
    findings = checking.examine(subject, checks.CHECKS)
    bad = any(finding.state == checking.BAD for finding in findings)
    if as_json:
        sys.stdout.write(json.dumps({"ok": not bad, "findings": [finding.as_dict() for finding in findings]}, indent=2) + "\n")
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]:<5} {finding.name:<13} {finding.text}")
            if finding.fix and finding.state != checking.OK:
                print(f"{'':<19} fix: {finding.fix}")
    sys.stdout.flush()
    ctx.exit(1 if bad else 0)
