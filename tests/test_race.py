"""`bench/race.py`: which runs are due, when a curve reaches the target, what is joined."""

import json
import math

import pytest

from race import argument_parser
from race_clock import pace, rate_for
from race_figures import duration, times
from race_join import Curve, Learned, Pace, crossing, seconds_to_target
from race_learn import Race, Run, best_rate, budgets, due, evaluations, losses_in, make
from race_methods import METHODS, RATES

DENSE, TOPK = METHODS["dense"], METHODS["topk-1%"]
RACE = Race("lm", 1800, ["topk-1%"], [0, 1], None)


def all_tries(losses: dict[str, list[float]]) -> dict[Run, float]:
    """The first stage's results."""
    return {
        Run(METHODS[name], lr, 0, 1800): loss
        for name, each in losses.items()
        for lr, loss in zip(RATES["lm"], each, strict=True)
    }


def test_all_learning_rates_are_tried_first_then_the_best_on_further_seeds():
    assert due(RACE, {}) == [Run(m, lr, 0, 1800) for m in (DENSE, TOPK) for lr in (0.2, 0.3, 0.45)]
    losses = all_tries({"dense": [1.5, 1.4, math.inf], "topk-1%": [1.39, 1.45, 1.6]})
    assert due(RACE, losses) == [Run(DENSE, 0.3, 1, 1800), Run(TOPK, 0.2, 1, 1800)]


def test_who_ends_above_dense_of_the_same_seed_runs_longer_until_it_reaches_it():
    losses = all_tries({"dense": [1.5, 1.4, 1.6], "topk-1%": [1.39, 1.45, 1.6]})
    losses |= {Run(DENSE, 0.3, 1, 1800): 1.35, Run(TOPK, 0.2, 1, 1800): 1.38}
    seen = []
    for loss in (1.37, 1.365, 1.36, 1.3501):
        (run,) = due(RACE, losses)
        seen.append((run.method, run.lr, run.seed, run.steps))
        losses[run] = loss
    assert seen == [(TOPK, 0.2, 1, steps) for steps in (1980, 2250, 2700, 3600)]
    assert due(RACE, losses) == []
    losses[Run(TOPK, 0.2, 1, 2700)] = 1.35  # as low as dense is low enough
    assert [run.steps for run in budgets(RACE, TOPK, 1, losses)] == [1800, 1980, 2250, 2700]


def test_a_given_target_is_for_all_of_them():
    race = Race("lm", 1800, [], [0], 1.39)
    assert due(race, all_tries({"dense": [1.5, 1.4, 1.6]})) == [Run(DENSE, 0.3, 0, 1980)]
    assert due(race, all_tries({"dense": [1.5, 1.38, 1.6]})) == []


def test_no_learning_rate_is_best_where_all_have_failed():
    losses = all_tries({"dense": [1.5, 1.4, 1.6], "topk-1%": [math.inf] * 3})
    assert best_rate(RACE, TOPK, losses) is None
    assert due(RACE, losses) == [Run(DENSE, 0.3, 1, 1800)]


def test_what_lies_in_the_folder_is_not_made_again(tmp_path):
    (tmp_path / "learn").mkdir()
    done, wild, failed = (Run(TOPK, lr, 0, 1800) for lr in RATES["lm"])
    done.file(tmp_path).write_text(json.dumps({"results": {"validation_loss": 1.4}}))
    wild.file(tmp_path).write_text(json.dumps({"results": {"validation_loss": math.nan}}))
    failed.file(tmp_path).with_suffix(".failed").write_text("RuntimeError")
    assert losses_in(RACE, tmp_path) == {done: 1.4, wild: math.inf, failed: math.inf}
    assert due(RACE, losses_in(RACE, tmp_path)) == [Run(DENSE, lr, 0, 1800) for lr in RATES["lm"]]


def test_half_a_result_does_not_bear_its_name(tmp_path, monkeypatch):
    (tmp_path / "learn").mkdir()
    run = Run(TOPK, 0.3, 0, 1800)
    half = 'import sys; open(sys.argv[-1], "w").write("{"); sys.exit("no more memory")'
    monkeypatch.setattr("race_learn.training", lambda *_: ["-c", half])
    assert make(run, "lm", tmp_path) == math.inf
    assert not run.file(tmp_path).exists()
    assert "no more memory" in run.file(tmp_path).with_suffix(".failed").read_text()


def test_a_folder_is_of_one_task_and_one_budget(tmp_path):
    RACE.save(tmp_path)
    assert Race.load(tmp_path) == RACE
    with pytest.raises(ValueError, match=r"is of --task lm --steps 1800, got image and 600"):
        Race("image", 600, [], [0], None).save(tmp_path)
    with pytest.raises(ValueError, match=r"holds no race: begin with `race\.py learn"):
        Race.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("steps", "expected"), [(1800, 12), (2250, 9), (3600, 12), (40, 4), (7, 1)]
)
def test_evaluations_fall_on_ends_of_periods(steps, expected):
    assert evaluations(steps) == expected


def test_a_warm_up_is_so_many_steps_or_a_share_of_them():
    assert TOPK.warmup_steps(1800) == 300
    assert TOPK.warmup_steps(40) == 6
    assert METHODS["powersgd-2"].warmup_steps(1800) == 180


def test_the_target_is_reached_on_the_line_between_two_evaluations():
    steps, losses = [100.0, 200.0, 300.0, 400.0], [3.0, 2.0, 1.0, 1.5]
    assert crossing(steps, losses, 1.25) == 275.0
    assert crossing(steps, losses, 2.0) == 200.0
    assert crossing(steps, losses, 3.5) == 100.0
    assert crossing(steps, losses, 0.9) is None


def test_seconds_are_the_warm_up_s_and_those_of_the_steps_after_it():
    assert Pace(2.0, 0.5).seconds(30, 50) == 60.0
    assert Pace(2.0, 0.5).seconds(150, 50) == 150.0


def test_learning_and_paces_are_joined():
    """The second seed's curve is half as long as the first's; the target lies in the middle."""
    curves = [
        Curve(Run(TOPK, 0.3, seed, steps), [steps // 2, steps], [2.0, 1.0], [1.0, 2.0])
        for seed, steps in ((0, 1800), (1, 900))
    ]
    one = Learned(TOPK, 0.3, 3, 2, curves, [1.5, 1.5])
    clock = {"methods": {"topk-1%": {"warmup_step_s": 3.0, "step_s": 1.0}}}
    assert seconds_to_target([one], clock) == {"topk-1%": 450 + (1350 + 675) / 2}
    never = Learned(TOPK, 0.3, 3, 2, curves, [1.5, 0.5])
    assert seconds_to_target([never], clock) == {"topk-1%": None}
    lost = Learned(TOPK, 0.3, 3, 3, curves, [1.5, 1.5])  # the third seed's run has failed
    assert seconds_to_target([lost], clock) == {"topk-1%": None}
    assert seconds_to_target([one], {"methods": {}}) == {}


def test_a_pace_is_the_mean_of_a_warm_up_and_the_median_of_what_follows():
    warm, settle, rest = [9.0, 4.0, 2.0, 2.0], [7.0, 7.0, 7.0], [1.0, 5.0, 1.5]
    found = pace(TOPK, [*warm, *settle, *rest], units=3)
    assert (found["warmup_step_s"], found["step_s"]) == (3.0, 1.5)  # 4, 4, 2, 2
    rounds = pace(METHODS["fedavg"], [*settle, *rest], units=3)
    assert (rounds["warmup_step_s"], rounds["step_s"]) == (0.15, 0.15)


def test_a_link_rate_follows_from_rho():
    """Four ranks' ring sends 6 bytes a parameter: 6 MB in half a second are 96 Mbit/s."""
    assert rate_for(5.0, step_s=0.1, parameters=1_000_000) == "96mbit"
    assert rate_for(1e9, step_s=0.1, parameters=1) == "1mbit"


def test_figures_are_readable():
    assert [duration(s) for s in (None, 1234.4, 7200.0)] == ["–", "1,234 s", "2.0 h"]
    assert [times(10.0, 4.0), times(None, 4.0), times(10.0, None)] == ["2.50 ×", "–", "–"]


@pytest.mark.parametrize("rho", ["0", "-1", "nan", "inf", "much"])
def test_a_rho_that_is_none_is_refused(rho, capsys):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["clock", "runs", "--rho", rho])
    assert f"{rho!r}: expected a number above 0" in capsys.readouterr().err
