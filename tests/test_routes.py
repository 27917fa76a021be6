"""Compiled routes against their plain Python twin: which route, which mirrors, which bytes, and the ledger of several targets."""

import threading
from dataclasses import replace

import packetmake
import pcapmake
import pytest
from enginerun import as_paths, check_ledger
from hypothesis import given, settings
from hypothesis import strategies as st

from replay._fastpath import Capture, Ingest, Pool, Queue, Routes, Stop
from replay._reference import rewrite, sampling
from replay.cli.policy import asked
from replay.errors import UsageError
from replay.policy.compiled import compile_policy
from replay.policy.formats import parse as parse_format
from replay.policy.match import find, holds
from replay.policy.model import Block, Client, Destination, Field, Host, Mirror, PathRewrite, Policy, Route, Text, Where
from replay.policy.sample import taken
from replay.settings import network, target

pytest.importorskip("re2", reason="needs google-re2")

HERE = Where("p.yaml", 1)
TARGETS = [target(f"http://10.9.9.9:{port}") for port in range(81, 87)]


def mirror(at=0, **more):
    return Mirror(Destination(f"t{at}"), HERE, target=TARGETS[at], **more)


def policy(*routes):
    return Policy(tuple(Route(f"r{i}", HERE, tuple(blocks), tuple(mirrors)) for i, (blocks, mirrors) in enumerate(routes)), "replay", "envoy")


def listed(*captures):
    """What is in captures, as `show` has it."""
    rows = []
    with as_paths(captures) as paths:
        stop, pool = Stop(), Pool()
        queue = Queue(pool)
        ingest = Ingest(Capture(paths, stop=stop), [queue], pool, stop, show=True)
        thread = threading.Thread(target=ingest.run)
        thread.start()
        while not queue.done:
            batch = queue.get(0.05)
            rows += [] if batch is None else [batch[i] for i in range(len(batch))]
        thread.join()
    return rows


def routed(chosen, *captures, seed=0, budget=48 << 20, **options):
    """(rows of each target, counters of the ingest, of the routes) of captures under a policy."""
    compiled = compile_policy(chosen)
    routes = Routes(compiled.blocks, compiled.routes, compiled.mirrors, len(compiled.targets), seed=seed)
    with as_paths(captures) as paths:
        stop, pool = Stop(), Pool(budget)
        queues = [Queue(pool, 4) for _ in compiled.targets]
        ingest = Ingest(Capture(paths, stop=stop), queues, pool, stop, suffix=None, routes=routes, **options)
        thread = threading.Thread(target=ingest.run)
        thread.start()
        rows = {one.url: [] for one in compiled.targets}
        left = list(zip(compiled.targets, queues, strict=True))
        while left:
            for one, queue in list(left):
                batch = queue.get(0.005)
                if batch is not None:
                    rows[one.url] += [batch[i] | {"data": batch.data(i)} for i in range(len(batch))]
                elif queue.done:
                    left.remove((one, queue))
        thread.join()
        batch = None
    counters, counted = ingest.counters(), routes.counters()
    check_ledger(counters)
    assert pool.held == 0 and counters["memory"] == 0
    assert counters["selected"] + counted["fanout"] == sum(len(some) for some in rows.values()) + sum(counted["unqueued"])
    assert [len(rows[one.url]) for one in compiled.targets] == [a - b for a, b in zip(counted["queued"], counted["unqueued"], strict=True)]
    assert sum(counted["copies"]) == sum(counted["queued"])
    return rows, counters, counted


def expected(chosen, rows, seed=0):
    """What the oracle says of listed requests: (n, bytes of the head) for each target, and the routes' numbers."""
    copies = {one.target.url: [] for one in chosen.mirrors}
    matched = {route.name: 0 for route in chosen.routes}
    for row in rows:
        route = find(chosen, asked(row))
        if route is None:
            continue
        matched[route.name] += 1
        if row["withheld"] or any(rewrite.carries_suffix(row["authority"], (m.suffix or "").encode()) for m in route.mirrors if m.literal is None):
            continue
        for one in route.mirrors:
            if taken(one, row, seed):
                copies[one.target.url].append((row["n"], head_of(one, row["head"])))
    return copies, list(matched.values())


def value_of(value):
    if isinstance(value, str):
        return value.encode()
    return tuple((part.what, part.value.encode(), part.most, part.other, part.other_value.encode()) for part in value.parts), value.keep_empty


def head_of(one, head):
    def path(old):
        kind, value, matched = one.path.kind, one.path.value.encode(), one.path.matched.encode()
        if kind == "full":
            return value
        if kind == "prefix":
            if not old.lower().startswith(matched.lower()):
                return old
            new = value + old[len(matched) :]
            return new if new.startswith(b"/") else b"/" + new
        import re2

        return re2.sub(matched, value, old)

    return rewrite.rewrite_head(
        head,
        None if one.suffix is None else one.suffix.encode(),
        None if one.literal is None else one.literal.encode(),
        changes=tuple((how, name.encode(), value_of(value)) for how, name, value in one.headers if how != "remove_matching"),
        removes=lambda name: any(holds(value, name) for how, _, value in one.headers if how == "remove_matching"),
        authority=None if one.authority is None else one.authority.encode(),
        path=None if one.path is None else path,
        marker=one.suffix is None and one.literal is None,
    )


def agree(chosen, capture, seed=0, **options):
    rows, counters, counted = routed(chosen, capture, seed=seed, **options)
    copies, matched = expected(chosen, listed(capture), seed)
    assert counted["matched"] == matched
    for url, some in rows.items():
        assert [(row["n"], row["head"]) for row in some] == copies[url], url
        for row in some:
            head = row["head"].split(b"\r\n")
            assert row["target"] == head[0].split(b" ")[1] and row["host"] == rewrite.value_of(next(f for f in head if f[:5].lower() == b"host:"))
    return rows, counters, counted


# ---- generated policies and requests -------------------------------------------------------------------------------------

WORDS = ["a", "A", "ab", "b", "", "a,b", "7", "-3", "+05", "1" * 30]
NAMES = ["x-a", "X-B", "x-c", "Accept"]  # the last one is joined by commas where it comes several times
COOKIES = ["k=a", "k=b; v=a", "v=1;k=ab;  k=a", 'k="a"', "k", "k=", " \tx=1; k=7 ;v"]
PATHS = ["/", "/a", "/ab", "/a/b", "/A/b", "/a/b/c", "/longer/than/eight", "/longer/than/eight/x", "/b"]
HOSTS = ["a.example", "b.example", "A.Example", "x.a.example", "shop.local", "[::1]", "a"]


def texts(values):
    plain = st.builds(Text, st.sampled_from(["exact", "prefix", "suffix", "contains"]), st.sampled_from(values), st.booleans(), st.booleans())
    regex = st.builds(
        Text, st.just("regex"), st.sampled_from(["a+", "/a.*", ".*b", "[a-z./]*", "a|b", "/longer/[^/]+/.*", ".*\\.example"]), st.booleans(), st.booleans()
    )
    return st.one_of(plain, plain, regex)


FIELD_TESTS = st.one_of(
    texts(WORDS),
    st.builds(Text, st.sampled_from(["present", "absent"])),
    st.builds(Text, st.just("range"), st.sampled_from(["0 10", "-5 5", f"{-(1 << 63)} 0"]), st.just(False), st.booleans(), st.booleans()),
    texts(WORDS).map(lambda test: replace(test, missing_empty=True)),
)
BLOCKS = st.builds(
    Block,
    hosts=st.lists(st.one_of(
        st.builds(Host, st.just("exact"), st.sampled_from([h.lower() for h in HOSTS]), st.sampled_from([None, None, 80, 8080])),
        st.builds(Host, st.just("suffix"), st.sampled_from([".example", ".a.example"]), st.sampled_from([None, None, 8080])),
        st.builds(Host, st.just("prefix"), st.sampled_from(["a.", "shop"]), st.sampled_from([None, 8080])),
        st.just(Host("any")),
    ), max_size=2).map(tuple),
    authorities=st.lists(texts(["a.example:8080", "a.example", ".example"]), max_size=1).map(tuple),
    ports=st.lists(st.sampled_from([80, 81, 8080]), max_size=2).map(tuple),
    path=st.one_of(st.none(), texts(PATHS), st.builds(Text, st.just("segments"), st.sampled_from(PATHS[1:]), st.booleans(), st.booleans())),
    methods=st.lists(texts(["GET", "PUT", "P", "get"]), max_size=1).map(tuple),
    headers=st.lists(st.builds(Field, st.sampled_from([n.lower() for n in NAMES]), FIELD_TESTS), max_size=2).map(tuple),
    query=st.lists(st.builds(Field, st.sampled_from(["k", "v"]), FIELD_TESTS), max_size=1).map(tuple),
    cookies=st.lists(st.builds(Field, st.sampled_from(["k", "v"]), FIELD_TESTS), max_size=1).map(tuple),
    clients=st.lists(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.0.7", "2001:db8::/32"]).map(lambda text: Client(text, *network(text))), max_size=1).map(tuple),
)  # fmt: skip
FORMATS = [parse_format(text, keep_empty=keep) for text in ["%REQ(x-c)%", "p-%REQ(x-none?:path)%", "%REQ(X-C):1%%REQ(:authority)%", "%PROTOCOL% %REQ(:method)%%%"] for keep in (False, True)]
HOWS = ["set", "add", "append", "set_if_exists", "add_if_absent"]
CHANGES = st.tuples(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([*HOWS, "remove"]), st.sampled_from(["x-a", "X-b", "x-new"]), st.sampled_from(["v", "w w"])),
            st.tuples(st.sampled_from(HOWS), st.sampled_from(["x-a", "X-b", "x-new"]), st.sampled_from(FORMATS)),
        ),
        max_size=3,
        unique_by=lambda c: c[1].lower(),
    ),
    st.lists(
        st.tuples(
            st.just("remove_matching"),
            st.just(""),
            st.sampled_from([Text("prefix", "X-", True), Text("prefix", "X-"), Text("suffix", "b"), Text("contains", "t"), Text("regex", "x-[ac]"), Text("exact", "accept", invert=True)]),
        ),
        max_size=1,
    ),
).map(lambda both: (*both[0], *both[1]))  # fmt: skip
MIRRORS = st.builds(
    mirror,
    st.integers(0, 3),
    share=st.sampled_from([0, 10_000, 500_000, 1_000_000, 1_000_000]),
    sample_by=st.sampled_from(["request", "connection", "client-ip", "path", "header:x-a", "query:k"]),
    authority=st.sampled_from([None, None, "other:99"]),
    suffix=st.sampled_from(["-shadow", None, "-x"]),
    literal=st.sampled_from([None, None, "lit"]),
    headers=CHANGES,
    path=st.sampled_from(
        [None, None, PathRewrite("full", "/new"), PathRewrite("prefix", "/n", "/a"), PathRewrite("prefix", "", "/a"), PathRewrite("regex", "/r\\1", "/(a|b)")]
    ),
    max_body=st.sampled_from([None, None, 3]),
)
POLICIES = st.lists(st.tuples(st.lists(BLOCKS, min_size=1, max_size=3), st.lists(MIRRORS, max_size=3)), min_size=1, max_size=9).map(
    lambda routes: policy(*routes)
)


@st.composite
def requests(draw):
    """Packets of some connections, a few requests each."""
    packets = []
    for i in range(draw(st.integers(1, 4))):
        parts = []
        for _ in range(draw(st.integers(1, 4))):
            path = draw(st.sampled_from(PATHS)) + draw(st.sampled_from(["", "?k=a", "?v&k=b", "?x=1&v=ab&v=b"]))
            host = draw(st.sampled_from(HOSTS)) + draw(st.sampled_from(["", ":8080", ":80"]))
            form = f"http://u@{host}{draw(st.sampled_from([path, '', '?k=a']))}" if draw(st.integers(0, 7)) == 0 else path
            fields = draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(WORDS)), max_size=3))
            fields.insert(draw(st.integers(0, len(fields))), ("Host", host if draw(st.booleans()) else f" {host} "))
            if draw(st.integers(0, 3)) == 0:
                fields.append(("Connection", "keep-alive, x-c"))
            fields += [("Cookie", line) for line in draw(st.lists(st.sampled_from(COOKIES), max_size=2))]
            body = draw(st.sampled_from(["", "", "abc", "abcdef"]))
            if body:
                fields.append(("Content-Length", str(len(body))))
            head = f"{draw(st.sampled_from(['GET', 'PUT', 'POST']))} {form} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields) + "\r\n"
            parts += [(head + body).encode(), ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        client = (b"\x0a\x01\x00" + bytes([draw(st.sampled_from([7, 9]))]), 20000 + i)
        server = (b"\x0a\0\0\x02", draw(st.sampled_from([80, 81, 8080])))
        packets += packetmake.talk(*parts, client=client, server=server, start_ns=1_700_000_000_000_000_000 + i * 3_000_000, seq=1000 + i, step_ns=1_000_000)
    return pcapmake.pcap(sorted(packets, key=lambda p: p[0]))


@settings(max_examples=100, deadline=None)
@given(POLICIES, requests(), st.integers(0, 2**64 - 1))
def test_routes_and_copies_are_those_of_the_oracle(chosen, capture, seed):
    agree(chosen, capture, seed)


# ---- many routes, by the cache and without it -----------------------------------------------------------------------------


def plain(targets, *, host=b"a.example", extra=b"", connections=5):
    packets = []
    for i in range(connections):
        parts = []
        for at, line in enumerate(targets):
            if at % connections == i:
                parts += [b"GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (line, host, extra), ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        packets += packetmake.talk(
            *parts, client=(b"\x0a\x01\0\x01", 20000 + i), start_ns=1_700_000_000_000_000_000 + i * 1000, seq=1000 + i, step_ns=1_000_000
        )
    return pcapmake.pcap(sorted(packets, key=lambda p: p[0]))


def test_a_hundred_routes_and_paths_longer_than_the_cache_keeps():
    routes = [([Block(path=Text("prefix" if i % 2 else "exact", f"/p{i}/"))], [mirror(i % 4)]) for i in range(99)]
    routes.append(
        (
            [Block(path=Text("regex", "/x+"), methods=(Text("exact", "GET"),)), Block(hosts=(Host("any"),), headers=(Field("x-a", Text("present")),))],
            [mirror(0)],
        )
    )
    chosen = policy(*routes)
    paths = (
        [b"/p%d/" % (i % 120) for i in range(500)]
        + [b"/p%d/%s" % (i % 120, b"y" * (i % 300)) for i in range(500)]
        + [b"/" + b"x" * (i % 400) for i in range(200)]
    )
    for extra in (b"", b"X-A: 1\r\n"):
        _, counters, _ = agree(chosen, plain(paths, extra=extra))
        assert counters["selected"] > 800


def test_more_candidates_for_a_path_than_a_cache_entry_names():
    """Twenty routes that differ in a header alone."""
    chosen = policy(*(([Block(path=Text("prefix", "/"), headers=(Field("x-a", Text("exact", str(i))),))], [mirror(i % 4)]) for i in range(20)))
    packets = []
    for i in range(25):
        parts = [b"GET /same HTTP/1.1\r\nHost: h\r\nX-A: %d\r\n\r\n" % i, ("reply", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        packets += packetmake.talk(*parts, client=(b"\x0a\x01\0\x01", 20000 + i), start_ns=1_700_000_000_000_000_000 + i * 10_000_000, seq=1000)
    _, counters, counted = agree(chosen, pcapmake.pcap(packets))
    assert counted["matched"] == [1] * 20 and counters["filtered"] == {"no_route": 5}


# ---- the ledger --------------------------------------------------------------------------------------------------------------


def test_each_reason_has_its_name():
    chosen = policy(
        ([Block(path=Text("exact", "/none"))], []),
        ([Block(path=Text("prefix", "/some"))], [mirror(0, limit=3), mirror(1, limit=1)]),
        ([Block(path=Text("prefix", "/key"))], [mirror(0, sample_by="query:k")]),
        ([Block(path=Text("prefix", "/zero"))], [mirror(0, share=0)]),
    )
    rows, counters, counted = routed(chosen, plain([b"/none", b"/other", b"/key", b"/key?k=1", b"/zero", *[b"/some/%d" % i for i in range(6)]]))
    assert counters["filtered"] == {"no_route": 1, "not_mirrored": 1}
    assert counters["sampled_out"] == {"share": 1, "no_key": 1, "limit": 3}
    assert counters["selected"] == 4 and counted["fanout"] == 1 and counted["copies"] == [3, 1, 1, 0]
    assert [len(some) for some in rows.values()] == [4, 1]


def test_a_loop_is_withheld_where_a_mirror_of_its_route_puts_the_suffix_on():
    chosen = policy(
        ([Block(path=Text("prefix", "/off"))], [mirror(0, suffix=None)]),
        ([Block(path=Text("prefix", "/lit"))], [mirror(0, literal="x")]),
        ([Block()], [mirror(0)]),
    )
    _, counters, _ = routed(chosen, plain([b"/off", b"/lit", b"/on"], host=b"a-shadow:80"))
    assert counters["withheld"] == {"loop": 1} and counters["selected"] == 2


def test_many_targets_in_little_memory():
    """Open batches of all targets count towards the budget; reading must not wait for them for ever."""
    chosen = policy(([Block()], [mirror(i) for i in range(6)]))
    rows, counters, _ = routed(chosen, plain([b"/%d" % i for i in range(600)]), budget=2 << 20)
    assert counters["selected"] == 600 and all(len(some) == 600 for some in rows.values())


def test_a_full_queue_does_not_hold_back_what_is_due_elsewhere():
    """One mirror takes everything and nobody empties its queue; the other's few requests come out all the same."""
    chosen = policy(([Block(path=Text("prefix", "/rare"))], [mirror(1)]), ([Block()], [mirror(0)]))
    compiled = compile_policy(chosen)
    paths = [b"/rare" if i in (2, 4) else b"/x%d" % i for i in range(5000)]  # the second one waits in an open batch
    with as_paths([plain(paths, connections=1)]) as files:
        stop, pool = Stop(), Pool()
        queues = {one.url: Queue(pool, 2) for one in compiled.targets}
        ingest = Ingest(
            Capture(files, stop=stop), list(queues.values()), pool, stop, suffix=None, routes=Routes(compiled.blocks, compiled.routes, compiled.mirrors, 2)
        )
        thread = threading.Thread(target=ingest.run)
        thread.start()
        seen = 0
        for _ in range(100):
            batch = queues[TARGETS[1].url].get(0.05)
            seen += 0 if batch is None else len(batch)
            if seen == 2:
                break
        batch = None
        assert seen == 2 and thread.is_alive()
        stop.set()
        thread.join()


def test_results_are_recorded_for_each_copy():
    chosen = policy(([Block()], [mirror(0), mirror(1, path=PathRewrite("full", "/new"))]))
    rows, _, _ = routed(chosen, plain([b"/a"]), record=True)
    assert [row["data"].split(b" ")[1] for some in rows.values() for row in some] == [b"/a", b"/new"]
    assert len({row["body_sha256"] for some in rows.values() for row in some}) == 1 and rows[TARGETS[0].url][0]["body_sha256"]


# ---- the sample -------------------------------------------------------------------------------------------------------------------


def test_mirrors_of_a_route_see_the_same_number():
    chosen = policy(([Block()], [mirror(0, share=50_000), mirror(1, share=100_000), mirror(2, share=100_000)]))
    rows, _, _ = routed(chosen, plain([b"/%d" % i for i in range(2000)]), seed=7)
    five, ten, again = ({row["n"] for row in rows[one.url]} for one in TARGETS[:3])
    assert five < ten == again and 60 < len(five) < 140


CRITICAL = 10.828  # chi-square, one degree of freedom, 1 in 1,000


@pytest.mark.parametrize("sample_by", ["request", "connection", "client-ip", "path", "header:x-user", "cookie:id", "query:k"])
def test_shares_hold_for_every_key_and_seed_and_in_both_implementations(sample_by):
    """Distinct keys; 3 shares x 12 seeds. Of 36 statistics at most two may pass the critical value of 1 in 1,000 (a chance below 1 in 100,000)."""
    count, beyond = 4000, 0
    for seed in [0, 1, 2**64 - 1, *range(1000, 1009)]:
        keys = [key_for(sample_by, i) for i in range(count)]
        for share in (10_000, 50_000, 500_000):
            took = sum(sampling.is_taken(key, share, seed) for key in keys) if count * share < 50_000_000 else sum(hash_below(key, share, seed) for key in keys)
            mean = count * share / 1_000_000
            beyond += (took - mean) ** 2 / mean + (took - mean) ** 2 / (count - mean) > CRITICAL
    assert beyond <= 2
    some = [key_for(sample_by, i) for i in range(300)]
    assert [sampling.is_taken(key, 50_000, 5) for key in some] == [hash_below(key, 50_000, 5) for key in some]


def hash_below(key, share, seed):
    from replay._fastpath import sample_hash

    return sample_hash(key, seed) < (share << 64) // 1_000_000


def key_for(sample_by, i):
    client = (bytes(10) + b"\xff\xff\x0a" + i.to_bytes(3, "big"), 20000 + i % 30000)
    server = (bytes(10) + b"\xff\xff\x0a\0\0\x02", 80)
    head = b"GET /p%d?k=%d HTTP/1.1\r\nHost: h\r\nX-User: u%d\r\nCookie: a=b; id=%d\r\n\r\n" % (i, i, i, i)
    return sampling.key_of(sample_by, client, server, i, head)


def test_what_cannot_be_compiled_is_told():
    with pytest.raises(UsageError, match="the address of t0 is not known"):
        compile_policy(Policy((Route("r", HERE, (Block(),), (Mirror(Destination("t0"), HERE),)),), "replay", "envoy"))
    compiled = compile_policy(policy(([Block()], [mirror(0, headers=(("set", "Content-Length", "1"),))])))
    with pytest.raises(ValueError, match="decides the framing"):
        Routes(compiled.blocks, compiled.routes, compiled.mirrors, 1)
