"""Names of services into addresses: what a mesh asks its registry, the user says with a map (`--resolve`)."""

from __future__ import annotations

import re
from dataclasses import replace

from replay.errors import UsageError
from replay.policy.diagnose import Diagnoses, nearest
from replay.policy.kubernetes import short_names
from replay.policy.model import Destination, Policy
from replay.settings import Target, target

__all__ = ["Names", "resolve"]

_PLACES = ("host", "name", "namespace", "subset", "port")


class Names:
    """The map. words: of `--resolve`: `NAME[:SUBSET][:PORT]=ADDRESS:PORT`, `@FILE` of such lines or of YAML, or a template
    such as `{name}-{subset}.{namespace}.svc:{port}`. Raises UsageError."""

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        self.entries: dict[str, Target] = {}
        self.templates: list[str] = []
        self.used: set[str] = set()
        for word in words:
            for text in _file(word[1:]) if word.startswith("@") else [word]:
                self._add(text)

    def _add(self, text: str) -> None:
        name, equals, address = text.rpartition("=")
        if not equals:
            if "{" not in text:
                raise UsageError(
                    f"--resolve {text!r}: there is no =; write NAME:SUBSET=ADDRESS:PORT, or a template with {{name}}, {{subset}}, {{namespace}}, {{port}}"
                )
            unknown = [one for one in re.findall(r"\{(.*?)\}", text) if one not in _PLACES]
            if unknown:
                raise UsageError(f"--resolve {text!r}: {{{unknown[0]}}} is not known{nearest(unknown[0], _PLACES)}")
            self.templates.append(text)
            return
        try:
            self.entries[name.strip()] = target(address.strip())
        except UsageError as error:
            raise UsageError(f"--resolve {text!r}: {str(error).removeprefix('--to ')}") from None

    def find(self, to: Destination) -> Target | None:
        """The address of a destination; None when there is none for it. The most exact entry wins."""
        for key in _keys(to):
            if key in self.entries:
                self.used.add(key)
                return self.entries[key]
        if to.url is not None:
            return target(to.url)
        template = self._template(to)
        values = _values(to)
        return None if template is None else target(re.sub(r"\{(.*?)\}", lambda found: values[found[1]], template))

    def _template(self, to: Destination) -> str | None:
        values = _values(to)
        return next((one for one in self.templates if all(values[place] for place in re.findall(r"\{(.*?)\}", one))), None)

    def without_subset(self, to: Destination) -> str | None:
        """The template that gives this destination its address, where the destination has a subset and the template does not use it."""
        if not to.subset or to.url is not None or any(key in self.entries for key in _keys(to)):
            return None
        template = self._template(to)
        return template if template is not None and "{subset}" not in template else None

    def missing(self, to: Destination) -> str:
        """What a template needs that the policy does not say of this destination; "" for nothing."""
        values = _values(to)
        wanted = {one for template in self.templates for one in re.findall(r"\{(.*?)\}", template) if not values[one]}
        return ", ".join(one for one in _PLACES if one in wanted)


def _values(to: Destination) -> dict[str, str]:
    name = to.host.partition(".")[0]
    return {"host": to.host, "name": name, "namespace": to.namespace, "subset": to.subset, "port": str(to.port or "")}


def _keys(to: Destination) -> list[str]:
    hosts = short_names(to.host, to.namespace) if to.host else [to.name]
    ends = (
        [f":{to.subset}:{to.port}", f":{to.subset}"] if to.subset and to.port else [f":{to.subset}"] if to.subset else [f":{to.port}", ""] if to.port else [""]
    )
    return list(dict.fromkeys([to.name, *(host + end for end in ends for host in hosts)]))


def _file(path: str) -> list[str]:
    from replay.policy.tree import read

    diagnoses = Diagnoses()
    documents = read(path, diagnoses)
    if len(documents) == 1 and documents[0].kind == "map" and not any(one.level == "error" for one in diagnoses.found):
        return [f"{name}={node.text()}" for name, node in documents[0].pairs()]
    with open(path, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip() and not line.lstrip().startswith("#")]


def resolve(policy: Policy, names: Names, diagnoses: Diagnoses, *, require: bool = True) -> Policy:
    """The policy with the target of each mirror. require: a destination without an address is an error."""
    mirrors = []
    for mirror in policy.mirrors:
        found = names.find(mirror.to)
        lost = names.without_subset(mirror.to)
        if lost is not None:
            diagnoses.warning(
                mirror.where.file,
                mirror.where.line,
                "",
                f"--resolve {lost!r} has no {{subset}}: the copies for {mirror.to.name} go to every version of the service, the one in production too",
            )
        if found is None and require:
            key = min(_keys(mirror.to)[1:] or [mirror.to.name], key=lambda one: (one.count(".") != 1, len(one)))
            given = "" if not names.entries else f" (given: {', '.join(sorted(names.entries))})"
            given += f" (the policy does not say its {names.missing(mirror.to)}, which the template needs)" if names.missing(mirror.to) else ""
            diagnoses.error(
                mirror.where.file, mirror.where.line, "", f"the address of {mirror.to.name} is not known{given}; give it with --resolve '{key}=ADDRESS:PORT'"
            )
        mirrors.append(replace(mirror, target=found))
    known = {key for mirror in policy.mirrors for key in _keys(mirror.to)}
    for name in names.entries:
        if name not in names.used:
            diagnoses.warning("--resolve", 0, "", f"{name!r} is the address of no destination of this policy{nearest(name, known)}")
    return policy.with_mirrors(tuple(mirrors))
