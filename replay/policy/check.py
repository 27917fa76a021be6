"""What a policy says that cannot be meant: routes that nothing reaches, conditions that exclude each other, mirrors that mirror nothing."""

from __future__ import annotations

from replay.policy.diagnose import Diagnoses
from replay.policy.model import Block, Field, Host, Policy, Text

__all__ = ["check"]


def check(policy: Policy, diagnoses: Diagnoses) -> None:
    """Adds errors and warnings to `diagnoses`."""
    seen: list[tuple[Block, str]] = []
    for route in policy.routes:
        file, line = route.where.file, route.where.line
        for block in route.blocks:
            for name, fields in (("header", block.headers), ("query parameter", block.query), ("cookie", block.cookies)):
                for a, b in _contradictions(fields):
                    diagnoses.error(
                        file, line, "", f"{route.name}: the conditions on the {name} {a.name!r} exclude each other ({_words(a.test)}; {_words(b.test)})"
                    )
            if block.ports and block.hosts and all(host.port is not None and host.port not in block.ports for host in block.hosts):
                diagnoses.warning(
                    file, line, "", f"{route.name}: the ports of host and port differ; this holds only where the connection's port is not the host's"
                )
        if policy.language == "replay":
            covered = [next((name for earlier, name in seen if _covers(earlier, block)), None) for block in route.blocks]
            if covered and all(covered):
                diagnoses.warning(file, line, "", f"{route.name}: no request reaches this route; {covered[0]!r} matches all of them before")
        seen += [(block, route.name) for block in route.blocks]
        for mirror in route.mirrors:
            if mirror.share == 0:
                diagnoses.warning(mirror.where.file, mirror.where.line, "", f"{route.name}: 0 %: nothing goes to {mirror.to.name}")
        names = [mirror.to.name for mirror in route.mirrors if mirror.share]
        for name in dict.fromkeys(one for one in names if names.count(one) > 1):
            diagnoses.warning(file, line, "", f"{route.name}: {name} gets {names.count(name)} copies of a request")
    if not any(mirror.share for mirror in policy.mirrors):
        file, line = (policy.routes[0].where.file, policy.routes[0].where.line) if policy.routes else (policy.files[0] if policy.files else "", 0)
        diagnoses.warning(file, line, "", "no route mirrors anything")


def _words(test: Text) -> str:
    return f"{'not ' if test.invert else ''}{test.kind}{f' {test.value}' if test.value else ''}"


def _contradictions(fields: tuple[Field, ...]) -> list[tuple[Field, Field]]:
    found = []
    for at, a in enumerate(fields):
        for b in fields[at + 1 :]:
            if a.name != b.name:
                continue
            one, two = a.test, b.test
            exact = one.kind == two.kind == "exact" and not (one.invert or two.invert or one.ignore_case or two.ignore_case) and one.value != two.value
            opposite = one.kind == two.kind == "exact" and one.value == two.value and one.invert != two.invert and one.ignore_case == two.ignore_case
            gone = "absent" in (one.kind, two.kind) and not (one.invert or two.invert) and one.kind != two.kind
            if exact or opposite or gone:
                found.append((a, b))
    return found


def _covers(a: Block, b: Block) -> bool:
    """Whatever matches `b` matches `a`; False where that is not plain to see."""
    if a.hosts and not (b.hosts and all(any(_host(one, two) for one in a.hosts) for two in b.hosts)):
        return False
    if a.authorities and not (b.authorities and set(b.authorities) <= set(a.authorities)):
        return False
    if a.ports and not (b.ports and set(b.ports) <= set(a.ports)):
        return False
    if a.path is not None and not (b.path is not None and _path(a.path, b.path)):
        return False
    if a.methods and not (b.methods and set(b.methods) <= set(a.methods)):
        return False
    if a.clients and not (b.clients and set(b.clients) <= set(a.clients)):
        return False
    return set(a.headers) <= set(b.headers) and set(a.query) <= set(b.query) and set(a.cookies) <= set(b.cookies)


def _host(a: Host, b: Host) -> bool:
    if a.port is not None and a.port != b.port:
        return False
    if a.kind == "any" or (a.kind, a.value) == (b.kind, b.value):
        return True
    if a.kind == "suffix":
        return b.kind in ("exact", "suffix") and b.value.endswith(a.value) and len(b.value) > len(a.value)
    return a.kind == "prefix" and b.kind in ("exact", "prefix") and b.value.startswith(a.value) and len(b.value) > len(a.value)


def _path(a: Text, b: Text) -> bool:
    if a == b:
        return True
    if a.invert or b.invert or a.ignore_case or b.ignore_case:
        return False
    if a.kind == "prefix":
        return b.kind in ("exact", "prefix", "segments") and b.value.startswith(a.value)
    return a.kind == "segments" and b.kind in ("exact", "segments") and (b.value == a.value or b.value.startswith(a.value + "/"))
