"""Reads what a metrics server says: over a socket, and as numbers by name and labels."""

import http.client

from prometheus_client.parser import text_string_to_metric_families


def get(address, path="/metrics", method="GET", headers=None, timeout=10):
    """(status, headers, text)."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def families(text):
    """name as in a query -> (type, labels of its samples without `le`, help)."""
    found = {}
    for family in text_string_to_metric_families(text):
        labels = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
        name = family.name + "_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels.pop() if len(labels) == 1 else (), family.documentation)
    return found


def series(text):
    """Each name that a query can ask for -> the names of its labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def value(text, name, **labels):
    """The sum of the samples of that name whose labels include these."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name]
    assert samples, name
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
