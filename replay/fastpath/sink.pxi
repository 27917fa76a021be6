# The shadow server of tests and demos: HTTP/1.x requests in, one prepared reply each, everything counted. One thread, epoll.
# Must not know: captures, the sender. It is strict: what two servers could read differently (docs/design.md H4) is a bad request here, so that a
# fault of whoever sends shows.
#
# Bytes are parsed where recv() put them; only the beginning of a head whose end has not come yet is copied. Replies are never copied: what a connection
# still has to send is a list of runs ("so many replies of that kind"), written out of a train, the same reply many times over.

import http as _http

cdef extern from "<sys/socket.h>" nogil:
    int bind(int fd, const sockaddr* address, socklen_t length)
    int listen(int fd, int backlog)
    int accept4(int fd, sockaddr* address, socklen_t* length, int flags)
    int shutdown(int fd, int how)
    enum:
        SHUT_WR
        SO_REUSEADDR

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD

cdef enum:
    SINK_BUFFER = 65536           # bytes read at once
    SINK_HEAD = 65536             # most bytes of a head; more is 431
    SINK_RUNS = 1024              # a connection with more runs to send is not read from
    SINK_TRAIN = 32768            # bytes of a train, about
    SINK_PARTS = 64
    SINK_WRITE = 1048576          # bytes written at once, about
    SINK_BODY = 1 << 26           # most bytes of a reply's body
    SINK_EVENTS = 256
    SINK_BACKLOG = 4096
    SINK_KEY_LISTENER = 0
    SINK_KEY_STOP = 1
    SINK_NAME = 248               # a longer host counts as "other"
    SINK_HOSTS = 1024
    SINK_METHODS = 64
    SINK_LOG_ROWS = 65536
    SINK_LOG_BYTES = 64 * 1024 * 1024
    SINK_LOG_BODY = 65536         # a body that comes at once, up to this, is hashed by whoever reads the log
    SINK_SLOW_NS = 100000000
    SINK_LINGER_NS = 2000000000   # so long a closed side waits for the other
    SINK_PAUSE_NS = 100000000     # until accept() is tried again without descriptors
    SINK_DRAIN_NS = 100000000     # after a stop, what has arrived is still served for so long,
    SINK_QUIET_NS = 5000000       # or until nothing came for so long

cdef enum SinkState:
    SINK_READS_HEAD = 0
    SINK_READS_LENGTH = 1
    SINK_READS_CHUNKS = 2
    SINK_DISCARDS = 3             # the last request of the connection has come
    SINK_LINGERS = 4              # our side is shut
    SINK_STALLS = 5

cdef enum:                        # kinds of runs: replies, then marks. The first six: + 1 to HEAD, + 2 closing, + 4 kept alive in HTTP/1.0
    KIND_HEAD = 1
    KIND_CLOSING = 2
    KIND_KEPT = 4
    KIND_CONTINUE = 6
    KIND_BAD = 7
    KIND_TOO_LARGE = 8
    KIND_REPLIES = 9
    KIND_SHUT = 9                 # mark: end the connection when this is reached
    KIND_RESET = 10

cdef enum:
    MISBEHAVE_NONE = 0
    MISBEHAVE_CLOSE = 1
    MISBEHAVE_RESET = 2
    MISBEHAVE_STALL = 3
    MISBEHAVE_NEVER = 4
    MISBEHAVE_SLOW = 5

SINK_MISBEHAVIOURS = ("", "close", "reset", "stall", "never", "slow")

cdef struct SinkReply:
    const uint8_t* train          # borrows from Sink.trains: whole replies, one after the other
    uint64_t train_len
    uint64_t length               # of one

cdef struct SinkRun:
    int64_t due_ns                # CLOCK_MONOTONIC; 0 at once
    uint64_t count
    uint8_t kind
    uint8_t slow                  # a byte at a time

cdef struct SinkName:
    int64_t count                 # atomic
    uint32_t length
    uint8_t text[SINK_NAME]

cdef struct SinkNames:            # how often each name came; written by the sink's thread, readable by any
    SinkName* list                # owns
    int32_t* slots                # owns: index + 1 into list; 0 free
    uint32_t mask
    int32_t most
    int32_t last                  # found last
    int64_t used                  # atomic: entries of list
    int64_t other                 # atomic

cdef struct SinkNote:             # one request for the log; its head, perhaps its body, follow the struct
    SinkNote* next
    int64_t ts_ns
    uint64_t connection
    uint64_t index
    uint64_t body_len
    uint64_t size                 # of head and body
    Head head
    uint32_t kept                 # bytes of body behind the head; 0: see digest
    uint16_t status               # 0: no reply
    uint8_t digest[32]

cdef struct SinkConnection:
    SinkConnection* prev
    SinkConnection* next
    uint8_t* held                 # owns: the beginning of a head
    uint32_t held_len
    uint32_t held_size
    SinkRun* runs                 # owns: ring of run_mask + 1
    uint32_t run_first
    uint32_t run_count
    uint32_t run_mask
    uint64_t sent                 # bytes of the first run at the kernel
    int64_t wake_ns
    int64_t slow_ns               # when the next byte of a slow reply goes
    int32_t heap_at               # -1: not to be woken
    int fd
    uint32_t events               # what epoll was told
    uint8_t state
    uint8_t blocked               # the kernel took no more
    uint8_t eof                   # the peer sends no more
    uint8_t mute                  # nothing is answered any more
    uint8_t kind                  # of the reply to the request at hand
    int32_t method                # of the request at hand, index into its table; -1 other
    int32_t host
    uint64_t number
    uint64_t index                # requests that ended
    uint64_t left                 # SINK_READS_LENGTH
    uint64_t body_len
    Chunked chunked
    SinkNote* note                # owns
    void* sha                     # owns a reference: hashlib's object

cdef struct SinkServer:
    int epfd
    int listener
    int64_t* stop_flag            # borrows from the Stop
    int64_t now_ns                # of this turn
    uint8_t* buffer               # owns
    SinkConnection* first         # owns all
    SinkConnection** heap         # owns: by wake_ns, the earliest at 0
    int32_t heap_count
    int32_t heap_size
    int32_t open
    int64_t accept_ns             # accept() rests until then; 0 it does not
    SinkReply replies[KIND_REPLIES]
    int64_t delay_ns
    uint64_t every
    uint64_t seen                 # requests, or with stall connections
    uint16_t status
    uint8_t misbehave
    uint8_t log
    # counters, atomic
    int64_t requests
    int64_t unanswered
    int64_t connections
    int64_t bytes_in
    int64_t bytes_out
    int64_t bad
    SinkNames methods
    SinkNames hosts
    # the log
    pthread_mutex_t lock
    SinkNote* log_first           # owns all
    SinkNote* log_last
    int64_t log_rows              # atomic
    int64_t log_bytes             # atomic


# ---- names ------------------------------------------------------------------------------------------------------------------

cdef int names_init(SinkNames* t, int32_t most) noexcept:
    t.most = most
    t.mask = 2 * <uint32_t>most - 1           # a power of two, half of it used at most
    t.list = <SinkName*>calloc(most, sizeof(SinkName))
    t.slots = <int32_t*>calloc(t.mask + 1, sizeof(int32_t))
    return OK if t.list != NULL and t.slots != NULL else NEED_MORE


cdef int32_t names_find(SinkNames* t, const uint8_t* p, size_t n) noexcept nogil:
    """Index of this name, which may be new; -1 for one too many, or too long."""
    cdef SinkName* name
    cdef uint64_t at
    if t.used and t.list[t.last].length == n and memcmp(t.list[t.last].text, p, n) == 0:
        return t.last
    if n > SINK_NAME:
        return -1
    at = xxh64(p, n, 0) & t.mask
    while t.slots[at]:
        name = &t.list[t.slots[at] - 1]
        if name.length == n and memcmp(name.text, p, n) == 0:
            t.last = t.slots[at] - 1
            return t.last
        at = (at + 1) & t.mask
    if t.used == t.most:
        return -1
    name = &t.list[t.used]
    memcpy(name.text, p, n)
    name.length = <uint32_t>n
    t.last = <int32_t>t.used
    atomic_set(&t.used, t.used + 1)
    t.slots[at] = t.last + 1
    return t.last


cdef inline void names_count(SinkNames* t, int32_t at) noexcept nogil:
    count_add(&t.other if at < 0 else &t.list[at].count, 1)


cdef str sink_text(bytes text):
    """UTF-8, else latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


cdef dict names_dict(SinkNames* t):
    cdef int64_t i
    cdef int64_t n
    got = {}
    for i in range(atomic_get(&t.used)):
        n = count_get(&t.list[i].count)
        if n:
            name = sink_text(t.list[i].text[:t.list[i].length])
            got[name] = got.get(name, 0) + n
    n = count_get(&t.other)
    if n:
        got["other"] = got.get("other", 0) + n
    return got


# ---- when to look at a connection again ---------------------------------------------------------------------------------------

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


# ---- the log ----------------------------------------------------------------------------------------------------------------

cdef void sink_digest_add(void** sha, const uint8_t* p, size_t n) noexcept with gil:
    if sha[0] == NULL:
        one = _hashlib.sha256()
        Py_INCREF(one)
        sha[0] = <void*>one
    (<object>sha[0]).update(<bytes>p[:n])


cdef void sink_digest_end(void** sha, uint8_t* digest) noexcept with gil:
    """Takes the digest (NULL: nobody wants it) and lets the object go."""
    cdef bytes got
    if digest != NULL:
        got = (<object>sha[0]).digest()
        memcpy(digest, <const uint8_t*>got, 32)
    Py_DECREF(<object>sha[0])
    sha[0] = NULL


cdef void* sink_memory(SinkServer* s, size_t size) noexcept nogil:
    """malloc() for the log, which loses nothing: waits for memory until stopped."""
    cdef void* got = malloc(size)
    while got == NULL and not atomic_get(s.stop_flag):
        poll(NULL, 0, 10)
        got = malloc(size)
    return got


cdef void sink_note_begin(SinkServer* s, SinkConnection* c, const uint8_t* p, const Head* h) noexcept nogil:
    cdef SinkNote* note = <SinkNote*>sink_memory(s, sizeof(SinkNote) + h.length)
    if note == NULL:
        return
    memset(note, 0, sizeof(SinkNote))
    note.head = h[0]
    note.size = h.length
    note.connection = c.number
    memcpy(<uint8_t*>(note + 1), p, h.length)
    c.note = note


cdef void sink_note_body(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes of the decoded body, before they are counted."""
    cdef SinkNote* note
    if c.note == NULL or n == 0:
        return
    if c.state == SINK_READS_LENGTH and c.body_len == 0 and c.left == n and n <= SINK_LOG_BODY:
        note = <SinkNote*>sink_memory(s, sizeof(SinkNote) + c.note.size + n)
        if note == NULL:
            return
        memcpy(note, c.note, sizeof(SinkNote) + c.note.size)
        free(c.note)
        c.note = note
        memcpy(<uint8_t*>(note + 1) + note.size, p, n)
        note.size += n
        note.kept = <uint32_t>n
        return
    sink_digest_add(&c.sha, p, n)


cdef void sink_note_end(SinkServer* s, SinkConnection* c, int status) noexcept nogil:
    """The request has ended: its row goes to the log, which may mean to wait until somebody reads it."""
    cdef SinkNote* note = c.note
    cdef timespec wall
    if note == NULL:
        return
    c.note = NULL
    clock_gettime(CLOCK_REALTIME, &wall)
    note.ts_ns = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec
    note.index = c.index
    note.body_len = c.body_len
    note.status = <uint16_t>status
    if c.sha != NULL:
        sink_digest_end(&c.sha, note.digest)
    elif not note.kept:
        memcpy(note.digest, DIGEST_EMPTY_BYTES, 32)
    while atomic_get(&s.log_rows) >= SINK_LOG_ROWS or atomic_get(&s.log_bytes) >= SINK_LOG_BYTES:
        if atomic_get(s.stop_flag):
            break                         # little more can come, and nobody has to read it before the thread may end
        poll(NULL, 0, 1)
    pthread_mutex_lock(&s.lock)
    if s.log_first == NULL:
        s.log_first = note
    else:
        s.log_last.next = note
    s.log_last = note
    pthread_mutex_unlock(&s.lock)
    atomic_add(&s.log_rows, 1)
    atomic_add(&s.log_bytes, <int64_t>note.size)


cdef dict sink_note_dict(const SinkNote* note):
    cdef const uint8_t* p = <const uint8_t*>(note + 1)
    cdef const Head* h = &note.head
    cdef bytes head = p[:h.length]
    headers = []
    for line in head[h.line_len:].removesuffix(b"\r\n\r\n").split(b"\r\n") if h.lines else ():
        if line[:1] in b" \t" and headers:          # obsolete folding: part of the value, as received
            name, value = headers.pop()
            headers.append((name, value + b"\r\n" + line))
            continue
        name, _, value = line.partition(b":")
        headers.append((name, value.strip(b" \t")))
    return {
        "method": head[:h.method_len], "target": head[h.target_at:h.target_at + h.target_len], "version": "1.0" if h.version == 10 else "1.1",
        "host": head[h.host_at:h.host_at + h.host_len] if h.hosts else None, "headers": headers, "body_len": note.body_len,
        "body_sha256": _hashlib.sha256(p[h.length:h.length + note.kept]).hexdigest() if note.kept else (<bytes>note.digest[:32]).hex(),
        "status": note.status or None, "ts_ns": note.ts_ns, "connection": note.connection, "index": note.index,
    }


# ---- ends of a connection -------------------------------------------------------------------------------------------------------

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


# ---- writing ----------------------------------------------------------------------------------------------------------------

cdef void sink_queue(SinkServer* s, SinkConnection* c, uint8_t kind, int64_t due, bint slow) noexcept nogil:
    """One more to send. Without memory the connection sends no more."""
    cdef SinkRun* run
    cdef SinkRun* runs
    cdef uint32_t i
    cdef uint32_t size
    if c.run_count:
        run = &c.runs[(c.run_first + c.run_count - 1) & c.run_mask]
        if run.kind == kind and run.due_ns == due and not run.slow and not slow:
            run.count += 1
            return
    if c.runs == NULL or c.run_count > c.run_mask:
        size = 4 if c.runs == NULL else 2 * (c.run_mask + 1)
        runs = <SinkRun*>malloc(size * sizeof(SinkRun))
        if runs == NULL:
            c.mute = 1
            return
        for i in range(c.run_count):
            runs[i] = c.runs[(c.run_first + i) & c.run_mask]
        free(c.runs)
        c.runs = runs
        c.run_first = 0
        c.run_mask = size - 1
    run = &c.runs[(c.run_first + c.run_count) & c.run_mask]
    c.run_count += 1
    run.due_ns = due
    run.count = 1
    run.kind = kind
    run.slow = slow


cdef void sink_wrote(SinkServer* s, SinkConnection* c, uint64_t n) noexcept nogil:
    cdef SinkRun* run
    cdef uint64_t length
    cdef uint64_t left
    count_add(&s.bytes_out, <int64_t>n)
    while n:
        run = &c.runs[c.run_first]
        length = s.replies[run.kind].length
        left = run.count * length - c.sent
        if n < left:
            c.sent += n
            run.count -= c.sent // length     # keeps the numbers small, however long the run goes on
            c.sent %= length
            return
        n -= left
        c.sent = 0
        c.run_first = (c.run_first + 1) & c.run_mask
        c.run_count -= 1


cdef int sink_send(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Writes what is due. OK: nothing more can go now (or the kernel is full: c.blocked); MALFORMED: the connection failed."""
    cdef iovec parts[SINK_PARTS]
    cdef msghdr message
    cdef SinkRun* run
    cdef SinkReply* reply
    cdef uint64_t offset, left, some, total
    cdef uint32_t at
    cdef ssize_t n
    cdef int count
    while True:
        count = 0
        total = 0
        at = 0
        offset = c.sent
        while at < c.run_count and count < SINK_PARTS and total < SINK_WRITE:
            run = &c.runs[(c.run_first + at) & c.run_mask]
            if run.due_ns > s.now_ns or run.kind >= KIND_REPLIES:
                break
            reply = &s.replies[run.kind]
            left = run.count * reply.length - offset
            if run.slow:
                if at or s.now_ns < c.slow_ns:
                    break
                left = 1
                c.slow_ns = s.now_ns + SINK_SLOW_NS
            while left and count < SINK_PARTS and total < SINK_WRITE:
                some = reply.train_len - offset % reply.length
                if some > left:
                    some = left
                parts[count].iov_base = <void*>(reply.train + offset % reply.length)
                parts[count].iov_len = <size_t>some
                count += 1
                offset += some
                total += some
                left -= some
            if left or run.slow:
                break
            offset = 0
            at += 1
        if count == 0:
            return OK
        memset(&message, 0, sizeof(msghdr))
        message.msg_iov = parts
        message.msg_iovlen = <size_t>count
        n = sendmsg(c.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno.errno == errno.EINTR:
                continue
            if errno.errno != errno.EAGAIN:
                return MALFORMED
            c.blocked = 1
            return OK
        sink_wrote(s, c, <uint64_t>n)
        if <uint64_t>n < total:
            c.blocked = 1
            return OK


cdef void sink_flush(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Writes what may go, acts on the mark that comes next, sees to it that c is looked at again. c may be gone afterwards."""
    cdef SinkRun* run
    cdef linger abort
    cdef int64_t wake = 0
    if not c.blocked and c.run_count and sink_send(s, c) != OK:
        sink_drop(s, c)
        return
    if c.run_count and not c.blocked:
        run = &c.runs[c.run_first]
        if run.due_ns > s.now_ns:
            wake = run.due_ns
        elif run.kind == KIND_RESET:
            abort.l_onoff = 1
            abort.l_linger = 0
            setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(linger))
            sink_drop(s, c)
            return
        elif run.kind == KIND_SHUT:
            # our end first, then the peer's: to close with bytes unread would reset the connection, and the peer lose the last reply
            if c.eof or shutdown(c.fd, SHUT_WR) < 0:
                sink_drop(s, c)
                return
            c.run_count = 0
            c.state = SINK_LINGERS
            c.wake_ns = wake = s.now_ns + SINK_LINGER_NS
        else:
            wake = c.slow_ns
    elif c.state == SINK_LINGERS:
        wake = c.wake_ns
    if wake or c.heap_at >= 0:
        sink_wake_at(s, c, wake)
    sink_interest(s, c)


# ---- reading ----------------------------------------------------------------------------------------------------------------

cdef void sink_shut(SinkServer* s, SinkConnection* c) noexcept nogil:
    """Nothing more is taken from this connection; it ends when its replies are sent."""
    sink_forget(c)
    c.state = SINK_DISCARDS
    if not c.mute:
        sink_queue(s, c, KIND_SHUT, 0, False)


cdef void sink_bad(SinkServer* s, SinkConnection* c, uint8_t kind) noexcept nogil:
    count_add(&s.bad, 1)
    if not c.mute:
        sink_queue(s, c, kind, 0, False)
    sink_shut(s, c)


cdef void sink_end(SinkServer* s, SinkConnection* c) noexcept nogil:
    """The request at hand has ended."""
    cdef int64_t due = now_ns() + s.delay_ns if s.delay_ns else 0
    cdef uint8_t wrong = MISBEHAVE_NONE
    if s.misbehave != MISBEHAVE_NONE and s.misbehave != MISBEHAVE_STALL:
        s.seen += 1
        if s.seen % s.every == 0:
            wrong = s.misbehave
            if wrong == MISBEHAVE_NEVER:
                c.mute = 1
    count_add(&s.requests, 1)
    names_count(&s.methods, c.method)
    names_count(&s.hosts, c.host)
    if c.mute or wrong == MISBEHAVE_CLOSE or wrong == MISBEHAVE_RESET:
        count_add(&s.unanswered, 1)
        if s.log:
            sink_note_end(s, c, 0)
    elif s.log:
        sink_note_end(s, c, s.status)
    c.index += 1
    c.state = SINK_READS_HEAD
    if c.mute:
        return
    if wrong == MISBEHAVE_CLOSE or wrong == MISBEHAVE_RESET:
        c.state = SINK_DISCARDS
        sink_queue(s, c, KIND_RESET if wrong == MISBEHAVE_RESET else KIND_SHUT, due, False)
        return
    sink_queue(s, c, c.kind, due, wrong == MISBEHAVE_SLOW)
    if c.kind & KIND_CLOSING:
        sink_shut(s, c)


cdef void sink_parse(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n, const LineIndex* x, bint more) noexcept nogil:
    """A whole head of any kind."""
    cdef Head h
    if request_line(p, n) != LINE_REQUEST:
        sink_bad(s, c, KIND_BAD)
        return
    if n > SINK_HEAD or head_parse(p, n, x, False, &h) != OK:
        sink_bad(s, c, KIND_TOO_LARGE)
        return
    sink_head(s, c, p, &h, more)


cdef void sink_head(SinkServer* s, SinkConnection* c, const uint8_t* p, const Head* h, bint more) noexcept nogil:
    """A whole head and what it says. more: bytes behind it have come already."""
    if h.flags & (HEAD_AMBIGUOUS | HEAD_MALFORMED | HEAD_HOSTS_DIFFER | HEAD_BAD_HOST_LINE | HEAD_CONNECT) or (h.hosts == 0 and h.version > 10):
        sink_bad(s, c, KIND_BAD)
        return
    c.method = names_find(&s.methods, p, h.method_len)
    c.host = names_find(&s.hosts, p + h.host_at, h.host_len)
    c.kind = KIND_HEAD if h.method_len == 4 and memcmp(p, b"HEAD", 4) == 0 else 0
    if h.flags & HEAD_CLOSE or (h.version == 10 and not h.flags & HEAD_KEEP_ALIVE):
        c.kind |= KIND_CLOSING
    elif h.version == 10:
        c.kind |= KIND_KEPT
    c.body_len = 0
    if s.log:
        sink_note_begin(s, c, p, h)
    if h.framing == FRAMING_CHUNKED:
        memset(&c.chunked, 0, sizeof(Chunked))
        c.state = SINK_READS_CHUNKS
    elif h.content_length > 0:
        c.left = <uint64_t>h.content_length
        c.state = SINK_READS_LENGTH
    else:
        sink_end(s, c)
        return
    if h.flags & HEAD_EXPECT and h.version > 10 and not more and not c.mute:
        sink_queue(s, c, KIND_CONTINUE, 0, False)


cdef bint sink_hold(SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Keeps these bytes of a head. False without memory."""
    cdef uint32_t size = c.held_size if c.held_size else 512
    cdef uint8_t* held
    while size < c.held_len + n:
        size *= 2
    if size > c.held_size:
        held = <uint8_t*>realloc(c.held, size)
        if held == NULL:
            return False
        c.held = held
        c.held_size = size
    memcpy(c.held + c.held_len, p, n)
    c.held_len += <uint32_t>n
    return True


cdef size_t sink_held_head(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """More of a head whose beginning is held; how many bytes of it were taken."""
    cdef size_t before = c.held_len
    cdef size_t end
    cdef uint8_t* held
    cdef RequestLine line
    cdef LineIndex index
    if n > SINK_HEAD - before:
        n = SINK_HEAD - before
    if not sink_hold(c, p, n):
        sink_bad(s, c, KIND_TOO_LARGE)
        return n
    end = head_end(c.held, c.held_len, before - 2 if before > 2 else 0)
    if end:
        held = c.held
        c.held = NULL
        c.held_len = c.held_size = 0
        head_index(held, end, &index)
        sink_parse(s, c, held, end, &index, before + n > end)
        free(held)
        return end - before
    line = request_line(c.held, c.held_len)
    if line != LINE_REQUEST and line != LINE_MORE:
        sink_bad(s, c, KIND_BAD)
    elif c.held_len == SINK_HEAD:
        sink_bad(s, c, KIND_TOO_LARGE)
    return n


cdef size_t sink_fresh_head(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes with which a head begins, or empty lines before it (RFC 9112 2.2); how many were taken."""
    cdef size_t at = 0
    cdef size_t end
    cdef RequestLine line
    cdef LineIndex index
    cdef Head h
    while at < n and (p[at] == 13 or p[at] == 10):
        at += 1
    if at == n:
        return n
    end = head_scan(p + at, n - at, &h)       # the usual head; it leaves to the general parser what is not
    if end > HEAD_BEGUN and h.method_len and end <= SINK_HEAD:
        sink_head(s, c, p + at, &h, n - at > end)
        return at + end
    end = head_index(p + at, n - at, &index)
    if end:
        sink_parse(s, c, p + at, end, &index, n - at > end)
        return at + end
    line = request_line(p + at, n - at)
    if line != LINE_REQUEST and line != LINE_MORE:
        sink_bad(s, c, KIND_BAD)
    elif n - at >= SINK_HEAD or not sink_hold(c, p + at, n - at):
        sink_bad(s, c, KIND_TOO_LARGE)
    return n


cdef void sink_feed(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """What the peer sent."""
    cdef const uint8_t* body = NULL
    cdef size_t body_len = 0
    cdef size_t at = 0
    cdef size_t some
    while at < n:
        if c.state == SINK_READS_HEAD:
            if c.held_len:
                at += sink_held_head(s, c, p + at, n - at)
            else:
                at += sink_fresh_head(s, c, p + at, n - at)
        elif c.state == SINK_READS_LENGTH:
            some = n - at if n - at < c.left else <size_t>c.left
            if s.log:
                sink_note_body(s, c, p + at, some)
            at += some
            c.body_len += some
            c.left -= some
            if c.left == 0:
                sink_end(s, c)
        elif c.state == SINK_READS_CHUNKS:
            at += chunked_step(&c.chunked, p + at, n - at, &body, &body_len)
            if s.log:
                sink_note_body(s, c, body, body_len)
            c.body_len += body_len
            if c.chunked.ambiguous or c.chunked.state == CHUNKED_BAD:
                sink_bad(s, c, KIND_BAD)
            elif c.chunked.state == CHUNKED_DONE:
                sink_end(s, c)
        else:
            return


cdef void sink_read(SinkServer* s, SinkConnection* c) noexcept nogil:
    """One read. c may be gone afterwards."""
    cdef ssize_t n = recv(c.fd, s.buffer, SINK_BUFFER, 0)
    if n < 0:
        if errno.errno != errno.EAGAIN and errno.errno != errno.EINTR:
            sink_drop(s, c)
        return
    if n == 0:
        c.eof = 1
        if c.run_count == 0 or c.mute:
            sink_drop(s, c)
            return
        if c.state != SINK_DISCARDS:
            sink_shut(s, c)               # a peer may shut its side and still read
    else:
        count_add(&s.bytes_in, n)
        sink_feed(s, c, s.buffer, <size_t>n)
    sink_flush(s, c)


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
        cdef bytes train
        cdef int kind
        self.trains = []
        try:
            reason = _http.HTTPStatus(status).phrase
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
