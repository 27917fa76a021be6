# The sender's driver on epoll: edge-triggered, one registration a connection. It says what the kernel said and writes what it is given.
# Must not know: HTTP.


cdef int epoll_driver_open(SenderState* s) noexcept nogil:
    """OK, or an errno below zero."""
    cdef epoll_event event
    s.epfd = epoll_create1(EPOLL_CLOEXEC)
    if s.epfd < 0:
        return -errno.errno
    event.events = EPOLLIN
    event.data.u64 = KEY_QUEUE
    if epoll_ctl(s.epfd, EPOLL_CTL_ADD, s.queue_fd, &event) < 0:
        return -errno.errno
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = KEY_STOP
    if epoll_ctl(s.epfd, EPOLL_CTL_ADD, s.stop_fd, &event) < 0:
        return -errno.errno
    return OK


cdef int epoll_driver_add(SenderState* s, int32_t index, uint32_t generation, int fd) noexcept nogil:
    """Watches a new connection from now on. 0, or an errno below zero."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = (<uint64_t>generation << 32) | <uint64_t>index
    return -errno.errno if epoll_ctl(s.epfd, EPOLL_CTL_ADD, fd, &event) < 0 else 0


cdef void epoll_driver_event(SenderState* s, uint32_t events, uint64_t key, int64_t now) noexcept nogil:
    cdef SenderConnection* c
    cdef uint64_t seen
    cdef uint32_t index = <uint32_t>key
    if index == <uint32_t>KEY_QUEUE:
        read(s.queue_fd, &seen, 8)
        return
    if index == <uint32_t>KEY_STOP:
        return                               # the flag is looked at in each turn
    c = &s.connections[index]
    if c.generation != <uint32_t>(key >> 32) or c.state == CONNECTION_FREE:
        return                               # closed in this turn
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        c.hangup = 1
    if c.state == CONNECTION_CONNECTING:
        if not events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            return
        sender_connected(s, c, (events & (EPOLLERR | EPOLLHUP)) != 0, now)
        if c.state == CONNECTION_OPEN and events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
            sender_again(s, c)
        return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
        sender_read(s, c, now)
    if c.state == CONNECTION_OPEN and events & EPOLLOUT and c.cursor != NULL:
        sender_dirty(s, c)


cdef int64_t epoll_driver_wait(SenderState* s, int64_t sleep_ns, uint32_t want, int64_t patience_ns) noexcept nogil:
    """Waits and hands on what happened. want > 1: so many events are hoped for, and worth so much patience. Returns the time at which it was looked."""
    cdef int64_t now
    cdef int i
    cdef int n
    if want > 1 and sleep_ns != 0:
        wait_a_moment(patience_ns)           # epoll cannot wait for several
        if sleep_ns > 0:
            sleep_ns = sleep_ns - patience_ns if sleep_ns > patience_ns else 0
    n = wait_events(s.epfd, s.events, s.events_most, sleep_ns)
    now = now_ns()
    if n < s.events_most:
        s.seen_ns = now
    for i in range(n):
        epoll_driver_event(s, s.events[i].events, s.events[i].data.u64, now)
    return now


cdef void epoll_driver_flush(SenderState* s, SenderConnection* c) noexcept nogil:
    cdef iovec parts[SENDER_PIPELINE]
    cdef msghdr message
    cdef uint64_t total
    cdef int64_t now
    cdef ssize_t n
    cdef int count
    while c.state == CONNECTION_OPEN and c.cursor != NULL and not c.broken:
        count = sender_gather(s, c, parts, &total)
        if count == 0:
            return
        now = now_ns()
        if not sender_may_write(s, c, total, now):
            return
        if count == 1:
            n = send(c.fd, parts[0].iov_base, parts[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
        else:
            memset(&message, 0, sizeof(msghdr))
            message.msg_iov = parts
            message.msg_iovlen = <size_t>count
            n = sendmsg(c.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0 and errno.errno == errno.EINTR:
            continue
        sender_written(s, c, n if n >= 0 else -errno.errno, now)
        if n < <ssize_t>total:
            return                           # the kernel is full: EPOLLOUT comes
