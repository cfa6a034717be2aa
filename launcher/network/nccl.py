"""NCCL's settings as NCCL reads them: its configuration files, its numbers, and its lists of names.

Read from NCCL (misc/param.cc: files and numbers; misc/utils.cc: parseStringList, matchIfList). A file's setting holds
only where the environment has none, so whatever the launcher put into the environment would overrule it: what stands
in a file counts as set by the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONF_FILE = "NCCL_CONF_FILE"
SYSTEM_FILE = "/etc/nccl.conf"
MOST_BYTES = 1 << 20
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")


def file_settings(env: Mapping[str, str], system: str = SYSTEM_FILE) -> dict[str, tuple[str, str]]:
    """Name -> (value, path) of what NCCL takes from its files: NCCL_CONF_FILE, else ~/.nccl.conf; and /etc/nccl.conf.

    Of the environment only NCCL_CONF_FILE and HOME are looked at.
    """
    home = env.get("HOME") or _own_home()
    first = env.get(CONF_FILE) or (os.path.join(home, ".nccl.conf") if home else "")
    found: dict[str, tuple[str, str]] = {}
    for path in filter(None, (first, system)):
        for name, value in _entries(path):
            found.setdefault(name, (value, path))
    return found


def _own_home() -> str:
    """This user's home folder by the user database, which older releases ask; empty where it is not known there."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _entries(path: str) -> Iterable[tuple[str, str]]:
    """``NAME=value`` lines, the value as it stands; lines that begin with # are comments. No file: nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold the start
    except OSError:
        return
    try:
        text = os.read(fd, MOST_BYTES).decode("utf-8", "replace")
    except OSError:  # a folder
        return
    finally:
        os.close(fd)
    for line in text.split("\n"):
        name, equals, value = line.removesuffix("\r").partition("=")
        if equals and name.startswith("NCCL_"):
            yield name, value


def number(text: str) -> int:
    """``strtoll(text, NULL, 0)``: leading blanks, a sign, hexadecimal and octal; 0 where there is no number at all."""
    match = _NUMBER.match(text)
    if match is None:
        return 0
    digits = match[2]
    if digits[:2].lower() == "0x":
        value = int(digits, 16)
    elif digits[0] == "0":
        octal = re.match(r"[0-7]+", digits)
        value = int(octal[0], 8) if octal else 0
    else:
        value = int(digits[:30])
    return -value if match[1] == "-" else value


def is_number(text: str) -> bool:
    """Whether all of a text is a number as NCCL reads it, blanks around it aside."""
    match = _NUMBER.match(text)
    return match is not None and not text[match.end() :].strip()


@dataclass(frozen=True)
class NameRule:
    """A list of interfaces or devices: prefixes, or whole names after ``=``; after ``^`` all but these."""

    exclude: bool
    exact: bool
    entries: tuple[tuple[str, int], ...]  #: name, and port or -1

    def hits(self, entry: tuple[str, int], name: str, port: int = -1) -> bool:
        """Whether one entry means a name."""
        wanted, number = entry
        named = name == wanted if self.exact else name.startswith(wanted)
        return named and (-1 in (number, port) or number == port)

    def match(self, name: str, port: int = -1) -> bool:
        """Whether the list allows a name. An empty list means every name."""
        hit = not self.entries or any(self.hits(entry, name, port) for entry in self.entries)
        return hit != self.exclude


def names(rule: str) -> NameRule:
    """Read ``=mlx5_0:1,mlx5_1``. The signs are read once, in front of the whole list; blanks are part of a name."""
    exclude = rule.startswith("^")
    rule = rule[1:] if exclude else rule
    exact = rule.startswith("=")
    entries = []
    for part in (rule[1:] if exact else rule).split(","):
        name, *more = part.split(":")  # newer releases add a rail and a plane
        if name:
            entries.append((name, _atoi(more[0]) if more and more[0] else -1))
    return NameRule(exclude, exact, tuple(entries))


def unmatched(rule: str, present: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The entries that mean nothing of what is there, as they were written; of a list of exclusions none is missed."""
    listed, there = names(rule), tuple(present)
    if listed.exclude:
        return ()
    return tuple(
        name if port == -1 else f"{name}:{port}"
        for name, port in listed.entries
        if not any(listed.hits((name, port), n, p) for n, p in there)
    )


def _atoi(text: str) -> int:
    match = re.match(r"\s*([+-]?[0-9]{1,9})", text)
    return int(match[1]) if match else 0
