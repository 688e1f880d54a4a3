"""Find the model that gradients are averaged of, one layer in or out of what was given."""

import gc

import torch.distributed as dist  # noqa: TID251 - a look alone
from torch import nn
from torch.distributed._composable.contract import _get_registry  # noqa: TID251 - a look alone
from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: TID251 - a type alone
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.message.names import WRAPPERS
from ddp_compress.step import sharded_model
from ddp_compress.step.ddp_model import ddp_models

# Where a framework keeps the DDP model, by the package that a model's or an object's class is of.
WHERE = {
    "accelerate": "with Accelerate it is what accelerator.prepare(model) returns",
    "deepspeed": "DeepSpeed's engine averages gradients by itself: train with a DDP model",
    "lightning": (
        "Lightning makes it after setup() and configure_model(): give the Trainer "
        "ddp_compress.integrations.lightning.CompressionCallback(recipe), or attach in "
        "on_fit_start; with Fabric it is what fabric.setup(model) returns"
    ),
    "transformers": (
        "the HF Trainer makes it when training begins, on several ranks: give it "
        "ddp_compress.integrations.transformers.CompressionCallback(recipe)"
    ),
}
WHERE["pytorch_lightning"] = WHERE["lightning"]


def find_model(model: object, argument: str = "model") -> nn.Module:
    """The DDP model that a model is, holds or is held by; or the one that FSDP has sharded.

    So it may be what frameworks hand out: `torch.compile` of a DDP model, Fabric's wrapper, or the
    bare model of which Accelerate, Lightning or the HF Trainer keep the DDP model to themselves.

    Args:
        model: any of these.
        argument: what it is called, in errors.

    Returns:
        A `DistributedDataParallel`, or a module that `fully_shard` was applied to.

    Raises:
        TypeError: there is none, or no telling which of several. Says where it usually is.

    Example:
        >>> find_model(nn.Linear(2, 1))
        Traceback (most recent call last):
        ...
        TypeError: model must be a DistributedDataParallel, got Linear: wrap it first, as in ...
    """
    kind = type(model).__name__

    def refusal(cure: str) -> TypeError:
        return TypeError(f"{argument} must be a DistributedDataParallel, got {kind}: {cure}")

    if not isinstance(model, nn.Module):
        raise refusal(_where(model) or "give the model that the optimizer trains")
    model = without_wrappers(model)
    if isinstance(model, DistributedDataParallel) or sharded_model.is_sharded(model):
        return model
    inner = [each for each in model.modules() if isinstance(each, DistributedDataParallel)]
    found = inner or _around(model)
    if len(found) == 1:
        return found[0]
    if found:
        where = "in it" if inner else "around it"
        raise refusal(f"{len(found)} are {where}, so give one of them itself")
    raise refusal(_cure(model))


def without_wrappers(model: nn.Module) -> nn.Module:
    """A model without what compiles it, or belongs to a framework."""
    for name in WRAPPERS:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return without_wrappers(inner)
    return model


def _around(model: nn.Module) -> list[DistributedDataParallel]:
    """The DDP models that hold the same parameters."""
    ours = set(map(id, model.parameters()))
    if not ours or not dist.is_available() or not dist.is_initialized():
        return []

    def look() -> list[DistributedDataParallel]:
        return [each for each in ddp_models() if ours == set(map(id, each.module.parameters()))]

    found = look()
    if len(found) > 1:  # some may only wait to be collected, as when a notebook wraps again
        del found
        gc.collect()
        found = look()
    return found


def _cure(model: nn.Module) -> str:
    where = _where(model)
    if any(isinstance(each, FullyShardedDataParallel) for each in model.modules()):
        return f"of FSDP, only what fully_shard makes can be: {sharded_model.CURE}"
    if "replicate" in (_get_registry(model) or {}):
        return (
            "replicate() averages gradients by itself. Leave it out and wrap the bare model, as in "
            "attach(DistributedDataParallel(model), recipe)"
        )
    ours = set(map(id, model.parameters()))
    if any(ours & set(map(id, each.module.parameters())) for each in ddp_models()):
        return "it is a part of one that exists, so give that DistributedDataParallel"
    return where or "wrap it first, as in attach(DistributedDataParallel(model), recipe)"


def _where(model: object) -> str | None:
    packages = (each.__module__.partition(".")[0] for each in type(model).__mro__)
    return next((WHERE[package] for package in packages if package in WHERE), None)
