"""Versions in the engine's interpreter, read without importing any package."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node


def check(node: Node) -> Iterator[Finding]:
    """The installed versions, and an image's NCCL that another one shadows."""
    versions = node.facts.versions
    if "engine" in node.trouble:
        message, _, fix = node.trouble["engine"].partition("\n  fix: ")
        yield fail("software", message, "the engine cannot be started", fix or "see the message")
        return
    if not node.facts.versions_known:
        yield skipped("software", "this engine tells no versions")
        return
    nccl = {name: version for name, version in versions.items() if name.startswith("nvidia-nccl")}
    others = [name for name in versions if name not in nccl and name != "python"]
    listed = [*others, *(["python"] if "python" in versions else [])]
    shown = [f"{name} {versions[name]}" for name in listed]
    shown += [f"NCCL {version}" for version in sorted(set(nccl.values()))]
    # A hello carries 48 facts in all.
    facts = {f"{name}.version": versions[name] for name in listed[:16]}
    facts["nccl.version"] = next(iter(nccl.values()), "")
    absent = f"no {node.distribution}" if node.distribution and node.distribution not in versions else ""
    yield ok("software", ", ".join(filter(None, [absent, *shown])) or "nothing that is known", facts)
    if len(set(nccl.values())) > 1:
        both = ", ".join(f"{name} {version}" for name, version in sorted(nccl.items()))
        yield warn(
            "software",
            f"two NCCLs are installed: {both}",
            "which one is loaded depends on the order of imports, and may differ between pods",
            "keep the one that torch was built for (`pip show torch`), uninstall the other",
        )
    preload = node.environ.get("LD_PRELOAD", "")
    if "nccl" in preload:
        yield warn(
            "software",
            f"LD_PRELOAD={preload} loads another NCCL than torch's own",
            "its version is not the one that is compared across the group",
            "take it out, unless it is meant",
        )
