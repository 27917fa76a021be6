# Requests leave ingest here: ordered by time, judged, put into batches (docs/design.md S1, W1, W2).
# Must not know: packets, framing, sockets.

cdef int64_t INT64_MOST = 0x7FFFFFFFFFFFFFFF

cdef enum:
    WINDOW_REQUESTS = 4096
    WINDOW_BYTES = 8 * 1024 * 1024

cdef int64_t WINDOW_REPLY_NS = 30000000000   # a request waits no longer for its reply, in capture time
cdef int64_t WINDOW_HEAD_NS = 1000000000     # nor for an older head that is not whole yet


cdef void window_add(Engine* g, Message* m) noexcept nogil:
    """Into its place by time; those with equal times in the order in which their heads ended."""
    cdef Message* before = g.window_last
    g.orders += 1
    m.order = g.orders
    while before != NULL and before.order_ns > m.order_ns:
        before = before.prev
    m.prev = before
    if before != NULL:
        m.after = before.after
        before.after = m
    else:
        m.after = g.window_first
        g.window_first = m
    if m.after != NULL:
        m.after.prev = m
    else:
        g.window_last = m
    m.in_window = 1
    g.window_count += 1
    g.window_bytes += m.len


cdef void window_remove(Engine* g, Message* m) noexcept nogil:
    if m.prev != NULL:
        m.prev.after = m.after
    else:
        g.window_first = m.after
    if m.after != NULL:
        m.after.prev = m.prev
    else:
        g.window_last = m.prev
    m.prev = m.after = NULL
    m.in_window = 0
    g.window_count -= 1
    g.window_bytes -= m.len


cdef inline bint window_moves(const Engine* g) noexcept nogil:
    """Window_release may have something to do: the oldest is settled, or there is too much of it, or too old."""
    cdef const Message* m = g.window_first
    if m == NULL:
        return False
    return (m.whole & m.replied) | m.incomplete or g.window_count > WINDOW_REQUESTS or g.window_bytes > WINDOW_BYTES or g.packet_ns - m.order_ns > WINDOW_REPLY_NS


cdef void window_release(Engine* g, bint everything) noexcept nogil:
    """Lets go what is settled, oldest first; and, when the window is full, what is not."""
    cdef Message* m
    cdef bint full
    while g.window_first != NULL and not g.finished:
        m = g.window_first
        full = everything or g.window_count > WINDOW_REQUESTS or g.window_bytes > WINDOW_BYTES or g.packet_ns - m.order_ns > WINDOW_REPLY_NS
        if not full:
            if not ((m.whole and m.replied) or (m.incomplete and not m.is_current)):
                return
            if g.wait_first != NULL and g.wait_first.wait_since <= m.order_ns:
                return            # an older one may still come out of bytes that wait
            if g.head_first != NULL and g.head_first.head_ts <= m.order_ns and g.packet_ns - m.order_ns <= WINDOW_HEAD_NS:
                return
        if not m.whole and m.raw != NULL and message_own(g, m) < 0:
            continue
        window_remove(g, m)
        if m.whole or (m.incomplete and not m.is_current):
            window_emit(g, m)
            message_let_go(g, m)
        else:
            m.late = 1
            if g.wire and g.message_bytes > g.max_memory // 2:
                message_fails(g, m, INCOMPLETE_EVICTED)      # an upload that stalls must not keep the memory of those that do not


cdef void window_own(Engine* g) noexcept nogil:
    """The source moves on: what messages borrow becomes their own. Only those in the window borrow, and most of the window did so long ago: it is walked
    from its new end."""
    cdef Message* m = g.window_last
    cdef Message* before
    while m != NULL and m.order_ns >= g.borrow_ns:
        before = m.prev
        if m.raw != NULL:
            message_own(g, m)
        m = before
    g.borrow_ns = INT64_MOST


cdef void window_drop(Engine* g) noexcept nogil:
    """Puts away what waits, unsent."""
    cdef Message* m
    while g.window_first != NULL:
        m = g.window_first
        if not m.whole and m.raw != NULL and message_own(g, m) < 0:
            continue
        window_remove(g, m)
        if m.whole or (m.incomplete and not m.is_current):
            message_let_go(g, m)
        else:
            m.late = 1


cdef void window_emit_late(Engine* g, Message* m) noexcept nogil:
    """The window did not wait for it; now it is whole (or shown as it is)."""
    m.late = 0
    if not g.finished:
        window_emit(g, m)
    message_let_go(g, m)


cdef uint8_t message_withheld(Engine* g, Message* m) noexcept nogil:
    """S1: the first reason that applies."""
    if m.flags & REQUEST_CONNECT:
        return WITHHELD_CONNECT
    if m.head_flags & HEAD_UPGRADE and (m.upgraded or (m.status == 0 and not m.head_flags & HEAD_UPGRADE_H2C)):
        return WITHHELD_UPGRADE
    if m.given_withheld:
        return m.given_withheld
    if m.ambiguous or m.trust == TRUST_AMBIGUOUS:
        return WITHHELD_AMBIGUOUS
    if m.trust == TRUST_UNCONFIRMED and not g.rules.loose:
        return WITHHELD_UNCONFIRMED
    if m.host_state == HOST_NONE:
        return WITHHELD_NO_HOST
    if m.host_state == HOST_BAD:
        return WITHHELD_BAD_HOST
    if m.loops:
        return WITHHELD_LOOP
    return WITHHELD_NONE


cdef int64_t offset_of(Engine* g, int64_t ts) noexcept nogil:
    """Capture time since the first request found; a gap over --max-gap counts as --max-gap."""
    cdef int64_t gap
    if not g.has_first:
        g.has_first = 1
        atomic_set(&g.n.first_ns, ts)
        g.newest_ns = ts
        g.offset = g.offset_base
        return g.offset
    if ts <= g.newest_ns:
        # an older one that comes late is due at once; inside the window this is a matter of microseconds
        gap = g.newest_ns - ts
        return g.offset - gap if gap < g.offset - g.offset_base else g.offset_base
    gap = ts - g.newest_ns
    if gap < 0:                   # beyond 292 years
        gap = INT64_MOST
    if g.max_gap_ns > 0 and gap > g.max_gap_ns:
        count_add(&g.n.gaps_cut, 1)
        count_add(&g.n.gaps_cut_ns, gap - g.max_gap_ns if count_get(&g.n.gaps_cut_ns) < INT64_MOST // 2 else 0)
        gap = g.max_gap_ns
    if gap > INT64_MOST // 2 - g.offset:
        gap = 0               # three such jumps: time stands still rather than overflows
    g.newest_ns = ts
    g.offset += gap
    return g.offset


cdef void window_emit(Engine* g, Message* m) noexcept nogil:
    cdef uint8_t withheld = WITHHELD_NONE
    cdef int64_t offset
    cdef uint8_t key[40]
    cdef int64_t n
    if m.incomplete:
        if g.show_incomplete and not m.filtered and not m.elsewhere:
            batch_row(g, m, WITHHELD_NONE, 0, count_get(&g.n.found) + count_get(&g.n.elsewhere))
        return
    n = count_get(&g.n.found) + count_get(&g.n.elsewhere)      # the same number in every shard
    count_add(&g.n.elsewhere if m.elsewhere else &g.n.found, 1)
    offset = 0
    if m.filtered != FILTERED_TIME:       # what is outside of --since and --until is not waited for
        offset = offset_of(g, m.ts_ns)
    if n == 0 or m.ts_ns > g.n.last_ns:
        count_set(&g.n.last_ns, m.ts_ns)
    if m.elsewhere:
        return                    # it moved the clock of the capture on, as in a run that has it
    if m.route >= 0:
        count_add(&m.router.table.routes[m.route].matched, 1)
    if m.filtered:
        count_add(&g.n.filtered[m.filtered], 1)
        return
    withheld = message_withheld(g, m)
    if withheld != WITHHELD_NONE:
        count_add(&g.n.withheld[withheld], 1)
        if g.show:
            batch_row(g, m, withheld, offset, n)
        return
    if m.sampled != 1:
        count_add(&g.n.sampled_out if m.sampled == 0 else &g.n.lowered if m.sampled == 2 else &g.n.no_key, 1)
        return
    if m.router != NULL:
        message_limits(g, m)
        if not m.copies & ~m.dropped_copies:
            count_add(&g.n.limited, 1)
            return
        count_add(&m.router.table.fanout, copies_of(m.copies & ~m.dropped_copies) - 1)
        count_add(&g.n.fanout, copies_of(m.copies & ~m.dropped_copies) - 1)
    count_add(&g.n.selected, 1)
    if m.flags & REQUEST_WRITE:
        count_add(&g.n.writes, 1)
    memcpy(key, m.client, 16)
    memcpy(key + 16, &m.client_port, 2)
    memcpy(key + 18, m.server, 16)
    memcpy(key + 34, &m.server_port, 2)
    memcpy(key + 36, &m.seq, 4)
    count_add(&g.n.digest, <int64_t>(xxh64_40(key, <uint64_t>m.ts_ns) >> 1))
    if m.router != NULL:
        routes_rows(g, m, offset, n)
    else:
        batch_row(g, m, WITHHELD_NONE, offset, n)
    if g.limit and count_get(&g.n.selected) >= g.limit:
        g.finished = 1


cdef bint batch_may_grow(Engine* g) noexcept nogil:
    """Live: whoever takes batches is behind, so that nothing is gained by handing the open one over. It fills instead: what may wait is then bounded by its bytes, not by how often a batch was handed over."""
    cdef int i
    if not g.wire or g.batch == NULL or g.queue_count == 0:
        return False
    for i in range(g.queue_count):
        if not queue_is_behind(g.queues[i]):
            return False
    return True


cdef void batch_publish(Engine* g) noexcept nogil:
    """Hands the open batch to every queue. Offline it waits while one is full; live, the newest is dropped and counted."""
    cdef Batch* batch = g.batch
    cdef int i
    if g.router != NULL:
        routes_publish(g)
        return
    g.batch = NULL
    if batch == NULL:
        return
    if batch.count == 0 or g.queue_count == 0:
        batch_release(batch)
        return
    count_add(&g.n.copies, <int64_t>batch.count * g.queue_count)
    count_add(&g.n.fanout, <int64_t>batch.count * (g.queue_count - 1))
    g.published += 1
    if not g.wire:
        if g.kept != NULL:
            kept_add(g.kept, batch)
        # The first ones count each; else one wake-up serves many.
        count_add(&g.n.unqueued, batch_push(g.queues, g.queue_count, batch, g.published <= 10, g.stop))
        return
    batch_keep(batch, g.queue_count)
    for i in range(g.queue_count):
        if not queue_push(<void*>g.queues[i], batch):
            queue_refuse(<void*>g.queues[i], batch.count)
            batch_release(batch)
    batch_release(batch)
    queue_offers(<void*>g.queues[0])


cdef inline void row_fill(const Engine* g, const Message* m, Request* r, uint8_t withheld, int64_t offset, int64_t n) noexcept nogil:
    """All of a row but its bytes."""
    r.ts_ns = m.ts_ns
    r.offset_ns = offset
    r.response_ns = m.response_ns - m.ts_ns if m.response_ns >= m.ts_ns and m.status else -1
    r.n = <uint64_t>n
    r.nth = g.nth_base + count_get(&g.n.selected) - 1         # it has been counted
    r.flow = m.flow
    r.body_len = m.body_len
    r.index = m.index
    r.head_len = m.head_len
    r.seq = m.seq
    r.method_len = m.method_len
    r.target_at = m.target_at
    r.target_len = m.target_len
    r.host_at = m.host_at
    r.host_len = m.host_len
    r.authority_at = m.authority_at
    r.authority_len = m.authority_len
    r.flags = m.flags | (REQUEST_INCOMPLETE if m.incomplete else 0)
    r.status = m.status
    r.version = m.version
    r.framing = m.framing
    r.withheld = withheld
    r.incomplete = m.incomplete
    r.client_port = m.client_port
    r.server_port = m.server_port
    memcpy(r.client, m.client, 16)
    memcpy(r.server, m.server, 16)


cdef void row_lost(Engine* g) noexcept nogil:
    """Offline: a selected request gets into no batch. A pass over what is kept would lack it."""
    cdef int i
    if g.kept != NULL:
        kept_give_up(g.kept)
    count_add(&g.n.copies, g.queue_count)
    count_add(&g.n.fanout, g.queue_count - 1)
    count_add(&g.n.unqueued, g.queue_count)
    for i in range(g.queue_count):
        queue_refuse(<void*>g.queues[i], 1)


cdef void batch_row(Engine* g, Message* m, uint8_t withheld, int64_t offset, int64_t n) noexcept nogil:
    cdef bint digest = g.digests and not m.incomplete
    cdef uint64_t need = m.len + (32 if digest else 0)
    cdef uint32_t before = m.captured_host_len + m.captured_target_len if m.len else 0
    cdef Request* r
    cdef Batch* batch = g.batch
    cdef int i
    cdef const int64_t* now_or_never = &LIVE_ALWAYS
    if not g.collect:
        return
    if batch != NULL and (batch.size - batch.used < need or batch.count == batch.capacity):
        batch_publish(g)
        batch = NULL
    if batch == NULL:
        if batch_waits(g.pool, need):
            if g.kept != NULL:
                kept_give_up(g.kept)      # its memory is needed
            queues_nudge(g)
        batch = batch_take(g.pool, need, now_or_never if g.wire else g.stop)
        if batch == NULL:
            if g.wire:
                count_add(&g.n.copies, g.queue_count)
                count_add(&g.n.fanout, g.queue_count - 1)
                for i in range(g.queue_count):
                    queue_refuse(<void*>g.queues[i], 1)
            else:
                row_lost(g)
            return
        batch.loop = g.loop
        if g.wire:
            g.batch_since_ns = now_ns()
        g.batch = batch
    r = &batch.rows[batch.count]
    zero_struct(r, sizeof(Request))
    if m.len:
        message_write(g, m, batch.arena + batch.used)
        if message_lost(m):
            row_lost(g)           # those were zeros
            return
    else:                         # its bytes are gone (a limit on memory): nothing may point into them
        m.head_len = m.method_len = m.target_at = m.target_len = m.host_at = m.host_len = m.authority_at = m.authority_len = 0
    r.data = batch.arena + batch.used + before
    r.length = m.len - before
    if before:
        r.captured_host_len, r.captured_target_len = m.captured_host_len, m.captured_target_len
    batch.used += m.len
    if digest:
        memcpy(batch.arena + batch.used, m.digest, 32)
        r.digest = batch.arena + batch.used
        batch.used += 32
    row_fill(g, m, r, withheld, offset, n)
    batch.count += 1
    if g.published < 10 and batch.count >= <uint32_t>1 << g.published:
        batch_publish(g)          # the first requests do not wait for a batch to fill
