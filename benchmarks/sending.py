"""Tools that send, each a call that gives one round's numbers: `replay run`, wrk, h2load, ab. All on the client's core; what was served is the server's own count."""

import functools
import re
import statistics

import inputs
import measure

CONNECTIONS = 64


@functools.cache
def _captured():
    """(the fields of the captured request whose length is the usual one, bytes of a request's head as `replay` sends it, on average): the shadow's suffix is added, the Connection line is not sent on."""
    import random

    import generate  # takes numpy along

    said, _ = generate._messages(random.Random(1))
    heads = said[: generate.GETS]
    usual = statistics.mean(len(one) for one in heads)
    lines = min(heads, key=lambda one: abs(len(one) - usual)).decode().split("\r\n")[1:-2]
    fields = [tuple(line.split(": ", 1)) for line in lines]
    return [one for one in fields if one[0] not in ("Host", "Connection")], round(usual + len("-shadow") - len("Connection: keep-alive\r\n"))


def head_length():
    """Bytes of a request's head as `replay` sends it, on average."""
    return _captured()[1]


def same_fields(line, host):
    """Header fields (name, value) that make a request of that request line and Host what ours are: a server reads as many fields, and as many bytes (the cookie makes up the difference)."""
    fields, wanted = _captured()
    used = len(line) + 2 + len(f"Host: {host}\r\n") + sum(len(f"{a}: {b}\r\n") for a, b in fields) + 2
    return [(name, value.ljust(len(value) + wanted - used, "c")[: len(value) + wanted - used] if name == "Cookie" else value) for name, value in fields]


TARGET = "/api/v2/customers/00000000/orders?page=1&sort=date"


def pipelining_script(path, depth, fields):
    """A script for wrk that sends `depth` requests at a time; what it sends is made once."""
    headers = ", ".join(f'["{name}"] = "{value}"' for name, value in fields)
    path.write_text(
        f"init = function(args)\n  local one = wrk.format('GET', '{TARGET}', {{{headers}, [\"Host\"] = wrk.host .. ':' .. wrk.port}})\n"
        f"  all = string.rep(one, {depth})\nend\nrequest = function() return all end\n"
    )
    return path


class Round:
    """One round: served requests, CPU seconds of the client (user, system), served a second and the server's share of its core in the middle of the run."""

    def __init__(self, used, watched):
        self.served, self.user, self.system, self.wall = watched.served, used.user, used.system, used.wall
        self.rate, self.busy = watched.middle()
        self.server_us = watched.server_cpu / max(self.served, 1) * 1e6

    @property
    def cpu_us(self):
        return (self.user + self.system) / max(self.served, 1) * 1e6

    @property
    def user_us(self):
        return self.user / max(self.served, 1) * 1e6


#: Different requests of a capture that is gone through many times: two for each of 1,000 captured connections.
DIFFERENT = 2_000


def from_memory(server, wanted, *more, captured, one_each=False):
    """(`replay run --loop` as a call, how many requests it sends): some `wanted` requests, of which DIFFERENT are read and the passes behind the first come from memory, so that sending is what costs. Where reading belongs
    to the question, `replaying` is what to take."""
    path, requests = inputs.cached(requests=min(DIFFERENT, wanted), connections=captured, one_each=one_each, bodies=0.0)
    passes = max(wanted // requests, 1)
    return replaying(server, path, requests * passes, "--loop", passes, *more), requests * passes


def replaying(server, path, expected, *more, connections=CONNECTIONS):
    """`replay run`: every request answered, by its ledger and by the server's count."""

    def once():
        with server.watched() as watched:
            report, used = measure.replay("--pace", "max", "-c", connections, *more, "--to", server.url, path, core=measure.CLIENT)
        ledger = report["ledger"]
        measure.exactly("replay", ledger["selected"], expected)
        measure.exactly("replay's answers", ledger["answered"], expected)
        measure.exactly("the server, of replay's,", watched.served, expected)
        return Round(used, watched)

    return once


def counted(watched, said, most_under_way, name):
    """What another tool says it was answered is what the server served, but for what was under way at its end."""
    if not 0 <= watched.served - said <= most_under_way:
        raise SystemExit(f"{name} says {said} requests, the server served {watched.served}: nothing of this benchmark holds")


def wrk(server, seconds, *, depth=1, folder=None, connections=CONNECTIONS):
    """wrk, with a script that pipelines where depth is above 1."""
    host = server.url.removeprefix("http://")
    fields = same_fields(f"GET {TARGET} HTTP/1.1", host)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    if depth > 1:
        command += ["-s", pipelining_script(folder / f"pipeline{depth}.lua", depth, fields)]
    else:
        command += [part for name, value in fields for part in ("-H", f"{name}: {value}")]
    command.append(server.url + TARGET)

    def once():
        with server.watched() as watched:
            used = measure.cost(command, core=measure.CLIENT)
        if b"Non-2xx" in used.said or b"Socket errors" in used.said:
            raise SystemExit(f"wrk: {used.said.decode()}")
        counted(watched, int(re.search(rb"(\d+) requests in", used.said)[1]), 2 * connections * depth, "wrk")
        return Round(used, watched)

    return once


def h2load(server, requests, *, depth=1, connections=CONNECTIONS):
    """h2load with HTTP/1.1 and `depth` requests under way on a connection."""
    host = server.url.removeprefix("http://")
    fields = same_fields(f"GET {TARGET} HTTP/1.1", host)
    command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-m{depth}", f"-n{requests}"]
    # The name that h2load gives itself is replaced, so that heads have the length of ours.
    command += [part for name, value in fields for part in ("-H", f"{name.lower()}: {value}")] + [server.url + TARGET]

    def once():
        with server.watched() as watched:
            used = measure.cost(command, core=measure.CLIENT)
        done = re.search(rb"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded", used.said)
        measure.exactly("h2load", int(done[2]), int(done[1]))
        counted(watched, int(done[2]), 0, "h2load")
        return Round(used, watched)

    return once


def ab(server, requests, *, connections=CONNECTIONS):
    """ab without keep-alive: a connection a request."""
    host = server.url.removeprefix("http://")
    fields = same_fields(f"GET {TARGET} HTTP/1.0", host)
    command = ["ab", "-q", "-n", requests, "-c", connections, *[part for name, value in fields for part in ("-H", f"{name}: {value}")], server.url + TARGET]

    def once():
        with server.watched() as watched:
            used = measure.cost(command, core=measure.CLIENT)
        said = used.said
        if not re.search(rb"Failed requests:\s+0\b", said):
            raise SystemExit(f"ab: {said.decode()}")
        counted(watched, int(re.search(rb"Complete requests:\s+(\d+)", said)[1]), connections, "ab")
        return Round(used, watched)

    return once


def columns(rounds):
    """{column: spread} of some rounds, for the table."""
    return {
        "us CPU a request": measure.spread([one.cpu_us for one in rounds]),
        "user": measure.spread([one.user_us for one in rounds]),
        "served/s": measure.spread([one.rate for one in rounds]),
        "server's core": measure.spread([one.busy for one in rounds]),
        "server us a request": measure.spread([one.server_us for one in rounds]),
        "requests": measure.spread([one.served for one in rounds]),
    }


def best(rates):
    """A spread of rates for a comparison: the best round stands where the minimum stands with costs."""
    return {"min": rates["max"], "median": rates["median"]}
