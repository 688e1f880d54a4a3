"""What `Checkpoints` leaves behind, wherever a rank dies; folders, and savers that know rank 0."""

import gc
import os
import re
import resource
import shutil
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import train as example
from data import Split
from ddp_compress import (
    AllRanks,
    Checkpoints,
    CompressionState,
    PeerError,
    PerRank,
    checkpoints,
    compress_hook,
    recipes,
)
from ddp_compress.checkpoints.files import write
from tests.distributed.harness import Ranks
from tests.distributed.nodes import on_nodes
from tests.distributed.training import backward, memory, small_model, train, weights, wrap
from tests.table import ROWS


def begin(folder: Path) -> tuple[torch.nn.Module, CompressionState, Checkpoints]:
    ddp, state = wrap(small_model(), ROWS["topk"])
    return ddp, state, Checkpoints(folder, model=ddp.module, compression=state)


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
    ddp, state, newest = begin(folder)
    for step in range(newest.load() + 1, 10):
        if step == dies_at and dist.get_rank() == 1:
            if not dies_saving:
                os.kill(os.getpid(), signal.SIGKILL)
            newest.parts = {"model": Deadly()}
        train(ddp, [step - 1])
        if step % 2 == 0:
            newest.save(step)
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
    assert (latest.read_text() if latest.exists() else "") == left
    assert ranks.run(2, train_on, tmp_path, None, False) == ranks.run(2, undisturbed)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "latest", "step-6", "step-8",
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
    (tmp_path / "latest").write_text("step-4")
    for came in ranks.run(world_size, run_example, tmp_path, "topk", 1.0):
        assert came == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "latest").read_text() == "step-8"


def owed(folder: Path) -> tuple[int, str, torch.Tensor]:
    """What a rank starts from: a step, weights and a residual."""
    ddp, state, newest = begin(folder)
    step = newest.load()
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
    ddp, state, newest = begin(folder)
    for step in (2, 4):
        train(ddp, range(step - 2, step))
        newest.save(step)
    return ddp, state, newest


def failed_load(newest: Checkpoints) -> str:
    dist.barrier()  # all have done the damage that is theirs
    with pytest.raises(RuntimeError) as caught:
        newest.load()
    return str(caught.value)


def torn(folder: Path) -> str:
    _, _, newest = two_saved(folder)
    file = folder / "step-4" / "rank-1-of-2.pt"
    if dist.get_rank() == 1:
        file.write_bytes(file.read_bytes()[:1000])
    words = failed_load(newest)
    if dist.get_rank() == 1:
        (folder / "latest").write_text("step-2\n")  # as an editor does
    dist.barrier()
    assert newest.load() == 2
    return words


def test_a_damaged_file_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, torn, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4/rank-1-of-2.pt cannot be read")
        assert f"write the name of its folder into {tmp_path}/latest" in message


def flipped(folder: Path) -> list[str]:
    """A bit in each of many bytes of rank 1's file, one after another; what all ranks say."""
    ddp, state, newest = two_saved(folder)
    expected = weights(ddp), memory(state)
    file = folder / "step-4" / "rank-1-of-2.pt"
    whole, said = file.read_bytes(), []
    dist.barrier()
    for number in range(0, len(whole), len(whole) // 100):
        if dist.get_rank() == 1:
            file.write_bytes(
                whole[:number] + bytes([whole[number] ^ 1 << number % 8]) + whole[number + 1 :]
            )
        dist.barrier()
        try:
            newest.load()
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
    file = tmp_path / "step-4" / "rank-1-of-2.pt"
    assert all(each.startswith(f"rank 1: {file} cannot be read") for each in damaged)
    assert any("checksum of archive/data/0" in each for each in damaged), "in the model, too"


def marked(folder: Path, mark: str) -> str:
    _, _, newest = two_saved(folder)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "latest").write_text(mark)
    return failed_load(newest)


@pytest.mark.parametrize("mark", ["", "step-", "step-9", "../elsewhere", "\0"])
def test_a_foreign_mark_is_named_with_what_could_stand_there(ranks, tmp_path, mark):
    for message in ranks.run(2, marked, tmp_path, mark):
        assert message.startswith(f"rank 0: {tmp_path}/latest says {mark!r}, expected")
        assert "Write one of these into it: step-2, step-4." in message


def without_key(folder: Path) -> str:
    _, _, newest = two_saved(folder)
    file = folder / "step-4" / "rank-1-of-2.pt"
    if dist.get_rank() == 1:
        saved = torch.load(file, weights_only=True)
        del saved["compression"]
        torch.save(saved, file)
    return failed_load(newest)


def test_a_missing_part_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, without_key, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4/rank-1-of-2.pt lacks compression")
        assert "Train with those, or into another folder" in message


def other_model(folder: Path) -> str:
    _, _, newest = two_saved(folder)
    if dist.get_rank() == 1:
        newest.parts = {"model": torch.nn.Linear(3, 1)}
    return failed_load(newest)


def test_a_part_that_does_not_fit_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, other_model, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-4/rank-1-of-2.pt: 'model' cannot")


def on_a_full_disk(folder: Path) -> str:
    """Rank 1 may write no more than 1000 bytes a file."""
    ddp, _, newest = two_saved(folder)
    train(ddp, [4, 5])
    gc.collect()  # a process group that ends later would write to its store
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        with pytest.raises(RuntimeError) as caught:
            newest.save(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert newest.load() == 4
    newest.save(6)
    assert newest.load() == 6
    return str(caught.value)


def test_a_full_disk_is_named_on_every_rank(ranks, tmp_path):
    for message in ranks.run(2, on_a_full_disk, tmp_path):
        assert message.startswith(f"rank 1: {tmp_path}/step-6/rank-1-of-2.pt cannot be written")
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


# ------------------------------------------------------------- folders, on other ranks and nodes


def saved_whole(folder: Path, row: str) -> None:
    ddp, state = wrap(small_model(), ROWS[row])
    train(ddp, range(3))
    checkpoints.save(folder, model=ddp.module, compression=state)
    saved = AllRanks(state).state_dict()
    assert bool(saved) == (dist.get_rank() == 0)
    if saved:  # as savers do that know rank 0 alone
        torch.save(saved, folder / "all_ranks.pt")


def owed_by(folder: Path, row: str) -> tuple[dict[str, str], dict[str, str], int]:
    """What a rank keeps, by its files and by rank 0's."""
    kept = []
    for number in range(2):
        ddp, state = wrap(small_model(), ROWS[row])
        if number:
            saved = torch.load(folder / "all_ranks.pt", weights_only=True)
            AllRanks(state).load_state_dict(saved)
        else:
            checkpoints.load(folder, model=ddp.module, compression=state)
        kept.append(memory(state))
        backward(ddp, 3)  # which would tell of another rank's checkpoint
        assert state.step == 4
    return kept[0], kept[1], state.stats.steps


@pytest.mark.parametrize("row", ["dgc-golomb", "stc"])
def test_a_folder_and_rank_0_give_back_the_same_on_any_number_of_ranks(ranks, tmp_path, row):
    ranks.run(3, saved_whole, tmp_path, row)
    for size in (2, 3, 4):
        for by_folder, by_rank_0, steps in ranks.run(size, owed_by, tmp_path, row):
            assert by_folder == by_rank_0
            assert steps == 4


def test_a_folder_goes_on_with_other_nodes(ranks, tmp_path):
    ranks.run(4, on_nodes, 2, saved_whole, tmp_path, "topk")
    with_nodes = ranks.run(4, on_nodes, 2, owed_by, tmp_path, "topk")
    without = ranks.run(3, owed_by, tmp_path, "topk")
    assert len({str(kept) for kept, _, _ in with_nodes}) == 4
    assert all(by_folder == by_rank_0 for by_folder, by_rank_0, _ in [*with_nodes, *without])


def mixed(folder: Path) -> list[str]:
    """Files of several saves, or not of all ranks; a rank that fails to tell its state."""
    ddp, state = wrap(small_model(), ROWS["topk"])
    parts: dict[str, Any] = {"model": ddp.module, "compression": state}
    checkpoints.save(folder, **parts)
    kept = (folder / "rank-1-of-2.pt").read_bytes()
    dist.barrier()
    checkpoints.save(folder, **parts)
    messages = []

    def fails(act: Any) -> None:
        with pytest.raises(RuntimeError) as caught:
            act()
        messages.append(str(caught.value))

    if dist.get_rank() == 0:
        (folder / "rank-1-of-2.pt").write_bytes(kept)
    dist.barrier()
    fails(lambda: checkpoints.load(folder, **parts))
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "rank-1-of-2.pt").rename(folder / "rank-1-of-3.pt")
    dist.barrier()
    fails(lambda: checkpoints.load(folder, **parts))
    fails(lambda: checkpoints.load(folder / "nowhere", **parts))
    broken = state if dist.get_rank() == 0 else Broken()
    fails(lambda: AllRanks(broken).state_dict())
    fails(lambda: checkpoints.save(folder, compression=broken))
    foreign = torch.optim.SGD(ddp.parameters(), lr=Foreign(0.1))
    fails(lambda: AllRanks(foreign).state_dict())
    fails(lambda: checkpoints.save(folder, optimizer=foreign))
    return messages


class Foreign(float):
    """A number that a file gives back only by running our code, as numpy's are."""


class Broken:
    """Cannot tell what it carries."""

    def state_dict(self) -> dict[str, object]:
        raise ArithmeticError("no state")

    def load_state_dict(self, state_dict: object) -> None:
        """Has nothing to take back."""


def test_what_is_not_whole_is_an_error_on_every_rank(ranks, tmp_path):
    here, there = ranks.run(2, mixed, tmp_path)
    assert here == there
    words = ["are of several saves", "rank 1: .* expected those of all ranks that saved"]
    words += ["holds no file of any rank", "rank 1: no state", "rank 1: no state"]
    words += ["rank 0: SGD holds what a file gives back only", "rank 0: optimizer holds what"]
    for message, expected in zip(here, words, strict=True):
        assert re.search(expected, message), message


def by_others() -> list[str]:
    """As Accelerate saves: rank 0's own, or what only torch.distributed.checkpoint takes."""
    messages = []
    for wrapper in (PerRank, lambda state: state):
        ddp, state = wrap(small_model(), ROWS["topk"])
        wrapped = wrapper(state)
        backward(ddp, 0)
        saved: Any = [wrapped.state_dict()] if dist.get_rank() == 0 else [None]
        dist.broadcast_object_list(saved)
        try:
            wrapped.load_state_dict(saved[0])
        except ValueError as error:
            messages.append(str(error))
    with pytest.raises(PeerError) as caught:
        backward(ddp, 1)
    with pytest.raises(ValueError, match="call it on all ranks"):
        AllRanks(state).load_state_dict({})
    return [*messages, str(caught.value)]


def test_a_saver_that_knows_rank_0_alone_is_told_what_to_do(ranks):
    pytest.importorskip("numpy")
    (told,), (by_per_rank, by_state) = ranks.run(2, by_others)
    assert told == by_state
    assert "checkpoint was saved by rank 0 of 2, this is rank 1 of 2" in by_state
    assert "AllRanks(state)" in by_state
    assert "wants AllRanks(state)" in by_per_rank


def on_own_hosts(folder: Path) -> tuple[list[str], str, str]:
    """Ranks 0 and 1 share a folder, rank 2 has its own; then they come back in another order."""
    rank = dist.get_rank()
    ddp, state = wrap(small_model(), ROWS["topk"])
    train(ddp, range(2))
    mine, others = folder / ("there" if rank == 2 else "here"), folder / ("here", "there")[rank < 2]
    own = Checkpoints(mine, model=ddp.module, compression=state)
    for step in (2, 3, 4, 4):
        own.save(step)
    assert own.load() == 4
    left = sorted(each.name for each in mine.iterdir())
    with pytest.raises(RuntimeError) as swapped:
        Checkpoints(others, model=ddp.module, compression=state).load()
    if rank == 2:
        (mine / "latest").unlink()
    with pytest.raises(RuntimeError) as lost:
        own.load()
    return left, str(swapped.value), str(lost.value)


def test_hosts_that_share_no_folder_go_on_or_are_told(ranks, tmp_path):
    for left, swapped, lost in ranks.run(3, on_own_hosts, tmp_path):
        assert left == ["latest", "step-3", "step-4"]
        assert "there/step-4 holds rank-2-of-3.pt, expected those of all ranks" in swapped
        assert "find rank 0: step-4, rank 1: step-4, rank 2: none: let all hosts share" in lost


def after_a_clean_up(folder: Path) -> list[str]:
    """Somebody has removed what the mark names, and keeps files of their own there."""
    _ddp, _state, newest = begin(folder)
    newest.save(1)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder / "step-1")
        (folder / "step-1-best").mkdir()
        (folder / "step-notes.txt").touch()
    dist.barrier()
    newest.save(2)
    newest.save(3)
    newest.save(4)
    assert newest.load() == 4
    left = sorted(each.name for each in folder.iterdir())
    assert left == ["latest", "step-1-best", "step-3", "step-4", "step-notes.txt"]
    (folder / "step-4" / "rank-best-of-three.pt").touch()
    newest.save(4)
    return sorted(each.name for each in (folder / "step-4").iterdir())


def test_what_others_do_to_the_folder_ends_no_training(ranks, tmp_path):
    for names in ranks.run(2, after_a_clean_up, tmp_path):
        assert names == ["rank-0-of-2.pt", "rank-1-of-2.pt", "rank-best-of-three.pt"]


def on_one_host(folder: Path) -> dict[str, str]:
    """Nodes are those of hosts, and no torchrun tells how many ranks they have."""
    ddp = DistributedDataParallel(small_model())
    state = CompressionState(ddp, ROWS["topk"].recipe, within="node")
    ddp.register_comm_hook(state, compress_hook)
    train(ddp, range(2))
    checkpoints.save(folder, compression=state)
    resumed = CompressionState(DistributedDataParallel(small_model()), state.recipe, within="node")
    checkpoints.load(folder, compression=resumed)
    assert memory(state) == memory(resumed)
    return memory(state)


def test_nodes_that_torchrun_has_not_started_resume_on_as_many_ranks(ranks, tmp_path):
    here, there = ranks.run(2, on_one_host, tmp_path)
    assert here != there
