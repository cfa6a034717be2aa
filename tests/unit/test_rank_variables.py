"""Variables for one role."""

from __future__ import annotations

from launcher.planning import rank_variables
from tests.manifests import settings_of

POD = {"A": "both", "LAUNCHER_LEADER_ENV_A": "leader's", "LAUNCHER_WORKER_ENV_B": "workers'", "LAUNCHER_TP": "2"}


def test_each_role_sees_its_own() -> None:
    assert rank_variables.environment(POD, 0) == {"A": "leader's", "LAUNCHER_TP": "2"}
    assert (
        rank_variables.environment(POD, 1)
        == rank_variables.environment(POD, 7)
        == {"A": "both", "B": "workers'", "LAUNCHER_TP": "2"}
    )


def test_they_are_no_unknown_options() -> None:
    settings, _, warnings = settings_of(["--engine", "reference"], POD)
    assert (settings.tp, warnings) == (2, ())
