/* Line ends of a head in one pass: what memchr() a line, twice over, costs several times as much for.
 *
 * head_index() has a twin without SIMD, head_index_plain(), that the tests compare it with. Neither reads beyond p[n - 1]. */
#ifndef REPLAY_SCAN_H
#define REPLAY_SCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define LINES_MOST 260

typedef struct {
    uint32_t lf[LINES_MOST]; /* offsets of the line ends, through the one of the empty line */
    uint32_t count;          /* of all line ends; those beyond LINES_MOST are not noted */
    uint32_t odd;            /* not 0: a CR that ends no line, a LF without CR, or a NUL is in the head */
} LineIndex;

#if defined(__SSE2__)
static inline uint64_t scan_equal(const uint8_t *p, char wanted)
{
    const __m128i w = _mm_set1_epi8(wanted);
    uint64_t m = 0;
    int i;
    for (i = 0; i < 4; i++)
        m |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), w)) << (16 * i);
    return m;
}

/* Length of the head at p through its empty line, 0 when it is not whole; x is filled in the first case. The first line is not empty. */
static size_t head_index(const uint8_t *p, size_t n, LineIndex *x)
{
    uint64_t carry = 0, odd = 0;
    size_t i, before = 0; /* before: where the line begins */
    uint8_t tail[64];
    x->count = 0;
    for (i = 0; i < n; i += 64) {
        const uint8_t *q = p + i;
        uint64_t valid = ~(uint64_t)0, lf, cr, behind_cr, strange, m;
        if (n - i < 64) {
            memset(tail, ' ', sizeof tail);
            memcpy(tail, q, n - i);
            q = tail;
            valid = ((uint64_t)1 << (n - i)) - 1;
        }
        lf = scan_equal(q, '\n');
        cr = scan_equal(q, '\r');
        behind_cr = cr << 1 | carry;
        carry = cr >> 63;
        strange = ((behind_cr ^ lf) | scan_equal(q, 0)) & valid;
        for (m = lf; m; m &= m - 1) {
            const int b = __builtin_ctzll(m);
            const size_t at = i + (size_t)b;
            if (x->count < LINES_MOST)
                x->lf[x->count] = (uint32_t)at;
            x->count++;
            if (x->count > 1 && (at == before || (at == before + 1 && behind_cr >> b & 1))) {
                odd |= strange & (((uint64_t)2 << b) - 1);
                x->odd = odd != 0;
                return at + 1;
            }
            before = at + 1;
        }
        odd |= strange;
    }
    return 0;
}
#endif

/* How many of the first bytes are letters, digits or '-': the most usual ones of a field name. Up to 15 fewer may be said; the caller looks on byte by byte. */
static inline size_t scan_name(const uint8_t *p, size_t n)
{
    size_t i = 0;
#if defined(__SSE2__)
    for (; n - i >= 16; i += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(p + i));
        const __m128i letter = _mm_sub_epi8(_mm_or_si128(v, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
        const __m128i digit = _mm_sub_epi8(v, _mm_set1_epi8('0'));
        const __m128i usual = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(letter, _mm_set1_epi8(25)), letter), _mm_cmpeq_epi8(_mm_min_epu8(digit, _mm_set1_epi8(9)), digit)),
            _mm_cmpeq_epi8(v, _mm_set1_epi8('-')));
        const int m = _mm_movemask_epi8(usual);
        if (m != 0xFFFF)
            return i + (size_t)__builtin_ctz(~(unsigned)m);
    }
#else
    (void)p;
    (void)n;
#endif
    return i;
}

/* Is a blank, a control byte or DEL among these bytes? */
static inline int scan_blank(const uint8_t *p, size_t n)
{
    size_t i = 0;
#if defined(__SSE2__)
    for (; n - i >= 16; i += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(p + i));
        const __m128i bad = _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x20)), v), _mm_cmpeq_epi8(v, _mm_set1_epi8(0x7F)));
        if (_mm_movemask_epi8(bad))
            return 1;
    }
#endif
    for (; i < n; i++)
        if (p[i] <= 0x20 || p[i] == 0x7F)
            return 1;
    return 0;
}

static size_t head_index_plain(const uint8_t *p, size_t n, LineIndex *x)
{
    size_t i, before = 0;
    int cr = 0;
    x->count = 0;
    x->odd = 0;
    for (i = 0; i < n; i++) {
        if (cr != (p[i] == '\n') || p[i] == 0)
            x->odd = 1;
        if (p[i] == '\n') {
            if (x->count < LINES_MOST)
                x->lf[x->count] = (uint32_t)i;
            x->count++;
            if (x->count > 1 && (i == before || (i == before + 1 && cr)))
                return i + 1;
            before = i + 1;
        }
        cr = p[i] == '\r';
    }
    return 0;
}

#if !defined(__SSE2__)
static size_t head_index(const uint8_t *p, size_t n, LineIndex *x) { return head_index_plain(p, n, x); }
#endif

#endif
