# The end of a request: the one place where it is counted (`sender_finish`), what the judge is told of it, and its record. Must not know: sockets, why it ends.


cdef void sender_note(SenderState* s, SenderItem* item, int32_t address, int outcome, int reason, int status, int64_t now) noexcept nogil:
    """Hands a record of the request to whoever reads the outcomes."""
    cdef SenderNote* note = item.note
    item.note = NULL
    if note == NULL and item.batch != NULL and ring_count(s.outcomes) < s.outcomes_slots:
        note = note_make(item.row, s.outcomes_head)
    if note == NULL:
        count_add(&s.ledger.outcomes_lost, 1)
        return
    note.due_ns = item.due_ns
    note.end_ns = now
    note.base_ns = s.base_ns
    note.outcome = <uint8_t>outcome
    note.reason = <uint8_t>reason
    note.status = status
    note.address = address
    if item.flags & ITEM_SENT:
        note.sent_ns = item.sent_ns
        note.first_byte_ns = item.first_byte_ns
    if address >= 0 and outcome == OUTCOME_ANSWERED:
        note.received = item.reply_bytes
        note.body_len = item.reply_body
    if not ring_push(s.outcomes, note):
        free(note)
        count_add(&s.ledger.outcomes_lost, 1)


cdef inline void sender_mark(SenderState* s, const SenderItem* item, int outcome, int status, int64_t now) noexcept nogil:
    """Tells the judge of the request."""
    cdef Mark* mark = marks_next(s.marks)
    if mark == NULL:
        return
    mark.due_ns = item.due_ns
    mark.sent_ns = item.sent_ns if item.flags & ITEM_SENT else 0
    mark.first_byte_ns = item.first_byte_ns if item.flags & ITEM_SENT else 0
    mark.end_ns = now
    mark.response_ns = item.response_ns
    mark.endpoint = item.endpoint
    mark.captured = item.status
    mark.status = <uint16_t>status
    mark.outcome = <uint8_t>outcome


cdef void sender_mark_row(SenderState* s, const Request* row, int64_t due_ns, int64_t now) noexcept nogil:
    """Tells the judge of a row that never became an item."""
    cdef Mark* mark = marks_next(s.marks)
    if mark == NULL:
        return
    mark.due_ns = due_ns
    mark.sent_ns = mark.first_byte_ns = 0
    mark.end_ns = now
    mark.response_ns = row.response_ns
    mark.endpoint = endpoint_of(&s.marks.endpoints, row)
    mark.captured = row.status
    mark.status = 0
    mark.outcome = OUTCOME_DROPPED


cdef void sender_finish(SenderState* s, SenderItem* item, int32_t address, int reason, int status, int64_t now) noexcept nogil:
    """The one place where a request ends. reason 0: answered with `status`; else unanswered when a byte of it was sent, dropped when none was."""
    cdef SenderLedger* l = s.ledger
    cdef SenderFlow* flow = item.flow
    cdef int outcome
    if reason == REASON_NONE:
        outcome = OUTCOME_ANSWERED
        count_add(&l.answered, 1)
        ledger_status(l, item.status, status)
        histogram_record(&l.latency, now - item.due_ns, 1)
        histogram_record(&l.service, now - item.sent_ns, 1)
        s.service_ns += (now - item.sent_ns - s.service_ns) // 64
    elif item.flags & ITEM_SENT:
        outcome = OUTCOME_UNANSWERED
        count_add(&l.unanswered[reason], 1)
    else:
        outcome = OUTCOME_DROPPED
        count_add(&l.dropped[reason], 1)
    if s.marks != NULL:
        sender_mark(s, item, outcome, status, now)
        if s.outcomes != NULL:
            sender_note(s, item, address, outcome, reason, status, now)
    if item.batch != NULL:
        batch_release(item.batch)
    if item.copy != NULL:
        free(item.copy)
    if not item.flags & ITEM_WAY:
        s.unsent -= 1
    s.out -= 1
    if flow != NULL:
        flow.count -= 1
        if flow.count == 0:
            sender_forget(s, flow)
    item.next = s.free_items
    s.free_items = item
