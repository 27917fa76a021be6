/* Files mapped into memory, in a way that survives a file which is cut short meanwhile.
 *
 * Reading a mapped page that the file no longer has raises SIGBUS. The handler here puts a page of zeros there, when the address lies in one of our mappings, and counts it; whoever
 * reads looks at the count (mapping_faults) before anything leaves the process that may come from such a page. Other addresses get what the handler before ours would do.
 * Source: mmap(2), sigaction(2); mmap is no more than a system call, so the handler may use it. */
#ifndef REPLAY_MAPPING_H
#define REPLAY_MAPPING_H
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPPING_ALIGNED (2u << 20) /* of a large page, so that the kernel may use them */
#define MAPPING_SLOTS 256

typedef struct { /* start 0: free */
    uintptr_t start;
    uintptr_t end;
    int hurt; /* a page of it was gone */
} MappingSlot;

static MappingSlot mapping_slots[MAPPING_SLOTS];
static int64_t mapping_fault_count;
static struct sigaction mapping_before;
static int mapping_handles;

static int64_t mapping_faults(void) { return __atomic_load_n(&mapping_fault_count, __ATOMIC_ACQUIRE); }

static void mapping_handler(int number, siginfo_t *info, void *context)
{
    const uintptr_t at = (uintptr_t)info->si_addr;
    int i;
    for (i = 0; i < MAPPING_SLOTS; i++) {
        const uintptr_t start = __atomic_load_n(&mapping_slots[i].start, __ATOMIC_ACQUIRE);
        if (start && at >= start && at < mapping_slots[i].end) {
            const uintptr_t page = at & ~(uintptr_t)4095;
            if (mmap((void *)page, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
                __atomic_store_n(&mapping_slots[i].hurt, 1, __ATOMIC_RELEASE);
                __atomic_add_fetch(&mapping_fault_count, 1, __ATOMIC_RELEASE);
                return;
            }
        }
    }
    if (mapping_before.sa_flags & SA_SIGINFO && mapping_before.sa_sigaction)
        mapping_before.sa_sigaction(number, info, context);
    else if (mapping_before.sa_handler != SIG_DFL && mapping_before.sa_handler != SIG_IGN)
        mapping_before.sa_handler(number);
    else
        signal(number, SIG_DFL); /* the access is tried again, and ends the process */
}

/* length bytes of the file, read only, with readable zeros behind them; *reserved is what mapping_end() wants. NULL: not to be had. */
static const uint8_t *mapping_begin(int fd, int64_t length, void **reserved, size_t *reserved_length)
{
    struct sigaction action;
    uint8_t *room, *at;
    size_t size;
    int i;
    if (length <= 0 || (uint64_t)length > SIZE_MAX / 2 || sysconf(_SC_PAGESIZE) != 4096)
        return NULL;
    size = (size_t)length + MAPPING_ALIGNED + 2 * 4096;
    room = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    at = (uint8_t *)(((uintptr_t)room + MAPPING_ALIGNED - 1) & ~(uintptr_t)(MAPPING_ALIGNED - 1));
    if (mmap(at, (size_t)length, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(room, size);
        return NULL;
    }
    for (i = 0; i < MAPPING_SLOTS; i++) {
        uintptr_t none = 0;
        if (__atomic_load_n(&mapping_slots[i].start, __ATOMIC_RELAXED) == 0 && __atomic_load_n(&mapping_slots[i].end, __ATOMIC_RELAXED) == 0 &&
            __atomic_compare_exchange_n(&mapping_slots[i].end, &none, (uintptr_t)at + (((size_t)length + 4095) & ~(size_t)4095), 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
            __atomic_store_n(&mapping_slots[i].hurt, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&mapping_slots[i].start, (uintptr_t)at, __ATOMIC_RELEASE);
            break;
        }
    }
    if (i == MAPPING_SLOTS) {
        munmap(room, size);
        return NULL;
    }
    if (!__atomic_exchange_n(&mapping_handles, 1, __ATOMIC_ACQ_REL)) {
        action.sa_sigaction = mapping_handler;
        sigemptyset(&action.sa_mask);
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGBUS, &action, &mapping_before);
    }
    *reserved = room;
    *reserved_length = size;
    return at;
}

static void mapping_end(const uint8_t *at, void *reserved, size_t reserved_length)
{
    int i;
    for (i = 0; i < MAPPING_SLOTS; i++)
        if (__atomic_load_n(&mapping_slots[i].start, __ATOMIC_RELAXED) == (uintptr_t)at) {
            __atomic_store_n(&mapping_slots[i].start, 0, __ATOMIC_RELEASE);
            __atomic_store_n(&mapping_slots[i].end, 0, __ATOMIC_RELEASE);
            break;
        }
    munmap(reserved, reserved_length);
}

/* Whether a page of this mapping was gone when it was read. */
static int mapping_hurt(const uint8_t *at)
{
    int i;
    for (i = 0; i < MAPPING_SLOTS; i++)
        if (__atomic_load_n(&mapping_slots[i].start, __ATOMIC_RELAXED) == (uintptr_t)at)
            return __atomic_load_n(&mapping_slots[i].hurt, __ATOMIC_ACQUIRE);
    return 0;
}

/* What was read stays good (it is read again from the file when need be), but no longer counts as our memory. */
static void mapping_passed(const uint8_t *from, const uint8_t *to)
{
    if (to > from)
        madvise((void *)from, (size_t)(to - from), MADV_DONTNEED);
}
#endif
