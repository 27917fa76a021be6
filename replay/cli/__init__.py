"""The command `replay`. This module imports nothing, so that Ctrl-C is minded from the first moment on; verbs and errors are in `group`."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 usage, 3 guard, 4 capture, 5 target, 70 our bug, 130 interrupted."""
    import gc
    import sys

    # What is imported stays: looking for garbage among it costs a tenth of the start.
    gc.disable()
    try:
        _fill_streams()
        from replay.cli import group

        code = group.run(arguments)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _fill_streams() -> None:
    """Makes a standard stream that is closed (`>&-`, some supervisors) one of /dev/null. Left alone, the next file or socket that is opened would
    be its descriptor, and Python has None in its place."""
    import os
    import sys

    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:  # the lowest that is free is this one, for those below are filled
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if fd else os.O_RDONLY), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8", errors="backslashreplace", closefd=False))
