from collections.abc import Iterator

import pytest

from tests.distributed.harness import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes for frameworks alone: these leave much behind in a process."""
    with Ranks(2) as workers:
        yield workers
