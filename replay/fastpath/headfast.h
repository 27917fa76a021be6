/* The usual head in one pass: what head_index() and head_parse() (http1.pxi) say of it, at a fraction of the cost.
 *
 * head_scan(p, n, h) returns the length of the whole head at p, of a request or of a reply (then method_len is 0), and h is what head_parse() fills; or HEAD_BEGUN:
 * its first line is there and usual, its end is not there (of h, only method_len means something); or 0, which says nothing: too little of it is there, or something in it is not usual (a control byte, a name with other bytes than letters, digits and '-', a target
 * that does not begin with '/', a field twice that must be there once, a field that asks for care), and the general parser has the word.
 * Variants for SSE2, AVX2 and NEON, chosen when the module is loaded; "plain" always leaves it to the general parser. The tests compare each with
 * that one. No variant reads beyond the page of p[n - 1]. */
#ifndef REPLAY_HEADFAST_H
#define REPLAY_HEADFAST_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum Framing { FRAMING_NONE = 0, FRAMING_LENGTH = 1, FRAMING_CHUNKED = 2 };

enum HeadFlag { /* each is explained in _fastpath.pxd */
    HEAD_AMBIGUOUS = 1,
    HEAD_MALFORMED = 2,
    HEAD_HOSTS_DIFFER = 4,
    HEAD_UPGRADE = 8,
    HEAD_UPGRADE_H2C = 16,
    HEAD_EXPECT = 32,
    HEAD_CLOSE = 64,
    HEAD_KEEP_ALIVE = 128,
    HEAD_HOP = 256,
    HEAD_ABSOLUTE = 512,
    HEAD_MARKER = 1024,
    HEAD_CONNECT = 2048,
    HEAD_BAD_HOST_LINE = 4096,
    HEAD_NAMES = 8192,
    HEAD_FOLDED = 16384
};

#define HEAD_DROPS 4
#define HEAD_BEGUN 1

typedef struct Head { /* each field is explained in _fastpath.pxd */
    uint32_t length;
    uint32_t line_len;
    uint32_t method_len;
    uint32_t target_at;
    uint32_t target_len;
    uint32_t lines;
    uint32_t host_at;
    uint32_t host_len;
    uint32_t host_split;
    uint32_t hosts;
    uint32_t flags;
    uint16_t status;
    uint8_t version;
    uint8_t framing;
    uint8_t host_plain;
    uint32_t drops;
    int64_t content_length;
    uint32_t drop_at[HEAD_DROPS];
    uint32_t drop_end[HEAD_DROPS];
} Head;

#ifndef __has_feature /* clang says it so */
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define HS_STRICT 1 /* no byte behind the head is read at all */
#else
#define HS_STRICT 0
#endif

/* n bytes, none of them a control byte, are `lower` but for the case of letters. */
static inline __attribute__((always_inline)) int hs_same(const uint8_t *p, const char *lower, size_t n)
{
    uint64_t a, b, wrong = 0;
    uint32_t c, d;
    size_t i;
    if (n < 8) {
        memcpy(&c, p, 4);
        memcpy(&d, lower, 4);
        wrong = (c | 0x20202020u) ^ d;
        memcpy(&c, p + n - 4, 4);
        memcpy(&d, lower + n - 4, 4);
        return !(wrong | ((c | 0x20202020u) ^ d));
    }
    for (i = 0; i + 8 <= n; i += 8) {
        memcpy(&a, p + i, 8);
        memcpy(&b, lower + i, 8);
        wrong |= (a | 0x2020202020202020u) ^ b;
    }
    memcpy(&a, p + n - 8, 8);
    memcpy(&b, lower + n - 8, 8);
    return !(wrong | ((a | 0x2020202020202020u) ^ b));
}

static inline int hs_crlf(const uint8_t *p)
{
    uint16_t v, crlf;
    memcpy(&v, p, 2);
    memcpy(&crlf, "\r\n", 2);
    return v == crlf;
}

/* By the length of a name: which first letters (a bit each, 'a' and 'A' are 1) make it worth a look. Length 0 always does: there is no such name. */
#define LETTER(c) (1u << ((c)-'a' + 1))
static const uint32_t HEAD_LETTERS[64] = {
    [0] = ~0u,
    [4] = LETTER('h'),
    [6] = LETTER('e'),
    [7] = LETTER('u'),
    [10] = LETTER('c') | LETTER('k'),
    [14] = LETTER('c'),
    [15] = LETTER('x'),
    [16] = LETTER('p'),
    [17] = LETTER('t'),
};

/* Letters, digits and '-' by the halves of a byte: a bit for row 2, for row 3, for rows 4 and 6, for rows 5 and 7 of the ASCII table, and in which of them the lower half may stand; twice, for both halves of a vector. */
static const uint8_t HEAD_LOW[32] = {10, 14, 14, 14, 14, 14, 14, 14, 14, 14, 12, 4, 4, 5, 4, 4, 10, 14, 14, 14, 14, 14, 14, 14, 14, 14, 12, 4, 4, 5, 4, 4};
static const uint8_t HEAD_HIGH[32] = {0, 0, 1, 2, 4, 8, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0};

static const uint8_t HEAD_HALF[32] = {15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};

static inline void hs_trim(const uint8_t *p, size_t from, size_t to, size_t *at, size_t *end)
{
    while (from < to && p[from] == ' ')
        from++;
    while (to > from && p[to - 1] == ' ')
        to--;
    *at = from;
    *end = to;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define HS(name) name##_sse2
#define HS_TARGET
#define HS_WIDTH 32
typedef struct { __m128i a, b; } hs_two;
static inline hs_two hs_load_sse2(const uint8_t *p)
{
    hs_two v;
    v.a = _mm_loadu_si128((const __m128i *)p);
    v.b = _mm_loadu_si128((const __m128i *)(p + 16));
    return v;
}
static inline uint64_t hs_mask_sse2(__m128i a, __m128i b) { return (uint32_t)_mm_movemask_epi8(a) | (uint64_t)(uint32_t)_mm_movemask_epi8(b) << 16; }
static inline __m128i hs_usual16(__m128i v)
{
    const __m128i letter = _mm_sub_epi8(_mm_or_si128(v, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
    const __m128i digit = _mm_sub_epi8(v, _mm_set1_epi8('0'));
    return _mm_or_si128(
        _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(letter, _mm_set1_epi8(25)), letter), _mm_cmpeq_epi8(_mm_min_epu8(digit, _mm_set1_epi8(9)), digit)),
        _mm_cmpeq_epi8(v, _mm_set1_epi8('-')));
}
#define hs_vector hs_two
#define hs_load(p) hs_load_sse2(p)
#define hs_below(v, c) hs_mask_sse2(_mm_cmpeq_epi8(_mm_min_epu8((v).a, _mm_set1_epi8(c)), (v).a), _mm_cmpeq_epi8(_mm_min_epu8((v).b, _mm_set1_epi8(c)), (v).b))
#define hs_is(v, c) hs_mask_sse2(_mm_cmpeq_epi8((v).a, _mm_set1_epi8(c)), _mm_cmpeq_epi8((v).b, _mm_set1_epi8(c)))
#define hs_strange(v) (hs_mask_sse2(hs_usual16((v).a), hs_usual16((v).b)) ^ 0xFFFFFFFFu)
#define HS_BEYOND ((uint64_t)1 << 32)
#include "headscan.h"

#define HS(name) name##_avx2
#define HS_TARGET __attribute__((target("avx2,bmi,bmi2")))
#define HS_WIDTH 32
HS_TARGET static inline uint64_t hs_strange_avx2(__m256i v)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)HEAD_LOW), high = _mm256_loadu_si256((const __m256i *)HEAD_HIGH);
    const __m256i rows = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_loadu_si256((const __m256i *)HEAD_HALF)));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(low, v), rows), _mm256_setzero_si256()));
}
#define hs_vector __m256i
#define hs_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define hs_below(v, c) ((uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(v, _mm256_set1_epi8(c)), v)))
#define hs_is(v, c) ((uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(c))))
#define hs_strange(v) hs_strange_avx2(v)
#define HS_BEYOND ((uint64_t)1 << 32)
#include "headscan.h"

#elif defined(__aarch64__)
#include <arm_neon.h>

#define HS(name) name##_neon
#define HS_TARGET
#define HS_WIDTH 32
typedef struct { uint8x16_t a, b; } hs_two;
static inline hs_two hs_load_neon(const uint8_t *p)
{
    hs_two v;
    v.a = vld1q_u8(p);
    v.b = vld1q_u8(p + 16);
    return v;
}
static inline uint64_t hs_mask_neon(uint8x16_t a, uint8x16_t b)
{
    static const uint8_t bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bit = vld1q_u8(bits);
    uint8x16_t sum = vpaddq_u8(vandq_u8(a, bit), vandq_u8(b, bit)); /* thrice: each byte the eight bits of eight bytes */
    sum = vpaddq_u8(sum, sum);
    sum = vpaddq_u8(sum, sum);
    return vgetq_lane_u32(vreinterpretq_u32_u8(sum), 0);
}
static inline uint8x16_t hs_usual16(uint8x16_t v)
{
    return vorrq_u8(vorrq_u8(vcleq_u8(vsubq_u8(vorrq_u8(v, vdupq_n_u8(0x20)), vdupq_n_u8('a')), vdupq_n_u8(25)), vcleq_u8(vsubq_u8(v, vdupq_n_u8('0')), vdupq_n_u8(9))),
                    vceqq_u8(v, vdupq_n_u8('-')));
}
#define hs_vector hs_two
#define hs_load(p) hs_load_neon(p)
#define hs_below(v, c) hs_mask_neon(vcleq_u8((v).a, vdupq_n_u8(c)), vcleq_u8((v).b, vdupq_n_u8(c)))
#define hs_is(v, c) hs_mask_neon(vceqq_u8((v).a, vdupq_n_u8(c)), vceqq_u8((v).b, vdupq_n_u8(c)))
#define hs_strange(v) (hs_mask_neon(hs_usual16((v).a), hs_usual16((v).b)) ^ 0xFFFFFFFFu)
#define HS_BEYOND ((uint64_t)1 << 32)
#include "headscan.h"
#endif

static size_t head_scan_plain(const uint8_t *p, size_t n, Head *h)
{
    (void)p;
    (void)n;
    (void)h;
    return 0;
}

typedef size_t (*HeadScan)(const uint8_t *, size_t, Head *);
static HeadScan head_scan_chosen = head_scan_plain;

/* The variant of that name; "": the best one here. NULL: this machine has not got it. */
static HeadScan head_scan_variant(const char *name)
{
    const int any = name[0] == 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if ((any && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) || strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? head_scan_avx2 : NULL;
    if (any || strcmp(name, "sse2") == 0)
        return head_scan_sse2;
#elif defined(__aarch64__)
    if (any || strcmp(name, "neon") == 0)
        return head_scan_neon;
#endif
    return any || strcmp(name, "plain") == 0 ? head_scan_plain : NULL;
}

/* REPLAY_SIMD names a variant (tests, measuring); one that this machine has not got is passed over. */
static void head_scan_choose(void)
{
    const char *asked = getenv("REPLAY_SIMD");
    HeadScan chosen = asked ? head_scan_variant(asked) : NULL;
    head_scan_chosen = chosen ? chosen : head_scan_variant("");
}

static inline size_t head_scan(const uint8_t *p, size_t n, Head *h) { return head_scan_chosen(p, n, h); }

#endif
