"""After the group has given up: who has heard why, and how long the leader stays for those that have not."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.group import messages as m

HEARING_SECONDS = 2.0  #: for members to hear that the group has given up, and to hang up


class LastWords:
    """``abort`` is what every rank must hear."""

    def __init__(self, abort: m.Abort, size: int, now: float) -> None:
        self.abort = abort
        self._since = now
        self._untold = set(range(1, size))  # ranks that may not have heard why
        self._late: dict[int, int] = {}  # connections that came after the group gave up -> rank

    def came(self, conn: int, rank: int) -> None:
        """A rank comes to hear why. It hangs up when it has."""
        self._late[conn] = rank

    def closed(self, conn: int, seated: int | None, why: str) -> None:
        """A connection ended, perhaps that of rank ``seated``. If in good order (no ``why``), the rank has heard."""
        rank = self._late.pop(conn, seated)
        if rank is not None and not why:
            self._untold.discard(rank)

    def has_heard(self, rank: int) -> bool:
        """Whether a launcher of this rank has heard why, and has hung up."""
        return rank not in self._untold

    def awaited(self, seated: Iterable[int], linger: float, now: float) -> bool:
        """Whether the leader must stay.

        It waits up to HEARING_SECONDS for present members to hang up, which they do when they exit, and up to
        ``linger`` for the others and those whose connection broke: only this launcher can tell them.
        """
        here = {*seated, *self._late.values()} & self._untold
        waited = now - self._since
        return bool(here and waited < HEARING_SECONDS) or bool(self._untold and waited < linger)
