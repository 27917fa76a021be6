/* A shorter slice of the processor for a thread that must be on time, Linux 6.12 and newer.
 *
 * Two threads of ours share a core: one reads the capture, one sends what is due. The one that wakes up replaces the one that runs at once only where it asked for the shorter slice (EEVDF, PREEMPT_SHORT);
 * else it may wait for the rest of some 3 ms. No right is needed and no share of the processor is gained by it. Older kernels ignore the field or refuse it; nothing depends on it. */
#ifndef REPLAY_SLICE_H
#define REPLAY_SLICE_H
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct slice_attr { /* sched_attr of linux/sched/types.h, as of its first version: 48 bytes */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* Asks for slices of ns (100 us to 100 ms; 0: the system's) for the calling thread. 0, or -1 where it can't be had. A thread of another policy than the usual is left as it is. */
static inline int slice_ask(uint64_t ns)
{
#if defined(SYS_sched_setattr) && defined(SYS_sched_getattr)
    struct slice_attr attr;
    memset(&attr, 0, sizeof attr);
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 || attr.policy != 0)
        return -1;
    attr.size = sizeof attr;
    attr.runtime = ns;
    attr.flags &= 1; /* SCHED_FLAG_RESET_ON_FORK */
    return syscall(SYS_sched_setattr, 0, &attr, 0) == 0 ? 0 : -1;
#else
    (void)ns;
    return -1;
#endif
}
#endif
