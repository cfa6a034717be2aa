"""One line a minute about a start that takes long: how many ranks have loaded, which is the slowest, what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from launcher.common.text import size_text
from launcher.log import Log
from launcher.model import IMPORTS, PREPARING, STEPS, WEIGHTS, StartProgress

EVERY = 60.0  #: seconds
NOT_LOADED = (PREPARING, IMPORTS, WEIGHTS)


class StartLog:
    """One pod's."""

    def __init__(self, log: Log, size: int) -> None:
        self._log = log
        self._size = size
        self._said: float | None = None  # None: nothing starts

    def say(self, starting: bool, now: float, ranks: Callable[[], Mapping[int, StartProgress]]) -> None:
        """Called after every event. ``ranks``: how far each rank is, as far as this pod knows."""
        if not starting:
            self._said = None
        elif self._said is None:
            self._said = now
        elif now - self._said >= EVERY:
            self._said = now
            known = ranks()
            if known:
                self._log(words(known, self._size), {"seconds": round(max(it.seconds for it in known.values()))})


def words(ranks: Mapping[int, StartProgress], size: int) -> str:
    """ "starting: 12 of 16 ranks loaded, slowest rank 7 at 45 % of weights (12 GiB of 27 GiB), about 6 min left"."""
    slowest = min(sorted(ranks), key=lambda rank: _how_far(ranks[rank]))
    it = ranks[slowest]
    parts = []
    who = "this rank"
    if len(ranks) > 1:
        loaded = sum(one.step not in NOT_LOADED for one in ranks.values())
        parts.append(f"{loaded} of {size} ranks loaded")
        who = f"slowest rank {slowest}"
    parts.append(f"{who} {_where(it)}")
    if it.eta is not None:
        parts.append(f"about {_about(it.eta)} left")
    if it.gate and it.answer and it.ratio is None:
        parts.append(f"{it.gate}: {it.answer}")
    return f"starting: {', '.join(parts)}"


def _how_far(it: StartProgress) -> tuple[int, float]:
    """Its step, and how much of that is done. A step that this release does not know comes late."""
    return STEPS.index(it.step) if it.step in STEPS else len(STEPS), it.ratio or 0.0


def _where(it: StartProgress) -> str:
    """ "at 45 % of weights (12 GiB of 27 GiB, 210 MiB/s)", or "in imports for 40 s"."""
    step = it.step if it.step in STEPS else "another step"
    if it.ratio is None:
        return f"in {step} for {it.steps.get(it.step, 0.0):.0f} s"
    more = ""
    if it.step == WEIGHTS and it.bytes_read is not None and it.bytes_total is not None:
        rate = f", {size_text(it.bytes_per_second)}/s" if it.bytes_per_second else ""
        more = f" ({size_text(it.bytes_read)} of {size_text(it.bytes_total)}{rate})"
    return f"at {it.ratio * 100:.0f} % of {step}{more}"


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
