"""replay inspect: what the card says against what is known of the capture, and the estimate of loss against the truth."""

import collections
import json
import random

import endtoend
import lossmake
import pcapmake
import pytest

from replay import _fastpath
from replay.engine import Listing
from replay.judge import card as cards
from replay.settings import Selection


def inspect(*arguments, code=0):
    return json.loads(endtoend.command("inspect", "--json", *arguments, code=code).stdout)


def said(*arguments):
    return endtoend.command("inspect", *arguments).stdout.decode()


# ---- loss --------------------------------------------------------------------------------------------------------------------


def sizes(truth):
    return collections.Counter(next(name for name, end in cards.SIZES if size < end) for _, size in truth)


@pytest.mark.parametrize("most", [12, 2], ids=["long connections", "short connections"])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.5])
def test_the_estimate_against_the_truth(loss, most, tmp_path):
    """Loss of 0, 1, 10 and 50 % in both directions: how many requests there were, and their mix by method and size, within 2 points at 50 %."""
    truth = lossmake.make(tmp_path / "a.pcap", loss, connections=800 if most == 12 else 3500, most=most)
    card = inspect(tmp_path / "a.pcap")
    estimated = card["requests"] + sum(card["incomplete"].values()) + card["lost_estimated"]
    assert estimated == card["loss"]["requests"]
    assert abs(card["loss"]["packets"] - loss) <= 0.005 + 0.05 * loss
    assert abs(estimated - len(truth)) <= (0 if loss == 0 else 0.01 + 0.08 * loss) * len(truth)
    bound = 0.02 if loss == 0.5 else 0.01
    for key, true in (("method", collections.Counter(method for method, _ in truth)), ("size", sizes(truth))):
        for name, count in true.items():
            assert abs(card["mix"][key][name]["estimated"] - count / len(truth)) <= bound, (key, name)
    if loss == 0.5:  # what is whole is far from it, and that is said
        assert abs(card["mix"]["method"]["POST"]["found"] - 0.22) > 0.05
        assert card["mix"]["distortion"]["points"] > 5
        assert any("points too" in hint for hint in card["hints"]) and any("larger buffer" in hint for hint in card["hints"])
    # A run says the same of it.
    report = endtoend.run(tmp_path / "a.pcap", "--dry-run")
    assert report["lost_estimated"] == card["lost_estimated"] and report["loss"]["packets"] == card["loss"]["packets"]
    if loss == 0:
        assert card["lost_estimated"] == 0 and card["mix"]["distortion"]["points"] == 0 and card["hints"] == []


def test_loss_without_replies_is_told_by_the_gaps(tmp_path):
    rng = random.Random(3)
    packets = []
    for number in range(300):
        requests = [endtoend.request(b"/%d" % i, extra=b"X: %s\r\n" % (b"y" * 80)) for i in range(12)]
        packets += [p for p in endtoend.conversation(requests, number) if p[1][26:30] == b"\x0a\1" + number.to_bytes(2, "big") and rng.random() >= 0.2]
    (tmp_path / "a.pcap").write_bytes(pcapmake.pcap(sorted(packets), nanoseconds=True))
    card = inspect(tmp_path / "a.pcap")
    assert card["shares"]["one_sided"] > 0.95 and card["loss"]["from"] == "gaps"
    with endtoend.Sink(tmp_path / "log") as sink:  # where nothing is sent, the length of a request is not known, nor is the rate
        report = endtoend.run(tmp_path / "a.pcap", "--to", sink.url, "--pace", "max")
    assert report["loss"]["from"] == "gaps" and abs(report["loss"]["packets"] - card["loss"]["packets"]) < 0.02
    assert 0.1 < card["loss"]["packets"] < 0.25
    assert 0.85 * 3600 <= card["loss"]["requests"] <= 1.05 * 3600


# ---- the card ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(path.name for path in (endtoend.ROOT / "captures").iterdir() if path.is_dir() and path.name != "demo"))
def test_the_card_counts_what_show_lists(case):
    captures = endtoend.folder(case)
    card, rows = inspect(*captures), endtoend.show("--incomplete", *captures)
    whole = [row for row in rows if row.get("complete", True)]
    assert card["requests"] == len(whole)
    assert sum(card["incomplete"].values()) == len(rows) - len(whole)
    assert sum(card["rate"]["counts"]) == len(whole)
    assert {code: n for code, n in card["status"].items()} == collections.Counter(str(row["status"]) for row in rows if row["status"])
    hosts = collections.Counter(row["host"] for row in rows if row["host"] is not None)
    assert all(card["hosts"][name] == count for name, count in hosts.most_common(5) if name in card["hosts"])
    assert card["packets"]["read"] > 0 and sum(card["links"].values()) >= card["packets"]["read"] - card["packets"]["skipped"].get("bpf", 0)
    assert endtoend.command("inspect", *captures).stdout


@pytest.mark.parametrize("words", [["--methods", "POST"], ["-p", "10"], ["--methods", "GET", "-p", "50"], []], ids=" ".join)
@pytest.mark.parametrize("case", ["demo", "packet-loss"])
def test_shares_are_of_what_was_selected(case, words):
    captures = endtoend.folder(case) if case != "demo" else [endtoend.DEMO]
    card, rows = inspect(*words, *captures), [row for row in endtoend.show("--incomplete", *words, *captures) if not words or row.get("complete", True)]
    assert card["listed"] == len(rows) > 0 and sum(card["rate"]["counts"]) <= len(rows)
    assert card["hosts"] == collections.Counter(row["host"] for row in rows if row["host"]) and sum(card["endpoints"].values()) == len(rows)
    assert card["shares"]["answered"] == sum(card["status"].values()) / len(rows)
    assert card["requests"] == inspect(*captures)["requests"] and card["lost_estimated"] == inspect(*captures)["lost_estimated"]
    if words:  # what is not whole is of every method, and no sample: it says nothing of the selected ones' mix
        assert card["mix"]["distortion"]["points"] == 0
    text = said(*words, *captures)
    assert ("sampled out" in text) == ("-p" in words) == bool(card["sampled_out"]) and ("filtered" in text) == ("--methods" in words)
    if words == ["--methods", "POST"] and case == "demo":
        assert "customer:8080 83.3 %" in text and "POST /orders 83.3 %" in text


def test_shares_and_tunnels():
    assert inspect(*endtoend.folder("tls"))["shares"]["tls"] == 1
    assert inspect(*endtoend.folder("http2"))["shares"]["http2"] > 0
    assert inspect(*endtoend.folder("vxlan"))["layers"]["vxlan"] > 0
    assert inspect(*endtoend.folder("vlan"))["layers"]["vlan"] > 0
    card = inspect(*endtoend.folder("mid-stream"))
    assert card["shares"]["mid_stream"] > 0.5 and card["shares"]["one_sided"] == 1
    assert inspect(*endtoend.folder("any-device"))["links"].keys() & {"linux_sll", "linux_sll2"}


def test_hints_say_what_to_do(tmp_path):
    assert "tcpdump -s 0" in said(*endtoend.folder("snaplen"))
    assert "behind the TLS end" in said(*endtoend.folder("tls"))
    assert "record both" in said(*endtoend.folder("mid-stream"))
    assert "hint:" not in said(endtoend.DEMO)
    (tmp_path / "empty.pcap").write_bytes(pcapmake.pcap([]))
    assert "there is no packet" in said(tmp_path / "empty.pcap")


def test_a_snap_length_is_measured(tmp_path):
    """A third of the bodies do not fit."""
    requests = [endtoend.request(b"/%d" % i, b"POST", bytes(1200 if i % 3 == 0 else 20)) for i in range(300)]
    packets = [p for k in range(30) for p in endtoend.conversation(requests[k::30], k)]
    (tmp_path / "a.pcap").write_bytes(pcapmake.pcap([(ts, data[:600], len(data)) for ts, data in sorted(packets)], nanoseconds=True))
    card = inspect(tmp_path / "a.pcap")
    assert card["incomplete"] == {"cut_by_snaplen": 100} and card["shares"]["bodies_cut"] == pytest.approx(1 / 3)
    assert "the snap length cut 33 % of the bodies: capture again with tcpdump -s 0" in card["hints"]
    assert card["mix"]["size"]["< 10 KiB"]["estimated"] == pytest.approx(1 / 3)


def test_a_capture_of_many_names_takes_bounded_memory():
    card = cards.Card(lambda method, target: target)
    row = {"method": b"GET", "body_len": 0, "incomplete": None, "head": b"GET / HTTP/1.1\r\n\r\n", "framing": "none", "status": 200}
    for i in range(60_000):
        card.add(row | {"ts_ns": i * 10**12, "host": b"%d.example" % i, "target": b"/%d" % i})
    assert len(card.hosts) <= 20_001 and len(card.endpoints) <= 20_001 and sum(card.times.values()) == 60_000


def test_repeated_segments_are_told(tmp_path):
    packets = endtoend.conversation([endtoend.request(b"/%d" % i) for i in range(20)])
    (tmp_path / "a.pcap").write_bytes(pcapmake.pcap(sorted(packets + [(ts + 1000, data) for ts, data in packets]), nanoseconds=True))
    card = inspect(tmp_path / "a.pcap")
    assert card["requests"] == 20 and card["shares"]["repeated"] > 0.3 and any("twice" in hint for hint in card["hints"])


def test_unreadable_captures_are_exit_4(tmp_path):
    inspect(endtoend.DEMO, tmp_path / "nowhere.pcap", code=4)


def test_groups_say_what_rows_say(tmp_path):
    """The card of a capture, counted by groups of a batch and row by row: the same; hosts, paths and sizes of all kinds, some cut."""
    rng = random.Random(9)
    talks = []
    for number in range(60):
        requests = []
        for i in range(30):
            body = b"x" * rng.choice([0, 0, 1, 1023, 1024, 20_000])
            host = rng.choice([b"a.example", b"b.example:80", b"", b"h" * 900, b"x%d.example" % i])
            requests.append(endtoend.request(rng.choice([b"/a/%d", b"/b?q=%d", b"/%d" + b"/long" * 80]) % i, rng.choice([b"GET", b"POST", b"PURGE"]), body, host=host))
        talks.append([packet for packet in endtoend.conversation(requests, number, start_ns=10**18 + number * 37_000_000) if rng.random() > 0.02])
    capture = endtoend.write(tmp_path / "a.pcap", *talks)
    selection = Selection()
    by_row, by_group = cards.Card(_fastpath.fold_endpoint), cards.Card(_fastpath.fold_endpoint)
    for row in (listing := Listing((str(capture),), selection, incomplete=True, digests=False)):
        by_row.add(row)
    for batch in (again := Listing((str(capture),), selection, incomplete=True, digests=False)).batches():
        groups, steps, others = _fastpath.tally(batch, [end for _, end in cards.SIZES], cards.STEP_NS)
        by_group.add_groups(groups, steps)
        for at in others:
            by_group.add(batch[at])
    one, two = by_row.as_dict(listing.counts), by_group.as_dict(again.counts)
    for key in ("hosts", "endpoints"):  # equal counts may stand in another order
        assert by_row.__getattribute__(key) == by_group.__getattribute__(key)
        one.pop(key), two.pop(key)
    assert one == two and one["incomplete"] and by_row.rows == by_group.rows > 1000
    with pytest.raises(ValueError, match="ends"):
        _fastpath.tally(batch, [], 1)
