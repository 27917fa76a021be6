"""`replay inspect`: how good a capture is."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import click

from replay.capture.source import as_error
from replay.cli import options
from replay.engine import Listing
from replay.judge import card as cards


@click.command(short_help="how good a capture is: what is in it, what is missing, what to do about it")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@options.select
@options.bounds
@click.option("--json", "as_json", is_flag=True, help="The card as one JSON object.")
@options.config
@click.pass_context
def inspect(ctx: click.Context, /, captures: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """How good a capture is: what is in it, what is missing, what to do about it.

    A CAPTURE is a file, a folder, a glob, or - for standard input; pcap or pcapng, plain, gzip or zstd.
    """
    from replay._fastpath import fold_endpoint, tally

    if verbose:
        print("options:", *options.effective(ctx), sep="\n", file=sys.stderr)
    selection = options.selection(given)
    listing = Listing(captures, selection, incomplete=True, digests=False)
    for error in listing.errors:
        print(f"replay inspect: {error}", file=sys.stderr)
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        listing.stop.set()

    card = cards.Card(fold_endpoint)
    ends = [end for _, end in cards.SIZES]
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for batch in listing.batches():
            groups, steps, others = tally(batch, ends, cards.STEP_NS)
            card.add_groups(groups, steps)
            for at in others:
                card.add(batch[at])
    finally:
        listing.close()
        signal.signal(signal.SIGINT, before)
    bad = False
    for fault in listing.faults:
        bad = bad or fault["fatal"]
        print(f"replay inspect: {'' if fault['fatal'] else 'warning: '}{as_error(fault)}", file=sys.stderr)
    found = card.as_dict(listing.counts)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        print("\n".join(cards.text(found)))
    sys.stdout.flush()
    if interrupted:
        ctx.exit(130)
    if bad or listing.errors:
        ctx.exit(4)
