"""The reading half of the engine in one call, with the identities that hold for every input checked in every call."""

import os
import threading

import pcapmake

from replay._fastpath import Capture, Ingest, Pool, Queue, Stop

FILTERS = ("methods", "path", "host", "client", "server", "ports", "since_ns", "until_ns")


def found(paths, *, here=False, most_bytes=0, **options):
    """(rows, counters, faults) of captures. `options` are those of Ingest; rows are shown ones unless show=False is among them.

    here: the capture is small, so that nothing waits for a queue or a budget: it is read in this thread, and what came of it is taken afterwards.
    Raises AssertionError when the books do not balance.
    """
    options = {"show": True} | options
    paths = [paths] if isinstance(paths, (str, bytes)) or hasattr(paths, "__fspath__") else list(paths)
    stop, pool = Stop(), Pool()
    queue = Queue(pool)
    capture = Capture([path if isinstance(path, bytes) else str(path) for path in paths], stop=stop, most_bytes=most_bytes)
    ingest = Ingest(capture, [queue], pool, stop, **options)
    failed = []

    def run():
        try:
            ingest.run()
        except BaseException as error:  # a thread's error would be printed and forgotten
            failed.append(error)
            queue.end()

    thread = None if here else threading.Thread(target=run)
    if thread is None:
        run()
    else:
        thread.start()
    rows = []
    while not queue.done:
        batch = queue.get(0.1)
        if batch is not None:
            rows += [batch[i] | {"data": batch.data(i)} for i in range(len(batch))]
    if thread is not None:
        thread.join()
    batch = None
    assert not failed, failed
    counters = ingest.counters()
    check(rows, counters, options, capture.progress())
    assert pool.held == 0
    return rows, counters, capture.faults


def check(rows, counters, options, progress):
    """What holds whatever is in a capture."""
    whole = [row for row in rows if not row["incomplete"]]
    assert counters["ended"]
    judged = [sum(counters[name].values()) for name in ("filtered", "sampled_out", "withheld")] + [counters["selected"]]
    assert counters["found"] == sum(judged), counters
    assert counters["memory"] == 0, counters
    assert counters["packets"]["read"] == counters["segments"] + sum(counters["packets"]["skipped"].values()), counters
    if not options.get("limit"):
        assert counters["packets"]["read"] == progress["packets"], (counters, progress)
    assert counters["no_memory"] == 0 or "max_memory" in options, counters
    assert [row["n"] for row in whole] == sorted(row["n"] for row in whole)
    if options["show"]:
        assert len(whole) == sum(judged[2:]), counters
    else:
        assert len(whole) == counters["selected"] and not any(row["withheld"] for row in rows), counters
    if options["show"] and options.get("incomplete") and not any(options.get(name) for name in FILTERS):
        # Bytes between messages that are no request line count as malformed (H1) and have no row.
        without = sum(row["incomplete"] == "malformed" for row in rows) - counters["incomplete"].get("malformed", 0)
        assert without <= 0 and len(rows) - len(whole) == sum(counters["incomplete"].values()) + without, counters


def names(rows):
    """(method, target, incomplete) of each row, as text: short enough to compare by eye."""
    return [(row["method"].decode("latin-1"), row["target"].decode("latin-1"), row["incomplete"]) for row in rows]


def targets(rows):
    """The targets of whole requests, in order."""
    return [row["target"].decode("latin-1") for row in rows if not row["incomplete"]]


def values(rows):
    """Rows without their number, and without the number of their connection, which other captures share out anew."""
    return [{key: value for key, value in row.items() if key not in ("n", "flow")} for row in rows]


def found_in(data, **options):
    """`found` of the bytes of one capture."""
    file = os.memfd_create("capture")
    try:
        with open(file, "wb", closefd=False) as into:
            into.write(data)
        return found(f"/proc/self/fd/{file}", **options)
    finally:
        os.close(file)


def read(packets, **options):
    """`found` of a list of packets: (rows, counters). There are no faults."""
    rows, counters, faults = found_in(pcapmake.pcap(packets, nanoseconds=True), **options)
    assert faults == []
    return rows, counters
