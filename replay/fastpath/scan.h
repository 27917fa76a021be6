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
