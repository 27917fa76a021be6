"""Plots as inline SVG, drawn here and now: no script, no network, the same on screen and in print. Colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Band", "Line", "bars", "flow", "lines", "nice_ticks", "percentiles", "quantile_ticks"]

Point = tuple[float, float]


class Line(NamedTuple):
    """A named curve. colour: name of a CSS variable (c1 …).  dashed: for what was asked or expected."""

    name: str
    points: Sequence[Point]
    colour: str
    dashed: bool = False


class Band(NamedTuple):
    """A part of a whole."""

    name: str
    number: int
    colour: str


_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 26, 12, 34
_MOST_POINTS = 1200


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values that cover low to high."""
    if not high > low:
        high = low + 1
    raw = (high - low) / max(most, 1)
    step = 10 ** math.floor(math.log10(raw))
    step *= next(times for times in (1, 2, 2.5, 5, 10) if times * step >= raw * 0.999)
    first = math.floor(low / step)
    return [(first + k) * step for k in range(int(math.ceil(high / step - first - 1e-9)) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(max(low, 1e-9))), math.ceil(math.log10(max(high, 1e-9)))
    return [10.0**k for k in range(first, max(last, first + 1) + 1)]


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}" preserveAspectRatio="xMidYMid meet">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _legend(curves: Sequence[Line], width: int) -> list[str]:
    parts, x = [], float(_LEFT)
    for curve in curves:
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        parts.append(f'<line x1="{x:.0f}" y1="7" x2="{x + 18:.0f}" y2="7" class="curve" stroke="var(--{curve.colour})"{dash}/>')
        parts.append(f'<text x="{x + 23:.0f}" y="11" class="key">{escape(curve.name)}</text>')
        x += 40 + 6.6 * len(curve.name)
    return parts


def _frame(
    curves: Sequence[Line], width: int, height: int, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]], x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> list[str]:  # fmt: skip
    parts = []
    for value, text in y_ticks:
        y = y_of(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" class="tick end">{escape(text)}</text>')
    for value, text in x_ticks:
        x = x_of(value)
        parts.append(f'<line x1="{x:.1f}" y1="{height - _BOTTOM}" x2="{x:.1f}" y2="{height - _BOTTOM + 4}" class="axis"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 18}" class="tick mid">{escape(text)}</text>')
    parts.append(f'<line x1="{_LEFT}" y1="{height - _BOTTOM}" x2="{width - _RIGHT}" y2="{height - _BOTTOM}" class="axis"/>')
    return parts + _legend(curves, width)


def lines(
    title: str, curves: Sequence[Line], *, x_text: Callable[[float], str], y_text: Callable[[float], str], width: int = 560, height: int = 200
) -> str:  # fmt: skip
    """Curves over a common axis that begins at 0."""
    every = [point for curve in curves for point in curve.points]
    if not every:
        return ""
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    high = high if high > low else low + 1
    y_values = nice_ticks(0, max(max(y for _, y in every), 1e-9), 4)
    top = y_values[-1]

    def x_of(x: float) -> float:
        return _LEFT + (x - low) / (high - low) * (width - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return height - _BOTTOM - y / top * (height - _BOTTOM - _TOP - 12)

    x_ticks = [(x, x_text(x)) for x in nice_ticks(low, high, 7) if low <= x <= high]
    parts = _frame(curves, width, height, x_ticks, [(y, y_text(y)) for y in y_values], x_of, y_of)
    for curve in curves:
        drawn = [(x_of(x), y_of(y)) for x, y in curve.points]
        if not drawn:
            continue
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        if len(drawn) == 1:
            parts.append(f'<circle cx="{drawn[0][0]:.1f}" cy="{drawn[0][1]:.1f}" r="3" fill="var(--{curve.colour})"/>')
        parts.append(f'<path d="{_path(drawn[:_MOST_POINTS])}" class="curve" stroke="var(--{curve.colour})"{dash}/>')
        if len(drawn) <= 200:
            parts += [
                f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" class="hover"><title>{escape(curve.name)} at {escape(x_text(x))}: {escape(y_text(y))}</title></circle>'
                for at, (x, y) in zip(drawn, curve.points, strict=True)
            ]
    return _svg(width, height, title, parts)


def quantile_ticks(most: int) -> list[tuple[float, str]]:
    """(share, text) of a percentile axis on which each further nine takes the same room; as many as `most` values bear."""
    ticks = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %")]
    return [tick for tick in ticks if tick[0] <= 0.9 or 1 / (1 - tick[0]) <= most]


def percentiles(title: str, curves: Sequence[Line], *, y_text: Callable[[float], str], most: int, width: int = 1130, height: int = 320) -> str:
    """Latency (y, logarithmic) by percentile. Points are (share, microseconds)."""
    curves = [Line(c.name, [(x, max(y, 1.0)) for x, y in c.points], c.colour, c.dashed) for c in curves if c.points]
    every = [y for curve in curves for _, y in curve.points]
    if not every:
        return ""
    ticks = quantile_ticks(most)
    deepest = -math.log10(1 - ticks[-1][0]) * 1.08
    y_values = _log_ticks(min(every), max(every))
    low, high = math.log10(y_values[0]), math.log10(y_values[-1])

    def x_of(share: float) -> float:
        return _LEFT + min(-math.log10(max(1 - share, 1e-12)), deepest) / deepest * (width - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return height - _BOTTOM - (math.log10(value) - low) / (high - low) * (height - _BOTTOM - _TOP - 12)

    parts = _frame(curves, width, height, ticks, [(y, y_text(y)) for y in y_values], x_of, y_of)
    for curve in curves:
        drawn: list[Point] = []
        for share, value in curve.points:
            if drawn:  # a step: the value holds from the share before it on
                drawn.append((drawn[-1][0], y_of(value)))
            drawn.append((x_of(share), y_of(value)))
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        parts.append(f'<path d="{_path(drawn)}" class="curve" stroke="var(--{curve.colour})"{dash}/>')
        for share, text in ticks[1:]:
            value = next((y for x, y in curve.points if x >= share), curve.points[-1][1])
            parts.append(
                f'<circle cx="{x_of(share):.1f}" cy="{y_of(value):.1f}" r="6" class="hover"><title>{escape(curve.name)}, {text}: {escape(y_text(value))}</title></circle>'
            )
    return _svg(width, height, title, parts)


def bars(title: str, rows: Sequence[tuple[str, Sequence[Band]]], *, width: int = 560) -> str:
    """Each row a whole, cut into its parts."""
    parts, height = [], 34 * len(rows) + 6
    for at, (name, bands) in enumerate(rows):
        total = sum(band.number for band in bands)
        y, x = 6 + 34 * at, 110.0
        parts.append(f'<text x="102" y="{y + 17}" class="tick end">{escape(name)}</text>')
        if not total:
            parts.append(f'<text x="112" y="{y + 17}" class="tick">nothing</text>')
        for band in bands:
            wide = band.number / total * (width - 124) if total else 0
            if not band.number:
                continue
            text = f"{band.name}: {band.number:,} ({100 * band.number / total:.3g} %)"
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 1):.1f}" height="24" fill="var(--{band.colour})"><title>{escape(text)}</title></rect>')
            if wide > 52:
                parts.append(f'<text x="{x + wide / 2:.1f}" y="{y + 17}" class="inside mid">{escape(band.name)} {100 * band.number / total:.3g} %</text>')
            x += wide
    return _svg(width, height, title, parts)


def flow(title: str, stages: Sequence[Sequence[tuple[str, int, str, str | None]]], *, width: int = 1130) -> str:
    """Blocks in columns, bands from each to the block of the column before that it is a part of.

    stages: columns of (name, count, colour, name of the block it comes from)."""
    total = max((sum(count for _, count, _, _ in stage) for stage in stages), default=0)
    if not total:
        return ""
    gap, wide = 18, 13
    blocks = max(sum(count > 0 for _, count, _, _ in stage) for stage in stages)
    height = 130 + gap * (blocks - 1)
    scale = (height - 24 - gap * (blocks - 1)) / total
    step = (width - 190) / max(len(stages) - 1, 1)
    parts: list[str] = []
    before: dict[str, tuple[float, float, list[float]]] = {}
    for column, stage in enumerate(stages):
        x, y = 10 + column * step, 12.0
        now: dict[str, tuple[float, float, list[float]]] = {}
        for name, count, colour, source in stage:
            if not count:
                continue
            tall = max(count * scale, 2.0)
            if source is not None and source in before:
                from_x, _, used = before[source]
                a, b, middle = from_x + wide, x, (from_x + wide + x) / 2
                top = used[0]
                used[0] += count * scale
                bottom = top + max(count * scale, 1.5)
                parts.insert(
                    0,
                    f'<path class="band" fill="var(--{colour})" d="M{a:.1f},{top:.1f}C{middle:.1f},{top:.1f} {middle:.1f},{y:.1f} {b:.1f},{y:.1f}'
                    f'L{b:.1f},{y + tall:.1f}C{middle:.1f},{y + tall:.1f} {middle:.1f},{bottom:.1f} {a:.1f},{bottom:.1f}Z"><title>{escape(name)}: {count:,}</title></path>',
                )
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="{tall:.1f}" fill="var(--{colour})"><title>{escape(name)}: {count:,}</title></rect>')
            parts.append(f'<text x="{x + wide + 6:.1f}" y="{y + min(max(tall / 2 + 4, 10), tall + 10):.1f}" class="flowtext">{escape(name)} <tspan class="num">{count:,}</tspan></text>')
            now[name] = (x, y, [y])
            y += tall + gap
        before = now
    return _svg(width, height, title, parts)
