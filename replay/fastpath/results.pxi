# A line of JSON a request that ended (`--results`), made without the GIL and handed over in blocks; a full buffer is counted, never waited for.
# Must not know: files, how a request is judged.

cdef enum:
    LINES_BLOCK = 256 * 1024
    LINES_BLOCKS = 256            # 64 MiB may wait for the disk
    LINES_TARGETS = 1024

cdef struct LinesBlock:
    size_t used
    size_t size
    int64_t lines
    uint8_t bytes[1]              # size of them

cdef bytes LINES_HEX = b"0123456789abcdef"
cdef const uint8_t* LINES_HEX_BYTES = LINES_HEX
#: a query key that holds one of these (any case, %74 is t) has a value that is masked
cdef enum:
    LINES_SECRETS = 11
    LINES_KEY = 256               # bytes of a key that percent signs are taken out of; a longer one is masked
cdef const char* LINES_SECRET[LINES_SECRETS]
LINES_SECRET[:] = [b"token", b"secret", b"password", b"passwd", b"pwd", b"key", b"auth", b"signature", b"session", b"credential", b"jwt"]
cdef const char* LINES_FRAMING[3]
LINES_FRAMING[:] = [b"none", b"length", b"chunked"]
cdef const char* LINES_OUTCOME[4]
LINES_OUTCOME[:] = [b"", b"answered", b"unanswered", b"dropped"]
cdef const char* LINES_REASON[REASON_COUNT]
cdef list _reason_names = [(name or "").encode() for name in SENDER_REASONS]
for _i in range(len(_reason_names)):
    LINES_REASON[_i] = <const char*>(<bytes>_reason_names[_i])


cdef bint utf8_valid(const uint8_t* p, size_t n) noexcept nogil:
    """As Python's strict decoder has it (RFC 3629)."""
    cdef size_t i = 0
    cdef size_t k, more
    cdef uint32_t c
    while i < n:
        c = p[i]
        i += 1
        if c < 0x80:
            continue
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
        elif 0xF0 <= c <= 0xF4:
            more = 3
        else:
            return False
        if n - i < more:
            return False
        for k in range(more):
            if p[i + k] & 0xC0 != 0x80:
                return False
        if (c == 0xE0 and p[i] < 0xA0) or (c == 0xED and p[i] > 0x9F) or (c == 0xF0 and p[i] < 0x90) or (c == 0xF4 and p[i] > 0x8F):
            return False
        i += more
    return True


cdef uint8_t* line_text(uint8_t* o, const char* text) noexcept nogil:
    while text[0]:
        o[0] = <uint8_t>text[0]
        o += 1
        text += 1
    return o


cdef uint8_t* line_int(uint8_t* o, int64_t value) noexcept nogil:
    cdef uint8_t digits[24]
    cdef int n = 0
    cdef uint64_t left = <uint64_t>value
    if value < 0:
        o[0] = 45
        o += 1
        left = <uint64_t>0 - left
    while True:
        digits[n] = <uint8_t>(48 + left % 10)
        n += 1
        left //= 10
        if left == 0:
            break
    while n:
        n -= 1
        o[0] = digits[n]
        o += 1
    return o


cdef uint8_t* line_bytes(uint8_t* o, const uint8_t* p, size_t n, bint utf8) noexcept nogil:
    """The inside of a JSON string; at most 6 bytes a byte."""
    cdef size_t i
    cdef uint8_t c
    for i in range(n):
        c = p[i]
        if c == 34 or c == 92:
            o[0] = 92
            o[1] = c
            o += 2
        elif c < 32 or c == 127:
            o = line_text(o, b"\\u00")
            o[0] = LINES_HEX_BYTES[c >> 4]
            o[1] = LINES_HEX_BYTES[c & 15]
            o += 2
        elif c < 128 or utf8:
            o[0] = c
            o += 1
        else:                     # latin-1
            o[0] = <uint8_t>(0xC0 | (c >> 6))
            o[1] = <uint8_t>(0x80 | (c & 0x3F))
            o += 2
    return o


cdef size_t line_key(uint8_t* o, const uint8_t* p, size_t n) noexcept nogil:
    """A key as its reader has it, `%74oken` as `token`; n bytes of room are enough. How many it takes."""
    cdef size_t i = 0
    cdef size_t k = 0
    while i < n:
        if p[i] == 37 and i + 2 < n and HTTP1_HEX[p[i + 1]] >= 0 and HTTP1_HEX[p[i + 2]] >= 0:
            o[k] = <uint8_t>(HTTP1_HEX[p[i + 1]] << 4 | HTTP1_HEX[p[i + 2]])
            i += 3
        else:
            o[k] = p[i]
            i += 1
        k += 1
    return k


cdef bint line_secret(const uint8_t* p, size_t n) noexcept nogil:
    """The name of a query key says that its value is a credential."""
    cdef uint8_t plain[LINES_KEY]
    cdef size_t at, i, k
    cdef int which
    if memchr(p, 37, n) != NULL:
        if n > <size_t>LINES_KEY:
            return True
        n = line_key(plain, p, n)
        p = plain
    for which in range(<int>LINES_SECRETS):
        k = 0
        while LINES_SECRET[which][k]:
            k += 1
        at = 0
        while at + k <= n:
            i = 0
            while i < k and (p[at + i] | 32) == <uint8_t>LINES_SECRET[which][i]:
                i += 1
            if i == k:
                return True
            at += 1
    return n == 3 and (p[0] | 32) == 115 and (p[1] | 32) == 105 and (p[2] | 32) == 103    # sig


cdef inline uint8_t* line_part(uint8_t* o, const uint8_t* p, size_t n, bint utf8, bint bare) noexcept nogil:
    if not bare:
        return line_bytes(o, p, n, utf8)
    memcpy(o, p, n)
    return o + n


cdef uint8_t* line_target(uint8_t* o, const uint8_t* p, size_t n, bint bare) noexcept nogil:
    """A target with user info and the values of query keys that look like credentials masked. bare: its bytes, else the inside of a JSON string."""
    cdef bint utf8 = not bare and utf8_valid(p, n)
    cdef size_t i = 0
    cdef size_t begin, eq
    cdef size_t slash = 0
    cdef size_t at = 0
    # scheme://user:password@host
    while i + 2 < n and p[i] != 47 and p[i] != 63:
        i += 1
    if i > 0 and i + 1 < n and p[i - 1] == 58 and p[i] == 47 and p[i + 1] == 47:
        slash = i + 2
        i = slash
        while i < n and p[i] != 47 and p[i] != 63:
            if p[i] == 64:
                at = i
            i += 1
        if at:
            o = line_text(line_part(o, p, slash, utf8, bare), b"***")
            p += at
            n -= at
    i = 0
    while i < n and p[i] != 63:
        i += 1
    o = line_part(o, p, i, utf8, bare)
    while i < n:                  # p[i] is ? or &
        o = line_part(o, p + i, 1, utf8, bare)
        i += 1
        begin = i
        eq = 0
        while i < n and p[i] != 38 and p[i] != 59:
            if p[i] == 61 and eq == 0:
                eq = i
            i += 1
        if eq and eq + 1 < i and line_secret(p + begin, eq - begin):
            o = line_text(line_part(o, p + begin, eq + 1 - begin, utf8, bare), b"***")
        else:
            o = line_part(o, p + begin, i - begin, utf8, bare)
    return o


def masked_target(bytes target not None):
    """A target as the lines have it, for other logs: its bytes but for what is masked."""
    cdef size_t n = len(target)
    cdef bytearray out = bytearray(3 * n + 8)    # `***` stands for a byte at least
    cdef uint8_t* begin = <uint8_t*><char*>out
    return bytes(out[:line_target(begin, <const uint8_t*><char*>target, n, True) - begin])


cdef uint8_t* line_address(uint8_t* o, const uint8_t* ip, uint16_t port) noexcept nogil:
    """`10.0.0.1:80`, `[2001:db8::1]:80` (RFC 5952)."""
    cdef int i, run, best, best_at
    cdef uint32_t group
    cdef uint32_t shift
    cdef bint begun
    if memcmp(ip, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
        for i in range(12, 16):
            if i > 12:
                o[0] = 46
                o += 1
            o = line_int(o, ip[i])
    else:
        best = best_at = 0
        i = 0
        while i < 8:
            run = 0
            while i + run < 8 and ip[2 * (i + run)] == 0 and ip[2 * (i + run) + 1] == 0:
                run += 1
            if run > best:
                best, best_at = run, i
            i += run if run else 1
        if best < 2:
            best = 0
        o[0] = 91
        o += 1
        i = 0
        while i < 8:
            if best and i == best_at:
                o = line_text(o, b"::")
                i += best
                continue
            if i and not (best and i == best_at + best):
                o[0] = 58
                o += 1
            group = (<uint32_t>ip[2 * i] << 8) | ip[2 * i + 1]
            begun = False
            for shift in range(4):
                if begun or (group >> (12 - 4 * shift)) & 15 or shift == 3:
                    begun = True
                    o[0] = LINES_HEX_BYTES[(group >> (12 - 4 * shift)) & 15]
                    o += 1
            i += 1
        o[0] = 93
        o += 1
    o[0] = 58
    return line_int(o + 1, port)


cdef uint8_t* line_us(uint8_t* o, int64_t ns) noexcept nogil:
    """Microseconds with three digits behind the point, as many as are needed; null below 0."""
    cdef int64_t rest
    if ns < 0:
        return line_text(o, b"null")
    o = line_int(o, ns // 1000)
    rest = ns % 1000
    o[0] = 46
    o[1] = <uint8_t>(48 + rest // 100)
    o += 2
    if rest % 100:
        o[0] = <uint8_t>(48 + rest // 10 % 10)
        o += 1
        if rest % 10:
            o[0] = <uint8_t>(48 + rest % 10)
            o += 1
    return o


cdef uint8_t* line_time(uint8_t* o, int64_t at, int64_t base) noexcept nogil:
    return line_int(o, at + base) if at else line_text(o, b"null")


cdef class Lines:
    """Lines of JSON from one judge to one writer, in blocks."""
    cdef PointerRing ring
    cdef bint made
    cdef LinesBlock* block        # owns: being filled
    cdef list names               # keeps the bytes
    cdef const char* name_of[LINES_TARGETS]
    cdef bint many
    cdef int64_t n_lines
    cdef int64_t n_lost

    def __cinit__(self, uint64_t blocks=LINES_BLOCKS):
        self.names = []
        if ring_init(&self.ring, blocks) < 0:
            raise MemoryError
        self.made = True

    def __dealloc__(self):
        cdef void* block
        free(self.block)
        if self.made:
            block = ring_pop(&self.ring)
            while block != NULL:
                free(block)
                block = ring_pop(&self.ring)
            ring_free(&self.ring)

    def name(self, names):
        """The targets, in the order of the sources."""
        import json
        cdef int i
        if len(names) > LINES_TARGETS:
            raise ValueError("at most 1024 targets")
        self.names = [json.dumps(name).encode() for name in names]
        for i in range(<int>len(names)):
            self.name_of[i] = <const char*>(<bytes>self.names[i])

    @property
    def lines(self):
        """Lines that were made."""
        return count_get(&self.n_lines)

    @property
    def lost(self):
        """Lines that found no room."""
        return count_get(&self.n_lost)

    def take(self):
        """A block of whole lines as bytes, oldest first; None when there is none."""
        cdef LinesBlock* block = <LinesBlock*>ring_pop(&self.ring)
        if block == NULL:
            return None
        try:
            return <bytes>block.bytes[:block.used]
        finally:
            free(block)

    cdef void flush(self, bint everything) noexcept nogil:
        """Hands over what there is; without `everything` only where somebody could be waiting for it."""
        cdef LinesBlock* block = self.block
        if block == NULL or block.used == 0 or (not everything and ring_count(&self.ring)):
            return
        self.block = NULL
        if not ring_push(&self.ring, block):
            count_add(&self.n_lost, block.lines)
            free(block)

    cdef void write(self, const SenderNote* note, int which) noexcept nogil:
        """One line."""
        cdef const Request* r = &note.row
        cdef const uint8_t* target = r.data - r.captured_target_len if r.captured_target_len else r.data + r.target_at
        cdef size_t target_len = r.captured_target_len if r.captured_target_len else r.target_len
        cdef size_t host_len = r.captured_host_len
        cdef const uint8_t* host = r.data - r.captured_target_len - host_len
        cdef size_t need = 1600 + 6 * (target_len + host_len + r.method_len + r.host_len) + len_of(self.name_of[which])
        cdef size_t size
        cdef uint8_t* o
        cdef int i
        cdef int64_t service = note.end_ns - note.sent_ns if note.outcome == OUTCOME_ANSWERED else -1
        cdef LinesBlock* block = self.block
        if block != NULL and block.size - block.used < need:
            self.flush(True)
            block = self.block
        if block == NULL:
            size = LINES_BLOCK if need < LINES_BLOCK else need
            block = <LinesBlock*>malloc(sizeof(LinesBlock) + size)
            if block == NULL:
                count_add(&self.n_lost, 1)
                return
            block.used = 0
            block.size = size
            block.lines = 0
            self.block = block
        o = block.bytes + block.used
        o = line_int(line_text(o, b'{"n":'), <int64_t>r.n)
        o = line_int(line_text(o, b',"ts_ns":'), r.ts_ns)
        o = line_address(line_text(o, b',"client":"'), r.client, r.client_port)
        o = line_address(line_text(o, b'","server":"'), r.server, r.server_port)
        o = line_int(line_text(o, b'","flow":'), <int64_t>r.flow)
        o = line_int(line_text(o, b',"index":'), r.index)
        o = line_bytes(line_text(o, b',"method":"'), r.data, r.method_len, utf8_valid(r.data, r.method_len))
        o = line_target(line_text(o, b'","target":"'), target, target_len, False)
        o = line_text(o, b'","version":"1.0"' if r.version == 10 else b'","version":"1.1"')
        if r.flags & REQUEST_HOST_CAPTURED:
            o = line_bytes(line_text(o, b',"host":"'), host, host_len, utf8_valid(host, host_len))
            o = line_text(o, b'"')
        else:
            o = line_text(o, b',"host":null')
        if r.flags & REQUEST_HAS_HOST:
            o = line_bytes(line_text(o, b',"shadow_host":"'), r.data + r.host_at, r.host_len, utf8_valid(r.data + r.host_at, r.host_len))
            o = line_text(o, b'"')
        else:
            o = line_text(o, b',"shadow_host":null')
        o = line_int(line_text(o, b',"body_len":'), <int64_t>r.body_len)
        if note.has_digest:
            o = line_text(o, b',"body_sha256":"')
            for i in range(32):
                o[0] = LINES_HEX_BYTES[note.digest[i] >> 4]
                o[1] = LINES_HEX_BYTES[note.digest[i] & 15]
                o += 2
            o = line_text(o, b'"')
        else:
            o = line_text(o, b',"body_sha256":null')
        o = line_text(line_text(o, b',"framing":"'), LINES_FRAMING[r.framing if r.framing <= 2 else 0])
        o = line_text(o, b'","withheld":null,"status":')
        o = line_int(o, r.status) if r.status else line_text(o, b"null")
        o = line_us(line_text(o, b',"response_us":'), r.response_ns)
        o = line_text(line_text(o, b',"to":'), self.name_of[which])
        o = line_time(line_text(o, b',"due_ns":'), note.due_ns, note.base_ns)
        o = line_time(line_text(o, b',"sent_ns":'), note.sent_ns, note.base_ns)
        o = line_text(line_text(o, b',"outcome":"'), LINES_OUTCOME[note.outcome])
        if note.reason:
            o = line_text(line_text(line_text(o, b'","reason":"'), LINES_REASON[note.reason]), b'"')
        else:
            o = line_text(o, b'","reason":null')
        o = line_text(o, b',"shadow_status":')
        o = line_int(o, note.status) if note.status else line_text(o, b"null")
        o = line_us(line_text(o, b',"service_us":'), service)
        o = line_us(line_text(o, b',"shadow_response_us":'), note.first_byte_ns - note.sent_ns if note.first_byte_ns and note.sent_ns else -1)
        o = line_int(line_text(o, b',"shadow_body_len":'), note.body_len)
        o = line_text(o, b"}\n")
        block.used = o - block.bytes
        block.lines += 1
        count_add(&self.n_lines, 1)


cdef size_t len_of(const char* text) noexcept nogil:
    cdef size_t n = 0
    if text != NULL:
        while text[n]:
            n += 1
    return n
