"""The package from Python: `read` a capture, `run` a replay. Options are those of the command line, by the same names with `_` for `-`.

A value may be what the command line takes as text (`"5%"`, `"30s"`, `"2x"`, `"GET,POST"`), or the plain thing: a number, a list. Durations that are
numbers are seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypedDict, Unpack

from replay import accesslog, credentials, units
from replay import report as reporting
from replay.batch import Batch, Request
from replay.capture.source import as_error, read_once
from replay.engine import Listing, Replay
from replay.errors import ReplayError, UsageError
from replay.histogram import Histogram
from replay.judge import gates, gating
from replay.judge.limits import Limits
from replay.outputs import apart
from replay.results import ResultsWriter, opened
from replay.settings import Selection, Settings, Tls, header, host, methods, network, suffix, target, tls

__all__ = ["Capture", "ReadOptions", "Report", "RunOptions", "read", "run"]

Path = str | os.PathLike[str]
Headers = Mapping[str, str] | str | Iterable[str | tuple[str, str]]


class ReadOptions(TypedDict, total=False):
    """Which requests, how each is changed (`as_sent`), and how much memory; see docs/usage.md for each."""

    percent: float | str
    sample_by: str
    seed: int
    shard: str
    methods: str | Iterable[str]
    path: str
    match_host: str
    client: str | Iterable[str]
    server: str | Iterable[str]
    port: int | Iterable[int]
    bpf: str
    since: str | float
    until: str | float
    limit: int
    resync: str
    split_by_network: bool
    shadow_suffix: str | None
    set_host: str
    set_header: Headers
    add_header: Headers
    remove_header: str | Iterable[str]
    trace: str
    auth_file: Path
    credentials: str
    max_hops: int
    max_head: int | str
    max_body: int | str
    max_memory: int | str
    max_connections: int
    max_gap: float | str
    threads: int


class RunOptions(ReadOptions, total=False):
    """And how they are sent, and what is told."""

    pace: str
    loop: int
    duration: float | str
    start_at: str | float
    connections: int
    pipeline: int
    connect_timeout: float | str
    timeout: float | str
    drain: float | str
    driver: str
    cacert: Path
    cert: Path
    key: Path
    sni: str
    insecure: bool
    allow_production: bool
    dry_run: bool
    results: Path
    fail_if: str | Iterable[str]
    stop_if: str | Iterable[str]
    allow_empty: bool
    access_log: Path
    policy: Path | Iterable[Path]
    mesh: str
    resolve: str | Iterable[str]
    namespace: str
    mirror_headers: str


# ---- read ----------------------------------------------------------------------------------------------------------------------------


def read(*captures: Path, as_sent: bool = False, incomplete: bool = False, **options: Unpack[ReadOptions]) -> Capture:
    """The requests of captures (files, folders, globs), in the order of time. Nothing is read before the first one is asked for.

    as_sent: the bytes are those that a replay would send, body included, and only selected requests are there; without it they are the captured heads, and
    withheld ones are there too.  incomplete: also requests that are not whole.

    Raises UsageError for an option; CaptureError, when it is read, for a capture that cannot be.

    >>> import replay
    >>> capture = replay.read(DEMO, methods="POST")
    >>> [(request.method, request.path, request.status) for request in capture][:2]
    [('POST', '/orders', 201), ('POST', '/orders', 201)]
    >>> capture.counts["found"]
    226
    """
    selection, rest = _selection(dict(options))
    if rest:
        raise _unknown(rest, ReadOptions, "as_sent", "incomplete")
    return Capture(_paths(captures), selection, as_sent=as_sent, incomplete=incomplete)


class Capture:
    """Requests of captures. Iterate over it for `Request` objects, or over `batches()` for columns; each time it is read anew (a pipe: once)."""

    def __init__(self, captures: tuple[str, ...], selection: Selection, *, as_sent: bool, incomplete: bool) -> None:
        self._arguments = (captures, selection, as_sent, incomplete)
        self._listing: Listing | None = None
        self._open()  # what cannot be read, or is no option, is said here

    def _open(self) -> Listing:
        captures, selection, as_sent, incomplete = self._arguments
        listing = Listing(captures, selection, incomplete=incomplete, as_sent=as_sent)
        if listing.errors and not listing.paths:
            raise listing.errors[0]
        return listing

    def batches(self) -> Iterator[Batch]:
        """Requests as columns, a batch at a time. Arrays of a batch stay good while they are kept; what is kept counts towards `max_memory`.

        >>> import replay
        >>> sum(int(batch["body_len"].sum()) for batch in replay.read(DEMO).batches())
        2655
        """
        if self._listing is not None and (once := read_once(self._listing.paths)) is not None:
            raise ReplayError(f"{once} was read, and cannot be again; write it to a file first, or keep what the first reading gave")
        self._listing = listing = self._open()
        try:
            for requests in listing.batches():
                yield Batch(requests)
        finally:
            listing.close()
        for fault in listing.faults:
            if fault["fatal"]:
                raise as_error(fault)

    def __iter__(self) -> Iterator[Request]:
        for batch in self.batches():
            yield from batch

    @property
    def counts(self) -> dict[str, Any]:
        """What was found and what not, of the last reading: `found`, `withheld`, `incomplete`, `packets`, `connections` …"""
        if self._listing is None:
            raise ReplayError("counts: iterate first")
        return self._listing.counts


# ---- run -----------------------------------------------------------------------------------------------------------------------------


def run(*captures: Path, to: str | Iterable[str] = (), progress: Callable[[dict[str, Any]], object] | None = None, **options: Unpack[RunOptions]) -> Report:
    """Replays captures against shadow services and gives the report. Without `to` it is a dry run.

    progress: called some 20 times a second with the engine's counters: `elapsed_s`, `read` (`bytes_read`, `bytes_total` or None), `passes`, `ingest`
    (None until something was read; `found`, `selected` …) and `senders`, one a target (`sent`, `answered`, `unanswered`, `dropped`, `status`, `waiting`,
    `connections_open` …). An exception of it ends the run.

    Raises UsageError for an option, CaptureError when no capture can be read, TargetError when a name cannot be resolved. What happens during the run (no
    connection, a guard, an interrupt) is in the report.

    >>> import replay
    >>> with replay.sink() as url:
    ...     report = replay.run(DEMO, to=url, pace="max", fail_if="ledger.unanswered > 1%")
    >>> report["ledger"]["answered"], report.passed
    (225, True)
    """
    settings, given, notes = _settings(_paths(captures), to, dict(options))
    empty = _taken(given, {"allow_empty": ("allow_empty", _flag)})
    judged = gating.parsed(_words(given.pop("fail_if", ())), _words(given.pop("stop_if", ())), **empty)
    file, log_file = (None if (path := given.pop(name, None)) is None else os.fspath(path) for name in ("results", "access_log"))
    if given:
        raise _unknown(given, RunOptions, "to", "progress")
    apart([("results", file), ("access_log", log_file)], settings.captures)
    with accesslog.opened(log_file) as log, opened(file) as lines:
        replay = Replay(settings, log=log is not None, results=lines is not None)
        replay.prepare()
        if replay.errors and not replay.paths:
            raise replay.errors[0]
        limits = Limits(settings)
        replay.start()
        writers = (ResultsWriter(replay, lines), accesslog.LogWriter(replay, log))

        def built(found: dict[str, Any], final: bool) -> dict[str, Any]:
            return reporting.build(settings, found, command=["replay.run"], started=replay.started_at, ended=time.time(), notes=notes, final=final)

        try:
            while replay.running:
                replay.wait(0.05)
                seen = replay.snapshot()
                limits.look(seen)
                if progress is not None:
                    progress(seen)
                if seen["ingest"] is not None and judged.look(lambda: built(replay.so_far(), False)):
                    replay.finish()
        except BaseException:
            replay.stop()
            raise
        finally:
            replay.settle()
            for writer in writers:
                writer.end()
        found = replay.result()
    found["limited_by"] = limits.verdict(found)
    report = Report(built(found, True), replay.errors)
    report["gates"], report["stopped_by"] = judged.judge(report), judged.stopped_text
    for fault in found["faults"]:
        if fault["fatal"] and not report["ledger"]["found"]:
            raise as_error(fault)
    return report


_HISTOGRAMS = ("latency_us", "service_us", "response_us", "production_us", "lag_us")


class Report(dict[str, Any]):
    """The report of a run, a dict as in docs/ledger.md, and some ways to ask it.

    errors: captures that were named and are not there (a glob, an empty folder), while others are; what could not be read is in `faults`."""

    def __init__(self, found: Mapping[str, Any], errors: Iterable[ReplayError] = ()) -> None:
        super().__init__(found)
        self.errors = tuple(errors)

    @property
    def exit_code(self) -> int:
        """What `replay run` would exit with: 0; 1 a gate failed; 3 a guard refused; 4 a capture could not be read; 5 a target was never reached; 130."""
        return reporting.exit_code(self, unread=bool(self.errors))

    @property
    def passed(self) -> bool:
        """The run was what it was meant to be, and no gate failed: `exit_code` is 0."""
        return self.exit_code == 0

    def check(self, expression: str) -> gates.Outcome:
        """A condition over its numbers, as `--fail-if` takes it: `.failed`, `.value`, `.bound`, `.where`; true when it did not fail. Raises UsageError."""
        return gates.parse(expression).check(self)

    def histogram(self, name: str) -> Histogram:
        """`latency_us`, `service_us`, `response_us`, `production_us` or `lag_us`: percentiles of any share, and sums of runs. Raises UsageError."""
        if name not in _HISTOGRAMS:
            raise UsageError(f"the report has no histogram {name!r}; there are {', '.join(_HISTOGRAMS)}")
        return Histogram.decode(self[name]["hdr"])

    def summary(self) -> str:
        """What the command line prints."""
        return "\n".join(reporting.summary(self))

    def html(self) -> str:
        """One page that needs nothing else."""
        from replay.judge import page

        return page.page(self)

    def save(self, path: Path) -> None:
        """As `--report` writes it. Raises OSError."""
        import json

        reporting.write(os.fspath(path), (json.dumps(self, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))


# ---- options ----------------------------------------------------------------------------------------------------------------------------


def _paths(captures: tuple[Path, ...]) -> tuple[str, ...]:
    if not captures:
        raise UsageError("no capture is named")
    return tuple(os.fspath(path) for path in captures)


def _words(value: str | Iterable[Any]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value)


def _many(value: Any) -> tuple[str, ...]:
    return (str(value),) if isinstance(value, str | int) else tuple(str(one) for one in value)


def _pairs(value: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of a mapping, of `Name: value`, or of a list of these or of pairs. Raises ValueError."""
    found = []
    for one in value.items() if isinstance(value, Mapping) else (value,) if isinstance(value, str) else value:
        if isinstance(one, str):
            name, colon, text = one.partition(":")
            if not colon or not name.strip():
                raise ValueError(f"{one!r} has no colon; write {{'Name': 'value'}}, or ['Name: value']")
        elif isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, str) for part in one):
            name, text = one
        else:
            raise ValueError(f"{one!r} is no header; write {{'Name': 'value'}}, or ['Name: value']")
        found.append((name.strip().encode(), text.strip().encode("utf-8", "surrogateescape")))
    return tuple(found)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither True nor False")
    return value


def _within(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        found = units.count(str(value))
        if not least <= found <= most:
            raise ValueError(f"{value!r} is out of range: {least:,} to {most:,}")
        return found

    return check


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


def _duration(value: Any) -> int:
    found = units.duration(str(value))
    if found <= 0:
        raise ValueError(f"{value!r} is too small")
    return found


def _share(value: float) -> int:
    """Parts per million of a computed percentage (`100 / 3`): the nearest, but nothing and all are said as such."""
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is no percentage; write 5, 0.5 or 5%")
    found = units.share(f"{value:.4f}")
    if (found == 0) != (value == 0) or (found == units.MILLION) != (value == 100):
        raise ValueError(f"{value!r} is finer than a millionth; the nearest would be {units.show_share(found)}")
    return found


_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {  # option -> (field of Selection, how its value is read)
    "percent": ("share", lambda value: _share(value) if isinstance(value, float) else units.share(str(value))),
    "sample_by": ("sample_by", str),
    "seed": ("seed", _within(0, (1 << 64) - 1)),
    "shard": ("shard", lambda value: units.shard(str(value))),
    "methods": ("methods", lambda value: methods(value if isinstance(value, str) else ",".join(value))),
    "path": ("path", str),
    "match_host": ("match_host", str),
    "client": ("client", lambda value: tuple(network(one) for one in _many(value))),
    "server": ("server", lambda value: tuple(network(one) for one in _many(value))),
    "port": ("ports", lambda value: tuple(_within(1, 65535)(one) for one in _many(value))),
    "bpf": ("bpf", str),
    "since": ("since_ns", lambda value: units.moment(str(value))),
    "until": ("until_ns", lambda value: units.moment(str(value))),
    "limit": ("limit", _within(1, 1 << 61)),
    "resync": ("resync", _one_of("strict", "loose")),
    "split_by_network": ("split_by_network", _flag),
    "shadow_suffix": ("suffix", lambda value: None if value is None or suffix(value) == "off" else value),
    "set_host": ("set_host", host),
    "set_header": ("set_headers", _pairs),
    "add_header": ("add_headers", _pairs),
    "remove_header": ("remove_headers", lambda value: tuple(header(name).encode() for name in _many(value))),
    "trace": ("trace", _one_of("keep", "unsample", "drop")),
    "max_hops": ("max_hops", _within(1, 99)),
    "max_head": ("max_head", lambda value: units.size(str(value))),
    "max_body": ("max_body", lambda value: units.size(str(value))),
    "max_memory": ("max_memory", lambda value: units.size(str(value))),
    "max_connections": ("max_connections", _within(1, 1 << 40)),
    "threads": ("threads", _within(1, 64)),
    "max_gap": ("max_gap_ns", lambda value: units.duration(str(value))),
}
_RUN: dict[str, tuple[str, Callable[[Any], Any]]] = {  # option -> (field of Settings, how its value is read)
    "pace": ("pace", lambda value: units.pace(str(value))),
    "loop": ("loop", _within(1, 1 << 40)),
    "duration": ("duration_ns", _duration),
    "start_at": ("start_at_ns", lambda value: units.ahead(str(value))),
    "connections": ("connections", _within(1, 1 << 20)),
    "pipeline": ("pipeline", _within(1, 64)),
    "connect_timeout": ("connect_timeout_ns", _duration),
    "timeout": ("timeout_ns", _duration),
    "drain": ("drain_ns", lambda value: units.duration(str(value))),
    "driver": ("driver", _one_of("auto", "epoll", "io_uring")),
    "allow_production": ("allow_production", _flag),
}
_FLAGS: dict[str, tuple[str, Callable[[Any], Any]]] = {name: (name, _flag) for name in ("dry_run", "insecure")}


def _taken(given: dict[str, Any], table: dict[str, tuple[str, Callable[[Any], Any]]]) -> dict[str, Any]:
    """The fields that options stand for; they are taken out of `given`. Raises UsageError with the option's name."""
    found = {}
    for name, (field, parse) in table.items():
        if name in given:
            try:
                found[field] = parse(given.pop(name))
            except (ValueError, TypeError, AttributeError) as error:
                raise UsageError(f"{name}: {error}") from None
    return found


def _selection(given: dict[str, Any]) -> tuple[Selection, dict[str, Any]]:
    file, kept = given.pop("auth_file", None), given.pop("credentials", "keep")
    if kept not in ("keep", "drop") or (file is not None and kept == "drop"):
        raise UsageError("credentials: 'keep', or 'drop' without auth_file")
    if kept == "drop":
        given["remove_header"] = [*_many(given.get("remove_header", ())), *(name.decode() for name in credentials.HEADERS)]
    chosen = Selection(**_taken(given, _READ), credentials=None if file is None else credentials.load(os.fspath(file)))
    if chosen.since_ns is not None and chosen.until_ns is not None and chosen.since_ns >= chosen.until_ns:
        raise UsageError("since is not before until, which leaves nothing")
    return chosen, given


def _settings(captures: tuple[str, ...], to: str | Iterable[str], given: dict[str, Any]) -> tuple[Settings, dict[str, Any], tuple[str, ...]]:
    """What is asked for, the options that are left, and warnings."""
    files = given.pop("policy", ())
    policy = tuple(os.fspath(one) for one in ((files,) if isinstance(files, str | os.PathLike) else files))
    how = {name: given.pop(name, default) for name, default in (("mesh", None), ("resolve", ()), ("namespace", "default"), ("mirror_headers", "none"))}
    selection, rest, warnings = _routed(policy, how, to, given)
    targets = tuple(target(text) for text in _words(to)) if selection.routing is None else selection.routing.targets
    flags = _taken(rest, _FLAGS)
    dry_run = flags.get("dry_run", False) or not targets
    cacert, cert, key, sni = (None if (file := rest.pop(name, None)) is None else os.fspath(file) for name in ("cacert", "cert", "key", "sni"))
    spoken = tls(Tls(cacert, cert, key, sni, flags.get("insecure", False)), targets, "")
    return Settings(captures=captures, selection=selection, targets=targets, dry_run=dry_run, tls=spoken, **_taken(rest, _RUN)), rest, warnings


def _routed(policy: tuple[str, ...], how: dict[str, Any], to: str | Iterable[str], given: dict[str, Any]) -> tuple[Selection, dict[str, Any], tuple[str, ...]]:
    """The selection with the policy in it, the options that are left, and warnings. Raises UsageError, PolicyError among them."""
    if not policy and how == {"mesh": None, "resolve": (), "namespace": "default", "mirror_headers": "none"}:
        return *_selection(given), ()
    from replay.policy.routed import SAID_BY_A_POLICY, mirror_headers, routed

    said = next((name for name in SAID_BY_A_POLICY if name in given or (name == "to" and to)), None) if policy else None
    if said is not None:
        raise UsageError(f"policy: not together with {said}, which a policy says itself" + ("; addresses are given with resolve" if said == "to" else ""))
    try:
        headers = mirror_headers(str(how["mirror_headers"]))
    except ValueError as error:
        raise UsageError(f"mirror_headers: {error}") from None
    chosen, rest = _selection(given)
    resolve, namespace = _words(how["resolve"]), str(how["namespace"])
    chosen, warnings = routed(chosen, policy, mesh=how["mesh"], resolve=resolve, namespace=namespace, headers=headers, to=_words(to))
    return chosen, rest, warnings


def _unknown(rest: dict[str, Any], options: type, *named: str) -> UsageError:
    """named: the arguments that the function has itself."""
    import difflib

    name = next(iter(rest))
    known = sorted({*options.__annotations__, *ReadOptions.__annotations__, *named})
    near = difflib.get_close_matches(name, known, 1)
    return UsageError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"))
