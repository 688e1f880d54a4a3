"""Names of parameters, whatever their modules were wrapped in."""

from collections.abc import Iterable

# What torch.compile, checkpoint_wrapper and Fabric call the module that they wrap.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_forward_module")


def clean_name(name: str) -> str:
    """A parameter's name, whatever its modules were wrapped in.

    So a checkpoint of a model fits what `torch.compile` makes of it, and the other way round.

    Example:
        >>> clean_name("layers.0._checkpoint_wrapped_module._orig_mod.weight")
        'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def clean_names(names: Iterable[str]) -> list[str]:
    """The same of several.

    Example:
        >>> clean_names(["_orig_mod.weight", "bias"])
        ['weight', 'bias']
    """
    return list(map(clean_name, names))
