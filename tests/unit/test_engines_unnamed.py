"""No engine is named outside ``engines/``: what the launcher must know of one is a member of the contract."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from launcher.engines.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[2] / "launcher"
#: Where engines are at home.
HOME = ("engines/", "reference/", "compat/")
NAMES = (*(name for name in BUILT_IN if name != "reference"), "ray")
_NAMED = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])|^reference$|--engine[ =]reference\b", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

#: file -> what may be said there, with the reason
OPTION = (r"^(--)?ray[-_](port|args|timeout)$", "an option of the launcher, which the engine reads from the settings")
OWN_ADDRESS = r"^(VLLM_HOST_IP|SGLANG_HOST_IP|VLLM_NIXL_SIDE_CHANNEL_HOST)$"
ALLOWED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "settings.py": (OPTION, ("^vllm$", "the default of --engine"), ("^ray$", "a value of --backend")),
    "cli/options.py": (
        OPTION,
        (
            r"`launcher engines` lists|^vLLM across|Ray\b|`ray start`|^auto\|ray\|mp$",
            "help of --engine and of those options",
        ),
    ),
    "cli/demo.py": ((r"^reference$|--engine vllm", "the demo shows the embedded engine, then a line to go on with"),),
    "group/proof.py": (("^ray token$", "a label of the key derivation: another one would be another token"),),
    "identity/service_links.py": (
        (r"^(VLLM|SGLANG|RAY)_[A-Z_]*PORT$", "read before an engine is known; whichever runs must not see them"),
    ),
    "network/environment.py": ((OWN_ADDRESS, "set for every engine, as an engine file or a plug-in may wrap any"),),
    "render/known.py": (("^reference$", "a field of Kubernetes' image volumes"),),
}


@cache
def named() -> tuple[tuple[str, int, str], ...]:
    """File, line and text of every string and identifier that names an engine; docstrings and comments are prose."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(HOME):
            found += [(name, line, text) for line, text in _said(ast.parse(path.read_text())) if _NAMED.search(text)]
    return tuple(found)


def _said(tree: ast.Module) -> Iterator[tuple[int, str]]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield getattr(node, "lineno", 0), _CAMEL.sub("_", text)


def test_no_engine_is_named() -> None:
    wrong = [
        f"launcher/{name}:{line}: {text!r}"
        for name, line, text in named()
        if not any(re.search(pattern, text) for pattern, _ in ALLOWED.get(name, ()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ALLOWED)
def test_nothing_is_allowed_in_vain(name: str) -> None:
    said = [text for file, _, text in named() if file == name]
    vain = [pattern for pattern, _ in ALLOWED[name] if not any(re.search(pattern, text) for text in said)]
    assert not vain, f"launcher/{name} says none of this any more: {vain}"
