"""A policy from files, whatever language they are in."""

from __future__ import annotations

from collections.abc import Callable

from replay.errors import UsageError
from replay.policy import envoy, gateway, istio, kubernetes, ours
from replay.policy.check import check
from replay.policy.diagnose import Diagnoses, PolicyError, nearest
from replay.policy.model import Policy, Route
from replay.policy.names import Names, resolve
from replay.policy.tree import Node, expand, read

__all__ = ["MESHES", "PolicyError", "load", "load_documents"]

#: Whose default decides where a policy does not say whether the suffix is put on.
MESHES = ("istio-1.27", "istio-1.28", "envoy")

_OURS = ("routes", "targets", "defaults", "version")


def load(
    words: tuple[str, ...], *, mesh: str | None = None, names: Names | None = None, namespace: str = "default", require: bool = True
) -> tuple[Policy, Diagnoses]:
    """The policy in files and folders (`-`: standard input), its mirrors resolved, and the warnings.

    mesh: one of MESHES; None: what fits the language.  require: a destination without an address is an error.
    Raises PolicyError with everything that is wrong, UsageError for a file that cannot be read."""
    diagnoses = Diagnoses()
    documents = [node for path in expand(words) for node in read(path, diagnoses)]
    return load_documents(documents, words, diagnoses, mesh=mesh, names=names, namespace=namespace, require=require)


def load_documents(
    documents: list[Node], words: tuple[str, ...], diagnoses: Diagnoses, *, mesh: str | None, names: Names | None, namespace: str, require: bool
) -> tuple[Policy, Diagnoses]:
    """`load` for documents that were read."""
    diagnoses.check()
    if mesh is not None and mesh not in MESHES:
        raise UsageError(f"--mesh {mesh}: there are {', '.join(MESHES)}")
    policy = _translate(documents, words, diagnoses, mesh, namespace)
    diagnoses.check()
    check(policy, diagnoses)
    policy = resolve(policy, names or Names(), diagnoses, require=require)
    diagnoses.check()
    return policy, diagnoses


def _translate(documents: list[Node], words: tuple[str, ...], diagnoses: Diagnoses, mesh: str | None, namespace: str) -> Policy:
    file = ", ".join(words)
    if not documents:
        raise UsageError(f"{file}: holds no document")
    # Envoy's tables also come as a list (istioctl proxy-config routes -o json)
    documents = [
        item
        for one in documents
        for item in (one.value if one.kind == "list" and any(item.kind == "map" and envoy.looks_like(item) for item in one.value) else [one])
    ]
    maps = [one for one in documents if one.kind == "map"]
    for one in documents:
        if one.kind != "map":
            one.error(f"expected a policy (a map), found {one.described()}")
    diagnoses.check()
    objects = [one for one in maps if "kind" in one.value or "apiVersion" in one.value]
    rest = [one for one in maps if one not in objects]
    names = {"kubernetes": "Istio or Gateway API", "envoy": "Envoy", "replay": "our own language"}
    found: list[tuple[str, Callable[[], Policy]]] = []
    if objects:
        found.append(("kubernetes", lambda: _kubernetes(objects, file, diagnoses, mesh, namespace)))
    if any(envoy.looks_like(one) for one in rest):
        found.append(("envoy", lambda: _envoy(rest, file, mesh)))
    elif rest:
        found.append(("replay", lambda: _ours(rest, diagnoses, mesh)))
    if len(found) > 1:
        raise UsageError(f"{file}: {' and '.join(names[name] for name, _ in found)} together; give one language at a time")
    return found[0][1]()


def _ours(documents: list[Node], diagnoses: Diagnoses, mesh: str | None) -> Policy:
    for extra in documents[1:]:
        extra.error("a second document: a policy of our own is one document")
    document = documents[0]
    if not any(name in document.value for name in _OURS):
        known = [name for name in document.value if "mean" in nearest(name, _OURS)]
        if not known:
            names = ", ".join(list(document.value)[:5])
            document.error(
                f"no policy: there is neither `routes` (ours), nor apiVersion and kind (Istio, Gateway API), "
                f"nor virtual_hosts (Envoy); found {names or 'nothing'}"
            )
            diagnoses.check()
    if mesh is not None:
        document.warning(f"--mesh {mesh} has no effect on a policy in our own language; write `host: keep` for no suffix")
    return ours.read(document, mesh or "envoy")


def _envoy(documents: list[Node], file: str, mesh: str | None) -> Policy:
    suffix = None if mesh == "istio-1.28" else "-shadow"
    routes = envoy.read(documents, suffix)
    if not routes:
        documents[0].error("there is no route table with virtual_hosts in it")
    notes = () if mesh else ("Envoy's default was assumed: -shadow is put on unless a policy switches it off (--mesh)",)
    return Policy(tuple(_settled(routes)), "envoy", mesh or "envoy", (file,), notes)


def _kubernetes(documents: list[Node], file: str, diagnoses: Diagnoses, mesh: str | None, namespace: str) -> Policy:
    objects = kubernetes.collect(documents, namespace)
    diagnoses.check()
    assumed = mesh or "istio-1.28"
    suffix = None if assumed == "istio-1.28" else "-shadow"
    services, routes = objects.of("VirtualService"), objects.of("HTTPRoute") + objects.of("GRPCRoute")
    if not services and not routes:
        others = ", ".join(f"{kind} ({n})" for kind, n in sorted(objects.others.items())) or "only DestinationRule"
        old = "; a RouteRule is of Istio before 1.0: write it as a VirtualService" if "RouteRule" in objects.others else ""
        old = old or "; name the file of the route as well (several files, each with a --policy of its own on run and tap, or their folder)"
        documents[0].error(f"there is no VirtualService, HTTPRoute or GRPCRoute; found {others}{old}")
    if services and routes:
        routes[0].error("VirtualService and HTTPRoute together: their order is not defined; give one of them")
    diagnoses.check()
    found = istio.read(objects, suffix) if services else gateway.read(objects, suffix)
    notes = []
    if mesh is None:
        notes.append("Istio 1.28 or later was assumed, which puts no suffix on the host; --mesh istio-1.27 (or envoy) puts -shadow on")
    if not any(kubernetes.name_of(one)[1] for one in services + routes):
        notes.append(f"no namespace is named; {namespace!r} was assumed (--namespace)")
    return Policy(tuple(_settled(found)), "istio" if services else "gateway", assumed, (file,), tuple(notes))


def _settled(routes: list[Route]) -> list[Route]:
    """Without the catch-alls that change nothing: those at the end, and those behind a route that takes all of theirs. Names that stand twice get a number."""
    from dataclasses import replace

    while len(routes) > 1 and not routes[-1].mirrors and routes[-1].name.endswith(" otherwise"):
        routes = routes[:-1]
    taken: set[object] = set()
    kept = []
    for route in routes:
        if not (route.name.endswith(" otherwise") and all(block in taken for block in route.blocks)):
            kept.append(route)
        taken.update(route.blocks)
    routes = kept
    seen: dict[str, int] = {}
    found = []
    for route in routes:
        seen[route.name] = seen.get(route.name, 0) + 1
        found.append(route if seen[route.name] == 1 else replace(route, name=f"{route.name} #{seen[route.name]}"))
    return found
