"""What do a hundred routes of a policy cost, beside one?

    python benchmarks/bench_routes.py [--requests 1m] [--rounds 5] [--routes 100]

`replay run --dry-run --pace max` on one core as in bench_parse.py, under a policy whose last route takes every request: alone, behind 99 routes with exact paths and prefixes that take none, and as many behind which
each request has a path of its own, so that nothing can be remembered. Without a policy for comparison.
"""

import inputs
import measure

QUESTION = "What do a hundred routes cost beside one? One core, CPU time of whole processes."


def policy(path, routes, *, last="{prefix: /}"):
    """A file with so many routes; the last one takes every request."""
    lines = ["routes:"]
    for at in range(routes - 1):
        test = f"/none/{at}/of/these" if at % 2 else f"{{prefix: /none/{at}/}}"
        lines.append(f"- {{name: r{at}, match: {{path: {test}}}, mirror: {{to: 'http://10.9.9.9:80'}}}}")
    lines.append(f"- {{name: last, match: {{path: {last}}}, mirror: {{to: 'http://10.9.9.9:80'}}}}")
    path.write_text("\n".join(lines) + "\n")
    return path


def main():
    parser = measure.arguments(__doc__, requests=1_000_000, connections=1_000, seed=1, routes=100)
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=asked.requests, connections=asked.connections, seed=asked.seed)
    with measure.scratch() as folder:

        def ours(*more):
            def once():
                report, used = measure.replay("--dry-run", "--pace", "max", *more, path, core=measure.CLIENT)
                measure.exactly("replay", report["ledger"]["selected"], requests)
                return used

            return once

        ways = {"no policy": ours()}
        for name, routes in (("1 route", 1), (f"{asked.routes} routes", asked.routes)):
            ways[name] = ours("--policy", policy(folder / f"{routes}.yaml", routes))
        rounds = measure.in_turn(asked.rounds, ways)
    costs = {name: measure.spread([one.cpu / requests * 1e9 for one in values]) for name, values in rounds.items()}
    bars = [measure.bar(f"{asked.routes} routes, of one", measure.ratio(costs[f"{asked.routes} routes"], costs["1 route"]), measure.AT_MOST, 1.3, 1.1, "×")]
    measured = {name: {"ns CPU a request": cost} for name, cost in costs.items()}
    notes = [f"{requests:,} requests; every way selected all of them."]
    measure.tell("routes", QUESTION, asked, measured, bars, {"requests": requests, "seed": asked.seed}, notes)


if __name__ == "__main__":
    main()
