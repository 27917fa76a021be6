/* Atomics and the ring between two threads: what Cython cannot say.
 *
 * Ring: single producer, single consumer, bounded. The producer writes only `tail`, the consumer only `head`;
 * each on a cache line of its own. A full or empty ring is the caller's business (it waits, or drops and counts). */
#ifndef REPLAY_ATOMICS_H
#define REPLAY_ATOMICS_H
#include <stdint.h>
#include <stdlib.h>

static inline int64_t atomic_get(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
/* True when nobody else has it; then atomic_set(p, 0) gives it back. It is held for some stores: whoever finds it held tries again, but not for ever. */
static inline int atomic_take(int64_t *p) {
    int i;
    for (i = 0; i < 1000; i++)
        if (!__atomic_load_n(p, __ATOMIC_RELAXED) && !__atomic_exchange_n(p, 1, __ATOMIC_SEQ_CST)) return 1;
    return 0;
}
static inline void atomic_set(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int64_t atomic_add(int64_t *p, int64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
/* What is there, once it is not 0: the first to come puts v there. */
static inline int64_t atomic_first(int64_t *p, int64_t v) {
    int64_t found = 0;
    return __atomic_compare_exchange_n(p, &found, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ? v : found;
}
/* A counter with one writing thread and readers that only want a whole, recent value. */
static inline void count_add(int64_t *p, int64_t v) { __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + v, __ATOMIC_RELAXED); }
static inline void count_set(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline int64_t count_get(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

typedef struct {
    uint64_t tail;
    char apart_1[120]; /* not aligned: it lives inside a Python object, which is aligned to 16 */
    uint64_t head;
    char apart_2[120];
    uint64_t mask;
    void **slot;
} PointerRing;

static inline int ring_init(PointerRing *r, uint64_t slots) { /* slots: rounded up to a power of two */
    uint64_t n = 2;
    while (n < slots) n <<= 1;
    r->head = r->tail = 0;
    r->mask = n - 1;
    r->slot = (void **)calloc(n, sizeof(void *));
    return r->slot ? 0 : -1;
}
static inline void ring_free(PointerRing *r) { free(r->slot); r->slot = NULL; }
static inline int ring_push(PointerRing *r, void *p) { /* 1 pushed, 0 full */
    uint64_t t = r->tail;
    if (t - __atomic_load_n(&r->head, __ATOMIC_ACQUIRE) > r->mask) return 0;
    r->slot[t & r->mask] = p;
    __atomic_store_n(&r->tail, t + 1, __ATOMIC_SEQ_CST);
    return 1;
}
static inline void *ring_pop(PointerRing *r) { /* NULL: empty */
    uint64_t h = r->head;
    if (h == __atomic_load_n(&r->tail, __ATOMIC_SEQ_CST)) return NULL;
    void *p = r->slot[h & r->mask];
    __atomic_store_n(&r->head, h + 1, __ATOMIC_RELEASE);
    return p;
}
static inline uint64_t ring_count(const PointerRing *r) {
    return __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE) - __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
}
static inline int ring_is_behind(const PointerRing *r) { return 4 * ring_count(r) > r->mask; } /* a quarter of it waits */
#endif
