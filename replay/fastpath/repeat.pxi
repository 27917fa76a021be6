# Passes of --loop from memory: the first one's batches are kept, as far as there is room, and handed out again; nothing is read or parsed twice.
# Must not know: HTTP, sockets, files.

cdef struct KeptBatches:
    Batch** list                  # owns, and a reference to each
    uint64_t count
    uint64_t room
    int64_t bytes                 # of the batches
    int64_t budget
    bint over                     # there was no room: nothing is kept, and nothing will be


cdef void kept_let_go(KeptBatches* k) noexcept nogil:
    """Nothing is kept any more."""
    cdef uint64_t i
    for i in range(k.count):
        batch_release(k.list[i])
    free(k.list)
    k.list = NULL
    k.count = k.room = 0
    k.bytes = 0


cdef void kept_give_up(KeptBatches* k) noexcept nogil:
    kept_let_go(k)
    k.over = True


cdef void kept_add(KeptBatches* k, Batch* batch) noexcept nogil:
    """Keeps a batch that is complete, or gives up."""
    cdef Batch** list
    if k.over:
        return
    if k.bytes + batch_cost(batch) > k.budget:
        kept_give_up(k)
        return
    if k.count == k.room:
        list = <Batch**>realloc(k.list, (2 * k.room + 64) * sizeof(Batch*))
        if list == NULL:
            kept_give_up(k)
            return
        k.list = list
        k.room = 2 * k.room + 64
    batch_keep(batch, 1)
    k.list[k.count] = batch
    k.count += 1
    k.bytes += batch_cost(batch)


cdef Batch* batch_again(Batch* batch, int64_t shift_ns, int64_t shift_nth, int64_t loop) noexcept nogil:
    """A batch of the same rows and bytes, which belong to `batch`, with other due times; refs = 1. NULL: no memory.

    It costs the budget what one that was read costs: what senders keep of each of its requests has to be bounded by something."""
    cdef Batch* again = <Batch*>calloc(1, sizeof(Batch))
    if again == NULL:
        return NULL
    batch_keep(batch, 1)
    again.of = batch
    again.rows = batch.rows
    again.arena = batch.arena
    again.used, again.count = batch.used, batch.count
    again.shift_ns, again.shift_nth = shift_ns, shift_nth
    again.loop = loop
    again.pool = batch.pool
    again.refs = 1
    atomic_add(&again.pool.held, batch_cost(batch))
    return again


cdef int64_t batch_push(PyObject** queues, int count, Batch* batch, bint at_once, const int64_t* stop) noexcept nogil:
    """Offline: hands a batch (one reference) to every queue and waits while one is full. Returns how many requests no queue took, a copy each: it was stopped.

    at_once: consumers that sleep are woken for this one; else for many together."""
    cdef int64_t pause = 50000
    cdef int64_t refused = 0
    cdef int i
    batch_keep(batch, count)
    for i in range(count):
        while not (queue_push(<void*>queues[i], batch) if at_once else queue_push_quietly(<void*>queues[i], batch)):
            if atomic_get(stop):
                # the senders are stopping too: what they never see is counted by who pushes
                queue_refuse(<void*>queues[i], batch.count)
                refused += batch.count
                batch_release(batch)
                break
            if count == 1:
                queue_rest(<void*>queues[i], stop)
                continue
            wait_a_moment(pause)  # short at first: at full speed what waits in the queue lasts for less than a millisecond; and none waits for another's
            pause = 2 * pause if pause < 1000000 else pause
    batch_release(batch)
    if count:
        queue_offers(<void*>queues[0])
    return refused


cdef class Kept:
    """What an Ingest handed out, to be handed out again: batches of at most `budget` bytes. With more, or where the memory is needed elsewhere, it keeps nothing (`whole` is False)."""
    cdef KeptBatches kept
    cdef Pool pool                # keeps alive what the batches belong to

    def __cinit__(self, Pool pool not None, int64_t budget):
        memset(&self.kept, 0, sizeof(KeptBatches))
        self.kept.budget = budget
        self.pool = pool

    def __dealloc__(self):
        kept_let_go(&self.kept)

    @property
    def whole(self):
        """Nothing is missing, so that a pass over it is the same as reading again."""
        return not self.kept.over

    @property
    def bytes(self):
        return self.kept.bytes


cdef class Repeat:
    """Further passes over what is `kept`, in place of reading again: the same batches into the same queues, later.

    counts: Ingest.counters() of the pass that was kept.  passes: how many.  step_ns: so much later is everything in each pass than in the one before. At an even rate its requests go on from that pass's last."""
    cdef Kept kept
    cdef Stop stop
    cdef list queues
    cdef PyObject** into          # owns; what it points to is in `queues`
    cdef int into_count
    cdef dict counts
    cdef int64_t passes
    cdef int64_t step_ns
    cdef int64_t step_nth         # selected in each pass
    cdef int64_t n_begun          # atomic
    cdef int64_t n_unqueued       # atomic
    cdef int64_t n_batches        # atomic: of this pass, that were handed out
    cdef int64_t ended            # atomic

    def __cinit__(self, Kept kept not None, queues, Stop stop not None, dict counts not None, int64_t passes, int64_t step_ns):
        self.queues = list(queues)
        self.kept, self.stop, self.counts, self.passes, self.step_ns = kept, stop, dict(counts), passes, step_ns
        self.into_count = len(self.queues)
        self.into = <PyObject**>calloc(self.into_count + 1, sizeof(PyObject*))
        if self.into == NULL:
            raise MemoryError
        for i, queue in enumerate(self.queues):
            if not isinstance(queue, Queue):
                raise TypeError("queues are of class Queue")
            self.into[<Py_ssize_t>i] = <PyObject*>queue
        if not kept.whole:
            raise ValueError("not everything was kept")
        self.step_nth = counts["selected"]

    def __dealloc__(self):
        free(self.into)

    def run(self):
        """The thread's body, without the GIL: all passes, or until stopped."""
        with nogil:
            self.body()
        atomic_set(&self.ended, 1)

    cdef bint waits(self, Batch* batch) noexcept nogil:
        """Until the budget has room for it: what is kept is half of it at most. True: it was stopped."""
        cdef BatchPool* pool = batch.pool
        cdef int i
        if atomic_get(&pool.held) + batch_cost(batch) > pool.budget:
            for i in range(self.into_count):
                (<Queue><void*>self.into[i]).nudge()
        while atomic_get(&pool.held) + batch_cost(batch) > pool.budget and not atomic_get(&self.stop.flag):
            poll(NULL, 0, 1)
        return atomic_get(&self.stop.flag) != 0

    cdef void body(self) noexcept nogil:
        cdef KeptBatches* k = &self.kept.kept
        cdef Batch* again
        cdef int64_t turn
        cdef uint64_t i
        cdef bint stopped
        cdef int queue
        for turn in range(1, self.passes + 1):
            if atomic_get(&self.stop.flag):
                break
            atomic_set(&self.n_batches, 0)
            count_add(&self.n_begun, 1)
            for i in range(k.count):
                stopped = self.waits(k.list[i])
                again = NULL if stopped else batch_again(k.list[i], turn * self.step_ns, turn * self.step_nth, turn)
                if again == NULL:
                    for queue in range(self.into_count):
                        queue_refuse(<void*>self.into[queue], k.list[i].count)
                    count_add(&self.n_unqueued, <int64_t>k.list[i].count * self.into_count)
                else:
                    count_add(&self.n_unqueued, batch_push(self.into, self.into_count, again, False, &self.stop.flag))
                count_add(&self.n_batches, 1)
        for i in range(<uint64_t>self.into_count):
            (<Queue><void*>self.into[i]).nudge()

    @property
    def begun(self):
        """Passes, so far."""
        return atomic_get(&self.n_begun)

    @property
    def share(self):
        """How much of the pass of now was handed out: 0 to 1."""
        return count_get(&self.n_batches) / self.kept.kept.count if self.kept.kept.count else 1.0

    def counters(self):
        """As Ingest.counters(), for the kept pass and all that were begun since. From any thread."""
        begun = atomic_get(&self.n_begun)
        found = {key: value if key in _REPEAT_ONCE else _times(value, 1 + begun) for key, value in self.counts.items()}
        found["unqueued"] = self.counts["unqueued"] + count_get(&self.n_unqueued)
        found["end_offset_ns"] = self.counts["end_offset_ns"] + begun * self.step_ns
        found["ended"] = atomic_get(&self.ended) != 0
        return found


#: What passes have in common.
_REPEAT_ONCE = frozenset(("gap_largest", "digest", "first_ns", "last_ns", "first_packet_ns", "last_packet_ns", "memory", "finished"))


def _times(value, n):
    """A number, or a dict of numbers, n times."""
    return {key: _times(one, n) for key, one in value.items()} if isinstance(value, dict) else value * n
