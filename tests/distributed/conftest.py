from collections.abc import Iterator

import pytest

from tests.distributed.harness import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Four worker processes for all tests; a test uses as many as it asks for."""
    with Ranks(4) as workers:
        yield workers
