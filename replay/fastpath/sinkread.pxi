# Requests of the sink on their way in: heads and bodies, and which reply they get.


cdef void sink_shut(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Nothing more is taken from this connection; it ends when its replies are sent."""
    sink_forget(c)
    c.state = SINK_DISCARDS
    if not c.mute:
        sink_queue(s, c, KIND_SHUT, 0, False)


cdef void sink_bad(SinkServer* s, SinkConnection* c, uint8_t kind) noexcept nogil:
    count_add(&s.bad, 1)
    if not c.mute:
        sink_queue(s, c, kind, 0, False)
    sink_shut(s, c)


cdef void sink_end(SinkServer* s, SinkConnection* c) noexcept nogil:
    """The request at hand has ended."""
    cdef int64_t due = now_ns() + s.delay_ns if s.delay_ns else 0
    cdef uint8_t wrong = MISBEHAVE_NONE
    if s.misbehave != MISBEHAVE_NONE and s.misbehave != MISBEHAVE_STALL:
        s.seen += 1
        if s.seen % s.every == 0:
            wrong = s.misbehave
            if wrong == MISBEHAVE_NEVER:
                c.mute = 1
    count_add(&s.requests, 1)
    names_count(&s.methods, c.method)
    names_count(&s.hosts, c.host)
    if c.mute or wrong == MISBEHAVE_CLOSE or wrong == MISBEHAVE_RESET:
        count_add(&s.unanswered, 1)
        if s.log:
            sink_note_end(s, c, 0)
    elif s.log:
        sink_note_end(s, c, s.status)
    c.index += 1
    c.state = SINK_READS_HEAD
    if c.mute:
        return
    if wrong == MISBEHAVE_CLOSE or wrong == MISBEHAVE_RESET:
        c.state = SINK_DISCARDS
        sink_queue(s, c, KIND_RESET if wrong == MISBEHAVE_RESET else KIND_SHUT, due, False)
        return
    sink_queue(s, c, c.kind, due, wrong == MISBEHAVE_SLOW)
    if c.kind & KIND_CLOSING:
        sink_shut(s, c)


cdef void sink_parse(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n, const LineIndex* x, bint more) noexcept nogil:
    """A whole head of any kind."""
    cdef Head h
    if request_line(p, n) != LINE_REQUEST:
        sink_bad(s, c, KIND_BAD)
        return
    if n > SINK_HEAD or head_parse(p, n, x, False, &h) != OK:
        sink_bad(s, c, KIND_TOO_LARGE)
        return
    sink_head(s, c, p, &h, more)


cdef void sink_head(SinkServer* s, SinkConnection* c, const uint8_t* p, const Head* h, bint more) noexcept nogil:
    """A whole head and what it says. more: bytes behind it have come already."""
    if h.flags & (HEAD_AMBIGUOUS | HEAD_MALFORMED | HEAD_HOSTS_DIFFER | HEAD_BAD_HOST_LINE | HEAD_CONNECT) or (h.hosts == 0 and h.version > 10):
        sink_bad(s, c, KIND_BAD)
        return
    c.method = names_find(&s.methods, p, h.method_len)
    c.host = names_find(&s.hosts, p + h.host_at, h.host_len)
    c.kind = KIND_HEAD if h.method_len == 4 and memcmp(p, b"HEAD", 4) == 0 else 0
    if h.flags & HEAD_CLOSE or (h.version == 10 and not h.flags & HEAD_KEEP_ALIVE):
        c.kind |= KIND_CLOSING
    elif h.version == 10:
        c.kind |= KIND_KEPT
    c.body_len = 0
    if s.log:
        sink_note_begin(s, c, p, h)
    if h.framing == FRAMING_CHUNKED:
        memset(&c.chunked, 0, sizeof(Chunked))
        c.state = SINK_READS_CHUNKS
    elif h.content_length > 0:
        c.left = <uint64_t>h.content_length
        c.state = SINK_READS_LENGTH
    else:
        sink_end(s, c)
        return
    if h.flags & HEAD_EXPECT and h.version > 10 and not more and not c.mute:
        sink_queue(s, c, KIND_CONTINUE, 0, False)


cdef bint sink_hold(SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Keeps these bytes of a head. False without memory."""
    cdef uint32_t size = c.held_size if c.held_size else 512
    cdef uint8_t* held
    while size < c.held_len + n:
        size *= 2
    if size > c.held_size:
        held = <uint8_t*>realloc(c.held, size)
        if held == NULL:
            return False
        c.held = held
        c.held_size = size
    memcpy(c.held + c.held_len, p, n)
    c.held_len += <uint32_t>n
    return True


cdef size_t sink_held_head(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """More of a head whose beginning is held; how many bytes of it were taken."""
    cdef size_t before = c.held_len
    cdef size_t end
    cdef uint8_t* held
    cdef RequestLine line
    cdef LineIndex index
    if n > SINK_HEAD - before:
        n = SINK_HEAD - before
    if not sink_hold(c, p, n):
        sink_bad(s, c, KIND_TOO_LARGE)
        return n
    end = head_end(c.held, c.held_len, before - 2 if before > 2 else 0)
    if end:
        held = c.held
        c.held = NULL
        c.held_len = c.held_size = 0
        head_index(held, end, &index)
        sink_parse(s, c, held, end, &index, before + n > end)
        free(held)
        return end - before
    line = request_line(c.held, c.held_len)
    if line != LINE_REQUEST and line != LINE_MORE:
        sink_bad(s, c, KIND_BAD)
    elif c.held_len == SINK_HEAD:
        sink_bad(s, c, KIND_TOO_LARGE)
    return n


cdef size_t sink_fresh_head(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes with which a head begins, or empty lines before it (RFC 9112 2.2); how many were taken."""
    cdef size_t at = 0
    cdef size_t end
    cdef RequestLine line
    cdef LineIndex index
    cdef Head h
    while at < n and (p[at] == 13 or p[at] == 10):
        at += 1
    if at == n:
        return n
    end = head_scan(p + at, n - at, &h)       # the usual head; it leaves to the general parser what is not
    if end > HEAD_BEGUN and h.method_len and end <= SINK_HEAD:
        sink_head(s, c, p + at, &h, n - at > end)
        return at + end
    end = head_index(p + at, n - at, &index)
    if end:
        sink_parse(s, c, p + at, end, &index, n - at > end)
        return at + end
    line = request_line(p + at, n - at)
    if line != LINE_REQUEST and line != LINE_MORE:
        sink_bad(s, c, KIND_BAD)
    elif n - at >= SINK_HEAD or not sink_hold(c, p + at, n - at):
        sink_bad(s, c, KIND_TOO_LARGE)
    return n


cdef void sink_feed(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """What the peer sent."""
    cdef const uint8_t* body = NULL
    cdef size_t body_len = 0
    cdef size_t at = 0
    cdef size_t some
    while at < n:
        if c.state == SINK_READS_HEAD:
            if c.held_len:
                at += sink_held_head(s, c, p + at, n - at)
            else:
                at += sink_fresh_head(s, c, p + at, n - at)
        elif c.state == SINK_READS_LENGTH:
            some = n - at if n - at < c.left else <size_t>c.left
            if s.log:
                sink_note_body(s, c, p + at, some)
            at += some
            c.body_len += some
            c.left -= some
            if c.left == 0:
                sink_end(s, c)
        elif c.state == SINK_READS_CHUNKS:
            at += chunked_step(&c.chunked, p + at, n - at, &body, &body_len)
            if s.log:
                sink_note_body(s, c, body, body_len)
            c.body_len += body_len
            if c.chunked.ambiguous or c.chunked.state == CHUNKED_BAD:
                sink_bad(s, c, KIND_BAD)
            elif c.chunked.state == CHUNKED_DONE:
                sink_end(s, c)
        else:
            return


cdef void sink_read(SinkServer* s, SinkConnection* c) noexcept nogil:
    """One read. c may be gone afterwards."""
    cdef ssize_t n = recv(c.fd, s.buffer, SINK_BUFFER, 0)
    if n < 0:
        if errno.errno != errno.EAGAIN and errno.errno != errno.EINTR:
            sink_drop(s, c)
        return
    if n == 0:
        c.eof = 1
        if c.run_count == 0 or c.mute:
            sink_drop(s, c)
            return
        if c.state != SINK_DISCARDS:
            sink_shut(s, c)               # a peer may shut its side and still read
    else:
        count_add(&s.bytes_in, n)
        sink_feed(s, c, s.buffer, <size_t>n)
    sink_flush(s, c)
