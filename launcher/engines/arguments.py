"""The engine's arguments after ``--``: read far enough to refuse what the launcher owns, never rewritten.

The engines use argparse, so an option has several spellings: aliases, ``--x=v``, an unambiguous abbreviation
(``--tensor`` for ``--tensor-parallel-size``), ``_`` for ``-`` (vLLM), ``-n2`` for a one-letter alias. This module knows
them all. It does not know how many values an engine's option takes, and need not.

Pure functions. ``engine_config`` reads an engine's own ``--config`` file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.settings import Settings, flag_of

MASK = "***"
_NUMBER = re.compile(r"^-\d+(\.\d+)?$")
#: An option and its value, or an option and a trailing blank, in one word.
_GLUED = re.compile(r"(--?[A-Za-z][\w.-]*)(\s.*)", re.DOTALL)
_SECRET_WORDS = frozenset(
    {
        "key",
        "keys",
        "token",
        "secret",
        "secrets",
        "password",
        "passwd",
        "credential",
        "credentials",
        "pat",
        "dockerconfigjson",
    }
)
#: At the end of a name only: RAY_AUTH_MODE is no secret.
_SECRET_ENDS = re.compile(r"(?:password|passwd|(?:^|[-_.])(?:auth|pass))$")
_SECRET_IN_JSON = re.compile(
    r'("[^"]*(?:secret|password|passwd|credential|api_?key|access_?key|_token)[^"]*"\s*:\s*)"[^"]*"', re.IGNORECASE
)
_USERINFO = re.compile(r"(\w://[^/@:\s]*:)[^/@\s]+@")


@dataclass(frozen=True)
class Owned:
    """An engine option that the launcher sets itself."""

    names: tuple[str, ...]  #: every spelling, the long one first
    what: str  #: what it is, in words: "the tensor parallel size"
    setting: str = ""  #: the field of Settings that decides it; empty: the launcher derives it
    default: str = ""  #: the engine's value where the setting is not given
    why: str = ""  #: for an option without a setting: where the launcher takes it from
    passed_on: bool = True  #: with a setting: the engine gets what the user gave; False: the plan works it out

    def value(self, settings: Settings) -> str:
        """The value that the engine gets."""
        said = getattr(settings, self.setting) if self.setting else None
        if isinstance(said, tuple):
            return " ".join(said) or self.default
        if isinstance(said, bool):
            return "true" if said else "false"
        return self.default if said is None else str(said)


@dataclass(frozen=True)
class Given:
    """One option as the user wrote it. ``name`` is normalised (``--tp_size=2`` is ``--tp-size``)."""

    name: str
    values: tuple[str, ...]
    text: str

    @property
    def value(self) -> str | None:
        return self.values[0] if self.values else None


def refuse_glued(word: str, where: str = "") -> None:
    """Raises UsageError for an option with its value, or with a trailing blank, in one word: common in YAML lists."""
    match = _GLUED.fullmatch(word)
    if match is None:
        return
    name, value = match[1], match[2].strip()
    if value and is_secret(name):
        word, value = f"{name} {MASK}", MASK
    shown = f"{where} {word!r}".strip()
    if not value:
        raise UsageError(f"{shown} ends in a blank, so no parser knows the option", f"write {name}")
    raise UsageError(
        f"{shown} is one word with a blank in it, so the option and its value are not told apart",
        f"write two words (two elements of a list in YAML): {name} {value}",
    )


def given(args: Sequence[str]) -> tuple[Given, ...]:
    """The options of ``args`` in order. Words before the first option become a Given with an empty name."""
    found: list[tuple[str, list[str], str]] = []
    for arg in args:
        if _is_option(arg):
            name, equals, value = arg.partition("=")
            found.append((_normal(name), [value] if equals else [], arg))
        elif found:
            found[-1][1].append(arg)
        else:
            found.append(("", [arg], arg))
    return tuple(Given(name, tuple(values), text) for name, values, text in found)


def last(args: Sequence[str], *names: str) -> str | None:
    """The value that the user gave an option under any of ``names``; the last one counts, as in argparse."""
    values = [g.value for g in given(args) if g.name in names]
    return values[-1] if values else None


def has(args: Sequence[str], *names: str) -> bool:
    """Whether the user gave an option (or its ``--no-`` form) under any of ``names``."""
    wanted = {*names, *("--no-" + n[2:] for n in names if n.startswith("--"))}
    return any(g.name in wanted for g in given(args))


def without(args: Sequence[str], *names: str) -> tuple[str, ...]:
    """``args`` without an option and its values, for a rank on which the engine rejects it."""
    kept: list[str] = []
    dropping = False
    for arg in args:
        if _is_option(arg):
            dropping = _normal(arg.partition("=")[0]) in names
        if not dropping:
            kept.append(arg)
    return tuple(kept)


def refuse_owned(args: Sequence[str], owned: Iterable[Owned], settings: Settings, where: str = "--") -> None:
    """Raises UsageError for an option that the launcher sets, in any spelling; the message has both values.

    Args:
        where: what the arguments follow: ``--``, or ``--ray-args``.
    """
    table = tuple(owned)
    for arg in args:
        glued = _GLUED.fullmatch(arg)
        match = _owner(_normal(glued[1]), table) if glued else None
        if glued and match is not None:
            raise _owned_error(
                Given(_normal(glued[1]), (glued[2].strip(),), repr(arg)), match, settings, where, glued[1]
            )
        refuse_glued(arg, where)
    for option in given(args):
        if not option.name:
            raise UsageError(
                f"'{where} {option.text}': options are expected there, and this is none",
                "give the model by --model before the --" if where == "--" else f"give options after {where}",
            )
        match = _owner(option.name, table)
        if match is not None:
            raise _owned_error(option, match, settings, where)


def passed_on(owned: Iterable[Owned], settings: Settings) -> tuple[str, ...]:
    """The settings that the user gave, as the engine spells them: all that a new option needs is a row in ``owned``."""
    words: list[str] = []
    for option in owned:
        said = getattr(settings, option.setting) if option.setting and option.passed_on else None
        if said is None or said is False or said == ():
            continue
        words.append(option.names[0])
        if said is not True:
            words += said if isinstance(said, tuple) else (str(said),)
    return tuple(words)


def mask(argv: Sequence[str]) -> tuple[str, ...]:
    """``argv`` for display: values of options that are named like a secret become ``***``."""
    shown: list[str] = []
    secret = False
    for arg in argv:
        if _is_option(arg):
            name, equals, _ = arg.partition("=")
            secret = is_secret(name)
            shown.append(f"{name}={MASK}" if secret and equals else _mask_text(arg))
        else:
            shown.append(MASK if secret else _mask_text(arg))
    return tuple(shown)


def is_secret(name: str) -> bool:
    """Whether an option or variable is named like one that holds a secret (``--api-key``, not ``--tokenizer``)."""
    name = name.lower()
    return bool(_SECRET_WORDS & set(re.split(r"[-_.]", name)) or _SECRET_ENDS.search(name))


def holds_password(text: str) -> bool:
    """Whether a value holds a URL with a password (``https://user:password@host``) that is no ``$(VARIABLE)``."""
    found = _USERINFO.search(text)
    return found is not None and not found[0].partition("://")[2].partition(":")[2].startswith("$(")


def facts(args: Sequence[str], leave_out: Iterable[str] = ()) -> dict[str, str]:
    """One fact for each option, for the fingerprint; secrets and long values are hashed.

    Args:
        leave_out: options that may differ between pods (``--host $(POD_IP)``).
    """
    skipped = set(leave_out)
    found: dict[str, list[str]] = {}
    for option in given(args):
        if option.name in skipped:
            continue
        text = " ".join(option.values) if option.values else "given"
        if is_secret(option.name) or _mask_text(text) != text or len(text) > 200:
            text = _hashed(text)
        found.setdefault(option.name.lstrip("-"), []).append(text)
    return {"engine.args." + name: ", ".join(texts) for name, texts in found.items()}


def _hashed(text: str) -> str:
    import hashlib  # OpenSSL comes with it: as much as all that is imported here

    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


# --------------------------------------------------------------------------------------------- spellings


def _is_option(arg: str) -> bool:
    return arg.startswith("-") and len(arg) > 1 and not _NUMBER.match(arg)


def _normal(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def exact(name: str, owned: Sequence[Owned]) -> Owned | None:
    for option in owned:
        if name in option.names:
            return option
        if any(inverse in option.names for inverse in _inverses(name)):
            return option
    return None


def _inverses(name: str) -> Iterator[str]:
    """The name that this one negates: ``--x`` for ``--no-x``, ``--enable-x`` for ``--disable-x`` and vice versa."""
    if name.startswith("--no-"):
        yield "--" + name[5:]
    elif name.startswith("--disable-"):
        yield "--enable-" + name[10:]
    elif name.startswith("--enable-"):
        yield "--disable-" + name[9:]


def _owner(name: str, owned: Sequence[Owned]) -> Owned | None:
    """The option that a spelling means to argparse: exact, then an abbreviation, then ``-n2``."""
    match = exact(name, owned)
    if match is not None:
        return match
    for option in owned:
        for spelling in option.names:
            if len(name) > (2 if name.startswith("--") else 1) and spelling.startswith(name):
                return option
            if len(spelling) == 2 and not name.startswith("--") and name.startswith(spelling):
                return option
    return None


def _off(owned: Owned) -> set[str]:
    """The spellings that turn it off."""
    on = [n for n in owned.names if n.startswith("--")]
    return {"--no-" + n[2:] for n in on} | {"--disable-" + n[9:] for n in on if n.startswith("--enable-")}


def flag(owned: Owned) -> str:
    return flag_of(owned.setting)


def example(flag: str, value: str | None) -> str:
    return f"{flag} {value}" if value and value.lower() not in ("true", "false", "given") else flag


def _owned_error(option: Given, owned: Owned, settings: Settings, where: str, glued: str = "") -> UsageError:
    """``glued``: the option's name, if it and its value were one word."""
    value = " ".join(option.values)
    text = option.text if "=" in option.text or not value or glued else f"{option.text} {value}"
    text += " (one word with a blank in it)" if glued else ""
    name = glued or option.text.partition("=")[0]
    if option.name not in owned.names and option.name in _off(owned):
        said = getattr(settings, owned.setting) if owned.setting else None
        return UsageError(
            f"'{where} {text}': {owned.what} is the launcher's to set"
            + (f", and it is {settings.said(owned.setting)}" if owned.setting else f" ({owned.why})"),
            f"leave {name} out" + (f", and {flag(owned)} too" if said else ": it is off already"),
        )
    if not owned.setting:
        return UsageError(
            f"'{where} {text}': {owned.what} is the launcher's to set ({owned.why})", f"leave {name} out of it"
        )
    return UsageError(
        f"'{where} {text}': {owned.what} is the launcher's to set, and it is {settings.said(owned.setting)}",
        f"give {example(flag(owned), value)} to the launcher (before any --), and leave {name} out",
    )


# ------------------------------------------------------------------------------------------------ values


def _mask_text(text: str) -> str:
    return _USERINFO.sub(rf"\1{MASK}@", _SECRET_IN_JSON.sub(rf'\1"{MASK}"', text))
