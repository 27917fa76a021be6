# From captured head to the head that is sent (docs/design.md S3, S4). Must not know: where heads come from, where they go.

cdef enum:
    HOPS_MOST = 100
    MARKER_LEN = 20               # x-shadow-replay: 1


cdef struct Sent:                 # what made values are made of
    const uint8_t* p              # the head, with its new path
    const Head* h
    Text host                     # without the suffix
    Text target                   # as it is sent


cdef size_t made_bound(const Rules* r, const Head* h) noexcept nogil:
    cdef size_t n = 0
    cdef size_t most = <size_t>h.length + r.authority_most
    cdef int i, k
    for i in range(r.set_count):
        for k in range(r.sets[i].part_count):
            n += r.sets[i].parts[k].text.n + (most if most < r.sets[i].parts[k].most else r.sets[i].parts[k].most)
    for i in range(r.add_count):
        for k in range(r.adds[i].part_count):
            n += r.adds[i].parts[k].text.n + (most if most < r.adds[i].parts[k].most else r.adds[i].parts[k].most)
    return n


cdef bint part_there(int what, const Text* name, const Sent* s, Text* value) noexcept nogil:
    if what == PART_TEXT:
        value[0] = name[0]
    elif what == PART_HEADER:
        return header_find(s.p, s.h, name[0], value)
    elif what == PART_PATH:
        value[0] = s.target
    elif what == PART_METHOD:
        value.p = s.p
        value.n = s.h.method_len
    elif what == PART_AUTHORITY:
        value[0] = s.host
    elif what == PART_VERSION:
        value.p = s.p + s.h.target_at + s.h.target_len + 1
        value.n = 8
    else:
        return False
    return True


cdef bint part_value(const Part* part, const Sent* s, Text* value) noexcept nogil:
    if not part_there(part.what, &part.text, s, value) and not part_there(part.other, &part.other_text, s, value):
        return False
    if value.n > part.most:
        value.n = part.most
    return True


cdef bint made_empty(const Field* f, const Sent* s) noexcept nogil:
    """A made value that comes out empty, which changes nothing unless it is asked for."""
    cdef Text value
    cdef int i
    if f.part_count == 0 or f.keep_empty:
        return False
    for i in range(f.part_count):
        if part_value(&f.parts[i], s, &value) and value.n:
            return False
    return True


cdef uint8_t* put_value(uint8_t* out, const Field* f, const Sent* s) noexcept nogil:
    cdef Text value
    cdef int i
    if f.part_count == 0:
        return put(out, f.value.p, f.value.n)
    for i in range(f.part_count):
        if part_value(&f.parts[i], s, &value):
            out = put(out, value.p, value.n)
    return out


cdef size_t line_last(const uint8_t* p, const Head* h, Text name, size_t at) noexcept nogil:
    """The last line of this name (lower case); at: one of its lines."""
    cdef size_t i = at
    cdef const uint8_t* lf
    while i < h.length:
        if h.length - i > name.n and p[i + name.n] == 58 and http1_same(p + i, <const char*>name.p, name.n):
            at = i
        lf = <const uint8_t*>memchr(p + i, 10, h.length - i)
        if lf == NULL:
            break
        i = (lf - p) + 1
    return at


cdef inline bint name_fixed(const uint8_t* p, size_t n) noexcept nogil:
    """FIXED_FIELDS but Host and those of one hop, which are dealt with before."""
    return ((n == 14 and http1_same(p, b"content-length", 14)) or (n == 17 and http1_same(p, b"transfer-encoding", 17)) or (n == 2 and http1_same(p, b"te", 2))
            or (n == 7 and (http1_same(p, b"trailer", 7) or http1_same(p, b"upgrade", 7))) or (n == 15 and http1_same(p, b"x-shadow-replay", 15)))


cdef size_t rewrite_bound(const Rules* r, const Head* h) noexcept nogil:
    """No rewritten head is longer."""
    cdef size_t n = <size_t>h.length + 64 + r.suffix.n + r.literal.n + h.target_len
    cdef int i
    for i in range(r.set_count):
        n += r.sets[i].shown.n + r.sets[i].value.n + 4
    for i in range(r.add_count):
        n += r.adds[i].shown.n + r.adds[i].value.n + 4
    if r.made:
        n += made_bound(r, h)
    if r.auth.on:
        n += AUTH_MOST * r.auth.longest
    return n


cdef uint32_t hops_of(const uint8_t* p, const Head* h) noexcept nogil:
    """How often a request was mirrored, as its marker says; most, when that is no number. The head has HEAD_MARKER."""
    cdef Text name, value
    cdef uint32_t hops = 0
    cdef size_t i
    name.p = <const uint8_t*>b"x-shadow-replay"
    name.n = 15
    if not header_find(p, h, name, &value) or value.n == 0 or value.n > 2:
        return HOPS_MOST
    for i in range(value.n):
        if not 48 <= value.p[i] <= 57:
            return HOPS_MOST
        hops = hops * 10 + value.p[i] - 48
    return hops if hops else HOPS_MOST


cdef inline uint8_t* put_marker(uint8_t* out, uint32_t hops) noexcept nogil:
    """hops: 1 to 99."""
    out = put(out, <const uint8_t*>b"x-shadow-replay: ", 17)
    if hops >= 10:
        out[0] = <uint8_t>(48 + hops // 10)
        out += 1
    out[0] = <uint8_t>(48 + hops % 10)
    out[1] = 13
    out[2] = 10
    return out + 3


cdef uint8_t* put_field(uint8_t* out, const Field* f, const Sent* s) noexcept nogil:
    out = put(out, f.shown.p, f.shown.n)
    out = put(out, <const uint8_t*>b": ", 2)
    out = put_value(out, f, s)
    return put(out, <const uint8_t*>b"\r\n", 2)


cdef uint8_t* put_appended(uint8_t* out, const uint8_t* p, size_t at, size_t next_at, size_t colon, const Field* f, const Sent* s) noexcept nogil:
    """The field line p[at:next_at] with a comma and one more value behind its own."""
    cdef size_t last = next_at
    while last > colon + 1 and p[last - 1] <= 32:
        last -= 1
    out = put(out, p + at, last - at)
    if last > colon + 1:
        out = put(out, <const uint8_t*>b",", 1)
    out = put_value(out, f, s)
    return put(out, <const uint8_t*>b"\r\n", 2)


cdef uint8_t* put_host(const Rules* r, uint8_t* out, Text host) noexcept nogil:
    cdef size_t at
    if r.has_literal:
        return put(out, r.literal.p, r.literal.n)
    if not r.has_suffix:
        return put(out, host.p, host.n)
    at = host_split(host.p, host.n)
    out = put(out, host.p, at)
    out = put(out, r.suffix.p, r.suffix.n)
    return put(out, host.p + at, host.n - at)


cdef bint rewrite_named(const uint8_t* p, const Head* h, const uint8_t* name, size_t n) noexcept nogil:
    """The field is named by a Connection field: it ends at the next hop (RFC 9110 7.6.1)."""
    cdef size_t at = h.line_len
    cdef size_t end, i, begin, last, k
    cdef const uint8_t* lf
    cdef bint same
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            return False
        end = lf - p
        if end - at > 10 and p[at + 10] == 58 and http1_same(p + at, b"connection", 10):
            i = at + 11
            while i < end:
                begin = i
                while i < end and p[i] != 44:
                    i += 1
                last = i
                while begin < last and p[begin] <= 32:
                    begin += 1
                while last > begin and p[last - 1] <= 32:
                    last -= 1
                if last - begin == n:
                    same = True
                    for k in range(n):
                        if (p[begin + k] | 32) != (name[k] | 32):
                            same = False
                            break
                    if same:
                        return True
                i += 1
        at = end + 1
    return False


cdef enum TraceField:
    TRACE_NONE = 0
    TRACE_PARENT = 1              # W3C traceparent: 00-id-span-FLAGS
    TRACE_B3 = 2                  # b3: id-span-SAMPLED-parent, or SAMPLED alone
    TRACE_B3_SAMPLED = 3
    TRACE_B3_FLAGS = 4
    TRACE_UBER = 5                # Jaeger: id:span:parent:FLAGS
    TRACE_SW8 = 6                 # SkyWalking: SAMPLE-…
    TRACE_OTHER = 7               # part of a trace context, carries no decision


cdef TraceField trace_field(const uint8_t* p, size_t n) noexcept nogil:
    if n == 11 and http1_same(p, b"traceparent", 11):
        return TRACE_PARENT
    if n == 10 and http1_same(p, b"tracestate", 10):
        return TRACE_OTHER
    if n == 2 and http1_same(p, b"b3", 2):
        return TRACE_B3
    if n > 5 and http1_same(p, b"x-b3-", 5):
        if n == 12 and http1_same(p, b"x-b3-sampled", 12):
            return TRACE_B3_SAMPLED
        if n == 10 and http1_same(p, b"x-b3-flags", 10):
            return TRACE_B3_FLAGS
        return TRACE_OTHER
    if n == 13 and http1_same(p, b"uber-trace-id", 13):
        return TRACE_UBER
    if n == 3 and http1_same(p, b"sw8", 3):
        return TRACE_SW8
    return TRACE_NONE


cdef void trace_unsample(TraceField which, uint8_t* p, size_t n) noexcept nogil:
    """Turns the decision "sampled" off where it stands in the value p[:n]; lengths do not change."""
    cdef size_t i
    cdef int dashes = 0
    if n == 0:
        return
    if which == TRACE_PARENT or which == TRACE_UBER:
        if HTTP1_HEX[p[n - 1]] >= 0:
            i = HTTP1_HEX[p[n - 1]] & 0xE
            p[n - 1] = <uint8_t>(48 + i if i < 10 else 87 + i)
    elif which == TRACE_B3:
        if n == 1:
            p[0] = 48
            return
        for i in range(n):
            if p[i] == 45:
                dashes += 1
                if dashes == 2 and i + 1 < n:
                    p[i + 1] = 48
                    return
    elif which == TRACE_B3_SAMPLED or which == TRACE_B3_FLAGS or which == TRACE_SW8:
        if which == TRACE_B3_SAMPLED and n != 1:
            if n == 4 and http1_same(p, b"true", 4):
                p[0] = 48
                p[1] = p[2] = p[3] = 32
            return
        p[0] = 48


cdef struct Splice:               # the usual rewriting: another Host, and whole lines left out
    uint32_t head_len             # captured
    uint32_t host_at              # captured value
    uint32_t host_len
    uint32_t split                # where in it the suffix goes
    uint32_t out_len              # as sent
    uint32_t out_host_at
    bint marker                   # the marker goes before the empty line
    uint32_t drops
    uint32_t drop_at[4]           # HEAD_DROPS
    uint32_t drop_end[4]


cdef inline bint rewrite_splices(const Rules* r, const Head* h, uint32_t origin_at) noexcept nogil:
    """A Splice does for it, and its Host is a plain one."""
    return (h.host_plain and origin_at == h.target_at and h.hosts == 1 and not r.edits and not (h.flags & (HEAD_NAMES | HEAD_FOLDED | HEAD_BAD_HOST_LINE))
            and not (r.marker and h.flags & HEAD_MARKER) and h.drops <= HEAD_DROPS)


cdef inline void splice_plan(const Rules* r, const Head* h, Splice* s, uint32_t host_len) noexcept nogil:
    cdef uint32_t i, gone
    s.head_len = h.length
    s.host_at = h.host_at
    s.host_len = h.host_len
    s.split = h.host_split
    s.marker = r.marker
    s.out_len = h.length - h.host_len + host_len + (MARKER_LEN if r.marker else 0)
    s.out_host_at = h.host_at
    s.drops = h.drops
    for i in range(h.drops):
        gone = h.drop_end[i] - h.drop_at[i]
        s.drop_at[i] = h.drop_at[i]
        s.drop_end[i] = h.drop_end[i]
        s.out_len -= gone
        if h.drop_at[i] < h.host_at:
            s.out_host_at -= gone


cdef inline uint8_t* put_few(uint8_t* out, const uint8_t* p, size_t n) noexcept nogil:
    """put() for what is mostly up to 32 bytes."""
    cdef size_t i
    if n > 32:
        return put(out, p, n)
    if n >= 16:
        memcpy(out, p, 16)
        memcpy(out + n - 16, p + n - 16, 16)
    elif n >= 8:
        memcpy(out, p, 8)
        memcpy(out + n - 8, p + n - 8, 8)
    elif n >= 4:
        memcpy(out, p, 4)
        memcpy(out + n - 4, p + n - 4, 4)
    else:
        for i in range(n):
            out[i] = p[i]
    return out + n


cdef inline uint8_t* splice_host(const Rules* r, const Splice* s, const uint8_t* p, uint8_t* out) noexcept nogil:
    if r.has_literal:
        return put_few(out, r.literal.p, r.literal.n)
    if not r.has_suffix:
        return put_few(out, p + s.host_at, s.host_len)
    out = put_few(out, p + s.host_at, s.split)
    out = put_few(out, r.suffix.p, r.suffix.n)
    return put_few(out, p + s.host_at + s.split, s.host_len - s.split)


cdef uint8_t* splice_put(const Rules* r, const Splice* s, const uint8_t* p, uint8_t* out) noexcept nogil:
    """The captured head at p as it is sent; out has room for s.out_len bytes. Returns the end."""
    cdef uint32_t at = 0
    cdef uint32_t i
    cdef bint host_done = False
    for i in range(s.drops):
        if not host_done and s.host_at < s.drop_at[i]:
            host_done = True
            out = put(out, p + at, s.host_at - at)
            out = splice_host(r, s, p, out)
            at = s.host_at + s.host_len
        out = put(out, p + at, s.drop_at[i] - at)
        at = s.drop_end[i]
    if not host_done:
        out = put(out, p + at, s.host_at - at)
        out = splice_host(r, s, p, out)
        at = s.host_at + s.host_len
    if s.marker:
        out = put(out, p + at, s.head_len - 2 - at)
        out = put_marker(out, 1)
        at = s.head_len - 2
    return put(out, p + at, s.head_len - at)


cdef size_t rewrite_head(const Rules* r, const uint8_t* p, const Head* h, Text host, uint32_t origin_at, uint8_t* out, uint32_t* host_at,
                         uint32_t* target_at, uint32_t* target_len) noexcept nogil:
    """Writes the head that is sent to out (rewrite_bound bytes); returns its length.

    host, origin_at: of host_of. host_at: offset of the new Host value in out; target_at, target_len: of the target as sent."""
    cdef uint8_t* o = out
    cdef size_t at = h.line_len
    cdef size_t end, next_at, stop, colon, i
    cdef const uint8_t* lf
    cdef bint host_done = False
    cdef bint drop, found
    cdef int k
    cdef TraceField which
    cdef uint64_t set_done = 0
    cdef uint64_t set_empty = 0
    cdef Sent s
    cdef uint8_t* value
    cdef int auth_left = AUTH_MOST
    target_at[0] = h.target_at
    target_len[0] = h.target_len
    if origin_at == h.target_at and h.hosts == 1 and not (h.flags & HEAD_HOP) and not r.edits and not r.marker:
        # the fast case: one splice
        o = put(o, p, h.host_at)
        host_at[0] = h.host_at
        o = put_host(r, o, host)
        o = put(o, p + h.host_at + h.host_len, h.length - h.host_at - h.host_len)
        return o - out
    if (origin_at == h.target_at and h.hosts == 1 and not r.edits and not (h.flags & (HEAD_NAMES | HEAD_FOLDED)) and h.drops <= HEAD_DROPS
            and not (r.marker and h.flags & HEAD_MARKER)):
        # nearly as fast: one splice, and whole lines left out
        at = 0
        for i in range(h.drops):
            if not host_done and h.host_at < h.drop_at[i]:
                host_done = True
                o = put(o, p + at, h.host_at - at)
                host_at[0] = <uint32_t>(o - out)
                o = put_host(r, o, host)
                at = h.host_at + h.host_len
            o = put(o, p + at, h.drop_at[i] - at)
            at = h.drop_end[i]
        if not host_done:
            o = put(o, p + at, h.host_at - at)
            host_at[0] = <uint32_t>(o - out)
            o = put_host(r, o, host)
            at = h.host_at + h.host_len
        if r.marker:
            o = put(o, p + at, h.length - 2 - at)
            o = put_marker(o, 1)
            at = h.length - 2
        o = put(o, p + at, h.length - at)
        return o - out
    o = put(o, p, h.target_at)
    if origin_at != h.target_at:
        stop = h.target_at + h.target_len
        value = o
        if origin_at == stop and h.method_len == 7 and memcmp(p, b"OPTIONS", 7) == 0:
            o[0] = 42             # RFC 9112 3.2.4: the whole server
            o += 1
        elif origin_at == stop or p[origin_at] != 47:
            o[0] = 47
            o += 1
        o = put(o, p + origin_at, stop - origin_at)
        target_len[0] = <uint32_t>(o - value)
    else:
        o = put(o, p + h.target_at, h.target_len)
    o = put(o, p + h.target_at + h.target_len, h.line_len - h.target_at - h.target_len)
    if h.hosts == 0:
        o = put(o, <const uint8_t*>b"Host: ", 6)
        host_at[0] = <uint32_t>(o - out)
        o = put_host(r, o, host)
        o = put(o, <const uint8_t*>b"\r\n", 2)
        host_done = True
    s.p = p
    s.h = h
    s.host = host
    s.target.p = out + h.target_at
    s.target.n = target_len[0]
    if r.made:
        for k in range(r.set_count):
            if made_empty(&r.sets[k], &s):
                set_empty |= <uint64_t>1 << k
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            break
        end = lf - p
        stop = end
        if stop > at and p[stop - 1] == 13:
            stop -= 1
        if stop == at:
            break                 # the empty line
        next_at = end + 1
        while next_at < h.length and (p[next_at] == 32 or p[next_at] == 9):
            lf = <const uint8_t*>memchr(p + next_at, 10, h.length - next_at)
            next_at = (lf - p) + 1 if lf != NULL else h.length
        colon = at
        while colon < stop and p[colon] != 58:
            colon += 1
        i = colon - at
        drop = False
        if i == 4 and http1_same(p + at, b"host", 4):
            if not host_done:
                host_done = True
                o = put(o, p + at, h.host_at - at)
                host_at[0] = <uint32_t>(o - out)
                o = put_host(r, o, host)
                o = put(o, p + h.host_at + h.host_len, next_at - h.host_at - h.host_len)
            at = next_at
            continue
        if h.flags & HEAD_HOP:
            if ((i == 10 and (http1_same(p + at, b"connection", 10) or http1_same(p + at, b"keep-alive", 10)))
                    or (i == 16 and http1_same(p + at, b"proxy-connection", 16)) or (i == 6 and http1_same(p + at, b"expect", 6))):
                drop = True
            elif h.flags & HEAD_NAMES and not ((i == 14 and http1_same(p + at, b"content-length", 14)) or (i == 17 and http1_same(p + at, b"transfer-encoding", 17))):
                drop = rewrite_named(p, h, p + at, i)
        if r.marker and i == 15 and http1_same(p + at, b"x-shadow-replay", 15):
            drop = True
        if not drop and r.edits:
            for k in range(r.remove_count):
                if r.removes[k].n == i and http1_same(p + at, <const char*>r.removes[k].p, i):
                    drop = True
            for k in range(r.pattern_count):
                if not drop and test_names(&r.patterns[k], p + at, i) and not name_fixed(p + at, i):
                    drop = True
            found = False
            for k in range(r.set_count):
                if not drop and not found and r.sets[k].name.n == i and not (set_empty >> k) & 1 and http1_same(p + at, <const char*>r.sets[k].name.p, i):
                    if r.sets[k].how == CHANGE_ADD_IF_ABSENT:
                        set_done |= <uint64_t>1 << k
                    elif r.sets[k].how == CHANGE_APPEND:
                        if at == line_last(p, h, r.sets[k].name, at):
                            o = put_appended(o, p, at, next_at, colon, &r.sets[k], &s)
                            set_done |= <uint64_t>1 << k
                            found = True
                    else:
                        found = True
                        if not (set_done >> k) & 1:
                            o = put_field(o, &r.sets[k], &s)
                            set_done |= <uint64_t>1 << k
            if found:
                at = next_at
                continue
            if r.auth.on and not drop and next_at == end + 1:      # a folded line is left alone
                i = colon + 1
                while i < stop and (p[i] == 32 or p[i] == 9):
                    i += 1
                k = 0
                while stop - k > i and (p[stop - k - 1] == 32 or p[stop - k - 1] == 9):
                    k += 1
                value = auth_field(r.auth, p, colon - at, i, stop - k, next_at, at, o, &auth_left) if colon < stop and i < stop else NULL
                if value != NULL:
                    o = value
                    at = next_at
                    continue
                i = colon - at
            if r.trace != TRACE_KEEP and not drop:
                which = trace_field(p + at, i)
                if which != TRACE_NONE and r.trace == TRACE_DROP:
                    drop = True
                elif which != TRACE_NONE and which != TRACE_OTHER:
                    value = o
                    o = put(o, p + at, next_at - at)
                    colon += 1
                    while colon < stop and (p[colon] == 32 or p[colon] == 9):
                        colon += 1
                    while stop > colon and (p[stop - 1] == 32 or p[stop - 1] == 9):
                        stop -= 1
                    trace_unsample(which, value + (colon - at), stop - colon)
                    at = next_at
                    continue
        if not drop:
            o = put(o, p + at, next_at - at)
        at = next_at
    for k in range(r.set_count):
        if not ((set_done | set_empty) >> k) & 1 and r.sets[k].how != CHANGE_SET_IF_EXISTS:
            o = put_field(o, &r.sets[k], &s)
    for k in range(r.add_count):
        if not made_empty(&r.adds[k], &s):
            o = put_field(o, &r.adds[k], &s)
    if r.marker:
        o = put_marker(o, hops_of(p, h) % HOPS_MOST + 1 if h.flags & HEAD_MARKER else 1)
    o = put(o, <const uint8_t*>b"\r\n", 2)
    return o - out
