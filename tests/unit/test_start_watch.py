"""How far a start is, from lines and from what the kernel says about files, and nothing that neither of them says."""

from __future__ import annotations

import re

import pytest

from launcher.agent.start_watch import StartWatch, seconds_of, share_of
from launcher.model import COMPILE, GRAPHS, REST, WEIGHTS, Plan, Stage, StartProgress, StepLine
from launcher.node.file_reads import Reading

LINES = (
    StepLine(WEIGHTS, r"loading: (?P<percent>\d+)%"),
    StepLine(WEIGHTS, r"loaded in (?P<took>[\d.]+) s"),
    StepLine(COMPILE, r"compiling"),
    StepLine(GRAPHS, r"captured (?P<done>\d+)/(?P<total>\d+)"),
    StepLine(GRAPHS, r"capture took (?P<took>[\d.]+)"),
    StepLine(REST, r"warm"),
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Started:
    """A start whose only stage has begun."""

    def __init__(self, *stages: str) -> None:
        self.clock, self.told = Clock(), 0
        self.watch = StartWatch(self._changed, self.clock)
        self.watch.begin()
        names = stages or ("engine",)
        self.watch.planned(Plan(0, tuple(Stage(name) for name in names), step_lines=LINES))
        self.watch.stage(0)

    def _changed(self) -> None:
        self.told += 1

    @property
    def progress(self) -> StartProgress:
        found = self.watch.progress("GET http://a/health", "HTTP 503")
        assert found is not None
        return found

    def hear(self, at: float, *lines: str) -> StartProgress:
        self.clock.now = 100.0 + at
        self.watch.hear(lines)
        return self.progress

    def see(self, at: float, read: int | None, is_open: int = 1, total: int | None = 1000) -> StartProgress:
        self.clock.now = 100.0 + at
        self.watch.see(Reading(read, total, is_open))
        return self.progress


def test_the_engines_lines_alone() -> None:
    start = Started()
    assert (start.progress.step, start.progress.ratio, start.progress.stage) == ("imports", None, "engine")
    assert (start.progress.gate, start.progress.answer) == ("GET http://a/health", "HTTP 503")
    assert start.hear(10, "\x1b[32mINFO\x1b[0m loading: 0%").step == "weights"
    assert start.hear(20, "loading: 25%", "something else").ratio == 0.25
    assert start.progress.eta == 30.0
    done = start.hear(50, "loaded in 40.0 s")
    assert (done.step, done.ratio, done.eta) == ("rest", None, None)
    assert start.hear(60, "compiling").step == "compile"
    found = start.hear(70, "captured 5/20")
    assert (found.step, found.ratio) == ("graphs", 0.25)
    assert start.hear(75, "warm").step == "rest"
    start.clock.now = 180.0
    assert start.progress.steps == {
        "preparing": 0, "imports": 10, "weights": 40, "rest": 15, "compile": 10, "graphs": 5,
    }  # fmt: skip
    assert start.progress.seconds == 80
    assert start.told == 6, "the leader hears of each step at once"
    start.watch.end()
    assert start.watch.progress("", "") is None


def test_only_the_end_of_a_step_was_told() -> None:
    """Ranks without a progress bar say how long it took."""
    start = Started()
    assert start.hear(50, "capture took 20.0").step == "rest"
    assert start.progress.steps == {"preparing": 0, "imports": 30, "graphs": 20, "rest": 0}
    start = Started()
    start.hear(50, "capture took 99999")
    assert start.progress.steps["graphs"] == 50, "no step begins before the engine did"


def test_the_kernel_alone() -> None:
    start = Started()
    assert start.see(1, None, 0).step == "imports"
    assert start.see(10, None, 1).step == "imports", "a file that is open, and nothing of it was read"
    start.see(11, 100)
    found = start.see(16, 600)
    assert (found.step, found.ratio, found.bytes_read, found.bytes_total) == ("weights", 0.6, 600, 1000)
    assert (found.bytes_per_second, found.eta) == (100.0, 4.0)
    assert start.see(17, 650, 0).step == "weights", "the next file may follow"
    assert start.see(18, 700, 1).step == "weights"
    assert start.see(28, 700, 1).step == "weights", "a store that is stuck is still being waited for"
    assert start.see(29, 1000, 0).step == "weights"
    found = start.see(33, 1000, 0)
    assert (found.step, found.ratio, found.bytes_read) == ("rest", None, 1000)
    assert (found.steps["imports"], found.steps["weights"]) == (11, 17), "until a file was last seen open"


def test_a_file_that_stays_mapped_is_read_once_it_was() -> None:
    start = Started()
    start.see(1, 100)
    start.see(2, 990)
    assert start.see(3, 990).step == "weights"
    assert start.see(9, 990).step == "rest"


def test_a_line_of_one_process_does_not_end_the_step_of_the_others() -> None:
    start = Started()
    start.see(1, 100)
    start.see(2, 300)
    assert start.hear(2.5, "loaded in 2 s").step == "weights"
    assert start.see(3, 600).ratio == 0.6
    assert start.see(4, 600).step == "weights"
    assert start.see(8, 600).step == "rest", "nothing moved any more, and the engine says that it has loaded"


def test_both_sources_are_lower_bounds() -> None:
    start = Started()
    start.hear(1, "loading: 0%")
    assert start.see(2, 300).ratio == 0.3
    assert start.hear(3, "loading: 50%").ratio == 0.5
    assert start.see(4, 800).ratio == 0.8


def test_nothing_that_moves_is_no_percent() -> None:
    start = Started()
    start.hear(1, "compiling")
    for at in range(2, 60):
        found = start.see(at, None, 1)
        assert (found.ratio, found.bytes_read, found.bytes_per_second, found.eta) == (None, None, None, None)


def test_once_it_compiles_a_file_that_is_read_again_is_no_step_back() -> None:
    start = Started()
    start.see(1, 500)
    start.hear(2, "compiling")
    assert not start.watch.loads
    assert start.see(3, 900).step == "compile"
    assert start.hear(4, "warm", "loading: 10%").step == "weights", "but the engine may say so (a draft model)"


def test_stages_before_the_last_one_prepare() -> None:
    start = Started("ray", "engine")
    assert (start.progress.stage, start.progress.step) == ("ray", "preparing")
    assert start.hear(5, "loading: 50%").step == "preparing"
    start.watch.stage(1)
    assert (start.progress.stage, start.progress.step) == ("engine", "imports")


def test_a_new_start_knows_nothing_of_the_one_before() -> None:
    start = Started()
    start.see(1, 500)
    start.hear(2, "compiling")
    start.watch.begin()
    assert start.progress == StartProgress(
        step="preparing", gate="GET http://a/health", answer="HTTP 503", steps={"preparing": 0.0}
    )
    assert start.watch.bytes_read is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("p=45", 0.45),
        ("p=100.0", 1.0),
        ("p=0", 0.0),
        ("p=101", None),
        ("p=", None),
        ("p=" + "9" * 400, None),
        ("p=x", None),
        ("d=1 t=4", 0.25),
        ("d=1 t=0", None),
        ("d=5 t=4", None),
        ("d=1", None),
        ("d=1 t=" + "9" * 400, 0.0),
        ("", None),
    ],
)
def test_shares_that_lines_tell(text: str, share: float | None) -> None:
    found = re.search(r"(?:p=(?P<percent>\S*))?(?:d=(?P<done>\S*))?(?: t=(?P<total>\S*))?", text)
    assert found is not None
    told = share_of(found)
    assert told == share if share is None else told is not None and abs(told - share) < 1e-9


@pytest.mark.parametrize(("text", "seconds"), [("1.5", 1.5), ("", None), ("inf", None), ("nan", None), ("-1", None)])
def test_seconds_that_lines_tell(text: str, seconds: float | None) -> None:
    found = re.search(r"(?P<took>.*)", text)
    assert found is not None
    assert seconds_of(found) == seconds
