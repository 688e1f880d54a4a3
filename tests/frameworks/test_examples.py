"""The frameworks' examples train on two ranks, and a resumed training goes on as it would have."""

from pathlib import Path
from typing import Any

import pytest

from tests.examples import run
from tests.frameworks.launched import flat, forget_ranks, launched


def left(script: str, folder: Path, words: str) -> tuple[bytes, int, int]:
    """The weights that a script leaves; the steps that its state has taken, and their bits."""
    forget_ranks()
    names = run(script, folder, words)
    model = names.get("model") or names["trainer"].lightning_module
    stats = state(names).stats
    return flat(model.parameters()), stats.steps, stats.payload_bits


def state(names: dict[str, Any]) -> Any:
    """A script's own, or that of its Trainer's callback."""
    if "state" in names:
        return names["state"]
    trainer = names["trainer"]
    callbacks = getattr(trainer, "callbacks", None) or trainer.callback_handler.callbacks
    (found,) = (each for each in callbacks if type(each).__name__ == "CompressionCallback")
    return found.state


def three_runs(script: str, folder: Path, first: str, then: str, resume: str) -> tuple[Any, ...]:
    """One from end to end; and one that goes on from a third, which ended earlier."""
    left(script, folder / "cut", first)
    resumed = left(script, folder / "cut", f"{then} {resume}")
    return left(script, folder / "whole", then), resumed


EPOCHS = ("--epochs 1", "--epochs 2")


@pytest.mark.parametrize(
    ("framework", "script", "first", "then", "resume", "steps"),
    [
        ("lightning", "with_lightning.py", *EPOCHS, "", 24),
        ("lightning", "with_fabric.py", *EPOCHS, "--resume runs/fabric/epoch-1.ckpt", 24),
        ("accelerate", "with_accelerate.py", *EPOCHS, "--resume runs/accelerate/epoch_1", 24),
        ("transformers", "with_trainer.py", "--steps 5", "--steps 8", "", 8),
    ],
    ids=["lightning", "fabric", "accelerate", "trainer"],
)
def test_an_example_trains_and_resumes(
    two_ranks, tmp_path, framework, script, first, then, resume, steps
):
    pytest.importorskip(framework)
    outcomes = two_ranks.run(2, launched, three_runs, script, tmp_path, first, then, resume)
    for (whole, resumed), warned in outcomes:
        if script == "with_fabric.py":  # whose loader begins with the first order again
            whole, resumed = whole[1:], resumed[1:]
        assert resumed == whole
        assert whole[-2] == steps
        assert warned == []
