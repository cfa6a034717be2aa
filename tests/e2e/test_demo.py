"""`./run.sh demo --kill`, and its recording in the README."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests import record_demo


def shape(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"[\d.]+", "#", " ".join(line.split()))


def test_the_recording_shows_what_the_demo_prints() -> None:
    drawn = [
        text.text or "" for text in ElementTree.parse(record_demo.PICTURE).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert drawn[0] == record_demo.PROMPT
    printed = [shape(line) for _, line in record_demo.demo() if line]
    assert [shape(line) for line in drawn[1:]] == printed, "draw it anew: python -m tests.record_demo"
