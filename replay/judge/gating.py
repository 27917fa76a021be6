"""`--fail-if`, `--stop-if`, `--allow-empty`: gates are parsed before a run, looked at while it goes on, and judged at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.errors import UsageError

if TYPE_CHECKING:  # most runs have no gate
    from replay.judge import gates

__all__ = ["Gates", "parsed"]

#: A percentage of fewer requests than this says nothing yet, while a run goes on.
LEAST = 100
_LOOK_S = 0.5


@dataclass(slots=True)
class Gates:
    """fail: judged at the end.  stop: looked at twice a second; the first that holds ends the run."""

    fail: list[gates.Gate] = field(default_factory=list)
    stop: list[gates.Gate] = field(default_factory=list)
    allow_empty: bool = False
    stopped_by: gates.Outcome | None = None
    _next: float = 0.0

    def look(self, report: Callable[[], dict[str, Any]]) -> bool:
        """True, once, when a `--stop-if` holds now. report: makes the report so far; only called when it is needed."""
        now = time.monotonic()
        if not self.stop or self.stopped_by is not None or now < self._next:
            return False
        seen = report()
        for gate in self.stop:
            outcome = gate.check(seen, least=LEAST)
            if outcome.failed:
                self.stopped_by = outcome
                return True
        # A report of many endpoints takes its time: at most a tenth of it goes into looking.
        self._next = time.monotonic() + max(_LOOK_S, 10 * (time.monotonic() - now))
        return False

    @property
    def stopped_text(self) -> str | None:
        """The `--stop-if` that ended the run; the `stopped_by` of the report."""
        return None if self.stopped_by is None else self.stopped_by.expression

    def judge(self, report: dict[str, Any]) -> list[dict[str, Any]]:
        """The `gates` of the report."""
        found: list[gates.Outcome] = []
        if self.fail and not report["ledger"]["selected"]:
            if not self.allow_empty:
                from replay.judge import gates

                found.append(gates.Outcome("ledger.selected > 0", True, "0", "nothing was selected, so no gate says anything (--allow-empty accepts that)"))
        else:
            found += [gate.check(report) for gate in self.fail]
        if self.stopped_by is not None:
            found.append(self.stopped_by)
        return [outcome.as_dict() for outcome in found]


def parsed(fail_if: tuple[str, ...], stop_if: tuple[str, ...], allow_empty: bool = False) -> Gates:
    """Raises UsageError that names the option."""

    def each(option: str, texts: tuple[str, ...]) -> list[gates.Gate]:
        if not texts:
            return []
        from replay.judge import gates

        found = []
        for text in texts:
            try:
                found.append(gates.parse(text))
            except UsageError as error:
                raise UsageError(f"{option} {error}") from None
        return found

    return Gates(each("--fail-if", fail_if), each("--stop-if", stop_if), allow_empty)
