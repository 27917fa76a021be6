"""From a captured head to the head that is sent: docs/design.md S3 and S4, in the plainest Python. Must not know: streams, framing.

Sources: Envoy 1.40 by experiment (tests/vectors/shadow-host.json), RFC 9110 7.6.1 (fields of one hop), RFC 9112 3.2.1, 3.2.2, 3.2.4 (forms of the target).
"""

import re
from collections.abc import Callable

BLANKS = b" \t"
# What Envoy answers with 400 when it stands in a host.
REFUSED = frozenset(b'/?#\\<>"|{}^` \x7f') | frozenset(range(0x20)) | frozenset(range(0x80, 0x100))
ABSOLUTE = re.compile(rb"(?i)(https?)://([^/?#]*)([^#]*)")
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
# Of one hop (S3); the second set stays even when Connection names it.
ONE_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"expect"))
NEVER_NAMED = frozenset((b"host", b"content-length", b"transfer-encoding"))
# That no policy removes (S5): they decide the framing, or are our own.
NEVER_CHANGED = NEVER_NAMED | {b"te", b"trailer", b"upgrade", b"x-shadow-replay"}


def suffix_at(host):
    """Where the suffix goes: at the last colon, unless a closing bracket stands behind it; else at the end."""
    colon = host.rfind(b":")
    return colon if colon >= 0 and b"]" not in host[colon:] else len(host)


def shadow_host(host: bytes, suffix: bytes = b"-shadow") -> bytes:
    """The host with the suffix before its port."""
    at = suffix_at(host)
    return host[:at] + suffix + host[at:]


def carries_suffix(host: bytes, suffix: bytes = b"-shadow") -> bool:
    """S4: mirrored already (`loop`); hosts are compared without case."""
    return bool(suffix) and host[: suffix_at(host)].lower().endswith(suffix.lower())


def is_refused(host: bytes) -> bool:
    """A byte that no host may hold (`bad_host`). An empty host is fine."""
    return any(byte in REFUSED for byte in host)


def split_target(method, target):
    """(authority or None, origin form); None for an absolute form that Envoy refuses.

    The authority is without user info. An absolute form without a path stands for `/`, with OPTIONS and no query for `*`.
    """
    if method == b"CONNECT":
        return None, target
    found = ABSOLUTE.fullmatch(target)
    if not found:
        return None if SCHEME.match(target) else (None, target)
    authority, rest = found[2].rpartition(b"@")[2], found[3]
    if not authority:
        return None
    if not rest:
        rest = b"*" if method == b"OPTIONS" else b"/"
    elif rest[:1] == b"?":
        rest = b"/" + rest
    return authority, rest


def split_head(head):
    """(request line without its end, its end, [field line with its end, a folded one as one], empty line)."""
    lines = re.findall(rb"[^\n]*\n", head)
    first, rest, empty = lines[0], lines[1:-1], lines[-1]
    bare = first.removesuffix(b"\n").removesuffix(b"\r")
    fields: list[bytes] = []
    for line in rest:
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] += line
        else:
            fields.append(line)
    return bare, first[len(bare) :], fields, empty


def name_of(field):
    return field.partition(b":")[0].strip(BLANKS).lower()


def value_of(field):
    return field.partition(b":")[2].strip(b" \t\r\n")


def host_of(head: bytes) -> tuple[str | None, bytes | None]:
    """(reason to withhold: no_host, bad_host or None; the host as the primary has it)."""
    line, _, fields, _ = split_head(head)
    method, target, _ = line.split(b" ", 2)
    parts = split_target(method, target)
    if parts is None:
        return "bad_host", None
    hosts = [f for f in fields if name_of(f) == b"host"]
    if parts[0] is not None:
        host = parts[0]
    elif hosts:
        if b"\n" in hosts[0].rstrip(b"\r\n"):
            return "bad_host", None
        host = value_of(hosts[0])
    else:
        return "no_host", None
    return ("bad_host" if is_refused(host) else None), host


def made(parts, fields, line, host, origin):
    """A value that is made for a request: (what, text, most, other, other_text) for each part; what is missing is empty."""
    method, _, version = line.split(b" ", 2)

    def one(what, text):
        if what == "header":
            return next((value_of(field.partition(b"\n")[0]) for field in fields if name_of(field) == text), None)
        return {"text": text, "path": origin, "method": method, "authority": host, "version": version}.get(what)

    value = b""
    for what, text, most, other, other_text in parts:
        found = one(what, text)
        found = one(other, other_text) if found is None else found
        value += (found or b"")[:most]
    return value


def rewrite_head(
    head: bytes,
    suffix: bytes | None = b"-shadow",
    set_host: bytes | None = None,
    set_headers: tuple[tuple[bytes, bytes], ...] = (),
    add_headers: tuple[tuple[bytes, bytes], ...] = (),
    remove_headers: tuple[bytes, ...] = (),
    *,
    changes: tuple[tuple[str, bytes, bytes | tuple[tuple[tuple[str, bytes, int | None, str | None, bytes], ...], bool]], ...] = (),
    removes: Callable[[bytes], bool] = lambda name: False,
    authority: bytes | None = None,
    path: Callable[[bytes], bytes] | None = None,
    marker: bool = False,
) -> bytes:
    """The head that is sent, of a head that may be sent (not withheld).

    A header that is set stands where its first line stood, else at the end; added ones come after.
    changes: (how, name, value) of a mirror, instead of the three before; a value may be (parts, keep_empty), see `made`.
    removes: of a name in lower case: it goes as well.  authority: stands for the host, before the suffix.  path: old to new, without
    the query.  marker: x-shadow-replay is added.
    """
    line, end, fields, empty = split_head(head)
    method, target, version = line.split(b" ", 2)
    _, host = host_of(head)
    parts = split_target(method, target)
    assert host is not None and parts is not None
    host = host if authority is None else authority
    origin = parts[1]
    if path is not None and origin.startswith(b"/"):
        old, mark, query = origin.partition(b"?")
        origin = path(old) + mark + query
    done_changes: list[tuple[str, bytes, bytes]] = []
    for how, name, value in changes:
        if isinstance(value, tuple):
            parts_of, keep_empty = value
            value = made(parts_of, fields, line, host, origin)
            if not value and not keep_empty:
                continue
        done_changes.append((how, name, value))
    set_headers = (*set_headers, *((name, value) for how, name, value in done_changes if how in ("set", "append", "set_if_exists", "add_if_absent")))
    how_of = {name.lower(): how for how, name, _ in done_changes if how not in ("add", "remove")}
    add_headers = (*add_headers, *((name, value) for how, name, value in done_changes if how == "add"))
    remove_headers = (*remove_headers, *(name for how, name, _ in changes if how == "remove"), *([b"x-shadow-replay"] if marker else []))
    new_host = set_host if set_host is not None else shadow_host(host, suffix) if suffix is not None else host

    named = {option.strip(BLANKS).lower() for f in fields if name_of(f) == b"connection" for option in value_of(f).split(b",")}
    gone = ONE_HOP | (named - NEVER_NAMED) | {n.lower() for n in remove_headers}
    gone |= {name_of(f) for f in fields if removes(name_of(f))} - NEVER_CHANGED
    to_set = {name.lower(): (name, value) for name, value in set_headers}
    out, done = [], set()
    if not any(name_of(f) == b"host" for f in fields):
        out.append(b"Host: " + new_host + b"\r\n")
    for at, field in enumerate(fields):
        name = name_of(field)
        if name == b"host":
            if name not in done:
                value = value_of(field)
                line_end = len(field.rstrip(b"\r\n"))
                begin = field.index(value, field.index(b":") + 1) if value else line_end
                out.append(field[:begin] + new_host + field[begin + len(value) :])
            done.add(name)
        elif name in to_set and name not in gone:
            how = how_of.get(name, "set")
            if how == "add_if_absent" or (how == "append" and any(name_of(later) == name for later in fields[at + 1 :])):
                out.append(field)
            elif how == "append":
                kept = field.rstrip(b"\r\n \t")
                out.append(kept + (b"" if kept.endswith(b":") and not value_of(field) else b",") + to_set[name][1] + b"\r\n")
            elif name not in done:
                out.append(b"%s: %s\r\n" % to_set[name])
            done.add(name)
        elif name not in gone:
            out.append(field)
    out += [b"%s: %s\r\n" % pair for name, pair in to_set.items() if name not in done and how_of.get(name) != "set_if_exists"]
    out += [b"%s: %s\r\n" % pair for pair in add_headers]
    out += [b"x-shadow-replay: 1\r\n"] if marker else []
    return b"".join([method, b" ", origin, b" ", version, end, *out, empty])
