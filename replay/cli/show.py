"""`replay show`: the requests in a capture, a line each."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from replay import units
from replay.capture.source import as_error
from replay.cli import options
from replay.cli.group import close_stdout
from replay.engine import Listing
from replay.errors import UsageError
from replay.report import endpoint, text, when
from replay.settings import Selection

_WRITE = 1 << 16


@click.command(short_help="the requests in a capture, a line each")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@options.select
@options.change
@options.bounds
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--incomplete", is_flag=True, help="Also requests that are not whole, with the reason.")
@options.config
@click.pass_context
def show(ctx: click.Context, /, captures: tuple[str, ...], as_json: bool, incomplete: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """The requests in captures, a line each, ordered by time; the first column is the number that `policy --explain` takes.

    A CAPTURE is a file, a folder, a glob, or - for standard input; pcap or pcapng, plain, gzip or zstd.
    """
    if verbose:
        print("options:", *options.effective(ctx), sep="\n", file=sys.stderr)
    selection = options.selection(given)
    listing = Listing(captures, selection, incomplete=incomplete)
    for error in listing.errors:
        print(f"replay show: {error}", file=sys.stderr)
    interrupted = gone = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        listing.stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        listed = _print(listing, selection, as_json)
    except BrokenPipeError:  # whoever read this has seen enough
        gone = True
        close_stdout()
    except OSError as error:
        close_stdout()
        raise UsageError(f"standard output: {error.strerror}") from None
    finally:
        listing.close()
        signal.signal(signal.SIGINT, before)
    if gone:
        return
    bad = _tell(listing, quiet, verbose, listed if incomplete else None)
    if interrupted:
        ctx.exit(130)
    if bad or listing.errors:
        ctx.exit(4)


def _print(listing: Listing, selection: Selection, as_json: bool) -> int:
    """The number of lines of requests that are not whole."""
    listed = 0
    out = sys.stdout.buffer
    held: list[bytes] = []
    size = 0
    encode = _json_line(selection) if as_json else _text_line
    interactive = sys.stdout.isatty()
    for row in listing:
        line = encode(row)
        listed += row["incomplete"] is not None
        held.append(line)
        size += len(line)
        if size > _WRITE or interactive:
            out.write(b"".join(held))
            if interactive:
                out.flush()
            held.clear()
            size = 0
    out.write(b"".join(held))
    out.flush()
    return listed


def _json_line(selection: Selection) -> Any:
    """A function that makes the JSON line of a row. Source of the keys: the contract of `show --json`."""
    import msgspec

    encode = msgspec.json.Encoder().encode

    def line(row: dict[str, Any]) -> bytes:
        return encode(row_object(row, selection)) + b"\n"

    return line


def row_object(row: dict[str, Any], selection: Selection) -> dict[str, Any]:
    """A row as the object that `show --json` prints."""
    found = {
        "n": row["n"],
        "ts_ns": row["ts_ns"],
        "client": endpoint(*row["client"]),
        "server": endpoint(*row["server"]),
        "flow": row["flow"],
        "index": row["index"],
        "method": text(row["method"]),
        "target": text(row["target"]),
        "version": f"{row['version'] // 10}.{row['version'] % 10}",
        "host": None if row["host"] is None else text(row["host"]),
        "shadow_host": _shadow(row, selection),
        "headers": headers(row["head"]),
        "body_len": row["body_len"],
        "body_sha256": row["body_sha256"],
        "framing": row["framing"],
        "withheld": row["withheld"],
        "status": row["status"],
        "response_us": None if row["response_ns"] is None else row["response_ns"] / 1000,
    }
    if row["incomplete"] is not None:
        found |= {"n": None, "complete": False, "incomplete": row["incomplete"]}
    return found


def _shadow(row: dict[str, Any], selection: Selection) -> str | None:
    """The Host of the shadow's copy; null where there is none, or none that a proxy takes."""
    from replay._fastpath import shadow_host

    if row["authority"] is None or row["withheld"] in ("no_host", "bad_host"):
        return None
    if selection.set_host is not None:
        return selection.set_host
    if selection.suffix is None:
        return text(row["authority"])
    return text(shadow_host(row["authority"], selection.suffix.encode()))


def headers(head: bytes) -> list[list[str]]:
    """The fields of a head in their order, outer blanks cut, a folded line joined by a blank. A line without a colon has an empty value."""
    found: list[list[str]] = []
    for line in head.split(b"\n")[1:]:
        line = line.removesuffix(b"\r")
        if not line:
            continue
        if line[:1] in (b" ", b"\t") and found:
            found[-1][1] = f"{found[-1][1]} {text(line.strip())}".strip()
            continue
        name, _, value = line.partition(b":")
        found.append([text(name), text(value.strip(b" \t"))])
    return found


def _printable(value: bytes, most: int) -> str:
    """For a terminal: nothing that it would act on, and not endless."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text(value))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _text_line(row: dict[str, Any]) -> bytes:
    """N TIME CLIENT > SERVER METHOD HOST TARGET STATUS TIME-TO-RESPONSE BODY, and why it would not be sent."""
    host = row["host"]
    words = [
        f"{'-' if row['incomplete'] else row['n']:>5}",
        when(row["ts_ns"] / 1e9),
        f"{endpoint(*row['client']):>21} > {endpoint(*row['server']):<21}",
        f"{_printable(row['method'], 12):<7}",
        f"{row['status'] or '-':>3}",
        f"{units.show_duration(row['response_ns']):>8}",
        _printable(host, 60) if host else "-",
        _printable(row["target"], 120),
    ]
    if row["body_len"]:
        words.append(f"({units.show_bytes(row['body_len'])} {row['framing']})")
    if row["withheld"]:
        words.append(f"[withheld: {row['withheld']}]")
    if row["incomplete"]:
        words.append(f"[incomplete: {row['incomplete']}]")
    return (" ".join(words) + "\n").encode("utf-8", "replace")


def _tell(listing: Listing, quiet: bool, verbose: bool, listed: int | None) -> bool:
    """Faults and totals on standard error. True when a capture could not be used. listed: lines of requests that are not whole, with --incomplete."""
    bad = False
    for fault in listing.faults:
        bad = bad or fault["fatal"]
        print(f"replay show: {'' if fault['fatal'] else 'warning: '}{as_error(fault)}", file=sys.stderr)
    if quiet:
        return bad
    counts = listing.counts

    def reasons(title: str, found: dict[str, int]) -> str:
        return f"; {title} " + ", ".join(f"{name} {n:,}" for name, n in sorted(found.items(), key=lambda item: -item[1])) if found else ""

    names = ("filtered", "withheld", "sampled_out", "incomplete")
    line = f"found {counts['found']:,}" + "".join(reasons(name.replace("_", " "), counts[name]) for name in names)
    if listed is not None and (bare := sum(counts["incomplete"].values()) - listed) > 0:
        line += f" ({bare:,} of them without a request line, so without a line here)"
    if counts["lost_estimated"]:
        line += f"; lost without a trace about {counts['lost_estimated']:,}"
    print(line, file=sys.stderr)
    if verbose or not counts["found"]:
        packets = counts["packets"]
        parts = [
            f"{packets['read']:,} packets{reasons('skipped', packets['skipped'])}",
            f"{counts['connections']:,} connections{reasons('not HTTP/1', counts['other'])}",
            f"gaps {counts['gaps']:,} ({units.show_bytes(counts['gap_bytes'])})",
            f"overlap conflicts {counts['overlap_conflict']:,}",
            f"cut frames {packets['cut_frames']:,}",
        ]
        print("; ".join(parts), file=sys.stderr)
    return bad
