# What came on a connection: replies are framed, and put to their requests. Must not know: which request goes where, when the next is due.

cdef enum:
    SENDER_READS = 4              # full buffers read from one connection in one turn


cdef bint sender_answered(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """The oldest request has its whole reply. True: the connection ended with it."""
    cdef SenderItem* item = c.first
    cdef Reply* r = &c.reply
    cdef bint said = not reply_persists(r)
    cdef bint partly = item == c.cursor
    cdef bint ends = said or partly or r.status == 101 or r.state == REPLY_UNTIL_CLOSE or (item.flags & ITEM_HTTP10 and not r.keep_alive)
    cdef int status = r.status
    if item.next != NULL:         # the next reply in the same read is for this one
        prefetch_struct(item.next, sizeof(SenderItem))
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
    if c.first != NULL:
        prefetch(c.first.flow)
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
    if c.broken == BROKEN_RESET:
        sender_close(s, c, REASON_RESET, False, False, now)
        return
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
