"""Accelerate and the HF Trainer: attach, the callback, and checkpoints of every rank."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddp_compress as dc
from tests.frameworks.launched import dataset, flat, launched, loader, network

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
Callback: Any = transformers.TrainerCallback


def prepared() -> tuple[Any, ...]:
    accelerator = accelerate.Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    return accelerator, net, *accelerator.prepare(net, optimizer, loader())


def steps(accelerator: Any, model: Any, optimizer: Any, batches: Any) -> None:
    for inputs, targets in batches:
        optimizer.zero_grad()
        accelerator.backward(F.mse_loss(model(inputs), targets))
        optimizer.step()


def with_accelerate(folder: Path, registers: bool) -> tuple[bytes, bytes, int, int]:
    from ddp_compress.integrations.accelerate import attach

    def train(resume: bool) -> tuple[bytes, int]:
        accelerator, net, model, optimizer, batches = prepared()
        if registers:
            state = dc.attach(model, "topk", density=0.1)
            accelerator.register_for_checkpointing(dc.AllRanks(state))
        else:
            state = attach(accelerator, model, "topk", density=0.1)
            with pytest.raises(ValueError, match="name='discriminator'"):
                attach(accelerator, model, "topk", density=0.1)
        every = list(batches)
        if not resume:
            steps(accelerator, model, optimizer, every[:3])
            accelerator.save_state(folder)
        else:
            accelerator.load_state(folder)
        steps(accelerator, model, optimizer, every[3:])
        return flat(net.parameters()), state.stats.steps

    (whole, taken), (again, taken_again) = train(resume=False), train(resume=True)
    return whole, again, taken, taken_again


@pytest.mark.parametrize("registers", [False, True], ids=["attach", "register_for_checkpointing"])
def test_accelerate_saves_and_resumes_every_ranks_state(two_ranks, tmp_path, registers):
    for (whole, again, *taken), warned in two_ranks.run(
        2, launched, with_accelerate, tmp_path, registers
    ):
        assert whole == again
        assert taken == [6, 6]
        assert warned == []


def by_kwargs() -> str:
    handler = accelerate.DistributedDataParallelKwargs(comm_hook=dc.compress_hook)
    accelerator = accelerate.Accelerator(cpu=True, kwargs_handlers=[handler])
    with pytest.raises(TypeError) as caught:
        accelerator.prepare(network())
    return str(caught.value)


def test_a_hook_that_accelerate_does_not_know_is_refused(two_ranks):
    for message, _ in two_ranks.run(2, launched, by_kwargs):
        assert "compress_hook is none of the hooks that Accelerate's" in message
        assert "ddp_compress.integrations.accelerate.attach(accelerator, model, recipe)" in message


def unwrapped() -> tuple[str, int]:
    """What Accelerate hands out leads to its DDP model; itself it is no model."""
    accelerator, _, model, optimizer, batches = prepared()
    with pytest.raises(TypeError) as caught:
        dc.attach(accelerator, "topk", density=0.1)
    state = dc.attach(accelerator.unwrap_model(model), "topk", density=0.1)
    steps(accelerator, model, optimizer, batches)
    return str(caught.value), state.stats.steps


def test_attach_finds_what_accelerate_has_prepared(two_ranks):
    for (message, taken), warned in two_ranks.run(2, launched, unwrapped):
        assert "got Accelerator: with Accelerate it is what accelerator.prepare(model)" in message
        assert taken == 6
        assert warned == []


def by_itself() -> int:
    from ddp_compress.integrations.accelerate import attach

    accelerator, _, model, optimizer, batches = prepared()
    state = attach(accelerator, model, "topk", density=0.1, min_numel=10)
    steps(accelerator, model, optimizer, batches)
    return state.stats.steps


def test_one_process_trains_and_is_told_that_nothing_is_compressed(two_ranks):
    ((taken, warned),) = two_ranks.run(1, launched, by_itself)
    assert taken == 0
    assert "nothing is compressed: there is one process" in warned[0]


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self.net(inputs), labels)}


class Reporter(Callback):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.lines.append(dict(logs))


def trainer(folder: Path, number: int = 12) -> tuple[Any, Any, Reporter]:
    from ddp_compress.integrations.transformers import CompressionCallback

    compression, reporter = CompressionCallback("topk", density=0.1), Reporter()
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=number,
        per_device_train_batch_size=8,
        save_steps=4,
        logging_steps=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [
        {"inputs": inputs, "labels": labels}
        for inputs, labels in zip(*dataset().tensors, strict=True)
    ]
    made = transformers.Trainer(
        WithLoss(), args, train_dataset=data, callbacks=[compression, reporter]
    )
    return made, compression, reporter


def with_trainer(folder: Path) -> tuple[Any, ...]:
    whole, compression, reporter = trainer(folder)
    whole.train()
    weights = flat(whole.model.parameters())
    resumed, resuming, _ = trainer(folder)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    again = flat(resumed.model.parameters())
    stats, history = compression.state.stats, whole.state.log_history
    sent = [(each.steps, each.payload_bits) for each in (stats, resuming.state.stats)]
    whole.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    once_more, steps_then = flat(whole.model.parameters()), compression.state.step
    whole.args.max_steps = 20
    whole.train()
    after = once_more, steps_then, compression.state.step
    return weights, again, *sent, after, reporter.lines, history


def test_a_resumed_trainer_equals_the_uninterrupted_one(two_ranks, tmp_path):
    for outcome, warned in two_ranks.run(2, launched, with_trainer, tmp_path):
        weights, again, sent, resumed, after, lines, history = outcome
        assert weights == again
        assert sent == resumed
        assert sent[0] == 12
        assert after == (weights, 12, 12 + 20)
        assert [each["compression/steps"] for each in lines if "loss" in each][:3] == [4, 4, 4]
        assert history[0]["compression/density"] == pytest.approx(0.1, abs=0.01)
        assert warned == []


def resumed_without(folder: Path) -> tuple[int, int]:
    """The same Trainer resumes from weights beside which nothing is."""
    whole, compression, _ = trainer(folder)
    whole.train()
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(folder / "checkpoint-8" / "compression")
    torch.distributed.barrier()
    whole.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    return compression.state.step, compression.state.stats.steps


def test_a_trainer_that_resumes_without_the_state_begins_anew(two_ranks, tmp_path):
    for counts, warned in two_ranks.run(2, launched, resumed_without, tmp_path):
        assert counts == (4, 4)
        (message,) = warned
        assert "a density warm-up starts again" in message


def resumed_elsewhere(folder: Path) -> int:
    whole, _, _ = trainer(folder / "here")
    whole.train()
    other, _, _ = trainer(folder / "there")
    torch.nn.init.zeros_(other.model.net[0].weight)
    other.train()
    other, compression, _ = trainer(folder / "there")  # which has a step 8 of another training
    other.train(resume_from_checkpoint=str(folder / "here" / "checkpoint-8"))
    steps: int = compression.state.stats.steps
    return steps


def test_a_trainer_that_resumes_elsewhere_is_told_what_is_lost(two_ranks, tmp_path):
    for steps_taken, warned in two_ranks.run(2, launched, resumed_elsewhere, tmp_path):
        assert steps_taken == 4
        (message,) = warned
        assert "TrainingArguments(resume_from_checkpoint=...)" in message
