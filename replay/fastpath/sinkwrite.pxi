# Replies of the sink on their way out: runs of them, written out of a train.


cdef void sink_queue(SinkServer* s, SinkConnection* c, uint8_t kind, int64_t due, bint slow) noexcept nogil:
    """One more to send. Without memory the connection sends no more."""
    cdef SinkRun* run
    cdef SinkRun* runs
    cdef uint32_t i
    cdef uint32_t size
    if c.run_count:
        run = &c.runs[(c.run_first + c.run_count - 1) & c.run_mask]
        if run.kind == kind and run.due_ns == due and not run.slow and not slow:
            run.count += 1
            return
    if c.runs == NULL or c.run_count > c.run_mask:
        size = 4 if c.runs == NULL else 2 * (c.run_mask + 1)
        runs = <SinkRun*>malloc(size * sizeof(SinkRun))
        if runs == NULL:
            c.mute = 1
            return
        for i in range(c.run_count):
            runs[i] = c.runs[(c.run_first + i) & c.run_mask]
        free(c.runs)
        c.runs = runs
        c.run_first = 0
        c.run_mask = size - 1
    run = &c.runs[(c.run_first + c.run_count) & c.run_mask]
    c.run_count += 1
    run.due_ns = due
    run.count = 1
    run.kind = kind
    run.slow = slow


cdef void sink_wrote(SinkServer* s, SinkConnection* c, uint64_t n) noexcept nogil:
    cdef SinkRun* run
    cdef uint64_t length
    cdef uint64_t left
    count_add(&s.bytes_out, <int64_t>n)
    while n:
        run = &c.runs[c.run_first]
        length = s.replies[run.kind].length
        left = run.count * length - c.sent
        if n < left:
            c.sent += n
            run.count -= c.sent // length     # keeps the numbers small, however long the run goes on
            c.sent %= length
            return
        n -= left
        c.sent = 0
        c.run_first = (c.run_first + 1) & c.run_mask
        c.run_count -= 1


cdef int sink_send(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Writes what is due. OK: nothing more can go now (or the kernel is full: c.blocked); MALFORMED: the connection failed."""
    cdef iovec parts[SINK_PARTS]
    cdef msghdr message
    cdef SinkRun* run
    cdef SinkReply* reply
    cdef uint64_t offset, left, some, total
    cdef uint32_t at
    cdef ssize_t n
    cdef int count
    while True:
        count = 0
        total = 0
        at = 0
        offset = c.sent
        while at < c.run_count and count < SINK_PARTS and total < SINK_WRITE:
            run = &c.runs[(c.run_first + at) & c.run_mask]
            if run.due_ns > s.now_ns or run.kind >= KIND_REPLIES:
                break
            reply = &s.replies[run.kind]
            left = run.count * reply.length - offset
            if run.slow:
                if at or s.now_ns < c.slow_ns:
                    break
                left = 1
                c.slow_ns = s.now_ns + SINK_SLOW_NS
            while left and count < SINK_PARTS and total < SINK_WRITE:
                some = reply.train_len - offset % reply.length
                if some > left:
                    some = left
                parts[count].iov_base = <void*>(reply.train + offset % reply.length)
                parts[count].iov_len = <size_t>some
                count += 1
                offset += some
                total += some
                left -= some
            if left or run.slow:
                break
            offset = 0
            at += 1
        if count == 0:
            return OK
        memset(&message, 0, sizeof(msghdr))
        message.msg_iov = parts
        message.msg_iovlen = <size_t>count
        n = sendmsg(c.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno.errno == errno.EINTR:
                continue
            if errno.errno != errno.EAGAIN:
                return MALFORMED
            c.blocked = 1
            return OK
        sink_wrote(s, c, <uint64_t>n)
        if <uint64_t>n < total:
            c.blocked = 1
            return OK


cdef void sink_flush(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Writes what may go, acts on the mark that comes next, sees to it that c is looked at again. c may be gone afterwards."""
    cdef SinkRun* run
    cdef linger abort
    cdef int64_t wake = 0
    if not c.blocked and c.run_count and sink_send(s, c) != OK:
        sink_drop(s, c)
        return
    if c.run_count and not c.blocked:
        run = &c.runs[c.run_first]
        if run.due_ns > s.now_ns:
            wake = run.due_ns
        elif run.kind == KIND_RESET:
            abort.l_onoff = 1
            abort.l_linger = 0
            setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(linger))
            sink_drop(s, c)
            return
        elif run.kind == KIND_SHUT:
            # our end first, then the peer's: to close with bytes unread would reset the connection, and the peer lose the last reply
            if c.eof or shutdown(c.fd, SHUT_WR) < 0:
                sink_drop(s, c)
                return
            c.run_count = 0
            c.state = SINK_LINGERS
            c.wake_ns = wake = s.now_ns + SINK_LINGER_NS
        else:
            wake = c.slow_ns
    elif c.state == SINK_LINGERS:
        wake = c.wake_ns
    if wake or c.heap_at >= 0:
        sink_wake_at(s, c, wake)
    sink_interest(s, c)
