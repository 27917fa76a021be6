"""Envoy's route configuration as a policy: request_mirror_policies of routes, virtual hosts, route tables and clusters.

Reads a RouteConfiguration or a list of them, a whole bootstrap, a listener, or a config dump: every map with virtual_hosts in it counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from replay.policy.diagnose import nearest
from replay.policy.formats import formatted, in_order
from replay.policy.kubernetes import camel
from replay.policy.model import MILLION, Block, Change, Destination, Field, Host, Mirror, PathRewrite, Route, Text, Where
from replay.policy.ours import FIXED, fixed_for, removals
from replay.policy.patterns import compile_pattern, substitute
from replay.policy.templates import pattern, rewrite
from replay.policy.tree import Node

__all__ = ["looks_like", "read"]

_POLICY = ("cluster", "clusterHeader", "runtimeFraction", "traceSampled", "disableShadowHostSuffixAppend", "hostRewriteLiteral", "requestHeadersMutations")
_MATCH = ("prefix", "path", "safeRegex", "pathSeparatedPrefix", "connectMatcher", "pathMatchPolicy")
_MATCH_REST = ("caseSensitive", "headers", "queryParameters", "grpc", "runtimeFraction", "tlsContext", "dynamicMetadata", "filterState", "cookies")
_STRING = ("exact", "prefix", "suffix", "contains", "safeRegex")
_DENOMINATORS = {"HUNDRED": 10_000, "TEN_THOUSAND": 100, "MILLION": 1, "0": 10_000, "1": 100, "2": 1}
_APPEND = {
    "APPEND_IF_EXISTS_OR_ADD": "add", "ADD_IF_ABSENT": "add_if_absent", "OVERWRITE_IF_EXISTS_OR_ADD": "set", "OVERWRITE_IF_EXISTS": "set_if_exists",
    "0": "add", "1": "add_if_absent", "2": "set", "3": "set_if_exists",
}  # fmt: skip


def _plain(node: Node) -> Node:
    """A map with its names in camelCase; both spellings are Envoy's."""
    if node.kind != "map":
        return node
    names = {(camel(name) if not name.startswith("@") else name): value for name, value in node.value.items()}
    lines = {camel(name): line for name, line in (node.key_lines or {}).items()}
    return Node("map", names, node.file, node.line, node.field, node.diagnoses, key_lines=lines)


def _get(node: Node | None, *names: str) -> Node | None:
    for name in names:
        node = _plain(node).get(name) if node is not None else None
    return node


def _all(node: Node) -> Iterator[Node]:
    """Every map below, with its names in camelCase."""
    if node.kind == "map":
        plain = _plain(node)
        yield plain
        for inner in plain.value.values():
            yield from _all(inner)
    elif node.kind == "list":
        for inner in node.value:
            yield from _all(inner)


def looks_like(document: Node) -> bool:
    """A part of it has virtual hosts, or it is Envoy's in another way."""
    top = _plain(document)
    if any(name in top.value for name in ("virtualHosts", "staticResources", "routeConfig", "configs", "filterChains", "dynamicRouteConfigs")):
        return True
    return any("virtualHosts" in one.value for one in _all(document))


@dataclass(slots=True)
class _Cluster:
    url: str | None
    policies: Node | None


@dataclass(slots=True)
class _Level:
    """What a route inherits: policies of the nearest level that has some, header changes of all."""

    policies: Node | None
    changes: list[Change] = field(default_factory=list)


def read(documents: list[Node], suffix: str | None) -> list[Route]:
    """Routes of all route tables. suffix: the default; a policy may switch it off."""
    return _Reader(documents, suffix).routes()


class _Reader:
    def __init__(self, documents: list[Node], suffix: str | None) -> None:
        self.documents = documents
        self.suffix = suffix
        self.clusters: dict[str, _Cluster] = {}
        for document in documents:
            for one in _all(document):
                if "name" in one.value and ("loadAssignment" in one.value or "connectTimeout" in one.value or "lbPolicy" in one.value):
                    self.cluster(one)

    def cluster(self, node: Node) -> None:
        name = node.value["name"].text()
        urls = []
        for one in _all(node.value["loadAssignment"]) if "loadAssignment" in node.value else ():
            address = one.value.get("socketAddress")
            if address is not None and _get(address, "address") is not None and _get(address, "portValue") is not None:
                urls.append((_get(address, "address"), _get(address, "portValue")))
        url = None
        if len(urls) == 1 and urls[0][0] is not None and urls[0][1] is not None:
            host = urls[0][0].text()
            url = f"http://{f'[{host}]' if ':' in host else host}:{urls[0][1].text()}"
        policies = next((one.value["requestMirrorPolicies"] for one in _all(node) if "requestMirrorPolicies" in one.value), None)
        self.clusters[name] = _Cluster(url, policies)

    def routes(self) -> list[Route]:
        routes: list[Route] = []
        tables = [one for document in self.documents for one in _all(document) if "virtualHosts" in one.value]
        for at, table in enumerate(tables):
            routes += self.table(table, f"{_name(table, 'routes')}{f' ({at + 1})' if len(tables) > 1 else ''}")
        return routes

    def table(self, node: Node, label: str) -> list[Route]:
        level = _Level(node.get("requestMirrorPolicies"), self.changes(node))
        any_port = _get(node, "ignorePortInHostMatching")
        ported = any_port is None or not any_port.boolean()
        groups: list[tuple[tuple[int, int], Node, list[str]]] = []
        for host in node.value["virtualHosts"].items():
            plain = _plain(host)
            domains = [one.text() for one in plain.value["domains"].items()] if plain.kind == "map" and "domains" in plain.value else []
            if not domains:
                host.error("a virtual host needs domains")
                continue
            exact = [one for one in domains if "*" not in one]
            groups += [((0, 0), plain, exact)] if exact else []
            for one in domains:
                if "*" in one:
                    if one != "*" and (one.count("*") > 1 or "*" in one[1:-1]):
                        plain.value["domains"].error(f"{one!r} is no domain; * stands at one end")
                    groups.append(((1, -len(one)) if one != "*" and one.startswith("*") else (2, -len(one)) if one != "*" else (3, 0), plain, [one]))
        groups.sort(key=lambda item: item[0])
        routes: list[Route] = []
        for _, host, domains in groups:
            title = f"{label} {_name(host, 'host')}" + (f" {domains[0]}" if sum(other is host for _, other, _ in groups) > 1 else "")
            base = _domains(domains, ported)
            for at, route in enumerate(host.value["routes"].items() if "routes" in host.value else ()):
                routes += self.route(
                    route, f"{title} routes[{at}]", base, _Level(host.get("requestMirrorPolicies") or level.policies, self.changes(host) + level.changes)
                )
            routes.append(Route(f"{title} otherwise", Where(host.file, host.line), (base,), (), "no route matches"))
        return routes

    def route(self, node: Node, label: str, base: Block, level: _Level) -> list[Route]:
        plain = _plain(node)
        if plain.kind != "map":
            node.error(f"expected a map, found {node.described()}")
            return []
        where = Where(node.file, node.line)
        label += f" {_name(plain, '')}".rstrip()
        block = self.match(plain.value["match"], base) if "match" in plain.value else None
        if block is None:
            if "match" not in plain.value:
                node.error("match is missing")
            return []
        for part in ("redirect", "directResponse", "nonForwardingAction", "filterAction"):
            if part in plain.value:
                return [Route(label, where, (block,), (), f"{part} answers by itself")]
        action = _plain(plain.value["route"]) if "route" in plain.value else None
        if action is None or action.kind != "map":
            node.error(f"a route needs route, redirect or direct_response{nearest('', ())}")
            return []
        primary = action.get("cluster")
        own = self.clusters.get(primary.text()) if primary is not None else None
        policies = (own.policies if own is not None else None) or action.get("requestMirrorPolicies") or level.policies
        changes = [*self.changes(plain), *level.changes]
        routes = []
        for extra, mirrors in self.policies(policies, block):
            mirrors = [self.host_and_path(replace(mirror, headers=(*changes, *mirror.headers)), action, plain) for mirror in mirrors]
            for mirror in mirrors:
                in_order(node, mirror.headers)
            routes.append(
                Route(
                    label if not extra else f"{label} {extra[0].test.value or 'without'}",
                    where,
                    (replace(block, headers=(*block.headers, *extra)),),
                    tuple(mirrors),
                )
            )
        return routes

    def host_and_path(self, mirror: Mirror, action: Node, route: Node) -> Mirror:
        literal = action.get("hostRewriteLiteral")
        if literal is not None:
            mirror = replace(mirror, authority=literal.text())
        for name in ("autoHostRewrite", "hostRewriteHeader", "hostRewritePathRegex"):
            node = action.get(name)
            if node is not None and node.value != "false":
                node.warning(f"{name}: the host that the primary gets is known only in Envoy; the captured host is taken")
        prefix, expression = action.get("prefixRewrite"), action.get("regexRewrite")
        match = _plain(route.value["match"])
        if prefix is not None and prefix.text():
            begins = match.get("prefix") or match.get("pathSeparatedPrefix")
            matched = (str(begins.value) or "/") if begins is not None else ""
            mirror = replace(mirror, path=PathRewrite("prefix", prefix.text(), matched) if matched else PathRewrite("full", prefix.text()))
        elif action.get("pathRewritePolicy") is not None:
            mirror = replace(mirror, path=self.template_rewrite(action.value["pathRewritePolicy"], match))
        elif expression is not None:
            regex, text = _get(expression, "pattern", "regex"), _get(expression, "substitution")
            if regex is None:
                expression.error("pattern.regex is missing")
            elif regex.parsed(compile_pattern) is not None:
                replacement = text.text() if text is not None else ""
                (text or expression).parsed(lambda _: substitute(regex.value, replacement)) if text is not None else None
                mirror = replace(mirror, path=PathRewrite("regex", replacement, regex.value))
        return mirror

    def template(self, node: Node, kind: str, name: str) -> Node | None:
        """The field `name` of an extension that is of this kind; an error for any other extension."""
        inner = _get(node, "typedConfig")
        written = _get(inner, "@type") if inner is not None else None
        if written is None or not str(written.value).endswith(kind):
            shown = written or _get(node, "name") or node
            node.error(f"only {kind} is known here, found {str(shown.value).rpartition('.')[2] if shown.kind == 'text' else shown.described()}")
            return None
        found = _get(inner, name)
        if found is None:
            node.error(f"{kind} needs a template")
        return found

    def template_rewrite(self, node: Node, match: Node) -> PathRewrite | None:
        new = self.template(node, "UriTemplateRewriteConfig", "pathTemplateRewrite")
        policy = match.get("pathMatchPolicy")
        if policy is None:
            node.error("path_rewrite_policy goes with path_match_policy")
        old = self.template(policy, "UriTemplateMatchConfig", "pathTemplate") if policy is not None else None
        if new is None or old is None:
            return None
        made = new.parsed(lambda text: rewrite(old.text(), text))
        return PathRewrite("regex", made[1], made[0]) if made is not None else None

    # -- policies --

    def policies(self, node: Node | None, block: Block) -> list[tuple[tuple[Field, ...], list[Mirror]]]:
        """Alternatives: tests to be added, and the mirrors then. More than one only where a header names the cluster."""
        fixed: list[Mirror] = []
        named: list[tuple[str, Mirror]] = []
        for one in node.items() if node is not None else ():
            found = _plain(one).fields(_POLICY)
            if one.kind != "map":
                continue
            cluster, header = found.get("cluster"), found.get("clusterHeader")
            if (cluster is None) == (header is None):
                one.error("exactly one of cluster and cluster_header is needed")
                continue
            mirror = self.mirror(one, found, cluster.text() if cluster is not None else "")
            if header is not None:
                named.append((header.text().lower(), mirror))
            else:
                fixed.append(mirror)
        alternatives: list[tuple[tuple[Field, ...], list[Mirror]]] = []
        for header_name, mirror in named:
            if not self.clusters and node is not None:
                node.error("cluster_header: the clusters that it may name are not in the files given")
            for name in self.clusters:
                alternatives.append(((Field(header_name, Text("exact", name)),), [*fixed, replace(mirror, to=self.destination(name))]))
        if len(named) > 1 and node is not None:
            node.error("more than one policy with cluster_header on a route is not supported")
        return [*alternatives, ((), fixed)]

    def destination(self, name: str) -> Destination:
        cluster = self.clusters.get(name)
        url = cluster.url if cluster is not None else None
        made = re.fullmatch(r"outbound\|(\d{1,5})\|([^|]*)\|([^|]+)", name)  # by Istio: its parts are those of a destination
        if made is None:
            return Destination(name, name, url=url)
        port, subset, host = made.groups()
        space = re.fullmatch(r"[^.]+\.([^.]+)\.svc\..*", host)
        return Destination(name, host, int(port), subset, space[1] if space else "", url=url)

    def mirror(self, node: Node, found: dict[str, Node], cluster: str) -> Mirror:
        off = "disableShadowHostSuffixAppend" in found and found["disableShadowHostSuffixAppend"].boolean()
        trace = "keep"
        if "traceSampled" in found and not found["traceSampled"].boolean():
            trace = "unsample"
        return Mirror(
            self.destination(cluster),
            Where(node.file, node.line),
            self.share(found["runtimeFraction"]) if "runtimeFraction" in found else MILLION,
            suffix=None if off else self.suffix,
            literal=found["hostRewriteLiteral"].text() or None if "hostRewriteLiteral" in found else None,
            headers=tuple(self.mutations(found["requestHeadersMutations"])) if "requestHeadersMutations" in found else (),
            trace=trace,
        )

    def share(self, node: Node) -> int:
        found = _plain(node).fields(("defaultValue", "runtimeKey"))
        if "runtimeKey" in found:
            found["runtimeKey"].warning("a run-time key may change the share while Envoy runs; the default value is taken")
        if "defaultValue" not in found:
            node.warning("a fraction without a default value is 0: nothing is mirrored")
            return 0
        inner = _plain(found["defaultValue"]).fields(("numerator", "denominator"))
        above = inner["numerator"].integer(0, (1 << 32) - 1) or 0 if "numerator" in inner else 0
        word = inner["denominator"].text().upper() if "denominator" in inner else "HUNDRED"
        if word not in _DENOMINATORS:
            inner["denominator"].error(f"{word!r} is none of HUNDRED, TEN_THOUSAND, MILLION")
            return 0
        share = above * _DENOMINATORS[word]
        if share > MILLION:
            node.warning("above 100 %: everything is mirrored")
        return min(share, MILLION)

    def changes(self, node: Node) -> list[Change]:
        """request_headers_to_add and request_headers_to_remove of a level."""
        names = node.get("requestHeadersToRemove")
        changes: list[Change] = [*removals(names.items() if names is not None else ())]
        added = node.get("requestHeadersToAdd")
        for one in added.items() if added is not None else ():
            change = self.option(one)
            changes += [change] if change is not None else []
        return changes

    def option(self, node: Node) -> Change | None:
        """A HeaderValueOption."""
        found = _plain(node).fields(("header", "append", "appendAction", "keepEmptyValue"))
        if "header" not in found:
            node.error("header is missing")
            return None
        inner = _plain(found["header"]).fields(("key", "value", "rawValue"))
        name = inner["key"].text() if "key" in inner else ""
        value = inner["value"].text() if "value" in inner and inner["value"].kind == "text" else ""
        how = "add"
        if "appendAction" in found:
            word = found["appendAction"].text()
            if word not in _APPEND:
                found["appendAction"].error(f"{word!r} is no append_action{nearest(word, [w for w in _APPEND if len(w) > 1])}")
            how = _APPEND.get(word, "add")
        elif "append" in found and not found["append"].boolean():
            how = "set"
        if name.startswith(":") or name.lower() in FIXED:
            node.warning(f"{name!r} is not changed: Envoy refuses it, or it {fixed_for(name)}")
            return None
        keep = "keepEmptyValue" in found and found["keepEmptyValue"].boolean()
        if "%" in value:
            made = formatted(inner["value"], value, keep_empty=keep)
            return None if made is None else (how, name, made)
        return (how, name, value) if value or keep else None

    def mutations(self, node: Node) -> Iterator[Change]:
        for one in node.items():
            found = _plain(one).fields(("append", "remove", "removeOnMatch"))
            if "remove" in found:
                yield from removals([found["remove"]])
            if "append" in found:
                change = self.option(found["append"])
                if change is not None:
                    yield change
            if "removeOnMatch" in found:
                yield from self.removed(found["removeOnMatch"])

    def removed(self, node: Node) -> Iterator[Change]:
        """remove_on_match: headers by a test on their names, which are in lower case."""
        found = _plain(node).fields(("keyMatcher",))
        if "keyMatcher" not in found:
            node.error("key_matcher is missing")
            return
        test = self.string(found["keyMatcher"])
        if test is None:
            return
        if test.kind != "regex" and not test.ignore_case and test.value != test.value.lower():
            node.warning(f"{test.value!r} matches no name: the names of headers are in lower case")
        yield "remove_matching", "", test

    # -- match --

    def match(self, node: Node, base: Block) -> Block | None:
        plain = _plain(node)
        found = plain.fields((*_MATCH, *_MATCH_REST))
        chosen = [name for name in _MATCH if name in found]
        if len(chosen) != 1:
            if node.kind == "map":
                node.error(f"exactly one of prefix, path, safe_regex, path_separated_prefix is needed, found {' and '.join(chosen) or 'none'}")
            return None
        folded = "caseSensitive" in found and not found["caseSensitive"].boolean()
        kind, value = chosen[0], found[chosen[0]]
        path: Text | None
        methods: tuple[Text, ...] = ()
        if kind == "safeRegex":
            regex = _get(value, "regex")
            path = Text("regex", regex.text() if regex is not None else "")
            if regex is None:
                value.error("regex is missing")
            else:
                regex.parsed(compile_pattern)
        elif kind == "connectMatcher":
            path, methods = None, (Text("exact", "CONNECT"),)
        elif kind == "pathMatchPolicy":
            template = self.template(value, "UriTemplateMatchConfig", "pathTemplate")
            expression = template.parsed(pattern) if template is not None else None
            path = Text("regex", expression or "")
            if expression is not None and template is not None:
                template.parsed(lambda _: compile_pattern(expression))
        else:
            text = value.text()
            path = None if kind == "prefix" and text in ("/", "") else Text({"path": "exact", "pathSeparatedPrefix": "segments"}.get(kind, kind), text, folded)
        for name in ("runtimeFraction", "tlsContext", "dynamicMetadata", "filterState"):
            if name in found:
                found[name].warning(f"{name} cannot be seen in traffic; it is taken to match")
        headers = list(base.headers)
        authorities = list(base.authorities)
        tests = [(one, item) for one in (found["headers"].items() if "headers" in found else ()) for item in self.header(one)]
        for one, item in tests:
            if item.name == ":method":
                methods = (item.test,)
            elif item.name == ":authority":
                authorities = [item.test]
            elif item.name.startswith(":"):
                one.warning(f"{item.name} is not looked at here; it is taken to match")
            else:
                headers.append(item)
        if "grpc" in found:
            headers.append(Field("content-type", Text("prefix", "application/grpc")))
        query = [self.parameter(one) for one in (found["queryParameters"].items() if "queryParameters" in found else ())]
        cookies = [self.cookie(one) for one in (found["cookies"].items() if "cookies" in found else ())]
        return replace(
            base, path=path, methods=methods, headers=tuple(headers), authorities=tuple(authorities), query=tuple(one for one in query if one is not None),
            cookies=tuple(one for one in cookies if one is not None),
        )  # fmt: skip

    def cookie(self, node: Node) -> Field | None:
        found = _plain(node).fields(("name", "stringMatch", "invertMatch"))
        if "name" not in found or "stringMatch" not in found:
            node.error("name and string_match are needed")
            return None
        test = self.string(found["stringMatch"])
        inverted = "invertMatch" in found and found["invertMatch"].boolean()
        return None if test is None else Field(found["name"].text(), replace(test, invert=inverted))

    def header(self, node: Node) -> list[Field]:
        found = _plain(node).fields(
            (
                *("name", "exactMatch", "safeRegexMatch", "rangeMatch", "presentMatch", "prefixMatch", "suffixMatch"),
                *("containsMatch", "stringMatch", "invertMatch", "treatMissingHeaderAsEmpty"),
            )
        )  # fmt: skip
        if "name" not in found:
            node.error("name is missing")
            return []
        name = found["name"].text().lower()
        inverted = "invertMatch" in found and found["invertMatch"].boolean()
        test: Text | None = Text("present")
        for field_name, kind in (("exactMatch", "exact"), ("prefixMatch", "prefix"), ("suffixMatch", "suffix"), ("containsMatch", "contains")):
            if field_name in found:
                test = Text(kind, found[field_name].text())
        if "safeRegexMatch" in found:
            regex = _get(found["safeRegexMatch"], "regex")
            test = Text("regex", regex.text() if regex is not None else "")
            if regex is not None:
                regex.parsed(compile_pattern)
        if "stringMatch" in found:
            test = self.string(found["stringMatch"])
        if "presentMatch" in found and not found["presentMatch"].boolean():
            test = Text("absent")
        if "rangeMatch" in found:
            test = self.range(found["rangeMatch"])
        if test is None:
            return []
        missing = "treatMissingHeaderAsEmpty" in found and found["treatMissingHeaderAsEmpty"].boolean()
        if test.kind in ("present", "absent"):
            there = (test.kind == "present") != inverted
            if missing and there:  # as Envoy does it: it is always there
                return []
            if missing:
                node.warning(f"treat_missing_header_as_empty: {name} then is always there, so nothing matches")
                return [Field(name, Text("prefix", "", invert=True))]
            return [Field(name, Text("present" if there else "absent"))]
        if not inverted:
            return [Field(name, replace(test, missing_empty=missing))]
        must = [] if missing or name.startswith(":") else [Field(name, Text("present"))]  # Envoy: a header that is missing never matches
        return [*must, Field(name, replace(test, invert=True))]

    def range(self, node: Node) -> Text | None:
        """Whole numbers from start on and below end."""
        found = _plain(node).fields(("start", "end"))
        start, end = (found[name].integer(-(1 << 63), (1 << 63) - 1) if name in found else 0 for name in ("start", "end"))
        return Text("range", f"{start} {end}") if start is not None and end is not None else None

    def string(self, node: Node) -> Text | None:
        found = _plain(node).fields((*_STRING, "ignoreCase"))
        chosen = [name for name in _STRING if name in found]
        if len(chosen) != 1:
            node.error(f"exactly one of exact, prefix, suffix, contains, safe_regex is needed, found {' and '.join(chosen) or 'none'}")
            return None
        folded = "ignoreCase" in found and found["ignoreCase"].boolean()
        if chosen[0] == "safeRegex":
            regex = _get(found["safeRegex"], "regex")
            if folded:
                found["ignoreCase"].error("ignore_case has no effect on safe_regex, and Envoy refuses it; begin the expression with (?i)")
            if regex is None or regex.parsed(compile_pattern) is None:
                return None
            return Text("regex", regex.value)
        return Text(chosen[0], found[chosen[0]].text(), folded)

    def parameter(self, node: Node) -> Field | None:
        found = _plain(node).fields(("name", "stringMatch", "presentMatch"))
        if "name" not in found:
            node.error("name is missing")
            return None
        test = self.string(found["stringMatch"]) if "stringMatch" in found else Text("present")
        if "presentMatch" in found and not found["presentMatch"].boolean():
            test = Text("absent")
        return None if test is None else Field(found["name"].text(), test)


def _name(node: Node, otherwise: str) -> str:
    name = node.get("name")
    return str(name.value) if name is not None and name.kind == "text" else otherwise


def _domains(domains: list[str], ported: bool) -> Block:
    """Envoy compares domains with the whole host, port included, without case."""
    if "*" in domains:
        return Block()
    if not ported:
        return Block(
            hosts=tuple(
                Host("suffix", d[1:].lower()) if d.startswith("*") else Host("prefix", d[:-1].lower()) if d.endswith("*") else Host("exact", d.lower())
                for d in domains
            )
        )
    return Block(
        authorities=tuple(
            Text("suffix", d[1:], True) if d.startswith("*") else Text("prefix", d[:-1], True) if d.endswith("*") else Text("exact", d, True) for d in domains
        )
    )
