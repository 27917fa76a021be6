"""The main loop of a daemon: signals, a changed configuration, word to the service manager, changes that are logged. The engine's threads run beside it.

SIGTERM, SIGINT   drain, bounded; a second one ends at once
SIGHUP            reads the configuration anew; recordings begin a new file
SIGUSR1           the ledger on standard error

Must not know: options (it is given what parses and applies them), packets.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from replay.daemon.notify import Notifier
from replay.daemon.watch import Watch
from replay.errors import ReplayError

__all__ = ["Engine", "Reloads", "Service"]

_log = logging.getLogger("replay.daemon")

TICK_S, POLL_S = 0.1, 1.0


class Engine(Protocol):
    """What a daemon drives. drain: begins the bounded end.  stop: ends at once.  Both come from the main thread."""

    @property
    def running(self) -> bool: ...
    def snapshot(self) -> dict[str, Any]: ...
    def histograms(self) -> list[dict[str, bytes]]: ...
    def health(self) -> Any: ...
    def wait(self, seconds: float) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...


class Reloads:
    """Reads the configuration anew. again: parses and applies it; raises ReplayError, and then everything is as before.  files: what is to be watched."""

    def __init__(self, again: Callable[[], str], files: Callable[[], Iterable[str]]) -> None:
        self._again, self._files = again, files
        self._watch = Watch(files())
        self.applied = self.refused = 0
        self.last_good = True
        self.last_applied_s = time.time()

    def unreadable(self) -> list[str]:
        """Watched files that cannot be read."""
        return self._watch.unreadable()

    def changed(self) -> list[str]:
        """The watched files that changed."""
        return self._watch.changed()

    def reload(self, why: str) -> bool:
        """Whether the new configuration holds now."""
        try:
            what = self._again()
        except ReplayError as error:
            self.refused += 1
            self.last_good = False
            _log.error("the new configuration is refused, the old one goes on: %s", error)
            return False
        finally:
            self._watch.watch(self._files())
        self.applied += 1
        self.last_good = True
        self.last_applied_s = time.time()
        _log.info("reloaded (%s): %s", why, what)
        return True


class Service:
    """Runs an engine that was started until it is over.

    changes: looks at a snapshot once a second and gives what is to be logged: (level, message, arguments).  status: the line for the service manager.
    ledger: the lines of SIGUSR1.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        reloads: Reloads | None = None,
        notifier: Notifier | None = None,
        changes: Callable[[dict[str, Any]], Iterable[tuple[int, str, tuple[Any, ...]]]] = lambda seen: (),
        status: Callable[[dict[str, Any]], str] = lambda seen: "",
        ledger: Callable[[dict[str, Any]], Iterable[str]] = lambda seen: (),
        rotate: Callable[[], None] | None = None,
        flush: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._engine, self._reloads, self._notifier = engine, reloads, notifier or Notifier({})
        self._changes, self._status, self._ledger, self._rotate, self._flush, self._tell = changes, status, ledger, rotate, flush, tell
        self._asked = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1), 0)
        self.ending = False

    def counts(self) -> dict[str, Any]:
        """What the service itself counts, for the metrics."""
        reloads = self._reloads
        return {
            "reloads_applied": reloads.applied if reloads else 0,
            "reloads_refused": reloads.refused if reloads else 0,
            "reload_good": reloads.last_good if reloads else True,
            "reload_time_s": reloads.last_applied_s if reloads else None,
            "ending": self.ending,
        }

    def run(self) -> None:
        """Until the engine has ended; then the notifier is closed. Call it from the main thread."""
        with self._signals() as wake, contextlib.closing(self._notifier):
            for path in self._reloads.unreadable() if self._reloads is not None else ():
                _log.warning("%s cannot be read by the user that this runs as: a change of it cannot be taken up", path)
            self._notifier.ready(self._status(self._engine.snapshot()))
            looked = time.monotonic()
            while self._engine.running:
                self._rest(wake)
                self._heed_signals()
                self._notifier.alive(lambda: self._engine.health().alive)
                if time.monotonic() - looked >= POLL_S:
                    looked = time.monotonic()
                    self._look()
            self._end("it is over")

    def _rest(self, wake: socket.socket) -> None:
        """A moment, or until a signal comes."""
        self._engine.wait(0)
        interval = self._notifier.interval_s
        wake.settimeout(min(TICK_S, interval) if interval else TICK_S)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            wake.recv(4096)

    def _look(self) -> None:
        """Once a second."""
        seen = self._engine.snapshot()
        for level, message, arguments in self._changes(seen):
            _log.log(level, message, *arguments)
        self._flush()
        if not self.ending:
            self._notifier.status(self._status(seen))
            if self._reloads is not None:
                changed = self._reloads.changed()
                if changed:
                    self._reload(f"{', '.join(changed)} changed")

    def _heed_signals(self) -> None:
        if self._taken(signal.SIGUSR1):
            for line in self._ledger(self._engine.snapshot()):
                self._tell(line)
        if self._taken(signal.SIGHUP) and not self.ending:
            if self._rotate is not None:
                self._rotate()
            self._reload("SIGHUP")
        ends = self._taken(signal.SIGTERM) + self._taken(signal.SIGINT)
        if ends and not self.ending:
            self._end("draining")
            self._engine.drain()
            ends -= 1
        if ends > 0:
            _log.warning("a second signal: ending at once")
            self._engine.stop()

    def _taken(self, number: signal.Signals) -> int:
        """How often this signal came since it was asked."""
        count, self._asked[number] = self._asked[number], 0
        return count

    def _reload(self, why: str) -> None:
        if self._reloads is None:
            if self._rotate is None:
                _log.warning("%s: there is no --config to read anew", why)
            else:  # asked by a log rotation, which needs none
                _log.info("%s: recordings and logs go on in files made anew; there is no --config to read", why)
            return
        self._notifier.reloading()
        self._reloads.reload(why)
        self._notifier.ready(self._status(self._engine.snapshot()))

    def _end(self, why: str) -> None:
        if not self.ending:
            self.ending = True
            self._notifier.stopping(why)
            _log.info("ending: %s", why)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Counts signals, and wakes the loop with each; what was there before is put back."""

        def note(number: int, _: object) -> None:
            self._asked[signal.Signals(number)] += 1

        reading, writing = socket.socketpair()
        writing.setblocking(False)
        before = {one: signal.signal(one, note) for one in self._asked}
        woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(woken)
            for one, handler in before.items():
                signal.signal(one, handler)
            reading.close()
            writing.close()
