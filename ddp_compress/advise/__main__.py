"""Before a line is changed: what would each method bring on these ranks?

torchrun --nproc_per_node=8 -m ddp_compress.advise --parameters 124M --step 0.35
torchrun --nproc_per_node=8 -m ddp_compress.advise --model my_project.model:build
python -m ddp_compress.advise --parameters 25.6M --step 0.1 --link 1gbit --latency 1ms --ranks 16
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from ddp_compress.advise.advice import Advice
from ddp_compress.advise.advising import advise
from ddp_compress.advise.extras import needed
from ddp_compress.advise.link import Link, parse_rate, parse_seconds
from ddp_compress.advise.methods import DEFAULT
from ddp_compress.schedules import check_density

SILENCE = timedelta(minutes=1)  # from a rank that makes the others give up
PATIENCE = 3  # seconds in which torchrun ends the other ranks
COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "": 1}


def main() -> None:
    """Read the command line, measure, report."""
    options = argument_parser().parse_args()
    try:
        with job() as device:
            report(measured(options, device), options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        fail(f"{error}")


def argument_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = Parser(
        prog="ddp_compress.advise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parameters", type=said(count), metavar="N", help="such as 124M")
    what.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="gives the model, or (model, inputs): then a step is measured too",
    )
    add("--step", type=said(parse_seconds), metavar="SECONDS", help="without an exchange")
    add("--recipes", nargs="+", default=list(DEFAULT), metavar="NAME[,WORD=VALUE...]")
    add("--density", type=said(share), help="of recipes that have one (default: each its own)")
    add("--within", choices=["node"], help="average dense inside a host, compress between hosts")
    add("--json", type=said(file), metavar="FILE", help="write all figures there")
    add("--plot", type=said(file), metavar="FILE", help="draw step time against link rate")
    alone = parser.add_argument_group("on one process alone", "what to assume")
    alone.add_argument("--link", type=said(parse_rate), metavar="RATE", help="such as 1gbit")
    alone.add_argument("--latency", type=said(parse_seconds), metavar="TIME", help="such as 1ms")
    alone.add_argument("--ranks", type=int, metavar="W")
    return parser


def said(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for argparse, which says itself what it has expected."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def count(text: str) -> int:
    """A number of parameters such as "124M".

    Example:
        >>> count("1.5B"), count("1000")
        (1500000000, 1000)
    """
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        value = int(float(number) * COUNTS[unit])
    except (KeyError, OverflowError, ValueError):
        value = 0
    if value < 1:
        raise ValueError(f"expected a number of parameters such as 124M or 1.5B, got {text!r}")
    return value


def file(text: str) -> Path:
    """A path in a folder that exists: better to hear now than after the measurement."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"cannot write {text!r}: expected a file in a folder that exists")
    return path


def share(text: str) -> float:
    """A density."""
    value = float(text)
    check_density(value, "density")
    return value


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that fails by :func:`fail`."""

    def error(self, message: str) -> NoReturn:
        """One rank speaks."""
        fail(message)


def fail(message: str) -> NoReturn:
    """End with an error, said once.

    Most errors every rank has. So the first speaks at once, and ends the job; the others speak only
    where they are alone with theirs.
    """
    rank = int(os.environ.get("RANK", "0"))
    time.sleep(PATIENCE if rank else 0)
    print(f"ddp_compress.advise: error: {message}", file=sys.stderr, flush=True)
    os._exit(2)  # at the interpreter's end ranks would wait for each other


@contextmanager
def job() -> Iterator[torch.device]:
    """Join the ranks that torchrun has started: a GPU each where there are enough, else the CPU."""
    local, count = (int(os.environ.get(f"LOCAL_{name}", "-1")) for name in ("RANK", "WORLD_SIZE"))
    on_gpu = 0 <= local < count <= torch.cuda.device_count()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=SILENCE)
    yield device
    dist.destroy_process_group()


def measured(options: argparse.Namespace, device: torch.device) -> Advice:
    """What the ranks find."""
    if options.plot:
        needed("matplotlib.pyplot")  # its lack shows before the measurement
    model, inputs = options.parameters, None
    if options.model:
        model, inputs = imported(options.model)
        model = model.to(device)
        inputs = None if inputs is None else [moved(each, device) for each in inputs]
    link = None
    if options.link or options.latency:
        if not (options.link and options.latency):
            raise ValueError("--link and --latency go together: --link 1gbit --latency 1ms")
        link = Link(options.link, options.latency)
    return advise(
        model,
        step=options.step,
        inputs=inputs,
        recipes=options.recipes,
        density=options.density,
        within=options.within,
        link=link,
        ranks=options.ranks,
    )


def imported(text: str) -> tuple[nn.Module, Sequence[object] | None]:
    """The model that MODULE:FUNCTION gives, and what it is called with, if it says so.

    Raises:
        ValueError: there is no such module or function, or it gives something else.
    """
    name, colon, function = text.partition(":")
    expected = "--model expects MODULE:FUNCTION, such as my_project.model:build,"
    if not (name and colon and function):
        raise ValueError(f"{expected} got {text!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(name), function)()
    except Exception as error:  # anything may go wrong in a user's module
        raise ValueError(f"--model {text}: {type(error).__name__}: {error}") from error
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(model, nn.Module):
        raise ValueError(f"{expected} which gives an nn.Module; got {type(model).__name__}")
    return model, inputs


def moved(value: object, device: torch.device) -> object:
    """A tensor on the device; anything else as it is."""
    return value.to(device) if isinstance(value, torch.Tensor) else value


def report(advice: Advice, options: argparse.Namespace) -> None:
    """On rank 0: tables, and what files were asked for."""
    if int(os.environ.get("RANK", "0")):
        return
    advice.print()
    if options.json:
        options.json.write_text(advice.to_json())
    if options.plot:
        advice.plot(options.plot)


if __name__ == "__main__":
    main()
