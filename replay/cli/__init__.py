"""The command `replay`. This module imports nothing, so that Ctrl-C is minded from the first moment on; verbs and errors are in `group`."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 usage, 3 guard, 4 capture, 5 target, 70 our bug, 130 interrupted."""
    import gc
    import sys

    # What is imported stays: looking for garbage among it costs a tenth of the start.
    gc.disable()
    try:
        from replay.cli import group

        code = group.run(arguments)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
