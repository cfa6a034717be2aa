"""Real processes read real files in every way that loaders have, and are looked at from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.node.file_reads import FileReads, Reading

SIZE = 4 << 20

#: Runs each line that it is sent, and answers.
READER = """
import mmap, os, sys
files, maps = {}, {}
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Reader:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.pid = process, process.pid

    def do(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def reader() -> Iterator[Reader]:
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Reader(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    found = []
    for number in range(12):
        path = tmp_path / f"model-{number:05}.safetensors"
        path.write_bytes(os.urandom(SIZE if number < 4 else 4096))
        found.append(str(path.resolve()))
    return found


def sizes(paths: list[str]) -> dict[str, int]:
    return {path: os.path.getsize(path) for path in paths}


def test_read(files: list[str]) -> None:
    reads = FileReads(sizes(files[:2]))
    with reader() as one:
        assert reads.look([one.pid]) == Reading(None, 2 * SIZE, 0)
        one.do(f"f = open({files[0]!r}, 'rb', buffering=0)")
        assert reads.look([one.pid]) == Reading(None, 2 * SIZE, 1), "nothing moves: nothing is known"
        one.do("f.read(1 << 20)")
        assert reads.look([one.pid]) == Reading(1 << 20, 2 * SIZE, 1)
        one.do("f.close()")
        assert reads.look([one.pid]) == Reading(SIZE, 2 * SIZE, 0), "a file that is closed is done with"
        one.do(f"f = open({files[1]!r}, 'rb', buffering=0); f.read()")
        assert reads.look([one.pid]) == Reading(2 * SIZE, 2 * SIZE, 1)


def test_a_header_is_not_a_file(files: list[str]) -> None:
    """Engines open every file to see what is in it, long before they load."""
    reads = FileReads(sizes(files[:1]))
    with reader() as one:
        reads.look([one.pid])
        one.do(f"f = open({files[0]!r}, 'rb', buffering=0); f.read(10_000)")
        assert reads.look([one.pid]) == Reading(10_000, SIZE, 1)
        one.do("f.close()")
        assert reads.look([one.pid]) == Reading(10_000, SIZE, 0)


def test_a_position_that_was_sought_is_not_read(files: list[str]) -> None:
    """The directory of a zip file stands at its end (torch.save)."""
    reads = FileReads(sizes(files[:1]))
    with reader() as one:
        reads.look([one.pid])
        one.do(f"f = open({files[0]!r}, 'rb', buffering=0); f.seek(-1000, 2); f.read(500)")
        found = reads.look([one.pid])
        assert found.bytes_read is not None and found.bytes_read < SIZE // 10, found


def test_pread(files: list[str]) -> None:
    reads = FileReads(sizes(files[:1]))
    with reader() as one:
        reads.look([one.pid])
        one.do(f"f = os.open({files[0]!r}, os.O_RDONLY); os.pread(f, {SIZE // 2}, 0)")
        found = reads.look([one.pid]).bytes_read
        assert found is not None and SIZE // 2 <= found < SIZE * 0.6


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_mmap_in_a_warm_cache(tmp_path: Path, share: float) -> None:
    path, size = str((tmp_path / "m.safetensors").resolve()), 32 << 20
    Path(path).write_bytes(bytes(size))
    reads = FileReads({path: size})
    with reader() as one:
        one.do(f"f = open({path!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); f.close()")
        assert reads.look([one.pid]).open == 1
        one.do(f"[m[i] for i in range(0, {int(size * share)}, 4096)]")
        found = reads.look([one.pid]).bytes_read
        assert found is not None and abs(found - size * share) <= 4 << 20, "the kernel maps pages around a fault"
        one.do("m.close()")
        assert reads.look([one.pid]) == Reading(size, size, 0)


def test_a_large_mapping_is_sampled(tmp_path: Path) -> None:
    path = str((tmp_path / "large.safetensors").resolve())
    size = 1 << 30
    with open(path, "wb") as file:
        file.truncate(size)
    reads = FileReads({path: size})
    with reader() as one:
        one.do(f"f = open({path!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)")
        one.do(f"[m[i] for i in range(0, {size // 8}, 4096)]")
        found = reads.look([one.pid]).bytes_read
        assert found is not None and abs(found - size / 8) < size / 32


def test_processes_that_read_all_and_processes_that_share(files: list[str]) -> None:
    read_half = f"f = open({{!r}}, 'rb', buffering=0); f.read({SIZE // 2})"
    with reader() as one, reader() as other:
        reads = FileReads(sizes(files[:2]))
        reads.look([one.pid, other.pid])
        one.do(read_half.format(files[0]))
        other.do(read_half.format(files[0]))
        assert reads.look([one.pid, other.pid]) == Reading(SIZE // 2, 2 * SIZE, 1), "both read all: as far as they are"
        other.do("f.close(); " + read_half.format(files[1]))
        assert reads.look([one.pid, other.pid]) == Reading(SIZE + SIZE // 2, 2 * SIZE, 2)


def test_files_that_were_opened_and_closed_between_two_looks(files: list[str]) -> None:
    """A loader that was seen to take them in order has read those before the one that it is at."""
    reads = FileReads(sizes(files))
    whole = sum(sizes(files).values())
    with reader() as one:
        one.do(f"f = open({files[0]!r}, 'rb', buffering=0); f.read()")
        reads.look([one.pid])
        one.do("f.close()")
        reads.look([one.pid])
        one.do(f"f = open({files[11]!r}, 'rb', buffering=0); f.read(1000)")
        found = reads.look([one.pid]).bytes_read
        assert found == whole - 4096 + 1000
        one.do(f"f = open({files[3]!r}, 'rb', buffering=0)")
        assert reads.look([one.pid]).bytes_read == found, "an earlier file that is opened anew takes nothing back"


def test_a_loader_that_begins_at_the_end_has_not_read_the_rest(files: list[str]) -> None:
    reads = FileReads(sizes(files))
    with reader() as one:
        for place in (11, 10, 9, 2):
            one.do(f"f = open({files[place]!r}, 'rb', buffering=0); f.read()")
            found = reads.look([one.pid]).bytes_read
            assert found is not None and found <= 3 * 4096 + SIZE


def test_a_process_that_is_gone(files: list[str]) -> None:
    reads = FileReads(sizes(files[:1]))
    with reader() as one:
        reads.look([one.pid])
        one.do(f"f = open({files[0]!r}, 'rb', buffering=0); f.read({SIZE // 2})")
        reads.look([one.pid])
    assert reads.look([one.pid]) == Reading(SIZE // 2, SIZE, 0), "it did not close the file: it died"


def test_a_kernel_that_shows_nothing(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "7").mkdir()
    assert FileReads(sizes(files[:1]), str(tmp_path)).look([7, 8]) == Reading(None, SIZE, 0)
    (tmp_path / "7" / "io").write_text("rchar: x\n")
    assert FileReads(sizes(files[:1]), str(tmp_path)).look([7]) == Reading(None, SIZE, 0)
    assert FileReads({}).look([os.getpid()]) == Reading(None, None, 0)
