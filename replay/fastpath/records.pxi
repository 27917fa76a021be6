# Requests that come as requests, not as packets (Envoy tap files, .gor): each is a connection of its own that says what was recorded of it.
# Must not know: files, formats. Runs with the GIL but for the reading itself.

cdef struct Given:                # what a record says beside its bytes
    bint on
    bint timed                    # its times are real
    uint8_t withheld              # Withheld
    uint64_t body_len             # with withheld: bytes of a body of known length that are there
    uint64_t flow
    uint32_t index
    uint32_t seq
    uint16_t client_port
    uint16_t server_port
    uint8_t client[16]
    uint8_t server[16]

cdef enum:
    RECORD_SEGMENT = 1 << 20      # bytes handed over at a time


cdef void message_given(Engine* g, Message* m) noexcept nogil:
    m.given_withheld = g.given.withheld
    m.flow = g.given.flow
    m.index = m.index + g.given.index
    m.seq = g.given.seq + m.seq
    memcpy(m.client, g.given.client, 16)
    memcpy(m.server, g.given.server, 16)
    m.client_port = g.given.client_port
    m.server_port = g.given.server_port


cdef void record_say(Engine* g, Seen* x, int side, const uint8_t* p, size_t n, uint32_t missing, int64_t ts_ns, uint32_t* seqs, uint8_t flags, uint64_t ordinal) noexcept nogil:
    """A segment of the made-up connection `ordinal`; seqs: next number of each side."""
    cdef Segment* s = &x.segment
    memset(x, 0, sizeof(Seen))
    memcpy(s.src, &ordinal, 8)
    memcpy(s.dst, &ordinal, 8)
    s.src[15] = <uint8_t>(1 + side)
    s.dst[15] = <uint8_t>(2 - side)
    s.sport = 1 + side
    s.dport = 2 - side
    s.ts_ns = ts_ns
    s.data = p
    s.len = <uint32_t>n
    s.missing = missing
    s.seq = seqs[side]
    s.ack = seqs[1 - side]
    s.flags = flags
    x.has_segment = 1
    segment_key(g, s)
    segment_in(g, x)
    seqs[side] += <uint32_t>n + missing + (1 if flags & (TCP_SYN | TCP_FIN) else 0)


cdef void record_part(Engine* g, Seen* x, int side, const uint8_t* p, size_t n, uint32_t missing, int64_t ts_ns, uint32_t* seqs, uint64_t ordinal) noexcept nogil:
    cdef size_t at = 0
    cdef size_t some
    while at < n or missing:
        some = n - at if n - at < RECORD_SEGMENT else RECORD_SEGMENT
        record_say(g, x, side, p + at, some, missing if at + some == n else 0, ts_ns, seqs, TCP_ACK, ordinal)
        at += some
        if at == n:
            return
