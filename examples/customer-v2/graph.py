"""Who called whom, from what the services logged: as lines of text, and as SVG."""

import collections
import html

NODES = {  # name -> column, row of the drawing
    "client": (0, 0),
    "mirror": (0, 1),
    "customer v1": (1, 0),
    "customer v2": (1, 1),
    "preference v1": (2, 0),
    "recommendation v1": (3, 0),
}
WIDTH, HEIGHT, STEP_X, STEP_Y = 150, 46, 220, 110


def is_shadow(host):
    """Whether this Host is one that a mirror made: -shadow before the port."""
    return host.partition(":")[0].endswith("-shadow")


def edges(rows):
    """{(caller, service): requests}. A copy still says what the client said of itself, so its Host tells that a mirror sent it."""
    return collections.Counter(("mirror" if is_shadow(row["host"]) else row["caller"], row["service"]) for row in rows)


def text(calls):
    lines = []
    for (caller, service), count in sorted(calls.items()):
        arrow = "╌╌▶" if caller == "mirror" else "──▶"
        lines.append(f"{caller:>14} {arrow} {service:<18} {count:>5}")
    return "\n".join(lines)


def svg(calls, title):
    """A drawing that needs nothing else. What comes from a mirror is dashed, and so is what v2 calls because of it."""
    places = dict(NODES)
    for name in sorted({name for pair in calls for name in pair} - set(places)):
        places[name] = (len(places) - len(NODES), 2)

    def corner(name):
        column, row = places[name]
        return 20 + column * STEP_X, 60 + row * STEP_Y

    across, down = (max(place[i] for place in places.values()) for i in (0, 1))
    size = 40 + across * STEP_X + WIDTH, 80 + down * STEP_Y + HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect width="100%" height="100%" fill="white"/><text x="20" y="30" font-size="16">{html.escape(title)}</text>',
    ]
    for (caller, service), count in sorted(calls.items()):
        (x, y), (to_x, to_y) = corner(caller), corner(service)
        x, y, to_y = x + WIDTH, y + HEIGHT // 2, to_y + HEIGHT // 2
        shadow = caller in ("mirror", "customer v2")
        style = 'stroke="#b03a2e" stroke-dasharray="6 4"' if shadow else 'stroke="black"'
        out.append(f'<path d="M{x} {y}L{to_x} {to_y}" fill="none" stroke-width="2" marker-end="url(#tip)" {style}/>')
        out.append(f'<text x="{(x + to_x) // 2}" y="{(y + to_y) // 2 - 8}" text-anchor="middle">{count}</text>')
    for name in sorted({name for pair in calls for name in pair}):
        x, y = corner(name)
        out.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3f8" stroke="black"/>')
        out.append(f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 5}" text-anchor="middle">{html.escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
