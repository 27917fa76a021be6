"""Wrong policies, each with the messages that it must get: file, line, field, what was expected, the nearest right name."""

import pytest

from replay.errors import UsageError
from replay.policy.diagnose import Diagnoses
from replay.policy.load import load_documents
from replay.policy.tree import parse

pytest.importorskip("re2", reason="needs google-re2")

VIRTUAL_SERVICE = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: n}
spec:
  hosts: [a]
  http:
"""
HTTP_ROUTE = """apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: n}
spec:
  rules:
"""
ENVOY = """virtual_hosts:
- name: a
  domains: ["*"]
  routes:
"""

BAD = [  # why, policy, messages
    (
        "empty list of routes",
        "routes: []\n",
        [
            "p.yaml:1: error: routes: the list of routes is empty: nothing would be mirrored",
        ],
    ),
    (
        "no routes",
        "version: 1\n",
        [
            "p.yaml:1: error: there are no routes; write `routes:` with a list",
        ],
    ),
    (
        "typo in a root field",
        'rutes:\n- mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:1: error: rutes: unknown field 'rutes'; did you mean 'routes'?",
            "p.yaml:1: error: there are no routes; write `routes:` with a list",
        ],
    ),
    (
        "version of tomorrow",
        'version: 2\nroutes:\n- mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:1: error: version: version '2' is not known; this is version 1",
        ],
    ),
    (
        "not a map",
        "- a\n- b\n",
        [
            "p.yaml:1: error: expected a policy (a map), found a list",
        ],
    ),
    (
        "no YAML",
        "routes: [\n",
        [
            "p.yaml:2: error: no YAML: did not find expected node content",
        ],
    ),
    (
        "tab",
        "routes:\n\t- mirror: x\n",
        [
            "p.yaml:2: error: no YAML: found character that cannot start any token; indent with blanks, not tabs",
        ],
    ),
    (
        "template",
        "routes:\n- mirror: {to: {{ .Values.url }}}\n",
        [
            "p.yaml:2: error: routes[0].mirror.to: a name is expected, not a map or a list; this looks like a template: render it first (helm template, kustomize build)",
        ],
    ),
    (
        "a key twice",
        "routes:\n- mirror: []\n  mirror: []\n",
        [
            "p.yaml:3: error: routes[0].mirror: 'mirror' stands there more than once (first in line 2)",
        ],
    ),
    (
        "something else",
        "replicas: 3\nimage: nginx\n",
        [
            "p.yaml:1: error: no policy: there is neither `routes` (ours), nor apiVersion and kind (Istio, Gateway API), nor virtual_hosts (Envoy); found replicas, image",
        ],
    ),
    (
        "typo in a route field",
        'routes:\n- mirro: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].mirro: unknown field 'mirro'; did you mean 'mirror'?",
            "p.yaml:2: error: routes[0]: a route needs `mirror` (a list; [] for: what matches is not mirrored)",
        ],
    ),
    (
        "route without mirror",
        "routes:\n- name: a\n  match: {host: a.example}\n",
        [
            "p.yaml:2: error: routes[0]: a route needs `mirror` (a list; [] for: what matches is not mirrored)",
        ],
    ),
    (
        "two routes of a name",
        'routes:\n- {name: a, match: {host: a}, mirror: []}\n- {name: a, mirror: {to: "http://10.0.0.7:80"}}\n',
        [
            "p.yaml:3: error: name: the name 'a' stands there already (line 2)",
        ],
    ),
    (
        "typo in a match field",
        'routes:\n- match: {hosts: a.example}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.hosts: unknown field 'hosts'; did you mean 'host'?",
        ],
    ),
    (
        "typo in a mirror field",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", percentage: 5}\n',
        [
            "p.yaml:2: error: routes[0].mirror.percentage: unknown field 'percentage'; did you mean 'percent'?",
        ],
    ),
    (
        "mirror without to",
        "routes:\n- mirror: {percent: 5}\n",
        [
            "p.yaml:2: error: routes[0].mirror: a mirror needs `to`: a URL, or a name of `targets`",
        ],
    ),
    (
        "above 100 %",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", percent: 120}\n',
        [
            "p.yaml:2: error: routes[0].mirror.percent: '120' is more than 100 %",
        ],
    ),
    (
        "below 0 %",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", percent: -1}\n',
        [
            "p.yaml:2: error: routes[0].mirror.percent: '-1' is no percentage; write 5, 0.5 or 5%",
        ],
    ),
    (
        "finer than a millionth",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", percent: 0.00001}\n',
        [
            "p.yaml:2: error: routes[0].mirror.percent: '0.00001' is finer than a millionth; at most four digits after the point",
        ],
    ),
    (
        "percent in words",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", percent: half}\n',
        [
            "p.yaml:2: error: routes[0].mirror.percent: 'half' is no percentage; write 5, 0.5 or 5%",
        ],
    ),
    (
        "sample-by typo",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", sample-by: cookies}\n',
        [
            "p.yaml:2: error: routes[0].mirror.sample-by: 'cookies' is none of request, connection, connection:kernel, client-ip, path, header:NAME, cookie:NAME, query:NAME; did you mean 'cookie'?",
        ],
    ),
    (
        "sample-by without a name",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", sample-by: header}\n',
        [
            "p.yaml:2: error: routes[0].mirror.sample-by: 'header' lacks a name; write header:NAME",
        ],
    ),
    (
        "target with a path",
        'routes:\n- mirror: {to: "https://10.0.0.7/v2"}\n',
        [
            "p.yaml:2: error: routes[0].mirror.to: https://10.0.0.7/v2: a target has no path or query (requests keep their own); write https://10.0.0.7",
        ],
    ),
    (
        "target with a path",
        'routes:\n- mirror: {to: "http://10.0.0.7:80/v2"}\n',
        [
            "p.yaml:2: error: routes[0].mirror.to: http://10.0.0.7:80/v2: a target has no path or query (requests keep their own); write http://10.0.0.7:80",
        ],
    ),
    (
        "target with credentials",
        'routes:\n- mirror: {to: "http://u:secret@10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].mirror.to: user and password in a URL are not supported; send them with -H 'Authorization: …'",
        ],
    ),
    (
        "target name typo",
        'targets: {customer-v2: "http://10.0.0.7:80"}\nroutes:\n- mirror: {to: customer-v3}\n',
        [
            "p.yaml:3: error: routes[0].mirror.to: 'customer-v3' is no name of `targets` and no URL; did you mean 'customer-v2'?",
        ],
    ),
    (
        "unresolved name",
        "routes:\n- mirror: {to: customer-v2}\n",
        [
            "p.yaml:2: error: the address of customer-v2 is not known; give it with --resolve 'customer-v2=ADDRESS:PORT'",
        ],
    ),
    (
        "host pattern with two stars",
        'routes:\n- match: {host: "a.*.example"}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.host: 'a.*.example' is no host pattern; write a.example, *.example, shop.* or *",
        ],
    ),
    (
        "host pattern with a path",
        'routes:\n- match: {host: "a.example/x"}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.host: 'a.example/x' is no host pattern; write a.example, *.example, shop.* or *",
        ],
    ),
    (
        "port out of range",
        'routes:\n- match: {port: 70000}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.port: 70000 is out of range: 1 to 65,535",
        ],
    ),
    (
        "port in words",
        'routes:\n- match: {port: http}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.port: expected a whole number, found 'http'",
        ],
    ),
    (
        "path without a slash",
        'routes:\n- match: {path: {prefix: checkout}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path.prefix: a path begins with /, found 'checkout'",
        ],
    ),
    (
        "path with a query",
        'routes:\n- match: {path: "/a?b=1"}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path: a path has no query; use `query`",
        ],
    ),
    (
        "two tests at once",
        'routes:\n- match: {path: {prefix: /a, exact: /b}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path: exactly one of exact, prefix, suffix, contains, regex, separated-prefix is needed, found exact and prefix",
        ],
    ),
    (
        "a test that is not known",
        'routes:\n- match: {path: {starts-with: /a}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path.starts-with: unknown field 'starts-with'; there are contains, exact, ignore-case, not, prefix, regex, separated-prefix, suffix",
            "p.yaml:2: error: routes[0].match.path: exactly one of exact, prefix, suffix, contains, regex, separated-prefix is needed, found none",
        ],
    ),
    (
        "no test at all",
        'routes:\n- match: {path: {ignore-case: true}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path: exactly one of exact, prefix, suffix, contains, regex, separated-prefix is needed, found none",
        ],
    ),
    (
        "a bad regular expression",
        'routes:\n- match: {path: {regex: "/a("}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path.regex: '/a(' is no RE2 regular expression: missing ): /a(",
        ],
    ),
    (
        "lookahead",
        'routes:\n- match: {path: {regex: "/(?=a)b"}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path.regex: '/(?=a)b' is no RE2 regular expression: invalid perl operator: (?=; RE2 has no lookaround and no back references",
        ],
    ),
    (
        "back reference",
        'routes:\n- match: {path: {regex: "/(a)\\\\1"}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.path.regex: '/(a)\\\\1' is no RE2 regular expression: invalid escape sequence: \\1; RE2 has no lookaround and no back references",
        ],
    ),
    (
        "a method that is none",
        'routes:\n- match: {method: "GET POST"}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.method: 'GET POST' is no method (RFC 9110 9.1)",
        ],
    ),
    (
        "header name with a blank",
        'routes:\n- match: {headers: {"x user": a}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.headers.x user: 'x user' is no header name (RFC 9110 5.1)",
        ],
    ),
    (
        "host as a header",
        'routes:\n- match: {headers: {host: a}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.headers.host: match on the host with `host` or `authority`",
        ],
    ),
    (
        "client that is no network",
        'routes:\n- match: {client: 10.0.0.0/40}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: routes[0].match.client: '10.0.0.0/40' is no network; write 10.0.0.0/8, 10.1.2.3 or 2001:db8::/32",
        ],
    ),
    (
        "a header that is there and not there",
        'routes:\n- match: {headers: {x-a: [{present: true}, {present: false}]}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: route 1: the conditions on the header 'x-a' exclude each other (present; absent)",
        ],
    ),
    (
        "a header with two values",
        'routes:\n- match: {headers: {x-a: [one, two]}}\n  mirror: {to: "http://10.0.0.7:80"}\n',
        [
            "p.yaml:2: error: route 1: the conditions on the header 'x-a' exclude each other (exact one; exact two)",
        ],
    ),
    (
        "framing header set",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", set-headers: {Content-Length: "5"}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.set-headers.Content-Length: the header 'Content-Length' decides the framing or the connection and cannot be changed",
        ],
    ),
    (
        "the count of hops removed",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", remove-headers: [X-Shadow-Replay]}\n',
        [
            "p.yaml:2: error: routes[0].mirror.remove-headers[0]: the header 'X-Shadow-Replay' counts how often a request was mirrored (that ends loops) and cannot be changed",
        ],
    ),
    (
        "host set as a header",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", set-headers: {Host: a}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.set-headers.Host: the header 'Host' decides the framing or the connection and cannot be changed; use `host`",
        ],
    ),
    (
        "a header set and removed",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", set-headers: {x-a: b}, remove-headers: [x-a]}\n',
        [
            "p.yaml:2: error: routes[0].mirror.remove-headers[0]: 'x-a' is in set-headers already: it cannot be removed as well",
        ],
    ),
    (
        "a line break in a header",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", set-headers: {x-a: "b\\r\\nc"}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.set-headers.x-a: the value of a header holds a control byte",
        ],
    ),
    (
        "host rule in words",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", host: suffix}\n',
        [
            "p.yaml:2: error: routes[0].mirror.host: 'suffix' is neither shadow nor keep; a fixed host is {literal: NAME}",
        ],
    ),
    (
        "literal and suffix",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", host: {literal: a, suffix: -b}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.host: a literal host is taken as it is: suffix and rewrite have no meaning beside it",
        ],
    ),
    (
        "suffix with a slash",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", host: {suffix: /shadow}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.host.suffix: '/shadow' cannot stand in a host; write -shadow, or off for none",
        ],
    ),
    (
        "rewrite without with",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", rewrite-path: {prefix: /a}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.rewrite-path: write {full: /path}, {prefix: /old, with: /new} or {regex: RE, with: TEXT}",
        ],
    ),
    (
        "rewrite with a group that is not there",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", rewrite-path: {regex: "/(a)", with: "/\\\\2"}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.rewrite-path.with: '/\\\\2': \\2 stands for no group; the expression has 1",
        ],
    ),
    (
        "max-body in words",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", max-body: large}\n',
        [
            "p.yaml:2: error: routes[0].mirror.max-body: 'large' is no size; write 65536, 64KiB or 1MiB",
        ],
    ),
    (
        "trace typo",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", trace: keeps}\n',
        [
            "p.yaml:2: error: routes[0].mirror.trace: 'keeps' is none of keep, unsample, drop; did you mean 'keep'?",
        ],
    ),
    (
        "a name with a colon removed",
        'routes:\n- mirror: {to: "http://10.0.0.7:80", remove-headers: ["Cookie:"]}\n',
        [
            "p.yaml:2: error: routes[0].mirror.remove-headers[0]: 'Cookie:' is no header name (RFC 9110 5.1)",
        ],
    ),
    (
        "istio: a name with a colon removed",
        VIRTUAL_SERVICE + '  - mirror: {host: b}\n    headers: {request: {remove: ["Cookie:"]}}\n',
        [
            "p.yaml:8: error: spec.http[0].headers.request.remove[0]: 'Cookie:' is no header name (RFC 9110 5.1)",
        ],
    ),
    (
        "istio: both mirror and mirrors",
        VIRTUAL_SERVICE + "  - mirror: {host: b}\n    mirrors: [{destination: {host: c}}]\n",
        [
            "p.yaml:8: error: spec.http[0].mirrors: mirror and mirrors exclude each other",
        ],
    ),
    (
        "istio: more than 100",
        VIRTUAL_SERVICE + "  - mirror: {host: b}\n    mirrorPercentage: {value: 150}\n",
        [
            "p.yaml:8: error: spec.http[0].mirrorPercentage.value: 150 is out of range: 0 to 100",
        ],
    ),
    (
        "istio: percent in words",
        VIRTUAL_SERVICE + "  - mirror: {host: b}\n    mirrorPercent: all\n",
        [
            "p.yaml:8: error: spec.http[0].mirrorPercent: expected a whole number, found 'all'",
        ],
    ),
    (
        "istio: mirror typo",
        VIRTUAL_SERVICE + "  - miror: {host: b}\n",
        [
            "p.yaml:7: error: spec.http[0].miror: unknown field 'miror'; did you mean 'mirror'?",
        ],
    ),
    (
        "istio: mirror without host",
        VIRTUAL_SERVICE + "  - mirror: {subset: v2}\n",
        [
            "p.yaml:7: error: spec.http[0].mirror: a destination needs a host",
        ],
    ),
    (
        "istio: mirrors without destination",
        VIRTUAL_SERVICE + "  - mirrors: [{percentage: {value: 5}}]\n",
        [
            "p.yaml:7: error: spec.http[0].mirrors[0]: a mirror needs a destination",
        ],
    ),
    (
        "istio: bare text in a match",
        VIRTUAL_SERVICE + "  - match: [{uri: /a}]\n    mirror: {host: b}\n",
        [
            "p.yaml:7: error: spec.http[0].match[0].uri: expected exact, prefix or regex, found '/a'; write {exact: /a}",
        ],
    ),
    (
        "istio: two forms in a match",
        VIRTUAL_SERVICE + "  - match: [{uri: {exact: /a, prefix: /b}}]\n    mirror: {host: b}\n",
        [
            "p.yaml:7: error: spec.http[0].match[0].uri: exactly one of exact, prefix, regex is needed, found exact and prefix",
        ],
    ),
    (
        "istio: no hosts",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: n}\nspec:\n  hosts: []\n  http:\n  - mirror: {host: b}\n",
        [
            "p.yaml:5: error: spec.hosts: hosts is empty: a VirtualService needs at least one host",
        ],
    ),
    (
        "istio: wrong version",
        "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: a, namespace: n}\nspec:\n  hosts: [a]\n  http:\n  - mirror: {host: b}\n",
        [
            "p.yaml:1: error: apiVersion: 'networking.istio.io/v2' is no version of VirtualService; did you mean 'networking.istio.io/v1'?",
        ],
    ),
    (
        "istio: kind typo",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServices\nmetadata: {name: a, namespace: n}\nspec:\n  hosts: [a]\n  http:\n  - mirror: {host: b}\n",
        [
            "p.yaml:2: error: kind: the kind 'VirtualServices' is not known; did you mean 'VirtualService'?",
        ],
    ),
    (
        "istio: delegate that is not there",
        VIRTUAL_SERVICE + "  - delegate: {name: other}\n",
        [
            "p.yaml:7: error: spec.http[0].delegate: no VirtualService without hosts named n/other is in the files given",
        ],
    ),
    (
        "istio: unresolved",
        VIRTUAL_SERVICE + "  - mirror: {host: b, subset: v2}\n",
        [
            "p.yaml:7: error: the address of b.n.svc.cluster.local subset v2 is not known; give it with --resolve 'b.n:v2=ADDRESS:PORT'",
        ],
    ),
    (
        "istio: no mirror in any document",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
        [
            "p.yaml:1: error: there is no VirtualService, HTTPRoute or GRPCRoute; found Service (1); name the file of the route as well (several files, each with a --policy of its own on run and tap, or their folder)",
        ],
    ),
    (
        "gateway: percent and fraction",
        HTTP_ROUTE + "  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}, percent: 5, fraction: {numerator: 1}}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].requestMirror.fraction: percent and fraction exclude each other",
        ],
    ),
    (
        "gateway: a name with a colon removed",
        HTTP_ROUTE
        + "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [' x']}}, {type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].requestHeaderModifier.remove[0]: ' x' is no header name (RFC 9110 5.1)",
        ],
    ),
    (
        "gateway: filter typo",
        HTTP_ROUTE + "  - filters: [{type: RequestMirrors, requestMirror: {backendRef: {name: b, port: 80}}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].type: 'RequestMirrors' is none of RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, ExtensionRef, CORS, ExternalAuth; did you mean 'RequestMirror'?",
        ],
    ),
    (
        "gateway: no backendRef",
        HTTP_ROUTE + "  - filters: [{type: RequestMirror, requestMirror: {percent: 5}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].requestMirror: backendRef is missing",
        ],
    ),
    (
        "gateway: no port",
        HTTP_ROUTE + "  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b}}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].requestMirror.backendRef: a backendRef to a Service needs a port",
        ],
    ),
    (
        "gateway: fraction above 1",
        HTTP_ROUTE + "  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}, fraction: {numerator: 3, denominator: 2}}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].filters[0].requestMirror.fraction: 3/2 is more than 1",
        ],
    ),
    (
        "gateway: hostname with a port",
        'apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a, namespace: n}\nspec:\n  hostnames: ["a.example:80"]\n  rules:\n  - {}\n',
        [
            "p.yaml:5: error: spec.hostnames[0]: 'a.example:80' is no hostname; write a.example.com or *.example.com, without a port",
        ],
    ),
    (
        "gateway: match type",
        HTTP_ROUTE + "  - matches: [{path: {type: Prefix, value: /a}}]\n",
        [
            "p.yaml:6: error: spec.rules[0].matches[0].path.type: 'Prefix' is none of Exact, PathPrefix, RegularExpression; did you mean 'PathPrefix'?",
        ],
    ),
    (
        "envoy: a name with a colon removed",
        ENVOY
        + "  - {match: {prefix: /}, request_headers_to_remove: ['Cookie:'], route: {cluster: outbound|80||b.n.svc.cluster.local, request_mirror_policies: [{cluster: outbound|80||c.n.svc.cluster.local}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].request_headers_to_remove[0]: 'Cookie:' is no header name (RFC 9110 5.1)",
        ],
    ),
    (
        "envoy: no cluster",
        ENVOY + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{runtime_fraction: {default_value: {numerator: 5}}}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.request_mirror_policies[0]: exactly one of cluster and cluster_header is needed",
        ],
    ),
    (
        "envoy: cluster and header",
        ENVOY + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, cluster_header: c}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.request_mirror_policies[0]: exactly one of cluster and cluster_header is needed",
        ],
    ),
    (
        "envoy: denominator",
        ENVOY
        + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, runtime_fraction: {default_value: {numerator: 5, denominator: PERCENT}}}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.request_mirror_policies[0].runtime_fraction.default_value.denominator: 'PERCENT' is none of HUNDRED, TEN_THOUSAND, MILLION",
        ],
    ),
    (
        "envoy: two matches",
        ENVOY + "  - {match: {prefix: /, path: /a}, route: {cluster: a}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match: exactly one of prefix, path, safe_regex, path_separated_prefix is needed, found prefix and path",
        ],
    ),
    (
        "envoy: policy typo",
        ENVOY + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, runtime_fractions: {}}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.request_mirror_policies[0].runtime_fractions: unknown field 'runtime_fractions'; did you mean 'runtime_fraction'?",
        ],
    ),
    (
        "envoy: unknown cluster",
        ENVOY + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n",
        [
            "p.yaml:5: error: the address of b is not known; give it with --resolve 'b=ADDRESS:PORT'",
        ],
    ),
    (
        "envoy: a range of words",
        ENVOY
        + "  - {match: {prefix: /, headers: [{name: x, range_match: {start: one, end: 2}}]}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.headers[0].range_match.start: expected a whole number, found 'one'",
        ],
    ),
    (
        "envoy: a regex in any case",
        ENVOY
        + "  - {match: {prefix: /, headers: [{name: x, string_match: {safe_regex: {regex: a}, ignore_case: true}}]}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.headers[0].string_match.ignore_case: ignore_case has no effect on safe_regex, and Envoy refuses it; begin the expression with (?i)",
        ],
    ),
    (
        "envoy: another path matcher",
        ENVOY
        + '  - {match: {path_match_policy: {name: mine, typed_config: {"@type": type.googleapis.com/my.PathMatcher}}}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.path_match_policy: only UriTemplateMatchConfig is known here, found PathMatcher",
        ],
    ),
    (
        "envoy: a template without its slash",
        ENVOY
        + '  - {match: {path_match_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "a/{x}"}}}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.path_match_policy.typed_config.path_template: 'a/{x}' is no path template: it begins with /",
        ],
    ),
    (
        "envoy: a glob behind **",
        ENVOY
        + '  - {match: {path_match_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/{x=**}/*"}}}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.path_match_policy.typed_config.path_template: '/{x=**}/*': no glob may stand behind **",
        ],
    ),
    (
        "envoy: a variable that is not closed",
        ENVOY
        + '  - {match: {path_match_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/a/{x"}}}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.path_match_policy.typed_config.path_template: '/a/{x': '{x' is neither plain text, * or ** nor a variable in braces",
        ],
    ),
    (
        "envoy: a rewriting with a variable that is not there",
        ENVOY
        + '  - {match: {path_match_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/a/{x}"}}}, route: {cluster: a, request_mirror_policies: [{cluster: b}], path_rewrite_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: "/{y}"}}}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.path_rewrite_policy.typed_config.path_template_rewrite: '/{y}': the template '/a/{x}' has no variable 'y'",
        ],
    ),
    (
        "envoy: a rewriting without its matcher",
        ENVOY
        + '  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b}], path_rewrite_policy: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: "/{y}"}}}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.path_rewrite_policy: path_rewrite_policy goes with path_match_policy",
        ],
    ),
    (
        "envoy: headers to remove without a test",
        ENVOY + "  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, request_headers_mutations: [{remove_on_match: {}}]}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].route.request_mirror_policies[0].request_headers_mutations[0].remove_on_match: key_matcher is missing",
        ],
    ),
    (
        "envoy: a value made of a header that was changed",
        ENVOY
        + '  - {match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: b, request_headers_mutations: [{append: {header: {key: x-a, value: "1"}}}, {append: {header: {key: x-b, value: "%REQ(x-a)%"}}}]}]}}\n',
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0]: '%REQ(x-a)%' reads the header 'x-a', which a change before it touches; that is not supported",
        ],
    ),
    (
        "envoy: a cookie without a test",
        ENVOY + "  - {match: {prefix: /, cookies: [{name: x}]}, route: {cluster: a, request_mirror_policies: [{cluster: b}]}}\n",
        [
            "p.yaml:5: error: virtual_hosts[0].routes[0].match.cookies[0]: name and string_match are needed",
        ],
    ),
    (
        "ours: a range of one end",
        'routes:\n- {match: {headers: {x: {range: [1]}}}, mirror: {to: "http://h"}}\n',
        [
            "p.yaml:2: error: routes[0].match.headers.x.range: a range is [from, below], two whole numbers",
        ],
    ),
    (
        "ours: a format that is not known",
        'routes:\n- {mirror: {to: "http://h", set-headers: {x: {format: "%HOSTNAME%"}}}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.set-headers.x.format: %HOSTNAME% has no value here: only what the captured request holds is known (%REQ(NAME)%, %PROTOCOL%)",
        ],
    ),
    (
        "ours: a value and a format",
        'routes:\n- {mirror: {to: "http://h", set-headers: {x: {format: a, value: b}}}}\n',
        [
            "p.yaml:2: error: routes[0].mirror.set-headers.x: value and format exclude each other",
        ],
    ),
    (
        "two languages",
        ENVOY
        + "  - {match: {prefix: /}, route: {cluster: a}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: n}\nspec:\n  hosts: [a]\n  http:\n  - mirror: {host: b}\n",
        [
            "p.yaml: Istio or Gateway API and Envoy together; give one language at a time",
        ],
    ),
]


def messages(text):
    """What is said of a policy in a file `p.yaml`."""
    diagnoses = Diagnoses()
    try:
        load_documents(parse(text, "p.yaml", diagnoses), ("p.yaml",), diagnoses, mesh=None, names=None, namespace="default", require=True)
    except UsageError as error:
        return str(error).split("\n")
    raise AssertionError("the policy was accepted")


@pytest.mark.parametrize("text, expected", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_policy_says_what_is_wrong(text, expected):
    assert messages(text) == expected
