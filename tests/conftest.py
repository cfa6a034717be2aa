"""What several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pods import Cluster, why_not


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A network of pods; the test is skipped where none can be made."""
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    with Cluster() as made:
        yield made
