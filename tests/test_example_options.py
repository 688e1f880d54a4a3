"""The example's command line, where it is more than `argparse`."""

from argparse import ArgumentTypeError

import pytest

import options
import traffic
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
        ("keep", "expected WORD=VALUE, .* got 'keep'"),
        ("down=zip", "down=zip is no argument of a recipe: recipe must be one of .* got 'zip'"),
        (
            "down=rotated,bits=9",
            "bits=9 is no argument of a recipe: bits must lie within 1 and 8, got 9",
        ),
        ("down=rotated,bits", "expected WORD=VALUE, .* got 'bits'"),
        ("down=stc,bits=1", "stc,bits=1 is no .*unexpected keyword argument 'bits'"),
    ],
)
def test_a_wrong_word_is_refused_with_its_reason(text, complaint):
    with pytest.raises(ArgumentTypeError, match=complaint):
        options.word(text)


def test_powersgd_takes_a_rank():
    made = options.parse_args(["--recipe", "powersgd", "--set", "rank=2"])
    assert traffic.make_recipe(made) is None
    assert traffic.powersgd_rank(made) == 2
    assert traffic.powersgd_rank(options.parse_args(["--recipe", "powersgd"])) == 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--recipe powersgd --set rank=0", "rank must be a whole number of at least 1, got 0"),
        ("--recipe powersgd --set rank=big", "rank must be .* got 'big'"),
        ("--recipe powersgd --set bits=2", "recipe powersgd takes no bits"),
        ("--recipe fp16 --set rank=2", "recipe fp16 takes no rank"),
        ("--recipe fp16 --period 10", "recipe fp16 is of gradients: it takes no --period"),
    ],
)
def test_what_a_built_in_hook_does_not_take_is_refused(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        traffic.make_recipe(options.parse_args(words.split()))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "needs --period"),
        ("--period 10 --diloco", "--diloco is of compressed rounds: not post_local_sgd"),
        ("--period 10 --amp fp16", "--amp fp16 skips steps of one rank alone"),
        ("--period 10 --checkpoint runs", "--checkpoint cannot save what post_local_sgd keeps"),
    ],
)
def test_what_does_not_go_with_post_local_sgd_is_refused(words, complaint, capsys):
    with pytest.raises(SystemExit):
        options.parse_args(["--recipe", "post_local_sgd", *words.split()])
    assert complaint in capsys.readouterr().err


def test_evaluations_are_eight_or_as_many_as_asked_for():
    assert options.parse_args([]).evaluations == 8
    assert options.parse_args(["--evaluations", "20"]).evaluations == 20
