# What is different when packets come from a wire: no request waits for its reply, time goes on without packets, a full queue drops the newest, rules change
# while it runs. Must not know: sockets, files, what rules say.

cdef int64_t LIVE_ALWAYS = 1      # a stop flag that is set: memory is had at once or not at all


cdef enum:
    LIVE_TWINS = 8192
    LIVE_TWIN_BYTES = 96          # of a head that are compared

cdef int64_t LIVE_TWIN_NS = 1000000000       # so far apart two views of one packet may be

cdef struct Twin:                 # a request's head, as it was seen last
    uint64_t hash                 # of its first bytes, length, sequence and acknowledgement number, which address translation leaves alone
    uint64_t flow                 # of its connection and engine
    int64_t ts_ns
    int64_t held                  # atomic: a thread looks at it


cdef class Twins:
    """Requests that were read last, for all engines of one tap: the kernel shares connections out by their addresses, so that the two views of one that is
    translated may come to different ones."""
    cdef Twin* slots              # owns

    def __cinit__(self):
        self.slots = <Twin*>calloc(LIVE_TWINS, sizeof(Twin))
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)


cdef enum:
    LIVE_LOCALS_KEPT = 64

cdef struct Locals:
    Locals* before
    Network* nets                 # owns
    int count


cdef class Locality:
    """Where servers have to live for a tap: on this node, or (elsewhere) not on it. A filter of the kernel sees one packet and cannot tell a call to this node from
    the reply to one that this node made; once it is known who asks, it can be told.

    networks: pairs (16 address bytes, bits) of this node; `set` replaces them, at any time and from one thread, any."""
    cdef int64_t now              # atomic: address of a Locals
    cdef int64_t sets
    cdef readonly bint elsewhere

    def __init__(self, networks=(), *, bint elsewhere=False):
        self.elsewhere = elsewhere
        self.set(networks)

    def __dealloc__(self):
        self.drop_behind(0)

    cdef void drop_behind(self, int most) noexcept:
        """Frees all but the latest so many; the engine looks at the latest for no longer than a moment."""
        cdef Locals** at = <Locals**>&self.now
        cdef Locals* one
        cdef Locals* older
        while most and at[0] != NULL:
            at = &at[0].before
            most -= 1
        one = at[0]
        at[0] = NULL
        while one != NULL:
            older = one.before
            free(one.nets)
            free(one)
            self.sets -= 1
            one = older

    cdef bint refuses(self, const uint8_t* client, const uint8_t* server) noexcept nogil:
        """Where neither end is known to be of this node (a container behind a bridge), the kernel's filter has the last word."""
        cdef const Locals* here = <const Locals*>atomic_get(&self.now)
        if here == NULL:          # made without __init__: no network is known to be of this node
            return False
        cdef bint local = network_has(here.nets, here.count, server)
        if self.elsewhere:
            return local
        return not local and network_has(here.nets, here.count, client)

    def set(self, networks):
        """Raises ValueError for what is no network."""
        cdef list kept = []
        cdef Network* nets
        cdef Locals* fresh
        networks = list(networks)
        nets = kept_networks(kept, networks)
        fresh = <Locals*>calloc(1, sizeof(Locals))
        if fresh == NULL:
            raise MemoryError
        fresh.nets = <Network*>calloc(len(networks) + 1, sizeof(Network))
        if fresh.nets == NULL:
            free(fresh)
            raise MemoryError
        fresh.count = <int>len(networks)
        memcpy(fresh.nets, nets, fresh.count * sizeof(Network))
        fresh.before = <Locals*>atomic_get(&self.now)
        atomic_set(&self.now, <int64_t>fresh)
        self.sets += 1
        if self.sets > LIVE_LOCALS_KEPT:
            self.drop_behind(LIVE_LOCALS_KEPT)


cdef bint live_elsewhere(Engine* g, const Conn* c, int side) noexcept nogil:
    """The server of this conversation does not live where it has to. side: the client's."""
    return (<Locality>g.locality).refuses(c.a, c.b) if side == 0 else (<Locality>g.locality).refuses(c.b, c.a)


cdef bint live_twin(Engine* g, Conn* c, const Flow* f, const uint8_t* p, size_t n) noexcept nogil:
    """This very request was just read on a connection with other addresses: before and behind a translation."""
    cdef uint64_t hash
    cdef uint64_t flow = (<uint64_t>g << 16) ^ c.id
    cdef bint found
    cdef Twin* one
    if not f.msg_has_ack:
        return False
    # Sequence and acknowledgement tell requests apart; some bytes tell them from what has the same by chance.
    hash = xxh64(p, n if n < LIVE_TWIN_BYTES else LIVE_TWIN_BYTES, ((<uint64_t>f.msg_seq << 32) | f.msg_ack) + n)
    one = &g.twins[hash & (LIVE_TWINS - 1)]
    if not atomic_take(&one.held):                 # whoever has it does not run: rather twice than never
        return False
    found = one.hash == hash and one.flow != flow and -LIVE_TWIN_NS < f.msg_ts - one.ts_ns < LIVE_TWIN_NS
    if not found:
        one.hash = hash
        one.flow = flow
        one.ts_ns = f.msg_ts
    atomic_set(&one.held, 0)
    return found


cdef inline bint live_settled(Engine* g, Message* m) noexcept nogil:
    """Nothing that its reply could tell decides about this request."""
    if m.incomplete:
        return not m.is_current
    if not m.whole:
        return False
    return m.replied or m.filtered or g.one_sided or not (m.head_flags & HEAD_UPGRADE or m.ambiguous or (m.trust != TRUST_CERTAIN and not g.rules.loose))


cdef void live_out(Engine* g, Message* m) noexcept nogil:
    """A request goes on when it is whole, not when those before it are: a slow one holds nobody up. The caller lets it go."""
    if not m.in_window or not live_settled(g, m):
        return
    window_remove(g, m)
    if not g.finished:
        window_emit(g, m)


cdef void live_tick(Engine* g, int64_t ts) noexcept nogil:
    """No packet came for a moment; `ts` is what the capture clock says. What waits for time to pass is looked at."""
    cdef Conn* c = g.wait_first
    cdef Conn* after
    if ts <= g.packet_ns:
        return
    g.packet_ns = ts
    while c != NULL and ts - c.wait_since > R_HOLD_NS:
        after = c.wait_next
        while flow_hole_overdue(g, c, 0, ts) or flow_hole_overdue(g, c, 1, ts):
            flow_settle(g, c)
        flow_overdue(g, c, 0, ts)
        flow_overdue(g, c, 1, ts)
        flow_settle(g, c)
        c = after
    waits_overdue(g, ts)
    window_release(g, False)


cdef int64_t live_clock() noexcept nogil:
    """The clock of the kernel's packet time stamps."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec
