"""The command: reads a file, writes YAML, and notes each decision it made."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.errors import UsageError
from launcher.render import objects, service, text
from launcher.render.model import RenderOptions, Service
from launcher.render.text import Document

HEAD = "# Written by `launcher render`: run it again rather than edit this."


def run(source: str, out: str | None, options: RenderOptions) -> tuple[str, list[str]]:
    """Return the text for standard output and the warnings. With ``out``, write files and return their names instead.

    Raises ConfigError or UsageError before anything is written.
    """
    try:
        content = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"-f {source} cannot be read: {error}", "name a file with an InferenceService, or -") from None
    services = service.read(content, "standard input" if source == "-" else Path(source).name)
    files: dict[str, str] = {}
    for one in services:
        place = f"{one.name}/" if len(services) > 1 else ""
        for name, documents in objects.render(one, options).items():
            files[place + name] = _page(one, name, documents)
    warnings = [warning for one in services for warning in dict.fromkeys(one.warnings)]
    if out is None:
        return "---\n".join(files.values()), warnings
    try:
        return _write(Path(out), files), warnings
    except OSError as error:
        raise UsageError(
            f"-o {out} cannot be written: {error.strerror or error}", "name a folder, new or ours"
        ) from None


def _page(one: Service, name: str, documents: list[Document]) -> str:
    who = f"{one.namespace}/{one.name}" if one.namespace else one.name
    what = "what all groups share" if name == objects.SHARED else f"group {name[6:-5]} of {one.groups}"
    head = [HEAD, f"# InferenceService {who}: {what}, {one.size} pods a group"]
    head += [f"#   {note}" for note in dict.fromkeys(one.notes)]
    return "\n".join([*head, ""]) + "\n" + "---\n".join(text.write(d) for d in documents)


def _write(folder: Path, files: dict[str, str]) -> str:
    """Write the files and delete those of removed groups, so that `kubectl apply -f` applies nothing stale."""
    gone = [
        old
        for place in dict.fromkeys((folder / name).parent for name in files)
        for old in sorted(place.glob("group-*.yaml"))
        if str(old.relative_to(folder)) not in files and old.read_text(encoding="utf-8").startswith(HEAD)
    ]
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for old in gone:
        old.unlink()
    lines = [f"written: {folder / name}" for name in files]
    lines += [f"removed: {old} (delete its objects from the cluster too)" for old in gone]
    return "\n".join(lines) + "\n"
