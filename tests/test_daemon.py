"""What a daemon owes those who run it: its log, word to the service manager, a watched configuration, signals."""

import contextlib
import io
import json
import logging
import os
import signal
import socket
import threading
import time

import endtoend
import pytest

from replay.cli.again import Words
from replay.cli.run import run as run_command
from replay.daemon import log as logs
from replay.daemon.log import DaemonLog
from replay.daemon.notify import Notifier
from replay.daemon.service import Reloads, Service
from replay.daemon.watch import Watch
from replay.engine import Health
from replay.errors import UsageError

# ---- log -----------------------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def logged(say, form="text", **more):
    """The lines after `say(logger)`."""
    stream = io.StringIO()
    with DaemonLog(stream, form, **more) as log:
        say(logging.getLogger("replay.tap"))
    return stream.getvalue().splitlines(), log


def test_lines_as_text_and_json():
    lines, log = logged(lambda logger: logger.warning("breaker of %s opened: %s", "http://a:1", "timeout"))
    assert lines[0].endswith(" warning tap: breaker of http://a:1 opened: timeout") and lines[0][:2] == "20"
    lines, log = logged(lambda logger: logger.warning("breaker of %s opened", "http://a:1"), "json")
    row = json.loads(lines[0])
    assert (row["level"], row["part"], row["message"]) == ("warning", "tap", "breaker of http://a:1 opened") and row["time"].endswith("Z")
    assert log.counts["warning"] == 1


def test_a_flood_of_one_kind_is_counted_and_others_come_through():
    clock = Clock()
    stream = io.StringIO()
    with DaemonLog(stream, "json", clock=clock) as log:
        logger = logging.getLogger("replay.tap")
        for at in range(5000):
            logger.warning("connection to %s failed", at)
        logger.error("another thing")
        clock.now += 3 * logs.EVERY_S
        logger.warning("connection to %s failed", "x")
        for at in range(50):
            logger.info("late %s", at)
        clock.now += 3 * logs.EVERY_S
        log.flush()
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    failed = [row for row in rows if row["message"].startswith("connection")]
    assert len(failed) == logs.BURST + 1 and failed[-1]["left_out"] == 5000 - logs.BURST
    assert sum(row["message"] == "another thing" for row in rows) == 1
    assert rows[-1]["message"] == "late 49" and rows[-1]["left_out"] == 50 - logs.BURST - 1
    assert log.counts["warning"] == 5001 and log.left_out == 5000 + 50 - 2 * logs.BURST


def test_messages_that_differ_in_numbers_alone_are_of_one_kind():
    lines, _ = logged(lambda logger: [logger.info("http://a:80: %s ms, attempt " + str(at), at) for at in range(100)])
    assert len(lines) == logs.BURST + 1


def test_what_was_left_out_is_told_at_the_end():
    lines, _ = logged(lambda logger: [logger.info("again %s", at) for at in range(logs.BURST + 7)])
    assert len(lines) == logs.BURST + 1 and lines[-1].endswith("again 16 (6 more like it left out)")


def test_kinds_without_end_stay_bounded():
    clock = Clock()
    stream = io.StringIO()
    with DaemonLog(stream, clock=clock) as log:
        for at in range(5000):
            logging.getLogger("replay.tap").info("a message of its own: " + "".join(chr(97 + int(digit)) for digit in str(at)))
        assert len(log._kinds) <= logs.KINDS + 8


@pytest.mark.parametrize(
    "secret",
    ["http://user:hunter2@shadow:80/", "Authorization: Bearer hunter2", "authorization=Basic hunter2", "Cookie: sid=hunter2", "X-Api-Key: hunter2", 'db_password="hunter2"', "access_token=hunter2"],
)
@pytest.mark.parametrize("form", logs.FORMATS)
def test_credentials_are_masked(secret, form):
    lines, _ = logged(lambda logger: logger.error("target said %s", secret), form)
    assert "hunter2" not in lines[0] and "***" in lines[0]


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_line_stays_a_line(form):
    evil = "a\nfake: line\r\x1b[31mred\x00\u2028\udc80end"
    lines, _ = logged(lambda logger: logger.error("it said %s", evil), form)
    assert len(lines) == 1 and "\x1b" not in lines[0] and "\x00" not in lines[0] and "end" in lines[0]
    lines, _ = logged(lambda logger: logger.error("long %s", "x" * 100_000), form)
    assert len(lines[0]) < logs.LONGEST + 200


def test_a_bad_message_is_still_a_line():
    lines, _ = logged(lambda logger: logger.error("%d apples", "no"))
    assert lines[0].endswith("%d apples")


def test_the_journal_gets_priorities(monkeypatch):
    reading, writing = os.pipe()
    found = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    with os.fdopen(writing, "w") as stream, DaemonLog(stream):
        logging.getLogger("replay.tap").error("it broke")
    with os.fdopen(reading) as stream:
        assert stream.read() == "<3>tap: it broke\n"


def test_nobody_reads_the_log_and_nobody_waits():
    """A pipe that is full: whoever logs goes on, lines beyond the bound are counted."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as stream:
        log = DaemonLog(stream, level=logging.DEBUG)
        logger = logging.getLogger("replay.tap")
        for at in range(4000):
            logger.debug(f"{at} " + "x" * 200)
        assert log.counts["debug"] == 4000
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reading, 65536), b"")])
        reader.start()
        log.close()
    reader.join()
    os.close(reading)


def test_logging_is_put_back():
    before = logging.getLogger("replay").handlers[:], logging.getLogger("replay").propagate
    logged(lambda logger: None)
    assert (logging.getLogger("replay").handlers, logging.getLogger("replay").propagate) == before


# ---- service manager -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path):
    """(a datagram socket as the service manager has it, the environment that it gives)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.settimeout(5)
        yield receiving, {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "1"}


def said(receiving):
    return dict(line.split("=", 1) for line in receiving.recv(4096).decode().split("\n"))


def test_word_to_the_manager(manager):
    receiving, environment = manager
    notifier = Notifier(environment)
    assert environment == {"OTHER": "1"}, "what it started would speak to the manager too"
    notifier.ready("capturing\non eth0")
    assert said(receiving) == {"READY": "1", "STATUS": "capturing on eth0"}
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    word = said(receiving)
    assert word["RELOADING"] == "1" and before <= int(word["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    notifier.status("5 found")
    assert said(receiving) == {"STATUS": "5 found"}
    notifier.stopping()
    assert said(receiving) == {"STOPPING": "1", "STATUS": "draining"}
    notifier.close()


def test_watchdog_beats_at_half_the_time_and_only_while_alive(manager):
    receiving, environment = manager
    notifier = Notifier(environment)
    assert notifier.interval_s == pytest.approx(0.1)
    for _ in range(50):
        notifier.alive(lambda: True)
    assert said(receiving) == {"WATCHDOG": "1"}
    receiving.setblocking(False)
    time.sleep(0.12)
    notifier.alive(lambda: False)
    with pytest.raises(BlockingIOError):
        receiving.recv(100)
    notifier.alive(lambda: True)
    assert said(receiving) == {"WATCHDOG": "1"}
    notifier.close()


def test_abstract_socket_and_a_watchdog_for_somebody_else():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind("")  # the kernel chooses an abstract one
        name = "@" + receiving.getsockname()[1:].decode()
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
        assert notifier.interval_s is None
        notifier.ready("x")
        receiving.settimeout(5)
        assert said(receiving)["READY"] == "1"
        notifier.close()


def test_no_manager_a_gone_one_and_a_new_one(tmp_path):
    Notifier({}).ready("x")
    path = tmp_path / "notify"
    early = Notifier({"NOTIFY_SOCKET": str(path)})
    early.ready("nobody is there")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
            receiving.bind(str(path))
            receiving.settimeout(5)
            early.ready("now")
            assert said(receiving)["STATUS"] == "now"
        path.unlink()
        early.ready("gone")
    early.close()


def test_a_manager_that_does_not_read_holds_nobody_up(manager):
    _, environment = manager
    notifier = Notifier(environment)
    for at in range(3000):
        notifier.status(f"{at} " + "x" * 500)
    notifier.stopping()  # said once: it waits a moment, and gives up
    notifier.close()


# ---- watched files ---------------------------------------------------------------------------------------------------------------


def test_a_folder_of_policies_is_watched(tmp_path):
    """Its files' contents, those that come and go, and folders in it; not what no policy is read from."""
    folder = tmp_path / "policies"
    (folder / "more").mkdir(parents=True)
    (folder / "a.yaml").write_text("one")
    watch = Watch([str(folder)])
    assert watch.unreadable() == [] and settled(watch) == []
    changes = [
        lambda: (folder / "a.yaml").write_text("two"),
        lambda: (folder / "more" / "b.json").write_text("new"),
        lambda: (folder / "more" / "b.json").rename(folder / "more" / "c.yml"),
        lambda: (folder / "a.yaml").unlink(),
    ]
    for change in changes:
        change()
        assert settled(watch) == [str(folder)] and settled(watch) == []
    (folder / "more" / "c.yml").touch()
    (folder / "README").write_text("no policy")
    (folder / ".hidden.yaml").write_text("an editor's")
    assert settled(watch) == []
    (folder / "more" / "d.yaml").symlink_to("nowhere")
    assert Watch([str(folder)]).unreadable() == [str(folder)]


def settled(watch):
    """Two looks, as a second apart."""
    return watch.changed() + watch.changed()


def config_map(folder, text, old=None):
    """Lays files as a kubelet does: ..data is a link to a folder with a date, swapped by a rename."""
    fresh = folder / f"..{time.monotonic_ns()}"
    fresh.mkdir()
    (fresh / "tap.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(fresh.name)
    os.rename(folder / "..data_tmp", folder / "..data")
    if not (folder / "tap.yaml").is_symlink():
        (folder / "tap.yaml").symlink_to("..data/tap.yaml")
    if old:
        (old / "tap.yaml").unlink()
        old.rmdir()
    return fresh


def test_a_config_map_that_is_swapped(tmp_path):
    first = config_map(tmp_path, "percent: 1\n")
    path = str(tmp_path / "tap.yaml")
    watch = Watch([path])
    assert settled(watch) == []
    second = config_map(tmp_path, "percent: 2\n", old=first)
    assert settled(watch) == [path] and settled(watch) == []
    config_map(tmp_path, "percent: 2\n", old=second)
    assert settled(watch) == [], "the same text is no change"


def test_a_change_far_behind_in_a_large_file_and_a_pipe(tmp_path):
    large, pipe = tmp_path / "tokens", tmp_path / "pipe"
    large.write_bytes(bytes(17 << 20))
    os.mkfifo(pipe)
    watch = Watch([str(large), str(pipe)])  # nobody writes into the pipe: to open it would take for ever
    assert settled(watch) == [] and watch.unreadable() == []
    with open(large, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(pipe)
    assert settled(watch) == [str(large)]


def test_rename_write_in_place_touch_and_loss(tmp_path):
    path = tmp_path / "tap.yaml"
    path.write_text("a: 1\n")
    watch = Watch([str(path)])
    os.utime(path, (1, 1))
    assert settled(watch) == []
    (tmp_path / "new").write_text("a: 2\n")
    os.replace(tmp_path / "new", path)
    assert settled(watch) == [str(path)]
    with open(path, "a") as file:
        file.write("b: 3\n")
    assert settled(watch) == [str(path)]
    path.unlink()
    assert settled(watch) == [str(path)] and settled(watch) == []
    path.write_text("a: 9\n")
    assert settled(watch) == [str(path)]


def test_a_file_that_is_still_being_written_is_left_alone(tmp_path):
    path = tmp_path / "tap.yaml"
    path.write_text("")
    watch = Watch([str(path)])
    with open(path, "w") as file:
        for at in range(5):
            file.write(f"key-{at}: 1\n")
            file.flush()
            assert watch.changed() == []
    assert watch.changed() == [str(path)]


def test_other_files_from_now_on(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("1")
    watch = Watch([str(a)])
    watch.watch([str(a), str(b)])
    a.write_text("22")
    b.write_text("22")
    assert sorted(settled(watch)) == [str(a), str(b)]
    watch.watch([str(b)])
    a.write_text("333")
    assert settled(watch) == []


# ---- options read anew -----------------------------------------------------------------------------------------------------------


MAY_CHANGE = ("percent", "methods", "path", "to", "set_header", "since")


@pytest.fixture
def words(tmp_path):
    """(a configuration, the command line of a run that names it, parsed)."""
    config = tmp_path / "tap.yaml"
    config.write_text("percent: 1\nto: http://127.0.0.1:1\n")
    arguments = ["x.pcap", "--config", str(config), "--methods", "GET", "-H", f"@{tmp_path}/headers"]
    with run_command.make_context("run", list(arguments)) as ctx:
        return config, Words(ctx, arguments, MAY_CHANGE)


def test_a_changed_configuration_is_applied(words, tmp_path):
    config, line = words
    assert line.files() == [str(config), f"{tmp_path}/headers"]
    got = []
    config.write_text("percent: 2.5\nto: [http://127.0.0.1:1, http://127.0.0.1:2]\npath: ^/a\n")
    said = line.again(got.append)
    assert got[0]["percent"] == 25_000 and got[0]["to"] == ("http://127.0.0.1:1", "http://127.0.0.1:2") and got[0]["methods"] == ("GET",)
    assert said == "--to http://127.0.0.1:1, http://127.0.0.1:2, --percent 2.5 %, --path ^/a"
    assert line.again(got.append) == "the same options, their files read anew"


@pytest.mark.parametrize("moment", ["2026-12-31T00:00:00Z", "2026-12-31T23:59:59.25Z", "1969-12-31T23:59:59.5Z"])
def test_a_moment_is_told_as_a_date(words, moment):
    config, line = words
    config.write_text(f"percent: 1\nto: http://127.0.0.1:1\nsince: {moment!r}\n")
    assert line.again(lambda _: None) == f"--since {moment}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("percent: 200\n", "line 1: percent: .*more than 100"),
        ("percent: 1\npercnt: 2\n", "line 2: unknown key 'percnt'; did you mean 'percent'"),
        ("percent: [\n", "no YAML"),
        ("percent: 1\nconnections: 7\n", "--connections: cannot change while it runs"),
        (None, "No such file"),
    ],
)
def test_a_bad_configuration_changes_nothing(words, text, message):
    config, line = words
    before = dict(line.given)
    if text is None:
        config.unlink()
    else:
        config.write_text(text)
    with pytest.raises(UsageError, match=message):
        line.again(lambda _: pytest.fail("it was applied"))
    assert line.given == before
    config.write_text("percent: 3\nto: http://127.0.0.1:1\n")
    assert "--percent 3 %" in line.again(lambda _: None)


def test_what_cannot_be_applied_changes_nothing(words):
    config, line = words
    config.write_text("percent: 7\nto: http://127.0.0.1:1\n")

    def refuse(_):
        raise UsageError("--to: no")

    with pytest.raises(UsageError, match="--to: no"):
        line.again(refuse)
    assert line.given["percent"] == 10_000
    assert "--percent 7 %" in line.again(lambda _: None)


def test_a_name_that_is_no_option_is_a_bug():
    with run_command.make_context("run", ["x.pcap"]) as ctx, pytest.raises(ValueError, match="no options of run"):
        Words(ctx, [], ["percentage"])


# ---- the main loop ---------------------------------------------------------------------------------------------------------------


class Engine:
    """Runs until it is told to end; says what it was asked."""

    def __init__(self, drains_s=0.0):
        self.asked, self.state, self._end, self.drains_s = [], Health(True, True), None, drains_s

    @property
    def running(self):
        return self._end is None or time.monotonic() < self._end

    def snapshot(self):
        return {"ingest": None, "senders": [], "targets": []}

    def histograms(self):
        return []

    def health(self):
        return self.state

    def wait(self, seconds):
        pass

    def drain(self):
        self.asked.append("drain")
        self._end = time.monotonic() + self.drains_s

    def stop(self):
        self.asked.append("stop")
        self._end = 0.0


@contextlib.contextmanager
def driven(*steps):
    """Sends signals and the like from a thread, one step after the other, while the main loop runs."""
    failures = []

    def drive():
        try:
            for step in steps:
                os.kill(os.getpid(), step) if isinstance(step, signal.Signals) else step()
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=drive)
    thread.start()
    yield
    thread.join()
    if failures:
        raise failures[0]


def test_service_from_start_to_end(manager, tmp_path, monkeypatch):
    """READY, a reload by signal, one by a changed file, a refused one, the ledger, STOPPING; handlers are put back."""
    monkeypatch.setattr("replay.daemon.service.POLL_S", 0.02)
    receiving, environment = manager
    config = tmp_path / "tap.yaml"
    config.write_text("1")
    values, lines, rotated = [], [], []

    def again():
        if config.read_text() == "bad":
            raise UsageError("tap.yaml: bad")
        values.append(config.read_text())
        return f"value {values[-1]}"

    engine, reloads = Engine(), Reloads(again, lambda: [str(config)])
    service = Service(
        engine, reloads=reloads, notifier=Notifier(environment), ledger=lambda seen: ["found 0"], tell=lines.append, rotate=lambda: rotated.append(1), status=lambda seen: "fine"
    )
    words = []

    def heard(key):
        def wait():
            while True:
                word = said(receiving)
                words.append(word)
                if key in word:
                    return

        return wait

    def until(condition):
        return lambda: endtoend.wait_until(condition, "the main loop")

    before = signal.getsignal(signal.SIGHUP)
    stream = io.StringIO()
    with (
        DaemonLog(stream, "json"),
        driven(
            heard("READY"),
            signal.SIGHUP, heard("RELOADING"), heard("READY"), until(lambda: values == ["1"]),
            lambda: config.write_text("2"), heard("RELOADING"), heard("READY"), until(lambda: values == ["1", "2"]),
            lambda: config.write_text("bad"), heard("RELOADING"), heard("READY"), until(lambda: reloads.refused == 1),
            lambda: config.write_text("3"), heard("READY"), until(lambda: values == ["1", "2", "3"]),
            signal.SIGUSR1, until(lambda: lines == ["found 0"]),
            heard("WATCHDOG"),
            signal.SIGTERM, heard("STOPPING"),
        ),
    ):  # fmt: skip
        service.run()
    assert engine.asked == ["drain"] and rotated == [1]
    assert service.counts() | {"reload_time_s": 0} == {"reloads_applied": 3, "reloads_refused": 1, "reload_good": True, "reload_time_s": 0, "ending": True}
    assert signal.getsignal(signal.SIGHUP) == before and signal.set_wakeup_fd(-1) == -1
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["message"] for row in rows if row["level"] == "error"] == ["the new configuration is refused, the old one goes on: tap.yaml: bad"]


def test_a_second_signal_ends_at_once():
    engine = Engine(drains_s=60)
    with driven(lambda: time.sleep(0.1), signal.SIGTERM, lambda: endtoend.wait_until(lambda: engine.asked, "the drain"), signal.SIGINT):
        Service(engine).run()
    assert engine.asked == ["drain", "stop"]


def test_no_sign_of_life_from_a_hung_engine(manager):
    receiving, environment = manager
    engine = Engine()
    engine.state = Health(False, False, "hung")
    with driven(lambda: time.sleep(0.5), signal.SIGTERM):
        Service(engine, notifier=Notifier(environment)).run()
    receiving.setblocking(False)
    words = []
    with contextlib.suppress(BlockingIOError):
        while True:
            words.append(said(receiving))
    assert not [word for word in words if "WATCHDOG" in word] and "READY" in words[0] and "STOPPING" in words[-1]


def test_a_reload_without_a_configuration_is_told():
    stream = io.StringIO()
    with DaemonLog(stream), driven(lambda: time.sleep(0.1), signal.SIGHUP, lambda: time.sleep(0.1), signal.SIGTERM):
        Service(Engine()).run()
    assert "SIGHUP: there is no --config to read anew" in stream.getvalue()


def test_a_log_rotation_without_a_configuration_is_no_warning():
    stream, rotated = io.StringIO(), []
    with DaemonLog(stream), driven(lambda: time.sleep(0.1), signal.SIGHUP, lambda: endtoend.wait_until(lambda: rotated, "a rotation"), signal.SIGTERM):
        Service(Engine(), rotate=lambda: rotated.append(1)).run()
    assert rotated == [1] and "SIGHUP: recordings and logs go on" in stream.getvalue() and "warning" not in stream.getvalue()


def test_changes_are_logged(monkeypatch):
    monkeypatch.setattr("replay.daemon.service.POLL_S", 0.01)
    stream = io.StringIO()
    with DaemonLog(stream), driven(lambda: time.sleep(0.3), signal.SIGTERM):
        Service(Engine(), changes=lambda seen: [(logging.WARNING, "eth%s went away", (1,))]).run()
    assert "daemon: eth1 went away" in stream.getvalue()
