"""Text for people: printable, cut to length, with a suggestion for a typing error.

The guard imports this file, so what is heavy (difflib) is imported by the function that needs it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable


def printable(value: object, most: int) -> str:
    """The text of ``value`` on one line: at most ``most`` characters, with ``?`` for each that cannot be printed."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that is most like the given one; empty where none is."""
    import difflib

    return next(iter(difflib.get_close_matches(given, list(known), 1, cutoff)), "")


def did_you_mean(given: str, known: Iterable[str], then: str = "") -> str:
    """``did you mean X?`` where a known word is like the given one, followed by ``then``."""
    like = nearest(given, known)
    return " ".join(filter(None, (f"did you mean {like}?" if like else "", then)))


def signal_name(number: int) -> str:
    """``SIGKILL``, ``SIGRTMIN+6``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        real_time = signal.SIGRTMIN < number < signal.SIGRTMAX
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if real_time else f"signal {number}"


def size_text(number: float) -> str:
    """Bytes as people read them: ``64 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.3g} TiB" if number < 1000 else f"{number:.0f} TiB"
