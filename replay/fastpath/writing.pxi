# What is written next on a connection, and what was written: several requests in one write, and for how many replies at once we want to be woken.
# Must not know: how a driver writes.

cdef enum:
    BUNCH_LEAST = 4               # replies that are worth to be waited for together
    BUNCH_MOST = 32768            # bytes of them

cdef int64_t IDLE_PEEK_NS = 1000000          # a connection idle for longer is looked at before it is used


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


cdef bint sender_may_write(SenderState* s, SenderConnection* c, uint64_t total, int64_t now) noexcept nogil:
    """The last looks before a write of so many bytes: no captured server is the target, and the server did not hang up meanwhile."""
    if not c.settled and (c.used or total > SENDER_SEGMENT):
        sender_settle(c)
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
            # A reply may have come before the end: read it first. Of a reset only one call is told; reading would take what follows for an orderly end.
            c.broken = BROKEN_RESET if n == -errno.ECONNRESET else 1
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
