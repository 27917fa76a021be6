"""Which route a request takes, step by step, in plain Python: what `--test` and `--explain` show, and the oracle of the compiled routes' tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from replay.policy.model import Block, Client, Host, Policy, Route, Text
from replay.policy.patterns import Pattern, compile_pattern

__all__ = ["Asked", "Step", "find", "holds", "split_host"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as routes see it.

    host: as Envoy has it (the target's authority, else Host), port included.  port: the server's.  path: without query.  query: without `?`; None for none.
    headers: names in lower case, in order.  client: 16 bytes."""

    method: bytes
    path: bytes
    query: bytes | None = None
    host: bytes = b""
    port: int = 80
    headers: tuple[tuple[bytes, bytes], ...] = ()
    client: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class Step:
    """One route that was looked at. failed: the first condition that did not hold, of each block; empty for the route that matched."""

    route: Route
    failed: tuple[str, ...]


def split_host(host: bytes) -> tuple[bytes, int | None]:
    """Name and port of a host: at the last colon, if no `]` stands behind it."""
    at = host.rfind(b":")
    if at < 0 or b"]" in host[at:]:
        return host, None
    digits = host[at + 1 :]
    return host[:at], int(digits) if digits.isdigit() and len(digits) <= 5 else None


def find(policy: Policy, asked: Asked, steps: list[Step] | None = None) -> Route | None:
    """The first route that matches, or None."""
    for route in policy.routes:
        failed = []
        for block in route.blocks:
            why = _fails(block, asked)
            if why is None:
                if steps is not None:
                    steps.append(Step(route, ()))
                return route
            failed.append(why)
        if steps is not None:
            steps.append(Step(route, tuple(failed)))
    return None


def _fails(block: Block, asked: Asked) -> str | None:
    """What does not hold, in words; None when all holds."""
    if block.hosts and not any(_host(one, asked.host) for one in block.hosts):
        return f"host {_show(asked.host)!r}"
    if block.authorities and not any(holds(one, asked.host) for one in block.authorities):
        return f"authority {_show(asked.host)!r}"
    if block.ports and asked.port not in block.ports:
        return f"port {asked.port}"
    if block.path is not None and not holds(block.path, asked.path):
        return f"path {_show(asked.path)!r}"
    if block.methods and not any(holds(one, asked.method) for one in block.methods):
        return f"method {_show(asked.method)}"
    for test in block.headers:
        value = _header(asked.headers, test.name.encode())
        if not holds(test.test, value):
            return f"header {test.name} ({'absent' if value is None else repr(_show(value))})"
    for test in block.query:
        value = _parameter(asked.query, test.name.encode())
        if not holds(test.test, value):
            return f"query parameter {test.name} ({'absent' if value is None else repr(_show(value))})"
    if block.clients and not any(_inside(one, asked.client) for one in block.clients):
        return "client"
    return None


def _show(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return text if len(text) <= 60 else text[:59] + "…"


def _host(test: Host, host: bytes) -> bool:
    name, port = split_host(host)
    name = name.lower()
    if test.port is not None and test.port != port:
        return False
    value = test.value.encode()
    if test.kind == "exact":
        return name == value
    if test.kind == "suffix":
        return len(name) > len(value) and name.endswith(value)
    if test.kind == "prefix":
        return len(name) > len(value) and name.startswith(value)
    return True


@lru_cache(4096)
def _pattern(text: str, ignore_case: bool) -> Pattern:
    return compile_pattern(text, ignore_case=ignore_case)


def holds(test: Text, value: bytes | None) -> bool:
    """A test on a value; None: there is none. An inverted test takes a missing value as empty."""
    if test.kind in ("present", "absent"):
        return (value is not None) == (test.kind == "present")
    if value is None:
        if not test.invert:
            return False
        value = b""
    wanted = test.value.encode()
    if test.kind == "regex":
        found = _pattern(test.value, test.ignore_case).fullmatch(value) is not None
        return found != test.invert
    if test.ignore_case:
        value, wanted = value.lower(), wanted.lower()
    if test.kind == "exact":
        found = value == wanted
    elif test.kind == "prefix":
        found = value.startswith(wanted)
    elif test.kind == "suffix":
        found = value.endswith(wanted)
    elif test.kind == "contains":
        found = wanted in value
    else:
        found = value == wanted or value.startswith(wanted + b"/")
    return found != test.invert


def _header(headers: tuple[tuple[bytes, bytes], ...], name: bytes) -> bytes | None:
    """All values of this name, joined by commas as Envoy does; None when there is none."""
    values = [value for key, value in headers if key == name]
    return b",".join(values) if values else None


def _parameter(query: bytes | None, name: bytes) -> bytes | None:
    """The first value of a query parameter, as written; a name without `=` has an empty value."""
    for pair in (query or b"").split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name and pair:
            return value
    return None


def _inside(network: Client, address: bytes) -> bool:
    drop = 128 - network.bits
    return int.from_bytes(network.packed, "big") >> drop == int.from_bytes(address, "big") >> drop
