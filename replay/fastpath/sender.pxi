# Sending: takes batches when their requests are due, keeps the order of each captured connection, writes, frames replies, and accounts for every
# request exactly once. One thread, one driver (io_uring or epoll), no locks. This is what Python sees of it; its parts:
#
#     queue -> sender_take -> flow waits -> sender_dispatch -> connection -> sender_gather -> driver -> sender_bytes -> sender_finish
#              taking.pxi     closing.pxi   placing.pxi                      writing.pxi      epoll,    receiving.pxi   ending.pxi
#     sendloop.pxi turns the wheel; connection.pxi has the structs                            uring

cdef enum:
    SENDER_EVENTS = 1024


cdef class Start:
    """When a run begins, for all of its senders: what they send shares one schedule, whichever of them its first request is for."""
    cdef SharedStart shared


cdef class Sender:
    """Sends what comes out of a queue to one target. `run` is a thread body; `counters` may be called from any thread at any time.

    addresses: list of (16 bytes, port), IPv4 v4-mapped; connections are spread over them in turn.
    speed: of the captured time; rate > 0: that many a second, evenly; asap: as fast as answers come; live: due when captured, sent at once.
    Live only: requests older than expire_ns are dropped, and those over rate_most a second. ports: (first, how many) local ports to connect from.
    connections: at most; pipeline: requests under way on one of them, 1 to 64.  outcomes: an `Outcomes`, or None.
    driver: "io_uring", "epoll", or "auto": io_uring where the kernel has it and allows it.
    start_at_ns: when the capture's time begins, since 1970; 0: when the first request is taken up.  start: by whichever sender that has the same one.
    Raises ValueError for what cannot be meant, OSError without descriptors."""
    cdef SenderState s
    cdef Queue queue
    cdef Stop stop
    cdef Guard guard
    cdef Outcomes outcomes
    cdef Start start
    cdef bint started
    cdef bint over
    cdef int64_t gates            # how often probes were let through
    cdef int64_t start_at_ns      # since 1970; 0: when the first request is taken up

    def __cinit__(self, Queue queue not None, addresses, *, Stop stop not None, double speed=1.0, double rate=0.0, bint asap=False,
                  int connections=256, int pipeline=1, int64_t connect_timeout_ns=1000000000, int64_t timeout_ns=15000000000,
                  int64_t drain_ns=5000000000, int64_t never_ns=10000000000, bint dry_run=False, Guard guard=None, Outcomes outcomes=None,
                  bint live=False, int64_t expire_ns=0, double rate_most=0.0, ports=(0, 0),
                  str driver="auto", int64_t start_at_ns=0, Start start=None):
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
        self.start, self.start_at_ns = start, start_at_ns
        s.start = &start.shared if start is not None else NULL
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
        # one load of all connections: each write is a full one, and what waits to be written stays in the caches
        s.ahead = PACE_NEVER if live or not (asap and pipeline >= BUNCH_LEAST) else max(connections * pipeline, 1024)
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
        cdef bint sliced = False
        cdef int32_t i
        if self.started:
            raise RuntimeError("a sender runs once")
        self.started = True
        with nogil:
            clock_gettime(CLOCK_REALTIME, &wall)
            s.base_ns = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec - now_ns()
            if s.start != NULL:
                s.base_ns = atomic_first(&s.start.base_ns, s.base_ns)
            if s.marks != NULL:
                s.marks.base_ns = s.base_ns
            if self.start_at_ns:
                s.pacer.started = True
                s.pacer.start_ns = self.start_at_ns - s.base_ns if self.start_at_ns > s.base_ns else 0    # before this clock began: at once
                atomic_set(&s.ledger.start_ns, self.start_at_ns)
            slack = prctl(PR_GET_TIMERSLACK)
            prctl(PR_SET_TIMERSLACK, <unsigned long>1)           # of this thread: due times are kept to some microseconds
            if s.pacer.kind == PACE_ORIGINAL or s.pacer.kind == PACE_RATE:
                sliced = slice_ask(SENDER_SLICE_NS) == 0          # else the thread that reads keeps the core that both share for 3 ms
            if s.wanted == DRIVER_EPOLL or uring_driver_open(s) < 0:
                s.uring = NULL               # allowed a moment ago, and not now: epoll does it as well
            sender_loop(s)
            if s.marks != NULL:
                marks_tell(s.marks)
            if slack > 0:
                prctl(PR_SET_TIMERSLACK, <unsigned long>slack)
            if sliced:
                slice_ask(0)
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
