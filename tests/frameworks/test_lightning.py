"""Lightning and Fabric: the callback, `attach`, and checkpoints that rank 0 writes."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ddp_compress as dc
from tests.frameworks.launched import flat, launched, loader, network

lightning: Any = pytest.importorskip("lightning.pytorch")
LightningModule: Any = lightning.LightningModule
DummyLogger: Any = lightning.loggers.logger.DummyLogger
DDPStrategy: Any = lightning.strategies.DDPStrategy


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-2)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-2, momentum=0.9)


def module(setup: Any = None, optimizer_of: Any = adamw) -> Any:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def setup(self, stage: str) -> None:
            if setup is not None:
                setup(self)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, targets = batch
            return F.mse_loss(self.net(inputs), targets)

        def validation_step(self, batch: Any, _: int) -> None:
            self.training_step(batch, _)

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    return Module()


class Logger(DummyLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append({"step": step, **metrics})


def fit(
    folder: Path,
    callbacks: list[Any],
    resume: Path | None = None,
    strategy: Any = "ddp",
    devices: int = 2,
    setup: Any = None,
    optimizer_of: Any = adamw,
    **options: Any,
) -> tuple[bytes, list[dict[str, float]]]:
    """Three epochs of six steps, or what is left of them; the weights, and what was logged."""
    loggers = [Logger(), Logger()]
    keep = lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=3,
        callbacks=[*callbacks, keep],
        logger=loggers,
        **{"log_every_n_steps": 3, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = module(setup, optimizer_of)
    trainer.fit(model, loader(), ckpt_path=resume)
    first, second = (str(each.lines) for each in loggers)
    assert first == second
    return flat(model.parameters()), loggers[0].lines


def resumed(folder: Path, options: dict[str, Any]) -> tuple[Any, ...]:
    from ddp_compress.integrations.lightning import CompressionCallback

    whole, resuming = (CompressionCallback("topk", density=0.1, **options) for _ in range(2))
    weights, lines = fit(folder / "whole", [whole])
    again, _ = fit(folder / "again", [resuming], folder / "whole" / "epoch=1.ckpt")
    assert whole.state
    assert resuming.state
    compressed = [each for each in lines if "compression/ratio" in each]
    stats = [each.state.stats for each in (whole, resuming) if each.state]
    return weights, again, *((each.steps, each.payload_bits) for each in stats), compressed


@pytest.mark.parametrize("options", [{}, {"period": 4}], ids=["every gradient", "rounds"])
def test_a_resumed_fit_equals_the_uninterrupted_one(two_ranks, tmp_path, options):
    outcomes = two_ranks.run(2, launched, resumed, tmp_path, options)
    for (weights, again, whole, resuming, lines), warned in outcomes:
        assert weights == again == outcomes[0][0][0]
        assert whole == resuming
        assert whole[0] == (5 if options else 18)  # the last round is at the end
        assert [each["step"] for each in lines] == [2, 5, 8, 11, 14, 17]
        assert warned == []


def accumulating(folder: Path) -> list[tuple[float, float]]:
    from ddp_compress.integrations.lightning import CompressionCallback

    callback = CompressionCallback("topk", density=0.1)
    _, lines = fit(folder, [callback], accumulate_grad_batches=2, log_every_n_steps=3)
    return [
        (each["step"], each["compression/steps"]) for each in lines if "compression/steps" in each
    ]


def test_accumulated_batches_are_a_step(two_ranks, tmp_path):
    for lines, warned in two_ranks.run(2, launched, accumulating, tmp_path):
        assert lines == [(2, 3), (5, 3), (8, 3)]
        assert warned == []


def with_sgd(folder: Path) -> list[bool]:
    """A first fit, and one that resumes without the state; what is said meanwhile."""
    from ddp_compress.integrations.lightning import CompressionCallback

    said = []
    fit(folder / "dense", [], optimizer_of=sgd)
    for resume in (None, folder / "dense" / "epoch=1.ckpt"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            callback = CompressionCallback("topk", density=0.1)
            fit(folder / "fit", [callback], resume, optimizer_of=sgd, log_every_n_steps=0)
        said.append(" ".join(str(each.message) for each in caught))
    return ["begins with nothing" in each for each in said]


def test_a_momentum_of_steps_before_is_told_of_and_none_else(two_ranks, tmp_path):
    for told, _ in two_ranks.run(2, launched, with_sgd, tmp_path):
        assert told == [False, True]


def other_ways(folder: Path) -> tuple[int, str]:
    """What was restored for a validation is no fit's; local steps do not become others."""
    from ddp_compress.integrations.lightning import CompressionCallback

    first = CompressionCallback("topk", density=0.1)
    fit(folder, [first])
    again = CompressionCallback("topk", density=0.1)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[again],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(module(), loader(), ckpt_path=folder / "epoch=2.ckpt", verbose=False)
    trainer.fit(module(), loader())
    assert again.state
    steps = again.state.stats.steps
    with pytest.raises(ValueError, match="period") as caught:
        fit(folder, [CompressionCallback("topk", density=0.1, period=4)], folder / "epoch=1.ckpt")
    return steps, str(caught.value)


def test_what_is_restored_belongs_to_the_fit_that_asked_for_it(two_ranks, tmp_path):
    for (steps, message), _ in two_ranks.run(2, launched, other_ways, tmp_path):
        assert steps == 6
        assert "saved without local steps, but CompressionCallback is with period=" in message


def by_ddp_strategy(folder: Path) -> None:
    """Lightning registers a hook on CUDA alone, and says nothing."""
    states = []

    class Strategy(DDPStrategy):
        def connect(self, model: Any) -> None:
            super().connect(model)
            states.append(dc.CompressionState(model, dc.recipes.topk(0.1)))
            self._ddp_comm_state, self._ddp_comm_hook = states[-1], dc.compress_hook

    fit(folder, [], strategy=Strategy())


def test_a_hook_that_lightning_does_not_register_is_told_of(two_ranks, tmp_path):
    for _, warned in two_ranks.run(2, launched, by_ddp_strategy, tmp_path):
        (message,) = warned
        assert "compresses nothing" in message
        assert "ddp_compress.integrations.lightning.CompressionCallback" in message


def too_early(folder: Path) -> str:
    with pytest.raises(TypeError) as caught:
        fit(folder, [], setup=lambda model: dc.attach(model, "topk", density=0.1))
    return str(caught.value)


def test_attach_before_there_is_a_ddp_model_says_when_there_is(two_ranks, tmp_path):
    for message, _ in two_ranks.run(2, launched, too_early, tmp_path):
        assert "Lightning makes it after setup()" in message
        assert "CompressionCallback" in message


def alone(folder: Path) -> Any:
    from ddp_compress.integrations.lightning import CompressionCallback

    callback = CompressionCallback("topk", density=0.1)
    fit(folder, [callback], strategy="auto", devices=1)
    return callback.state


def test_one_device_trains_and_is_told_that_nothing_is_compressed(two_ranks, tmp_path):
    ((state, warned),) = two_ranks.run(1, launched, alone, tmp_path)
    assert state is None
    assert "CompressionCallback does nothing" in warned[0]


def with_fabric(folder: Path) -> tuple[bytes, bytes, int, int]:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()

    def train(resume: bool) -> tuple[bytes, int]:
        net = network()
        model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), 1e-2))
        state = dc.attach(model, "topk", density=0.1)
        parts = {"model": model, "optimizer": optimizer, "compression": dc.AllRanks(state)}
        if resume:
            fabric.load(folder / "fabric.ckpt", parts)
        for number, (inputs, targets) in enumerate(fabric.setup_dataloaders(loader())):
            if number == 3 and not resume:
                fabric.save(folder / "fabric.ckpt", parts)
            if number < 3 and resume:
                continue
            optimizer.zero_grad()
            fabric.backward(F.mse_loss(model(inputs), targets))
            optimizer.step()
        return flat(net.parameters()), state.stats.steps

    (whole, steps), (again, steps_again) = train(resume=False), train(resume=True)
    return whole, again, steps, steps_again


def test_fabric_saves_and_resumes_every_ranks_state(two_ranks, tmp_path):
    for (whole, again, *steps), warned in two_ranks.run(2, launched, with_fabric, tmp_path):
        assert whole == again
        assert steps == [6, 6]
        assert warned == []
