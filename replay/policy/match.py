"""Which route a request takes, step by step, in plain Python: what `--test` and `--explain` show, and the oracle of the compiled routes' tests."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from replay.policy.model import Block, Client, Field, Host, Policy, Route, Text
from replay.policy.patterns import Pattern, compile_pattern

__all__ = ["Asked", "JOINED", "Step", "bounds", "find", "holds", "names", "split_host"]

#: Headers that Envoy 1.40 joins by commas where they come several times (by experiment, tests/test_envoy_parity.py); of others one value is enough.
JOINED = frozenset(
    """accept accept-encoding access-control-request-headers access-control-request-method access-control-request-private-network authorization
    cache-control cdn-loop content-encoding content-type grpc-accept-encoding grpc-timeout if-match if-modified-since if-none-match if-range origin pragma
    referer user-agent via x-client-trace-id x-envoy-attempt-count x-envoy-decorator-operation x-envoy-downstream-service-cluster
    x-envoy-downstream-service-node
    x-envoy-external-address x-envoy-original-host x-envoy-original-path x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto
    x-request-id""".split()
)
_NUMBER = re.compile(rb"[ \t-\r]*([+-]?[0-9]+)[ \t-\r]*")


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
        values = [value for key, value in asked.headers if key == test.name.encode()]
        if not _header_holds(test, values):
            return f"header {test.name} ({repr(_show(b','.join(values))) if values else 'absent'})"
    for test in block.query:
        value = _parameter(asked.query, test.name.encode())
        if not holds(test.test, value):
            return f"query parameter {test.name} ({'absent' if value is None else repr(_show(value))})"
    for test in block.cookies:
        value = _cookie(asked.headers, test.name.encode())
        plain = test.test.kind not in ("present", "absent")
        if not (test.test.invert if value is None and plain else holds(test.test, value)):
            return f"cookie {test.name} ({'absent' if value is None else repr(_show(value))})"
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
    """A test on a value; None: there is none. An inverted test takes a missing value as empty; so does one that says so."""
    if test.kind in ("present", "absent"):
        return (value is not None) == (test.kind == "present")
    if value is None:
        if not test.invert and not test.missing_empty:
            return False
        value = b""
    wanted = test.value.encode()
    if test.kind == "range":
        number = _NUMBER.fullmatch(value)
        low, below = bounds(test)
        found = number is not None and -(1 << 63) <= int(number[1]) < 1 << 63 and low <= int(number[1]) < below
        return found != test.invert
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


def bounds(test: Text) -> tuple[int, int]:
    """Of a `range`: from, below."""
    low, _, below = test.value.partition(" ")
    return int(low), int(below)


def names(test: Text, name: bytes) -> bool:
    """A test on the name of a header, which is compared in lower case."""
    return holds(test, name.lower())


def _header_holds(test: Field, values: list[bytes]) -> bool:
    """Of a header that comes several times one value is enough, and none for an inverted test; what Envoy joins (without the empty ones) is one value."""
    if not values or test.test.kind in ("present", "absent"):
        return holds(test.test, values[0] if values else None)
    if test.name in JOINED:
        return holds(test.test, b",".join(value for value in values if value))
    plain = replace(test.test, invert=False)
    return any(holds(plain, value) for value in values) != test.test.invert


def _cookie(headers: tuple[tuple[bytes, bytes], ...], name: bytes) -> bytes | None:
    """The first cookie of this name, as Envoy reads them; None: there is none. One without `=` is none."""
    for key, line in headers:
        for pair in line.split(b";") if key == b"cookie" else ():
            given, equals, value = pair.lstrip(b" ").partition(b"=")
            if equals and given == name:
                return value[1:-1] if len(value) >= 2 and value[:1] == value[-1:] == b'"' else value
    return None


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
