# Whole heads in: a request that begins and waits for its reply, a reply and whose it is, tunnels (docs/design.md H4 to H11).
# Must not know: how heads are cut out of a stream (streams.pxi), packets, files, sockets.

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


cdef void queue_out(Engine* g, Message* m) noexcept nogil:
    """Live: this request, and those behind it in its queue, go on if nothing is open about them any more, in their order."""
    cdef Message* after
    while m != NULL:
        after = m.queue_next
        live_out(g, m)
        message_let_go(g, m)
        m = after


cdef bint queue_confirm(Engine* g, Conn* c, int request_side, Message* m) noexcept nogil:
    """H8: the server answered at exactly this request, so it is one; what follows it without a new doubt is certain too. True when something was open."""
    cdef Flow* f = &c.flow[request_side]
    cdef uint32_t epoch = m.epoch
    if m.trust == TRUST_CERTAIN:
        return False
    if f.state == ST_HEAD and not f.line_known and f.buf_len and f.msg_has_ack and f.msg_ack == m.ack:
        return False              # what came behind it before the answer is no request line so far: flow_belies may yet be told
    if m.trust == TRUST_AMBIGUOUS and (not m.starts or <int32_t>(m.ack - m.doubt_ack) <= 0):
        return False
    if f.epoch == epoch:
        f.trust = TRUST_CERTAIN
    while m != NULL:
        if m.epoch == epoch:
            m.trust = TRUST_CERTAIN
        m = m.queue_next
    return True


cdef Message* queue_match(Engine* g, Conn* c, int side, uint32_t seq, bint* confirmed) noexcept nogil:
    """The request that a status line at `seq` answers (H11); NULL: none. Earlier ones without an answer leave the queue. confirmed: of queue_confirm."""
    cdef Flow* f = &c.flow[side]
    cdef Message* m = c.queue
    if f.certain:
        if m != NULL and m.has_ack and m.ack == seq and not m.follows:
            confirmed[0] = queue_confirm(g, c, 1 - side, m)
        return m
    while m != NULL and not (m.has_ack and m.ack == seq and not m.follows and (m.starts or not c.joined)):    # one in front of it may not be in the queue
        m = m.queue_next
    if m == NULL:
        return NULL
    while c.queue != m:
        queue_pop(g, c)
    f.certain = 1
    confirmed[0] = queue_confirm(g, c, 1 - side, m)
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
    cdef bint asks                # its reply decides something
    if g.locality != NULL and live_elsewhere(g, c, side):      # before its twin is looked for: the other view may be the one that is wanted
        f.buf_len = 0
        flow_is_other(g, c, OTHER_ELSEWHERE)
        return
    if g.twins != NULL and live_twin(g, c, f, p, n):
        f.buf_len = 0
        flow_is_other(g, c, OTHER_TWIN)
        return
    if g.one_sided and c.flow[1 - side].started and deaf_to(c, 1 - side):
        conn_deafen(g, c, 1 - side)
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
    asks = h.flags & HEAD_EXPECT and (h.framing == FRAMING_CHUNKED or h.content_length > 0)
    if asks and (g.one_sided or before_heard(g, f.msg_ts)):
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
    if asks or h.flags & HEAD_CONNECT or (m.sampled == 1 and (f.trust != TRUST_CERTAIN or h.flags & HEAD_UPGRADE)):
        count_add(&g.n.asking, 1)
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
            if m.raw == NULL and not m.incomplete and mapping_lost(p, n):
                m.len = 0
                message_fails(g, m, INCOMPLETE_CUT_AT_END)
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
    cdef bint confirmed = False
    f.buf_len = 0
    if not f.spoke:
        guard_looks(g, c, side)
    f.spoke = 1
    if parsed != OK:
        flow_lost(g, c, side)
        return
    m = queue_match(g, c, side, f.msg_seq, &confirmed)
    if (m == NULL and c.joined and c.flow[1 - side].state == ST_HOLD and not 100 <= h.status <= 199
            and c.queue_last != NULL and not c.queue_last.flags & REQUEST_CONNECT and not c.queue_last.follows):
        m = hold_overtaken(g, c, side, f.msg_seq, &confirmed)
    if 100 <= h.status <= 199 and h.status != 101:
        if m == NULL and h.length:
            c.has_interim = 1
            c.interim = f.msg_seq + h.length
        if confirmed and g.wire:
            queue_out(g, m)
        f.state = ST_START
        return
    if m == NULL and h.status == 101 and c.joined and c.flow[1 - side].state == ST_HOLD:
        flow_is_other(g, c, OTHER_UPGRADED)
        return
    if m == NULL:
        if h.status != 408 and not (g.one_sided or c.joined):       # a server that gives up waiting answers nobody
            count_add(&g.n.orphans, 1)
        if f.certain:
            f.certain = 0
        f.state = ST_RESYNC
        return
    count_add(&g.n.matched, 1)
    c.joined = 0
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
    if confirmed and g.wire:
        queue_out(g, m)
    elif g.wire:
        live_out(g, m)            # before what was held behind it
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


cdef inline void flow_doubt(Engine* g, Flow* f) noexcept nogil:
    """What follows is a request only if a reply says so (H8)."""
    if f.trust == TRUST_CERTAIN and not g.rules.loose:
        f.trust = TRUST_UNCONFIRMED
    f.epoch += 1


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
