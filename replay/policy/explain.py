"""A policy in plain words."""

from __future__ import annotations

from replay.policy.model import MILLION, Block, Format, Mirror, Policy, Route, Text
from replay.units import show_bytes, show_count, show_share

__all__ = ["block_words", "mirror_words", "words"]

_LANGUAGES = {"replay": "our own language", "istio": "Istio", "gateway": "Gateway API", "envoy": "Envoy"}


def words(policy: Policy) -> list[str]:
    """Lines: a route each, in order; what was assumed at the end."""
    lines = []
    mirrored = sum(bool(route.mirrors) for route in policy.routes)
    lines.append(f"{_LANGUAGES[policy.language]}, {_many(len(policy.routes), 'route')}, {show_count(mirrored)} with a mirror; the first that matches decides")
    for at, route in enumerate(policy.routes, 1):
        lines += _route(at, route)
    if not any(_everything(block) for route in policy.routes for block in route.blocks):
        lines.append(f"{len(policy.routes) + 1:>3}. all other requests: not mirrored")
    lines += [f"note: {note}" for note in policy.notes]
    return lines


def _many(n: int, what: str) -> str:
    return f"{show_count(n)} {what}{'' if n == 1 else 's'}"


def _everything(block: Block) -> bool:
    return block == Block()


def _route(at: int, route: Route) -> list[str]:
    if any(_everything(block) for block in route.blocks):
        who = "all requests" if at == 1 else "all other requests"
    else:
        who = "requests " + "; or ".join(block_words(block) for block in route.blocks)
    if not route.mirrors:
        return [f"{at:>3}. {who}: not mirrored{f' ({route.note})' if route.note else ''}   [{route.name}]"]
    does = [mirror_words(mirror) for mirror in route.mirrors]
    if len(does) == 1:
        return [f"{at:>3}. {who}: {does[0]}   [{route.name}]"]
    return [f"{at:>3}. {who}: {len(does)} copies   [{route.name}]", *(f"       {one}" for one in does)]


def _any(texts: list[str]) -> str:
    return " or ".join(texts)


def _test(test: Text) -> str:
    no = "not " if test.invert else ""
    folded = " in any case" if test.ignore_case else ""
    text = {
        "exact": f"{no}{test.value!r}",
        "prefix": f"{no}beginning with {test.value!r}",
        "suffix": f"{no}ending with {test.value!r}",
        "contains": f"{no}with {test.value!r} in it",
        "regex": f"{no}matching {test.value}",
        "segments": f"{no}{test.value} or below",
        "range": f"{no}from {' to below '.join(test.value.split())}" if test.kind == "range" else "",
        "present": "present",
        "absent": "absent",
    }[test.kind]
    return text + folded + (" (or missing)" if test.missing_empty and not test.invert else "")


def block_words(block: Block) -> str:
    """The conditions of a block: `to customer on port 8080 with path …`."""
    parts = []
    if block.hosts:
        names = list(
            dict.fromkeys(
                {"any": "any host", "suffix": f"*{h.value}", "prefix": f"{h.value}*"}.get(h.kind, h.value) + (f":{h.port}" if h.port else "")
                for h in block.hosts
            )
        )
        parts.append(f"to {_any(names[:6])}" + (f" (and {len(names) - 6} more)" if len(names) > 6 else ""))
    if block.authorities:
        parts.append(f"to the authority {_any([_test(test) for test in block.authorities[:6]])}" + (" …" if len(block.authorities) > 6 else ""))
    if block.ports:
        parts.append(f"on port {_any([str(port) for port in block.ports])}")
    if block.methods:
        parts.append(f"with method {_any([test.value if test.kind == 'exact' and not test.invert else _test(test) for test in block.methods])}")
    if block.path is not None:
        parts.append(f"with path {_test(block.path)}")
    parts += [f"with header {one.name} {_test(one.test)}" for one in block.headers]
    parts += [f"with query parameter {one.name} {_test(one.test)}" for one in block.query]
    parts += [f"with cookie {one.name} {_test(one.test)}" for one in block.cookies]
    if block.clients:
        parts.append(f"from {_any([one.text for one in block.clients])}")
    return " ".join(parts) or "of every kind"


def mirror_words(mirror: Mirror) -> str:
    """`50 % go to customer subset version-v2 as HOST-shadow, …`."""
    share = "none go" if mirror.share == 0 else "all go" if mirror.share == MILLION else f"{show_share(mirror.share)} go"
    text = f"{share} to {mirror.to.name}"
    if mirror.target is not None and mirror.target.url != mirror.to.name:
        text += f" ({mirror.target.url})"
    host = mirror.authority or "HOST"
    if mirror.literal is not None:
        text += f" as {mirror.literal}"
    elif mirror.suffix is not None:
        at = host.rfind(":")
        text += f" as {host}{mirror.suffix}" if at < 0 or "]" in host[at:] else f" as {host[:at]}{mirror.suffix}{host[at:]}"
    else:
        text += f" as {host}, without a suffix"
    if mirror.share not in (0, MILLION):
        text += f", chosen by {mirror.sample_by}"
    for how, name, given in mirror.headers:
        if isinstance(given, Text):
            text += f", headers named {_test(given)} removed"
            continue
        value = given.text if isinstance(given, Format) else given
        text += {
            "set": f", {name} set to {value!r}", "add": f", {name}: {value} added", "append": f", {value!r} appended to {name}", "remove": f", {name} removed",
            "set_if_exists": f", {name} set to {value!r} where it is there", "add_if_absent": f", {name}: {value} added where it is not there",
        }[how]  # fmt: skip
    if mirror.path is not None:
        text += {
            "full": f", path {mirror.path.value}", "prefix": f", path prefix {mirror.path.matched} replaced by {mirror.path.value}",
            "regex": f", in the path {mirror.path.matched} replaced by {mirror.path.value!r}",
        }[mirror.path.kind]  # fmt: skip
    if mirror.max_body is not None:
        text += f", bodies up to {show_bytes(mirror.max_body)}"
    if mirror.limit is not None:
        text += f", at most {show_count(mirror.limit)} of them"
    if mirror.trace != "keep":
        text += ", traces not sampled" if mirror.trace == "unsample" else ", trace headers removed"
    return text
