"""Policies for tests: how one is loaded, what is said of it, where a request goes; and the story of customer's version 2."""

from replay.policy import Names
from replay.policy.diagnose import Diagnoses
from replay.policy.load import load_documents
from replay.policy.match import Asked, find
from replay.policy.tree import parse

VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: customer, namespace: tutorial}
spec:
  hosts: [customer]
  http:
  - route: [{destination: {host: customer, subset: version-v1}}]
    mirror: {host: customer, subset: version-v2}
    mirror_percent: 50
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: customer, namespace: tutorial}
spec: {host: customer, subsets: [{name: version-v1, labels: {version: v1}}, {name: version-v2, labels: {version: v2}}]}
"""


def load(text, *, mesh=None, resolve=(), require=False, namespace="default"):
    diagnoses = Diagnoses()
    return load_documents(
        parse(text, "p.yaml", diagnoses), ("p.yaml",), diagnoses, mesh=mesh, names=Names(tuple(resolve)), namespace=namespace, require=require
    )


def policy(text, **more):
    return load(text, **more)[0]


def warnings(text, **more):
    return [str(one) for one in load(text, **more)[1].warnings]


def mirrors(text, **more):
    """(destination, share) of all mirrors."""
    return [(one.to.name, one.share) for one in policy(text, **more).mirrors]


def taken(loaded, method=b"GET", path=b"/", **more):
    """The destinations that a request goes to; None when no route matches."""
    route = find(loaded, Asked(method, path, **more))
    return None if route is None else [one.to.name for one in route.mirrors]
