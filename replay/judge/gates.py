"""`--fail-if` and `--stop-if`: a condition over the numbers of a report, parsed by hand, evaluated without `eval`.

    condition = and ("or" and)*        and = not ("and" not)*        not = "not" not | comparison
    comparison = sum (">" | ">=" | "<" | "<=" | "==" | "!=") sum
    sum = product (("+" | "-") product)*        product = value (("*" | "/") value)*
    value = NUMBER [unit] | PATH | "(" condition-or-sum ")" | "-" value
    PATH = name ("." name | "[" string "]")*        unit = % ns us ms s m h k M

A number of the report knows its unit by its name (`latency_us`), and what it is a part of (`ledger.unanswered` of `ledger.sent`): `1%` compares with that
part; of nothing there is no percentage, and no value fails. A name that is unknown is an error before the run, a reason among them; a status or a reason
that did not occur is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replay.errors import UsageError
from replay.units import show_duration

__all__ = ["Gate", "Outcome", "known_names", "parse"]

_STEP = r"\.(?:\d{3}>\d{3}|\w+|\*|\"[^\"]*\"|'[^']*')|\[(?:\"[^\"]*\"|'[^']*')\]"
_STEP_PART = r"\d{3}>\d{3}|\"[^\"]*\"|'[^']*'|\w+|\*"
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>%|ns\b|us\b|µs\b|ms\b|s\b|min\b|m\b|h\b|k\b|M\b)?"
    r"|(?P<op>>=|<=|==|!=|[><()+\-*/])|(?P<path>[A-Za-z_]\w*(?:" + _STEP + r")*))"
)
_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_OPS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}

_QUANTILES = {"p50": "us", "p90": "us", "p99": "us", "p99_9": "us", "max": "us"}
_COUNT = "count"


@dataclass(frozen=True, slots=True)
class _Names:
    """Counts by name, of which a report has those that occurred; the others are 0. names: that there are.  more: a pattern of further ones,
    those of numbers.  example: one of them."""

    names: tuple[str, ...]
    more: str = ""
    example: str = ""


_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_CODE = r"[1-9]\d\d"
_STATUS = _Names(_CLASSES, _CODE, "200")
_CHANGE = _Names((), f"{_CODE}>{_CODE}", "200>500")
# The engine has these names (`_fastpath.FILTERED` …); tests/test_judge.py compares.
_REASONS = {
    "filtered": _Names(("time", "server", "client", "port", "method", "host", "path", "no_route", "not_mirrored")),
    "sampled_out": _Names(("share", "no_key", "max_cpu", "limit")),
    "withheld": _Names(("connect", "upgrade", "ambiguous", "unconfirmed", "no_host", "bad_host", "loop", "truncated")),
    "dropped": _Names(("target_down", "guard", "dry_run", "stopped", "memory", "empty", "expired", "breaker", "max_rate", "queue_full")),
    "unanswered": _Names(("reset", "closed", "timeout", "garbage", "stopped")),
}
_INCOMPLETE = _Names(("gap", "cut_by_snaplen", "cut_at_end", "closed", "malformed", "head_too_large", "too_large", "body_refused", "evicted"))
_OTHER = _Names(("tls", "http2", "ssh", "upgraded", "connect", "other", "seen_twice", "elsewhere"))
_SKIPPED = _Names(
    (
        "truncated", "malformed_ip", "malformed_tcp", "nesting", "fragment_waiting", "fragment_overlap", "fragment_too_long", "fragment_limit", "llc", "ppp",
        "mpls", "gre", "nflog", "empty", "null_family", "icmp", "igmp", "udp", "esp", "icmpv6", "no_next_header", "ospf", "pim", "vrrp", "sctp",
        "arp", "rarp", "lldp", "pppoe_discovery", "eapol", "macsec", "loopback_test", "bpf", "other",
    ),
    r"ip_protocol_\d{1,3}|ethertype_0x[0-9a-f]{4}|link_\d+",
    "ip_protocol_46",
)  # fmt: skip

#: The numbers of a report. A leaf is `count`, `us`, `ns`, `s`, or `rate`, or counts by name.
_SCHEMA: dict[str, Any] = {
    "ledger": {
        **dict.fromkeys(("found", "filtered", "sampled_out", "withheld", "selected", "fanout", "sent", "dropped", "answered", "unanswered"), _COUNT),
        "by_reason": _REASONS,
    },
    "incomplete": _INCOMPLETE,
    "packets": {"read": _COUNT, "skipped": _SKIPPED, "kernel_drops": _COUNT, "cut_frames": _COUNT},
    "lost_estimated": _COUNT,
    "status": _STATUS,
    "status_captured": _STATUS,
    "status_change": _CHANGE,
    "status_known": _COUNT,
    "status_same": _COUNT,
    **dict.fromkeys(("latency_us", "service_us", "lag_us", "production_us", "response_us"), _QUANTILES),
    "rate": {"asked": "rate", "achieved": "rate", "planned_s": "s", "duration_s": "s"},
    "connections": _COUNT,
    "other": _OTHER,
    "gaps": {"count": _COUNT, "bytes": _COUNT},
    "overlap_conflicts": _COUNT,
    "repeated_segments": _COUNT,
    "evicted_connections": _COUNT,
    "memory_refused": _COUNT,
    "writes": _COUNT,
    "passes": _COUNT,
    "endpoints": {
        "*": {
            **dict.fromkeys(("requests", "answered", "unanswered", "dropped", "known", "changed", "worse", "compared", "slower"), _COUNT),
            **dict.fromkeys(("status", "captured"), _Names(_CLASSES)),
            "status_change": _Names(("other",), _CHANGE.more, _CHANGE.example),
            **dict.fromkeys(("latency_us", "production_us", "response_us"), _QUANTILES),
        }
    },
    "results": {"lines": _COUNT, "lost": _COUNT},
}

#: What a count is a part of, for a comparison with a percentage.
_WHOLE: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("ledger.filtered", "ledger.sampled_out", "ledger.withheld", "ledger.selected"), (("ledger", "found"),)),
    **dict.fromkeys(("ledger.sent", "ledger.dropped"), (("ledger", "selected"), ("ledger", "fanout"))),
    **dict.fromkeys(("ledger.answered", "ledger.unanswered"), (("ledger", "sent"),)),
    "status": (("ledger", "answered"),),
    "status_captured": (("status_known",),),
    "status_change": (("status_known",),),
    "status_same": (("status_known",),),
    "status_known": (("ledger", "answered"),),
    "incomplete": (("ledger", "found"), ("incomplete",)),
    "lost_estimated": (("ledger", "found"), ("incomplete",), ("lost_estimated",)),
    "packets.skipped": (("packets", "read"),),
    "packets.kernel_drops": (("packets", "read"), ("packets", "kernel_drops")),
    "packets.cut_frames": (("packets", "read"),),
    "writes": (("ledger", "selected"),),
    "results.lost": (("results", "lines"), ("results", "lost")),
}
for _name in ("filtered", "sampled_out", "withheld", "dropped", "unanswered"):
    _WHOLE[f"ledger.by_reason.{_name}"] = _WHOLE[f"ledger.{_name}"]
#: What says how much of something was lost: of nothing, nothing was.
_LOSSES = ("incomplete", "lost_estimated", "packets", "results")
_ENDPOINT_WHOLE = {
    "answered": "requests", "unanswered": "requests", "dropped": "requests", "known": "answered", "changed": "known", "worse": "known", "compared": "answered",
    "slower": "compared", "status": "answered", "captured": "known", "status_change": "known",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Value:
    """number: in ns for times, else plain; None when there is none.  kind: count, ns, rate, number or share.  whole: what a count is a part of."""

    number: float | None
    kind: str
    whole: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a condition. value and bound: of the comparison that decided, as text.  where: the endpoint, with `*`.  It is true when it passed."""

    expression: str
    failed: bool
    value: str
    bound: str
    where: str | None = None

    def __bool__(self) -> bool:
        """It passed."""
        return not self.failed

    def as_dict(self) -> dict[str, Any]:
        return {"expression": self.expression, "failed": self.failed, "value": self.value, "bound": self.bound, "where": self.where}

    def __str__(self) -> str:
        return f"{self.expression}: {self.value}, bound {self.bound}" + (f", at {self.where}" if self.where else "")


class _Context:
    """One evaluation. star: the endpoint that `*` stands for.  least: a share of fewer than so many says nothing yet."""

    def __init__(self, report: dict[str, Any], star: dict[str, Any] | None, least: int) -> None:
        self.report, self.star, self.least = report, star, least
        self.decided: tuple[str, str] | None = None
        self.missing = False
        self.of_nothing = False  # it is missing because it would be a percentage of nothing


_Node = Callable[[_Context], Any]


@dataclass(frozen=True, slots=True)
class Gate:
    """A parsed condition."""

    expression: str
    _test: _Node
    _starred: bool

    def check(self, report: dict[str, Any], *, least: int = 0) -> Outcome:
        """Whether it holds for this report (`failed`). A number that is not there (no request was answered) fails too; of `endpoints.*` those that a
        percentage cannot be taken of are passed over, unless that is all of them.

        least: a percentage of fewer than so many is left alone, for a run that has only begun."""
        where: list[dict[str, Any] | None] = [None]
        if self._starred:
            where = list(report.get("endpoints") or []) or [None]
        last: Outcome | None = None
        nothing: Outcome | None = None
        for star in where:
            context = _Context(report, star, least)
            holds = bool(self._test(context))
            if context.missing and least:
                holds = False
            value, bound = context.decided or ("", "")
            failed = holds or (context.missing and not least)
            found = Outcome(self.expression, failed, value, bound, star["endpoint"] if star else None)
            if star and failed and not holds and context.of_nothing:  # the other endpoints can tell
                nothing = found if nothing is None else nothing
                continue
            last = found
            if failed:
                return last
        if last is None:
            assert nothing is not None
            return nothing
        return last if not self._starred else Outcome(self.expression, False, last.value, last.bound, None)


def known_names() -> list[str]:
    """All names that a condition may use, dotted; `NAME` stands for what only the run knows."""
    found: list[str] = []

    def walk(at: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(f"{at}.{key}" if at else key, child)
        else:
            found.append(at)
            if isinstance(node, _Names):
                found.append(f"{at}.NAME")

    walk("", _SCHEMA)
    return found


def parse(text: str) -> Gate:
    """A condition from its text. Raises UsageError that says what is wrong and where."""
    return _Parser(text).gate()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.starred = False
        self.tokens: list[tuple[str, str, str, int]] = []  # kind, text, unit, place
        at = 0
        if len(text) > 2000:
            raise UsageError("a condition has at most 2,000 characters")
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None or match.end() == at:
                raise self.error(f"cannot read {text[at:].strip()[:20]!r}")
            kind = match.lastgroup if match.lastgroup != "unit" else "number"
            assert kind is not None
            self.tokens.append((kind, match[kind], match["unit"] or "", match.start(kind)))
            at = match.end()
        self.at = 0
        self.depth = 0

    def error(self, what: str) -> UsageError:
        return UsageError(f"{self.text!r}: {what}; write 'ledger.unanswered > 1%' or 'latency_us.p99 > 250ms'")

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at][:2] if self.at < len(self.tokens) else ("end", "")

    def taken(self, *texts: str) -> str | None:
        kind, text = self.peek()
        if kind in ("op", "path") and text in texts:
            self.at += 1
            return text
        return None

    def gate(self) -> Gate:
        test, is_condition = self.either()
        if self.peek()[0] != "end":
            raise self.error(f"{self.peek()[1]!r} is too much")
        if not is_condition:
            raise self.error("there is no comparison")
        return Gate(self.text.strip(), test, self.starred)

    def either(self) -> tuple[_Node, bool]:
        return self.joined(("or", self.both, lambda values: any(values)))

    def both(self) -> tuple[_Node, bool]:
        return self.joined(("and", self.negated, lambda values: all(values)))

    def joined(self, rule: tuple[str, Callable[[], tuple[_Node, bool]], Callable[[Any], bool]]) -> tuple[_Node, bool]:
        word, inner, join = rule
        first, is_condition = inner()
        parts = [first]
        while self.taken(word):
            more, also = inner()
            if not (is_condition and also):
                raise self.error(f"there is no comparison on one side of {word!r}")
            parts.append(more)
        return (first, is_condition) if len(parts) == 1 else ((lambda context: join(part(context) for part in parts)), True)

    def negated(self) -> tuple[_Node, bool]:
        if self.taken("not"):
            inner, is_condition = self.negated()
            if not is_condition:
                raise self.error("there is no comparison behind 'not'")
            return (lambda context: not inner(context)), True
        return self.comparison()

    def comparison(self) -> tuple[_Node, bool]:
        left, is_condition = self.sum()
        op = self.taken(*_OPS)
        if op is None:
            return left, is_condition
        right, also = self.sum()
        if is_condition or also:
            raise self.error("a comparison cannot be compared")
        self.fits(left, right)
        compare = _OPS[op]

        def test(context: _Context) -> bool:
            a, b = left(context), right(context)
            a, b = _as_share(a, b, context), _as_share(b, a, context)
            a, b = _as_time(a, b), _as_time(b, a)
            if a.number is None or b.number is None:
                context.missing = True
                context.decided = (_shown(a), _shown(b))
                return False
            holds = compare(a.number, b.number)
            if holds or context.decided is None:
                context.decided = (_shown(a), _shown(b))
            return holds

        return test, True

    def fits(self, left: _Node, right: _Node) -> None:
        """Times are not compared with counts, and a percentage has a whole. Tried on an empty report, before any run."""
        context = _Context({}, {}, 0)
        a, b = left(context), right(context)
        for one, other in ((a, b), (b, a)):
            if one.kind == "share" and other.kind == "count" and other.whole is None:
                raise self.error("a percentage of what? the number beside it is no part of another one")
            if one.kind == "share" and other.kind in ("ns", "rate"):
                raise self.error("a time or a rate cannot be compared with a percentage")
            if one.kind == "ns" and other.kind in ("count", "rate"):
                raise self.error("a time cannot be compared with a count or a rate")

    def sum(self) -> tuple[_Node, bool]:
        return self.chain(("+", "-"), self.product)

    def product(self) -> tuple[_Node, bool]:
        return self.chain(("*", "/"), self.value)

    def chain(self, ops: tuple[str, str], inner: Callable[[], tuple[_Node, bool]]) -> tuple[_Node, bool]:
        left, is_condition = inner()
        while True:
            op = self.taken(*ops)
            if op is None:
                return left, is_condition
            right, also = inner()
            if is_condition or also:
                raise self.error(f"a comparison cannot stand beside {op!r}")
            left = _arithmetic(op, left, right)

    def value(self) -> tuple[_Node, bool]:
        self.depth += 1
        if self.depth > 50:
            raise self.error("too many parentheses")
        try:
            return self._value()
        finally:
            self.depth -= 1

    def _value(self) -> tuple[_Node, bool]:
        if self.taken("("):
            inner, is_condition = self.either()
            if not self.taken(")"):
                raise self.error("a parenthesis is not closed")
            return inner, is_condition
        if self.taken("-"):
            inner, is_condition = self.value()
            if is_condition:
                raise self.error("'-' stands before a comparison")
            return _arithmetic("-", lambda context: _Value(0.0, "number"), inner), False
        kind, text = self.peek()
        if kind == "number":
            unit = self.tokens[self.at][2]
            self.at += 1
            return self.literal(float(text), unit), False
        if kind == "path" and text not in ("and", "or", "not"):
            self.at += 1
            return self.reference(tuple(part.strip("\"'") for part in re.findall(_STEP_PART, text))), False
        raise self.error("it ends too early" if kind == "end" else f"{text!r} stands where a number or a name is expected")

    @staticmethod
    def literal(number: float, unit: str) -> _Node:
        if unit == "%":
            found = _Value(number / 100, "share")
        elif unit in _TIMES:
            found = _Value(number * _TIMES[unit], "ns")
        else:
            found = _Value(number * {"k": 1000.0, "M": 1e6}.get(unit, 1.0), "number")
        return lambda context: found

    def reference(self, parts: tuple[str, ...]) -> _Node:
        import difflib

        node: Any = _SCHEMA
        for depth, part in enumerate(parts):
            if isinstance(node, _Names):
                if depth != len(parts) - 1:
                    raise self.error(f"there is nothing below {'.'.join(parts[:depth + 1])}")
                self.counted(node, parts)
                break
            if not isinstance(node, dict):
                raise self.error(f"{'.'.join(parts[:depth])} is a number, there is nothing below it")
            if "*" in node and part not in node:
                node = node["*"]
                continue
            if part not in node:
                names = [".".join((*parts[:depth], name)) for name in node]
                near = difflib.get_close_matches(".".join(parts[: depth + 1]), names, 1) or difflib.get_close_matches(parts[-1], known_names(), 1)
                advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:20])}"
                raise self.error(f"the report has no {'.'.join(parts)!r}; {advice}")
            node = node[part]
        if isinstance(node, dict):
            raise self.error(f"{'.'.join(parts)} is no number; below it are {', '.join(node)}")
        if parts[0] == "endpoints":
            self.starred = self.starred or parts[1] == "*"
            return _endpoint(parts, node)
        whole = next((_WHOLE[".".join(parts[:n])] for n in (len(parts), len(parts) - 1) if ".".join(parts[:n]) in _WHOLE), None)

        def read(context: _Context) -> _Value:
            number = _number(context.report, parts)
            total = None if whole is None else sum(_number(context.report, one) or 0 for one in whole)
            return _typed(number, node, total or 1 if parts[0] in _LOSSES and whole is not None else total)

        return read


    def counted(self, node: _Names, parts: tuple[str, ...]) -> None:
        """The last part is one of the names that are counted there: one that is not would be 0 for ever, and its gate never fire."""
        import difflib

        *before, name = parts
        if name in node.names or re.fullmatch(node.more, name):
            return
        near = difflib.get_close_matches(name, node.names, 1)
        there = ", ".join((*node.names, f"names like {node.example}") if node.names and node.example else node.names or (f"names like {node.example}",))
        advice = f"did you mean {'.'.join((*before, near[0]))!r}? " if near else ""
        raise self.error(f"the report has no {'.'.join(parts)!r}; {advice}there are {there}")


def _endpoint(parts: tuple[str, ...], node: Any) -> _Node:
    def read(context: _Context) -> _Value:
        if parts[1] == "*":
            found = context.star or {}
        else:
            found = next((one for one in context.report.get("endpoints") or [] if one["endpoint"] == parts[1]), {})
        whole = _ENDPOINT_WHOLE.get(parts[2])
        number = _number(found, parts[2:])
        if number is None and (node == _COUNT or isinstance(node, _Names)):
            number = 0
        return _typed(number, node, None if whole is None else _number(found, (whole,)) or 0)

    return read


def _typed(number: float | None, node: str | _Names, whole: float | None) -> _Value:
    if node == "us":
        return _Value(None if number is None else number * 1000, "ns")
    if node == "s":
        return _Value(None if number is None else number * 1e9, "ns")
    if node == "rate":
        return _Value(number, "rate")
    return _Value(number if number is not None else 0, "count", whole)


def _number(report: Any, parts: tuple[str, ...]) -> float | None:
    """A number of the report; a dict of counts is their sum, 5xx the sum of a class."""
    node = report
    for part in parts:
        if not isinstance(node, dict):
            return None
        if part not in node and re.fullmatch(r"[1-5]xx", part):
            return float(sum(count for key, count in node.items() if key[:1] == part[0] and len(key) == 3))
        node = node.get(part)
    if isinstance(node, dict):
        return float(sum(value for value in node.values() if isinstance(value, int)))
    return float(node) if isinstance(node, int | float) else None


def _as_share(a: _Value, b: _Value, context: _Context) -> _Value:
    """A count beside a percentage becomes its share of the whole."""
    if b.kind != "share" or a.kind != "count" or a.whole is None or a.number is None:
        return a
    if a.whole < max(context.least, 1):
        context.of_nothing = True
        return _Value(None, "share")
    return _Value(a.number / a.whole, "share")


def _as_time(a: _Value, b: _Value) -> _Value:
    """A bare number beside a time is in microseconds, as the report's own."""
    if a.kind == "number" and b.kind == "ns" and a.number is not None:
        return _Value(a.number * 1000, "ns")
    return a


def _arithmetic(op: str, left: _Node, right: _Node) -> _Node:
    def compute(context: _Context) -> _Value:
        a, b = left(context), right(context)
        if op in "+-":
            a, b = _as_time(a, b), _as_time(b, a)
        kinds = {a.kind, b.kind}
        if op == "/":
            kind = "number" if a.kind == b.kind or b.kind == "number" and a.kind != "ns" else a.kind
        else:
            kind = next((kind for kind in ("ns", "rate", "share") if kind in kinds), "number")
        if a.number is None or b.number is None:
            return _Value(None, kind)
        if op == "/":
            return _Value(None if b.number == 0 else a.number / b.number, kind)
        return _Value(a.number + b.number if op == "+" else a.number - b.number if op == "-" else a.number * b.number, kind)

    return compute


def _shown(value: _Value) -> str:
    if value.number is None:
        return "no value"
    if value.kind == "ns":
        return show_duration(value.number)
    if value.kind == "share":
        return f"{value.number * 100:.4g} %"
    return f"{value.number:,.10g}"
