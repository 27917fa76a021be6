"""Shared by all tests: where nothing may skip, a skip is a failure (REPLAY_NO_SKIP=1, set by .ci/run); which tests have the machine to themselves."""

import os
import pathlib

import pytest

NO_SKIP = os.environ.get("REPLAY_NO_SKIP") == "1"

# What may skip even there, by a word of its reason.
MAY_SKIP = (
    "needs aarch64",  # continuous integration runs on one machine
    "needs a Python that others may read",  # a clone in a private folder
    "needs io_uring",  # which containers often forbid
)


# Tests that count on the machine's time: they run one after the other, with nothing beside them (`alone`). All others bear company.
ALONE = frozenset("benchmarks replay_sink tap tap_bounds tap_daemon tap_kernel tap_load tap_mends tap_netns tap_refuses tap_soak".split())

# Of these, those that wait most of the time, each in network namespaces of its own: a file beside the other (`apart`).
APART = frozenset(("tap_netns", "tap_refuses"))


def pytest_collection_modifyitems(items):
    for item in items:
        name = pathlib.Path(item.path).stem.removeprefix("test_")
        if name in ALONE:
            item.add_marker("alone")
        if name in APART:
            item.add_marker("apart")


def forbid_skip(report):
    """Turns a skipped report into a failed one that says why it was skipped. An expected failure stays one."""
    if not (NO_SKIP and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(word in reason for word in MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"nothing may skip here, but {report.nodeid} did: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    forbid_skip(report)
    return report
