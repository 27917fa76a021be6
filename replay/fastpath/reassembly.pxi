# Segments into their connections: ordered bytes and gaps out (docs/design.md R1 to R7).
# Must not know: HTTP (what it calls is stream_bytes, stream_gap, stream_end in streams.pxi), files, sockets. Knows capture time only.

cdef inline uint64_t flow_pos(const Flow* f, uint32_t seq) noexcept nogil:
    """R1. A number that is ahead by more than 2^30 counts as behind."""
    cdef int64_t delta = <int32_t>(seq - f.seq)
    if delta > R_AHEAD:
        delta -= <int64_t>1 << 32
    return f.next + delta


cdef inline void flow_begin(Flow* f, uint32_t seq, bint from_syn) noexcept nogil:
    f.started = 1
    f.from_syn = from_syn
    f.next = <uint64_t>1 << 33
    f.start = f.next
    f.seq = seq
    f.beyond_ts = -1
    f.acked = 0


cdef inline void flow_forward(Flow* f, uint64_t n) noexcept nogil:
    f.next += n
    f.seq += <uint32_t>n
    f.has_bytes = 1
    if f.beyond_ts >= 0 and f.acked <= f.next:
        f.beyond_ts = -1


cdef inline bint flow_must_wait(const Engine* g, const Flow* other, uint32_t ack) noexcept nogil:
    """Causality: these bytes were sent after the other side's up to `ack` had arrived, so those are read first."""
    cdef int32_t ahead
    if g.one_sided or not other.started or other.ended or other.role == ROLE_OTHER:
        return False
    ahead = <int32_t>(ack - other.seq)
    return 0 < ahead <= R_FITS_AHEAD and not (other.fin_seen and other.next + <uint64_t>ahead > other.fin and other.next >= other.fin)


cdef int pending_add(Engine* g, Conn* c, Flow* f, uint64_t pos, const Segment* s, const uint8_t* data, uint32_t n, uint32_t missing) noexcept nogil:
    """Keeps bytes for later; what waits already wins over later copies (R2)."""
    cdef Pending** at = &f.first
    cdef Pending* p
    cdef Pending* q
    cdef uint64_t end = pos + n
    cdef uint64_t stop
    cdef uint64_t from_, size
    cdef bint starts = True
    cdef bint conflict = False
    if f.last_hint != NULL and f.last_hint.pos + f.last_hint.len <= pos:
        at = &f.last_hint.next
    while True:
        q = at[0]
        if q != NULL and q.pos + q.len <= pos and not (q.len == 0 and q.pos == pos and n == 0):
            at = &q.next
            continue
        if q == NULL or q.pos >= end:
            stop = end
        elif q.pos > pos:
            stop = q.pos
        else:
            # [pos, min(end, q's end)) is there already
            from_ = q.pos + q.len
            if from_ > end:
                from_ = end
            if memcmp(q.data + (pos - q.pos), data, from_ - pos) != 0:
                conflict = True
            data += from_ - pos
            pos = from_
            starts = False
            if pos >= end:
                break
            at = &q.next
            continue
        size = stop - pos
        if size == 0 and missing == 0:
            break
        p = <Pending*>malloc(sizeof(Pending) + size)
        if p == NULL:
            count_add(&g.n.no_memory, 1)
            break
        p.pos = pos
        p.ts_ns = s.ts_ns
        p.len = <uint32_t>size
        p.missing = missing if stop == end else 0
        p.ack = s.ack
        p.has_ack = (s.flags & TCP_ACK) != 0
        p.starts = starts
        p.forced = 0
        p.data = <uint8_t*>p + sizeof(Pending)
        memcpy(p.data, data, size)
        p.next = q
        p.acked_ts = -1
        p.acked_no = c.packets
        if pos <= f.acked or g.one_sided:     # where no acknowledgement is ever seen, what comes behind a hole must do
            p.acked_ts = s.ts_ns
        elif f.unacked == NULL or pos < f.unacked.pos:
            f.unacked = p
        at[0] = p
        f.last_hint = p
        f.waiting += <uint32_t>size
        g.waiting += size
        data += size
        pos = stop
        starts = False
        if pos >= end:
            break
        at = &p.next
    if conflict:
        count_add(&g.n.conflicts, 1)
    conn_waits(g, c, s.ts_ns)
    return 0


cdef void flow_gap(Engine* g, Conn* c, int side, uint64_t n, uint8_t reason) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    if f.unheard or (g.wire and reason == INCOMPLETE_CUT_BY_SNAPLEN and f.role != ROLE_REQUESTS):
        f.unheard = 0
        count_add(&g.n.left_bytes, <int64_t>n)      # a tap leaves most of a reply in the kernel: nothing is lost
    else:
        count_add(&g.n.gaps, 1)
        count_add(&g.n.gap_bytes, <int64_t>n)
        if <int64_t>n > g.n.gap_largest:
            atomic_set(&g.n.gap_largest, <int64_t>n)
    flow_forward(f, n)
    stream_gap(g, c, side, n, reason)


cdef void flow_cut(Engine* g, Conn* c, int side, uint64_t end, uint32_t missing) noexcept nogil:
    """R5: bytes behind `end` are missing by the snap length; a gap at once, up to what is there already."""
    cdef Flow* f = &c.flow[side]
    cdef uint64_t n
    if end + missing <= f.next or end > f.next:
        return
    n = end + missing - f.next
    if f.first != NULL and f.first.pos < f.next + n:
        if f.first.pos <= f.next:
            return
        n = f.first.pos - f.next
    flow_gap(g, c, side, n, INCOMPLETE_CUT_BY_SNAPLEN)


cdef bint flow_deliver(Engine* g, Conn* c, int side) noexcept nogil:
    """Hands on what can be handed on. True when anything was."""
    cdef Flow* f = &c.flow[side]
    cdef Flow* other = &c.flow[1 - side]
    cdef Pending* p
    cdef uint64_t skip
    cdef bint any = False
    while f.first != NULL:
        p = f.first
        if p.pos > f.next:
            break
        if p.has_ack and not p.forced and p.pos + p.len > f.next and flow_must_wait(g, other, p.ack):
            break
        f.first = p.next
        if f.unacked == p:
            f.unacked = p.next
        if f.last_hint == p:
            f.last_hint = NULL
        f.waiting -= p.len
        g.waiting -= p.len
        skip = f.next - p.pos
        if skip < p.len:
            any = True
            flow_take(g, c, side, p.data + skip, p.len - <uint32_t>skip, p.ts_ns, p.ack, p.has_ack, p.starts and skip == 0)
        if p.missing:
            any = True
            flow_cut(g, c, side, p.pos + p.len, p.missing)
        free(p)
    if f.fin_seen and not f.ended and f.next >= f.fin and f.first == NULL:
        if f.next > f.fin:
            f.fin_seen = 0                  # a FIN with a wild number
        else:
            f.ended = 1
            any = True
            stream_end(g, c, side, INCOMPLETE_CLOSED)
    if f.first == NULL and other.first == NULL:
        conn_waits_no_more(g, c)
    return any


cdef inline void flow_take(Engine* g, Conn* c, int side, const uint8_t* data, uint32_t n, int64_t ts, uint32_t ack, bint has_ack, bint starts) noexcept nogil:
    cdef Flow* f = &c.flow[side]
    cdef uint32_t seq = f.seq
    cdef uint64_t pos = f.next
    if not f.has_bytes and not c.counted:
        c.counted = 1
        # Where nobody saw who opened it, a server has the lower port.
        guard_looks(g, c, 2 - c.opener if c.opener else c.a_port > c.b_port)
        count_add(&g.n.connections, 1)
    flow_forward(f, n)
    stream_bytes(g, c, side, data, n, ts, seq, pos, ack, has_ack, starts)


cdef void flow_settle(Engine* g, Conn* c) noexcept nogil:
    """Both flows, until neither can go on."""
    while flow_deliver(g, c, 0) or flow_deliver(g, c, 1):
        pass


cdef uint64_t flow_hole(const Flow* f) noexcept nogil:
    """Length of the hole at `next`; 0: none that is known. What is acknowledged existed; one byte alone is the number of a FIN that was not captured."""
    if not f.started or f.ended:
        return 0
    if f.first != NULL:
        return f.first.pos - f.next if f.first.pos > f.next else 0
    if f.fin_seen:
        return f.fin - f.next if f.fin > f.next else 0
    return f.acked - f.next if f.acked > f.next + 1 else 0


cdef void flow_force(Engine* g, Conn* c, int side) noexcept nogil:
    """The wait is over: the hole before what waits becomes a gap, or the bytes go on without the other side's."""
    cdef Flow* f = &c.flow[side]
    cdef Pending* p = f.first
    if p == NULL:
        return
    if p.pos > f.next:
        flow_gap(g, c, side, p.pos - f.next, INCOMPLETE_GAP)
    p = f.first
    if p != NULL:
        p.forced = 1
    flow_deliver(g, c, side)


cdef inline bint hold_is_over(int64_t ns, uint32_t packets) noexcept nogil:
    """R4: so long, over so many packets of the connection, the bytes did not come. 64 packets alone are 75 us of a fast connection, by which the two directions of a capture may well differ."""
    return ns >= R_HOLD_NS or (ns >= R_HOLD_SOON_NS and packets >= R_HOLD_PACKETS) or packets >= R_HOLD_PACKETS_MOST


cdef bint flow_hole_overdue(Engine* g, Conn* c, int side, int64_t ts) noexcept nogil:
    """R4: the other side has had the end of this hole for long enough. True: it is closed, as a gap.

    Each hole has a wait of its own, or in a capture that lacks much a connection would fall behind ever more."""
    cdef Flow* f = &c.flow[side]
    cdef Pending* p = f.first
    if p == NULL or f.ended or p.pos <= f.next or p.acked_ts < 0:
        return False
    if g.one_sided:               # acknowledged or not is not known: lost on its way, it comes again
        if ts - p.acked_ts < R_UNHEARD_NS:
            return False
    elif not hold_is_over(ts - p.acked_ts, c.packets - p.acked_no):
        return False
    flow_gap(g, c, side, p.pos - f.next, INCOMPLETE_GAP)
    return True


cdef void flow_overdue(Engine* g, Conn* c, int side, int64_t ts) noexcept nogil:
    """R4: bytes that wait for the other side's, which cannot be; or a tail that the other side has, and that did not come."""
    cdef Flow* f = &c.flow[side]
    cdef uint64_t n
    if f.beyond_ts < 0 or f.ended or (f.first != NULL and f.first.pos > f.next):
        return
    if not hold_is_over(ts - f.beyond_ts, f.beyond_packets):
        return
    if f.first != NULL:
        if flow_hole(&c.flow[1 - side]) == 0:       # a hole there is about to be closed
            f.first.forced = 1
        return
    if f.beyond <= f.next:                          # those came; what was acknowledged since waits from now on
        f.beyond = f.acked
        f.beyond_ts = ts
        f.beyond_packets = 0
        return
    n = f.beyond - f.next
    if f.acked - f.next == 1:
        # the FIN, which takes a number, was not captured
        flow_forward(f, 1)
        f.beyond_ts = -1
        return
    flow_gap(g, c, side, n, INCOMPLETE_GAP)
    if f.acked > f.next:
        f.beyond = f.acked
        f.beyond_ts = ts
        f.beyond_packets = 0


cdef void flow_acked(Flow* f, uint32_t ack, int64_t ts, uint32_t packet) noexcept nogil:
    """The other side acknowledges up to `ack`."""
    cdef uint64_t pos
    if not f.started or f.ended:
        return
    pos = flow_pos(f, ack)
    if pos > f.next + R_FITS_AHEAD or pos <= f.acked:
        return
    f.acked = pos
    while f.unacked != NULL and f.unacked.pos <= pos:
        f.unacked.acked_ts = ts
        f.unacked.acked_no = packet
        f.unacked = f.unacked.next
    if pos <= f.next or (f.fin_seen and f.next >= f.fin):
        return
    if f.beyond_ts < 0 or (f.first != NULL and f.first.pos > f.next and f.beyond < f.first.pos <= pos):
        f.beyond_ts = ts
        f.beyond = pos
        f.beyond_packets = 0


cdef void conn_renew(Engine* g, Conn* c, int64_t ts) noexcept nogil:
    """The ports are used again: the old connection ends, a new one takes its entry."""
    conn_end(g, c, INCOMPLETE_CLOSED)
    conn_seen(g, c)
    conn_fresh(g, c)
    c.last_ts = ts
    conn_move(g, c, LIST_HALF_OPEN)


cdef bint conn_aside(Engine* g, Conn* c, int side, const Segment* s) noexcept nogil:
    """R7: data that fits neither stream. True when it began a new connection (and s is to be read as its first data)."""
    cdef Flow* f = &c.flow[side]
    cdef Pending* p
    cdef Pending* last
    if (c.flow[0].ended and c.flow[1].ended) or c.reset or s.ts_ns - c.last_ts > R_QUIET_NS:
        conn_renew(g, c, s.ts_ns)
        return True
    p = f.aside
    last = NULL
    while p != NULL:
        if <uint32_t>p.pos + p.len + p.missing == s.seq and (p.len or p.missing):
            # a second segment follows it directly: a new connection, with the first one's bytes before these
            if last != NULL:
                last.next = p.next
            else:
                f.aside = p.next
            p.next = NULL
            conn_renew(g, c, p.ts_ns)
            conn_replay(g, c, side, p, s)
            return True
        if <uint32_t>p.pos == s.seq:
            return False                    # the same again
        last = p
        p = p.next
    if f.aside_bytes + s.len > R_ASIDE:
        return False
    p = <Pending*>malloc(sizeof(Pending) + s.len)
    if p == NULL:
        return False
    p.pos = s.seq
    p.len = s.len
    p.missing = s.missing
    p.ts_ns = s.ts_ns
    p.ack = s.ack
    p.has_ack = (s.flags & TCP_ACK) != 0
    p.starts = 1
    p.forced = 0
    p.next = NULL
    p.data = <uint8_t*>p + sizeof(Pending)
    memcpy(p.data, s.data, s.len)
    if last != NULL:
        last.next = p
    else:
        f.aside = p
    f.aside_bytes += s.len
    g.waiting += s.len
    return False


cdef void conn_replay(Engine* g, Conn* c, int side, Pending* p, const Segment* like) noexcept nogil:
    """Reads a kept-aside segment as the first of a connection that has just begun; frees it."""
    cdef Segment s = like[0]
    s.data = p.data
    s.len = p.len
    s.missing = p.missing
    s.seq = <uint32_t>p.pos
    s.ack = p.ack
    s.ts_ns = p.ts_ns
    s.flags = TCP_ACK if p.has_ack else 0
    s.lasting = 0
    g.waiting -= p.len
    conn_segment(g, c, side, &s)
    free(p)


cdef bint conn_aside_acked(Engine* g, Conn* c, int side, const Segment* s) noexcept nogil:
    """R7: the other side acknowledges exactly the end of bytes kept aside. `side`: whose bytes they are."""
    cdef Flow* f = &c.flow[side]
    cdef Pending* p = f.aside
    cdef Pending* before = NULL
    while p != NULL:
        if <uint32_t>p.pos + p.len + p.missing == s.ack:
            if before != NULL:
                before.next = p.next
            else:
                f.aside = p.next
            p.next = NULL
            conn_renew(g, c, p.ts_ns)
            conn_replay(g, c, side, p, s)
            return True
        before = p
        p = p.next
    return False


cdef inline void conn_opened(Conn* c, int side, bint answers) noexcept nogil:
    """A SYN, or its answer: who opened it. HTTP's client is who opens the connection; a lone SYN is the better proof."""
    if c.opener == 0 or not (answers or c.flow[0].has_bytes or c.flow[1].has_bytes):
        c.opener = <uint8_t>(2 - side if answers else 1 + side)


cdef inline bint syn_is_proven(const Engine* g, const Flow* f, uint32_t seq) noexcept nogil:
    """R6: data follows the SYN directly; where its answer cannot be seen, any that is not far behind it, and none of the old connection."""
    cdef uint32_t behind = seq - f.pending_seq - 1
    cdef uint64_t pos
    if behind == 0:
        return True
    if not g.one_sided or behind > R_FITS_AHEAD:
        return False
    pos = flow_pos(f, seq)
    return pos > f.next + R_FITS_AHEAD or pos + R_FITS_BEHIND < f.start


cdef void conn_segment(Engine* g, Conn* c, int side, const Segment* s) noexcept nogil:
    """One segment into its connection."""
    cdef Flow* f = &c.flow[side]
    cdef Flow* other = &c.flow[1 - side]
    cdef uint32_t seq = s.seq
    cdef uint64_t pos = 0
    cdef uint64_t skip
    cdef bint plain
    c.packets += 1
    if s.flags & TCP_SYN:
        seq += 1                            # data on a SYN has the next number (R3)
        if not f.started or (not f.has_bytes and not other.has_bytes and not f.first and f.from_syn and s.len == 0 and f.seq != seq):
            flow_begin(f, seq, True)
            conn_opened(c, side, s.flags & TCP_ACK != 0)
        elif flow_pos(f, seq) != f.start or not f.from_syn:
            if s.flags & TCP_ACK and other.pending_syn and s.ack == other.pending_seq + 1:
                # R6: the SYN/ACK proves the SYN
                skip = other.pending_seq
                conn_renew(g, c, s.ts_ns)
                flow_begin(&c.flow[1 - side], <uint32_t>skip + 1, True)
                flow_begin(f, seq, True)
                conn_opened(c, side, True)
            elif not (f.has_bytes or other.has_bytes or f.first or other.first):
                flow_begin(f, seq, True)
                conn_opened(c, side, s.flags & TCP_ACK != 0)
            else:
                f.pending_syn = 2 if s.flags & TCP_ACK else 1
                f.pending_seq = s.seq
                if s.len == 0 or f.started:
                    return
        else:
            conn_opened(c, side, s.flags & TCP_ACK != 0)
        if s.flags & TCP_ACK:
            guard_looks(g, c, side)
            if not other.started:
                flow_begin(other, s.ack, True)  # the SYN itself was not captured, but its number is acknowledged
    elif s.flags & TCP_RST:
        if f.started and seq == f.seq and not c.reset:
            c.reset = 1
            conn_end(g, c, INCOMPLETE_CLOSED)
            conn_move(g, c, LIST_CLOSED)
        return
    if s.flags & TCP_ACK and not (s.flags & TCP_SYN):
        if other.aside != NULL and conn_aside_acked(g, c, 1 - side, s):
            pass
        if not g.one_sided:
            flow_acked(other, s.ack, s.ts_ns, c.packets)
    if s.len or s.missing:
        if f.pending_syn and not (s.flags & TCP_SYN) and f.started and flow_pos(f, seq) != f.next and syn_is_proven(g, f, seq):
            skip = f.pending_seq
            plain = f.pending_syn == 2
            conn_renew(g, c, s.ts_ns)
            flow_begin(f, <uint32_t>skip + 1, True)
            conn_opened(c, side, plain)
        if not f.started:
            flow_begin(f, seq, False)
        pos = flow_pos(f, seq)
        if pos > f.next + R_FITS_AHEAD or pos + R_FITS_BEHIND < f.start:
            if not conn_aside(g, c, side, s):
                return
            if not f.started:
                flow_begin(f, seq, False)
            pos = flow_pos(f, seq)
        if pos + s.len + s.missing > f.next:
            if f.ended and pos <= f.next:
                f.ended = 0                 # bytes after a FIN or RST: that one was not the end
                c.reset = 0
                f.fin_seen = 0
            plain = f.first == NULL and pos <= f.next
            if plain and (not s.flags & TCP_ACK or not flow_must_wait(g, other, s.ack)):
                skip = f.next - pos
                if skip < s.len:
                    g.lasting = s.lasting
                    flow_take(g, c, side, s.data + skip, s.len - <uint32_t>skip, s.ts_ns, s.ack, (s.flags & TCP_ACK) != 0, skip == 0)
                    g.lasting = False
                if s.missing:
                    flow_cut(g, c, side, pos + s.len, s.missing)
            else:
                skip = f.next - pos if pos < f.next else 0
                if skip > s.len:
                    skip = s.len
                pending_add(g, c, f, pos + skip, s, s.data + skip, s.len - <uint32_t>skip, s.missing)
                if skip and f.first != NULL and f.first.pos == pos + skip:
                    f.first.starts = 0
        elif s.len > 1 or pos + s.len < f.next:
            count_add(&g.n.repeated, 1)
    if s.flags & TCP_FIN and f.started:
        pos = flow_pos(f, seq) + s.len + s.missing
        if (not f.fin_seen or pos == f.next) and f.next <= pos <= f.next + R_FITS_AHEAD:
            f.fin_seen = 1
            f.fin = pos
    if f.first != NULL or other.first != NULL or f.fin_seen or other.fin_seen:
        flow_settle(g, c)
    if f.beyond_ts >= 0 or other.beyond_ts >= 0 or (g.one_sided and f.first != NULL):
        f.beyond_packets += 1
        other.beyond_packets += 1
        while flow_hole_overdue(g, c, side, s.ts_ns) or flow_hole_overdue(g, c, 1 - side, s.ts_ns):
            flow_settle(g, c)
        flow_overdue(g, c, side, s.ts_ns)
        flow_overdue(g, c, 1 - side, s.ts_ns)
        flow_settle(g, c)
    while f.waiting > R_FLOW_WAITS:
        flow_force(g, c, side)
        flow_settle(g, c)


cdef inline bint segment_usual(Engine* g, Conn* c, const Seen* x) noexcept nogil:
    """The usual segment, in one go: of an open connection in which nothing waits, no end was seen and nothing is missing; it acknowledges what was read,
    and its data, if any, comes next. True when it was that, and is done; what it does is what conn_segment and stream_bytes would."""
    cdef const Segment* s = &x.segment
    cdef Flow* f = &c.flow[s.side]
    cdef Flow* o = &c.flow[1 - s.side]
    cdef bint alone = False
    cdef int32_t ahead = <int32_t>(s.ack - o.seq)
    cdef uint64_t pos
    cdef uint32_t at
    if not c.plain:
        alone = g.one_sided and not o.started
        if alone:
            ahead = 0
        if c.list != LIST_OPEN or not (f.started & (o.started | alone) & c.counted) or (f.ended | o.ended | f.fin_seen | o.fin_seen):
            return False
        if <size_t>f.first | <size_t>o.first | <size_t>o.aside or (f.beyond_ts & o.beyond_ts) >= 0:
            return False
        c.plain = not alone and f.aside == NULL
    if (s.flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK or ahead > 0 or s.missing or (s.len and s.seq != f.seq):
        return False
    c.packets += 1
    c.used = 1
    pos = o.next + <uint64_t><int64_t>ahead
    if pos > o.acked and not alone:
        o.acked = pos
    if s.ts_ns > c.last_ts:
        c.last_ts = s.ts_ns
    if s.len == 0:
        return True
    pos = f.next
    f.next = pos + s.len
    f.seq = s.seq + s.len
    f.has_bytes = 1
    g.lasting = s.lasting
    if f.state == ST_START and x.head_len and x.head_len <= g.max_head and f.role and head_suits(f, &x.head):
        f.resynced = 0
        f.state = ST_HEAD
        f.line_known = 0
        f.scanned = 0
        f.buf_len = 0
        f.msg_ts = s.ts_ns
        f.msg_pos = pos
        f.msg_seq = s.seq
        f.msg_ack = s.ack
        f.msg_has_ack = 1
        f.msg_starts = 1
        f.msg_follows = f.has_data_ack and <int32_t>(s.ack - f.data_ack) <= 0
        at = x.head_len
        if at == HEAD_BEGUN:
            if read_begun(g, f, s.data, s.len, &x.head):
                at = s.len
            else:
                at = 0
        else:
            read_usual(g, c, s.side, s.data, at, &x.head)
        if at < s.len:
            if f.state == ST_LENGTH and f.role == ROLE_REPLIES and f.left >= s.len - at:
                f.left -= s.len - at
                if f.left == 0:
                    f.state = ST_START
            else:
                stream_read(g, c, s.side, s.data + at, s.len - at, s.ts_ns, s.seq + at, pos + at, s.ack, True, False)
        f.has_data_ack = 1
        f.data_ack = s.ack
    else:
        stream_bytes(g, c, s.side, s.data, s.len, s.ts_ns, s.seq, pos, s.ack, True, True)
    g.lasting = False
    return True


cdef void segment_in(Engine* g, const Seen* x) noexcept nogil:
    """One segment, which has its key, into the table."""
    cdef const Segment* s = &x.segment
    cdef Conn* c
    g.packet_ns = s.ts_ns
    c = conn_look(g, s)
    if c == NULL or not segment_usual(g, c, x):
        c = conn_find(g, s, (s.len or s.missing or s.flags & TCP_SYN) != 0) if c == NULL else c
        if c != NULL:
            segment_odd(g, c, s)
    if c != NULL and (c.flow[0].buf_len or c.flow[1].buf_len or c.has_head or c.held):
        conn_heads(g, c)
        conn_holds(g, c)
    waits_overdue(g, s.ts_ns)


cdef inline void waits_overdue(Engine* g, int64_t ts) noexcept nogil:
    """R4: nothing waits longer than 30 s of capture time, nor beyond the table's budget."""
    cdef Conn* w
    while g.wait_first != NULL and (ts - g.wait_first.wait_since > R_WAIT_NS or g.waiting > g.max_waiting):
        w = g.wait_first
        flow_force(g, w, 0)
        flow_force(g, w, 1)
        flow_settle(g, w)
        if w.waits:
            conn_waits_no_more(g, w)        # to the young end: it made progress
            conn_waits(g, w, ts)


cdef void segment_odd(Engine* g, Conn* c, const Segment* s) noexcept nogil:
    """Any segment into its connection, and the connection into its list."""
    c.plain = 0
    if g.one_sided and deaf_to(c, s.side) and (s.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN:     # a lone SYN: it is the client's after all
        return
    conn_segment(g, c, s.side, s)
    if s.ts_ns > c.last_ts:
        c.last_ts = s.ts_ns
    if c.reset or (c.flow[0].ended and c.flow[1].ended) or (g.one_sided and (c.flow[0].ended or c.flow[1].ended)):
        if c.list != LIST_CLOSED:
            stream_over(g, c)
            conn_move(g, c, LIST_CLOSED)
            if g.lists[LIST_CLOSED].count > R_CLOSED_KEPT:
                conn_drop(g, g.lists[LIST_CLOSED].first, INCOMPLETE_CLOSED)
    elif c.flow[0].has_bytes or c.flow[1].has_bytes or c.flow[0].first != NULL or c.flow[1].first != NULL:
        if c.list == LIST_OPEN:
            c.used = 1
        else:
            conn_move(g, c, LIST_OPEN)
