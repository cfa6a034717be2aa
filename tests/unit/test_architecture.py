"""The architecture, held by the imports: they point downwards only, and no two modules import each other."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "launcher"
MOST_AT_ROOT = 8

#: From the bottom up. A module imports from its own package and from the layers below its own; packages that share a
#: layer do not import each other. The longest name that fits a module decides.
LAYERS = (
    ("errors", "log", "model", "settings", "__init__"),
    ("common",),
    ("node",),
    ("identity", "network", "engines", "group", "guard", "reference"),
    ("api",),
    ("planning",),
    ("cli.sources", "cli.options", "cli.commands", "cli.engine_line", "cli.__init__"),
    ("preflight", "render", "compat"),
    ("agent",),
    ("cli",),
    ("__main__",),
)
#: the lower half of a package: its modules may import each other
ONE_PACKAGE = (("cli.sources", "cli.options", "cli.commands", "cli.engine_line", "cli.__init__"), LAYERS[0])

#: imports that point upwards or sideways, with the reason
ALLOWED_IMPORTS: Mapping[tuple[str, str], str] = {
    ("engines.reference", "reference.options"): "`plan` refuses what the embedded engine would, by its own parser",
}
#: names of two classes, with the reason
ALLOWED_NAMES: Mapping[str, str] = dict.fromkeys(
    ("Ping", "Stop", "Stopped"), "a message of the group's link, and one of the guard's channel: two protocols"
)
#: modules of a circle, with the reason
ALLOWED_CIRCLES: Mapping[frozenset[str], str] = {}


@cache
def sources() -> Mapping[str, ast.Module]:
    """Every module by its name inside of the launcher, a package by ``name.__init__``."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(ROOT.rglob("*.py"))
    }


@cache
def imports() -> Mapping[str, Set[str]]:
    """The modules of the launcher that each module imports, wherever in its file it does."""
    return {name: {m for node in ast.walk(tree) for m in _imported(node)} - {name} for name, tree in sources().items()}


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "launcher":
        assert not node.level, "relative imports are not used"
        for alias in node.names:
            yield _module(f"{node.module}.{alias.name}") or _module(node.module) or node.module
    elif isinstance(node, ast.Import):
        yield from (_module(alias.name) or alias.name for alias in node.names if alias.name.startswith("launcher."))


def _module(name: str) -> str | None:
    inside = name.partition(".")[2]
    return next((found for found in (inside, f"{inside}.__init__".lstrip(".")) if found in sources()), None)


def place(module: str) -> tuple[int, str]:
    """Its layer, and the package of that layer."""
    fits = [
        (len(name), i, name)
        for i, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert fits, f"{module} has no layer: name it in LAYERS"
    _, layer, name = max(fits)
    return layer, next((group[0] for group in ONE_PACKAGE if name in group), name)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in sorted(others)
        if (module, other) not in ALLOWED_IMPORTS
        and not (place(other)[0] < place(module)[0] or place(other) == place(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    reached = {module: _reached(module) for module in sources()}
    circles = {
        frozenset({module, *(other for other in reached[module] if module in reached[other])})
        for module in sources()
        if module in reached[module]
    }
    assert not circles - ALLOWED_CIRCLES.keys(), [sorted(circle) for circle in circles]


def _reached(module: str) -> Set[str]:
    found: set[str] = set()
    rest = list(imports()[module])
    while rest:
        if (one := rest.pop()) not in found:
            found.add(one)
            rest += imports().get(one, ())
    return found


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    twice = {name: where for name, where in places.items() if len(where) > 1 and name not in ALLOWED_NAMES}
    assert not twice, twice


def test_few_files_at_the_root() -> None:
    at_root = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(at_root) <= MOST_AT_ROOT, at_root


def test_no_exception_outlives_its_reason() -> None:
    assert all(other in imports()[module] for module, other in ALLOWED_IMPORTS)
    assert all(ALLOWED_IMPORTS.values()) and all(ALLOWED_NAMES.values()) and all(ALLOWED_CIRCLES.values())
