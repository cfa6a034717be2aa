"""What the chain computes: every worker changes a request's 64-bit state, and the result selects the next token."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

MASK = (1 << 64) - 1

VOCABULARY = """
the a one this each every some no all our more most first last next only new old long small great high low
near far fast slow light dark warm cold clear deep group rank node leader worker token model layer batch cache
queue ring chain link port lease epoch pod is was has does goes comes waits starts runs stops moves holds
sends gathers
"""
WORDS = VOCABULARY.split()


def mix(state: int, index: int) -> int:
    """Apply worker ``index`` of the group to a state (the finalizer of splitmix64)."""
    z = (state + 0x9E3779B97F4A7C15 * (index + 1)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def seed(prompt: str) -> int:
    """The state before the first token."""
    raw = prompt.encode("utf-8", "surrogatepass")
    return mix(crc32(raw) << 32 | len(raw) & 0xFFFFFFFF, 0)


def word(state: int) -> str:
    """The token that a state selects."""
    return WORDS[state % len(WORDS)]


def count(prompt: str) -> int:
    """Number of tokens in a prompt: its words, at least one."""
    return max(1, len(prompt.split()))


def text(words: Iterable[str]) -> str:
    """Join tokens into the text of an answer."""
    return " ".join(words)


def chat_prompt(messages: Iterable[tuple[str, str]]) -> str:
    """Turn the (role, content) pairs of a chat into a prompt."""
    return "\n".join(f"{role}: {content}" for role, content in messages)


def expected_text(prompt: str, tokens: int, size: int, workers: int = 1) -> str:
    """The text that a group of ``size`` ranks with ``workers`` workers each must answer with. For tests."""
    state, words = seed(prompt), []
    for _ in range(tokens):
        for index in range(size * workers):
            state = mix(state, index)
        words.append(word(state))
    return text(words)
