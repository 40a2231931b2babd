"""What of a command line varies, and the points that this makes."""

import math

import pytest

from distill_tune.errors import UserError
from distill_tune.sweep import values
from distill_tune.sweep.values import Range, Values, read_axes


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        ("kd_ratio=0.1,0.5", ("0.1", "0.5")),
        ("kd_ratio=0.1, 0.5", ("0.1", "0.5")),
        ("custom_sharded_layers=[output],[tok_embeddings,output]", ("[output]", "[tok_embeddings,output]")),
        ("kd_loss={_component_: a.B, x: 1},a.C", ("{_component_: a.B, x: 1}", "a.C")),
        ("teacher_system_prompt=\"Be brief, be right\",'Say, what?'", ('"Be brief, be right"', "'Say, what?'")),
        ('a="one \\", still one",two', ('"one \\", still one"', "two")),
        ("a=it's,that's", ("it's", "that's")),
        ("a=[{b: [1,2]},3],{c: 'x,]'}", ("[{b: [1,2]},3]", "{c: 'x,]'}")),
        ("+model.lora_dropout=0.0,0.1", ("0.0", "0.1")),
    ],
)
def test_commas_outside_of_brackets_and_quotes_part_values(override, texts):
    assert read_axes([override]) == ([], [Values(override.lstrip("+").partition("=")[0], texts)])


@pytest.mark.parametrize(
    "override", ["kd_ratio=0.5", "a=[1,2]", 'a="1,2"', "~a", "a={b: 1, c: 2}", "a=", "a=1.2", "path=../x..y"]
)
def test_what_has_one_value_holds_for_all_trials(override):
    assert read_axes([override]) == ([override], [])


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("optimizer.lr=1e-5..1e-3", Range("optimizer.lr", 1e-5, 1e-3, is_log=True, is_whole=False)),
        ("kd_ratio=0.1..0.9", Range("kd_ratio", 0.1, 0.9, is_log=False, is_whole=False)),
        ("kd_ratio=.1..1", Range("kd_ratio", 0.1, 1, is_log=False, is_whole=False)),
        ("model.lora_rank=4..64", Range("model.lora_rank", 4, 64, is_log=False, is_whole=True)),
        ("a=-2..-0.5", Range("a", -2, -0.5, is_log=False, is_whole=False)),
    ],
)
def test_two_dots_are_a_range_and_an_exponent_asks_for_a_log_scale(override, axis):
    assert read_axes([override]) == ([], [axis])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["a=1,,2"], "nothing stands beside a comma"),
        (["a=1,2,"], "nothing stands beside a comma"),
        (["a=[1,2"], "has no ] at its end"),
        (["a='1,2"], "has no ' at its end"),
        (["kd_ratio=0.5,0.50"], "0.5 is there twice"),
        (["kd_ratio=0.5,0.6", "kd_ratio=0.7,0.8"], "kd_ratio: given twice"),
        (["+kd_ratio=0.5,0.6", "kd_ratio=0.7"], "kd_ratio: given twice"),
        (["lr=1e-3..1e-5"], "from a smaller number to a larger one"),
        (["lr=0..1e-3"], "begins above 0"),
        (["a=[1,2},3"], "has no ] at its end"),
    ],
)
def test_what_is_no_list_of_values_is_told(overrides, told):
    with pytest.raises(UserError) as error:
        read_axes(overrides)
    assert told in str(error.value)


def test_a_grid_has_every_combination_and_its_last_key_varies_fastest():
    _, axes = read_axes(["a=1,2", "b=x,y"])
    assert values.grid(axes) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]
    with pytest.raises(UserError, match="a range has no grid"):
        values.grid(read_axes(["a=1..2"])[1])


def test_random_points_are_different_and_of_more_of_them_these_are_the_first():
    _, axes = read_axes(["a=1,2,3", "lr=1e-5..1e-3", "rank=4..64"])
    points = values.random_points(axes, 40)
    assert points[:7] == values.random_points(axes, 7)
    assert len({tuple(point.items()) for point in points}) == 40
    assert {point["a"] for point in points} == {"1", "2", "3"}
    rates = [math.log10(float(point["lr"])) for point in points]
    assert min(rates) >= -5 and max(rates) <= -3
    assert 10 < sum(rate < -4 for rate in rates) < 30  # as many below the middle of the scale as above
    assert all(4 <= int(point["rank"]) <= 64 for point in points)
    with pytest.raises(UserError, match="there are 3 combinations"):
        values.random_points(axes[:1], 4)


def test_ends_of_a_range_are_not_rounded_beyond_it():
    axis = Range("a", 0.123456, 0.123457, is_log=False, is_whole=False)
    assert [axis.text(0.123456), axis.text(0.123457)] == ["0.123456", "0.123457"]


def test_each_value_is_checked_once():
    _, axes = read_axes(["a=1,2,3", "b=x,y", "lr=1e-5..1e-3"])
    points = values.to_check(axes)
    assert len(points) == 1 + 2 + 1 + 1
    assert {(key, text) for point in points for key, text in point.items()} == {
        *(("a", text) for text in "123"),
        *(("b", text) for text in "xy"),
        *(("lr", text) for text in ("1e-05", "0.001")),
    }
