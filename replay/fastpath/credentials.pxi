# Captured credentials replaced by those that the shadow service knows (`--auth-file`). Must not know: where heads come from or go.

cdef struct Text:
    const uint8_t* p              # borrows from a bytes object that the owner of the Rules keeps alive
    size_t n

cdef enum:
    AUTH_MOST = 16                # values of one head that are replaced

cdef struct Auth:                 # owned by one Ingest
    bint on
    bint one                      # each Authorization gets `token`
    Text token
    Text* olds                    # hash table; p NULL: free
    Text* news
    uint32_t mask
    size_t longest                # of all new ones
    int64_t replaced              # values, in heads of selected requests
    int64_t unknown               # Authorization that is not in the map: left as it is


cdef inline uint8_t* put(uint8_t* out, const uint8_t* p, size_t n) noexcept nogil:
    memcpy(out, p, n)
    return out + n


cdef const Text* auth_find(const Auth* a, const uint8_t* p, size_t n) noexcept nogil:
    """The new one for this value; NULL: there is none."""
    cdef uint32_t slot = <uint32_t>xxh64(p, n, 0) & a.mask
    while a.olds[slot].p != NULL:
        if a.olds[slot].n == n and memcmp(a.olds[slot].p, p, n) == 0:
            return &a.news[slot]
        slot = (slot + 1) & a.mask
    return NULL


cdef inline bint auth_has_blank(const uint8_t* p, size_t n) noexcept nogil:
    return memchr(p, 32, n) != NULL


cdef uint8_t* auth_value(Auth* a, const uint8_t* p, size_t n, uint8_t* out, int* left, bint* done) noexcept nogil:
    """`SCHEME CREDENTIALS` or a bare value: a new one in its place. A new one with a blank is a whole value, else the captured scheme stays."""
    cdef size_t scheme = 0
    cdef const Text* new = NULL
    done[0] = False
    while scheme < n and p[scheme] != 32:
        scheme += 1
    while scheme < n and p[scheme] == 32:
        scheme += 1
    if scheme == n:
        scheme = 0                # there is no scheme
    if a.one:
        new = &a.token
    else:
        new = auth_find(a, p, n)
        if new == NULL:
            new = auth_find(a, p + scheme, n - scheme)
        elif not auth_has_blank(new.p, new.n) and scheme and auth_has_blank(p, n):
            scheme = 0            # a whole value was named, so a whole value replaces it
    if new == NULL or left[0] == 0:
        return put(out, p, n)
    left[0] -= 1
    done[0] = True
    if scheme and not auth_has_blank(new.p, new.n):
        out = put(out, p, scheme)
    return put(out, new.p, new.n)


cdef uint8_t* auth_cookies(Auth* a, const uint8_t* p, size_t n, uint8_t* out, int* left) noexcept nogil:
    """Each cookie whose value is in the map gets the new one."""
    cdef size_t at = 0
    cdef size_t begin, end
    cdef const Text* new
    while at < n:
        begin = at
        while at < n and p[at] != 61 and p[at] != 59:
            at += 1
        if at < n and p[at] == 61:
            at += 1
            end = at
            while end < n and p[end] != 59:
                end += 1
            out = put(out, p + begin, at - begin)
            new = auth_find(a, p + at, end - at) if left[0] else NULL
            if new != NULL:
                left[0] -= 1
                count_add(&a.replaced, 1)
                out = put(out, new.p, new.n)
            else:
                out = put(out, p + at, end - at)
            at = end
        else:
            out = put(out, p + begin, at - begin)
        if at < n:
            out = put(out, p + at, 1)
            at += 1
    return out


cdef uint8_t* auth_field(Auth* a, const uint8_t* p, size_t name, size_t value, size_t value_end, size_t next_at, size_t at, uint8_t* out, int* left) noexcept nogil:
    """Writes the field p[at:next_at] with its credentials replaced; NULL when it holds none (nothing was written). name: length of its name."""
    cdef bint done = False
    cdef bint is_auth = name == 13 and http1_same(p + at, b"authorization", 13)
    cdef bint is_key = not a.one and ((name == 9 and http1_same(p + at, b"x-api-key", 9)) or (name == 12 and http1_same(p + at, b"x-auth-token", 12)))
    cdef bint is_cookie = not a.one and name == 6 and http1_same(p + at, b"cookie", 6)
    if not (is_auth or is_key or is_cookie):
        return NULL
    out = put(out, p + at, value - at)
    if is_cookie:
        out = auth_cookies(a, p + value, value_end - value, out, left)
    else:
        out = auth_value(a, p + value, value_end - value, out, left, &done)
        if done:
            count_add(&a.replaced, 1)
        elif is_auth:
            count_add(&a.unknown, 1)
    return put(out, p + value_end, next_at - value_end)
