"""A capture, as bytes, through the engine: what came out as rows, and the counters."""

import contextlib
import os
import threading

from replay._fastpath import Capture, Ingest, Pool, Queue, Stop


@contextlib.contextmanager
def as_paths(captures):
    """Paths of files in memory that hold these bytes."""
    descriptors = []
    try:
        for data in captures:
            descriptors.append(os.memfd_create("capture"))
            with open(descriptors[-1], "wb", closefd=False) as file:
                file.write(data)
        yield [f"/proc/{os.getpid()}/fd/{fd}" for fd in descriptors]
    finally:
        for fd in descriptors:
            os.close(fd)


def run(*captures, **options):
    """(rows, counters) of captures given as bytes. Rows are the dicts of `Requests`, with `data` beside them; show unless told otherwise."""
    options = {"show": True} | options
    with as_paths(captures) as paths:
        stop, pool = Stop(), Pool()
        queue = Queue(pool)
        source = Capture(paths, stop=stop)
        ingest = Ingest(source, [queue], pool, stop, **options)
        thread = threading.Thread(target=ingest.run)
        thread.start()
        rows = []
        try:
            while not queue.done:
                batch = queue.get(0.05)
                if batch is not None:
                    rows += [batch[i] | {"data": batch.data(i)} for i in range(len(batch))]
        finally:
            if not queue.done:
                stop.set()
            thread.join()
        counters = ingest.counters()
        assert not source.faults, source.faults
    check_ledger(counters)
    return rows, counters


def check_ledger(counters):
    """The identity of the first half of the ledger."""
    parts = [sum(counters[part].values()) for part in ("filtered", "sampled_out", "withheld")]
    assert counters["found"] == sum(parts) + counters["selected"], counters
