"""The command line; wrong input is reported once, not once a rank."""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import ddp_compress as dc
from traffic import BUILT_IN

TASK_DEFAULTS: dict[str, dict[str, float]] = {
    "lm": {"steps": 1800, "batch_size": 16, "lr": 0.3},
    "image": {"steps": 600, "batch_size": 64, "lr": 0.05},
}


def fail(message: str) -> NoReturn:
    """Exit with an error: one rank of a machine speaks, the others wait to be ended by torchrun."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"train.py: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(5)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that fails by :func:`fail`."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or words, and fill in the defaults that depend on the task."""
    parser = Parser(
        description="Train on several ranks and let the gradients travel compressed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", choices=list(TASK_DEFAULTS), default="lm", help="what to learn")
    add("--data", type=Path, help="lm: a text file; image: a folder with CIFAR-10, for torchvision")
    add(
        "--recipe",
        choices=[*BUILT_IN, *dc.recipes.__all__],
        default="topk",
        help="none is dense; fp16, powersgd and post_local_sgd are PyTorch's own (default: topk)",
    )
    add("--density", type=density, default=0.01, help="share that is sent (default: 0.01)")
    add(
        "--warmup-steps",
        type=natural,
        help="steps in which the density falls, or dense ones before powersgd or post_local_sgd "
        "(default: steps / 6)",
    )
    add("--warmup-density", type=density, default=0.25, help="it falls from there (default: 0.25)")
    add("--codec", choices=["elias_fano", "golomb", "raw"], help="how positions are written")
    add("--scope", choices=["tensor", "bucket", "model"], help="where the density holds")
    add("--period", type=positive_int, help="local steps between rounds (default: no local steps)")
    add(
        "--within",
        type=node_size,
        metavar="node|L",
        help="average dense inside a node, compress between nodes: those that torchrun has "
        "started, or of L ranks each",
    )
    add("--shard", type=positive_int, metavar="L", help="replicas of L ranks each, by fully_shard")
    add("--diloco", action="store_true", help="with --period: outer steps by SGD with momentum")
    add("--federated-dropout", type=density, metavar="RATE", help="share of units kept in a round")
    add(
        "--set",
        type=word,
        nargs="+",
        default=[],
        metavar="WORD=VALUE",
        help="of the recipe; rank=2 of powersgd",
    )
    add("--steps", type=positive_int, help="(default: lm 1800, image 600)")
    add("--batch-size", type=positive_int, help="of all ranks together (default: lm 16, image 64)")
    add("--lr", type=positive_float, help="peak learning rate (default: lm 0.3, image 0.05)")
    add("--momentum", type=momentum, default=0.9, help="of SGD, or of DGC (default: 0.9)")
    add("--amp", choices=["fp16", "bf16"], help="mixed precision; fp16 with a GradScaler")
    add(
        "--growth-interval",
        type=positive_int,
        default=100,
        metavar="STEPS",
        help="of its scale (default: 100)",
    )
    add("--seed", type=natural, default=0, help="of parameters and data order (default: 0)")
    add("--evaluations", type=positive_int, default=8, help="on the way (default: 8)")
    add("--json", type=output_file, metavar="FILE", help="write configuration and results")
    add("--plot", type=output_file, metavar="FILE", help="draw loss against steps and bytes")
    add("--checkpoint", type=Path, metavar="FOLDER", help="save there, and resume from there")
    add(
        "--checkpoint-every", type=positive_int, default=100, metavar="STEPS", help="(default: 100)"
    )
    args = parser.parse_args(words)

    for name, value in TASK_DEFAULTS[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.warmup_steps is None:
        args.warmup_steps = args.steps // 6
    if args.warmup_steps >= args.steps:
        parser.error(f"--warmup-steps {args.warmup_steps} must be below --steps {args.steps}")
    if args.federated_dropout and (args.task != "image" or not args.period):
        parser.error("--federated-dropout needs --task image and --period: a round of local steps")
    if args.shard:
        refuse_beside_shard(parser, args)
    if args.diloco and not args.period:
        parser.error("--diloco needs --period")
    if args.within and args.recipe in BUILT_IN:
        parser.error(f"--within is of compressed recipes, not of {args.recipe}")
    if args.checkpoint and args.recipe in ("powersgd", "post_local_sgd"):
        parser.error(f"--checkpoint cannot save what {args.recipe} keeps from step to step")
    if args.amp == "fp16" and args.recipe == "powersgd":
        parser.error("--amp fp16 changes the scale of what powersgd keeps from step to step")
    if args.recipe == "post_local_sgd":
        refuse_beside_post_local_sgd(parser, args)
    return args


def refuse_beside_post_local_sgd(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fail where options do not go with PyTorch's post-local SGD."""
    if not args.period:
        parser.error("--recipe post_local_sgd needs --period: local steps between averages")
    for name in ("diloco", "federated_dropout"):
        if getattr(args, name):
            parser.error(f"--{name.replace('_', '-')} is of compressed rounds: not post_local_sgd")
    if args.amp == "fp16":
        parser.error("--amp fp16 skips steps of one rank alone, by which post_local_sgd counts")


def refuse_beside_shard(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fail where options do not go with ``--shard``."""
    for name in ("within", "federated_dropout"):
        if getattr(args, name):
            parser.error(f"--shard does not go with --{name.replace('_', '-')}")
    if args.recipe in BUILT_IN:
        parser.error(f"--shard is of compressed recipes, not of {args.recipe}")
    if args.checkpoint and args.period:
        parser.error("--checkpoint with --shard does not save what --period keeps")


def positive_int(text: str) -> int:
    """1, 2, 3, …"""
    number = int(text)
    return number if number > 0 else refuse(text, "must be positive")


def natural(text: str) -> int:
    """0, 1, 2, …"""
    number = int(text)
    return number if number >= 0 else refuse(text, "must not be negative")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    return number if 0 < number < math.inf else refuse(text, "must be positive and finite")


def density(text: str) -> float:
    """A number in (0, 1]."""
    number = float(text)
    return number if 0 < number <= 1 else refuse(text, "must lie in (0, 1]")


def momentum(text: str) -> float:
    """A number in [0, 1)."""
    number = float(text)
    return number if 0 <= number < 1 else refuse(text, "must lie in [0, 1)")


def node_size(text: str) -> str | int:
    """ "node", or how many ranks share one."""
    return text if text == "node" else positive_int(text)


def word(text: str) -> tuple[str, Any]:
    """One more argument of the recipe, such as ``bits=2`` or ``down=rotated,bits=5``."""
    try:
        return dc.recipes.word(text)
    except (TypeError, ValueError) as error:
        return refuse(text, f"is no argument of a recipe: {error}")


def output_file(text: str) -> Path:
    """A path in a folder that exists: better to hear now than after the training."""
    path = Path(text)
    return path if path.parent.is_dir() else refuse(text, "is in a folder that does not exist")


def refuse(text: str, reason: str) -> NoReturn:
    """Reject an argument's value."""
    raise argparse.ArgumentTypeError(f"{text} {reason}")
