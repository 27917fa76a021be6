# The endpoint of a request: method and path, identifiers folded; and the table of those that one sender met, so that a record needs a number alone.
# A rule reads bytes alone, so that shards and nodes agree. Its twin in plain Python is `_reference.endpoints`. Must not know: what is counted of them.

cdef extern from "fastpath/mix.h" nogil:
    uint64_t mix_fold(uint64_t a, uint64_t b)

cdef enum:
    JUDGE_ENDPOINTS = 512         # told apart; what comes later is counted in one that is called (other)
    JUDGE_SLOTS = 2048            # of a table of them; a power of two
    JUDGE_NAME = 256              # bytes of "METHOD /path"

cdef enum:                        # what a byte of a path is, by FOLD_CLASS
    FOLD_DIGIT = 1
    FOLD_HEX = 2                  # a to f
    FOLD_ALPHA = 4                # other letters
    FOLD_SLASH = 8
    FOLD_END = 16                 # ? and #
    FOLD_SEMICOLON = 32
    FOLD_MAIL = 64                # @ and %, of which %40 is another @
    FOLD_ALNUM = FOLD_DIGIT | FOLD_HEX | FOLD_ALPHA
    FOLD_LOOK = FOLD_DIGIT | FOLD_MAIL       # a segment without these is as it is, but for a UUID of letters

cdef uint8_t FOLD_CLASS[256]


cdef void fold_classes() noexcept:
    cdef int i
    memset(FOLD_CLASS, 0, 256)
    for i in range(26):
        FOLD_CLASS[65 + i] = FOLD_CLASS[97 + i] = FOLD_HEX if i < 6 else FOLD_ALPHA
    for i in range(10):
        FOLD_CLASS[48 + i] = FOLD_DIGIT
    FOLD_CLASS[47] = FOLD_SLASH
    FOLD_CLASS[63] = FOLD_CLASS[35] = FOLD_END
    FOLD_CLASS[59] = FOLD_SEMICOLON
    FOLD_CLASS[64] = FOLD_CLASS[37] = FOLD_MAIL


fold_classes()


# ---- folding --------------------------------------------------------------------------------------------------------------------

cdef inline size_t fold_put(uint8_t* out, size_t at, size_t room, const uint8_t* text, size_t n) noexcept nogil:
    if at + n > room:
        n = room - at
    memcpy(out + at, text, n)
    return at + n


cdef bint fold_uuid(const uint8_t* p) noexcept nogil:
    """Of 36 bytes."""
    cdef size_t i
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if p[i] != 45:
                return False
        elif not FOLD_CLASS[p[i]] & (FOLD_DIGIT | FOLD_HEX):
            return False
    return True


cdef bint fold_date(const uint8_t* p) noexcept nogil:
    """Of 10 bytes."""
    cdef size_t i
    for i in range(10):
        if i == 4 or i == 7:
            if p[i] != 45:
                return False
        elif FOLD_CLASS[p[i]] != FOLD_DIGIT:
            return False
    return True


cdef bint fold_mail(const uint8_t* p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if p[i] == 64 or (p[i] == 37 and i + 2 < n and p[i + 1] == 52 and p[i + 2] == 48):
            return True
    return False


cdef size_t fold_token(const uint8_t* p, size_t n, size_t digits, uint8_t kinds, uint8_t before, uint8_t* out, size_t at, size_t room) noexcept nogil:
    """A run of letters and digits with so many digits, more than none. before: the byte in front of it, / at the beginning of a segment."""
    cdef size_t tail = 0
    if digits == n:
        if n >= 3 or before == 47 or before == 45 or before == 95 or before == 58:
            return fold_put(out, at, room, b"{n}", 3)
        return fold_put(out, at, room, p, n)
    if n >= 8 and not kinds & FOLD_ALPHA:
        return fold_put(out, at, room, b"{hex}", 5)
    if n >= 16 and digits >= 2:
        return fold_put(out, at, room, b"{id}", 4)
    while FOLD_CLASS[p[n - 1 - tail]] == FOLD_DIGIT:
        tail += 1
    if tail >= 3:
        at = fold_put(out, at, room, p, n - tail)
        return fold_put(out, at, room, b"{n}", 3)
    return fold_put(out, at, room, p, n)


cdef size_t fold_segment(const uint8_t* p, size_t n, uint8_t kinds, uint8_t* out, size_t at, size_t room) noexcept nogil:
    """A segment in which there is something to look at."""
    cdef size_t i = 0
    cdef size_t plain = 0                    # from here on nothing was put out yet
    cdef size_t begin, digits
    cdef uint8_t kind, token
    if n == 36 and fold_uuid(p):
        return fold_put(out, at, room, b"{uuid}", 6)
    if n == 10 and fold_date(p):
        return fold_put(out, at, room, b"{date}", 6)
    if kinds & FOLD_MAIL and fold_mail(p, n):
        return fold_put(out, at, room, b"{mail}", 6)
    while i < n:
        kind = FOLD_CLASS[p[i]]
        if not kind & FOLD_ALNUM:
            i += 1
            continue
        begin = i
        digits = 0
        token = 0
        while kind & FOLD_ALNUM:
            token |= kind
            digits += kind & FOLD_DIGIT
            i += 1
            if i == n:
                break
            kind = FOLD_CLASS[p[i]]
        if digits:
            at = fold_put(out, at, room, p + plain, begin - plain)
            at = fold_token(p + begin, i - begin, digits, token, p[begin - 1] if begin else 47, out, at, room)
            plain = i
    return fold_put(out, at, room, p + plain, n - plain)


cdef size_t fold_name(const uint8_t* method, size_t method_len, const uint8_t* target, size_t n, uint8_t* out, size_t room) noexcept nogil:
    """`METHOD /path` into out, at most `room` bytes (what is longer is cut); the query and matrix parameters are left out."""
    cdef size_t i = 0
    cdef size_t plain = 0                    # from here on nothing was put out yet
    cdef size_t at, begin, end
    cdef uint8_t kind = 0
    cdef uint8_t kinds
    at = fold_put(out, 0, room, method, method_len if method_len < 32 else 32)
    at = fold_put(out, at, room, b" ", 1)
    while i < n and at < room:
        begin = i
        kinds = 0
        while i < n:
            kind = FOLD_CLASS[target[i]]
            if kind & (FOLD_SLASH | FOLD_END):
                break
            kinds |= kind
            i += 1
        if kinds & (FOLD_LOOK | FOLD_SEMICOLON) or i - begin == 36:
            end = i
            if kinds & FOLD_SEMICOLON:
                end = <size_t>(<const uint8_t*>memchr(target + begin, 59, i - begin) - target)
            at = fold_put(out, at, room, target + plain, begin - plain)
            at = fold_segment(target + begin, end - begin, kinds, out, at, room)
            plain = i
        if i == n or kind & FOLD_END:
            break
        i += 1                               # the slash
    if at < room:
        at = fold_put(out, at, room, target + plain, i - plain)
    return at


# ---- the names that were met ------------------------------------------------------------------------------------------------------

cdef struct EndpointName:
    uint64_t hash
    uint16_t length
    uint8_t text[JUDGE_NAME]

cdef struct EndpointNames:        # one thread adds to it, the one that judges reads what it was told of
    EndpointName* names[JUDGE_ENDPOINTS]     # owns
    uint32_t count
    uint16_t slots[JUDGE_SLOTS]   # index + 1; 0 free


cdef uint64_t endpoint_hash(const uint8_t* p, size_t n) noexcept nogil:
    """Of a name that lies in JUDGE_NAME bytes with zeros behind it, up to the next eighth."""
    cdef uint64_t word
    cdef uint64_t hash = <uint64_t>0x9E3779B97F4A7C15 ^ n
    cdef size_t at = 0
    while at < n:
        memcpy(&word, p + at, 8)
        hash = mix_fold(hash ^ word, <uint64_t>0xD6E8FEB86659FD93)
        at += 8
    return hash


cdef uint16_t endpoint_of(EndpointNames* t, const Request* r) noexcept nogil:
    """The number of this request's endpoint, which may be new; JUDGE_ENDPOINTS for one too many, or without memory."""
    cdef uint8_t name[JUDGE_NAME + 8]
    cdef size_t n = fold_name(r.data, r.method_len, r.data + r.target_at, r.target_len, name, JUDGE_NAME)
    cdef uint64_t hash
    cdef uint32_t slot
    cdef EndpointName* one
    memset(name + n, 0, 8)
    hash = endpoint_hash(name, n)
    slot = <uint32_t>hash & (JUDGE_SLOTS - 1)
    while t.slots[slot]:
        one = t.names[t.slots[slot] - 1]
        if one.hash == hash and one.length == n and memcmp(one.text, name, n) == 0:
            return t.slots[slot] - 1
        slot = (slot + 1) & (JUDGE_SLOTS - 1)
    if t.count >= JUDGE_ENDPOINTS:
        return JUDGE_ENDPOINTS
    one = <EndpointName*>malloc(sizeof(EndpointName))
    if one == NULL:
        return JUDGE_ENDPOINTS
    one.hash = hash
    one.length = <uint16_t>n
    memcpy(one.text, name, n)
    t.names[t.count] = one
    t.count += 1
    t.slots[slot] = <uint16_t>t.count
    return <uint16_t>(t.count - 1)


cdef void endpoint_names_free(EndpointNames* t) noexcept nogil:
    cdef uint32_t i
    for i in range(t.count):
        free(t.names[i])


def fold_endpoint(bytes method, bytes target, size_t room=JUDGE_NAME):
    """The name of the endpoint."""
    cdef uint8_t name[JUDGE_NAME]
    cdef size_t n = fold_name(<const uint8_t*>method, len(method), <const uint8_t*>target, len(target), name, min(room, <size_t>JUDGE_NAME))
    return <bytes>name[:n]
