# Judging: the marks of requests that ended, compared with what was captured of them: by endpoint, and over time. One thread without the GIL, behind
# the senders; a sender that is quicker than it judges its own marks meanwhile. Records, where somebody wants them, are passed on, or freed.
# Must not know: sockets, files. How a record becomes a line is in results.pxi.

cdef enum:
    JUDGE_PAIRS = 16              # status changes of one endpoint told apart
    JUDGE_BUCKETS = 512           # of the time line; full, two become one
    JUDGE_TURN = 4096             # records of one sender in one turn
    JUDGE_TARGETS = 64            # so many targets are told apart at each endpoint; with more, none
    JUDGE_MARKS = 1024            # marks of one sender in one go, so that a sender seldom finds the lock taken
    JUDGE_REST_MS = 8             # a wake-up costs as much as some hundred marks
    COARSE_HALF = 128             # as HISTOGRAM_HALF, for 2 significant digits
    COARSE_BUCKETS = 25
    COARSE_SLOTS = (COARSE_BUCKETS + 1) * COARSE_HALF

cdef int64_t JUDGE_SLOWER_NS = 5000000   # slower: more than twice as long as in production, and by more than this

cdef struct Coarse:               # a histogram of microseconds with 2 significant digits: 13 KiB
    int32_t counts[COARSE_SLOTS]

cdef struct JudgePair:
    int32_t key                   # captured status * 1000 + shadow status
    int64_t count

cdef struct JudgeShare:           # of one target at one endpoint; the same names as there
    int64_t requests
    int64_t answered
    int64_t unanswered
    int64_t dropped
    int64_t known
    int64_t changed
    int64_t worse
    int64_t compared
    int64_t slower
    int64_t status[6]
    int64_t response_sum_us       # of those compared
    int64_t response_max_us

cdef struct JudgeEndpoint:        # counters: one thread writes, others read
    uint64_t hash
    int64_t requests
    int64_t answered
    int64_t unanswered
    int64_t dropped
    int64_t known                 # answered, and the captured status is known
    int64_t changed               # … and it is another
    int64_t worse                 # … of a worse kind: an error where there was none, or a server's where there was a client's
    int64_t compared              # first bytes of both replies have a time
    int64_t slower
    int64_t status[6]             # of the shadow's answers, by their first digit
    int64_t captured[6]           # of the same requests
    JudgeShare* shares            # owns, one a target; NULL where there is one target
    int64_t pairs_other
    int64_t pairs_used
    JudgePair pairs[JUDGE_PAIRS]
    Coarse production             # captured: first byte of the reply minus first byte of the request; of those compared
    Coarse response               # shadow: the same
    Coarse latency                # whole reply minus due; of the answered
    uint16_t name_len
    uint8_t name[JUDGE_NAME]

cdef struct JudgeBucket:          # one stretch of time
    int64_t due                   # requests that were due in it
    int64_t sent
    int64_t answered
    int64_t unanswered
    int64_t dropped
    int64_t status[6]
    int64_t lag_sum_us            # of those sent in it
    int64_t lag_max_us
    int64_t service_sum_us        # of those that were answered in it
    int64_t service_max_us
    int64_t latency_sum_us
    int64_t latency_max_us


cdef inline void coarse_record(Coarse* h, int64_t value_ns) noexcept nogil:
    cdef int64_t us = value_ns // 1000 if value_ns > 0 else 0
    cdef int bucket
    if us > HISTOGRAM_HIGHEST:
        us = HISTOGRAM_HIGHEST
    bucket = 56 - histogram_clz(<unsigned long long>us | (2 * COARSE_HALF - 1))
    h.counts[(bucket + 1) * COARSE_HALF + <int>(us >> bucket) - COARSE_HALF] += 1


# ---- counting ----------------------------------------------------------------------------------------------------------------

cdef struct JudgeState:
    int64_t refs                  # atomic: the Judge, and marks that it reads
    pthread_mutex_t lock          # whoever judges has it
    JudgeEndpoint* endpoints[JUDGE_ENDPOINTS + 1]    # owns; the last one is (other)
    int64_t count                                     # of them without (other); atomic
    int32_t table[JUDGE_SLOTS]                        # index + 1; 0 free
    JudgeBucket buckets[JUDGE_BUCKETS]
    int64_t bucket_ns
    int64_t origin_ns             # CLOCK_MONOTONIC of the first bucket; 0 not yet
    int targets                   # whose shares are told; 0 none
    JudgeShare nobody             # what is counted where none are
    int64_t merges                # times that two buckets became one; odd while it happens
    int64_t base_ns
    int64_t judged
    int64_t not_judged            # no memory
    Histogram response


cdef JudgeEndpoint* judge_endpoint(JudgeState* j, const EndpointName* name) noexcept nogil:
    """The endpoint of this name, made when it is new; NULL: what was too many for the sender already. NULL without memory."""
    cdef JudgeEndpoint* e
    cdef uint32_t slot = 0
    cdef bint other = name == NULL
    if name != NULL:
        slot = <uint32_t>name.hash & (JUDGE_SLOTS - 1)
        while j.table[slot]:
            e = j.endpoints[j.table[slot] - 1]
            if e.hash == name.hash and e.name_len == name.length and memcmp(e.name, name.text, name.length) == 0:
                return e
            slot = (slot + 1) & (JUDGE_SLOTS - 1)
        other = j.count >= JUDGE_ENDPOINTS
    if other and j.endpoints[JUDGE_ENDPOINTS] != NULL:
        return j.endpoints[JUDGE_ENDPOINTS]
    e = <JudgeEndpoint*>calloc(1, sizeof(JudgeEndpoint))
    if e == NULL:
        return NULL
    if j.targets:
        e.shares = <JudgeShare*>calloc(j.targets, sizeof(JudgeShare))
        if e.shares == NULL:
            free(e)
            return NULL
    if other:
        e.name_len = 7
        memcpy(e.name, b"(other)", 7)
    else:
        e.hash = name.hash
        e.name_len = name.length
        memcpy(e.name, name.text, name.length)
    if other:
        j.endpoints[JUDGE_ENDPOINTS] = e
        return e
    j.endpoints[j.count] = e
    j.table[slot] = <int32_t>(j.count + 1)
    atomic_set(&j.count, j.count + 1)
    return e


cdef void judge_pair(JudgeEndpoint* e, int32_t key) noexcept nogil:
    cdef int64_t i
    for i in range(e.pairs_used):
        if e.pairs[i].key == key:
            e.pairs[i].count += 1
            return
    if e.pairs_used >= JUDGE_PAIRS:
        e.pairs_other += 1
        return
    e.pairs[e.pairs_used].key = key
    e.pairs[e.pairs_used].count = 1
    atomic_set(&e.pairs_used, e.pairs_used + 1)


cdef void judge_halve(JudgeState* j) noexcept nogil:
    """Two stretches of time become one."""
    cdef int64_t* a
    cdef int64_t* b
    cdef int i, k
    atomic_set(&j.merges, j.merges + 1)
    for i in range(JUDGE_BUCKETS // 2):
        if i:
            j.buckets[i] = j.buckets[2 * i]
        a = <int64_t*>&j.buckets[i]
        b = <int64_t*>&j.buckets[2 * i + 1]
        for k in range(<int>(sizeof(JudgeBucket) // 8)):
            a[k] += b[k]
        # the largest of both, where the loop above added them up
        a = &j.buckets[i].lag_max_us
        j.buckets[i].lag_max_us = max(j.buckets[i].lag_max_us - j.buckets[2 * i + 1].lag_max_us, j.buckets[2 * i + 1].lag_max_us)
        j.buckets[i].service_max_us = max(j.buckets[i].service_max_us - j.buckets[2 * i + 1].service_max_us, j.buckets[2 * i + 1].service_max_us)
        j.buckets[i].latency_max_us = max(j.buckets[i].latency_max_us - j.buckets[2 * i + 1].latency_max_us, j.buckets[2 * i + 1].latency_max_us)
    memset(&j.buckets[JUDGE_BUCKETS // 2], 0, sizeof(JudgeBucket) * (JUDGE_BUCKETS // 2))
    j.bucket_ns *= 2
    atomic_set(&j.merges, j.merges + 1)


cdef JudgeBucket* judge_bucket(JudgeState* j, int64_t at_ns) noexcept nogil:
    cdef int64_t i = at_ns - j.origin_ns
    if i < 0:
        i = 0
    while i // j.bucket_ns >= JUDGE_BUCKETS:
        judge_halve(j)
    return &j.buckets[i // j.bucket_ns]


cdef void judge_mark(JudgeState* j, JudgeEndpoint* e, const Mark* note, int64_t base_ns, int which) noexcept nogil:
    """Counts one request that ended. which: its target."""
    cdef JudgeBucket* b
    cdef JudgeShare* s = &e.shares[which] if e.shares != NULL else &j.nobody
    cdef int64_t took, lag
    cdef int kind
    count_add(&j.judged, 1)
    count_add(&e.requests, 1)
    count_add(&s.requests, 1)
    if j.origin_ns == 0:
        j.base_ns = base_ns
        j.origin_ns = note.due_ns if 0 < note.due_ns < note.end_ns else note.end_ns
    if 0 < note.due_ns <= note.end_ns:
        count_add(&judge_bucket(j, note.due_ns).due, 1)
    if note.sent_ns:
        lag = (note.sent_ns - note.due_ns) // 1000
        b = judge_bucket(j, note.sent_ns)
        count_add(&b.sent, 1)
        if lag > 0:
            count_add(&b.lag_sum_us, lag)
            if lag > b.lag_max_us:
                b.lag_max_us = lag
    b = judge_bucket(j, note.end_ns)
    if note.outcome == OUTCOME_DROPPED:
        count_add(&e.dropped, 1)
        count_add(&s.dropped, 1)
        count_add(&b.dropped, 1)
        return
    if note.outcome == OUTCOME_UNANSWERED:
        count_add(&e.unanswered, 1)
        count_add(&s.unanswered, 1)
        count_add(&b.unanswered, 1)
        return
    count_add(&e.answered, 1)
    count_add(&s.answered, 1)
    count_add(&b.answered, 1)
    kind = note.status // 100
    kind = kind if 0 <= kind <= 5 else 0
    count_add(&e.status[kind], 1)
    count_add(&s.status[kind], 1)
    count_add(&b.status[kind], 1)
    took = (note.end_ns - note.sent_ns) // 1000
    count_add(&b.service_sum_us, took)
    if took > b.service_max_us:
        b.service_max_us = took
    took = (note.end_ns - note.due_ns) // 1000
    count_add(&b.latency_sum_us, took)
    if took > b.latency_max_us:
        b.latency_max_us = took
    coarse_record(&e.latency, note.end_ns - note.due_ns)
    if note.captured:
        kind = note.captured // 100
        count_add(&e.captured[kind if 0 <= kind <= 5 else 0], 1)
        count_add(&e.known, 1)
        count_add(&s.known, 1)
        if note.status != note.captured:
            count_add(&e.changed, 1)
            count_add(&s.changed, 1)
            judge_pair(e, <int32_t>(note.captured * 1000 + note.status))
            if note.status >= 400 and note.status // 100 > kind:
                count_add(&e.worse, 1)
                count_add(&s.worse, 1)
    if note.first_byte_ns:
        took = note.first_byte_ns - note.sent_ns
        histogram_record(&j.response, took, 1)
        if note.response_ns >= 0:
            count_add(&e.compared, 1)
            count_add(&s.compared, 1)
            count_add(&s.response_sum_us, took // 1000)
            if took // 1000 > s.response_max_us:
                s.response_max_us = took // 1000
            coarse_record(&e.production, note.response_ns)
            coarse_record(&e.response, took)
            if took > 2 * note.response_ns and took - note.response_ns > JUDGE_SLOWER_NS:
                count_add(&e.slower, 1)
                count_add(&s.slower, 1)


cdef int judge_marks(JudgeState* j, Marks* m, uint64_t most) noexcept nogil:
    """Counts what one sender told, at most so many; with the lock. Returns how many."""
    cdef uint64_t head = m.head
    cdef uint64_t end = <uint64_t>atomic_get(<int64_t*>&m.told)
    cdef const Mark* mark
    cdef JudgeEndpoint* e
    if end - head > most:
        end = head + most
    most = end - head
    while head != end:
        mark = &m.slots[head & m.mask]
        e = m.known[mark.endpoint]
        if e == NULL:
            e = judge_endpoint(j, m.endpoints.names[mark.endpoint] if mark.endpoint < JUDGE_ENDPOINTS else NULL)
            m.known[mark.endpoint] = e
        if e == NULL:
            count_add(&j.not_judged, 1)
        else:
            judge_mark(j, e, mark, m.base_ns, m.which)
        head += 1
    atomic_set(<int64_t*>&m.head, <int64_t>head)
    return <int>most


cdef void judge_leave(JudgeState* j) noexcept nogil:
    """Gives a reference back."""
    cdef int i
    if atomic_add(&j.refs, -1) > 0:
        return
    for i in range(<int>JUDGE_ENDPOINTS + 1):
        if j.endpoints[i] != NULL:
            free(j.endpoints[i].shares)
        free(j.endpoints[i])
    pthread_mutex_destroy(&j.lock)
    free(j)


# ---- the thread ----------------------------------------------------------------------------------------------------------------

cdef class Judge:
    """Reads the marks of senders, counts them by endpoint and over time, and passes their records on.

    sources: `Outcomes`, one a sender, none of which is at work yet.  names: of their targets, for the lines.  forward: `Outcomes`, one a source, that get each record
    afterwards, or none.  lines: `Lines` that get a line a record, or None.  `run` is a thread body; `end` lets it read what is left and end."""
    cdef JudgeState* j
    cdef list sources
    cdef list forward
    cdef Lines lines
    cdef int64_t ending
    cdef readonly int64_t forward_lost

    def __cinit__(self, sources, *, forward=(), Lines lines=None, names=()):
        self.j = <JudgeState*>calloc(1, sizeof(JudgeState))
        if self.j == NULL:
            raise MemoryError
        self.j.refs = 1
        pthread_mutex_init(&self.j.lock, NULL)
        self.j.bucket_ns = 100000000
        self.sources, self.forward, self.lines = list(sources), list(forward), lines
        if len(self.sources) > LINES_TARGETS:
            raise ValueError("sources: at most 1024")
        if 1 < len(self.sources) <= JUDGE_TARGETS:
            self.j.targets = <int>len(self.sources)
        for one in self.sources + self.forward:
            if not isinstance(one, Outcomes):
                raise TypeError("sources and forward are of class Outcomes")
        if self.forward and len(self.forward) != len(self.sources):
            raise ValueError("forward: one a source")
        if lines is not None:
            names = [str(name) for name in names]
            lines.name(names + [""] * (len(self.sources) - len(names)))
        for i, one in enumerate(self.sources):
            (<Outcomes>one).judged_by(self.j, i)

    def __dealloc__(self):
        if self.j != NULL:
            judge_leave(self.j)

    def end(self):
        """No record comes any more but those that wait."""
        atomic_set(&self.ending, 1)

    def run(self):
        """The thread's body."""
        cdef bint last = False
        cdef int got, i
        cdef int n = <int>len(self.sources)
        cdef PyObject* rings[LINES_TARGETS]
        cdef PyObject* onward[LINES_TARGETS]
        for i in range(n):
            rings[i] = <PyObject*>self.sources[i]
            onward[i] = <PyObject*>self.forward[i] if self.forward else NULL
        with nogil:
            while True:
                last = atomic_get(&self.ending) != 0
                got = 0
                for i in range(n):
                    got += self.judge(&(<Outcomes>rings[i]).marks)
                    got += self.turn(i, &(<Outcomes>rings[i]).ring, &(<Outcomes>onward[i]).ring if onward[i] != NULL else NULL,
                                     (<Outcomes>onward[i]).slots if onward[i] != NULL else 0)
                if got == 0:
                    if last:
                        break
                    if self.lines is not None:
                        self.lines.flush(False)
                    poll(NULL, 0, JUDGE_REST_MS)
            if self.lines is not None:
                self.lines.flush(True)

    cdef int judge(self, Marks* marks) noexcept nogil:
        cdef int got
        if atomic_get(<int64_t*>&marks.told) == atomic_get(<int64_t*>&marks.head):
            return 0
        pthread_mutex_lock(&self.j.lock)
        got = judge_marks(self.j, marks, JUDGE_MARKS)
        pthread_mutex_unlock(&self.j.lock)
        return got

    cdef int turn(self, int which, PointerRing* ring, PointerRing* onward, uint64_t slots) noexcept nogil:
        cdef int got = 0
        cdef SenderNote* note
        while got < JUDGE_TURN:
            note = <SenderNote*>ring_pop(ring)
            if note == NULL:
                break
            got += 1
            if self.lines is not None:
                self.lines.write(note, which)
            if onward == NULL:
                free(note)
            elif ring_count(onward) >= slots or not ring_push(onward, note):
                free(note)
                count_add(&self.forward_lost, 1)
        return got

    def counters(self):
        """`judged`; `not_judged`: no memory, or no room among the marks."""
        lost = sum((<Outcomes>one).marks_lost() for one in self.sources)
        return {"judged": count_get(&self.j.judged), "not_judged": count_get(&self.j.not_judged) + lost}

    def response(self):
        """Shadow: first byte of the reply minus first byte sent; counts as bytes, for `replay.histogram.Histogram`."""
        return histogram_bytes(&self.j.response)

    def endpoints(self):
        """A dict an endpoint, in the order in which they were first seen; histograms as bytes of int32."""
        cdef int64_t i
        cdef JudgeEndpoint* e
        found = []
        for i in range(atomic_get(&self.j.count)):
            found.append(judge_dict(self.j.endpoints[i], self.j.targets))
        if self.j.endpoints[<int>JUDGE_ENDPOINTS] != NULL:
            found.append(judge_dict(self.j.endpoints[<int>JUDGE_ENDPOINTS], self.j.targets))
        return found

    def timeline(self):
        """(ns since 1970 of the beginning, or None; ns a bucket; a dict a bucket up to the last one in use)."""
        cdef JudgeState* j = self.j
        cdef int i
        cdef int64_t before
        while True:
            before = atomic_get(&j.merges)
            width = j.bucket_ns
            rows = [judge_bucket_dict(&j.buckets[i]) for i in range(<int>JUDGE_BUCKETS)]
            if before % 2 == 0 and atomic_get(&j.merges) == before:
                break
        while rows and not any(rows[len(rows) - 1]["counts"]):
            rows.pop()
        for row in rows:
            del row["counts"]
        return (j.origin_ns + j.base_ns if j.origin_ns else None), width, rows


cdef dict judge_bucket_dict(JudgeBucket* b):
    cdef int i
    return {
        "due": b.due, "sent": b.sent, "answered": b.answered, "unanswered": b.unanswered, "dropped": b.dropped,
        "status": {f"{i}xx": b.status[i] for i in range(1, 6) if b.status[i]},
        "lag_sum_us": b.lag_sum_us, "lag_max_us": b.lag_max_us, "service_sum_us": b.service_sum_us, "service_max_us": b.service_max_us,
        "latency_sum_us": b.latency_sum_us, "latency_max_us": b.latency_max_us,
        "counts": (b.due, b.sent, b.answered, b.unanswered, b.dropped),
    }


cdef dict judge_share(JudgeShare* s):
    cdef int i
    return {
        "requests": s.requests, "answered": s.answered, "unanswered": s.unanswered, "dropped": s.dropped, "known": s.known, "changed": s.changed,
        "worse": s.worse, "compared": s.compared, "slower": s.slower, "status": {f"{i}xx": s.status[i] for i in range(1, 6) if s.status[i]},
        "response_sum_us": s.response_sum_us, "response_max_us": s.response_max_us,
    }


cdef dict judge_dict(JudgeEndpoint* e, int targets):
    cdef int i
    cdef int used = <int>atomic_get(&e.pairs_used)
    return {
        "name": e.name[:e.name_len], "requests": e.requests, "answered": e.answered, "unanswered": e.unanswered, "dropped": e.dropped,
        "known": e.known, "changed": e.changed, "worse": e.worse, "compared": e.compared, "slower": e.slower,
        "status": {f"{i}xx": e.status[i] for i in range(1, 6) if e.status[i]},
        "captured": {f"{i}xx": e.captured[i] for i in range(1, 6) if e.captured[i]},
        "status_change": {f"{e.pairs[i].key // 1000}>{e.pairs[i].key % 1000}": e.pairs[i].count for i in range(used)},
        "status_change_other": e.pairs_other, "shares": [judge_share(&e.shares[i]) for i in range(targets)],
        "production_us": coarse_bytes(&e.production), "response_us": coarse_bytes(&e.response), "latency_us": coarse_bytes(&e.latency),
    }


cdef bytes coarse_bytes(Coarse* h):
    return (<const char*>h.counts)[:sizeof(Coarse)]
