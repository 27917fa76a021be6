# Datagrams put together from fragments (docs/design.md D4). Bounded in bytes, datagrams and capture time.
# Must not know: what a datagram holds.

cdef enum:
    FRAGMENT_BYTES = 4 * 1024 * 1024
    FRAGMENT_SLOTS = 1024         # of the hash table
    FRAGMENT_PIECES = 8192        # of one datagram: 64 KB in pieces of 8 bytes
    DATAGRAM_MOST = 65535
cdef int64_t FRAGMENT_NS = 30000000000

cdef struct Decoder              # decode.pxi

cdef struct Piece:
    Piece* next
    uint32_t at
    uint32_t len
    uint8_t* data                 # owns (behind the struct)

cdef struct Datagram:
    Datagram* hash_next
    Datagram* prev                # oldest first
    Datagram* after
    Piece* first                  # by offset, without overlap
    Piece* last
    uint64_t hash
    int64_t begun_ns              # when its first fragment came
    int64_t ts_ns                 # of the fragment at offset 0: that packet holds the first byte
    uint32_t id
    uint32_t protocol
    uint32_t total                # bytes when whole; 0 unknown
    uint32_t have
    uint32_t bytes                # that it holds of the budget
    uint32_t next_header          # IPv6: what the fragment at offset 0 says
    uint8_t bad                   # D4: dropped, what still comes of it too
    uint8_t src[16]
    uint8_t dst[16]

cdef struct Fragments:
    Datagram* table[FRAGMENT_SLOTS]
    Datagram* first
    Datagram* last
    uint64_t bytes
    uint8_t* whole                # owns: the datagram handed out last
    uint32_t next_header


cdef int fragments_init(Fragments* f) noexcept:
    f.whole = <uint8_t*>malloc(DATAGRAM_MOST + 1)
    return 0 if f.whole != NULL else -1


cdef void fragments_free(Fragments* f) noexcept nogil:
    while f.first != NULL:
        datagram_drop(f, f.first)
    free(f.whole)
    f.whole = NULL


cdef void datagram_empty(Fragments* f, Datagram* g) noexcept nogil:
    cdef Piece* p = g.first
    cdef Piece* after
    while p != NULL:
        after = p.next
        free(p)
        p = after
    g.first = g.last = NULL
    f.bytes -= g.bytes
    g.bytes = 0


cdef void datagram_drop(Fragments* f, Datagram* g) noexcept nogil:
    cdef Datagram** at = &f.table[g.hash % FRAGMENT_SLOTS]
    while at[0] != g:
        at = &(at[0].hash_next)
    at[0] = g.hash_next
    if g.prev != NULL:
        g.prev.after = g.after
    else:
        f.first = g.after
    if g.after != NULL:
        g.after.prev = g.prev
    else:
        f.last = g.prev
    datagram_empty(f, g)
    f.bytes -= sizeof(Datagram)
    free(g)


cdef int fragment_add(Decoder* d, Segment* s, uint32_t id, uint32_t protocol, uint32_t offset, bint more, const uint8_t* p, uint32_t n, uint32_t missing,
                      int64_t ts, const uint8_t** whole, uint32_t* whole_len) noexcept nogil:
    """1: the datagram is whole (s.ts_ns becomes that of its first byte's packet); 0: not, and counted.

    protocol: of IPv4 (part of the key, RFC 791), 0x10000 for IPv6, whose next header stands 8 bytes before p."""
    cdef Fragments* f = &d.fragments
    cdef uint8_t key[40]
    cdef uint64_t h
    cdef Datagram* g
    cdef Piece** at
    cdef Piece* q
    cdef Piece* piece
    cdef uint32_t end = offset + n
    while f.first != NULL and (ts - f.first.begun_ns > FRAGMENT_NS or f.bytes > FRAGMENT_BYTES):
        if not f.first.bad:
            count_add(&d.incomplete_datagrams, 1)
        datagram_drop(f, f.first)
    memcpy(key, s.src, 16)
    memcpy(key + 16, s.dst, 16)
    memcpy(key + 32, &id, 4)
    memcpy(key + 36, &protocol, 4)
    h = xxh64(key, 40, 0)
    g = f.table[h % FRAGMENT_SLOTS]
    while g != NULL and not (g.hash == h and g.id == id and g.protocol == protocol and memcmp(g.src, s.src, 16) == 0 and memcmp(g.dst, s.dst, 16) == 0):
        g = g.hash_next
    if g == NULL:
        g = <Datagram*>calloc(1, sizeof(Datagram))
        if g == NULL:
            return decode_skip(d, SKIP_FRAGMENT_LIMIT)
        g.hash = h
        g.id = id
        g.protocol = protocol
        memcpy(g.src, s.src, 16)
        memcpy(g.dst, s.dst, 16)
        g.begun_ns = ts
        g.hash_next = f.table[h % FRAGMENT_SLOTS]
        f.table[h % FRAGMENT_SLOTS] = g
        g.prev = f.last
        if f.last != NULL:
            f.last.after = g
        else:
            f.first = g
        f.last = g
        f.bytes += sizeof(Datagram)
    if g.bad:
        return decode_skip(d, SKIP_FRAGMENT_OVERLAP)
    if missing or n == 0 or (more and n % 8):
        return decode_skip(d, SKIP_TRUNCATED)       # cut by the snap length, or not as RFC 791 wants it
    if end > DATAGRAM_MOST:
        g.bad = 1
        datagram_empty(f, g)
        return decode_skip(d, SKIP_FRAGMENT_TOO_LONG)
    at = &g.first
    if g.last != NULL and g.last.at + g.last.len <= offset:
        at = &g.last.next
    while at[0] != NULL and at[0].at + at[0].len <= offset:
        at = &(at[0].next)
    q = at[0]
    if q != NULL and q.at < end:
        if q.at == offset and q.len == n and memcmp(q.data, p, n) == 0:
            return decode_skip(d, SKIP_FRAGMENT_WAITING)
        g.bad = 1
        datagram_empty(f, g)
        return decode_skip(d, SKIP_FRAGMENT_OVERLAP)
    if (g.total and end > g.total) or (not more and ((g.total and g.total != end) or (g.last != NULL and g.last.at + g.last.len > end))):
        g.bad = 1
        datagram_empty(f, g)
        return decode_skip(d, SKIP_FRAGMENT_OVERLAP)
    piece = <Piece*>malloc(sizeof(Piece) + n)
    if piece == NULL:
        return decode_skip(d, SKIP_FRAGMENT_LIMIT)
    piece.at = offset
    piece.len = n
    piece.data = <uint8_t*>piece + sizeof(Piece)
    memcpy(piece.data, p, n)
    piece.next = q
    at[0] = piece
    if q == NULL:
        g.last = piece
    g.have += n
    g.bytes += n + sizeof(Piece)
    f.bytes += n + sizeof(Piece)
    if not more:
        g.total = end
    if offset == 0:
        g.ts_ns = ts
        if protocol == 0x10000:
            g.next_header = (p - 8)[0]
    if g.total == 0 or g.have < g.total:
        return decode_skip(d, SKIP_FRAGMENT_WAITING)
    q = g.first
    while q != NULL:
        memcpy(f.whole + q.at, q.data, q.len)
        q = q.next
    whole[0] = f.whole
    whole_len[0] = g.total
    f.next_header = g.next_header
    s.ts_ns = g.ts_ns
    datagram_drop(f, g)
    return 1
