"""Federated dropout in one process: what is cut out, what it computes, where it goes back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddp_compress as dc
from networks import mnist_cnn
from tests.distributed.training import digest


class Residual(nn.Module):
    """Maps added to maps, functions in place of modules, a softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels.float() / 2 - 1)
        x = F.max_pool2d(x + self.second(F.relu(self.norm(self.first(x)))), 2)
        x = torch.flatten(F.adaptive_avg_pool2d(torch.sigmoid(x), 2), 1)
        return F.log_softmax(self.head(x), dim=-1)


class Skipping(nn.Module):
    """The inputs are added to a layer's outputs: these stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(x).tanh()))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.BatchNorm1d(12),
        nn.Sigmoid(),  # not 0 for 0
        nn.Dropout(0.0),
        nn.Sequential(nn.Linear(12, 7), nn.Tanh()),
        nn.Linear(7, 3),
    )


def conv1d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.BatchNorm1d(8 * 4),  # behind Flatten, a block of features a filter
        nn.Linear(8 * 4, 2),
    )


# Beside each model its inputs' shape, and whose units a layer's inputs are.
MODELS = {
    "mlp": (mlp, (6, 5), {"4.0": "0", "5": "4.0"}),
    "cnn": (lambda: mnist_cnn(4, 6, 10), (2, 1, 28, 28), {"3": "0", "7": "3", "9": "7"}),
    "conv1d": (conv1d, (4, 3, 10), {"5": "0"}),
    "residual": (Residual, (3, 2, 8, 8), {"first": "stem", "second": "first", "head": "stem"}),
    "skipping": (Skipping, (3, 6), {"down": "up"}),
}


def masked(model: nn.Module, inputs_of: dict[str, str], kept: dict[str, Tensor]) -> nn.Module:
    """A copy in which the dropped units are zeros wherever a layer reads them."""
    model = copy.deepcopy(model)
    for consumer, producer in inputs_of.items():
        units = len(model.get_parameter(f"{producer}.weight"))
        mask = torch.zeros(units).index_fill_(0, kept[producer], 1.0)

        def hide(module: nn.Module, args: tuple[Tensor], mask: Tensor = mask) -> Tensor:
            (x,) = args
            wide = mask.repeat_interleave(x.shape[1] // len(mask))
            return x * wide.view(-1, *[1] * (x.dim() - 2))

        model.get_submodule(consumer).register_forward_pre_hook(hide)
    return model


def moved(model: nn.Module) -> nn.Module:
    """With random running statistics, scales and shifts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for name, tensor in module.state_dict().items():
                if name == "running_var":
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point():
                    tensor.normal_()
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_sub_model_is_the_masked_full_model(name, training):
    build, shape, inputs_of = MODELS[name]
    torch.manual_seed(1)
    full, inputs = moved(build()), torch.randn(shape)
    dropout = dc.FederatedDropout(full, rate=0.6, seed=3)
    for number in (0, 5):
        dropout.draw(number)
        kept = dropout.kept(number)
        assert set(inputs_of.values()) <= set(kept)
        expected = masked(full, inputs_of, kept).train(training)(inputs)
        torch.testing.assert_close(dropout.sub_model.train(training)(inputs), expected)
        for layer, units in kept.items():
            total = len(full.get_parameter(f"{layer}.weight"))
            assert len(units) == round(0.6 * total) < total
            assert len(dropout.sub_model.get_parameter(f"{layer}.weight")) == len(units)


def test_added_units_come_and_go_together_and_inputs_and_outputs_stay():
    kept = dc.FederatedDropout(Residual(), rate=0.5).kept(0)
    assert torch.equal(kept["stem"], kept["second"])
    assert set(kept) == {"stem", "first", "second"}
    assert set(dc.FederatedDropout(Skipping(), rate=0.5).kept(0)) == {"up"}


@pytest.mark.parametrize("name", MODELS)
def test_a_round_changes_what_it_kept_and_nothing_else(name):
    build, _, _ = MODELS[name]
    full = build()
    floats = [t for t in full.state_dict().values() if t.is_floating_point()]
    numbers = (
        torch.randperm(sum(t.numel() for t in floats)).float().split([t.numel() for t in floats])
    )
    for tensor, values in zip(floats, numbers, strict=True):
        tensor.copy_(values.view_as(tensor))  # no two alike
    before = {name: t.clone() for name, t in full.state_dict().items()}
    dropout = dc.FederatedDropout(full, rate=0.5)
    dropout.draw(7)
    held = {name: t.clone() for name, t in dropout.sub_model.state_dict().items()}
    for tensor in dropout.sub_model.state_dict().values():
        tensor.add_(1)
    assert digest(full.state_dict().values()) == digest(before.values()), "not before merge"
    dropout.merge()
    for key, after in full.state_dict().items():
        here = torch.isin(before[key], held[key])
        assert here.sum() == held[key].numel()
        assert torch.equal(after, torch.where(here, before[key] + 1, before[key])), key


def test_three_quarters_of_the_papers_cnn():
    dropout = dc.FederatedDropout(mnist_cnn(), rate=0.75)
    full, sub = dropout.model, dropout.sub_model
    linear = [
        sum(p.numel() for name, p in model.named_parameters() if name[0] in "79")
        for model in (full, sub)
    ]
    assert 1 - linear[1] / linear[0] >= 0.43
    shapes = [tuple(p.shape) for p in sub.parameters()]
    assert shapes[0] == (24, 1, 5, 5)
    assert shapes[4] == (384, 48 * 49)
    parameters = list(sub.parameters())
    dropout.draw(1)
    assert all(a is b for a, b in zip(sub.parameters(), parameters, strict=True)), "DDP holds them"
    assert [tuple(p.shape) for p in sub.parameters()] == shapes


def test_units_are_a_function_of_seed_round_and_rank():
    shared = dc.FederatedDropout(mlp(), rate=0.5, seed=1)
    own = dc.FederatedDropout(mlp(), rate=0.5, seed=1, per_rank=True)
    draws = {
        str(dropout.kept(number, rank)["0"].tolist())
        for dropout in (shared, own)
        for number in range(3)
        for rank in range(3)
    }
    assert len(draws) == 3 + 9
    other = dc.FederatedDropout(mlp(), rate=0.5, seed=2).kept(0)["0"]
    assert str(other.tolist()) not in draws


# ------------------------------------------------------------------------------------------ memory


def rows_and_columns(kept: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Where the sub-model of `mlp` lies, by hand."""
    zero, four = kept["0"], kept["4.0"]
    return {
        "0.weight": (zero,),
        "1.bias": (zero,),
        "4.0.weight": (four[:, None], zero),
        "5.weight": (torch.arange(3)[:, None], four),
    }


@pytest.mark.parametrize(
    "recipe",
    [dc.recipes.topk(0.1), dc.recipes.sbc(0.2, momentum=0.5), dc.recipes.stc(0.3)],
    ids=lambda recipe: recipe.name,
)
def test_what_is_not_sent_waits_for_its_coordinate(recipe):
    """What came and what is kept, at full size, always sum up to all updates ever made."""
    full = mlp()
    dropout = dc.FederatedDropout(full, rate=0.5, seed=4)
    state = dc.CompressionState(dropout.sub_model, recipe)
    dropout.attach(state)
    stats = state.stats
    ours = dict(dropout.sub_model.named_parameters())
    parameters = dict(full.named_parameters())
    owed = {name: torch.zeros_like(p) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        dropout.draw(number)
        where = rows_and_columns(dropout.kept(number))
        updates = {
            n: torch.randint(-8, 8, ours[n].shape, generator=generator).float() for n in where
        }
        came = state.reduce(updates)
        for name, index in where.items():
            owed[name][index] += updates[name] - came[name]
        waiting = copy.deepcopy(dropout.state_dict()["waiting"])
        for slot, by_name in state.state_dict()["tensors"].items():
            for name, kept in by_name.items():
                there = waiting.setdefault(slot, {}).setdefault(name, torch.zeros_like(owed[name]))
                assert not there[where[name]].any(), "it would be there twice"
                there[where[name]] = kept.view_as(ours[name])
        if recipe.memory.momentum_at(0) == 0:
            second = waiting.get("owner_residual", {})
            for name in where:
                kept = waiting["residual"][name] + second.get(name, torch.zeros(()))
                torch.testing.assert_close(kept, owed[name], rtol=0, atol=1e-4)
        else:
            assert any(m.any() for m in waiting["momentum"].values())
    assert sum(t.count_nonzero() for t in waiting["residual"].values()) > stats.nonzeros // 12
    assert (state.stats, state.stats.steps) == (stats, 12)
    assert state.stats is stats, "whoever watches them goes on watching"


def test_memory_of_a_hook_lies_as_its_parameter_does():
    """DDP's buckets of channels_last weights are in the order of memory."""
    full = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 3, bias=False))
    dropout = dc.FederatedDropout(full, rate=0.5)
    dropout.sub_model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = dc.CompressionState(dropout.sub_model, dc.recipes.topk(0.1))
    dropout.attach(state)
    dropout.draw(0)
    gradient = torch.randn(2, 3, 3, 3)
    flat = gradient.permute(0, 2, 3, 1).flatten()
    state.push(flat, dc.Layout(("0.weight",), (flat.numel(),)), last=True).wait()
    came = flat.view(2, 3, 3, 3).permute(0, 3, 1, 2)
    dropout.draw(1)
    dropout.draw(0)
    (kept,) = state.state_dict()["tensors"]["residual"].values()
    assert torch.equal(kept.view(2, 3, 3, 3).permute(0, 3, 1, 2), gradient - came)


# ---------------------------------------------------------------------------------------- refusals


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 16))


class Branching(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1)) if x.sum() > 0 else x


class Free(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.scale


class TiedToUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.used, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.used.weight = self.unused.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(x))


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    return model


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "1, a LayerNorm"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), "1, a GroupNorm"),
        (nn.Sequential(nn.LSTM(3, 4)), "0, a LSTM"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
            "1, a Conv2d with groups",
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4)), "1, a Linear of maps"),
        (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2)), "1, a MaxPool1d"),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(0), nn.Linear(4, 2)), "1, a Flatten from"),
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)), "2: its 8 inputs"),
        (nn.Sequential(SHARED, nn.ReLU(), SHARED), "0, which forward calls twice"),
        (tied(), "1.weight, which is tied to 0.weight"),
        (TiedToUnused(), "used.weight, which is tied to unused.weight"),
        (
            nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 8)), nn.Linear(8, 2)),
            "0, a Linear with weight_orig, weight_u, weight_v",
        ),
        (Viewing(), "view in forward"),
        (Branching(), "Branching cannot be traced"),
        (Free(), "scale, a tensor that forward uses"),
        (nn.Sequential(nn.Linear(3, 2)), "has no hidden units"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(model, words):
    with pytest.raises(ValueError, match=words):
        dc.FederatedDropout(model)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rate": 0.0}, ValueError, r"rate must lie in \(0, 1\]"),
        ({"rate": "1"}, TypeError, "rate must be a number"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"per_rank": 1}, TypeError, "per_rank must be a bool"),
        ({"model": "mlp"}, TypeError, "model must be the bare full model"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        dc.FederatedDropout(**({"model": mlp()} | options))


def test_calls_out_of_order_are_refused():
    full = mlp()
    dropout, own = dc.FederatedDropout(full), dc.FederatedDropout(full, per_rank=True)
    with pytest.raises(RuntimeError, match="before draw"):
        dropout.merge()
    with pytest.raises(TypeError, match="through must be a LocalUpdates or"):
        dropout.attach("topk")
    with pytest.raises(ValueError, match="not of the model"):
        dropout.attach(dc.CompressionState(full, dc.recipes.topk(0.1)))
    with pytest.raises(ValueError, match="number must be 0 or more"):
        dropout.draw(-1)
    own.draw(0)
    with pytest.raises(RuntimeError, match="attach a CompressionState first"):
        own.merge()


def test_a_state_without_its_rounds_is_refused():
    dropout = dc.FederatedDropout(mlp())
    state = dc.CompressionState(dropout.sub_model, dc.recipes.topk(0.1))
    state.reduce({"0.weight": torch.ones_like(dropout.sub_model.get_parameter("0.weight"))})
    dropout.attach(state)
    with pytest.raises(ValueError, match="memory of a round that is not known"):
        dropout.draw(0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"round": -1}, "has round -1, expected an int of 0 or more, or None"),
        ({"round": 1.0}, "has round 1.0, expected an int"),
        ({"waiting": 3}, "waiting tensors are 3, expected a mapping"),
        ({"waiting": {"residual": {"0.weight": 3}}}, "residual of 0.weight is a int"),
        ({"rate": 0.5}, "has rate 0.5, expected 0.75"),
        (
            {"waiting": {"residual": {"0.weight": torch.ones(2)}}},
            r"residual of 0.weight has shape \(2,\), expected \(12, 5\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(changed, words):
    dropout = dc.FederatedDropout(mlp())
    before = dropout.state_dict()
    with pytest.raises(ValueError, match=words):
        dropout.load_state_dict(before | changed)
    with pytest.raises(ValueError, match="lacks seed"):
        dropout.load_state_dict({name: v for name, v in before.items() if name != "seed"})
    assert dropout.state_dict() == before
