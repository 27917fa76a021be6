# The endpoints that one sender met, by number, so that a mark needs no name. How a name is made is in fold.h. Must not know: what is counted of them.

cdef extern from "fastpath/fold.h" nogil:
    size_t fold_name(const uint8_t* method, size_t method_len, const uint8_t* target, size_t n, uint8_t* out, size_t room)

cdef extern from "fastpath/mix.h" nogil:
    uint64_t mix_fold(uint64_t a, uint64_t b)

cdef enum:
    JUDGE_ENDPOINTS = 512         # told apart; what comes later is counted in one that is called (other)
    JUDGE_SLOTS = 2048            # of a table of them; a power of two
    JUDGE_NAME = 256              # bytes of "METHOD /path"

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
