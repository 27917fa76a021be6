# A request from the end of its head until it leaves the window: its bytes, owned or borrowed, and how it ends (docs/design.md R8, H1 to H12).
# Must not know: packets, files, sockets, pacing; what stands in a head (heads.pxi).

cdef enum Role:
    ROLE_UNKNOWN = 0
    ROLE_REQUESTS = 1
    ROLE_REPLIES = 2
    ROLE_OTHER = 3

cdef enum FlowState:
    ST_NEW = 0                    # no byte yet
    ST_START = 1                  # at the boundary between two messages
    ST_HEAD = 2
    ST_LENGTH = 3                 # in a body of known length
    ST_CHUNKED = 4
    ST_PEEK = 5                   # Expect: 100-continue was refused, so a body or the next head comes (H9)
    ST_HOLD = 6                   # bytes behind CONNECT or Upgrade wait for the answer (H10)
    ST_RESYNC = 7                 # looking for a message at the start of a segment (H7)
    ST_UNTIL_END = 8              # a reply that its connection's end delimits
    ST_SKIP = 9                   # a tunnel, or no HTTP: nothing is read any more

cdef enum Trust:
    TRUST_CERTAIN = 0
    TRUST_UNCONFIRMED = 1
    TRUST_AMBIGUOUS = 2

cdef enum:                        # Other
    OTHER_NONE = 0
    OTHER_TLS = 1
    OTHER_HTTP2 = 2
    OTHER_SSH = 3
    OTHER_UPGRADED = 4
    OTHER_CONNECT = 5
    OTHER_ELSE = 6
    OTHER_TWIN = 7                # live: another view of a conversation that is read already (address translation)
    OTHER_ELSEWHERE = 8           # live: its server does not live where it has to (Locality)
    OTHER_COUNT = 9

OTHER = (None, "tls", "http2", "ssh", "upgraded", "connect", "other", "seen_twice", "elsewhere")

cdef enum:
    M_HOLD = 64 * 1024            # H10
    M_QUEUE = 1024                # requests of one connection that wait for their replies
    M_LIVE = 65536                # all of them, beyond which a connection keeps only few

cdef int64_t M_ORDER_NS = 60000000000

cdef enum:
    M_SPANS = 4                   # pieces of a body that a message may borrow

# Its bytes: either it owns them (buf: the rewritten head and the body as they will be sent; with `show` the captured head), or it borrows them from packets
# that still lie where they were captured (raw: the captured head, spans: pieces of the body), and they are put together when it leaves the window
# (message_write). What is borrowed is made its own (message_own) before the source moves on.
cdef struct Message:              # a request from the end of its head until it leaves the window
    Message* prev                 # of the window, oldest first
    Message* after
    Message* queue_next           # of its connection's queue
    int64_t ts_ns
    int64_t order_ns              # what the window sorts by: ts_ns, or that of the request before it on its connection, where that came later
    int64_t response_ns           # time stamp of the reply's first byte; -1
    uint64_t order                # of its head's end: ties of ts_ns
    uint64_t flow
    uint64_t body_len             # decoded
    uint8_t* buf                  # owns
    const uint8_t* raw            # borrows until the source's next take that does not keep its packets
    uint64_t len                  # of what will be sent (show: of the captured head), as far as it was read
    uint64_t cap                  # what it counts for in message_bytes
    void* sha                     # owns a reference: hashlib's object (show)
    uint32_t index
    uint32_t seq
    uint32_t ack
    uint32_t doubt_ack
    uint32_t epoch
    uint32_t head_len
    uint32_t method_len
    uint32_t target_at
    uint32_t target_len
    uint32_t host_at
    uint32_t host_len
    uint32_t authority_at
    uint32_t authority_len
    uint8_t given_withheld        # of a record: Withheld
    uint32_t copies               # with a policy: the mirrors of its route that take it, a bit each
    uint32_t dropped_copies       # … of them those that a bound of the mirror holds back
    Router* router                # with a policy: the one that decided, which may be older than the engine's
    int32_t route                 # … -1 none
    uint32_t captured_host_len    # record: in front of the rewritten head in buf, and behind it
    uint32_t captured_target_len  # … the captured target
    uint32_t flags                # RequestFlag
    uint32_t head_flags           # HeadFlag
    uint16_t status
    uint16_t client_port
    uint16_t server_port
    uint8_t version
    uint8_t framing
    uint8_t trust
    uint8_t ambiguous             # 1: in its Host alone (H4), 2: in its framing
    uint8_t has_ack
    uint8_t follows               # client data just before it acknowledged as much: a body may go on here (H8)
    uint8_t starts                # begins its segment
    uint8_t host_state            # HostState
    uint8_t loops
    uint8_t elsewhere             # of another shard: counted there
    uint8_t filtered              # Filtered
    int8_t sampled                # of sample_taken
    uint8_t upgraded              # answered 101
    uint8_t incomplete            # Incomplete
    uint8_t whole
    uint8_t replied               # its final reply was seen, or none will be
    uint8_t in_window
    uint8_t in_queue
    uint8_t is_current
    uint8_t late                  # the window did not wait for it
    uint8_t wanted                # its bytes are kept
    uint8_t spans                 # of the body
    uint8_t client[16]            # from here on nothing is zero in a new one
    uint8_t server[16]
    uint8_t digest[32]
    Splice splice                 # with raw: how the head is rewritten
    const uint8_t* span_at[M_SPANS]
    uint32_t span_len[M_SPANS]


cdef enum StatusLine:
    STATUS_YES = 1
    STATUS_MORE = 2
    STATUS_NO = 3


cdef StatusLine status_line(const uint8_t* p, size_t n) noexcept nogil:
    """`HTTP/1.DIGIT SP`: a status line begins (RFC 9112 4)."""
    cdef size_t k = n if n < 7 else 7
    if memcmp(p, b"HTTP/1.", k) != 0:
        return STATUS_NO
    if n < 9:
        return STATUS_MORE
    return STATUS_YES if 48 <= p[7] <= 57 and p[8] == 32 else STATUS_NO


# ---- message objects ----------------------------------------------------------------------------------------------------

cdef void message_unbuffer(Engine* g, Message* m) noexcept nogil:
    if m.buf != NULL or m.raw != NULL:
        if m.in_window:
            g.window_bytes -= m.len
        g.message_bytes -= m.cap
        piece_free(g, m.buf, m.cap)
        m.buf = NULL
        m.raw = NULL
        m.spans = 0
    m.len = m.cap = 0
    m.wanted = 0
    if m.sha != NULL:
        digest_free(m)


cdef void message_let_go(Engine* g, Message* m) noexcept nogil:
    """Nobody needs its bytes any more; nor itself, unless it waits for its reply."""
    if m.in_window or m.is_current or m.late:
        return
    message_unbuffer(g, m)
    if m.router != NULL:
        m.router.users -= 1
        m.router = NULL
    if m.in_queue:
        return
    g.live -= 1
    m.after = g.message_spare
    g.message_spare = m


cdef Message* message_new(Engine* g) noexcept nogil:
    cdef Message* m = g.message_spare
    if m != NULL:
        g.message_spare = m.after
    else:
        m = <Message*>malloc(sizeof(Message))
        if m == NULL:
            return NULL
    zero_struct(m, <uint8_t*>&m.client - <uint8_t*>m)
    m.response_ns = -1
    m.route = -1
    g.live += 1
    return m


cdef int message_room(Engine* g, Message* m, uint64_t more) noexcept nogil:
    """Room for `more` bytes; -1 when the budget or the memory is spent."""
    cdef uint64_t cap = m.len + more
    cdef uint8_t* buf
    if cap <= m.cap:
        return 0
    if m.cap:
        cap = cap + cap // 2
    elif cap <= SPARE_BYTES and g.message_bytes < g.max_memory // 4:
        cap = SPARE_BYTES
    if g.message_bytes - m.cap + cap > g.max_memory:
        cap = m.len + more
        if g.message_bytes - m.cap + cap > g.max_memory:
            return -1
    buf = piece_take(g) if cap == SPARE_BYTES and m.buf == NULL else <uint8_t*>realloc(m.buf, cap)
    if buf == NULL:
        return -1
    g.message_bytes += cap - m.cap
    m.buf = buf
    m.cap = cap
    return 0


cdef uint8_t* message_write(Engine* g, Message* m, uint8_t* out) noexcept nogil:
    """Its len bytes into out. Returns their end."""
    cdef int i
    if m.raw == NULL:
        memcpy(out, m.buf, m.len)
        return out + m.len
    out = splice_put(&g.rules, &m.splice, m.raw, out)
    for i in range(m.spans):
        memcpy(out, m.span_at[i], m.span_len[i])
        out += m.span_len[i]
    return out


cdef bint message_lost(const Message* m) noexcept nogil:
    """Some of what it borrows is not in its file any more (mapping.h): what was copied of it just now are zeros."""
    cdef int i
    if m.raw == NULL:
        return False
    if mapping_lost(m.raw, m.splice.head_len):
        return True
    for i in range(m.spans):
        if mapping_lost(m.span_at[i], m.span_len[i]):
            return True
    return False


cdef int message_own(Engine* g, Message* m) noexcept nogil:
    """What it borrows becomes its own. -1: it is over (out of memory)."""
    cdef uint64_t size = m.len if m.len else 1
    cdef uint8_t* buf
    cdef bint lost
    if size <= SPARE_BYTES and g.message_bytes < g.max_memory // 4:
        size = SPARE_BYTES
    buf = piece_take(g) if size == SPARE_BYTES else <uint8_t*>malloc(size)
    if buf == NULL:
        count_add(&g.n.no_memory, 1)
        message_fails(g, m, INCOMPLETE_EVICTED)
        return -1
    message_write(g, m, buf)
    lost = message_lost(m)
    g.message_bytes += size - m.cap
    m.cap = size
    m.buf = buf
    m.raw = NULL
    m.spans = 0
    if lost:
        message_fails(g, m, INCOMPLETE_CUT_AT_END)
        return -1
    return 0


cdef bint message_borrow(Engine* g, Message* m, const uint8_t* p, const Head* h, uint32_t host_len) noexcept nogil:
    """A head that needs no more than a splice, in a packet that stays for a while, is not copied now. True when that is so. It is in the window."""
    splice_plan(&g.rules, h, &m.splice, host_len)
    if g.message_bytes + m.splice.out_len > g.max_memory:
        return False
    m.raw = p
    if m.order_ns < g.borrow_ns:
        g.borrow_ns = m.order_ns
    m.len = m.cap = m.splice.out_len
    g.message_bytes += m.cap
    m.host_at = m.splice.out_host_at
    return True


cdef bint message_span(Engine* g, Message* m, const uint8_t* p, size_t n) noexcept nogil:
    """A piece of the body of a message that borrows. False: it has to become the owner of what it has, and to copy."""
    if not g.lasting or g.message_bytes + n > g.max_memory:
        return False
    if m.spans and m.span_at[m.spans - 1] + m.span_len[m.spans - 1] == p:
        m.span_len[m.spans - 1] += <uint32_t>n
    elif m.spans < M_SPANS:
        m.span_at[m.spans] = p
        m.span_len[m.spans] = <uint32_t>n
        m.spans += 1
    else:
        return False
    m.cap += n
    g.message_bytes += n
    return True


cdef void message_body(Engine* g, Message* m, const uint8_t* raw, size_t raw_len, const uint8_t* body, size_t body_len) noexcept nogil:
    """Bytes of its body as captured, and the part of them that is content."""
    m.body_len += body_len
    if m.incomplete:
        return
    if g.show:
        if body_len and m.wanted and g.digests:
            digest_update(m, body, body_len)
        return
    if g.record and body_len and m.wanted:
        digest_update(m, body, body_len)
    if m.body_len > g.max_body or m.len + raw_len > g.max_body + g.max_head + m.head_len + m.body_len:
        message_fails(g, m, INCOMPLETE_TOO_LARGE)
        return
    if not m.wanted:
        return
    if m.raw == NULL or not message_span(g, m, raw, raw_len):
        if m.raw != NULL and message_own(g, m) < 0:
            return
        if message_room(g, m, raw_len) < 0:
            count_add(&g.n.over_memory, 1)
            message_fails(g, m, INCOMPLETE_EVICTED)
            return
        memcpy(m.buf + m.len, raw, raw_len)
        if mapping_lost(raw, raw_len):
            message_fails(g, m, INCOMPLETE_CUT_AT_END)
            return
    m.len += raw_len
    if m.in_window:
        g.window_bytes += raw_len


cdef void message_fails(Engine* g, Message* m, uint8_t reason) noexcept nogil:
    """It will not be whole (H12); the first reason counts."""
    if m.incomplete:
        return
    m.incomplete = reason
    count_add(&g.n.incomplete[reason], 1)
    if g.show_incomplete:
        if m.sha != NULL:
            digest_free(m)
        return
    message_unbuffer(g, m)
    if m.in_window:
        window_remove(g, m)
    m.late = 0
    message_let_go(g, m)


cdef void message_ends(Engine* g, Conn* c, int side) noexcept nogil:
    """The current request has been read to its end, whole or not."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m = f.current
    f.current = NULL
    f.state = ST_START
    f.buf_len = 0
    if m == NULL:
        return
    m.is_current = 0
    if m.ambiguous > 1:           # whole or not: where it ends is in doubt (H4)
        f.trust = TRUST_AMBIGUOUS
        f.epoch += 1
        f.doubt_ack = m.ack
        c.flow[1 - side].certain = 0
    if not m.incomplete:
        m.whole = 1
        if g.show or (g.record and m.wanted):
            digest_end(m)
        if m.flags & REQUEST_CONNECT or (m.head_flags & HEAD_UPGRADE and not m.replied):
            f.state = ST_HOLD
        if m.replied:
            tunnel_decide(g, c, side, m)
    if m.late:
        if m.whole or m.incomplete:
            window_emit_late(g, m)
            return
    if g.wire:
        live_out(g, m)
    message_let_go(g, m)


cdef void message_cut(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """What is being read in this flow of requests does not go on."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m = f.current
    if m != NULL:
        f.current = NULL
        m.is_current = 0
        if m.incomplete == 0:
            message_fails(g, m, reason)     # lets it go too, unless it is shown
            if g.show_incomplete:
                if m.late:
                    window_emit_late(g, m)
        elif m.late:
            window_emit_late(g, m)
        else:
            message_let_go(g, m)
    elif f.state == ST_HEAD and f.role == ROLE_REQUESTS and f.line_known:
        message_partial(g, c, side, reason)
    f.buf_len = 0


cdef void message_partial(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """A request whose head never ends: only its request line is known."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m
    cdef size_t n = 0
    cdef const uint8_t* lf
    cdef size_t end
    count_add(&g.n.incomplete[reason], 1)
    c.index += 1
    if not g.show_incomplete:
        return
    lf = <const uint8_t*>memchr(f.buf, 10, f.buf_len)
    if lf == NULL:
        return
    m = message_new(g)
    if m == NULL:
        return
    message_from(g, c, side, m)
    end = lf - f.buf
    if end and f.buf[end - 1] == 13:
        end -= 1
    while n < end and f.buf[n] != 32:
        n += 1
    m.method_len = <uint32_t>n
    m.target_at = <uint32_t>(n + 1)
    m.target_len = <uint32_t>(end - 9 - m.target_at)
    m.version = 10 if f.buf[end - 1] == 48 else 11
    if message_room(g, m, f.buf_len) == 0:
        memcpy(m.buf, f.buf, f.buf_len)
        m.len = f.buf_len
        m.head_len = <uint32_t>(lf - f.buf) + 1
    else:
        m.method_len = m.target_at = m.target_len = 0
    m.incomplete = reason
    m.replied = 1
    window_add(g, m)


cdef void message_from(Engine* g, Conn* c, int side, Message* m) noexcept nogil:
    """Where and when: from the flow's notes on the first byte."""
    cdef Flow* f = &c.flow[side]
    m.ts_ns = f.msg_ts
    # A request that had to be sent again must not change places with those behind it; a broken clock must not hold the others up.
    m.order_ns = c.order_ns if not g.show and 0 < c.order_ns - f.msg_ts < M_ORDER_NS else f.msg_ts
    c.order_ns = m.order_ns
    m.seq = f.msg_seq
    m.ack = f.msg_ack
    m.has_ack = f.msg_has_ack
    m.starts = f.msg_starts
    m.follows = f.msg_follows or (c.has_interim and f.msg_has_ack and f.msg_ack == c.interim)
    m.flow = c.id
    m.index = c.index - 1
    m.trust = f.trust
    m.epoch = f.epoch
    m.doubt_ack = f.doubt_ack
    if side == 0:
        memcpy(m.client, c.a, 16)
        memcpy(m.server, c.b, 16)
        m.client_port = c.a_port
        m.server_port = c.b_port
    else:
        memcpy(m.client, c.b, 16)
        memcpy(m.server, c.a, 16)
        m.client_port = c.b_port
        m.server_port = c.a_port
    if g.given.on:
        message_given(g, m)
