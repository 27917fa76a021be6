/* The name of an endpoint: `METHOD /path`, identifiers folded, the query and matrix parameters left out. A rule reads bytes alone, so that shards and
 * nodes agree. Its twin in plain Python is `_reference.endpoints`. Must not know: what is counted of endpoints. */
#ifndef REPLAY_FOLD_H
#define REPLAY_FOLD_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { FOLD_DIGIT = 1, FOLD_HEX = 2 /* a to f */, FOLD_ALPHA = 4 /* other letters */, FOLD_ALNUM = 7 };

#define FOLD_ROW_A 0, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4
#define FOLD_ROW_P 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0
static const uint8_t FOLD_CLASS[256] = {
    [48] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, [64] = FOLD_ROW_A, FOLD_ROW_P, FOLD_ROW_A, FOLD_ROW_P};

typedef struct { /* where the name goes; what stays as it is is put out when something else comes */
    uint8_t *out;
    size_t at, room;
    const uint8_t *plain; /* from here on nothing was put out yet */
} FoldName;

/* memcpy of few bytes, in line: names are made of pieces of some 3 to 30. */
static inline void fold_copy(uint8_t *to, const uint8_t *from, size_t n) {
    uint64_t a, b;
    uint32_t c, d;
    if (n > 16) {
        memcpy(to, from, n);
    } else if (n >= 8) {
        memcpy(&a, from, 8);
        memcpy(&b, from + n - 8, 8);
        memcpy(to, &a, 8);
        memcpy(to + n - 8, &b, 8);
    } else if (n >= 4) {
        memcpy(&c, from, 4);
        memcpy(&d, from + n - 4, 4);
        memcpy(to, &c, 4);
        memcpy(to + n - 4, &d, 4);
    } else if (n) {
        const uint8_t middle = from[n / 2], last = from[n - 1];
        to[0] = from[0];
        to[n / 2] = middle;
        to[n - 1] = last;
    }
}

static inline void fold_put(FoldName *f, const void *text, size_t n) {
    if (n > f->room - f->at) n = f->room - f->at;
    fold_copy(f->out + f->at, (const uint8_t *)text, n);
    f->at += n;
}

static inline void fold_instead(FoldName *f, const uint8_t *from, const uint8_t *to, const char *text, size_t n) { /* of the bytes between */
    fold_put(f, f->plain, (size_t)(from - f->plain));
    fold_put(f, text, n);
    f->plain = to;
}

static int fold_is_uuid(const uint8_t *p) {
    size_t i;
    for (i = 0; i < 36; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23 ? p[i] != '-' : !(FOLD_CLASS[p[i]] & (FOLD_DIGIT | FOLD_HEX))) return 0;
    return 1;
}

static int fold_is_date(const uint8_t *p) {
    size_t i;
    for (i = 0; i < 10; i++)
        if (i == 4 || i == 7 ? p[i] != '-' : FOLD_CLASS[p[i]] != FOLD_DIGIT) return 0;
    return 1;
}

static int fold_is_mail(const uint8_t *p, size_t n) {
    size_t i;
    for (i = 0; i < n; i++)
        if (p[i] == '@' || (p[i] == '%' && i + 2 < n && p[i + 1] == '4' && p[i + 2] == '0')) return 1;
    return 0;
}

/* A run of letters and digits, of which there are some. before: the byte in front of it, '/' at the beginning of a segment. */
static void fold_token(FoldName *f, const uint8_t *p, size_t n, size_t digits, unsigned kinds, uint8_t before) {
    size_t tail = 0;
    if (digits == n) {
        if (n >= 3 || before == '/' || before == '-' || before == '_' || before == ':') fold_instead(f, p, p + n, "{n}", 3);
        return;
    }
    if (n >= 8 && !(kinds & FOLD_ALPHA)) {
        fold_instead(f, p, p + n, "{hex}", 5);
    } else if (n >= 16 && digits >= 2) {
        fold_instead(f, p, p + n, "{id}", 4);
    } else if (digits >= 3) {
        while (FOLD_CLASS[p[n - 1 - tail]] == FOLD_DIGIT) tail++;
        if (tail >= 3) fold_instead(f, p + n - tail, p + n, "{n}", 3);
    }
}

static void fold_segment(FoldName *f, const uint8_t *p, size_t n, int odd) { /* odd: one of ; @ % may be in it */
    size_t i = 0, begin, digits;
    unsigned kind, kinds;
    const uint8_t *semicolon = odd ? (const uint8_t *)memchr(p, ';', n) : NULL, *end = p + n;
    if (semicolon) n = (size_t)(semicolon - p);
    if (n == 36 && fold_is_uuid(p)) {
        fold_instead(f, p, end, "{uuid}", 6);
        return;
    }
    if (n == 10 && fold_is_date(p)) {
        fold_instead(f, p, end, "{date}", 6);
        return;
    }
    if (odd && fold_is_mail(p, n)) {
        fold_instead(f, p, end, "{mail}", 6);
        return;
    }
    while (i < n) {
        kind = FOLD_CLASS[p[i]];
        if (!kind) {
            i++;
            continue;
        }
        begin = i;
        digits = kinds = 0;
        do {
            kinds |= kind;
            digits += kind & FOLD_DIGIT;
            i++;
        } while (i < n && (kind = FOLD_CLASS[p[i]]));
        if (digits) fold_token(f, p + begin, i - begin, digits, kinds, begin ? p[begin - 1] : '/');
    }
    if (semicolon) fold_instead(f, semicolon, end, "", 0);
}

typedef struct { uint64_t slash, end, digit, plain, odd; } FoldMasks; /* a bit a byte: '/'; '?' and '#'; digits; digits and letters; ';', '@' and '%' */

#if defined(__SSE2__)
#ifndef __has_feature /* clang says it so */
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define FOLD_STRICT 1 /* no byte behind the path is read at all */
#else
#define FOLD_STRICT 0
#endif

/* The 16 bytes at p, of which `have` may be looked at. What is read behind them lies in the same page, and is not used. */
static inline __m128i fold_load(const uint8_t *p, size_t have) {
    if (have < 16 && (FOLD_STRICT || ((uintptr_t)p & 4095) > 4096 - 16)) {
        uint8_t copy[16] = {0};
        memcpy(copy, p, have);
        return _mm_loadu_si128((const __m128i *)copy);
    }
    return _mm_loadu_si128((const __m128i *)p);
}
#endif

static inline void fold_masks(const uint8_t *p, size_t n, FoldMasks *m) { /* of at most 64 bytes; bits from n on mean nothing */
    size_t i;
    m->slash = m->end = m->digit = m->plain = m->odd = 0;
#if defined(__SSE2__)
    for (i = 0; i < n; i += 16) {
        const __m128i v = fold_load(p + i, n - i), d = _mm_sub_epi8(v, _mm_set1_epi8('0'));
        const __m128i letter = _mm_sub_epi8(_mm_or_si128(v, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
        const __m128i digit = _mm_cmpeq_epi8(_mm_min_epu8(d, _mm_set1_epi8(9)), d);
        const __m128i plain = _mm_or_si128(digit, _mm_cmpeq_epi8(_mm_min_epu8(letter, _mm_set1_epi8(25)), letter));
        const __m128i mail = _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('@')), _mm_cmpeq_epi8(v, _mm_set1_epi8('%')));
        const __m128i end = _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('?')), _mm_cmpeq_epi8(v, _mm_set1_epi8('#')));
        m->slash |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8('/'))) << i;
        m->end |= (uint64_t)(uint32_t)_mm_movemask_epi8(end) << i;
        m->digit |= (uint64_t)(uint32_t)_mm_movemask_epi8(digit) << i;
        m->plain |= (uint64_t)(uint32_t)_mm_movemask_epi8(plain) << i;
        m->odd |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_or_si128(mail, _mm_cmpeq_epi8(v, _mm_set1_epi8(';')))) << i;
        if (m->end) break;
    }
#else
    for (i = 0; i < n && !m->end; i++) {
        const uint64_t bit = (uint64_t)1 << i;
        if (p[i] == '/') m->slash |= bit;
        else if (p[i] == '?' || p[i] == '#') m->end |= bit;
        else if (p[i] == ';' || p[i] == '@' || p[i] == '%') m->odd |= bit;
        else if (FOLD_CLASS[p[i]]) {
            m->plain |= bit;
            if (FOLD_CLASS[p[i]] == FOLD_DIGIT) m->digit |= bit;
        }
    }
#endif
}

static inline uint64_t fold_below(size_t n) { return n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1; }

/* The usual path, within 64 bytes and of no segment as long as a UUID: only segments with something to look at are looked at. 0: it is not usual; else its length. */
static inline size_t fold_usual(FoldName *f, const uint8_t *target, size_t n, size_t *length) {
    FoldMasks m;
    size_t limit = n, at, begin, end;
    uint64_t before, behind, inside, look;
    fold_masks(target, n < 64 ? n : 64, &m);
    m.end &= fold_below(n);
    if (m.end) limit = (size_t)__builtin_ctzll(m.end);
    else if (n > 63) return 0;
    m.slash &= fold_below(limit);
    look = (m.digit | m.odd) & fold_below(limit);
    if (!(m.slash & 1) || (m.slash & ((m.slash | (uint64_t)1 << limit) >> 37))) return 0;
    while (look) {
        at = (size_t)__builtin_ctzll(look);
        before = m.slash & fold_below(at); /* not 0: the first byte is one */
        behind = m.slash & ~fold_below(at);
        begin = 64 - (size_t)__builtin_clzll(before);
        end = behind ? (size_t)__builtin_ctzll(behind) : limit;
        inside = fold_below(end) & ~fold_below(begin);
        look &= ~fold_below(end);
        if (!(inside & ~m.digit)) { /* a number */
            fold_instead(f, target + begin, target + end, "{n}", 3);
            continue;
        }
        if (!(inside & ~m.plain) && end - begin < 8 && __builtin_popcountll(inside & m.digit) < 3) continue; /* v2 */
        fold_segment(f, target + begin, end - begin, (m.odd & inside) != 0);
    }
    *length = limit;
    return 1;
}

/* Into out, at most `room` bytes (what is longer is cut). Returns how many. */
static size_t fold_name(const uint8_t *method, size_t method_len, const uint8_t *target, size_t n, uint8_t *out, size_t room) {
    FoldName f = {out, 0, room, target};
    size_t i = 0, begin;
    fold_put(&f, method, method_len < 32 ? method_len : 32);
    fold_put(&f, " ", 1);
    if (!fold_usual(&f, target, n, &i)) {
        while (i < n && f.at < room) {
            begin = i;
            while (i < n && target[i] != '/' && target[i] != '?' && target[i] != '#') i++;
            fold_segment(&f, target + begin, i - begin, 1);
            if (i == n || target[i] != '/') break;
            i++;
        }
    }
    fold_put(&f, f.plain, (size_t)(target + i - f.plain));
    return f.at;
}
#endif
