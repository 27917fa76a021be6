"""--auth-file and --credentials: what is sent in place of captured tokens, and nothing else changes."""

import json

import endtoend
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replay
from replay import credentials
from replay.errors import UsageError


def sent(capture, **options):
    """The heads as they would be sent."""
    return [batch.data(i) for batch in replay.read(capture, as_sent=True, **options).batches() for i in range(len(batch))]


def with_head(tmp_path, *extras):
    return endtoend.write(tmp_path / "a.pcap", endtoend.conversation([endtoend.request(b"/%d" % i, extra=extra) for i, extra in enumerate(extras)]))


ONE = [  # captured fields, token, as sent, reason
    (b"Authorization: Bearer old\r\n", "new", b"Authorization: Bearer new\r\n", "the captured scheme stays"),
    (b"Authorization: Bearer old\r\n", "Basic eDp5", b"Authorization: Basic eDp5\r\n", "a whole value"),
    (b"authorization:old\r\n", "new", b"authorization:new\r\n", "no scheme, name and blanks as captured"),
    (b"Authorization: \t Bearer  old \t\r\n", "new", b"Authorization: \t Bearer  new \t\r\n", "blanks stay"),
    (b"X: y\r\n", "new", b"X: y\r\n", "who had none gets none"),
    (b"Cookie: a=old\r\nX-Api-Key: old\r\n", "new", b"Cookie: a=old\r\nX-Api-Key: old\r\n", "other credentials stay"),
    (b"Authorization: \r\n", "new", b"Authorization: \r\n", "an empty one stays"),
]
MAP = [
    (b"Authorization: Bearer old\r\n", "old new", b"Authorization: Bearer new\r\n", "by the credentials"),
    (b"Authorization: Bearer old\r\n", "Bearer old -> Token new", b"Authorization: Token new\r\n", "by the whole value"),
    (b"Authorization: Bearer other\r\n", "old new\nx y", b"Authorization: Bearer other\r\n", "not in the map"),
    (b"Cookie: a=1; session=old; b=old2\r\n", "old new\nold2 newer", b"Cookie: a=1; session=new; b=newer\r\n", "cookies"),
    (b"Cookie: old; =old; a==old\r\n", "old new", b"Cookie: old; =new; a==old\r\n", "odd cookies"),
    (b"x-api-key: old\r\nX-Auth-Token: old\r\nX-Other: old\r\n", "old new", b"x-api-key: new\r\nX-Auth-Token: new\r\nX-Other: old\r\n", "known names only"),
    (b"Authorization: Bearer old\r\nAuthorization: Bearer old\r\n", "old new", b"Authorization: Bearer new\r\nAuthorization: Bearer new\r\n", "two of them"),
    (b"Authorization: Bearer\r\n old\r\n", "old new", b"Authorization: Bearer\r\n old\r\n", "a folded line is left alone"),
]


@pytest.mark.parametrize("captured, token, wanted, reason", ONE + MAP, ids=[row[3] for row in ONE + MAP])
def test_what_is_sent(captured, token, wanted, reason, tmp_path):
    (tmp_path / "auth").write_text("# tokens\n" + token + "\n")
    (head,) = sent(with_head(tmp_path, captured), auth_file=tmp_path / "auth")
    assert head == b"GET /0 HTTP/1.1\r\nHost: a.example-shadow\r\n" + wanted + b"\r\n"


TOKEN = st.text(alphabet="abcdefgh0123456789._-", min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TOKEN, TOKEN, min_size=2, max_size=12), st.lists(TOKEN, max_size=8))
def test_a_map_against_plain_python(tmp_path_factory, pairs, others):
    folder = tmp_path_factory.mktemp("auth")
    tokens = [*pairs, *others]
    (folder / "map").write_text(json.dumps(pairs))
    capture = with_head(folder, *(b"Authorization: Bearer %s\r\nCookie: a=%s\r\n" % (token.encode(), token.encode()) for token in tokens))
    for head, token in zip(sent(capture, auth_file=folder / "map"), tokens, strict=True):
        new = pairs.get(token, token).encode()
        assert b"Authorization: Bearer " + new + b"\r\n" in head and b"Cookie: a=" + new + b"\r\n" in head


def test_many_values_of_one_head_are_bounded(tmp_path):
    """Sixteen are replaced, the others go as captured: a head cannot be made to grow without bound."""
    (tmp_path / "auth").write_text(json.dumps({"o": "n" * 5000}))
    (head,) = sent(with_head(tmp_path, b"Cookie: " + b"; ".join(b"c%d=o" % i for i in range(1000)) + b"\r\n"), auth_file=tmp_path / "auth")
    assert head.count(b"n" * 5000) == 16 and head.count(b"=o") == 984


def test_they_are_counted_and_told(tmp_path):
    capture = with_head(tmp_path, b"Authorization: Bearer old\r\n", b"Authorization: Bearer x\r\n", b"", b"Cookie: s=old\r\n")
    (tmp_path / "auth").write_text("old new\nolder newer\n")
    report = endtoend.run(capture, "--auth-file", tmp_path / "auth")
    assert report["credentials"] == {"replaced": 2, "unknown": 1}
    assert "credentials: 2 replaced; 1 were not in the map and went as captured" in report["notes"]
    whole = json.dumps(report)
    assert "newer" not in whole and "old" not in whole.replace("older", "").replace(str(tmp_path), "")


def test_drop_sends_none(tmp_path):
    capture = with_head(tmp_path, b"Authorization: Bearer old\r\nCookie: a=b\r\nx-api-key: k\r\nX: y\r\n")
    assert sent(capture, credentials="drop") == [b"GET /0 HTTP/1.1\r\nHost: a.example-shadow\r\nX: y\r\n\r\n"]
    with endtoend.Sink(tmp_path / "log") as sink:
        endtoend.run(capture, "--to", sink.url, "--credentials", "drop", "--pace", "max")
        (row,) = sink.stop()
    assert not {name.lower() for name, _ in row["headers"]} & {name.decode() for name in credentials.HEADERS}
    wrong = endtoend.command("run", capture, "--credentials", "drop", "--auth-file", "x", code=2)
    assert b"leave one out" in wrong.stderr


FILES = [  # content, what is read, or a word of the error
    ("tok\n", (b"tok", ())), ("Bearer tok", (b"Bearer tok", ())), ("a.b.c d.e.f", (None, ((b"a.b.c", b"d.e.f"),))), ("a -> b", (None, ((b"a", b"b"),))),
    ("Basic x -> Bearer y\n# no\n\nc d", (None, ((b"Basic x", b"Bearer y"), (b"c", b"d")))), ('{"a": "b"}', (None, ((b"a", b"b"),))),
    ("", "nothing in it"), ("a b c\nd e", "line 1"), ("a b\nc", "line 2"), ("{", "no JSON"), ('{"a": 1}', "object of texts"), ("{}", "object of texts"), ("a\x01b", "control byte"),
    ("a ->", "line 1"),
]  # fmt: skip


@pytest.mark.parametrize("content, wanted", FILES, ids=[repr(row[0])[:20] for row in FILES])
def test_files(content, wanted, tmp_path):
    (tmp_path / "auth").write_text(content)
    if isinstance(wanted, str):
        with pytest.raises(UsageError, match=wanted):
            credentials.load(str(tmp_path / "auth"))
    else:
        assert credentials.load(str(tmp_path / "auth")) == wanted
    with pytest.raises(UsageError, match="No such file"):
        credentials.load(str(tmp_path / "nowhere"))
