# Which requests are taken: filters, the sample, the host that decides (docs/design.md S1, S2, S4).
# Must not know: connections, sockets. Nothing here allocates; patterns of the user run as Python's `re`, with the GIL.

cdef enum SampleBy:
    SAMPLE_REQUEST = 0
    SAMPLE_CONNECTION = 1
    SAMPLE_CLIENT = 2
    SAMPLE_PATH = 3
    SAMPLE_KERNEL = 4             # by connection, with the hash that a packet filter can compute
    SAMPLE_HEADER = 5             # from here on a request may lack the key
    SAMPLE_COOKIE = 6
    SAMPLE_QUERY = 7

cdef enum Trace:
    TRACE_KEEP = 0
    TRACE_UNSAMPLE = 1
    TRACE_DROP = 2

cdef enum:                        # Filtered
    FILTERED_NONE = 0
    FILTERED_TIME = 1
    FILTERED_SERVER = 2
    FILTERED_CLIENT = 3
    FILTERED_PORT = 4
    FILTERED_METHOD = 5
    FILTERED_HOST = 6
    FILTERED_PATH = 7
    FILTERED_NO_ROUTE = 8         # no route of the policy matches
    FILTERED_NOT_MIRRORED = 9     # its route has no mirror
    FILTERED_COUNT = 10

FILTERED = (None, "time", "server", "client", "port", "method", "host", "path", "no_route", "not_mirrored")

cdef enum Change:                 # how a header of Rules.sets is changed
    CHANGE_SET = 0                # the first one gets the value, others go; added where there is none
    CHANGE_APPEND = 1             # a comma and the value behind the last one; added where there is none
    CHANGE_SET_IF_EXISTS = 2
    CHANGE_ADD_IF_ABSENT = 3

CHANGES = ("set", "append", "set_if_exists", "add_if_absent")

cdef enum PartKind:               # what a part of a made value is
    PART_NONE = 0
    PART_TEXT = 1
    PART_HEADER = 2               # the first one of this name
    PART_PATH = 3                 # the target as it is sent
    PART_METHOD = 4
    PART_AUTHORITY = 5            # the host before the suffix
    PART_VERSION = 6              # HTTP/1.1

PARTS = (None, "text", "header", "path", "method", "authority", "version")

cdef struct Part:                 # of a value that is made for each request, as Envoy's formats are
    int what                      # PartKind
    int other                     # PartKind, where `what` is not there
    Text text                     # of a header: its name in lower case
    Text other_text
    uint32_t most                 # bytes of it

cdef struct Field:
    Text name                     # lower case for comparing
    Text shown                    # as the user wrote it
    Text value
    int how                       # Change
    Part* parts                   # a made value, instead of `value`
    int part_count
    bint keep_empty               # a made value that is empty is a value too

cdef struct Network:
    uint64_t want[2]              # the address, as it lies in memory, with zeros behind its bits
    uint64_t mask[2]              # the bits that count

cdef struct Rules:                # what the user asked, compiled; owned by one Ingest, read only
    uint64_t threshold            # S2: taken when the hash is below
    bint all                      # 100 %: does not fit the threshold
    int sample_by                 # SampleBy
    Text sample_name              # lower case
    uint64_t seed
    uint32_t shard                # --shard: this one, from 0
    uint32_t shards               # of so many; 0 or 1: all is ours
    Text* methods
    int method_count              # 0: every method
    Network* clients
    int client_count
    Network* servers
    int server_count
    uint16_t* ports
    int port_count
    int64_t since_ns
    int64_t until_ns
    bint has_path
    bint has_host
    bint filters                  # any of the above: message_filter has to look
    bint has_suffix
    Text suffix
    bint has_literal
    Text literal
    Field* sets
    int set_count
    Field* adds
    int add_count
    Text* removes                 # lower case
    int remove_count
    Test* patterns                # tests on names in lower case: those go as well
    int pattern_count
    int made                      # parts of all made values
    size_t authority_most         # bytes of a host that stands for the captured one
    int trace                     # Trace
    Auth* auth                    # never NULL
    bint marker                   # add x-shadow-replay
    uint32_t max_hops             # a request that was mirrored so often is a loop
    bint loose                    # --resync loose
    bint edits                    # anything but the Host and the marker changes


cdef enum:
    LOW_ALL = 1 << 20             # the whole share is taken

cdef enum:
    KERNEL_P = 0x9E3779B1         # primes of XXH32
    KERNEL_Q = 0x85EBCA77

cdef uint64_t SHARD_SEED = 0x7368617264                  # a hash of its own, so that shards say nothing about the sample


cdef uint32_t shard_of(const Rules* r, const uint8_t* client, uint16_t client_port, const uint8_t* server, uint16_t server_port) noexcept nogil:
    """The shard of a connection, the same on every machine: by the bytes that S2 calls the key of `connection`."""
    cdef uint8_t key[36]
    memcpy(key, client, 16)
    key[16] = client_port >> 8
    key[17] = client_port & 255
    memcpy(key + 18, server, 16)
    key[34] = server_port >> 8
    key[35] = server_port & 255
    return <uint32_t>(xxh64(key, 36, SHARD_SEED) % r.shards)


cdef bint network_has(const Network* nets, int count, const uint8_t* address) noexcept nogil:
    cdef uint64_t have[2]
    cdef int i
    memcpy(have, address, 16)
    for i in range(count):
        if ((have[0] & nets[i].mask[0]) ^ nets[i].want[0]) | ((have[1] & nets[i].mask[1]) ^ nets[i].want[1]) == 0:
            return True
    return False


cdef bint header_find(const uint8_t* p, const Head* h, Text name, Text* value) noexcept nogil:
    """The first field with this name (lower case); its value without outer blanks."""
    cdef size_t at = h.line_len
    cdef size_t end, vend, start
    cdef const uint8_t* lf
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            return False
        end = lf - p
        if end - at > name.n and p[at + name.n] == 58 and http1_same(p + at, <const char*>name.p, name.n):
            start = at + name.n + 1
            vend = end
            if vend > start and p[vend - 1] == 13:
                vend -= 1
            while start < vend and (p[start] == 32 or p[start] == 9):
                start += 1
            while vend > start and (p[vend - 1] == 32 or p[vend - 1] == 9):
                vend -= 1
            value.p = p + start
            value.n = vend - start
            return True
        at = end + 1
    return False


cdef bint select_pair(const uint8_t* p, size_t n, Text name, uint8_t between, Text* value) noexcept nogil:
    """The value of `name` in name=value pairs (a cookie, a query); names are compared as they are."""
    cdef size_t at = 0
    cdef size_t end
    while at < n:
        while at < n and (p[at] == 32 or p[at] == 9):
            at += 1
        end = at
        while end < n and p[end] != between:
            end += 1
        if end - at > name.n and p[at + name.n] == 61 and memcmp(p + at, name.p, name.n) == 0:
            value.p = p + at + name.n + 1
            value.n = end - at - name.n - 1
            while between == 59 and value.n and (value.p[value.n - 1] == 32 or value.p[value.n - 1] == 9):
                value.n -= 1
            return True
        at = end + 1
    return False


cdef inline uint32_t mix32(uint32_t h) noexcept nogil:
    """The last steps of MurmurHash3 (32 bit): each bit of h reaches each bit."""
    h = (h ^ (h >> 16)) * <uint32_t>0x85EBCA6B
    h = (h ^ (h >> 13)) * <uint32_t>0xC2B2AE35
    return h ^ (h >> 16)


cdef inline uint32_t kernel_end(const uint8_t* p) noexcept nogil:
    """One end of a connection (address of 16 bytes, port): its part of kernel_hash."""
    cdef uint32_t h = ((be32(p) * KERNEL_P + be32(p + 4)) * KERNEL_P + be32(p + 8)) * KERNEL_P + be32(p + 12)
    return mix32(h ^ <uint32_t>be16(p + 16) * KERNEL_Q)


cdef uint32_t kernel_hash(const uint8_t* key, uint64_t seed) noexcept nogil:
    """S2b: the same for both directions, in 32-bit arithmetic: what classic BPF has (capture/bpfasm.py). key: of a connection, 36 bytes."""
    return mix32((kernel_end(key) + kernel_end(key + 18)) ^ <uint32_t>(seed ^ (seed >> 32)))


cdef int sample_taken(const Rules* r, const uint8_t* key, const uint8_t* p, const Head* h, uint32_t low) noexcept nogil:
    """1 taken, 0 not, -1 the request lacks the key (S2), 2 it would be but for `low` (of LOW_ALL): so much of the share is taken. key: the 40 bytes of a request, big-endian."""
    cdef Text value
    cdef Text name
    cdef size_t n
    cdef const uint8_t* q
    cdef uint64_t hash
    if r.all and r.sample_by < SAMPLE_HEADER and low == LOW_ALL:
        return 1
    value.p = key
    if r.sample_by == SAMPLE_KERNEL:
        value.n = 36
    elif r.sample_by == SAMPLE_REQUEST:
        value.n = 40
    elif r.sample_by == SAMPLE_CONNECTION:
        value.n = 36
    elif r.sample_by == SAMPLE_CLIENT:
        value.n = 16
    elif r.sample_by == SAMPLE_PATH:
        value.p = p + h.target_at
        value.n = h.target_len
        q = <const uint8_t*>memchr(value.p, 63, value.n)
        if q != NULL:
            value.n = q - value.p
    elif r.sample_by == SAMPLE_HEADER:
        if not header_find(p, h, r.sample_name, &value):
            return -1
    elif r.sample_by == SAMPLE_COOKIE:
        name.p = <const uint8_t*>b"cookie"
        name.n = 6
        if not header_find(p, h, name, &value) or not select_pair(value.p, value.n, r.sample_name, 59, &value):
            return -1
    else:
        q = <const uint8_t*>memchr(p + h.target_at, 63, h.target_len)
        if q == NULL:
            return -1
        q += 1
        n = h.target_at + h.target_len - (q - p)
        if not select_pair(q, n, r.sample_name, 38, &value):
            return -1
    if r.all and low == LOW_ALL:
        return 1
    hash = <uint64_t>kernel_hash(key, r.seed) << 32 if r.sample_by == SAMPLE_KERNEL else xxh64(value.p, value.n, r.seed)
    if not r.all and hash >= r.threshold:
        return 0
    return 1 if low == LOW_ALL or hash < (r.threshold >> 20) * low else 2


cdef enum HostState:
    HOST_OK = 0
    HOST_NONE = 1
    HOST_BAD = 2


cdef HostState host_of(const uint8_t* p, const Head* h, Text* host, uint32_t* origin_at) noexcept nogil:
    """The host as Envoy has it: the target's authority without user info, else Host (mirroring rules, section 1).

    origin_at: where the origin form begins in an absolute-form target (== its end: no path), else target_at."""
    cdef const uint8_t* t = p + h.target_at
    cdef size_t n = h.target_len
    cdef size_t i = 0
    cdef size_t at
    origin_at[0] = h.target_at
    if n and t[0] != 47 and not (h.flags & HEAD_CONNECT):
        if h.flags & HEAD_ABSOLUTE:
            i = 8 if t[4] != 58 else 7
            at = i
            while i < n and t[i] != 47 and t[i] != 63 and t[i] != 35:
                if t[i] == 64:
                    at = i + 1    # user info is never sent on
                i += 1
            host.p = t + at
            host.n = i - at
            origin_at[0] = <uint32_t>(h.target_at + i)
            if host.n == 0:
                return HOST_BAD
            return host_check(host)
        while i < n and HTTP1_TOKEN[t[i]]:
            i += 1
        if i + 2 < n and i > 0 and t[i] == 58 and t[i + 1] == 47 and t[i + 2] == 47:
            return HOST_BAD       # another scheme: Envoy answers 400
    if h.hosts == 0:
        return HOST_NONE
    host.p = p + h.host_at
    host.n = h.host_len
    if h.flags & HEAD_BAD_HOST_LINE:
        return HOST_BAD
    return host_check(host)


cdef HostState host_check(const Text* host) noexcept nogil:
    """What Envoy refuses in a host: bytes from 0x80, blanks, control bytes, / ? # \\ < > " | { } ^ and the backtick."""
    cdef size_t i
    cdef uint8_t c
    for i in range(host.n):
        c = host.p[i]
        if c <= 32 or c >= 127 or c == 47 or c == 63 or c == 35 or c == 92 or c == 60 or c == 62 or c == 34 or c == 124 or c == 123 or c == 125 or c == 94 or c == 96:
            return HOST_BAD
    return HOST_OK


cdef inline size_t host_split(const uint8_t* p, size_t n) noexcept nogil:
    """Where the suffix goes: at the last colon if no `]` stands behind it, else at the end."""
    cdef size_t i = n
    while i > 0:
        i -= 1
        if p[i] == 93:
            return n
        if p[i] == 58:
            return i
    return n


cdef bint host_loops(const Rules* r, const Text* host, size_t at) noexcept nogil:
    """S4: it carries the suffix already. at: of host_split."""
    cdef size_t i
    cdef uint8_t a, b
    if not r.has_suffix or r.has_literal or r.suffix.n == 0:
        return False
    if at < r.suffix.n:
        return False
    # the last byte first: it tells most hosts apart
    if (host.p[at - 1] | 32) != (r.suffix.p[r.suffix.n - 1] | 32):
        return False
    for i in range(r.suffix.n):
        a = host.p[at - r.suffix.n + i]
        b = r.suffix.p[i]
        if 65 <= a <= 90:
            a |= 32
        if 65 <= b <= 90:
            b |= 32
        if a != b:
            return False
    return True


def shadow_host(bytes host not None, bytes suffix=b"-shadow"):
    """`host` with the suffix put where Envoy puts it: before the last colon unless a `]` stands behind that, else at the end.

    Source: Envoy 1.40 by experiment; envoyproxy/envoy:source/common/router/shadow_writer_impl.cc."""
    cdef size_t at = host_split(<const uint8_t*>host, len(host))
    return host[:at] + suffix + host[at:]


def kernel_sample_hash(bytes key not None, uint64_t seed=0):
    """key: of a connection, 36 bytes."""
    if len(key) < 36:
        raise ValueError("a key of a connection has 36 bytes")
    return kernel_hash(<const uint8_t*>key, seed)


def sample_hash(bytes data not None, uint64_t seed=0):
    """XXH64 of a key: what decides whether a sample takes it (docs/design.md S2). `policy --explain` asks it outside of the engine."""
    return xxh64(<const uint8_t*>data, len(data), seed)
