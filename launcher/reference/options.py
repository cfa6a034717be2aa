"""The reference engine's command line: what the launcher says (owned), what a user may say, what a test may inject.

Each option that is not the launcher's can be given by a variable too: ``--token-seconds`` is REFERENCE_TOKEN_SECONDS.
The annotations and values of ``Options`` are the types and defaults; nothing else repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from launcher.common.text import nearest

#: said by the launcher's planner, never by a user
OWNED = {
    "rank": "this rank, 0 is the leader",
    "size": "ranks in the group",
    "peers": "addresses by rank, comma-separated",
    "peer-port": "where ranks listen for one another, each on its own address",
    "port": "where rank 0 serves HTTP",
    "epoch": "number of the epoch",
    "epoch-token": "only ranks with the same token join one chain",
    "workers": "worker processes in this rank",
    "model": "name that requests ask for, where --served-model-name is not given",
    "served-model-name": "names that requests may ask for, comma-separated",
}

TUNING = {
    "host": "where rank 0's HTTP server binds",
    "token-seconds": "time that one token takes at least",
    "max-num-seqs": "requests that run at the same time; others wait",
    "max-model-len": "largest number of tokens of one answer",
    "startup-seconds": "how long the start of every rank takes",
    "startup-quiet": "print nothing while starting",
    "join-seconds": "give up when the chain is not whole by then; 0 waits for ever",
    "shutdown-timeout": "how long a terminated rank 0 finishes the requests that it has",
    "on-peer-loss": (
        "exit: end with 1 at once; ignore: notice nothing until the next request, which fails and ends rank 0, as vLLM "
        "does; hang: live on, answers never come"
    ),
    "sleep-state": "start asleep (POST /wake_up and /sleep change it)",
}

FAULTS = {
    "fault-ranks": "ranks that the options below are for, comma-separated; all by default (also --crash-ranks)",
    "fault-epochs": "numbers of epochs that they are for; all by default",
    "crash-after": "end so many seconds after --crash-at",
    "crash-at": "startup: counted from the process's start; serving: from the moment the chain works",
    "crash-code": "exit code of the crash",
    "crash-signal": "number of the signal that the crash is, instead of a code",
    "crash-process": "main or worker: which process of the rank it is",
    "exit-zero-after": "end with 0 so many seconds after serving began, unasked",
    "hang-after": "pass no token on so many seconds after serving began, but live on and look healthy",
    "unhealthy-after": "answer /health with 503 so many seconds after serving began",
    "ignore-term": "take no notice of SIGTERM",
    "orphans-live": "workers outlive a killed main process and keep their sockets",
    "fork-daemon": "leave a daemon in its own session, renamed and with a wiped environment",
    "shm-bytes": "leave a file of this size in /dev/shm",
    "output-rate": "print so many lines a second",
    "memory-bytes": "take so much memory",
}

HELP = {**OWNED, **TUNING, **FAULTS}
ALIASES = {"crash-ranks": "fault-ranks"}
CHOICES = {
    "on-peer-loss": ("exit", "ignore", "hang"),
    "crash-at": ("startup", "serving"),
    "crash-process": ("main", "worker"),
}


class OptionError(ValueError):
    """An option that cannot be read; the text says which, its value and what is accepted."""


class Options:
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
    unhealthy_after: float | None = None
    ignore_term: bool = False
    orphans_live: bool = False
    fork_daemon: bool = False
    shm_bytes: int = 0
    output_rate: float = 0.0
    memory_bytes: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model that requests may ask for; the first is what answers say."""
        return self.served_model_name or (self.model,)

    @property
    def faulty(self) -> bool:
        """Whether the injected faults are for this rank and epoch."""
        return (not self.fault_ranks or self.rank in self.fault_ranks) and (
            not self.fault_epochs or self.epoch in self.fault_epochs
        )


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Options from a command line, with REFERENCE_* variables below it.

    Raises:
        OptionError: an option or value that cannot be read, or values that contradict one another.
    """
    options = Options()
    for name in (*TUNING, *FAULTS):
        variable = "REFERENCE_" + name.upper().replace("-", "_")
        if environ.get(variable):
            _set(options, name, environ[variable], variable)
    for name, value in split(argv):
        _set(options, name, value, f"--{name}")
    if not 0 <= options.rank < options.size:
        raise OptionError(f"--rank {options.rank} is outside of --size {options.size}")
    if len(options.peers) != options.size:
        raise OptionError(f"--peers has {len(options.peers)} addresses, --size is {options.size}")
    return options


def split(argv: Sequence[str]) -> list[tuple[str, str]]:
    """A command line as (option, value) pairs, aliases resolved; the value of a flag is ``true``.

    Raises:
        OptionError: an unknown option, a value that is missing or stands alone.
    """
    found, words = [], iter(argv)
    for item in words:
        if not item.startswith("--"):
            raise OptionError(f"{item!r} is not an option of the reference engine")
        given, equals, value = item[2:].partition("=")
        name = ALIASES.get(given, given)
        if name not in HELP:
            like = nearest(given, HELP)
            hint = f"; did you mean --{like}?" if like else ""
            raise OptionError(f"--{given} is not an option of the reference engine{hint}")
        if not equals:
            if _kind(name) == "bool":
                value = "true"
            else:
                following = next(words, None)
                if following is None:
                    raise OptionError(f"--{given} needs a value")
                value = following
        found.append((name, value))
    return found


def usage() -> str:
    """The text of ``--help``."""
    rows = ["usage: python -m launcher.reference [options]"]
    for title, group in (("said by the launcher", OWNED), ("tuning", TUNING), ("faults, for tests", FAULTS)):
        rows += ["", f"{title}:"]
        for name, text in group.items():
            default = getattr(Options, _attribute(name))
            shown = "" if default in (None, False, (), "") else f" (default {_shown(default)})"
            rows.append(f"  --{name:<18} {text}{shown}")
    return "\n".join(rows)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _attribute(name: str) -> str:
    return name.replace("-", "_")


def _kind(name: str) -> str:
    return str(Options.__annotations__[_attribute(name)])


def _set(options: Options, name: str, value: str, origin: str) -> None:
    if name in CHOICES and value not in CHOICES[name]:
        raise OptionError(f"{origin} {value!r} is not one of {', '.join(CHOICES[name])}")
    kind = _kind(name)
    try:
        setattr(options, _attribute(name), _READERS[kind](value))
    except (ValueError, KeyError, OverflowError):
        raise OptionError(f"{origin} {value!r} is not {_WORDS[kind]}") from None


def _at_least_zero(number: float) -> float:
    if not 0 <= number < float("inf"):
        raise ValueError(number)
    return number


def _integer(value: str) -> int:
    return int(_at_least_zero(int(value)))


def _items(value: str) -> list[str]:
    return [item for item in value.split(",") if item]


_READERS: dict[str, Callable[[str], object]] = {
    "int": _integer,
    "float": lambda value: _at_least_zero(float(value)),
    "float | None": lambda value: _at_least_zero(float(value)),
    "str": str,
    "bool": lambda value: {"true": True, "1": True, "false": False, "0": False}[value.lower()],
    "tuple[str, ...]": lambda value: tuple(_items(value)),
    "tuple[int, ...]": lambda value: tuple(_integer(item) for item in _items(value)),
}
_WORDS = {
    "int": "a whole number, 0 or more",
    "float": "a number, 0 or more",
    "float | None": "a number, 0 or more",
    "str": "text",
    "bool": "true or false",
    "tuple[str, ...]": "a comma-separated list",
    "tuple[int, ...]": "a comma-separated list of whole numbers",
}
