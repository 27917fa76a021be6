/* io_uring by its three system calls: a ring with one issuer whose work runs only when it enters the kernel (Linux 6.1), a ring of buffers
 * that the kernel puts arriving bytes into, requests that stay armed. The layout of the structs is the kernel's (io_uring_setup(2),
 * io_uring_enter(2), io_uring_register(2)); they are written down here because headers of older systems lack half of it.
 *
 * Must not know: connections, HTTP. Not for two threads: whoever opens a ring uses and closes it. */
#ifndef REPLAY_URING_H
#define REPLAY_URING_H
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define URING_SQES 1024u    /* prepared at most before they are submitted */
#define URING_CQES 8192u
#define URING_BUFFERS 256u  /* a power of two */
#define URING_BUFFER 16384u
#define URING_STRIDE (URING_BUFFER + 192u) /* so that the beginnings of buffers do not share a cache set */

typedef struct {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, op_flags;
    uint64_t key;
    uint16_t group, personality;
    int32_t file_index;
    uint64_t addr3, pad;
} UringSqe;

typedef struct {
    uint64_t key;
    int32_t res;
    uint32_t flags;
} UringCqe;

typedef struct {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct { uint32_t head, tail, mask, entries, flags, dropped, array, resv1; uint64_t user_addr; } sq;
    struct { uint32_t head, tail, mask, entries, overflow, cqes, flags, resv1; uint64_t user_addr; } cq;
} UringParams;

typedef struct { uint64_t addr; uint32_t len; uint16_t id, resv; } UringBuf;
typedef struct { uint64_t addr; uint32_t entries; uint16_t group, flags; uint64_t resv[3]; } UringBufReg;
typedef struct { uint32_t offset, resv; uint64_t data; } UringUpdate;
typedef struct { uint64_t sigmask; uint32_t sigmask_size, min_wait_us; uint64_t ts; } UringWait;
typedef struct { int64_t sec; long long nsec; } UringTime;

enum {
    URING_SETUP_CQSIZE = 1 << 3, URING_SETUP_CLAMP = 1 << 4, URING_SETUP_SUBMIT_ALL = 1 << 7, URING_SETUP_TASKRUN_FLAG = 1 << 9,
    URING_SETUP_SINGLE_ISSUER = 1 << 12, URING_SETUP_DEFER_TASKRUN = 1 << 13,
    URING_FEAT_SINGLE_MMAP = 1 << 0, URING_FEAT_NODROP = 1 << 1, URING_FEAT_EXT_ARG = 1 << 8, URING_FEAT_MIN_TIMEOUT = 1 << 15,
    URING_ENTER_GETEVENTS = 1 << 0, URING_ENTER_EXT_ARG = 1 << 3, URING_ENTER_REGISTERED = 1 << 4,
    URING_REGISTER_RING_FDS = 20, URING_REGISTER_PBUF_RING = 22,
    URING_SQ_OVERFLOW = 1 << 1, URING_SQ_TASKRUN = 1 << 2,
    URING_OP_POLL_ADD = 6, URING_OP_SENDMSG = 9, URING_OP_ASYNC_CANCEL = 14, URING_OP_SEND = 26, URING_OP_RECV = 27,
    URING_SQE_BUFFER_SELECT = 1 << 5, URING_SQE_SKIP_SUCCESS = 1 << 6,
    URING_RECV_POLL_FIRST = 1 << 0, URING_RECV_MULTISHOT = 1 << 1, URING_POLL_MULTI = 1 << 0,
    URING_CQE_BUFFER = 1 << 0, URING_CQE_MORE = 1 << 1
};

typedef struct {
    int fd;
    int entered; /* fd, or its registered index */
    uint32_t enter_flags, features;
    uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask, tail, prepared;
    UringSqe *sqes;
    UringCqe *cqes;
    void *ring;
    size_t ring_size, sqes_size;
    UringBuf *bufs;
    uint8_t *memory;
    uint16_t bufs_tail;
} Uring;

static inline int uring_call(const Uring *u, uint32_t submit, uint32_t want, uint32_t flags, const void *arg, size_t size) {
    return (int)syscall(426, u->entered, submit, want, flags | u->enter_flags, arg, size);
}

static void uring_close(Uring *u) {
    if (u->sqes) munmap(u->sqes, u->sqes_size);
    if (u->ring) munmap(u->ring, u->ring_size);
    if (u->fd >= 0) close(u->fd);
    if (u->bufs) munmap(u->bufs, URING_BUFFERS * sizeof(UringBuf));
    if (u->memory) munmap(u->memory, (size_t)URING_BUFFERS * URING_STRIDE);
    memset(u, 0, sizeof *u);
    u->fd = -1;
}

static inline void uring_give_back(Uring *u, uint32_t id) { /* the buffer with this number is free again */
    UringBuf *b = &u->bufs[u->bufs_tail & (URING_BUFFERS - 1)];
    b->addr = (uint64_t)(uintptr_t)(u->memory + (size_t)id * URING_STRIDE);
    b->len = URING_BUFFER;
    b->id = (uint16_t)id;
    u->bufs_tail++;
    __atomic_store_n(&u->bufs[0].resv, u->bufs_tail, __ATOMIC_RELEASE); /* the tail lies in the first entry's spare field */
}

static int uring_fail(Uring *u, int error) { uring_close(u); return -error; }

/* 0, or -errno: ENOSYS and EPERM where it is not allowed, EINVAL on kernels before 6.1. */
static int uring_open(Uring *u) {
    UringParams p;
    UringBufReg reg;
    UringUpdate update;
    uint8_t *r;
    uint32_t i, *array;
    memset(u, 0, sizeof *u);
    memset(&p, 0, sizeof p);
    p.flags = URING_SETUP_CQSIZE | URING_SETUP_CLAMP | URING_SETUP_SUBMIT_ALL | URING_SETUP_TASKRUN_FLAG | URING_SETUP_SINGLE_ISSUER | URING_SETUP_DEFER_TASKRUN;
    p.cq_entries = URING_CQES;
    u->fd = (int)syscall(425, URING_SQES, &p);
    if (u->fd < 0) return -errno;
    u->features = p.features;
    if (!(p.features & URING_FEAT_SINGLE_MMAP) || !(p.features & URING_FEAT_NODROP) || !(p.features & URING_FEAT_EXT_ARG)) return uring_fail(u, EINVAL);
    u->ring_size = p.cq.cqes + (size_t)p.cq_entries * sizeof(UringCqe);
    if (p.sq.array + (size_t)p.sq_entries * 4 > u->ring_size) u->ring_size = p.sq.array + (size_t)p.sq_entries * 4;
    u->sqes_size = (size_t)p.sq_entries * sizeof(UringSqe);
    u->ring = mmap(NULL, u->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd, 0);
    if (u->ring == MAP_FAILED) { u->ring = NULL; return uring_fail(u, ENOMEM); }
    u->sqes = (UringSqe *)mmap(NULL, u->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd, 0x10000000);
    if (u->sqes == MAP_FAILED) { u->sqes = NULL; return uring_fail(u, ENOMEM); }
    u->bufs = (UringBuf *)mmap(NULL, URING_BUFFERS * sizeof(UringBuf), PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (u->bufs == MAP_FAILED) { u->bufs = NULL; return uring_fail(u, ENOMEM); }
    u->memory = (uint8_t *)mmap(NULL, (size_t)URING_BUFFERS * URING_STRIDE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (u->memory == MAP_FAILED) { u->memory = NULL; return uring_fail(u, ENOMEM); }
    r = (uint8_t *)u->ring;
    u->sq_head = (uint32_t *)(r + p.sq.head);
    u->sq_tail = (uint32_t *)(r + p.sq.tail);
    u->sq_flags = (uint32_t *)(r + p.sq.flags);
    u->sq_mask = p.sq_entries - 1;
    u->cq_head = (uint32_t *)(r + p.cq.head);
    u->cq_tail = (uint32_t *)(r + p.cq.tail);
    u->cq_mask = p.cq_entries - 1;
    u->cqes = (UringCqe *)(r + p.cq.cqes);
    array = (uint32_t *)(r + p.sq.array);
    for (i = 0; i < p.sq_entries; i++) array[i] = i;
    memset(&reg, 0, sizeof reg);
    reg.addr = (uint64_t)(uintptr_t)u->bufs;
    reg.entries = URING_BUFFERS;
    reg.group = 1;
    if (syscall(427, u->fd, URING_REGISTER_PBUF_RING, &reg, 1) < 0) return uring_fail(u, errno);
    for (i = 0; i < URING_BUFFERS; i++) uring_give_back(u, i);
    u->entered = u->fd;
    memset(&update, 0, sizeof update);
    update.offset = UINT32_MAX;
    update.data = (uint64_t)u->fd;
    if (syscall(427, u->fd, URING_REGISTER_RING_FDS, &update, 1) == 1) {
        u->entered = (int)update.offset;
        u->enter_flags = URING_ENTER_REGISTERED;
    }
    return 0;
}

/* Hands everything that was prepared to the kernel; what can be done at once is done when this returns. While the kernel has no memory it waits:
 * what is prepared names descriptors, which must not be closed and used again before. */
static void uring_submit(Uring *u) {
    int n;
    while (u->prepared) {
        __atomic_store_n(u->sq_tail, u->tail, __ATOMIC_RELEASE);
        n = uring_call(u, u->prepared, 0, 0, NULL, 0);
        if (n > 0) {
            u->prepared -= (uint32_t)n < u->prepared ? (uint32_t)n : u->prepared;
        } else if (n == 0 || errno != EINTR) {
            uring_call(u, 0, 0, URING_ENTER_GETEVENTS, NULL, 0); /* a full ring of completions is made room in, as far as it goes */
            poll(NULL, 0, 1);
        }
    }
}

static inline uint32_t uring_ready(const Uring *u) { return __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE) - *u->cq_head; }

/* Until `want` completions are there: at most `patience_ns` for that many, then until there is one, at most timeout_ns (< 0: for ever) in all. */
static int uring_wait(Uring *u, uint32_t want, int64_t patience_ns, int64_t timeout_ns) {
    UringTime ts;
    UringWait wait;
    if (timeout_ns == 0) {
        if (!(__atomic_load_n(u->sq_flags, __ATOMIC_RELAXED) & (URING_SQ_TASKRUN | URING_SQ_OVERFLOW))) return 0;
        return uring_call(u, 0, 0, URING_ENTER_GETEVENTS, NULL, 0);
    }
    memset(&wait, 0, sizeof wait);
    if (want > 1 && patience_ns > 0) {
        if (timeout_ns > 0 && patience_ns >= timeout_ns) {
            /* nothing but the time ends it */
        } else if (u->features & URING_FEAT_MIN_TIMEOUT) {
            wait.min_wait_us = (uint32_t)(patience_ns / 1000);
        } else {
            ts.sec = 0;
            ts.nsec = patience_ns;
            wait.ts = (uint64_t)(uintptr_t)&ts;
            uring_call(u, 0, want, URING_ENTER_GETEVENTS | URING_ENTER_EXT_ARG, &wait, sizeof wait);
            want = 1;
            if (uring_ready(u)) return 0;
        }
    } else {
        want = 1;
    }
    ts.sec = timeout_ns / 1000000000;
    ts.nsec = timeout_ns % 1000000000;
    wait.ts = timeout_ns < 0 ? 0 : (uint64_t)(uintptr_t)&ts;
    return uring_call(u, 0, want, URING_ENTER_GETEVENTS | URING_ENTER_EXT_ARG, &wait, sizeof wait);
}

/* The oldest completion; 0 none. */
static inline int uring_next(Uring *u, UringCqe *into) {
    uint32_t head = *u->cq_head;
    if (head == __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE)) return 0;
    *into = u->cqes[head & u->cq_mask];
    __atomic_store_n(u->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}

static inline uint8_t *uring_bytes(const Uring *u, const UringCqe *cqe) { return u->memory + (size_t)(cqe->flags >> 16) * URING_STRIDE; }

static inline UringSqe *uring_sqe(Uring *u) { /* a place for one more */
    UringSqe *s;
    if (u->prepared > u->sq_mask) uring_submit(u);
    s = &u->sqes[u->tail & u->sq_mask];
    memset(s, 0, sizeof *s);
    u->tail++;
    u->prepared++;
    return s;
}

/* `key` comes back with what happens. */
static void uring_recv(Uring *u, int fd, uint64_t key) { /* stays armed until a completion without URING_CQE_MORE */
    UringSqe *s = uring_sqe(u);
    s->opcode = URING_OP_RECV;
    s->flags = URING_SQE_BUFFER_SELECT;
    s->ioprio = URING_RECV_MULTISHOT | URING_RECV_POLL_FIRST;
    s->group = 1;
    s->fd = fd;
    s->key = key;
}
static void uring_send(Uring *u, int fd, const void *data, uint32_t n, uint64_t key) { /* done, or refused, when uring_submit() returns */
    UringSqe *s = uring_sqe(u);
    s->opcode = URING_OP_SEND;
    s->fd = fd;
    s->addr = (uint64_t)(uintptr_t)data;
    s->len = n;
    s->op_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    s->key = key;
}
static void uring_sendmsg(Uring *u, int fd, const struct msghdr *message, uint64_t key) { /* message and its parts must stay until then */
    UringSqe *s = uring_sqe(u);
    s->opcode = URING_OP_SENDMSG;
    s->fd = fd;
    s->addr = (uint64_t)(uintptr_t)message;
    s->len = 1;
    s->op_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    s->key = key;
}
static void uring_poll(Uring *u, int fd, uint32_t events, int many, uint64_t key) {
    UringSqe *s = uring_sqe(u);
    s->opcode = URING_OP_POLL_ADD;
    s->fd = fd;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = events << 16 | events >> 16;
#endif
    s->op_flags = events;
    s->len = many ? URING_POLL_MULTI : 0;
    s->key = key;
}
/* What was prepared and not submitted under a key like this one never happens; else it could meet another file under a number that was closed. */
static void uring_withdraw(Uring *u, uint64_t key, uint64_t mask, uint64_t own) {
    uint32_t i;
    for (i = u->tail - u->prepared; i != u->tail; i++) {
        UringSqe *s = &u->sqes[i & u->sq_mask];
        if ((s->key & mask) != (key & mask)) continue;
        memset(s, 0, sizeof *s);
        s->flags = URING_SQE_SKIP_SUCCESS; /* operation 0 does nothing */
        s->fd = -1;
        s->key = own;
    }
}
static void uring_cancel(Uring *u, uint64_t key, uint64_t own) {
    UringSqe *s = uring_sqe(u);
    s->opcode = URING_OP_ASYNC_CANCEL;
    s->flags = URING_SQE_SKIP_SUCCESS;
    s->fd = -1;
    s->addr = key;
    s->key = own;
}
#endif
