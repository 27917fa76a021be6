# Kernel and libc declarations that Cython does not ship; only the ones that are used.
from libc.stdint cimport uint64_t, int64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
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
