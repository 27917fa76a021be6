"""The log of a daemon: a line an event, as text or JSON, on standard error; rate-limited, bounded, without control characters or credentials.

Loggers of the standard library feed it (`logging.getLogger("replay.tap")`). Messages that differ in their arguments or in numbers alone are of one kind: of
each some come through, the rest are counted and told later. What is said once, whatever its length, has `extra=ALWAYS`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import IO, Any

__all__ = ["ALWAYS", "DaemonLog", "Early", "FORMATS", "row"]

#: Of a record that is not left out however many of its kind there are.
ALWAYS = {"always": True}

FORMATS = ("text", "json")

#: Of one kind of message so many come through at once, then one each so many seconds.
BURST, EVERY_S = 10, 10.0
#: Kinds that are told apart; beyond that they share one.
KINDS = 256
#: Lines that may wait for whoever reads standard error; beyond that they are left out and counted.
WAITING = 1000
LONGEST = 4096

#: syslog's numbers, for the journal.
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_CREDENTIALS = (
    (re.compile(r"//[^/@\s]+@"), "//***@"),
    (
        re.compile(
            r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie|x-api-key|[\w-]*(?:token|secret|password)[\w-]*)(\s*[:=]\s*)"
            r"(\"[^\"]*\"|'[^']*'|(?:basic|bearer)\s+\S+|\S+)"
        ),
        r"\1\2***",
    ),
)
_NUMBERS = re.compile(r"\d+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _clean(text: str) -> str:
    """One line that cannot steer a terminal, break a line or tell a credential."""
    for pattern, instead in _CREDENTIALS:
        text = pattern.sub(instead, text)
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def row(level: str, part: str, text: str, *, at: float | None = None, left_out: int = 0) -> str:
    """A line of the log as JSON. at: seconds since 1970; None: now."""
    found: dict[str, Any] = {"time": _when(time.time() if at is None else at), "level": level, "part": part, "message": _clean(text)}
    return json.dumps(found | ({"left_out": left_out} if left_out else {}), ensure_ascii=False)


class Early(logging.Handler):
    """Keeps what is said before the log can begin, which has a thread: `hand_over` gives it to the log, `left` to whoever ends without one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []
        logging.getLogger("replay").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def left(self) -> list[logging.LogRecord]:
        """What was not handed over; nothing more is kept."""
        logging.getLogger("replay").removeHandler(self)
        found, self._records = self._records, []
        return found

    def hand_over(self, log: logging.Handler) -> None:
        """All of it comes through: it is said once."""
        for record in self.left():
            record.__dict__ |= ALWAYS
            log.handle(record)


class _Kind:
    """How much of one kind of message may still pass."""

    __slots__ = ("allowed", "at", "last", "left_out")

    def __init__(self, now: float) -> None:
        self.allowed, self.at, self.left_out = float(BURST), now, 0
        self.last: logging.LogRecord | None = None  # of those left out

    def passes(self, now: float, record: logging.LogRecord) -> bool:
        self.allowed = min(float(BURST), self.allowed + (now - self.at) / EVERY_S)
        self.at = now
        if self.allowed < 1:
            self.left_out += 1
            self.last = record
            return False
        self.allowed -= 1
        return True


class DaemonLog(logging.Handler):
    """Takes what the loggers below `replay` say, until `close`. Never waits for whoever reads the stream.

    counts: messages by level, those that were not written too.  left_out: not written, because there were too many or nobody read them.
    """

    def __init__(self, stream: IO[str], form: str = "text", level: int = logging.INFO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(level)
        self.counts = dict.fromkeys(("debug", "info", "warning", "error"), 0)
        self.left_out = 0
        self._stream, self._json, self._clock = stream, form == "json", clock
        self._journal = not self._json and _is_journal(stream)
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()
        self._logger = logging.getLogger("replay")
        self._before = (self._logger.level, self._logger.propagate)
        self._logger.setLevel(level)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        word = record.levelname.lower()
        self.counts[word if word in self.counts else "error"] += 1
        if getattr(record, "always", False):
            self._put(record, 0)
            return
        now = self._clock()
        key = (record.name, record.levelno, _NUMBERS.sub("#", str(record.msg)))
        if key not in self._kinds and len(self._kinds) >= KINDS:
            self.flush()
            self._kinds = {one: kind for one, kind in self._kinds.items() if kind.allowed + (now - kind.at) / EVERY_S < BURST}
            if len(self._kinds) >= KINDS:
                key = ("replay", record.levelno, "")
        kind = self._kinds.setdefault(key, _Kind(now))
        if kind.passes(now, record):
            self._put(record, kind.left_out)
            kind.left_out, kind.last = 0, None
        else:
            self.left_out += 1

    def flush(self) -> None:
        """Tells what was left out of kinds that are quiet by now. Call it now and then."""
        self._tell_left_out(self._clock() - EVERY_S)

    def _tell_left_out(self, before: float) -> None:
        """The last message that was left out of each kind which said nothing since then."""
        assert self.lock is not None
        with self.lock:
            for kind in self._kinds.values():
                if kind.last is not None and kind.at <= before:
                    self._put(kind.last, kind.left_out - 1)
                    kind.left_out, kind.last = 0, None

    def close(self) -> None:
        """Tells what was left out, and writes what waits, for a second at most."""
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]
        self._tell_left_out(float("inf"))
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._writer.join(1.0)
        super().close()

    def __enter__(self) -> DaemonLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, record: logging.LogRecord, more: int) -> None:
        try:
            text = record.getMessage()
        except Exception:
            text = str(record.msg)
        if record.exc_info and record.exc_info[0] is not None:
            text += f": {record.exc_info[0].__name__}: {record.exc_info[1]}"
        level, part = record.levelname, record.name.removeprefix("replay.")
        if self._json:
            line = row(level.lower(), part, text, at=record.created, left_out=more)
        else:
            line = f"<{_PRIORITY.get(level, 6)}>" if self._journal else f"{_when(record.created)} {level.lower():<7} "
            line += f"{part}: {_clean(text)}" + (f" ({more} more like it left out)" if more else "")
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.left_out += 1

    def _write(self) -> None:
        """The writing thread; it alone may wait for the stream."""
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # whoever read it has gone
                self.left_out += 1


def _is_journal(stream: IO[str]) -> bool:
    """Whether the stream goes to the journal of systemd, which reads a priority in front of a line."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        found = os.fstat(stream.fileno())
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (ValueError, OSError):
        return False
