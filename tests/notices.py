"""When a launcher first said that something is wrong, by the times in the logs of a group of pods."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from tests.real.launched import LaunchedGroup

# What a launcher says first when something is wrong, with the time before it.
_NOTICE = re.compile(
    r"^(\S+) launcher [^\n]*?(?:failure |epoch failed|stopping the engine|is silent|member silent|connection to the "
    r"leader closed|does not answer)",
    re.MULTILINE,
)


class Notices:
    """Reads what the launchers write, each line once; of pods that were replaced since, too."""

    def __init__(self, group: LaunchedGroup) -> None:
        self._group = group
        self._read: dict[Path, int] = {}
        self.read()

    def read(self) -> list[str]:
        """What was written since the last call, one text a file."""
        for process in list(self._group.processes.values()):
            self._read.setdefault(process.log, 0)
        found = []
        for log, before in self._read.items():
            try:
                with log.open("rb") as file:
                    file.seek(before)
                    text = file.read()
            except FileNotFoundError:
                continue  # a pod's folder goes with it
            self._read[log] = before + len(text)
            found.append(text.decode(errors="replace"))
        return found

    def first(self, since: float) -> float | None:
        """When (wall clock, to the millisecond) a launcher first said that something is wrong."""
        times = [
            datetime.fromisoformat(match[1].replace("Z", "+00:00")).timestamp()
            for text in self.read()
            for match in _NOTICE.finditer(text)
        ]
        return min((at for at in times if at >= since - 0.001), default=None)
