"""Bad input gets an error that names what is wrong and what was expected."""

import copy
import gc
import math
import re
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers

from ddp_compress import (
    CompressionState,
    PeerError,
    PerRank,
    Recipe,
    codec,
    memory,
    quantize,
    recipes,
    select,
)
from ddp_compress.body import KernelPatterns
from ddp_compress.exchange import (
    AllGather,
    BallotBox,
    BySize,
    RotatingOwner,
    RunningAverage,
    Sharded,
    SharedMask,
    Union,
)
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))


# ----------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["topk", "dgc", "sbc", "stc", "hgc", "majority_vote", "smartidx"])
def test_density_outside_its_range(name, density):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got"):
        recipes.by_name(name, density=density)


@pytest.mark.parametrize("density", [True, "0.1", None])
def test_density_of_another_type(density):
    with pytest.raises(TypeError, match="density must be a number, got"):
        recipes.topk(density)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "huffman",
            {},
            "recipe must be one of dgc, hgc, majority_vote, rotated, sbc, sign, smartidx, stc, "
            "topk; got 'huffman'",
        ),
        ("sbc", {"codec": "zip"}, "codec must be one of elias_fano, golomb, raw; got 'zip'"),
        ("topk", {"scope": "layer"}, "scope must be one of tensor, bucket, model; got 'layer'"),
        ("dgc", {"value_dtype": torch.int8}, "value_dtype must be one of torch.float32, .*int8"),
        ("dgc", {"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ("dgc", {"momentum": float("nan")}, r"momentum must lie in \[0, 1\), got nan"),
        ("topk", {"exchange": "ring"}, "exchange must be one of all_gather, sharded, union; got"),
        ("stc", {"momentum": -0.1}, r"momentum must lie in \[0, 1\), got -0.1"),
        ("stc", {"codec": "zip"}, "codec must be one of elias_fano, golomb, raw; got 'zip'"),
        ("stc", {"scope": "layer"}, "scope must be one of tensor, bucket, model; got 'layer'"),
        ("sign", {"block": 12}, "block must be a positive multiple of 8 or None, got 12"),
        ("sign", {"block": 0}, "block must be a positive multiple of 8 or None, got 0"),
        ("sign", {"exchange": "union"}, "exchange must be one of auto, all_gather, sharded; got"),
        ("smartidx", {"patterns": 0}, "patterns must lie within 1 and 32, got 0"),
        ("smartidx", {"patterns": 33}, "patterns must lie within 1 and 32, got 33"),
        ("hgc", {"bits": 0}, "bits must lie within 1 and 4, got 0"),
        ("hgc", {"bits": 5}, "bits must lie within 1 and 4, got 5"),
        ("hgc", {"predictor": 1.0}, r"predictor must lie in \[0, 1\) or be None, got 1.0"),
        ("hgc", {"predictor": float("nan")}, r"predictor must lie in \[0, 1\) or be None, got nan"),
        ("hgc", {"scope": "layer"}, "scope must be one of tensor, bucket, model; got 'layer'"),
        ("hgc", {"codec": "zip"}, "codec must be one of elias_fano, golomb, raw; got 'zip'"),
        ("majority_vote", {"variant": "veto"}, "variant must be one of top, random, add_drop; got"),
        ("majority_vote", {"value_bits": 8}, "value_bits must be one of 32, 16, 4; got 8"),
        (
            "majority_vote",
            {"value_dtype": torch.int8},
            "value_dtype must be one of torch.float16, torch.bfloat16; got torch.int8",
        ),
        (
            "majority_vote",
            {"ballot_box": "naive"},
            "ballot_box must be one of auto, gather, sharded; got 'naive'",
        ),
        ("majority_vote", {"codec": "zip"}, "codec must be one of elias_fano, golomb, raw; got"),
        ("majority_vote", {"scope": "layer"}, "scope must be one of tensor, bucket, model; got"),
        ("majority_vote", {"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        *(
            (
                "majority_vote",
                {"variant": variant, "change": change},
                rf"change must lie in \(0, 1\], got {change}",
            )
            for variant in ("top", "random", "add_drop")
            for change in (0.0, -0.1, 5.0, float("nan"))
        ),
    ],
)
def test_unknown_names(name, options, words):
    with pytest.raises(ValueError, match=words):
        recipes.by_name(name, **options)


WITH_MOMENTUM = ("dgc", "sbc", "stc", "hgc", "majority_vote")
NO_WORD: tuple[object, ...] = (["golomb"], {}, None, 3, True)
WRONG_TYPES = [  # recipes, an argument of theirs, values of a wrong type, what was expected
    (WITH_MOMENTUM, "momentum", (None, "", "0.9", [], False, True), "must be a number"),
    (("topk", *WITH_MOMENTUM), "density", (None, "", [], True), "must be a number"),
    (("topk", *WITH_MOMENTUM), "codec", NO_WORD, "must be one of elias_fano, golomb, raw;"),
    (("topk", *WITH_MOMENTUM), "scope", NO_WORD, "must be one of tensor, bucket, model;"),
    (("topk", "dgc", "sbc"), "exchange", NO_WORD, "must be one of all_gather, sharded, union;"),
    (("sign", "rotated"), "exchange", NO_WORD, "must be one of auto, all_gather, sharded;"),
    (("topk", "dgc"), "value_dtype", NO_WORD, "must be one of torch.float32, torch.float16,"),
    (("majority_vote",), "value_dtype", NO_WORD, "must be one of torch.float16, torch.bfloat16;"),
    (("majority_vote",), "variant", NO_WORD, "must be one of top, random, add_drop;"),
    (("majority_vote",), "value_bits", ([], {}, None, "4", 4.0, True), "must be one of 32, 16, 4;"),
    (("majority_vote",), "ballot_box", NO_WORD, "must be one of auto, gather, sharded;"),
    (("majority_vote",), "change", (None, "a", [], True), "must be a number"),
    (("majority_vote", "hgc"), "seed", (None, "x", 1.5, True, []), "must be an int"),
    (("sign",), "block", (None, "8", 1024.0, 12.5, True, []), "must be an int"),
    (("hgc", "rotated"), "bits", (None, "a", 1.0, 1.5, True, []), "must be an int"),
    (("rotated",), "down", ("union", "rotated", 3, []), "must be a recipe"),
    (("smartidx",), "patterns", (None, "2", 2.0, True), "must be an int"),
    (("hgc",), "predictor", ("a", False, True, []), "must be a number or None"),
]


@pytest.mark.parametrize(
    ("name", "argument", "value", "words"),
    [
        (name, argument, value, words)
        for names, argument, values, words in WRONG_TYPES
        for name in names
        for value in values
    ],
)
def test_arguments_of_a_wrong_type(name, argument, value, words):
    with pytest.raises(TypeError, match=rf"^{argument} {words}.* got {re.escape(repr(value))}$"):
        recipes.by_name(name, **{argument: value})


@pytest.mark.parametrize("name", [["topk"], None, 1])
def test_a_recipe_is_named_by_a_word(name):
    with pytest.raises(TypeError, match=r"^recipe must be one of dgc, .*, topk; got"):
        recipes.by_name(name)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_a_momentum_may_be_a_schedule(name):
    assert "momentum" in recipes.by_name(name, momentum=lambda step: 0.0).tensors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_step": -1}, "start_step must be 0 or more, got -1"),
        ({"min_numel": -5}, "min_numel must be 0 or more, got -5"),
        ({"flush_bytes": 0}, "flush_bytes must be 1 or more, got 0"),
    ],
)
def test_arguments_of_a_state(options, words):
    with pytest.raises(ValueError, match=words):
        CompressionState(model(), recipes.sbc(0.1), **options)


def test_a_name_is_no_recipe():
    with pytest.raises(TypeError, match=r"must be a ddp_compress Recipe .* got str"):
        CompressionState(model(), "sbc")


PARTS: dict[str, Any] = {
    "name": "mine",
    "memory": memory.Residual(),
    "select": select.TopK(0.5),
    "quantize": quantize.Values(),
    "codec": codec.EliasFano(),
    "exchange": AllGather(),
}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"memory": memory.NoMemory()},
            r"select=TopK\(.*\) leaves entries behind, which memory=NoMemory\(\) does not keep",
        ),
        ({"select": select.All()}, r"select=All\(\) sends all .* codec=EliasFano\(\) would send"),
        ({"codec": codec.Implicit()}, r"codec=Implicit\(\) sends no .* select=TopK\(.*\) selects"),
        (
            {"select": select.AddDrop(0.5), "exchange": Sharded()},
            r"exchange=Sharded\(.*\) selects again .* select=AddDrop\(.*\) keeps the vote",
        ),
        (
            {"select": select.AddDrop(0.5), "exchange": BySize(AllGather(), Sharded(), 4)},
            r"exchange=Sharded\(.*\) selects again .* select=AddDrop\(.*\) keeps the vote",
        ),
        (
            {
                "select": select.All(),
                "codec": codec.Implicit(),
                "exchange": SharedMask(RotatingOwner()),
            },
            r"exchange=SharedMask\(.*\) agrees on positions, and select=All\(\) sends all",
        ),
        (
            {"exchange": SharedMask(RotatingOwner(), RunningAverage(0.9))},
            r"predictor=RunningAverage\(.*\) guesses levels, and quantize=Values\(.*\) has none",
        ),
        (
            {
                "quantize": quantize.Signs(),
                "body": KernelPatterns(),
                "exchange": SharedMask(RotatingOwner()),
            },
            r"exchange=SharedMask\(.*\) sends positions and values apart, and body=KernelPatterns",
        ),
        ({"body": KernelPatterns()}, r"body=KernelPatterns\(\) holds the signs .* quantize=Values"),
        (
            {
                "quantize": quantize.Signs(),
                "body": KernelPatterns(),
                "select": select.All(),
                "codec": codec.Implicit(),
            },
            r"body=KernelPatterns\(\) holds positions, and select=All\(\) sends all",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_named(parts, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**PARTS | parts)


@pytest.mark.parametrize("exchange", [AllGather(), Sharded(), Union()])
def test_all_entries_do_without_a_memory(exchange):
    parts = {"memory": memory.NoMemory(), "select": select.All(), "codec": codec.Implicit()}
    gradient = {"0.weight": torch.randn(4, 6)}
    state = CompressionState(model(), Recipe(**PARTS | parts | {"exchange": exchange}))
    assert torch.equal(state.reduce(gradient)["0.weight"], gradient["0.weight"])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BySize(AllGather, Sharded(), 4), TypeError, "few must be an instance, got the cl"),
        (lambda: BySize(AllGather(), None, 4), TypeError, "many must be .* recipe.Exchange has"),
        (lambda: BySize(AllGather(), Sharded(), "4"), TypeError, "limit must be an int, got '4'"),
        (lambda: BySize(AllGather(), Sharded(), 0), ValueError, "limit must be 1 or more, got 0"),
        (lambda: SharedMask(RotatingOwner), TypeError, "agree must be an instance, got the class"),
        (lambda: SharedMask(AllGather()), TypeError, "agree must be .*, got AllGather"),
        (lambda: SharedMask(RotatingOwner(), 0.9), TypeError, "predictor must be .*, got 0.9"),
        (lambda: BallotBox("no"), TypeError, "random must be a bool, got 'no'"),
        (lambda: Sharded("union"), TypeError, "down must be a recipe or None, got 'union'"),
    ],
)
def test_parts_of_parts_that_are_no_such_thing_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("slot", "part", "words"),
    [
        ("select", select.TopK, r"select must be an instance, got the class TopK: write TopK\("),
        ("memory", memory.NoMemory, "memory must be an instance, got the class NoMemory"),
        ("exchange", "all_gather", "exchange must be one of the parts in ddp_compress.exchange"),
        ("codec", None, r"codec .* or have all that recipe\.Codec has, got None"),
        ("quantize", codec.EliasFano(), r"quantize must be .*, got EliasFano\(\)"),
        ("memory", select.TopK(0.1), r"memory must be .*, got TopK\(density=0\.1"),
        ("name", 3, "name must be a string, got 3"),
    ],
)
def test_what_is_no_part_is_refused_by_name(slot, part, words):
    with pytest.raises(TypeError, match=words):
        Recipe(**PARTS | {slot: part})


# -------------------------------------------------------------------------------------- parameters


def test_complex_parameters_are_refused_by_name():
    net = model()
    net.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"phase is complex .*torch\.complex64"):
        CompressionState(net, recipes.sbc(0.1))


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused_by_name(layer):
    net = nn.ModuleDict({"words": layer(5, 2, sparse=True)})
    with pytest.raises(ValueError, match=r"words.weight has sparse gradients.*use sparse=False"):
        CompressionState(net, recipes.sbc(0.1))


def test_frozen_complex_parameters_are_no_matter():
    net = model()
    net.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64), requires_grad=False)
    CompressionState(net, recipes.sbc(0.1))


def test_reduce_names_what_does_not_fit():
    state = CompressionState(nn.Linear(4, 2), recipes.sbc(0.1))
    for tensors, words in (
        ({"weight": torch.ones(7)}, "weight has 7 elements, expected 8"),
        ({"wait": torch.ones(7)}, "wait is no parameter of the model"),
        ({"weight": torch.ones(8), "bias": torch.ones(2).half()}, "float16.*expected one"),
        ({}, "at least one tensor"),
    ):
        with pytest.raises(PeerError, match=words):
            state.reduce(tensors)
    assert state.step == 0


def test_a_state_refuses_parameters_of_another_model():
    state = CompressionState(nn.Linear(4, 2), recipes.sbc(0.1))
    with pytest.raises(ValueError, match=r"first of shape \(9, 9\), are not of the model"):
        state.layout([nn.Parameter(torch.zeros(9, 9))])


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
def test_a_message_beyond_31_bits_is_refused(scope):
    half = Layout(("weight",), (2**30,))
    Plan((half,), scope, 0.001)
    with pytest.raises(ValueError, match="message of 2147483648 elements is too large"):
        Plan((half, half), scope, 0.001)


# ------------------------------------------------------------------------------------- checkpoints


def trained_state(recipe=None) -> CompressionState:
    state = CompressionState(nn.Linear(4, 2), recipe or recipes.dgc(0.25))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        state.reduce({"weight": torch.randn(2, 4, generator=generator)})
    return state


def change(path: list[str], value: object):
    def apply(saved):
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda saved: saved.pop("step"), "checkpoint lacks step"),
        (change(["format"], 2), "format 2, expected 3 or 4 or 5"),
        (change(["format"], 6), "format 6, expected 3 or 4 or 5"),
        (change(["checksum"], 1), "checkpoint is damaged"),
        (change(["recipe"], "sbc"), "of recipe 'sbc', expected 'dgc'"),
        (change(["step"], -1), "step -1, expected an int of 0 or more"),
        (change(["step"], 1.5), "step 1.5, expected an int"),
        (change(["step"], True), "step True, expected an int"),
        (change(["stats", "speed"], 3), "unknown statistics: .*speed"),
        (change(["stats"], None), "statistics"),
        (change(["stats", "steps"], "x"), "statistics have steps 'x', expected a number"),
        (lambda saved: saved["tensors"].pop("momentum"), r"keeps \['residual'\], expected"),
        (change(["tensors"], None), "tensors"),
        (change(["tensors", "residual"], None), "residual"),
        (
            change(["tensors", "residual", "wait"], torch.zeros(8)),
            "residual of wait, which is no parameter",
        ),
        (
            change(["tensors", "residual", "weight"], torch.zeros(7)),
            r"residual of weight has shape \(7,\), expected \(8,\)",
        ),
        (
            change(["tensors", "momentum", "weight"], torch.zeros(2, 4)),
            r"momentum of weight has shape \(2, 4\), expected \(8,\)",
        ),
        (
            change(["tensors", "residual", "weight"], torch.zeros(8, dtype=torch.float16)),
            "residual of weight has dtype torch.float16, expected float32 or float64",
        ),
        (
            change(["tensors", "residual", "weight"], torch.full((8,), torch.nan)),
            "residual of weight is not finite",
        ),
        (change(["tensors", "residual", "weight"], [0.0] * 8), "is a list, expected a tensor"),
        (
            change(["tensors", "residual", "weight"], torch.zeros(8).to_sparse()),
            "residual of weight is torch.sparse_coo on cpu, expected a dense tensor",
        ),
        (
            change(["tensors", "residual", "weight"], torch.zeros(8, device="meta")),
            "residual of weight is torch.strided on meta, expected a dense tensor",
        ),
        (
            lambda saved: saved["tensors"]["momentum"].pop("weight"),
            "checkpoint lacks momentum of weight",
        ),
        (
            change(["tensors"], {"residual": {}, "momentum": {}}),
            "checkpoint of 3 steps keeps no tensor",
        ),
        (
            lambda saved: saved["tensors"].update({5: {}}),
            r"keeps \['5', 'momentum', 'residual'\], expected",
        ),
        (change(["stats", "steps"], -1), "statistics have steps -1, expected a number of 0 or"),
        (change(["stats", "dense_bytes"], math.nan), "statistics have dense_bytes nan, expected"),
        (change(["parameters"], 1), "model whose parameters have other names or sizes"),
        (
            lambda saved: saved["tensors"]["residual"]["weight"].view(torch.int32)[5:6].add_(1),
            "checkpoint is damaged: its tensors are not those that were saved",
        ),
        (change(["saved_by"], 3), "saved_by 3, expected rank and world size"),
        (change(["saved_by"], [2, 2]), r"saved_by \[2, 2\], expected rank and world size"),
        (change(["saved_by"], [True, 2]), r"saved_by \[True, 2\], expected rank and world size"),
        (change(["density"], 0.0), r"density 0.0, expected a number in \(0, 1\]"),
        (change(["density"], "x"), r"density 'x', expected a number in \(0, 1\]"),
        (change(["buckets"], None), "buckets None, expected a list"),
        (change(["buckets"], ["weight"]), "a bucket 'weight', expected a list of names"),
        (change(["buckets"], [["weight"], []]), r"a bucket \[\], expected a list of names"),
        (
            change(["buckets"], [["weight", 3]]),
            r"a bucket \['weight', 3\], expected a list of names",
        ),
        (change(["buckets"], [["weight"], ["weight"]]), "buckets hold weight more than once"),
        (change(["buckets"], [["wait"]]), "buckets hold wait, no parameters of the model"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(damage, words):
    state = trained_state()
    saved = trained_state().state_dict()
    before = copy.deepcopy(state.state_dict())
    damage(saved)
    with pytest.raises(ValueError, match=words):
        state.load_state_dict(saved)
    after = state.state_dict()
    for slot, tensors in before.pop("tensors").items():
        assert torch.equal(after["tensors"][slot]["weight"], tensors["weight"])
    after.pop("tensors")
    assert after == before


def test_a_checkpoint_of_format_3_loads_whatever_its_checksum():
    state, saved = (
        CompressionState(nn.Linear(4, 2), recipes.dgc(0.25)),
        trained_state().state_dict(),
    )
    state.load_state_dict(saved | {"format": 3, "checksum": 1})
    again = state.state_dict()
    assert (again["format"], again["checksum"]) == (5, saved["checksum"])


def test_a_checkpoint_of_a_smaller_model_or_with_less_in_it_is_refused():
    small, large = model(), nn.Sequential(*model(), nn.Linear(2, 2))
    state = CompressionState(small, recipes.topk(0.25))
    state.reduce({name: p.detach() for name, p in small.named_parameters()})
    saved, fresh = state.state_dict(), CompressionState(large, recipes.topk(0.25))
    with pytest.raises(ValueError, match="parameters have other names or sizes"):
        fresh.load_state_dict(saved)
    del saved["tensors"]["residual"]["1.weight"]
    with pytest.raises(ValueError, match=r"checkpoint is damaged: .* or not all of them"):
        state.load_state_dict(saved)
    assert (fresh.step, state.step) == (0, 1)


def test_per_rank_takes_back_its_own_alone():
    state = trained_state()
    before = state.state_dict()["step"]
    saved = PerRank(trained_state()).state_dict()
    for entries in ({}, {"rank 1 of 2": saved["rank 0 of 1"]}, {"rank 0 of 1": None}):
        with pytest.raises(ValueError, match="expected a tuple of one entry as 'rank 0 of 1'"):
            PerRank(state).load_state_dict(entries)
    assert state.state_dict()["step"] == before


def test_a_checkpoint_is_loaded_after_half_a_step():
    """As a backward leaves behind that raised between two buckets."""
    state, twin = trained_state(), trained_state()
    saved = trained_state().state_dict()
    state.push(torch.ones(8), Layout(("weight",), (8,)), last=False)
    for each in (state, twin):
        each.load_state_dict(saved)
    means = [each.reduce({"weight": torch.ones(2, 4)})["weight"] for each in (state, twin)]
    assert torch.equal(*means)
    assert state.step == twin.step == 4


def test_a_checkpoint_is_a_copy():
    state = trained_state()
    saved = state.state_dict()
    fresh = CompressionState(nn.Linear(4, 2), recipes.dgc(0.25))
    fresh.load_state_dict(saved)
    saved["tensors"]["residual"]["weight"].fill_(9.0)
    for loaded in (state, fresh):
        assert 9.0 not in loaded.state_dict()["tensors"]["residual"]["weight"]


# ---------------------------------------------------------------------------------- second momentum


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD([{"params": p[:1], "momentum": 0.0}, {"params": p[1:]}],
                                  lr=0.1, momentum=0.5),
        torch.optim.Adam,
        torch.optim.AdamW,
        lambda p: torch.optim.RMSprop(p, momentum=0.1),
    ],
    ids=["SGD", "a group", "Adam", "AdamW", "RMSprop"],
)  # fmt: skip
def test_a_second_momentum_is_refused_before_anything_changes(make):
    net = model()
    state = CompressionState(net, recipes.dgc(0.1))
    optimizer = make(list(net.parameters()))
    net(torch.ones(6)).sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):  # and it stays refused
        with pytest.raises(
            ValueError, match=r"dgc keeps the momentum itself, but \w+ has a second"
        ):
            optimizer.step()
        assert all(map(torch.equal, before, net.parameters()))
        assert not optimizer.state
    assert state.step == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adam(p, betas=(0.0, 0.99)),
    ],
    ids=["SGD", "RMSprop", "Adam without"],
)
def test_an_optimizer_without_momentum_steps(make):
    net = model()
    state = CompressionState(net, recipes.dgc(0.1))
    optimizer = make(net.parameters())
    net(torch.ones(6)).sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    optimizer.step()
    assert not any(map(torch.equal, before, net.parameters()))
    assert state.step == 0


@pytest.mark.parametrize("recipe", [recipes.topk(0.1), recipes.sbc(0.1)], ids=lambda r: r.name)
def test_other_recipes_take_any_optimizer(recipe):
    net = model()
    state = CompressionState(net, recipe)
    net(torch.ones(6)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).step()
    assert state.step == 0


def test_two_states_with_momentum_of_their_own_live_side_by_side():
    """As in a GAN: the optimizers of both step, whichever comes first."""
    nets = [model(), model()]
    states = [CompressionState(net, recipes.dgc(0.1)) for net in nets]
    for net in nets:
        net(torch.ones(6)).sum().backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert [state.step for state in states] == [0, 0]


def test_other_models_keep_their_momentum():
    net, other = model(), model()
    state = CompressionState(net, recipes.dgc(0.1))
    other(torch.ones(6)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9).step()
    assert state.step == 0


def test_a_momentum_that_comes_later_is_refused_too():
    """As OneCycleLR's, which cycles it."""
    net = model()
    state = CompressionState(net, recipes.dgc(0.1))
    net(torch.ones(6)).sum().backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match=r"second one of 0\.9"):
        optimizer.step()
    assert state.step == 0


def test_a_model_may_be_used_again_without_its_state():
    net = model()
    state = CompressionState(net, recipes.dgc(0.1))
    del state
    gc.collect()
    net(torch.ones(6)).sum().backward()
    before = next(net.parameters()).detach().clone()
    torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).step()
    assert not torch.equal(before, next(net.parameters()))


def test_nothing_is_left_behind_when_the_model_is_gone():
    """A refused optimizer keeps no model alive, and other optimizers step as before."""
    net = model()
    state = CompressionState(net, recipes.dgc(0.1))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(6)).sum().backward()
    with pytest.raises(ValueError, match="second"):
        optimizer.step()
    parameter, its_state = weakref.ref(next(net.parameters())), weakref.ref(state)
    del net, state, optimizer
    gc.collect()
    assert parameter() is None
    assert its_state() is None
    assert len(optimizers._global_optimizer_pre_hooks) <= 1  # of the process, whatever it makes
    other = model()
    other(torch.ones(6)).sum().backward()
    again = torch.optim.Adam(other.parameters())
    again.step()
    assert again.state


def test_a_checkpoint_is_a_mapping():
    with pytest.raises(ValueError, match="checkpoint is a NoneType, expected a mapping"):
        trained_state().load_state_dict(None)
