"""The wire: whatever arrives is a message within bounds, or Malformed."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.group import messages as m
from launcher.model import STEPS, Cause, CauseKind, Epoch, ProcessEvidence, StartProgress

WORDS = {**m.MEMBER_SAYS, **m.LEADER_SAYS}

word = st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=20)
text = st.text(st.characters(codec="utf-8"), max_size=80)
epoch = st.builds(Epoch, st.integers(0, m.MOST_EPOCHS), word)
seconds = st.floats(0, 1e9)
cause = st.builds(
    Cause,
    kind=st.sampled_from(CauseKind),
    rank=st.integers(0, m.MAX_RANKS),
    text=text,
    process=text,
    code=st.none() | st.integers(0, 255),
    tail=st.lists(text, max_size=5).map(tuple),
)
by_rank = st.lists(word.filter(bool), max_size=9).map(tuple)

progress = st.builds(
    StartProgress,
    stage=st.text(max_size=64),
    step=st.sampled_from(STEPS) | word,
    ratio=st.none() | st.floats(0, 1),
    bytes_read=st.none() | st.integers(0, m.MAX_BYTES),
    bytes_total=st.none() | st.integers(0, m.MAX_BYTES),
    bytes_per_second=st.none() | st.floats(0, 2.0**63),
    eta=st.none() | seconds,
    gate=text,
    answer=text,
    steps=st.dictionaries(word, seconds, max_size=m.MAX_STEPS),
)

EACH: tuple[st.SearchStrategy[Any], ...] = (
    st.builds(
        m.Hello,
        group=text,
        rank=st.integers(0, m.MAX_RANKS - 1),
        size=st.integers(1, m.MAX_RANKS),
        incarnation=word,
        address=word,
        name=word,
        fingerprint=st.dictionaries(word, text, max_size=9),
        last_epoch=st.none() | epoch,
        last_members=by_rank,
        quiet=seconds,
        replaces=st.lists(word, max_size=9).map(tuple),
        charges=st.lists(seconds, max_size=9).map(tuple),
        first_failure=st.none() | cause,
        died=st.none() | cause,
        attempt=st.integers(0, 2**53),
    ),
    st.builds(m.Ping, seq=st.integers(0, 2**53), echo=st.integers(0, 2**53)),
    st.builds(m.Answer, nonce=word),
    st.builds(m.Prepared, epoch=epoch),
    st.builds(m.Unable, epoch=epoch, cause=cause, retry=st.booleans()),
    st.builds(m.StageDone, epoch=epoch, stage=st.integers(0, 100)),
    st.builds(m.Failed, epoch=epoch, cause=cause),
    st.builds(m.Stopped, epoch=epoch, seconds=seconds),
    st.builds(m.Drained, epoch=epoch),
    st.builds(m.Leaving, grace=seconds),
    st.builds(
        m.Report,
        epoch=epoch,
        pids=st.lists(st.integers(1, 2**31), max_size=9).map(tuple),
        health=word,
        activity=st.integers(0, 2**63),
        tail=st.lists(text, max_size=9).map(tuple),
        progress=st.none() | progress,
    ),
    st.builds(
        m.Evidence,
        epoch=epoch,
        processes=st.lists(
            st.builds(
                ProcessEvidence,
                pid=st.integers(1, 2**31),
                name=text,
                state=st.sampled_from(("", "R", "S", "T")),
                wchan=word,
                syscall=word,
                frames=st.lists(text, max_size=5).map(tuple),
                text=st.lists(text, max_size=5).map(tuple),
            ),
            max_size=4,
        ).map(tuple),
    ),
    st.builds(m.Unread, text=text),
    st.builds(m.Accepted, leader=word, mark=st.integers(0, 2**53)),
    st.builds(m.Rejected, why=word, text=text, retry=seconds),
    st.builds(m.Ack, good=st.integers(0, 2**53), mark=st.integers(0, 2**53)),
    st.builds(m.Challenge, nonce=word, rival=text),
    st.builds(
        m.Prepare,
        epoch=epoch,
        incarnations=by_rank,
        addresses=by_rank,
        token=word,
        values=st.dictionaries(word, st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | text, max_size=9),
    ),
    st.builds(m.Start, epoch=epoch, stage=st.integers(0, 100)),
    st.builds(m.Running, epoch=epoch),
    st.builds(m.Drain, epoch=epoch, cause=cause, seconds=seconds),
    st.builds(m.Stop, epoch=epoch, cause=cause, grace=seconds, autopsy=seconds),
    st.builds(m.Abort, cause=cause, code=st.integers(0, 255), text=text),
    st.just(m.Goodbye()),
    st.builds(
        m.News,
        phase=word,
        text=text,
        present=st.integers(0, m.MAX_RANKS),
        first_failure=st.none() | cause,
        over=st.none() | epoch,
        lost=by_rank,
    ),
)


MESSAGES = st.one_of(*EACH)


@settings(max_examples=200, deadline=None)
@given(MESSAGES)
def test_what_is_said_is_what_is_heard(message: Any) -> None:
    assert m.decode(m.encode(message), WORDS) == message


@settings(max_examples=1, deadline=None)
@given(st.tuples(*EACH))
def test_every_word_is_tried(one_of_each: tuple[Any, ...]) -> None:
    assert {type(message) for message in one_of_each} == set(WORDS.values())
    assert len(WORDS) == len(m.MEMBER_SAYS) + len(m.LEADER_SAYS), "no word means two things"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(WORDS)), st.data())
def test_any_value_in_any_field_is_a_message_or_malformed(name: str, data: st.DataObject) -> None:
    body = {f.name: data.draw(anything) for f in fields(WORDS[name])}
    _decoded_or_malformed(json.dumps({"is": name, **body}))


@settings(max_examples=150, deadline=None)
@given(MESSAGES, st.data())
def test_a_message_with_one_field_spoilt(message: Any, data: st.DataObject) -> None:
    body = json.loads(m.encode(message))
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(anything)
    _decoded_or_malformed(json.dumps(body))


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_bytes(raw: str | bytes) -> None:
    _decoded_or_malformed(raw)


def _decoded_or_malformed(raw: str | bytes) -> None:
    try:
        message = m.decode(raw, WORDS)
    except m.Malformed as error:
        assert len(str(error)) < 300, "what a stranger sent is never repeated in full"
        return
    assert len(m.encode(message)) <= len(raw) * 7 + 2000, "reading it makes it no larger"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "null",
        "[]",
        "{",
        '{"is": "hello"}',
        '{"is": ["hello"]}',
        '{"is": "shutdown"}',
        '{"is": "ping", "seq": true}',
        '{"is": "ping", "seq": -1}',
        '{"is": "ping", "seq": 1e3}',
        '{"is": "leaving", "grace": NaN}',
        '{"is": "leaving", "grace": Infinity}',
        '{"is": "leaving", "grace": -1}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": ["a"], "addresses": "1"}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": "a  b", "addresses": "1"}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": "a b ", "addresses": "1"}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": "a\\nb", "addresses": "1"}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": "a", "addresses": "' + "x" * 65 + '"}',
        '{"is": "prepare", "epoch": [1, "a"], "incarnations": "a' + " b" * m.MAX_RANKS + '", "addresses": "1"}',
        '{"is": "prepared", "epoch": [1]}',
        '{"is": "prepared", "epoch": [1, "with space"]}',
        '{"is": "failed", "epoch": [1, "a"], "cause": {"kind": "bored", "rank": 0, "text": ""}}',
        "[" * 100_000,
        '{"is": "ping", "seq": ' + "9" * 10_000 + "}",
    ],
)
def test_what_is_no_message(raw: str) -> None:
    with pytest.raises(m.Malformed):
        m.decode(raw, WORDS)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_one_word_for_each_rank_and_nothing_that_spoils_a_log(raw: str) -> None:
    fine = raw.isprintable() and (not raw or all(raw.split(" ")))
    body = {"is": "prepare", "epoch": [1, "a"], "incarnations": raw, "addresses": ""}
    try:
        assert m.decode(json.dumps(body), WORDS).incarnations == tuple(raw.split())
        assert fine
    except m.Malformed:
        assert not fine


def test_a_side_hears_only_what_the_other_may_say() -> None:
    with pytest.raises(m.Malformed):
        m.decode(m.encode(m.Goodbye()), m.MEMBER_SAYS)
    with pytest.raises(m.Malformed):
        m.decode(m.encode(m.Ping(1)), m.LEADER_SAYS)


def test_a_newer_peer_may_say_more() -> None:
    assert m.decode('{"is": "ping", "seq": 3, "mood": "good"}', m.MEMBER_SAYS) == m.Ping(3)


def test_long_words_are_cut_where_they_are_ours_and_refused_where_they_are_not() -> None:
    long = Cause(CauseKind.EXITED, 1, "x" * 5000, "p" * 500, 1, tuple("t" * 900 for _ in range(90)))
    heard = m.decode(m.encode(m.Failed(Epoch(1, "a"), long)), m.MEMBER_SAYS)
    assert (len(heard.cause.text), len(heard.cause.process)) == (1000, 100)
    assert 40 < len(heard.cause.tail) < m.TAIL_BYTES / 500 and set(map(len, heard.cause.tail)) == {500}
    many = Cause(CauseKind.EXITED, 1, "x", tail=tuple(map(str, range(1000))))
    assert m.decode(m.encode(m.Failed(Epoch(1, "a"), many)), m.MEMBER_SAYS).cause.tail == many.tail[-m.TAIL_LINES :]
    with pytest.raises(m.Malformed):
        m.decode(json.dumps({"is": "hello", "group": "g" * 601, "rank": 0, "size": 1}), m.MEMBER_SAYS)


def test_the_largest_messages_fit_the_link() -> None:
    """1,024 members on IPv6 addresses; the longest hello; failures with all their last lines."""
    incarnations, addresses = ("0123456789abcdef",) * 1024, ("fd00:1234:5678:9abc:def0:1234:5678:9abc",) * 1024
    assert len(m.encode(m.Prepare(Epoch(m.MOST_EPOCHS, "x" * 32), incarnations, addresses))) < m.MAX_FROM_LEADER / 2
    failure = Cause(CauseKind.EXITED, 1023, "t" * 1000, "p" * 100, 255, tuple("l" * 500 for _ in range(240)))
    hello = m.Hello(
        "g" * 600,
        1023,
        1024,
        "i" * 32,
        "a" * 64,
        "n" * 300,
        {f"fact{n}": "v" * 100 for n in range(40)},
        last_epoch=Epoch(m.MOST_EPOCHS, "x" * 32),
        last_members=tuple("i" * 16 for _ in range(1024)),
        replaces=tuple("r" * 32 for _ in range(64)),
        first_failure=failure,
        died=failure,
    )
    assert len(m.encode(hello)) < m.MAX_FROM_MEMBER


@pytest.mark.parametrize(
    ("replaces", "dead"),
    [
        ((), ()),
        (("a", "b"), ("a", "b")),
        (("a", "a-2", "b"), ("a-2", "b")),  # taken over, lived on under a new name, and was killed
        (("a", "c"), ("a",)),  # c was taken over, and says so as c-2
        (("a-x", "a-", "-", "a-²"), ("a-x", "a-", "-", "a-²")),  # no names of ours
    ],
)
def test_a_launcher_that_was_taken_over_is_not_dead(replaces: tuple[str, ...], dead: tuple[str, ...]) -> None:
    assert m.Hello("g", 1, 2, "c-2", "10.0.0.2", replaces=replaces).dead == dead


def test_every_field_has_a_check() -> None:
    for kind in WORDS.values():
        for f in fields(kind):
            assert callable(f.metadata["check"]), f"{kind.__name__}.{f.name}"
            if f.default is not MISSING:
                write = f.metadata["write"] or (lambda value: value)
                assert f.metadata["check"](write(f.default)) == f.default


def test_bytes_that_are_no_utf_8_pass_both_ways() -> None:
    """Lone surrogates, as Python has them of argv; next to a backslash and to what is UTF-8."""
    said = m.Rejected("x", "\\\udcff \u00e9 \ud800 \\ud800")
    text = m.encode(said)
    text.encode()
    assert m.decode(text, m.LEADER_SAYS) == said


def test_the_progress_of_an_older_and_of_a_newer_peer() -> None:
    """An older member sends none, a newer one may send more: the rest is read, and an unknown step is a step."""
    report = {"is": "report", "epoch": [3, "l"]}
    assert m.decode(json.dumps(report), m.MEMBER_SAYS).progress is None
    newer = {**report, "progress": {"step": "quantize", "ratio": 0.5, "watts": [700], "steps": {"quantize": 2}}}
    read = m.decode(json.dumps(newer), m.MEMBER_SAYS)
    assert read.progress == StartProgress(step="quantize", ratio=0.5, steps={"quantize": 2.0})
    assert m.decode(json.dumps({**report, "progress": {}}), m.MEMBER_SAYS).progress == StartProgress()
    # What a leader of an older release reads: it ignores the field that it does not know.
    assert json.loads(m.encode(m.Report(Epoch(3, "l"), progress=StartProgress(step="weights"))))["progress"]["step"]


def test_progress_is_sent_within_bounds() -> None:
    progress = StartProgress(
        "s" * 99, "weights", 1.0, 2**60, 2**60, 1e12, 1e12, "g" * 999, "a" * 999, {"weights": 1e12}
    )
    read = m.decode(m.encode(m.Report(Epoch(3, "l"), progress=progress)), m.MEMBER_SAYS).progress
    assert (len(read.stage), len(read.gate), len(read.answer)) == (64, 300, 300)
    assert (read.eta, read.steps) == (m.MAX_SECONDS, {"weights": m.MAX_SECONDS})
