"""Word to the service manager: READY, RELOADING, STOPPING, STATUS and the watchdog, as datagrams to $NOTIFY_SOCKET (sd_notify(3)).

Without that variable nothing is said. It never fails the one who says something, and waits only with what is said once (READY, RELOADING, STOPPING), for a
moment, where the manager's queue is full.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

__all__ = ["Notifier"]

_WAIT_S = 1.0


class Notifier:
    """The socket is connected when it is made, so it works after privileges were dropped too. Takes the variables out of the environment."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._path = environment.pop("NOTIFY_SOCKET", "")
        usec = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        #: Seconds between two signs of life: half of what the manager waits for; None when it waits for none.
        self.interval_s = int(usec) / 2e6 if usec.isdigit() and int(usec) > 0 and meant else None
        self._next = 0.0
        self._socket: socket.socket | None = None
        if self._path[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._connect()

    def _connect(self) -> bool:
        assert self._socket is not None
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        try:
            self._socket.connect(address)
        except OSError:
            return False
        return True

    def _send(self, *lines: str, wait_s: float = 0.0) -> None:
        if self._socket is None:
            return
        data = "\n".join(lines).encode("utf-8", "replace")
        self._socket.settimeout(wait_s)
        for _ in range(2):
            try:
                self._socket.send(data, socket.MSG_NOSIGNAL)
                return
            except (BlockingIOError, TimeoutError):
                return  # the manager does not read
            except OSError:
                if not self._connect():  # it was started anew
                    return

    def ready(self, status: str) -> None:
        """It captures."""
        self._send("READY=1", _status(status), wait_s=_WAIT_S)

    def reloading(self) -> None:
        """The configuration is read anew; `ready` ends that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading", wait_s=_WAIT_S)

    def stopping(self, status: str = "draining") -> None:
        self._send("STOPPING=1", _status(status), wait_s=_WAIT_S)

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows."""
        self._send(_status(text))

    def alive(self, alive: Callable[[], bool]) -> None:
        """Call it often: sends a sign of life when one is due, and none while it is not alive, so that the manager acts. It is asked for only then."""
        if self.interval_s is None:
            return
        now = time.monotonic()
        if now >= self._next and alive():
            self._next = now + self.interval_s
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
