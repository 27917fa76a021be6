# Flows that wait, and what becomes of requests when a connection ends, the run is stopped or the target is down. Must not know: the drivers, what a reply means.
#
# A request is never sent twice: it goes again only when no byte of it was accepted by the kernel, or when it stood behind a reply that said it closes
# the connection (RFC 9112 9.3.2, 9.6).


cdef inline void sender_wait(SenderState* s, SenderFlow* flow) noexcept nogil:
    flow.next = NULL
    if s.wait_last == NULL:
        s.wait_first = flow
    else:
        s.wait_last.next = flow
    s.wait_last = flow
    s.wait_flows += 1


cdef void sender_drop_waiting(SenderState* s, int reason, int64_t due_before, int64_t now) noexcept nogil:
    """Ends waiting requests that were due before this moment. The others keep their place."""
    cdef SenderFlow* flow = s.wait_first
    cdef SenderFlow* after
    cdef SenderItem* item
    s.wait_first = s.wait_last = NULL
    s.wait_flows = 0
    while flow != NULL:
        after = flow.next
        while flow != NULL and flow.first != NULL and flow.first.due_ns < due_before:
            item = flow.first
            flow.first = item.next
            if flow.first == NULL:
                flow.last = NULL
                sender_finish(s, item, -1, reason, 0, now)       # forgets the flow too
                flow = NULL
            else:
                sender_finish(s, item, -1, reason, 0, now)
        if flow != NULL:
            sender_wait(s, flow)
        flow = after


cdef inline void sender_leave(SenderState* s, SenderFlow* flow) noexcept nogil:
    """One of its requests is no longer on a connection. With the last one the flow is free to go on elsewhere."""
    flow.on -= 1
    if flow.on == 0:
        flow.connection = -1
        if flow.first != NULL:
            sender_wait(s, flow)


cdef void sender_close(SenderState* s, SenderConnection* c, int reason, bint retry, bint abort, int64_t now) noexcept nogil:
    """Ends a connection. What was written is unanswered for `reason`, or with `retry` goes again; what was not written goes
    again in any case, in its order and before all that waits."""
    cdef SenderItem* item = c.first
    cdef SenderItem* after
    cdef SenderItem* back = NULL             # those that go again, the last one first
    cdef SenderFlow* flow
    cdef SenderFlow* first = NULL
    cdef SenderFlow* last = NULL
    cdef int32_t index = <int32_t>(c - s.connections)
    cdef int32_t address = c.address
    if c.state == CONNECTION_OPEN and not c.used and not s.halt:
        sender_failed(s, address, errno.ECONNRESET, now)         # accepted and closed at once: no busy loop with such a server
    c.first = c.last = c.cursor = NULL
    c.way = c.load = 0
    sender_shut(s, c, abort)
    while item != NULL:
        after = item.next
        flow = item.flow
        if item.flags & ITEM_WAY and not retry:
            sender_leave(s, flow)
            sender_finish(s, item, address, reason, 0, now)
        else:
            if item.flags & ITEM_WAY:
                item.flags &= <uint8_t>~ITEM_WAY
                s.unsent += 1
                count_add(&s.ledger.retried, 1)
            flow.on -= 1
            item.next = back
            back = item
            if flow.connection == index:
                flow.connection = -1
                flow.next = NULL
                if last == NULL:
                    first = flow
                else:
                    last.next = flow
                last = flow
                s.wait_flows += 1
        item = after
    while back != NULL:
        item = back
        back = item.next
        item.next = item.flow.first
        item.flow.first = item
        if item.next == NULL:
            item.flow.last = item
    if first != NULL:
        last.next = s.wait_first
        s.wait_first = first
        if s.wait_last == NULL:
            s.wait_last = last


cdef void sender_halt(SenderState* s, int reason, int64_t now) noexcept nogil:
    """From now on nothing is sent: what has no byte at the kernel ends here, what was written may still be answered."""
    cdef SenderConnection* c
    cdef int32_t i
    if s.halt:
        return
    s.halt = <uint8_t>reason
    for i in range(s.most):
        c = &s.connections[i]
        if c.state == CONNECTION_OPEN:
            sender_lowat(c, 1)
        if c.state == CONNECTION_CONNECTING or (c.state == CONNECTION_OPEN and c.way == 0):
            sender_close(s, c, reason, False, False, now)
        elif c.state == CONNECTION_OPEN and reason == REASON_GUARD and c.written > 0:
            sender_close(s, c, reason, False, True, now)         # half of a request at the kernel: no byte more
        elif c.state == CONNECTION_OPEN:
            sender_drop_pending(s, c, reason, now)
    if s.bunch:
        sender_drop_parked(s, reason, now)
    sender_drop_waiting(s, reason, PACE_NEVER, now)


cdef void sender_drop_parked(SenderState* s, int reason, int64_t now) noexcept nogil:
    """Ends what waits for requests of its own flow that are on a connection."""
    cdef SenderFlow* flow
    cdef SenderItem* item
    cdef uint64_t i
    for i in range(s.flows_mask + 1):
        flow = s.flows[i]
        while flow != NULL:
            while flow.on and flow.first != NULL:        # on: it is not forgotten meanwhile
                item = flow.first
                flow.first = item.next
                sender_finish(s, item, -1, reason, 0, now)
            if flow.first == NULL:
                flow.last = NULL
            flow = flow.chain


cdef void sender_drop_pending(SenderState* s, SenderConnection* c, int reason, int64_t now) noexcept nogil:
    """Ends what stands on this connection and was not begun."""
    cdef SenderItem* item = c.first
    cdef SenderItem* last = NULL
    cdef SenderItem* after
    while item != NULL and item.flags & ITEM_WAY:
        last = item
        item = item.next
    if c.cursor == item:
        c.cursor = NULL
    c.last = last
    if last == NULL:
        c.first = NULL
    else:
        last.next = NULL
    while item != NULL:
        after = item.next
        c.load -= 1
        sender_leave(s, item.flow)
        sender_finish(s, item, c.address, reason, 0, now)
        item = after
    sender_place(s, c)


cdef void sender_cut(SenderState* s, int64_t now) noexcept nogil:
    """Stopped, or drained for long enough: what is still under way stays without an answer."""
    cdef SenderConnection* c
    cdef int32_t i
    sender_halt(s, REASON_STOPPED, now)
    for i in range(s.most):
        c = &s.connections[i]
        if c.state != CONNECTION_FREE:
            sender_close(s, c, REASON_TIMEOUT if c.first != NULL and now - c.first.sent_ns >= s.timeout_ns else REASON_STOPPED, False, False, now)
    sender_drop_waiting(s, REASON_STOPPED, PACE_NEVER, now)
