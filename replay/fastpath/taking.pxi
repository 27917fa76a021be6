# Taking up what is due: from rows of a batch to items of flows, or why not. Must not know: connections beyond that of the flow.

cdef enum:
    SENDER_TAKE = 256             # rows taken up in one turn, so that replies are read in between
    GATE_PASSES = 255             # the part of a gate that says how many
    TAKE_AHEAD = 8                # rows that are asked for before they are looked at; half of that ahead their first bytes


cdef void sender_drop_row(SenderState* s, Request* row, int64_t due_ns, int reason, int64_t now) noexcept nogil:
    """A row that never becomes an item."""
    cdef SenderNote* note
    count_add(&s.ledger.dropped[reason], 1)
    if s.marks != NULL:
        sender_mark_row(s, row, due_ns, now)
    if s.outcomes == NULL:
        return
    while s.outcomes_wait and ring_count(s.outcomes) >= s.outcomes_slots and not atomic_get(s.stop_flag):
        poll(NULL, 0, 1)          # a dry run has no shadow to be late for: its records wait for their reader
    if ring_count(s.outcomes) >= s.outcomes_slots:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note = note_make(row, s.outcomes_head)
    if note == NULL:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note.due_ns = due_ns
    note.end_ns = now
    note.base_ns = s.base_ns
    note.outcome = OUTCOME_DROPPED
    note.reason = <uint8_t>reason
    note.address = -1
    ring_push(s.outcomes, note)


cdef bint sender_is_own(SenderState* s, const Request* row) noexcept nogil:
    """This request was captured on its way to the target itself."""
    cdef int32_t i
    for i in range(s.addresses_count):
        if s.addresses[i].port == row.server_port and memcmp(s.addresses[i].ip, row.server, 16) == 0:
            return True
    return False


cdef int sender_refuses(SenderState* s, int64_t due_ns, int64_t now) noexcept nogil:
    """Live: why this request is not sent, or REASON_NONE."""
    cdef int64_t gate = atomic_get(&s.gate)
    if gate > 0 and gate != s.gate_seen:
        s.gate_seen = gate
        s.gate_left = gate & GATE_PASSES
    if gate == 0 or (gate > 0 and s.gate_left == 0):
        return REASON_BREAKER
    if s.expire_ns and now - due_ns > s.expire_ns:
        return REASON_EXPIRED
    if s.rate_most > 0:
        s.rate_left += <double>(now - s.rate_ns) * s.rate_most / 1e9
        s.rate_ns = now
        if s.rate_left > s.rate_most / 10 + 1:
            s.rate_left = s.rate_most / 10 + 1       # a burst of 100 ms
        if s.rate_left < 1:
            return REASON_RATE
        s.rate_left -= 1
    if gate > 0:
        s.gate_left -= 1
    return REASON_NONE


cdef void sender_accept(SenderState* s, Batch* batch, Request* row, int64_t due_ns, int64_t now) noexcept nogil:
    """One request is due."""
    cdef SenderFlow* flow
    cdef SenderItem* item
    cdef SenderConnection* c
    cdef int refused
    count_add(&s.ledger.taken, 1)
    count_add(&s.ledger.position_ns, row.offset_ns + batch.shift_ns - s.ledger.position_ns)
    if row.response_ns >= 0:
        histogram_record(&s.ledger.production, row.response_ns, 1)
    if s.halt:
        sender_drop_row(s, row, due_ns, s.halt, now)
        return
    if s.guard_hit != NULL and sender_is_own(s, row):
        sender_drop_row(s, row, due_ns, REASON_GUARD, now)
        return
    if s.dry or row.length == 0:
        sender_drop_row(s, row, due_ns, REASON_DRY_RUN if s.dry else REASON_EMPTY, now)
        return
    if s.pacer.kind == PACE_LIVE:
        refused = sender_refuses(s, due_ns, now)
        if refused != REASON_NONE:
            sender_drop_row(s, row, due_ns, refused, now)
            return
    flow = NULL
    if s.free_items != NULL or sender_slab(s, True) == OK:
        flow = sender_flow(s, row.flow)
    if flow == NULL:
        sender_drop_row(s, row, due_ns, REASON_MEMORY, now)
        return
    item = s.free_items
    s.free_items = item.next
    zero_struct(item, sizeof(SenderItem))
    item.flow = flow
    item.batch = batch
    batch_keep(batch, 1)
    item.row = row
    item.data = row.data
    item.length = row.length
    item.due_ns = due_ns
    item.status = row.status
    item.response_ns = row.response_ns
    if s.marks != NULL:
        item.endpoint = endpoint_of(&s.marks.endpoints, row)
    if row.flags & REQUEST_HEAD:
        item.flags |= ITEM_HEAD
    if row.flags & REQUEST_HTTP10:
        item.flags |= ITEM_HTTP10
    s.out += 1
    s.unsent += 1
    flow.count += 1
    if flow.connection >= 0 and s.bunch and (flow.first != NULL or s.connections[flow.connection].load >= 2 * s.pipeline):
        if flow.first == NULL:               # no room there: it waits until the flow has nothing on that connection, and then goes anywhere
            flow.first = item
        else:
            flow.last.next = item
        flow.last = item
    elif flow.connection >= 0:               # its requests are on a connection: this one follows them there
        c = &s.connections[flow.connection]
        flow.on += 1
        c.last.next = item                   # never empty: the flow would have been forgotten
        c.last = item
        if c.cursor == NULL:
            c.cursor = item
        c.load += 1
        sender_place(s, c)
        sender_dirty(s, c)
    elif flow.count == 1:
        flow.first = flow.last = item
        sender_wait(s, flow)
    else:
        flow.last.next = item
        flow.last = item


cdef void sender_whole_batch(SenderState* s, int reason, int64_t now) noexcept nogil:
    """All that is left of the batch is dropped, without looking at each row more than is counted of it."""
    cdef Batch* batch = s.batch
    cdef SenderLedger* l = s.ledger
    cdef int64_t count = <int64_t>(batch.count - s.at)
    cdef uint32_t i
    if s.guard_hit != NULL or s.marks != NULL:
        for i in range(s.at, batch.count):
            if s.guard_hit != NULL and reason == REASON_DRY_RUN and sender_is_own(s, &batch.rows[i]):
                sender_drop_row(s, &batch.rows[i], now, REASON_GUARD, now)
            else:
                sender_drop_row(s, &batch.rows[i], now, reason, now)
    else:
        count_add(&l.dropped[reason], count)
    for i in range(s.at, batch.count):
        if batch.rows[i].response_ns >= 0:
            histogram_record(&l.production, batch.rows[i].response_ns, 1)
    count_add(&l.taken, count)
    if count > 0:
        count_add(&l.position_ns, batch.rows[batch.count - 1].offset_ns + batch.shift_ns - l.position_ns)
    s.batch = NULL
    batch_release(batch)


cdef bint sender_take(SenderState* s, int64_t now) noexcept nogil:
    """Takes up what is due. True: there is more that could be taken up now.

    One batch is looked into; the rest stay in the ring, so that what is far in the future holds no memory here but that."""
    cdef int64_t budget = s.window if s.bunch else SENDER_TAKE     # in bunches: all there is room for, or each write has little
    cdef Request* row
    cdef int64_t due
    cdef Batch* batch
    while budget > 0:
        if s.batch == NULL:
            s.batch = <Batch*>ring_pop(s.ring)
            if s.batch == NULL:
                return False
            s.at = 0
            if not s.pacer.started:
                s.pacer.started = True
                s.pacer.start_ns = now if s.start == NULL else atomic_first(&s.start.first_ns, now)
                atomic_set(&s.ledger.start_ns, s.pacer.start_ns + s.base_ns)
        batch = s.batch
        if s.halt or (s.dry and s.pacer.kind == PACE_ASAP):
            sender_whole_batch(s, s.halt if s.halt else REASON_DRY_RUN, now)
            budget -= 16
            continue
        while s.at < batch.count:
            row = &batch.rows[s.at]
            if s.pacer.kind == PACE_ASAP or s.pacer.kind == PACE_LIVE:
                if s.out >= s.window or s.unsent >= s.ahead:
                    return False
                due = now
                if s.pacer.kind == PACE_LIVE and row.ts_ns - s.base_ns < now:
                    due = row.ts_ns - s.base_ns
            else:
                due = pacing_due(&s.pacer, row.offset_ns + batch.shift_ns, row.nth + batch.shift_nth)
                if due > now or now < s.hold_ns:
                    s.next_due_ns = due if due > s.hold_ns else s.hold_ns
                    return False
            if budget == 0:
                return True
            if s.at + TAKE_AHEAD < batch.count:
                prefetch(&batch.rows[s.at + TAKE_AHEAD])
                prefetch(batch.rows[s.at + TAKE_AHEAD // 2].data)
                prefetch(&s.flows[sender_hash(batch.rows[s.at + TAKE_AHEAD // 2].flow) & s.flows_mask])
                prefetch(s.flows[sender_hash(batch.rows[s.at + TAKE_AHEAD // 4].flow) & s.flows_mask])
            budget -= 1
            s.at += 1
            sender_accept(s, batch, row, due, now)
        s.batch = NULL
        batch_release(batch)
    return True
