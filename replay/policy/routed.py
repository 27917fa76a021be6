"""A policy, or the headers that Envoy adds to a copy, into a selection: what `--policy`, `--mesh`, `--resolve` and `--mirror-headers` do."""

from __future__ import annotations

import dataclasses

from replay.errors import UsageError
from replay.settings import Selection, target

__all__ = ["SAID_BY_A_POLICY", "mirror_headers", "routed"]

#: Options that a policy says itself.
SAID_BY_A_POLICY = ("percent", "sample_by", "shadow_suffix", "set_host", "set_header", "add_header", "remove_header", "trace", "to")


def routed(
    chosen: Selection, words: tuple[str, ...], *, mesh: str | None, resolve: tuple[str, ...], namespace: str, headers: str, to: tuple[str, ...]
) -> tuple[Selection, tuple[str, ...]]:
    """The selection with the policy in files and folders in it, and its warnings. Without one, `headers` are added to copies for `to`.

    headers: as `mirror_headers` gives it. Raises PolicyError, UsageError."""
    if not words:
        for name, value in (("--mesh", mesh), ("--resolve", resolve)):
            if value:
                raise UsageError(f"{name} belongs to a policy; give one with --policy")
        if headers != "none":
            address = _proxy(headers, to)
            chosen = dataclasses.replace(
                chosen,
                set_headers=(*chosen.set_headers, (b"x-envoy-internal", b"true")),
                append_headers=(*chosen.append_headers, (b"x-forwarded-for", address.encode())),
            )
        return chosen, ()
    from replay.policy.compiled import compile_policy
    from replay.policy.load import load
    from replay.policy.names import Names

    loaded, diagnoses = load(words, mesh=mesh, names=Names(resolve), namespace=namespace)
    urls = tuple(mirror.target.url for mirror in loaded.mirrors if mirror.target is not None)
    routing = compile_policy(loaded, like_envoy=headers != "none", proxy=_proxy(headers, urls))
    return dataclasses.replace(chosen, routing=routing), tuple(str(one) for one in diagnoses.warnings)


def _proxy(headers: str, urls: tuple[str, ...]) -> str:
    """The address that is appended to x-forwarded-for: the one given, else that of this machine towards the first target."""
    given = headers.partition(":")[2]
    if given or not urls:
        return given or "127.0.0.1"
    import socket

    to = target(urls[0])
    try:
        family, kind, *_, where = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # a datagram socket sends nothing when it connects
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def mirror_headers(text: str) -> str:
    """`none`, `envoy` or `envoy:ADDRESS`. Raises ValueError."""
    import ipaddress

    kind, colon, address = text.partition(":")
    if kind not in ("none", "envoy") or (kind == "none" and colon):
        raise ValueError(f"{text!r} is neither none nor envoy (envoy:ADDRESS for the address that goes into x-forwarded-for)")
    if colon:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f"{address!r} is no address; write envoy:10.0.0.5") from None
    return text
