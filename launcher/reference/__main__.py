"""One rank of the reference engine.

Started by path and in isolated mode (``python -I -S .../launcher/reference/__main__.py``), so that neither the working
directory nor PYTHONPATH decides what is imported. People run ``python -m launcher.reference``.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from launcher.reference.options import OptionError, Options, parse, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(argv: list[str]) -> NoReturn:
    """Run the rank described by the command line; exit with 64 if it is invalid."""
    if "--help" in argv or "-h" in argv:
        print(usage())
        sys.exit(0)
    try:
        options = parse(argv, os.environ)
    except OptionError as error:
        print(f"reference: {error}", file=sys.stderr)
        sys.exit(64)
    if os.environ.get("PYTHONFAULTHANDLER"):  # isolated mode leaves it to us
        import faulthandler

        faulthandler.enable()
    _raise_limit()
    run(options)


def run(options: Options) -> NoReturn:
    if options.rank == 0:
        from launcher.reference.leader import Leader

        Leader(options).run()
    else:
        from launcher.reference.rank import Rank

        Rank(options).run()


def _raise_limit() -> None:
    """Raise the limit of open files: each connection needs one."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
