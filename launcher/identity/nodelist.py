"""Slurm's compressed host lists: ``node[001-004,7],gpu1`` (slurm.schedmd.com, "hostlist")."""

from __future__ import annotations

import re
from itertools import product

from launcher.errors import ConfigError

MOST = 65536  #: Slurm's own limit on the nodes of a cluster (MAX_SLURM_NODES)
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


def expand(text: str, said: str) -> tuple[str, ...]:
    """All names of a host list, in its order. ``said`` names the variable in the error."""
    names: list[str] = []
    for word in _words(text, said):
        parts = re.split(r"\[([^\[\]]*)\]", word)
        if any("[" in p or "]" in p for p in parts[::2]):
            raise _unreadable(said, word)
        choices = [_numbers(p, said) if i % 2 else (p,) for i, p in enumerate(parts)]
        count = 1
        for choice in choices:
            count *= len(choice)
        if len(names) + count > MOST:
            raise ConfigError(f"{said} names more than {MOST} nodes", "correct the node list")
        names.extend("".join(c) for c in product(*choices))
    return tuple(names)


def _words(text: str, said: str) -> list[str]:
    """Split on the commas that are outside of brackets."""
    words = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text.strip())
    if ",".join(words) != text.strip():
        raise _unreadable(said, text)
    return words


def _numbers(text: str, said: str) -> tuple[str, ...]:
    numbers: list[str] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if not found:
            raise _unreadable(said, f"[{text}]")
        first, last = found[1], found[2] or found[1]
        if int(last) < int(first) or int(last) - int(first) >= MOST:
            raise _unreadable(said, f"[{text}]")
        numbers.extend(str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return tuple(numbers)


def _unreadable(said: str, part: str) -> ConfigError:
    return ConfigError(
        f"{said} cannot be read as a Slurm node list: {part!r} is wrong there",
        "it looks like node[001-004,7],gpu1; give --peers where Slurm's variable cannot be used",
    )
