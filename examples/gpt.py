"""A small GPT on plain DDP, laid out as nanoGPT's train.py: what compression adds is marked.

torchrun --nproc_per_node=2 examples/gpt.py
torchrun --nproc_per_node=2 examples/gpt.py --resume --max-iters 800
"""

import argparse
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import ddp_compress as dc  # <- compression
from data import standard_library
from models import GPT

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="a text file (default: Python's standard library)")
parser.add_argument("--out-dir", type=Path, default=Path("runs/gpt"))
parser.add_argument("--resume", action="store_true", help="go on from the file in --out-dir")
parser.add_argument("--max-iters", type=int, default=400)
parser.add_argument("--eval-interval", type=int, default=100)
args = parser.parse_args()

eval_iters, log_interval, batch_size, block_size = 20, 20, 8, 64
gradient_accumulation_steps = 4  # of all ranks together
learning_rate, min_lr, warmup_iters, lr_decay_iters = 3e-3, 3e-4, 50, 2000
weight_decay, betas = 0.1, (0.9, 0.95)

# ranks
dist.init_process_group()  # NCCL for GPUs, Gloo for CPUs
rank, world_size = dist.get_rank(), dist.get_world_size()
master_process = rank == 0
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
gradient_accumulation_steps //= world_size
autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
torch.manual_seed(1337)

# data
text = args.data.read_bytes() if args.data else standard_library()
tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
split = int(0.95 * len(tokens))
datasets = {"train": tokens[:split], "val": tokens[split:]}


def get_batch(name: str, number: int) -> tuple[Tensor, Tensor]:
    """A rank's batch of this number: a resumed run draws those of an uninterrupted one."""
    draw = torch.Generator().manual_seed(number * world_size + rank)
    starts = torch.randint(len(datasets[name]) - block_size, (batch_size, 1), generator=draw)
    windows = datasets[name][starts + torch.arange(block_size + 1)].long().to(device)
    return windows[:, :-1], windows[:, 1:]


def loss_of(network: torch.nn.Module, name: str, number: int) -> Tensor:
    inputs, targets = get_batch(name, number)
    with autocast:
        return F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def estimate_loss(network: torch.nn.Module) -> dict[str, float]:
    network.eval()
    numbers = range(eval_iters)
    means = {name: sum(loss_of(network, name, i).item() for i in numbers) for name in datasets}
    network.train()
    return {name: total / eval_iters for name, total in means.items()}


def get_lr(iteration: int) -> float:
    if iteration < warmup_iters:
        return learning_rate * (iteration + 1) / warmup_iters
    share = min(1.0, (iteration - warmup_iters) / (lr_decay_iters - warmup_iters))
    return min_lr + 0.5 * (1 + math.cos(math.pi * share)) * (learning_rate - min_lr)


raw_model = GPT(block_size).to(device)
model = DistributedDataParallel(raw_model)
density = dc.exponential_warmup(0.01, steps=warmup_iters)  # <- compression
state = dc.attach(model, "topk", density=density)  # <- compression
optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas, weight_decay=weight_decay)
start, file = 0, args.out_dir / "ckpt.pt"
if args.resume:
    checkpoint = torch.load(file, map_location=device)
    raw_model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    dc.AllRanks(state).load_state_dict(checkpoint["compression"])  # <- compression
    start = checkpoint["iteration"]

for iteration in range(start, args.max_iters):
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iteration)
    for micro_step in range(gradient_accumulation_steps):
        model.require_backward_grad_sync = micro_step == gradient_accumulation_steps - 1
        number = iteration * gradient_accumulation_steps + micro_step
        loss = loss_of(model, "train", number) / gradient_accumulation_steps
        loss.backward()
    optimizer.step()  # nanoGPT clips before it: see docs/training_loops.md
    optimizer.zero_grad()

    done = iteration + 1
    if done % log_interval == 0 and master_process:
        ratio = state.metrics()["compression/ratio"]  # <- compression
        last = loss.item() * gradient_accumulation_steps
        print(f"iter {done}: loss {last:.3f}, 1/{ratio:.0f} sent")
    if done % args.eval_interval == 0:
        compression = dc.AllRanks(state).state_dict()  # <- compression: every rank, for rank 0
        if master_process:
            print(f"iter {done}:", estimate_loss(raw_model), flush=True)
            args.out_dir.mkdir(parents=True, exist_ok=True)
            parts = {"model": raw_model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**parts, "iteration": done, "compression": compression}, file)
dist.destroy_process_group()
