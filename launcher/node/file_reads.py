"""How much of certain files a process tree has read, from outside: descriptors, mappings and byte counts in /proc.

Loaders read in one of three ways, and each leaves another trace:

- read(2): the descriptor's position moves (``fdinfo``). It also jumps where a file is sought through, so no more counts
  than the process has read at all (``rchar`` in ``io``).
- pread(2), O_DIRECT: the position stands still; ``rchar`` or ``read_bytes`` move while the file is open.
- mmap(2): pages of the mapping become present, in a warm page cache too (``pagemap``; large mappings are sampled).

A file of which a good part was seen read counts as read when it is closed, and so do the earlier files of a loader that
was seen to take them in order: between two looks it may have opened and closed several. With N processes that read all
files each, a file is read as far as the fastest has; so N processes that share the files count right, too. Where
nothing is seen to move, nothing is known.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.node.tree import PROC

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = 8  #: bytes of one page in ``pagemap``
WHOLE_UP_TO = 1 << 16  #: pages of a mapping that are all looked at; of larger ones SAMPLES blocks
SAMPLES = 128
GOOD_PART = 0.05  #: of a file: its header is less
ABREAST = 8  #: files that a loader in order may have open at a time
_ABSENT = bytes(range(128))  # the highest byte of an entry in ``pagemap`` whose bit "present" is not set


@dataclass(frozen=True)
class Reading:
    """``bytes_read`` of ``bytes_total``; None: unknown. ``open``: files that some process has open or mapped now."""

    bytes_read: int | None = None
    bytes_total: int | None = None
    open: int = 0


@dataclass
class _Held:
    """One file that one process has open or mapped. ``before``: bytes that the process had read until then."""

    before: int
    seen: int = 0
    mapped: bool = False


class FileReads:
    """``sizes``: by real path, in the order in which a loader would take the files."""

    def __init__(self, sizes: Mapping[str, int], proc: str = PROC) -> None:
        self.sizes = dict(sizes)
        self._proc = proc
        self._place = {path: place for place, path in enumerate(self.sizes)}
        self._folders = {os.path.dirname(path).encode() + b"/" for path in self.sizes}
        self._seen: dict[str, int] = {}  # bytes of each file that any process has read
        self._held: dict[tuple[int, str], _Held] = {}
        self._moved: dict[int, int] = {}  # bytes that each process has read, at the last look
        self._newest = -1  # place of the last file seen open so far
        self._in_order: bool | None = None  # None: unknown yet
        self._read = 0  # what was read never becomes less, though an earlier file may be opened anew

    def look(self, pids: Iterable[int]) -> Reading:
        """Look at these processes. It takes milliseconds, so no event loop should wait for it."""
        now: dict[tuple[int, str], _Held] = {}
        moved: dict[int, int] = {}
        for pid in pids:
            count = self._bytes_moved(pid)
            if count is None:
                continue
            moved[pid] = count
            for path, (position, present) in self._open_files(pid).items():
                held = self._held.get((pid, path)) or _Held(self._moved.get(pid, 0))
                held.mapped = present is not None
                held.seen = max(held.seen, min(position, max(0, count - held.before)), present or 0)
                now[pid, path] = held
            self._credit_unmoved(pid, count, now)
        self._closed(now, moved)
        self._ordered({path for _, path in now} - self._seen.keys())
        for (_, path), held in now.items():
            self._seen[path] = max(self._seen.get(path, 0), min(held.seen, self.sizes[path]))
        self._held, self._moved = now, moved
        return self._reading(len({path for _, path in now}))

    def _reading(self, is_open: int) -> Reading:
        read = sum(self._seen.values())
        if self._in_order:
            oldest = min((self._place[path] for _, path in self._held), default=self._newest + 1)
            passed = [path for path, place in self._place.items() if place < oldest]
            read += sum(self.sizes[path] - self._seen.get(path, 0) for path in passed)
        self._read = max(self._read, read)
        return Reading(self._read or None, sum(self.sizes.values()) or None, is_open)

    def _closed(self, now: Mapping[tuple[int, str], _Held], moved: Mapping[int, int]) -> None:
        """A living process has closed a file that it had read a good part of: it is done with it."""
        for (pid, path), held in self._held.items():
            if (pid, path) not in now and pid in moved and held.seen >= GOOD_PART * self.sizes[path]:
                self._seen[path] = self.sizes[path]

    def _ordered(self, new: set[str]) -> None:
        """Whether the files are taken in order: each look finds later ones than the look before."""
        if not new:
            return
        places = sorted(self._place[path] for path in new)
        if self._newest >= 0:
            if places[0] < self._newest - ABREAST:
                self._in_order = False
            elif places[0] > self._newest and self._in_order is None:
                self._in_order = True
        self._newest = max(self._newest, places[-1])

    def _credit_unmoved(self, pid: int, count: int, now: Mapping[tuple[int, str], _Held]) -> None:
        """What a process reads while its open files show nothing, it reads of them (pread, O_DIRECT)."""
        still = [
            (path, held) for (owner, path), held in now.items() if owner == pid and not held.seen and not held.mapped
        ]
        room = sum(self.sizes[path] for path, _ in still)
        if room:
            read = count - min(held.before for _, held in still)
            if read >= GOOD_PART * room:
                for path, held in still:
                    held.seen = min(self.sizes[path], self.sizes[path] * read // room)

    # ------------------------------------------------------------------------------------------------- from /proc

    def _bytes_moved(self, pid: int) -> int | None:
        """Bytes that a process has read, from the page cache or around it; None: it is gone, or not ours to look at."""
        try:
            text = self._text(pid, "io")
        except OSError:
            return None
        numbers = [int(n) for n in re.findall(rb"^(?:rchar|read_bytes): (\d+)", text, re.M)]
        return max(numbers, default=None)

    def _open_files(self, pid: int) -> dict[str, tuple[int, int | None]]:
        """Of each of our files that a process has open or mapped: the position, and the bytes that are present.

        The latter is None where it is not mapped.
        """
        found: dict[str, tuple[int, int | None]] = {}
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"{self._proc}/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = os.readlink(f"{self._proc}/{pid}/fd/{fd}")
                    if path in self.sizes:
                        position = re.match(rb"pos:\s+(\d+)", self._text(pid, f"fdinfo/{fd}"))
                        found[path] = (max(found.get(path, (0, None))[0], int(position[1]) if position else 0), None)
        with contextlib.suppress(OSError):
            maps = self._text(pid, "maps")
            if any(folder in maps for folder in self._folders):
                for path, ranges in self._mapped(maps).items():
                    present = sum(self._present(pid, first, last) for first, last in ranges)
                    found[path] = (found.get(path, (0, None))[0], present)
        return found

    def _mapped(self, maps: bytes) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for line in maps.splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and (path := os.fsdecode(fields[5])) in self.sizes:
                first, _, last = fields[0].partition(b"-")
                found.setdefault(path, []).append((int(first, 16), int(last, 16)))
        return found

    def _present(self, pid: int, first: int, last: int) -> int:
        """Bytes of an address range that are present in memory."""
        pages = (last - first) // PAGE
        start = first // PAGE
        block = PAGE // ENTRY
        if pages <= WHOLE_UP_TO:
            blocks = [(start + done, min(block, pages - done)) for done in range(0, pages, block)]
        else:
            blocks = [(start + pages * i // SAMPLES, block) for i in range(SAMPLES)]
        present = looked = 0
        try:
            file = os.open(f"{self._proc}/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            for page, count in blocks:
                entries = os.pread(file, count * ENTRY, page * ENTRY)[ENTRY - 1 :: ENTRY]
                present += len(entries.translate(None, _ABSENT))
                looked += len(entries)
        except OSError:
            return 0
        finally:
            os.close(file)
        return round((last - first) * present / looked) if looked else 0

    def _text(self, pid: int, name: str) -> bytes:
        with open(f"{self._proc}/{pid}/{name}", "rb", buffering=0) as file:
            parts = []
            while part := file.read(1 << 16):
                parts.append(part)
        return b"".join(parts)
