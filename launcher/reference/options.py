"""The reference engine's command line: options that the launcher sets, tuning for users, faults for tests.

Tuning and faults can come from variables too: ``--token-seconds`` is REFERENCE_TOKEN_SECONDS. The annotations and
values of ``Options`` are the types and defaults; nothing else repeats them.
"""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence

from launcher.common.text import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: set by the launcher's planner, never by a user
OWNED = {
    "rank": "this rank, 0 is the leader",
    "size": "ranks in the group",
    "peers": "addresses by rank, comma-separated",
    "peer-port": "port between ranks; each listens on its own address",
    "port": "HTTP port of rank 0",
    "epoch": "number of the epoch",
    "epoch-token": "only ranks with the same token join one chain",
    "workers": "worker processes in this rank",
    "model": "model name in requests, unless --served-model-name is given",
    "served-model-name": "model names in requests, comma-separated",
}

TUNING = {
    "host": "address that rank 0's HTTP server binds to",
    "token-seconds": "minimum time for one token",
    "max-num-seqs": "maximum number of concurrent requests; others wait",
    "max-model-len": "maximum number of tokens in an answer",
    "startup-seconds": "how long every rank takes to start",
    "startup-quiet": "print nothing while starting",
    "load-rate": "each worker reads the weight files of --model, a folder, at this many bytes per second; 0 reads none",
    "load-by": "how: read or mmap",
    "compile-seconds": "how long it then pretends to compile",
    "graph-seconds": "how long it then pretends to capture graphs",
    "join-seconds": "give up if the chain is incomplete after this time; 0 waits forever",
    "shutdown-timeout": "how long rank 0 may finish its requests after SIGTERM",
    "on-peer-loss": (
        "exit: exit with 1 at once; ignore: notice nothing until the next request, which fails and ends rank 0, like "
        "vLLM; hang: keep running, never answer"
    ),
    "sleep-state": "start asleep (POST /wake_up and /sleep toggle it)",
}

FAULTS = {
    "fault-ranks": "ranks that the faults below apply to, comma-separated; all by default",
    "fault-epochs": "epoch numbers that they apply to, comma-separated; all by default",
    "crash-after": "crash this many seconds after --crash-at",
    "crash-at": "what --crash-after counts from: the start of the process, or serving",
    "crash-code": "exit code of the crash",
    "crash-signal": "crash by this signal number instead of --crash-code",
    "crash-process": "which process of the rank crashes",
    "exit-zero-after": "exit with 0 this many seconds after serving began",
    "hang-after": "stop producing tokens this many seconds after serving began, but stay healthy",
    "hang-mode": (
        "what a worker of the rank does from then on: idle: it passes nothing on; busy: it computes in Python; "
        "blocked: it sits in a system call; stopped: it is stopped by SIGSTOP"
    ),
    "unhealthy-after": "answer /health with 503 this many seconds after serving began",
    "ignore-term": "ignore SIGTERM",
    "orphans-live": "workers survive a killed main process and keep their sockets",
    "fork-daemon": "leave a renamed daemon in its own session, with a wiped environment",
    "shm-bytes": "leave a file of this size in /dev/shm",
    "output-rate": "print this many lines per second",
    "memory-bytes": "allocate this much memory",
}

HELP = {**OWNED, **TUNING, **FAULTS}
ALIASES = {"crash-ranks": "fault-ranks"}
CHOICES = {
    "on-peer-loss": ("exit", "ignore", "hang"),
    "load-by": ("read", "mmap"),
    "crash-at": ("startup", "serving"),
    "hang-mode": ("idle", "busy", "blocked", "stopped"),
    "crash-process": ("main", "worker"),
}


class OptionError(ValueError):
    """An invalid option; the text names it, its value and what is accepted."""


class Options(Namespace):
    """The options of one rank, all with a value."""

    rank: int = 0
    size: int = 1
    peers: tuple[str, ...] = ("127.0.0.1",)
    peer_port: int = 29500
    port: int = 8000
    epoch: int = 1
    epoch_token: str = ""
    workers: int = 1
    model: str = "reference"
    served_model_name: tuple[str, ...] = ()

    host: str = "0.0.0.0"
    token_seconds: float = 0.01
    max_num_seqs: int = 256
    max_model_len: int = 16384
    startup_seconds: float = 0.0
    startup_quiet: bool = False
    load_rate: float = 0.0
    load_by: str = "read"
    compile_seconds: float = 0.0
    graph_seconds: float = 0.0
    join_seconds: float = 600.0
    shutdown_timeout: float = 10.0
    on_peer_loss: str = "exit"
    sleep_state: bool = False

    fault_ranks: tuple[int, ...] = ()
    fault_epochs: tuple[int, ...] = ()
    crash_after: float | None = None
    crash_at: str = "serving"
    crash_code: int = 1
    crash_signal: int = 0
    crash_process: str = "main"
    exit_zero_after: float | None = None
    hang_after: float | None = None
    hang_mode: str = "idle"
    unhealthy_after: float | None = None
    ignore_term: bool = False
    orphans_live: bool = False
    fork_daemon: bool = False
    shm_bytes: int = 0
    output_rate: float = 0.0
    memory_bytes: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Model names that requests may use; answers carry the first."""
        return self.served_model_name or (self.model,)

    @property
    def faulty(self) -> bool:
        """Whether injected faults apply to this rank and epoch."""
        return (not self.fault_ranks or self.rank in self.fault_ranks) and (
            not self.fault_epochs or self.epoch in self.fault_epochs
        )


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Parse a command line; REFERENCE_* variables are its defaults.

    Raises:
        OptionError: an unknown option, an invalid value, or options that contradict each other.
    """
    parser, options = _parser(), Options()
    for name in (*TUNING, *FAULTS):
        variable = "REFERENCE_" + _attribute(name).upper()
        if environ.get(variable):
            _read(parser, [f"--{name}={environ[variable]}"], options, variable)
    for unknown in _read(parser, argv, options):
        if not unknown.startswith("--"):
            raise OptionError(f"{unknown!r} is not an option of the reference engine")
        given = unknown[2:].partition("=")[0]
        like = nearest(given, HELP)
        meant = f"; did you mean --{like}?" if like else ""
        raise OptionError(f"--{given} is not an option of the reference engine{meant}")
    if not 0 <= options.rank < options.size:
        raise OptionError(f"--rank {options.rank} is outside of --size {options.size}")
    if len(options.peers) != options.size:
        raise OptionError(f"--peers has {len(options.peers)} addresses, --size is {options.size}")
    return options


def usage() -> str:
    """The text of ``--help``."""
    return _parser().format_help()


def _read(parser: ArgumentParser, argv: Sequence[str], options: Options, variable: str = "") -> list[str]:
    """Parse ``argv`` into ``options`` and return unknown words; errors name ``variable`` if the value came from one."""
    try:
        return parser.parse_known_args(argv, options)[1]
    except ArgumentError as error:
        raise OptionError(f"{variable or error.argument_name}: {error.message}") from None


def _parser() -> ArgumentParser:
    # No --help of its own: the launcher parses engine arguments too, and must not print and exit.
    usage = "python -m launcher.reference [options]"
    parser = ArgumentParser(usage=usage, add_help=False, allow_abbrev=False, exit_on_error=False)
    for title, options in (("set by the launcher", OWNED), ("tuning", TUNING), ("faults, for tests", FAULTS)):
        group = parser.add_argument_group(title)
        for name, text in options.items():
            default = getattr(Options, _attribute(name))
            shown = ",".join(default) if isinstance(default, tuple) else default
            flags = [f"--{name}", *(f"--{alias}" for alias, of in ALIASES.items() if of == name)]
            flag: dict[str, Any] = {"nargs": "?", "const": True, "metavar": "true|false"} if default is False else {}
            group.add_argument(
                *flags,
                type=_converter(str(Options.__annotations__[_attribute(name)])),
                choices=CHOICES.get(name),
                help=text if shown in (None, False, "") else f"{text} (default {shown})",
                **flag,
            )
    return parser


def _attribute(name: str) -> str:
    return name.replace("-", "_")


def _converter(kind: str) -> Callable[[str], object]:
    convert, expected = _KINDS[kind]

    def read(value: str) -> object:
        try:
            return convert(value)
        except (ValueError, KeyError, OverflowError):
            raise ArgumentTypeError(f"{value!r} is not {expected}") from None

    return read


def _at_least_zero(number: float) -> float:
    if not 0 <= number < float("inf"):
        raise ValueError(number)
    return number


def _integer(value: str) -> int:
    return int(_at_least_zero(int(value)))


def _number(value: str) -> float:
    return _at_least_zero(float(value))


def _items(value: str) -> tuple[str, ...]:
    return tuple(item for item in value.split(",") if item)


#: for each annotation in ``Options``: the converter and the words for what it accepts
_KINDS: dict[str, tuple[Callable[[str], object], str]] = {
    "int": (_integer, "a whole number, 0 or more"),
    "float": (_number, "a number, 0 or more"),
    "float | None": (_number, "a number, 0 or more"),
    "str": (str, "text"),
    "bool": (lambda value: {"true": True, "1": True, "false": False, "0": False}[value.lower()], "true or false"),
    "tuple[str, ...]": (_items, "a comma-separated list"),
    "tuple[int, ...]": (lambda value: tuple(map(_integer, _items(value))), "a comma-separated list of whole numbers"),
}
