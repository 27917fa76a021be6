"""Sending against real sockets: what arrives, in which order, over how many connections, and that every request is accounted for."""

import collections
import random
import socket
import threading
import time

import pytest
from shadow_servers import DRIVERS, MS, OK_REPLY, Run, Server, address, check, ok, request, send, until

from replay._fastpath import Guard, Outcomes, Pool, Queue, Sender, Stop
from replay.histogram import Histogram

HTTP10, HEAD = 4, 1


@pytest.fixture(autouse=True, params=DRIVERS)
def driver(request, monkeypatch):
    monkeypatch.setattr(Run, "driver", request.param)
    return request.param


def rows(n, flows=8, **options):
    return [(request(i, flow=i % flows, **options), 0, i % flows) for i in range(n)]


@pytest.mark.parametrize("pipeline", [1, 4, 64])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_all_arrive_once_and_in_the_order_of_their_flow(host, pipeline):
    with Server(ok, host) as server:
        c = send([server.address], rows(2000, 50), connections=16, pipeline=pipeline)
        assert c["answered"] == 2000 and c["status"] == {200: 2000}
        assert sorted(server.ids()) == list(range(2000))
        by_flow = collections.defaultdict(list)
        for i, flow, _, _ in server.log:
            by_flow[flow].append(i)
        assert all(ids == sorted(ids) for ids in by_flow.values())
        assert server.peak <= 16 and c["connections_opened"] == server.count <= 16
        assert c["bytes_sent"] == sum(len(row[0]) for row in rows(2000, 50))
        assert c["bytes_received"] == 2000 * len(OK_REPLY)


def test_bytes_arrive_as_they_are():
    got = []

    def serve(peer):
        while data := peer.sock.recv(1 << 20):
            got.append(data)
            if b"".join(got).endswith(b"THE END"):
                peer.send(OK_REPLY)

    body = random.Random(5).randbytes(3_000_000) + b"THE END"
    data = request(1, b"PUT", body)
    with Server(serve) as server:
        assert send([server.address], [(data, 0, 1)])["answered"] == 1
    assert b"".join(got) == data


def test_one_flow_stays_on_one_connection():
    with Server(ok) as server:
        send([server.address], rows(300, 1), connections=8)
        assert server.count == 1 and server.ids() == list(range(300))


def test_one_under_way_at_a_time_without_pipelining():
    """The next request of a connection comes only after the reply to the one before."""
    early = []

    def serve(peer):
        while peer.next():
            time.sleep(0.002)
            peer.sock.setblocking(False)
            try:
                early.append(peer.sock.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                pass
            peer.sock.setblocking(True)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        send([server.address], rows(100, 10), connections=4)
    assert [one for one in early if one] == []


def test_pipeline_is_a_ceiling():
    most = []

    def serve(peer):
        while peer.next():
            count = 1
            time.sleep(0.02)
            peer.sock.settimeout(0)
            try:
                peer.buffer += peer.sock.recv(1 << 20)
            except OSError:
                pass
            peer.sock.settimeout(None)
            count += peer.buffer.count(b"\r\n\r\n")
            most.append(count)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        send([server.address], rows(60, 1), connections=1, pipeline=5, rate=1e6)
    assert max(most) == 5


def test_spread_over_addresses():
    """Nobody answers before all have come: then each request needs a connection of its own, and these go to the addresses in turn."""
    met = threading.Barrier(8)

    def together(peer):
        peer.next()
        met.wait(20)
        peer.send(OK_REPLY)
        ok(peer)

    with Server(together) as a, Server(together, "::1") as b:
        c = send([a.address, b.address], rows(8), connections=8)
        assert c["answered"] == c["connections_opened"] == 8
        assert len(a.log) == len(b.log) == 4


def test_one_after_the_other_is_spread_too():
    """Idle connections are taken in turn of their addresses, not the same one again and again."""
    with Server(ok) as a, Server(ok, "::1") as b:
        c = send([a.address, b.address], [(request(i), i * 20 * MS, i) for i in range(20)], speed=1.0)
        assert c["answered"] == 20 and min(len(a.log), len(b.log)) > 2


def test_one_busy_flow_at_full_speed_keeps_its_order_and_holds_nobody_up_for_good():
    """More requests of one captured connection than may wait to be written, others behind them."""
    with Server(ok) as server:
        busy = 3000
        c = send([server.address], [(request(i), 0, 0 if i < busy else i) for i in range(busy + 200)], timeout=60, connections=8, pipeline=16)
        assert c["answered"] == busy + 200 and not c["dropped"] and not c["unanswered"]
        ids = server.ids()
        assert sorted(ids) == list(range(busy + 200)) and [one for one in ids if one < busy] == list(range(busy))


def test_an_address_that_is_down_costs_nothing():
    dead = socket.socket()
    dead.bind(("127.0.0.1", 0))
    with Server(ok) as server:
        c = send([address("127.0.0.1", dead.getsockname()[1]), server.address], rows(200, 20), connections=4)
    dead.close()
    assert c["answered"] == 200 and c["connect_failed"] > 0 and c["errno"] == 111 and not c["never_connected"]


# ---- pacing ----


def test_paced_by_offsets_and_speed():
    with Server(ok) as server:
        n, step = 40, 10 * MS
        run = Run([server.address], speed=2.0).start().push([(request(i), i * step, i % 4) for i in range(n)]).end()
        c = run.join()
        start = c["start_ns"] / 1e9 - (time.time() - time.monotonic())  # the log has the monotonic clock
        for i, _, _, at in server.log:
            assert at - start >= i * step / 2 / 1e9 - 0.001, "never early"
        lag = Histogram(run.sender.histograms()["lag_us"])
        assert lag.total == n and c["position_ns"] == (n - 1) * step
        assert (c["last_sent_ns"] - c["start_ns"]) >= (n - 1) * step / 2


def test_even_rate_whatever_the_offsets():
    with Server(ok) as server:
        c = send([server.address], [(request(i), 10**15 * (i % 3), i) for i in range(50)], rate=500.0)
        assert c["last_sent_ns"] - c["start_ns"] >= 49 * 2 * MS
        assert c["answered"] == 50


def test_open_loop_a_late_server_does_not_slow_the_schedule():
    """Each reply takes 100 ms, a request is due every 2 ms: they go on time, over as many connections as that takes."""

    def serve(peer):
        while peer.next():
            time.sleep(0.1)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        run = Run([server.address], speed=1.0, connections=256).start()
        run.push([(request(i), i * 2 * MS, i) for i in range(200)]).end()
        c = run.join()
        assert c["answered"] == 200 and 10 <= server.peak <= 200
        assert c["last_sent_ns"] - c["start_ns"] < 2 * 398 * MS, "the schedule was 398 ms, replies in turn would be 20 s"
        histograms = {name: Histogram(counts) for name, counts in run.sender.histograms().items()}
        assert histograms["service_us"].percentile(0.01) >= 99_000
        assert histograms["latency_us"].percentile(0.5) >= histograms["lag_us"].percentile(0.01) + 99_000


def test_late_ones_wait_and_count_as_lag():
    def serve(peer):
        while peer.next():
            time.sleep(0.02)
            peer.send(OK_REPLY)

    with Server(serve) as server:
        run = Run([server.address], speed=1.0, connections=2).start().push([(request(i), i * MS, i) for i in range(40)]).end()
        c = run.join()
        assert c["answered"] == 40 and server.peak == 2
        lag = Histogram(run.sender.histograms()["lag_us"])
        assert lag.max > 200_000, "40 requests at 50 a second a connection"


def test_the_future_stays_in_the_ring():
    """A sender looks into one batch; what is due later holds no more."""
    with Server(ok) as server:
        run = Run([server.address], speed=1.0, slots=64)
        run.push([(request(i), i * 3600 * 10**9, i) for i in range(10)], rows_per_batch=1)
        run.start()
        until(lambda: run.sender.counters()["answered"] == 1)
        time.sleep(0.05)
        assert run.sender.counters()["taken"] == 1 and server.ids() == [0]
        run.stop.set()
        c = run.end().join()
        assert c["dropped"] == {"stopped": 9} and c["answered"] == 1


def test_broken_clocks_make_no_one_wait():
    with Server(ok) as server:
        offsets = [0, -(10**18), -(2**63), 5, -1]
        c = send([server.address], [(request(i), offset, i) for i, offset in enumerate(offsets)], speed=0.001)
        assert c["answered"] == 5


# ---- memory ----


def test_a_small_budget_is_enough():
    """One batch at a time fits: ingest waits for the sender, nothing hangs, nothing is lost."""
    with Server(ok) as server:
        run = Run([server.address], budget=1, connections=4).start().push(rows(300, 7), rows_per_batch=10).end()
        assert run.join()["answered"] == 300 and run.pool.peak < 1 << 20


def test_a_stuck_connection_gives_its_batch_back():
    release = threading.Event()

    def serve(peer):
        release.wait(10)
        while peer.next():
            peer.send(OK_REPLY)

    with Server(serve) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        run = Run([server.address], budget=1, connections=64, rate=1e6).start()
        # each waits for an answer, each came in a batch of its own; the budget allows one
        run.push([(request(i, b"PUT", bytes(200_000)), 0, i) for i in range(8)], rows_per_batch=1).end()
        until(lambda: run.pool.held == 0)
        assert run.sender.counters()["answered"] == 0
        release.set()
        assert run.join()["answered"] == 8


def test_pipelined_requests_that_are_stuck_give_their_batches_back():
    release = threading.Event()

    def serve(peer):
        release.wait(10)
        ok(peer)

    with Server(serve) as server:
        run = Run([server.address], budget=1, connections=1, pipeline=16, rate=1e6).start()
        run.push(rows(12, 12), rows_per_batch=1).end()
        until(lambda: run.pool.held == 0)
        release.set()
        assert run.join()["answered"] == 12
        assert server.ids() == list(range(12))


# ---- dry run, guard, stop ----


@pytest.mark.parametrize("pace", [{"asap": True}, {"rate": 1e7}, {"speed": 1.0}])
def test_dry_run_opens_nothing(pace):
    with Server(ok) as server:
        data = [(request(i), 0, i, 0, 200, 5 * MS) for i in range(1000)]
        run = Run([server.address], dry_run=True, **pace).start().push(data).end()
        c = run.join()
        assert c["dropped"] == {"dry_run": 1000} and server.count == 0
        assert Histogram(run.sender.histograms()["production_us"]).percentile(0.5) in (5000, 5001, 5002, 5003)
    assert send([], [(request(1), 0, 1)], dry_run=True, **pace)["dropped"] == {"dry_run": 1}


def test_dry_run_is_paced():
    before = time.monotonic()
    send([], [(request(i), i * 10 * MS, i) for i in range(11)], dry_run=True, speed=1.0)
    assert time.monotonic() - before >= 0.1


def test_guard_a_request_captured_on_its_way_to_the_target():
    with Server(ok) as server:
        own = [(request(i), 0, i, 0, 0, -1, *server.address) for i in range(3)]
        other = [(request(i), 0, i, 0, 0, -1, server.address[0], 1) for i in range(3, 6)]
        c = send([server.address], own + other, guard=Guard())
        assert c["dropped"] == {"guard": 3} and sorted(server.ids()) == [3, 4, 5]
        c = send([server.address], own + other, guard=Guard(), dry_run=True)
        assert c["dropped"] == {"guard": 3, "dry_run": 3}
        c = send([server.address], own)
        assert c["answered"] == 3, "without a guard they go"


def test_stop_before_anything_came():
    run = Run([address("127.0.0.1", 9)]).start()
    time.sleep(0.02)
    before = time.monotonic()
    run.stop.set()
    run.end().join()
    assert time.monotonic() - before < 0.2


def test_stop_without_an_end_of_the_queue():
    """Ingest may never say that it ended: the sender does not wait for that, and what comes later is swept."""
    with Server(ok) as server:
        run = Run([server.address], speed=1.0).start().push([(request(i), i * 10**12, i) for i in range(5)])
        until(lambda: run.sender.counters()["answered"] == 1)
        before = time.monotonic()
        run.stop.set()
        run.thread.join(5)
        assert time.monotonic() - before < 0.2
        queued = Stop()
        run.stop, stop = queued, run.stop
        run.push([(request(9), 0, 9)])
        run.stop = stop
        assert run.join()["dropped"] == {"stopped": 5}


@pytest.mark.parametrize("stage", ["connecting", "no answer", "partial write", "waiting", "full speed", "backoff"])
def test_stop_at_any_stage(stage):
    release = threading.Event()

    def silent(peer):
        release.wait(10)

    serve = ok if stage == "full speed" else silent
    with Server(serve) as server:
        where, options, data = server.address, {"connections": 4}, rows(2000, 500)
        if stage == "connecting":
            where = address("192.0.2.1", 9)
        elif stage == "backoff":
            server.close()
        elif stage == "partial write":
            data = [(request(i, b"PUT", bytes(8 << 20)), 0, i) for i in range(4)]
        elif stage == "waiting":
            options["connections"] = 1
        run = Run([where], budget=256 << 20, **options).start().push(data)
        time.sleep(0.05)
        before = time.monotonic()
        run.stop.set()
        run.end()
        run.thread.join(5)
        assert time.monotonic() - before < 0.2
        c = run.join()
        release.set()
        assert set(c["dropped"]) | set(c["unanswered"]) <= {"stopped"}
        if stage in ("no answer", "waiting", "partial write"):
            assert c["unanswered"] == {"stopped": options["connections"]}


def test_guard_trips_in_the_middle():
    """`hit` is set by ingest; here by its test door: nothing new is sent, what is under way may be answered."""
    guard = Guard()
    with Server(ok) as server:
        run = Run([server.address], rate=1000.0, guard=guard).start().push(rows(5000, 50))
        until(lambda: run.sender.counters()["answered"] > 20)
        trip = pytest.importorskip("replay._fastpath").guard_trip_for_tests
        trip(guard)
        time.sleep(0.1)
        seen = run.sender.counters()["sent"]
        time.sleep(0.05)
        assert run.sender.counters()["sent"] == seen
        c = run.end().join()
        assert c["dropped"]["guard"] == 5000 - c["sent"] and c["sent"] == len(server.log)


# ---- telling ----


def test_status_change_and_production_time():
    def serve(peer):
        while got := peer.next():
            peer.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % [200, 404, 500][got[0] % 3])

    with Server(serve) as server:
        data = [(request(i), 0, i, 0, 200 if i < 9 else 0, MS) for i in range(12)]
        c = send([server.address], data)
        assert c["status"] == {200: 4, 404: 4, 500: 4}
        assert c["status_change"] == {"200>404": 3, "200>500": 3}
        assert (c["status_known"], c["status_same"]) == (9, 3)


def test_more_kinds_of_change_than_the_table_holds():
    def serve(peer):
        while got := peer.next():
            peer.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (200 + got[0] % 60))

    with Server(serve) as server:
        data = [(request(i), 0, i, 0, 300 + i // 60) for i in range(3000)]
        c = send([server.address], data, pipeline=32)
        assert len(c["status_change"]) == 1024
        assert sum(c["status_change"].values()) + c["status_change_other"] == 3000 == c["status_known"]


def test_outcomes_tell_each_request():
    def serve(peer):
        while got := peer.next():
            if got[0] == 3:
                return
            peer.send(OK_REPLY)

    outcomes = Outcomes(100)
    before = time.time_ns()
    with Server(serve) as server:
        send([server.address], [(request(i), 0, i, 0, 404, 7) for i in range(6)], outcomes=outcomes, connections=1)
    got = {one["target"]: one for one in outcomes.get()}
    assert outcomes.get() == [] and len(got) == 6
    for i in range(6):
        one = got[b"/r/%d" % i]
        assert one["data"] == request(i) and one["method"] == b"GET" and one["flow"] == i and one["status"] == 404
        assert before <= one["due_ns"] <= one["sent_ns"] <= one["end_ns"] <= time.time_ns()
        if i == 3:
            assert (one["outcome"], one["reason"], one["shadow_status"]) == ("unanswered", "closed", None)
        else:
            assert (one["outcome"], one["reason"], one["shadow_status"], one["address"]) == ("answered", None, 200, 0)
            assert one["sent_ns"] <= one["first_byte_ns"] <= one["end_ns"]
            assert one["bytes_received"] == len(OK_REPLY) and one["shadow_body_len"] == 2


def test_outcomes_never_hold_the_sender_up():
    outcomes = Outcomes(4)
    with Server(ok) as server:
        c = send([server.address], rows(100), outcomes=outcomes, budget=1)
        assert c["answered"] == 100 and c["outcomes_lost"] + len(outcomes.get()) == 100
        assert c["outcomes_lost"] >= 90
    outcomes = Outcomes(10)
    c = send([], rows(50), outcomes=outcomes, dry_run=True)
    assert c["outcomes_lost"] == 40 and {one["outcome"] for one in outcomes.get(99)} == {"dropped"}
    Outcomes(8)  # never read: freed


def test_counters_while_it_runs():
    with Server(ok) as server:
        run = Run([server.address], connections=8).start()
        feeder = threading.Thread(target=lambda: run.push(rows(20_000, 64)).end())
        feeder.start()
        seen = 0
        while run.thread.is_alive():
            c = run.sender.counters()
            assert c["taken"] >= c["sent"] >= seen and c["under_way"] >= 0 and c["waiting"] >= 0
            seen = c["sent"]
        feeder.join()
        assert run.join()["answered"] == 20_000


def test_wrong_arguments():
    queue, stop = Queue(Pool()), Stop()
    for wrong in (
        {"addresses": []},
        {"addresses": [(b"1234", 80)]},
        {"addresses": [address("127.0.0.1", 0)]},
        {"pipeline": 0},
        {"pipeline": 65},
        {"connections": 0},
        {"speed": 0.0},
        {"speed": float("nan")},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"timeout_ns": 0},
    ):
        options = {"addresses": [address("127.0.0.1", 1)], **wrong}
        with pytest.raises(ValueError):
            Sender(queue, options.pop("addresses"), stop=stop, **options)
    sender = Sender(queue, [address("127.0.0.1", 1)], stop=stop)
    with pytest.raises(RuntimeError):
        sender.sweep()
    queue.end()
    sender.run()
    check(sender.counters())
    with pytest.raises(RuntimeError):
        sender.run()
