# A lane between two threads: a ring of pointers, and sleep when it is empty. Must not know: what the pointers point to.

cdef enum:
    LANE_SPINS = 400              # looks before one goes to sleep: a few microseconds
    LANE_WAIT_MS = 20

cdef struct Lane:
    PointerRing ring
    uint64_t slots
    int64_t waiting               # atomic: the consumer sleeps, or is about to
    int fd                        # owns: eventfd


cdef int lane_init(Lane* l, uint64_t slots) noexcept nogil:
    l.waiting = 0
    l.slots = slots
    if ring_init(&l.ring, slots) < 0:
        return -1
    l.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    return -1 if l.fd < 0 else 0


cdef void lane_free(Lane* l) noexcept nogil:
    ring_free(&l.ring)
    if l.fd >= 0:
        close(l.fd)
    l.fd = -1


cdef inline void lane_wake(Lane* l) noexcept nogil:
    cdef uint64_t one = 1
    if atomic_get(&l.waiting):
        write(l.fd, &one, 8)


cdef void lane_push(Lane* l, void* p) noexcept nogil:
    """There is room: no more pointers go round than there are slots. A sleeper is woken when half of them came together, so that it does not fall asleep after each."""
    ring_push(&l.ring, p)
    if ring_count(&l.ring) * 2 > l.slots:
        lane_wake(l)


cdef void lane_sleep(Lane* l) noexcept nogil:
    cdef pollfd wait
    cdef uint64_t seen
    wait.fd = l.fd
    wait.events = POLLIN
    poll(&wait, 1, LANE_WAIT_MS)
    read(l.fd, &seen, 8)


cdef void* lane_pop(Lane* l) noexcept nogil:
    """The next pointer; waits for it."""
    cdef void* p
    cdef int i
    while True:
        for i in range(LANE_SPINS):
            p = ring_pop(&l.ring)
            if p != NULL:
                return p
            spin_pause()
        atomic_set(&l.waiting, 1)
        if ring_count(&l.ring) == 0:
            lane_sleep(l)
        atomic_set(&l.waiting, 0)


cdef void lane_pause(Lane* l, const int64_t* value, int64_t wanted) noexcept nogil:
    """A moment, or until `value` has reached what is wanted and the lane was woken."""
    cdef int i
    for i in range(LANE_SPINS):
        if atomic_get(value) >= wanted:
            return
        spin_pause()
    atomic_set(&l.waiting, 1)
    if atomic_get(value) < wanted:
        lane_sleep(l)
    atomic_set(&l.waiting, 0)
