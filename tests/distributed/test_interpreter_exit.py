"""Python ends by itself, whatever worker threads and Gloo's still hold (torch 2.13)."""

import subprocess
import sys

PAIRS_THAT_END = """
import os, sys, torch, torch._dynamo, torch.distributed as dist
from contextlib import suppress
from torch.nn.parallel import DistributedDataParallel
from ddp_compress import attach, recipes

def bug(grad):
    raise KeyError("a bug of the user's")

def let_this_thread_win():
    # Of a rank's threads on one core: Gloo's would let go of tensors before Python ends, mostly.
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread), 10)

def train(rank, meet, how):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    sys.setswitchinterval(100)  # who waits for the GIL gets it only if it is handed on
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    models = []
    for recipe in (recipes.stc(0.1), recipes.majority_vote(0.1, ballot_box="sharded"), "topk"):
        layers = torch.nn.Linear(30, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 9)
        models.append(DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.01))
        attach(models[-1], recipe, flush_bytes=1)
    for step in range(3):
        if how == "raise" and step == 2 and rank == 1:
            models[0].module[0].weight.register_hook(bug)  # when later layers have been sent
        for model in models:
            model(torch.randn(8, 30)).square().mean().backward()
    mine = torch.cat([p.grad.flatten() for model in models for p in model.parameters()])
    let_this_thread_win()
    every = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(every, mine)  # the user's own, whose thread has yet to let go of these
    if how == "destroy":
        dist.destroy_process_group()
    os.write(1, b"done\\n")  # in one piece, beside the other rank
    return models, every, mine

def run_of(how, number):
    children = []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            return rank, f"file://{sys.argv[1]}/{how}{number}", how
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(how, codes, flush=True)

for number in range(int(sys.argv[2])):
    for how in ("leave", "destroy", "raise"):
        if child := run_of(how, number):
            break
    else:
        continue
    alive = train(*child)  # until the interpreter ends
    break
"""


ENDED_WELL = """done
done
leave [0, 0]
done
done
destroy [0, 0]
"""


def test_the_interpreter_ends_by_itself(tmp_path):
    """Whether the group is left or destroyed, and where a rank raises in the middle of a step."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PAIRS_THAT_END, str(tmp_path), "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert run.stdout.startswith(ENDED_WELL), run.stdout
    assert run.stdout.endswith("raise [1, 1]\n"), run.stdout
    assert "a bug of the user's" in run.stdout
