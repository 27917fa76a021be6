"""Options that several verbs share: their types, their help, and `--config`, which gives any of them in YAML."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from replay import credentials, extras, units
from replay.daemon.address import listen_address
from replay.errors import UsageError
from replay.settings import Selection, header, host, methods, network, suffix

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

SAMPLE_KINDS = ("request", "connection", "connection:kernel", "client-ip", "path", "header:NAME", "cookie:NAME", "query:NAME")


class Unit(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value that one of the parsers of `units` reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Choice(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """One of some words; a wrong one gets the nearest right one. `header:NAME` stands for any name."""

    def __init__(self, metavar: str, words: tuple[str, ...]) -> None:
        self.name = metavar
        self.words = words

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, name = value.partition(":")
        if value in self.words or (f"{kind}:NAME" in self.words and colon and name.strip()):
            return value
        if f"{kind}:NAME" in self.words:
            self.fail(f"{value!r} lacks a name; write {kind}:NAME", param, ctx)
        import difflib

        near = difflib.get_close_matches(kind, [word.partition(":")[0] for word in self.words], 1)
        self.fail(f"{value!r} is none of {', '.join(self.words)}" + (f"; did you mean {near[0]!r}?" if near else ""), param, ctx)


def _positive(parse: Callable[[str], int], least: int = 1, most: int | None = None) -> Callable[[str], int]:
    def check(text: str) -> int:
        value = parse(text)
        if value < least or (most is not None and value > most):
            raise ValueError(f"{text!r} is out of range: {least:,} to {most:,}" if most is not None else f"{text!r} is too small: at least {least:,}")
        return value

    return check


SHARE = Unit("PERCENT", units.share)
DURATION = Unit("TIME", units.duration)
LONGER_THAN_0 = Unit("TIME", _positive(units.duration))
SIZE = Unit("SIZE", units.size)
COUNT = Unit("N", _positive(units.count))
COUNT_OR_0 = Unit("N", units.count)
SEED = Unit("N", units.seed)
HEAD_SIZE = Unit("SIZE", _positive(units.size, 256, 16 << 20))
BODY_SIZE = Unit("SIZE", _positive(units.size, 0, 64 << 20))
MOMENT = Unit("TIME", units.moment)
AHEAD = Unit("TIME", units.ahead)
SHARD = Unit("I/N", units.shard)
PACE = Unit("PACE", units.pace)
CIDR = Unit("CIDR", network)
PORT = Unit("N", _positive(units.count, 1, 65535))
HOPS = Unit("N", _positive(units.count, 1, 99))


_SELECT = [
    click.option("-p", "--percent", type=SHARE, metavar="PERCENT", help="Take this share of the requests, exact to a millionth (5, 0.5, 5%).  [default: 100]"),
    click.option(
        "--sample-by",
        type=Choice("KEY", SAMPLE_KINDS),
        default="request",
        show_default=True,
        help=f"What decides who is in the share: {', '.join(SAMPLE_KINDS)}.",
    ),
    click.option("--seed", type=SEED, default="0", help="Another sample of the same size. The same seed gives the same requests.  [default: 0]"),
    click.option("--shard", type=SHARD, help="Only the connections of this part, 1/4 to 4/4: together all, nothing twice; the same on every machine."),
    click.option("--methods", type=Unit("LIST", methods), default="all", help="Only these: safe (GET, HEAD, OPTIONS), or GET,POST,…  [default: all]"),
    click.option("--path", metavar="RE", help="Only requests whose target, up to '?', matches (searched anywhere)."),
    click.option("--match-host", metavar="RE", help="Only requests whose Host matches (searched anywhere)."),
    click.option("--client", type=CIDR, multiple=True, help="Only from these clients (repeatable)."),
    click.option("--server", type=CIDR, multiple=True, help="Only to these servers (repeatable)."),
    click.option("--port", type=PORT, multiple=True, help="Only to these server ports (repeatable)."),
    click.option("-f", "--bpf", metavar="EXPR", help="Only packets that this tcpdump expression lets through (needs libpcap)."),
    click.option("--since", type=MOMENT, help="Only from this capture time on (2026-08-01T10:00:00Z, or seconds since 1970)."),
    click.option("--until", type=MOMENT, help="Only before this capture time."),
    click.option("--limit", type=COUNT, help="End after so many selected requests."),
    click.option(
        "--resync",
        type=Choice("HOW", ("strict", "loose")),
        default="strict",
        show_default=True,
        help="Behind a gap: withhold what is not confirmed (strict), or take it (loose).",
    ),
    click.option("--split-by-network", is_flag=True, help="Tell equal addresses in different VLANs or VNIs apart; else they are one conversation."),
]

_CHANGE = [
    click.option(
        "--shadow-suffix",
        type=Unit("TEXT|off", suffix),
        default="-shadow",
        show_default=True,
        help="Put before the port of the Host, as Envoy does; off leaves it alone.",
    ),
    click.option("--set-host", type=Unit("NAME", host), help="This Host for all, without a suffix."),
    click.option("-H", "--set-header", "set_header", multiple=True, metavar="'K: V'", help="Set a header (repeatable; @FILE reads lines)."),
    click.option("--add-header", multiple=True, metavar="'K: V'", help="Add a header, keeping others of its name (repeatable)."),
    click.option("--remove-header", type=Unit("NAME", header), multiple=True, metavar="NAME", help="Remove a header (repeatable)."),
    click.option(
        "--trace",
        type=Choice("HOW", ("keep", "unsample", "drop")),
        default="keep",
        show_default=True,
        help="Trace headers: keep them, mark them as not sampled, or drop them.",
    ),
]

_CHANGE += [
    click.option("--auth-file", metavar="FILE", help="Other credentials: one token for each Authorization, or lines of OLD NEW."),
    click.option(
        "--credentials",
        type=Choice("HOW", ("keep", "drop")),
        default="keep",
        show_default=True,
        help="Captured credentials (Authorization, Cookie, X-Api-Key …): keep them, or send none.",
    ),
    click.option(
        "--max-hops", type=HOPS, default="1", show_default=True, help="A request that was mirrored so often already (x-shadow-replay) is withheld: loop."
    ),
]

_BOUNDS = [
    click.option("--max-head", type=HEAD_SIZE, default="64KiB", show_default=True, help="A longer head is incomplete: head_too_large."),
    click.option("--max-body", type=SIZE, default="64MiB", show_default=True, help="A longer body is incomplete: too_large."),
    click.option(
        "--max-connections", type=COUNT, default="262144", show_default=True, help="Captured connections kept open at a time; beyond that the oldest is closed."
    ),
    click.option("--max-memory", type=SIZE, default="128MiB", show_default=True, help="For requests that are being read or wait to be sent."),
    click.option(
        "--threads",
        type=Unit("N", _positive(units.count, 1, 64)),
        default="1",
        show_default=True,
        help="At most so many threads read captures; two are quicker where a core is idle, more are not used yet, and the result is the same.",
    ),
]

_METRICS = [
    click.option(
        "--metrics",
        type=Unit("ADDRESS:PORT", listen_address),
        help="Serve Prometheus metrics there, with /healthz and /readyz (127.0.0.1:9917; :9917 is all addresses).",
    ),
]

_POLICY = [
    click.option(
        "--mesh",
        type=Choice("MESH", ("istio-1.27", "istio-1.28", "envoy")),
        help="Whose defaults hold where a policy is silent: istio-1.28 puts no suffix on the host, istio-1.27 and envoy do.",
    ),
    click.option(
        "--resolve",
        multiple=True,
        metavar="NAME=ADDRESS",
        help="The address of a destination: customer.ns:v2=10.0.0.7:8080 (host:subset), @FILE of such lines, "
        "or a template like {name}-{subset}.{namespace}:{port} (repeatable).",
    ),
    click.option("--namespace", default="default", show_default=True, help="Of the documents of a policy that name none."),
]

_CONFIG = [
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, param, value: load_config(ctx, value),
        help="Options in YAML: long names without dashes in front.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Only results and errors."),
    click.option("-v", "--verbose", is_flag=True, help="More: the effective options and where each comes from, what connections were."),
]


def apply(decorators: list[Callable[[Any], Any]], command: F) -> F:
    """Rows of options onto a command."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def select(command: F) -> F:
    """Which requests."""
    return apply(_SELECT, command)


def change(command: F) -> F:
    """How each is changed."""
    return apply(_CHANGE, command)


def bounds(command: F) -> F:
    """How much memory."""
    return apply(_BOUNDS, command)


def metrics(command: F) -> F:
    """--metrics."""
    return apply(_METRICS, command)


@contextlib.contextmanager
def served(address: tuple[str, int] | None, counted: Any) -> Iterator[str | None]:
    """The metrics of an engine at `--metrics`, until the block ends; gives the address, or None without one. Raises UsageError."""
    if address is None:
        yield None
        return
    try:
        from replay.daemon.server import MetricsServer
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "prometheus_client":
            raise
        raise UsageError(f"--metrics needs prometheus-client: {extras.how('metrics')}") from None
    with MetricsServer(address, counted) as server:
        yield server.address


def policy(command: F) -> F:
    """How a policy is read."""
    return apply(_POLICY, command)


def policy_file(command: F) -> F:
    """--policy, how it is read, and --mirror-headers."""
    return apply([*_POLICY_FILE, *_POLICY], command)


def routed(ctx: click.Context, given: dict[str, Any], chosen: Selection) -> tuple[Selection, tuple[str, ...]]:
    """The selection with the policy of --policy in it, and its warnings; takes those options out of `given`. Raises PolicyError, UsageError."""
    words, mesh, resolve, namespace, headers = (given.pop(name) for name in ("policy", "mesh", "resolve", "namespace", "mirror_headers"))
    if not (words or mesh or resolve or headers != "none"):
        return chosen, ()
    from replay.policy import routed as policies  # not for a run without

    for param in ctx.command.params if words else ():
        if param.name in policies.SAID_BY_A_POLICY and ctx.get_parameter_source(param.name) not in (ParameterSource.DEFAULT, None):
            more = "; the address of a destination is given with --resolve" if param.name == "to" else "; write it into the policy"
            raise UsageError(f"--policy: not together with {max(param.opts, key=len)}, which a policy says itself{more}")
    return policies.routed(chosen, words, mesh=mesh, resolve=resolve, namespace=namespace, headers=headers, to=given.get("to") or ())


def _mirror_headers(text: str) -> str:
    if text == "none":
        return text
    from replay.policy.routed import mirror_headers

    return mirror_headers(text)


_POLICY_FILE = [
    click.option(
        "--policy",
        multiple=True,
        metavar="FILE",
        help="What to mirror, where to and how much: our own language, Istio, Gateway API or Envoy; a file or folder (repeatable). Excludes --percent.",
    ),
    click.option(
        "--mirror-headers",
        type=Unit("none|envoy[:ADDRESS]", _mirror_headers),
        default="none",
        show_default=True,
        help="envoy: x-envoy-internal and x-forwarded-for are added as Envoy does to a copy.",
    ),
]


def config(command: F) -> F:
    """--config, -q, -v."""
    return apply(_CONFIG, command)


def selection(given: dict[str, Any]) -> Selection:
    """The values of the options above as a Selection; they are taken out of `given`. Raises UsageError for what does not go together."""
    suffix, set_host = given.pop("shadow_suffix", "-shadow"), given.pop("set_host", None)
    auth_file, kept = given.pop("auth_file", None), given.pop("credentials", "keep")
    if auth_file is not None and kept == "drop":
        raise UsageError("--auth-file and --credentials drop: the first replaces what the second removes; leave one out")
    dropped = credentials.HEADERS if kept == "drop" else ()
    chosen = Selection(
        share=units.MILLION if given["percent"] is None else given["percent"],
        sample_by=given.pop("sample_by"),
        seed=given.pop("seed"),
        shard=given.pop("shard"),
        methods=given.pop("methods"),
        path=given.pop("path"),
        match_host=given.pop("match_host"),
        client=given.pop("client"),
        server=given.pop("server"),
        ports=given.pop("port"),
        bpf=given.pop("bpf"),
        since_ns=given.pop("since"),
        until_ns=given.pop("until"),
        limit=given.pop("limit"),
        suffix=None if suffix == "off" else suffix,
        set_host=set_host,
        set_headers=_headers("-H", given.pop("set_header", ())),
        add_headers=_headers("--add-header", given.pop("add_header", ())),
        remove_headers=tuple(name.encode() for name in given.pop("remove_header", ())) + dropped,
        credentials=None if auth_file is None else _kept("--auth-file", auth_file, lambda: credentials.load(auth_file)),
        trace=given.pop("trace", "keep"),
        max_hops=given.pop("max_hops", 1),
        resync=given.pop("resync"),
        split_by_network=given.pop("split_by_network"),
        max_head=given.pop("max_head"),
        max_body=given.pop("max_body"),
        max_memory=given.pop("max_memory"),
        max_connections=given.pop("max_connections"),
        threads=int(given.pop("threads", "1")),
        **({"max_gap_ns": given.pop("max_gap")} if "max_gap" in given else {}),
    )
    given.pop("percent")
    if chosen.since_ns is not None and chosen.until_ns is not None and chosen.since_ns >= chosen.until_ns:
        raise UsageError("--since is not before --until, which leaves nothing")
    return chosen


def _headers(option: str, words: tuple[str, ...]) -> tuple[tuple[bytes, bytes], ...]:
    found: list[tuple[bytes, bytes]] = []
    for word in words:
        for line in _lines(option, word):
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise UsageError(f"{option} {line!r}: there is no colon; write 'Name: value'")
            found.append((name.strip().encode("utf-8"), value.strip().encode("utf-8", "surrogateescape")))
    return tuple(found)


def _lines(option: str, word: str) -> list[str]:
    return _kept(option, word[1:], lambda: _lines_of(option, word)) if word.startswith("@") else [word]


def _lines_of(option: str, word: str) -> list[str]:
    try:
        with open(word[1:], encoding="utf-8", errors="surrogateescape") as file:
            return [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise UsageError(f"{option} {word}: {error.strerror}") from None


def _kept(option: str, path: str, read: Callable[[], T]) -> T:
    """What `read` makes of the file of an option; where it cannot be read a second time (rights were given up, or it is a pipe), what it made of it before.

    Raises UsageError as `read` does."""
    ctx = click.get_current_context(silent=True)
    if ctx is None:
        return read()
    before: dict[tuple[str, str], T] = ctx.meta.setdefault("replay.read", {})
    told: set[tuple[str, str]] = ctx.meta.setdefault("replay.unreadable", set())
    file = option, path
    if file in before and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
        return before[file]
    try:
        before[file] = read()
        told.discard(file)
    except UsageError as error:
        if file not in before or not isinstance(error.__context__, PermissionError):
            raise
        if file not in told:
            import logging  # not for a run

            told.add(file)
            logging.getLogger("replay.tap").warning("%s %s cannot be read any more (%s): what stood there goes on", option, path, error.__context__.strerror)
    return before[file]


# ---- --config --------------------------------------------------------------------------------------------------------------


def load_config(ctx: click.Context, path: str | None) -> None:
    """Takes the values of a YAML file as defaults of this command's options. Raises UsageError."""
    if path is None:
        return
    from replay.cli import configuration  # not for a run without

    configuration.load(ctx, path)


def long_name(param: click.Option) -> str:
    """The long name of an option without its dashes."""
    return max(param.opts, key=len).lstrip("-")


def effective(ctx: click.Context, *, without: tuple[str, ...] = ()) -> list[str]:
    """`name = value  (from)`, a line an option, for -v. without: those that have no default in this verb, whatever they have in others."""
    sources = {
        ParameterSource.COMMANDLINE: "command line",
        ParameterSource.DEFAULT_MAP: ctx.meta.get("replay.config", "configuration"),
        ParameterSource.ENVIRONMENT: "environment",
    }
    lines = []
    for param in ctx.command.params:
        if not isinstance(param, click.Option) or param.name is None or param.name not in ctx.params:
            continue
        source = ctx.get_parameter_source(param.name)
        origin = sources.get(source, "default") if source is not None else "default"
        value = ctx.params[param.name]
        text = "-" if param.name in without and value is None else shown(param, value)
        lines.append(f"  {long_name(param):<18} {text:<24} ({origin})")
    return lines


def shown(param: click.Option, value: Any) -> str:
    """A parsed value as a person would write it."""
    from replay.report import mask

    if param.name in ("percent", "methods") and not value and value != 0:
        return "100 %" if param.name == "percent" else "all"
    if value is None or value == ():
        return "-"
    if param.type is SHARE:
        return units.show_share(value)
    if param.type in (MOMENT, AHEAD):
        return units.show_moment(value)
    if param.type.name == "TIME":
        return units.show_duration(value)
    if param.type.name == "SIZE":
        return units.show_bytes(value)
    if param.type is SHARD:
        return f"{value[0] + 1}/{value[1]}"
    if param.type is CIDR:
        return f"{len(value)} networks"
    if isinstance(value, tuple):
        return ", ".join(mask([str(one)]).strip("'") for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
