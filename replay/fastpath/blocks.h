/* Loads of either byte order, and times that saturate: what Cython cannot say (128 bits). */
#ifndef REPLAY_BLOCKS_H
#define REPLAY_BLOCKS_H
#include <stdint.h>
#include <string.h>

static inline uint32_t blocks_load32(const uint8_t *p, int swapped) {
    uint32_t v;
    memcpy(&v, p, 4);
    return swapped ? __builtin_bswap32(v) : v;
}
static inline uint16_t blocks_load16(const uint8_t *p, int swapped) {
    uint16_t v;
    memcpy(&v, p, 2);
    return swapped ? __builtin_bswap16(v) : v;
}
static inline int64_t blocks_load64(const uint8_t *p, int swapped) {
    uint64_t v;
    memcpy(&v, p, 8);
    return (int64_t)(swapped ? __builtin_bswap64(v) : v);
}

/* How an interface counts time: ns = (ticks * times >> shift) / over + offset seconds. times and shift keep the product below 2^94. */
typedef struct {
    uint64_t times;
    uint64_t over;
    int64_t offset;
    uint32_t shift;
} BlockClock;

/* if_tsresol: the high bit says powers of two, else of ten; all 256 values are possible. */
static inline void blocks_clock(BlockClock *c, uint8_t resolution, int64_t offset) {
    uint32_t n = resolution & 127, i;
    c->times = 1;
    c->over = 1;
    c->shift = 0;
    c->offset = offset;
    if (resolution & 128) {
        c->times = 1000000000;
        c->shift = n;
    } else if (n <= 9) {
        for (i = n; i < 9; i++) c->times *= 10;
    } else if (n <= 28) {
        for (i = 9; i < n; i++) c->over *= 10;
    } else {
        c->times = 0; /* 2^64 ticks are less than a nanosecond */
    }
}
static inline int64_t blocks_time(const BlockClock *c, uint64_t ticks) {
    unsigned __int128 ns = (unsigned __int128)ticks * c->times >> c->shift;
    __int128 sum;
    if (c->over > 1) ns /= c->over;
    sum = (__int128)ns + (__int128)c->offset * 1000000000;
    return sum > INT64_MAX ? INT64_MAX : sum < INT64_MIN ? INT64_MIN : (int64_t)sum;
}
#endif
