# The ingest half: packets in, batches of requests out; one nogil thread body. What Python configures and reads of it.

class _hashlib:
    """hashlib, which loads OpenSSL, for those alone who want digests."""

    @staticmethod
    def sha256(data=b""):
        import hashlib

        return hashlib.sha256(data)


cdef enum:
    TAKE_PACKETS = 32             # so few that they stay in the first cache from one step to the next
    TOUCH_EVERY = 65536           # so much of a file the kernel maps at a fault, where it is in memory
    AHEAD_MOST = 4096             # bytes a packet that are asked for at most

cdef enum:
    GROUP_PACKETS = 128
    GROUPS = 16

cdef enum:                        # kind of a Group
    GROUP_READ = 0
    GROUP_OWN = 1                 # what is borrowed becomes one's own
    GROUP_IDLE = 2
    GROUP_END = 3

cdef struct Group:                # packets on their way from the scout to the reader
    int kind
    int n
    int64_t first_ns              # time stamps of the first and the latest packet
    int64_t last_ns
    Seen seen[GROUP_PACKETS]

cdef struct Counters:             # one thread writes, others read
    int64_t found
    int64_t elsewhere             # whole requests of other shards
    int64_t selected
    int64_t writes
    int64_t sampled_out
    int64_t no_key
    int64_t lowered               # in the share, but for `low`
    int64_t limited
    int64_t digest
    int64_t first_ns
    int64_t last_ns
    int64_t gaps_cut
    int64_t gaps_cut_ns
    int64_t unqueued
    int64_t copies                # selected, times queues
    int64_t fanout                # … beyond the first of each; a counter of its own: the difference of two that are read one after the other goes up and down
    int64_t packets
    int64_t segments
    int64_t first_packet_ns
    int64_t last_packet_ns
    int64_t connections
    int64_t gaps
    int64_t gap_bytes
    int64_t gap_largest
    int64_t left_bytes            # live: of replies, left in the kernel
    int64_t one_sided             # connections of which one direction is in the capture
    int64_t mid_stream            # … whose beginning is not
    int64_t matched               # replies whose request is known
    int64_t asking                # requests of which a reply decides something (docs/design.md L1)
    int64_t conflicts
    int64_t repeated
    int64_t evicted
    int64_t no_memory
    int64_t over_memory
    int64_t orphans
    int64_t filtered[FILTERED_COUNT]
    int64_t withheld[WITHHELD_COUNT]
    int64_t incomplete[INCOMPLETE_COUNT]
    int64_t other[OTHER_COUNT]

cdef struct Engine:               # owned by one Ingest; one thread writes, others read the counters
    # bounds and choices
    uint64_t max_head
    uint64_t max_body
    uint64_t max_memory           # of bodies and heads being read
    uint64_t max_waiting          # of bytes in reassembly
    uint64_t max_connections
    int64_t max_gap_ns
    int64_t limit
    bint split_by_network
    bint show
    bint show_incomplete
    bint digests                  # of bodies are made (show, record)
    bint record                   # rows carry the captured Host and target and the body's digest (results)
    bint collect                  # rows are wanted at all
    Rules rules
    # connections
    Conn** table
    uint64_t table_mask
    uint64_t conn_count
    uint64_t conn_ids
    uint64_t secret[4]            # of the table's hash
    Conn* conn_spare
    uint64_t conn_spares
    ConnList lists[4]
    Conn* wait_first
    Conn* wait_last
    uint64_t waiting
    Conn* head_first              # connections with a head that is not whole yet, oldest first
    Conn* head_last
    uint64_t held                 # bytes of heads that are not whole, and of what waits for an answer, of all connections
    int64_t packet_ns             # time of the packet that is being read
    bint lasting                  # the bytes that are being read stay where they are until the source moves on
    # messages
    Message* message_spare
    uint8_t* spare_first          # owns: pieces of SPARE_BYTES, each begins with the address of the next
    uint32_t spares
    uint64_t live
    uint64_t message_bytes
    Message* window_first
    Message* window_last
    uint64_t window_count
    uint64_t window_bytes
    uint64_t orders
    int64_t borrow_ns             # order_ns of the oldest message that may borrow
    bint finished                 # --limit was reached
    # live
    bint wire                     # packets come from a wire: nothing here ever waits
    bint one_sided                # of connections only what clients say is captured (hearing.pxi)
    int64_t heard_ns              # when replies were let through again; 0: they always were
    uint32_t low                  # of LOW_ALL: so much of the share is taken
    int64_t slack_ns              # by so much the capture clock stays behind the wall clock: what is in the ring must not be late
    int64_t batch_ns              # an open batch is handed on after so long
    int64_t batch_since_ns
    Twin* twins                   # borrows: Ingest holds them; NULL: one interface, where nothing is seen twice
    # out
    BatchPool* pool
    PyObject** queues             # borrows: Ingest holds them
    int queue_count
    Batch* batch
    KeptBatches* kept             # borrows: Ingest holds it; NULL: batches are not kept
    int64_t published
    const int64_t* stop
    int64_t loop
    bint guard_on
    int64_t* guard_hit
    PyObject* guard
    PyObject* locality            # a Locality, or NULL; Ingest holds it
    Given given
    Router* router                # owns; NULL without a policy
    Router* retired               # owns: those of former policies that requests under way refer to
    int64_t retiring              # atomic: how many
    PyObject* path_pattern
    PyObject* host_pattern
    # time
    bint has_first
    int64_t newest_ns
    int64_t offset
    int64_t offset_base
    int64_t nth_base              # selected in passes before
    Counters n


cdef inline int64_t latest(const Packet* packets, int n) noexcept nogil:
    """Their latest time stamp: files are not always in order of time."""
    cdef int64_t ns = packets[0].ts_ns
    cdef int i
    for i in range(1, n):
        if packets[i].ts_ns > ns:
            ns = packets[i].ts_ns
    return ns


cdef int queue_push(void* queue, Batch* batch) noexcept nogil:
    # `queue` is a Queue that the Ingest keeps alive; calling its method needs no reference
    return (<Queue>queue).push(batch)


cdef int queue_push_quietly(void* queue, Batch* batch) noexcept nogil:
    return (<Queue>queue).push_quietly(batch)


cdef void queues_nudge(Engine* g) noexcept nogil:
    """Nothing comes for a while: whoever sleeps sees to what was pushed quietly."""
    cdef int i
    for i in range(g.queue_count):
        (<Queue><void*>g.queues[i]).nudge()


cdef void queue_rest(void* queue, const int64_t* stop) noexcept nogil:
    (<Queue>queue).rest(stop)


cdef void queue_offers(void* queue) noexcept nogil:
    """Replies may have come for a sender on the same core, which got more than its share of it and would wait for the rest of 3 ms."""
    if (<Queue>queue).yields:
        sched_yield()


cdef bint queue_is_behind(void* queue) noexcept nogil:
    return ring_is_behind(&(<Queue>queue).ring)


cdef void queue_refuse(void* queue, int64_t n) noexcept nogil:
    """n requests never get into it: it is full (live), the run is stopped (offline), or there is no memory."""
    count_add(&(<Queue>queue).refused, n)


cdef void guard_looks(Engine* g, Conn* c, int side) noexcept nogil:
    """A server of the capture, whatever is spoken with it (TLS, HTTP/2, nothing yet), must not be a target. side: the server's. A tap looks at requests alone: what
    else it hears, such as who looks whether the shadow is there, says nothing of production."""
    cdef const uint8_t* address = c.a
    if not g.guard_on or g.wire:
        return
    if side:
        address = c.b
    if (<Guard>g.guard).is_target(address, c.b_port if side else c.a_port):
        atomic_set(g.guard_hit, 1)


cdef bint guard_meets(Engine* g, Message* m) noexcept nogil:
    return (<Guard>g.guard).is_target(m.server, m.server_port)


# ---- what needs the GIL: digests of `show`, patterns of the user -----------------------------------------------------------

cdef void digest_update(Message* m, const uint8_t* p, size_t n) noexcept nogil:
    with gil:
        try:
            if m.sha == NULL:
                sha = _hashlib.sha256()
                Py_INCREF(sha)
                m.sha = <void*>sha
            (<object>m.sha).update(<bytes>p[:n])
        except MemoryError:
            pass


cdef void digest_free(Message* m) noexcept nogil:
    with gil:
        Py_DECREF(<object>m.sha)
        m.sha = NULL

cdef bytes DIGEST_EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
cdef const uint8_t* DIGEST_EMPTY_BYTES = DIGEST_EMPTY


cdef void digest_take(Message* m) noexcept with gil:
    cdef bytes digest = (<object>m.sha).digest()
    memcpy(m.digest, <const uint8_t*>digest, 32)
    Py_DECREF(<object>m.sha)
    m.sha = NULL


cdef void digest_end(Message* m) noexcept nogil:
    if m.sha == NULL:
        memcpy(m.digest, DIGEST_EMPTY_BYTES, 32)
        return
    digest_take(m)


cdef bint pattern_finds(void* pattern, const uint8_t* p, size_t n) noexcept nogil:
    with gil:
        try:
            return (<object>pattern).search(<bytes>p[:n]) is not None
        except (MemoryError, RecursionError):
            return False


cdef uint8_t message_filter(Engine* g, Message* m, const uint8_t* p, const Head* h, const Text* host) noexcept nogil:
    """The first filter that does not let it through."""
    cdef Rules* r = &g.rules
    cdef int i
    cdef bint found
    cdef const uint8_t* query
    cdef size_t n
    if m.ts_ns < r.since_ns or (m.ts_ns >= r.until_ns and r.until_ns != INT64_MOST):
        return FILTERED_TIME
    if r.server_count and not network_has(r.servers, r.server_count, m.server):
        return FILTERED_SERVER
    if r.client_count and not network_has(r.clients, r.client_count, m.client):
        return FILTERED_CLIENT
    if r.port_count:
        found = False
        for i in range(r.port_count):
            if r.ports[i] == m.server_port:
                found = True
        if not found:
            return FILTERED_PORT
    if r.method_count:
        found = False
        for i in range(r.method_count):
            if r.methods[i].n == h.method_len and memcmp(r.methods[i].p, p, h.method_len) == 0:
                found = True
        if not found:
            return FILTERED_METHOD
    if r.has_host and (host.p == NULL or not pattern_finds(<void*>g.host_pattern, host.p, host.n)):
        return FILTERED_HOST
    if r.has_path:
        n = h.target_len
        query = <const uint8_t*>memchr(p + h.target_at, 63, n)
        if query != NULL:
            n = query - (p + h.target_at)
        if not pattern_finds(<void*>g.path_pattern, p + h.target_at, n):
            return FILTERED_PATH
    return FILTERED_NONE


# ---- the class ------------------------------------------------------------------------------------------------------------------

cdef class Ingest:
    """Packets of a source into batches of requests.

    source: a PacketSource.  queues: Queues that all get the same batches (none: only count).  The options are those of the command
    line, as plain values.  threads: 1, or 2 to take and scout packets in a thread beside `run` (a Capture without a limit; else it stays one).
    offset_ns, selected_before: where the time of the capture, and the count of the selected, go on from.
    routes: a compiled policy; then each queue gets the copies for its target.  kept: batches stay there, for a Repeat.  Raises ValueError for a value that cannot be."""
    cdef Engine g
    cdef Decoder decoder
    cdef bint has_decoder
    cdef PacketSource source
    cdef Stop stop
    cdef Pool pool
    cdef Guard guard
    cdef Kept kept_for_later
    cdef Locality locality
    cdef Twins twins
    cdef PacketFilter packet_filter
    cdef bint scouting            # with a second thread, `scout_ahead`
    cdef Group* groups            # owns
    cdef Lane full                # groups on their way to `read_groups`
    cdef Lane empty               # … and back
    cdef int64_t owned            # atomic: GROUP_OWN that were seen to
    cdef int64_t n_not_passed     # packets that the filter did not let through
    cdef list queues
    cdef Auth auth
    cdef Routes routes
    cdef object records
    cdef list kept                # bytes objects that Rules borrows from
    cdef object path_pattern
    cdef object host_pattern
    cdef bint last
    cdef object failed
    cdef bint started
    cdef int64_t ended            # atomic
    cdef int64_t waits            # atomic: `change` is to be adopted
    cdef Ingest change            # whose rules and queues are used from now on
    cdef Ingest adopted           # whose rules and queues are used; keeps alive what they borrow
    cdef Ingest router_of         # whose router is used, which borrows from it; None: its own
    cdef Ingest refused           # that could not be adopted
    cdef list past                # those of former routers, as long as requests refer to them

    def __cinit__(self):
        memset(&self.g, 0, sizeof(Engine))
        self.g.borrow_ns = INT64_MOST
        memset(&self.auth, 0, sizeof(Auth))
        self.kept = []
        self.past = []
        self.has_decoder = False
        self.full.fd = self.empty.fd = -1

    def __init__(self, PacketSource source not None, queues, Pool pool not None, Stop stop not None, *, bint show=False, bint incomplete=False, bint record=False, bint digests=True,
                 int64_t share=1_000_000, str sample_by="request", uint64_t seed=0, shard=None, methods=None, path=None, host=None, client=(), server=(),
                 ports=(), since_ns=None, until_ns=None, int64_t limit=0, suffix=b"-shadow", set_host=None, set_headers=(), append_headers=(), add_headers=(),
                 remove_headers=(), str trace="keep", credentials=None, bint loose=False, bint split_by_network=False, uint64_t max_head=65536,
                 uint64_t max_body=64 << 20, uint64_t max_connections=262144, uint64_t max_memory=64 << 20,
                 int64_t max_gap_ns=10_000_000_000, Guard guard=None, PacketFilter packet_filter=None,
                 int64_t offset_ns=0, int64_t selected_before=0, int64_t loop=0, bint last=True, int threads=1, Routes routes=None, bint live=False,
                 int64_t slack_ns=50_000_000, int64_t batch_ns=1_000_000, marker=None, int max_hops=1, Twins twins=None, Locality locality=None, records=None, bint replies=True, int64_t low=1_000_000, Kept kept=None):
        cdef Engine* g = &self.g
        cdef Rules* r = &g.rules
        cdef int i
        if g.table != NULL:
            raise RuntimeError("an Ingest is made once")
        self.source, self.stop, self.pool, self.guard, self.last, self.kept_for_later = source, stop, pool, guard, last, kept
        if kept is not None:
            if live or limit or routes is not None:
                raise ValueError("kept: only of whole captures, without a policy")
            g.kept = &kept.kept
        self.packet_filter = packet_filter
        if not 1 <= threads <= 2:
            raise ValueError("threads is 1 or 2")
        # A limit ends between two packets, and other sources have no second window: one thread does it.
        self.scouting = threads == 2 and limit == 0 and isinstance(source, Capture)
        if self.scouting:
            (<Capture>source).two_windows = True
            self.groups = <Group*>malloc(GROUPS * sizeof(Group))
            if self.groups == NULL:
                raise MemoryError
            if lane_init(&self.full, GROUPS) < 0 or lane_init(&self.empty, GROUPS) < 0:
                raise OSError(errno.errno, "eventfd")
            for i in range(GROUPS):
                lane_push(&self.empty, &self.groups[i])
        self.queues = list(queues)
        g.show, g.show_incomplete, g.split_by_network = show, show and incomplete, split_by_network
        g.collect = len(self.queues) > 0
        g.record = record and not show
        g.digests = (show or record) and digests
        g.max_head = 256 if max_head < 256 else max_head if max_head < 16 << 20 else 16 << 20
        g.max_body = max_body if max_body < <uint64_t>1 << 40 else <uint64_t>1 << 40
        g.max_connections = max_connections if max_connections > 16 else 16
        g.max_memory, g.max_gap_ns, g.limit = max_memory, max_gap_ns, limit
        g.max_waiting = max_memory // 2 if max_memory > 2 << 20 else 1 << 20
        g.offset_base = offset_ns
        g.offset = offset_ns
        g.nth_base = selected_before
        g.loop = loop
        g.wire, g.slack_ns, g.batch_ns = live, slack_ns, batch_ns
        g.one_sided = not replies
        if not 0 <= low <= 1_000_000:
            raise ValueError("low: parts per million of the share")
        g.low = <uint32_t>(low * LOW_ALL // 1_000_000)
        self.twins = twins
        if twins is not None:
            g.twins = twins.slots
        g.pool = &pool.pool
        g.stop = &stop.flag
        self.locality = locality
        if locality is not None:
            g.locality = <PyObject*>locality
        if guard is not None:
            g.guard = <PyObject*>guard
            g.guard_hit = &guard.hit
            g.guard_on = guard.count > 0
        # rules
        rules_sample(r, share, sample_by, seed, self.kept)
        r.shard, r.shards = (0, 0) if shard is None else shard
        if r.shards and r.shard >= r.shards:
            raise ValueError("shard: (number from 0, how many)")
        methods = list(methods or ())
        r.methods = <Text*>kept_room(self.kept, len(methods), sizeof(Text))
        r.method_count = len(methods)
        for i in range(r.method_count):
            r.methods[i] = kept_text(self.kept, methods[i])
        r.client_count, r.server_count = len(client), len(server)
        r.clients, r.servers = kept_networks(self.kept, client), kept_networks(self.kept, server)
        ports = list(ports)
        r.ports = <uint16_t*>kept_room(self.kept, len(ports), sizeof(uint16_t))
        r.port_count = len(ports)
        for i in range(r.port_count):
            r.ports[i] = ports[i]
        r.since_ns = -INT64_MOST - 1 if since_ns is None else since_ns
        r.until_ns = INT64_MOST if until_ns is None else until_ns
        self.path_pattern = None if path is None else _re.compile(path)
        self.host_pattern = None if host is None else _re.compile(host)
        r.has_path, r.has_host = path is not None, host is not None
        g.path_pattern, g.host_pattern = <PyObject*>self.path_pattern, <PyObject*>self.host_pattern
        r.filters = (r.method_count or r.client_count or r.server_count or r.port_count or r.has_path or r.has_host
                     or since_ns is not None or until_ns is not None)
        rules_rewrite(
            r, suffix, set_host, [*(("set", *pair) for pair in set_headers), *(("append", *pair) for pair in append_headers)],
            [("set", *pair) for pair in add_headers], remove_headers, trace, self.kept,
        )
        if marker is not None:
            r.marker = marker
        if not 1 <= max_hops <= 99:
            raise ValueError("max_hops is 1 to 99")
        r.max_hops = max_hops
        r.auth = &self.auth
        if credentials is not None:
            self.credentials(credentials[0], list(credentials[1]))
            r.edits = True
        r.loose = loose
        # tables
        g.queue_count = len(self.queues)
        g.queues = <PyObject**>kept_room(self.kept, g.queue_count, sizeof(PyObject*))
        for i in range(g.queue_count):
            if not isinstance(self.queues[i], Queue):
                raise TypeError("queues are of class Queue")
            g.queues[i] = <PyObject*>self.queues[i]
        self.routes = routes
        self.records = records
        if routes is not None:
            if g.queue_count and g.queue_count != routes.table.queue_count:
                raise ValueError("a policy needs a queue for each of its targets")
            g.router = router_new(&routes.table, routes.table.queue_count, g.queues)
            r.all = False         # its mirrors decide
            for i in range(routes.table.mirror_count):
                routes.table.mirrors[i].rules.auth = &self.auth
                if marker:
                    routes.table.mirrors[i].rules.marker = True
                routes.table.mirrors[i].rules.edits = routes.table.mirrors[i].rules.edits or self.auth.on
        for i in range(4):
            g.secret[i] = int.from_bytes(_os.urandom(8), "little")
        g.table = <Conn**>calloc(4096, sizeof(Conn*))
        g.table_mask = 4095
        if g.table == NULL or decoder_init(&self.decoder) < 0:
            raise MemoryError
        self.has_decoder = True
        self.decoder.split_by_network = split_by_network

    cdef int credentials(self, token, list pairs) except -1:
        """What `--auth-file` says. token: for each Authorization, or None.  pairs: of old and new values."""
        cdef Auth* a = &self.auth
        cdef uint32_t slots = 4
        cdef uint32_t slot
        cdef Text old
        while slots < 2 * len(pairs):
            slots *= 2
        a.mask = slots - 1
        a.olds, a.news = <Text*>kept_room(self.kept, slots, sizeof(Text)), <Text*>kept_room(self.kept, slots, sizeof(Text))
        a.on, a.one = True, token is not None
        a.token = kept_text(self.kept, token or b"")
        a.longest = a.token.n
        for one, other in pairs:
            old = kept_text(self.kept, one)
            slot = <uint32_t>xxh64(old.p, old.n, 0) & a.mask
            while a.olds[slot].p != NULL and not (a.olds[slot].n == old.n and memcmp(a.olds[slot].p, old.p, old.n) == 0):
                slot = (slot + 1) & a.mask
            a.olds[slot] = old
            a.news[slot] = kept_text(self.kept, other)
            if a.news[slot].n > a.longest:
                a.longest = a.news[slot].n
        return 0

    def __dealloc__(self):
        cdef Engine* g = &self.g
        cdef Message* m
        cdef Conn* c
        cdef uint8_t* piece
        cdef Router* router
        if g.table != NULL:
            self.forget()
            free(g.table)
        while g.conn_spare != NULL:
            c = g.conn_spare
            g.conn_spare = c.hash_next
            free(c)
        while g.message_spare != NULL:
            m = g.message_spare
            g.message_spare = m.after
            free(m)
        while g.spare_first != NULL:
            piece = g.spare_first
            g.spare_first = (<uint8_t**>piece)[0]
            free(piece)
        if g.batch != NULL:
            batch_release(g.batch)
        router_free(g.router)
        while g.retired != NULL:
            router = g.retired
            g.retired = router.after
            router_free(router)
        if self.has_decoder:
            decoder_free(&self.decoder)
        lane_free(&self.full)
        lane_free(&self.empty)
        free(self.groups)

    cdef void forget(self) noexcept nogil:
        """Drops all connections; their requests end."""
        cdef Engine* g = &self.g
        cdef int i
        for i in range(1, 4):
            while g.lists[i].first != NULL:
                conn_drop(g, g.lists[i].first, INCOMPLETE_CUT_AT_END)

    def run(self):
        """The thread's body: reads the source to its end, or until stopped. Without the GIL but for digests and patterns."""
        if self.started:
            raise RuntimeError("an Ingest runs once")
        self.started = True
        other = None
        try:
            if self.scouting:
                import threading

                other = threading.Thread(target=self.run_scout, name="scout", daemon=True)
                other.start()
            with nogil:
                self.body()
            if self.failed is not None:
                raise self.failed
        finally:
            if other is not None:
                other.join()
            atomic_set(&self.ended, 1)
            if self.last:
                for queue in self.queues:
                    (<Queue>queue).finish()

    def run_scout(self):
        """The body of the second thread; `run` starts it."""
        with nogil:
            self.scout_ahead()

    cdef int scout(self, const Packet* packets, int n, Seen* seen, const uint8_t* ahead, size_t step) noexcept nogil:
        """What can be said of packets by themselves: their segments, the keys of their connections, and the usual heads that they begin with.

        Returns how many were looked at: all, or those up to a segment that the next decode() would overwrite. With each packet `step` bytes from
        `ahead` on are asked for, each line once."""
        cdef Engine* g = &self.g
        cdef int i
        cdef size_t k
        cdef Seen* x
        for i in range(n):
            x = &seen[i]
            for k in range(0, step, 64):
                prefetch(ahead + k)
            ahead += step
            x.has_segment = 0
            x.head_len = 0
            if self.packet_filter is not None and not self.packet_filter.passes(&packets[i]):
                count_add(&self.n_not_passed, 1)
                continue
            if decode_usual(&self.decoder, &packets[i], &x.segment):
                x.segment.hash = usual_key(packets[i].data, g.secret, &x.segment.side)
            elif decode_slow(&self.decoder, &packets[i], &x.segment):
                segment_key(g, &x.segment)
            else:
                continue
            x.has_segment = 1
            if x.segment.len and 65 <= x.segment.data[0] <= 90:
                x.head_len = <uint32_t>head_scan(x.segment.data, x.segment.len, &x.head)
            if not x.segment.lasting:
                return i + 1
        return n

    cdef void read_seen(self, const Seen* seen, int n) noexcept nogil:
        """Packets that were scouted into their connections, in order; what is settled leaves the window."""
        cdef Engine* g = &self.g
        cdef Conn* c
        cdef int64_t segments = 0
        cdef int i
        for i in range(n):            # the memory of their connections is asked for first
            if seen[i].has_segment:
                c = g.table[seen[i].segment.hash & g.table_mask]
                if c != NULL:
                    prefetch_struct(c, CONN_HOT)
                    prefetch_struct(&c.flow[0], FLOW_HOT)
                    prefetch_struct(&c.flow[1], FLOW_HOT)
        for i in range(n):
            if seen[i].has_segment:
                segments += 1
                segment_in(g, &seen[i])
                if window_moves(g):
                    window_release(g, False)
        count_add(&g.n.segments, segments)

    cdef size_t step_ahead(self, const Packet* packets, int n) noexcept nogil:
        """Bytes behind these packets to be asked for with each of them: as many as they are long themselves, spread, since more at once would wait for each other.

        What is asked for in a page that is not mapped yet is not brought; so the pages that are next are touched here."""
        cdef const uint8_t* ahead = packets[n - 1].data + packets[n - 1].caplen
        cdef const uint8_t* until = self.source.cold_until(ahead)
        cdef const uint8_t* page
        cdef size_t step
        if until == NULL:
            return 0
        step = (<size_t>(ahead - packets[0].data) // <size_t>n + 63) & ~<size_t>63
        if step > AHEAD_MOST:
            return 0
        page = ahead + TOUCH_EVERY - (<size_t>ahead & (TOUCH_EVERY - 1))
        while page < ahead + step * <size_t>n + TOUCH_EVERY and page < until:
            touch(page)
            page += TOUCH_EVERY
        return step

    cdef void note_times(self, int64_t first, int64_t last) noexcept nogil:
        cdef Engine* g = &self.g
        if g.n.first_packet_ns == 0:
            g.n.first_packet_ns = first
        if last > g.n.last_packet_ns:
            count_set(&g.n.last_packet_ns, last)

    cdef void scout_ahead(self) noexcept nogil:
        """Two threads: this one takes packets and scouts them, `read_groups` in the other one reads them. The order stays; so does the result."""
        cdef Packet packets[GROUP_PACKETS]
        cdef Group* group
        cdef const uint8_t* ahead
        cdef size_t step
        cdef int64_t owns = 0
        cdef int n, at, some
        while not atomic_get(self.g.stop):
            if not self.source.keeps():
                # The source has two windows: the one that it fills now must be free of what was read before the fill before.
                self.tell(GROUP_OWN)
                owns += 1
                while atomic_get(&self.owned) < owns - 1 and not atomic_get(self.g.stop):
                    lane_pause(&self.empty, &self.owned, owns - 1)
            n = self.source.take(packets, GROUP_PACKETS)
            if n == 0:
                break
            if n < 0:
                self.tell(GROUP_IDLE)
                continue
            ahead = packets[n - 1].data + packets[n - 1].caplen
            step = self.step_ahead(packets, n)
            at = 0
            while at < n:
                group = <Group*>lane_pop(&self.empty)
                some = self.scout(packets + at, n - at, group.seen, ahead + at * step, step)
                group.kind = GROUP_READ
                group.n = some
                group.first_ns = packets[at].ts_ns
                group.last_ns = latest(packets + at, some)
                at += some
                some = group.seen[some - 1].has_segment and not group.seen[some - 1].segment.lasting
                lane_push(&self.full, group)
                if some:              # put together from fragments, in the decoder's own memory
                    self.tell(GROUP_OWN)
                    owns += 1
                    while atomic_get(&self.owned) < owns:
                        lane_pause(&self.empty, &self.owned, owns)
        self.tell(GROUP_END)

    cdef void tell(self, int kind) noexcept nogil:
        cdef Group* group = <Group*>lane_pop(&self.empty)
        group.kind = kind
        group.n = 0
        lane_push(&self.full, group)
        lane_wake(&self.full)

    cdef void read_groups(self) noexcept nogil:
        cdef Engine* g = &self.g
        cdef Group* group
        cdef int i, kind
        cdef int at
        while True:
            group = <Group*>lane_pop(&self.full)
            kind = group.kind
            if kind == GROUP_OWN:
                window_own(g)
                atomic_add(&self.owned, 1)
                lane_wake(&self.empty)
            elif kind == GROUP_IDLE:
                window_release(g, False)
                batch_publish(g)
                queues_nudge(g)
            elif kind == GROUP_READ:
                self.note_times(group.first_ns, group.last_ns)
                if atomic_get(g.stop):
                    for i in range(group.n):      # decoded, and counted as that
                        count_add(&g.n.segments, group.seen[i].has_segment)
                else:
                    at = 0
                    while at < group.n:
                        self.read_seen(group.seen + at, TAKE_PACKETS if group.n - at > TAKE_PACKETS else group.n - at)
                        at += TAKE_PACKETS
                count_add(&g.n.packets, group.n)
            lane_push(&self.empty, group)
            if kind == GROUP_END:
                return

    cdef void read_source(self) noexcept nogil:
        """One thread takes packets, scouts and reads them."""
        cdef Engine* g = &self.g
        cdef Packet packets[TAKE_PACKETS]
        cdef Seen seen[TAKE_PACKETS]
        cdef const uint8_t* ahead
        cdef size_t step
        cdef int n, at, some
        while not atomic_get(g.stop) and not g.finished:
            if atomic_get(&self.waits):
                self.adopt_now()
            if g.window_first != NULL and not self.source.keeps():
                window_own(g)
            n = self.source.take(packets, TAKE_PACKETS)
            if n == 0:
                break
            if n < 0:
                if g.wire:
                    live_tick(g, live_clock() - g.slack_ns)
                window_release(g, False)
                if not batch_may_grow(g):
                    batch_publish(g)  # a quiet pipe: what is there is not kept waiting
                queues_nudge(g)
                continue
            self.note_times(packets[0].ts_ns, latest(packets, n))
            ahead = packets[n - 1].data + packets[n - 1].caplen
            step = self.step_ahead(packets, n)
            at = 0
            while at < n and not g.finished:
                # Near a --limit packets are looked at one by one, so that those behind the last one are not counted.
                some = n - at if not g.limit or g.limit - count_get(&g.n.selected) > 4 * WINDOW_REQUESTS else 1
                some = self.scout(packets + at, some, seen, ahead + at * step, step)
                self.read_seen(seen, some)
                at += some
            count_add(&g.n.packets, at)
            if g.wire and (g.batch != NULL or g.router != NULL) and now_ns() - g.batch_since_ns >= g.batch_ns and not batch_may_grow(g):
                batch_publish(g)
                g.batch_since_ns = now_ns()

    cdef void body(self) noexcept nogil:
        cdef Engine* g = &self.g
        cdef Counters counted
        if self.scouting:
            self.read_groups()
        else:
            self.read_source()
        if self.records is not None and not atomic_get(g.stop) and not g.finished:
            self.forget()
            self.read_records()
        if g.finished:            # --limit: what is left is put away, not counted
            counted = g.n
            window_drop(g)
            self.forget()
            window_drop(g)
            g.n = counted
        else:
            self.forget()
            window_release(g, True)
        batch_publish(g)
        queues_nudge(g)

    cdef void read_records(self) noexcept with gil:
        """Requests that come as requests, behind the packets; an exception is kept for `run`."""
        try:
            for record in self.records:
                self.record(record)
                if atomic_get(self.g.stop) or self.g.finished:
                    break
        except BaseException as error:
            self.failed = error

    cdef int record(self, record) except -1:
        """One record: (parts, client, server, flow, index, ordinal, timed, withheld, body_len). parts: (side, ts_ns, bytes, missing)."""
        cdef Engine* g = &self.g
        cdef Given* v = &g.given
        cdef Seen seen
        cdef uint32_t seqs[2]
        cdef int64_t ts
        cdef int side
        cdef uint32_t missing
        cdef bytes data
        cdef const uint8_t* p
        cdef size_t n
        parts, client, server, flow, index, ordinal, timed, withheld, body_len = record
        cdef uint64_t number = ordinal
        memcpy(v.client, <const uint8_t*>(<bytes>client[0]), 16)
        memcpy(v.server, <const uint8_t*>(<bytes>server[0]), 16)
        v.client_port, v.server_port = client[1], server[1]
        v.flow, v.index, v.timed, v.withheld, v.body_len = flow, index, timed, withheld, body_len
        seqs[0] = 0xFFFFFFFF
        seqs[1] = 0x7FFFFFFF
        # numbers count from 0, so that the first request's is the record's own
        v.seq = <uint32_t>number
        v.on = 1
        ts = parts[0][1]
        with nogil:
            record_say(g, &seen, 0, NULL, 0, 0, ts, seqs, TCP_SYN, number)
            record_say(g, &seen, 1, NULL, 0, 0, ts, seqs, TCP_SYN | TCP_ACK, number)
        for side, ts, data, missing in parts:
            p = data
            n = len(data)
            with nogil:
                record_part(g, &seen, side, p, n, missing, ts, seqs, number)
        with nogil:
            self.forget()
            v.on = 0
            window_release(g, False)
        return 0

    cdef void adopt_now(self) noexcept nogil:
        """From the next packet on, the rules and queues of `change`. What is open goes to the queues that it was meant for."""
        cdef Engine* g = &self.g
        cdef Engine* other = &self.change.g
        window_own(g)             # what borrows was planned by the rules of before
        batch_publish(g)
        other.rules.auth.replaced = g.rules.auth.replaced        # its counters go on
        other.rules.auth.unknown = g.rules.auth.unknown
        g.rules = other.rules
        g.queues = other.queues
        g.queue_count = other.queue_count
        g.collect = other.collect
        g.max_head = other.max_head
        g.max_body = other.max_body
        g.guard = other.guard
        g.guard_hit = other.guard_hit
        g.guard_on = other.guard_on
        g.locality = other.locality
        g.low = other.low
        if g.router != NULL and other.router != NULL:
            # requests under way go where the policy that chose them said, with its rows and into its queues
            g.router.after = g.retired
            g.retired = g.router
            atomic_add(&g.retiring, 1)
            g.router = other.router
            other.router = NULL
        g.path_pattern = other.path_pattern
        g.host_pattern = other.host_pattern
        hearing_change(g, other.one_sided)
        atomic_set(&self.waits, 0)

    def adopt(self, Ingest other not None, double timeout=2.0):
        """Reads on by the rules, bounds and guard of `other` (which never runs), and hands batches to its queues. No packet is lost over it.

        Returns when that is so: nothing comes into the queues of before any more. False when the thread did not get to it in `timeout` seconds:
        it is still going to be so, unless a change of before was still waiting (`changing`), whose place it does not take, or it has ended.
        One caller at a time."""
        cdef int64_t until = now_ns() + <int64_t>(timeout * 1e9)
        cdef Ingest used = self if self.router_of is None else self.router_of
        self.refused = other      # its policy knows of it (credentials)
        while atomic_get(&self.waits) and not atomic_get(&self.ended):
            if now_ns() > until:
                return False
            with nogil:
                poll(NULL, 0, 1)
        if atomic_get(&self.ended):
            return False
        self.refused = None
        if atomic_get(&self.g.retiring) == 0:
            self.past = []
        if other.g.router != NULL:
            if other.routes is used.routes and len(other.queues) == len(used.queues) and all([a is b for a, b in zip(other.queues, used.queues)]):
                router_free(other.g.router)      # the same policy, into the same queues: nothing has to retire
                other.g.router = NULL
            else:
                if used is not self:
                    self.past.append(used)
                self.router_of = other
        self.adopted = self.change
        self.change = other
        atomic_set(&self.waits, 1)
        while atomic_get(&self.waits) and not atomic_get(&self.ended):
            if now_ns() > until:
                return False
            with nogil:
                poll(NULL, 0, 1)
        return atomic_get(&self.waits) == 0

    @property
    def asking(self):
        """Requests of which a reply decides something, so far: upgrades, Expect, what follows a gap or a start in mid-stream. Any thread may ask."""
        return count_get(&self.g.n.asking)

    @property
    def changing(self):
        """What `adopt` was given last was not taken yet: batches still come into the queues of before."""
        return atomic_get(&self.waits) != 0 and not atomic_get(&self.ended)

    @property
    def retiring(self):
        """Former policies whose requests are under way: their queues must not end yet."""
        return atomic_get(&self.g.retiring)

    def counters(self):
        """What was found, so far; plain values, callable from any thread."""
        cdef Engine* g = &self.g
        cdef int i
        skipped = decoder_skipped(&self.decoder)
        if count_get(&self.n_not_passed):
            skipped["bpf"] = count_get(&self.n_not_passed)
        return {
            "found": count_get(&g.n.found),
            "filtered": {FILTERED[i]: g.n.filtered[i] for i in range(1, FILTERED_COUNT) if g.n.filtered[i]},
            "sampled_out": {k: v for k, v in (("share", g.n.sampled_out), ("no_key", g.n.no_key), ("max_cpu", g.n.lowered), ("limit", g.n.limited)) if v},
            "withheld": {WITHHELD[i]: g.n.withheld[i] for i in range(1, WITHHELD_COUNT) if g.n.withheld[i]},
            "other_shards": count_get(&g.n.elsewhere),
            "selected": count_get(&g.n.selected),
            "credentials": {"replaced": count_get(&g.rules.auth.replaced), "unknown": count_get(&g.rules.auth.unknown)},
            "writes": count_get(&g.n.writes),
            "unqueued": count_get(&g.n.unqueued),
            "copies": count_get(&g.n.copies), "fanout": count_get(&g.n.fanout),
            "incomplete": {INCOMPLETE[i]: g.n.incomplete[i] for i in range(1, INCOMPLETE_COUNT) if g.n.incomplete[i]},
            "packets": {"read": count_get(&g.n.packets), "skipped": skipped, "cut_frames": count_get(&self.decoder.cut_frames)},
            "segments": count_get(&g.n.segments),
            "connections": count_get(&g.n.connections),
            "other": {OTHER[i]: g.n.other[i] for i in range(1, OTHER_COUNT) if g.n.other[i]},
            "gaps": count_get(&g.n.gaps), "gap_bytes": count_get(&g.n.gap_bytes), "gap_largest": count_get(&g.n.gap_largest), "left_bytes": count_get(&g.n.left_bytes),
            "one_sided": count_get(&g.n.one_sided), "mid_stream": count_get(&g.n.mid_stream), "matched": count_get(&g.n.matched), "asking": count_get(&g.n.asking),
            **decoder_layers(&self.decoder),
            "overlap_conflict": count_get(&g.n.conflicts), "repeated": count_get(&g.n.repeated),
            "evicted": count_get(&g.n.evicted), "no_memory": count_get(&g.n.no_memory) + count_get(&g.n.over_memory),
            "lost_estimated": count_get(&g.n.orphans),
            "first_ns": count_get(&g.n.first_ns) if g.has_first else None,
            "last_ns": count_get(&g.n.last_ns) if g.has_first else None,
            "first_packet_ns": count_get(&g.n.first_packet_ns) or None, "last_packet_ns": count_get(&g.n.last_packet_ns) or None,
            "end_offset_ns": g.offset,
            "gaps_cut": count_get(&g.n.gaps_cut), "gaps_cut_ns": count_get(&g.n.gaps_cut_ns),
            "digest": <uint64_t>count_get(&g.n.digest),
            "finished": bool(g.finished), "ended": atomic_get(&self.ended) != 0,
            "memory": g.message_bytes + g.waiting,
        }
