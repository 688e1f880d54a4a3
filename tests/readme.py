"""Ranks train with the documentation's own lines: torchrun --nproc_per_node=2 tests/readme.py

`package.py` runs it where torch and this package are all that is installed. Checkpoints are left in
the folder that it is run in.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parents[1]


def block(page: str, section: str, language: str, number: int = 0) -> str:
    """The code in a section of a page."""
    words = (ROOT / page).read_text()
    (text,) = re.findall(rf"^#+ {section}\n(.*?)(?=^#+ |\Z)", words, re.M | re.S)
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return found[number]


def main() -> None:
    """Run the lines, with some training between them."""
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)  # data and first weights differ between ranks
    names: dict[str, Any] = {
        "DistributedDataParallel": DistributedDataParallel,
        "model": network(),
        "rank": rank,
        "torch": torch,
    }
    run(names, "README.md", "ddp_compress")
    ddp_compress = names["dc"]
    assert Path(ddp_compress.__file__).is_relative_to(sys.prefix), "another copy was imported"
    assert ddp_compress.ops.NATIVE, "the kernels were not built"
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), 0.1)
    train(names["model"], names["optimizer"])
    run(names, "docs/checkpoints.md", "Checkpoints")
    train(names["model"], names["optimizer"])
    assert names["state"].stats.steps == 8

    names["model"] = network()
    names["ddp_model"] = DistributedDataParallel(names["model"])
    run(names, "docs/training_loops.md", "The plain PyTorch way")
    train(names["ddp_model"], torch.optim.SGD(names["model"].parameters(), 0.1))
    assert names["state"].stats.steps == 4

    names["model"] = network()
    run(names, "docs/local_updates.md", "Local updates")
    train(names["model"], names["optimizer"])
    assert names["state"].stats.steps == 1
    dist.destroy_process_group()


def run(names: dict[str, Any], page: str, section: str) -> None:
    """A section's first lines."""
    exec(compile(block(page, section, "python"), f"{page}, {section}", "exec"), names)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def train(model: nn.Module, optimizer: Any) -> None:
    """Four steps on random data, and what must hold of the weights."""
    before = flat(model)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    if hasattr(optimizer, "synchronize"):
        optimizer.synchronize()
    here, first = flat(model), flat(model)
    dist.broadcast(first, 0)
    assert torch.equal(here, first), "ranks must have the same weights"
    assert not torch.equal(here, before), "weights must change"


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


if __name__ == "__main__":
    main()
