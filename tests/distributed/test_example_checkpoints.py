"""What `examples/checkpoints.py` leaves behind, wherever a rank dies."""

import os
import resource
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
        amp=None, growth_interval=100, federated_dropout=None, within=None,
        shard=None, diloco=False, evaluations=8,
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


def two_saved(folder: Path) -> tuple[torch.nn.Module, CompressionState, Checkpoints]:
    """Checkpoints after steps 2 and 4, of as many ranks as there are."""
    ddp, state, checkpoints = begin(folder)
    for step in (2, 4):
        train(ddp, range(step - 2, step))
        checkpoints.save(step)
    return ddp, state, checkpoints


def failed_load(checkpoints: Checkpoints) -> str:
    dist.barrier()  # all have done the damage that is theirs
    with pytest.raises(RuntimeError) as caught:
        checkpoints.load(torch.device("cpu"))
    return str(caught.value)


def torn(folder: Path) -> str:
    _, _, checkpoints = two_saved(folder)
    file = folder / "step-4-of-2" / "rank-1.pt"
    if dist.get_rank() == 1:
        file.write_bytes(file.read_bytes()[:1000])
    words = failed_load(checkpoints)
    if dist.get_rank() == 1:
        (folder / "latest").write_text("step-2-of-2\n")  # as an editor does
    dist.barrier()
    assert checkpoints.load(torch.device("cpu")) == 2
    return words


def test_a_damaged_file_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, torn, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4-of-2/rank-1.pt cannot be read")
        assert f"write the name of its folder into {tmp_path}/latest" in message


def flipped(folder: Path) -> list[str]:
    """A bit in each of many bytes of rank 1's file, one after another; what all ranks say."""
    ddp, state, checkpoints = two_saved(folder)
    expected = weights(ddp), memory(state)
    file = folder / "step-4-of-2" / "rank-1.pt"
    whole, said = file.read_bytes(), []
    dist.barrier()
    for number in range(0, len(whole), len(whole) // 100):
        if dist.get_rank() == 1:
            file.write_bytes(
                whole[:number] + bytes([whole[number] ^ 1 << number % 8]) + whole[number + 1 :]
            )
        dist.barrier()
        try:
            checkpoints.load(torch.device("cpu"))
            assert (weights(ddp), memory(state)) == expected, "a bit that nothing is read from"
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
        dist.barrier()
    return said


def test_a_flipped_bit_is_an_error_on_every_rank(ranks, tmp_path):
    """Or changes nothing: some bytes of a zip file only fill it up."""
    here, there = ranks.run(2, flipped, tmp_path)
    assert here == there
    damaged = [each for each in here if each]
    assert len(damaged) > 50
    file = tmp_path / "step-4-of-2" / "rank-1.pt"
    assert all(each.startswith(f"rank 1: {file} cannot be read") for each in damaged)
    assert any("checksum of archive/data/0" in each for each in damaged), "in the model, too"


def marked(folder: Path, mark: str) -> str:
    _, _, checkpoints = two_saved(folder)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "latest").write_text(mark)
    return failed_load(checkpoints)


@pytest.mark.parametrize("mark", ["", "step-4-of-", "step-9-of-2", "../elsewhere", "\0"])
def test_a_foreign_mark_is_named_with_what_could_stand_there(ranks, tmp_path, mark):
    for message in ranks.run(2, marked, tmp_path, mark):
        assert message.startswith(f"rank 0: {tmp_path}/latest says {mark!r}, expected")
        assert "Write one of these into it: step-2-of-2, step-4-of-2." in message


def without_key(folder: Path) -> str:
    _, _, checkpoints = two_saved(folder)
    file = folder / "step-4-of-2" / "rank-1.pt"
    if dist.get_rank() == 1:
        saved = torch.load(file, weights_only=True)
        del saved["compression"]
        torch.save(saved, file)
    return failed_load(checkpoints)


def test_a_missing_part_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, without_key, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4-of-2/rank-1.pt lacks compression")
        assert "Train with those, or into another folder" in message


def other_model(folder: Path) -> str:
    _, _, checkpoints = two_saved(folder)
    if dist.get_rank() == 1:
        checkpoints.parts = {"model": torch.nn.Linear(3, 1)}
    return failed_load(checkpoints)


def test_a_part_that_does_not_fit_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, other_model, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4-of-2/rank-1.pt: 'model' cannot")


def on_a_full_disk(folder: Path) -> str:
    """Rank 1 may write no more than 1000 bytes a file."""
    ddp, _, checkpoints = two_saved(folder)
    train(ddp, [4, 5])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        with pytest.raises(RuntimeError) as caught:
            checkpoints.save(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert checkpoints.load(torch.device("cpu")) == 4
    checkpoints.save(6)
    assert checkpoints.load(torch.device("cpu")) == 6
    return str(caught.value)


def test_a_full_disk_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, on_a_full_disk, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-6-of-2/rank-1.pt cannot be written")
        assert "make room" in message


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "latest"
    write(file, lambda f: f.write(b"old"))

    def fails(f):
        f.write(b"ne")
        raise OSError("no space left")

    with pytest.raises(RuntimeError, match=f"^{file} cannot be written.*OSError: no space left"):
        write(file, fails)
    assert file.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["latest"]
