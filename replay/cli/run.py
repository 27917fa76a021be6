"""`replay run`: replays captures against a shadow service."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import click

from replay import accesslog, report, results
from replay.capture.source import as_error
from replay.cli import options, planned, sending, told
from replay.cli.group import close_stdout
from replay.cli.progress import Progress
from replay.engine import Replay
from replay.errors import UsageError
from replay.judge import gating
from replay.judge.limits import Limits
from replay.settings import Settings, target

_POLL_S = 0.05


@click.command(short_help="replay captures against a shadow service (without --to: a dry run)")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@sending.target_options
@options.select
@options.change
@options.policy_file
@click.option("--pace", type=options.PACE, default="original", show_default=True, help="original, 2x (twice as fast), 500/s (evenly), or max.")
@click.option("--start-at", type=options.AHEAD, help="Begin at this time: 2026-08-01T10:00:00Z, or +10s from now; for shards that begin together.")
@click.option("--max-gap", type=options.DURATION, default="10s", show_default=True, help="A longer silence in the capture is cut to this.")
@click.option(
    "--loop", type=options.COUNT, default="1", show_default=True, help="Go through the captures so many times; from memory where --max-memory has room."
)
@click.option("--duration", type=options.LONGER_THAN_0, help="End after this time, whatever is left.")
@sending.sending(connections="256", timeout="15s")
@click.option(
    "--driver",
    type=options.Choice("HOW", ("auto", "io_uring", "epoll")),
    default="auto",
    show_default=True,
    help="How to talk to the kernel: auto is io_uring where it is allowed (Linux 6.1), else epoll.",
)
@options.bounds
@click.option("--allow-production", is_flag=True, help="Send although the target is a server of the capture.")
@click.option("--dry-run/--no-dry-run", "dry_run", help="Everything but connecting (without --to it is one anyway).")
@click.option("--html", "html_file", metavar="FILE.html", help="Write the result as one page that needs nothing else.")
@click.option("--fail-if", multiple=True, metavar="EXPR", help="Exit with 1 when it holds: 'status_change > 0.5%', 'latency_us.p99 > 250ms' (repeatable).")
@click.option("--stop-if", multiple=True, metavar="EXPR", help="End the run as soon as it holds, and exit with 1 (repeatable).")
@click.option("--allow-empty", is_flag=True, help="Gates accept that nothing was selected.")
@sending.told
@options.metrics
@options.config
@click.pass_context
def run(ctx: click.Context, /, captures: tuple[str, ...], to: tuple[str, ...], quiet: bool, verbose: bool, **given: Any) -> None:
    """Replays the requests of captures against a shadow service and accounts for each.

    A CAPTURE is a file, a folder, a glob, or - for standard input; pcap or pcapng, plain, gzip or zstd.
    Without --to it is a dry run, which ends in the exact command to send.
    """
    if verbose:
        _tell("options:", *options.effective(ctx))
    sending.apart(ctx, given, captures)
    given["to"] = to
    selection, warnings = options.routed(ctx, given, options.selection(given))
    if not quiet:
        _tell(*warnings)
    routing = selection.routing
    targets = tuple(target(text) for text in to) if routing is None else routing.targets
    settings = Settings(
        captures=captures,
        selection=selection,
        targets=targets,
        dry_run=given["dry_run"] or not targets,
        allow_production=given["allow_production"],
        pace=given["pace"],
        loop=given["loop"],
        duration_ns=given["duration"],
        connections=given["connections"],
        pipeline=given["pipeline"],
        driver=given["driver"],
        connect_timeout_ns=given["connect_timeout"],
        timeout_ns=given["timeout"],
        drain_ns=given["drain"],
        start_at_ns=given["start_at"],
        tls=sending.tls(given, targets),
    )
    gates = gating.parsed(given["fail_if"], given["stop_if"], given["allow_empty"])
    with accesslog.opened(given["access_log"]) as log, results.opened(given["results"]) as lines:
        _writable("--report", given["report_file"])
        _writable("--html", given["html_file"])
        words = sys.argv[1:]
        more = [] if targets else ["--to", "http://SHADOW:PORT"]
        more += ["--no-dry-run"] if given["dry_run"] and "--dry-run" not in words else []  # it stands in a configuration
        sends = _sending(words, more)
        code = perform(
            settings, words=words, sends=sends, log=log, lines=lines, gates=gates, report_file=given["report_file"], as_json=given["as_json"], quiet=quiet,
            metrics=given["metrics"], html_file=given["html_file"],
        )
    ctx.exit(code)


def _sending(words: list[str], more: list[str]) -> list[str]:
    """The words of a dry run as those that send, with `more`: at their end, or in front of all options where `--` says that captures follow."""
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word not in ("--dry-run", "--no-dry-run")]
    return [*options, *more] if end == len(words) else [*options[:1], *more, *options[1:], *words[end:]]


def perform(
    settings: Settings,
    *,
    words: list[str],
    log: IO[str] | None,
    report_file: str | None,
    as_json: bool,
    quiet: bool,
    sends: list[str] | None = None,
    lines: IO[bytes] | None = None,
    gates: gating.Gates | None = None,
    metrics: tuple[str, int] | None = None,
    html_file: str | None = None,
) -> int:
    """Runs it to its end, tells what is to be told, and gives the exit code.

    words: of the command line.  sends: the words that send what a dry run only shows.  lines: where `--results` goes."""
    replay = Replay(settings, log=log is not None, results=lines is not None)
    gates = gates or gating.Gates()

    def so_far() -> dict[str, Any]:
        return report.build(settings, replay.so_far(), command=["replay", *words], started=replay.started_at, ended=time.time(), final=False)

    with _signals(replay), options.served(metrics, replay) as served:
        if served and not quiet:
            _tell(f"metrics at http://{served}/metrics")
        plan = replay.prepare()
        for error in replay.errors:
            _tell(f"replay run: {error}")
        if not quiet:
            _tell(*planned.introduction(settings, plan))
        replay.start()
        limits = Limits(settings)
        waits = _Waits(enabled=not quiet)
        asked = planned.asked(settings, plan)
        with Progress(enabled=not quiet and not as_json and not settings.dry_run, span_ns=planned.duration(settings, plan), asked=asked) as progress:
            writer = accesslog.LogWriter(replay, log)
            results_writer = results.ResultsWriter(replay, lines)
            while replay.running:
                replay.wait(_POLL_S)
                seen = replay.snapshot()
                limits.look(seen)
                waits.look(seen)
                if progress.shown:
                    progress.update(seen, replay.lag_us())
                if seen["ingest"] is not None and gates.look(so_far):
                    replay.finish()
            replay.settle()
            writer.end()
            results_writer.end()
        found = replay.result()
    found["limited_by"] = limits.verdict(found)
    whole = report.build(settings, found, command=["replay", *words], started=replay.started_at, ended=replay.ended_at, notes=planned.notes(settings, found))
    whole["gates"], whole["stopped_by"] = gates.judge(whole), gates.stopped_text
    for fault in found["faults"]:
        _tell(f"replay run: {'' if fault['fatal'] else 'warning: '}{as_error(fault)}")
    if settings.dry_run and sends:
        whole["to_send"] = report.mask(["replay", *sends])
    if report_file is not None:
        _write_report("--report", report_file, _encode(whole), whole)
    if html_file is not None:
        from replay.judge import page

        _write_report("--html", html_file, page.page(whole).encode("utf-8", "replace"), whole)
    code = report.exit_code(whole, unread=bool(replay.errors))
    hint = report.hint(whole)
    if as_json or quiet:
        _tell(*(f"replay run: gate failed: {report.gate_text(gate)}" for gate in whole["gates"] if gate["failed"]))
    if code in (3, 4, 5) and hint and (as_json or quiet):
        _tell(f"replay run: {hint}")
    _print(whole, as_json, ["replay", *sends] if settings.dry_run and sends and whole["ledger"]["selected"] else [])
    return code


# ---- during ------------------------------------------------------------------------------------------------------------------


class _Waits:
    """Says, once a target, that it is not there yet: a run gives it some time, and silence would look like a hang."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._told: set[int] = set()

    def look(self, seen: dict[str, Any]) -> None:
        if not self._enabled:
            return
        for n, (to, sender) in enumerate(zip(seen["targets"], seen["senders"], strict=False)):
            if n in self._told or to is None or sender["connections_opened"] or sender["never_connected"]:
                continue
            if sender["connect_failed"]:
                self._told.add(n)
                why = f" ({os.strerror(sender['errno'])})" if sender["errno"] else ""
                _tell(f"replay run: {to.url} is not reachable yet{why}, trying for up to 10 s")


@contextlib.contextmanager
def _signals(replay: Replay) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the run; a second one ends the process at once."""

    def stop(*_: object) -> None:
        if replay.stopped:
            os._exit(130)
        replay.stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


# ---- after -------------------------------------------------------------------------------------------------------------------


def _print(whole: dict[str, Any], as_json: bool, to_send: list[str]) -> None:
    """The result on standard output. Whoever reads it may have gone; the exit code still holds. Raises UsageError when it cannot be written."""
    try:
        if as_json:
            sys.stdout.buffer.write(_encode(whole))
            sys.stdout.buffer.flush()
        else:
            print("\n".join(report.summary(whole)))
            if to_send:
                print(f"to send: {shlex.join(to_send)}")
            sys.stdout.flush()
    except BrokenPipeError:
        _tell("replay run: standard output was closed; the result could not be shown there")
        close_stdout()
    except OSError as error:
        close_stdout()
        raise UsageError(f"standard output: {error.strerror}; {_done(whole)}") from None


def _done(whole: dict[str, Any]) -> str:
    return f"the run itself is over: {whole['ledger']['sent']:,} sent, {whole['ledger']['answered']:,} answered"


def _encode(whole: dict[str, Any]) -> bytes:
    import json

    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _write_report(option: str, path: str, data: bytes, whole: dict[str, Any]) -> None:
    try:
        report.write(path, data)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; {_done(whole)}") from None


def _writable(option: str, path: str | None) -> None:
    """Says before the run that a report cannot be written, not after it."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: there is no folder {folder}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{option} {path}: permission denied")


def _tell(*lines: str) -> None:
    told.say(lines, level="warning")
