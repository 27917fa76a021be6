# Ordered bytes and gaps of a connection in, heads and bodies out: roles, framing, trust (docs/design.md R8, H1 to H12).
# Must not know: packets, files, sockets, pacing.

cdef uint8_t other_kind(const uint8_t* p, size_t n) noexcept nogil:
    if n >= 2 and 20 <= p[0] <= 24 and p[1] == 3:
        return OTHER_TLS
    if n >= 4 and memcmp(p, b"SSH-", 4) == 0:
        return OTHER_SSH
    if n >= 3 and memcmp(p, b"PRI", 3) == 0:
        return OTHER_HTTP2
    return OTHER_ELSE


cdef int line_judge(Flow* f, const uint8_t* p, size_t n) noexcept nogil:
    """1: a message of this flow's role (set when it was unknown) begins here; 2: perhaps; 0: no; 3: HTTP/2."""
    cdef RequestLine line
    cdef StatusLine reply
    if f.role != ROLE_REPLIES:
        line = request_line(p, n)
        if line == LINE_REQUEST:
            f.role = ROLE_REQUESTS
            return 1
        if line == LINE_HTTP2:
            return 3
        if line == LINE_MORE and (f.role == ROLE_REQUESTS or status_line(p, n) != STATUS_YES):
            return 2
        if f.role == ROLE_REQUESTS:
            return 0
    reply = status_line(p, n)
    if reply == STATUS_YES:
        f.role = ROLE_REPLIES
        return 1
    return 2 if reply == STATUS_MORE else 0


cdef size_t read_head(Engine* g, Conn* c, int side, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes of a head that has begun. Returns how many were taken."""
    cdef Flow* f = &c.flow[side]
    cdef const uint8_t* at = p
    cdef size_t have = n
    cdef size_t before = f.buf_len
    cdef size_t end
    cdef int judged
    cdef LineIndex index
    cdef Head h
    cdef bint lasting = g.lasting
    cdef bint quick
    if before == 0 and not f.line_known and f.scanned == 0:
        end = head_scan(p, n, &h)
        if end and end <= g.max_head and head_suits(f, &h):
            if end != HEAD_BEGUN:
                read_usual(g, c, side, p, end, &h)
                return end
            if read_begun(g, f, p, n, &h):
                return n
    if before:
        if n > g.max_head + 4 - before:
            have = g.max_head + 4 - before if before < g.max_head + 4 else 0
        if buf_add(g, f, p, have) < 0:
            count_add(&g.n.no_memory, 1)
            message_cut(g, c, side, INCOMPLETE_EVICTED)
            flow_lost(g, c, side)
            return n
        at = f.buf
        have = f.buf_len
    if not f.line_known:
        judged = line_judge(f, at, have)
        if judged == 2 and have <= g.max_head:
            if not before and buf_add(g, f, p, n) < 0:
                flow_lost(g, c, side)
            return n
        if judged != 1:
            return read_failed(g, c, side, at, have, before, n, judged == 3)
        f.line_known = 1
    if before:
        # All of it again, when that much of it is new; where it comes byte by byte, only when its end is there.
        quick = n > have // 4
        end = head_scan(at, have, &h) if quick else head_end(at, have, f.scanned)
        if end > HEAD_BEGUN:
            if end <= g.max_head and (quick or head_scan(at, end, &h) == end) and head_suits(f, &h):
                f.line_known = 0
                f.scanned = 0
                g.lasting = False     # it lies in the flow's own buffer
                read_usual(g, c, side, at, end, &h)
                g.lasting = lasting
                return end - before
            head_index(at, end, &index)
        elif quick:
            end = head_index(at, have, &index) if end == 0 else 0
    else:
        end = head_index(at, have, &index)
    if end == 0:
        f.scanned = <uint32_t>(have - 3 if have > 3 else 0)
        if have > g.max_head:
            if not before:
                buf_add(g, f, p, n if n < 65536 else 65536)
            if f.role == ROLE_REQUESTS:
                message_cut(g, c, side, INCOMPLETE_HEAD_TOO_LARGE)
            flow_lost(g, c, side)
            return n
        if not before and buf_add(g, f, p, n) < 0:
            flow_lost(g, c, side)
        return n
    f.line_known = 0
    f.scanned = 0
    if end > g.max_head:
        if not before:
            buf_add(g, f, p, end if end < 65536 else 65536)
        if f.role == ROLE_REQUESTS:
            f.line_known = 1
            f.state = ST_HEAD
            message_cut(g, c, side, INCOMPLETE_HEAD_TOO_LARGE)
        flow_lost(g, c, side)
        return n
    judged = head_parse(at, end, &index, f.role != ROLE_REQUESTS, &h)
    if f.role == ROLE_REQUESTS:
        if before:
            g.lasting = False     # it lies in the flow's own buffer
        request_head(g, c, side, at, end, &h, judged)
        g.lasting = lasting
    else:
        reply_head(g, c, side, &h, judged)
    return end - before


cdef inline bint head_suits(const Flow* f, const Head* h) noexcept nogil:
    """A usual head (head_scan) of the role of its flow, or of one whose role is open."""
    return f.role != ROLE_REPLIES if h.method_len else f.role != ROLE_REQUESTS


cdef bint read_begun(Engine* g, Flow* f, const uint8_t* p, size_t n, const Head* h) noexcept nogil:
    """All that there is of a usual head so far, in one piece: kept. False: the general way has to see to it."""
    if n > g.max_head or buf_add(g, f, p, n) < 0:
        return False
    f.role = ROLE_REQUESTS if h.method_len else ROLE_REPLIES
    f.line_known = 1
    f.scanned = <uint32_t>(n - 3)
    return True


cdef inline void read_usual(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, const Head* h) noexcept nogil:
    """A whole head that suits its flow, in one piece."""
    cdef Flow* f = &c.flow[side]
    if h.method_len:
        f.role = ROLE_REQUESTS
        request_head(g, c, side, p, n, h, OK)
    else:
        f.role = ROLE_REPLIES
        reply_head(g, c, side, h, OK)


cdef void flow_belies(Conn* c, int side) noexcept nogil:
    """H8: bytes that are no request line, sent before the server said anything new: what looked like a request before them is part of the same upload, and no reply confirms it."""
    cdef const Flow* f = &c.flow[side]
    cdef Message* m = c.queue
    if f.role != ROLE_REQUESTS or not f.msg_has_ack:
        return
    while m != NULL:
        if m.trust != TRUST_CERTAIN and m.has_ack and m.ack == f.msg_ack:
            m.follows = 1
        m = m.queue_next


cdef size_t read_failed(Engine* g, Conn* c, int side, const uint8_t* at, size_t have, size_t before, size_t n, bint http2) noexcept nogil:
    """What began is no message. Returns how many bytes of the new piece were taken: none of one that may begin a message itself."""
    cdef Flow* f = &c.flow[side]
    cdef uint8_t kind
    f.buf_len = 0
    f.scanned = 0
    if f.resynced:
        flow_belies(c, side)
        f.state = ST_RESYNC
        return 0 if before else n
    if http2 or (not f.spoke and f.role == ROLE_UNKNOWN):
        kind = OTHER_HTTP2 if http2 else other_kind(at, have)
        f.role = ROLE_OTHER
        f.state = ST_SKIP
        if c.other == OTHER_NONE:
            c.other = kind
            count_add(&g.n.other[kind], 1)
        return n
    if f.role == ROLE_REQUESTS:
        flow_belies(c, side)
        count_add(&g.n.incomplete[INCOMPLETE_MALFORMED], 1)
    flow_lost(g, c, side)
    return 0 if before else n


cdef void stream_read(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack,
                      bint has_ack, bint starts) noexcept nogil:
    """Ordered bytes of one flow, all of one segment."""
    cdef Flow* f = &c.flow[side]
    cdef size_t at = 0
    cdef size_t taken
    cdef int judged
    cdef const uint8_t* body = NULL
    cdef size_t body_len
    cdef Message* m
    if f.state == ST_HEAD and not f.line_known and (f.resynced or (f.trust != TRUST_CERTAIN and ack != f.msg_ack)) and starts and f.role != ROLE_REPLIES:
        # What looked like the beginning of a request line may be the end of a body, and this the beginning (H7):
        judged = request_line(p, n)
        if ack != f.msg_ack or judged == LINE_REQUEST:
            flow_belies(c, side)
            f.state = ST_RESYNC           # … the server spoke in between, or the line is whole
        elif judged == LINE_MORE:
            f.msg_follows = 1             # … so no reply confirms it (H8)
    while at < n:
        if f.state == ST_START or f.state == ST_RESYNC:
            if f.state == ST_START:
                while at < n and (p[at] == 13 or p[at] == 10):
                    at += 1
                if at == n:
                    return
                f.resynced = 0
            else:
                if at or not starts:
                    return
                judged = line_judge(f, p, n)
                if judged == 0:
                    return
                f.resynced = 1
                if judged == 3:
                    return
                if f.role != ROLE_REPLIES:
                    flow_doubt(g, f)
            f.state = ST_HEAD
            f.line_known = 0
            f.scanned = 0
            f.buf_len = 0
            f.msg_ts = ts
            f.msg_pos = pos + at
            f.msg_seq = seq + <uint32_t>at
            f.msg_ack = ack
            f.msg_has_ack = has_ack
            f.msg_starts = starts and at == 0
            f.msg_follows = f.has_data_ack and <int32_t>(ack - f.data_ack) <= 0
        if f.state == ST_HEAD:
            taken = read_head(g, c, side, p + at, n - at)
            if taken == 0 and f.state == ST_RESYNC:
                if at:
                    return
                continue
            at += taken
        elif f.state == ST_LENGTH:
            taken = n - at
            if taken > f.left:
                taken = f.left
            m = f.current
            if m != NULL:
                if m.head_flags & HEAD_EXPECT and body_refused(g, m) and m.body_len == 0 and request_line(p + at, n - at) <= LINE_MORE:
                    peek_begin(f, ts, seq + <uint32_t>at, pos + at, ack, has_ack, starts and at == 0)
                    continue
                message_body(g, m, p + at, taken, p + at, taken)
            f.left -= taken
            at += taken
            if f.left == 0:
                if f.role == ROLE_REQUESTS:
                    message_ends(g, c, side)
                else:
                    f.state = ST_START
        elif f.state == ST_CHUNKED:
            m = f.current
            if (m != NULL and m.head_flags & HEAD_EXPECT and body_refused(g, m) and f.chunked.state == CHUNKED_START and m.body_len == 0
                    and request_line(p + at, n - at) <= LINE_MORE):
                peek_begin(f, ts, seq + <uint32_t>at, pos + at, ack, has_ack, starts and at == 0)
                continue
            taken = chunked_step(&f.chunked, p + at, n - at, &body, &body_len)
            if m != NULL:
                message_body(g, m, p + at, taken, body, body_len)
                if f.chunked.ambiguous:
                    m.ambiguous = 2
            at += taken
            if f.chunked.state == CHUNKED_DONE:
                if f.role == ROLE_REQUESTS:
                    message_ends(g, c, side)
                else:
                    f.state = ST_START
            elif f.chunked.state == CHUNKED_BAD:
                if f.role == ROLE_REQUESTS:
                    message_cut(g, c, side, INCOMPLETE_MALFORMED)
                flow_lost(g, c, side)
                return
        elif f.state == ST_PEEK:
            at += read_peek(g, c, side, p + at, n - at)
        elif f.state == ST_HOLD:
            if f.buf_len == 0:
                f.msg_ts = ts
                f.msg_pos = pos + at
                f.msg_seq = seq + <uint32_t>at
                f.msg_ack = ack
                f.msg_has_ack = has_ack
                f.msg_starts = starts and at == 0
            taken = n - at
            if f.buf_len + taken > M_HOLD or buf_add(g, f, p + at, taken) < 0:
                hold_unanswered(g, c, side)
                if f.state == ST_SKIP:
                    return
                continue
            at += taken
            if g.one_sided:
                judged = held_line(f)
                if judged == LINE_REQUEST and held_proves(c):
                    hold_release(g, c, side)
                    return
                if judged == LINE_REQUEST:
                    count_add(&g.n.asking, 1)     # only a reply tells whether this is HTTP
                elif judged != LINE_MORE:
                    hold_unanswered(g, c, side)
                    return
        else:
            return                # until the end, or skipped


cdef inline bint body_refused(const Engine* g, const Message* m) noexcept nogil:
    """H9: its final reply came before its body. Live, `replied` may also mean that no reply was captured."""
    return m.status != 101 and (m.status >= 200 or (m.replied and not g.wire))


cdef inline void peek_begin(Flow* f, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack, bint has_ack, bint starts) noexcept nogil:
    f.peek_state = f.state
    f.state = ST_PEEK
    f.buf_len = 0
    f.msg_ts = ts
    f.msg_seq = seq
    f.msg_pos = pos
    f.msg_ack = ack
    f.msg_has_ack = has_ack
    f.msg_starts = starts


cdef size_t read_peek(Engine* g, Conn* c, int side, const uint8_t* p, size_t n) noexcept nogil:
    """H9: the body was refused; is this the next request, or the body all the same?"""
    cdef Flow* f = &c.flow[side]
    cdef uint8_t* held
    cdef uint32_t have
    cdef RequestLine line
    if buf_add(g, f, p, n) < 0:
        message_cut(g, c, side, INCOMPLETE_EVICTED)
        flow_lost(g, c, side)
        return n
    line = request_line(f.buf, f.buf_len)
    if line == LINE_MORE and f.buf_len < g.max_head and not (f.peek_state == ST_LENGTH and f.buf_len >= f.left):
        return n
    held = f.buf
    have = f.buf_len
    f.buf = NULL
    f.buf_len = f.buf_cap = 0
    if line == LINE_REQUEST:
        message_cut(g, c, side, INCOMPLETE_BODY_REFUSED)
        f.state = ST_START
        if f.peek_state == ST_LENGTH and have >= f.left and (have == f.left or request_line(held + f.left, have - f.left) <= LINE_MORE):
            # it may as well be the whole body: what the server took it for is not known (H4)
            f.trust = TRUST_AMBIGUOUS
            f.doubt_ack = f.msg_ack
            f.epoch += 1
            c.flow[1 - side].certain = 0
    else:
        f.state = f.peek_state
        if f.current != NULL:
            f.current.head_flags &= ~<uint32_t>HEAD_EXPECT
    stream_read_held(g, c, side, held, have)
    return n


cdef void stream_read_held(Engine* g, Conn* c, int side, uint8_t* held, size_t n) noexcept nogil:
    """Bytes that were kept aside are read after all; frees them."""
    cdef Flow* f = &c.flow[side]
    cdef bint lasting = g.lasting
    g.lasting = False
    stream_read(g, c, side, held, n, f.msg_ts, f.msg_seq, f.msg_pos, f.msg_ack, f.msg_has_ack, f.msg_starts)
    g.lasting = lasting
    free(held)


cdef RequestLine held_line(const Flow* f) noexcept nogil:
    """Of bytes behind a request that asked for a tunnel, as stream_read would take them."""
    cdef uint32_t at = 0
    while at < f.buf_len and (f.buf[at] == 13 or f.buf[at] == 10):
        at += 1
    return request_line(f.buf + at, f.buf_len - at)


cdef inline bint held_proves(const Conn* c) noexcept nogil:
    """What a client sends behind an upgrade to HTTP/2 that was accepted begins with HTTP/2's preface: a request line there proves that it was refused."""
    return c.queue_last != NULL and c.queue_last.head_flags & HEAD_UPGRADE_H2C and not c.queue_last.flags & REQUEST_CONNECT


cdef void hold_unanswered(Engine* g, Conn* c, int side) noexcept nogil:
    """H10: no answer in the capture. A request line means that the tunnel was refused; where answers were not heard, that it may have been."""
    cdef Flow* f = &c.flow[side]
    cdef bint unheard = g.one_sided or c.joined       # it may well have been answered, and a tunnel may carry HTTP
    if unheard and (c.queue_last == NULL or c.queue_last.flags & REQUEST_CONNECT):
        f.state = ST_SKIP
        f.buf_len = 0
    elif f.buf_len and (held_line(f) if unheard else request_line(f.buf, f.buf_len)) == LINE_REQUEST:
        if (unheard or g.wire) and not (unheard and held_proves(c)):     # live, the answer may be on its way
            flow_doubt(g, f)
        hold_release(g, c, side)
    else:
        f.state = ST_SKIP
        f.buf_len = 0


cdef void stream_bytes(Engine* g, Conn* c, int side, const uint8_t* p, size_t n, int64_t ts, uint32_t seq, uint64_t pos, uint32_t ack,
                       bint has_ack, bint starts) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    if f.state == ST_SKIP or f.state == ST_UNTIL_END:
        return
    if f.state == ST_NEW:
        stream_begins(c, side)
    stream_read(g, c, side, p, n, ts, seq, pos, ack, has_ack, starts)
    if n > 1:                     # one byte may be a keep-alive probe
        f.has_data_ack = has_ack
        f.data_ack = ack


cdef inline void stream_begins(Conn* c, int side) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    if f.from_syn:
        f.state = ST_START
    else:
        f.state = ST_RESYNC
        f.certain = 0
        c.flow[1 - side].certain = 0


cdef void stream_gap(Engine* g, Conn* c, int side, uint64_t n, uint8_t reason) noexcept nogil:
    """n bytes are not in the capture (H6)."""
    cdef Flow* f = &c.flow[side]
    if f.state == ST_NEW:
        stream_begins(c, side)
    if f.state == ST_SKIP or f.state == ST_UNTIL_END:
        return
    if f.state == ST_LENGTH and n <= f.left:
        f.left -= n
        if f.role == ROLE_REQUESTS:
            if f.current != NULL:
                message_holed(g, c, side, reason)
            if f.left == 0:
                message_ends(g, c, side)
        elif f.left == 0:
            f.state = ST_START
        return
    if f.state == ST_CHUNKED and f.chunked.state == CHUNKED_DATA and n <= f.chunked.left:
        f.chunked.left -= n
        if f.chunked.left == 0:
            f.chunked.state = CHUNKED_DATA_CR
        if f.role == ROLE_REQUESTS and f.current != NULL:
            message_holed(g, c, side, reason)
        return
    if f.role != ROLE_REPLIES:
        message_cut(g, c, side, reason)
    elif f.state == ST_HEAD and g.wire and reply_cut(g, c, side):
        return
    flow_lost(g, c, side)


cdef void message_holed(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """A gap inside a body whose end is known: incomplete, but read on to its end."""
    cdef Message* m = c.flow[side].current
    message_fails(g, m, reason)


cdef void stream_end(Engine* g, Conn* c, int side, uint8_t reason) noexcept nogil:
    """No more bytes of this flow."""
    cdef Flow* f = &c.flow[side]
    if f.role == ROLE_REQUESTS:
        if f.state == ST_HOLD:
            hold_unanswered(g, c, side)
        if f.state == ST_PEEK or f.current != NULL or f.state == ST_HEAD:
            message_cut(g, c, side, reason)
        if f.state != ST_SKIP:
            f.state = ST_START
            f.line_known = 0
            f.buf_len = 0
            f.trust = TRUST_UNCONFIRMED if f.trust == TRUST_CERTAIN else f.trust
            f.epoch += 1
    elif f.role == ROLE_REPLIES:
        while c.queue != NULL:
            queue_pop(g, c)
        if f.state != ST_SKIP:
            f.state = ST_RESYNC
            f.buf_len = 0
    if f.buf != NULL and f.buf_len == 0:
        free(f.buf)
        f.buf = NULL
        f.buf_cap = 0


cdef void stream_over(Engine* g, Conn* c) noexcept nogil:
    """Both flows have ended: no reply will come."""
    while c.queue != NULL:
        queue_pop(g, c)
