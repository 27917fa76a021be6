# Marks: what the judge needs of a request that ended, without its bytes, from one sender to the judge. A ring of fixed slots: nothing is allocated,
# nothing is locked, and the reader is told once a turn. Must not know: what is counted of them.

cdef struct Mark:                 # one request that ended
    int64_t due_ns                # CLOCK_MONOTONIC
    int64_t sent_ns               # 0: no byte of it was sent
    int64_t first_byte_ns         # of the reply; 0 none
    int64_t end_ns
    int64_t response_ns           # captured: first byte of the reply minus first byte of the request; -1 unknown
    uint16_t endpoint             # its number with this sender
    uint16_t captured             # status; 0 unknown
    uint16_t status               # of an answered one
    uint8_t outcome

cdef struct Marks:
    Mark* slots                   # owns: mask + 1
    uint64_t mask
    uint64_t tail                 # the sender's: written up to here
    uint64_t seen                 # the sender's: read up to here, when it last looked
    uint64_t eager                # the sender's: so many that wait are judged by itself
    int64_t base_ns               # what to add for a time since 1970; written before the first mark is told
    bint waits                    # a dry run: rather waits than loses one
    EndpointNames endpoints       # the sender's, but for names that marks told of
    uint8_t apart_1[64]
    uint64_t told                 # atomic: written up to here, for the reader
    int64_t lost                  # counter
    uint8_t apart_2[64]
    uint64_t head                 # atomic: read up to here
    int which                     # the judge's number of this sender
    JudgeState* judge             # a reference, or NULL: nobody reads
    JudgeEndpoint** known         # owns; the judge's: its endpoint of each number, NULL not met yet


cdef int marks_init(Marks* m, uint64_t slots, bint waits) noexcept nogil:
    cdef uint64_t n = 64
    while n < slots:
        n *= 2
    memset(m, 0, sizeof(Marks))
    m.slots = <Mark*>malloc(n * sizeof(Mark))
    m.mask = n - 1
    m.eager = n // 2
    m.waits = waits
    return OK if m.slots != NULL else NEED_MORE


cdef void marks_free(Marks* m) noexcept nogil:
    if m.judge != NULL:
        judge_leave(m.judge)
    endpoint_names_free(&m.endpoints)
    free(m.known)
    free(m.slots)


cdef inline void marks_tell(Marks* m) noexcept nogil:
    """What was written may be read."""
    atomic_set(<int64_t*>&m.told, <int64_t>m.tail)


cdef void marks_relieve(Marks* m) noexcept nogil:
    """Many wait: the judge does not keep up, so this thread judges some, unless the judge is just about it."""
    marks_tell(m)
    if m.judge != NULL and pthread_mutex_trylock(&m.judge.lock) == 0:
        judge_marks(m.judge, m, JUDGE_MARKS)
        pthread_mutex_unlock(&m.judge.lock)
    m.seen = <uint64_t>atomic_get(<int64_t*>&m.head)
    while m.tail - m.seen > m.mask and m.waits and m.judge != NULL:
        pthread_mutex_lock(&m.judge.lock)
        judge_marks(m.judge, m, m.mask)
        pthread_mutex_unlock(&m.judge.lock)
        m.seen = <uint64_t>atomic_get(<int64_t*>&m.head)


cdef inline Mark* marks_next(Marks* m) noexcept nogil:
    """A slot to fill in, which is then part of what `marks_tell` tells; NULL when there is none."""
    cdef Mark* mark
    if m.tail - m.seen >= m.eager:
        m.seen = <uint64_t>atomic_get(<int64_t*>&m.head)
        if m.tail - m.seen >= m.eager:
            marks_relieve(m)
            if m.tail - m.seen > m.mask:
                count_add(&m.lost, 1)
                return NULL
    mark = &m.slots[m.tail & m.mask]
    m.tail += 1
    return mark
