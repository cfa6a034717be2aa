"""How the launcher ends: exit codes with one meaning each, and the error that a user's mistake becomes.

The codes follow sysexits.h where it has a word for the case. An engine that failed keeps its own code (128 + n for
signal n), so these are only for endings that are the launcher's to name.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the launcher. Anything else is the engine's own code."""

    OK = 0  #: drained, or a declarative engine with ``completes = true`` that ended well
    USAGE = 64  #: the command line is wrong (EX_USAGE)
    UNAVAILABLE = 69  #: the leader or the peers never came (EX_UNAVAILABLE)
    SOFTWARE = 70  #: a bug of ours (EX_SOFTWARE)
    PEERS_LOST = 75  #: peers were lost and the restart budget is spent (EX_TEMPFAIL)
    ENGINE_ENDED = 76  #: the engine exited with 0 unexpectedly (EX_PROTOCOL)
    CONFIG = 78  #: the configuration cannot work (EX_CONFIG)


class LauncherError(Exception):
    """Something a person can mend: printed as one message, without a stack trace.

    ``message`` says what was wrong, with the value and where it came from; ``fix`` says what to do.
    """

    code: ExitCode = ExitCode.SOFTWARE

    def __init__(self, message: str, fix: str = "") -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


class UsageError(LauncherError):
    """A flag, variable or file entry that cannot be read (exit code 64)."""

    code = ExitCode.USAGE


class ConfigError(LauncherError):
    """Settings that can be read but cannot work together or here (exit code 78)."""

    code = ExitCode.CONFIG


class NoIdentityError(ConfigError):
    """A group is wanted and nothing tells who this pod is; ``launcher plan`` can do without."""


class UnavailableError(LauncherError):
    """The leader or the peers did not come within ``--join-timeout`` (exit code 69)."""

    code = ExitCode.UNAVAILABLE


#: What to do about a value in which a variable still stands.
UNREPLACED = "Kubernetes replaces $(NAME) in command and args, where env has NAME; $NAME and ${NAME} are a shell's"
