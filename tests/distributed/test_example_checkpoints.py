"""What `examples/checkpoints.py` leaves behind, wherever a rank dies."""

import os
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

import train as example
from checkpoints import Checkpoints, write
from data import Split
from ddp_compress import CompressionState, recipes
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


def run_example(folder: Path, recipe: str, density: float) -> list[float]:
    """Eight steps of `examples/train.py`, five batches an epoch; its losses from step five on."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=draw)
    images = TensorDataset(pixels, pixels.flatten(1).long().sum(1) % 10)
    args = Namespace(
        task="image", recipe=recipe, density=density, period=None, steps=8, warmup_steps=1,
        batch_size=14, lr=0.05, momentum=0.9, seed=3, checkpoint=folder, checkpoint_every=4,
        amp=None, growth_interval=100, federated_dropout=None,
    )  # fmt: skip
    torch.manual_seed(args.seed)
    made = getattr(recipes, recipe)(density=density, scope="tensor")
    report = example.train(args, made, Split(images, images), torch.device("cpu"))
    history = report.journal.history
    return [p.train_loss for p in history[4:]] + [history[-1].validation_loss]


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_example_goes_on_with_fewer_ranks_as_if_all_were_there(ranks, tmp_path, world_size):
    """At the right sample, with the same batches and rates: where nothing is left out, the same."""
    expected, *others = ranks.run(4, run_example, tmp_path, "topk", 1.0)
    assert others == [expected] * 3
    (tmp_path / "latest").write_text("step-4-of-4")
    for came in ranks.run(world_size, run_example, tmp_path, "topk", 1.0):
        assert came == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "latest").read_text() == f"step-8-of-{world_size}"


def owed(folder: Path) -> tuple[int, str, torch.Tensor]:
    """What a rank starts from: a step, weights and a residual."""
    ddp, state, checkpoints = begin(folder)
    step = checkpoints.load(torch.device("cpu"))
    residual = state.state_dict()["tensors"]["residual"]
    return step, weights(ddp), torch.cat([each.flatten() for each in residual.values()])


def test_other_ranks_start_with_the_same_weights_and_owe_as_much(ranks, tmp_path):
    ranks.run(3, train_on, tmp_path, None, False)
    starts = {size: ranks.run(size, owed, tmp_path) for size in (2, 3, 4)}
    assert {start[:2] for each in starts.values() for start in each} == {(8, starts[3][0][1])}
    means = {size: torch.stack([s[2] for s in each]).mean(0) for size, each in starts.items()}
    assert means[3].any()
    for mean in means.values():
        largest = means[3].abs().max().item()
        torch.testing.assert_close(mean, means[3], rtol=0.0, atol=1e-6 * largest)


def torn(folder: Path) -> str:
    ddp, _, checkpoints = begin(folder)
    train(ddp, range(2))
    checkpoints.save(2)
    train(ddp, range(2, 4))
    checkpoints.save(4)
    file = folder / "step-4-of-1" / "rank-0.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RuntimeError) as caught:
        checkpoints.load(torch.device("cpu"))
    (folder / "latest").write_text("step-2-of-1")
    assert checkpoints.load(torch.device("cpu")) == 2
    return str(caught.value)


def test_a_damaged_file_is_named(ranks, tmp_path):
    for message in ranks.run(1, torn, tmp_path):
        assert f"{tmp_path}/step-4-of-1/rank-0.pt cannot be read" in message
        assert f"write the name of its folder into {tmp_path}/latest" in message


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "latest"
    write(file, lambda f: f.write(b"old"))

    def fails(f):
        f.write(b"ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write(file, fails)
    assert file.read_bytes() == b"old"
