"""Arguments of recipes as a command line writes them."""

import ast
from typing import Any

import torch


def split(text: str) -> tuple[str, list[str]]:
    """A recipe's name and its words; behind ``down=``, which comes last, are another recipe's.

    Example:
        >>> split("rotated,keep=0.5,down=rotated,bits=5")
        ('rotated', ['keep=0.5', 'down=rotated,bits=5'])
    """
    ours, last, down = text.partition(",down=")
    name, *words = ours.split(",")
    return name, words + ([f"down={down}"] if last else [])


def value_of(text: str, name: str) -> Any:
    """What a word's text stands for: a literal, a dtype, or the text itself.

    Args:
        text: what follows the "=".
        name: what precedes it.

    Example:
        >>> value_of("0.5", "keep"), value_of("bfloat16", "value_dtype"), value_of("raw", "codec")
        (0.5, torch.bfloat16, 'raw')
    """
    if name.endswith("dtype"):
        return getattr(torch, text, text)
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
