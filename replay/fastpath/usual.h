/* The usual packet, in as few instructions as it takes: Ethernet, IPv4 without options or fragments, TCP. What is not exactly that is decode_slow's (decode.pxi). */
#ifndef REPLAY_USUAL_H
#define REPLAY_USUAL_H
#include "mix.h"
#include <stdint.h>
#include <string.h>

static inline uint16_t usual_load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t usual_load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define USUAL_HOST16(v) __builtin_bswap16(v)
#define USUAL_HOST32(v) __builtin_bswap32(v)
#define USUAL_NET32(a, b, c, d) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define USUAL_MAPPED(v) ((uint64_t)(v) << 32 | 0xFFFF0000u)
#else
#define USUAL_HOST16(v) (v)
#define USUAL_HOST32(v) (v)
#define USUAL_NET32(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))
#define USUAL_MAPPED(v) ((uint64_t)0xFFFF << 32 | (v))
#endif

/* n bytes at p, 54 at least, of a frame that had `cut` more: offset of the TCP payload in it, how much of it is there and how much is not; 0: something is
 * not usual. */
static inline uint32_t usual_payload(const uint8_t *p, uint32_t n, uint32_t cut, uint32_t *length, uint32_t *missing)
{
    const uint32_t total = USUAL_HOST16(usual_load16(p + 16));
    const uint32_t header = (uint32_t)(p[46] >> 4) * 4;
    uint32_t left = 0;
    /* type, version and length of the header (any type of service); protocol; no more fragments, no offset */
    if (((usual_load32(p + 12) ^ USUAL_NET32(0x08, 0x00, 0x45, 0x00)) & USUAL_NET32(0xFF, 0xFF, 0xFF, 0x00)) |
        ((usual_load32(p + 20) ^ USUAL_NET32(0, 0, 0, 6)) & USUAL_NET32(0x3F, 0xFF, 0, 0xFF)))
        return 0;
    if (header < 20 || header + 20 > total)
        return 0;
    if (total > n - 14) {
        left = total - (n - 14);
        if (!cut || 34 + header > n)
            return 0;
    }
    *length = total - left - 20 - header;
    *missing = left < cut ? left : cut;
    return 34 + header;
}

/* An address as a v4-mapped one. */
static inline void usual_mapped(uint8_t *address, uint32_t raw)
{
    const uint64_t high = 0, low = USUAL_MAPPED(raw);
    memcpy(address, &high, 8);
    memcpy(address + 8, &low, 8);
}

/* segment_key() of such a packet: the side, and the hash that mix_key() gives without a network. */
static inline uint64_t usual_key(const uint8_t *p, const uint64_t *secret, uint8_t *side)
{
    const uint32_t src = usual_load32(p + 26), dst = usual_load32(p + 30);
    const uint64_t from = (uint64_t)USUAL_HOST32(src) << 16 | USUAL_HOST16(usual_load16(p + 34));
    const uint64_t to = (uint64_t)USUAL_HOST32(dst) << 16 | USUAL_HOST16(usual_load16(p + 36));
    const int other = from > to;
    const uint64_t low = other ? to : from, high = other ? from : to;
    const uint64_t a = USUAL_MAPPED(other ? dst : src), b = USUAL_MAPPED(other ? src : dst);
    *side = (uint8_t)other;
    return mix_fold(mix_fold(a ^ secret[0], b ^ secret[1]) ^ secret[2], (uint64_t)(uint32_t)((low & 0xFFFF) << 16 | (high & 0xFFFF)) ^ secret[3]);
}
#endif
