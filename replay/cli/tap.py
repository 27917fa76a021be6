"""`replay tap`: mirrors live traffic of this node to a shadow service."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import sys
from typing import Any

import click

from replay import extras, report, results, units
from replay.capture.bpf import compile_filter
from replay.capture.recording import file_names
from replay.cli import options, sending, told
from replay.cli.again import Words
from replay.cli.planned import bound_notes
from replay.cli.run import _encode, _print
from replay.cli.sending import between
from replay.cli.tapped import live_lines, status_line
from replay.daemon.log import ALWAYS, FORMATS, DaemonLog, Early
from replay.daemon.notify import Notifier
from replay.daemon.service import Reloads, Service
from replay.errors import ReplayError, UsageError
from replay.settings import network, target
from replay.tap import Tap, TapSettings
from replay.tap.memory import default_memory

_log = logging.getLogger("replay.tap")

#: Options that a reload may change; of the others a change needs a restart.
_MAY_CHANGE = (
    "to", "policy", "mesh", "resolve", "namespace", "cacert", "cert", "key", "sni", "insecure",
    "percent", "sample_by", "seed", "methods", "path", "match_host", "client", "server", "port", "bpf", "since", "until", "resync",
    "direction", "replies", "exclude_client", "shadow_suffix", "set_host", "set_header", "add_header", "remove_header", "trace", "connections", "pipeline",
    "auth_file", "credentials", "max_hops",
    "connect_timeout", "timeout", "drain", "max_age", "max_rate", "max_cpu", "duration", "expires", "max_head", "max_body", "allow_production",
)  # fmt: skip


_JUDGED = "a tap does not judge; --record what it sees, then: replay run RECORDED --to URL"
_CLOCK = "a tap sends as requests come; --max-rate and -p bound it"

#: Options of `replay run` that a tap cannot have, and what there is instead.
_OF_A_RUN = {
    **dict.fromkeys(("--fail-if", "--stop-if", "--allow-empty"), _JUDGED),
    "--html": "give --report FILE.json, then: replay report FILE.json --html FILE.html",
    **dict.fromkeys(("--pace", "--loop", "--max-gap", "--start-at"), _CLOCK),
}


class _Command(click.Command):
    """Keeps its words, so that a reload can read them, and the configuration they name, again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["replay.words"] = words = list(args)
        try:
            rest = super().parse_args(ctx, args)
            told.known(ctx.params["log_format"])
            return rest
        except (click.ClickException, ReplayError) as error:
            told.known(_log_format(ctx, words))
            if isinstance(error, click.NoSuchOption) and error.option_name in _OF_A_RUN:
                raise click.UsageError(f"{error.option_name} belongs to `replay run`: {_OF_A_RUN[error.option_name]}", ctx) from None
            raise


def _log_format(ctx: click.Context, words: list[str]) -> str:
    """Of words that are wrong somewhere, as far as it can be told."""
    given = [after for word, after in zip(words, words[1:], strict=False) if word == "--log-format"]
    given += [word.partition("=")[2] for word in words if word.startswith("--log-format=")]
    found = given[-1] if given else (ctx.default_map or {}).get("log_format")
    return found if found in FORMATS else "text"


def _at_least(text: str, least: int) -> int:
    value = units.size(text)
    if value < least:
        raise ValueError(f"{text!r} is too small: at least {units.show_bytes(least)}")
    return value


def _block(text: str) -> int:
    """Whole milliseconds, as the kernel takes them, in nanoseconds like every other time."""
    value = units.duration(text)
    if not 10**6 <= value <= 10**9:
        raise ValueError(f"{text!r} is out of range: 1ms to 1s")
    return value // 10**6 * 10**6


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(units.pace(text if text.endswith("/s") else f"{text}/s").value)
    raise ValueError(f"{text!r} is no rate; write requests a second, such as 500/s or 10k/s (leave it out for no bound)")


def _cpu(text: str) -> float:
    """A share of a core: 0.5, 50%, 1.5."""
    share = text.strip()
    try:
        value = float(share[:-1]) / 100 if share.endswith("%") else float(share)
    except ValueError:
        raise ValueError(f"{text!r} is no share of a core, such as 0.5 or 50%") from None
    if not 0 < value <= 1024:
        raise ValueError(f"{text!r} is no share of a core, such as 0.5 or 50%")
    return value


class _Replies(options.Choice):
    """auto may have a time behind it."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            _settle(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value if value.startswith("auto:") else super().convert(value, param, ctx)


def _settle(replies: str) -> int:
    """The time of auto:TIME in nanoseconds."""
    what, colon, time = replies.partition(":")
    if what != "auto" or not colon:
        return 60 * 10**9
    found = units.duration(time)
    if found <= 0:
        raise ValueError(f"{replies!r}: the time must be longer than 0")
    return found


_BLOCK = options.Unit("TIME", _block)
_UP_TO_64 = options.Unit("N", between(1, 64))
_RECORD_SIZE = options.Unit("SIZE", lambda text: _at_least(text, 1 << 20))
_RECORD_FILES = options.Unit("N", between(1, 1000))
_FORMAT = options.Choice("FORMAT", FORMATS)


@click.command(cls=_Command, short_help="mirror live traffic from this node")
@click.argument("interfaces", nargs=-1, required=True, metavar="IFACE...")
@sending.target_options
@options.select
@options.policy_file
@click.option(
    "--direction",
    type=options.Choice("WHERE", ("in", "out", "both")),
    default="in",
    show_default=True,
    help="Requests to servers of this node (in), to others (out), or both.",
)
@click.option(
    "--exclude-client",
    multiple=True,
    metavar="CIDR|@FILE",
    help="Not from these clients (repeatable).  [default: the addresses of --to, unless this host's]",
)
@options.change
@click.option("--netns", metavar="NAME", help="Listen in this network namespace: a name of `ip netns`, a path, or the number of a process.")
@click.option("--ring", type=sending.RING, default="64MiB", show_default=True, help="The kernel's ring of packets, of all interfaces together.")
@click.option("--block-timeout", type=_BLOCK, default="5ms", show_default=True, help="The kernel hands over at least so often.")
@click.option("--workers", type=_UP_TO_64, default="1", show_default=True, help="So many threads read, by connection.")
@click.option(
    "--replies",
    type=_Replies("WHAT", ("auto", "heads", "whole", "none")),
    default="auto",
    show_default=True,
    help="Of production's replies the kernel hands over the beginnings while something needs them and for TIME after that (auto, auto:TIME; 60s), else nothing;"
    " always (heads), whole (as for --record), or never (none: then what only a reply could tell of is withheld).",
)
@sending.sending(connections="64", timeout="5s")
@click.option("--max-age", type=options.DURATION, default="10s", show_default=True, help="A request that could not be sent for so long is dropped: expired.")
@click.option("--max-rate", type=options.Unit("N/s", _rate), help="At most so many requests a second to each target; more are dropped: max_rate.")
@click.option("--max-cpu", type=options.Unit("CORES", _cpu), help="A share of a core (0.5, 50%); over it the percentage is lowered for a while.")
@click.option("--nice", type=click.IntRange(-20, 19), help="Scheduling priority; 19 gives way to everything.")
@click.option("--duration", type=options.LONGER_THAN_0, help="End after this time.")
@click.option("--expires", type=options.MOMENT, help="From then on be idle: a forgotten mirror must not go on for ever (2026-12-31T00:00:00Z).")
@options.bounds
@click.option("--record", metavar="FILE", help="Write what is captured to pcapng files (name them .zst to compress), for `replay run` tomorrow.")
@click.option("--record-size", type=_RECORD_SIZE, default="256MiB", show_default=True, help="Of one file, as written.")
@click.option("--record-every", type=options.LONGER_THAN_0, help="A file takes no longer than this.")
@click.option("--record-files", type=_RECORD_FILES, default="8", show_default=True, help="So many files, then the oldest is written over.")
@click.option("--user", default="nobody", show_default=True, help="Whom to become, as root, when the sockets are open (root: stay).")
@click.option("--allow-production", is_flag=True, help="Send although the target is tapped.")
@click.option("--dry-run/--no-dry-run", "dry_run", help="Everything but connecting.")
@sending.told
@click.option("--log-format", type=_FORMAT, default="text", show_default=True, help="Of what is told on standard error.")
@options.metrics
@options.config
@click.pass_context
def tap(ctx: click.Context, /, quiet: bool, verbose: bool, **given: Any) -> None:
    """Mirrors the HTTP requests that reach this node to a shadow service, while production goes on as if nothing were there.

    An IFACE is a name, a pattern (veth*), default (where the default routes go) or any. -p is needed: a tap has no default share; begin with 1.

    SIGTERM drains and ends, SIGUSR1 prints the ledger, SIGHUP (or a change of --config) reloads percentages, filters and targets.
    """
    if verbose:
        told.say(["options:", *options.effective(ctx, without=("percent",))], part="options")
    early = Early()
    try:
        ctx.exit(_begun(ctx, given, early, quiet=quiet))
    finally:
        for record in early.left():
            told.say([record.getMessage()], level=record.levelname.lower())


def _begun(ctx: click.Context, given: dict[str, Any], early: Early, *, quiet: bool) -> int:
    """Makes the tap of the options and runs it; the exit code."""
    settings = _settings(ctx, given)
    sending.apart(ctx, given, record=file_names(given["record"], given["record_files"]) if given["record"] else ())
    if given["nice"] is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, given["nice"])
        except PermissionError:
            raises = given["nice"] < os.getpriority(os.PRIO_PROCESS, 0)
            why = "only root may raise a priority" if raises else "it may not be changed here; under systemd, set Nice= in the unit"
            raise UsageError(f"--nice {given['nice']}: {why}") from None
    return _run(ctx, Tap(settings), given, early, quiet=quiet)


_HELP = {
    "since": "Only requests that come from this time on (2026-08-01T10:00:00Z, or seconds since 1970).",
    "until": "Only requests that come before this time.",
    "threads": "Of no effect here; a tap reads with --workers.",
}

for _parameter in tap.params:  # what a tap has otherwise than a run
    if _parameter.name == "max_body":
        _parameter.default = "1MiB"
    elif _parameter.name == "max_memory":
        _parameter.default = functools.cache(lambda: f"{default_memory() >> 20}MiB")  # a reload has the same, though the cgroup's limit may be another
    elif _parameter.name == "max_connections":
        _parameter.default = "65536"
    elif _parameter.name == "percent" and isinstance(_parameter, click.Option):
        _parameter.help = "Take this share of the requests, exact to a millionth (1, 0.5, 5%). Must be given."
    elif _parameter.name in _HELP and isinstance(_parameter, click.Option):
        _parameter.help = _HELP[_parameter.name]


def _settings(ctx: click.Context, given: dict[str, Any]) -> TapSettings:
    """Of the values of the options. Raises UsageError."""
    given = dict(given)
    if given["percent"] is None and not given["policy"]:
        raise UsageError(
            "-p/--percent (or --policy) must be given: a tap has no default share. Begin with -p 1, and look at the shadow and at this node before you raise it"
        )
    selection, warnings = options.routed(ctx, given, options.selection(given))
    for line in warnings:
        _log.warning("%s", line)
    if selection.bpf is not None:
        if re.search(r"(?<![\w.-])vlan(?![\w.-])", selection.bpf):
            raise UsageError(
                "-f: `vlan` means another packet to a tap than to tcpdump: the kernel takes the outer tag off before it asks the filter. Name the VLAN's own"
                " interface (replay tap eth0.7), or leave `vlan` out: what stands behind one tag is found without it"
            )
        compile_filter(selection.bpf)  # says what is wrong with it
    routing = selection.routing
    targets = tuple(target(text) for text in given["to"]) if routing is None else routing.targets
    if given["results"] is not None:
        results.check_name(given["results"])
    cores = os.cpu_count() or 1
    if given["max_cpu"] is not None and given["max_cpu"] > cores:
        _log.warning("--max-cpu %g: there are %d cores, so it bounds nothing; 50%% is half of one", given["max_cpu"], cores)
    if given["replies"] == "none" and given["record"]:
        raise UsageError("--record is for a later run, which needs the replies too; leave --replies none out")
    if not targets and not given["dry_run"]:
        raise UsageError("--to URL is missing: where should requests go? To look without sending: --dry-run")
    return TapSettings(
        captures=tuple(given["interfaces"]),
        selection=selection,
        targets=targets,
        dry_run=given["dry_run"],
        allow_production=given["allow_production"],
        direction=given["direction"],
        netns=given["netns"],
        exclude_clients=_excluded(given["exclude_client"]),
        ring_bytes=given["ring"],
        block_ms=given["block_timeout"] // 10**6,
        workers=given["workers"],
        replies=given["replies"].partition(":")[0],
        settle_ns=_settle(given["replies"]),
        connections=given["connections"],
        pipeline=given["pipeline"],
        connect_timeout_ns=given["connect_timeout"],
        timeout_ns=given["timeout"],
        drain_ns=given["drain"],
        max_age_ns=given["max_age"],
        max_rate=given["max_rate"] or 0.0,
        max_cpu=given["max_cpu"] or 0.0,
        duration_ns=given["duration"],
        expires_at=None if given["expires"] is None else given["expires"] / 1e9,
        user=given["user"],
        tls=sending.tls(given, targets),
        access_log=given["access_log"],
        results=given["results"],
        record=given["record"],
        record_size=given["record_size"],
        record_every_ns=given["record_every"] or 0,
        record_files=given["record_files"],
    )


def _excluded(words: tuple[str, ...]) -> tuple[tuple[bytes, int], ...] | None:
    if not words:
        return None
    found = []
    for word in words:
        for line in options._lines("--exclude-client", word):
            try:
                found.append(network(line))
            except ValueError as error:
                raise UsageError(f"--exclude-client: {error}") from None
    return tuple(found)


def _run(ctx: click.Context, tap: Tap, given: dict[str, Any], early: Early, *, quiet: bool) -> int:
    """Runs it to its end; the exit code."""
    words = ["replay", *sys.argv[1:]]
    if given["metrics"] is not None:
        _metrics_there()
    notifier = Notifier()
    with contextlib.ExitStack() as stack:
        stack.callback(tap.close)
        file = _Report(given["report_file"])
        tap.prepare()  # no thread may stand before this: rights are a thread's own
        log = stack.enter_context(DaemonLog(sys.stderr, given["log_format"], logging.WARNING if quiet else logging.INFO))
        early.hand_over(log)
        for line in _introduction(tap):
            _log.info("%s", line, extra=ALWAYS)
        reloads = None
        again = Words(ctx, ctx.meta["replay.words"], _MAY_CHANGE)

        def apply(fresh: dict[str, Any]) -> None:
            tap.reload(_settings(ctx, fresh))

        if again.files():
            reloads = Reloads(lambda: again.again(apply), again.files)
        rotate = tap.rotate if given["record"] or given["results"] or given["access_log"] else None
        service = Service(tap, reloads=reloads, notifier=notifier, status=status_line, ledger=live_lines, flush=log.flush, rotate=rotate, tell=_tell)
        if given["metrics"] is not None:
            tap.leave_out(*_serve(stack, given["metrics"], _Counted(tap, service, log)))
        tap.start()
        service.run()
        found = tap.result()
    whole = report.build(tap.settings.for_report(), found, command=words, started=tap.started_at, ended=tap.ended_at, notes=_notes(tap, found))
    file.write(_encode(whole))
    _print(whole, given["as_json"], [])
    return 3 if tap.guarded else 0


def _tell(line: str) -> None:
    """Tells a line that was asked for: past the log, which would leave some out, but in its format, so that whoever reads JSON can go on."""
    told.say([line], before="replay tap: ", part="ledger")


def _metrics_there() -> None:
    """Imports what --metrics needs while we may still read it. Raises UsageError."""
    try:
        for name in ("replay.daemon.server", "replay.daemon.live"):
            importlib.import_module(name)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "prometheus_client":
            raise
        raise UsageError(f"--metrics needs prometheus-client: {extras.how('metrics')}") from None


def _serve(stack: contextlib.ExitStack, address: tuple[str, int], counted: Any) -> tuple[str, int]:
    """Where it listens."""
    from replay.daemon.live import LIVE_FAMILIES
    from replay.daemon.metrics import registry
    from replay.daemon.server import MetricsServer

    server = stack.enter_context(MetricsServer(address, counted, registry(counted, LIVE_FAMILIES)))
    _log.info("metrics at http://%s/metrics", server.address)
    return server.where


class _Counted:
    """What the metrics read: the tap, and what the main loop and the log count themselves."""

    def __init__(self, tap: Tap, service: Service, log: DaemonLog) -> None:
        self._tap, self._service, self._log = tap, service, log

    def snapshot(self) -> dict[str, Any]:
        return self._tap.snapshot() | {"daemon": self._service.counts() | {"log": dict(self._log.counts), "log_left_out": self._log.left_out}}

    def histograms(self) -> list[dict[str, bytes]]:
        return self._tap.histograms()

    def health(self) -> Any:
        return self._tap.health()


class _Report:
    """The file of --report, opened while we may: the user that the tap becomes may not write in that folder."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._handle = -1
        if path is not None:
            try:
                self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UsageError(f"--report {path}: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        if self._path is None:
            return
        try:
            report.write(self._path, data)
            os.close(self._handle)
        except OSError:
            try:
                with open(self._handle, "wb") as file:
                    with contextlib.suppress(OSError):  # a pipe
                        file.truncate(0)
                    file.write(data)
            except OSError as error:
                told.say([f"--report {self._path}: {error.strerror}"], before="replay tap: ", level="error")


def _introduction(tap: Tap) -> list[str]:
    s, place = tap.settings, tap.place
    assert place is not None
    names = ", ".join(one.name for one in place.interfaces[:8]) or f"no interface yet ({' '.join(s.captures)} names none that is here)"
    more = f" and {len(place.interfaces) - 8} more" if len(place.interfaces) > 8 else ""
    to = ", ".join(one.url for one in s.targets) if not s.dry_run else "nowhere (dry run)"
    host = s.selection.set_host or (f"NAME{s.selection.suffix}" if s.selection.suffix else "as captured")
    ports = f", ports {', '.join(map(str, s.selection.ports))}" if s.selection.ports else ""
    if s.selection.routing is not None:
        lines = [f"tapping {names}{more} ({s.direction}{ports}), sending to {to}: policy {s.selection.routing.source}", *s.selection.routing.words[:100]]
        if len(s.selection.routing.words) > 100:
            lines.append(f"… and {len(s.selection.routing.words) - 100:,} more lines: `replay policy` shows them")
        return [*lines, f"rights: {tap.dropped_rights}"]
    share, methods = report.share_text(s.for_report()), ", ".join(s.selection.methods) or "every method"
    lines = [f"tapping {names}{more} ({s.direction}{ports}), sending to {to}: {share}, {methods}, Host {host}", f"rights: {tap.dropped_rights}"]
    if s.expires_at is not None:
        lines.append(f"until {report.when(s.expires_at)}")
    return lines


def _notes(tap: Tap, found: dict[str, Any]) -> list[str]:
    notes = []
    expires = tap.settings.expires_at
    tapped, ingest = found["tap"], found["ingest"]
    if not ingest["found"] and not ingest["connections"]:
        listened = ", ".join(tapped["interfaces"])
        if expires is not None and expires <= tap.started_at:
            notes.append(f"--expires had passed ({report.when(expires)}): it was idle from its start, nothing was captured; give a later date")
        elif not listened:
            words = " ".join(tap.settings.captures)
            notes.append(f"{words} is no interface here: nothing was captured; `replay doctor -i any` says on which interface requests are")
        else:
            notes.append(
                f"no connection was seen on {listened}: was there traffic while it listened? Does --port, --direction or another filter leave it out?"
                " `replay doctor -i any` says on which interface requests are"
            )
    if tapped["kernel_drops"]:
        notes.append(f"the kernel dropped {tapped['kernel_drops']:,} packets: the ring was full; raise --ring, or narrow the filter")
    if tapped["cut_frames"]:
        notes.append(f"{tapped['cut_frames']:,} frames were longer than a block of the ring and were cut")
    notes += bound_notes(ingest)
    if tapped["kernel_ppm"] < units.MILLION:
        unseen = ingest["found"] * (units.MILLION - tapped["kernel_ppm"]) // max(tapped["kernel_ppm"], 1)
        notes.append(
            f"the kernel let {units.show_share(tapped['kernel_ppm'])} of the connections through (--sample-by connection:kernel): what is found are theirs,"
            f" of some {unseen:,} more requests nothing was seen"
        )
    if tapped["noted"] is not None and tapped["noted"]["lost"]:
        full = sum(sender["dropped"].get("queue_full", 0) for sender in found["senders"])
        why = f"{full:,} found their queue full (queue_full)" if full else "they could not be written fast enough"
        notes.append(f"{tapped['noted']['lost']:,} requests are in neither --results nor --access-log: {why}")
    if tapped["recorded"] is not None and tapped["recorded"]["left_out"]:
        notes.append(f"{tapped['recorded']['left_out']:,} packets are not in --record: the disk was full or slow")
    for one, changes in zip(found["targets"], tapped["breaker_changes"], strict=True):
        if changes.get("open"):
            notes.append(f"{one.url if one else ''}: sending was stopped {changes['open']:,} times by the breaker")
    return notes
