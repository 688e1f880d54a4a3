"""The example's command line, where it is more than `argparse`."""

from argparse import ArgumentTypeError

import pytest

import options
from ddp_compress import recipes
from ddp_compress.exchange import Sharded


def test_a_word_may_be_a_recipe_with_words_of_its_own():
    words = dict(map(options.word, ["keep=0.5", "transform=kashin", "down=rotated,bits=5,seed=2"]))
    expected = {"keep": 0.5, "transform": "kashin", "down": recipes.rotated(bits=5, seed=2)}
    assert words == expected
    assert recipes.rotated(**words).exchange == Sharded(expected["down"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("keep", "keep must look like WORD=VALUE"),
        ("down=zip", "zip is no recipe: recipe must be one of .* got 'zip'"),
        ("down=rotated,bits=9", "rotated,bits=9 is no recipe: bits must lie within 1 and 8, got 9"),
        ("down=rotated,bits", "bits must look like WORD=VALUE"),
        ("down=stc,bits=1", "stc,bits=1 is no recipe: .*unexpected keyword argument 'bits'"),
    ],
)
def test_a_wrong_word_is_refused_with_its_reason(text, complaint):
    with pytest.raises(ArgumentTypeError, match=complaint):
        options.word(text)
