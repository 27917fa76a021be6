# Kernel and libc declarations that Cython does not ship; only the ones that are used.
from libc.stdint cimport uint64_t, int64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC


cdef extern from "<fcntl.h>" nogil:
    int open_file "open"(const char* path, int flags)
    enum:
        O_RDONLY
        O_CLOEXEC
        O_NONBLOCK
        O_NOCTTY


cdef extern from "<sys/stat.h>" nogil:
    struct file_stat "stat":
        unsigned int st_mode
        int64_t st_size
        uint64_t st_dev
        uint64_t st_ino
    int fstat(int fd, file_stat* into)
    int S_ISREG(unsigned int mode)
    int S_ISDIR(unsigned int mode)
    int S_ISFIFO(unsigned int mode)


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* into, size_t count, int64_t at)
    int isatty(int fd)
    ssize_t read(int fd, void* into, size_t count)
    ssize_t write(int fd, const void* data, size_t count)
    int close(int fd)


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* into)
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME


# ---- sockets and epoll: the sender ----------------------------------------------------------------------------------

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct linger:
        int l_onoff
        int l_linger
    int socket(int domain, int kind, int protocol)
    int connect(int fd, const sockaddr* address, socklen_t length)
    int getsockname(int fd, sockaddr* address, socklen_t* length)
    int getsockopt(int fd, int level, int option, void* value, socklen_t* length)
    int setsockopt(int fd, int level, int option, const void* value, socklen_t length)
    ssize_t recv(int fd, void* into, size_t count, int flags)
    ssize_t send(int fd, const void* data, size_t count, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    enum:
        AF_INET
        AF_INET6
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ERROR
        SO_LINGER
        SO_MARK
        SO_RCVLOWAT
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_PEEK


cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        unsigned int s_addr
    struct in6_addr:
        unsigned char s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        in6_addr sin6_addr
    unsigned short htons(unsigned short v)
    enum:
        IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY
        TCP_NOTSENT_LOWAT


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int most, int timeout_ms)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLLET


cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    enum:
        PR_GET_TIMERSLACK
        PR_SET_TIMERSLACK


cdef extern from "fastpath/slice.h" nogil:
    int slice_ask(uint64_t ns)


cdef extern from "fastpath/wait.h" nogil:
    int wait_events(int epfd, epoll_event* events, int most, int64_t timeout_ns)
    void wait_a_moment(int64_t ns)

cdef extern from "<sched.h>" nogil:
    int sched_yield()
