/* Hints to the processor about memory that is needed soon; any address will do. */
#ifndef REPLAY_HINTS_H
#define REPLAY_HINTS_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void spin_pause(void) { _mm_pause(); }
#elif defined(__aarch64__)
static inline void spin_pause(void) { __asm__ volatile("yield"); }
#else
static inline void spin_pause(void) {}
#endif

static inline void touch(const void *p) { (void)*(const volatile uint8_t *)p; }
static inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void prefetch_struct(const void *p, size_t n)
{
    size_t i;
    for (i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 1, 3);
}

/* memset(p, 0, n) of a struct of 32 bytes and more in the hot path. Compilers make `rep stos` of that, which takes longer to begin than a few hundred bytes take to be written. */
static inline void zero_struct(void *p, size_t n)
{
    char *at = (char *)p;
    size_t i;
    for (i = 0; i + 32 <= n; i += 32) {
        memset(at + i, 0, 32);
        __asm__ volatile("" : : "r"(at) : "memory"); /* or the loop becomes that again */
    }
    memset(at + n - 32, 0, 32);
}
#endif
