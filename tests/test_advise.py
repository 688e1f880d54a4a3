"""The adviser's arithmetic, and what it says to wrong input."""

import json
import math

import pytest
import torch
from torch import nn

import ddp_compress as dc
from ddp_compress import recipes
from ddp_compress.advise.__main__ import argument_parser, count, imported
from ddp_compress.advise.advice import Advice
from ddp_compress.advise.link import Link, parse_rate, parse_seconds, ring
from ddp_compress.advise.measuring import Sampled
from ddp_compress.advise.methods import POWERSGD, baselines, of_recipes
from ddp_compress.advise.outlook import Cost, Outlook, Setting, break_even
from ddp_compress.advise.trial import Trial
from ddp_compress.advise.workload import Workload, of_model, of_size

GIGABIT = Link(rate=1e9, latency=1e-3)
HERE = Setting(4, GIGABIT)


def outlook(name: str, work: float, sent: float, measured: float | None = None, **more):
    costs = {4: Cost(work, sent, 1), 8: Cost(work, 2 * sent, 1)}
    return Outlook(name, "", name == "topk", HERE, costs, measured=measured, **more)


DENSE = outlook("dense", 0.01, sent=62.5e6)  # 0.5 s, and 1 ms
SPARSE = outlook("topk", 0.05, sent=1e6)
SHORT = Workload([], step=1e-6)


def test_an_exchange_is_work_latency_and_bytes():
    assert DENSE.exchange() == pytest.approx(0.01 + 0.001 + 0.5)
    assert DENSE.exchange(Setting(8, Link(1e10, 2e-3))) == pytest.approx(0.01 + 0.002 + 0.1)


def test_of_what_was_measured_work_stays_and_bytes_take_as_much_longer():
    found = outlook("topk", 0.05, sent=1e6, measured=0.1)  # 9 ms on an ideal link, 50 on this
    assert found.exchange() == 0.1
    assert found.exchange(Setting(8, GIGABIT)) == pytest.approx(0.05 + 0.05 * 17 / 9)
    assert found.exchange(Setting(4, Link(1e8, 1e-2))) == pytest.approx(0.05 + 0.5)
    assert found.exchange(Setting(4, Link(1e15, 1e-12))) == pytest.approx(0.05, rel=1e-3)
    more = Outlook("x", "", True, HERE, {4: Cost(0.1, 0, 0), 8: Cost(0.3, 0, 0)}, measured=0.2)
    assert more.exchange(Setting(8, GIGABIT)) == pytest.approx(0.4)


def test_backward_hides_a_share():
    workload = Workload([], step=0.3)  # 0.2 s of backward
    assert DENSE.step(workload) == pytest.approx(0.3 + 0.511)
    half = outlook("dense", 0.01, sent=62.5e6, hidden=0.5)
    assert half.step(workload) == pytest.approx(0.3 + 0.511 - 0.1)


def test_breaks_even_where_both_take_as_long():
    workload = Workload([])
    rate = break_even(SPARSE, [DENSE], workload)
    assert rate == pytest.approx(8 * 61.5e6 / 0.04, rel=0.01)
    assert break_even(SPARSE, [outlook("dense", 1.0, sent=1e6)], workload) == math.inf
    assert break_even(SPARSE, [outlook("dense", 0.0, sent=1e6)], workload) is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (outlook("topk", 0.05, sent=1e6), "compress: dense takes 511 ms a step, and topk 59 ms; "),
        (outlook("topk", 0.48, sent=1e6), "stay dense: dense takes 511 ms a step, and the quick"),
        (outlook("topk", 0.1, 1e6, measured=0.4, spread=0.2), "stay dense: dense takes 511 ms"),
    ],
)
def test_the_verdict_asks_for_a_tenth_and_more_than_noise(ours, verdict):
    advice = Advice(SHORT, HERE, True, [DENSE, ours])
    assert advice.verdict.startswith(verdict)
    assert advice.pays == verdict.startswith("compress")


def test_no_verdict_without_a_step():
    advice = Advice(Workload([]), HERE, True, [DENSE, SPARSE])
    assert not advice.pays
    assert advice.verdict.endswith("(--step): dense exchanges in 511 ms, topk in 59 ms")


def test_the_verdict_names_what_else_would_be_quicker():
    half, thin = outlook("fp16", 0.01, sent=31e6), outlook("powersgd", 0.01, sent=1e5)
    slow = outlook("topk", 0.6, sent=1e6)
    assert Advice(SHORT, HERE, True, [DENSE, half, slow]).verdict.startswith(
        "stay dense, with PyTorch's fp16 hook: dense takes 511 ms"
    )
    assert Advice(SHORT, HERE, True, [DENSE, half, slow, thin]).verdict.startswith(
        "take PyTorch's PowerSGD: 11.8 ms"
    )


def test_a_whole_model_from_two_samples():
    link = Link(1e9, latency=0.001)
    small, large = Trial(100, 0.2, 0, sent=0, phases=0), Trial(200, 0.3, 0, sent=0, phases=0)
    assert Sampled(small, large, link).whole(400, sent=0) == pytest.approx(0.5)
    assert Sampled(large, large, link).whole(400, sent=0) == pytest.approx(0.6)
    noisy = Trial(100, 0.05, 0, sent=0, phases=0)
    assert Sampled(noisy, large, link).whole(400, sent=0) == pytest.approx(0.6), "at most so"
    travels = Trial(200, 0.301, 0, sent=25e6, phases=1)  # 0.2 s of bytes, 0.1 s of work
    found = Sampled(travels, travels, link).whole(400, sent=50e6)
    assert found == pytest.approx(0.2 + 0.401)


def test_bytes_of_powersgd_are_those_that_it_counts():
    like = [torch.empty(256, 64, 3), torch.empty(256), torch.empty(3, 7)]
    assert POWERSGD.payload(like) == 4 * ((256 + 192) * 4 + 256 + 21)
    assert ring(100.0, 4) == 150.0


def test_a_sample_cuts_what_is_larger_than_itself():
    experts = Workload([torch.empty(8, 4096, 4096, device="meta")])
    assert sum(each.numel() for each in experts.sample(10**6)) <= 10**6


def test_powersgd_takes_one_dtype():
    single, half = torch.empty(3), torch.empty(3, dtype=torch.bfloat16)
    assert [each.name for each in baselines([single, single])] == ["dense", "fp16", "powersgd"]
    assert [each.name for each in baselines([single, half])] == ["dense", "fp16"]


@pytest.mark.parametrize("most", [10**5, 10**6])
def test_a_sample_is_of_the_whole_model(most):
    model = Workload([torch.empty(64, 64)] * 50 + [torch.empty(64)] * 100 + of_size(10**7))
    sample = model.sample(most)
    assert 0.7 * most < sum(each.numel() for each in sample) < 1.3 * most
    assert any(each.numel() > most / 100 for each in sample)
    assert model.sample(model.numel) == list(model.parameters)


def test_of_models():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert [tuple(each.shape) for each in of_model(model)] == [(2, 3)]
    with pytest.raises(ValueError, match="no parameter that is trained"):
        of_model(nn.ReLU())
    assert sum(each.numel() for each in of_size(1_234_567)) == 1_234_567


def test_recipes_keep_what_they_say():
    topk, dgc, made = of_recipes(["topk,density=0.1", "dgc", recipes.rotated()], density=0.5)
    assert (topk.name, topk.kept, dgc.kept, made.kept) == ("topk,density=0.1", 4, 8, 0)
    assert topk.recipe == recipes.topk(0.1)
    assert dgc.recipe == recipes.dgc(0.5)
    assert topk.what.startswith("Send the entries of largest magnitude")


@pytest.fixture(scope="module")
def advice() -> Advice:
    return dc.advise(
        nn.Linear(200, 100), step=0.01, recipes=["topk", "hgc"], progress=False, link=GIGABIT,
        ranks=4,
    )  # fmt: skip


def test_one_process_alone_assumes_a_link(advice, tmp_path):
    assert not advice.is_measured
    assert {each.name for each in advice.outlooks} == {"dense", "fp16", "powersgd", "topk", "hgc"}
    assert list(advice.dense.costs) == [4, 8, 16, 32, 64, 128, 256]
    assert advice.dense.sent == ring(4 * 20_100, 4)
    text = str(advice)
    assert "assumed: 1 Gbit/s, 1 ms" in text
    assert advice.verdict in text.replace("\n", " ")
    figures = json.loads(advice.to_json())
    assert figures["verdict"] == advice.verdict
    assert [row["step"] for row in figures["methods"]] == sorted(
        row["step"] for row in figures["methods"]
    )
    advice.plot(tmp_path / "advice.png")
    assert (tmp_path / "advice.png").stat().st_size > 10_000


def test_nothing_is_left_behind(advice):
    assert not torch.distributed.is_initialized()
    assert repr(advice).startswith("Advice('")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"link": None}, ValueError, "one process alone has no link to measure"),
        ({"ranks": 1}, ValueError, "ranks must be 2 or more, got 1"),
        ({"model": 0}, ValueError, "must be 1 or more, got 0"),
        ({"model": "resnet18"}, TypeError, "must be an int, got 'resnet18'"),
        ({"model": nn.Linear(2, 2, device="meta")}, ValueError, "has no memory"),
        ({"inputs": torch.ones(2)}, ValueError, "inputs need a model to be called"),
        ({"step": -1}, ValueError, "step must be seconds of forward and backward"),
        ({"recipes": ["tokp"]}, ValueError, "recipe must be one of"),
        ({"recipes": ["topk,density"]}, ValueError, "expected WORD=VALUE"),
        ({"within": "host"}, ValueError, 'within must be "node"'),
    ],
)
def test_wrong_arguments(options, error, says):
    given = {"model": 1000, "link": GIGABIT, "ranks": 4, "progress": False} | options
    with pytest.raises(error, match=says):
        dc.advise(given.pop("model"), **given)


def test_texts():
    assert (parse_rate("100mbit"), parse_rate("2.5 Gbit/s")) == (1e8, 2.5e9)
    assert (parse_seconds("250us"), parse_seconds("0.35")) == (250e-6, 0.35)
    assert (count("124M"), count("25.6m"), count("7B")) == (124_000_000, 25_600_000, 7_000_000_000)
    for parse, text in ((parse_rate, "fast"), (parse_rate, "0gbit"), (count, "many"), (count, "0")):
        with pytest.raises(ValueError, match="expected"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tests.no_such_module:build", "ModuleNotFoundError"),
        ("tests.table:no_such_function", "AttributeError"),
        ("builtins:list", "an nn.Module; got list"),
        ("builtins", "MODULE:FUNCTION"),
    ],
)
def test_models_that_cannot_be_imported(text, says):
    with pytest.raises(ValueError, match=says):
        imported(text)


def test_a_command_line_says_what_it_expects(capsys, monkeypatch):
    monkeypatch.setattr("os._exit", exit)
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--parameters", "many"])
    assert "expected a number of parameters such as 124M" in capsys.readouterr().err
