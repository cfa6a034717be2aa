"""What people read: log lines that nobody can forge, the failure block, the termination message, the status table."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher
from launcher.agent.reporting import waiting_for
from launcher.api.client import LARGEST
from launcher.api.failure import TERMINATION_BYTES, failure_block, termination_message
from launcher.cli.status import run, table
from launcher.errors import UnavailableError
from launcher.log import OWN, Log
from launcher.model import Cause, CauseKind

CAUSE = Cause(CauseKind.SIGNALLED, 3, "vllm was ended by SIGKILL", "vllm", 137, tuple(f"line {i}" for i in range(20)))


def test_a_line_carries_rank_and_epoch_and_quotes_what_needs_it() -> None:
    lines: list[str] = []
    log = Log(lines.append, 2)
    log.epoch = "7"
    log("member joined", {"address": "10.0.0.1", "why": 'a "word" more', "empty": "", "none": None})
    assert lines[0].endswith('launcher rank=2 epoch=7 member joined address=10.0.0.1 why="a \\"word\\" more"\n')


def test_text_of_a_peer_can_neither_forge_a_line_nor_move_the_cursor() -> None:
    lines: list[str] = []
    Log(lines.append, 0)("said\nnext launcher rank=9 exits", {"text": "a\x1b[2Jb\nc"})
    assert lines[0].count("\n") == 1
    assert "\x1b" not in lines[0]


def test_json_lines_are_json() -> None:
    lines: list[str] = []
    log = Log(lines.append, 1, "json")
    log("group runs", {"size": 2}, "warning")
    log.block(["launcher: first failure: x", "  | last line"])
    first, second = (json.loads(line) for line in lines)
    assert (first["event"], first["rank"], first["size"], first["level"]) == ("group runs", 1, 2, "warning")
    assert second["detail"] == ["  | last line"]


def test_what_is_missing_is_said_when_it_changes() -> None:
    lines: list[str] = []
    log = Log(lines.append, 0)
    for text in ("waiting for rank 1", "waiting for rank 1", "waiting for rank 2", "", "waiting for rank 2"):
        log.waiting(text)
    assert [line.partition("rank=0 ")[2].strip() for line in lines] == [
        "waiting for rank 1",
        "waiting for rank 2",
        "waiting for rank 2",
    ]


def test_the_next_wait_is_a_new_one() -> None:
    """An agent that goes on says that the wait is over, so the same words later are no reminder."""
    lines: list[str] = []
    log = Log(lines.append, 0)
    for text in ("waiting for rank 1 to stop", "", "", "waiting for rank 1 to stop"):
        log.waiting(text, {"at_most_s": 3.0} if text else None)
    assert len(lines) == 2 and all(line.endswith("waiting for rank 1 to stop at_most_s=3\n") for line in lines)


@pytest.mark.parametrize("name", OWN)
def test_no_field_of_an_event_takes_the_place_of_a_lines_own(name: str) -> None:
    lines: list[str] = []
    log = Log(lines.append, 1, "json")
    log.epoch = "7"
    log("member joined", {name: "other"})
    line = json.loads(lines[0])
    assert (line["rank"], line["epoch"], line["event"], line["level"]) == (1, "7", "member joined", "info")
    assert line[f"of_{name}"] == "other"


def test_events_name_their_fields_apart_from_a_lines_own() -> None:
    """What the machines note and the agent logs: the rank of a member is `member`, another epoch is `of_epoch`."""
    noted = re.compile(r"_note\([^)]*?\b(?:rank|epoch|time|event)=|\blog\([^)]*?\"(?:rank|epoch|time|event)\":", re.S)
    for path in sorted(Path(launcher.__file__).parent.rglob("*.py")):
        assert not noted.search(path.read_text()), path


def test_levels_below_the_chosen_one_are_left_out() -> None:
    lines: list[str] = []
    log = Log(lines.append, 0, "text", "warning")
    log("quiet")
    log("loud", level="error")
    assert len(lines) == 1


def test_the_failure_block_says_rank_process_code_and_last_lines() -> None:
    block = "\n".join(failure_block(CAUSE, "10 restarts are spent"))
    for words in ("rank 3: vllm was ended by SIGKILL", "exit code 137", "10 restarts are spent", "| line 19"):
        assert words in block


def test_the_termination_message_fits_and_keeps_the_newest_lines() -> None:
    long = Cause(CauseKind.EXITED, 0, "it ended", "vllm", 1, tuple(f"{i} " + "é" * 300 for i in range(20)))
    text = termination_message(long, 1, "no restart is allowed")
    assert len(text.encode()) <= TERMINATION_BYTES
    assert text.startswith("exit code 1: no restart is allowed\nfirst failure: rank 0: it ended\n")
    assert "19 é" in text and "\n  | 0 é" not in text
    assert termination_message(None, 0, "") == ""
    assert termination_message(None, 78, "bad model\ngive another") == "exit code 78: bad model\ngive another\n"


def test_the_termination_message_is_bounded_in_bytes_and_moves_no_cursor() -> None:
    """What it says may come from a peer or an engine."""
    assert len(termination_message(None, 69, "\u52a0" * 5000).encode()) <= TERMINATION_BYTES
    strange = Cause(CauseKind.EXITED, 0, "it\x1b[2J ended \udcff", "vllm", 1, ("\x1b[1A\x1b[2Ka tail \ud800",))
    text = termination_message(strange, 1, "told\x07")
    assert text.isascii() and all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[2J ended" in text and "a tail" in text


def test_the_first_failure_has_an_age() -> None:
    failure = {"rank": 1, "text": "x", "epoch": 3, "age_s": 250.0}
    assert "first failure (epoch 3, 4 min ago): rank 1: x" in table({"first_failure": failure})
    for age, words in ((3.2, "3 s ago"), (7200, "2 h ago"), (9e5, "10 d ago"), (None, "(epoch 3)"), ("x", "(epoch 3)")):
        assert words in table({"first_failure": {**failure, "age_s": age}})
    assert "first failure: rank 1: x" in table({"first_failure": {"rank": 1, "text": "x"}})


def test_the_autopsy_of_a_hang_stands_beside_the_failure() -> None:
    failure = {"rank": 0, "text": "no tokens", "autopsy": "rank 1 is in `forward`\x1b[2J, rank 0 waits in `recv`"}
    text = table({"first_failure": failure})
    assert "\n    autopsy: rank 1 is in `forward`" in text and "\x1b" not in text
    assert "autopsy" not in table({"first_failure": {**failure, "autopsy": None}})


def test_one_restart_is_one() -> None:
    assert "epoch 2, 1 restart  (asked" in table({"epoch": 2, "restarts": 1})
    assert "epoch 2, 0 restarts  (asked" in table({"epoch": 2, "restarts": 0})


def test_a_worker_says_who_knows_the_others() -> None:
    members = [{"rank": 0, "address": "10.0.0.1"}, {"rank": 2, "address": "10.0.0.3"}]
    hint = "only rank 0 knows the others: launcher status --url http://10.0.0.1:9471"
    assert hint in table({"rank": 2, "size": 3, "members": members})
    assert "only rank 0" not in table({"rank": 1, "size": 2, "members": members})
    assert "only rank 0" not in table({"rank": 0, "size": 3, "members": members})
    assert "only rank 0" not in table({"rank": 2, "size": 3, "members": [{"state": "unknown"}, members[1]]})


def test_a_wait_is_counted_down() -> None:
    now = time.monotonic()
    assert waiting_for("a pause", 41.0, now) == "a pause; 41 s left"
    assert waiting_for("a pause", 41.0, now - 100) == "a pause; 0 s left"
    assert waiting_for("rank 1", None, now) == "rank 1"
    assert waiting_for("", 3.0, now) == ""


def test_watch_says_what_is_wrong_as_it_is_and_goes_on() -> None:
    command = [str(Path(sys.executable).with_name("launcher")), "status", "--watch", "--url", "http://127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        lines = [watching.stdout.readline() for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
        assert lines == ["nobody answers: http://127.0.0.1:1/status: no connection (connection refused)\n"] * 2
        assert watching.stderr.read() == ""


def test_the_table_says_the_verdict_first_and_survives_strange_answers() -> None:
    status = {
        "phase": "gathering",
        "ready": False,
        "why": "not serving: gathering",
        "group": "ns/a",
        "rank": 0,
        "size": 2,
        "epoch": 4,
        "restarts": 3,
        "waiting_for": "waiting for rank 1",
        "first_failure": {"rank": 1, "text": "evil\x1b[2J", "tail": ["last words"]},
        "members": [{"rank": 0, "state": "waiting", "address": "a", "last_seen_s": 0.1, "engine_pids": [1, 2]}],
        "timeline": [{"phase": "gathering", "seconds": 1.0}],
    }
    text = table(status)
    assert text.splitlines()[0] == "ns/a: GATHERING  epoch 4, 3 restarts  (asked rank 0 of 2)"
    assert "waiting for rank 1" in text and "| last words" in text and "\x1b" not in text
    for strange in ({}, {"members": [1, None]}, {"first_failure": 3, "timeline": ["x"]}):
        assert isinstance(table(strange), str)


# ---------------------------------------------------------------------- what is read from a port is not to be trusted

_words = st.text(max_size=30)
_leaf = st.none() | st.booleans() | st.integers() | st.floats() | _words
_json = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words, inner, max_size=4))
_names = ("phase", "ready", "why", "epoch", "rank", "size", "group", "waiting_for", "note", "first_failure", "members")
_member = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("rank", "state", "address", "engine_pids", "last_seen_s"), _json)
)
_status = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*_names, "restarts", "timeline", "tail"), _json),
        "first_failure": st.fixed_dictionaries({}, optional=dict.fromkeys(("rank", "text", "tail", "autopsy"), _json)),
        "members": st.lists(_member | _json, max_size=60),
        "timeline": st.lists(
            st.fixed_dictionaries({}, optional={"phase": _json, "seconds": _json}) | _json, max_size=9
        ),
    },
)


@settings(deadline=None, max_examples=60)
@given(_json.filter(lambda v: isinstance(v, dict)) | _status)
def test_any_object_becomes_a_table_that_a_terminal_can_show(status: Any) -> None:
    text = table(status)
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert len(text) < 400_000


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200) | _json.map(lambda v: json.dumps(v).encode()) | st.just(b"[" * 100_000))
def test_any_answer_ends_in_a_table_or_in_words(body: bytes) -> None:
    with answering(body) as url:
        try:
            code = run(url, None, None, as_json=False, watch=False)
            assert code in (0, 1)
        except UnavailableError as error:
            assert "is not a launcher's" in error.message


def test_an_endless_answer_is_cut_off() -> None:
    with answering(b" " * (LARGEST + 1_000_000)) as url, pytest.raises(UnavailableError, match="not a launcher's"):
        run(url, None, None, as_json=False, watch=False)


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A port that answers one request with these bytes, as whoever may listen there."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn, suppress(OSError):
                conn.recv(65536)
                conn.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_the_block_folds_the_ends_that_followed() -> None:
    cause = Cause(CauseKind.EXITED, 2, "x ended with exit code 3", "x", 3, ("its words",))
    cause = replace(cause, rivals=(1, 3), because=("rank 0: y", "and 7 more"))
    assert failure_block(cause) == [
        "launcher: first failure: probably rank 2: x ended with exit code 3",
        "launcher:   process x, exit code 3",
        "launcher:   it may have been rank 1 or rank 3: they ended too close together to know which was first",
        "launcher:   last lines of rank 2:",
        "launcher:   | its words",
        "launcher:   8 more ranks ended because of it:",
        "launcher:   | rank 0: y",
        "launcher:   | and 7 more",
    ]
    said = replace(cause, rivals=(), because=("and \u0663 more",))  # whatever a peer sends
    assert failure_block(said)[-2] == "launcher:   1 more rank ended because of it:"
