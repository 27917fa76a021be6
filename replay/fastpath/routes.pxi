# Compiled routes: which one a request takes, which mirrors take it, and its copies (docs/policy.md; docs/design.md S5).
# What must live here: matching, and everything that is per mirror. It must not know percentages, YAML, names of clusters. Patterns run with the GIL.

cdef enum:
    ROUTE_MIRRORS = 32            # of one route
    ROUTE_CANDIDATES = 6          # blocks that a cache entry names
    ROUTE_KEY = 232               # longer hosts and paths together are not cached
    ROUTE_CACHE = 4096            # entries; a power of 2
    ROUTE_FEW = 4                 # so few blocks are looked at faster than the cache
    ROUTE_LOOKS = 1024            # after so many look-ups the cache is judged …
    ROUTE_REST = 16384            # … and left alone for so many requests, if it held less than a quarter of them

cdef struct NamedTest:
    Text name
    Test test
    bint joined                   # a header that comes several times is one value, joined by commas; else one of its values is enough

cdef struct HostTest:
    int kind
    uint32_t port                 # 0: any, or none
    Text value                    # lower case

cdef struct RouteQuick:           # of a block, in an array of their own: most blocks are passed over by it
    uint64_t word                 # the first bytes of a path that can match …
    uint64_t mask                 # … those that count; 0: all paths

cdef struct RouteBlock:
    HostTest* hosts
    Test* authorities
    uint16_t* ports
    Test path
    Test* methods
    NamedTest* headers
    NamedTest* query
    NamedTest* cookies
    Network* clients
    int host_count
    int authority_count
    int port_count
    bint has_path
    int method_count
    int header_count
    int query_count
    int cookie_count
    int client_count
    bint more                     # depends on more than host, port and path
    uint32_t route

cdef enum PathRewriteKind:
    PATH_KEEP = 0
    PATH_FULL = 1
    PATH_PREFIX = 2
    PATH_REGEX = 3

cdef struct MirrorRow:
    Rules rules                   # sample, Host, headers
    int queue
    bint has_authority
    Text authority                # stands for the host, before the suffix
    int path_kind                 # PathRewriteKind
    Text path_value
    Text path_matched
    PyObject* path_change         # bytes -> bytes; borrows from the Routes
    uint64_t max_body
    int64_t limit                 # copies; -1 none
    int64_t copies                # atomic: taken so far

cdef struct RouteRow:
    int first                     # of its mirrors
    int count
    int64_t matched               # atomic: complete requests

cdef struct RouteTable:           # owned by a Routes; read only but for the counters
    RouteBlock* blocks
    RouteQuick* quick
    int block_count
    RouteRow* routes
    int route_count
    MirrorRow* mirrors
    int mirror_count
    int queue_count
    int64_t* queued               # atomic, of each queue: copies that were meant for it
    int64_t* unqueued             # … that never got into it
    int64_t limited               # atomic: requests all of whose copies a limit held back
    int64_t fanout                # atomic: copies beyond the first

cdef struct CacheEntry:
    uint64_t hash
    uint32_t host_len
    uint32_t path_len
    uint16_t port
    uint8_t count                 # 0xFF: empty
    uint8_t more                  # there may be candidates behind the last one
    uint16_t blocks[ROUTE_CANDIDATES]
    uint8_t key[ROUTE_KEY]

cdef struct Router:               # of one Ingest
    RouteTable* table             # borrows from the Routes
    CacheEntry* cache             # owns
    uint32_t looks                # since it was judged
    uint32_t hits
    uint32_t rest                 # requests that it is left alone for
    uint64_t secret               # of its hash: what is cached where cannot be foreseen
    Router* after                 # of those that are not used any more but by requests under way
    int64_t users                 # requests that it decided about and that have not left
    int queue_count
    PyObject** queues             # borrows: its Ingest holds them; NULL: nothing is handed on
    Batch** batches               # owns: the open one of each queue
    int64_t* published
    uint8_t* scratch              # owns: a head with another path, joined header values
    size_t scratch_size

cdef struct Copy:                 # of a message's buffer, one a mirror that takes it
    uint32_t mirror
    uint32_t head_at              # in the buffer
    uint32_t head_len
    uint32_t host_at              # in the head
    uint32_t host_len
    uint32_t target_at
    uint32_t target_len

cdef struct RouteQuestion:        # a request as routes see it
    Text host
    Text name                     # host without its port
    uint32_t host_port            # 0 none
    uint16_t port
    Text path
    Text query
    bint has_query


# ---- tests -----------------------------------------------------------------------------------------------------------------

cdef bint host_holds(const HostTest* t, const RouteQuestion* q) noexcept nogil:
    if t.port and t.port != q.host_port:
        return False
    if t.kind == TEST_ANY:
        return True
    if t.kind == TEST_EXACT:
        return q.name.n == t.value.n and folded_same(q.name.p, t.value.p, t.value.n)
    if q.name.n <= t.value.n:
        return False
    if t.kind == TEST_SUFFIX:
        return folded_same(q.name.p + q.name.n - t.value.n, t.value.p, t.value.n)
    return folded_same(q.name.p, t.value.p, t.value.n)


cdef int router_room(Router* x, size_t size) noexcept nogil:
    cdef uint8_t* fresh
    if size <= x.scratch_size:
        return 0
    fresh = <uint8_t*>realloc(x.scratch, size + 4096)
    if fresh == NULL:
        return -1
    x.scratch = fresh
    x.scratch_size = size + 4096
    return 0


cdef bint header_joined(Router* x, const uint8_t* p, const Head* h, const Text* name, Text* value) noexcept nogil:
    """All values of this name, joined by commas as Envoy does, empty ones left out. False: there is none. value: borrows from the head, or from the scratch until its next use."""
    cdef size_t at = h.line_len
    cdef size_t end, start, vend
    cdef size_t have = 0
    cdef int count = 0
    cdef const uint8_t* lf
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            break
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
            if count == 0 or (count == 1 and value.n == 0):
                value.p = p + start
                value.n = vend - start
                count = 1
            elif vend > start:
                if router_room(x, h.length + 16) < 0:
                    return True
                if count == 1:
                    memcpy(x.scratch, value.p, value.n)
                    have = value.n
                x.scratch[have] = 44
                memcpy(x.scratch + have + 1, p + start, vend - start)
                have += 1 + vend - start
                count += 1
        at = end + 1
    if count > 1:
        value.p = x.scratch
        value.n = have
    return count > 0


cdef bint header_holds(Router* x, const uint8_t* p, const Head* h, const NamedTest* t) noexcept nogil:
    """As in Envoy: one value of a header that comes several times is enough, and none for an inverted test; what Envoy joins is one value."""
    cdef size_t at = h.line_len
    cdef size_t end, start, vend
    cdef bint there = False
    cdef Text value
    cdef const uint8_t* lf
    if t.joined or t.test.kind == TEST_PRESENT or t.test.kind == TEST_ABSENT:
        value.p = p
        value.n = 0
        there = header_joined(x, p, h, &t.name, &value)
        return test_holds(&t.test, value.p, value.n, there)
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            break
        end = lf - p
        if end - at > t.name.n and p[at + t.name.n] == 58 and http1_same(p + at, <const char*>t.name.p, t.name.n):
            there = True
            start = at + t.name.n + 1
            vend = end
            if vend > start and p[vend - 1] == 13:
                vend -= 1
            while start < vend and (p[start] == 32 or p[start] == 9):
                start += 1
            while vend > start and (p[vend - 1] == 32 or p[vend - 1] == 9):
                vend -= 1
            if test_finds(&t.test, p + start, vend - start):
                return not t.test.inverted
        at = end + 1
    return t.test.inverted if there else test_holds(&t.test, p, 0, False)


cdef bint cookie_value(const uint8_t* p, const Head* h, const Text* name, Text* value) noexcept nogil:
    """The first cookie of this name, as Envoy reads them: only blanks before a name are cut, quotes around a value too; one without `=` is none."""
    cdef size_t at = h.line_len
    cdef size_t end, i, stop
    cdef const uint8_t* lf
    while at < h.length:
        lf = <const uint8_t*>memchr(p + at, 10, h.length - at)
        if lf == NULL:
            return False
        end = lf - p
        if end - at > 6 and p[at + 6] == 58 and http1_same(p + at, b"cookie", 6):
            stop = end
            while stop > at + 7 and (p[stop - 1] == 13 or p[stop - 1] == 32 or p[stop - 1] == 9):
                stop -= 1
            i = at + 7
            while i < stop and p[i] == 9:
                i += 1
            while i < stop:
                while i < stop and p[i] == 32:
                    i += 1
                at = i
                while i < stop and p[i] != 59:
                    i += 1
                if i - at > name.n and p[at + name.n] == 61 and memcmp(p + at, name.p, name.n) == 0:
                    value.p = p + at + name.n + 1
                    value.n = i - at - name.n - 1
                    if value.n >= 2 and value.p[0] == 34 and value.p[value.n - 1] == 34:
                        value.p += 1
                        value.n -= 2
                    return True
                i += 1
        at = end + 1
    return False


cdef bint query_value(const RouteQuestion* q, const Text* name, Text* value) noexcept nogil:
    """The first value of a parameter, as written; one without `=` is empty."""
    cdef size_t at = 0
    cdef size_t end, mark
    if not q.has_query:
        return False
    while at <= q.query.n:
        end = at
        while end < q.query.n and q.query.p[end] != 38:
            end += 1
        mark = at
        while mark < end and q.query.p[mark] != 61:
            mark += 1
        if end > at and mark - at == name.n and memcmp(q.query.p + at, name.p, name.n) == 0:
            value.p = q.query.p + (mark + 1 if mark < end else end)
            value.n = end - mark - 1 if mark < end else 0
            return True
        at = end + 1
    return False


# ---- which route -----------------------------------------------------------------------------------------------------------

cdef void question_from(RouteQuestion* q, const uint8_t* p, const Head* h, const Text* host, uint32_t origin_at, uint16_t port) noexcept nogil:
    cdef size_t end = h.target_at + h.target_len
    cdef size_t i
    cdef const uint8_t* mark
    q.host = host[0]
    if host.p == NULL:
        q.host.p = <const uint8_t*>b""
        q.host.n = 0
    i = host_split(q.host.p, q.host.n)
    q.name.p = q.host.p
    q.name.n = i
    q.host_port = 0
    if q.host.n - i >= 2 and q.host.n - i <= 6:
        i += 1
        while i < q.host.n and 48 <= q.host.p[i] <= 57:
            q.host_port = q.host_port * 10 + q.host.p[i] - 48
            i += 1
        if i < q.host.n:
            q.host_port = 0
    q.port = port if port else <uint16_t>q.host_port if 0 < q.host_port < 65536 else 80
    q.path.p = p + origin_at
    q.path.n = end - origin_at
    q.has_query = False
    mark = <const uint8_t*>memchr(q.path.p, 63, q.path.n)
    if mark != NULL:
        q.has_query = True
        q.query.p = mark + 1
        q.query.n = q.path.n - (mark - q.path.p) - 1
        q.path.n = mark - q.path.p
    if origin_at != h.target_at and (q.path.n == 0 or q.path.p[0] != 47):
        q.path.p = <const uint8_t*>b"/"
        q.path.n = 1


cdef inline bint block_fits(const RouteBlock* b, const RouteQuestion* q) noexcept nogil:
    """What depends on host, port and path alone."""
    cdef int i
    cdef bint found
    if b.port_count:
        found = False
        for i in range(b.port_count):
            if b.ports[i] == q.port:
                found = True
        if not found:
            return False
    if b.host_count:
        found = False
        for i in range(b.host_count):
            if host_holds(&b.hosts[i], q):
                found = True
                break
        if not found:
            return False
    if b.authority_count and not tests_any(b.authorities, b.authority_count, q.host.p, q.host.n):
        return False
    return not b.has_path or test_holds(&b.path, q.path.p, q.path.n, True)


cdef bint block_fits_more(Router* x, const RouteBlock* b, const RouteQuestion* q, const Message* m, const uint8_t* p, const Head* h) noexcept nogil:
    cdef int i
    cdef Text value
    cdef bint there
    if b.method_count and not tests_any(b.methods, b.method_count, p, h.method_len):
        return False
    for i in range(b.header_count):
        if not header_holds(x, p, h, &b.headers[i]):
            return False
    for i in range(b.query_count):
        value.p = p
        value.n = 0
        there = query_value(q, &b.query[i].name, &value)
        if not test_holds(&b.query[i].test, value.p, value.n, there):
            return False
    for i in range(b.cookie_count):
        value.p = p
        value.n = 0
        there = cookie_value(p, h, &b.cookies[i].name, &value)
        # Envoy: a cookie that is missing is not taken as empty, but an inverted test holds for it
        if not (b.cookies[i].test.inverted if not there and b.cookies[i].test.kind not in (TEST_PRESENT, TEST_ABSENT)
                else test_holds(&b.cookies[i].test, value.p, value.n, there)):
            return False
    return not b.client_count or network_has(b.clients, b.client_count, m.client)


cdef int block_next(const RouteTable* t, int i, const RouteQuestion* q) noexcept nogil:
    """The first block from i on that fits by host, port and path; block_count: none."""
    cdef uint64_t word = 0
    memcpy(&word, q.path.p, q.path.n if q.path.n < 8 else 8)
    while i < t.block_count:
        if (word & t.quick[i].mask) == t.quick[i].word and block_fits(&t.blocks[i], q):
            return i
        i += 1
    return i


cdef int route_find(Router* x, const RouteQuestion* q, const Message* m, const uint8_t* p, const Head* h) noexcept nogil:
    """The route of the first block that fits; -1: none."""
    cdef RouteTable* t = x.table
    cdef CacheEntry* e
    cdef uint64_t hash
    cdef int i, at
    if x.rest:
        x.rest -= 1
    if t.block_count <= ROUTE_FEW or x.rest or q.host.n + q.path.n > ROUTE_KEY:
        i = block_next(t, 0, q)
        while i < t.block_count:
            if not t.blocks[i].more or block_fits_more(x, &t.blocks[i], q, m, p, h):
                return <int>t.blocks[i].route
            i = block_next(t, i + 1, q)
        return -1
    x.looks += 1
    if x.looks == ROUTE_LOOKS:
        if x.hits * 4 < ROUTE_LOOKS:
            x.rest = ROUTE_REST   # every path is another one
        x.looks = x.hits = 0
    hash = xxh64(q.path.p, q.path.n, xxh64(q.host.p, q.host.n, x.secret ^ q.port))
    e = &x.cache[hash & (ROUTE_CACHE - 1)]
    if (e.hash == hash and e.count != 0xFF and e.port == q.port and e.host_len == q.host.n and e.path_len == q.path.n
            and memcmp(e.key, q.host.p, q.host.n) == 0 and memcmp(e.key + q.host.n, q.path.p, q.path.n) == 0):
        x.hits += 1
    else:
        e.hash = hash
        e.port = q.port
        e.host_len = <uint32_t>q.host.n
        e.path_len = <uint32_t>q.path.n
        memcpy(e.key, q.host.p, q.host.n)
        memcpy(e.key + q.host.n, q.path.p, q.path.n)
        e.count = 0
        e.more = 1
        i = block_next(t, 0, q)
        while i < t.block_count:
            e.blocks[e.count] = <uint16_t>i
            e.count += 1
            if not t.blocks[i].more:
                e.more = 0        # nothing behind it is ever looked at
                break
            if e.count == ROUTE_CANDIDATES:
                break
            i = block_next(t, i + 1, q)
        if i >= t.block_count:
            e.more = 0
    for at in range(e.count):
        i = e.blocks[at]
        if not t.blocks[i].more or block_fits_more(x, &t.blocks[i], q, m, p, h):
            return <int>t.blocks[i].route
    if not e.more:
        return -1
    i = block_next(t, e.blocks[ROUTE_CANDIDATES - 1] + 1, q)
    while i < t.block_count:
        if not t.blocks[i].more or block_fits_more(x, &t.blocks[i], q, m, p, h):
            return <int>t.blocks[i].route
        i = block_next(t, i + 1, q)
    return -1


cdef void message_route(Engine* g, Message* m, const uint8_t* p, const Head* h, const Text* host, uint32_t origin_at, const uint8_t* key) noexcept nogil:
    """Decides the route of a request and which of its mirrors take it."""
    cdef Router* x = g.router
    cdef RouteQuestion q
    cdef RouteRow* route
    cdef MirrorRow* mirror
    cdef int i, taken
    cdef int found
    cdef bint lowered = False
    question_from(&q, p, h, host, origin_at, m.server_port)
    found = route_find(x, &q, m, p, h)
    m.route = found
    m.router = x
    x.users += 1
    if found < 0:
        m.filtered = FILTERED_NO_ROUTE
        return
    route = &x.table.routes[found]
    if route.count == 0:
        m.filtered = FILTERED_NOT_MIRRORED
        return
    m.sampled = -1
    for i in range(route.count):
        mirror = &x.table.mirrors[route.first + i]
        taken = sample_taken(&mirror.rules, key, p, h, g.low)
        if taken == 2:
            lowered = True
            taken = 0
        if taken == 1:
            m.copies |= <uint32_t>1 << i
        if taken > m.sampled:
            m.sampled = <int8_t>taken
        if m.host_state == HOST_OK and host_loops(&mirror.rules, host, host_split(host.p, host.n)):
            m.loops = 1
    if lowered and m.sampled == 0:
        m.sampled = 2


# ---- copies ---------------------------------------------------------------------------------------------------------------

cdef size_t path_changed(Router* x, void* change, const uint8_t* p, size_t n, size_t at, size_t room) noexcept with gil:
    """What `change` makes of the path p[:n], into the scratch at `at`. Returns its length; 0: it stays as it is.

    room: bytes that the scratch needs beside it."""
    cdef bytes new
    try:
        new = (<object>change)(<bytes>p[:n])
    except Exception:
        return 0                  # out of memory, or a pattern that gave up
    if new[:1] != b"/" or any(c <= 32 or c >= 127 or c == 35 or c == 63 for c in new) or router_room(x, len(new) + room) < 0:
        return 0
    memcpy(x.scratch + at, <const uint8_t*>new, len(new))
    return <size_t>len(new)


cdef inline bint http1_letter(uint8_t c) noexcept nogil:
    return 65 <= c <= 90 or 97 <= c <= 122


cdef const uint8_t* path_rewrite(Router* x, const MirrorRow* r, const uint8_t* p, Head* h, uint32_t* origin_at) noexcept nogil:
    """The head with the path that this mirror wants, and h with the places of its parts there. Where nothing changes that is p itself.

    NULL: out of memory."""
    cdef size_t end = h.target_at + h.target_len
    cdef size_t at = origin_at[0]
    cdef size_t old, n, i
    cdef const uint8_t* mark
    cdef const uint8_t* new = r.path_value.p
    cdef size_t tail = 0          # bytes of the old path that stay at the end of the new one
    cdef int64_t delta
    if r.path_kind == PATH_KEEP or (at < end and p[at] != 47 and p[at] != 63):
        return p
    mark = <const uint8_t*>memchr(p + at, 63, end - at)
    old = (mark - p if mark != NULL else end) - at
    n = r.path_value.n
    if r.path_kind == PATH_PREFIX:
        if old < r.path_matched.n:
            return p
        for i in range(r.path_matched.n):
            if p[at + i] != r.path_matched.p[i] and not (http1_letter(p[at + i]) and (p[at + i] ^ r.path_matched.p[i]) == 32):
                return p
        tail = old - r.path_matched.n
        if n == 0 and (tail == 0 or p[at + old - tail] != 47):
            new = <const uint8_t*>b"/"
            n = 1
    elif r.path_kind == PATH_REGEX:
        n = path_changed(x, <void*>r.path_change, p + at, old, at, h.length)
        if n == 0:
            return p
    if router_room(x, h.length + n) < 0:
        return NULL
    memcpy(x.scratch, p, at)
    if r.path_kind != PATH_REGEX:
        memcpy(x.scratch + at, new, n)
    memcpy(x.scratch + at + n, p + at + old - tail, h.length - at - old + tail)
    delta = <int64_t>(n + tail) - <int64_t>old
    h.length = <uint32_t>(h.length + delta)
    h.line_len = <uint32_t>(h.line_len + delta)
    h.target_len = <uint32_t>(h.target_len + delta)
    h.host_at = <uint32_t>(h.host_at + delta)
    for i in range(h.drops if h.drops < HEAD_DROPS else HEAD_DROPS):
        h.drop_at[i] = <uint32_t>(h.drop_at[i] + delta)
        h.drop_end[i] = <uint32_t>(h.drop_end[i] + delta)
    return x.scratch


cdef inline uint32_t copies_of(uint32_t bits) noexcept nogil:
    cdef uint32_t n = 0
    while bits:
        bits &= bits - 1
        n += 1
    return n


cdef bint message_copies(Engine* g, Message* m, const uint8_t* p, const Head* captured, Text host, uint32_t origin_at) noexcept nogil:
    """The rewritten heads of all copies into the message's buffer: a table of Copy, then the heads; the body follows. False: no room."""
    cdef Router* x = m.router
    cdef RouteRow* route = &x.table.routes[m.route]
    cdef MirrorRow* r
    cdef Head other
    cdef const Head* h
    cdef Text name
    cdef uint32_t origin
    cdef uint64_t room
    cdef uint32_t count = copies_of(m.copies)
    cdef uint32_t before = m.captured_host_len + m.captured_target_len
    cdef Copy copy
    cdef const uint8_t* head
    cdef uint32_t at = 0
    cdef int i
    room = before + count * sizeof(Copy) + (captured.content_length if 0 < captured.content_length <= 4096 else 0)
    for i in range(route.count):
        if (m.copies >> i) & 1:
            r = &x.table.mirrors[route.first + i]
            room += rewrite_bound(&r.rules, captured) + (r.authority.n if r.has_authority else host.n) + r.path_value.n
    if message_room(g, m, room) < 0:
        return False
    if before:
        memcpy(m.buf, p + captured.host_at, m.captured_host_len)
        memcpy(m.buf + m.captured_host_len, p + captured.target_at, m.captured_target_len)
    m.len = before + count * sizeof(Copy)
    for i in range(route.count):
        if not (m.copies >> i) & 1:
            continue
        r = &x.table.mirrors[route.first + i]
        h = captured
        head = p
        origin = origin_at
        name = r.authority if r.has_authority else host
        if r.path_kind != PATH_KEEP:
            memcpy(&other, captured, sizeof(Head))
            head = path_rewrite(x, r, p, &other, &origin)
            h = &other
            # a pattern may have made it longer than was foreseen
            if head == NULL or message_room(g, m, rewrite_bound(&r.rules, h) + name.n) < 0:
                return False
        copy.mirror = <uint32_t>(route.first + i)
        copy.head_at = <uint32_t>m.len
        copy.head_len = <uint32_t>rewrite_head(&r.rules, head, h, name, origin, m.buf + m.len, &copy.host_at, &copy.target_at, &copy.target_len)
        copy.host_len = <uint32_t>(r.rules.literal.n if r.rules.has_literal else name.n + (r.rules.suffix.n if r.rules.has_suffix else 0))
        m.len += copy.head_len
        memcpy(m.buf + before + at * sizeof(Copy), &copy, sizeof(Copy))
        at += 1
    m.head_len = <uint32_t>m.len
    m.flags |= REQUEST_HAS_HOST
    return True


cdef void message_limits(Engine* g, Message* m) noexcept nogil:
    """Takes out the copies that a mirror's bounds forbid (size of the body, number of copies), and counts the others."""
    cdef RouteRow* route = &m.router.table.routes[m.route]
    cdef MirrorRow* r
    cdef int i
    for i in range(route.count):
        if not (m.copies >> i) & 1:
            continue
        r = &m.router.table.mirrors[route.first + i]
        if m.body_len > r.max_body:
            m.dropped_copies |= <uint32_t>1 << i
        elif r.limit >= 0 and atomic_add(&r.copies, 1) > r.limit:
            atomic_add(&r.copies, -1)
            m.dropped_copies |= <uint32_t>1 << i
        elif r.limit < 0:
            count_add(&r.copies, 1)


cdef void routes_push(Engine* g, Router* x, int queue) noexcept nogil:
    """Hands the open batch of a queue over; live, it is dropped when that queue is full. Offline, while that queue is full, the open ones of the others go: what is due there must not wait for it."""
    cdef Batch* batch = x.batches[queue]
    cdef Batch* other
    cdef int i
    x.batches[queue] = NULL
    if batch == NULL:
        return
    if batch.count == 0:
        batch_release(batch)
        return
    while not queue_push(<void*>x.queues[queue], batch):
        if g.wire:
            queue_refuse(<void*>x.queues[queue], batch.count)
            batch_release(batch)
            return
        if atomic_get(g.stop):
            count_add(&x.table.unqueued[queue], batch.count)
            batch_release(batch)
            return
        for i in range(x.queue_count):
            other = x.batches[i]
            if other != NULL and other.count and queue_push(<void*>x.queues[i], other):
                x.batches[i] = NULL
                x.published[i] += 1
        poll(NULL, 0, 1)
    x.published[queue] += 1
    queue_offers(<void*>x.queues[queue])


cdef void routes_publish(Engine* g) noexcept nogil:
    """The open batches of all queues; of a former policy whose requests have all left nothing is kept."""
    cdef Router** at = &g.retired
    cdef Router* x
    cdef int i
    for i in range(g.router.queue_count):
        routes_push(g, g.router, i)
    while at[0] != NULL:
        x = at[0]
        for i in range(x.queue_count):
            routes_push(g, x, i)
        if x.users == 0:
            at[0] = x.after
            router_free(x)
            atomic_add(&g.retiring, -1)
        else:
            at = &x.after


cdef void routes_rows(Engine* g, Message* m, int64_t offset, int64_t n) noexcept nogil:
    """A row for each copy, into the batch of its queue."""
    cdef Router* x = m.router
    cdef RouteRow* route = &x.table.routes[m.route]
    cdef uint32_t before = m.captured_host_len + m.captured_target_len
    cdef uint64_t body = m.len - m.head_len
    cdef uint64_t need
    cdef Copy copy
    cdef Batch* batch
    cdef Request* r
    cdef uint8_t* out
    cdef uint32_t at = 0
    cdef int i, queue
    cdef const int64_t* now_or_never = &LIVE_ALWAYS
    for i in range(route.count):
        if not (m.copies >> i) & 1:
            continue
        at += 1
        if (m.dropped_copies >> i) & 1:
            continue
        queue = x.table.mirrors[route.first + i].queue
        count_add(&x.table.queued[queue], 1)
        count_add(&g.n.copies, 1)
        if not g.collect:
            continue
        memcpy(&copy, m.buf + before + (at - 1) * sizeof(Copy), sizeof(Copy))
        need = before + copy.head_len + body + (32 if g.record else 0)
        batch = x.batches[queue]
        if batch != NULL and (batch.size - batch.used < need or batch.count == batch.capacity):
            routes_push(g, x, queue)
            batch = NULL
        if batch == NULL:
            # Open batches count towards the budget: none may be held back while this waits for it.
            if atomic_get(&g.pool.held) + <int64_t>(need + BATCH_BYTES + BATCH_ROWS * sizeof(Request)) > g.pool.budget:
                routes_publish(g)
            batch = batch_take(g.pool, need, now_or_never if g.wire else g.stop)
            if batch == NULL:
                if g.wire:
                    queue_refuse(<void*>x.queues[queue], 1)
                else:
                    count_add(&x.table.unqueued[queue], 1)
                continue
            batch.loop = g.loop
            x.batches[queue] = batch
        r = &batch.rows[batch.count]
        zero_struct(r, sizeof(Request))
        out = batch.arena + batch.used
        memcpy(out, m.buf, before)
        r.data = out + before
        memcpy(out + before, m.buf + copy.head_at, copy.head_len)
        memcpy(out + before + copy.head_len, m.buf + m.head_len, body)
        r.length = copy.head_len + body
        batch.used += before + copy.head_len + body
        if before:
            r.captured_host_len, r.captured_target_len = m.captured_host_len, m.captured_target_len
        if g.record:
            memcpy(batch.arena + batch.used, m.digest, 32)
            r.digest = batch.arena + batch.used
            batch.used += 32
        row_fill(g, m, r, WITHHELD_NONE, offset, n)
        r.head_len = copy.head_len
        r.target_at = copy.target_at
        r.target_len = copy.target_len
        r.host_at = copy.host_at
        r.host_len = copy.host_len
        batch.count += 1
        if x.published[queue] < 10 and batch.count >= <uint32_t>1 << x.published[queue]:
            routes_push(g, x, queue)


# ---- what Python builds ----------------------------------------------------------------------------------------------------

cdef class Routes:
    """A compiled policy; several Ingests may read it. blocks, routes, mirrors: as `replay.settings.Routing` has them; queues: how many targets.

    Raises ValueError for what cannot be."""
    cdef RouteTable table
    cdef list kept

    def __cinit__(self):
        memset(&self.table, 0, sizeof(RouteTable))
        self.kept = []

    def __init__(self, blocks, routes, mirrors, int queues, *, uint64_t seed=0):
        cdef RouteTable* t = &self.table
        cdef int i, k
        cdef RouteRow* row
        if t.routes != NULL:
            raise RuntimeError("Routes are made once")
        blocks, routes, mirrors = list(blocks), list(routes), list(mirrors)
        if len(blocks) >= 0xFFFF:
            raise ValueError("a policy has at most 65,534 sets of conditions")
        t.block_count, t.route_count, t.mirror_count, t.queue_count = len(blocks), len(routes), len(mirrors), queues
        t.queued = <int64_t*>kept_room(self.kept, queues, sizeof(int64_t))
        t.unqueued = <int64_t*>kept_room(self.kept, queues, sizeof(int64_t))
        t.mirrors = <MirrorRow*>kept_room(self.kept, len(mirrors), sizeof(MirrorRow))
        for i in range(t.mirror_count):
            self.mirror(&t.mirrors[i], mirrors[i], queues, seed)
        t.routes = <RouteRow*>kept_room(self.kept, len(routes), sizeof(RouteRow))
        for i in range(t.route_count):
            row = &t.routes[i]
            indexes = list(routes[i])
            if len(indexes) > ROUTE_MIRRORS:
                raise ValueError(f"a route has at most {ROUTE_MIRRORS} mirrors")
            row.count = len(indexes)
            row.first = indexes[0] if indexes else 0
            for k in range(row.count):
                if indexes[k] != row.first + k or not 0 <= indexes[k] < t.mirror_count:
                    raise ValueError("the mirrors of a route follow each other")
        t.quick = <RouteQuick*>kept_room(self.kept, len(blocks), sizeof(RouteQuick))
        t.blocks = <RouteBlock*>kept_room(self.kept, len(blocks), sizeof(RouteBlock))
        for i in range(t.block_count):
            self.block(&t.blocks[i], &t.quick[i], blocks[i])

    cdef Test* tests(self, given) except NULL:
        cdef Test* out = <Test*>kept_room(self.kept, len(given), sizeof(Test))
        for i, one in enumerate(given):
            kept_test(self.kept, &out[<int>i], one)
        return out

    cdef NamedTest* named(self, given, bint folded) except NULL:
        cdef NamedTest* out = <NamedTest*>kept_room(self.kept, len(given), sizeof(NamedTest))
        for i, (name, one, joined) in enumerate(given):
            out[<int>i].name = kept_text(self.kept, name.lower() if folded else name)
            out[<int>i].joined = joined
            kept_test(self.kept, &out[<int>i].test, one)
        return out

    cdef int block(self, RouteBlock* b, RouteQuick* quick, given) except -1:
        cdef int i
        cdef size_t n
        b.route = given["route"]
        if not 0 <= given["route"] < self.table.route_count:
            raise ValueError("a set of conditions belongs to a route")
        b.host_count = len(given["hosts"])
        b.hosts = <HostTest*>kept_room(self.kept, b.host_count, sizeof(HostTest))
        for i, (kind, value, port) in enumerate(given["hosts"]):
            b.hosts[i].kind = TESTS.index(kind)
            b.hosts[i].value = kept_text(self.kept, value.lower())
            b.hosts[i].port = port
        b.authority_count, b.authorities = len(given["authorities"]), self.tests(given["authorities"])
        b.port_count = len(given["ports"])
        b.ports = <uint16_t*>kept_room(self.kept, b.port_count, sizeof(uint16_t))
        for i in range(b.port_count):
            b.ports[i] = given["ports"][i]
        if given["path"] is not None:
            b.has_path = True
            kept_test(self.kept, &b.path, given["path"])
            if b.path.kind in (TEST_EXACT, TEST_PREFIX, TEST_SEGMENTS) and not b.path.folded and not b.path.inverted:
                n = b.path.value.n if b.path.value.n < 8 else 8
                memcpy(&quick.word, b.path.value.p, n)
                memset(&quick.mask, 0xFF, n)
        b.method_count, b.methods = len(given["methods"]), self.tests(given["methods"])
        b.header_count, b.headers = len(given["headers"]), self.named(given["headers"], True)
        b.query_count, b.query = len(given["query"]), self.named(given["query"], False)
        b.cookie_count, b.cookies = len(given["cookies"]), self.named(given["cookies"], False)
        b.client_count = len(given["clients"])
        b.clients = kept_networks(self.kept, given["clients"])
        b.more = b.method_count or b.header_count or b.query_count or b.cookie_count or b.client_count
        return 0

    cdef int mirror(self, MirrorRow* m, given, int queues, uint64_t seed) except -1:
        cdef Rules* r = &m.rules
        m.queue = given["queue"]
        if not 0 <= m.queue < queues:
            raise ValueError("a mirror goes to one of the targets")
        rules_sample(r, given["share"], given["sample_by"], seed, self.kept)
        m.has_authority = given["authority"] is not None
        m.authority = kept_text(self.kept, given["authority"] or b"")
        r.authority_most = m.authority.n
        changes = given["changes"]
        rules_rewrite(
            r, given["suffix"], given["set_host"], [c for c in changes if c[0] not in ("add", "remove")], [("set", *c[1:]) for c in changes if c[0] == "add"],
            [c[1] or c[2] for c in changes if c[0] == "remove"], given["trace"], self.kept,
        )
        if given["path"] is not None:
            kind, value, matched = given["path"]
            m.path_kind = ("full", "prefix", "regex").index(kind) + 1
            m.path_value = kept_text(self.kept, value)
            if kind == "regex":
                self.kept.append(matched)
                m.path_change = <PyObject*>matched
            else:
                m.path_matched = kept_text(self.kept, matched)
                if any(c <= 32 or c >= 127 or c == 35 or c == 63 for c in value):
                    raise ValueError(f"{value.decode('latin-1')!r} cannot stand in a path")
        m.max_body = 0xFFFFFFFFFFFFFFFF if given["max_body"] is None else given["max_body"]
        m.limit = -1 if given["limit"] is None else given["limit"]
        return 0

    def counters(self):
        """Since it was made: `matched` (requests of each route), `copies` (of each mirror), `queued` and `unqueued` (of each target), `fanout`, `limited`."""
        cdef RouteTable* t = &self.table
        cdef int i
        return {
            "matched": [count_get(&t.routes[i].matched) for i in range(t.route_count)],
            "copies": [count_get(&t.mirrors[i].copies) for i in range(t.mirror_count)],
            "queued": [count_get(&t.queued[i]) for i in range(t.queue_count)],
            "unqueued": [count_get(&t.unqueued[i]) for i in range(t.queue_count)],
            "fanout": count_get(&t.fanout), "limited": count_get(&t.limited),
        }


cdef Router* router_new(RouteTable* table, int queues, PyObject** given) except NULL:
    """queues: how many targets the table has.  given: their queues."""
    cdef Router* x = <Router*>calloc(1, sizeof(Router))
    cdef int i
    if x != NULL:
        x.table = table
        x.queue_count = queues
        x.queues = given
        x.cache = <CacheEntry*>malloc(ROUTE_CACHE * sizeof(CacheEntry))
        x.batches = <Batch**>calloc(queues + 1, sizeof(Batch*))
        x.published = <int64_t*>calloc(queues + 1, sizeof(int64_t))
        x.secret = int.from_bytes(_os.urandom(8), "little")
    if x == NULL or x.cache == NULL or x.batches == NULL or x.published == NULL:
        router_free(x)
        raise MemoryError
    for i in range(ROUTE_CACHE):
        x.cache[i].count = 0xFF
    return x


cdef void router_free(Router* x) noexcept nogil:
    cdef int i
    if x == NULL:
        return
    for i in range(x.queue_count if x.batches != NULL else 0):
        if x.batches[i] != NULL:
            batch_release(x.batches[i])
    free(x.cache)
    free(x.batches)
    free(x.published)
    free(x.scratch)
    free(x)
