"""Values that nobody expects, and JSON made of them."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 99, 100, 101, 255, 256, 4095, 4096, 4097, -(2**31), 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64, 10**9, 10**9 + 1, 10**18, 10**19, 10**20, 10**308, 10**309, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1e-9, 1e9, 1.0000001e9, 1e15, 1e16, 1e300, 1e308, -1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), True, False),
)
TEXTS = (
    *("", " ", "a", "a b", "\x00", "\n", "\r\n", "\x1b[2J", "\ud800", "\udcff", "\u202e", "é", "漢" * 20, "\U0001f600"),
    *("x" * 33, "x" * 65, "x" * 301, "x" * 601, "x" * 1001, "x" * 5000, "-1", "0", "9" * 400, "NaN", "1e400"),
    *("٣", "²", "a-2", "a-" + "9" * 30, "../../etc/passwd", "${HOME}", "%s%n", "' OR 1=1", "::1", "127.0.0.1", "-x"),
)


LARGEST = 1 << 20  #: bytes of one input


def number(rng: random.Random) -> Any:
    return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randint(-(2**70), 2**70)


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x10FFFF)))) for _ in range(rng.randrange(40)))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and some that it can't."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind in (1, 2):
        return number(rng)
    if kind in (3, 4):
        return text(rng)
    count = rng.choice((0, 1, 2, 3, 5, 50)) if depth == 0 else rng.randrange(4)
    if kind == 5:
        return {text(rng): value(rng, depth + 1) for _ in range(count)}
    if kind == 6:
        return [value(rng, depth + 1)] * rng.choice((0, 1, 41, 65, 1001, 5000)) if depth == 0 else [number(rng)]
    return [value(rng, depth + 1) for _ in range(count)]


def changed(rng: random.Random, it: Any) -> Any:
    """A JSON value with something of it replaced, left out, doubled or put elsewhere."""
    if isinstance(it, dict) and it and rng.random() < 0.9:
        key = rng.choice(list(it))
        kind = rng.randrange(6)
        if kind == 0:
            return {k: v for k, v in it.items() if k != key}
        if kind == 1:
            return {**it, text(rng): value(rng)}
        if kind == 2:
            return {**it, key: changed(rng, it[key])}
        return {**it, key: value(rng)}
    if isinstance(it, list) and it and rng.random() < 0.9:
        at = rng.randrange(len(it))
        kind = rng.randrange(4)
        if kind == 0:
            return it[:at] + it[at + 1 :]
        if kind == 1:
            return it * rng.choice((2, 50, 1001)) if len(it) < 50 else it * 2
        return [*it[:at], changed(rng, it[at]), *it[at + 1 :]]
    return value(rng)


def dumped(rng: random.Random, it: Any) -> bytes:
    """As bytes: mostly JSON, sometimes spoilt JSON."""
    said = json.dumps(it, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(12)
    if kind == 0:
        said = said[: rng.randrange(len(said) + 1)]
    elif kind == 1:
        said = rng.choice(("[", '{"a":', '{"is":')) * rng.choice((10, 1000, 30_000)) + said
    elif kind == 2:
        said = said.replace(":", ":" + rng.choice(("9" * 5000, "-" + "9" * 100_000, "1e" + "9" * 500, "0x10")), 1)
    elif kind == 3 and said.startswith("{") and len(said) > 2:
        said = said[:-1] + "," + said[1:]  # every key twice
    data = said.encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        data = spoilt(rng, data)
    return data[:LARGEST]


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, cut, doubled or put in."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(spoiled) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(spoiled):
            spoiled[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del spoiled[at : at + rng.randrange(9)]
        elif kind == 2:
            spoiled[at:at] = rng.choice(
                (b"\0", b"\xff", b"\xed\xa0\x80", b"9" * 400, b"NaN", b"Infinity", b"1e400", b"[[[[")
            )
        elif kind == 3:
            spoiled[at:at] = spoiled[max(0, at - rng.randrange(50)) : at]
        elif at < len(spoiled):
            spoiled[at] = rng.randrange(256)
    return bytes(spoiled)


def line(rng: random.Random, words: tuple[str, ...]) -> str:
    """A line of words that a program would know, and of others."""
    picked = [rng.choice(words) if rng.random() < 0.7 else str(value(rng, 3)) for _ in range(rng.randrange(6))]
    return rng.choice((" ", "", ",", "=", "\t")).join(picked)
