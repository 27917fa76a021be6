/* Files as memory, and what becomes of it when a file shrinks or its disk fails under it.
 *
 * A page that is mapped but not there any more raises SIGBUS. The handler puts pages of zeros under what is left of that mapping, notes the place, and the
 * reader goes on until it looks at mapping_broken(). Faults that are nobody's here go to whoever minded them before. */
#ifndef REPLAY_MAPPING_H
#define REPLAY_MAPPING_H
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPPINGS_MOST 64       /* at once in a process; beyond, files are read */
#define MAPPING_LARGE 0x200000 /* what one fault maps where the page cache holds a file in large folios: mappings begin at multiples of it */

typedef struct {
    uintptr_t at;     /* 0: free */
    uintptr_t length; /* 0 while it is made or undone */
    uintptr_t broken; /* offset of the lowest page that was not there, plus one; 0: all of it was */
} Mapping;

static Mapping mappings[MAPPINGS_MOST];
static int64_t mappings_broken; /* how many, ever */
static struct sigaction mapping_before;
static int mapping_minded;      /* 0 not yet, 1 somebody is about it, 2 the handler is ours */
static uintptr_t mapping_page;  /* a page's size less one */

static void mapping_fault(int number, siginfo_t *info, void *context)
{
    const uintptr_t at = (uintptr_t)info->si_addr, page = mapping_page;
    const int error = errno;
    int i;
    for (i = 0; i < MAPPINGS_MOST; i++) {
        Mapping *m = &mappings[i];
        const uintptr_t from = __atomic_load_n(&m->at, __ATOMIC_ACQUIRE), length = __atomic_load_n(&m->length, __ATOMIC_ACQUIRE);
        if (length && at - from < ((length + page) & ~page)) {
            const uintptr_t begin = at & ~page, end = (from + length + page) & ~page;
            const uintptr_t mine = begin - from + 1;
            uintptr_t first = 0;
            /* A file that shrinks again may lack a page in front of those that were missed before. */
            while (!__atomic_compare_exchange_n(&m->broken, &first, mine, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && first > mine)
                ;
            __atomic_add_fetch(&mappings_broken, 1, __ATOMIC_SEQ_CST);
            if (mmap((void *)begin, end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
                break;
            errno = error;
            return;
        }
    }
    errno = error;
    if (mapping_before.sa_flags & SA_SIGINFO) {
        mapping_before.sa_sigaction(number, info, context);
    } else if (mapping_before.sa_handler != SIG_DFL && mapping_before.sa_handler != SIG_IGN) {
        mapping_before.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* the instruction runs again, and that ends the process as it should */
    }
}

/* `length` bytes of the file from `offset` on, which is a multiple of a page's size. An index for the calls below; -1: it cannot be. */
static int mapping_open(int fd, int64_t offset, uint64_t length, const uint8_t **memory)
{
    struct sigaction now;
    int none = 0, i;
    void *p;
    if (!__atomic_load_n(&mapping_minded, __ATOMIC_ACQUIRE) && __atomic_compare_exchange_n(&mapping_minded, &none, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        struct sigaction ours;
        mapping_page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = mapping_fault;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&ours.sa_mask);
        if (sigaction(SIGBUS, &ours, &mapping_before) < 0) {
            __atomic_store_n(&mapping_minded, 0, __ATOMIC_RELEASE);
            return -1;
        }
        __atomic_store_n(&mapping_minded, 2, __ATOMIC_RELEASE);
    }
    if (__atomic_load_n(&mapping_minded, __ATOMIC_ACQUIRE) != 2 || sigaction(SIGBUS, NULL, &now) < 0 || now.sa_sigaction != mapping_fault)
        return -1; /* another thread is about it, or somebody minds these faults who does not know of us */
    for (i = 0; i < MAPPINGS_MOST; i++) {
        uintptr_t taken = 0;
        if (__atomic_compare_exchange_n(&mappings[i].at, &taken, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            break;
    }
    if (i == MAPPINGS_MOST)
        return -1;
    p = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, offset);
    if (p == MAP_FAILED) {
        __atomic_store_n(&mappings[i].at, 0, __ATOMIC_RELEASE);
        return -1;
    }
    mappings[i].broken = 0;
    __atomic_store_n(&mappings[i].at, (uintptr_t)p, __ATOMIC_RELEASE);
    __atomic_store_n(&mappings[i].length, length, __ATOMIC_RELEASE);
    *memory = (const uint8_t *)p;
    return i;
}

static void mapping_close(int which)
{
    Mapping *m = &mappings[which];
    const uintptr_t length = m->length;
    __atomic_store_n(&m->length, 0, __ATOMIC_RELEASE);
    munmap((void *)m->at, length);
    __atomic_store_n(&m->at, 0, __ATOMIC_RELEASE);
}

/* Where the lowest page was that was not there, from the beginning of the mapping; -1: all that was looked at was. */
static inline int64_t mapping_broken(int which) { return (int64_t)__atomic_load_n(&mappings[which].broken, __ATOMIC_SEQ_CST) - 1; }

/* Were some of these n bytes lost? Asked behind the copy of them: what was noted before it is seen. */
static inline int mapping_lost(const uint8_t *p, size_t n)
{
    const uintptr_t at = (uintptr_t)p;
    int i;
    if (__builtin_expect(!__atomic_load_n(&mappings_broken, __ATOMIC_SEQ_CST), 1))
        return 0;
    for (i = 0; i < MAPPINGS_MOST; i++) {
        const Mapping *m = &mappings[i];
        const uintptr_t broken = __atomic_load_n(&m->broken, __ATOMIC_SEQ_CST);
        if (m->length && broken && at - m->at < m->length && at - m->at + n > broken - 1)
            return 1;
    }
    return 0;
}
#endif
