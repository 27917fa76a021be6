# The sender's driver on io_uring: one receive that stays armed a connection, the writes of many connections in one system call.
# Must not know: HTTP.
#
# Writes are tried once, when they are submitted; their results are there when uring_submit() returns. Only then does the state machine go on, so that
# what was prepared (descriptors, bytes) stays as it is until then. A connection that closes has its armed requests cancelled: they hold the socket.

cdef extern from "fastpath/uring.h" nogil:
    enum:
        URING_CQE_BUFFER
        URING_CQE_MORE
        URING_SQES
    ctypedef struct Uring:
        int fd
        uint32_t prepared
    ctypedef struct UringCqe:
        uint64_t key
        int32_t res
        uint32_t flags
    int uring_open(Uring* u)
    void uring_close(Uring* u)
    void uring_submit(Uring* u)
    int uring_wait(Uring* u, uint32_t want, int64_t patience_ns, int64_t timeout_ns)
    int uring_next(Uring* u, UringCqe* into)
    void uring_give_back(Uring* u, uint32_t number)
    uint8_t* uring_bytes(const Uring* u, const UringCqe* cqe)
    void uring_recv(Uring* u, int fd, uint64_t key)
    void uring_send(Uring* u, int fd, const void* data, uint32_t n, uint64_t key)
    void uring_sendmsg(Uring* u, int fd, const msghdr* message, uint64_t key)
    void uring_poll(Uring* u, int fd, uint32_t events, int many, uint64_t key)
    void uring_cancel(Uring* u, uint64_t key, uint64_t own)
    void uring_withdraw(Uring* u, uint64_t key, uint64_t mask, uint64_t own)

cdef enum:
    URING_PARTS = 8192            # iovecs of one submit, about; + SENDER_PIPELINE of the last message
    KEY_RECV = 0                  # what was asked for: bits 24 … of a key; below it the connection, above its generation
    KEY_SEND = 1 << 24
    KEY_OUT = 2 << 24
    KEY_CANCEL = 3 << 24
    KEY_WHAT = 3 << 24
    KEY_INDEX = (1 << 24) - 1

cdef struct UringDriver:
    Uring ring
    int32_t writes                # prepared
    int32_t messages_count
    int32_t parts_count
    msghdr messages[URING_SQES]
    iovec parts[URING_PARTS + SENDER_PIPELINE]


cdef inline uint64_t uring_key(SenderState* s, SenderConnection* c, uint32_t what) noexcept nogil:
    return (<uint64_t>c.generation << 32) | what | <uint64_t>(c - s.connections)


cdef int uring_driver_open(SenderState* s) noexcept nogil:
    """By the thread that will use it. OK, or an errno below zero: not allowed here, or the kernel is too old (6.1 is needed)."""
    cdef int got
    s.uring = <UringDriver*>calloc(1, sizeof(UringDriver))
    if s.uring == NULL:
        return -errno.ENOMEM
    got = uring_open(&s.uring.ring)
    if got < 0:
        free(s.uring)
        s.uring = NULL
        return got
    uring_poll(&s.uring.ring, s.queue_fd, POLLIN, True, KEY_QUEUE)
    uring_poll(&s.uring.ring, s.stop_fd, POLLIN, False, KEY_STOP)
    return OK


cdef void uring_driver_close(SenderState* s) noexcept nogil:
    """After all connections were shut."""
    if s.uring == NULL:
        return
    uring_submit(&s.uring.ring)
    uring_wait(&s.uring.ring, 1, 0, 0)       # lets what was cancelled go
    uring_close(&s.uring.ring)
    free(s.uring)
    s.uring = NULL


cdef void uring_driver_add(SenderState* s, SenderConnection* c) noexcept nogil:
    """A connect is under way."""
    c.polls = 1
    uring_poll(&s.uring.ring, c.fd, POLLOUT, False, uring_key(s, c, KEY_OUT))


cdef void uring_driver_connected(SenderState* s, SenderConnection* c) noexcept nogil:
    c.armed = 1
    uring_recv(&s.uring.ring, c.fd, uring_key(s, c, KEY_RECV))


cdef void uring_driver_drop(SenderState* s, SenderConnection* c) noexcept nogil:
    """Before its descriptor is closed."""
    if s.uring.ring.prepared:
        uring_withdraw(&s.uring.ring, uring_key(s, c, KEY_RECV), ~<uint64_t>KEY_WHAT, KEY_CANCEL)
    if c.armed:
        uring_cancel(&s.uring.ring, uring_key(s, c, KEY_RECV), KEY_CANCEL)
    if c.polls:
        uring_cancel(&s.uring.ring, uring_key(s, c, KEY_OUT), KEY_CANCEL)
    c.armed = c.polls = c.sending = c.blocked = 0


cdef void uring_driver_got(SenderState* s, SenderConnection* c, const UringCqe* cqe, int64_t now) noexcept nogil:
    """A completion of the armed receive."""
    cdef bint ended = False
    if not cqe.flags & URING_CQE_MORE:
        c.armed = 0
    if cqe.res > 0:
        count_add(&s.ledger.bytes_received, cqe.res)
        ended = sender_bytes(s, c, uring_bytes(&s.uring.ring, cqe), <size_t>cqe.res, now)
    elif cqe.res == 0:
        sender_eof(s, c, now)
        ended = True
    elif cqe.res != -errno.ENOBUFS and cqe.res != -errno.EINTR and cqe.res != -errno.EAGAIN:
        sender_fault(s, c, -cqe.res, now)
        ended = True
    if not ended and not c.armed:
        uring_driver_connected(s, c)         # no buffer was free, or its turn was over


cdef void uring_driver_event(SenderState* s, const UringCqe* cqe, int64_t now) noexcept nogil:
    cdef uint32_t low = <uint32_t>cqe.key
    cdef SenderConnection* c
    cdef uint64_t seen
    if low == <uint32_t>KEY_QUEUE:
        read(s.queue_fd, &seen, 8)
        if not cqe.flags & URING_CQE_MORE:
            uring_poll(&s.uring.ring, s.queue_fd, POLLIN, True, KEY_QUEUE)
        return
    if low == <uint32_t>KEY_STOP or low & KEY_WHAT == KEY_CANCEL:
        return                               # the flag is looked at in each turn; what was to be cancelled had ended
    c = &s.connections[low & KEY_INDEX]
    if c.generation == <uint32_t>(cqe.key >> 32) and c.state != CONNECTION_FREE:
        if low & KEY_WHAT == KEY_RECV:
            uring_driver_got(s, c, cqe, now)
        elif low & KEY_WHAT == KEY_SEND:
            c.sending = 0
            sender_written(s, c, cqe.res, now)
            if (cqe.res == -errno.EAGAIN or (cqe.res >= 0 and <uint64_t>cqe.res < c.offered)) and not c.polls:
                c.blocked = c.polls = 1
                uring_poll(&s.uring.ring, c.fd, POLLOUT, False, uring_key(s, c, KEY_OUT))
            elif c.cursor != NULL:
                sender_dirty(s, c)
        else:
            c.polls = c.blocked = 0
            if c.state == CONNECTION_CONNECTING:
                sender_connected(s, c, cqe.res < 0 or cqe.res & (POLLERR | POLLHUP), now)
            elif c.cursor != NULL:
                sender_dirty(s, c)
    if cqe.flags & URING_CQE_BUFFER:
        uring_give_back(&s.uring.ring, cqe.flags >> 16)


cdef int64_t uring_driver_wait(SenderState* s, int64_t sleep_ns, uint32_t want, int64_t patience_ns) noexcept nogil:
    """Waits and hands on what happened. want > 1: so many events are hoped for, and worth so much patience. Returns the time at which it was looked."""
    cdef UringCqe cqe
    cdef int64_t now
    if s.uring.ring.prepared:                # by what the last writes brought
        uring_submit(&s.uring.ring)
    uring_wait(&s.uring.ring, want, patience_ns, sleep_ns)
    now = now_ns()
    s.seen_ns = now
    while uring_next(&s.uring.ring, &cqe):
        uring_driver_event(s, &cqe, now)
    return now


cdef void uring_driver_flush(SenderState* s, SenderConnection* c, int64_t now) noexcept nogil:
    """Prepares what this connection has to write."""
    cdef UringDriver* u = s.uring
    cdef iovec* parts
    cdef msghdr* message
    cdef int count
    if c.state != CONNECTION_OPEN or c.cursor == NULL or c.broken or c.sending or c.blocked:
        return
    if u.messages_count == URING_SQES or u.parts_count >= URING_PARTS:
        uring_submit(&u.ring)                # their results are looked at later
        u.messages_count = u.parts_count = 0
    parts = u.parts + u.parts_count
    count = sender_gather(s, c, parts, &c.offered)
    if count == 0 or not sender_may_write(s, c, c.offered, now):
        return
    c.sending = 1
    u.writes += 1
    if count == 1:
        uring_send(&u.ring, c.fd, parts[0].iov_base, <uint32_t>parts[0].iov_len, uring_key(s, c, KEY_SEND))
        return
    message = &u.messages[u.messages_count]
    u.messages_count += 1
    u.parts_count += count
    memset(message, 0, sizeof(msghdr))
    message.msg_iov = parts
    message.msg_iovlen = <size_t>count
    uring_sendmsg(&u.ring, c.fd, message, uring_key(s, c, KEY_SEND))


cdef void uring_driver_submit(SenderState* s) noexcept nogil:
    """Everything that was prepared goes to the kernel. Of many writes each is timed by its place between the beginning and the end of the call."""
    cdef UringDriver* u = s.uring
    cdef UringCqe cqe
    cdef int64_t began
    cdef int64_t took
    cdef int32_t place = 0
    cdef int32_t writes = u.writes
    if u.ring.prepared == 0 and writes == 0:
        return
    began = now_ns()
    uring_submit(&u.ring)
    u.messages_count = u.parts_count = u.writes = 0
    if writes == 0:
        return                               # what else there is can wait for the next look
    took = now_ns() - began
    while uring_next(&u.ring, &cqe):
        uring_driver_event(s, &cqe, began + took * place // writes)
        if <uint32_t>cqe.key & KEY_WHAT == KEY_SEND and place < writes - 1:
            place += 1                       # the time is that before the write, as with epoll
