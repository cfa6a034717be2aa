"""The line a minute about a start that takes long."""

from __future__ import annotations

import pytest

from launcher.agent.start_log import StartLog, words
from launcher.log import Log
from launcher.model import StartProgress

LOADING = StartProgress(
    "engine", "weights", 0.45, 12 << 30, 27 << 30, 210 << 20, 360, steps={"imports": 60, "weights": 60}
)
LOADED = StartProgress("engine", "graphs", 0.2, eta=30)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (
            {**dict.fromkeys(range(12), LOADED), **dict.fromkeys(range(12, 16), LOADING)},
            "starting: 12 of 16 ranks loaded, slowest rank 12 at 45 % of weights (12 GiB of 27 GiB, 210 MiB/s), "
            "about 6 min left",
        ),
        (
            {0: LOADED, 7: StartProgress(step="weights", ratio=0.1), 3: StartProgress(step="weights", ratio=0.2)},
            "starting: 1 of 16 ranks loaded, slowest rank 7 at 10 % of weights",
        ),
        ({0: LOADED, 1: LOADED}, "starting: 2 of 16 ranks loaded, slowest rank 0 at 20 % of graphs, about 30 s left"),
        (
            {3: StartProgress(step="imports", gate="GET http://a:1/h", answer="HTTP 503", steps={"imports": 61.2})},
            "starting: this rank in imports for 61 s, GET http://a:1/h: HTTP 503",
        ),
        ({3: StartProgress(step="quantize\n", steps={"quantize\n": 5})}, "starting: this rank in another step for 5 s"),
        (
            {0: StartProgress(step="weights", ratio=0.01, eta=20000)},
            "starting: this rank at 1 % of weights, about 5.6 h left",
        ),
    ],
)
def test_in_words(ranks: dict[int, StartProgress], said: str) -> None:
    assert words(ranks, 16) == said


def test_once_a_minute_while_it_starts() -> None:
    written: list[str] = []
    log = StartLog(Log(written.append, 0), 1)
    for second in range(200):
        log.say(20 <= second < 170, float(second), lambda: {0: LOADING})
    assert len(written) == 2 and all(
        "at 45 % of weights" in line and line.endswith("seconds=120\n") for line in written
    )
    log.say(True, 300.0, dict)
    log.say(True, 400.0, dict)
    assert len(written) == 2, "nothing is known: nothing is said"
