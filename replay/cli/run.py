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

from replay import report, units
from replay.capture.source import as_error
from replay.cli import close_stdout, options
from replay.cli.progress import Progress
from replay.engine import Plan, Replay
from replay.errors import UsageError
from replay.settings import Settings, target

_POLL_S = 0.05


@click.command(short_help="replay captures against a shadow service (without --to: a dry run)")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option("--to", "to", multiple=True, metavar="URL", help="The shadow service, http://host:port (repeatable: each gets a copy).")
@options.select
@options.change
@click.option("--pace", type=options.PACE, default="original", show_default=True, help="original, 2x (twice as fast), 500/s (evenly), or max.")
@click.option("--max-gap", type=options.DURATION, default="10s", show_default=True, help="A longer silence in the capture is cut to this.")
@click.option("--loop", type=options.COUNT, default="1", show_default=True, help="Go through the captures so many times.")
@click.option("--duration", type=options.LONGER_THAN_0, help="End after this time, whatever is left.")
@click.option(
    "-c",
    "--connections",
    type=options.Unit("N", lambda text: _between(text, 1, 1 << 20)),
    default="256",
    show_default=True,
    help="At most so many to each target, opened as needed.",
)
@click.option(
    "--pipeline", type=options.Unit("N", lambda text: _between(text, 1, 64)), default="1", show_default=True, help="Requests under way on one connection."
)
@click.option("--connect-timeout", type=options.LONGER_THAN_0, default="1s", show_default=True, help="For a connection to stand.")
@click.option("--timeout", type=options.LONGER_THAN_0, default="15s", show_default=True, help="For a whole reply.")
@click.option("--drain", type=options.DURATION, default="5s", show_default=True, help="At the end, for what is under way.")
@options.bounds
@click.option("--allow-production", is_flag=True, help="Send although the target is a server of the capture.")
@click.option("--dry-run", is_flag=True, help="Everything but connecting.")
@click.option("--report", "report_file", metavar="FILE.json", help="Write the whole result there.")
@click.option("--access-log", metavar="FILE", help="A line a request, in Envoy's default format (- is standard error).")
@click.option("--json", "as_json", is_flag=True, help="The result on standard output as one JSON object, and nothing else there.")
@options.config
@click.pass_context
def run(ctx: click.Context, /, captures: tuple[str, ...], to: tuple[str, ...], quiet: bool, verbose: bool, **given: Any) -> None:
    """Replays the requests of captures against a shadow service and accounts for each.

    A CAPTURE is a file, a folder, a glob, or - for standard input; pcap or pcapng, plain, gzip or zstd.
    Without --to it is a dry run, which ends in the exact command to send.
    """
    if verbose:
        _tell("options:", *options.effective(ctx))
    selection = options.selection(given)
    targets = tuple(dict.fromkeys(target(text) for text in to))
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
        connect_timeout_ns=given["connect_timeout"],
        timeout_ns=given["timeout"],
        drain_ns=given["drain"],
    )
    with _access_log(given["access_log"]) as log:
        _writable(given["report_file"])
        command = ["replay", *sys.argv[1:]]
        code = perform(settings, command=command, log=log, report_file=given["report_file"], as_json=given["as_json"], quiet=quiet)
    ctx.exit(code)


def perform(settings: Settings, *, command: list[str], log: IO[str] | None, report_file: str | None, as_json: bool, quiet: bool) -> int:
    """Runs it to its end, tells what is to be told, and gives the exit code."""
    replay = Replay(settings, log=log is not None)
    with _signals(replay):
        plan = replay.prepare()
        for error in replay.errors:
            _tell(f"replay run: {error}")
        if not quiet:
            _tell(*_introduction(settings, plan))
        replay.start()
        limits = _Limits(settings)
        asked = _asked(settings, plan)
        with Progress(enabled=not quiet and not as_json and not settings.dry_run, span_ns=_duration(settings, plan), asked=asked) as progress:
            writer = _LogWriter(replay, log)
            while replay.running:
                replay.wait(_POLL_S)
                seen = replay.snapshot()
                limits.look(seen)
                if progress.shown:
                    progress.update(seen, replay.lag_us())
            writer.end()
        found = replay.result()
    found["limited_by"] = limits.verdict(found)
    whole = report.build(settings, found, command=command, started=replay.started_at, ended=replay.ended_at, notes=_notes(settings, found))
    for fault in found["faults"]:
        _tell(f"replay run: {'' if fault['fatal'] else 'warning: '}{as_error(fault)}")
    if settings.dry_run:
        whole["to_send"] = _command_to_send(command, bool(settings.targets))
    if report_file is not None:
        _write_report(report_file, whole)
    _print(settings, whole, as_json=as_json, quiet=quiet)
    return _code(replay, whole)


def _code(replay: Replay, whole: dict[str, Any]) -> int:
    """The exit code: what matters most comes first."""
    if whole["guard"]:
        return 3
    if whole["interrupted"]:
        return 130
    if replay.errors or any(fault["fatal"] for fault in whole["faults"]) or not whole["ledger"]["found"]:
        return 4
    return 5 if whole["never_connected"] else 0


# ---- before ------------------------------------------------------------------------------------------------------------------


def _introduction(settings: Settings, plan: Plan) -> list[str]:
    """What is about to be done: target, share, methods, writes, planned duration."""
    to = ", ".join(one.url for one in settings.targets) or "nowhere"
    host = settings.selection.set_host or (f"NAME{settings.selection.suffix}" if settings.selection.suffix else "as captured")
    share = report.share_text(settings)
    doing = "sending to" if not settings.dry_run else "dry run, would send to" if settings.targets else "dry run, sending"
    lines = [f"{doing} {to}: {share}, {', '.join(settings.selection.methods) or 'every method'}, Host {host}, pace {settings.pace}"]
    counts = plan.counts
    if settings.dry_run:
        return lines
    if counts is None:
        return [*lines, "the captures cannot be read ahead: how long it takes and how many writes there are is not known"]
    about = "" if plan.whole else "about "
    factor = 1.0 if plan.whole or not plan.share_read else 1 / plan.share_read
    copies = max(len(settings.targets), 1) * settings.loop
    selected, writes = int(counts["selected"] * factor) * copies, int(counts["writes"] * factor) * copies
    lines.append(f"planned: {about}{selected:,} requests, {about}{writes:,} of them writes, {_planned(settings, plan)}")
    if counts["gaps_cut"] and settings.pace.kind == "original":
        lines.append(f"silences: {_silences(settings, counts)}")
    if plan.guard:
        lines.append("refused: the target is a server of this capture, nothing is sent (--allow-production, where that is meant)")
    return lines


def _silences(settings: Settings, counts: dict[str, Any]) -> str:
    most, cut = units.show_duration(settings.selection.max_gap_ns), units.show_duration(counts["gaps_cut_ns"])
    return f"{counts['gaps_cut']:,} longer than {most}, each cut to that, {cut} in all (--max-gap)"


def _duration(settings: Settings, plan: Plan) -> int | None:
    """How long it takes by the plan, in capture time at `original`; None when that is not known."""
    if plan.span_ns is None or settings.pace.kind != "original":
        return None
    return plan.span_ns * settings.loop


def _asked(settings: Settings, plan: Plan) -> float | None:
    """Requests a second to all targets by the plan; None when that is not known, or as fast as it goes."""
    copies = max(len(settings.targets), 1)
    if settings.pace.kind == "rate":
        return settings.pace.value * copies
    if settings.pace.kind == "max" or plan.counts is None or not plan.counts["end_offset_ns"]:
        return None
    return float(plan.counts["selected"] * copies * 1e9 / plan.counts["end_offset_ns"] * settings.pace.value)


def _planned(settings: Settings, plan: Plan) -> str:
    about = "" if plan.whole else "about "
    if settings.pace.kind == "max":
        return "as fast as answers come"
    if settings.pace.kind == "rate" and plan.counts is not None:
        ns = plan.counts["selected"] / (1.0 if plan.whole or not plan.share_read else plan.share_read) * settings.loop / settings.pace.value * 1e9
    else:
        ns = (plan.span_ns or 0) * settings.loop / settings.pace.value
    if settings.duration_ns is not None and settings.duration_ns < ns:
        return f"{units.show_duration(settings.duration_ns)} (--duration; {about}{units.show_duration(ns)} without)"
    return f"{about}{units.show_duration(ns)}"


# ---- during ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _signals(replay: Replay) -> Iterator[None]:
    """SIGINT and SIGTERM stop the run; a second one ends the process at once."""

    def stop(*_: object) -> None:
        if replay.stopped:
            os._exit(130)
        replay.stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Limits:
    """What held the run up, from looks at its counters: `connections` (all busy, requests waiting), `capture` (the reader), or nothing."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.connections
        self._max = settings.pace.kind == "max"
        self._looks = self._full = self._late = 0

    def look(self, seen: dict[str, Any]) -> None:
        for sender in seen["senders"]:
            self._looks += 1
            self._late += sender["waiting"] > 0
            self._full += sender["waiting"] > 0 and sender["connections_open"] >= self._most

    def verdict(self, found: dict[str, Any]) -> str | None:
        if any(one["limits"].get("descriptors") for one in found["senders"]):
            return "descriptors"
        if any(one["limits"].get("local_ports") for one in found["senders"]):
            return "local_ports"
        if self._looks < 3:
            return None
        if self._full * 2 > self._looks:
            return "connections"
        if self._late * 2 > self._looks:
            return "target"
        return "capture" if self._max and self._late * 10 < self._looks else None


class _LogWriter:
    """Writes the access log in a thread of its own, so that neither senders nor progress wait for a disk."""

    def __init__(self, replay: Replay, log: IO[str] | None) -> None:
        self._replay = replay
        self._log = log
        self._ended = False
        self.failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        if log is not None:
            self._thread.start()

    def _run(self) -> None:
        while True:
            last = self._ended
            wrote = 0
            for _, addresses, row in self._replay.outcomes():
                wrote += 1
                self._write(report.access_line(row, addresses))
            if last and not wrote:
                return
            if not wrote:
                time.sleep(0.01)

    def _write(self, line: str) -> None:
        if self.failed is None and self._log is not None:
            try:
                self._log.write(line + "\n")
            except OSError as error:  # a full disk: the run goes on, the log ends
                self.failed = error
                _tell(f"replay run: warning: --access-log: {error.strerror}; the rest of the log is lost, the run goes on")

    def end(self) -> None:
        """Everything that ended is in the log."""
        self._ended = True
        if self._log is not None:
            self._thread.join()


# ---- after -------------------------------------------------------------------------------------------------------------------


def _notes(settings: Settings, found: dict[str, Any]) -> list[str]:
    """What a person should know beside the numbers."""
    ingest = found["ingest"]
    notes = []
    if ingest["gaps_cut"] and settings.pace.kind == "original":
        notes.append(f"silences: {_silences(settings, ingest)}")
    if ingest["overlap_conflict"]:
        notes.append(f"{ingest['overlap_conflict']:,} packets repeated bytes with another content; the first copy was taken")
    if ingest["evicted"]:
        notes.append(f"{ingest['evicted']:,} connections were closed early: more than --max-connections at a time")
    if ingest["no_memory"]:
        notes.append(f"{ingest['no_memory']:,} times --max-memory was reached; what did not fit is incomplete: evicted")
    for to, sender in zip(found["targets"], found["senders"], strict=True):
        limits = sender["limits"]
        if limits.get("descriptors"):
            notes.append("too many open files: raise the limit (ulimit -n) or lower --connections")
        if limits.get("local_ports"):
            notes.append(f"no local port was free for {to.url if to else ''}: lower --connections, or raise net.ipv4.ip_local_port_range")
        if limits.get("memory"):
            notes.append("the kernel had no memory for a connection")
        if sender["outcomes_lost"]:
            notes.append(f"the access log lacks {sender['outcomes_lost']:,} lines: it could not be written fast enough")
    return notes


def _print(settings: Settings, whole: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """The result on standard output. Whoever reads it may have gone; the exit code still holds."""
    try:
        if as_json:
            sys.stdout.buffer.write(_encode(whole))
            sys.stdout.buffer.flush()
        elif not quiet:
            print("\n".join(report.summary(whole)))
            if settings.dry_run and whole["ledger"]["selected"]:
                print(f"to send: {whole['to_send']}")
            sys.stdout.flush()
    except BrokenPipeError:
        _tell("replay run: standard output was closed; the result could not be shown there")
        close_stdout()


def _command_to_send(command: list[str], has_target: bool) -> str:
    words = [word for word in command if word != "--dry-run"]
    return shlex.join(words) + ("" if has_target else " --to http://SHADOW:PORT")


def _encode(whole: dict[str, Any]) -> bytes:
    import json

    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _write_report(path: str, whole: dict[str, Any]) -> None:
    try:
        report.write(path, _encode(whole))
    except OSError as error:
        done = f"the run itself is over: {whole['ledger']['sent']:,} sent, {whole['ledger']['answered']:,} answered"
        raise UsageError(f"--report {path}: {error.strerror}; {done}") from None


def _writable(path: str | None) -> None:
    """Says before the run that a report cannot be written, not after it."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UsageError(f"--report {path}: is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise UsageError(f"--report {path}: there is no folder {folder}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--report {path}: permission denied")


@contextlib.contextmanager
def _access_log(path: str | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    if path == "-":
        yield sys.stderr
        return
    try:
        file = open(path, "w", encoding="utf-8", buffering=1 << 16)
    except OSError as error:
        raise UsageError(f"--access-log {path}: {error.strerror}") from None
    try:
        yield file
    finally:
        try:
            file.close()
        except OSError as error:
            _tell(f"replay run: warning: --access-log {path}: {error.strerror}; its end is lost")


def _between(text: str, least: int, most: int) -> int:
    value = units.count(text)
    if not least <= value <= most:
        raise ValueError(f"{text!r} is out of range: {least:,} to {most:,}")
    return value


def _tell(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
    sys.stderr.flush()
