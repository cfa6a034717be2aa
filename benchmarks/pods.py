"""Groups of pods for benchmarks: the tests' own (tests/pods.py), with the words of a benchmark that can't run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from launcher.errors import ConfigError
from tests.pods import Cluster, why_not
from tests.real.install import cache
from tests.real.launched import LaunchedGroup

SERVING_SECONDS = 300.0


def need_pods() -> None:
    """Raises ConfigError where network namespaces can't be made."""
    reason = why_not()
    if reason:
        raise ConfigError(f"this benchmark needs pods: {reason}", "see benchmarks/README.md, What each one needs")


@contextlib.contextmanager
def group_of(size: int, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[LaunchedGroup]:
    """A group of ``size`` pods that serves; ended at the end of the block, whatever came of it."""
    need_pods()
    with Cluster(shared=[cache()]) as cluster:
        group = LaunchedGroup(cluster, size, list(arguments), env)
        group.start_all()
        group.until_serving(seconds=SERVING_SECONDS)
        try:
            yield group
        finally:
            for process in group.processes.values():
                process.kill_all()
