"""The pure parts of the reference engine: options, tokens, frames and greetings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.reference.chain import ACCEPTED, REFUSED, ChainFrames, frame, greeting, hello
from launcher.reference.options import CHOICES, HELP, OptionError, Options, parse, usage
from launcher.reference.tokens import WORDS, expected_text

ROOT = Path(__file__).resolve().parents[2]


def test_every_option_has_help_and_a_type_and_a_default() -> None:
    named = {name.replace("-", "_") for name in HELP}
    assert named == set(Options.__annotations__)
    assert all(hasattr(Options, name) for name in named)
    assert all(getattr(Options, name.replace("-", "_")) in allowed for name, allowed in CHOICES.items())
    assert all(f"--{name}" in usage() for name in HELP)


def test_options_from_the_command_line_go_over_variables() -> None:
    environ = {"REFERENCE_TOKEN_SECONDS": "0.5", "REFERENCE_IGNORE_TERM": "true", "REFERENCE_RANK": "9", "OTHER": "1"}
    read = parse(["--size=2", "--rank", "1", "--peers", "a,b", "--token-seconds", "0.1", "--crash-ranks=1,3"], environ)
    assert (read.rank, read.size, read.peers, read.token_seconds) == (1, 2, ("a", "b"), 0.1)
    assert read.ignore_term and read.fault_ranks == (1, 3) and read.faulty
    assert read.names == ("reference",)
    flags = parse(["--ignore-term", "--startup-quiet=0", "--model=-x"], {"REFERENCE_STARTUP_QUIET": "1"})
    assert (flags.ignore_term, flags.startup_quiet, flags.names) == (True, False, ("-x",))
    assert not parse(["--fault-ranks", "1"], {}).faulty
    assert not parse(["--fault-epochs", "2"], {}).faulty
    assert parse(["--fault-epochs", "2", "--epoch", "2"], {}).faulty


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--token-second", "1"], "did you mean --token-seconds"),
        (["--token-seconds"], "--token-seconds: expected one argument"),
        (["--token-seconds", "fast"], "--token-seconds: 'fast' is not a number"),
        (["--token-seconds", "-1"], "--token-seconds: '-1' is not a number, 0 or more"),
        (["--token-seconds", "nan"], "'nan' is not a number"),
        (["--max-num-seqs", "1.5"], "'1.5' is not a whole number"),
        (["--ignore-term=maybe"], "--ignore-term: 'maybe' is not true or false"),
        (["--crash-ranks", "1,b"], "--crash-ranks: '1,b' is not a comma-separated list of whole numbers"),
        (["--on-peer-loss", "cry"], "--on-peer-loss: invalid choice: 'cry' (choose from "),
        (["serve"], "'serve' is not an option"),
        (["--tok", "1"], "--tok is not an option"),
        (["--help"], "--help is not an option"),
        (["--", "--rank", "0"], "-- is not an option"),
        (["--shm-bytes", "1" * 5000], "--shm-bytes: '111"),
        (["--rank", "1"], "--rank 1 is outside of --size 1"),
        (["--size", "2"], "--peers has 1 addresses, --size is 2"),
    ],
)
def test_options_that_cannot_be_read_say_why(argv: list[str], said: str) -> None:
    with pytest.raises(OptionError) as error:
        parse(argv, {})
    assert said in str(error.value)


def test_a_variable_that_cannot_be_read_is_named() -> None:
    with pytest.raises(OptionError, match="REFERENCE_CRASH_AFTER: 'soon'"):
        parse([], {"REFERENCE_CRASH_AFTER": "soon"})


def test_text_depends_on_prompt_and_size_and_is_long_enough_to_tell() -> None:
    texts = {expected_text(p, 12, size) for p in ("", "a", "b") for size in (1, 2, 3, 4)}
    assert len(texts) == 12
    assert expected_text("a", 5, 4) == expected_text("a", 5, 2, workers=2)
    assert expected_text("a", 12, 3).startswith(expected_text("a", 5, 3))
    assert len(set(expected_text("a", 2000, 1).split())) == len(WORDS) == len(set(WORDS))


@given(
    batches=st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=5), max_size=5),
    cut=st.integers(1, 40),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(batches: list[list[int]], cut: int) -> None:
    data = b"".join(frame(1, step, states) for step, states in enumerate(batches))
    frames, found = ChainFrames(), []
    for start in range(0, len(data), cut):
        frames.feed(data[start : start + cut])
        while (received := frames.next()) is not None:
            found.append(received)
    assert found == [(1, step, states) for step, states in enumerate(batches)]


def test_only_the_rank_before_with_the_same_token_is_accepted() -> None:
    def rank(number: int, token: str = "1.abc") -> Options:
        peers = ",".join("abc")
        return parse(["--rank", str(number), "--size", "3", "--peers", peers, "--epoch-token", token], {})

    said = hello(rank(1))
    assert greeting(said, rank(2)) == ACCEPTED
    assert greeting(hello(rank(2)), rank(0)) == ACCEPTED
    assert greeting(said, rank(0)) == greeting(said, rank(2, "2.abc")) == REFUSED
    assert [greeting(said[:n], rank(2)) for n in range(len(said))] == [None] * len(said)
    assert greeting(b"GET / HTTP/1.1\r\n\r\n", rank(2)) == greeting(b"GE", rank(2)) == REFUSED


def test_the_program_imports_little() -> None:
    """Hundreds of tests start it: none of the heavy modules of the standard library, nothing of anybody else.

    argparse is not one of them: a start takes up to 1.3 x the CPU time with it; asyncio would more than double it.
    """
    code = (
        "import launcher.reference.leader, sys;"
        "heavy = {'asyncio', 'typing', 'dataclasses', 'inspect', 'logging', 'ssl', 'subprocess',"
        " 'threading', 'pathlib', 'hashlib', 'http.client', 'click', 'psutil'};"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r});"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", path + code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_help_and_errors_of_the_program() -> None:
    argv = [sys.executable, "-I", "-S", str(ROOT / "launcher/reference/__main__.py")]
    assert "--crash-after" in subprocess.run([*argv, "--help"], capture_output=True, text=True, check=True).stdout
    wrong = subprocess.run([*argv, "--wrong"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (64, "reference: --wrong is not an option of the reference engine\n")
