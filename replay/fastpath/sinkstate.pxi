# The sink's vocabulary: its bounds, kinds of replies, structs.

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
