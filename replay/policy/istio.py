"""Istio's VirtualService and DestinationRule as a policy. The meaning of each field is that of Istio's own translation to Envoy."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

from replay.policy import kubernetes
from replay.policy.formats import formatted, in_order
from replay.policy.kubernetes import Objects, fields, full_name, millionths, name_of, short_names
from replay.policy.model import MILLION, Block, Change, Destination, Field, Host, Mirror, PathRewrite, Route, Text, Where
from replay.policy.ours import FIXED, fixed_for, removals
from replay.policy.patterns import compile_pattern, substitute
from replay.policy.tree import Node

__all__ = ["read"]

_SPEC = ("hosts", "gateways", "http", "tls", "tcp", "exportTo")
_HTTP = (
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "delegate",
    "rewrite",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "mirrorPercentage",
    "headers",
    "fault",
)
_HTTP_ALSO = ("timeout", "retries", "corsPolicy", "websocketUpgrade", "appendHeaders", "removeResponseHeaders", "appendResponseHeaders", "removeRequestHeaders")
_MATCH = (
    "name",
    "uri",
    "scheme",
    "method",
    "authority",
    "headers",
    "withoutHeaders",
    "queryParams",
    "port",
    "ignoreUriCase",
    "sourceLabels",
    "sourceNamespace",
)
_MATCH_ALSO = ("gateways", "statPrefix")
_DESTINATION = ("host", "subset", "port")


def read(objects: Objects, suffix: str | None) -> list[Route]:
    """Routes of all VirtualServices. What is wrong goes to the diagnoses of the documents. suffix: the mesh's default, None for none."""
    return _Reader(objects, suffix).routes()


class _Reader:
    def __init__(self, objects: Objects, suffix: str | None) -> None:
        self.objects = objects
        self.suffix = suffix
        self.subsets: dict[str, set[str]] = {}
        self.delegates: dict[tuple[str, str], Node] = {}
        for rule in objects.of("DestinationRule"):
            self.destination_rule(rule)
        for service in objects.of("VirtualService"):
            name, namespace = name_of(service)
            if service.at("spec", "hosts") is None:
                self.delegates[namespace or objects.namespace, name] = service

    def routes(self) -> list[Route]:
        groups: list[tuple[tuple[int, int], list[Route]]] = []
        used: set[tuple[str, str]] = set()
        for service in self.objects.of("VirtualService"):
            name, namespace = name_of(service)
            if (namespace or self.objects.namespace, name) not in self.delegates:
                groups += self.service(service, used)
        for key, service in self.delegates.items():
            if key not in used:
                (service.get("spec") or service).error("spec.hosts is missing, and no VirtualService here delegates to this one")
        groups.sort(key=lambda item: item[0])  # stable: an exact host before a wildcard, a longer wildcard before a shorter one
        return [route for _, routes in groups for route in routes]

    # -- objects --

    def destination_rule(self, document: Node) -> None:
        _, namespace = name_of(document)
        spec = document.get("spec")
        if spec is None:
            document.error("spec is missing")
            return
        found = fields(spec, ("host", "subsets"), ("trafficPolicy", "exportTo", "workloadSelector"))
        if "host" not in found:
            spec.error("host is missing")
            return
        names = self.subsets.setdefault(full_name(found["host"].text(), namespace or self.objects.namespace), set())
        for subset in found["subsets"].items() if "subsets" in found else ():
            inner = fields(subset, ("name", "labels"), ("trafficPolicy",))
            if "name" in inner:
                names.add(inner["name"].text())
            else:
                subset.error("a subset needs a name")

    def service(self, document: Node, used: set[tuple[str, str]]) -> list[tuple[tuple[int, int], list[Route]]]:
        name, namespace = name_of(document)
        namespace = namespace or self.objects.namespace
        spec = document.get("spec")
        if spec is None:
            document.error("spec is missing")
            return []
        found = fields(spec, _SPEC)
        hosts = [node.text() for node in found["hosts"].items()] if "hosts" in found else []
        if not hosts:
            (found.get("hosts") or spec).error("hosts is empty: a VirtualService needs at least one host")
            return []
        for part in ("tls", "tcp"):
            if part in found and found[part].value:
                found[part].warning(f"{part} routes have no HTTP requests to mirror; they are passed over")
        entries = found["http"].items() if "http" in found else []
        groups = []
        for key, tests in self.hosts(hosts, namespace, found["hosts"]):
            routes: list[Route] = []
            label = f"{namespace}/{name}" + ("" if len(self.hosts(hosts, namespace, None)) == 1 else f" {tests[0].kind} {tests[0].value}".rstrip())
            for at, entry in enumerate(entries):
                routes += self.entry(entry, f"{label} http[{at}]", Block(hosts=tests), namespace, used, None)
            routes.append(Route(f"{label} otherwise", Where(document.file, document.line), (Block(hosts=tests),), (), "no entry of http matches"))
            groups.append((key, routes))
        return groups

    def hosts(self, hosts: list[str], namespace: str, node: Node | None) -> list[tuple[tuple[int, int], tuple[Host, ...]]]:
        """Groups of hosts of one rank: (rank, tests). Any port is meant."""
        exact: list[Host] = []
        groups: list[tuple[tuple[int, int], tuple[Host, ...]]] = []
        for host in hosts:
            if host == "*":
                groups.append(((2, 0), (Host("any"),)))
            elif host.startswith("*"):
                if not host.startswith("*.") and node is not None:
                    node.error(f"{host!r} is no host of a VirtualService; a wildcard is *.example.com or *")
                groups.append(((1, -len(host)), (Host("suffix", host[1:].lower()),)))
            else:
                if ("*" in host or "/" in host or ":" in host) and node is not None and not kubernetes.is_address(host):
                    node.error(f"{host!r} is no host; write a name without port or path, *.example.com or *")
                exact += [Host("exact", one.lower()) for one in short_names(full_name(host, namespace), namespace)]
        if exact:
            groups.insert(0, ((0, 0), tuple(dict.fromkeys(exact))))
        return groups

    # -- an entry of http --

    def entry(self, node: Node, label: str, base: Block, namespace: str, used: set[tuple[str, str]], root: dict[str, Node] | None) -> list[Route]:
        found = fields(node, _HTTP, _HTTP_ALSO)
        if node.kind != "map":
            return []
        where = Where(node.file, node.line)
        label += f" {found['name'].text()}" if "name" in found else ""
        blocks = [self.match(one, base) for one in found["match"].items()] if "match" in found else []
        blocks = blocks or [base]
        if "delegate" in found:
            return self.delegate(found, label, blocks, used, namespace)
        own = found if root is None else root | found  # of a delegate: its own fields win, one by one
        mirrors = self.mirrors(own, node, namespace)
        note = ""
        for part in ("redirect", "directResponse"):
            if part in found:
                if mirrors:
                    found[part].warning(f"{part} answers by itself: such requests are never mirrored")
                mirrors, note = [], f"{part} answers by itself"
        fault = node.at("fault", "abort")
        if fault is not None and mirrors:
            fault.warning("requests that fault.abort answers are not mirrored by a mesh; here they are, for it cannot be seen which they were")
        if not mirrors:
            return [Route(label, where, tuple(blocks), (), note)]
        mirrors = [self.changed(mirror, own, node) for mirror in mirrors]
        return self.rewritten(own, label, where, blocks, mirrors)

    def rewritten(self, found: dict[str, Node], label: str, where: Where, blocks: list[Block], mirrors: list[Mirror]) -> list[Route]:
        if "rewrite" not in found:
            return [Route(label, where, tuple(blocks), tuple(mirrors))]
        inner = fields(found["rewrite"], ("uri", "authority", "uriRegexRewrite"))
        if "authority" in inner:
            mirrors = [replace(mirror, authority=inner["authority"].text()) for mirror in mirrors]
        if "uriRegexRewrite" in inner:
            if "uri" in inner:
                found["rewrite"].error("uri and uriRegexRewrite exclude each other")
            parts = fields(inner["uriRegexRewrite"], ("match", "rewrite"))
            pattern, text = (parts[name].text() if name in parts else "" for name in ("match", "rewrite"))
            if inner["uriRegexRewrite"].kind == "map":
                parts.get("match", inner["uriRegexRewrite"]).parsed(lambda _: compile_pattern(pattern))
                parts.get("rewrite", inner["uriRegexRewrite"]).parsed(lambda _: substitute(pattern, text)) if pattern else None
            mirrors = [replace(mirror, path=PathRewrite("regex", text, pattern)) for mirror in mirrors]
        if "uri" not in inner:
            return [Route(label, where, tuple(blocks), tuple(mirrors))]
        uri = inner["uri"].text()
        routes = []
        for at, block in enumerate(blocks):  # what is replaced depends on what matched
            matched = block.path.value if block.path is not None and block.path.kind == "prefix" else "/" if block.path is None else ""
            path = PathRewrite("prefix", uri, matched) if matched else PathRewrite("full", uri)
            routes.append(Route(label if len(blocks) == 1 else f"{label} match[{at}]", where, (block,), tuple(replace(m, path=path) for m in mirrors)))
        return routes

    def delegate(self, found: dict[str, Node], label: str, blocks: list[Block], used: set[tuple[str, str]], namespace: str) -> list[Route]:
        inner = fields(found["delegate"], ("name", "namespace"))
        if "route" in found or "redirect" in found or "directResponse" in found:
            found["delegate"].error("delegate excludes route, redirect and directResponse")
        name = inner["name"].text() if "name" in inner else ""
        key = (inner["namespace"].text() if "namespace" in inner else namespace, name)
        target = self.delegates.get(key)
        if target is None:
            found["delegate"].error(f"no VirtualService without hosts named {key[0]}/{key[1]} is in the files given")
            return []
        used.add(key)
        routes: list[Route] = []
        entries = target.at("spec", "http")
        for at, entry in enumerate(entries.items() if entries is not None else ()):
            below = self.entry(
                entry,
                f"{label} > {key[0]}/{key[1]} http[{at}]",
                Block(),
                key[0],
                used,
                {k: v for k, v in found.items() if k not in ("delegate", "match", "name")},
            )
            routes += [replace(route, blocks=tuple(_both(a, b) for a, b in product(blocks, route.blocks))) for route in below]
        return routes

    # -- match --

    def match(self, node: Node, base: Block) -> Block:
        found = fields(node, _MATCH, _MATCH_ALSO)
        for name in ("sourceLabels", "sourceNamespace"):
            if name in found and found[name].value:
                found[name].warning(f"{name} cannot be seen in traffic; every client is taken to match (narrow it with --client)")
        if "scheme" in found:
            scheme = self.string(found["scheme"])
            if scheme is not None and scheme != Text("exact", "http"):
                found["scheme"].warning("the scheme cannot be seen in captured HTTP/1; it is taken to match")
        folded = "ignoreUriCase" in found and found["ignoreUriCase"].boolean()
        path = self.string(found["uri"], path=True) if "uri" in found else None
        if path is not None and folded and path.kind in ("exact", "prefix"):
            path = replace(path, ignore_case=True)
        method = self.string(found["method"]) if "method" in found else None
        wanted = self.string(found["authority"]) if "authority" in found else None
        port = found["port"].integer(1, 65535) if "port" in found else None
        return replace(
            base,
            authorities=() if wanted is None else (wanted,),
            ports=() if port is None else (port,),
            path=path,
            methods=() if method is None else (method,),
            headers=(*self.headers(found.get("headers"), False), *self.headers(found.get("withoutHeaders"), True)),
            query=self.query(found.get("queryParams")),
        )

    def string(self, node: Node, *, path: bool = False) -> Text | None:
        """A StringMatch; None and an error when it has none or several of its forms."""
        if node.kind == "text":
            node.error(f"expected exact, prefix or regex, found {node.value!r}; write {{exact: {node.value}}}")
            return None
        found = fields(node, ("exact", "prefix", "regex"))
        if node.kind != "map":
            return None
        if len(found) != 1:
            node.error(f"exactly one of exact, prefix, regex is needed, found {' and '.join(found) or 'none'}")
            return None
        ((kind, value),) = found.items()
        text = value.text()
        if kind == "regex" and value.kind == "text":
            value.parsed(compile_pattern)
        if path and kind != "regex" and text and not text.startswith(("/", "*")):
            value.warning(f"a path begins with /: {text!r} never matches")
        return Text(kind, text)

    def headers(self, node: Node | None, without: bool) -> tuple[Field, ...]:
        found = []
        for name, value in node.pairs() if node is not None else ():
            if name in ("uri", "scheme", "method", "authority"):
                value.warning(f"{name!r} is no header here and has no effect; it is a field of its own in the match")
                continue
            if name != name.lower():
                value.warning(f"Istio wants header names in lower case: {name.lower()!r}")
            if value.kind == "null" or (value.kind == "map" and not value.value):
                test: Text | None = Text("absent" if without else "present")
            else:
                test = self.string(value)
                if test is not None and without:
                    test = replace(test, invert=True)
            if test is not None:
                found.append(Field(name.lower(), test))
        return tuple(found)

    def query(self, node: Node | None) -> tuple[Field, ...]:
        found = []
        for name, value in node.pairs() if node is not None else ():
            if value.kind == "null" or (value.kind == "map" and not value.value):
                found.append(Field(name, Text("present")))
                continue
            test = self.string(value)
            if test is not None:
                found.append(Field(name, Text("present") if test == Text("exact", "") else test))
        return tuple(found)

    # -- mirrors --

    def mirrors(self, found: dict[str, Node], node: Node, namespace: str) -> list[Mirror]:
        if "mirror" in found and "mirrors" in found:
            found["mirrors"].error("mirror and mirrors exclude each other")
            return []
        if "mirrors" in found:
            listed = []
            for one in found["mirrors"].items():
                inner = fields(one, ("destination", "percentage"))
                if "destination" not in inner:
                    one.error("a mirror needs a destination")
                    continue
                share = self.percentage(inner["percentage"]) if "percentage" in inner else MILLION
                listed.append(self.one(inner["destination"], namespace, share))
            for name in ("mirrorPercent", "mirrorPercentage"):
                if name in found:
                    found[name].warning(f"{name} has no effect beside mirrors; each has its own percentage")
            return [mirror for mirror in listed if mirror is not None]
        share = MILLION
        if "mirrorPercentage" in found:
            share = self.percentage(found["mirrorPercentage"])
            if "mirrorPercent" in found:
                found["mirrorPercent"].warning("mirrorPercentage decides; mirrorPercent has no effect beside it")
        elif "mirrorPercent" in found:
            value = found["mirrorPercent"].integer(0, 100)
            share = (value or 0) * 10_000
        if "mirror" not in found:
            for name in ("mirrorPercent", "mirrorPercentage"):
                if name in found:
                    found[name].warning(f"{name} has no effect: there is no mirror")
            return []
        mirror = self.one(found["mirror"], namespace, share)
        return [] if mirror is None else [mirror]

    def percentage(self, node: Node) -> int:
        if node.kind == "text":
            node.error(f"expected a map, found {node.value!r}; write {{value: {node.value}}}")
            return 0
        found = fields(node, ("value",))
        if "value" not in found:
            if node.kind == "map":
                node.warning("a percentage without a value is 0: nothing is mirrored")
            return 0
        value = found["value"].parsed(_number)
        if value is None:
            return 0
        if not 0 <= value <= 100:
            found["value"].error(f"{value:g} is out of range: 0 to 100")
        share = millionths(value)
        if value > 0 and share == 0:
            found["value"].warning("below 0.0001 % nothing is mirrored")
        return share

    def one(self, node: Node, namespace: str, share: int) -> Mirror | None:
        to = self.destination(node, namespace)
        return None if to is None else Mirror(to, Where(node.file, node.line), share, suffix=self.suffix, trace="unsample")

    def destination(self, node: Node, namespace: str) -> Destination | None:
        found = fields(node, _DESTINATION)
        if "host" not in found:
            if node.kind == "map":
                node.error("a destination needs a host")
            return None
        host = found["host"].text()
        if not re.fullmatch(r"[\w.*:\[\]-]+", host):
            filled = "; fill in the variable first (envsubst)" if re.search(r"\$\{?\w|<\w", host) else ""
            found["host"].error(f"{host!r} is no host{filled}")
            return None
        name = full_name(host, namespace)
        subset = found["subset"].text() if "subset" in found else ""
        port = None
        if "port" in found:
            inner = fields(found["port"], ("number",), ("name",))
            port = inner["number"].integer(1, 65535) if "number" in inner else None
        known = self.objects.ports.get(name, set())
        if port is None and len(known) == 1:  # its only one
            (port,) = known
        if subset and name not in self.subsets:
            near = [other for other in self.subsets if other.partition(".")[0] == name.partition(".")[0]]
            if near:
                found["subset"].warning(
                    f"no DestinationRule for {name} is in the files given, but one for {', '.join(near)}: without a subset {subset!r} a mesh drops the copies"
                )
        if subset and name in self.subsets and subset not in self.subsets[name]:
            found["subset"].warning(
                f"no DestinationRule for {name} has the subset {subset!r} "
                f"(it has {', '.join(sorted(self.subsets[name])) or 'none'}): a mesh would drop the copies"
            )
        space = re.fullmatch(r"[^.]+\.([^.]+)\.svc\..*", name)
        shown = name + (f":{port}" if port else "") + (f" subset {subset}" if subset else "")
        return Destination(shown, name, port, subset, space[1] if space else namespace)

    def changed(self, mirror: Mirror, found: dict[str, Node], node: Node) -> Mirror:
        """With the header changes that the route makes to both copies."""
        changes: list[Change] = []
        authority = None
        sources = [found["headers"]] if "headers" in found else []
        routes = found["route"].items() if "route" in found else []
        if len(routes) == 1 and routes[0].get("headers") is not None:
            sources.append(routes[0].value["headers"])
        elif any(route.get("headers") is not None for route in routes):
            found["route"].warning("headers of several weighted routes: which one a request took cannot be seen; they are not applied")
        for source in sources:
            inner = fields(source, ("request", "response"))
            if "request" not in inner:
                continue
            request = fields(inner["request"], ("set", "add", "remove"))
            for how in ("set", "add"):
                for name, value in request[how].pairs() if how in request else ():
                    text = value.text()
                    if name.lower() in ("host", ":authority"):
                        authority = text
                        if "%" in text:
                            value.error(f"{text!r}: a host that a format makes is not supported")
                    elif name.startswith(":") or name.lower() in FIXED:
                        value.warning(f"{name!r} is not changed: it {fixed_for(name)}")
                    elif "%" in text:
                        made = formatted(value, text)
                        changes += [(how, name, made)] if made is not None else []
                    else:
                        changes.append((how, name, text))
            changes += removals(request["remove"].items() if "remove" in request else ())
        in_order(node, changes)
        return replace(mirror, headers=(*mirror.headers, *changes), authority=authority)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if value != value:
        raise ValueError(f"{text!r} is no number")
    return value


def _both(a: Block, b: Block) -> Block:
    """Both blocks hold. Of two paths the delegate's, which Istio demands to be the narrower one."""
    return Block(
        hosts=b.hosts or a.hosts,
        authorities=b.authorities or a.authorities,
        ports=b.ports or a.ports,
        path=b.path or a.path,
        methods=b.methods or a.methods,
        headers=(*a.headers, *b.headers),
        query=(*a.query, *b.query),
        clients=b.clients or a.clients,
        cookies=(*a.cookies, *b.cookies),
    )
