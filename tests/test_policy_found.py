"""Policies as they are found: what hand-written and generated files of meshes hold beside the textbook's forms."""

import json

import pytest
from policymake import mirrors, policy, taken, warnings

from replay.errors import UsageError

SERVICE = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec:\n  hosts: [cart]\n  http:\n"
CART = "cart.shop.svc.cluster.local"


def route(parents, name="r", hostnames="[]", matches="[]", to="copy", kind="HTTPRoute", more=""):
    return (
        f"apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: {parents}\n"
        f"  hostnames: {hostnames}\n  rules:\n  - matches: {matches}\n"
        f"    filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {to}, port: 80{more}}}}}}}]\n---\n"
    )


# ---- Gateway API: routes of Services ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_the_route_of_a_service_takes_the_requests_to_that_service(kind):
    loaded = policy(route("[{group: '', kind: Service, name: cart, port: 7070}, {kind: Service, name: cart, port: 80}]", kind=kind))
    for host in (b"cart", b"cart:7070", b"CART.shop", b"cart.shop.svc:80", CART.encode()):
        assert taken(loaded, b"POST", host=host) == ["copy.shop.svc.cluster.local:80"], host
    for host in (b"other", b"cart.example", b"cart.other.svc.cluster.local", b""):
        assert taken(loaded, b"POST", host=host) is None, host


def test_hostnames_of_a_route_of_a_service():
    text = route("[{kind: Service, name: cart}]", hostnames="[a.example]")
    assert "hostnames have no effect" in warnings(text)[0]
    assert taken(policy(text), host=b"a.example") is None and taken(policy(text), host=b"cart")
    both = route("[{kind: Service, name: cart}, {name: edge}]", hostnames="[a.example]")  # of a Gateway too
    assert warnings(both) == [] and taken(policy(both), host=b"a.example") and taken(policy(both), host=b"cart") and taken(policy(both), host=b"b") is None
    anywhere = policy(route("[{kind: Service, name: cart}, {name: edge}]"))
    assert taken(anywhere, host=b"b.example") and taken(anywhere, host=b"cart")
    assert taken(policy(route("[]")), host=b"b.example")


def test_services_of_another_namespace_and_routes_that_share_names():
    far = policy(route("[{kind: Service, name: cart, namespace: far}]"))
    assert taken(far, host=b"cart.far") and taken(far, host=b"cart") is None
    service = route("[{kind: Service, name: cart}]", "s", matches="[{path: {value: /a}}]", to="one")
    edge = route("[{name: edge}]", "e", hostnames=f"[{CART}]", matches="[{path: {value: /b}}]", to="two")
    for text in (service + edge, edge + service):
        loaded = policy(text)
        assert taken(loaded, path=b"/a", host=CART.encode()) == ["one.shop.svc.cluster.local:80"]
        assert taken(loaded, path=b"/b", host=CART.encode()) == ["two.shop.svc.cluster.local:80"]
        assert taken(loaded, path=b"/a", host=b"cart") == ["one.shop.svc.cluster.local:80"] and not taken(loaded, path=b"/b", host=b"cart")


def test_equal_rules_of_several_routes():
    def first(*texts):
        return taken(policy("".join(texts)))[0].partition(".")[0]

    def aged(text, time):
        return text.replace("namespace: shop}", f"namespace: shop, creationTimestamp: {time}}}")

    a, b = route("[]", "a", to="one"), route("[]", "b", to="two")
    assert first(a, b) == first(b, a) == "one"  # by name
    old, young = "2024-01-01T00:00:00Z", "'2025-01-01T00:00:00Z'"
    assert first(aged(a, young), aged(b, old)) == first(a, aged(b, old)) == first(aged(a, "null"), aged(b, young)) == "two"
    assert first(aged(b, old), aged(a, old)) == "one"
    assert first(route("[]", "b", matches="[{path: {value: /}, method: GET}]", to="two"), a) == "two"  # what is narrower still comes first


def test_a_weight_is_no_percentage():
    (warning,) = warnings(route("[]", more=", weight: 10"))
    assert "weight has no effect on a mirror; percent" in warning
    assert mirrors(route("[]", more=", weight: 10"))[0][1] == 1_000_000


# ---- Istio -------------------------------------------------------------------------------------------------------------------------------


def test_a_percentage_that_is_no_map():
    with pytest.raises(UsageError, match=r"p\.yaml:7: error: spec\.http\[0\]\.mirrorPercentage: expected a map, found '30'; write \{value: 30\}"):
        policy(SERVICE + "  - {mirror: {host: b}, mirrorPercentage: 30}\n")


def test_a_variable_that_was_not_filled_in():
    for host in ("${SHADOW}", "$SHADOW", "<shadow>"):
        with pytest.raises(UsageError, match="is no host; fill in the variable first"):
            policy(SERVICE + f"  - {{mirror: {{host: '{host}'}}}}\n")


def test_a_rule_of_an_old_istio():
    with pytest.raises(UsageError, match=r"found RouteRule \(1\); a RouteRule is of Istio before 1\.0: write it as a VirtualService"):
        policy("apiVersion: config.istio.io/v1alpha2\nkind: RouteRule\nmetadata: {name: r}\nspec: {mirror: {name: a}}\n")


def test_the_only_port_of_a_service_beside():
    def port(service, host="cart", destination=""):
        text = SERVICE + f"  - {{mirror: {{host: {host}{destination}}}}}\n---\n{service}"
        return policy(text).mirrors[0].to.port

    def core(ports, namespace="shop", version="v1"):
        return f"apiVersion: {version}\nkind: Service\nmetadata: {{name: cart, namespace: {namespace}}}\nspec: {{ports: {ports}}}\n"

    assert port(core("[{name: http, port: 8000, targetPort: 80}]")) == 8000
    assert port(core("[{port: 8000}]"), host=CART, destination=", subset: v2") == 8000
    assert port(core("[{port: 8000}]"), destination=", port: {number: 81}") == 81
    assert port(core("[{port: 8000}, {port: 9000}]")) is None  # that of the listener
    assert port(core("[{port: 8000}]", namespace="other")) is None
    assert port(core("[{port: 8000}]", version="serving.knative.dev/v1")) is None
    for odd in ("[]", "7", "[7]", "[{port: x}]", "[{port: 70000}]", "[{port: [1]}]", "null"):
        assert port(core(odd)) is None, odd
    for odd in ("metadata: {name: [a]}", "metadata: 7", "spec: 7"):
        assert port(f"apiVersion: v1\nkind: Service\n{odd}\n") is None, odd
    entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: %s, ports: [{number: 8443, name: http}]}\n"
    assert port(entry % "[shadow.example.com]", host="shadow.example.com") == 8443
    assert port(entry % "7", host="shadow.example.com") is None


def test_a_destination_rule_for_another_namespace():
    rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\nspec: {host: %s, subsets: [{name: v2}]}\n"
    text = SERVICE + "  - {mirror: {host: cart, subset: v2}}\n"
    assert (
        f"no DestinationRule for {CART} is in the files given, but one for cart.test.svc.cluster.local"
        in warnings(text + rule % "cart.test.svc.cluster.local")[0]
    )
    for other in (CART, "else.test.svc.cluster.local"):
        assert warnings(text + rule % other) == []


# ---- Envoy ---------------------------------------------------------------------------------------------------------------------------------

TABLES = [
    {
        "name": "80",
        "virtualHosts": [
            {
                "name": "cart:80",
                "domains": ["cart"],
                "routes": [
                    {
                        "match": {"prefix": "/"},
                        "route": {"cluster": "outbound|80|v1|" + CART, "requestMirrorPolicies": [{"cluster": "outbound|80|v2|" + CART}]},
                    }
                ],
            }
        ],
    },
    {"name": "other", "virtualHosts": []},
]


def test_a_list_of_route_tables():
    assert mirrors(json.dumps(TABLES)) == [("outbound|80|v2|" + CART, 1_000_000)]
    assert mirrors(json.dumps([None, *TABLES][1:2])) == [("outbound|80|v2|" + CART, 1_000_000)]
    for odd in ("[null, 7]", "[virtualHosts]", "[[]]", "- a: 1\n", json.dumps([None, *TABLES])):
        with pytest.raises(UsageError, match="expected a policy"):
            policy(odd)


@pytest.mark.parametrize(
    "word, url",
    [
        ("cart.shop:v2=10.0.0.7:8080", "http://10.0.0.7:8080"),
        (f"outbound|80|v2|{CART}=10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("{name}-{subset}.{namespace}.svc:{port}", "http://cart-v2.shop.svc:80"),
        ("cart.shop=10.0.0.7:8080", None),  # without the subset
    ],
)
def test_clusters_named_by_istio(word, url):
    found = policy(json.dumps(TABLES), resolve=[word]).mirrors[0].target
    assert (found and found.url) == url


# ---- templates of addresses -------------------------------------------------------------------------------------------------------------


def test_a_template_that_does_not_fit_a_destination():
    text = SERVICE + "  - {mirror: {host: cart, subset: v2}}\n"
    assert "has no {subset}: the copies for cart.shop.svc.cluster.local subset v2 go to every version" in warnings(text, resolve=["{name}.{namespace}:80"])[0]
    assert warnings(text, resolve=["{name}-{subset}.{namespace}:80"]) == []
    assert warnings(text, resolve=["cart.shop:v2=10.0.0.7:80", "{name}.{namespace}:80"]) == []
    assert warnings(SERVICE + "  - {mirror: {host: cart}}\n", resolve=["{name}.{namespace}:80"]) == []
    with pytest.raises(UsageError, match=r"is not known \(the policy does not say its port, which the template needs\)"):
        policy(text, resolve=["{name}-{subset}.{namespace}:{port}"], require=True)
