"""The arguments of the launcher in a shell script: `sh -c "ulimit -l unlimited; exec launcher --engine vllm ..."`.

A container often raises a limit or fetches a file before it starts the launcher. This module parses just enough POSIX
shell to find that one command: quotes, escapes, comments, line continuations, separators, redirections, variables and
assignments. What only a running shell knows (``$(command)``, globs, conditions) stays unchanged and is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|([@*0-9#?$!]))")
_KEYWORDS = ("then", "do", "else", "{", "!", "if", "while", "until", "time")
#: Programs that run the command given to them.
_WRAPPERS = ("exec", "env", "nohup", "nice", "ionice", "tini", "dumb-init", "catatonit", "numactl", "taskset", "stdbuf",
             "setpriv", "gosu", "su-exec", "sudo", "chrt", "timeout", "command", "busybox")  # fmt: skip

LITERAL, QUOTED, BARE = 0, 1, 2  #: variables are not expanded; expanded; expanded and split into words
Word = list[tuple[str, int]]  #: pieces of text, and how the shell treats variables in each


@dataclass(frozen=True)
class Call:
    """How a script starts the launcher. ``environ``: the variables that it sets for the launcher."""

    words: tuple[str, ...]
    environ: Mapping[str, str]
    replaces_shell: bool  #: by `exec`, or because it is the shell's only command
    unknown: tuple[str, ...]  #: words that only a running shell can expand


def script_of(command: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The text after ``-c`` of a command that runs a shell, and the words after it ($0, $1, ...)."""
    words = list(command)
    if words and PurePosixPath(words[0]).name in ("env", "tini", "dumb-init", "catatonit", "busybox"):
        words = words[1:]
        while words and (words[0].startswith("-") or _ASSIGNMENT.fullmatch(words[0])):
            words = words[1:]
    if not words or PurePosixPath(words[0]).name not in SHELLS:
        return None
    i = 1
    while i < len(words) and words[i][:1] in ("-", "+"):
        flag = words[i]
        i += 1
        if flag in ("-o", "+o", "-O", "+O"):
            i += 1
        elif not flag.startswith("--") and "c" in flag:
            if i < len(words) and words[i] in ("-e", "-x", "-u"):  # `sh -c -e SCRIPT` is valid, too
                i += 1
            return (words[i], tuple(words[i + 1 :])) if i < len(words) else None
    return None


def find(script: str, positional: Sequence[str], environ: Mapping[str, str]) -> Call | None:
    """The last command of a script that starts the launcher; None if none does.

    ``positional``: the words after the script, $0 first. ``environ``: the shell's environment.
    """
    known, exported = dict(environ), dict(environ)
    found: Call | None = None
    commands = list(_commands(script))
    for command in commands:
        words, unknown = _expand(command, known, positional)
        while words and words[0] in _KEYWORDS:
            words = words[1:]
        here: dict[str, str] = {}
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            here[match[1]] = match[2]
            words = words[1:]
        if not words:
            known |= here
            exported |= {name: value for name, value in here.items() if name in exported}
        elif words[0] in ("export", "declare", "readonly"):
            for word in words[1:]:
                name, _, value = word.partition("=")
                known[name] = exported[name] = value if "=" in word else known.get(name, "")
        else:
            at = _launcher_at(words)
            if at is not None:
                assigned = {m[1]: m[2] for w in words[:at] if (m := _ASSIGNMENT.fullmatch(w))}
                alone = words[0] == "exec" or len(commands) == 1
                found = Call(tuple(words[at + 1 :]), {**exported, **here, **assigned}, alone, unknown)
    return found


def _launcher_at(words: Sequence[str]) -> int | None:
    """The index of the launcher's name, if the command runs it; None if it is another program's argument."""
    first = PurePosixPath(words[0]).name
    if first != "launcher" and first not in _WRAPPERS and not re.fullmatch(r"python[0-9.]*", first):
        return None
    for i, word in enumerate(words):
        if PurePosixPath(word).name == "launcher":
            return i
    return None


def _expand(
    command: Sequence[Word], known: Mapping[str, str], positional: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    words: list[str] = []
    unknown: list[str] = []
    for word in command:
        raw = "".join(text for text, _ in word)
        if raw in ("$@", "$*"):
            words += positional[1:]
            continue
        parts = [""]
        for piece, kind in word:
            text = piece if kind == LITERAL else _substituted(piece, known, positional)
            if kind == BARE and text != piece:
                first, *rest = re.split(r"\s+", text)
                parts = [*parts[:-1], parts[-1] + first, *rest]
            else:
                parts[-1] += text
            if kind != LITERAL and re.search(r"\$[({A-Za-z_@*0-9#?]|`", text):
                unknown.append("".join(t for t, _ in word))
        kept = parts if len(parts) == 1 and (parts[0] or any(kind != BARE for _, kind in word)) else filter(None, parts)
        words += kept
    return words, tuple(unknown)


def _substituted(text: str, known: Mapping[str, str], positional: Sequence[str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name:
            return known.get(name) or (match[3] if match[3] is not None else known.get(name, match[0]))
        number = match[4]
        return positional[int(number)] if number.isdecimal() and int(number) < len(positional) else match[0]

    return _VARIABLE.sub(value, text)


def _commands(script: str) -> Iterator[list[Word]]:
    """The simple commands of a script, without redirections and comments."""
    command: list[Word] = []
    for token in _tokens(script):
        if isinstance(token, str):
            if command:
                yield command
            command = []
        else:
            command.append(token)
    if command:
        yield command


def _tokens(script: str) -> Iterator[Word | str]:
    """Words, and separators as plain strings."""
    i, n = 0, len(script)
    word: Word | None = None
    skip = False  # the next word is the target of a redirection
    while i < n:
        c = script[i]
        if script.startswith("\\\n", i):
            i += 2
        elif c in " \t\r\n;&|()<>":
            if c in "<>" and word is not None and len(word) == 1 and word[0][0].isdecimal():
                word = None  # the descriptor in 2>file
            if word is not None and not skip:
                yield word
            if word is not None:
                skip = False
            word = None
            if c in "<>":
                while i < n and script[i] in "<>&|-":
                    i += 1
                skip = True
                continue
            if c == "&" and script[i + 1 : i + 2] == ">":  # the & of &>file
                i += 1
                continue
            if c in "\n;&|()":
                skip = False
                yield c
            i += 1
        elif c == "#" and word is None:
            while i < n and script[i] != "\n":
                i += 1
        else:
            word = [] if word is None else word
            i = _piece(script, i, word)
    if word is not None and not skip:
        yield word


def _piece(script: str, i: int, word: Word) -> int:
    """Add the next quoted text, ``$(...)`` or run of plain text to the word; return the index after it."""
    c = script[i]
    if c == "\\":
        word.append((script[i + 1 : i + 2], LITERAL))
        return i + 2
    if c == "'":
        end = script.find("'", i + 1)
        end = len(script) if end < 0 else end
        word.append((script[i + 1 : end], LITERAL))
        return end + 1
    if c == '"':
        return _double_quoted(script, i + 1, word)
    if script.startswith("$(", i):
        end = _closing(script, i + 2)
        word.append((script[i:end], BARE))
        return end
    end = i + 1
    while end < len(script) and script[end] not in " \t\r\n;&|()<>\\'\"" and not script.startswith("$(", end):
        end += 1
    word.append((script[i:end], BARE))
    return end


def _double_quoted(script: str, i: int, word: Word) -> int:
    text = ""
    while i < len(script) and script[i] != '"':
        if script[i] == "\\" and script[i + 1 : i + 2] in ('"', "\\", "$", "`", "\n"):
            word.append((text, QUOTED))
            text = ""
            if script[i + 1] != "\n":
                word.append((script[i + 1], LITERAL))
            i += 2
        else:
            text += script[i]
            i += 1
    word.append((text, QUOTED))
    return i + 1


def _closing(script: str, i: int) -> int:
    depth = 1
    while i < len(script) and depth:
        depth += {"(": 1, ")": -1}.get(script[i], 0)
        i += 1
    return i
