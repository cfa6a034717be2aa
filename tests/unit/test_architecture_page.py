"""docs/architecture.md: its picture is that of the imports, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.draw_packages import PAGE, TEXTS, direct, drawn, packages

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "launcher").rglob("*.py"))


def test_the_picture_is_in_step_with_the_imports() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert drawn(page) == page, "run python -m tests.draw_packages"
    assert packages().keys() == TEXTS.keys()


def test_an_arrow_that_a_longer_way_stands_for_is_left_out() -> None:
    arrows = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert direct(arrows) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


def test_every_file_class_and_function_of_the_page_exists() -> None:
    text = re.sub(
        r"<!-- packages -->.*?<!-- end of packages -->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    named = set(re.findall(r"`([^`]+)`", text))
    files = {name for name in named if re.fullmatch(r"[\w./]+\.(py|md|sh)|[a-z0-9_]+/[\w/]*", name)}
    assert len(files) > 30
    missing = {f for f in files if not (ROOT / f).exists() and not (ROOT / "launcher" / f).exists()}
    assert not missing
    classes = {name for name in named if re.fullmatch(r"(?:[A-Z][a-z]+)+", name)}
    assert classes and all(re.search(rf"^class {name}\b", SOURCE, re.M) for name in classes), classes
    functions = {name[:-2] for name in named if re.fullmatch(r"\w+\(\)", name)}
    assert functions and all(re.search(rf"^ *def {name}\b", SOURCE, re.M) for name in functions), functions
    constants = {name for name in named if re.fullmatch(r"[A-Z]{3,}(_[A-Z]+)*", name)}
    assert all(re.search(rf"^{name}\b", SOURCE, re.M) for name in constants), constants
