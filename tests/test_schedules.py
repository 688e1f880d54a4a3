import math

import pytest

from ddp_compress import exponential_warmup
from ddp_compress.schedules import around_lr_change, density_at, momentum_at


def test_it_changes_around_every_change_alone():
    schedule = around_lr_change(0.01, 0.2, at=[10, 12, 30], before=3, after=2)
    changed = {step for step in range(50) if schedule(step) == 0.2}
    assert changed == {*range(7, 14), *range(27, 32)}
    assert {schedule(step) for step in range(50)} == {0.01, 0.2}


@pytest.mark.parametrize(("before", "after", "steps"), [(0, 0, []), (0, 1, [5]), (2, 0, [3, 4])])
def test_either_side_may_be_empty(before, after, steps):
    schedule = around_lr_change(0.01, 0.2, [5], before, after)
    assert [step for step in range(10) if schedule(step) == 0.2] == steps


def test_elsewhere_another_schedule_may_run():
    warmup = exponential_warmup(0.01, steps=10)
    schedule = around_lr_change(warmup, 0.5, at=[5], before=1, after=1)
    expected = [0.5 if step in (4, 5) else warmup(step) for step in range(20)]
    assert [density_at(schedule, step) for step in range(20)] == expected
    assert momentum_at(around_lr_change(0.9, 0.0, [5], 1, 1), 4) == 0.0


def test_schedules_of_equal_arguments_are_equal():
    assert around_lr_change(0.1, 0.2, [1], 1, 1) == around_lr_change(0.1, 0.2, (1,), 1, 1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"normal": math.inf}, ValueError, "normal must be finite, got inf"),
        ({"changed": math.nan}, ValueError, "changed must be finite, got nan"),
        ({"normal": "1"}, TypeError, "normal must be a number, got '1'"),
        ({"changed": abs}, TypeError, "changed must be a number"),
        ({"before": -1}, ValueError, "before must be 0 or more, got -1"),
        ({"after": -2}, ValueError, "after must be 0 or more, got -2"),
        ({"at": [3, -4]}, ValueError, r"at\[1\] must be 0 or more, got -4"),
        ({"at": 5}, TypeError, "at must be a sequence of ints, got 5"),
        ({"at": "12"}, TypeError, "at must be a sequence of ints, got '12'"),
        ({"at": None}, TypeError, "at must be a sequence of ints, got None"),
        ({"at": ["a"]}, TypeError, r"at\[0\] must be an int, got 'a'"),
        ({"at": [1, 1.5]}, TypeError, r"at\[1\] must be an int, got 1.5"),
        ({"before": "x"}, TypeError, "before must be an int, got 'x'"),
        ({"before": 1.5}, TypeError, "before must be an int, got 1.5"),
        ({"before": True}, TypeError, "before must be an int, got True"),
        ({"after": None}, TypeError, "after must be an int, got None"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    good = {"normal": 0.1, "changed": 0.2, "at": [5], "before": 1, "after": 1}
    with pytest.raises(error, match=words):
        around_lr_change(**(good | change))


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        (-1, ValueError, "steps must be 0 or more, got -1"),
        ("x", TypeError, "steps must be an int, got 'x'"),
        (1.5, TypeError, "steps must be an int, got 1.5"),
    ],
)
def test_a_warmup_lasts_whole_steps(steps, error, words):
    with pytest.raises(error, match=words):
        exponential_warmup(0.1, steps)


def test_changes_may_come_from_any_iterable():
    schedule = around_lr_change(0.1, 0.2, (step for step in (5, 9)), 1, 1)
    assert schedule == around_lr_change(0.1, 0.2, [5, 9], 1, 1)


@pytest.mark.parametrize("momentum", [0, 0.5, 0.999])
def test_a_momentum_below_one_is_given(momentum):
    assert momentum_at(momentum, 3) == momentum_at(lambda step: momentum, 3) == momentum


@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan, math.inf])
def test_other_momenta_are_refused(bad):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got"):
        momentum_at(bad, 0)
    with pytest.raises(ValueError, match=r"momentum schedule .* at step 7 must lie in \[0, 1\)"):
        momentum_at(lambda step: bad, 7)
    with pytest.raises(TypeError, match="momentum must be a number"):
        momentum_at("fast", 0)
