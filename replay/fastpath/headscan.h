/* One variant of head_scan(); headfast.h includes this once for each instruction set, with these defined:
 *
 *   HS(name)     the name with the variant's ending          HS_TARGET   the attribute that allows its instructions
 *   HS_WIDTH     bytes a step, 32                            hs_vector, hs_load(p), and masks of a vector, a bit a byte:
 *   hs_below(v, c) bytes up to c   hs_is(v, c) equal to c    hs_strange(v) none of letters, digits, '-'
 *   HS_BEYOND    the bit behind those, where a mask has one */

/* The HS_WIDTH bytes at p, of which `have`, fewer, may be looked at. What is read behind them lies in the same page, and is not used. */
HS_TARGET static __attribute__((noinline)) hs_vector HS(hs_last)(const uint8_t *p, size_t have)
{
    if (HS_STRICT || ((uintptr_t)p & 4095) > 4096 - HS_WIDTH) {
        uint8_t copy[HS_WIDTH];
        memset(copy, 'a', sizeof copy);
        memcpy(copy, p, have);
        return hs_load(copy);
    }
    return hs_load(p);
}

#define hs_bytes(p, have) (__builtin_expect((have) >= HS_WIDTH, 1) ? hs_load(p) : HS(hs_last)(p, have))
#define hs_valid(have) (__builtin_expect((have) >= HS_WIDTH, 1) ? ~(uint64_t)0 : ((uint64_t)1 << (have)) - 1)

/* Where the next control byte is, from at on; n: there is none. */
HS_TARGET static inline size_t HS(hs_control)(const uint8_t *p, size_t at, size_t n)
{
    uint64_t m;
    for (; at + HS_WIDTH <= n; at += HS_WIDTH) {
        m = hs_below(hs_load(p + at), 0x1F);
        if (m)
            return at + (size_t)__builtin_ctzll(m);
    }
    if (at >= n)
        return n;
    m = hs_below(HS(hs_last)(p + at, n - at), 0x1F) & hs_valid(n - at);
    return m ? at + (size_t)__builtin_ctzll(m) : n;
}

HS_TARGET static size_t HS(head_scan)(const uint8_t *p, size_t n, Head *h)
{
    size_t at, end, far, k, value, vend;
    uint64_t m;
    hs_vector v;
    int reply = 0;
    uint32_t lines = 0;
    if (n < 16)
        return 0;
    h->flags = 0;
    h->hosts = 0;
    h->host_at = 0;
    h->host_len = 0;
    h->host_plain = 0;
    h->status = 0;
    h->framing = 0;
    h->content_length = -1;
    h->drops = 0;
    v = hs_bytes(p, n);
    /* blanks, control bytes, DEL: one behind the method, one behind the target, then the line's end */
    m = (hs_below(v, 0x20) | hs_is(v, 0x7F)) & hs_valid(n);
    if (!m)
        return 0;
    k = (size_t)__builtin_ctzll(m);
    if (p[k] != ' ' || k == 0)
        return 0;
    if (k == 8 && memcmp(p, "HTTP/1.", 7) == 0) {
        reply = 1;
        if ((p[7] | 1) != '1' || (uint8_t)(p[9] - '0') > 9 || (uint8_t)(p[10] - '0') > 9 || (uint8_t)(p[11] - '0') > 9 || (p[12] != ' ' && p[12] != '\r'))
            return 0;
        h->status = (uint16_t)((p[9] - '0') * 100 + (p[10] - '0') * 10 + (p[11] - '0'));
        h->version = p[7] == '0' ? 10 : 11;
        h->method_len = h->target_at = h->target_len = 0;
        end = HS(hs_control)(p, 12, n);
    } else {
        if (k > 16 || hs_strange(v) << (64 - k))
            return 0;
        if (k == 7 && p[0] == 'C')
            return 0; /* CONNECT */
        at = k + 1;
        if (at >= n || p[at] != '/')
            return 0;
        h->method_len = (uint32_t)k;
        h->target_at = (uint32_t)at;
        end = 0;
        for (m &= m - 1; !m; m = (hs_below(v, 0x20) | hs_is(v, 0x7F)) & hs_valid(n - end)) {
            end += HS_WIDTH;
            if (end >= n)
                return 0;
            v = hs_bytes(p + end, n - end);
        }
        end += (size_t)__builtin_ctzll(m);
        if (end + 11 > n || p[end] != ' ' || memcmp(p + end + 1, "HTTP/1.", 7) != 0 || (p[end + 8] | 1) != '1')
            return 0;
        h->target_len = (uint32_t)(end - k - 1);
        h->version = p[end + 8] == '0' ? 10 : 11;
        end += 9;
    }
    if (end + 2 > n || !hs_crlf(p + end))
        return 0;
    at = end + 2;
    far = n > HS_WIDTH ? n - HS_WIDTH : 0; /* up to here a whole vector may be read */
    h->line_len = (uint32_t)at;
    for (;;) {
        uint64_t control;
        if (__builtin_expect(at < far, 1)) {
            v = hs_load(p + at);
            control = hs_below(v, 0x1F);
            k = (size_t)__builtin_ctzll(hs_strange(v) | HS_BEYOND);
        } else {
            const size_t have = n - at;
            if (have < 2)
                return have && p[at] == '\n' ? 0 : HEAD_BEGUN;
            v = HS(hs_last)(p + at, have);
            control = hs_below(v, 0x1F) & hs_valid(have);
            k = (size_t)__builtin_ctzll(hs_strange(v) | HS_BEYOND | (uint64_t)1 << (have <= HS_WIDTH ? have - 1 : HS_WIDTH));
        }
        if (p[at + k] != ':') {
            /* no name of usual bytes up to a colon: the empty line, or nothing for us */
            if (hs_crlf(p + at))
                break;
            return 0;
        }
        end = control ? at + (size_t)__builtin_ctzll(control) : HS(hs_control)(p, at + HS_WIDTH, n);
        if (end + 2 > n)
            return HEAD_BEGUN;
        if (!hs_crlf(p + end))
            return 0;
        lines++;
        if (HEAD_LETTERS[k] >> (p[at] & 31) & 1) {
            const uint8_t *name = p + at;
            const uint8_t first = name[0] | 0x20;
            value = at + k + 1;
            switch (k) {
            case 0:
                return 0;
            case 4:
                if (first == 'h' && hs_same(name, "host", 4) && !reply) {
                    if (h->hosts)
                        return 0;
                    hs_trim(p, value, end, &value, &vend);
                    h->hosts = 1;
                    h->host_at = (uint32_t)value;
                    h->host_len = (uint32_t)(vend - value);
                    if (vend - value <= HS_WIDTH && vend > value) {
                        const uint64_t valid = hs_valid(vend - value);
                        const hs_vector v = hs_bytes(p + value, n - value);
                        const uint64_t colon = hs_is(v, ':') & valid;
                        if (!(hs_strange(v) & ~hs_is(v, '.') & ~colon & valid)) {
                            h->host_plain = 1;
                            h->host_split = colon ? 63 - (uint32_t)__builtin_clzll(colon) : (uint32_t)(vend - value);
                        }
                    }
                }
                break;
            case 6:
                if (first == 'e' && hs_same(name, "expect", 6) && !reply)
                    return 0;
                break;
            case 7:
                if (first == 'u' && hs_same(name, "upgrade", 7) && !reply)
                    return 0;
                break;
            case 10:
                if (reply)
                    break;
                if (first == 'c' && hs_same(name, "connection", 10)) {
                    hs_trim(p, value, end, &value, &vend);
                    if (vend - value == 10 && hs_same(p + value, "keep-alive", 10))
                        h->flags |= HEAD_KEEP_ALIVE;
                    else if (vend - value == 5 && hs_same(p + value, "close", 5))
                        h->flags |= HEAD_CLOSE;
                    else
                        return 0;
                    if (h->drops == HEAD_DROPS)
                        return 0;
                    h->flags |= HEAD_HOP;
                    h->drop_at[h->drops] = (uint32_t)at;
                    h->drop_end[h->drops] = (uint32_t)end + 2;
                    h->drops++;
                } else if (first == 'k' && hs_same(name, "keep-alive", 10))
                    return 0;
                break;
            case 14:
                if (first == 'c' && hs_same(name, "content-length", 14)) {
                    int64_t length = 0;
                    hs_trim(p, value, end, &value, &vend);
                    if (h->framing != 0 || vend == value || vend - value > 18)
                        return 0;
                    for (; value < vend; value++) {
                        const uint8_t digit = (uint8_t)(p[value] - '0');
                        if (digit > 9)
                            return 0;
                        length = length * 10 + digit;
                    }
                    h->framing = FRAMING_LENGTH;
                    h->content_length = length;
                }
                break;
            case 15:
                if (first == 'x' && hs_same(name, "x-shadow-replay", 15))
                    return 0;
                break;
            case 16:
                if (first == 'p' && hs_same(name, "proxy-connection", 16) && !reply)
                    return 0;
                break;
            default:
                if (first == 't' && hs_same(name, "transfer-encoding", 17)) {
                    hs_trim(p, value, end, &value, &vend);
                    if (h->framing != 0 || vend - value != 7 || !hs_same(p + value, "chunked", 7) || h->version == 10)
                        return 0;
                    h->framing = FRAMING_CHUNKED;
                }
            }
        }
        at = end + 2;
    }
    if (lines > 200)
        return 0;
    h->lines = lines;
    h->length = (uint32_t)at + 2;
    return at + 2;
}
#undef HS
#undef HS_TARGET
#undef HS_WIDTH
#undef hs_bytes
#undef hs_valid
#undef hs_vector
#undef hs_load
#undef hs_below
#undef hs_is
#undef hs_strange
#undef HS_BEYOND
