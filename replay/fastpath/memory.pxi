# All allocation of the joint: batches out of a budget, the queue that carries them, the stop flag.
# Must not know: HTTP, sockets, files.

cdef enum:
    BATCH_BYTES = 64 * 1024       # arena of an ordinary batch; a larger request gets a batch of its own
    BATCH_ROWS = 128
    SPARE_BATCHES = 64


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef class Stop:
    def __cinit__(self):
        self.flag = 0
        self.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(errno.errno, "eventfd")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def set(self):
        """Asks; safe from a signal handler and more than once."""
        cdef uint64_t one = 1
        atomic_set(&self.flag, 1)
        write(self.fd, &one, 8)

    def is_set(self):
        return atomic_get(&self.flag) != 0


cdef class Guard:
    def __cinit__(self, targets=()):
        """targets: pairs (16 address bytes, port). Raises ValueError for an address of another length."""
        cdef bytes packed
        targets = list(targets)
        self.hit = 0
        self.count = len(targets)
        self.addresses = <uint8_t*>calloc(self.count + 1, 18)
        if self.addresses == NULL:
            raise MemoryError
        for at, (address, port) in enumerate(targets):
            packed = bytes(address) + int(port).to_bytes(2, "big")
            if len(packed) != 18:
                raise ValueError("an address has 16 bytes; IPv4 is v4-mapped")
            memcpy(&self.addresses[18 * <Py_ssize_t>at], <const uint8_t*>packed, 18)
            self.ports |= <uint64_t>1 << (<int>port & 63)

    def __dealloc__(self):
        free(self.addresses)

    cdef bint is_target(self, const uint8_t* address, uint16_t port) noexcept nogil:
        cdef int i
        cdef const uint8_t* one = self.addresses
        if not self.ports >> (port & 63) & 1:
            return False
        for i in range(self.count):
            if one[16] == port >> 8 and one[17] == (port & 255) and memcmp(one, address, 16) == 0:
                return True
            one += 18
        return False

    @property
    def tripped(self):
        return atomic_get(&self.hit) != 0


cdef class PacketSource:
    cdef int take(self, Packet* out, int most) noexcept nogil:
        return 0

    cdef bint keeps(self) noexcept nogil:
        return False

    cdef const uint8_t* cold_until(self, const uint8_t* at) noexcept nogil:
        return NULL


cdef void batch_free(Batch* batch) noexcept nogil:
    free(batch.rows)
    free(batch.arena)
    free(batch)


cdef Batch* batch_new(BatchPool* pool, uint64_t size) noexcept nogil:
    cdef Batch* batch = <Batch*>calloc(1, sizeof(Batch))
    if batch == NULL:
        return NULL
    batch.arena = <uint8_t*>malloc(size)
    batch.rows = <Request*>malloc(BATCH_ROWS * sizeof(Request))
    if batch.arena == NULL or batch.rows == NULL:
        batch_free(batch)
        return NULL
    batch.size = size
    batch.capacity = BATCH_ROWS
    batch.pool = pool
    return batch


cdef inline int64_t batch_cost(Batch* batch) noexcept nogil:
    return <int64_t>(batch.size + batch.capacity * sizeof(Request))


cdef bint batch_waits(BatchPool* pool, uint64_t bytes) noexcept nogil:
    """batch_take() would have to wait."""
    return atomic_get(&pool.held) > 0 and atomic_get(&pool.held) + <int64_t>(bytes if bytes > BATCH_BYTES else BATCH_BYTES) + BATCH_ROWS * <int64_t>sizeof(Request) > pool.budget


cdef Batch* batch_take(BatchPool* pool, uint64_t bytes, const int64_t* stop) noexcept nogil:
    """An empty batch with room for `bytes`, refs = 1. Waits while the budget is spent; NULL when stopped or out of memory."""
    cdef uint64_t size = bytes if bytes > BATCH_BYTES else BATCH_BYTES
    cdef int64_t cost
    cdef Batch* batch = NULL
    while batch_waits(pool, bytes):
        if atomic_get(stop):
            return NULL
        poll(NULL, 0, 1)          # offline ingest waits for senders; a millisecond is nothing beside a full budget
    if size == BATCH_BYTES:
        pthread_mutex_lock(&pool.lock)
        batch = pool.free
        if batch != NULL:
            pool.free = batch.next
            pool.spare -= 1
        pthread_mutex_unlock(&pool.lock)
    if batch == NULL:
        batch = batch_new(pool, size)
        if batch == NULL:
            return NULL
    batch.used = 0
    batch.count = 0
    batch.loop = 0
    batch.next = NULL
    atomic_set(&batch.refs, 1)
    cost = atomic_add(&pool.held, batch_cost(batch))
    if cost > pool.peak:
        pool.peak = cost
    return batch


cdef void batch_keep(Batch* batch, int64_t times) noexcept nogil:
    atomic_add(&batch.refs, times)


cdef void batch_release(Batch* batch) noexcept nogil:
    cdef BatchPool* pool = batch.pool
    cdef bint spare = False
    if atomic_add(&batch.refs, -1) > 0:
        return
    if batch.of != NULL:
        atomic_add(&pool.held, -batch_cost(batch.of))
        batch_release(batch.of)
        free(batch)
        return
    atomic_add(&pool.held, -batch_cost(batch))
    if batch.size == BATCH_BYTES:
        pthread_mutex_lock(&pool.lock)
        if pool.spare < SPARE_BATCHES:
            batch.next = pool.free
            pool.free = batch
            pool.spare += 1
            spare = True
        pthread_mutex_unlock(&pool.lock)
    if not spare:
        batch_free(batch)


cdef int64_t QUEUE_REST_NS = 50000            # the first of its sleeps
cdef int64_t QUEUE_REST_MOST_NS = 1000000


cdef class Pool:
    def __cinit__(self, int64_t budget=48 * 1024 * 1024):
        pthread_mutex_init(&self.pool.lock, NULL)
        self.pool.free = NULL
        self.pool.held = 0
        self.pool.budget = budget
        self.pool.peak = 0
        self.pool.spare = 0

    def __dealloc__(self):
        cdef Batch* batch = self.pool.free
        cdef Batch* after
        while batch != NULL:
            after = batch.next
            batch_free(batch)
            batch = after
        pthread_mutex_destroy(&self.pool.lock)

    @property
    def held(self):
        """Bytes of batches that are in use now."""
        return atomic_get(&self.pool.held)

    @property
    def peak(self):
        return self.pool.peak


cdef class Queue:
    def __cinit__(self, Pool pool not None, uint64_t slots=1024, bint yields=False, bint prompt=False):
        self.pool = pool
        self.yields, self.prompt = yields, prompt
        self.waiting = 0
        self.slots = slots
        self.ended = 0
        self.refused = 0
        self.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(errno.errno, "eventfd")
        if ring_init(&self.ring, slots) < 0:
            raise MemoryError

    def __dealloc__(self):
        cdef Batch* batch
        while self.pool is not None:
            batch = <Batch*>ring_pop(&self.ring)
            if batch == NULL:
                break
            batch_release(batch)
        ring_free(&self.ring)
        if self.fd >= 0:
            close(self.fd)

    cdef int push(self, Batch* batch) noexcept nogil:
        """1 pushed (the ring takes over one reference), 0 full."""
        if not ring_push(&self.ring, batch):
            return 0
        if atomic_get(&self.waiting):
            self.wake()
        return 1

    cdef int push_quietly(self, Batch* batch) noexcept nogil:
        """As push, for one who pushes more in no time, or calls nudge(): a consumer that sleeps is woken for many batches at once."""
        if not ring_push(&self.ring, batch):
            return 0
        if ring_count(&self.ring) * 2 > self.slots and atomic_get(&self.waiting):
            self.wake()
        return 1

    cdef void rest(self, const int64_t* stop) noexcept nogil:
        """Offline, after it was full: until half of it was taken, so that few sleeps serve many batches; or one batch, in front of a sender
        that must be on time, for half of a queue would be milliseconds of reading. Each sleep is short beside what is left of the queue then."""
        cdef int64_t pause = QUEUE_REST_NS
        cdef uint64_t left = self.slots - 1 if self.prompt else self.slots // 2
        while ring_count(&self.ring) > left and not atomic_get(stop):
            wait_a_moment(pause)
            if pause < QUEUE_REST_MOST_NS:
                pause *= 2

    cdef void nudge(self) noexcept nogil:
        if atomic_get(&self.waiting) and ring_count(&self.ring):
            self.wake()

    cdef Batch* pop(self) noexcept nogil:
        """The next batch, its reference handed over; NULL when there is none now."""
        return <Batch*>ring_pop(&self.ring)

    cdef void wake(self) noexcept nogil:
        cdef uint64_t one = 1
        write(self.fd, &one, 8)

    cdef void finish(self) noexcept nogil:
        """No batch comes after this one. A consumer is done when `ended` is set and then pop() gives NULL."""
        atomic_set(&self.ended, 1)
        self.wake()

    @property
    def full(self):
        """Requests that never got into it: live it was full, offline the run was stopped, or there was no memory for them."""
        return count_get(&self.refused)

    def end(self):
        """`finish`, for Python (tests, the end of the last pass)."""
        self.finish()

    def get(self, double timeout=0.1):
        """The next batch as `Requests`; None at the end, or when none came within `timeout` seconds (see `done`)."""
        cdef Batch* batch
        cdef pollfd wait
        cdef uint64_t seen
        cdef int ms = <int>(timeout * 1000)
        cdef Requests view
        with nogil:
            batch = self.pop()
            if batch == NULL and not atomic_get(&self.ended):
                atomic_set(&self.waiting, 1)
                batch = self.pop()
                if batch == NULL and not atomic_get(&self.ended):
                    wait.fd = self.fd
                    wait.events = POLLIN
                    poll(&wait, 1, ms)
                    read(self.fd, &seen, 8)
                atomic_set(&self.waiting, 0)
            if batch == NULL:
                batch = self.pop()
        if batch == NULL:
            return None
        view = Requests.__new__(Requests)
        view.batch = batch
        view.pool = self.pool
        return view

    @property
    def done(self):
        """True when the end was marked and everything was taken."""
        return atomic_get(&self.ended) != 0 and ring_count(&self.ring) == 0
