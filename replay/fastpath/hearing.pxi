# A tap that hears what clients say alone, and what changes when it begins or ends to hear servers too (docs/design.md L1).
# Must not know: sockets, files, when that is decided (tap/hearing.py).

cdef int64_t HEARD_BEHIND_NS = 60000000000


cdef inline bint deaf_to(const Conn* c, int side) noexcept nogil:
    """This side is the server, as is known: it did not open the connection, or it has replied. What comes of it all the same was on its way when
    the filter changed, or is what the filter could not tell: with only some of it, bytes would wait for others that never come."""
    return side != c.opener - 1 if c.opener else c.flow[side].role == ROLE_REPLIES


cdef inline bint asks_to_switch(const Message* m) noexcept nogil:
    return m != NULL and (m.flags & REQUEST_CONNECT or m.head_flags & HEAD_UPGRADE)


cdef void flow_unacked(Engine* g, const Conn* c, Flow* f) noexcept nogil:
    """No acknowledgement of its bytes will be heard."""
    cdef Pending* p = f.first
    while p != NULL:
        if p.acked_ts < 0:
            p.acked_ts = g.packet_ns
            p.acked_no = c.packets
        p = p.next
    f.unacked = NULL


cdef void requests_unanswered(Engine* g, Conn* c, int side) noexcept nogil:
    """No reply to this side's requests will be heard."""
    cdef Flow* f = &c.flow[side]
    cdef Message* last
    if f.current != NULL and f.current.head_flags & HEAD_EXPECT and f.current.status == 0 and f.current.body_len == 0:
        f.current.ambiguous = 2   # whether the body comes will not be heard (H9)
    # What is held waits for the newest request's answer, and is read on when a reply is heard again (hold_overtaken).
    last = c.queue_last if f.state == ST_HOLD or asks_to_switch(f.current) else NULL
    while c.queue != last:
        queue_pop(g, c)
    if last != NULL:
        live_out(g, last)
        message_let_go(g, last)


cdef void conn_deafen(Engine* g, Conn* c, int side) noexcept nogil:
    """Nothing more is heard of this side, the server's: no reply is waited for, nothing waits for its bytes, no acknowledgement comes."""
    cdef Flow* f = &c.flow[side]
    cdef Flow* o = &c.flow[1 - side]
    cdef uint8_t* buf = f.buf
    cdef uint32_t cap = f.buf_cap
    cdef uint8_t ended = f.ended
    cdef uint8_t has_bytes = f.has_bytes
    cdef uint8_t role = f.role
    cdef bint skipped = f.state == ST_SKIP
    if f.current != NULL:         # it was taken for the client's
        message_cut(g, c, side, INCOMPLETE_GAP)
    pending_free(g, f)
    memset(f, 0, sizeof(Flow))
    f.buf = buf                   # conn_holds gives it back
    f.buf_cap = cap
    f.ended = ended
    f.has_bytes = has_bytes
    f.state = ST_SKIP if skipped else ST_NEW
    f.beyond_ts = -1
    f.role = ROLE_REPLIES if role == ROLE_UNKNOWN and o.role == ROLE_REQUESTS else role
    f.trust = TRUST_UNCONFIRMED               # should it be requests
    c.plain = 0
    flow_unacked(g, c, o)
    requests_unanswered(g, c, 1 - side)


cdef void conn_undecided(Engine* g, Conn* c) noexcept nogil:
    """Nothing more is heard of servers; which side is the client's is not known, or it is no HTTP. No acknowledgement of either is waited for."""
    cdef Flow* f
    cdef int side
    for side in range(2):
        f = &c.flow[side]
        f.beyond_ts = -1
        if f.acked > f.next:
            f.acked = f.next
        flow_unacked(g, c, f)
        if f.role == ROLE_REQUESTS:
            requests_unanswered(g, c, side)


cdef void conn_hear(Engine* g, Conn* c) noexcept nogil:
    """Servers are heard again. What they said meanwhile is no gap, and what clients say is acknowledged again."""
    cdef Flow* f
    cdef Pending* p
    cdef int side
    for side in range(2):
        f = &c.flow[side]
        if f.role == ROLE_UNKNOWN and c.flow[1 - side].role == ROLE_REQUESTS and c.opener and deaf_to(c, side):
            f.role = ROLE_REPLIES
        f.unheard = f.started and f.role != ROLE_REQUESTS
        p = f.first
        while p != NULL and p.pos <= f.acked:
            p = p.next
        f.unacked = p
        while p != NULL:
            p.acked_ts = -1
            p = p.next


cdef void hearing_change(Engine* g, bint one_sided) noexcept nogil:
    """From now on nothing that servers say is captured; or it is, again."""
    cdef Conn* c
    cdef Conn* after
    cdef int i
    if one_sided == g.one_sided:
        return
    g.one_sided = one_sided
    if not one_sided:
        g.heard_ns = live_clock()             # packets of before may have come through the filter of before
    for i in range(LIST_HALF_OPEN, LIST_CLOSED + 1):
        c = g.lists[i].first
        while c != NULL:
            after = c.next
            c.joined = not one_sided
            c.plain = 0
            if not one_sided:
                conn_hear(g, c)
            elif deaf_to(c, 0) or deaf_to(c, 1):
                conn_deafen(g, c, 0 if deaf_to(c, 0) else 1)
            else:
                conn_undecided(g, c)
            flow_settle(g, c)
            conn_heads(g, c)
            c = after


cdef inline bint before_heard(const Engine* g, int64_t ts) noexcept nogil:
    """This packet lay in the ring already when replies were let through again: those to it may not be there. A clock that was set back is no matter for long."""
    return 0 < g.heard_ns - ts < HEARD_BEHIND_NS


cdef Message* hold_overtaken(Engine* g, Conn* c, int side, uint32_t seq, bint* confirmed) noexcept nogil:
    """A reply at `seq` that belongs to no request, while bytes behind an upgrade wait for its answer (H10), which came while nothing was heard: a server that
    had switched would not go on with status lines, so it is HTTP that waits. Returns the request that the reply answers, or NULL."""
    cdef Flow* o = &c.flow[1 - side]
    while c.queue != NULL:
        queue_pop(g, c)
    flow_doubt(g, o)
    hold_release(g, c, 1 - side)
    return queue_match(g, c, side, seq, confirmed)
