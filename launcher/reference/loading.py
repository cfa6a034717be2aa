"""A start that takes its time, for tests and demos: weight files are really read, compiling and graphs are pretended.

A generator of pauses, so that whoever starts stays able to answer. It prints lines as real engines do.
"""

from __future__ import annotations

import mmap
import os
from time import monotonic

from launcher.reference.options import Options
from launcher.reference.process import end, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".safetensors"
STEP = 0.05  #: seconds between two reads
TELL = 0.5  #: seconds between two lines


def load(options: Options) -> Iterator[float]:
    """Load, compile and capture. Yields the seconds to the next step of it."""
    if options.load_rate:
        try:
            yield from _read(options)
        except OSError as error:
            log(options.rank, f"cannot load {options.model}: {error.strerror}")
            end(1)
    yield from _pretend(options, "compiling", options.compile_seconds)
    yield from _pretend(options, "capturing graphs", options.graph_seconds)


def _read(options: Options) -> Iterator[float]:
    names = sorted(name for name in os.listdir(options.model) if name.endswith(SUFFIX))
    began = monotonic()
    taken = 0
    for place, name in enumerate(names):
        if not options.startup_quiet:
            log(options.rank, f"loading weights: {place}/{len(names)} files")
        with open(os.path.join(options.model, name), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            mapped = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if options.load_by == "mmap" and size else None
            )
            done = 0
            while done < size:
                due = int((monotonic() - began) * options.load_rate) - taken
                if due > 0:
                    part = min(due, size - done)
                    if mapped is None:
                        part = len(file.read(part))
                        if not part:
                            break  # it has become shorter
                    else:
                        for place_in_file in range(done, done + part, mmap.PAGESIZE):
                            mapped[place_in_file]
                    done += part
                    taken += part
                yield STEP
            if mapped is not None:
                mapped.close()
    if not options.startup_quiet:
        log(options.rank, f"loading weights took {monotonic() - began:.2f} s")


def _pretend(options: Options, what: str, seconds: float) -> Iterator[float]:
    began, told = monotonic(), 0.0
    while (passed := monotonic() - began) < seconds:
        if not options.startup_quiet and passed >= told:
            told = passed + TELL
            log(options.rank, f"{what}: {100 * passed / seconds:.0f}%")
        yield min(STEP, seconds)
    if seconds and not options.startup_quiet:
        log(options.rank, f"{what} took {seconds:.2f} s")
