"""What `examples/checkpoints.py` leaves behind, wherever a rank dies."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from checkpoints import Checkpoints, write
from ddp_compress import CompressionState
from tests.distributed.harness import Ranks
from tests.distributed.training import memory, small_model, train, weights, wrap
from tests.table import ROWS


def begin(folder: Path) -> tuple[torch.nn.Module, CompressionState, Checkpoints]:
    ddp, state = wrap(small_model(), ROWS["topk"])
    parts = {"model": ddp.module, "compression": state}
    return ddp, state, Checkpoints(folder, 2, parts)


class Deadly:
    """Kills who saves it."""

    def state_dict(self) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def load_state_dict(self, state_dict: object) -> None:
        """Has nothing to take back."""


def undisturbed() -> tuple[str, dict[str, str]]:
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, range(9))
    return weights(ddp), memory(state)


def train_on(folder: Path, dies_at: int | None, dies_saving: bool) -> tuple[str, dict[str, str]]:
    ddp, state, checkpoints = begin(folder)
    for step in range(checkpoints.load(torch.device("cpu")) + 1, 10):
        if step == dies_at and dist.get_rank() == 1:
            if not dies_saving:
                os.kill(os.getpid(), signal.SIGKILL)
            checkpoints.parts = {"model": Deadly()}
        train(ddp, [step - 1])
        checkpoints.save(step)
    return weights(ddp), memory(state)


@pytest.mark.parametrize(
    ("dies_at", "dies_saving", "left"), [(7, False, "step-6"), (8, True, "step-6"), (1, False, "")]
)
def test_a_killed_training_goes_on_from_the_last_complete_checkpoint(
    ranks, tmp_path, dies_at, dies_saving, left
):
    """Also where one rank died while others had saved; the end is as if nothing had happened."""
    with Ranks(2) as unlucky:
        outcomes = unlucky.outcomes(2, train_on, tmp_path, dies_at, dies_saving)
    assert "ended with code -9" in str(outcomes[1].error)
    latest = tmp_path / "latest"
    assert (latest.read_text() if latest.exists() else "") == (left and f"{left}-of-2")
    assert ranks.run(2, train_on, tmp_path, None, False) == ranks.run(2, undisturbed)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "latest", "step-6-of-2", "step-8-of-2",
    ]  # fmt: skip


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "latest"
    write(file, lambda f: f.write(b"old"))

    def fails(f):
        f.write(b"ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write(file, fails)
    assert file.read_bytes() == b"old"
