"""The plain DDP examples train on two ranks, and a resumed training goes on as it would have."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.examples import run
from tests.frameworks.launched import flat, launched


def three_runs(script: str, folder: Path, saved: str, words: str, first: str, then: str) -> tuple:
    """What is saved by one from end to end, and by one that ends earlier and is resumed."""
    cut, whole = folder / "cut", folder / "whole"
    run(script, cut, f"{words} {first}")
    run(script, cut, f"{words} {then} --resume")
    run(script, whole, f"{words} {then}")
    dist.barrier()  # rank 0 saves
    checkpoints = [torch.load(each / saved) for each in (cut, whole)]
    return tuple(
        (flat(each["model"].values()), sorted(each["compression"])) for each in checkpoints
    )


@pytest.mark.parametrize(
    ("script", "saved", "words", "first", "then"),
    [
        (
            "gpt.py",
            "runs/gpt/ckpt.pt",
            f"--data {Path(__file__).parents[2] / 'bench' / 'RESULTS.md'} --eval-interval 4",
            "--max-iters 4",
            "--max-iters 8",
        ),
        pytest.param(
            "imagenet.py",
            "checkpoint.pth.tar",
            "--dummy 64 --size 32 --batch-size 8 --workers 0 --lr 0.01",
            "--epochs 1",
            "--epochs 2",
            marks=pytest.mark.skipif(not find_spec("torchvision"), reason="needs torchvision"),
        ),
    ],
    ids=["gpt", "imagenet"],
)
def test_an_example_trains_and_resumes(ranks, tmp_path, script, saved, words, first, then):
    outcomes = ranks.run(2, launched, three_runs, script, tmp_path, saved, words, first, then)
    for (resumed, whole), warned in outcomes:
        assert resumed == whole
        assert whole[1] == ["rank 0 of 2", "rank 1 of 2"]
        assert warned == []
