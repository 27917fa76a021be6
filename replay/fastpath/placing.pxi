# Which connections there are, and which flow goes on which of them. Must not know: bytes, replies.


cdef void sender_connected(SenderState* s, SenderConnection* c, bint failed, int64_t now) noexcept nogil:
    """The connect ended, one way or the other. failed: the kernel has an error for us."""
    cdef SenderAddress* a = &s.addresses[c.address]
    cdef int error = 0
    cdef socklen_t size = sizeof(int)
    cdef int32_t address = c.address
    if failed and getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0:
        error = errno.errno
    if error == 0 and sender_is_self(c.fd, a):
        error = errno.ECONNREFUSED
    if error:
        sender_shut(s, c, error == errno.ECONNREFUSED)
        if not sender_limited(s, error, now):
            sender_failed(s, address, error, now)
        return
    c.state = CONNECTION_OPEN
    c.since_ns = -1                          # no reply yet
    s.connecting -= 1
    a.connecting -= 1
    a.fails = 0
    s.open += 1
    s.ever = True
    s.open_delay_ns = 0
    count_add(&s.ledger.connections_opened, 1)
    count_add(&s.ledger.connections_open, 1)
    if s.uring != NULL:
        uring_driver_connected(s, c)
    sender_place(s, c)


cdef inline bint sender_healthy(SenderAddress* a, int64_t now) noexcept nogil:
    """May a connection to this address be tried? While it fails, one at a time, and not before its time."""
    return now >= a.next_try_ns and (a.fails == 0 or a.connecting == 0)


cdef void sender_expand(SenderState* s, int64_t now) noexcept nogil:
    """Opens a connection for each flow that waits, up to the ceiling; and one to each address that has none."""
    cdef int64_t need = s.wait_flows - s.connecting
    cdef int32_t tried = 0
    cdef int32_t at
    if s.halt or s.out == 0 or now < s.open_after_ns:
        return
    while need > 0 and s.live < s.most and tried < s.addresses_count:
        at = s.next_address
        s.next_address = (at + 1) % s.addresses_count
        if not sender_healthy(&s.addresses[at], now):
            tried += 1
            continue
        tried = 0
        need -= 1
        if sender_open(s, at, now) == NEED_MORE:
            return
    if s.addresses_count > 1:
        for at in range(s.addresses_count):
            if s.live < s.most and s.addresses[at].live == 0 and sender_healthy(&s.addresses[at], now):
                if sender_open(s, at, now) == NEED_MORE:
                    return


cdef SenderConnection* sender_pick(SenderState* s, int64_t now) noexcept nogil:
    """An idle connection, the addresses in turn; else, when no more may be opened, the least loaded one with room."""
    cdef SenderAddress* a
    cdef int32_t k
    cdef int32_t at
    cdef int32_t load
    cdef int32_t best = -1
    cdef int32_t best_load = SENDER_PIPELINE
    cdef bint may_open = s.live < s.most and now >= s.open_after_ns
    cdef bint healthy = s.connecting > 0
    for k in range(s.addresses_count):
        at = (s.next_address + k) % s.addresses_count
        a = &s.addresses[at]
        if a.mask & 1:
            s.next_address = (at + 1) % s.addresses_count
            return &s.connections[a.bucket[0]]
        healthy = healthy or sender_healthy(a, now)
        if a.mask:
            load = histogram_ctz(a.mask)
            if load < best_load:
                best_load = load
                best = a.bucket[load]
    if best < 0 or (may_open and healthy):
        return NULL
    return &s.connections[best]


cdef void sender_dispatch(SenderState* s, int64_t now) noexcept nogil:
    """Gives waiting flows to connections that have room. A flow goes with all that it has: its order is the connection's."""
    cdef SenderFlow* flow
    cdef SenderConnection* c
    cdef SenderConnection* bundle = NULL     # paced, with pipelining: what is due together goes out together
    while s.wait_first != NULL and not s.halt:
        c = bundle
        if c == NULL or c.load >= s.pipeline:
            c = sender_pick(s, now)
            if c == NULL:
                return
            bundle = c if s.bundle and c.way == 0 else NULL
        flow = s.wait_first
        s.wait_first = flow.next
        if s.wait_first == NULL:
            s.wait_last = NULL
        s.wait_flows -= 1
        flow.connection = <int32_t>(c - s.connections)
        if c.last == NULL:
            c.first = flow.first
        else:
            c.last.next = flow.first
        if c.cursor == NULL:
            c.cursor = flow.first
        c.last = flow.last
        c.load += flow.count
        flow.on = flow.count
        flow.first = flow.last = NULL
        sender_place(s, c)
        sender_dirty(s, c)
