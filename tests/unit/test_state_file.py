"""--state-dir: what is read back, and that nothing in it can break a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.agent.state_file import KILLED, MOST_EPOCH, StateFile, epoch_from, epoch_text, place, shm_from
from launcher.group.messages import MAX_RANKS
from launcher.model import Cause, CauseKind, Epoch

FAILURE = Cause(CauseKind.EXITED, 1, "vllm ended with exit code 1", "vllm", 1, ("last line",))
LAST = (Epoch(7, "abc"), ("abc", "def"))


def test_what_was_remembered_is_read_by_the_next_start(tmp_path: Path) -> None:
    keeper = StateFile(str(tmp_path), 2)
    assert keeper.before.killed(2) is None, "a first start was not killed before"
    assert keeper.save(incarnation="abc", place="here", clean=False, last=LAST, charges=(9, 7), first_failure=FAILURE)
    assert keeper.save(first_epoch=6, first_at=1.7e9, gave_up_at=1.71e9)
    after = StateFile(str(tmp_path), 2).before
    assert (after.incarnation, after.place, after.last, after.charges) == ("abc", "here", LAST, (9, 7))
    assert (after.first_failure, after.first_epoch, after.first_at) == (FAILURE, 6, 1.7e9)
    assert after.gave_up_at == 1.71e9
    killed = after.killed(2)
    assert killed is not None and killed.text == KILLED and killed.rank == 2
    assert StateFile(str(tmp_path), 1).before.incarnation == "", "each rank has its own file"


def test_a_clean_end_is_no_kill(tmp_path: Path) -> None:
    StateFile(str(tmp_path), 0).save(incarnation="abc", clean=True)
    assert StateFile(str(tmp_path), 0).before.killed(0) is None


def test_a_launcher_that_handed_off_was_not_killed(tmp_path: Path) -> None:
    """Nor has it ended in good order: what its engine left is not known."""
    StateFile(str(tmp_path), 0).save(incarnation="abc", clean=False, handed_off=True)
    before = StateFile(str(tmp_path), 0).before
    assert before.killed(0) is None and not before.clean


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"incarnation": 1}', b"\xff\xfe", b"[" * 50000])
def test_an_unreadable_file_is_no_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "launcher-rank-0.json").write_bytes(content)
    assert StateFile(str(tmp_path), 0).before.incarnation == ""


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    keeper = StateFile(str(tmp_path / "file"), 0)
    assert not keeper.save(charges=(1,))
    assert "file" in keeper.trouble
    assert keeper.save(charges=(2,)), "said once"


def test_without_a_folder_nothing_is_written() -> None:
    keeper = StateFile(None, 0)
    assert keeper.save(charges=(1,)) and keeper.before.charges == ()


def test_epochs_survive_the_way_through_an_environment_variable() -> None:
    assert epoch_from(epoch_text(*LAST)) == LAST
    assert shm_from(epoch_text(*LAST)) is None
    shm = frozenset({("/dev/shm/a", 7), ("/dev/shm/b", 8)})
    text = epoch_text(*LAST, shm)
    assert (epoch_from(text), shm_from(text)) == (LAST, shm)
    many = epoch_text(*LAST, frozenset((f"/dev/shm/{n}", n) for n in range(10_000)))
    assert (epoch_from(many), shm_from(many), len(many) < MOST_EPOCH) == (LAST, None, True)


def test_the_largest_group_and_the_longest_last_words_are_read_back(tmp_path: Path) -> None:
    last = (Epoch(7, "abc"), tuple(f"{n:012x}" for n in range(MAX_RANKS)))
    words = tuple(400 * "\u52a0" for _ in range(40))
    failure = Cause(CauseKind.EXITED, 1, 1000 * "\u52a0", "vllm", 1, words)
    StateFile(str(tmp_path), 0).save(incarnation="abc", clean=False, last=last, first_failure=failure)
    before = StateFile(str(tmp_path), 0).before
    assert (before.last, before.first_failure) == (last, failure)


def test_the_place_tells_pods_apart() -> None:
    assert place("a-0", "10.0.0.1") != place("a-0", "10.0.0.2")
    assert place("a-0", "10.0.0.1") == place("a-0", "10.0.0.1") != ""
