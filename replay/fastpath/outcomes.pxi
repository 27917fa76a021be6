# What became of the requests: the sender's ledger (counters that another thread may read at any time) and, when asked
# for, a record of each one (`Outcomes`). Must not know: sockets.

cdef enum SenderReason:           # why a request was not answered; the first six also why it was not sent
    REASON_NONE = 0
    REASON_TARGET_DOWN = 1        # no connection could be made
    REASON_GUARD = 2              # the target is a captured server
    REASON_DRY_RUN = 3
    REASON_STOPPED = 4            # the run was stopped, or drained for long enough
    REASON_MEMORY = 5             # no memory for one more request
    REASON_EMPTY = 6              # a request of no bytes: a bug upstream, and no reason to hang
    REASON_RESET = 7              # the connection was reset
    REASON_CLOSED = 8             # the connection was closed before a whole reply
    REASON_TIMEOUT = 9
    REASON_GARBAGE = 10           # what came is no HTTP/1 reply
    REASON_EXPIRED = 11           # live: too old to be worth sending
    REASON_BREAKER = 12           # live: the target is dead or drowning, nothing is sent for a while
    REASON_RATE = 13              # live: over --max-rate
    REASON_COUNT = 14

SENDER_REASONS = (None, "target_down", "guard", "dry_run", "stopped", "memory", "empty", "reset", "closed", "timeout", "garbage", "expired", "breaker", "max_rate")

cdef enum Outcome:
    OUTCOME_ANSWERED = 1
    OUTCOME_UNANSWERED = 2
    OUTCOME_DROPPED = 3

SENDER_OUTCOMES = (None, "answered", "unanswered", "dropped")

cdef enum:
    LEDGER_PAIRS = 2048           # slots of the table of status changes; at most half are used
    NOTE_HEAD = 8192              # bytes of a request's head that its record keeps, unless told otherwise
    NOTE_TARGET = 65536           # bytes of a target or Host that a record keeps
    OUTCOMES_MARKS = 16384        # marks that may wait, at most: so few that they stay in the second cache


cdef struct LedgerPair:
    int64_t key                   # captured status * 1000 + shadow status; 0 free
    int64_t count

cdef struct SenderLedger:         # every field an int64 written by the sender's thread only
    int64_t taken
    int64_t sent                  # at least one byte was accepted by the kernel
    int64_t answered
    int64_t dropped[REASON_COUNT]
    int64_t unanswered[REASON_COUNT]
    int64_t status[1000]
    int64_t captured[1000]        # of the answered, by their captured status; 0 is unknown
    int64_t connections_opened
    int64_t connections_open
    int64_t connect_failed
    int64_t bytes_sent
    int64_t bytes_received
    int64_t retried
    int64_t surplus               # connections closed because more came than was asked for
    int64_t interim               # 1xx
    int64_t retry_after_s         # of the newest 429 or 503 that had one
    int64_t limit_descriptors     # EMFILE, ENFILE
    int64_t limit_local_ports     # EADDRNOTAVAIL
    int64_t limit_memory          # ENOBUFS, ENOMEM
    int64_t last_errno
    int64_t position_ns           # offset_ns of the newest taken up
    int64_t never_connected
    int64_t outcomes_lost
    int64_t status_known          # answered, and the captured status is known
    int64_t status_same
    int64_t status_change_other   # changes that found no place in the table
    int64_t pairs_used
    int64_t start_ns              # clocks of this sender; 0 not yet
    int64_t first_sent_ns
    int64_t last_sent_ns
    LedgerPair pairs[LEDGER_PAIRS]
    Histogram lag                 # sent minus due
    Histogram latency             # whole reply minus due
    Histogram service             # whole reply minus first byte sent
    Histogram production          # captured: first byte of the reply minus first byte of the request

cdef struct SenderNote:           # one request that ended; owned by its item, then by the ring, then by get()
    Request row                   # data points to the bytes behind this struct, with the captured Host and target in front of it
    int64_t due_ns                # CLOCK_MONOTONIC; 0 none
    int64_t sent_ns
    int64_t first_byte_ns
    int64_t end_ns
    int64_t base_ns               # what to add for a time since 1970
    int64_t received              # bytes of the reply
    int64_t body_len              # of the reply, decoded
    int32_t address
    int32_t status
    uint8_t outcome
    uint8_t reason
    uint8_t has_digest
    uint8_t digest[32]            # SHA-256 of the decoded body


cdef void ledger_status(SenderLedger* l, int captured, int shadow) noexcept nogil:
    """Counts an answer by its status, and by how it differs from the captured one."""
    cdef int64_t key = captured * 1000 + shadow
    cdef uint32_t at = <uint32_t>(<uint32_t>key * <uint32_t>2654435769) >> 21
    count_add(&l.status[shadow], 1)
    count_add(&l.captured[captured], 1)
    if captured <= 0:
        return
    count_add(&l.status_known, 1)
    if captured == shadow:
        count_add(&l.status_same, 1)
        return
    while l.pairs[at].key != key:
        if l.pairs[at].key == 0:
            if l.pairs_used >= LEDGER_PAIRS // 2:
                count_add(&l.status_change_other, 1)
                return
            l.pairs_used += 1
            atomic_set(&l.pairs[at].key, key)
            break
        at = (at + 1) & (LEDGER_PAIRS - 1)
    count_add(&l.pairs[at].count, 1)


cdef SenderNote* note_make(const Request* row, uint32_t head) noexcept nogil:
    """A record of this request with at most `head` bytes of its head, or as many as its target needs; NULL without memory."""
    cdef size_t through = <size_t>row.target_at + (row.target_len if row.target_len < NOTE_TARGET else NOTE_TARGET)
    cdef size_t keep = row.head_len if row.head_len < head else head
    cdef size_t host = row.captured_host_len if row.captured_host_len < NOTE_TARGET else NOTE_TARGET
    cdef size_t target = row.captured_target_len if row.captured_target_len < NOTE_TARGET else NOTE_TARGET
    cdef SenderNote* note
    cdef uint8_t* out
    if keep < through:
        keep = through
    if row.flags & REQUEST_HAS_HOST and head == 0 and row.host_at + row.host_len > keep and row.captured_target_len:
        keep = row.host_at + (row.host_len if row.host_len < NOTE_TARGET else NOTE_TARGET)
    if keep > row.length:
        keep = <size_t>row.length
    note = <SenderNote*>malloc(sizeof(SenderNote) + host + target + keep)
    if note == NULL:
        return NULL
    memset(note, 0, sizeof(SenderNote))
    note.row = row[0]
    out = <uint8_t*>(note + 1)
    if host or target:
        memcpy(out, row.data - row.captured_target_len - row.captured_host_len, host)
        memcpy(out + host, row.data - row.captured_target_len, target)
        note.row.captured_host_len, note.row.captured_target_len = <uint32_t>host, <uint32_t>target
    out += host + target
    memcpy(out, row.data, keep)
    note.row.data = out
    note.row.head_len = <uint32_t>keep
    if note.row.target_at + note.row.target_len > keep:
        note.row.target_len = <uint32_t>(keep - note.row.target_at) if keep > note.row.target_at else 0
    if note.row.host_at + note.row.host_len > keep:
        note.row.host_len = <uint32_t>(keep - note.row.host_at) if keep > note.row.host_at else 0
    if row.digest != NULL:
        memcpy(note.digest, row.digest, 32)
        note.has_digest = 1
    note.row.digest = NULL
    return note


cdef class Outcomes:
    """What one sender has to say of each request that ended: a mark for the judge, and a record for one reader.

    slots: how many of either may wait; when they are full a record is lost and counted, the sender never waits.
    records: there is a reader for them.
    head: bytes of a head that a record keeps; 0: what its target (and, with `record`, its Host) needs.
    wait: a dry run, which has no shadow to be late for, waits for room instead."""
    cdef PointerRing ring
    cdef Marks marks
    cdef uint64_t slots           # 0: the ring was never made
    cdef uint32_t head
    cdef bint wait
    cdef bint records

    def __cinit__(self, uint64_t slots=65536, uint32_t head=NOTE_HEAD, bint wait=False, bint records=True):
        if not 1 <= slots <= 1 << 24:
            raise ValueError("slots: 1 to 16777216")
        self.head = head
        self.wait = wait
        self.records = records
        if marks_init(&self.marks, slots if slots < OUTCOMES_MARKS else OUTCOMES_MARKS, wait) != OK or ring_init(&self.ring, slots if records else 1) < 0:
            raise MemoryError
        self.slots = slots

    cdef int judged_by(self, JudgeState* judge, int which) except -1:
        """From now on this judge reads the marks; `which`: its number of this sender."""
        if self.marks.known == NULL:
            self.marks.known = <JudgeEndpoint**>malloc((JUDGE_ENDPOINTS + 1) * sizeof(JudgeEndpoint*))
        if self.marks.known == NULL:
            raise MemoryError
        memset(self.marks.known, 0, (JUDGE_ENDPOINTS + 1) * sizeof(JudgeEndpoint*))
        atomic_add(&judge.refs, 1)
        if self.marks.judge != NULL:
            judge_leave(self.marks.judge)
        self.marks.judge = judge
        self.marks.which = which
        return 0

    cdef int64_t marks_lost(self) noexcept:
        return count_get(&self.marks.lost)

    def __dealloc__(self):
        cdef void* note
        marks_free(&self.marks)
        if self.slots == 0:
            return
        note = ring_pop(&self.ring)
        while note != NULL:
            free(note)
            note = ring_pop(&self.ring)
        ring_free(&self.ring)

    def get(self, Py_ssize_t most=1024):
        """At most `most` records, oldest first, each a dict.

        Times (`due_ns`, `sent_ns`, `first_byte_ns`, `end_ns`) are ns since 1970 or None; `data` is the head as sent, at most 8 KiB of it."""
        cdef SenderNote* note
        got = []
        while len(got) < most:
            note = <SenderNote*>ring_pop(&self.ring)
            if note == NULL:
                break
            try:
                got.append(note_dict(note))
            finally:
                free(note)
        return got


cdef object note_time(int64_t at, int64_t base):
    return at + base if at else None


cdef dict note_dict(SenderNote* note):
    cdef Request* r = &note.row
    cdef bytes head = r.data[:r.head_len]
    return {
        "n": r.n, "ts_ns": r.ts_ns, "offset_ns": r.offset_ns, "flow": r.flow, "index": r.index, "version": r.version,
        "client": (<bytes>r.client[:16], r.client_port), "server": (<bytes>r.server[:16], r.server_port),
        "method": head[:r.method_len], "target": head[r.target_at:r.target_at + r.target_len],
        "host": head[r.host_at:r.host_at + r.host_len] if r.flags & REQUEST_HAS_HOST else None,
        "length": r.length, "body_len": r.body_len, "status": r.status or None,
        "response_ns": r.response_ns if r.response_ns >= 0 else None, "data": head,
        "outcome": SENDER_OUTCOMES[note.outcome], "reason": SENDER_REASONS[note.reason],
        "shadow_status": note.status or None, "address": note.address if note.address >= 0 else None,
        "due_ns": note_time(note.due_ns, note.base_ns), "sent_ns": note_time(note.sent_ns, note.base_ns),
        "first_byte_ns": note_time(note.first_byte_ns, note.base_ns), "end_ns": note_time(note.end_ns, note.base_ns),
        "bytes_received": note.received, "shadow_body_len": note.body_len,
    }


cdef dict ledger_reasons(int64_t* counts):
    cdef int i
    return {SENDER_REASONS[i]: count_get(&counts[i]) for i in range(<int>REASON_COUNT) if count_get(&counts[i])}


cdef dict ledger_dict(SenderLedger* l):
    cdef int i
    cdef int64_t answered = count_get(&l.answered)
    dropped = ledger_reasons(l.dropped)
    unanswered = ledger_reasons(l.unanswered)
    cdef int64_t sent = count_get(&l.sent)
    cdef int64_t taken = count_get(&l.taken)
    return {
        "taken": taken, "sent": sent, "answered": answered, "dropped": dropped, "unanswered": unanswered,
        "under_way": max(0, sent - answered - sum(unanswered.values())), "waiting": max(0, taken - sent - sum(dropped.values())),
        "status": {i: count_get(&l.status[i]) for i in range(1000) if count_get(&l.status[i])},
        "status_change": {f"{l.pairs[i].key // 1000}>{l.pairs[i].key % 1000}": count_get(&l.pairs[i].count)
                          for i in range(LEDGER_PAIRS) if atomic_get(&l.pairs[i].key)},
        "status_captured": {i: count_get(&l.captured[i]) for i in range(1, 1000) if count_get(&l.captured[i])},
        "status_known": count_get(&l.status_known), "status_same": count_get(&l.status_same),
        "status_change_other": count_get(&l.status_change_other),
        "connections_opened": count_get(&l.connections_opened), "connections_open": count_get(&l.connections_open),
        "connect_failed": count_get(&l.connect_failed), "never_connected": bool(count_get(&l.never_connected)),
        "bytes_sent": count_get(&l.bytes_sent), "bytes_received": count_get(&l.bytes_received),
        "retried": count_get(&l.retried), "surplus": count_get(&l.surplus), "interim": count_get(&l.interim), "retry_after_s": count_get(&l.retry_after_s),
        "limits": {name: n for name, n in (("descriptors", count_get(&l.limit_descriptors)),
                                           ("local_ports", count_get(&l.limit_local_ports)),
                                           ("memory", count_get(&l.limit_memory))) if n},
        "errno": count_get(&l.last_errno), "position_ns": count_get(&l.position_ns),
        "outcomes_lost": count_get(&l.outcomes_lost),
        "start_ns": count_get(&l.start_ns), "first_sent_ns": count_get(&l.first_sent_ns), "last_sent_ns": count_get(&l.last_sent_ns),
    }


cdef dict ledger_histograms(SenderLedger* l):
    return {"lag_us": histogram_bytes(&l.lag), "latency_us": histogram_bytes(&l.latency),
            "service_us": histogram_bytes(&l.service), "production_us": histogram_bytes(&l.production)}
