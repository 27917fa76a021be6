# The vocabulary of the engine: structs, statuses, reasons. Read this first.
#
# A pointer field *owns*, or *borrows until …*; each says which. Times are nanoseconds. Stage functions are `noexcept nogil`.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from replay._linux cimport pthread_mutex_t


cdef extern from "fastpath/atomics.h" nogil:
    ctypedef struct PointerRing:
        pass
    int64_t atomic_get(const int64_t* p)
    void atomic_set(int64_t* p, int64_t v)
    int atomic_take(int64_t* p)
    int64_t atomic_first(int64_t* p, int64_t v)
    int64_t atomic_add(int64_t* p, int64_t v)
    void count_add(int64_t* p, int64_t v)
    void count_set(int64_t* p, int64_t v)
    int64_t count_get(const int64_t* p)
    int ring_init(PointerRing* r, uint64_t slots)
    void ring_free(PointerRing* r)
    int ring_push(PointerRing* r, void* p)
    void* ring_pop(PointerRing* r)
    uint64_t ring_count(const PointerRing* r)
    bint ring_is_behind(const PointerRing* r)


cdef extern from "fastpath/hints.h" nogil:
    void touch(const void* p)
    void prefetch(const void* p)
    void prefetch_struct(const void* p, size_t n)
    void zero_struct(void* p, size_t n)
    void spin_pause()

cdef extern from "fastpath/xxh64.h" nogil:
    uint64_t xxh64(const uint8_t* p, size_t n, uint64_t seed)
    uint64_t xxh64_40(const uint8_t* p, uint64_t seed)

cdef extern from "fastpath/scan.h" nogil:
    ctypedef struct LineIndex:    # line ends of a head
        uint32_t lf[260]
        uint32_t count
        uint32_t odd
    size_t head_index(const uint8_t* p, size_t n, LineIndex* x)
    size_t scan_name(const uint8_t* p, size_t n)
    int scan_blank(const uint8_t* p, size_t n)
    size_t head_index_plain(const uint8_t* p, size_t n, LineIndex* x)


cdef enum Status:                 # -1 is left to Cython's own exceptions
    OK = 0
    NEED_MORE = -2                # not an error: feed the next bytes
    MALFORMED = -3                # counted by reason, never raised


# ---- packets and segments -------------------------------------------------------------------------------------------

cdef struct Packet:
    int64_t ts_ns                 # capture clock, since 1970
    const uint8_t* data           # borrows from its source until the next take()
    uint32_t caplen               # bytes at data
    uint32_t wirelen              # bytes the packet had on the wire
    uint32_t link                 # LINKTYPE_ number of tcpdump.org
    uint32_t source               # index of the capture (file)
    uint32_t iface                # interface within the source
    uint64_t number               # within its source, from 1, as Wireshark counts

cdef enum TcpFlag:
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_PSH = 8
    TCP_ACK = 16

cdef struct Segment:
    int64_t ts_ns
    const uint8_t* data           # TCP payload; borrows from the packet, or from the decoder (fragments) until the next decode()
    uint32_t len                  # bytes at data
    uint32_t missing              # bytes that follow data by the IP length but were cut by the snap length (D3)
    uint32_t seq
    uint32_t ack                  # valid with TCP_ACK
    uint8_t src[16]               # IPv4 as v4-mapped IPv6
    uint8_t dst[16]
    uint16_t sport                # host byte order
    uint16_t dport
    uint8_t flags                 # TcpFlag
    uint64_t network              # hash of VLANs, VNIs and interface; used with --split-by-network only
    uint64_t number               # packet number, for messages and tests
    uint32_t source
    uint8_t lasting               # data lies in the packet, and stays there until the source's next take
    uint8_t side                  # with hash: 0 when it comes from the lower endpoint
    uint64_t hash                 # of its connection (segment_key)


cdef class Stop:
    """Asks every thread of a run to end: an atomic flag and an eventfd that becomes readable, for those that poll."""
    cdef int64_t flag
    cdef readonly int fd


cdef class Guard:
    """The targets' addresses, none of which may be a captured server ("never into production")."""
    cdef uint8_t* addresses       # owns: 18 bytes each, address and port
    cdef int count
    cdef uint64_t ports           # a bit for each of their ports, modulo 64: most requests need no more
    cdef int64_t hit              # atomic: a captured server is a target; nothing more may be sent
    cdef bint is_target(self, const uint8_t* address, uint16_t port) noexcept nogil


cdef class PacketSource:
    """Where packets come from. `take` fills at most `most` packets, valid until the next take.

    Returns the number of packets; 0 at the end; TAKE_IDLE when nothing came for a moment (a pipe, a live tap).
    `keeps`: the next take leaves all packets so far valid, as one from a window of a file that holds more does; False unless a source knows better.

    cold_until: from `at`, behind the latest packet, on lie packets in memory that nobody has touched yet, up to there: it should be asked for ahead. NULL: not so."""
    cdef int take(self, Packet* out, int most) noexcept nogil
    cdef bint keeps(self) noexcept nogil
    cdef const uint8_t* cold_until(self, const uint8_t* at) noexcept nogil

cdef enum:
    TAKE_IDLE = -1


# ---- HTTP ---------------------------------------------------------------------------------------------------------------

cdef extern from "fastpath/headfast.h" nogil:
    cdef enum Framing:
        FRAMING_NONE              # 0
        FRAMING_LENGTH            # 1
        FRAMING_CHUNKED           # 2

    cdef enum HeadFlag:
        HEAD_AMBIGUOUS            # H4: two servers could frame it differently
        HEAD_MALFORMED            # H5: no framing at all
        HEAD_HOSTS_DIFFER         # two Host lines with different values
        HEAD_UPGRADE              # has a field Upgrade with a value
        HEAD_UPGRADE_H2C          # … which is h2c alone
        HEAD_EXPECT               # Expect: 100-continue
        HEAD_CLOSE                # Connection has the option close
        HEAD_KEEP_ALIVE           # Connection has the option keep-alive
        HEAD_HOP                  # has a field that never goes on (Connection, Keep-Alive, Proxy-Connection, Expect)
        HEAD_ABSOLUTE             # absolute-form target
        HEAD_MARKER               # has x-shadow-replay
        HEAD_CONNECT              # the method is CONNECT
        HEAD_BAD_HOST_LINE        # Host folded
        HEAD_NAMES                # a Connection field names other fields
        HEAD_FOLDED               # a line continues the one before it

    enum:
        HEAD_DROPS                # hop-by-hop fields of a head whose place is noted
        HEAD_BEGUN                # head_scan: a usual first line, no end yet
        HS_STRICT                 # a sanitizer looks on

    ctypedef struct Head:         # of a request or a reply; offsets are from its first byte
        uint32_t length           # through the empty line
        uint32_t line_len         # first line with its end
        uint32_t method_len       # request; it begins at 0
        uint32_t target_at        # request
        uint32_t target_len
        uint32_t lines            # field lines
        uint32_t host_at          # value of the first Host field, outer blanks cut
        uint32_t host_len
        uint32_t host_split       # with host_plain: where in the value a suffix goes
        uint32_t hosts            # Host fields
        uint32_t flags            # HeadFlag
        uint16_t status           # reply
        uint8_t version           # 10 or 11
        uint8_t framing           # Framing
        uint8_t host_plain        # the value is letters, digits, '-', '.', ':' alone
        int64_t content_length    # FRAMING_LENGTH; else -1
        uint32_t drops            # fields that never go on; those beyond HEAD_DROPS are not noted
        uint32_t drop_at[4]
        uint32_t drop_end[4]

    ctypedef size_t (*HeadScan)(const uint8_t* p, size_t n, Head* h) noexcept nogil
    size_t head_scan(const uint8_t* p, size_t n, Head* h)
    HeadScan head_scan_variant(const char* name)
    void head_scan_choose()

cdef struct Chunked:              # state of a chunked body between two feeds; all zeros is the start
    uint8_t state
    uint8_t ambiguous             # H4
    uint8_t line_cr
    uint8_t digits                # of a size line: some came; behind the last one: a trailer field began
    uint32_t line_len             # of the size line or the trailers so far
    uint64_t left                 # bytes left of this chunk's data
    uint64_t body_len             # decoded so far

cdef enum ChunkedState:
    CHUNKED_START = 0
    CHUNKED_DONE = 100
    CHUNKED_BAD = 101


# ---- the joint ------------------------------------------------------------------------------------------------------------

cdef enum RequestFlag:
    REQUEST_HEAD = 1              # method HEAD: its reply has no body
    REQUEST_CONNECT = 2
    REQUEST_HTTP10 = 4
    REQUEST_HAS_HOST = 8
    REQUEST_INCOMPLETE = 16       # show --incomplete only
    REQUEST_WRITE = 32            # method not safe (RFC 9110 9.2.1)
    REQUEST_AUTHORITY = 64        # authority_at/len come from the target, not from Host
    REQUEST_HOST_CAPTURED = 128   # the captured head had a Host field (record)

cdef struct Request:
    int64_t ts_ns                 # of the packet with its first byte
    int64_t offset_ns             # ts_ns since the first request found, gaps over --max-gap cut: what pacing divides by the speed
    int64_t response_ns           # first request byte to first byte of the captured reply; -1 unknown
    uint64_t n                    # ordinal among the found, from 0
    int64_t nth                   # ordinal among the selected of all passes, from 0, one for all copies: what an even rate goes by
    uint64_t flow                 # captured connection
    uint64_t length               # bytes at data
    uint64_t body_len             # decoded
    const uint8_t* data           # borrows from its batch: as it will be sent (send), or the captured head (show)
    const uint8_t* digest         # SHA-256 of the decoded body, 32 bytes (show), else NULL; borrows from its batch
    uint32_t index                # within its flow
    uint32_t head_len             # bytes of data that are head
    uint32_t seq                  # TCP sequence number of the first byte
    uint32_t method_len
    uint32_t target_at            # offsets into data
    uint32_t target_len
    uint32_t host_at              # value of Host as in data; REQUEST_HAS_HOST
    uint32_t host_len
    uint32_t authority_at         # what the shadow host is made of: the target's authority, else Host (show)
    uint32_t authority_len
    uint32_t flags                # RequestFlag
    uint32_t captured_host_len    # record: the captured Host and target stand in front of data, in this order
    uint32_t captured_target_len
    uint16_t status               # of the captured final reply; 0 unknown
    uint8_t version               # 10 or 11
    uint8_t framing               # Framing
    uint8_t withheld              # Withheld, 0 none (show)
    uint8_t incomplete            # Incomplete, 0 whole (show --incomplete)
    uint16_t client_port
    uint16_t server_port
    uint8_t client[16]
    uint8_t server[16]

cdef enum:                        # Withheld,          # S1: the first that applies
    WITHHELD_NONE = 0
    WITHHELD_CONNECT = 1
    WITHHELD_UPGRADE = 2
    WITHHELD_AMBIGUOUS = 3
    WITHHELD_UNCONFIRMED = 4
    WITHHELD_NO_HOST = 5
    WITHHELD_BAD_HOST = 6
    WITHHELD_LOOP = 7
    WITHHELD_TRUNCATED = 8
    WITHHELD_COUNT = 9

cdef enum:                        # Incomplete,          # H12
    INCOMPLETE_NONE = 0
    INCOMPLETE_GAP = 1
    INCOMPLETE_CUT_BY_SNAPLEN = 2
    INCOMPLETE_CUT_AT_END = 3
    INCOMPLETE_CLOSED = 4
    INCOMPLETE_MALFORMED = 5
    INCOMPLETE_HEAD_TOO_LARGE = 6
    INCOMPLETE_TOO_LARGE = 7
    INCOMPLETE_BODY_REFUSED = 8
    INCOMPLETE_EVICTED = 9
    INCOMPLETE_COUNT = 10

cdef struct BatchPool:
    pthread_mutex_t lock          # guards free, spare
    Batch* free                   # owns: batches of the usual size, ready for use
    int64_t held                  # bytes of batches that are out; atomic
    int64_t budget                # bytes that may be out; one batch is always allowed
    int64_t peak
    int64_t spare                 # batches in free

cdef struct Batch:                # requests as rows, and the arena that their bytes live in
    int64_t refs                  # atomic: one a ring it was pushed into, one a request still needed; back to the pool at 0
    Request* rows                 # owns
    uint8_t* arena                # owns
    uint64_t size                 # of the arena
    uint64_t used
    uint32_t capacity             # rows
    uint32_t count
    int64_t loop                  # pass of --loop, from 0
    int64_t shift_ns              # is added to the offset_ns of its rows: a further pass over kept rows
    int64_t shift_nth             # … and to their nth
    Batch* of                     # owns a reference: whose rows and arena these are; NULL: its own
    Batch* next                   # in the pool's free list
    BatchPool* pool               # borrows: it outlives its batches

cdef class Pool:
    """Memory for batches: a budget in bytes."""
    cdef BatchPool pool
    cdef object __weakref__

cdef class Queue:
    """Batches on their way to one consumer: a ring, an eventfd to wait on, an end mark."""
    cdef PointerRing ring
    cdef Pool pool                # kept alive
    cdef readonly int fd          # becomes readable when a batch was pushed or the end was marked
    cdef uint64_t slots           # as asked for; the ring has room for as many or more
    cdef int64_t waiting          # atomic: the consumer is about to sleep on fd
    cdef int64_t ended            # atomic
    cdef int64_t refused          # requests that never got into it: it was full (live), the run was stopped (offline), or there was no memory; who pushes counts
    cdef bint prompt              # its consumer must be on time: who pushes goes on as soon as there is room
    cdef bint yields              # who pushes offers the processor to others then
    cdef int push(self, Batch* batch) noexcept nogil
    cdef int push_quietly(self, Batch* batch) noexcept nogil
    cdef void rest(self, const int64_t* stop) noexcept nogil
    cdef void nudge(self) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef Batch* pop(self) noexcept nogil
    cdef void finish(self) noexcept nogil

cdef class Requests:
    """A batch as Python sees it. Owns one reference."""
    cdef Batch* batch
    cdef Pool pool
    cdef Request* row(self, Py_ssize_t i) except NULL

cdef Batch* batch_take(BatchPool* pool, uint64_t bytes, const int64_t* stop) noexcept nogil
cdef void batch_keep(Batch* batch, int64_t times) noexcept nogil
cdef void batch_release(Batch* batch) noexcept nogil
cdef int64_t now_ns() noexcept nogil
