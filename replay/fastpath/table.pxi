# The table of connections: what is kept of each and of its two flows, which end first when there are too many (docs/design.md R1 to R7).
# Must not know: HTTP, files, sockets, what is done with segments (reassembly.pxi). Knows capture time only.

cdef enum:
    R_AHEAD = 1 << 30                       # R1
    R_FITS_AHEAD = 64 * 1024 * 1024         # R7: further ahead than this is another connection's number
    R_FITS_BEHIND = 1024 * 1024             # R7: so far before the start of the flow it may still be a late copy
    R_FLOW_WAITS = 4 * 1024 * 1024          # R4: bytes that wait in one flow
    R_ASIDE = 64 * 1024                     # R7
    R_CLOSED_KEPT = 2048                    # ended connections kept for late copies
    R_HALF_OPEN_KEPT = 16384                # connections without a byte
    R_HOLD_PACKETS = 64                     # R4: of a connection, where time goes on
    R_HOLD_PACKETS_MOST = 1024              # R4: where it does not

cdef enum:
    R_HOLD_SOON_NS = 10000000               # R4: 10 ms
    R_HOLD_NS = 50000000                    # R4: 50 ms
cdef int64_t R_UNHEARD_NS = 3000000000      # R4: 3 s, several of a client's retransmissions
cdef int64_t R_QUIET_NS = 120000000000      # R7: 120 s
cdef int64_t R_WAIT_NS = 30000000000        # R4: 30 s

cdef enum:
    SPARE_BYTES = 2048                      # of a piece of memory that is used again: a usual head and a small body
    SPARE_MOST = 512

cdef struct Engine                          # ingest.pxi
cdef struct Message                         # message.pxi
cdef struct Conn

cdef struct Pending:                        # bytes that wait, with their segment's boundaries (R4)
    Pending* next
    uint64_t pos
    int64_t ts_ns
    int64_t acked_ts                        # when the other side had acknowledged what is before it (R4); -1: it has not
    uint32_t acked_no                       # and the connection's packet that said so
    uint32_t len
    uint32_t missing                        # D3, follows the bytes
    uint32_t ack
    uint8_t has_ack
    uint8_t starts                          # begins its segment
    uint8_t forced                          # no longer waits for the other side (causality)
    uint8_t* data                           # owns (behind the struct)

cdef enum:                                  # ListName
    LIST_NONE = 0
    LIST_HALF_OPEN = 1
    LIST_OPEN = 2
    LIST_CLOSED = 3

cdef enum:                                  # bytes at the beginning of the structs that the usual segment touches
    CONN_HOT = 128
    FLOW_HOT = 192

cdef struct Flow:                           # one direction of a connection
    uint64_t next                           # position expected next; positions begin at 2^32 so that earlier ones exist
    uint64_t acked                          # highest position acknowledged by the other side
    int64_t beyond_ts                       # when `acked` first passed `next`; -1: it has not
    Pending* first                          # owns; ordered by pos, without overlap
    # what kept-aside bytes (R7) begin at
    Pending* aside                          # owns; in order of arrival
    uint32_t seq                            # sequence number of `next`
    uint8_t started                         # a position is known
    uint8_t has_bytes                       # bytes or a gap were handed on
    uint8_t fin_seen
    uint8_t ended
    # http, see message.pxi and streams.pxi
    uint8_t role                            # Role
    uint8_t state                           # FlowState
    uint8_t trust                           # Trust
    uint8_t spoke                           # a whole message of its role was seen
    uint8_t certain                         # replies: they belong to the oldest open request
    uint8_t line_known                      # the first line in buf was judged
    uint8_t resynced                        # what is being read began at the start of a segment, by resync
    uint8_t msg_has_ack
    uint8_t msg_starts                      # it begins its segment
    uint8_t msg_follows                     # the data before it acknowledged as much
    uint8_t has_data_ack
    uint32_t data_ack                       # what the data that was read last acknowledged
    uint32_t buf_len
    uint32_t scanned                        # of buf, for line ends
    uint32_t epoch                          # counts losses of certainty
    uint32_t doubt_ack                      # acknowledgement of the ambiguous request (H8)
    uint32_t msg_seq
    uint32_t msg_ack
    int64_t msg_ts                          # of the first byte of what is being read
    uint64_t msg_pos
    uint64_t left                           # of a body of known length
    Message* current                        # request being read; borrows (see Message.holders)
    # from here on what the usual segment does not need
    uint64_t start                          # position of the first byte
    uint64_t fin                            # position behind the last byte, when fin_seen
    uint64_t beyond                         # what `acked` was when it first passed `next` (R4)
    uint32_t beyond_packets
    uint32_t waiting                        # bytes pending
    uint32_t pending_seq                    # R6: initial number of a SYN that is not proven yet
    uint8_t from_syn
    uint8_t pending_syn                     # 2: with an acknowledgement
    uint8_t unheard                         # bytes may be missing from when servers were not heard (hearing.pxi)
    uint8_t swallow                         # reply: its body runs until the end
    uint8_t reply_body                      # Framing of the reply being read
    uint8_t peek_state                      # ST_PEEK: the state to go back to
    Pending* unacked                        # borrows: the first one whose beginning is not acknowledged
    Pending* last_hint                      # borrows: the last one added, where the next is likely to go
    uint32_t aside_bytes
    uint8_t* buf                            # owns: a head, or held bytes, that is not whole yet
    uint32_t buf_cap
    Chunked chunked

cdef struct Conn:
    Conn* hash_next
    uint64_t hash
    uint8_t a[16]                           # lower endpoint
    uint8_t b[16]
    uint64_t network
    uint16_t a_port
    uint16_t b_port
    uint8_t list                            # ListName
    uint8_t used                            # LIST_OPEN: it spoke since it was put into its place there
    uint8_t counted                         # a byte was seen: counts as a connection
    uint8_t has_head
    uint8_t opener                          # side whose SYN was seen, or acknowledged, plus 1; 0: neither
    uint8_t joined                          # until lately its replies were not captured (hearing.pxi): the next ones may be of requests that nobody remembers
    uint8_t plain                           # open on both sides, nothing waits, no end was seen: so segment_usual found it, and only segment_odd can change that
    uint64_t held                           # bytes of its flows' buffers, as counted in Engine.held
    int64_t last_ts
    int64_t order_ns                        # of its newest request (Message.order_ns)
    uint64_t id
    Message* queue                          # oldest request without its final reply
    Message* queue_last
    uint32_t packets                        # wraps
    uint32_t index                          # requests begun
    uint32_t open                           # messages in the queue
    uint8_t waits                           # in the waiting list
    uint8_t reset
    uint8_t other                           # Other, its kind was counted
    uint8_t has_interim
    Flow flow[2]                            # 0: from a
    Conn* prev                              # of its list (ListName), oldest first
    Conn* next
    Conn* wait_prev                         # of the list of those with bytes that wait
    Conn* wait_next
    int64_t wait_since
    Conn* head_prev                         # of the list of those with a head that is not whole yet, by head_ts
    Conn* head_next
    int64_t head_ts
    uint32_t interim                        # has_interim: the number behind an interim reply that nobody asked for: a body comes there, of a request that is not in the capture

cdef struct ConnList:
    Conn* first
    Conn* last
    uint64_t count


cdef extern from "fastpath/mix.h" nogil:
    int mix_order(const uint8_t* a, const uint8_t* b)
    uint64_t mix_key(const uint8_t* a, const uint8_t* b, uint32_t ports, uint64_t network, const uint64_t* secret)


cdef inline void segment_key(Engine* g, Segment* s) noexcept nogil:
    """Sets s.hash and s.side: the same hash for both directions of a connection."""
    cdef int order = mix_order(s.src, s.dst)
    cdef uint64_t network = s.network if g.split_by_network else 0
    if order < 0 or (order == 0 and s.sport <= s.dport):
        s.side = 0
        s.hash = mix_key(s.src, s.dst, (<uint32_t>s.sport << 16) | s.dport, network, g.secret)
    else:
        s.side = 1
        s.hash = mix_key(s.dst, s.src, (<uint32_t>s.dport << 16) | s.sport, network, g.secret)


cdef struct Seen:                           # a packet's segment, and what can be said of it without its connection
    Segment segment
    Head head                               # with head_len
    uint32_t head_len                       # of the usual head that its data begins with (head_scan); 0: none
    uint8_t has_segment


cdef inline uint8_t* piece_take(Engine* g) noexcept nogil:
    """SPARE_BYTES, used before if possible (malloc has no quick way for sizes like that); NULL: none. Who has it may also realloc() or free() it."""
    cdef uint8_t* piece = g.spare_first
    if piece == NULL:
        return <uint8_t*>malloc(SPARE_BYTES)
    g.spare_first = (<uint8_t**>piece)[0]
    g.spares -= 1
    return piece


cdef inline void piece_free(Engine* g, uint8_t* p, uint64_t size) noexcept nogil:
    """p: NULL, or `size` bytes from malloc."""
    if p != NULL and size == SPARE_BYTES and g.spares < SPARE_MOST and not HS_STRICT:    # a sanitizer should see every use of what is free
        (<uint8_t**>p)[0] = g.spare_first
        g.spare_first = p
        g.spares += 1
    else:
        free(p)


cdef inline void list_add(ConnList* l, Conn* c) noexcept nogil:
    c.prev = l.last
    c.next = NULL
    if l.last != NULL:
        l.last.next = c
    else:
        l.first = c
    l.last = c
    l.count += 1


cdef inline void list_remove(ConnList* l, Conn* c) noexcept nogil:
    if c.prev != NULL:
        c.prev.next = c.next
    else:
        l.first = c.next
    if c.next != NULL:
        c.next.prev = c.prev
    else:
        l.last = c.prev
    c.prev = c.next = NULL
    l.count -= 1


cdef inline void conn_move(Engine* g, Conn* c, uint8_t to) noexcept nogil:
    """To the young end of a list."""
    if c.list == to and g.lists[to].last == c:
        return
    if c.list != LIST_NONE:
        list_remove(&g.lists[c.list], c)
    c.list = to
    if to != LIST_NONE:
        list_add(&g.lists[to], c)


cdef void conn_waits(Engine* g, Conn* c, int64_t ts) noexcept nogil:
    if c.waits:
        return
    c.waits = 1
    c.wait_since = ts
    c.wait_prev = g.wait_last
    c.wait_next = NULL
    if g.wait_last != NULL:
        g.wait_last.wait_next = c
        if ts < g.wait_last.wait_since:
            c.wait_since = g.wait_last.wait_since
    else:
        g.wait_first = c
    g.wait_last = c


cdef void conn_waits_no_more(Engine* g, Conn* c) noexcept nogil:
    if not c.waits:
        return
    c.waits = 0
    if c.wait_prev != NULL:
        c.wait_prev.wait_next = c.wait_next
    else:
        g.wait_first = c.wait_next
    if c.wait_next != NULL:
        c.wait_next.wait_prev = c.wait_prev
    else:
        g.wait_last = c.wait_prev
    c.wait_prev = c.wait_next = NULL


cdef void conn_heads(Engine* g, Conn* c) noexcept nogil:
    """Keeps the list of connections with a head that is not whole yet: the window does not let younger requests go before it (W1)."""
    cdef int i
    cdef bint has = False
    cdef int64_t ts = 0
    cdef Flow* f
    cdef Conn* before
    for i in range(2):
        f = &c.flow[i]
        if f.state == ST_HEAD and f.buf_len and f.role != ROLE_REPLIES and (not has or f.msg_ts < ts):
            has = True
            ts = f.msg_ts
    if c.has_head:
        if has and ts == c.head_ts:
            return
        conn_heads_leave(g, c)
    if not has:
        return
    before = g.head_last
    while before != NULL and before.head_ts > ts:
        before = before.head_prev
    c.has_head = 1
    c.head_ts = ts
    c.head_prev = before
    c.head_next = before.head_next if before != NULL else g.head_first
    if c.head_next != NULL:
        c.head_next.head_prev = c
    else:
        g.head_last = c
    if before != NULL:
        before.head_next = c
    else:
        g.head_first = c


cdef void conn_heads_leave(Engine* g, Conn* c) noexcept nogil:
    if not c.has_head:
        return
    c.has_head = 0
    if c.head_prev != NULL:
        c.head_prev.head_next = c.head_next
    else:
        g.head_first = c.head_next
    if c.head_next != NULL:
        c.head_next.head_prev = c.head_prev
    else:
        g.head_last = c.head_prev
    c.head_prev = c.head_next = NULL


cdef inline bint holds(const Flow* f) noexcept nogil:
    return f.state == ST_HOLD and f.buf_len != 0


cdef void holds_give_up(Engine* g, Conn* c) noexcept nogil:
    """There is no room to hold bytes for an answer any longer (H10)."""
    cdef int i
    count_add(&g.n.over_memory, 1)
    for i in range(2):
        if holds(&c.flow[i]):
            hold_unanswered(g, c, i)
            if c.flow[i].state == ST_HOLD:      # another one, among what was held
                c.flow[i].state = ST_SKIP
                c.flow[i].buf_len = 0
    conn_heads(g, c)
    conn_holds(g, c)


cdef void conn_holds(Engine* g, Conn* c) noexcept nogil:
    """Keeps account of buffers of heads that are not whole, and of held bytes: many clients that send half a head each must not fill the memory."""
    cdef int i
    cdef Flow* f
    cdef uint64_t held = 0
    for i in range(2):
        f = &c.flow[i]
        if f.buf != NULL and f.buf_len == 0:
            piece_free(g, f.buf, f.buf_cap)
            f.buf = NULL
            f.buf_cap = 0
        held += f.buf_cap
    g.held += held - c.held
    c.held = held
    if g.held > g.max_waiting // 2 and (holds(&c.flow[0]) or holds(&c.flow[1])):       # the other half is for heads
        holds_give_up(g, c)
        return
    while g.held > g.max_waiting and g.head_first != NULL:
        count_add(&g.n.over_memory, 1)
        conn_drop(g, g.head_first, INCOMPLETE_EVICTED)       # the one that has been at it for longest


cdef int table_grow(Engine* g) noexcept nogil:
    cdef uint64_t size = g.table_mask + 1
    cdef uint64_t i
    cdef Conn* c
    cdef Conn* after
    cdef Conn** fresh = <Conn**>calloc(size * 2, sizeof(Conn*))
    if fresh == NULL:
        return -1                           # longer chains then
    for i in range(size):
        c = g.table[i]
        while c != NULL:
            after = c.hash_next
            c.hash_next = fresh[c.hash & (size * 2 - 1)]
            fresh[c.hash & (size * 2 - 1)] = c
            c = after
    free(g.table)
    g.table = fresh
    g.table_mask = size * 2 - 1
    return 0


cdef inline Conn* conn_look(Engine* g, const Segment* s) noexcept nogil:
    """The connection of a segment that has its key; NULL: there is none."""
    cdef Conn* c = g.table[s.hash & g.table_mask]
    cdef uint64_t network = s.network if g.split_by_network else 0
    while c != NULL:
        if c.hash == s.hash and c.network == network:
            if s.side == 0:
                if c.a_port == s.sport and c.b_port == s.dport and memcmp(c.a, s.src, 16) == 0 and memcmp(c.b, s.dst, 16) == 0:
                    return c
            elif c.a_port == s.dport and c.b_port == s.sport and memcmp(c.a, s.dst, 16) == 0 and memcmp(c.b, s.src, 16) == 0:
                return c
        c = c.hash_next
    return NULL


cdef Conn* conn_find(Engine* g, const Segment* s, bint make) noexcept nogil:
    """The connection of a segment that has its key, a new one if need be."""
    cdef Conn* c = conn_look(g, s)
    cdef uint64_t h = s.hash
    if c != NULL:
        return c
    if not make:
        return NULL
    if g.conn_count >= g.max_connections:
        conn_evict(g)
    c = g.conn_spare
    if c != NULL:
        g.conn_spare = c.hash_next
    else:
        if posix_memalign(<void**>&c, 64, sizeof(Conn)) != 0:
            return NULL
    memset(c, 0, sizeof(Conn))
    if s.side == 0:
        memcpy(c.a, s.src, 16)
        memcpy(c.b, s.dst, 16)
        c.a_port = s.sport
        c.b_port = s.dport
    else:
        memcpy(c.a, s.dst, 16)
        memcpy(c.b, s.src, 16)
        c.a_port = s.dport
        c.b_port = s.sport
    c.network = s.network if g.split_by_network else 0
    c.hash = h
    c.last_ts = s.ts_ns
    conn_fresh(g, c)
    if g.conn_count > g.table_mask:
        table_grow(g)
    c.hash_next = g.table[h & g.table_mask]
    g.table[h & g.table_mask] = c
    g.conn_count += 1
    conn_move(g, c, LIST_HALF_OPEN)
    if g.lists[LIST_HALF_OPEN].count > R_HALF_OPEN_KEPT:
        conn_drop(g, g.lists[LIST_HALF_OPEN].first, INCOMPLETE_EVICTED)
    return c


cdef void conn_fresh(Engine* g, Conn* c) noexcept nogil:
    """A new connection begins, in a table entry that is new or whose former connection has ended."""
    cdef int i
    g.conn_ids += 1
    c.id = g.conn_ids
    c.index = 0
    c.counted = 0
    c.plain = 0
    c.reset = 0
    c.other = 0
    c.has_interim = 0
    c.opener = 0
    c.joined = before_heard(g, g.packet_ns) # its replies may be among those that were not captured
    for i in range(2):
        free(c.flow[i].buf)
        memset(&c.flow[i], 0, sizeof(Flow))
        c.flow[i].beyond_ts = -1
        c.flow[i].certain = 1


cdef void pending_free(Engine* g, Flow* f) noexcept nogil:
    cdef Pending* p = f.first
    cdef Pending* after
    while p != NULL:
        after = p.next
        g.waiting -= p.len
        free(p)
        p = after
    f.first = NULL
    f.unacked = NULL
    f.last_hint = NULL
    f.waiting = 0
    p = f.aside
    while p != NULL:
        after = p.next
        g.waiting -= p.len
        free(p)
        p = after
    f.aside = NULL
    f.aside_bytes = 0


cdef void conn_seen(Engine* g, Conn* c) noexcept nogil:
    """What the capture has of a connection that is forgotten now."""
    cdef Flow* a = &c.flow[0]
    cdef Flow* b = &c.flow[1]
    if not c.counted:
        return
    if not a.from_syn and not b.from_syn:
        count_add(&g.n.mid_stream, 1)
    if (a.has_bytes != b.has_bytes) and not (b.started if a.has_bytes else a.started):
        count_add(&g.n.one_sided, 1)


cdef void conn_drop(Engine* g, Conn* c, uint8_t reason) noexcept nogil:
    """Ends a connection and forgets it."""
    cdef Conn** at
    conn_end(g, c, reason)
    conn_seen(g, c)
    conn_heads_leave(g, c)
    g.held -= c.held
    at = &g.table[c.hash & g.table_mask]
    while at[0] != c:
        at = &(at[0].hash_next)
    at[0] = c.hash_next
    conn_move(g, c, LIST_NONE)
    g.conn_count -= 1
    free(c.flow[0].buf)
    free(c.flow[1].buf)
    if g.conn_spares < 4096:
        c.hash_next = g.conn_spare
        g.conn_spare = c
        g.conn_spares += 1
    else:
        free(c)


cdef void conn_evict(Engine* g) noexcept nogil:
    """Room for one more: an ended connection, else one without a byte, else the one quiet for longest."""
    if g.lists[LIST_CLOSED].first != NULL:
        conn_drop(g, g.lists[LIST_CLOSED].first, INCOMPLETE_CLOSED)
    elif g.lists[LIST_HALF_OPEN].first != NULL:
        count_add(&g.n.evicted, 1)
        conn_drop(g, g.lists[LIST_HALF_OPEN].first, INCOMPLETE_EVICTED)
    elif g.lists[LIST_OPEN].first != NULL:
        while g.lists[LIST_OPEN].first.used:        # it spoke since it was put there
            g.lists[LIST_OPEN].first.used = 0
            conn_move(g, g.lists[LIST_OPEN].first, LIST_OPEN)
        count_add(&g.n.evicted, 1)
        conn_drop(g, g.lists[LIST_OPEN].first, INCOMPLETE_EVICTED)


cdef void conn_end(Engine* g, Conn* c, uint8_t reason) noexcept nogil:
    """The connection is over: what waits is read, gaps close, messages end (R6)."""
    cdef int i
    cdef Flow* f
    cdef Pending* p
    cdef Pending* q
    while True:
        flow_settle(g, c)
        p = c.flow[0].first
        q = c.flow[1].first
        if p == NULL and q == NULL:
            break
        i = 1 if p == NULL or (q != NULL and q.ts_ns < p.ts_ns) else 0
        f = &c.flow[i]
        if f.first.pos <= f.next and f.first.has_ack and flow_must_wait(g, &c.flow[1 - i], f.first.ack) and flow_hole(&c.flow[1 - i]):
            flow_gap(g, c, 1 - i, flow_hole(&c.flow[1 - i]), INCOMPLETE_GAP)    # what it waits for is a hole: that is closed first
        else:
            flow_force(g, c, i)
    for i in range(2):
        f = &c.flow[i]
        if flow_hole(f):
            flow_gap(g, c, i, flow_hole(f), INCOMPLETE_GAP)
    for i in range(2):
        f = &c.flow[i]
        if not f.ended:
            if f.fin_seen and f.fin > f.next:
                flow_gap(g, c, i, f.fin - f.next, INCOMPLETE_GAP)     # its FIN tells how much is missing
            f.ended = 1
            stream_end(g, c, i, reason)
        elif f.current != NULL or f.buf_len:
            stream_end(g, c, i, reason)         # bytes behind its end, which were read now
        pending_free(g, f)
    conn_waits_no_more(g, c)
    stream_over(g, c)
