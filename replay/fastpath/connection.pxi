# The sender's memory (items, flows, connections, addresses) and its sockets: open, mark, peek, close. Must not know: when
# a request is due, what a reply means.

cdef enum:
    SENDER_BUFFER = 256 * 1024    # one read
    SENDER_SLAB = 256             # items or flows allocated together
    BROKEN_RESET = 2              # SenderConnection.broken
    SENDER_PIPELINE = 64          # most requests under way on a connection; also iovecs in one write
    SENDER_WRITE = 1024 * 1024    # bytes offered to the kernel in one write
    SENDER_UNSENT = 256 * 1024    # bytes that may wait in the kernel, unsent (TCP_NOTSENT_LOWAT)
    SENDER_SEGMENT = 1200         # bytes that fit into one segment anywhere
    SENDER_OWN = 256 * 1024       # a stuck request up to this size is copied, so that its batch can go
    SENDER_MARK = 0x53484457      # SO_MARK of every shadow connection ("SHDW"), for filters and firewalls

cdef enum:                        # what a driver hears of beside connections
    KEY_QUEUE = 0xFFFFFFFF
    KEY_STOP = 0xFFFFFFFE

cdef int64_t BACKOFF_FIRST_NS = 10000000
cdef int64_t BACKOFF_MOST_NS = 1000000000

cdef enum SenderItemFlag:
    ITEM_HEAD = 1                 # its reply has no body
    ITEM_HTTP10 = 2
    ITEM_SENT = 4                 # a byte of it was accepted by the kernel, once
    ITEM_WAY = 8                  # a byte of it was written on the connection where it is now

cdef struct SenderItem:           # one request from when it is taken up until it ended
    SenderItem* next              # in its flow (waiting) or its connection
    SenderFlow* flow              # borrows while the flow counts it
    Batch* batch                  # one reference, or NULL: let go
    Request* row                  # borrows from batch
    const uint8_t* data           # borrows from batch, or copy
    uint8_t* copy                 # owns, or NULL
    SenderNote* note              # owns, or NULL
    uint64_t length
    int64_t due_ns
    int64_t sent_ns               # first byte of the latest sending
    int64_t first_byte_ns         # of the reply
    int64_t reply_bytes           # when it was answered
    int64_t reply_body
    int64_t response_ns           # captured
    uint16_t status               # captured
    uint16_t endpoint             # with marks: its number
    uint8_t flags                 # SenderItemFlag

cdef struct SenderFlow:           # a captured connection that has requests here
    SenderFlow* chain             # in its slot of the hash table, or in the free list
    SenderFlow* next              # among the waiting flows
    uint64_t id
    SenderItem* first             # those that wait: for a connection, or (in bunches) for those before them
    SenderItem* last
    uint32_t count                # items here, waiting or on the connection
    uint32_t on                   # items on the connection
    int32_t connection            # index, or -1: it waits

cdef enum SenderDriver:
    DRIVER_AUTO = 0
    DRIVER_URING = 1
    DRIVER_EPOLL = 2

cdef enum SenderConnectionState:
    CONNECTION_FREE = 0
    CONNECTION_CONNECTING = 1
    CONNECTION_OPEN = 2

cdef struct SenderConnection:
    SenderItem* first             # oldest without a whole reply … not written yet
    SenderItem* last
    SenderItem* cursor            # first that is not completely written; NULL: all are
    uint64_t written              # bytes of cursor
    int64_t since_ns              # connect began, or a reply was last finished
    int64_t reply_bytes
    Reply reply
    int fd
    int32_t lowat                 # bytes that must have come before we are woken (SO_RCVLOWAT)
    int32_t address
    int32_t next                  # in its bucket, or in the free list
    int32_t prev
    int32_t bucket                # load it is filed under, -1 none
    uint32_t way                  # items with at least one byte written
    uint32_t load                 # all items
    uint32_t generation           # tells events of a closed connection from those of its successor
    uint8_t state                 # SenderConnectionState
    uint8_t again                 # in the list of those to read once more
    uint8_t dirty                 # in the list of those to write
    uint8_t hangup                # the kernel said that no more will come, or an error waits
    uint8_t broken                # a write failed; BROKEN_RESET: because of a reset
    uint8_t used                  # a byte was written
    uint8_t settled               # the options that only a second segment needs are set
    uint8_t barrier               # an HTTP/1.0 request is under way: nothing follows it
    uint8_t armed                 # io_uring: a receive
    uint8_t polls                 # io_uring: one look for room to write, or for the end of the connect
    uint8_t sending               # io_uring: a write is prepared
    uint8_t blocked               # io_uring: the kernel took no more
    uint64_t offered              # io_uring: bytes of that write

cdef struct SenderAddress:
    uint8_t ip[16]
    uint16_t port
    int32_t live                  # open or connecting
    int32_t connecting
    int64_t fails                 # in a row
    int64_t delay_ns
    int64_t next_try_ns
    uint64_t mask                 # bit L: bucket L is not empty
    int32_t bucket[SENDER_PIPELINE]

cdef struct SenderSlab:
    SenderSlab* next


cdef struct SenderState:
    # what it works on; all borrowed from objects that Sender holds
    PointerRing* ring
    int64_t* queue_waiting
    const int64_t* queue_ended
    const int64_t* stop_flag
    const int64_t* guard_hit      # NULL: no guard
    Marks* marks                  # NULL: nobody judges
    PointerRing* outcomes         # NULL: nobody wants records
    uint64_t outcomes_slots
    uint32_t outcomes_head        # bytes of a head that a record keeps
    bint outcomes_wait            # a dry run waits for room
    int queue_fd
    int stop_fd
    # settings
    int64_t connect_timeout_ns
    int64_t timeout_ns
    int64_t drain_ns
    int64_t never_ns
    int64_t finishing             # atomic; set by finish(): begin nothing more
    bint dry
    # live
    int64_t expire_ns             # a request that is older than this is not sent; 0: none is too old
    int64_t gate                  # atomic: -1 open; 0 shut, everything is dropped (breaker); else so many are let through, as probes: the lowest 8 bits, above them which time it was
    int64_t gate_seen             # sender's: the gate that gate_left is of
    int64_t gate_left             # sender's: probes that it still lets through; those that it let wait for their connection, whatever is behind them
    double rate_most              # requests a second; 0: any
    double rate_left              # tokens
    int64_t rate_ns               # when they were counted
    uint16_t port_first           # local ports of our connections: first, how many, the next to try; 0: the kernel's choice
    uint16_t port_count
    uint16_t port_next
    uint32_t pipeline
    int32_t most                  # connections
    int64_t window                # items taken up at most at full speed
    int64_t ahead                 # of these not written yet, with pipelining
    Pacer pacer
    SharedStart* start            # borrows: of all senders of the run; NULL: it begins by itself
    # memory
    SenderSlab* slabs
    SenderItem* free_items
    SenderFlow* free_flows
    SenderFlow** flows            # hash table
    uint64_t flows_mask
    uint64_t flows_count
    SenderConnection* connections
    int32_t free_connection
    SenderAddress* addresses
    int32_t addresses_count
    int32_t next_address
    uint8_t* buffer
    epoll_event* events
    int32_t events_most
    int32_t* again
    int32_t again_count
    int32_t* dirty
    int32_t dirty_count
    # state
    Batch* batch                  # being walked; one reference
    uint32_t at                   # row
    int64_t next_due_ns
    SenderFlow* wait_first
    SenderFlow* wait_last
    int64_t wait_flows
    int64_t out                   # items that have not ended
    int64_t unsent                # of these, with no byte written on a connection now
    int32_t live                  # connections open or connecting
    int32_t open
    int32_t connecting
    int64_t open_after_ns         # a limit was reached: open none before
    int64_t open_delay_ns
    int64_t first_attempt_ns
    int64_t down_since_ns
    int64_t last_send_ns
    int64_t next_tick_ns
    int64_t breath_ns             # when breath_bytes had been received (sender_breathe)
    int64_t breath_bytes
    int64_t awake_ns              # since when it works without a rest; 0 while it waits. Another thread reads it
    int64_t tick_ns
    int64_t stop_ns               # when the stop was seen
    int64_t seen_ns               # when everything that the kernel had to say was last heard
    int64_t service_ns            # what a reply takes, smoothed
    bint bundle                   # what is due together goes out together: paced, with pipelining
    int64_t hold_ns               # then nothing is taken up before
    int64_t lead_ns               # so much before a request is due a sleep ends
    ReplyMemo memo
    int64_t reply_least           # bytes of the shortest replies of late
    bint bunch                    # several replies may be waited for: full speed with pipelining
    int64_t base_ns               # CLOCK_REALTIME - CLOCK_MONOTONIC
    bint ever                     # a connection succeeded
    uint8_t halt                  # SenderReason: nothing more is sent
    int wanted                    # SenderDriver
    int epfd
    UringDriver* uring            # owns, or NULL: epoll
    SenderLedger* ledger


# ---- items and flows ----------------------------------------------------------------------------------------------------

cdef int sender_slab(SenderState* s, bint items) noexcept nogil:
    cdef size_t size = sizeof(SenderItem) if items else sizeof(SenderFlow)
    cdef SenderSlab* slab = <SenderSlab*>malloc(64 + SENDER_SLAB * size)
    cdef uint8_t* at
    cdef int i
    if slab == NULL:
        return -2
    slab.next = s.slabs
    s.slabs = slab
    at = <uint8_t*>slab + 64
    for i in range(SENDER_SLAB):
        if items:
            (<SenderItem*>at).next = s.free_items
            s.free_items = <SenderItem*>at
        else:
            (<SenderFlow*>at).chain = s.free_flows
            s.free_flows = <SenderFlow*>at
        at += size
    return OK


cdef inline uint64_t sender_hash(uint64_t id) noexcept nogil:
    return (id * <uint64_t>0x9E3779B97F4A7C15) >> 20


cdef void sender_grow(SenderState* s) noexcept nogil:
    """Twice the slots. Without memory the chains just get longer."""
    cdef uint64_t size = (s.flows_mask + 1) * 2
    cdef uint64_t i
    cdef SenderFlow** slots = <SenderFlow**>calloc(size, sizeof(SenderFlow*))
    cdef SenderFlow* flow
    cdef SenderFlow* after
    if slots == NULL:
        return
    for i in range(s.flows_mask + 1):
        flow = s.flows[i]
        while flow != NULL:
            after = flow.chain
            flow.chain = slots[sender_hash(flow.id) & (size - 1)]
            slots[sender_hash(flow.id) & (size - 1)] = flow
            flow = after
    free(s.flows)
    s.flows = slots
    s.flows_mask = size - 1


cdef SenderFlow* sender_flow(SenderState* s, uint64_t id) noexcept nogil:
    """The flow, made when it has nothing here yet (count 0); NULL without memory."""
    cdef SenderFlow** slot = &s.flows[sender_hash(id) & s.flows_mask]
    cdef SenderFlow* flow = slot[0]
    while flow != NULL:
        if flow.id == id:
            return flow
        flow = flow.chain
    if s.free_flows == NULL and sender_slab(s, False) != OK:
        return NULL
    flow = s.free_flows
    s.free_flows = flow.chain
    zero_struct(flow, sizeof(SenderFlow))
    flow.id = id
    flow.connection = -1
    flow.chain = slot[0]
    slot[0] = flow
    s.flows_count += 1
    if s.flows_count > s.flows_mask:
        sender_grow(s)
    return flow


cdef void sender_forget(SenderState* s, SenderFlow* flow) noexcept nogil:
    cdef SenderFlow** slot = &s.flows[sender_hash(flow.id) & s.flows_mask]
    while slot[0] != flow:
        slot = &slot[0].chain
    slot[0] = flow.chain
    flow.chain = s.free_flows
    s.free_flows = flow
    s.flows_count -= 1


cdef inline void sender_let_go(SenderState* s, SenderItem* item) noexcept nogil:
    """The batch is not needed any more: everything was written, or copied."""
    if item.batch == NULL:
        return
    if s.outcomes != NULL and item.note == NULL:
        item.note = note_make(item.row, s.outcomes_head)
    batch_release(item.batch)
    item.batch = NULL
    item.row = NULL


cdef void sender_own(SenderState* s, SenderItem* item) noexcept nogil:
    """Copies a stuck request and lets its batch go; a large one has a batch of its own and stays there."""
    if item.batch == NULL or item.length > SENDER_OWN:
        return
    item.copy = <uint8_t*>malloc(<size_t>item.length)
    if item.copy == NULL:
        return
    memcpy(item.copy, item.data, <size_t>item.length)
    item.data = item.copy
    sender_let_go(s, item)


# ---- which connections have room ----------------------------------------------------------------------------------------

cdef void sender_unplace(SenderState* s, SenderConnection* c) noexcept nogil:
    cdef SenderAddress* a = &s.addresses[c.address]
    if c.bucket < 0:
        return
    if c.prev >= 0:
        s.connections[c.prev].next = c.next
    else:
        a.bucket[c.bucket] = c.next
        if c.next < 0:
            a.mask &= ~(<uint64_t>1 << c.bucket)
    if c.next >= 0:
        s.connections[c.next].prev = c.prev
    c.bucket = -1


cdef void sender_place(SenderState* s, SenderConnection* c) noexcept nogil:
    """Files an open connection under its load; one without room is in no bucket. The latest used comes first.

    At full speed with pipelining a connection has room for a second load, which goes out together when the first was answered."""
    cdef SenderAddress* a = &s.addresses[c.address]
    cdef int32_t index = <int32_t>(c - s.connections)
    cdef int32_t load = <int32_t>c.load
    if s.bunch:
        load = load // 2
    if c.state != CONNECTION_OPEN or load >= <int32_t>s.pipeline:
        load = -1
    if load == c.bucket:
        return
    sender_unplace(s, c)
    if load < 0:
        return
    c.bucket = load
    c.prev = -1
    c.next = a.bucket[load]
    if c.next >= 0:
        s.connections[c.next].prev = index
    a.bucket[load] = index
    a.mask |= <uint64_t>1 << load


# ---- sockets --------------------------------------------------------------------------------------------------------------

cdef socklen_t sender_sockaddr(const SenderAddress* a, sockaddr_in6* six) noexcept nogil:
    """Fills in the address; v4-mapped ones become AF_INET."""
    cdef sockaddr_in* four = <sockaddr_in*>six
    cdef int i
    cdef bint mapped = a.ip[10] == 255 and a.ip[11] == 255
    memset(six, 0, sizeof(sockaddr_in6))
    for i in range(10):
        mapped = mapped and a.ip[i] == 0
    if mapped:
        four.sin_family = AF_INET
        four.sin_port = htons(a.port)
        memcpy(&four.sin_addr, a.ip + 12, 4)
        return sizeof(sockaddr_in)
    six.sin6_family = AF_INET6
    six.sin6_port = htons(a.port)
    memcpy(&six.sin6_addr, a.ip, 16)
    return sizeof(sockaddr_in6)


cdef void sender_failed(SenderState* s, int32_t address, int error, int64_t now) noexcept nogil:
    """A connection could not be made, or was of no use: this address rests, twice as long each time."""
    cdef SenderAddress* a = &s.addresses[address]
    count_add(&s.ledger.connect_failed, 1)
    atomic_set(&s.ledger.last_errno, error)
    a.fails += 1
    a.delay_ns = a.delay_ns * 2 if a.delay_ns else BACKOFF_FIRST_NS
    if a.delay_ns > BACKOFF_MOST_NS:
        a.delay_ns = BACKOFF_MOST_NS
    a.next_try_ns = now + a.delay_ns
    if s.open == 0 and s.down_since_ns == 0:
        s.down_since_ns = now


cdef bint sender_limited(SenderState* s, int error, int64_t now) noexcept nogil:
    """True when this is a limit of our machine: named, and no more connections than there are for a while."""
    if error == errno.EMFILE or error == errno.ENFILE:
        count_add(&s.ledger.limit_descriptors, 1)
    elif error == errno.EADDRNOTAVAIL or error == errno.EAGAIN:
        count_add(&s.ledger.limit_local_ports, 1)
    elif error == errno.ENOBUFS or error == errno.ENOMEM or error == errno.ENOSPC:
        count_add(&s.ledger.limit_memory, 1)
    else:
        return False
    atomic_set(&s.ledger.last_errno, error)
    s.open_delay_ns = s.open_delay_ns * 2 if s.open_delay_ns else BACKOFF_FIRST_NS
    if s.open_delay_ns > BACKOFF_MOST_NS or s.live > 0:
        s.open_delay_ns = BACKOFF_MOST_NS
    s.open_after_ns = now + s.open_delay_ns
    if s.open == 0 and s.down_since_ns == 0:
        s.down_since_ns = now
    return True


cdef int sender_bind(SenderState* s, int fd, const sockaddr_in6* to, socklen_t size) noexcept nogil:
    """Begins the connection from one of our own ports, by which a tap's filter knows it. 0, EINPROGRESS passed over, or an errno."""
    cdef sockaddr_in6 own
    cdef int one = 1
    cdef int i
    cdef uint16_t port
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(int))      # a port whose last connection is in TIME_WAIT will do
    for i in range(64):
        port = s.port_first + s.port_next
        s.port_next = (s.port_next + 1) % s.port_count
        memset(&own, 0, sizeof(sockaddr_in6))
        own.sin6_family = AF_INET if size == sizeof(sockaddr_in) else AF_INET6
        own.sin6_port = htons(port)                                  # where sin_port is too
        if bind(fd, <sockaddr*>&own, size) < 0:
            if errno.errno == errno.EADDRINUSE or errno.errno == errno.EACCES:
                continue
            return errno.errno
        if connect(fd, <sockaddr*>to, size) == 0 or errno.errno == errno.EINPROGRESS:
            return 0
        return errno.errno                                           # bound is bound: another port needs another socket
    return errno.EADDRNOTAVAIL


cdef int sender_open(SenderState* s, int32_t address, int64_t now) noexcept nogil:
    """Begins a connection. OK, or why not: MALFORMED the address failed, NEED_MORE a limit of our machine."""
    cdef SenderAddress* a = &s.addresses[address]
    cdef SenderConnection* c
    cdef sockaddr_in6 to
    cdef socklen_t size = sender_sockaddr(a, &to)
    cdef int32_t index = s.free_connection
    cdef int mark = SENDER_MARK
    cdef int error
    cdef int fd
    if s.first_attempt_ns == 0:
        s.first_attempt_ns = now
    fd = socket(AF_INET if size == sizeof(sockaddr_in) else AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        error = errno.errno
        if sender_limited(s, error, now):
            return NEED_MORE
        sender_failed(s, address, error, now)
        return MALFORMED
    setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(int))     # needs a right; without it the suffix and the marker must do
    c = &s.connections[index]
    error = 0
    if s.port_count:
        error = sender_bind(s, fd, &to, size)
    elif connect(fd, <sockaddr*>&to, size) < 0 and errno.errno != errno.EINPROGRESS:
        error = errno.errno
    if error:
        pass
    elif s.uring == NULL:
        error = -epoll_driver_add(s, index, c.generation + 1, fd)
    if error:
        close(fd)
        if sender_limited(s, error, now):
            return NEED_MORE
        sender_failed(s, address, error, now)
        return MALFORMED
    s.free_connection = c.next
    c.generation += 1
    c.fd = fd
    c.address = address
    c.state = CONNECTION_CONNECTING
    c.first = c.last = c.cursor = NULL
    c.written = 0
    c.way = c.load = 0
    c.reply_bytes = 0
    c.bucket = -1
    c.hangup = c.broken = c.used = c.settled = c.barrier = 0
    c.armed = c.polls = c.sending = c.blocked = 0
    c.lowat = 1
    c.since_ns = now
    reply_reset(&c.reply)
    s.live += 1
    s.connecting += 1
    a.live += 1
    a.connecting += 1
    if s.uring != NULL:
        uring_driver_add(s, c)
    return OK


cdef bint sender_is_self(int fd, const SenderAddress* a) noexcept nogil:
    """A connection to a closed port of our own may, by chance, be made with itself (simultaneous open)."""
    cdef sockaddr_in6 to
    cdef sockaddr_in6 own
    cdef socklen_t size = sender_sockaddr(a, &to)
    cdef socklen_t got = sizeof(sockaddr_in6)
    memset(&own, 0, sizeof(sockaddr_in6))
    if getsockname(fd, <sockaddr*>&own, &got) < 0:
        return False
    if size == sizeof(sockaddr_in):
        return memcmp(&own, &to, 8) == 0
    return own.sin6_port == to.sin6_port and memcmp(&own.sin6_addr, &to.sin6_addr, 16) == 0


cdef void sender_settle(SenderConnection* c) noexcept nogil:
    """Before anything but the first segment: no segment waits for an acknowledgement, and the kernel does not take more than it can use. A connection
    for one short request, of which there may be many, needs neither."""
    cdef int one = 1
    cdef int unsent = SENDER_UNSENT
    c.settled = 1
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
    setsockopt(c.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(int))


cdef void sender_lowat(SenderConnection* c, int32_t wanted) noexcept nogil:
    """Asks the kernel to wake us only when so many bytes are there; or at once, when a lower number makes them enough."""
    if wanted != c.lowat:
        c.lowat = wanted
        setsockopt(c.fd, SOL_SOCKET, SO_RCVLOWAT, &c.lowat, sizeof(int))


cdef bint sender_gone(int fd) noexcept nogil:
    """The server closed, or sent something, while nothing was asked: nothing may be written any more."""
    cdef uint8_t one
    return not (recv(fd, &one, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and (errno.errno == errno.EAGAIN or errno.errno == errno.EINTR))


cdef void sender_shut(SenderState* s, SenderConnection* c, bint abort) noexcept nogil:
    """Closes the socket and gives the slot back. abort: with a reset, so that what waits in the kernel never leaves."""
    cdef linger now_
    cdef SenderAddress* a = &s.addresses[c.address]
    sender_unplace(s, c)
    if s.uring != NULL:
        uring_driver_drop(s, c)
    if abort:
        now_.l_onoff = 1
        now_.l_linger = 0
        setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &now_, sizeof(linger))
    close(c.fd)
    c.fd = -1
    if c.state == CONNECTION_CONNECTING:
        s.connecting -= 1
        a.connecting -= 1
    else:
        s.open -= 1
        count_add(&s.ledger.connections_open, -1)
    s.live -= 1
    a.live -= 1
    c.state = CONNECTION_FREE
    reply_free(&c.reply)
    c.next = s.free_connection
    s.free_connection = <int32_t>(c - s.connections)
