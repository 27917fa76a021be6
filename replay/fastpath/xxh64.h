/* XXH64, written from the specification of xxHash (doc/xxhash_spec.md of that project): the sampler's hash.
 * Checked in the tests against the xxhash package. Reads little-endian words at any alignment. */
#ifndef REPLAY_XXH64_H
#define REPLAY_XXH64_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XXP1 11400714785074694791ULL
#define XXP2 14029467366897019727ULL
#define XXP3 1609587929392839161ULL
#define XXP4 9650029242287828579ULL
#define XXP5 2870177450012600261ULL

static inline uint64_t xx_rotl(uint64_t v, int n) { return (v << n) | (v >> (64 - n)); }
static inline uint64_t xx_read64(const uint8_t *p) {
    uint64_t v; memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}
static inline uint32_t xx_read32(const uint8_t *p) {
    uint32_t v; memcpy(&v, p, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}
static inline uint64_t xx_round(uint64_t acc, uint64_t lane) { return xx_rotl(acc + lane * XXP2, 31) * XXP1; }
static inline uint64_t xx_merge(uint64_t h, uint64_t acc) { return (h ^ xx_round(0, acc)) * XXP1 + XXP4; }

static inline __attribute__((always_inline)) uint64_t xxh64_steps(const uint8_t *p, size_t n, uint64_t seed) {
    const uint8_t *end = p + n;
    uint64_t h;
    if (n >= 32) {
        uint64_t a = seed + XXP1 + XXP2, b = seed + XXP2, c = seed, d = seed - XXP1;
        for (; end - p >= 32; p += 32) {
            a = xx_round(a, xx_read64(p));
            b = xx_round(b, xx_read64(p + 8));
            c = xx_round(c, xx_read64(p + 16));
            d = xx_round(d, xx_read64(p + 24));
        }
        h = xx_rotl(a, 1) + xx_rotl(b, 7) + xx_rotl(c, 12) + xx_rotl(d, 18);
        h = xx_merge(h, a); h = xx_merge(h, b); h = xx_merge(h, c); h = xx_merge(h, d);
    } else {
        h = seed + XXP5;
    }
    h += (uint64_t)n;
    for (; end - p >= 8; p += 8) h = xx_rotl(h ^ xx_round(0, xx_read64(p)), 27) * XXP1 + XXP4;
    if (end - p >= 4) { h = xx_rotl(h ^ ((uint64_t)xx_read32(p) * XXP1), 23) * XXP2 + XXP3; p += 4; }
    for (; p < end; p++) h = xx_rotl(h ^ (*p * XXP5), 11) * XXP1;
    h ^= h >> 33; h *= XXP2; h ^= h >> 29; h *= XXP3; h ^= h >> 32;
    return h;
}
static uint64_t xxh64(const uint8_t *p, size_t n, uint64_t seed) { return xxh64_steps(p, n, seed); }
/* Of 40 bytes, which is what the key of a request has. */
static inline uint64_t xxh64_40(const uint8_t *p, uint64_t seed) { return xxh64_steps(p, 40, seed); }
#endif
