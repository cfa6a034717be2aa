"""Draws the packages from their imports into docs/architecture.md: `python -m tests.draw_packages`.

The arrows are the imports of the code; only what each box says is written here, and every package must have a text
(`tests/unit/test_architecture_page.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from tests.unit import test_architecture as rules

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- packages -->", "<!-- end of packages -->"

#: Several modules or a part of a package that the picture shows as one box, by the first of their names in LAYERS.
BOXES: Mapping[str, str] = {
    "errors": "errors, log, model, settings",
    "cli.sources": "cli.options, cli.sources",
    "cli": "cli (commands)",
}
TEXTS: Mapping[str, str] = {
    "errors": "the nouns that all packages share",
    "common": "small tools that know nothing of pods or engines",
    "node": "what the kernel says of this machine and its processes",
    "identity": "who am I: one module a source",
    "network": "names, addresses, interfaces, RDMA, HTTP probes",
    "engines": "the contract, and one package an engine",
    "group": "the protocol: state machines, link, lease",
    "guard": "PID 1: starts, reaps and kills processes",
    "reference": "the embedded engine",
    "api": "/livez /readyz /metrics /status and the page",
    "planning": "settings to identity to plan",
    "cli.sources": "flags, variables and TOML to settings",
    "preflight": "doctor and its checks",
    "render": "an InferenceService to plain YAML",
    "compat": "run.sh leader and worker",
    "agent": "the event loop: wires everything",
    "cli": "run, plan, status, local, ...",
    "__main__": "the entry point",
}


def packages() -> Mapping[str, Set[str]]:
    """Which packages (by their first names in LAYERS) the modules of each one import."""
    found: dict[str, set[str]] = {rules.place(module)[1]: set() for module in rules.imports()}
    for module, others in rules.imports().items():
        own = rules.place(module)[1]
        found[own] |= {rules.place(other)[1] for other in others} - {own}
    return found


def direct(arrows: Mapping[str, Set[str]]) -> Mapping[str, Set[str]]:
    """The arrows that no longer way stands for: where a imports b, and b imports c, a to c is left out."""

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        rest = list(arrows[name])
        while rest:
            if (one := rest.pop()) not in found:
                found.add(one)
                rest += arrows[one]
        return found

    return {
        name: {other for other in others if not any(other in reached(via) for via in others - {other})}
        for name, others in arrows.items()
    }


def picture() -> str:
    """The packages in mermaid, the highest layer first."""
    arrows = packages()
    layers: dict[int, list[str]] = {}
    for module in rules.imports():
        layer, name = rules.place(module)
        if name not in layers.setdefault(layer, []):
            layers[layer].append(name)
    lines = ["```mermaid", "flowchart TD"]
    for layer in sorted(layers, reverse=True):
        for name in sorted(layers[layer]):
            lines.append(f'    {_id(name)}["<b>{BOXES.get(name, name)}</b><br/>{TEXTS[name]}"]')
    for name, others in sorted(direct(arrows).items()):
        lines += [f"    {_id(name)} --> {_id(other)}" for other in sorted(others)]
    return "\n".join([*lines, "```"])


def _id(name: str) -> str:
    return name.strip("_").replace(".", "_")


def drawn(page: str) -> str:
    """The page with the picture drawn anew."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE} has no place, or two, for the picture")
    return pattern.sub(lambda _: f"{BEGIN}\n{picture()}\n{END}", page)


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
