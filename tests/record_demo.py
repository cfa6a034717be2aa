"""`python -m tests.record_demo`: runs `demo --kill` and draws what it prints as docs/demo.svg.

Each line appears when the demo printed it; where nothing moves (a viewer without animation, or one whose user asked for
less motion), the whole of it is shown.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "demo.svg"
PROMPT = "$ ./run.sh demo --kill"
COLUMN, LINE, MARGIN = 7.83, 19, 18  #: pixels: width of a letter, height of a line
STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d7dae0;
  white-space: pre; animation: appear 0s linear both }
.prompt { fill: #8fce8f } .kill { fill: #f08a80 } .back { fill: #8fce8f }
@keyframes appear { from { opacity: 0 } to { opacity: 1 } }
@media (prefers-reduced-motion: reduce) { text { animation: none } }
"""


def demo() -> Iterator[tuple[float, str]]:
    """Each line that the demo prints, and when, in seconds since its start."""
    began = time.monotonic()
    command = [sys.executable, "-u", "-m", "launcher.cli.demo", "--kill"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield time.monotonic() - began, line.rstrip()
    if process.returncode:
        raise SystemExit(f"the demo failed with exit code {process.returncode}")


def svg(lines: list[tuple[float, str]]) -> str:
    """A terminal with these lines."""
    width = round(max(len(line) for _, line in lines) * COLUMN + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    body = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE * number + 13}"{_kind(line)} style="animation-delay:{at:.2f}s">'
        f"{escape(line)}</text>"
        for number, (at, line) in enumerate(lines)
        if line
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    title = "A terminal: ./run.sh demo --kill, two ranks serve, one is killed, the group comes back"
    return "\n".join(
        [
            f'{head} role="img" aria-label="{title}">',
            "<!-- drawn by python -m tests.record_demo -->",
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#1e2127"/>',
            *body,
            "</svg>\n",
        ]
    )


def _kind(line: str) -> str:
    words = {"$": "prompt", "kill": "kill", "back": "back"}
    return f' class="{words[first]}"' if (first := (line.split() or [""])[0]) in words else ""


def main() -> None:
    PICTURE.write_text(svg([(0.0, PROMPT), *demo()]), encoding="utf-8")


if __name__ == "__main__":
    main()
