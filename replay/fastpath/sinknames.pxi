# How often each method and each host came: a table of names with a bound.


cdef int names_init(SinkNames* t, int32_t most) noexcept:
    t.most = most
    t.mask = 2 * <uint32_t>most - 1           # a power of two, half of it used at most
    t.list = <SinkName*>calloc(most, sizeof(SinkName))
    t.slots = <int32_t*>calloc(t.mask + 1, sizeof(int32_t))
    return OK if t.list != NULL and t.slots != NULL else NEED_MORE


cdef int32_t names_find(SinkNames* t, const uint8_t* p, size_t n) noexcept nogil:
    """Index of this name, which may be new; -1 for one too many, or too long."""
    cdef SinkName* name
    cdef uint64_t at
    if t.used and t.list[t.last].length == n and memcmp(t.list[t.last].text, p, n) == 0:
        return t.last
    if n > SINK_NAME:
        return -1
    at = xxh64(p, n, 0) & t.mask
    while t.slots[at]:
        name = &t.list[t.slots[at] - 1]
        if name.length == n and memcmp(name.text, p, n) == 0:
            t.last = t.slots[at] - 1
            return t.last
        at = (at + 1) & t.mask
    if t.used == t.most:
        return -1
    name = &t.list[t.used]
    memcpy(name.text, p, n)
    name.length = <uint32_t>n
    t.last = <int32_t>t.used
    atomic_set(&t.used, t.used + 1)
    t.slots[at] = t.last + 1
    return t.last


cdef inline void names_count(SinkNames* t, int32_t at) noexcept nogil:
    count_add(&t.other if at < 0 else &t.list[at].count, 1)


cdef str sink_text(bytes text):
    """UTF-8, else latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


cdef dict names_dict(SinkNames* t):
    cdef int64_t i
    cdef int64_t n
    got = {}
    for i in range(atomic_get(&t.used)):
        n = count_get(&t.list[i].count)
        if n:
            name = sink_text(t.list[i].text[:t.list[i].length])
            got[name] = got.get(name, 0) + n
    n = count_get(&t.other)
    if n:
        got["other"] = got.get("other", 0) + n
    return got
