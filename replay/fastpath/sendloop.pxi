# The sender's loop: how long to sleep and for how many replies, time-outs, the end. Must not know: how things are done, only when.

cdef int64_t STOP_GRACE_NS = 60000000        # for replies that are on their way when the run is stopped
cdef int64_t STOP_QUEUE_NS = 110000000       # for ingest to mark the end of the queue
cdef enum:
    SENDER_WAITS_OWN = 16 * 1024  # a request that waits is copied up to this size

cdef int64_t STUCK_NS = 50000000             # after this a request under way gives its batch back
cdef int64_t PATIENCE_LEAST_NS = 10000       # a shorter sleep saves nothing
cdef int64_t PATIENCE_MOST_NS = 200000
cdef int64_t PATIENCE_PACED_NS = 120000      # of what service_us and latency_us say, at some 8,000 requests a second and more
cdef int64_t BREATH_BYTES = 256 << 10
cdef int64_t BREATH_RATE = 512000000         # bytes a second that a live sender reads at most: 4 Gbit/s
cdef int64_t BUNDLE_NS = 25000               # paced, with pipelining: what is due within this goes out in one write
cdef int64_t LEAD_MOST_NS = 50000
cdef uint64_t SENDER_SLICE_NS = 100000      # paced: of the processor; the least that the kernel gives
cdef int64_t LEAD_STEP_NS = 50
cdef int64_t PATIENCE_BUNCH_NS = 2000000     # where a connection has many under way
cdef int64_t BUNCH_LATE_NS = 2000000         # replies that are so much later than usual are not waited for together
cdef int64_t BUNCH_USUAL_NS = 25000000       # usual is at most this


cdef inline void sender_own_small(SenderState* s, SenderItem* item, int64_t now) noexcept nogil:
    if item.batch != NULL and item.length <= SENDER_WAITS_OWN and now - item.due_ns >= STUCK_NS:
        sender_own(s, item)


cdef void sender_own_waiting(SenderState* s, int64_t now) noexcept nogil:
    """Live: what waits for a slow target gives its batch back, or that target would take the memory of the others."""
    cdef SenderFlow* flow = s.wait_first
    cdef SenderItem* item
    cdef int32_t i
    while flow != NULL:
        item = flow.first
        while item != NULL:
            sender_own_small(s, item, now)
            item = item.next
        flow = flow.next
    for i in range(s.most):
        if s.connections[i].state == CONNECTION_OPEN:
            item = s.connections[i].first
            while item != NULL:
                sender_own_small(s, item, now)
                item = item.next


cdef void sender_tick(SenderState* s, int64_t now) noexcept nogil:
    """Time-outs, stuck requests, a target that is down: every few milliseconds while anything is out."""
    cdef SenderConnection* c
    cdef SenderItem* item
    cdef int32_t i
    cdef int32_t address
    # what is held up makes service_ns longer, which must not make it be held up for longer
    cdef int64_t late = BUNCH_LATE_NS + (2 * s.service_ns if s.service_ns < BUNCH_USUAL_NS else 2 * BUNCH_USUAL_NS)
    for i in range(s.most):
        c = &s.connections[i]
        if c.state == CONNECTION_CONNECTING:
            if now - c.since_ns >= s.connect_timeout_ns:
                address = c.address
                sender_shut(s, c, True)
                sender_failed(s, address, errno.ETIMEDOUT, now)
        elif c.state == CONNECTION_OPEN and c.way:
            if now - c.first.sent_ns >= s.timeout_ns:
                sender_close(s, c, REASON_TIMEOUT, False, c.written > 0, now)
            elif now - c.first.sent_ns >= STUCK_NS:
                item = c.first
                while item != NULL and item.flags & ITEM_WAY:
                    sender_own(s, item)
                    item = item.next
            if c.lowat > 1 and c.state == CONNECTION_OPEN and now - c.first.sent_ns >= late:
                sender_lowat(c, 1)
    if s.halt:
        return
    if s.pacer.kind == PACE_LIVE:            # never ends because of its target; what is too old, or stands before a shut gate, is let go
        s.base_ns = live_clock() - now       # the wall clock may be set
        sender_own_waiting(s, now)
        if atomic_get(&s.gate) == 0:
            sender_drop_waiting(s, REASON_BREAKER, PACE_NEVER, now)
        elif s.open == 0 and s.down_since_ns and now - s.down_since_ns >= s.timeout_ns:
            sender_drop_waiting(s, REASON_TARGET_DOWN, now - s.timeout_ns, now)
        elif s.expire_ns:
            sender_drop_waiting(s, REASON_EXPIRED, now - s.expire_ns, now)
    elif not s.ever:
        if s.first_attempt_ns and now - s.first_attempt_ns >= s.never_ns:
            count_add(&s.ledger.never_connected, 1 - s.ledger.never_connected)
            sender_halt(s, REASON_TARGET_DOWN, now)
    elif s.open == 0 and s.down_since_ns and now - s.down_since_ns >= s.timeout_ns:
        # those that were late before it went down get the whole time too
        sender_drop_waiting(s, REASON_TARGET_DOWN, now - s.timeout_ns, now)


cdef int64_t sender_sleep(SenderState* s, int64_t now, bint more) noexcept nogil:
    """How long nothing needs to be done, unless something happens."""
    cdef int64_t until = PACE_NEVER
    if more or s.again_count or s.dirty_count:
        return 0
    if s.batch != NULL and s.pacer.kind != PACE_ASAP and s.pacer.kind != PACE_LIVE:
        until = s.next_due_ns
    if (s.out or s.connecting or s.stop_ns) and s.next_tick_ns < until:
        until = s.next_tick_ns
    if until == PACE_NEVER:
        return -1
    until -= s.lead_ns                       # what a sleep usually lasts too long; the rest is spent looking again and again
    return until - now if until > now + 5000 else 0


cdef inline void sender_slept(SenderState* s, int64_t over_ns) noexcept nogil:
    """A sleep ended so much later than asked for. Three of ten end within the lead: a request that is late by some microseconds costs less than to spin
    for all of them."""
    if over_ns <= s.lead_ns:
        s.lead_ns -= LEAD_STEP_NS * 7
        if s.lead_ns < 0:
            s.lead_ns = 0
    elif s.lead_ns < LEAD_MOST_NS:
        s.lead_ns += LEAD_STEP_NS * 3


cdef bint sender_ended(SenderState* s) noexcept nogil:
    """The queue was marked as ended and nothing of it is left."""
    return atomic_get(s.queue_ended) != 0 and s.batch == NULL and ring_count(s.ring) == 0


cdef void sender_turn(SenderState* s, int64_t now) noexcept nogil:
    """Reads once more from those that were noted for it before this turn."""
    cdef int32_t count = s.again_count
    cdef int32_t i
    cdef SenderConnection* c
    cdef int32_t left
    for i in range(count):
        c = &s.connections[s.again[i]]
        c.again = 0
        if c.state == CONNECTION_OPEN:
            sender_read(s, c, now)
    left = s.again_count - count
    for i in range(left):
        s.again[i] = s.again[count + i]
    s.again_count = left


cdef uint32_t sender_patience(SenderState* s, int64_t sleep_ns, int64_t* patience_ns) noexcept nogil:
    """At full speed: for how many replies it is worth to sleep on, and for how long at most; 1 for the first one.

    To be woken for each reply costs more than to read it. A quarter of those under way leaves the server enough to do; an eighth of what a reply takes
    is the most that this can cost where the server is not busy but far away. Paced, replies wait for the next request where that is due at once."""
    cdef int64_t busy = s.out - s.unsent
    if 0 < sleep_ns <= PATIENCE_PACED_NS and s.batch != NULL and s.pacer.kind != PACE_ASAP and not s.halt:
        patience_ns[0] = sleep_ns
        return 1 << 16
    if s.pacer.kind != PACE_ASAP or s.halt or s.stop_ns or s.service_ns < PATIENCE_LEAST_NS * 8:
        return 1
    if busy > s.open:
        busy = s.open
    if busy < 8:
        return 1
    patience_ns[0] = s.service_ns // 8
    if patience_ns[0] > (PATIENCE_BUNCH_NS if s.bunch else PATIENCE_MOST_NS):
        patience_ns[0] = PATIENCE_BUNCH_NS if s.bunch else PATIENCE_MOST_NS
    return <uint32_t>(busy // 4 if busy < 512 else 128)


cdef void sender_breathe(SenderState* s) noexcept nogil:
    """Live: a shadow with endless replies gets no more of this machine than it takes to read BREATH_RATE, because production runs here too; TCP slows it down. What is read is
    thrown away, so that nothing but time is lost."""
    cdef int64_t total = count_get(&s.ledger.bytes_received)
    cdef int64_t due
    cdef int64_t now
    if total - s.breath_bytes < BREATH_BYTES:
        return
    now = now_ns()
    due = s.breath_ns + (total - s.breath_bytes) * 1000 // (BREATH_RATE // 1000000)
    if due > now:
        wait_a_moment(due - now)
        now = now_ns()
    s.breath_ns = now
    s.breath_bytes = total


cdef void sender_loop(SenderState* s) noexcept nogil:
    cdef int64_t now = now_ns()
    cdef int64_t sleep
    cdef int64_t patience = 0
    cdef int64_t until
    cdef int64_t taken
    cdef uint32_t want
    cdef bint more = True
    cdef bint asleep
    cdef int32_t i
    cdef SenderConnection* c
    s.next_tick_ns = now
    while True:
        sleep = sender_sleep(s, now, more)
        asleep = False
        if sleep != 0 and s.batch == NULL:
            atomic_set(s.queue_waiting, 1)   # then look once more: a push that missed the flag is seen here
            asleep = True
            if ring_count(s.ring) > 0:
                sleep = 0
        want = sender_patience(s, sleep, &patience)
        until = now + sleep
        atomic_set(&s.awake_ns, 0)
        if s.uring != NULL:
            now = uring_driver_wait(s, sleep, want, patience)
        else:
            now = epoll_driver_wait(s, sleep, want, patience)
        atomic_set(&s.awake_ns, now)
        if asleep:
            atomic_set(s.queue_waiting, 0)
        elif sleep > LEAD_MOST_NS // 4 and now > until and s.batch != NULL and s.pacer.kind != PACE_ASAP:
            sender_slept(s, now - until)
        sender_turn(s, now)
        if s.pacer.kind == PACE_LIVE:
            sender_breathe(s)
        if s.guard_hit != NULL and atomic_get(s.guard_hit):
            sender_halt(s, REASON_GUARD, now)
        if s.stop_ns == 0 and atomic_get(s.stop_flag):
            s.stop_ns = now
            s.next_tick_ns = now
            sender_halt(s, REASON_STOPPED, now)
        if not s.halt and atomic_get(&s.finishing):
            sender_halt(s, REASON_STOPPED, now)
        if s.halt and s.wait_first != NULL:  # came back from a connection that closed
            sender_drop_waiting(s, s.halt, PACE_NEVER, now)
        if now >= s.next_tick_ns:
            s.next_tick_ns = now + (1000000 if s.stop_ns else s.tick_ns)
            sender_tick(s, now)
        taken = s.ledger.taken
        more = sender_take(s, now)
        if s.bundle and s.ledger.taken != taken:
            s.hold_ns = now + BUNDLE_NS
        sender_dispatch(s, now)
        sender_expand(s, now)
        for i in range(s.dirty_count):
            c = &s.connections[s.dirty[i]]
            c.dirty = 0
            if s.uring != NULL:
                uring_driver_flush(s, c, now)
            else:
                epoll_driver_flush(s, c)
        s.dirty_count = 0
        if s.uring != NULL:
            uring_driver_submit(s)
        if s.marks != NULL:
            marks_tell(s.marks)
        if s.stop_ns:
            if s.out and now - s.stop_ns >= STOP_GRACE_NS:
                sender_cut(s, now)
            if s.out == 0 and (sender_ended(s) or now - s.stop_ns >= STOP_QUEUE_NS):
                return
        elif sender_ended(s):
            if s.out and s.unsent == 0 and now - s.last_send_ns >= s.drain_ns:
                sender_cut(s, now)
            if s.out == 0:
                return
