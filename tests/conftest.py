"""What several suites share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.pods import Cluster, why_not

os.environ["COLUMNS"] = "120"  # what people see is wrapped to their terminal; in CI there is none


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A network of pods; the test is skipped where none can be made."""
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    with Cluster() as made:
        yield made
