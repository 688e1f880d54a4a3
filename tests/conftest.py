from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.distributed.harness import Ranks

torch.set_num_threads(1)  # tensors are tiny: threads would only wait for each other
settings.register_profile("calm", deadline=None, max_examples=50)  # busy machines are no failure
settings.load_profile("calm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `needs_cuda` where there is no GPU."""
    if torch.cuda.is_available():
        return
    without = [item for item in items if item.get_closest_marker("needs_cuda")]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes for frameworks alone: these leave much behind in a process."""
    with Ranks(2) as workers:
        yield workers
