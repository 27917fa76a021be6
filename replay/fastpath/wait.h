/* epoll with a timeout in nanoseconds: epoll_pwait2 (Linux 5.11), else ppoll on the epoll descriptor.
 * Called through syscall(), because older C libraries lack the wrapper. timeout_ns < 0: for ever. */
#ifndef REPLAY_WAIT_H
#define REPLAY_WAIT_H
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline int wait_events(int epfd, struct epoll_event *events, int most, int64_t timeout_ns) {
    static int missing = 0; /* set once by any thread; a race costs one more failed call */
    struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct pollfd one = {epfd, POLLIN, 0};
    int n;
    if (timeout_ns == 0) return epoll_wait(epfd, events, most, 0);
#ifdef SYS_epoll_pwait2
    if (!__atomic_load_n(&missing, __ATOMIC_RELAXED)) {
        n = (int)syscall(SYS_epoll_pwait2, epfd, events, most, timeout_ns < 0 ? NULL : &ts, NULL, (size_t)0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;
        __atomic_store_n(&missing, 1, __ATOMIC_RELAXED);
    }
#endif
    n = ppoll(&one, 1, timeout_ns < 0 ? NULL : &ts, NULL);
    return n <= 0 ? n : epoll_wait(epfd, events, most, 0);
}

static inline void wait_a_moment(int64_t ns) {
    struct timespec ts = {ns / 1000000000, ns % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}
#endif
