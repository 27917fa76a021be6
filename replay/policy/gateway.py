"""Kubernetes Gateway API as a policy: HTTPRoute and GRPCRoute with RequestMirror filters, in the order of precedence that the API lays down."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from replay.policy.diagnose import nearest
from replay.policy.kubernetes import Objects, fields, millionths, name_of, short_names
from replay.policy.model import MILLION, Block, Destination, Field, Host, Mirror, PathRewrite, Route, Text, Where
from replay.policy.ours import FIXED, fixed_for, removals
from replay.policy.patterns import compile_pattern
from replay.policy.tree import Node

__all__ = ["read"]

_RULE = ("name", "matches", "filters", "backendRefs")
_RULE_ALSO = ("timeouts", "retry", "sessionPersistence")
_FILTERS = (
    "RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "RequestRedirect", "URLRewrite", "ExtensionRef", "CORS", "ExternalAuth",
)  # fmt: skip
_FILTER = ("type", "requestMirror", "requestHeaderModifier", "requestRedirect", "urlRewrite")
_FILTER_ALSO = ("responseHeaderModifier", "extensionRef", "cors", "externalAuth")


@dataclass(slots=True)
class _Entry:
    rank: tuple[int, ...]
    hosts: tuple[Host, ...]  # of one rank; empty: any
    route: Route
    order: tuple[str, str] = ("", "")  # of equals: the older object first (a new one has no time yet), then namespace and name; its rules as written


def read(objects: Objects, suffix: str | None) -> list[Route]:
    """Routes of all HTTPRoutes and GRPCRoutes, by precedence. suffix: the mesh's default, None for none."""
    reader = _Reader(objects, suffix)
    entries = [entry for kind in ("HTTPRoute", "GRPCRoute") for document in objects.of(kind) for entry in reader.document(document, kind)]
    shared = {host for host, n in Counter(host for hosts in {entry.hosts for entry in entries} for host in hosts).items() if n > 1}
    entries = [one for entry in entries for one in (_by_host(entry) if shared.intersection(entry.hosts) else [entry])]
    entries.sort(key=lambda entry: (entry.rank, entry.order))
    groups = {entry.hosts: entry.rank[:2] for entry in entries}
    routes: list[Route] = []
    for hosts in groups:
        mine = [entry.route for entry in entries if entry.hosts == hosts]
        routes += mine
        if hosts and any(rank > groups[hosts] for rank in groups.values()):
            routes.append(Route(f"{hosts[0].value or '*'} otherwise", mine[0].where, (Block(hosts=hosts),), (), "no rule matches"))
    return routes


def _by_host(entry: _Entry) -> list[_Entry]:
    """One for each host: where other routes name some of the hosts, each host has an order of its own."""
    return [
        replace(entry, hosts=(host,), route=replace(entry.route, blocks=tuple(replace(block, hosts=(host,)) for block in entry.route.blocks)))
        for host in entry.hosts
    ]


class _Reader:
    def __init__(self, objects: Objects, suffix: str | None) -> None:
        self.objects = objects
        self.suffix = suffix

    def document(self, document: Node, kind: str) -> list[_Entry]:
        name, namespace = name_of(document)
        namespace = namespace or self.objects.namespace
        spec = document.get("spec")
        if spec is None:
            document.error("spec is missing")
            return []
        found = fields(spec, ("hostnames", "rules", "parentRefs"), ("useDefaultGateways",))
        services, gateways = self.parents(found.get("parentRefs"), namespace)
        named: list[tuple[Host, ...]] = [
            (host,) for node in (found["hostnames"].items() if "hostnames" in found else ()) if (host := node.parsed(_hostname)) is not None
        ]
        if named and not gateways:
            found["hostnames"].warning("hostnames have no effect on the route of a Service: it takes the requests to the Service")
        hosts = services + (named or list[tuple[Host, ...]]([()]) if gateways else [])
        created = document.at("metadata", "creationTimestamp")
        order = (created.value if created is not None and created.kind == "text" else "new", f"{namespace}/{name}")
        entries: list[_Entry] = []
        if "rules" not in found:
            spec.warning("there are no rules: nothing is mirrored")
        for at, rule in enumerate(found["rules"].items() if "rules" in found else ()):
            for group in hosts:
                entries += self.rule(rule, kind, f"{namespace}/{name} rules[{at}]", group, namespace, many=len(hosts) > 1)
        for entry in entries:
            entry.order = order
        return entries

    def parents(self, node: Node | None, namespace: str) -> tuple[list[tuple[Host, ...]], bool]:
        """The names of the Services that a route belongs to, each once, and whether it belongs to something else too (a Gateway; nothing named).
        The port of a Service is not tested: behind it a connection has that of the pod."""
        services: list[tuple[Host, ...]] = []
        refs = node.items() if node is not None else []
        gateways = not refs
        for one in refs:
            found = fields(one, ("group", "kind", "namespace", "name"), ("sectionName", "port"))
            if "kind" not in found or found["kind"].text() != "Service" or "name" not in found:
                gateways = True
                continue
            space = found["namespace"].text() if "namespace" in found else namespace
            names = short_names(f"{found['name'].text()}.{space}.svc.cluster.local", namespace)
            services.append(tuple(Host("exact", name.lower()) for name in names))
        return list(dict.fromkeys(services)), gateways

    def rule(self, node: Node, kind: str, label: str, hosts: tuple[Host, ...], namespace: str, *, many: bool) -> list[_Entry]:
        found = fields(node, _RULE, _RULE_ALSO)
        if node.kind != "map":
            return []
        label += f" {found['name'].text()}" if "name" in found else ""
        label += f" {hosts[0].value}" if many and hosts else ""
        filters = found["filters"].items() if "filters" in found else []
        backends = found["backendRefs"].items() if "backendRefs" in found else []
        inner = [one for backend in backends if backend.get("filters") is not None for one in backend.value["filters"].items()]
        if inner and len(backends) == 1:
            filters += inner
        elif inner:
            found["backendRefs"].warning("filters of several backends: which one a request took cannot be seen; they are not applied")
        mirrors, note = self.filters(filters, namespace)
        matches = found["matches"].items() if "matches" in found else []
        blocks = [self.match(one, kind) for one in matches] or [Block()]
        entries = []
        for at, block in enumerate(blocks):
            where = Where(node.file, node.line)
            title = label if len(blocks) == 1 else f"{label} matches[{at}]"
            mine = tuple(_prefixed(mirror, block) for mirror in mirrors)
            route = Route(title, where, (replace(block, hosts=hosts),), mine, note)
            entries.append(_Entry(_rank(hosts, block), hosts, route))
        return entries

    # -- match --

    def match(self, node: Node, kind: str) -> Block:
        if kind == "GRPCRoute":
            found = fields(node, ("method", "headers"))
            return Block(path=self.grpc(found.get("method")), methods=(Text("exact", "POST"),), headers=self.named(found.get("headers"), header=True))
        found = fields(node, ("path", "headers", "queryParams", "method"))
        path = None
        if "path" in found:
            inner = fields(found["path"], ("type", "value"))
            how = inner["type"].choice(("Exact", "PathPrefix", "RegularExpression")) if "type" in inner else "PathPrefix"
            value = inner["value"].text() if "value" in inner else "/"
            if how == "RegularExpression":
                found["path"].parsed(lambda _: compile_pattern(value)) if found["path"].kind == "text" else inner["value"].parsed(compile_pattern)
                path = Text("regex", value)
            else:
                if value and not value.startswith("/"):
                    inner["value"].error(f"a path begins with /, found {value!r}")
                path = Text("exact", value) if how == "Exact" else None if value == "/" else Text("segments", value.rstrip("/"))
        methods: tuple[Text, ...] = ()
        if "method" in found:
            method = found["method"].choice(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
            methods = (Text("exact", method),)
        return Block(
            path=path, methods=methods, headers=self.named(found.get("headers"), header=True), query=self.named(found.get("queryParams"), header=False)
        )

    def grpc(self, node: Node | None) -> Text | None:
        if node is None:
            return None
        found = fields(node, ("type", "service", "method"))
        how = found["type"].choice(("Exact", "RegularExpression")) if "type" in found else "Exact"
        service, method = (found[name].text() if name in found else "" for name in ("service", "method"))
        if not service and not method:
            node.error("a method match needs service or method")
            return None
        if how == "RegularExpression":
            pattern = f"/{service or '[^/]+'}/{method or '[^/]+'}"
            found.get("service", found.get("method", node)).parsed(lambda _: compile_pattern(pattern))
            return Text("regex", pattern)
        if service and method:
            return Text("exact", f"/{service}/{method}")
        return Text("prefix", f"/{service}/") if service else Text("suffix", f"/{method}")

    def named(self, node: Node | None, *, header: bool) -> tuple[Field, ...]:
        tests: dict[str, Field] = {}
        for one in node.items() if node is not None else ():
            found = fields(one, ("type", "name", "value"))
            if "name" not in found or "value" not in found:
                if one.kind == "map":
                    one.error("name and value are needed")
                continue
            how = found["type"].choice(("Exact", "RegularExpression")) if "type" in found else "Exact"
            name, value = found["name"].text(), found["value"].text()
            if how == "RegularExpression":
                found["value"].parsed(compile_pattern)
            key = name.lower() if header else name
            if key in tests:
                one.warning(f"{name!r} stands there already; only the first counts")
            tests.setdefault(key, Field(key, Text("regex" if how == "RegularExpression" else "exact", value)))
        return tuple(tests.values())

    # -- filters --

    def filters(self, nodes: list[Node], namespace: str) -> tuple[list[Mirror], str]:
        mirrors: list[Mirror] = []
        changes: list[tuple[str, str, str]] = []
        authority, path, note = None, None, ""
        for node in nodes:
            found = fields(node, _FILTER, _FILTER_ALSO)
            if "type" not in found:
                if node.kind == "map":
                    node.error(f"a filter needs a type{nearest('', ())}")
                continue
            kind = found["type"].choice(_FILTERS)
            if kind == "RequestMirror":
                if "requestMirror" not in found:
                    node.error("requestMirror is missing")
                else:
                    mirror = self.mirror(found["requestMirror"], namespace)
                    mirrors += [mirror] if mirror is not None else []
            elif kind == "RequestHeaderModifier" and "requestHeaderModifier" in found:
                changes += self.modifier(found["requestHeaderModifier"])
            elif kind == "URLRewrite" and "urlRewrite" in found:
                inner = fields(found["urlRewrite"], ("hostname", "path"))
                authority = inner["hostname"].text() if "hostname" in inner else None
                path = self.path(inner["path"]) if "path" in inner else None
            elif kind == "RequestRedirect":
                note = "RequestRedirect answers by itself"
        if note:
            return [], note
        return [replace(mirror, headers=tuple(changes), authority=authority, path=path) for mirror in mirrors], ""

    def path(self, node: Node) -> PathRewrite | None:
        found = fields(node, ("type", "replaceFullPath", "replacePrefixMatch"))
        kind = found["type"].choice(("ReplaceFullPath", "ReplacePrefixMatch")) if "type" in found else ""
        if kind == "ReplaceFullPath" and "replaceFullPath" in found:
            return PathRewrite("full", found["replaceFullPath"].text())
        if kind == "ReplacePrefixMatch" and "replacePrefixMatch" in found:
            return PathRewrite("prefix", found["replacePrefixMatch"].text())
        node.error("type is ReplaceFullPath (with replaceFullPath) or ReplacePrefixMatch (with replacePrefixMatch)")
        return None

    def modifier(self, node: Node) -> list[tuple[str, str, str]]:
        found = fields(node, ("set", "add", "remove"))
        changes = []
        for how in ("set", "add"):
            for one in found[how].items() if how in found else ():
                inner = fields(one, ("name", "value"))
                name, value = (inner[key].text() if key in inner else "" for key in ("name", "value"))
                if name.lower() in FIXED or name.startswith(":"):
                    one.warning(f"{name!r} is not changed: it {fixed_for(name)}")
                elif name:
                    changes.append((how, name, value))
        return [*changes, *removals(found["remove"].items() if "remove" in found else ())]

    def mirror(self, node: Node, namespace: str) -> Mirror | None:
        found = fields(node, ("backendRef", "percent", "fraction"))
        if "backendRef" not in found:
            if node.kind == "map":
                node.error("backendRef is missing")
            return None
        share = MILLION
        if "percent" in found and "fraction" in found:
            found["fraction"].error("percent and fraction exclude each other")
        elif "percent" in found:
            share = (found["percent"].integer(0, 100) or 0) * 10_000
        elif "fraction" in found:
            share = self.fraction(found["fraction"])
        to = self.backend(found["backendRef"], namespace)
        weight = found["backendRef"].get("weight")
        if weight is not None:
            weight.warning("a weight has no effect on a mirror; percent (beside backendRef) says how much is mirrored")
        return None if to is None else Mirror(to, Where(node.file, node.line), share, suffix=self.suffix)

    def fraction(self, node: Node) -> int:
        found = fields(node, ("numerator", "denominator"))
        above = found["numerator"].integer(0, 1 << 31) if "numerator" in found else None
        below = found["denominator"].integer(1, 1 << 31) if "denominator" in found else 100
        if above is None or below is None:
            if "numerator" not in found and node.kind == "map":
                node.error("a fraction needs a numerator")
            return 0
        if above > below:
            node.error(f"{above}/{below} is more than 1")
        return millionths(100 * above / below) if (above * MILLION) % below else min(MILLION, above * MILLION // below)

    def backend(self, node: Node, namespace: str) -> Destination | None:
        found = fields(node, ("group", "kind", "name", "namespace", "port"), ("weight",))
        if "name" not in found:
            if node.kind == "map":
                node.error("a backendRef needs a name")
            return None
        kind = found["kind"].text() if "kind" in found else "Service"
        group = found["group"].text() if "group" in found else ""
        name, space = found["name"].text(), found["namespace"].text() if "namespace" in found else namespace
        port = found["port"].integer(1, 65535) if "port" in found else None
        if kind == "Service" and not group and port is None:
            node.error("a backendRef to a Service needs a port")
        if kind not in ("Service", "ServiceImport", "InferencePool", "Backend", "Hostname"):
            found["kind"].warning(f"the kind {kind!r} is not known here; give its address with --resolve")
        if space != namespace:
            node.warning(f"a service of another namespace ({space}) needs a ReferenceGrant there; without it a mesh leaves this mirror out")
        host = f"{name}.{space}.svc.cluster.local" if kind == "Service" else name
        return Destination(f"{host}{f':{port}' if port else ''}", host, port, "", space)


def _prefixed(mirror: Mirror, block: Block) -> Mirror:
    if mirror.path is None or mirror.path.kind != "prefix":
        return mirror
    value = mirror.path.value.rstrip("/")
    if block.path is not None and block.path.kind in ("segments", "prefix"):
        return replace(mirror, path=replace(mirror.path, value=value, matched=block.path.value))
    return replace(mirror, path=replace(mirror.path, value=value + "/", matched="/"))


def _hostname(text: str) -> Host:
    if not re.fullmatch(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", text):
        raise ValueError(f"{text!r} is no hostname; write a.example.com or *.example.com, without a port")
    return Host("suffix", text[1:]) if text.startswith("*") else Host("exact", text)


def _rank(hosts: tuple[Host, ...], block: Block) -> tuple[int, ...]:
    """Smaller comes first: exact host, longer wildcard, none; exact path, longer prefix, pattern, none; a method; more headers; more parameters."""
    rank = (3, 0) if not hosts else (0, 0) if hosts[0].kind == "exact" else (1, -len(hosts[0].value))
    path = block.path
    kinds = {"exact": 0, "segments": 1, "prefix": 1, "regex": 2, "suffix": 3}
    return (
        *rank,
        4 if path is None else kinds[path.kind],
        0 if path is None else -len(path.value),
        -bool(block.methods),
        -len(block.headers),
        -len(block.query),
    )
