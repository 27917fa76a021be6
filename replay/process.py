"""What a process takes of its machine: descriptors, and which of its threads stand back for others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource

__all__ = ["await_turn", "descriptors", "stand_back"]

#: Descriptors that there is room for at once, at most: 8 bytes of the kernel's memory each.
_ROOM_MOST = 1 << 16

#: Of 19. Where both want the core all the time, such a thread gets a thirtieth of it: enough to read 30,000 requests a second.
_NICER = 15


def descriptors(need: int | None = None) -> None:
    """Raises the soft limit on open files to `need` (None: to the hard limit) as far as is allowed, and has the kernel make room for so many.

    To be called before threads start. A table of descriptors that grows while threads share it makes the thread that opened one too many
    wait for all processors (synchronize_rcu in the kernel): some 10 ms each time, at 64, 128, 256 descriptors and so on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if need is None else need if hard == resource.RLIM_INFINITY else min(need, hard)
    if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or soft < wanted):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    room = min(x for x in (_ROOM_MOST, need or 1024, soft) if x != resource.RLIM_INFINITY)
    with contextlib.suppress(OSError, ValueError):
        first = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, room - 1))
        finally:
            os.close(first)


def stand_back() -> None:
    """Makes the calling thread give way to others, for the rest of its life, and those that it starts. On Linux a thread has a niceness of its own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(os.getpriority(os.PRIO_PROCESS, 0) + _NICER, 19))


def await_turn() -> None:
    """Makes the calling thread, and those that it starts, leave a core to whoever runs there when they wake up (SCHED_BATCH): they get as much of it
    as before, but at their turn, some milliseconds later. A policy that somebody chose for us (`chrt`, CPUSchedulingPolicy= of systemd) stays."""
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
