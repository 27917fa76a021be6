/* The hash of a connection: quick, and with a secret, so that nobody can choose addresses that collide. */
#ifndef REPLAY_MIX_H
#define REPLAY_MIX_H
#include <stdint.h>
#include <string.h>

static inline uint64_t mix_fold(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* memcmp(a, b, 16) of two addresses, in line. */
static inline int mix_order(const uint8_t *a, const uint8_t *b)
{
    uint64_t x, y;
    memcpy(&x, a, 8);
    memcpy(&y, b, 8);
    if (x == y) {
        memcpy(&x, a + 8, 8);
        memcpy(&y, b + 8, 8);
    }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    x = __builtin_bswap64(x);
    y = __builtin_bswap64(y);
#endif
    return (x > y) - (x < y);
}

/* a, b: addresses of 16 bytes; secret: four words. */
static inline uint64_t mix_key(const uint8_t *a, const uint8_t *b, uint32_t ports, uint64_t network, const uint64_t *secret)
{
    uint64_t a0, a1, b0, b1;
    memcpy(&a0, a, 8);
    memcpy(&a1, a + 8, 8);
    memcpy(&b0, b, 8);
    memcpy(&b1, b + 8, 8);
    a1 = mix_fold(a1 ^ secret[0], b1 ^ secret[1]);
    if (a0 | b0) /* not v4-mapped */
        a1 ^= mix_fold(a0 ^ secret[2], b0 ^ secret[3]);
    return mix_fold(a1 ^ secret[2], (network << 32 | network >> 32) ^ ports ^ secret[3]);
}
#endif
