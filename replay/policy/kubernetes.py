"""What the Kubernetes languages have in common: documents by kind, `kind: List`, namespaces, names in camelCase or snake_case, the shares of Istio."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from replay.policy.diagnose import nearest
from replay.policy.model import MILLION
from replay.policy.tree import Node

__all__ = ["Objects", "camel", "collect", "fields", "full_name", "millionths", "short_names"]

KINDS = ("VirtualService", "DestinationRule", "HTTPRoute", "GRPCRoute")


@dataclass(slots=True)
class Objects:
    """The documents of a policy by kind. others: kinds of no effect on mirroring, with their number.
    ports: of each host that a Service or ServiceEntry describes."""

    namespace: str
    by_kind: dict[str, list[Node]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    ports: dict[str, set[int]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Node]:
        return self.by_kind.get(kind, [])


def camel(name: str) -> str:
    """`mirror_percent` as `mirrorPercent`: both are read, as the meshes do."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def fields(node: Node, known: tuple[str, ...], also: tuple[str, ...] = (), what: str = "") -> dict[str, Node]:
    """Node.fields where snake_case is the same as camelCase. Fields that are null count as absent."""
    if node.kind == "map":
        renamed: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for name, value in node.value.items():
            plain = camel(name) if camel(name) in known or camel(name) in also else name
            if plain in renamed:
                value.error(f"{name!r} stands there already as {plain!r}")
            renamed[plain] = value
            lines[plain] = (node.key_lines or {}).get(name, node.line)
        node = Node("map", renamed, node.file, node.line, node.field, node.diagnoses, key_lines=lines)
    return {name: value for name, value in node.fields(known, also=also, what=what).items() if value.kind != "null"}


def collect(documents: list[Node], namespace: str) -> Objects:
    """The objects in the documents, lists unpacked."""
    found = Objects(namespace)
    for document in documents:
        _collect(document, found)
    return found


def _collect(document: Node, found: Objects) -> None:
    kind = document.get("kind")
    name = kind.text() if kind is not None else ""
    items = document.get("items")
    if name.endswith("List") and items is not None:
        for item in items.items():
            _collect(item, found)
        return
    version = document.get("apiVersion")
    group = version.text() if version is not None else ""
    if name in KINDS:
        _version(document, name, group)
        found.by_kind.setdefault(name, []).append(document)
        return
    if (name, group) == ("Service", "v1") or (name == "ServiceEntry" and group.startswith("networking.istio.io/")):
        _ports(document, found, "port" if name == "Service" else "number")
    near = nearest(name, KINDS) if name else ""
    if "mean" in near and (not group or "istio" in group or "gateway" in group):
        (kind or document).error(f"the kind {name!r} is not known{near}")
    found.others[name or "?"] = found.others.get(name or "?", 0) + 1


def _ports(document: Node, found: Objects, field: str) -> None:
    """Adds the ports of a Service or ServiceEntry; what is wrong with one is not our business."""
    name, space = document.at("metadata", "name"), document.at("metadata", "namespace")
    hosts, ports = document.at("spec", "hosts"), document.at("spec", "ports")
    named = [name] if field == "port" else hosts.value if hosts is not None and hosts.kind == "list" else []
    listed = ports.value if ports is not None and ports.kind == "list" else []
    numbers = [str(node.value) for one in listed if (node := one.get(field)) is not None]
    for host in named:
        if host is not None and host.kind == "text":
            full = full_name(host.value, space.value if space is not None and space.kind == "text" else found.namespace)
            found.ports.setdefault(full, set()).update(int(one) for one in numbers if re.fullmatch(r"[1-9]\d{0,4}", one) and int(one) < 65536)


_VERSIONS = {
    "VirtualService": ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"),
    "DestinationRule": ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2"),
    "GRPCRoute": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"),
}


def _version(document: Node, kind: str, group: str) -> None:
    node = document.get("apiVersion")
    known = _VERSIONS[kind]
    if node is None:
        document.error(f"a {kind} needs apiVersion: {known[0]}")
    elif group not in known:
        node.error(f"{group!r} is no version of {kind}{nearest(group, known)}")


def name_of(document: Node) -> tuple[str, str]:
    """(name, namespace or ""), unchecked."""
    name, namespace = document.at("metadata", "name"), document.at("metadata", "namespace")
    return (name.text() if name is not None else "?"), (namespace.text() if namespace is not None else "")


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def full_name(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """Istio's rule: a host without a dot is a service of that namespace; any other is left alone."""
    if "." in host or host == "*" or is_address(host):
        return host
    return f"{host}.{namespace}.svc.{domain}"


def short_names(host: str, namespace: str) -> list[str]:
    """The names by which a client may ask for this service; the short one only within its namespace."""
    found = re.fullmatch(r"([^.*]+)\.([^.]+)\.svc\.(.+)", host)
    if found is None:
        return [host]
    name, space, domain = found.groups()
    names = [host, f"{name}.{space}.svc", f"{name}.{space}"]
    return [name, *names] if space == namespace else names


def millionths(value: float) -> int:
    """Percent as parts per million, as Istio computes it: times 10,000 in doubles, then truncated (0.57 is 5,699)."""
    return min(MILLION, max(0, int(value * 10_000)))
