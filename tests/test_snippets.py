"""What pages tell people to type: Python runs, and commands, files and options exist.

A page's Python blocks run one after another in one process, with the names that a reader has by
then: those of `at_hand`, and before a section those of `BEFORE`. What cannot run says why, in a
comment in front of the block: ``<!-- not run: it needs ... -->``. Devices are the CPU. Blocks of
`docs/frameworks.md` are whole scripts: see `tests/frameworks/test_page.py`.
"""

import copy
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.run import get_args_parser
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import ddp_compress as dc

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SCRIPTS = "docs/frameworks.md"
PIECE = re.compile(
    r"(?:^<!-- not run: (.+?) -->\n+)?^```(\w*)\n(.*?)^```|^#+ ([^\n]*)$", re.M | re.S
)

SMALLER = {  # and without a GPU, or another rank
    '"cuda"': '"cpu"',
    "EPOCHS, WARM_UP = 90, 4": "EPOCHS, WARM_UP = 2, 1",
    "GradScaler()": 'GradScaler("cpu")',
    "num_workers=4": "num_workers=0",
    "ranks_per_node=8": "ranks_per_node=1",
    "step=0.35)": "step=0.35, link=dc.Link(1e9, 1e-3), ranks=4, recipes=[])",
    '"/shared/': '"',
    "% 1000": "% 10",
    "SITES, STEPS, PERIOD = 2, 20_000, 10": "SITES, STEPS, PERIOD = 1, 20, 10",
}
DDP = "model = DistributedDataParallel(model)"
ATTACHED = f"{DDP}; state = dc.attach(model, 'topk', density=0.1); optimizer = sgd(model)"
BEFORE = {
    ("docs/checkpoints.md", "Checkpoints"): ATTACHED,
    ("docs/checkpoints.md", "torch.distributed.checkpoint"): (
        "import torch.distributed.checkpoint as dcp"
    ),
    ("docs/checkpoints.md", "With another number of ranks"): (
        "saved = {'compression': state.state_dict()}; "
        "[torch.save(saved, f'checkpoint-{old}.pt') for old in range(4)]"
    ),
    ("docs/index.md", "4. What to look at"): "optimizer = sgd(model)",
    ("docs/local_updates.md", "Local updates"): "",
    ("docs/nodes.md", "Nodes of several GPUs"): DDP,
    ("docs/nodes.md", "Checkpoints"): (
        "old_world_size = 1; torch.save({'compression': state.state_dict()}, 'checkpoint-0.pt')"
    ),
    ("docs/recipes.md", "Shared masks: `majority_vote` and `hgc`"): DDP,
    ("docs/sharded_models.md", "Sharded models"): (
        "Model = Blocks; replicas = shards = 1; optimizer = sgd(model)"
    ),
    ("docs/sharded_models.md", "Several passes a step"): "parts = [batch, batch]",
    ("docs/sharded_models.md", "Checkpoints"): "folder = 'checkpoints'; old_replicas = 1",
    ("docs/sharded_models.md", "Local updates"): "model = sharded(mesh)",
    ("docs/training_loops.md", "The plain PyTorch way"): (
        "ddp_model = DistributedDataParallel(network())"
    ),
    ("docs/training_loops.md", "Gradients that are not applied"): (
        f"{ATTACHED}; discriminator = DistributedDataParallel(network(1, 1)); "
        "generator, noise, real = network(8, 1), torch.randn(4, 8), torch.ones(4, 1); "
        "optimizer_g = sgd(generator); limit = 1e-3; sam = Sam(optimizer)"
    ),
    ("docs/training_loops.md", "Mixed precision"): f"model = network(); {ATTACHED}",
    ("docs/which_recipe.md", "Every step in place of every tenth"): (
        "model = sharded(init_device_mesh('cpu', (1, 1), mesh_dim_names=('site', 'shard')))"
    ),
}


class Block(NamedTuple):
    """One of a page."""

    page: str
    section: str
    language: str
    reason: str  # why it is not run
    code: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Those of a page, with the section that each stands in."""
    name, section, found = page.relative_to(ROOT).as_posix(), "", []
    for reason, language, code, title in PIECE.findall(page.read_text()):
        section = title or section
        found.append(Block(name, section, language, reason, code))
    return [each for each in found if each.language in languages]


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a reader has: a rank that torchrun has started, a model, data, loggers."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in (ranks | store).items():
        monkeypatch.setenv(name, value)
    for module in libraries():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.manual_seed(0)
    batch = torch.randn(4, 8), torch.randn(4, 4)
    yield {
        "Blocks": Blocks,
        "DistributedDataParallel": DistributedDataParallel,
        "Sam": Sam,
        "batch": batch,
        "copy": copy,
        "criterion": nn.functional.mse_loss,
        "dc": dc,
        "dist": dist,
        "loader": DataLoader(TensorDataset(*batch), batch_size=2),
        "loss_of": lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        "model": network(),
        "network": network,
        "os": os,
        "rank": 0,
        "recipe": dc.recipes.sbc(density=0.1),
        "rounds": 2,
        "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1),
        "self": Mock(),
        "sharded": sharded,
        "state": dc.CompressionState(network(), dc.recipes.topk(density=0.1)),
        "step": 0,
        "torch": torch,
        "train_step": lambda: None,
        "wandb": Mock(),
        "world_size": 1,
        "writer": Mock(),
    }
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "page",
    [each for each in PAGES if blocks(each, "python") and each != ROOT / SCRIPTS],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_on_a_page_runs(page, at_hand):
    section = ""
    for each in blocks(page, "python"):
        if each.reason:
            continue
        if each.section != section:
            section = each.section
            exec(BEFORE.get((each.page, section), ""), at_hand)
        code = each.code
        for written, run in SMALLER.items():
            code = code.replace(written, run)
        exec(compile(code, f"{each.page}, {section}", "exec"), at_hand)


def test_sections_named_here_exist():
    held = {each[:2] for page in PAGES for each in blocks(page, "python")}
    assert not set(BEFORE) - held


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_exist(page):
    for each in blocks(page, "sh"):
        text = re.sub(r"\s#.*$|^#.*$", "", each.code, flags=re.M).replace("\\\n", " ")
        text = re.sub(r"^\w+=\$\(.*\)$", "", text, flags=re.M)  # what another program says
        for line in filter(None, map(str.strip, text.splitlines())):
            check_command(shlex.split(line))


def check_command(words: list[str]) -> None:
    """Raise unless its program, file and options exist."""
    if words[0] == "srun" and "torchrun" in words:
        words = words[words.index("torchrun") :]
    while words and (words[0] in ("sudo", "env", "nice") or re.match(r"\w+=", words[0])):
        words = words[1:]
    if not words or words[0] in ("export", "pip", "apt-get", "cd", "git", "uv"):
        return
    program, *rest = words
    if program == "make":
        made = "".join(file.read_text() for file in [ROOT / "Makefile", *ROOT.glob("*/*.mk")])
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        for target in targets:
            assert re.search(rf"^{target}:", made, re.M), f"make {target}: there is no such target"
    elif program == "torchrun":
        parsed = get_args_parser().parse_args(rest)
        script = ["-m", parsed.training_script] if parsed.module else [parsed.training_script]
        check_script([*script, *parsed.training_script_args])
    elif program.endswith("python"):
        check_script(rest)
    elif program.endswith((".sh", ".py")):
        check_script(words)
    else:
        pytest.fail(f"{' '.join(words)}: nobody here knows {program}")


def check_script(words: list[str]) -> None:
    """A script's, or a module's, options stand in its text or in that of what it imports."""
    if words[0] == "-c":
        return
    if words[0] == "-m":
        place = ROOT / words[1].replace(".", "/")
        files = [place / "__main__.py"] if place.is_dir() else [place.with_suffix(".py")]
        words = words[1:]
        if words[0].partition(".")[0] not in ("ddp_compress", "tests", "bench"):
            return
    elif words[0] == "train.py":  # the reader's
        return
    else:
        files = [ROOT / words[0]]
    for file in files:  # grows
        assert file.is_file(), f"{file} does not exist"
        neighbours = re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.M)
        there = (file.with_name(f"{name}.py") for name in neighbours)
        files += [each for each in there if each.is_file() and each not in files]
    text = "".join(file.read_text() for file in files)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in text, f"{words[0]} has no {option}"


def network(inputs: int = 8, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


class Blocks(nn.Module):
    """A model of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](inputs))


def sharded(mesh: Any) -> nn.Module:
    """As docs/sharded_models.md makes it."""
    model = Blocks()
    torch.distributed.fsdp.fully_shard(model, mesh=mesh["shard"])
    return model


class Sam:
    """Sharpness-aware minimization, without the sharpness."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def first_step(self, zero_grad: bool) -> None:
        self.optimizer.zero_grad()

    def second_step(self, zero_grad: bool) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def libraries() -> list[ModuleType]:
    """Small stand-ins for what the worked scenarios import: torchvision, nanoGPT, a data set."""
    torchvision, model, tokens = map(ModuleType, ("torchvision", "model", "tokens"))
    made = SimpleNamespace(
        Compose=list,
        ImageFolder=lambda *_: TensorDataset(torch.randn(512, 8), torch.randint(4, (512,))),
        RandomHorizontalFlip=object,
        RandomResizedCrop=lambda _: None,
        ToTensor=object,
        resnet50=network,
    )
    vars(torchvision).update(datasets=made, models=made, transforms=made)
    vars(model).update(GPT=Gpt, GPTConfig=object)
    vars(tokens).update(TokenDataset=lambda: TensorDataset(*torch.randn(2, 128, 8).unbind()))
    return [torchvision, model, tokens]


class Gpt(nn.Module):
    """Gives logits and a loss, as nanoGPT's does."""

    def __init__(self, _: object) -> None:
        super().__init__()
        self.transformer: Any = nn.Module()
        self.transformer.h = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        (block,) = self.transformer.h
        logits = block(inputs)
        return logits, nn.functional.mse_loss(logits, targets)
