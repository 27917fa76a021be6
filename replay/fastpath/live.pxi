# What is different when packets come from a wire: no request waits for its reply, time goes on without packets, a full queue drops the newest, rules change
# while it runs. Must not know: sockets, files, what rules say.

cdef int64_t LIVE_ALWAYS = 1      # a stop flag that is set: memory is had at once or not at all


cdef enum:
    LIVE_TWINS = 8192

cdef int64_t LIVE_TWIN_NS = 1000000000       # so far apart two views of one packet may be

cdef struct Twin:                 # a request's head, as it was seen last
    uint64_t hash                 # of its bytes, sequence and acknowledgement number, which address translation leaves alone
    uint64_t flow
    int64_t ts_ns


cdef bint live_twin(Engine* g, Conn* c, const Flow* f, const uint8_t* p, size_t n) noexcept nogil:
    """This very request was just read on a connection with other addresses: before and behind a translation."""
    cdef uint64_t hash
    cdef Twin* one
    if not f.msg_has_ack:
        return False
    hash = xxh64(p, n, (<uint64_t>f.msg_seq << 32) | f.msg_ack)
    one = &g.twins[hash & (LIVE_TWINS - 1)]
    if one.hash == hash and one.flow != c.id and -LIVE_TWIN_NS < f.msg_ts - one.ts_ns < LIVE_TWIN_NS:
        return True
    one.hash = hash
    one.flow = c.id
    one.ts_ns = f.msg_ts
    return False


cdef inline bint live_settled(Engine* g, Message* m) noexcept nogil:
    """Nothing that its reply could tell decides about this request."""
    if m.incomplete:
        return not m.is_current
    if not m.whole:
        return False
    return m.replied or m.filtered or not (m.head_flags & HEAD_UPGRADE or m.ambiguous or (m.trust != TRUST_CERTAIN and not g.rules.loose))


cdef void live_out(Engine* g, Message* m) noexcept nogil:
    """A request goes on when it is whole, not when those before it are: a slow one holds nobody up. The caller lets it go."""
    if not m.in_window or not live_settled(g, m):
        return
    window_remove(g, m)
    if not g.finished:
        window_emit(g, m)
    if m.in_queue:
        message_unbuffer(g, m)    # it stays for its reply, its bytes need not


cdef void live_tick(Engine* g, int64_t ts) noexcept nogil:
    """No packet came for a moment; `ts` is what the capture clock says. What waits for time to pass is looked at."""
    cdef Conn* c = g.wait_first
    cdef Conn* after
    if ts <= g.packet_ns:
        return
    g.packet_ns = ts
    while c != NULL and ts - c.wait_since > R_HOLD_NS:
        after = c.wait_next
        while flow_hole_overdue(g, c, 0, ts) or flow_hole_overdue(g, c, 1, ts):
            flow_settle(g, c)
        flow_overdue(g, c, 0, ts)
        flow_overdue(g, c, 1, ts)
        flow_settle(g, c)
        c = after
    waits_overdue(g, ts)
    window_release(g, False)


cdef int64_t live_clock() noexcept nogil:
    """The clock of the kernel's packet time stamps."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec
