"""What libFuzzer says, passed on; coverage over time into a file, and at the end whether it stood still: python watch.py FILE < log.

A line of the file: seconds, inputs, edges, features; one for each line of libFuzzer's that has them."""

import re
import sys
import time

LINE = re.compile(r"#(\d+)\t.*\bcov: (\d+) ft: (\d+)")


def watch(lines, points, clock=time.monotonic):
    """Passes lines on; `points` gets (seconds, inputs, edges, features)."""
    begun = clock()
    for line in lines:
        found = LINE.match(line)
        if found:
            points.append((int(clock() - begun), *map(int, found.groups())))
        yield line


def plateau(points):
    """What the second half of the time added to the edges, in words."""
    if not points:
        return "nothing was run"
    seconds, inputs, edges, features = points[-1]
    half = [point for point in points if point[0] <= seconds / 2] or points[:1]
    before = half[-1][2]
    return f"{inputs:,} inputs in {seconds:,} s; {edges:,} edges, {features:,} features; half-way {before:,} edges: the second half added {(edges - before) / before:.2%}"


if __name__ == "__main__":
    seen = []
    for text in watch(sys.stdin, seen):
        sys.stdout.write(text)
        sys.stdout.flush()
    with open(sys.argv[1], "a") as file:
        file.writelines(" ".join(map(str, point)) + "\n" for point in seen)
    print(plateau(seen))
