"""A policy as plain values, whatever language it was written in: ordered routes, the first that matches decides, each with its mirrors.

What must live here: what a policy *is*. What it must not know: YAML, meshes, the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from replay.settings import Target
from replay.units import MILLION

__all__ = [
    "Block", "Change", "Client", "Destination", "Field", "Format", "Host", "MILLION", "Mirror", "Part", "PathRewrite", "Policy", "Route", "Text", "Where",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a policy file. line: from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Text:
    """A test on a text. kind: `exact`, `prefix`, `suffix`, `contains`, `regex` (RE2, of the whole text), `segments` (a path below, by whole segments),
    `range` (a whole number; value: `FROM BELOW`), `present`, `absent`.  invert: the test fails where it would hold; a missing value is then taken as empty.
    missing_empty: a missing value is taken as empty all the same."""

    kind: str
    value: str = ""
    ignore_case: bool = False
    invert: bool = False
    missing_empty: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A test on the host. kind: `exact`, `suffix` (`*.example.com`: value `.example.com`), `prefix` (`shop.*`: value `shop.`), `any`.
    port: that the host must name; None: any port or none. Case never matters."""

    kind: str
    value: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A test on a header, a cookie or a query parameter of this name."""

    name: str
    test: Text


@dataclass(frozen=True, slots=True)
class Client:
    """A network of clients. packed: 16 bytes, IPv4 mapped.  bits: of 128.  text: as written."""

    text: str
    packed: bytes
    bits: int


@dataclass(frozen=True, slots=True)
class Block:
    """One set of conditions; all that are given must hold. Within `hosts`, `ports`, `methods`, `clients` one is enough.

    hosts: the host without its port.  authorities: the host as written, port included.  ports: the server port of the connection."""

    hosts: tuple[Host, ...] = ()
    authorities: tuple[Text, ...] = ()
    ports: tuple[int, ...] = ()
    path: Text | None = None
    methods: tuple[Text, ...] = ()
    headers: tuple[Field, ...] = ()
    query: tuple[Field, ...] = ()
    clients: tuple[Client, ...] = ()
    cookies: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """Of a made value. what: `text` (value as it is), `header` (value: its name in lower case), `path` (the target as sent), `method`, `authority` (the host
    before the suffix), `version`.  most: bytes of it.  other, other_value: what stands in where that is missing."""

    what: str
    value: str = ""
    most: int | None = None
    other: str | None = None
    other_value: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """A value that is made for each request. text: as written.  keep_empty: it is a value even when it comes out empty."""

    text: str
    parts: tuple[Part, ...]
    keep_empty: bool = False

    def names(self) -> set[str]:
        """The headers that it reads."""
        pairs = [pair for part in self.parts for pair in ((part.what, part.value), (part.other, part.other_value))]
        return {name for what, name in pairs if what == "header"}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a mirror goes, as its policy names it.

    name: as shown: a URL, a cluster, `customer.ns.svc.cluster.local:8080 subset v2`.  host, port, subset, namespace: parts, where the policy has them.
    url: set when the policy itself gives the address."""

    name: str
    host: str = ""
    port: int | None = None
    subset: str = ""
    namespace: str = ""
    url: str | None = None


@dataclass(frozen=True, slots=True)
class PathRewrite:
    """kind: `full` (the path is replaced), `prefix` (`matched` is replaced), `regex` (RE2, every match).  The query stays."""

    kind: str
    value: str
    matched: str = ""


#: (how, name, value)
Change = tuple[str, str, str | Format | Text]


@dataclass(frozen=True, slots=True)
class Mirror:
    """One copy. share: parts per million.  authority: replaces the host before the suffix is put on.  suffix: None for none.
    literal: the Host as it is, without suffix.  headers: (how, name, value): how is `set`, `add`, `append` (a comma and the value behind the last one),
    `set_if_exists`, `add_if_absent`, `remove`, `remove_matching` (value: a test on names in lower case).  max_body: larger requests are not copied.
    limit: so many copies at most.  trace: keep, unsample, drop."""

    to: Destination
    where: Where
    share: int = MILLION
    sample_by: str = "request"
    authority: str | None = None
    suffix: str | None = "-shadow"
    literal: str | None = None
    headers: tuple[Change, ...] = ()
    path: PathRewrite | None = None
    max_body: int | None = None
    limit: int | None = None
    trace: str = "keep"
    target: Target | None = None  # once resolved


@dataclass(frozen=True, slots=True)
class Route:
    """blocks: alternatives.  mirrors: empty: what matches is not mirrored.  note: why, where a policy says so in its own way."""

    name: str
    where: Where
    blocks: tuple[Block, ...]
    mirrors: tuple[Mirror, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """routes: in order, first match wins.  language: `replay`, `istio`, `gateway`, `envoy`.  mesh: whose defaults were assumed.
    notes: what was assumed, for the reader."""

    routes: tuple[Route, ...]
    language: str
    mesh: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """Of all routes, in order."""
        return tuple(mirror for route in self.routes for mirror in route.mirrors)

    def with_mirrors(self, mirrors: tuple[Mirror, ...]) -> Policy:
        """The same with other mirrors, as many as there are and in the order of `mirrors`."""
        left = iter(mirrors)
        return replace(self, routes=tuple(replace(route, mirrors=tuple(next(left) for _ in route.mirrors)) for route in self.routes))
