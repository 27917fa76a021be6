# Sending: takes batches when their requests are due, keeps the order of each captured connection, writes, frames replies,
# and accounts for every request exactly once (`sender_finish`). One thread, one driver (io_uring or epoll), no locks.
#
#     queue -> sender_take -> flow waits -> sender_dispatch -> connection -> sender_gather -> driver -> sender_bytes -> sender_finish
#
# A request is never sent twice: it goes again only when no byte of it was accepted by the kernel, or when it stood behind
# a reply that said it closes the connection (RFC 9112 9.3.2, 9.6).

cdef enum:
    SENDER_TAKE = 256             # rows taken up in one turn, so that replies are read in between
    SENDER_READS = 4              # full buffers read from one connection in one turn
    SENDER_EVENTS = 1024
    BUNCH_LEAST = 4               # replies that are worth to be waited for together
    BUNCH_MOST = 32768            # bytes of them
    KEY_QUEUE = 0xFFFFFFFF
    KEY_STOP = 0xFFFFFFFE

cdef int64_t STOP_GRACE_NS = 60000000        # for replies that are on their way when the run is stopped
cdef int64_t STOP_QUEUE_NS = 110000000       # for ingest to mark the end of the queue
cdef int64_t IDLE_PEEK_NS = 1000000          # a connection idle for longer is looked at before it is used
cdef enum:
    SENDER_WAITS_OWN = 16 * 1024  # a request that waits is copied up to this size

cdef enum:
    GATE_PASSES = 255             # the part of a gate that says how many
cdef int64_t STUCK_NS = 50000000             # after this a request under way gives its batch back
cdef int64_t PATIENCE_LEAST_NS = 10000       # a shorter sleep saves nothing
cdef int64_t PATIENCE_MOST_NS = 200000
cdef int64_t PATIENCE_PACED_NS = 120000      # of what service_us and latency_us say, at some 8,000 requests a second and more
cdef int64_t BUNDLE_NS = 25000               # paced, with pipelining: what is due within this goes out in one write
cdef int64_t LEAD_MOST_NS = 50000
cdef int64_t LEAD_STEP_NS = 50
cdef int64_t PATIENCE_BUNCH_NS = 2000000     # where a connection has many under way
cdef int64_t BUNCH_LATE_NS = 2000000         # replies that are so much later than usual are not waited for together
cdef int64_t BUNCH_USUAL_NS = 25000000       # usual is at most this


# ---- the end of a request -------------------------------------------------------------------------------------------------

cdef void sender_note(SenderState* s, SenderItem* item, int32_t address, int outcome, int reason, int status, int64_t now) noexcept nogil:
    """Hands a record of the request to whoever reads the outcomes."""
    cdef SenderNote* note = item.note
    item.note = NULL
    if note == NULL and item.batch != NULL and ring_count(s.outcomes) < s.outcomes_slots:
        note = note_make(item.row, s.outcomes_head)
    if note == NULL:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note.due_ns = item.due_ns
    note.end_ns = now
    note.base_ns = s.base_ns
    note.outcome = <uint8_t>outcome
    note.reason = <uint8_t>reason
    note.status = status
    note.address = address
    if item.flags & ITEM_SENT:
        note.sent_ns = item.sent_ns
        note.first_byte_ns = item.first_byte_ns
    if address >= 0 and outcome == OUTCOME_ANSWERED:
        note.received = item.reply_bytes
        note.body_len = item.reply_body
    if not ring_push(s.outcomes, note):
        free(note)
        count_add(&s.ledger.outcomes_lost, 1)


cdef inline void sender_mark(SenderState* s, const SenderItem* item, int outcome, int status, int64_t now) noexcept nogil:
    """Tells the judge of the request."""
    cdef Mark* mark = marks_next(s.marks)
    if mark == NULL:
        return
    mark.due_ns = item.due_ns
    mark.sent_ns = item.sent_ns if item.flags & ITEM_SENT else 0
    mark.first_byte_ns = item.first_byte_ns if item.flags & ITEM_SENT else 0
    mark.end_ns = now
    mark.response_ns = item.response_ns
    mark.endpoint = item.endpoint
    mark.captured = item.status
    mark.status = <uint16_t>status
    mark.outcome = <uint8_t>outcome


cdef void sender_mark_row(SenderState* s, const Request* row, int64_t due_ns, int64_t now) noexcept nogil:
    """Tells the judge of a row that never became an item."""
    cdef Mark* mark = marks_next(s.marks)
    if mark == NULL:
        return
    mark.due_ns = due_ns
    mark.sent_ns = mark.first_byte_ns = 0
    mark.end_ns = now
    mark.response_ns = row.response_ns
    mark.endpoint = endpoint_of(&s.marks.endpoints, row)
    mark.captured = row.status
    mark.status = 0
    mark.outcome = OUTCOME_DROPPED


cdef void sender_finish(SenderState* s, SenderItem* item, int32_t address, int reason, int status, int64_t now) noexcept nogil:
    """The one place where a request ends. reason 0: answered with `status`; else unanswered when a byte of it was sent, dropped when none was."""
    cdef SenderLedger* l = s.ledger
    cdef SenderFlow* flow = item.flow
    cdef int outcome
    if reason == REASON_NONE:
        outcome = OUTCOME_ANSWERED
        count_add(&l.answered, 1)
        ledger_status(l, item.status, status)
        histogram_record(&l.latency, now - item.due_ns, 1)
        histogram_record(&l.service, now - item.sent_ns, 1)
        s.service_ns += (now - item.sent_ns - s.service_ns) // 64
    elif item.flags & ITEM_SENT:
        outcome = OUTCOME_UNANSWERED
        count_add(&l.unanswered[reason], 1)
    else:
        outcome = OUTCOME_DROPPED
        count_add(&l.dropped[reason], 1)
    if s.marks != NULL:
        sender_mark(s, item, outcome, status, now)
        if s.outcomes != NULL:
            sender_note(s, item, address, outcome, reason, status, now)
    if item.batch != NULL:
        batch_release(item.batch)
    if item.copy != NULL:
        free(item.copy)
    if not item.flags & ITEM_WAY:
        s.unsent -= 1
    s.out -= 1
    if flow != NULL:
        flow.count -= 1
        if flow.count == 0:
            sender_forget(s, flow)
    item.next = s.free_items
    s.free_items = item


# ---- waiting flows --------------------------------------------------------------------------------------------------------

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


# ---- closing ----------------------------------------------------------------------------------------------------------------

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


# ---- writing ----------------------------------------------------------------------------------------------------------------

cdef inline void sender_dirty(SenderState* s, SenderConnection* c) noexcept nogil:
    if not c.dirty:
        c.dirty = 1
        s.dirty[s.dirty_count] = <int32_t>(c - s.connections)
        s.dirty_count += 1


cdef inline void sender_again(SenderState* s, SenderConnection* c) noexcept nogil:
    if not c.again:
        c.again = 1
        s.again[s.again_count] = <int32_t>(c - s.connections)
        s.again_count += 1


cdef void sender_wrote(SenderState* s, SenderConnection* c, uint64_t n, int64_t now) noexcept nogil:
    """The kernel took n bytes, from the cursor on."""
    cdef SenderLedger* l = s.ledger
    cdef SenderItem* item
    cdef uint64_t left
    count_add(&l.bytes_sent, <int64_t>n)
    while n > 0:
        item = c.cursor
        if not item.flags & ITEM_WAY:
            item.sent_ns = now
            item.first_byte_ns = 0
            s.unsent -= 1
            c.way += 1
            if not item.flags & ITEM_SENT:
                count_add(&l.sent, 1)
                histogram_record(&l.lag, now - item.due_ns, 1)
            item.flags |= ITEM_SENT | ITEM_WAY
            if item.flags & ITEM_HTTP10:
                c.barrier = 1
        left = item.length - c.written
        if n < left:
            c.written += n
            return
        n -= left
        c.written = 0
        c.cursor = item.next
        if item == c.first:                  # behind no reply that could close the connection: it never goes again
            sender_let_go(s, item)


cdef int sender_gather(SenderState* s, SenderConnection* c, iovec* parts, uint64_t* total) noexcept nogil:
    """What this connection has and may begin, as at most SENDER_PIPELINE parts: several requests in one write. Returns how many; 0: nothing."""
    cdef SenderItem* item = c.cursor
    cdef uint64_t written = c.written
    cdef int32_t room = <int32_t>s.pipeline - <int32_t>c.way
    cdef int count = 0
    total[0] = 0
    while item != NULL and count < SENDER_PIPELINE and total[0] < SENDER_WRITE:
        if written == 0:
            if room <= 0 or c.barrier or s.halt or (item.flags & ITEM_HTTP10 and item != c.first):
                break
            if c.reply.state > REPLY_FIELDS and not reply_persists(&c.reply):
                break                        # the reply that is coming closes the connection
            if s.pacer.kind == PACE_ASAP and 2 * c.way > s.pipeline:
                break                        # nothing is late at full speed: wait until several fit into one write
            room -= 1
        parts[count].iov_base = <void*>(item.data + written)
        parts[count].iov_len = <size_t>(item.length - written)
        total[0] += item.length - written
        written = 0
        count += 1
        if item.flags & ITEM_HTTP10:
            break
        item = item.next
    return count


cdef bint sender_may_write(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """The last looks before a write: no captured server is the target, and the server did not hang up meanwhile."""
    if s.guard_hit != NULL and atomic_get(s.guard_hit) and not s.halt:
        sender_halt(s, REASON_GUARD, now)
        return False
    if c.way == 0 and c.used and now - c.since_ns > IDLE_PEEK_NS and now - s.seen_ns > IDLE_PEEK_NS and sender_gone(c.fd):
        c.hangup = 1
        sender_again(s, c)
        c.broken = 1                         # nothing is written; reading finds out what it is
        return False
    return True


cdef inline void sender_bunch(SenderState* s, SenderConnection* c) noexcept nogil:
    """All replies to what is under way here are read at once: to be woken for each costs more than to read it. Too much is asked for when replies
    become shorter; `sender_tick` sees to that."""
    cdef int64_t wanted = 1
    if c.way >= BUNCH_LEAST and s.reply_least and not s.halt:
        wanted = c.way * s.reply_least if s.open >= 8 else c.way * s.reply_least // 2
        wanted -= c.reply_bytes              # of a reply that came in part
        if wanted < 1:
            wanted = 1
        if wanted > BUNCH_MOST:
            wanted = BUNCH_MOST
        if wanted >= c.lowat and wanted <= c.lowat + c.lowat // 8:
            return
    sender_lowat(c, <int32_t>wanted)


cdef void sender_written(SenderState* s, SenderConnection* c, int64_t n, int64_t now) noexcept nogil:
    """The kernel took n bytes; or n is an errno below zero. EAGAIN: it is full, the driver says when it is not."""
    if n <= 0:
        if n < 0 and n != -errno.EAGAIN and n != -errno.EINTR:
            atomic_set(&s.ledger.last_errno, -n)
            c.broken = 1                     # a reply may have come before the end: read it first
            c.hangup = 1
            sender_again(s, c)
        return
    if not c.used:
        c.used = 1
        s.addresses[c.address].delay_ns = 0
        s.down_since_ns = 0
    s.last_send_ns = now
    if s.ledger.first_sent_ns == 0:
        atomic_set(&s.ledger.first_sent_ns, now + s.base_ns)
    s.ledger.last_sent_ns = now + s.base_ns
    sender_wrote(s, c, <uint64_t>n, now)
    if s.bunch:
        sender_bunch(s, c)


# ---- reading ----------------------------------------------------------------------------------------------------------------

cdef bint sender_answered(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """The oldest request has its whole reply. True: the connection ended with it."""
    cdef SenderItem* item = c.first
    cdef Reply* r = &c.reply
    cdef bint said = not reply_persists(r)
    cdef bint partly = item == c.cursor
    cdef bint ends = said or partly or r.status == 101 or r.state == REPLY_UNTIL_CLOSE or (item.flags & ITEM_HTTP10 and not r.keep_alive)
    cdef int status = r.status
    if said and c.since_ns == -1 and item.next != NULL and item.next.flags & ITEM_WAY:
        s.pipeline = 1                       # closes with its first reply: what stands behind would always go twice
    count_add(&s.ledger.interim, r.interim)
    if r.retry_after:
        atomic_set(&s.ledger.retry_after_s, r.retry_after)
    item.reply_bytes = c.reply_bytes
    item.reply_body = <int64_t>r.body_len
    if c.reply_bytes < s.reply_least or s.reply_least == 0:
        s.reply_least = c.reply_bytes
    else:
        s.reply_least += (c.reply_bytes - s.reply_least) >> 8
    c.reply_bytes = 0
    c.first = item.next
    if c.first == NULL:
        c.last = NULL
    if partly:
        c.cursor = item.next
        c.written = 0
    c.way -= 1
    c.load -= 1
    c.barrier = 0
    c.since_ns = now
    sender_leave(s, item.flow)
    sender_finish(s, item, c.address, REASON_NONE, status, now)
    reply_reset(r)
    if ends:
        sender_close(s, c, REASON_CLOSED, said, False, now)
        return True
    if c.first != NULL and c.first != c.cursor and c.first.flags & ITEM_WAY:
        sender_let_go(s, c.first)
    sender_place(s, c)
    if c.cursor != NULL:
        sender_dirty(s, c)
    return False


cdef bint sender_bytes(SenderState* s, SenderConnection* c, const uint8_t* data, size_t n, int64_t now) noexcept nogil:
    """What the server sent. True: the connection ended."""
    cdef size_t at = 0
    cdef size_t used = 0
    cdef int got
    cdef SenderItem* item
    while at < n:
        if c.way == 0:
            if data[at] == c'\r' or data[at] == c'\n':
                at += 1
                continue
            count_add(&s.ledger.surplus, 1)
            sender_close(s, c, REASON_GARBAGE, False, False, now)
            return True
        item = c.first
        if item.first_byte_ns == 0:
            item.first_byte_ns = now
        got = reply_feed(&c.reply, data + at, n - at, (item.flags & ITEM_HEAD) != 0, &s.memo, &used)
        if got == MALFORMED:
            sender_close(s, c, REASON_GARBAGE, False, False, now)
            return True
        at += used
        c.reply_bytes += <int64_t>used
        if got == OK and sender_answered(s, c, now):
            return True
    if c.lowat > 1 and c.way:                # some came before we could say that we wait for all: what is left may never be as much
        sender_bunch(s, c)
    return False


cdef void sender_eof(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """The server sends no more."""
    if c.way and reply_eof(&c.reply) == OK and sender_answered(s, c, now):
        return
    if c.state == CONNECTION_OPEN:
        sender_close(s, c, REASON_CLOSED, False, False, now)


cdef void sender_fault(SenderState* s, SenderConnection* c, int error, int64_t now) noexcept nogil:
    """Reading failed."""
    atomic_set(&s.ledger.last_errno, error)
    sender_close(s, c, REASON_TIMEOUT if error == errno.ETIMEDOUT else REASON_RESET, False, False, now)


cdef void sender_read(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """Reads what there is: to the first short read, or to the end when the kernel said that there is one."""
    cdef ssize_t n
    cdef int rounds = 0
    while True:
        n = recv(c.fd, s.buffer, SENDER_BUFFER, MSG_DONTWAIT)
        if n > 0:
            count_add(&s.ledger.bytes_received, n)
            if sender_bytes(s, c, s.buffer, <size_t>n, now):
                return
            if n < SENDER_BUFFER and not c.hangup:
                return
            rounds += 1
            if rounds >= SENDER_READS:
                sender_again(s, c)           # an endless reply is no reason to keep others waiting
                return
        elif n == 0:
            sender_eof(s, c, now)
            return
        elif errno.errno == errno.EAGAIN:
            if c.broken:
                sender_close(s, c, REASON_RESET, False, False, now)
            return
        elif errno.errno != errno.EINTR:
            sender_fault(s, c, errno.errno, now)
            return


# ---- connections ------------------------------------------------------------------------------------------------------------

cdef void sender_connected(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """The connect ended, one way or the other."""
    cdef SenderAddress* a = &s.addresses[c.address]
    cdef int error = 0
    cdef socklen_t size = sizeof(int)
    cdef int32_t address = c.address
    if getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0:
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


# ---- taking up --------------------------------------------------------------------------------------------------------------

cdef void sender_drop_row(SenderState* s, Request* row, int64_t due_ns, int reason, int64_t now) noexcept nogil:
    """A row that never becomes an item."""
    cdef SenderNote* note
    count_add(&s.ledger.dropped[reason], 1)
    if s.marks != NULL:
        sender_mark_row(s, row, due_ns, now)
    if s.outcomes == NULL:
        return
    while s.outcomes_wait and ring_count(s.outcomes) >= s.outcomes_slots and not atomic_get(s.stop_flag):
        poll(NULL, 0, 1)          # a dry run has no shadow to be late for: its records wait for their reader
    if ring_count(s.outcomes) >= s.outcomes_slots:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note = note_make(row, s.outcomes_head)
    if note == NULL:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note.due_ns = due_ns
    note.end_ns = now
    note.base_ns = s.base_ns
    note.outcome = OUTCOME_DROPPED
    note.reason = <uint8_t>reason
    note.address = -1
    ring_push(s.outcomes, note)


cdef bint sender_is_own(SenderState* s, const Request* row) noexcept nogil:
    """This request was captured on its way to the target itself."""
    cdef int32_t i
    for i in range(s.addresses_count):
        if s.addresses[i].port == row.server_port and memcmp(s.addresses[i].ip, row.server, 16) == 0:
            return True
    return False


cdef int sender_refuses(SenderState* s, int64_t due_ns, int64_t now) noexcept nogil:
    """Live: why this request is not sent, or REASON_NONE."""
    cdef int64_t gate = atomic_get(&s.gate)
    if gate > 0 and gate != s.gate_seen:
        s.gate_seen = gate
        s.gate_left = gate & GATE_PASSES
    if gate == 0 or (gate > 0 and s.gate_left == 0):
        return REASON_BREAKER
    if s.expire_ns and now - due_ns > s.expire_ns:
        return REASON_EXPIRED
    if s.rate_most > 0:
        s.rate_left += <double>(now - s.rate_ns) * s.rate_most / 1e9
        s.rate_ns = now
        if s.rate_left > s.rate_most / 10 + 1:
            s.rate_left = s.rate_most / 10 + 1       # a burst of 100 ms
        if s.rate_left < 1:
            return REASON_RATE
        s.rate_left -= 1
    if gate > 0:
        s.gate_left -= 1
    return REASON_NONE


cdef void sender_accept(SenderState* s, Batch* batch, Request* row, int64_t due_ns, int64_t now) noexcept nogil:
    """One request is due."""
    cdef SenderFlow* flow
    cdef SenderItem* item
    cdef SenderConnection* c
    cdef int refused
    count_add(&s.ledger.taken, 1)
    count_add(&s.ledger.position_ns, row.offset_ns - s.ledger.position_ns)
    if row.response_ns >= 0:
        histogram_record(&s.ledger.production, row.response_ns, 1)
    if s.halt:
        sender_drop_row(s, row, due_ns, s.halt, now)
        return
    if s.guard_hit != NULL and sender_is_own(s, row):
        sender_drop_row(s, row, due_ns, REASON_GUARD, now)
        return
    if s.dry or row.length == 0:
        sender_drop_row(s, row, due_ns, REASON_DRY_RUN if s.dry else REASON_EMPTY, now)
        return
    if s.pacer.kind == PACE_LIVE:
        refused = sender_refuses(s, due_ns, now)
        if refused != REASON_NONE:
            sender_drop_row(s, row, due_ns, refused, now)
            return
    flow = NULL
    if s.free_items != NULL or sender_slab(s, True) == OK:
        flow = sender_flow(s, row.flow)
    if flow == NULL:
        sender_drop_row(s, row, due_ns, REASON_MEMORY, now)
        return
    item = s.free_items
    s.free_items = item.next
    memset(item, 0, sizeof(SenderItem))
    item.flow = flow
    item.batch = batch
    batch_keep(batch, 1)
    item.row = row
    item.data = row.data
    item.length = row.length
    item.due_ns = due_ns
    item.status = row.status
    item.response_ns = row.response_ns
    if s.marks != NULL:
        item.endpoint = endpoint_of(&s.marks.endpoints, row)
    if row.flags & REQUEST_HEAD:
        item.flags |= ITEM_HEAD
    if row.flags & REQUEST_HTTP10:
        item.flags |= ITEM_HTTP10
    s.out += 1
    s.unsent += 1
    flow.count += 1
    if flow.connection >= 0 and s.bunch and (flow.first != NULL or s.connections[flow.connection].load >= 2 * s.pipeline):
        if flow.first == NULL:               # no room there: it waits until the flow has nothing on that connection, and then goes anywhere
            flow.first = item
        else:
            flow.last.next = item
        flow.last = item
    elif flow.connection >= 0:               # its requests are on a connection: this one follows them there
        c = &s.connections[flow.connection]
        flow.on += 1
        c.last.next = item                   # never empty: the flow would have been forgotten
        c.last = item
        if c.cursor == NULL:
            c.cursor = item
        c.load += 1
        sender_place(s, c)
        sender_dirty(s, c)
    elif flow.count == 1:
        flow.first = flow.last = item
        sender_wait(s, flow)
    else:
        flow.last.next = item
        flow.last = item


cdef void sender_whole_batch(SenderState* s, int reason, int64_t now) noexcept nogil:
    """All that is left of the batch is dropped, without looking at each row more than is counted of it."""
    cdef Batch* batch = s.batch
    cdef SenderLedger* l = s.ledger
    cdef int64_t count = <int64_t>(batch.count - s.at)
    cdef uint32_t i
    if s.guard_hit != NULL or s.marks != NULL:
        for i in range(s.at, batch.count):
            if s.guard_hit != NULL and reason == REASON_DRY_RUN and sender_is_own(s, &batch.rows[i]):
                sender_drop_row(s, &batch.rows[i], now, REASON_GUARD, now)
            else:
                sender_drop_row(s, &batch.rows[i], now, reason, now)
    else:
        count_add(&l.dropped[reason], count)
    for i in range(s.at, batch.count):
        if batch.rows[i].response_ns >= 0:
            histogram_record(&l.production, batch.rows[i].response_ns, 1)
    count_add(&l.taken, count)
    if count > 0:
        count_add(&l.position_ns, batch.rows[batch.count - 1].offset_ns - l.position_ns)
    s.batch = NULL
    batch_release(batch)


cdef bint sender_take(SenderState* s, int64_t now) noexcept nogil:
    """Takes up what is due. True: there is more that could be taken up now.

    One batch is looked into; the rest stay in the ring, so that what is far in the future holds no memory here but that."""
    cdef int64_t budget = s.window if s.bunch else SENDER_TAKE     # in bunches: all there is room for, or each write has little
    cdef Request* row
    cdef int64_t due
    cdef Batch* batch
    while budget > 0:
        if s.batch == NULL:
            s.batch = <Batch*>ring_pop(s.ring)
            if s.batch == NULL:
                return False
            s.at = 0
            if not s.pacer.started:
                s.pacer.started = True
                s.pacer.start_ns = now
                atomic_set(&s.ledger.start_ns, now + s.base_ns)
        batch = s.batch
        if s.halt or (s.dry and s.pacer.kind == PACE_ASAP):
            sender_whole_batch(s, s.halt if s.halt else REASON_DRY_RUN, now)
            budget -= 16
            continue
        while s.at < batch.count:
            row = &batch.rows[s.at]
            if s.pacer.kind == PACE_ASAP or s.pacer.kind == PACE_LIVE:
                if s.out >= s.window:
                    return False
                due = now
                if s.pacer.kind == PACE_LIVE and row.ts_ns - s.base_ns < now:
                    due = row.ts_ns - s.base_ns
            else:
                due = pacing_due(&s.pacer, row.offset_ns, s.ledger.taken)
                if due > now or now < s.hold_ns:
                    s.next_due_ns = due if due > s.hold_ns else s.hold_ns
                    return False
            if budget == 0:
                return True
            budget -= 1
            s.at += 1
            sender_accept(s, batch, row, due, now)
        s.batch = NULL
        batch_release(batch)
    return True


# ---- the loop ---------------------------------------------------------------------------------------------------------------

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


cdef class Sender:
    """Sends what comes out of a queue to one target. `run` is a thread body; `counters` may be called from any thread at any time.

    addresses: list of (16 bytes, port), IPv4 v4-mapped; connections are spread over them in turn.
    speed: of the captured time; rate > 0: that many a second, evenly; asap: as fast as answers come; live: due when captured, sent at once.
    Live only: requests older than expire_ns are dropped, and those over rate_most a second. ports: (first, how many) local ports to connect from.
    connections: at most; pipeline: requests under way on one of them, 1 to 64.  outcomes: an `Outcomes`, or None.
    driver: "io_uring", "epoll", or "auto": io_uring where the kernel has it and allows it.
    start_at_ns: when the capture's time begins, since 1970; 0: when the first request is taken up.
    Raises ValueError for what cannot be meant, OSError without descriptors."""
    cdef SenderState s
    cdef Queue queue
    cdef Stop stop
    cdef Guard guard
    cdef Outcomes outcomes
    cdef bint started
    cdef bint over
    cdef int64_t gates            # how often probes were let through
    cdef int64_t start_at_ns      # since 1970; 0: when the first request is taken up

    def __cinit__(self, Queue queue not None, addresses, *, Stop stop not None, double speed=1.0, double rate=0.0, bint asap=False,
                  int connections=256, int pipeline=1, int64_t connect_timeout_ns=1000000000, int64_t timeout_ns=15000000000,
                  int64_t drain_ns=5000000000, int64_t never_ns=10000000000, bint dry_run=False, Guard guard=None, Outcomes outcomes=None,
                  bint live=False, int64_t expire_ns=0, double rate_most=0.0, ports=(0, 0),
                  str driver="auto", int64_t start_at_ns=0):
        cdef SenderState* s = &self.s
        cdef bytes packed
        cdef int32_t i
        cdef int32_t j
        memset(s, 0, sizeof(SenderState))
        s.epfd = -1
        addresses = list(addresses)
        if not addresses and not dry_run:
            raise ValueError("addresses: at least one")
        if not 1 <= connections <= 1 << 20:
            raise ValueError("connections: 1 to 1048576")
        if not 1 <= pipeline <= SENDER_PIPELINE:
            raise ValueError(f"pipeline: 1 to {SENDER_PIPELINE}")
        if not speed > 0 or not rate >= 0 or speed > 1e18 or rate > 1e18:
            raise ValueError("speed: above 0; rate: 0 or more")
        if driver not in ("auto", "io_uring", "epoll"):
            raise ValueError("driver: auto, io_uring or epoll")
        if min(connect_timeout_ns, timeout_ns, never_ns) <= 0 or drain_ns < 0:
            raise ValueError("time-outs: above 0")
        self.queue, self.stop, self.guard, self.outcomes = queue, stop, guard, outcomes
        self.start_at_ns = start_at_ns
        s.ring = &queue.ring
        s.queue_waiting = &queue.waiting
        s.queue_ended = &queue.ended
        s.queue_fd = queue.fd
        s.stop_flag = &stop.flag
        s.stop_fd = stop.fd
        if guard is not None:
            s.guard_hit = &guard.hit
        if outcomes is not None:
            s.marks = &outcomes.marks
            s.outcomes = &outcomes.ring if outcomes.records else NULL
            s.outcomes_slots = outcomes.slots
            s.outcomes_head = outcomes.head
            s.outcomes_wait = dry_run and outcomes.wait
        s.connect_timeout_ns = connect_timeout_ns
        s.timeout_ns = timeout_ns
        s.drain_ns = drain_ns
        s.never_ns = never_ns
        s.dry = dry_run
        s.pipeline = <uint32_t>pipeline
        s.most = 1 if dry_run else connections
        s.window = <int64_t>connections * pipeline * (2 if pipeline < BUNCH_LEAST else 4)
        s.window = 64 if s.window < 64 else 65536 if s.window > 65536 else s.window
        s.tick_ns = 10000000 if connections <= 1024 else 50000000
        s.bunch = asap and pipeline >= BUNCH_LEAST
        s.bundle = not asap and pipeline > 1
        if s.bunch and connections <= 1024:
            s.tick_ns = 2000000
        s.pacer.kind = PACE_LIVE if live else PACE_ASAP if asap else PACE_RATE if rate > 0 else PACE_ORIGINAL
        if expire_ns < 0 or rate_most < 0:
            raise ValueError("expire_ns, rate_most: 0 or more")
        s.expire_ns = expire_ns
        s.rate_most = rate_most
        s.rate_left = 1
        s.gate = -1
        first, count = ports
        if not 0 <= first <= 65535 or not 0 <= count <= 65536 - first:
            raise ValueError("ports: the first, and how many")
        s.port_first, s.port_count = first, count
        s.port_next = <uint16_t>(<uint64_t>now_ns() % count) if count else 0       # senders do not try the same ones at once
        s.pacer.speed = speed
        s.pacer.rate = rate
        s.addresses_count = <int32_t>len(addresses)
        s.events_most = s.most + 2 if s.most + 2 < SENDER_EVENTS else SENDER_EVENTS
        s.flows_mask = 1023
        s.ledger = <SenderLedger*>calloc(1, sizeof(SenderLedger))
        s.addresses = <SenderAddress*>calloc(len(addresses) + 1, sizeof(SenderAddress))
        s.connections = <SenderConnection*>calloc(s.most, sizeof(SenderConnection))
        s.flows = <SenderFlow**>calloc(s.flows_mask + 1, sizeof(SenderFlow*))
        s.buffer = <uint8_t*>malloc(SENDER_BUFFER)
        s.events = <epoll_event*>calloc(s.events_most, sizeof(epoll_event))
        s.again = <int32_t*>calloc(2 * <size_t>s.most, sizeof(int32_t))
        s.dirty = <int32_t*>calloc(s.most, sizeof(int32_t))
        if (s.ledger == NULL or s.addresses == NULL or s.connections == NULL or s.flows == NULL or s.buffer == NULL or s.events == NULL
                or s.again == NULL or s.dirty == NULL):
            raise MemoryError
        for i, (address, port) in enumerate(addresses):
            packed = bytes(address)
            if len(packed) != 16 or not 1 <= port <= 65535:
                raise ValueError("an address is (16 bytes, port); IPv4 is v4-mapped")
            memcpy(s.addresses[i].ip, <const uint8_t*>packed, 16)
            s.addresses[i].port = port
            for j in range(SENDER_PIPELINE):
                s.addresses[i].bucket[j] = -1
        for i in range(s.most):
            s.connections[i].fd = -1
            s.connections[i].bucket = -1
            s.connections[i].next = i + 1 if i + 1 < s.most else -1
        s.wanted = DRIVER_EPOLL if driver == "epoll" else DRIVER_URING if driver == "io_uring" else DRIVER_AUTO
        if s.wanted != DRIVER_EPOLL and not dry_run:         # the ring itself is made by the thread that uses it
            i = uring_driver_open(s)
            uring_driver_close(s)
            if i < 0 and s.wanted == DRIVER_URING:
                raise OSError(-i, _os.strerror(-i), "io_uring")
            if i < 0:
                s.wanted = DRIVER_EPOLL
        if dry_run:
            s.wanted = DRIVER_EPOLL
        i = epoll_driver_open(s)
        if i < 0:
            raise OSError(-i, _os.strerror(-i))

    def __dealloc__(self):
        cdef SenderState* s = &self.s
        cdef SenderSlab* slab = s.slabs
        cdef SenderSlab* after
        if s.batch != NULL:
            batch_release(s.batch)
        while slab != NULL:
            after = slab.next
            free(slab)
            slab = after
        if s.epfd >= 0:
            close(s.epfd)
        free(s.ledger)
        free(s.addresses)
        free(s.connections)
        free(s.flows)
        free(s.buffer)
        free(s.events)
        free(s.again)
        free(s.dirty)

    def run(self):
        """Sends until the queue has ended and every request is accounted for, or until the stop. Once only."""
        cdef SenderState* s = &self.s
        cdef timespec wall
        cdef int slack = 0
        cdef int32_t i
        if self.started:
            raise RuntimeError("a sender runs once")
        self.started = True
        with nogil:
            clock_gettime(CLOCK_REALTIME, &wall)
            s.base_ns = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec - now_ns()
            if s.marks != NULL:
                s.marks.base_ns = s.base_ns
            if self.start_at_ns:
                s.pacer.started = True
                s.pacer.start_ns = self.start_at_ns - s.base_ns
                atomic_set(&s.ledger.start_ns, self.start_at_ns)
            slack = prctl(PR_GET_TIMERSLACK)
            prctl(PR_SET_TIMERSLACK, <unsigned long>1)           # of this thread: due times are kept to some microseconds
            if s.wanted == DRIVER_EPOLL or uring_driver_open(s) < 0:
                s.uring = NULL               # allowed a moment ago, and not now: epoll does it as well
            sender_loop(s)
            if s.marks != NULL:
                marks_tell(s.marks)
            if slack > 0:
                prctl(PR_SET_TIMERSLACK, <unsigned long>slack)
            for i in range(s.most):
                if s.connections[i].state != CONNECTION_FREE:
                    sender_shut(s, &s.connections[i], False)
            uring_driver_close(s)
        self.over = True

    def set_gate(self, int64_t passes):
        """Live: -1 everything goes on; 0 everything is dropped as `breaker`, waiting ones too; n (1 to 255): the next n go on, all others are dropped. From one thread, any."""
        if not -1 <= passes <= GATE_PASSES:
            raise ValueError("passes: -1 to 255")
        if passes > 0:                       # another number each time, so that the same n is begun anew
            self.gates += 1
            passes |= self.gates << 8
        atomic_set(&self.s.gate, passes)

    @property
    def gate(self):
        """What set_gate was given last."""
        cdef int64_t gate = atomic_get(&self.s.gate)
        return gate & GATE_PASSES if gate > 0 else gate

    def set_rate(self, double most):
        """Live: at most so many requests a second; 0: any number. Takes effect at once."""
        self.s.rate_most = most

    def finish(self):
        """Begins nothing more: what is not sent yet is dropped as stopped, what is under way is drained. `run` ends when the queue does."""
        atomic_set(&self.s.finishing, 1)
        self.queue.wake()

    def sweep(self):
        """Accounts for what came into the queue after a stop had ended `run`: call it when ingest has ended too.

        Returns how many requests that were."""
        cdef int64_t before = self.s.ledger.taken
        if not self.over:
            raise RuntimeError("sweep: when run has ended")
        self.s.halt = self.s.halt or REASON_STOPPED
        while self.s.batch != NULL or ring_count(self.s.ring):
            sender_take(&self.s, now_ns())
        if self.s.marks != NULL:
            marks_tell(self.s.marks)
        return self.s.ledger.taken - before

    def counters(self):
        """The ledger as a dict. See `ledger_dict`; `under_way` and `waiting` are what has not ended yet."""
        got = ledger_dict(self.s.ledger)
        got["pipeline"] = self.s.pipeline
        got["driver"] = "epoll" if self.s.wanted == DRIVER_EPOLL else "io_uring"
        awake = atomic_get(&self.s.awake_ns)
        got["busy_ns"] = max(0, now_ns() - awake) if awake else 0
        return got

    def histograms(self):
        """`lag_us`, `latency_us`, `service_us`, `production_us`: counts as bytes, for `replay.histogram.Histogram`."""
        return ledger_histograms(self.s.ledger)


def push_for_tests(Queue queue not None, rows, *, Stop stop=None, int rows_per_batch=512, int64_t times=1):
    """Makes batches of these requests and pushes them. Does not mark the end. Waits while the ring is full or the budget is spent.

    rows: tuples (bytes, offset_ns, flow, flags, status, response_ns, server 16 bytes, server port); all but the bytes may be left out.
    times: only rows of one batch may come more than once; the same batch is pushed again, without the GIL.  Returns how many were pushed."""
    cdef Batch* batch = NULL
    cdef int64_t left
    cdef Request* row
    cdef bytes data
    cdef int64_t never = 0
    cdef const int64_t* flag = &never if stop is None else &stop.flag
    cdef uint64_t size
    cdef uint64_t n = 0
    rows = list(rows)
    if times > 1 and (len(rows) > min(rows_per_batch, BATCH_ROWS) or sum(len(one[0]) for one in rows) > BATCH_BYTES):
        raise ValueError("times: rows of one batch")
    at = 0
    while at < len(rows):
        some = []
        size = 0
        while at < len(rows) and len(some) < min(rows_per_batch, BATCH_ROWS) and (not some or size + len(rows[at][0]) <= BATCH_BYTES):
            some.append(rows[at])
            size += len(rows[at][0])
            at += 1
        with nogil:
            batch = batch_take(&queue.pool.pool, size, flag)
        if batch == NULL:
            return n
        for one in some:
            one = tuple(one) + (0, 0, 0, 0, -1, bytes(16), 0)[len(one) - 1:]
            data, offset, flow, flags, status, response, server, port = one
            row = &batch.rows[batch.count]
            memset(row, 0, sizeof(Request))
            memcpy(batch.arena + batch.used, <const uint8_t*>data, len(data))
            row.data = batch.arena + batch.used
            row.length = <uint64_t>len(data)
            row.n = n
            row.offset_ns = offset
            row.ts_ns = offset
            row.flow = flow
            row.flags = flags
            row.status = status
            row.response_ns = response
            row.version = 10 if flags & REQUEST_HTTP10 else 11
            memcpy(row.server, <const uint8_t*>(<bytes>server), 16)
            row.server_port = port
            head = data.find(b"\r\n\r\n")
            row.head_len = <uint32_t>(head + 4 if head >= 0 else len(data))
            words = data.split(b" ", 2)
            if len(words) == 3:
                row.method_len = <uint32_t>len(words[0])
                row.target_at = <uint32_t>(len(words[0]) + 1)
                row.target_len = <uint32_t>len(words[1])
            batch.used += row.length
            batch.count += 1
            n += 1
        if times > 1:
            batch_keep(batch, 1)             # ours, until the last time
        with nogil:
            while not queue.push(batch):
                if atomic_get(flag):
                    batch_release(batch)
                    batch = NULL
                    break
                poll(NULL, 0, 1)
        if batch == NULL:
            return n - <uint64_t>len(some)
    if times > 1:
        left = times - 1
        with nogil:
            while left > 0 and not atomic_get(flag):
                batch_keep(batch, 1)
                if queue.push(batch):
                    left -= 1
                else:
                    batch_release(batch)
                    poll(NULL, 0, 1)
            batch_release(batch)
        n *= <uint64_t>(times - left)
    return n


def guard_trip_for_tests(Guard guard not None):
    """What ingest does when a captured server is a target."""
    atomic_set(&guard.hit, 1)
