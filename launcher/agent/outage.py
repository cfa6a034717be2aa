"""How long a group did not serve, said in one line when it does again: what closes the story of a failure."""

from __future__ import annotations

SERVES = ("running", "draining")


class Outage:
    """One pod's view. `enter` is called with every phase."""

    def __init__(self) -> None:
        self._served = False  # since this launcher began
        self._phase = ""
        self._since: float | None = None  # when it stopped serving, or its first start failed

    def enter(self, phase: str, failed: bool, now: float) -> str:
        """``failed``: the latest epoch is ending by a failure. What is to be said now; empty: nothing."""
        before, self._phase = self._phase, phase
        if phase == "running":
            since, self._since = self._since, None
            again, self._served = self._served, True
            if since is None:
                return ""
            return (
                f"serving again after {now - since:.1f} s" if again else f"serving {now - since:.1f} s after a failure"
            )
        stopped_serving = before in SERVES and phase not in SERVES
        if self._since is None and (stopped_serving or (phase == "stopping" and failed)):
            self._since = now
        return ""
