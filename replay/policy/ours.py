"""Our own policy language: YAML into the model, and the model into YAML again. docs/policy.md describes it; schema.py holds the same for machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from replay import units
from replay.policy.diagnose import nearest
from replay.policy.formats import parse as parse_format
from replay.policy.model import MILLION, Block, Change, Client, Destination, Field, Format, Host, Mirror, PathRewrite, Policy, Route, Text, Where
from replay.policy.patterns import compile_pattern, substitute
from replay.policy.tree import Node
from replay.settings import network, target

__all__ = ["FIXED", "dump", "fixed_for", "header_name", "read", "read_text", "removals", "sample_by"]

#: Headers that the sender owns: a policy cannot change them.
FIXED = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "expect", "upgrade", "te", "trailer", "x-shadow-replay")
)
_SAMPLE_BY = ("request", "connection", "connection:kernel", "client-ip", "path", "header:NAME", "cookie:NAME", "query:NAME")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_HOST = re.compile(r"[!-~]+", re.ASCII)
_HOST_BAD = re.compile(r'[/?#\\<>"|{}^`]')
_ROOT = ("version", "targets", "defaults", "routes")
_ROUTE = ("name", "match", "mirror")
_MATCH = ("host", "authority", "port", "path", "method", "headers", "query", "cookies", "client")
_MIRROR = ("to", "percent", "sample-by", "host", "set-headers", "add-headers", "append-headers", "remove-headers", "rewrite-path", "max-body", "limit", "trace")
_DEFAULTS = ("percent", "sample-by", "host", "max-body", "trace")
_WHEN = {"set_if_exists": "present", "add_if_absent": "absent"}
_TESTS = ("exact", "prefix", "suffix", "contains", "regex", "present", "range")


# ---- values ---------------------------------------------------------------------------------------------------------------


def sample_by(text: str) -> str:
    """Raises ValueError with the words that there are."""
    kind, colon, name = text.partition(":")
    if text in _SAMPLE_BY and "NAME" not in text:
        return text
    if f"{kind}:NAME" in _SAMPLE_BY:
        if colon and name.strip() and name != "NAME":
            return text
        raise ValueError(f"{text!r} lacks a name; write {kind}:NAME")
    near = nearest(kind, [one.partition(":")[0] for one in _SAMPLE_BY])
    raise ValueError(f"{text!r} is none of {', '.join(_SAMPLE_BY)}{near if 'mean' in near else ''}")


def fixed_for(name: str) -> str:
    """What one of FIXED does, for a message."""
    return "counts how often a request was mirrored (that ends loops)" if name.lower() == "x-shadow-replay" else "decides the framing or the connection"


def header_name(text: str) -> str:
    """Raises ValueError for what cannot be a header that a mirror changes."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is no header name (RFC 9110 5.1)")
    if text.lower() in FIXED:
        more = "; use `host`" if text.lower() == "host" else ""
        raise ValueError(f"the header {text!r} {fixed_for(text)} and cannot be changed{more}")
    return text


def removals(names: Iterable[Node]) -> Iterator[tuple[str, str, str]]:
    """The changes of headers that another language removes. What is no name of one would remove nothing."""
    for one in names:
        if one.kind == "text" and (one.value.startswith(":") or one.value.lower() in FIXED):
            one.warning(f"{one.value!r} is not removed: it {fixed_for(one.value)}")
            continue
        name = one.parsed(header_name)
        if name is not None:
            yield "remove", name, ""


def header_value(text: str) -> str:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        raise ValueError("the value of a header holds a control byte")
    return text.strip(" \t")


def authority(text: str) -> str:
    if not _HOST.fullmatch(text) or _HOST_BAD.search(text):
        raise ValueError(f"{text!r} is no host; write name or name:port")
    return text


def host(text: str) -> Host:
    """`a.example`, `*.example`, `shop.*`, `*`, each with `:port` or without. Raises ValueError."""
    name, port = text, None
    found = re.fullmatch(r"(.*?):(\d{1,5})", text, re.ASCII)
    if found and (":" not in found[1] or found[1].endswith("]")):
        name, port = found[1], int(found[2])
        if not 0 < port < 65536:
            raise ValueError(f"{text!r}: {port} is no port")
    if name == "*":
        return Host("any", "", port)
    if not name or not _HOST.fullmatch(name) or _HOST_BAD.search(name) or name.count("*") > 1 or ("*" in name[1:-1]):
        raise ValueError(f"{text!r} is no host pattern; write a.example, *.example, shop.* or *")
    if name.startswith("*"):
        return Host("suffix", name[1:].lower(), port)
    if name.endswith("*"):
        return Host("prefix", name[:-1].lower(), port)
    return Host("exact", name.lower(), port)


def read_text(node: Node, *, path: bool = False) -> Text | None:
    """A test: text (exact), `present`/`absent` as {present: true|false}, or one of the forms with `ignore-case` and `not`."""
    if node.kind == "text":
        if path:
            _check_path(node, node.value, "exact")
        return Text("exact", node.value)
    tests = (*(name for name in _TESTS if name not in ("present", "range") or not path), *(("separated-prefix",) if path else ()))
    found = node.fields((*tests, "ignore-case", "not", *(() if path else ("missing-as-empty",))), what="exact, prefix, regex …")
    chosen = [name for name in tests if name in found]
    if len(chosen) != 1:
        if node.kind == "map":
            node.error(f"exactly one of {', '.join(tests)} is needed, found {' and '.join(chosen) or 'none'}")
        return None
    kind, value = chosen[0], found[chosen[0]]
    invert = "not" in found and found["not"].boolean()
    folded = "ignore-case" in found and found["ignore-case"].boolean()
    if kind == "present":
        return Text("present" if value.boolean() != invert else "absent")
    empty = "missing-as-empty" in found and found["missing-as-empty"].boolean()
    if kind == "range":
        ends = [one.integer(-(1 << 63), (1 << 63) - 1) for one in value.items()]
        if len(ends) != 2:
            value.error("a range is [from, below], two whole numbers")
        if len(ends) != 2 or None in ends:
            return None
        return Text("range", f"{ends[0]} {ends[1]}", folded, invert, empty)
    text = value.text()
    if kind == "regex" and value.kind == "text":
        value.parsed(lambda word: compile_pattern(word, ignore_case=folded))
    if path and value.kind == "text":
        _check_path(value, text, kind)
    return Text("segments" if kind == "separated-prefix" else kind, text, folded, invert, empty)


def _check_path(node: Node, text: str, kind: str) -> None:
    if kind in ("exact", "prefix", "separated-prefix") and not text.startswith(("/", "*")):
        node.error(f"a path begins with /, found {text!r}")
    if "?" in text and kind != "regex":
        node.error("a path has no query; use `query`")


# ---- reading ------------------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, root: Node, mesh: str) -> None:
        self.root = root
        self.suffix: str | None = "-shadow"
        self.mesh = mesh
        self.targets: dict[str, str] = {}
        self.defaults: dict[str, Node] = {}

    def policy(self) -> Policy:
        root = self.root
        found = root.fields(_ROOT)
        if "version" in found and found["version"].text() not in ("1", ""):
            found["version"].error(f"version {found['version'].value!r} is not known; this is version 1")
        if "targets" in found:
            for name, node in found["targets"].pairs():
                url = node.parsed(lambda text: _url(text))
                if url:
                    self.targets[name] = url
        if "defaults" in found:
            self.defaults = found["defaults"].fields(_DEFAULTS)
        routes = []
        if "routes" not in found:
            root.error("there are no routes; write `routes:` with a list")
        else:
            for at, node in enumerate(found["routes"].items()):
                route = self.route(node, at)
                if route is not None:
                    routes.append(route)
            if not routes and found["routes"].kind in ("list", "null"):
                found["routes"].error("the list of routes is empty: nothing would be mirrored")
        self.names(routes)
        return Policy(tuple(routes), "replay", self.mesh, (root.file,))

    def names(self, routes: list[Route]) -> None:
        seen: dict[str, Route] = {}
        for route in routes:
            if route.name in seen:
                self.root.diagnoses.error(
                    route.where.file, route.where.line, "name", f"the name {route.name!r} stands there already (line {seen[route.name].where.line})"
                )
            seen[route.name] = route

    def route(self, node: Node, at: int) -> Route | None:
        found = node.fields(_ROUTE)
        if node.kind != "map":
            return None
        if "mirror" not in found:
            node.error("a route needs `mirror` (a list; [] for: what matches is not mirrored)")
        name = found["name"].text() if "name" in found else f"route {at + 1}"
        blocks = []
        if "match" in found:
            blocks = [block for block in (self.block(one) for one in found["match"].items(single=True)) if block is not None]
            if found["match"].kind == "list" and not found["match"].value:
                found["match"].error("the list of matches is empty; leave it out to match every request")
        mirrors = []
        if "mirror" in found and found["mirror"].kind != "null":
            mirrors = [mirror for mirror in (self.mirror(one) for one in found["mirror"].items(single=True)) if mirror is not None]
            if len(mirrors) > 32:
                found["mirror"].error("at most 32 mirrors a route")
        return Route(name, Where(node.file, node.line), tuple(blocks) or (Block(),), tuple(mirrors))

    def block(self, node: Node) -> Block | None:
        found = node.fields(_MATCH)
        if node.kind not in ("map", "null"):
            return None
        if node.kind == "map" and not node.value:
            node.warning("an empty match matches every request")
        many = {name: found[name].items(single=True) for name in ("host", "authority", "port", "method", "client") if name in found}
        for name, items in many.items():
            if not items:
                found[name].error("expected a value or a list of values, found nothing")
        clients = []
        for one in many.get("client", ()):
            packed = one.parsed(network)
            if packed is not None:
                clients.append(Client(one.value, *packed))
        return Block(
            hosts=tuple(one for one in (item.parsed(host) for item in many.get("host", ())) if one is not None),
            authorities=tuple(one for one in (read_text(item) for item in many.get("authority", ())) if one is not None),
            ports=tuple(one for one in (item.integer(1, 65535) for item in many.get("port", ())) if one is not None),
            path=read_text(found["path"], path=True) if "path" in found else None,
            methods=tuple(one for one in (self.method(item) for item in many.get("method", ())) if one is not None),
            headers=self.named(found.get("headers"), header=True),
            query=self.named(found.get("query"), header=False),
            clients=tuple(clients),
            cookies=self.named(found.get("cookies"), header=False),
        )

    def method(self, node: Node) -> Text | None:
        test = read_text(node)
        if test is not None and test.kind == "exact":
            if not _TOKEN.fullmatch(test.value):
                node.error(f"{test.value!r} is no method (RFC 9110 9.1)")
            elif test.value != test.value.upper() and not test.ignore_case:
                node.warning(f"methods are case-sensitive (RFC 9110 9.1): {test.value!r} is not {test.value.upper()!r}")
        return test

    def named(self, node: Node | None, *, header: bool) -> tuple[Field, ...]:
        found = []
        for name, value in node.pairs() if node is not None else ():
            if header and not _TOKEN.fullmatch(name):
                value.error(f"{name!r} is no header name (RFC 9110 5.1)")
                continue
            if header and name.lower() == "host":
                value.error("match on the host with `host` or `authority`")
                continue
            for one in value.items(single=True):
                test = read_text(one)
                if test is not None:
                    found.append(Field(name.lower() if header else name, test))
        return tuple(found)

    def mirror(self, node: Node) -> Mirror | None:
        found = node.fields(_MIRROR)
        if node.kind != "map":
            return None
        to = self.destination(found.get("to"), node)
        settings = {name: found.get(name, self.defaults.get(name)) for name in _DEFAULTS}
        share = settings["percent"].parsed(units.share) if settings["percent"] is not None else MILLION
        by = settings["sample-by"].parsed(sample_by) if settings["sample-by"] is not None else "request"
        size = settings["max-body"].parsed(units.size) if settings["max-body"] is not None else None
        trace = settings["trace"].choice(("keep", "unsample", "drop")) if settings["trace"] is not None else "keep"
        limit = found["limit"].parsed(units.count) if "limit" in found else None
        headers = self.mutations(found)
        base, suffix, literal = self.host_rule(settings["host"])
        path = self.rewrite(found["rewrite-path"]) if "rewrite-path" in found else None
        if to is None:
            return None
        return Mirror(
            to, Where(node.file, node.line), MILLION if share is None else share, by or "request",
            base, suffix, literal, headers, path, size, limit, trace or "keep",
        )  # fmt: skip

    def destination(self, node: Node | None, mirror: Node) -> Destination | None:
        if node is None:
            mirror.error("a mirror needs `to`: a URL, or a name of `targets`")
            return None
        text = node.text()
        if not text:
            return None
        if text in self.targets:
            return replace(_named(text), url=self.targets[text])
        if "://" in text:
            url = node.parsed(_url)
            return None if url is None else Destination(url, host=text, url=url)
        if self.targets:
            node.error(f"{text!r} is no name of `targets` and no URL{nearest(text, self.targets)}")
            return None
        return _named(text)

    def host_rule(self, node: Node | None) -> tuple[str | None, str | None, str | None]:
        """(authority, suffix, literal)."""
        if node is None:
            return None, self.suffix, None
        if node.kind == "text":
            if node.value not in ("shadow", "keep"):
                node.error(f"{node.value!r} is neither shadow nor keep; a fixed host is {{literal: NAME}}")
            return None, None if node.value == "keep" else self.suffix, None
        found = node.fields(("literal", "suffix", "rewrite"), what="literal, suffix, rewrite")
        if "literal" in found and len(found) > 1:
            node.error("a literal host is taken as it is: suffix and rewrite have no meaning beside it")
        literal = found["literal"].parsed(authority) if "literal" in found else None
        base = found["rewrite"].parsed(authority) if "rewrite" in found else None
        suffix = self.suffix
        if "suffix" in found:
            word = found["suffix"].text()
            suffix = None if word == "off" else word
            if suffix is not None and not re.fullmatch(r"[\w.~%!$&'()*+,;=-]+", suffix, re.ASCII) and found["suffix"].kind == "text":
                found["suffix"].error(f"{suffix!r} cannot stand in a host; write -shadow, or off for none")
        return base, suffix, literal

    def mutations(self, found: dict[str, Node]) -> tuple[Change, ...]:
        changes: list[Change] = []
        seen: dict[str, str] = {}
        for option, how in (("set-headers", "set"), ("add-headers", "add"), ("append-headers", "append")):
            for name, value in found[option].pairs() if option in found else ():
                if how != "add" and name.lower() in seen:
                    value.error(f"{name!r} is in {seen[name.lower()]} already")
                seen[name.lower()] = option
                for one in value.items(single=how == "add" or value.kind != "list"):
                    self.mutation(one, how, name, changes)
        for one in found["remove-headers"].items(single=True) if "remove-headers" in found else ():
            if one.kind == "map":
                test = read_text(one)
                if test is not None and test.kind not in ("present", "absent"):
                    changes.append(("remove_matching", "", test))
                continue
            name = one.parsed(header_name)
            if name:
                if seen.get(name.lower(), "add-headers") != "add-headers":
                    one.error(f"{name!r} is in {seen[name.lower()]} already: it cannot be removed as well")
                changes.append(("remove", name, ""))
        return tuple(changes)

    def mutation(self, node: Node, how: str, name: str, changes: list[Change]) -> None:
        make: Callable[[str], str | Format] = header_value
        if node.kind == "map":
            found = node.fields(("value", "format", "when", "keep-empty"), what="value or format, when, keep-empty")
            if "when" in found:
                when = found["when"].choice(("present", "absent"))
                if how != "set":
                    node.error("`when` goes with set-headers")
                how = "set_if_exists" if when == "present" else "add_if_absent"
            if ("value" in found) == ("format" in found):
                node.error("a value is missing" if "value" not in found else "value and format exclude each other")
                return
            if "format" in found:
                keep = "keep-empty" in found and found["keep-empty"].boolean()
                make = partial(_made, keep_empty=keep)
            elif "keep-empty" in found:
                found["keep-empty"].error("keep-empty goes with format")
            node = found.get("value", found.get("format", node))
        try:
            header_name(name)
        except ValueError as error:
            node.error(str(error))
        text = node.parsed(make)
        if text is not None:
            changes.append((how, name, text))

    def rewrite(self, node: Node) -> PathRewrite | None:
        if node.kind == "text":
            return self.full(node)
        found = node.fields(("full", "prefix", "regex", "with"), what="full, or prefix and with, or regex and with")
        if "full" in found and len(found) == 1:
            return self.full(found["full"])
        for kind in ("prefix", "regex"):
            if kind in found and "with" in found and len(found) == 2:
                matched, value = found[kind].text(), found["with"].text()
                if kind == "prefix" and (not matched.startswith("/") or not (value.startswith("/") or not value)):
                    node.error("a prefix and what replaces it begin with / (what replaces it may be empty)")
                if kind == "regex":
                    if found[kind].parsed(compile_pattern) is not None:
                        found["with"].parsed(partial(substitute, matched))
                return PathRewrite(kind, value, matched)
        if node.kind == "map":
            node.error("write {full: /path}, {prefix: /old, with: /new} or {regex: RE, with: TEXT}")
        return None

    def full(self, node: Node) -> PathRewrite | None:
        text = node.text()
        if node.kind == "text" and (not text.startswith("/") or not re.fullmatch(r"[!-~]+", text) or "#" in text or "?" in text):
            node.error(f"{text!r} is no path; it begins with / and holds neither blanks nor ? nor #")
        return PathRewrite("full", text)


def _made(text: str, *, keep_empty: bool) -> Format:
    """Raises ValueError."""
    return parse_format(header_value(text), keep_empty=keep_empty)


def _named(text: str) -> Destination:
    """`host`, `host:port`, `host:subset` or `host:subset:port`, as `--resolve` has them; any other text is a name as it stands."""
    found = re.fullmatch(r"([\w.-]+)(?::([A-Za-z][\w.-]*))?(?::(\d{1,5}))?", text, re.ASCII)
    if found is None:
        return Destination(text, host=text)
    name, subset, port = found[1], found[2] or "", found[3]
    space = re.fullmatch(r"[^.]+\.([^.]+)\.svc\..*", name)
    return Destination(text, name, int(port) if port else None, subset, space[1] if space else "")


def _spelled(to: Destination) -> str:
    """What `_named` reads as the same destination."""
    return ":".join(str(one) for one in (to.host, to.subset, to.port) if one) if to.host and to.url is None else to.name


def _url(text: str) -> str:
    from replay.errors import UsageError

    try:
        return target(text).url
    except UsageError as error:
        raise ValueError(str(error).removeprefix("--to").lstrip(": ")) from None


def read(root: Node, mesh: str) -> Policy:
    """Raises nothing: what is wrong is in the diagnoses of `root`."""
    return _Reader(root, mesh).policy()


# ---- writing ------------------------------------------------------------------------------------------------------------------


def dump(policy: Policy) -> str:
    """The policy in our own language; reading it gives the same routes."""
    import yaml

    targets = {_spelled(m.to): m.target.url if m.target is not None else m.to.url for m in policy.mirrors}
    named = {name: url for name, url in targets.items() if url is not None and url != name}
    tree: dict[str, Any] = {"version": 1}
    if named and all(url is not None for url in targets.values()):
        tree["targets"] = named
    else:
        named = {}
    tree["routes"] = [_route(route, named) for route in policy.routes]
    body: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=140, default_flow_style=False)
    return body


def _route(route: Route, named: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": route.name}
    blocks = [_block(block) for block in route.blocks]
    if any(blocks):
        found["match"] = blocks[0] if len(blocks) == 1 else blocks
    mirrors = [_mirror(mirror, named) for mirror in route.mirrors]
    found["mirror"] = mirrors[0] if len(mirrors) == 1 else mirrors
    return found


def _test(test: Text) -> Any:
    if test.kind in ("present", "absent"):
        return {"present": (test.kind == "present") != test.invert}
    if test == Text("exact", test.value):
        return test.value
    value: Any = [int(word) for word in test.value.split()] if test.kind == "range" else test.value
    found: dict[str, Any] = {"separated-prefix" if test.kind == "segments" else test.kind: value}
    if test.ignore_case:
        found["ignore-case"] = True
    if test.invert:
        found["not"] = True
    if test.missing_empty:
        found["missing-as-empty"] = True
    return found


def _value(value: str | Format | Text) -> Any:
    if isinstance(value, Format):
        return {"format": value.text, **({"keep-empty": True} if value.keep_empty else {})}
    return value


def _when(value: Any, when: str) -> dict[str, Any]:
    return (dict(value) if isinstance(value, dict) else {"value": value}) | {"when": when}


def _host(one: Host) -> str:
    name = {"any": "*", "suffix": f"*{one.value}", "prefix": f"{one.value}*"}.get(one.kind, one.value)
    return name if one.port is None else f"{name}:{one.port}"


def _few(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _block(block: Block) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if block.hosts:
        found["host"] = _few([_host(one) for one in block.hosts])
    if block.authorities:
        found["authority"] = _few([_test(one) for one in block.authorities])
    if block.ports:
        found["port"] = _few(list(block.ports))
    if block.path is not None:
        found["path"] = _test(block.path)
    if block.methods:
        found["method"] = _few([_test(one) for one in block.methods])
    for name, fields in (("headers", block.headers), ("query", block.query), ("cookies", block.cookies)):
        if fields:
            found[name] = {key: _few([_test(one.test) for one in fields if one.name == key]) for key in dict.fromkeys(one.name for one in fields)}
    if block.clients:
        found["client"] = _few([one.text for one in block.clients])
    return found


def _mirror(mirror: Mirror, named: dict[str, Any]) -> dict[str, Any]:
    to = _spelled(mirror.to)
    if to not in named:
        to = mirror.target.url if mirror.target is not None else mirror.to.url or to
    found: dict[str, Any] = {"to": to}
    if mirror.share != MILLION:
        found["percent"] = units.show_share(mirror.share).removesuffix(" %")
    if mirror.sample_by != "request":
        found["sample-by"] = mirror.sample_by
    rule: Any = {}
    if mirror.literal is not None:
        rule = {"literal": mirror.literal}
    else:
        if mirror.authority is not None:
            rule["rewrite"] = mirror.authority
        if mirror.suffix is None:
            rule["suffix"] = "off"
        elif mirror.suffix != "-shadow":
            rule["suffix"] = mirror.suffix
    if rule == {"suffix": "off"}:
        rule = "keep"
    if rule:
        found["host"] = rule
    for option, how in (("set-headers", "set"), ("add-headers", "add"), ("append-headers", "append")):
        values: dict[str, Any] = {}
        for one, name, value in mirror.headers:
            if one == how == "add":
                values[name] = _few([*(_value(v) for o, n, v in mirror.headers if o == how and n == name)])
            elif one == how:
                values[name] = _value(value)
            elif how == "set" and one in _WHEN:
                values[name] = _when(_value(value), _WHEN[one])
        if values:
            found[option] = values
    removed = [_test(value) if isinstance(value, Text) else name for how, name, value in mirror.headers if how in ("remove", "remove_matching")]
    if removed:
        found["remove-headers"] = removed
    if mirror.path is not None:
        found["rewrite-path"] = (
            {"full": mirror.path.value} if mirror.path.kind == "full" else {mirror.path.kind: mirror.path.matched, "with": mirror.path.value}
        )  # fmt: skip
    if mirror.max_body is not None:
        found["max-body"] = mirror.max_body
    if mirror.limit is not None:
        found["limit"] = mirror.limit
    if mirror.trace != "keep":
        found["trace"] = mirror.trace
    return found
