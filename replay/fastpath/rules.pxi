# Rules out of plain values, for an Ingest and for each mirror of a policy. `kept` holds the memory that they borrow.
from cpython.ref cimport Py_DECREF, Py_INCREF
import os as _os
import re as _re

SAMPLE_BY = ("request", "connection", "client-ip", "path", "connection:kernel", "header", "cookie", "query")
TRACE = ("keep", "unsample", "drop")
#: fields that decide framing or the connection: the rewriter owns them
FIXED_FIELDS = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection",
                          b"expect", b"upgrade", b"te", b"trailer", b"x-shadow-replay"))


def _fixed(name):
    """Why it is one of FIXED_FIELDS."""
    return "it counts how often a request was mirrored, which ends loops" if name == b"x-shadow-replay" else "it decides the framing or the connection"


cdef void* kept_room(list kept, size_t count, size_t size) except NULL:
    """Zeroed memory for `count` things, and one more."""
    cdef bytes block = bytes((count + 1) * size)
    kept.append(block)
    return <void*><char*>block


cdef Text kept_text(list kept, object value) except *:
    cdef Text t
    cdef bytes held = value.encode("latin-1") if isinstance(value, str) else bytes(value)
    kept.append(held)
    t.p = <const uint8_t*>held
    t.n = len(held)
    return t


cdef Network* kept_networks(list kept, nets) except NULL:
    nets = list(nets)
    cdef Network* out = <Network*>kept_room(kept, len(nets), sizeof(Network))
    cdef bytes address, mask
    cdef int i, k
    for i in range(len(nets)):
        address, bits = nets[i]
        if len(address) != 16 or not 0 <= bits <= 128:
            raise ValueError("a network has 16 bytes and 0 to 128 bits")
        mask = ((1 << 128) - (1 << (128 - bits))).to_bytes(16, "big")
        memcpy(out[i].want, <const uint8_t*>address, 16)
        memcpy(out[i].mask, <const uint8_t*>mask, 16)
        for k in range(2):
            out[i].want[k] &= out[i].mask[k]
    return out


cdef int kept_test(list kept, Test* t, given) except -1:
    """given: (kind, value, folded, inverted, missing_empty); the value of a regex is its compiled pattern, of a range (low, high)."""
    kind, value, folded, inverted, missing_empty = given
    t.kind = TESTS.index(kind)
    t.folded, t.inverted, t.missing_empty = folded, inverted, missing_empty
    if t.kind == TEST_REGEX:
        kept.append(value)
        t.pattern = <PyObject*>value
        value = b""
    elif t.kind == TEST_RANGE:
        t.low, t.high = value
        value = b""
    t.value = kept_text(kept, value.lower() if folded else value)
    return 0


cdef Part* kept_parts(list kept, parts, int* count) except NULL:
    """parts: (what, text, most), (what, text, most, what, text): the latter where the first one is not there."""
    parts = list(parts)
    cdef Part* out = <Part*>kept_room(kept, len(parts), sizeof(Part))
    cdef int i
    if len(parts) > 32:
        raise ValueError("a format has at most 32 parts")
    count[0] = len(parts)
    for i in range(count[0]):
        what, text, most, other, other_text = parts[i]
        out[i].what, out[i].other = PARTS.index(what), PARTS.index(other)
        out[i].text, out[i].other_text = kept_text(kept, text), kept_text(kept, other_text)
        out[i].most = 0xFFFFFFFF if most is None else most
    return out


cdef Field* kept_fields(list kept, changes, int* count) except NULL:
    """changes: (how, name, value); how is one of CHANGES; a value that is made for each request is (parts, keep_empty)."""
    changes = list(changes)
    cdef Field* out = <Field*>kept_room(kept, len(changes), sizeof(Field))
    cdef int i
    count[0] = len(changes)
    for i in range(count[0]):
        how, name, value = changes[i]
        if not name or not all(HTTP1_TOKEN[c] for c in name):
            raise ValueError(f"{name!r} is no header name (RFC 9110 5.1)")
        made = isinstance(value, tuple)
        if any(c < 32 and c != 9 or c == 127 for c in (b"".join(part[1] for part in value[0]) if made else value)):
            raise ValueError(f"the value of header {name.decode('latin-1')} holds a control byte")
        if name.lower() in FIXED_FIELDS:
            raise ValueError(f"the header {name.decode('latin-1')} cannot be set here: {_fixed(name.lower())}" + (" (use --set-host)" if name.lower() == b"host" else ""))
        out[i].name = kept_text(kept, name.lower())
        out[i].shown = kept_text(kept, name)
        out[i].value = kept_text(kept, b"" if made else value)
        if made:
            out[i].parts = kept_parts(kept, value[0], &out[i].part_count)
            out[i].keep_empty = value[1]
        out[i].how = CHANGES.index(how)
    return out


cdef int rules_sample(Rules* r, int64_t share, str sample_by, uint64_t seed, list kept) except -1:
    if not 0 <= share <= 1_000_000:
        raise ValueError("share is in parts per million, 0 to 1,000,000")
    r.all = share == 1_000_000
    r.threshold = min((int(share) << 64) // 1_000_000, (1 << 64) - 1)
    kind, _, name = (sample_by, "", "") if sample_by == "connection:kernel" else sample_by.partition(":")
    if kind not in SAMPLE_BY or (kind in SAMPLE_BY[5:]) != bool(name):
        raise ValueError(f"sample_by: {sample_by!r} is none of {', '.join(SAMPLE_BY)} (header, cookie and query with :NAME)")
    r.sample_by = SAMPLE_BY.index(kind)
    r.sample_name = kept_text(kept, name.lower() if kind == "header" else name)
    r.seed = seed
    return 0


cdef int rules_rewrite(Rules* r, suffix, set_host, sets, adds, removes, str trace, list kept) except -1:
    """sets, adds: (how, name, value). removes: names, or tests on names in lower case."""
    cdef int i
    r.max_hops = 1
    r.has_suffix = suffix is not None
    r.suffix = kept_text(kept, suffix or b"")
    r.has_literal = set_host is not None
    r.literal = kept_text(kept, set_host or b"")
    r.sets = kept_fields(kept, sets, &r.set_count)
    r.adds = kept_fields(kept, adds, &r.add_count)
    if r.set_count > 64:
        raise ValueError("at most 64 headers can be set")
    for i in range(r.set_count):
        r.made += r.sets[i].part_count
    for i in range(r.add_count):
        r.made += r.adds[i].part_count
    patterns = [one for one in removes if isinstance(one, tuple)]
    r.patterns = <Test*>kept_room(kept, len(patterns), sizeof(Test))
    r.pattern_count = len(patterns)
    for i in range(r.pattern_count):
        kept_test(kept, &r.patterns[i], patterns[i])
        if r.patterns[i].kind not in (TEST_REGEX, TEST_RANGE):
            if not r.patterns[i].folded and patterns[i][1] != patterns[i][1].lower():
                r.patterns[i].kind = TEST_ABSENT      # no name is like that: they are in lower case
            r.patterns[i].folded = True
    removes = [n.lower() for n in removes if not isinstance(n, tuple)]
    r.removes = <Text*>kept_room(kept, len(removes), sizeof(Text))
    r.remove_count = len(removes)
    for i in range(r.remove_count):
        if removes[i] in FIXED_FIELDS:
            raise ValueError(f"the header {removes[i].decode('latin-1')} cannot be removed: {_fixed(removes[i])}")
        r.removes[i] = kept_text(kept, removes[i])
    if trace not in TRACE:
        raise ValueError(f"trace: {trace!r} is none of {', '.join(TRACE)}")
    r.trace = TRACE.index(trace)
    r.marker = suffix is None and set_host is None
    r.edits = r.set_count > 0 or r.add_count > 0 or r.remove_count > 0 or r.pattern_count > 0 or r.trace != TRACE_KEEP
    return 0
