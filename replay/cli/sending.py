"""The options that say where requests go, how they are sent, and what is told of them: the same rows for a run and for a tap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from replay import settings, units
from replay.cli import options
from replay.settings import Target, Tls

__all__ = ["RING", "apart", "between", "sending", "target_options", "told", "tls"]

F = TypeVar("F", bound=Callable[..., Any])


def between(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`, read from text. Raises ValueError."""

    def read(text: str) -> int:
        value = units.count(text)
        if not least <= value <= most:
            raise ValueError(f"{text!r} is out of range: {least:,} to {most:,}")
        return value

    return read


def _ring(text: str) -> int:
    value = units.size(text)
    if not 1 << 20 <= value <= 1 << 34:
        raise ValueError(f"{text!r} is out of range: 1MiB to 16GiB")
    return value


RING = options.Unit("SIZE", _ring)

_TARGET = [
    click.option(
        "--to", "to", multiple=True, metavar="URL", help="The shadow service: http://host:port, https://host, unix:/path (repeatable: each gets a copy)."
    ),
    click.option("--cacert", metavar="FILE", help="Certificates that an https target is trusted by, instead of the system's (PEM)."),
    click.option("--cert", metavar="FILE", help="Our certificate, for a target that asks for one (PEM; with its key, or --key)."),
    click.option("--key", metavar="FILE", help="The key of --cert (PEM)."),
    click.option("--sni", metavar="NAME", help="The name that an https target is asked for and verified by, instead of that in its URL."),
    click.option("--insecure", is_flag=True, help="Do not verify https targets."),
]


def target_options(command: F) -> F:
    """--to, and how https is spoken."""
    return options.apply(_TARGET, command)


def sending(*, connections: str, timeout: str) -> Callable[[F], F]:
    """How it is sent. The arguments are defaults."""
    rows = [
        click.option(
            "-c",
            "--connections",
            type=options.Unit("N", between(1, 1 << 20)),
            default=connections,
            show_default=True,
            help="At most so many to each target, opened as needed.",
        ),
        click.option("--pipeline", type=options.Unit("N", between(1, 64)), default="1", show_default=True, help="Requests under way on one connection."),
        click.option("--connect-timeout", type=options.LONGER_THAN_0, default="1s", show_default=True, help="For a connection to stand."),
        click.option("--timeout", type=options.LONGER_THAN_0, default=timeout, show_default=True, help="For a whole reply."),
        click.option("--drain", type=options.DURATION, default="5s", show_default=True, help="At the end, for what is under way."),
    ]
    return lambda command: options.apply(rows, command)


_TOLD = [
    click.option("--results", metavar="FILE.jsonl[.zst]", help="A line of JSON a selected request: what was captured, what became of it."),
    click.option("--access-log", metavar="FILE", help="A line a request, in Envoy's default format (- is standard error)."),
    click.option("--report", "report_file", metavar="FILE.json", help="Write the whole result there."),
    click.option("--json", "as_json", is_flag=True, help="The result on standard output as one JSON object, and nothing else there."),
]


def told(command: F) -> F:
    """What is told of requests, and at the end."""
    return options.apply(_TOLD, command)


_WRITTEN = (("--report", "report_file"), ("--html", "html_file"), ("--results", "results"), ("--access-log", "access_log"))
_READ = (("--auth-file", "auth_file"), ("--cacert", "cacert"), ("--cert", "cert"), ("--key", "key"))


def apart(ctx: click.Context, given: dict[str, Any], captures: tuple[str, ...] = (), record: Sequence[str] = ()) -> None:
    """Files that are written are no captures, none that an option reads, and not each other. record: those of `--record`. Raises UsageError."""
    written = [*((option, given.get(name)) for option, name in _WRITTEN), *(("--record", path) for path in record)]
    if any(path is not None for _, path in written):
        from replay import outputs  # not for a run that writes nothing

        read = [*((option, given[name]) for option, name in _READ), *(("--policy", path) for path in given["policy"])]
        outputs.apart(written, captures, [*read, ("--config", ctx.meta.get("replay.config"))])


def tls(given: dict[str, Any], targets: tuple[Target, ...]) -> Tls:
    """Of the values of the options. Raises UsageError."""
    return settings.tls(Tls(given["cacert"], given["cert"], given["key"], given["sni"], given["insecure"]), targets)
