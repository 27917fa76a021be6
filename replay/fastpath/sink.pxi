# The shadow server of tests and demos: HTTP/1.x requests in, one prepared reply each, everything counted. One thread, epoll.
# Must not know: captures, the sender. It is strict: what two servers could read differently (docs/design.md H4) is a bad request here, so that a
# fault of whoever sends shows.
#
# Bytes are parsed where recv() put them; only the beginning of a head whose end has not come yet is copied. Replies are never copied: what a connection
# still has to send is a list of runs ("so many replies of that kind"), written out of a train, the same reply many times over.
#
# This is the loop and what Python sees; its structs are in sinkstate.pxi, requests in sinkread.pxi, replies in sinkwrite.pxi.


cdef void sink_event(SinkServer* s, SinkConnection* c, uint32_t events) noexcept nogil:
    if c.state == SINK_STALLS:
        if events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP):
            sink_drop(s, c)
        return
    if events & EPOLLOUT:
        c.blocked = 0
    if c.events & EPOLLIN and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        sink_read(s, c)
    elif events & (EPOLLERR | EPOLLHUP):
        sink_drop(s, c)
    else:
        sink_flush(s, c)


cdef bint sink_connection(SinkServer* s, int fd) noexcept nogil:
    """A connection was accepted. False without memory."""
    cdef SinkConnection** heap
    cdef SinkConnection* c
    cdef epoll_event event
    if s.open >= s.heap_size:
        heap = <SinkConnection**>realloc(s.heap, 2 * <size_t>s.heap_size * sizeof(SinkConnection*))
        if heap == NULL:
            return False
        s.heap = heap
        s.heap_size *= 2
    c = <SinkConnection*>calloc(1, sizeof(SinkConnection))
    if c == NULL:
        return False
    c.fd = fd
    c.heap_at = -1
    c.number = <uint64_t>s.connections
    if s.misbehave == MISBEHAVE_STALL:
        s.seen += 1
        if s.seen % s.every == 0:
            c.state = SINK_STALLS
    c.events = EPOLLRDHUP if c.state == SINK_STALLS else EPOLLIN
    event.events = c.events
    event.data.u64 = <uint64_t>c
    if epoll_ctl(s.epfd, EPOLL_CTL_ADD, fd, &event) < 0:
        free(c)
        return False
    count_add(&s.connections, 1)
    c.next = s.first
    if s.first != NULL:
        s.first.prev = c
    s.first = c
    s.open += 1
    return True


cdef void sink_accept(SinkServer* s) noexcept nogil:
    cdef int fd
    cdef int i
    for i in range(SINK_EVENTS):
        fd = accept4(s.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            if not sink_connection(s, fd):
                close(fd)
        elif errno.errno == errno.EMFILE or errno.errno == errno.ENFILE or errno.errno == errno.ENOBUFS or errno.errno == errno.ENOMEM:
            sink_listen(s, False)         # until a connection ends, or for a moment
            return
        elif errno.errno == errno.EAGAIN:
            return


cdef void sink_loop(SinkServer* s) noexcept nogil:
    cdef epoll_event events[SINK_EVENTS]
    cdef SinkConnection* c
    cdef int64_t until = 0
    cdef int64_t when
    cdef int i
    cdef int n
    s.now_ns = now_ns()
    while True:
        when = s.heap[0].wake_ns if s.heap_count else 0
        if s.accept_ns and (when == 0 or s.accept_ns < when):
            when = s.accept_ns
        if until and (when == 0 or when > s.now_ns + SINK_QUIET_NS):
            when = s.now_ns + SINK_QUIET_NS
        n = wait_events(s.epfd, events, SINK_EVENTS, -1 if when == 0 else when - s.now_ns if when > s.now_ns else 0)
        s.now_ns = now_ns()
        for i in range(n):
            if events[i].data.u64 == SINK_KEY_LISTENER:
                sink_accept(s)
            elif events[i].data.u64 != SINK_KEY_STOP:
                sink_event(s, <SinkConnection*>events[i].data.u64, events[i].events)
        while s.heap_count and s.heap[0].wake_ns <= s.now_ns:
            c = s.heap[0]
            if c.state == SINK_LINGERS:
                sink_drop(s, c)
            else:
                sink_flush(s, c)
        if s.accept_ns and s.accept_ns <= s.now_ns:
            sink_listen(s, True)
        if atomic_get(s.stop_flag):
            if until == 0:
                until = s.now_ns + SINK_DRAIN_NS
            elif s.now_ns >= until or (n <= 0 and (s.heap_count == 0 or s.heap[0].wake_ns > until)):
                return


cdef class Sink:
    """An HTTP/1.x server that answers everything alike and counts. `run` is a thread body; `counters` and `take` may be called from another thread.

    address: (16 bytes, port), IPv4 v4-mapped; port 0: any, see `port`. It listens from the constructor on. Raises OSError, ValueError.
    status, body (bytes), delay_ns (after the end of the request): of each reply.
    misbehave: "close" (reads the request, closes), "reset" (reads it, resets), "stall" (accepts, never reads), "never" (reads, answers this and what
    follows on the connection no more), "slow" (a byte each 100 ms); every: only each such request does, with "stall" each such connection.
    log: keeps a row of each request until it is taken; when too many wait, the sink waits."""
    cdef SinkServer s
    cdef Stop stop
    cdef list trains
    cdef bint started
    cdef bint lock_made
    cdef readonly int port

    def __cinit__(self, address, *, Stop stop not None, int status=200, int64_t body=0, int64_t delay_ns=0, str misbehave="", int64_t every=1,
                  bint log=False):
        cdef SinkServer* s = &self.s
        cdef SenderAddress at
        cdef sockaddr_in6 name
        cdef socklen_t size
        cdef epoll_event event
        cdef bytes packed
        cdef int one = 1
        memset(s, 0, sizeof(SinkServer))
        s.epfd = s.listener = -1
        packed = bytes(address[0])
        if len(packed) != 16 or not 0 <= address[1] <= 65535:
            raise ValueError("an address is (16 bytes, port); IPv4 is v4-mapped")
        if not 200 <= status <= 599:
            raise ValueError("status: 200 to 599")
        if not 0 <= body <= SINK_BODY:
            raise ValueError(f"body: 0 to {SINK_BODY} bytes")
        if not 0 <= delay_ns <= 86_400_000_000_000:
            raise ValueError("delay: 0 to a day")
        if misbehave not in SINK_MISBEHAVIOURS:
            raise ValueError(f"misbehave: {misbehave!r} is none of {', '.join(SINK_MISBEHAVIOURS[1:])}")
        if every < 1:
            raise ValueError("every: 1 or more")
        self.stop = stop
        s.stop_flag = &stop.flag
        s.status = <uint16_t>status
        s.delay_ns = delay_ns
        s.misbehave = <uint8_t>SINK_MISBEHAVIOURS.index(misbehave)
        s.every = <uint64_t>every
        s.log = log
        pthread_mutex_init(&s.lock, NULL)
        self.lock_made = True
        s.heap_size = 64
        s.heap = <SinkConnection**>malloc(64 * sizeof(SinkConnection*))
        s.buffer = <uint8_t*>malloc(SINK_BUFFER)
        if s.heap == NULL or s.buffer == NULL or names_init(&s.methods, SINK_METHODS) != OK or names_init(&s.hosts, SINK_HOSTS) != OK:
            raise MemoryError
        self.prepare(status, body)
        memset(&at, 0, sizeof(SenderAddress))
        memcpy(at.ip, <const uint8_t*>packed, 16)
        at.port = <uint16_t>address[1]
        size = sender_sockaddr(&at, &name)
        s.listener = socket(name.sin6_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if s.listener < 0:
            raise OSError(errno.errno, _os.strerror(errno.errno))
        setsockopt(s.listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(int))
        setsockopt(s.listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))     # what is accepted inherits it
        if bind(s.listener, <sockaddr*>&name, size) < 0 or listen(s.listener, SINK_BACKLOG) < 0 or getsockname(s.listener, <sockaddr*>&name, &size) < 0:
            raise OSError(errno.errno, _os.strerror(errno.errno))
        self.port = htons(name.sin6_port)         # at the same place in both families; htons is its own inverse
        s.epfd = epoll_create1(EPOLL_CLOEXEC)
        event.events = EPOLLIN
        event.data.u64 = SINK_KEY_LISTENER
        if s.epfd < 0 or epoll_ctl(s.epfd, EPOLL_CTL_ADD, s.listener, &event) < 0:
            raise OSError(errno.errno, _os.strerror(errno.errno))
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = SINK_KEY_STOP
        if epoll_ctl(s.epfd, EPOLL_CTL_ADD, stop.fd, &event) < 0:
            raise OSError(errno.errno, _os.strerror(errno.errno))

    cdef int prepare(self, int status, int64_t body) except -1:
        """Makes all replies."""
        import http                          # it takes a millisecond to load, and only a sink needs it
        cdef bytes train
        cdef int kind
        self.trains = []
        try:
            reason = http.HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
        bare = status in (204, 205, 304)
        for kind in range(KIND_REPLIES):
            if kind == KIND_CONTINUE:
                one = b"HTTP/1.1 100 Continue\r\n\r\n"
            elif kind == KIND_BAD or kind == KIND_TOO_LARGE:
                said = b"400 Bad Request" if kind == KIND_BAD else b"431 Request Header Fields Too Large"
                one = b"HTTP/1.1 " + said + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            else:
                one = f"HTTP/1.1 {status} {reason}\r\n".encode()
                if status not in (204, 304):
                    one += b"Content-Length: %d\r\n" % (0 if bare else body)
                if kind & KIND_CLOSING:
                    one += b"Connection: close\r\n"
                elif kind & KIND_KEPT:
                    one += b"Connection: keep-alive\r\n"
                one += b"\r\n"
                if not kind & KIND_HEAD and not bare:
                    one += b"x" * body
            train = one * max(1, SINK_TRAIN // len(one))
            self.trains.append(train)
            self.s.replies[kind].train = <const uint8_t*>train
            self.s.replies[kind].train_len = <uint64_t>len(train)
            self.s.replies[kind].length = <uint64_t>len(one)
        return 0

    def __dealloc__(self):
        cdef SinkServer* s = &self.s
        cdef SinkNote* note
        if not self.lock_made:
            return
        if s.epfd >= 0:
            close(s.epfd)
        if s.listener >= 0:
            close(s.listener)
        while s.log_first != NULL:
            note = s.log_first
            s.log_first = note.next
            free(note)
        free(s.methods.list)
        free(s.methods.slots)
        free(s.hosts.list)
        free(s.hosts.slots)
        free(s.heap)
        free(s.buffer)
        pthread_mutex_destroy(&s.lock)

    def run(self):
        """Serves until the stop, and then what has arrived already. Once only."""
        cdef SinkServer* s = &self.s
        if self.started:
            raise RuntimeError("a sink runs once")
        self.started = True
        with nogil:
            sink_loop(s)
            close(s.listener)
            s.listener = -1
            s.accept_ns = 0
            while s.first != NULL:
                sink_drop(s, s.first)

    def counters(self):
        """requests (whole ones), connections, bytes_in, bytes_out, bad (answered 400 or 431; in no other count), by_method, by_host ("": without
        Host), by_status (0: no reply). At most 64 methods and 1,024 hosts by name, the rest as "other"."""
        cdef int64_t requests = count_get(&self.s.requests)
        cdef int64_t unanswered = min(requests, count_get(&self.s.unanswered))
        by_status = {self.s.status: requests - unanswered, 0: unanswered}
        return {
            "requests": requests, "connections": count_get(&self.s.connections), "bytes_in": count_get(&self.s.bytes_in),
            "bytes_out": count_get(&self.s.bytes_out), "bad": count_get(&self.s.bad), "by_method": names_dict(&self.s.methods),
            "by_host": names_dict(&self.s.hosts), "by_status": {status: n for status, n in by_status.items() if n},
        }

    def take(self, Py_ssize_t most=4096):
        """At most so many rows of the log, oldest first; none are lost. Each a dict; `connection` and `index` (in it) count from 0."""
        cdef SinkServer* s = &self.s
        cdef SinkNote* note
        rows = []
        while len(rows) < most:
            pthread_mutex_lock(&s.lock)
            note = s.log_first
            if note != NULL:
                s.log_first = note.next
            pthread_mutex_unlock(&s.lock)
            if note == NULL:
                break
            atomic_add(&s.log_rows, -1)
            atomic_add(&s.log_bytes, -<int64_t>note.size)
            try:
                rows.append(sink_note_dict(note))
            finally:
                free(note)
        return rows
