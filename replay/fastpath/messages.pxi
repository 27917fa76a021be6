# Ordered bytes and gaps of a connection in, requests out: roles, framing, trust, replies (docs/design.md R8, H1 to H12).
# Must not know: packets, files, sockets, pacing.

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
    if m.in_window or m.in_queue or m.is_current or m.late:
        return
    message_unbuffer(g, m)
    if m.router != NULL:
        m.router.users -= 1
        m.router = NULL
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
    memset(m, 0, <uint8_t*>&m.client - <uint8_t*>m)
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


cdef int message_own(Engine* g, Message* m) noexcept nogil:
    """What it borrows becomes its own. -1: it is over (out of memory)."""
    cdef uint64_t size = m.len if m.len else 1
    cdef uint8_t* buf
    if size <= SPARE_BYTES and g.message_bytes < g.max_memory // 4:
        size = SPARE_BYTES
    buf = piece_take(g) if size == SPARE_BYTES else <uint8_t*>malloc(size)
    if buf == NULL:
        count_add(&g.n.no_memory, 1)
        message_fails(g, m, INCOMPLETE_EVICTED)
        return -1
    message_write(g, m, buf)
    g.message_bytes += size - m.cap
    m.cap = size
    m.buf = buf
    m.raw = NULL
    m.spans = 0
    return 0


cdef bint message_borrow(Engine* g, Message* m, const uint8_t* p, const Head* h, uint32_t host_len) noexcept nogil:
    """A head that needs no more than a splice, in a packet that stays for a while, is not copied now. True when that is so."""
    splice_plan(&g.rules, h, &m.splice, host_len)
    if g.message_bytes + m.splice.out_len > g.max_memory:
        return False
    m.raw = p
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
    m.follows = f.msg_follows
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


# ---- the queue of requests that wait for replies -------------------------------------------------------------------------

cdef void queue_pop(Engine* g, Conn* c) noexcept nogil:
    cdef Message* m = c.queue
    c.queue = m.queue_next
    if c.queue == NULL:
        c.queue_last = NULL
    m.queue_next = NULL
    m.in_queue = 0
    m.replied = 1
    c.open -= 1
    if m.late and (m.whole or m.incomplete) and not m.is_current:
        window_emit_late(g, m)
    else:
        if g.wire:
            live_out(g, m)
        message_let_go(g, m)


cdef void queue_add(Engine* g, Conn* c, int side, Message* m) noexcept nogil:
    if g.one_sided and not (m.flags & REQUEST_CONNECT or m.head_flags & HEAD_UPGRADE):
        m.replied = 1             # no reply is ever seen
        return
    if c.open >= M_QUEUE or (g.live > M_LIVE and c.open > 4):
        queue_pop(g, c)
        c.flow[1 - side].certain = 0
    m.in_queue = 1
    m.queue_next = NULL
    if c.queue_last != NULL:
        c.queue_last.queue_next = m
    else:
        c.queue = m
    c.queue_last = m
    c.open += 1


cdef void queue_confirm(Engine* g, Conn* c, int request_side, Message* m) noexcept nogil:
    """H8: the server answered at exactly this request, so it is one; what follows it without a new doubt is certain too."""
    cdef Flow* f = &c.flow[request_side]
    cdef uint32_t epoch = m.epoch
    if m.trust == TRUST_CERTAIN:
        return
    if m.trust == TRUST_AMBIGUOUS and (not m.starts or <int32_t>(m.ack - m.doubt_ack) <= 0):
        return
    if f.epoch == epoch:
        f.trust = TRUST_CERTAIN
    while m != NULL:
        if m.epoch == epoch:
            m.trust = TRUST_CERTAIN
        m = m.queue_next


cdef Message* queue_match(Engine* g, Conn* c, int side, uint32_t seq) noexcept nogil:
    """The request that a status line at `seq` answers (H11); NULL: none. Earlier ones without an answer leave the queue."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m = c.queue
    if f.certain:
        if m != NULL and m.has_ack and m.ack == seq and not m.follows:
            queue_confirm(g, c, 1 - side, m)
        return m
    while m != NULL and not (m.has_ack and m.ack == seq and not m.follows):
        m = m.queue_next
    if m == NULL:
        return NULL
    while c.queue != m:
        queue_pop(g, c)
    f.certain = 1
    queue_confirm(g, c, 1 - side, m)
    return m


# ---- heads -----------------------------------------------------------------------------------------------------------------

cdef void tunnel_decide(Engine* g, Conn* c, int side, Message* m) noexcept nogil:
    """The final answer to the newest request is known: does HTTP go on behind it (H10)?"""
    cdef Flow* f = &c.flow[side]
    if m.flags & REQUEST_CONNECT and 200 <= m.status <= 299:
        flow_is_other(g, c, OTHER_CONNECT)
    elif m.status == 101:
        flow_is_other(g, c, OTHER_UPGRADED)
    elif f.state == ST_HOLD:
        hold_release(g, c, side)


cdef void flow_is_other(Engine* g, Conn* c, uint8_t kind) noexcept nogil:
    """Nothing that follows on this connection is HTTP/1."""
    cdef int i
    for i in range(2):
        if c.flow[i].current == NULL:
            c.flow[i].state = ST_SKIP
            c.flow[i].buf_len = 0
    if c.other == OTHER_NONE:
        c.other = kind
        count_add(&g.n.other[kind], 1)


cdef void hold_release(Engine* g, Conn* c, int side) noexcept nogil:
    """Held bytes are HTTP after all: they are read now."""
    cdef Flow* f = &c.flow[side]
    cdef uint8_t* held = f.buf
    cdef uint32_t n = f.buf_len
    f.state = ST_START
    if n == 0:
        return
    f.buf = NULL
    f.buf_len = f.buf_cap = 0
    f.scanned = 0
    stream_read_held(g, c, side, held, n)


cdef int buf_add(Engine* g, Flow* f, const uint8_t* p, size_t n) noexcept nogil:
    cdef uint64_t cap
    cdef uint8_t* buf
    if f.buf_len + n > f.buf_cap:
        cap = f.buf_len + n + 512
        if f.buf_cap:
            cap += cap // 2
        elif cap < SPARE_BYTES:
            cap = SPARE_BYTES
        buf = piece_take(g) if cap == SPARE_BYTES and f.buf == NULL else <uint8_t*>realloc(f.buf, cap)
        if buf == NULL:
            return -1
        f.buf = buf
        f.buf_cap = <uint32_t>cap
    memcpy(f.buf + f.buf_len, p, n)
    f.buf_len += <uint32_t>n
    return 0


cdef void request_head(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, const Head* h, int parsed) noexcept nogil:
    """A whole head of a request: select, rewrite, and how its body ends. parsed: what head_parse said."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m
    cdef Text host
    cdef uint32_t origin_at = h.target_at
    cdef uint32_t host_len
    cdef uint8_t key[40]
    cdef uint32_t before          # bytes in front of the rewritten head
    if g.locality != NULL and live_elsewhere(g, c, side):      # before its twin is looked for: the other view may be the one that is wanted
        f.buf_len = 0
        flow_is_other(g, c, OTHER_ELSEWHERE)
        return
    if g.twins != NULL and live_twin(g, c, f, p, n):
        f.buf_len = 0
        flow_is_other(g, c, OTHER_TWIN)
        return
    c.index += 1
    f.spoke = 1
    f.buf_len = 0
    m = message_new(g)
    if m == NULL:
        count_add(&g.n.no_memory, 1)
        f.state = ST_RESYNC
        return
    message_from(g, c, side, m)
    m.method_len = h.method_len
    m.target_at = h.target_at
    m.target_len = h.target_len
    m.version = h.version
    m.framing = h.framing
    m.head_flags = h.flags
    m.ambiguous = 2 if h.flags & HEAD_AMBIGUOUS else 1 if h.flags & HEAD_HOSTS_DIFFER else 0
    if h.flags & HEAD_CONNECT:
        m.flags |= REQUEST_CONNECT
        if h.framing == FRAMING_CHUNKED or h.content_length > 0 or h.flags & HEAD_MALFORMED:
            m.ambiguous = 2       # has a body, or has none (RFC 9110 9.3.6)
    if g.one_sided and h.flags & HEAD_EXPECT and (h.framing == FRAMING_CHUNKED or h.content_length > 0):
        m.ambiguous = 2           # whether the body comes is said by the reply alone (H9)
    if h.version == 10:
        m.flags |= REQUEST_HTTP10
    if h.method_len == 4 and memcmp(p, b"HEAD", 4) == 0:
        m.flags |= REQUEST_HEAD
    elif not ((h.method_len == 3 and memcmp(p, b"GET", 3) == 0) or (h.method_len == 7 and memcmp(p, b"OPTIONS", 7) == 0)
              or (h.method_len == 5 and memcmp(p, b"TRACE", 5) == 0)):
        m.flags |= REQUEST_WRITE
    host.p = NULL
    host.n = 0
    if h.host_plain and p[h.target_at] == 47:
        host.p = p + h.host_at
        host.n = h.host_len
        m.host_state = HOST_OK
    else:
        m.host_state = host_of(p, h, &host, &origin_at)
    m.loops = h.flags & HEAD_MARKER and hops_of(p, h) >= g.rules.max_hops
    if m.host_state != HOST_NONE and not m.loops:
        m.loops = host_loops(&g.rules, &host, h.host_split if h.host_plain and host.p == p + h.host_at else host_split(host.p, host.n))
    if g.guard_on and guard_meets(g, m):
        atomic_set(g.guard_hit, 1)
    if g.rules.filters:
        m.filtered = message_filter(g, m, p, h, &host)
    if g.rules.shards > 1:
        m.elsewhere = shard_of(&g.rules, m.client, m.client_port, m.server, m.server_port) != g.rules.shard
    if m.filtered or m.elsewhere:
        pass
    elif g.rules.all and g.rules.sample_by < SAMPLE_HEADER and g.low == LOW_ALL:
        m.sampled = 1
        m.wanted = g.collect
    else:
        memcpy(key, m.client, 16)
        key[16] = m.client_port >> 8
        key[17] = m.client_port & 255
        memcpy(key + 18, m.server, 16)
        key[34] = m.server_port >> 8
        key[35] = m.server_port & 255
        key[36] = m.seq >> 24
        key[37] = (m.seq >> 16) & 255
        key[38] = (m.seq >> 8) & 255
        key[39] = m.seq & 255
        if g.router != NULL:
            message_route(g, m, p, h, &host, origin_at, key)
        else:
            m.sampled = sample_taken(&g.rules, key, p, h, g.low)
        m.wanted = g.collect and (m.sampled == 1 or g.show)   # what is withheld is shown whether sampled or not
    m.authority_at = <uint32_t>(host.p - p) if host.p != NULL else 0
    m.authority_len = <uint32_t>host.n
    m.head_len = <uint32_t>n
    if h.hosts:
        m.flags |= REQUEST_HAS_HOST
        m.host_at = h.host_at
        m.host_len = h.host_len
    if origin_at != h.target_at:
        m.flags |= REQUEST_AUTHORITY
    m.is_current = 1
    f.current = m
    queue_add(g, c, side, m)
    window_add(g, m)
    if m.wanted and g.show:       # before anything may end it: what is shown has its method and target
        if message_room(g, m, n) < 0:
            message_fails(g, m, INCOMPLETE_EVICTED)
        else:
            memcpy(m.buf, p, n)
            m.len = n
            g.window_bytes += n
    if parsed != OK:
        message_cut(g, c, side, INCOMPLETE_HEAD_TOO_LARGE)
        flow_lost(g, c, side)
        return
    if h.flags & HEAD_MALFORMED and not h.flags & HEAD_CONNECT:
        message_cut(g, c, side, INCOMPLETE_MALFORMED)
        flow_lost(g, c, side)
        return
    if m.wanted and not g.show:
        if m.host_state == HOST_OK and not m.ambiguous and not m.loops and not (h.flags & HEAD_CONNECT):
            host_len = <uint32_t>(g.rules.literal.n if g.rules.has_literal else host.n + (g.rules.suffix.n if g.rules.has_suffix else 0))
            if g.record:
                m.captured_host_len = h.host_len if h.hosts else 0
                m.captured_target_len = h.target_len
                if h.hosts:
                    m.flags |= REQUEST_HOST_CAPTURED
            before = m.captured_host_len + m.captured_target_len
            if m.router != NULL:
                if not message_copies(g, m, p, h, host, origin_at):
                    m.len = 0
                    message_fails(g, m, INCOMPLETE_EVICTED)
            elif g.lasting and not g.record and rewrite_splices(&g.rules, h, origin_at) and message_borrow(g, m, p, h, host_len):
                pass
            elif message_room(g, m, before + rewrite_bound(&g.rules, h) + (h.content_length if 0 < h.content_length <= 4096 else 0)) < 0:
                message_fails(g, m, INCOMPLETE_EVICTED)
            else:
                memcpy(m.buf, p + h.host_at, m.captured_host_len)
                memcpy(m.buf + m.captured_host_len, p + h.target_at, m.captured_target_len)
                m.len = rewrite_head(&g.rules, p, h, host, origin_at, m.buf + before, &m.host_at, &m.target_at, &m.target_len)
            if m.router != NULL:
                g.window_bytes += m.len
            elif not m.incomplete:
                m.head_len = <uint32_t>m.len
                m.len += before
                m.host_len = host_len
                m.flags |= REQUEST_HAS_HOST
                g.window_bytes += m.len
        else:
            m.wanted = 0
    if h.flags & HEAD_CONNECT:
        m.framing = FRAMING_NONE
        message_ends(g, c, side)
    elif h.framing == FRAMING_LENGTH and h.content_length > 0:
        if not g.show and <uint64_t>h.content_length > g.max_body:
            message_fails(g, m, INCOMPLETE_TOO_LARGE)
        f.left = <uint64_t>h.content_length
        f.state = ST_LENGTH
        if g.given.on and g.given.withheld:
            f.left = g.given.body_len           # so much of it was recorded
            if f.left == 0:
                message_ends(g, c, side)
    elif h.framing == FRAMING_CHUNKED:
        memset(&f.chunked, 0, sizeof(Chunked))
        f.state = ST_CHUNKED
    else:
        message_ends(g, c, side)


cdef void reply_head(Engine* g, Conn* c, int side, const Head* h, int parsed) noexcept nogil:
    """A whole head of a reply: whose it is, and how its body ends (RFC 9112 6.3)."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m
    cdef bint no_body
    cdef bint connect = False
    f.buf_len = 0
    f.spoke = 1
    if parsed != OK:
        flow_lost(g, c, side)
        return
    m = queue_match(g, c, side, f.msg_seq)
    if 100 <= h.status <= 199 and h.status != 101:
        f.state = ST_START
        return
    if m == NULL:
        if h.status != 408 and not g.one_sided:       # a server that gives up waiting answers nobody
            count_add(&g.n.orphans, 1)
        if f.certain:
            f.certain = 0
        f.state = ST_RESYNC
        return
    count_add(&g.n.matched, 1)
    m.status = h.status
    m.response_ns = f.msg_ts if g.given.timed or not g.given.on else -1
    no_body = (m.flags & REQUEST_HEAD) != 0 or h.status == 204 or h.status == 304 or h.status == 101
    connect = (m.flags & REQUEST_CONNECT) != 0 and 200 <= h.status <= 299
    if h.status == 101:
        m.upgraded = 1
    if no_body or connect:
        f.state = ST_START
    elif h.framing == FRAMING_CHUNKED and not h.flags & HEAD_MALFORMED:
        memset(&f.chunked, 0, sizeof(Chunked))
        f.state = ST_CHUNKED
    elif h.framing == FRAMING_LENGTH and not h.flags & HEAD_MALFORMED:
        f.left = <uint64_t>h.content_length
        f.state = ST_LENGTH if f.left else ST_START
    else:
        f.state = ST_UNTIL_END
    m.replied = 1
    if m.whole and (connect or h.status == 101 or c.flow[1 - side].state == ST_HOLD):
        if m == c.queue_last or connect or h.status == 101:
            tunnel_decide(g, c, 1 - side, m)
    if c.queue == m:
        queue_pop(g, c)


cdef bint reply_cut(Engine* g, Conn* c, int side) noexcept nogil:
    """The rest of a reply's head is not there (a tap leaves most of a reply in the kernel): its status says what has to be known. True when it was told."""
    cdef Flow* f = &c.flow[side]
    cdef Head h
    cdef int i
    if not f.line_known or f.buf_len < 12:
        return False
    memset(&h, 0, sizeof(Head))
    for i in range(9, 12):
        if not 48 <= f.buf[i] <= 57:
            return False
        h.status = <uint16_t>(h.status * 10 + f.buf[i] - 48)
    h.flags = HEAD_MALFORMED      # how its body ends is not known
    f.line_known = 0
    f.scanned = 0
    reply_head(g, c, side, &h, OK)
    if f.state != ST_SKIP:
        flow_lost(g, c, side)
    return True


cdef void flow_lost(Engine* g, Conn* c, int side) noexcept nogil:
    """The boundary between messages is lost; look for the next (H7)."""
    cdef Flow* f = &c.flow[side]
    f.state = ST_RESYNC
    f.buf_len = 0
    f.line_known = 0
    if f.role != ROLE_REQUESTS:   # the first reply may be in the gap, so that the role is not known yet
        f.certain = 0
    if f.role != ROLE_REPLIES:
        c.flow[1 - side].certain = 0


# ---- the reader ---------------------------------------------------------------------------------------------------------------

cdef uint8_t other_kind(const uint8_t* p, size_t n) noexcept nogil:
    if n >= 2 and 20 <= p[0] <= 24 and p[1] == 3:
        return OTHER_TLS
    if n >= 4 and memcmp(p, b"SSH-", 4) == 0:
        return OTHER_SSH
    if n >= 3 and memcmp(p, b"PRI", 3) == 0:
        return OTHER_HTTP2
    return OTHER_ELSE


cdef int line_judge(Flow* f, const uint8_t* p, size_t n) noexcept nogil:
    """1: a message of this flow's role (set when it was unknown) begins here; 2: perhaps; 0: no; 3: HTTP/2."""
    cdef RequestLine line
    cdef StatusLine reply
    if f.role != ROLE_REPLIES:
        line = request_line(p, n)
        if line == LINE_REQUEST:
            f.role = ROLE_REQUESTS
            return 1
        if line == LINE_HTTP2:
            return 3
        if line == LINE_MORE and (f.role == ROLE_REQUESTS or status_line(p, n) != STATUS_YES):
            return 2
        if f.role == ROLE_REQUESTS:
            return 0
    reply = status_line(p, n)
    if reply == STATUS_YES:
        f.role = ROLE_REPLIES
        return 1
    return 2 if reply == STATUS_MORE else 0


cdef size_t read_head(Engine* g, Conn* c, int side, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes of a head that has begun. Returns how many were taken."""
    cdef Flow* f = &c.flow[side]
    cdef const uint8_t* at = p
    cdef size_t have = n
    cdef size_t before = f.buf_len
    cdef size_t end
    cdef int judged
    cdef LineIndex index
    cdef Head h
    cdef bint lasting = g.lasting
    cdef bint quick
    if before == 0 and not f.line_known and f.scanned == 0:
        end = head_scan(p, n, &h)
        if end and end <= g.max_head and head_suits(f, &h):
            if end != HEAD_BEGUN:
                read_usual(g, c, side, p, end, &h)
                return end
            if read_begun(g, f, p, n, &h):
                return n
    if before:
        if n > g.max_head + 4 - before:
            have = g.max_head + 4 - before if before < g.max_head + 4 else 0
        if buf_add(g, f, p, have) < 0:
            count_add(&g.n.no_memory, 1)
            message_cut(g, c, side, INCOMPLETE_EVICTED)
            flow_lost(g, c, side)
            return n
        at = f.buf
        have = f.buf_len
    if not f.line_known:
        judged = line_judge(f, at, have)
        if judged == 2 and have <= g.max_head:
            if not before and buf_add(g, f, p, n) < 0:
                flow_lost(g, c, side)
            return n
        if judged != 1:
            return read_failed(g, c, side, at, have, before, n, judged == 3)
        f.line_known = 1
    if before:
        # All of it again, when that much of it is new; where it comes byte by byte, only when its end is there.
        quick = n > have // 4
        end = head_scan(at, have, &h) if quick else head_end(at, have, f.scanned)
        if end > HEAD_BEGUN:
            if end <= g.max_head and (quick or head_scan(at, end, &h) == end) and head_suits(f, &h):
                f.line_known = 0
                f.scanned = 0
                g.lasting = False     # it lies in the flow's own buffer
                read_usual(g, c, side, at, end, &h)
                g.lasting = lasting
                return end - before
            head_index(at, end, &index)
        elif quick:
            end = head_index(at, have, &index) if end == 0 else 0
    else:
        end = head_index(at, have, &index)
    if end == 0:
        f.scanned = <uint32_t>(have - 3 if have > 3 else 0)
        if have > g.max_head:
            if not before:
                buf_add(g, f, p, n if n < 65536 else 65536)
            if f.role == ROLE_REQUESTS:
                message_cut(g, c, side, INCOMPLETE_HEAD_TOO_LARGE)
            flow_lost(g, c, side)
            return n
        if not before and buf_add(g, f, p, n) < 0:
            flow_lost(g, c, side)
        return n
    f.line_known = 0
    f.scanned = 0
    if end > g.max_head:
        if not before:
            buf_add(g, f, p, end if end < 65536 else 65536)
        if f.role == ROLE_REQUESTS:
            f.line_known = 1
            f.state = ST_HEAD
            message_cut(g, c, side, INCOMPLETE_HEAD_TOO_LARGE)
        flow_lost(g, c, side)
        return n
    judged = head_parse(at, end, &index, f.role != ROLE_REQUESTS, &h)
    if f.role == ROLE_REQUESTS:
        if before:
            g.lasting = False     # it lies in the flow's own buffer
        request_head(g, c, side, at, end, &h, judged)
        g.lasting = lasting
    else:
        reply_head(g, c, side, &h, judged)
    return end - before


cdef inline bint head_suits(const Flow* f, const Head* h) noexcept nogil:
    """A usual head (head_scan) of the role of its flow, or of one whose role is open."""
    return f.role != ROLE_REPLIES if h.method_len else f.role != ROLE_REQUESTS


cdef bint read_begun(Engine* g, Flow* f, const uint8_t* p, size_t n, const Head* h) noexcept nogil:
    """All that there is of a usual head so far, in one piece: kept. False: the general way has to see to it."""
    if n > g.max_head or buf_add(g, f, p, n) < 0:
        return False
    f.role = ROLE_REQUESTS if h.method_len else ROLE_REPLIES
    f.line_known = 1
    f.scanned = <uint32_t>(n - 3)
    return True


cdef inline void read_usual(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, const Head* h) noexcept nogil:
    """A whole head that suits its flow, in one piece."""
    cdef Flow* f = &c.flow[side]
    if h.method_len:
        f.role = ROLE_REQUESTS
        request_head(g, c, side, p, n, h, OK)
    else:
        f.role = ROLE_REPLIES
        reply_head(g, c, side, h, OK)


cdef size_t read_failed(Engine* g, Conn* c, int side, const uint8_t* at, size_t have, size_t before, size_t n, bint http2) noexcept nogil:
    """What began is no message. Returns how many bytes of the new piece were taken: none of one that may begin a message itself."""
    cdef Flow* f = &c.flow[side]
    cdef uint8_t kind
    f.buf_len = 0
    f.scanned = 0
    if f.resynced:
        f.state = ST_RESYNC
        return 0 if before else n
    if http2 or (not f.spoke and f.role == ROLE_UNKNOWN):
        kind = OTHER_HTTP2 if http2 else other_kind(at, have)
        f.role = ROLE_OTHER
        f.state = ST_SKIP
        if c.other == OTHER_NONE:
            c.other = kind
            count_add(&g.n.other[kind], 1)
        return n
    if f.role == ROLE_REQUESTS:
        count_add(&g.n.incomplete[INCOMPLETE_MALFORMED], 1)
    flow_lost(g, c, side)
    return 0 if before else n


cdef void stream_read(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack,
                      bint has_ack, bint starts) noexcept nogil:
    """Ordered bytes of one flow, all of one segment."""
    cdef Flow* f = &c.flow[side]
    cdef size_t at = 0
    cdef size_t taken
    cdef int judged
    cdef const uint8_t* body = NULL
    cdef size_t body_len
    cdef Message* m
    if f.state == ST_HEAD and f.resynced and not f.line_known and starts and f.role != ROLE_REPLIES:
        # What looked like the beginning of a request line may be the end of a body, and this the beginning (H7):
        judged = request_line(p, n)
        if ack != f.msg_ack or judged == LINE_REQUEST:
            f.state = ST_RESYNC           # … the server spoke in between, or the line is whole
        elif judged == LINE_MORE:
            f.msg_has_ack = 0             # … so no reply confirms it (H8)
    while at < n:
        if f.state == ST_START or f.state == ST_RESYNC:
            if f.state == ST_START:
                while at < n and (p[at] == 13 or p[at] == 10):
                    at += 1
                if at == n:
                    return
                f.resynced = 0
            else:
                if at or not starts:
                    return
                judged = line_judge(f, p, n)
                if judged == 0:
                    return
                f.resynced = 1
                if judged == 3:
                    return
                if f.role != ROLE_REPLIES:
                    f.epoch += 1
                    if f.trust == TRUST_CERTAIN and not g.rules.loose:
                        f.trust = TRUST_UNCONFIRMED
            f.state = ST_HEAD
            f.line_known = 0
            f.scanned = 0
            f.buf_len = 0
            f.msg_ts = ts
            f.msg_pos = pos + at
            f.msg_seq = seq + <uint32_t>at
            f.msg_ack = ack
            f.msg_has_ack = has_ack
            f.msg_starts = starts and at == 0
            f.msg_follows = f.has_data_ack and <int32_t>(ack - f.data_ack) <= 0
        if f.state == ST_HEAD:
            taken = read_head(g, c, side, p + at, n - at)
            if taken == 0 and f.state == ST_RESYNC:
                if at:
                    return
                continue
            at += taken
        elif f.state == ST_LENGTH:
            taken = n - at
            if taken > f.left:
                taken = f.left
            m = f.current
            if m != NULL:
                if m.head_flags & HEAD_EXPECT and m.replied and not g.one_sided and m.body_len == 0 and m.status != 101 and request_line(p + at, n - at) <= LINE_MORE:
                    peek_begin(f, ts, seq + <uint32_t>at, pos + at, ack, has_ack, starts and at == 0)
                    continue
                message_body(g, m, p + at, taken, p + at, taken)
            f.left -= taken
            at += taken
            if f.left == 0:
                if f.role == ROLE_REQUESTS:
                    message_ends(g, c, side)
                else:
                    f.state = ST_START
        elif f.state == ST_CHUNKED:
            m = f.current
            if (m != NULL and m.head_flags & HEAD_EXPECT and m.replied and not g.one_sided and f.chunked.state == CHUNKED_START and m.body_len == 0
                    and m.status != 101 and request_line(p + at, n - at) <= LINE_MORE):
                peek_begin(f, ts, seq + <uint32_t>at, pos + at, ack, has_ack, starts and at == 0)
                continue
            taken = chunked_step(&f.chunked, p + at, n - at, &body, &body_len)
            if m != NULL:
                message_body(g, m, p + at, taken, body, body_len)
                if f.chunked.ambiguous:
                    m.ambiguous = 2
            at += taken
            if f.chunked.state == CHUNKED_DONE:
                if f.role == ROLE_REQUESTS:
                    message_ends(g, c, side)
                else:
                    f.state = ST_START
            elif f.chunked.state == CHUNKED_BAD:
                if f.role == ROLE_REQUESTS:
                    message_cut(g, c, side, INCOMPLETE_MALFORMED)
                flow_lost(g, c, side)
                return
        elif f.state == ST_PEEK:
            at += read_peek(g, c, side, p + at, n - at)
        elif f.state == ST_HOLD:
            if f.buf_len == 0:
                f.msg_ts = ts
                f.msg_pos = pos + at
                f.msg_seq = seq + <uint32_t>at
                f.msg_ack = ack
                f.msg_has_ack = has_ack
                f.msg_starts = starts and at == 0
            taken = n - at
            if f.buf_len + taken > M_HOLD or buf_add(g, f, p + at, taken) < 0:
                hold_unanswered(g, c, side)
                if f.state == ST_SKIP:
                    return
                continue
            at += taken
        else:
            return                # until the end, or skipped


cdef inline void peek_begin(Flow* f, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack, bint has_ack, bint starts) noexcept nogil:
    f.peek_state = f.state
    f.state = ST_PEEK
    f.buf_len = 0
    f.msg_ts = ts
    f.msg_seq = seq
    f.msg_pos = pos
    f.msg_ack = ack
    f.msg_has_ack = has_ack
    f.msg_starts = starts


cdef size_t read_peek(Engine* g, Conn* c, int side, const uint8_t* p, size_t n) noexcept nogil:
    """H9: the body was refused; is this the next request, or the body all the same?"""
    cdef Flow* f = &c.flow[side]
    cdef uint8_t* held
    cdef uint32_t have
    cdef RequestLine line
    if buf_add(g, f, p, n) < 0:
        message_cut(g, c, side, INCOMPLETE_EVICTED)
        flow_lost(g, c, side)
        return n
    line = request_line(f.buf, f.buf_len)
    if line == LINE_MORE and f.buf_len < g.max_head and not (f.peek_state == ST_LENGTH and f.buf_len >= f.left):
        return n
    held = f.buf
    have = f.buf_len
    f.buf = NULL
    f.buf_len = f.buf_cap = 0
    if line == LINE_REQUEST:
        message_cut(g, c, side, INCOMPLETE_BODY_REFUSED)
        f.state = ST_START
    else:
        f.state = f.peek_state
        if f.current != NULL:
            f.current.head_flags &= ~<uint32_t>HEAD_EXPECT
    stream_read_held(g, c, side, held, have)
    return n


cdef void stream_read_held(Engine* g, Conn* c, int side, uint8_t* held, size_t n) noexcept nogil:
    """Bytes that were kept aside are read after all; frees them."""
    cdef Flow* f = &c.flow[side]
    cdef bint lasting = g.lasting
    g.lasting = False
    stream_read(g, c, side, held, n, f.msg_ts, f.msg_seq, f.msg_pos, f.msg_ack, f.msg_has_ack, f.msg_starts)
    g.lasting = lasting
    free(held)


cdef void hold_unanswered(Engine* g, Conn* c, int side) noexcept nogil:
    """H10: no answer in the capture. A request line means that the tunnel was refused."""
    cdef Flow* f = &c.flow[side]
    if f.buf_len and request_line(f.buf, f.buf_len) == LINE_REQUEST:
        hold_release(g, c, side)
    else:
        f.state = ST_SKIP
        f.buf_len = 0


cdef void stream_bytes(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack,
                       bint has_ack, bint starts) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    if f.state == ST_SKIP or f.state == ST_UNTIL_END:
        return
    if f.state == ST_NEW:
        stream_begins(c, side)
    stream_read(g, c, side, p, n, ts, seq, pos, ack, has_ack, starts)
    if n > 1:                     # one byte may be a keep-alive probe
        f.has_data_ack = has_ack
        f.data_ack = ack


cdef inline void stream_begins(Conn* c, int side) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    if f.from_syn:
        f.state = ST_START
    else:
        f.state = ST_RESYNC
        f.certain = 0
        c.flow[1 - side].certain = 0


cdef void stream_gap(Engine* g, Conn* c, int side, uint64_t n, uint8_t reason) noexcept nogil:
    """n bytes are not in the capture (H6)."""
    cdef Flow* f = &c.flow[side]
    if f.state == ST_NEW:
        stream_begins(c, side)
    if f.state == ST_SKIP or f.state == ST_UNTIL_END:
        return
    if f.state == ST_LENGTH and n <= f.left:
        f.left -= n
        if f.role == ROLE_REQUESTS:
            if f.current != NULL:
                message_holed(g, c, side, reason)
            if f.left == 0:
                message_ends(g, c, side)
        elif f.left == 0:
            f.state = ST_START
        return
    if f.state == ST_CHUNKED and f.chunked.state == CHUNKED_DATA and n <= f.chunked.left:
        f.chunked.left -= n
        if f.chunked.left == 0:
            f.chunked.state = CHUNKED_DATA_CR
        if f.role == ROLE_REQUESTS and f.current != NULL:
            message_holed(g, c, side, reason)
        return
    if f.role != ROLE_REPLIES:
        message_cut(g, c, side, reason)
    elif f.state == ST_HEAD and g.wire and reply_cut(g, c, side):
        return
    flow_lost(g, c, side)


cdef void message_holed(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """A gap inside a body whose end is known: incomplete, but read on to its end."""
    cdef Message* m = c.flow[side].current
    message_fails(g, m, reason)


cdef void stream_end(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """No more bytes of this flow."""
    cdef Flow* f = &c.flow[side]
    if f.role == ROLE_REQUESTS:
        if f.state == ST_HOLD:
            hold_unanswered(g, c, side)
        if f.state == ST_PEEK or f.current != NULL or f.state == ST_HEAD:
            message_cut(g, c, side, reason)
        if f.state != ST_SKIP:
            f.state = ST_START
            f.line_known = 0
            f.buf_len = 0
            f.trust = TRUST_UNCONFIRMED if f.trust == TRUST_CERTAIN else f.trust
            f.epoch += 1
    elif f.role == ROLE_REPLIES:
        while c.queue != NULL:
            queue_pop(g, c)
        if f.state != ST_SKIP:
            f.state = ST_RESYNC
            f.buf_len = 0
    if f.buf != NULL and f.buf_len == 0:
        free(f.buf)
        f.buf = NULL
        f.buf_cap = 0


cdef void stream_over(Engine* g, Conn* c) noexcept nogil:
    """Both flows have ended: no reply will come."""
    while c.queue != NULL:
        queue_pop(g, c)
