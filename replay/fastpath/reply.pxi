# Framing of replies (RFC 9112 6, 7): where each one ends, its status, and whether the connection goes on. The bytes of
# bodies are passed over. Must not know: sockets, requests beyond "was it HEAD".

cdef enum:
    REPLY_MAX_HEAD = 256 * 1024   # of a head, and of the trailers
    REPLY_MAX_SIZE_LINE = 16 * 1024
    REPLY_MEMO = 1024             # a longer head is not remembered

cdef enum ReplyState:
    REPLY_START = 0               # before or in the status line
    REPLY_FIELDS = 1
    REPLY_LENGTH = 2              # `left` bytes of body
    REPLY_UNTIL_CLOSE = 3
    REPLY_CHUNK_SIZE = 4          # digits of a chunk size
    REPLY_CHUNK_EXTENSION = 5     # the rest of the size line
    REPLY_CHUNK_DATA = 6
    REPLY_CHUNK_END = 7           # the line end after the data
    REPLY_TRAILERS = 8

cdef enum ReplyField:             # of the field line before, for folded ones
    REPLY_FIELD_OTHER = 0
    REPLY_FIELD_FRAMING = 1
    REPLY_FIELD_CONNECTION = 2

cdef const char* REPLY_BEGIN = b"HTTP/1."

cdef struct Reply:
    uint8_t state                 # ReplyState
    uint8_t version               # 10 or 11
    uint8_t close                 # Connection: close
    uint8_t keep_alive            # Connection: keep-alive
    uint8_t chunked               # last coding of Transfer-Encoding
    uint8_t coded                 # has a Transfer-Encoding
    uint8_t field                 # ReplyField
    uint8_t digits                # of the chunk size
    uint16_t status
    uint16_t retry_after          # seconds, of a 429 or 503 that says so in digits; else 0
    uint32_t head_len             # so far; trailers and size lines count the same way
    uint32_t interim              # 1xx before it
    int64_t length                # Content-Length, -1 none
    uint64_t left                 # bytes of body or of this chunk
    uint64_t body_len             # decoded so far
    uint32_t part_len             # bytes at part
    uint32_t part_size
    uint8_t* part                 # owns: a line that is not whole yet


cdef struct ReplyMemo:            # the latest head that came in one piece, and what it meant: servers send the same one again and again
    uint32_t length               # 0: none
    bint no_body
    int got                       # OK: the reply ends with it
    Reply after                   # without `part`
    uint8_t head[REPLY_MEMO]


cdef inline void reply_reset(Reply* r) noexcept nogil:
    """Ready for the next reply; the line buffer is kept."""
    r.state = REPLY_START
    r.close = r.keep_alive = r.chunked = r.coded = r.field = r.digits = 0
    r.status = r.retry_after = 0
    r.head_len = r.interim = r.part_len = 0
    r.length = -1
    r.left = r.body_len = 0


cdef void reply_free(Reply* r) noexcept nogil:
    free(r.part)
    r.part = NULL
    r.part_len = r.part_size = 0


cdef inline bint reply_begun(const Reply* r) noexcept nogil:
    return r.state != REPLY_START or r.part_len > 0 or r.interim > 0


cdef inline bint reply_persists(const Reply* r) noexcept nogil:
    """The connection goes on after this reply (RFC 9112 9.3)."""
    return not r.close and (r.version >= 11 or r.keep_alive)


cdef inline bint reply_is(const uint8_t* text, size_t n, const char* lower, size_t m) noexcept nogil:
    cdef size_t i
    cdef uint8_t b
    if n != m:
        return False
    for i in range(n):
        b = text[i]
        if b >= c'A' and b <= c'Z':
            b |= 32
        if b != <uint8_t>lower[i]:
            return False
    return True


cdef int reply_keep_part(Reply* r, const uint8_t* data, size_t n) noexcept nogil:
    cdef size_t need = r.part_len + n
    cdef size_t size = r.part_size if r.part_size else 256
    cdef uint8_t* grown
    if need > REPLY_MAX_HEAD:
        return MALFORMED
    if need > r.part_size:
        while size < need:
            size *= 2
        grown = <uint8_t*>realloc(r.part, size)
        if grown == NULL:
            return MALFORMED
        r.part = grown
        r.part_size = <uint32_t>size
    memcpy(r.part + r.part_len, data, n)
    r.part_len = <uint32_t>need
    return OK


cdef int reply_status_line(Reply* r, const uint8_t* s, size_t n) noexcept nogil:
    """`HTTP/1.DIGIT SP 3DIGIT`, then nothing, or a blank and any reason (RFC 9112 4; the SP before it is often left out)."""
    if n < 12 or memcmp(s, REPLY_BEGIN, 7) != 0 or s[7] < c'0' or s[7] > c'9' or s[8] != c' ':
        return MALFORMED
    if s[9] < c'1' or s[9] > c'9' or s[10] < c'0' or s[10] > c'9' or s[11] < c'0' or s[11] > c'9':
        return MALFORMED
    if n > 12 and s[12] != c' ' and s[12] != c'\t':
        return MALFORMED
    r.version = 10 if s[7] == c'0' else 11
    r.status = <uint16_t>((s[9] - c'0') * 100 + (s[10] - c'0') * 10 + (s[11] - c'0'))
    r.state = REPLY_FIELDS
    return OK


cdef int reply_length(Reply* r, const uint8_t* s, size_t n) noexcept nogil:
    """Content-Length: one number, or the same one several times (RFC 9112 6.3 item 5)."""
    cdef size_t i = 0
    cdef int64_t v
    cdef bint digits
    while True:
        while i < n and (s[i] == c' ' or s[i] == c'\t'):
            i += 1
        v = 0
        digits = False
        while i < n and s[i] >= c'0' and s[i] <= c'9':
            if v > 922337203685477580LL or (v == 922337203685477580LL and s[i] > c'7'):
                return MALFORMED             # 2^63 - 1 is the most
            v = v * 10 + (s[i] - c'0')
            digits = True
            i += 1
        while i < n and (s[i] == c' ' or s[i] == c'\t'):
            i += 1
        if not digits or (r.length >= 0 and r.length != v):
            return MALFORMED
        r.length = v
        if i == n:
            return OK
        if s[i] != c',':
            return MALFORMED
        i += 1


cdef void reply_tokens(Reply* r, const uint8_t* s, size_t n, int field) noexcept nogil:
    """A list of tokens: Connection, or Transfer-Encoding (where the last one decides)."""
    cdef size_t at = 0
    cdef size_t end
    cdef size_t last
    while at < n:
        while at < n and (s[at] == c' ' or s[at] == c'\t' or s[at] == c','):
            at += 1
        end = at
        while end < n and s[end] != c',':
            end += 1
        last = end
        while last > at and (s[last - 1] == c' ' or s[last - 1] == c'\t'):
            last -= 1
        if last > at:
            if field == REPLY_FIELD_FRAMING:
                if not reply_is(s + at, last - at, b"identity", 8):     # RFC 2616 had it for "no coding"
                    r.coded = 1
                    r.chunked = reply_is(s + at, last - at, b"chunked", 7)
            elif reply_is(s + at, last - at, b"close", 5):
                r.close = 1
            elif reply_is(s + at, last - at, b"keep-alive", 10):
                r.keep_alive = 1
        at = end


cdef int reply_field(Reply* r, const uint8_t* s, size_t n) noexcept nogil:
    """One field line without its end. Only what frames is looked at; the rest may be anything with a colon."""
    cdef size_t name
    cdef size_t at
    cdef const uint8_t* colon
    if s[0] == c' ' or s[0] == c'\t':         # folded (RFC 9112 5.2): harmless, unless it frames
        if r.field == REPLY_FIELD_FRAMING:
            return MALFORMED
        if r.field == REPLY_FIELD_CONNECTION:
            reply_tokens(r, s, n, REPLY_FIELD_CONNECTION)
        return OK
    r.field = REPLY_FIELD_OTHER
    colon = <const uint8_t*>memchr(s, c':', n)
    if colon == NULL or colon == s:
        return MALFORMED
    name = <size_t>(colon - s)
    while name > 0 and (s[name - 1] == c' ' or s[name - 1] == c'\t'):
        name -= 1
    at = <size_t>(colon - s) + 1
    while at < n and (s[at] == c' ' or s[at] == c'\t'):
        at += 1
    while n > at and (s[n - 1] == c' ' or s[n - 1] == c'\t'):
        n -= 1
    if reply_is(s, name, b"content-length", 14):
        r.field = REPLY_FIELD_FRAMING
        return reply_length(r, s + at, n - at)
    if reply_is(s, name, b"transfer-encoding", 17):
        r.field = REPLY_FIELD_FRAMING
        reply_tokens(r, s + at, n - at, REPLY_FIELD_FRAMING)
    elif reply_is(s, name, b"connection", 10):
        r.field = REPLY_FIELD_CONNECTION
        reply_tokens(r, s + at, n - at, REPLY_FIELD_CONNECTION)
    elif (r.status == 429 or r.status == 503) and reply_is(s, name, b"retry-after", 11):
        r.retry_after = reply_seconds(s + at, n - at)
    return OK


cdef uint16_t reply_seconds(const uint8_t* s, size_t n) noexcept nogil:
    """Retry-After as a number of seconds (RFC 9110 10.2.3); 0 for a date, or what is neither."""
    cdef size_t i
    cdef uint32_t v = 0
    for i in range(n):
        if s[i] < c'0' or s[i] > c'9':
            return 0
        v = v * 10 + (s[i] - c'0')
        if v > 65535:
            return 65535
    return <uint16_t>v


cdef int reply_head_done(Reply* r, bint no_body) noexcept nogil:
    """After the empty line: OK the reply is whole, NEED_MORE it has a body or was interim."""
    cdef uint32_t interim
    if r.status >= 100 and r.status < 200 and r.status != 101:
        interim = r.interim + 1
        reply_reset(r)
        r.interim = interim
        return NEED_MORE
    if no_body or r.status == 101 or r.status == 204 or r.status == 304:
        return OK
    r.head_len = 0
    if r.coded:
        r.state = REPLY_CHUNK_SIZE if r.chunked else REPLY_UNTIL_CLOSE
    elif r.length > 0:
        r.left = <uint64_t>r.length
        r.state = REPLY_LENGTH
    elif r.length == 0:
        return OK
    else:
        r.state = REPLY_UNTIL_CLOSE
    return NEED_MORE


cdef int reply_line(Reply* r, const uint8_t* s, size_t n, bint no_body) noexcept nogil:
    """A whole line of the head or the trailers, with its LF."""
    n -= 1
    if n > 0 and s[n - 1] == c'\r':
        n -= 1
    if r.state == REPLY_START:
        if n == 0:                            # a line end too many after the body before
            return NEED_MORE
        return reply_status_line(r, s, n) or NEED_MORE
    if n == 0:
        return OK if r.state == REPLY_TRAILERS else reply_head_done(r, no_body)
    if r.state == REPLY_TRAILERS:
        return NEED_MORE
    return reply_field(r, s, n) or NEED_MORE


cdef int reply_chunk_byte(Reply* r, uint8_t b) noexcept nogil:
    """One byte of a size line or of the line end after a chunk's data."""
    cdef int digit = -1
    r.head_len += 1
    if r.head_len > REPLY_MAX_SIZE_LINE:
        return MALFORMED
    if r.state == REPLY_CHUNK_END:
        if b == c'\n':
            r.state = REPLY_CHUNK_SIZE
            r.head_len = 0
            r.digits = 0
            r.left = 0
        elif b != c'\r' or r.head_len > 1:
            return MALFORMED
        return NEED_MORE
    if r.state == REPLY_CHUNK_SIZE:
        if b >= c'0' and b <= c'9':
            digit = b - c'0'
        elif (b | 32) >= c'a' and (b | 32) <= c'f':
            digit = (b | 32) - c'a' + 10
        if digit >= 0:
            if r.left >> 59:                  # 2^63 - 1 at most
                return MALFORMED
            r.left = (r.left << 4) | <uint64_t>digit
            r.digits = 1
            return NEED_MORE
        if not r.digits or (b != c';' and b != c' ' and b != c'\t' and b != c'\r' and b != c'\n'):
            return MALFORMED
        r.state = REPLY_CHUNK_EXTENSION
    if b == c'\n':
        r.head_len = 0
        r.state = REPLY_CHUNK_DATA if r.left else REPLY_TRAILERS
    return NEED_MORE


cdef inline void reply_as(Reply* r, const Reply* other, uint32_t interim) noexcept nogil:
    """Everything but the line buffer; it is empty."""
    cdef uint8_t* part = r.part
    cdef uint32_t size = r.part_size
    r[0] = other[0]
    r.part = part
    r.part_size = size
    r.part_len = 0
    r.interim = interim


cdef int reply_feed(Reply* r, const uint8_t* data, size_t n, bint no_body, ReplyMemo* memo, size_t* used) noexcept nogil:
    """Takes the next bytes of a connection.

    OK: the reply is whole, and ends after *used bytes.  NEED_MORE: all n were used.  MALFORMED: no reply; the connection is of no use.
    no_body: the request was HEAD.  memo: of the heads of one server, or NULL."""
    cdef bint fresh = memo != NULL and r.state == REPLY_START and r.part_len == 0 and r.head_len == 0
    cdef uint32_t interim = r.interim
    cdef size_t at = 0
    cdef size_t take
    cdef const uint8_t* lf
    cdef int got
    used[0] = n
    if fresh and memo.length and n >= memo.length and memo.no_body == no_body and memcmp(data, memo.head, memo.length) == 0:
        reply_as(r, &memo.after, interim)
        at = memo.length
        fresh = False
        if memo.got == OK:
            used[0] = at
            return OK
    while at < n:
        if r.state <= REPLY_FIELDS or r.state == REPLY_TRAILERS:
            lf = <const uint8_t*>memchr(data + at, c'\n', n - at)
            take = <size_t>(lf - data) + 1 - at if lf != NULL else n - at
            if take > <size_t>(REPLY_MAX_HEAD - r.head_len):
                return MALFORMED
            r.head_len += <uint32_t>take
            if lf == NULL:
                if r.state == REPLY_START and not reply_may_begin(r, data + at, take):
                    return MALFORMED
                return NEED_MORE if reply_keep_part(r, data + at, take) == OK else MALFORMED
            if r.part_len:
                if reply_keep_part(r, data + at, take) != OK:
                    return MALFORMED
                take = r.part_len
                r.part_len = 0
                got = reply_line(r, r.part, take, no_body)
            else:
                got = reply_line(r, data + at, take, no_body)
            at = <size_t>(lf - data) + 1
            if fresh and (got == OK or (got == NEED_MORE and r.state > REPLY_FIELDS)):
                fresh = False
                if at <= REPLY_MEMO and r.interim == interim:
                    memo.length = <uint32_t>at
                    memo.no_body = no_body
                    memo.got = got
                    memo.after = r[0]
                    memcpy(memo.head, data, at)
            if got == OK:
                used[0] = at
            if got != NEED_MORE:
                return got
        elif r.state == REPLY_UNTIL_CLOSE:
            r.body_len += n - at
            return NEED_MORE
        elif r.state == REPLY_LENGTH or r.state == REPLY_CHUNK_DATA:
            take = n - at if n - at < r.left else <size_t>r.left
            r.left -= take
            r.body_len += take
            at += take
            if r.left == 0:
                if r.state == REPLY_LENGTH:
                    used[0] = at
                    return OK
                r.state = REPLY_CHUNK_END
        else:
            if reply_chunk_byte(r, data[at]) == MALFORMED:
                return MALFORMED
            at += 1
    return NEED_MORE


cdef bint reply_may_begin(const Reply* r, const uint8_t* data, size_t n) noexcept nogil:
    """False when these first bytes of a line can never become a status line: garbage without a line end is known at once."""
    cdef size_t i
    if r.part_len >= 7:
        return True
    if r.part_len == 0 and data[0] == c'\r':
        return n == 1
    if r.part_len == 1 and r.part[0] == c'\r':
        return False
    for i in range(n):
        if r.part_len + i >= 7:
            break
        if data[i] != <uint8_t>REPLY_BEGIN[r.part_len + i]:
            return False
    return True


cdef int reply_eof(const Reply* r) noexcept nogil:
    """The server closed. OK: that ended the reply."""
    return OK if r.state == REPLY_UNTIL_CLOSE else MALFORMED


cdef class ReplyForTests:
    """The framing of one connection's replies, for tests. remembers: known heads are not parsed again. `feed` and `end` give a list of (status, body length, persists, interim)."""
    cdef Reply reply
    cdef ReplyMemo memo
    cdef bint remembers
    cdef readonly bint bad

    def __cinit__(self, bint remembers=True):
        self.remembers = remembers
        memset(&self.memo, 0, sizeof(ReplyMemo))
        memset(&self.reply, 0, sizeof(Reply))
        reply_reset(&self.reply)

    def __dealloc__(self):
        reply_free(&self.reply)

    cdef tuple outcome(self):
        got = (self.reply.status, self.reply.body_len, bool(reply_persists(&self.reply)), self.reply.interim)
        reply_reset(&self.reply)
        return got

    def feed(self, const unsigned char[::1] data, bint head=False):
        cdef size_t at = 0
        cdef size_t used = 0
        cdef size_t n = data.shape[0]
        cdef int got
        whole = []
        while at < n and not self.bad:
            got = reply_feed(&self.reply, &data[at], n - at, head, &self.memo if self.remembers else NULL, &used)
            if got == MALFORMED:
                self.bad = True
                break
            at += used
            if got == OK:
                whole.append(self.outcome())
        return whole

    def end(self):
        if not self.bad and reply_eof(&self.reply) == OK:
            return [self.outcome()]
        return []

    @property
    def begun(self):
        return bool(reply_begun(&self.reply))
