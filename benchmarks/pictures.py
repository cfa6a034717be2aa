"""`python -m benchmarks draw`: a picture of each result that is committed.

A picture holds the digest of the values that it shows, so a test can tell that it was drawn from today's JSON, without
matplotlib and without comparing pixels.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
from dataclasses import asdict
from pathlib import Path

from benchmarks.record import Record

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PICTURES = HERE / "pictures"
DIGEST = "Data-SHA256"  #: keyword of the PNG's text


def digest(record: Record) -> str:
    """Of every value that was measured, and its name; not of when and where."""
    text = json.dumps([record.benchmark, [asdict(one) for one in record.series]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def shown_by(picture: Path) -> str:
    """The digest that a picture holds; empty if it holds none, or is not there."""
    try:
        body = picture.read_bytes()
    except FileNotFoundError:
        return ""
    at = 8  # after PNG's signature: chunks of length, kind, data, checksum
    while at + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        key, _, value = body[at + 8 : at + 8 + length].partition(b"\0")
        if kind == b"tEXt" and key == DIGEST.encode():
            return value.decode("latin-1")
        at += 12 + length
    return ""


def results() -> list[Record]:
    """Every result that is committed."""
    return [Record.load(file, file.stem) for file in sorted(RESULTS.glob("*.json"))]


def main() -> int:
    """Draw each result anew."""
    for record in results():
        benchmark = importlib.import_module(f"benchmarks.{record.benchmark.replace('-', '_')}")
        picture = PICTURES / f"{record.benchmark}.png"
        benchmark.draw(record, picture)
        print(f"{picture.relative_to(HERE.parent)}: {len(record.series)} series")
    return 0
