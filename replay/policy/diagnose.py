"""What is wrong with a policy, said so that it can be mended: file, line, field, what was expected, the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from replay.errors import UsageError

__all__ = ["Diagnoses", "Diagnosis", "PolicyError", "nearest"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding. level: `error` or `warning`.  line: from 1; 0 when it belongs to no line.  field: dotted, as `routes[0].match.host`; may be empty."""

    level: str
    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.level}: {f'{self.field}: ' if self.field else ''}{self.message}"


class PolicyError(UsageError):
    """A policy cannot be used. diagnoses: everything that was found, errors and warnings, in the order of the files."""

    def __init__(self, diagnoses: Iterable[Diagnosis]) -> None:
        self.diagnoses = list(diagnoses)
        errors = [str(one) for one in self.diagnoses if one.level == "error"]
        super().__init__("\n".join(errors))


class Diagnoses:
    """Collects findings; `check` raises when there is an error among them."""

    _MOST = 200

    def __init__(self) -> None:
        self.found: list[Diagnosis] = []

    def error(self, file: str, line: int, field: str, message: str) -> None:
        self._add(Diagnosis("error", file, line, field, message))

    def warning(self, file: str, line: int, field: str, message: str) -> None:
        self._add(Diagnosis("warning", file, line, field, message))

    def _add(self, one: Diagnosis) -> None:
        if len(self.found) < self._MOST and one not in self.found:
            self.found.append(one)

    @property
    def warnings(self) -> list[Diagnosis]:
        return [one for one in self.found if one.level == "warning"]

    def check(self) -> None:
        """Raises PolicyError when something is wrong."""
        if any(one.level == "error" for one in self.found):
            raise PolicyError(self.found)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is when nothing is near and the list is short."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    if near:
        return f"; did you mean {lower[near[0]]!r}?"
    return f"; there are {', '.join(names)}" if 0 < len(names) <= 16 else ""
