"""What one rank of `race.py clock` runs: every method in turn, step by step, really training."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from data import Split
from links_rank import die_with, hand_back, report_progress
from models import count_parameters
from options import parse_args
from race_clock import ALL_REDUCE, NO_EXCHANGE, Entry, Job
from traffic import attach, bucket_cap_mb, holds_momentum, make_recipe
from train import batches, cross_entropy, load, make_network, warmup_cosine


class Training:
    """The example's training by one method, without its evaluations.

    Args:
        entry: the method.
        args: its words, read.
        data: to train on.
    """

    def __init__(self, entry: Entry, args: Namespace, data: Split) -> None:
        torch.manual_seed(args.seed)
        self.period = entry.period
        self.weight = dist.get_world_size() / args.batch_size
        network = make_network(args, data)
        elements = count_parameters(network)
        self.model = DistributedDataParallel(
            network, bucket_cap_mb=bucket_cap_mb(args.recipe, elements)
        )
        if entry.name == NO_EXCHANGE:
            self.model.register_comm_hook(None, hand_back)
        momentum = 0.0 if holds_momentum(args) else args.momentum
        sgd = torch.optim.SGD(self.model.parameters(), lr=args.lr, momentum=momentum)
        self.optimizer, _, _ = attach(self.model, sgd, args, make_recipe(args), None)
        self.scheduler = LambdaLR(self.optimizer, lambda step: warmup_cosine(step, args.steps))
        self.stream = batches(data.train, args.batch_size, args.seed, 0)

    def __call__(self) -> None:
        """The steps of one period."""
        for _ in range(self.period):
            inputs, targets = next(self.stream)
            loss = self.weight * len(targets) * cross_entropy(self.model(inputs), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()


def measure(job: Job) -> tuple[list[list[float]], int]:
    """Seconds of all units of every entry, which all end together; and the model's parameters."""
    args = [parse_args(entry.words) for entry in job.entries]
    data = load(args[0], dist.get_world_size())
    gradient = torch.zeros(count_parameters(make_network(args[0], data)))
    turns: list[Callable[[], object]] = [
        partial(dist.all_reduce, gradient)
        if entry.name == ALL_REDUCE
        else Training(entry, each, data)
        for entry, each in zip(job.entries, args, strict=True)
    ]
    seconds: list[list[float]] = [[] for _ in turns]
    for left in range(max(entry.units for entry in job.entries), 0, -1):
        for entry, turn, taken in zip(job.entries, turns, seconds, strict=True):
            if entry.units >= left:
                dist.barrier()
                begin = time.perf_counter()
                turn()
                taken.append(time.perf_counter() - begin)
                report_progress(dist.get_rank())
    return seconds, len(gradient)


def main(job: Job) -> None:
    """Measure; rank 0 prints seconds of the slowest rank, by name, as its last line."""
    die_with(job.driver, job.limit)
    dist.init_process_group("gloo", timeout=timedelta(seconds=job.limit))
    seconds, parameters = measure(job)
    everyones: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyones, seconds)
    if dist.get_rank() == 0:
        slowest = {
            entry.name: [max(unit) for unit in zip(*ranks, strict=True)]
            for entry, *ranks in zip(job.entries, *everyones, strict=True)
        }
        print(json.dumps({"parameters": parameters, "seconds": slowest}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Job.from_json(sys.argv[1]))
