"""What a person can mend, as exceptions. Each knows its exit code; the command line maps them in one place.

ReplayError               70  our own bug, unless a subclass says otherwise
├── UsageError             2  a wrong option, value or configuration key
├── GuardError             3  refused: the target is production, or this would be a loop
├── CaptureError           4  a capture is missing, unreadable or holds no request
└── TargetError            5  no connection to the target ever succeeded
"""

__all__ = ["CaptureError", "GuardError", "ReplayError", "TargetError", "UsageError"]


class ReplayError(Exception):
    """Base of all errors of this package."""

    exit_code = 70


class UsageError(ReplayError):
    """A wrong option, value or configuration key. The text names it and the nearest right one."""

    exit_code = 2


class GuardError(ReplayError):
    """A guard refused to send."""

    exit_code = 3


class CaptureError(ReplayError):
    """A capture cannot be read.

    path: as the user gave it.  offset: byte in the (decompressed) file, or None.  packet: number, or None.
    """

    exit_code = 4

    def __init__(self, path: str, message: str, *, offset: int | None = None, packet: int | None = None) -> None:
        self.path, self.message, self.offset, self.packet = path, message, offset, packet
        place = "".join(f", {name} {value}" for name, value in (("offset", offset), ("packet", packet)) if value is not None)
        super().__init__(f"{path}{place}: {message}")


class TargetError(ReplayError):
    """No connection to the target ever succeeded."""

    exit_code = 5
