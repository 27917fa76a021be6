"""`replay report`: reports of runs added up, set side by side, or made into a page."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from replay import outputs
from replay import report as reporting
from replay.errors import UsageError
from replay.judge import comparing, gating, merging
from replay.units import show_count

_MOST_BYTES = 256 << 20


@click.command(short_help="reports of runs: added up, side by side, as a page")
@click.argument("reports", nargs=-1, required=True, metavar="REPORT.json...")
@click.option("--compare", is_flag=True, help="Side by side instead of added up.")
@click.option("--html", "html_file", metavar="FILE.html", help="Write one page that needs nothing else.")
@click.option("--report", "report_file", metavar="FILE.json", help="Write the sum as a report.")
@click.option("--fail-if", multiple=True, metavar="EXPR", help="Exit with 1 when it holds for the sum (repeatable).")
@click.option("--allow-empty", is_flag=True, help="Gates accept that nothing was selected.")
@click.option("--json", "as_json", is_flag=True, help="The sum, or with --compare the table, as one JSON object on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on standard output.")
@click.pass_context
def report(
    ctx: click.Context, /, reports: tuple[str, ...], compare: bool, html_file: str | None, report_file: str | None, fail_if: tuple[str, ...],
    allow_empty: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Reads reports that `replay run --report` wrote.

    Several are added up: of shards, of nodes, of runs one after the other; percentiles are those of all requests together.
    """
    if compare and (report_file or fail_if):
        raise UsageError("--compare sets reports side by side; --report and --fail-if are for their sum")
    if compare and len(reports) < 2:
        raise UsageError("--compare needs two reports or more")
    outputs.apart([("--report", report_file), ("--html", html_file)])
    outputs.apart([("--html", html_file)], read=[("REPORT", path) for path in reports])  # the sum may replace one of them: it holds what was in it
    gates = gating.parsed(fail_if, (), allow_empty)
    loaded = [_loaded(path) for path in reports]
    code = 0
    if compare:
        named = list(zip(_names(reports), loaded, strict=True))
        rows, notes = comparing.table(named), comparing.notes(named)
        if html_file:
            from replay.judge import page

            _write("--html", html_file, page.compared(named, rows, notes).encode())
        out = _encoded({"reports": [name for name, _ in named], "notes": notes, "rows": dict(rows)}) if as_json else _text(named, rows, notes)
    else:
        dry = [path for path, one in zip(reports, loaded, strict=True) if one["dry_run"]]
        if 0 < len(dry) < len(reports):
            raise UsageError(f"{', '.join(dry)}: of a dry run, which sent nothing; the others did. Leave it out, or set them side by side (--compare)")
        whole = merging.merged(loaded)
        try:
            reporting.check(whole)
        except AssertionError as error:
            raise UsageError(f"{', '.join(reports)}: {error}") from None
        if fail_if:
            whole = whole | {"gates": gates.judge(whole)}
        code = 1 if any(gate["failed"] for gate in whole["gates"]) else 0
        if report_file:
            _write("--report", report_file, _encoded(whole))
        if html_file:
            from replay.judge import page

            _write("--html", html_file, page.page(whole).encode())
        title = [f"{show_count(len(loaded))} reports added up, digest {whole['digest']}"] if len(loaded) > 1 else []
        out = _encoded(whole) if as_json else ("\n".join(title + reporting.summary(whole)) + "\n").encode("utf-8", "surrogateescape")
    if not quiet or as_json:
        sys.stdout.buffer.write(out)
        sys.stdout.buffer.flush()
    ctx.exit(code)


def _loaded(path: str) -> dict[str, Any]:
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path}: larger than any report")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON: {error}") from None
    return merging.readable(found, path)


def _names(paths: tuple[str, ...]) -> list[str]:
    """Short names, told apart."""
    short = [os.path.basename(path).removesuffix(".json") for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def _text(named: list[tuple[str, dict[str, Any]]], rows: list[tuple[str, list[str]]], notes: list[str]) -> bytes:
    first = max(len(what) for what, _ in rows)
    wide = [max(len(name), *(len(texts[at]) for _, texts in rows)) for at, (name, _) in enumerate(named)]
    lines = [" " * first + "  " + "  ".join(f"{name:>{wide[at]}}" for at, (name, _) in enumerate(named))]
    lines += [f"{what:<{first}}  " + "  ".join(f"{text:>{wide[at]}}" for at, text in enumerate(texts)) for what, texts in rows]
    return ("\n".join([*(line.rstrip() for line in lines), *(f"note: {note}" for note in notes)]) + "\n").encode("utf-8", "surrogateescape")


def _encoded(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _write(option: str, path: str, data: bytes) -> None:
    try:
        reporting.write(path, data)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
