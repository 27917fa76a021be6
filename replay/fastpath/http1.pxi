# HTTP/1 framing: request lines, heads, chunked bodies (RFC 9112). Bytes in, values out.
# Must not know: connections, captures, policy. Neither allocates nor copies.

cdef uint8_t HTTP1_TOKEN[256]     # RFC 9110 5.6.2 tchar
cdef int8_t HTTP1_HEX[256]        # value of a hex digit, else -1


cdef void http1_tables() noexcept:
    cdef int i
    memset(HTTP1_TOKEN, 0, 256)
    memset(HTTP1_HEX, 255, 256)
    for i in range(10):
        HTTP1_TOKEN[48 + i] = 1
        HTTP1_HEX[48 + i] = i
    for i in range(26):
        HTTP1_TOKEN[65 + i] = HTTP1_TOKEN[97 + i] = 1
    for i in range(6):
        HTTP1_HEX[65 + i] = HTTP1_HEX[97 + i] = 10 + i
    for c in b"!#$%&'*+-.^_`|~":
        HTTP1_TOKEN[<int>c] = 1


http1_tables()
head_scan_choose()

cdef enum:
    HTTP1_MOST_METHOD = 32        # H1
    HTTP1_MOST_LINES = 256        # H2
    HTTP1_MOST_CHUNK_LINE = 65536 # a size line, or all trailers of a message

cdef enum RequestLine:
    LINE_REQUEST = 1
    LINE_MORE = 2                 # could still become one
    LINE_HTTP2 = 3                # the preface of HTTP/2
    LINE_OTHER = 4


cdef inline bint http1_same(const uint8_t* p, const char* lower, size_t n) noexcept nogil:
    """n bytes equal `lower` (lower-case ASCII), ignoring case."""
    cdef size_t i
    cdef uint8_t c
    for i in range(n):
        c = p[i]
        if 65 <= c <= 90:
            c |= 32
        if c != <uint8_t>lower[i]:
            return False
    return True


cdef inline bint http1_begins(const uint8_t* p, size_t n, const char* lower, size_t m) noexcept nogil:
    return n >= m and http1_same(p, lower, m)


cdef RequestLine request_line(const uint8_t* p, size_t n) noexcept nogil:
    """What the line at p is (H1). Looks at no byte behind its LF."""
    cdef size_t m = 0
    cdef size_t end
    cdef const uint8_t* lf
    while m < n and m <= HTTP1_MOST_METHOD and HTTP1_TOKEN[p[m]]:
        m += 1
    if m == n and m <= HTTP1_MOST_METHOD:
        return LINE_MORE if m else LINE_MORE
    if m == 0 or m > HTTP1_MOST_METHOD or p[m] != 32:
        return LINE_OTHER
    lf = <const uint8_t*>memchr(p + m, 10, n - m)
    if lf == NULL:
        return LINE_MORE
    end = lf - p
    if end and p[end - 1] == 13:
        end -= 1
    # method SP target SP HTTP/1.x
    if end < m + 11 or p[end - 9] != 32 or memcmp(p + end - 8, b"HTTP/", 5) != 0 or p[end - 2] != 46:
        return LINE_OTHER
    if p[end - 3] == 50 and m == 3 and memcmp(p, b"PRI", 3) == 0:
        return LINE_HTTP2
    if p[end - 3] != 49 or p[end - 1] < 48 or p[end - 1] > 57:
        return LINE_OTHER
    return LINE_REQUEST


cdef inline size_t head_end(const uint8_t* p, size_t n, size_t start) noexcept nogil:
    """Length of the head at p through its empty line (H2); 0 when it is not whole. `start`: where to begin looking for line ends."""
    cdef const uint8_t* lf
    cdef size_t i = start
    while i < n:
        lf = <const uint8_t*>memchr(p + i, 10, n - i)
        if lf == NULL:
            return 0
        i = lf - p + 1
        if i < n and p[i] == 10:
            return i + 1
        if i + 1 < n and p[i] == 13 and p[i + 1] == 10:
            return i + 2
    return 0


cdef int64_t http1_length(const uint8_t* p, size_t n, uint32_t* flags) noexcept nogil:
    """Value of a Content-Length; -1 malformed (H5). A list is ambiguous (H4): its first member counts."""
    cdef size_t i = 0
    cdef uint64_t value = 0
    cdef size_t digits = 0
    while i < n and 48 <= p[i] <= 57:
        if value > (<uint64_t>0x7FFFFFFFFFFFFFFF - (p[i] - 48)) // 10:
            return -1
        value = value * 10 + (p[i] - 48)
        i += 1
        digits += 1
    if digits == 0:
        return -1
    if i < n:
        # what is left may only be further members of a list: blanks, commas, digits
        if memchr(p + i, 44, n - i) == NULL:
            return -1
        while i < n:
            if not (p[i] == 44 or p[i] == 32 or p[i] == 9 or 48 <= p[i] <= 57):
                return -1
            i += 1
        flags[0] |= HEAD_AMBIGUOUS
    return <int64_t>value


cdef bint http1_codings(const uint8_t* p, size_t n, uint32_t* flags) noexcept nogil:
    """True when the last transfer coding is chunked (H3). Odd spellings and chunked before the end are ambiguous (H4)."""
    cdef size_t i = 0
    cdef size_t at, end
    cdef bint last = False
    cdef bint seen = False
    for i in range(n):
        if not (HTTP1_TOKEN[p[i]] or p[i] == 44 or p[i] == 32 or p[i] == 9):
            flags[0] |= HEAD_AMBIGUOUS
    i = 0
    while i <= n:
        at = i
        while i < n and p[i] != 44:
            i += 1
        end = i
        while at < end and (p[at] == 32 or p[at] == 9):
            at += 1
        while end > at and (p[end - 1] == 32 or p[end - 1] == 9):
            end -= 1
        if end > at:
            if seen:
                flags[0] |= HEAD_AMBIGUOUS
            last = end - at == 7 and http1_same(p + at, b"chunked", 7)
            seen = seen or last
        else:
            flags[0] |= HEAD_AMBIGUOUS    # an empty member: servers disagree
        i += 1
    return last


cdef void http1_connection(const uint8_t* p, size_t n, Head* h) noexcept nogil:
    cdef size_t i = 0
    cdef size_t at, end
    while i < n:
        at = i
        while i < n and p[i] != 44:
            i += 1
        end = i
        while at < end and (p[at] == 32 or p[at] == 9):
            at += 1
        while end > at and (p[end - 1] == 32 or p[end - 1] == 9):
            end -= 1
        if end - at == 5 and http1_same(p + at, b"close", 5):
            h.flags |= HEAD_CLOSE
        elif end - at == 10 and http1_same(p + at, b"keep-alive", 10):
            h.flags |= HEAD_KEEP_ALIVE
        elif end > at:
            h.flags |= HEAD_NAMES
        i += 1


cdef inline void head_drop(Head* h, size_t at, size_t end) noexcept nogil:
    """Notes a field that never goes on (RFC 9110 7.6.1)."""
    h.flags |= HEAD_HOP
    if h.drops < HEAD_DROPS:
        h.drop_at[h.drops] = <uint32_t>at
        h.drop_end[h.drops] = <uint32_t>end
    h.drops += 1


cdef int head_parse(const uint8_t* p, size_t n, const LineIndex* x, bint reply, Head* h) noexcept nogil:
    """Fills h from the whole head p[:n] (n and x from head_index), of a request or of a reply. OK, or MALFORMED for more than 256 lines.

    What is wrong with its framing stands in h.flags. Source: RFC 9112 2 to 7, docs/design.md H1 to H5."""
    cdef size_t i, at, end, name, value, vend, colon
    cdef uint32_t line
    cdef const uint8_t* q
    cdef int codings = 0
    cdef int lengths = 0
    cdef bint chunked = False
    cdef bint bad_length = False
    cdef int which = 0            # what the last field was, for folded lines: 1 Host, 2 Content-Length or Transfer-Encoding
    cdef bint folds_ok = False
    cdef uint8_t first
    memset(h, 0, sizeof(Head))
    h.length = <uint32_t>n
    h.content_length = -1
    end = x.lf[0]
    h.line_len = <uint32_t>(end + 1)
    if end and p[end - 1] == 13:
        end -= 1
    else:
        h.flags |= HEAD_AMBIGUOUS
    if reply:
        h.version = 11 if p[7] >= 49 else 10
        i = 9
        while i < end and i < 12 and 48 <= p[i] <= 57:
            h.status = h.status * 10 + (p[i] - 48)
            i += 1
    else:
        i = 0
        while HTTP1_TOKEN[p[i]]:
            i += 1
        h.method_len = <uint32_t>i
        h.target_at = <uint32_t>(i + 1)
        h.target_len = <uint32_t>(end - 9 - h.target_at)
        h.version = 10 if p[end - 1] == 48 else 11
        if scan_blank(p + h.target_at, h.target_len):
            h.flags |= HEAD_AMBIGUOUS
        if h.method_len == 7 and memcmp(p, b"CONNECT", 7) == 0:
            h.flags |= HEAD_CONNECT
        q = p + h.target_at
        if h.target_len >= 7 and q[0] != 47 and (http1_begins(q, h.target_len, b"http://", 7) or http1_begins(q, h.target_len, b"https://", 8)):
            h.flags |= HEAD_ABSOLUTE
    if x.count > HTTP1_MOST_LINES + 2:
        return MALFORMED
    if x.odd:                     # a CR that ends no line, a LF without CR, a NUL
        h.flags |= HEAD_AMBIGUOUS
    at = h.line_len
    for line in range(1, x.count):
        end = x.lf[line]
        i = end + 1               # where the next line begins
        if end > at and p[end - 1] == 13:
            end -= 1
        if end == at:
            break
        h.lines += 1
        if p[at] == 32 or p[at] == 9:
            # obsolete folding (RFC 9112 5.2): harmless unless it could hide framing
            h.flags |= HEAD_FOLDED
            name = at
            while name < end and (p[name] == 32 or p[name] == 9):
                name += 1
            if not folds_ok or which:
                h.flags |= HEAD_AMBIGUOUS
            if which == 1:
                h.flags |= HEAD_BAD_HOST_LINE
            if (http1_begins(p + name, end - name, b"host", 4) or http1_begins(p + name, end - name, b"content-length", 14)
                    or http1_begins(p + name, end - name, b"transfer-encoding", 17)):
                h.flags |= HEAD_AMBIGUOUS
            at = i
            continue
        folds_ok = True
        which = 0
        if reply and p[at] | 32 != 99 and p[at] | 32 != 116:
            at = i                # of a reply only its framing matters: Content-Length, Transfer-Encoding
            continue
        colon = at + scan_name(p + at, n - at)
        while colon < end and HTTP1_TOKEN[p[colon]]:
            colon += 1
        if colon == end or p[colon] != 58 or colon == at:
            h.flags |= HEAD_AMBIGUOUS
            # a blank before the colon: read on as lenient servers do, so that the framing is the likely one
            value = colon
            while value < end and (p[value] == 32 or p[value] == 9):
                value += 1
            if colon == at or value == end or p[value] != 58:
                at = i
                continue
            value += 1
        else:
            value = colon + 1
        vend = end
        while value < vend and (p[value] == 32 or p[value] == 9):
            value += 1
        while vend > value and (p[vend - 1] == 32 or p[vend - 1] == 9):
            vend -= 1
        first = p[at] | 32
        name = colon - at         # its length
        if first == 104:
            if name == 4 and http1_same(p + at, b"host", 4):
                which = 1
                if h.hosts == 0:
                    h.host_at = <uint32_t>value
                    h.host_len = <uint32_t>(vend - value)
                elif h.host_len != vend - value or memcmp(p + h.host_at, p + value, vend - value) != 0:
                    h.flags |= HEAD_HOSTS_DIFFER
                h.hosts += 1
        elif first == 99:
            if name == 14 and http1_same(p + at, b"content-length", 14):
                which = 2
                lengths += 1
                if lengths == 1:
                    h.content_length = http1_length(p + value, vend - value, &h.flags)
                    bad_length = h.content_length < 0
                else:
                    h.flags |= HEAD_AMBIGUOUS
            elif name == 10 and http1_same(p + at, b"connection", 10):
                head_drop(h, at, i)
                http1_connection(p + value, vend - value, h)
            elif name == 14 and http1_same(p + at, b"content_length", 14):
                h.flags |= HEAD_AMBIGUOUS
        elif first == 116:
            if name == 17 and http1_same(p + at, b"transfer-encoding", 17):
                which = 2
                codings += 1
                chunked = http1_codings(p + value, vend - value, &h.flags)
                if codings > 1:
                    h.flags |= HEAD_AMBIGUOUS
            elif name == 17 and http1_same(p + at, b"transfer_encoding", 17):
                h.flags |= HEAD_AMBIGUOUS
        elif first == 101:
            if name == 6 and http1_same(p + at, b"expect", 6):
                head_drop(h, at, i)
                if vend - value == 12 and http1_same(p + value, b"100-continue", 12):
                    h.flags |= HEAD_EXPECT
        elif first == 117:
            if name == 7 and http1_same(p + at, b"upgrade", 7) and vend > value:
                if vend - value != 3 or not http1_same(p + value, b"h2c", 3):
                    h.flags &= ~<uint32_t>HEAD_UPGRADE_H2C
                elif not h.flags & HEAD_UPGRADE:
                    h.flags |= HEAD_UPGRADE_H2C
                h.flags |= HEAD_UPGRADE
        elif first == 107:
            if name == 10 and http1_same(p + at, b"keep-alive", 10):
                head_drop(h, at, i)
        elif first == 112:
            if name == 16 and http1_same(p + at, b"proxy-connection", 16):
                head_drop(h, at, i)
        elif first == 120:
            if name == 15 and http1_same(p + at, b"x-shadow-replay", 15):
                h.flags |= HEAD_MARKER
        at = i
    if codings:
        if not chunked:
            h.flags |= HEAD_MALFORMED
        h.framing = FRAMING_CHUNKED
        h.content_length = -1
        if lengths or h.version == 10:
            h.flags |= HEAD_AMBIGUOUS
    elif lengths:
        h.framing = FRAMING_LENGTH
        if bad_length:
            h.flags |= HEAD_MALFORMED
    return OK


def head_index_for_tests(bytes data, bint plain=False):
    """(length, line ends, odd) of the head at the beginning of data; None when it is not whole. plain: without SIMD."""
    cdef LineIndex x
    cdef const uint8_t* p = data
    cdef size_t n = head_index_plain(p, len(data), &x) if plain else head_index(p, len(data), &x)
    return (n, [x.lf[i] for i in range(min(x.count, 260))], bool(x.odd)) if n else None


def head_parse_for_tests(bytes data not None, bint reply=False, variant=None):
    """What is said of the head at the beginning of data, as a dict; None when it is not whole. variant: of head_scan (sse2, avx2, neon, plain), whose
    None says also that it is not usual. Raises LookupError for a variant that this machine has not got. The bytes are looked at in a place of exactly their size."""
    cdef LineIndex x
    cdef Head h
    cdef HeadScan scan = NULL
    cdef size_t n
    cdef bytes name
    cdef uint8_t* copy
    if variant is not None:
        name = variant.encode()
        scan = head_scan_variant(name)
        if scan == NULL:
            raise LookupError(variant)
    copy = <uint8_t*>malloc(len(data) or 1)
    if copy == NULL:
        raise MemoryError
    try:
        memcpy(copy, <const uint8_t*>data, len(data))
        if scan != NULL:
            n = scan(copy, len(data), &h)
            if n == 0 or (h.method_len == 0) != reply:
                return None
            if n == HEAD_BEGUN:
                return {"begun": True}
        else:
            n = head_index(copy, len(data), &x)
            if n == 0:
                return None
            if head_parse(copy, n, &x, reply, &h) != OK:
                return {"flags": -1}
        found = {"length": h.length, "line_len": h.line_len, "version": h.version, "framing": h.framing, "content_length": h.content_length}
        if reply:
            return found | {"status": h.status, "malformed": (h.flags & HEAD_MALFORMED) != 0}
        return found | {
            "method_len": h.method_len, "target_at": h.target_at, "target_len": h.target_len, "lines": h.lines, "host_at": h.host_at, "host_len": h.host_len,
            "hosts": h.hosts, "flags": h.flags, "drops": [(h.drop_at[i], h.drop_end[i]) for i in range(min(<int>h.drops, 4))],
            "split": h.host_split if h.host_plain else None,
        }
    finally:
        free(copy)


# ---- chunked bodies (RFC 9112 7.1) -------------------------------------------------------------------------------------

cdef enum ChunkedInner:
    CHUNKED_SIZE = 1              # digits seen
    CHUNKED_BLANK = 2             # blanks behind the size
    CHUNKED_EXTENSION = 3
    CHUNKED_SIZE_LF = 4           # CR seen
    CHUNKED_DATA = 5
    CHUNKED_DATA_CR = 6           # all data seen
    CHUNKED_DATA_LF = 7
    CHUNKED_TRAILER = 8           # at the start of a line
    CHUNKED_TRAILER_LINE = 9
    CHUNKED_TRAILER_LF = 10       # CR in a trailer line
    CHUNKED_LAST_LF = 11          # CR of the empty line
    CHUNKED_TRAILER_NAME = 12     # in the name of a field


cdef size_t chunked_step(Chunked* c, const uint8_t* p, size_t n, const uint8_t** body, size_t* body_len) noexcept nogil:
    """Takes bytes of a chunked body: returns how many. `body`: at most one run of data in them.

    Ends early after a run of data, at CHUNKED_DONE, and at CHUNKED_BAD (H5; the bytes up to there are taken)."""
    cdef size_t i = 0
    cdef size_t run
    cdef uint8_t b
    body_len[0] = 0
    while i < n:
        if c.state == CHUNKED_DATA:
            run = n - i
            if run > c.left:
                run = c.left
            body[0] = p + i
            body_len[0] = run
            c.left -= run
            c.body_len += run
            if c.left == 0:
                c.state = CHUNKED_DATA_CR
            return i + run
        b = p[i]
        i += 1
        if c.state == CHUNKED_START or c.state == CHUNKED_SIZE:
            c.line_len += 1
            if HTTP1_HEX[b] >= 0:
                if c.left > (<uint64_t>0x7FFFFFFFFFFFFFFF - HTTP1_HEX[b]) >> 4 or c.line_len > HTTP1_MOST_CHUNK_LINE:
                    c.state = CHUNKED_BAD
                    return i
                c.left = (c.left << 4) | <uint64_t>HTTP1_HEX[b]
                c.digits = 1
                c.state = CHUNKED_SIZE
            elif (b == 32 or b == 9):
                if c.digits:
                    c.state = CHUNKED_BLANK
                else:
                    c.ambiguous = 1
                    if c.line_len > 256:
                        c.state = CHUNKED_BAD
                        return i
            elif not c.digits:
                c.state = CHUNKED_BAD
                return i
            elif b == 59:
                c.state = CHUNKED_EXTENSION
            elif b == 13:
                c.state = CHUNKED_SIZE_LF
            elif b == 10:
                c.ambiguous = 1
                chunked_sized(c)
            else:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_BLANK:
            c.line_len += 1
            if b == 59:
                c.state = CHUNKED_EXTENSION
            elif b == 13:
                c.ambiguous = 1
                c.state = CHUNKED_SIZE_LF
            elif b == 10:
                c.ambiguous = 1
                chunked_sized(c)
            elif not (b == 32 or b == 9) or c.line_len > HTTP1_MOST_CHUNK_LINE:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_EXTENSION:
            c.line_len += 1
            if b == 13:
                c.state = CHUNKED_SIZE_LF
                c.line_cr = 1
            elif b == 10:
                c.ambiguous = 1
                chunked_sized(c)
            elif (b < 32 and b != 9) or b == 127:
                c.ambiguous = 1
            if c.line_len > HTTP1_MOST_CHUNK_LINE:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_SIZE_LF:
            if b == 10:
                chunked_sized(c)
            elif c.line_cr:       # a bare CR within an extension: a control byte there
                c.ambiguous = 1
                c.state = CHUNKED_EXTENSION if b != 13 else CHUNKED_SIZE_LF
            else:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_DATA_CR:
            if b == 13:
                c.state = CHUNKED_DATA_LF
            elif b == 10:
                c.ambiguous = 1
                c.state = CHUNKED_START
            else:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_DATA_LF:
            if b != 10:
                c.state = CHUNKED_BAD
                return i
            c.state = CHUNKED_START
        elif c.state == CHUNKED_TRAILER:
            c.line_len += 1
            if b == 13:
                c.state = CHUNKED_LAST_LF
            elif b == 10:
                c.ambiguous = 1
                c.state = CHUNKED_DONE
                return i
            elif HTTP1_TOKEN[b]:
                c.digits = 1
                c.state = CHUNKED_TRAILER_NAME
            else:                 # a folded line goes on with the field before it
                if not c.digits or not (b == 32 or b == 9):
                    c.ambiguous = 1
                c.state = CHUNKED_TRAILER_LINE
        elif c.state == CHUNKED_TRAILER_NAME and (HTTP1_TOKEN[b] or b == 58) and c.line_len < HTTP1_MOST_CHUNK_LINE:
            c.line_len += 1
            if b == 58:
                c.state = CHUNKED_TRAILER_LINE
        elif c.state == CHUNKED_TRAILER_LINE or c.state == CHUNKED_TRAILER_NAME:
            if c.state == CHUNKED_TRAILER_NAME:      # no name up to a colon: a request to a server that ends at the last chunk (RFC 9112 7.1.2)
                c.ambiguous = 1
                c.state = CHUNKED_TRAILER_LINE
            c.line_len += 1
            if b == 13:
                c.state = CHUNKED_TRAILER_LF
            elif b == 10:
                c.ambiguous = 1
                c.state = CHUNKED_TRAILER
            elif b == 0:
                c.ambiguous = 1
            if c.line_len > HTTP1_MOST_CHUNK_LINE:
                c.state = CHUNKED_BAD
                return i
        elif c.state == CHUNKED_TRAILER_LF:
            if b == 10:
                c.state = CHUNKED_TRAILER
            else:
                c.ambiguous = 1
                c.state = CHUNKED_TRAILER_LINE if b != 13 else CHUNKED_TRAILER_LF
        elif c.state == CHUNKED_LAST_LF:
            if b == 10:
                c.state = CHUNKED_DONE
                return i
            c.ambiguous = 1
            c.state = CHUNKED_TRAILER_LINE
        else:
            return i - 1          # done or bad: takes nothing
    return i


cdef inline void chunked_sized(Chunked* c) noexcept nogil:
    """A size line has ended."""
    c.state = CHUNKED_DATA if c.left else CHUNKED_TRAILER
    c.line_len = 0
    c.line_cr = 0
    c.digits = 0
