"""python -m benchmarks NAME [--rounds N] [--minutes M] [--only CASE] [--json FILE [--append]] [--plot FILE]

Measures, prints a table with ratios and the verdict on each budget, and writes what it measured. Long benchmarks can be
split: `--append` adds the rounds of this run to those that FILE holds, `--minutes` ends a run in time. `--show`
measures nothing and prints FILE. `ci` is the short subset that CI runs; `draw` draws what is committed.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
from pathlib import Path
from types import ModuleType

from benchmarks import pictures
from benchmarks.record import Record
from benchmarks.rounds import progress, stop_after
from launcher.errors import ExitCode, LauncherError, UsageError

NAMES = {
    "overhead": "one pod: start to engine exec, imports, memory, CPU of a steady group",
    "ray-bootstrap": "two pods up to a command on a whole Ray cluster: launcher, ray symmetric-run, script",
    "cold-start": "two pods up to the first completion of real vLLM and SGLang: launcher, by hand, script",
    "scale": "a group of 2 to 1,024 members: formation, stop, memory, CPU, storms",
    "failover": "kill -9, SIGSTOP, partition: until all is stopped, until it serves again",
    "drain": "requests lost and latency added while a group is told to go under load",
    "draw": "no benchmark: a picture of each result in benchmarks/results",
    "ci": "a few ratios against what was recorded; exit code 1 when one has become twice as bad",
}


def main(args: list[str]) -> int:
    """Exit code 0: measured, whatever the verdicts; 1: `ci` failed; else as the launcher's own."""
    options = _parser().parse_args(args)
    try:
        if options.name == "ci":
            return int(importlib.import_module("benchmarks.ci").main(options.update))
        if options.name == "draw":
            return pictures.main()
        return _run(options, args)
    except LauncherError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return int(error.code)


def _run(options: argparse.Namespace, args: list[str]) -> int:
    benchmark = importlib.import_module(f"benchmarks.{options.name.replace('-', '_')}")
    record = _record(options)
    if not options.show:
        cases = _cases(benchmark, options.only)
        if options.minutes:
            stop_after(60 * options.minutes)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was measured is kept
        record.begin(shlex.join(["python", "-m", "benchmarks", *args]))
        try:
            benchmark.run(record, options.rounds or benchmark.ROUNDS, cases)
        except KeyboardInterrupt:
            progress("interrupted: what was measured is kept")
        finally:
            if options.json and record.series:
                record.save(options.json)
    for run in record.runs:
        print(f"# {run.date}  {run.revision}  {run.machine}\n#   {run.command}")
    print(record.table(benchmark.FLOOR))
    for verdict in record.judge(benchmark.BUDGETS):
        print(verdict)
    if options.plot:
        benchmark.draw(record, options.plot)
    return 0


def _record(options: argparse.Namespace) -> Record:
    if not (options.append or options.show):
        return Record(options.name)
    if options.json is None:
        raise UsageError("--append and --show need --json", "name the file that holds the earlier rounds")
    if options.append and not options.json.exists():
        return Record(options.name)
    try:
        return Record.load(options.json, options.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--json {options.json} cannot be read: {error}", "give a file that --json wrote") from None


def _cases(benchmark: ModuleType, only: list[str]) -> list[str]:
    known: tuple[str, ...] = benchmark.CASES
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"--only {unknown[0]} is no case of this benchmark", f"give one of {', '.join(known)}")
    return only or list(known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.partition("\n\n")[2],
        epilog="\n".join(["benchmarks:", *(f"  {name:<14} {what}" for name, what in NAMES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help="one of those below")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds of each contestant")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no round that would end after M minutes")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="this case only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--append", action="store_true", help="add to what FILE holds")
    parser.add_argument("--show", action="store_true", help="measure nothing, print what FILE holds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG (needs matplotlib)")
    parser.add_argument("--update", action="store_true", help="ci: record today's ratios as those to be held")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(int(ExitCode.UNAVAILABLE))
