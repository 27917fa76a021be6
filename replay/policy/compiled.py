"""A policy as the tables that the engine reads: bytes, numbers and compiled patterns; no YAML, no percentages, no names of clusters."""

from __future__ import annotations

from typing import Any

from replay.errors import UsageError
from replay.policy.explain import words
from replay.policy.match import JOINED, bounds
from replay.policy.model import Block, Change, Field, Format, Mirror, Policy, Text
from replay.policy.patterns import compile_pattern, substitute
from replay.settings import Routing, Target

__all__ = ["compile_policy"]


def compile_policy(policy: Policy, *, like_envoy: bool = False, proxy: str | None = None) -> Routing:
    """Every mirror of the policy has its target. like_envoy: headers that Envoy adds to a copy; proxy: the address that it appends to x-forwarded-for."""
    targets: dict[str, Target] = {}
    mirrors: list[dict[str, Any]] = []
    routes: list[tuple[int, ...]] = []
    blocks: list[dict[str, Any]] = []
    for at, route in enumerate(policy.routes):
        indexes = []
        for mirror in route.mirrors:
            if mirror.target is None:
                raise UsageError(f"{mirror.where}: the address of {mirror.to.name} is not known")
            targets.setdefault(mirror.target.url, mirror.target)
            indexes.append(len(mirrors))
            mirrors.append(_mirror(mirror, list(targets).index(mirror.target.url), like_envoy, proxy))
        routes.append(tuple(indexes))
        blocks += [_block(block, at) for block in route.blocks]
    return Routing(
        tuple(blocks),
        tuple(routes),
        tuple(mirrors),
        tuple(targets.values()),
        tuple(route.name for route in policy.routes),
        tuple(mirror.to.name for mirror in policy.mirrors),
        tuple(words(policy)),
        ", ".join(policy.files),
    )


def _mirror(mirror: Mirror, queue: int, like_envoy: bool, proxy: str | None) -> dict[str, Any]:
    changes: list[Change] = _last(list(mirror.headers))
    if like_envoy:
        changes += [("set", "x-envoy-internal", "true"), ("append", "x-forwarded-for", proxy or "127.0.0.1")]
    rewrite = None
    if mirror.path is not None:
        value, matched = mirror.path.value.encode(), mirror.path.matched
        rewrite = (mirror.path.kind, value, substitute(matched, mirror.path.value) if mirror.path.kind == "regex" else matched.encode())
    return {
        "queue": queue,
        "share": mirror.share,
        "sample_by": mirror.sample_by,
        "authority": None if mirror.authority is None else mirror.authority.encode(),
        "suffix": None if mirror.suffix is None else mirror.suffix.encode(),
        "set_host": None if mirror.literal is None else mirror.literal.encode(),
        "changes": tuple(_change(*change) for change in changes),
        "path": rewrite,
        "max_body": mirror.max_body,
        "limit": mirror.limit,
        "trace": mirror.trace,
    }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _change(how: str, name: str, value: str | Format | Text) -> tuple[str, bytes, Any]:
    if isinstance(value, Text):
        return "remove", b"", _text(value)
    if isinstance(value, Format):
        parts = tuple((part.what, _bytes(part.value), part.most, part.other, _bytes(part.other_value)) for part in value.parts)
        return how, name.encode(), (parts, value.keep_empty)
    return how, name.encode(), _bytes(value)


def _last(changes: list[Change]) -> list[Change]:
    """Where a header is set more than once, the last one counts, as when they are done in order."""
    kept: list[Change] = []
    for how, name, value in changes:
        if how == "set":
            kept = [one for one in kept if one[0] == "remove" or one[1].lower() != name.lower()]
        kept.append((how, name, value))
    return kept


def _text(test: Text) -> tuple[str, Any, bool, bool, bool]:
    value: Any = test.value.encode()
    if test.kind == "regex":
        value = compile_pattern(test.value, ignore_case=test.ignore_case)
    elif test.kind == "range":
        value = bounds(test)
    return test.kind, value, test.ignore_case, test.invert, test.missing_empty


def _named(fields: tuple[Field, ...], *, header: bool = False) -> tuple[tuple[bytes, Any, bool], ...]:
    return tuple((one.name.encode(), _text(one.test), header and one.name in JOINED) for one in fields)


def _block(block: Block, route: int) -> dict[str, Any]:
    return {
        "route": route,
        "hosts": tuple((one.kind, one.value.encode(), one.port or 0) for one in block.hosts),
        "authorities": tuple(_text(one) for one in block.authorities),
        "ports": block.ports,
        "path": None if block.path is None else _text(block.path),
        "methods": tuple(_text(one) for one in block.methods),
        "headers": _named(block.headers, header=True),
        "query": _named(block.query),
        "cookies": _named(block.cookies),
        "clients": tuple((one.packed, one.bits) for one in block.clients),
    }
