"""Policies: our own language and its schema, what Istio's, the Gateway API's and Envoy's documents mean, names into addresses, the verb."""

import json
import pathlib
import subprocess
import sys

import pytest
import yaml
from policymake import VIRTUAL_SERVICE, load, mirrors, policy, taken, warnings

from replay.errors import UsageError
from replay.policy import Names, ours
from replay.policy.diagnose import PolicyError
from replay.policy.explain import words
from replay.policy.kubernetes import millionths, short_names
from replay.policy.match import Asked, find, holds
from replay.policy.model import Block, Field, Host, Part, PathRewrite, Text

pytest.importorskip("re2", reason="needs google-re2")

ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---- our own ------------------------------------------------------------------------------------------------------------


OURS = """
version: 1
targets: {v2: "http://10.0.0.7:8080"}
defaults: {percent: 20}
routes:
  - name: checkout
    match:
      - host: ["*.example.com", "shop.*", "[::1]:8080"]
        port: [80, 8080]
        path: {prefix: /checkout, ignore-case: true}
        method: [GET, {prefix: P}]
        headers: {X-User: {exact: alice}, x-debug: {present: false}, x-n: {regex: "[0-9]+", not: true}, x-two: [{prefix: a}, {suffix: b}]}
        query: {v: {contains: x}, w: {present: true}}
        client: [10.0.0.0/8, "2001:db8::/32"]
      - authority: {exact: "a.example:81"}
    mirror:
      - {to: v2, percent: 12.5, sample-by: "header:X-User", set-headers: {x-a: b, x-c: {value: d, when: absent}, x-e: {value: f, when: present}}}
      - {to: "http://10.0.0.8", add-headers: {x-l: [a, b]}, append-headers: {x-forwarded-for: 10.0.0.1}, remove-headers: [cookie, authorization]}
      - {to: v2, host: {literal: "fixed:1"}, rewrite-path: {prefix: /checkout, with: /v2}, max-body: 1MiB, limit: 10k, trace: drop}
      - {to: v2, host: {suffix: off}, rewrite-path: {regex: "/u/([0-9]+)", with: "/v/\\\\1"}}
      - {to: v2, host: {suffix: -mirror, rewrite: other.example}, rewrite-path: /fixed}
  - {name: not these, match: {path: {separated-prefix: /health}}, mirror: []}
  - mirror: {to: v2, host: keep}
"""


def test_our_language_says_everything_that_a_policy_can():
    loaded = policy(OURS)
    first, health, rest = loaded.routes
    assert first.blocks[0].hosts == (Host("suffix", ".example.com"), Host("prefix", "shop."), Host("exact", "[::1]", 8080))
    assert first.blocks[0].headers[0] == Field("x-user", Text("exact", "alice"))
    assert [one.share for one in loaded.mirrors] == [125_000, 200_000, 200_000, 200_000, 200_000, 200_000]
    assert [(m.authority, m.suffix, m.literal) for m in first.mirrors] == [
        (None, "-shadow", None), (None, "-shadow", None), (None, "-shadow", "fixed:1"), (None, None, None), ("other.example", "-mirror", None),
    ]  # fmt: skip
    assert first.mirrors[0].headers == (("set", "x-a", "b"), ("add_if_absent", "x-c", "d"), ("set_if_exists", "x-e", "f"))
    assert first.mirrors[1].headers == (
        ("add", "x-l", "a"), ("add", "x-l", "b"), ("append", "x-forwarded-for", "10.0.0.1"), ("remove", "cookie", ""), ("remove", "authorization", ""),
    )  # fmt: skip
    assert first.mirrors[2].max_body == 1 << 20 and first.mirrors[2].limit == 10_000
    assert health.mirrors == () and rest.blocks == (Block(),)
    assert {one.target.url for one in loaded.mirrors} == {"http://10.0.0.7:8080", "http://10.0.0.8:80"}


def test_what_is_converted_reads_the_same():
    loaded = policy(OURS)
    again = policy(ours.dump(loaded))
    assert [(route.name, route.blocks) for route in again.routes] == [(route.name, route.blocks) for route in loaded.routes]

    def changes(mirror):  # the order among different names is of no effect
        return sorted(mirror.headers)

    for a, b in zip(again.mirrors, loaded.mirrors, strict=True):
        assert (a.share, a.sample_by, a.authority, a.suffix, a.literal, a.path, a.max_body, a.limit, a.trace) == (
            b.share, b.sample_by, b.authority, b.suffix, b.literal, b.path, b.max_body, b.limit, b.trace,
        )  # fmt: skip
        assert changes(a) == changes(b) and a.target == b.target


@pytest.mark.parametrize("key", ["customer:version-v2", "customer.tutorial:version-v2", "customer.tutorial.svc.cluster.local:version-v2"])
def test_what_is_converted_takes_the_same_addresses(key):
    """Converted without addresses, the names are those that --resolve has them by; with a subset, only by it."""
    for resolve in ((f"{key}=10.0.0.7:8080",), ("{name}-{subset}.{namespace}.svc:80",)):
        first = policy(VIRTUAL_SERVICE, resolve=resolve)
        again = policy(ours.dump(policy(VIRTUAL_SERVICE, require=False)), resolve=resolve)
        assert [one.target for one in again.mirrors] == [one.target for one in first.mirrors] != [None]
        assert ours.dump(again) == ours.dump(first)
        written, diagnoses = load(ours.dump(first), resolve=resolve)
        assert written.mirrors[0].target == first.mirrors[0].target and not diagnoses.warnings
    with pytest.raises(PolicyError):
        policy(ours.dump(policy(VIRTUAL_SERVICE, require=False)), resolve=("customer.tutorial=10.0.0.7:8080",), require=True)


def test_the_schema_accepts_what_the_reader_accepts_and_knows_the_same_names():
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    import importlib.resources

    schema = json.loads((importlib.resources.files("replay.policy") / "schema.json").read_text())
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    documented = (ROOT / "docs" / "policy.md").read_text().split("```yaml")[1].split("```")[0]
    for text in (OURS, documented, ours.dump(policy(VIRTUAL_SERVICE)), ours.dump(policy(HTTP_ROUTE)), ours.dump(policy(ENVOY)), ours.dump(policy(ENVOY_MORE))):
        assert policy(text)
        assert not list(check.iter_errors(yaml.safe_load(text)))
    assert set(schema["properties"]) == set(ours._ROOT)
    for name, known in (("route", ours._ROUTE), ("match", ours._MATCH), ("mirror", ours._MIRROR)):
        assert set(schema["$defs"][name]["properties"]) == set(known)
    assert set(schema["properties"]["defaults"]["properties"]) == set(ours._DEFAULTS)
    assert list(check.iter_errors({"routes": [{"mirror": {"to": "http://a", "percentage": 5}}]}))


def test_a_route_that_nothing_reaches_is_told():
    text = (
        'routes:\n- {name: a, match: {path: {prefix: /a}}, mirror: {to: "http://h"}}\n- {name: b, match: {path: /a/b, method: GET}, mirror: {to: "http://h"}}\n'
    )
    assert warnings(text) == ["p.yaml:3: warning: b: no request reaches this route; 'a' matches all of them before"]
    assert warnings(text.replace("/a/b", "/b")) == []
    assert warnings('routes:\n- {mirror: {to: "http://h", percent: 0}}\n') == [
        "p.yaml:2: warning: route 1: 0 %: nothing goes to http://h:80",
        "p.yaml:2: warning: no route mirrors anything",
    ]


def test_matching_step_by_step():
    loaded = policy(OURS)
    fits = dict(
        path=b"/Checkout/x", query=b"v=axb&w=", host=b"a.EXAMPLE.com:99", port=8080, client=bytes(10) + b"\xff\xff\x0a\x01\x02\x03",
        headers=((b"x-user", b"alice"), (b"x-two", b"a1"), (b"x-two", b"2b")),
    )  # fmt: skip
    assert len(taken(loaded, **fits)) == 5
    for change in (
        dict(path=b"/x"), dict(query=b"v=axb"), dict(query=None), dict(host=b"example.com"), dict(port=81), dict(client=bytes(10) + b"\xff\xff\x0b\x00\x00\x01"),
        dict(headers=fits["headers"] + ((b"x-debug", b""),)), dict(headers=fits["headers"] + ((b"x-n", b"12"),)), dict(headers=fits["headers"][:2]),
    ):  # fmt: skip
        assert len(taken(loaded, **(fits | change))) == 1, change
    assert len(taken(loaded, b"DELETE", **fits)) == 1 and len(taken(loaded, b"PATCH", **fits)) == 5
    assert len(taken(loaded, host=b"A.example:81")) == 1 and len(taken(loaded, host=b"a.example:81")) == 5
    assert taken(loaded, path=b"/health/x") == [] and taken(loaded, path=b"/healthy") == ["v2"]


def test_aliases_that_blow_up_and_deep_nesting_are_refused():
    bomb = (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)) + "routes: []\n"
    )
    for text in (bomb, "routes: " + "[" * 150 + "]" * 150, "routes: " + "[" * 100_000):
        with pytest.raises(UsageError):
            policy(text)


# ---- Istio ---------------------------------------------------------------------------------------------------------------

V2 = "customer.tutorial.svc.cluster.local subset version-v2"


def istio(entry, *, hosts="[httpbin]"):
    lines = "\n    ".join(entry.strip().splitlines())
    return f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: n}}\nspec:\n  hosts: {hosts}\n  http:\n  - {lines}\n"


def test_the_story_of_customer_version_2():
    assert mirrors(VIRTUAL_SERVICE) == [(V2, 500_000)]
    assert mirrors(VIRTUAL_SERVICE.replace("    mirror_percent: 50\n", "")) == [(V2, 1_000_000)]
    one = policy(VIRTUAL_SERVICE, mesh="istio-1.27").mirrors[0]
    assert one.suffix == "-shadow" and one.trace == "unsample"
    assert policy(VIRTUAL_SERVICE).mirrors[0].suffix is None
    for host in (b"customer", b"customer:8080", b"CUSTOMER.tutorial", b"customer.tutorial.svc:80", b"customer.tutorial.svc.cluster.local"):
        assert taken(policy(VIRTUAL_SERVICE), host=host) == [V2]
    assert taken(policy(VIRTUAL_SERVICE), host=b"customer.other") is None


ISTIO_SHARES = [  # of the documents' `mirror` forms; reason
    ("mirror: {host: httpbin, subset: v2}\nmirrorPercentage: {value: 100.0}", 1_000_000, "the task of Istio's documentation"),
    ("mirror: {host: httpbin, subset: v2}", 1_000_000, "absent is everything"),
    ("mirror: {host: httpbin}\nmirrorPercentage: {value: 0}", 0, "0 is nothing"),
    ("mirror: {host: httpbin}\nmirrorPercentage: {}", 0, "without a value it is 0"),
    ("mirror: {host: httpbin}\nmirrorPercentage: {value: 0.57}", 5_699, "truncated in doubles"),
    ("mirror: {host: httpbin}\nmirrorPercentage: {value: 33.3}", 333_000, "tenths"),
    ("mirror: {host: httpbin}\nmirrorPercentage: {value: 0.00001}", 0, "below a millionth"),
    ("mirror: {host: httpbin}\nmirrorPercent: 10", 100_000, "the deprecated integer"),
    ("mirror: {host: httpbin}\nmirror_percent: 0", 0, "its other spelling"),
    ("mirror: {host: httpbin}\nmirrorPercent: null", 1_000_000, "null is absent"),
    ("mirror: {host: httpbin}\nmirrorPercent: 10\nmirrorPercentage: {value: 20}", 200_000, "mirrorPercentage decides"),
    ("mirror: {host: httpbin}\nmirror_percentage: {value: 20}", 200_000, "snake case"),
]


@pytest.mark.parametrize("entry, share", [one[:2] for one in ISTIO_SHARES], ids=[one[2] for one in ISTIO_SHARES])
def test_shares_of_istio(entry, share):
    assert [one.share for one in policy(istio(entry)).mirrors] == [share]


def test_several_mirrors_of_istio():
    entry = "mirrors: [{destination: {host: a, port: {number: 81}}, percentage: {value: 10}}, {destination: {host: b.other.svc.cluster.local}}, {destination: {host: c.example}, percentage: {value: 0}}]"
    assert mirrors(istio(entry)) == [("a.n.svc.cluster.local:81", 100_000), ("b.other.svc.cluster.local", 1_000_000), ("c.example", 0)]


def test_conditions_of_istio():
    entry = """
match:
- uri: {prefix: /API}
  ignoreUriCase: true
  method: {regex: "GET|POST"}
  headers: {x-user: {exact: a}, x-there: {}}
  withoutHeaders: {x-not: {prefix: b}, x-gone: {}}
  queryParams: {q: {exact: "1"}, any: {exact: ""}}
  port: 8080
- authority: {exact: "other:81"}
mirror: {host: b}
"""
    loaded = policy(istio(entry))
    good = dict(host=b"httpbin", path=b"/api/x", query=b"any&q=1", port=8080, headers=((b"x-user", b"a"), (b"x-there", b"")))
    assert taken(loaded, **good) == ["b.n.svc.cluster.local"]
    for change in (
        dict(host=b"x"), dict(path=b"/x"), dict(query=b"q=1"), dict(query=b"any&q=2"), dict(port=80), dict(headers=good["headers"][:1]),
        dict(headers=good["headers"] + ((b"x-not", b"bc"),)), dict(headers=good["headers"] + ((b"x-gone", b""),)),
    ):  # fmt: skip
        assert taken(loaded, **(good | change)) is None, change
    assert taken(loaded, b"PUT", **good) is None
    assert taken(loaded, **(good | {"headers": good["headers"] + ((b"x-not", b"c"),)})) == ["b.n.svc.cluster.local"]


def test_the_first_entry_decides_and_what_answers_by_itself_is_not_mirrored():
    text = istio("match: [{uri: {exact: /old}}]\nredirect: {uri: /new}") + "  - mirror: {host: b}\n"
    loaded = policy(text)
    assert taken(loaded, host=b"httpbin", path=b"/old") == []
    assert taken(loaded, host=b"httpbin", path=b"/new") == ["b.n.svc.cluster.local"]
    assert "answers by itself" in "\n".join(words(loaded))


def test_an_exact_host_is_before_a_wildcard_whatever_the_order():
    a = istio("mirror: {host: wide}", hosts='["*.example.com", "*"]')
    b = istio("match: [{uri: {prefix: /x}}]\nmirror: {host: narrow}", hosts="[a.example.com]").replace("name: a,", "name: b,")
    loaded = policy(a + "---\n" + b)
    assert taken(loaded, host=b"a.example.com", path=b"/x") == ["narrow.n.svc.cluster.local"]
    assert taken(loaded, host=b"a.example.com", path=b"/y") == []  # Envoy never falls back to another virtual host
    assert taken(loaded, host=b"b.example.com") == ["wide.n.svc.cluster.local"]


def test_what_the_route_changes_the_copy_has_too():
    entry = """
match: [{uri: {prefix: /a}}, {uri: {exact: /b}}]
rewrite: {uri: /v2, authority: other}
route: [{destination: {host: b}, headers: {request: {add: {x-two: "2"}}}}]
headers: {request: {set: {x-one: "1", Host: ignored.example}, remove: [x-three]}}
mirror: {host: b}
"""
    first, second = policy(istio(entry)).mirrors
    assert first.path == PathRewrite("prefix", "/v2", "/a") and second.path == PathRewrite("full", "/v2")
    assert first.authority == "other" and first.headers == (("set", "x-one", "1"), ("remove", "x-three", ""), ("add", "x-two", "2"))


def test_delegates():
    text = (
        istio("match: [{uri: {prefix: /a}}]\ndelegate: {name: d, namespace: m}\nmirror: {host: root}\nmirrorPercent: 7")
        + """---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: d, namespace: m}
spec:
  http:
  - {match: [{uri: {prefix: /a/b}, method: {exact: GET}}], mirror: {host: own}}
  - {route: [{destination: {host: x}}]}
"""
    )
    loaded = policy(text)
    assert [(one.to.name, one.share) for one in loaded.mirrors] == [("own.m.svc.cluster.local", 70_000), ("root.m.svc.cluster.local", 70_000)]
    assert taken(loaded, host=b"httpbin", path=b"/a/b") == ["own.m.svc.cluster.local"]
    assert taken(loaded, host=b"httpbin", path=b"/a/c") == ["root.m.svc.cluster.local"]
    assert taken(loaded, host=b"httpbin", path=b"/c") is None


def test_a_subset_that_no_rule_has_is_told():
    assert warnings(VIRTUAL_SERVICE.replace("subset: version-v2}\n", "subset: version-v3}\n")) == [
        "p.yaml:9: warning: spec.http[0].mirror.subset: no DestinationRule for customer.tutorial.svc.cluster.local has the subset 'version-v3' (it has version-v1, version-v2): a mesh would drop the copies"
    ]


def test_what_kubectl_prints():
    items = [json.dumps(one) for one in yaml.safe_load_all(VIRTUAL_SERVICE)]
    text = '{"apiVersion": "v1", "kind": "List", "items": [' + ",".join(items) + ', {"apiVersion": "v1", "kind": "Service"}]}'
    assert mirrors(text) == [(V2, 500_000)]


def test_millionths_and_names():
    assert [millionths(value) for value in (0.57, 33.3, 100, 0.0001, 0.00009, 12.5)] == [5_699, 333_000, 1_000_000, 1, 0, 125_000]
    assert short_names("a.n.svc.cluster.local", "n") == ["a", "a.n.svc.cluster.local", "a.n.svc", "a.n"]
    assert short_names("a.example.com", "n") == ["a.example.com"]


# ---- Gateway API ------------------------------------------------------------------------------------------------------------

HTTP_ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: http-filter-mirror}
spec:
  parentRefs: [{name: example-gateway}]
  hostnames: [mirror.example]
  rules:
  - backendRefs: [{name: example-svc, weight: 1, port: 80}]
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: foo-v2, port: 80}, percent: 42}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: foo-v3, port: 80}, fraction: {numerator: 5, denominator: 1000}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: foo-v4, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: foo-v5, port: 80, namespace: other}, fraction: {numerator: 1, denominator: 3}}}
"""


def test_mirrors_of_the_gateway_api():
    assert mirrors(HTTP_ROUTE) == [
        ("foo-v2.default.svc.cluster.local:80", 420_000), ("foo-v3.default.svc.cluster.local:80", 5_000),
        ("foo-v4.default.svc.cluster.local:80", 1_000_000), ("foo-v5.other.svc.cluster.local:80", 333_333),
    ]  # fmt: skip
    assert "ReferenceGrant" in warnings(HTTP_ROUTE)[0]
    assert len(taken(policy(HTTP_ROUTE), host=b"mirror.example:8080")) == 4 and taken(policy(HTTP_ROUTE), host=b"x.mirror.example") is None


def rules(text, hostnames="[]"):
    return f"apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: a, namespace: n}}\nspec:\n  hostnames: {hostnames}\n  rules:\n{text}"


def rule(name, matches, more=""):
    return f"  - {{matches: {matches}, filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}}}}}{more}]}}\n"


def test_precedence_of_the_gateway_api():
    text = rules(
        rule("any", "[]")
        + rule("short", "[{path: {value: /a}}]")
        + rule("long", "[{path: {value: /a/b}}]")
        + rule("exact", "[{path: {type: Exact, value: /a/b}}]")
        + rule("method", "[{path: {value: /a}, method: POST}]")
        + rule("header", "[{path: {value: /a}, headers: [{name: X-A, value: '1'}]}]")
    )
    loaded = policy(text)

    def first(**more):
        return taken(loaded, **more)[0].partition(".")[0]

    assert first(path=b"/ab") == "any" and first(path=b"/a") == "short" and first(path=b"/a/x") == "short"
    assert first(path=b"/a/b/c") == "long" and first(path=b"/a/b") == "exact"
    assert first(method=b"POST", path=b"/a", headers=((b"x-a", b"1"),)) == "method"
    assert first(path=b"/a", headers=((b"x-a", b"1"),)) == "header"


def test_rewrites_of_the_gateway_api():
    change = ", {type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}"
    change += ", {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: b}], remove: [x-c]}}"
    one, two = policy(rules(rule("a", "[{path: {value: /api}}]", change) + rule("b", "[]", change))).mirrors
    assert one.path == PathRewrite("prefix", "/v2", "/api") and two.path == PathRewrite("prefix", "/v2/", "/")
    assert one.authority == "b.example" and one.headers == (("set", "x-a", "b"), ("remove", "x-c", ""))
    redirect = ", {type: RequestRedirect, requestRedirect: {hostname: c.example}}"
    assert policy(rules(rule("a", "[]", redirect) + rule("b", "[{path: {value: /x}}]"))).routes[1].mirrors == ()


def test_grpc_routes():
    text = rules(rule("a", "[{method: {service: foo.Bar, method: Login}}, {method: {service: foo.Baz}}]")).replace("HTTPRoute", "GRPCRoute")
    loaded = policy(text)
    assert taken(loaded, b"POST", b"/foo.Bar/Login") and taken(loaded, b"POST", b"/foo.Baz/Anything")
    assert taken(loaded, b"POST", b"/foo.Bar/Logout") is None and taken(loaded, b"GET", b"/foo.Bar/Login") is None


# ---- Envoy ------------------------------------------------------------------------------------------------------------------------

ENVOY = """
static_resources:
  clusters:
  - name: shadow
    connect_timeout: 1s
    load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9999}}}}]}]}
  listeners:
  - filter_chains:
    - filters:
      - typed_config:
          route_config:
            name: local
            request_mirror_policies: [{cluster: table}]
            virtual_hosts:
            - name: wide
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: primary}}]
            - name: narrow
              domains: ["a.example", "*.b.example", "c.*"]
              request_mirror_policies: [{cluster: host}]
              routes:
              - match: {path: /x}
                route:
                  cluster: primary
                  prefix_rewrite: /y
                  host_rewrite_literal: other
                  request_mirror_policies:
                  - cluster: shadow
                    runtime_fraction: {default_value: {numerator: 5, denominator: TEN_THOUSAND}}
                    disable_shadow_host_suffix_append: true
                    trace_sampled: false
                    request_headers_mutations: [{append: {header: {key: x-m, value: m}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}, {remove: x-r}]
                  - {cluster: shadow, host_rewrite_literal: lit, runtimeFraction: {defaultValue: {numerator: 300}}}
              - {match: {prefix: /r}, redirect: {host_redirect: z}}
              - {match: {prefix: /}, route: {cluster: primary}}
"""


def test_policies_of_envoy():
    loaded = policy(ENVOY)
    first, second = find(loaded, Asked(b"GET", b"/x", host=b"A.example")).mirrors
    assert (first.share, first.suffix, first.trace, first.authority, first.path) == (500, None, "unsample", "other", PathRewrite("full", "/y"))
    assert first.headers == (("set", "x-m", "m"), ("remove", "x-r", "")) and first.target.url == "http://127.0.0.1:9999"
    assert (second.share, second.literal, second.suffix) == (1_000_000, "lit", "-shadow")
    assert taken(loaded, path=b"/r", host=b"q.b.example") == [] and taken(loaded, host=b"c.q") == ["host"]
    assert taken(loaded, host=b"a.example:80") == ["table"]  # domains are compared with the port
    assert "above 100 %: everything is mirrored" in warnings(ENVOY)[0]


def test_a_header_names_the_cluster():
    text = ENVOY.replace("request_mirror_policies: [{cluster: host}]", "request_mirror_policies: [{cluster_header: X-Shadow}]")
    loaded = policy(text)
    assert taken(loaded, host=b"c.q", headers=((b"x-shadow", b"shadow"),)) == ["shadow"]
    assert taken(loaded, host=b"c.q", headers=((b"x-shadow", b"nowhere"),)) == [] and taken(loaded, host=b"c.q") == []


def test_conditions_of_envoy():
    text = """
virtual_hosts:
- name: a
  domains: ["*"]
  routes:
  - match:
      safe_regex: {regex: "/u/[0-9]+"}
      headers:
      - {name: x-a, string_match: {prefix: B, ignore_case: true}}
      - {name: x-n, string_match: {exact: c}, invert_match: true}
      - {name: ":method", string_match: {exact: PUT}}
      - {name: x-p, present_match: true}
      query_parameters: [{name: q, string_match: {exact: "1"}}, {name: w, present_match: true}]
    route: {cluster: p, request_mirror_policies: [{cluster: s}]}
"""
    loaded = policy(text)
    good = dict(path=b"/u/12", query=b"q=1&w", headers=((b"x-a", b"bx"), (b"x-n", b"d"), (b"x-p", b"")))
    assert taken(loaded, b"PUT", **good) == ["s"]
    assert taken(loaded, b"GET", **good) is None
    for at in range(3):  # an inverted test does not hold for a header that is missing
        assert taken(loaded, b"PUT", **(good | {"headers": good["headers"][:at] + good["headers"][at + 1 :]})) is None
    assert taken(loaded, b"PUT", **(good | {"path": b"/u/12x"})) is None and taken(loaded, b"PUT", **(good | {"query": b"q=1"})) is None


ENVOY_MORE = """
virtual_hosts:
- name: a
  domains: ["*"]
  routes:
  - match:
      path_match_policy:
        name: envoy.path.match.uri_template.uri_template_matcher
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig
          path_template: "/m/{country}/{rest=**}.m3u8"
      headers:
      - {name: x-n, range_match: {start: "-5", end: 10}}
      - {name: x-e, string_match: {exact: ""}, treat_missing_header_as_empty: true}
      cookies: [{name: session, string_match: {prefix: a}}, {name: old, string_match: {exact: "1"}, invert_match: true}]
    route:
      cluster: p
      path_rewrite_policy:
        name: envoy.path.rewrite.uri_template.uri_template_rewriter
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig
          path_template_rewrite: "/n/{rest}/1{country}"
      request_mirror_policies:
      - cluster: s
        request_headers_mutations:
        - {append: {header: {key: x-user, value: "%REQ(X-User?Cookie):20% via %PROTOCOL%"}, append_action: OVERWRITE_IF_EXISTS}}
        - {append: {header: {key: x-path, value: "%REQ(:path)%"}, keep_empty_value: true}}
        - {append: {header: {key: x-plain, value: "50%%"}}}
        - {append: {header: {key: x-time, value: "%START_TIME%"}}}
        - {remove_on_match: {key_matcher: {prefix: x-secret}}}
        - {remove_on_match: {key_matcher: {safe_regex: {regex: "x-debug-.*"}}}}
"""


def test_more_conditions_and_changes_of_envoy():
    loaded = policy(ENVOY_MORE)
    good = dict(path=b"/m/de/a/b.m3u8", headers=((b"x-n", b"-5"), (b"cookie", b"old=2; session=abc"), (b"cookie", b"session=b")))
    assert taken(loaded, **good) == ["s"]
    for change in (
        dict(path=b"/m/a.m3u8"), dict(path=b"/m//a.m3u8"), dict(path=b"/m/de/a.mp4"),
        *(dict(headers=((b"x-n", n), *good["headers"][1:])) for n in (b"10", b"-6", b"5.0", b"", b"1,2")), dict(headers=good["headers"][1:]),
        dict(headers=(*good["headers"], (b"x-e", b"a"))), dict(headers=((b"x-n", b"1"), (b"cookie", b"session=abc; old=1"))), dict(headers=((b"x-n", b"1"),)),
    ):  # fmt: skip
        assert taken(loaded, **(good | change)) is None, change
    assert taken(loaded, **(good | dict(headers=(*good["headers"], (b"x-e", b""))))) == ["s"]
    mirror = loaded.mirrors[0]
    assert mirror.path == PathRewrite("regex", "/n/\\2/1\\1", mirror.path.matched)
    made = {name: value for _, name, value in mirror.headers}
    assert made["x-user"].parts == (Part("header", "x-user", 20, "header", "cookie"), Part("text", " via "), Part("version"))
    assert (made["x-path"].parts, made["x-path"].keep_empty, made["x-plain"]) == ((Part("path"),), True, "50%")
    assert [value for how, _, value in mirror.headers if how == "remove_matching"] == [Text("prefix", "x-secret"), Text("regex", "x-debug-.*")]
    assert any("%START_TIME% has no value here" in one for one in warnings(ENVOY_MORE))
    again = policy(ours.dump(loaded))
    assert again.routes[0].blocks == loaded.routes[0].blocks and again.mirrors[0].path == mirror.path
    assert sorted(map(repr, again.mirrors[0].headers)) == sorted(map(repr, mirror.headers))
    text = "\n".join(words(loaded))
    for part in ("with header x-n from -5 to below 10", "with header x-e '' (or missing)", "with cookie session beginning with 'a'", "headers named beginning with 'x-secret' removed"):
        assert part in text, (part, text)


def test_a_header_that_comes_several_times():
    """As Envoy 1.40 compares them (tests/test_envoy_parity.py): one value is enough, and none for an inverted test; what Envoy joins is one value."""
    text = 'routes:\n- {match: {headers: {NAME: TEST}}, mirror: {to: "http://h"}}\n'

    def matches(name, test, *values):
        loaded = policy(text.replace("NAME", name).replace("TEST", test))
        return taken(loaded, headers=tuple((name.encode(), value) for value in values)) is not None

    for test, own, joined in (("a", True, False), ("b", True, False), ("'a,b'", False, True), ("{suffix: a}", True, False), ("{exact: b, not: true}", False, True), ("{range: [0, 5]}", False, False)):
        assert matches("x-own", test, b"a", b"b") is own and matches("accept", test, b"a", b"b") is joined, test
    assert matches("accept", "a", b"", b"a", b"") and matches("x-own", "{range: [0, 5]}", b"z", b"4")


@pytest.mark.parametrize(
    "template, fits, others",
    [
        ("/", ["/"], ["/a", "//"]),
        ("/a/", ["/a/"], ["/a"]),
        ("/a/*", ["/a/b", "/a/b=c", "/a/*"], ["/a/", "/a", "/a/b/c", "/A/b"]),
        ("/a/**", ["/a/", "/a/b", "/a/b/c", "/a//b"], ["/a"]),
        ("/{x}/b", ["/a/b"], ["//b", "/a/b/"]),
        ("/{x=a/*/c}/d", ["/a/b/c/d"], ["/a/c/d"]),
        ("/a.b", ["/a.b"], ["/aXb"]),
        ("/{x=**}.js", ["/a/b.js", "/.js"], ["/a.jsx"]),
    ],
)
def test_path_templates(template, fits, others):
    loaded = policy(ENVOY_MORE.replace("/m/{country}/{rest=**}.m3u8", template).replace("/n/{rest}/1{country}", "/n"))
    path = loaded.routes[0].blocks[0].path
    assert [one for one in [*fits, *others] if holds(path, one.encode())] == fits


# ---- names ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, url",
    [
        ("customer.tutorial:version-v2=10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("customer:version-v2=10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("customer.tutorial.svc.cluster.local:version-v2=http://10.0.0.7", "http://10.0.0.7:80"),
        (f"{V2}=[2001:db8::1]:81", "http://[2001:db8::1]:81"),
        ("{name}-{subset}.{namespace}.svc:8080", "http://customer-version-v2.tutorial.svc:8080"),
        ("customer.tutorial=10.0.0.7:8080", None),  # without the subset it may be production
        ("{name}.{namespace}:{port}", None),  # the policy names no port
    ],
)
def test_names_into_addresses(word, url):
    found = policy(VIRTUAL_SERVICE, resolve=[word]).mirrors[0].target
    assert (found and found.url) == url
    if url is None:
        with pytest.raises(UsageError, match=r"the address of customer\.tutorial\.svc\.cluster\.local subset version-v2 is not known"):
            policy(VIRTUAL_SERVICE, resolve=[word], require=True)


def test_a_map_of_names_in_a_file(tmp_path):
    for text in ("customer.tutorial:version-v2: 10.0.0.7:8080\n", "# names\ncustomer.tutorial:version-v2=10.0.0.7:8080\n"):
        (tmp_path / "names").write_text(text)
        assert policy(VIRTUAL_SERVICE, resolve=[f"@{tmp_path / 'names'}"]).mirrors[0].target.url == "http://10.0.0.7:8080"
    with pytest.raises(UsageError, match="did you mean 'namespace'"):
        Names(("{namespaces}:80",))
    assert "did you mean 'customer.tutorial:version-v2'" in warnings(VIRTUAL_SERVICE, resolve=["customer.tutorial:version-v3=10.0.0.7:80"])[0]


# ---- the verb --------------------------------------------------------------------------------------------------------------------------


def verb(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "replay", "policy", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_verb_explains_converts_and_tests(tmp_path):
    file = tmp_path / "vs.yaml"
    file.write_text(VIRTUAL_SERVICE)
    out, _ = verb(file, "--mesh", "istio-1.27", "--resolve", "customer.tutorial:version-v2=10.0.0.7:8080")
    assert "50 % go to customer.tutorial.svc.cluster.local subset version-v2 (http://10.0.0.7:8080) as HOST-shadow" in out
    out, _ = verb(file)
    assert "Istio 1.28 or later was assumed" in out and "the address of customer.tutorial.svc.cluster.local subset version-v2 is not known" in out
    converted, _ = verb(file, "--convert")
    assert [(one.share, one.trace) for one in policy(converted).mirrors] == [(500_000, "unsample")]
    assert json.loads(verb("--schema")[0])["title"] == "replay policy"
    assert json.loads(verb(file, "--json")[0])["routes"][0]["mirrors"][0]["share"] == 500_000
    demo = ROOT / "replay" / "data" / "demo.pcap"
    found = json.loads(verb(file, "--test", demo, "--json")[0])
    listed = subprocess.run([sys.executable, "-m", "replay", "show", "--json", str(demo)], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [json.loads(line) for line in listed]
    asked = [row for row in rows if (row["host"] or "").partition(":")[0] == "customer"]
    assert found["requests"] == len(rows) and found["routes"][0]["requests"] == len(asked) > 20
    assert 0 < found["routes"][0]["copies"][V2] < len(asked)
    out, _ = verb(file, "--test", demo, "--explain", asked[0]["n"])
    assert "matches" in out and "mirrored" in out
    other = next(row for row in rows if row not in asked)
    assert "not mirrored: no route matches" in verb(file, "--test", demo, "--explain", other["n"])[0]
    _, err = verb(file, "--test", demo, "--explain", 10**6, code=4)
    assert "there is no request 1000000" in err


def test_the_verb_says_what_is_wrong(tmp_path):
    (tmp_path / "p.yaml").write_text("routes:\n- mirror: {to: 'http://a', percentage: 5}\n")
    _, err = verb(tmp_path, code=2)
    assert err == f"replay: {tmp_path / 'p.yaml'}:2: error: routes[0].mirror.percentage: unknown field 'percentage'; did you mean 'percent'?\n"
    assert "No such file" in verb(tmp_path / "none.yaml", code=2)[1]
    assert "a policy is missing" in verb(code=2)[1]
    assert "--test" in verb(tmp_path / "p.yaml", "--explain", "1", code=2)[1]
