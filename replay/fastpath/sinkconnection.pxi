# When to look at a connection of the sink again, what epoll is told of it, its end.


cdef void heap_put(SinkServer* s, SinkConnection* c, int32_t at) noexcept nogil:
    """Puts c where it belongs, beginning at the free place `at`."""
    cdef SinkConnection* other
    cdef int32_t to
    while at > 0:
        to = (at - 1) // 2
        other = s.heap[to]
        if other.wake_ns <= c.wake_ns:
            break
        s.heap[at] = other
        other.heap_at = at
        at = to
    while True:
        to = 2 * at + 1
        if to >= s.heap_count:
            break
        if to + 1 < s.heap_count and s.heap[to + 1].wake_ns < s.heap[to].wake_ns:
            to += 1
        other = s.heap[to]
        if other.wake_ns >= c.wake_ns:
            break
        s.heap[at] = other
        other.heap_at = at
        at = to
    s.heap[at] = c
    c.heap_at = at


cdef void sink_wake_at(SinkServer* s, SinkConnection* c, int64_t when) noexcept nogil:
    """Looks at c again then; 0: never."""
    cdef SinkConnection* last
    cdef int32_t at = c.heap_at
    if when:
        c.wake_ns = when
        if at < 0:
            at = s.heap_count             # there is room: accept() made it
            s.heap_count += 1
        heap_put(s, c, at)
    elif at >= 0:
        c.heap_at = -1
        s.heap_count -= 1
        last = s.heap[s.heap_count]
        if last != c:
            heap_put(s, last, at)


cdef void sink_forget(SinkConnection* c) noexcept nogil:
    """Frees what belongs to the request at hand."""
    if c.sha != NULL:
        sink_digest_end(&c.sha, NULL)
    free(c.note)
    c.note = NULL
    free(c.held)
    c.held = NULL
    c.held_len = c.held_size = 0


cdef void sink_listen(SinkServer* s, bint wanted) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN if wanted else 0
    event.data.u64 = SINK_KEY_LISTENER
    epoll_ctl(s.epfd, EPOLL_CTL_MOD, s.listener, &event)
    s.accept_ns = 0 if wanted else s.now_ns + SINK_PAUSE_NS


cdef void sink_drop(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Closes the connection and frees it."""
    epoll_ctl(s.epfd, EPOLL_CTL_DEL, c.fd, NULL)      # close() is not enough while a child that was just forked has the descriptor too
    close(c.fd)
    sink_wake_at(s, c, 0)
    sink_forget(c)
    free(c.runs)
    if c.prev != NULL:
        c.prev.next = c.next
    else:
        s.first = c.next
    if c.next != NULL:
        c.next.prev = c.prev
    free(c)
    s.open -= 1
    if s.accept_ns:
        sink_listen(s, True)


cdef void sink_interest(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Tells epoll what this connection waits for."""
    cdef epoll_event event
    event.events = 0
    if c.state == SINK_STALLS:
        event.events = EPOLLRDHUP
    elif not c.eof and c.run_count < SINK_RUNS:
        event.events = EPOLLIN
    if c.blocked:
        event.events |= EPOLLOUT
    if event.events != c.events:
        c.events = event.events
        event.data.u64 = <uint64_t>c
        epoll_ctl(s.epfd, EPOLL_CTL_MOD, c.fd, &event)
