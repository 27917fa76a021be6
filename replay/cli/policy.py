"""`replay policy`: what a policy means, whether it is right, and what it does with a capture."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import click

from replay import units
from replay.cli import options
from replay.engine import Listing
from replay.errors import CaptureError, UsageError
from replay.policy import Names, Policy, load
from replay.policy.diagnose import Diagnoses
from replay.policy.explain import mirror_words, words
from replay.policy.match import Asked, Step, find, split_host
from replay.policy.model import Mirror
from replay.policy.ours import dump
from replay.policy.sample import taken
from replay.report import endpoint, text
from replay.settings import Selection


@click.command(short_help="what a policy (ours, Istio, Gateway API, Envoy) means: explained, checked, converted")
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--convert", is_flag=True, help="Print it in our own language.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of our own language.")
@click.option("--test", "captures", multiple=True, metavar="CAPTURE", help="How many requests of a capture take each route (repeatable).")
@click.option(
    "--explain", "number", type=options.COUNT_OR_0, metavar="N", help="With --test: why request N (the first column of `replay show`) is mirrored or not."
)
@options.policy
@click.option("--seed", type=options.SEED, default="0", help="The sample of --test; as for run.  [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@options.config
@click.pass_context
def policy(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    convert: bool,
    schema: bool,
    captures: tuple[str, ...],
    number: int | None,
    seed: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    mesh: str | None,
    resolve: tuple[str, ...],
    namespace: str,
    **given: Any,
) -> None:
    """Reads a policy and says in plain words what it does; with errors and warnings by file, line and field.

    A FILE is YAML or JSON, a folder of such files, or - for standard input: our own language, Istio's VirtualService and
    DestinationRule, Gateway API's HTTPRoute and GRPCRoute, or Envoy's route configuration.
    """
    if schema:
        import importlib.resources

        print((importlib.resources.files("replay.policy") / "schema.json").read_text(), end="")
        return
    if not files:
        raise click.UsageError("a policy is missing: replay policy FILE", ctx)
    if number is not None and not captures:
        raise UsageError("--explain N needs --test CAPTURE, whose request it explains")
    names = Names(resolve)
    loaded, diagnoses = load(files, mesh=mesh, names=names, namespace=namespace, require=False)
    if not quiet:
        for warning in diagnoses.warnings:
            print(warning, file=sys.stderr)
    if convert:
        print("\n".join([*(f"# {note}" for note in loaded.notes), dump(loaded)]), end="")
    elif captures:
        _test(ctx, loaded, captures, number, seed, as_json)
    elif as_json:
        print(json.dumps(_as_object(loaded, diagnoses), indent=2, ensure_ascii=False))
    else:
        print("\n".join(words(loaded)))
        for to in dict.fromkeys(mirror.to for mirror in loaded.mirrors if mirror.target is None):
            missing = names.missing(to)
            why = f" (the policy does not say its {missing}, which the template needs)" if missing else ""
            print(f"note: the address of {to.name} is not known{why}; `run` and `tap` need it (--resolve)")


def _as_object(loaded: Policy, diagnoses: Diagnoses) -> dict[str, Any]:
    import dataclasses

    return {
        "language": loaded.language,
        "mesh": loaded.mesh,
        "notes": list(loaded.notes),
        "warnings": [dataclasses.asdict(one) for one in diagnoses.warnings],
        "routes": [dataclasses.asdict(route) | {"blocks": [_block(block) for block in route.blocks]} for route in loaded.routes],
    }


def _block(block: Any) -> dict[str, Any]:
    import dataclasses

    found = dataclasses.asdict(block)
    found["clients"] = [one.text for one in block.clients]
    return found


# ---- --test ------------------------------------------------------------------------------------------------------------------


def asked(row: dict[str, Any]) -> Asked:
    """A row of a listing as routes see it."""
    target: bytes = row["target"]
    rest = target
    if not target.startswith(b"/") and b"://" in target:
        rest = b"/" + target.partition(b"://")[2].partition(b"/")[2] if b"/" in target.partition(b"://")[2] else b"/"
        tail = target.partition(b"://")[2]
        if b"/" not in tail and b"?" in tail:
            rest = b"/?" + tail.partition(b"?")[2]
    path, mark, query = rest.partition(b"?")
    fields = []
    for line in row["head"].split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.lower(), value.strip(b" \t\r")))
    host = row["authority"] or b""
    port = row["server"][1] or split_host(host)[1] or 80
    return Asked(row["method"], path, query if mark else None, host, port, tuple(fields), row["client"][0])


def _test(ctx: click.Context, loaded: Policy, captures: tuple[str, ...], number: int | None, seed: int, as_json: bool) -> None:
    listing = Listing(captures, Selection())
    for error in listing.errors:
        print(f"replay policy: {error}", file=sys.stderr)
    matched: Counter[str] = Counter()
    copies: Counter[tuple[str, str]] = Counter()
    withheld: Counter[str] = Counter()
    total = 0
    try:
        for row in listing:
            total += 1
            if number is not None:
                if row["n"] == number:
                    print("\n".join(_why(loaded, row, seed)))
                    return
                continue
            route = find(loaded, asked(row))
            matched[route.name if route is not None else ""] += 1
            if route is None or not route.mirrors:
                continue
            if row["withheld"]:
                withheld[row["withheld"]] += 1
                continue
            for mirror in route.mirrors:
                if taken(mirror, row, seed):
                    copies[route.name, mirror.to.name] += 1
    finally:
        listing.close()
    for fault in listing.faults:
        print(f"replay policy: {fault['path']}: {fault['message']}", file=sys.stderr)
    if number is not None:
        raise CaptureError(", ".join(captures), f"there is no request {number}; it has {total:,}, counted from 0")
    if as_json:
        found = {
            "requests": total,
            "routes": [
                {"name": route.name, "requests": matched[route.name], "copies": {m.to.name: copies[route.name, m.to.name] for m in route.mirrors}}
                for route in loaded.routes
            ],
            "unmatched": matched[""],
            "withheld": dict(withheld),
        }
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_counts(loaded, total, matched, copies, withheld)))
    if listing.errors or any(fault["fatal"] for fault in listing.faults):
        ctx.exit(4)


def _counts(loaded: Policy, total: int, matched: Counter[str], copies: Counter[tuple[str, str]], withheld: Counter[str]) -> list[str]:
    lines = [f"{total:>10,}  requests"]
    for route in loaded.routes:
        lines.append(f"{matched[route.name]:>10,}  {route.name}")
        for mirror in route.mirrors:
            lines.append(f"{'':>10}  {copies[route.name, mirror.to.name]:>10,} copies to {mirror.to.name} ({units.show_share(mirror.share)})")
    if matched[""]:
        lines.append(f"{matched['']:>10,}  no route")
    if withheld:
        lines.append(f"{sum(withheld.values()):>10,}  matched, but never sent: " + ", ".join(f"{name} {n:,}" for name, n in withheld.most_common()))
    never = [route.name for route in loaded.routes if route.mirrors and not matched[route.name]]
    if never and total:
        lines.append(f"no request took {', '.join(never[:5])}{' …' if len(never) > 5 else ''}")
    return lines


def _why(loaded: Policy, row: dict[str, Any], seed: int) -> list[str]:
    """Step by step."""
    ask = asked(row)
    what = f"{text(row['method'])} {text(row['target'])}, host {text(ask.host) or '-'}"
    lines = [f"request {row['n']}: {what}, from {endpoint(*row['client'])} to {endpoint(*row['server'])}"]
    steps: list[Step] = []
    route = find(loaded, ask, steps)
    for step in steps:
        if step.failed:
            lines.append(f"  {step.route.name} ({step.route.where}): no, {'; '.join(dict.fromkeys(step.failed))} does not fit")
        else:
            lines.append(f"  {step.route.name} ({step.route.where}): matches")
    if route is None:
        return [*lines, "not mirrored: no route matches"]
    if not route.mirrors:
        return [*lines, f"not mirrored: {route.note or 'this route has no mirror'}"]
    if row["withheld"]:
        return [*lines, f"not mirrored: it is withheld, {row['withheld']}"]
    for mirror in route.mirrors:
        lines.append(_verdict(mirror, row, seed))
    return lines


def _verdict(mirror: Mirror, row: dict[str, Any], seed: int) -> str:
    what = mirror_words(mirror)
    if mirror.max_body is not None and row["body_len"] > mirror.max_body:
        return f"not mirrored to {mirror.to.name}: its body has {row['body_len']:,} bytes, at most {mirror.max_body:,} are allowed"
    if taken(mirror, row, seed):
        return f"mirrored: {what}"
    return f"not mirrored to {mirror.to.name}: {mirror.sample_by} (seed {seed}) is not in the share of {units.show_share(mirror.share)}"
