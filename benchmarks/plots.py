"""Three small drawings as SVG, in light and dark: stacked bars, and lines over steps. No library: a few rectangles, lines and words."""

import math
from xml.sax.saxutils import escape

WIDTH = 860
#: Colours of the series, light and dark; told apart by people who see few colours, too (and each line has its name at its end).
COLOURS = [("#2563a8", "#7db4f0"), ("#c2571a", "#f0a060"), ("#2a8a5f", "#6fcf9f"), ("#8a4fa3", "#cf9fe6"), ("#8a7a1f", "#d9c860"), ("#5f6b7a", "#a9b4c2")]
STYLE = (
    """
    .paper { fill: #ffffff; stroke: #d8dde3 } .word, .title, .small, .value { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #1c2733 }
    .title { font-size: 17px; font-weight: 600 } .word { font-size: 13px } .small { font-size: 12px; fill: #5a6673 } .value { font-size: 12px; font-weight: 600 }
    .on { fill: #ffffff } .grid { stroke: #e4e8ec; stroke-width: 1 } .axis { stroke: #9aa5b1; stroke-width: 1 } .halo { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round }
"""
    + "".join(f"    .f{i} {{ fill: {light} }} .s{i} {{ stroke: {light}; fill: none; stroke-width: 2.5 }}\n" for i, (light, _) in enumerate(COLOURS))
    + """    @media (prefers-color-scheme: dark) {
    .paper { fill: #12181f; stroke: #2c3742 } .word, .title, .small, .value { fill: #e6ebf0 } .small { fill: #9fabb8 } .on { fill: #10161c } .grid { stroke: #26303a } .axis { stroke: #5a6673 } .halo { stroke: #12181f }
"""
    + "".join(f"    .f{i} {{ fill: {dark} }} .s{i} {{ stroke: {dark} }}\n" for i, (_, dark) in enumerate(COLOURS))
    + "    }\n"
)


def _number(value):
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}".replace(" M", "M").replace(" k", "k")
    return f"{value:.3g}"


def _text(x, y, text, kind="word", anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _page(height, title, subtitle, parts):
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            _text(24, 34, title, "title"),
            _text(24, 54, subtitle, "small"),
            *parts,
            "</svg>\n",
        ]
    )


def stacked(title, subtitle, rows, unit):
    """Bars of parts one after the other. rows: [(name, [(part, value)])]; parts of the same name have the same colour."""
    names = list(dict.fromkeys(part for _, parts in rows for part, _ in parts))
    left, right, top, step = 170, 90, 122, 46
    most = max(sum(value for _, value in parts) for _, parts in rows) or 1.0
    scale = (WIDTH - left - right) / most
    out, x, y = [], 24.0, 84.0
    for i, name in enumerate(names):
        wide = 30 + 7.0 * len(name)
        if x + wide > WIDTH - 20:
            x, y = 24.0, y + 20
        out += [f'<rect class="f{i % len(COLOURS)}" x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" rx="2"/>', _text(x + 18, y, name, "small")]
        x += wide
    top += y - 84.0
    for at, (name, parts) in enumerate(rows):
        y, x = top + at * step, float(left)
        out.append(_text(left - 12, y + 18, name, anchor="end"))
        for part, value in parts:
            wide = value * scale
            out.append(f'<rect class="f{names.index(part) % len(COLOURS)}" x="{x:.1f}" y="{y:.1f}" width="{max(wide - 1, 0.3):.1f}" height="28"><title>{escape(part)}: {value:.3g} {escape(unit)}</title></rect>')
            if wide > 34:
                out.append(_text(x + wide / 2, y + 18, f"{value:.2g}", "value on", "middle"))
            x += wide
        out.append(_text(x + 8, y + 18, f"{sum(value for _, value in parts):.3g} {unit}", "value"))
    return _page(int(top + len(rows) * step + 4), title, subtitle, out)


def _ticks(low, high):
    """Powers of ten between, and their doubles and fives where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 2, 5) if len(powers) <= 2 else (1, 3)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def lines(title, subtitle, steps, series, unit, goals=()):
    """Lines over named steps, on a logarithmic scale. series: [(name, [value or None for each step], colour, dashed)]; goals: [(name, value)], thin lines across."""
    left, right, top, bottom, height = 78, 190, 84, 44, 400
    values = [value for _, row, _, _ in series for value in row if value] + [value for _, value in goals]
    low, high = min(values) / 1.3, max(values) * 1.3
    span = math.log(high / low) or 1.0

    def at(value):
        return top + (height - top - bottom) * (1 - math.log(value / low) / span)

    def across(i):
        return left + (WIDTH - left - right) * (i / max(len(steps) - 1, 1))

    out = []
    for tick in _ticks(low, high):
        y = at(tick)
        out += [f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>', _text(left - 10, y + 4, _number(tick), "small", "end")]
    out.append(_text(24, top - 8, unit, "small"))
    out.append(f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{height - bottom}" y2="{height - bottom}"/>')
    for i, step in enumerate(steps):
        out.append(_text(across(i), height - bottom + 20, step, "small", "middle"))
    ends, dash = [], ' stroke-dasharray="7 5"'
    for _, value in goals:
        out.append(f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{at(value):.1f}" y2="{at(value):.1f}" stroke-dasharray="2 3"/>')
    for name, row, colour, dashed in series:
        points = [(across(i), at(value)) for i, value in enumerate(row) if value]
        if not points:
            continue
        kind = colour % len(COLOURS)
        out.append(f'<polyline class="s{kind}"{dash if dashed else ""} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        out += [f'<circle class="f{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points]
        last = next(value for value in reversed(row) if value)
        ends.append([points[-1][1], f"{name} {_number(last)}", f"value f{kind}"])
    # Names stand at the ends of their lines, moved apart where they would touch.
    ends.sort(key=lambda one: one[0])
    for i in range(1, len(ends)):
        ends[i][0] = max(ends[i][0], ends[i - 1][0] + 16)
    over = max(ends[-1][0] - (height - bottom + 6), 0) if ends else 0
    for one in ends:
        one[0] -= over
    out += [_text(left + 6, at(value) - 5, f"{name} {_number(value)}", "small halo") for name, value in goals]
    for y, text, kind in ends:
        out.append(_text(WIDTH - right + 12, y + 4, text, kind))
    return _page(height, title, subtitle, out)
