"""The mirroring examples in the documentation of Istio, the Gateway API, Envoy Gateway and Envoy: each by its page, and what that page says it does."""

import pytest
from policymake import load

from replay.policy.match import Asked, find

pytest.importorskip("re2", reason="needs google-re2")

VIRTUAL = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: httpbin}\nspec:\n  hosts: [httpbin]\n  http:\n  - route: [{destination: {host: httpbin, subset: v1}, weight: 100}]\n"
SUBSETS = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: httpbin}\nspec: {host: httpbin, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n"
V2 = "httpbin.default.svc.cluster.local subset v2"


def http_route(rules, hostnames="[mirror.example]", parents="[{name: mirror-gateway}]", kind="HTTPRoute"):
    return f"apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: http-filter-mirror}}\nspec:\n  parentRefs: {parents}\n  hostnames: {hostnames}\n  rules: {rules}\n"


def mirror(name, port, more=""):
    return f"{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: {port}}}{more}}}}}"


def to(name, port):
    return f"{name}.default.svc.cluster.local:{port}"


DOCUMENTS = [  # page, document, request, [(destination, millionths)] or None: no route
    ("Istio, task Mirroring: the default route", VIRTUAL + SUBSETS, dict(host=b"httpbin:8000", path=b"/get"), []),
    (
        "Istio, task Mirroring: all of the traffic to v2 as well",
        VIRTUAL + "    mirror: {host: httpbin, subset: v2}\n    mirrorPercentage: {value: 100.0}\n" + SUBSETS,
        dict(host=b"httpbin:8000", path=b"/get"),
        [(V2, 1_000_000)],
    ),
    (
        "Istio, task Mirroring: without mirrorPercentage all traffic is mirrored",
        VIRTUAL + "    mirror: {host: httpbin, subset: v2}\n" + SUBSETS,
        dict(host=b"httpbin"),
        [(V2, 1_000_000)],
    ),
    (
        "Istio, task Mirroring: with the Gateway API",
        http_route(f"[{{filters: [{mirror('httpbin-v2', 80)}], backendRefs: [{{name: httpbin-v1, port: 80}}]}}]", "[]", "[{group: '', kind: Service, name: httpbin, port: 8000}]"),
        dict(host=b"httpbin:8000"),
        [(to("httpbin-v2", 80), 1_000_000)],
    ),
    (
        "Istio, reference VirtualService: HTTPRoute.mirrors, HTTPMirrorPolicy.percentage",
        VIRTUAL + "    mirrors: [{destination: {host: httpbin, subset: v2}, percentage: {value: 12.5}}, {destination: {host: audit, port: {number: 81}}}]\n" + SUBSETS,
        dict(host=b"httpbin"),
        [(V2, 125_000), (to("audit", 81), 1_000_000)],
    ),
    (
        "Istio, reference VirtualService: mirrorPercent is deprecated, mirrorPercentage decides",
        VIRTUAL + "    mirror: {host: httpbin, subset: v2}\n    mirrorPercent: 50\n    mirrorPercentage: {value: 0.5}\n" + SUBSETS,
        dict(host=b"httpbin"),
        [(V2, 5_000)],
    ),
    (
        "Red Hat, Istio tutorial, Shadowing: customer, mirror to version-v2",
        "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {name: customer}\nspec: {hosts: [customer], http: [{route: [{destination: {host: customer, subset: version-v1}}], mirror: {host: customer, subset: version-v2}}]}\n",
        dict(host=b"customer:8080"),
        [("customer.default.svc.cluster.local subset version-v2", 1_000_000)],
    ),
    (
        "Gateway API, guide HTTP request mirroring: foo-v1 answers, foo-v2 gets a copy",
        http_route(f"[{{backendRefs: [{{name: foo-v1, port: 8080}}], filters: [{mirror('foo-v2', 8080)}]}}]"),
        dict(host=b"mirror.example"),
        [(to("foo-v2", 8080), 1_000_000)],
    ),
    (
        "Gateway API, guide HTTP request mirroring: percent 42",
        http_route(f"[{{backendRefs: [{{name: foo-v1, port: 8080}}], filters: [{mirror('foo-v2', 8080, ', percent: 42')}]}}]"),
        dict(host=b"mirror.example"),
        [(to("foo-v2", 8080), 420_000)],
    ),
    (
        "Gateway API, guide HTTP request mirroring: fraction 5 of 1000",
        http_route(f"[{{backendRefs: [{{name: foo-v1, port: 8080}}], filters: [{mirror('foo-v2', 8080, ', fraction: {numerator: 5, denominator: 1000}')}]}}]"),
        dict(host=b"mirror.example"),
        [(to("foo-v2", 8080), 5_000)],
    ),
    (
        "Gateway API, guide HTTP request mirroring: another host is not of this route",
        http_route(f"[{{backendRefs: [{{name: foo-v1, port: 8080}}], filters: [{mirror('foo-v2', 8080)}]}}]"),
        dict(host=b"other.example"),
        None,
    ),
    (
        "Gateway API, GEP-3171: a fraction without a denominator is of 100",
        http_route(f"[{{filters: [{mirror('foo-v2', 8080, ', fraction: {numerator: 42}')}]}}]"),
        dict(host=b"mirror.example"),
        [(to("foo-v2", 8080), 420_000)],
    ),
    (
        "Gateway API, conformance HTTPRouteRequestMultipleMirrors: two mirrors, one path prefix",
        http_route(f"[{{matches: [{{path: {{type: PathPrefix, value: /multi-mirror}}}}], filters: [{mirror('infra-backend-v2', 8080)}, {mirror('infra-backend-v3', 8080)}], backendRefs: [{{name: infra-backend-v1, port: 8080}}]}}]", "[]"),
        dict(path=b"/multi-mirror/x"),
        [(to("infra-backend-v2", 8080), 1_000_000), (to("infra-backend-v3", 8080), 1_000_000)],
    ),
    (
        "Gateway API, conformance HTTPRouteRequestPercentageMirror: 20 % and 50 % by path, beside a header that is added",
        http_route(
            f"[{{matches: [{{path: {{type: PathPrefix, value: /percent-mirror}}}}], filters: [{mirror('infra-backend-v2', 8080, ', percent: 20')}]}},"
            f"{{matches: [{{path: {{type: PathPrefix, value: /percent-mirror-and-modify-headers}}}}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: X-Header-Add, value: appended}}]}}}}, {mirror('infra-backend-v2', 8080, ', percent: 35')}]}}]",
            "[]",
        ),
        dict(path=b"/percent-mirror-and-modify-headers"),
        [(to("infra-backend-v2", 8080), 350_000)],
    ),
    (
        "Gateway API, reference GRPCRoute: RequestMirror of a method",
        http_route(f"[{{matches: [{{method: {{service: foo.Bar, method: Login}}}}], filters: [{mirror('grpc-v2', 50051)}]}}]", kind="GRPCRoute"),
        dict(method=b"POST", path=b"/foo.Bar/Login", host=b"mirror.example"),
        [(to("grpc-v2", 50051), 1_000_000)],
    ),
    (
        "Envoy Gateway, task HTTPRoute Request Mirroring",
        http_route(f"[{{matches: [{{path: {{type: PathPrefix, value: /}}}}], filters: [{mirror('backend-2', 3000)}], backendRefs: [{{group: '', kind: Service, name: backend, port: 3000}}]}}]", "[backends.example]", "[{name: eg}]"),
        dict(host=b"backends.example", path=b"/get"),
        [(to("backend-2", 3000), 1_000_000)],
    ),
    (
        "Envoy, sandbox Route mirroring: by cluster",
        "virtual_hosts: [{name: backend, domains: ['*'], routes: [{match: {prefix: /service/1}, route: {cluster: service1, request_mirror_policies: [{cluster: service1-mirror}]}}]}]\n",
        dict(path=b"/service/1"),
        [("service1-mirror", 1_000_000)],
    ),
    (
        "Envoy, sandbox Route mirroring: by a header that names the cluster",
        "static_resources: {clusters: [{name: service2-mirror, connect_timeout: 1s}], listeners: [{filter_chains: [{filters: [{typed_config: {route_config: {virtual_hosts: [{name: backend, domains: ['*'], routes: [{match: {prefix: /service/2}, route: {cluster: service2, request_mirror_policies: [{cluster_header: x-mirror-cluster}]}}]}]}}}]}]}]}\n",
        dict(path=b"/service/2", headers=((b"x-mirror-cluster", b"service2-mirror"),)),
        [("service2-mirror", 1_000_000)],
    ),
    (
        "Envoy, reference RequestMirrorPolicy: runtime_fraction of 10,000",
        "virtual_hosts: [{name: a, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, runtime_fraction: {default_value: {numerator: 1, denominator: TEN_THOUSAND}}}]}}]}]\n",
        dict(),
        [("b", 100)],
    ),
]  # fmt: skip


@pytest.mark.parametrize("document, asked, expected", [one[1:] for one in DOCUMENTS], ids=[one[0] for one in DOCUMENTS])
def test_an_example_of_the_documents_means_what_they_say(document, asked, expected):
    loaded, diagnoses = load(document)
    route = find(loaded, Asked(**({"method": b"GET", "path": b"/"} | asked)))
    assert (None if route is None else [(one.to.name, one.share) for one in route.mirrors]) == expected
    assert not [one for one in diagnoses.found if one.level == "error"]
