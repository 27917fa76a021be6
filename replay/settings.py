"""What a person asked for, as plain values: the command line fills it, the engine reads it."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from replay.errors import UsageError
from replay.units import MILLION, Pace

__all__ = ["Routing", "SAFE_METHODS", "Selection", "Settings", "Target", "Tls", "host", "methods", "network", "suffix", "target", "tls"]

#: RFC 9110 9.2.1, without TRACE, which no client of a service sends.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Target:
    """A shadow service. url: as shown, without credentials.  host: name or address, or the path of a Unix socket.  port: of TCP.  scheme: http, https, unix."""

    url: str
    host: str
    port: int
    scheme: str = "http"


@dataclass(frozen=True, slots=True)
class Tls:
    """How https targets are spoken to. cacert, cert, key: files in PEM.  sni: the name that is asked for and verified, that of the URL when None."""

    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    sni: str | None = None
    insecure: bool = False


def tls(found: Tls, targets: tuple[Target, ...], dashes: str = "--") -> Tls:
    """The same, when it goes together and with the targets. dashes: how options are written. Raises UsageError."""
    if found != Tls() and targets and not any(one.scheme == "https" for one in targets):
        names = [dashes + name for name in ("cacert", "cert", "key", "sni", "insecure")]
        raise UsageError(f"{', '.join(names[:-1])} and {names[-1]} are for https targets, and there is none")
    if found.key is not None and found.cert is None:
        raise UsageError(f"{dashes}key: without {dashes}cert there is nothing that it belongs to")
    if found.insecure and found.cacert is not None:
        raise UsageError(f"{dashes}insecure and {dashes}cacert: the first trusts everybody; leave one out")
    return found


@dataclass(frozen=True, slots=True)
class Routing:
    """A compiled policy: tables for `_fastpath.Routes`.

    blocks: sets of conditions, in order, each of a route.  routes: indexes of their mirrors.  mirrors: what each does; `queue` is an index into targets.
    names: of the routes.  words: of the policy, a line a route, for people.  shares: of the mirrors, in parts per million.  source: files."""

    blocks: tuple[dict[str, Any], ...]
    routes: tuple[tuple[int, ...], ...]
    mirrors: tuple[dict[str, Any], ...]
    targets: tuple[Target, ...]
    names: tuple[str, ...]
    destinations: tuple[str, ...]
    words: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which requests, and how each is changed. Defaults: all of them, with `-shadow` before the port."""

    share: int = MILLION
    sample_by: str = "request"
    seed: int = 0
    shard: tuple[int, int] | None = None
    methods: tuple[str, ...] = ()
    path: str | None = None
    match_host: str | None = None
    client: tuple[tuple[bytes, int], ...] = ()
    server: tuple[tuple[bytes, int], ...] = ()
    ports: tuple[int, ...] = ()
    bpf: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    limit: int | None = None
    suffix: str | None = "-shadow"
    set_host: str | None = None
    set_headers: tuple[tuple[bytes, bytes], ...] = ()
    append_headers: tuple[tuple[bytes, bytes], ...] = ()
    add_headers: tuple[tuple[bytes, bytes], ...] = ()
    remove_headers: tuple[bytes, ...] = ()
    trace: str = "keep"
    credentials: tuple[bytes | None, tuple[tuple[bytes, bytes], ...]] | None = field(default=None, repr=False)
    max_hops: int = 1
    resync: str = "strict"
    split_by_network: bool = False
    max_head: int = 64 << 10
    max_body: int = 64 << 20
    max_memory: int = 128 << 20
    max_connections: int = 262_144
    threads: int = 1
    max_gap_ns: int = 10 * 10**9
    routing: Routing | None = None

    def for_ingest(self) -> dict[str, Any]:
        """The keyword arguments of `_fastpath.Ingest`. Raises UsageError for a bad regular expression."""
        return {
            "share": self.share,
            "sample_by": self.sample_by,
            "seed": self.seed,
            "shard": self.shard,
            "methods": self.methods,
            "path": _pattern("--path", self.path),
            "host": _pattern("--match-host", self.match_host),
            "client": self.client,
            "server": self.server,
            "ports": self.ports,
            "since_ns": self.since_ns,
            "until_ns": self.until_ns,
            "suffix": None if self.suffix is None or self.routing is not None else self.suffix.encode(),
            "set_host": None if self.set_host is None else self.set_host.encode(),
            "set_headers": self.set_headers,
            "append_headers": self.append_headers,
            "add_headers": self.add_headers,
            "remove_headers": self.remove_headers,
            "trace": self.trace,
            "credentials": self.credentials,
            "max_hops": self.max_hops,
            "loose": self.resync == "loose",
            "split_by_network": self.split_by_network,
            "max_head": self.max_head,
            "max_body": self.max_body,
            "max_connections": self.max_connections,
            "threads": min(self.threads, 2),  # one takes packets and scouts them, the other reads them
            "max_memory": max(self.max_memory // 2, 2 << 20),
            "max_gap_ns": self.max_gap_ns,
        }

    @property
    def batch_budget(self) -> int:
        """Bytes of requests that may wait between ingest and the senders."""
        return max(self.max_memory * 3 // 8, 2 << 20)


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole run. captures: as the person named them."""

    captures: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    targets: tuple[Target, ...] = ()
    dry_run: bool = False
    allow_production: bool = False
    pace: Pace = Pace("original")
    loop: int = 1
    duration_ns: int | None = None
    connections: int = 256
    pipeline: int = 1
    driver: str = "auto"
    connect_timeout_ns: int = 10**9
    timeout_ns: int = 15 * 10**9
    drain_ns: int = 5 * 10**9
    start_at_ns: int | None = None
    tls: Tls = Tls()


def target(text: str) -> Target:
    """A URL of `--to`. Raises UsageError with what to write instead."""
    try:
        parts = urllib.parse.urlsplit(text if "://" in text or text.startswith("unix:") else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--to {_masked(text)}: {error}; write http://host:port") from None
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment or len(parts.path.encode()) > 107:
            raise UsageError(f"--to {_masked(text)}: write unix:/path/of/the.socket, at most 107 bytes of it")
        return Target(f"unix:{parts.path}", parts.path, 0, "unix")
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"--to {_masked(text)}: the scheme {parts.scheme!r} is not supported; write http://host:port")
    if parts.username is not None or parts.password is not None:
        raise UsageError("--to: user and password in a URL are not supported; send them with -H 'Authorization: …'")
    if not parts.hostname:
        raise UsageError(f"--to {_masked(text)}: there is no host; write http://host:port")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"--to {_masked(text)}: a target has no path or query (requests keep their own); write {parts.scheme}://{parts.netloc}")
    if port == 0:
        raise UsageError(f"--to {_masked(text)}: port 0 is no port to send to")
    host = parts.hostname
    shown = f"[{host}]" if ":" in host else host
    number = port or (443 if parts.scheme == "https" else 80)
    return Target(f"{parts.scheme}://{shown}:{number}", host, number, parts.scheme)


_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT")


def _near(word: str, words: tuple[str, ...]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word, words, 1)), None)


def methods(text: str) -> tuple[str, ...]:
    """`safe`, `all` or `GET,POST` as methods; none is every one. Raises ValueError."""
    words = tuple(word for word in re.split(r"[,\s]+", text.strip()) if word)
    if not words:
        raise ValueError("no method is named; write safe, or GET,POST")
    found: list[str] = []
    for word in words:
        if word.lower() == "safe":
            found += SAFE_METHODS
        elif word.lower() == "all":
            return ()
        elif not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", word):
            raise ValueError(f"{word!r} is no method (RFC 9110 9.1)")
        elif word.upper() in _METHODS and word not in _METHODS:
            raise ValueError(f"{word!r}: methods are case-sensitive (RFC 9110 9.1); did you mean {word.upper()!r}?")
        elif word.islower() and _near(word, ("safe", "all")):
            raise ValueError(f"{word!r} is neither a method that is known nor safe or all; did you mean {_near(word, ('safe', 'all'))!r}?")
        else:
            found.append(word)
    return tuple(dict.fromkeys(found))


def suffix(text: str) -> str:
    """What is put before the port of a Host, or `off`. Raises ValueError."""
    if text == "off":
        return text
    if not text or not re.fullmatch(r"[\w.~%!$&'()*+,;=-]+", text, re.ASCII):
        raise ValueError(f"{text!r} cannot stand in a host; write -shadow, or off for none")
    return text


def host(text: str) -> str:
    """A Host for all. Raises ValueError."""
    if not text or not re.fullmatch(r"[!-~]+", text) or re.search(r'[/?#\\<>"|{}^`]', text):
        raise ValueError(f"{text!r} is no host; write name or name:port")
    return text


def header(text: str) -> str:
    """The name of a header. Raises ValueError: what is none (`Cookie:`) would match nothing, and the header that was meant stay."""
    name = text.strip()
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name):
        meant = re.match(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?=\s*:)", name)
        raise ValueError(f"{text!r} is no name of a header (RFC 9110 5.1); write {meant[0] if meant else 'Cookie'}")
    return name


def network(text: str) -> tuple[bytes, int]:
    """A CIDR as 16 bytes (IPv4 mapped into IPv6) and the number of leading bits. Raises ValueError."""
    try:
        found = ipaddress.ip_network(text.strip().strip("[]"), strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write 10.0.0.0/8, 10.1.2.3 or 2001:db8::/32") from None
    if isinstance(found, ipaddress.IPv4Network):
        return bytes(10) + b"\xff\xff" + found.network_address.packed, 96 + found.prefixlen
    return found.network_address.packed, found.prefixlen


def _pattern(option: str, text: str | None) -> re.Pattern[bytes] | None:
    if text is None:
        return None
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"))
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{option} {text!r}: no regular expression: {error}") from None


def _masked(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", text)
