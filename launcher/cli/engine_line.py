"""Rejects a command line written for the engine itself, such as `launcher serve M --tensor-parallel-size 8`.

People paste a `vllm serve` line. Its positional model and the engine's names for what the launcher sets
(``--tensor-parallel-size``) are errors: supporting two names for one thing would be a burden for ever. But the error
shows the whole line as the launcher accepts it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.common.text import nearest
from launcher.engines.arguments import Owned, exact, flag, mask, refuse_glued
from launcher.errors import UsageError


@dataclass(frozen=True)
class Line:
    """A line as the launcher accepts it, and the changes, each as "THIS is THAT"."""

    words: tuple[str, ...]
    changes: tuple[str, ...]


def check(words: Sequence[str], engine_args: Sequence[str], takes_value: Mapping[str, bool], command: str) -> None:
    """Raises UsageError for words that belong to the engine, with the line that works.

    Args:
        words: everything before ``--``.
        engine_args: everything after it.
        takes_value: the launcher's own options, and whether each takes a value.
        command: the words before the options, such as ``launcher plan``.
    """
    _refuse_glued(words, takes_value)
    line = translated(words, engine_args, takes_value)
    if line is not None:
        end = line.words.index("--") if "--" in line.words else len(line.words)
        shown = (*line.words[:end], *mask(line.words[end:]))  # it ends up in a pod's log: mask API keys
        raise UsageError("; ".join(line.changes), f"{command} {shlex.join(shown)}")


def _refuse_glued(words: Sequence[str], takes_value: Mapping[str, bool]) -> None:
    value = False
    for word in words:
        if not value:
            refuse_glued(word)
        value = not value and takes_value.get(word, False)


def translated(words: Sequence[str], engine_args: Sequence[str], takes_value: Mapping[str, bool]) -> Line | None:
    """The same line in the launcher's words; None if all words are the launcher's, or one is misspelled."""
    own: list[str] = []
    engine: list[str] = []
    changes: list[str] = []
    tables = _tables(words)
    i = 0
    while i < len(words):
        word = words[i]
        name, equals, value = word.partition("=")
        i += 1
        if name in takes_value:
            own.append(word)
            if takes_value[name] and not equals and i < len(words):
                own.append(words[i])
                i += 1
            continue
        if word.isdecimal() and own and takes_value.get(own[-1]) is False:
            sized = _numbered(words, own[-1])
            engine += [sized, word] if sized else []
            changes.append(f"{own[-1]} takes no number" + (f": the engine's {sized} does, after --" if sized else ""))
            own = own[:-1] if sized else own
            continue
        if not word.startswith("-") or word == "-":
            if "--model" in own or any(w.startswith("--model=") for w in own):
                return None  # the caller reports the stray word
            own += ["--model", word]
            changes.append(
                f"{word!r} is no option: the model is given by --model, and what is meant for the engine goes after --"
            )
            continue
        values = [value] if equals else []
        while not equals and i < len(words) and not words[i].startswith("-"):
            values.append(words[i])
            i += 1
        found = _owner(name.replace("_", "-") if name.startswith("--") else name, tables)
        if found is None:
            if nearest(name, takes_value, 0.8):
                return None  # a misspelled option of the launcher, which click reports
            engine += [name, *values] if not equals else [word]
            changes.append(f"{name} is no option of the launcher: what is meant for the engine goes after --")
            continue
        whose, option = found
        if not option.setting:
            changes.append(f"{name} is the launcher's to set ({option.why})")
            continue
        ours = flag(option)
        changes.append(f"{name} ({whose}) is {ours} here")
        own.append(ours)
        own += values[:1] if takes_value.get(ours, True) else []
        for extra in values[1:] if takes_value.get(ours, True) else values:
            if "--model" in own:
                return None
            own += ["--model", extra]
            changes.append(f"{extra!r} is no option: the model is given by --model")
    if not changes:
        return None
    rest = [*engine, *engine_args]
    return Line((*own, *(("--", *rest) if rest else ())), tuple(changes))


def _tables(words: Sequence[str]) -> tuple[tuple[str, tuple[Owned, ...]], ...]:
    from launcher.engines.registry import spellings

    return spellings(_engine(words))


def _numbered(words: Sequence[str], option: str) -> str:
    from launcher.engines.registry import numbered

    return numbered(_engine(words), option)


def _engine(words: Sequence[str]) -> str:
    named = next((words[i + 1] for i, w in enumerate(words[:-1]) if w == "--engine"), "")
    return named or next((w.partition("=")[2] for w in words if w.startswith("--engine=")), "")


def _owner(name: str, tables: Sequence[tuple[str, tuple[Owned, ...]]]) -> tuple[str, Owned] | None:
    for engine, owned in tables:
        option = exact(name, owned)
        if option is not None and name in option.names:
            return engine, option
    return None
