"""Steps whose answers are written while the student trains: which rows, which answers, which micro-batches."""

import json

import pytest
import torch
from tiny import ROWS

from distill_tune.data.conversation import IGNORE_INDEX
from distill_tune.errors import UserError


def answers(batches):
    """Place and labels of each row of some micro-batches, in the order of places."""
    found = []
    for batch in batches:
        rows = zip(
            batch.places, batch.tokens[0].split(batch.lengths), batch.targets[0].split(batch.lengths), strict=True
        )
        found += [
            (place, tokens.tolist(), targets[targets != IGNORE_INDEX].tolist()) for place, tokens, targets in rows
        ]
    return sorted(found)


def say(text):
    raise AssertionError(text)


def test_a_step_is_a_function_of_its_number_alone(begun):
    once, again = begun({"lmbda": 0.5}), begun({"lmbda": 0.5})
    for step in (3, 1):
        again.of_step(step, say)
    wanted, found = once.of_step(2, say), again.of_step(2, say)
    assert answers(found.batches) == answers(wanted.batches)
    assert (found.num_supervised, found.shape) == (wanted.num_supervised, wanted.shape)
    assert answers(once.of_step(1, say).batches) != answers(wanted.batches)


def test_rows_that_the_student_does_not_answer_are_those_of_the_data(begun):
    rows = begun({"lmbda": 0.5})
    of_data = answers(rows._steps.plan.micro_batches(0, 1))
    of_step = rows.of_step(1, say)
    same = [mine == its for mine, its in zip(answers(of_step.batches), of_data, strict=True)]
    assert same.count(True) == 2
    assert of_step.measured["rollouts"] == 2


def test_answers_stand_behind_the_prompts_and_alone_are_learned(begun):
    rows = begun()
    prompts = {place: tokens[: len(tokens) - len(learned)] for place, tokens, learned in data_of(rows)}
    found = answers(rows.of_step(1, say).batches)
    assert len(found) == 4
    for place, tokens, learned in found:
        assert tokens == [*prompts[place], *learned]


def data_of(rows):
    return answers(rows._steps.plan.micro_batches(0, 1))


def test_a_cut_answer_is_learned_without_an_end(begun):
    rows = begun()
    of_steps = [rows.of_step(step, say) for step in range(1, 4)]
    cut = [learned[-1] != 2 for of_step in of_steps for *_, learned in answers(of_step.batches)]
    assert 0 < sum(cut) == 4 * sum(of_step.measured["rollout_cut"] for of_step in of_steps)


def test_a_token_that_is_another_to_the_teacher_ends_an_answer_and_is_not_learned(begun):
    wanted = [learned for *_, learned in answers(begun().of_step(1, say).batches)]
    other = wanted[0][2]
    rows = begun()
    rows._of.built.teacher.other_tokens = {other: "'<a>' is '<b>'"}
    of_step = rows.of_step(1, say)
    for found, whole in zip([learned for *_, learned in answers(of_step.batches)], wanted, strict=True):
        assert found == (whole[: whole.index(other)] if other in whole else whole)
    assert of_step.measured["rollout_cut"] > 0


def test_answers_of_the_students_own_come_first_and_are_counted_also_in_halves(begun):
    rows = begun({"lmbda": 0.5})
    (batch,) = rows.of_step(1, say).batches
    of_data = {place: learned for place, _, learned in data_of(rows)}
    found = zip(batch.places, batch.targets[0].split(batch.lengths), batch.num_supervised, strict=True)
    is_own = [targets[targets != IGNORE_INDEX].tolist() != of_data[place] for place, targets, _ in found]
    assert is_own == [True, True, False, False] and batch.num_own == sum(batch.num_supervised[:2]) > 0
    own = [count * flag for count, flag in zip(batch.num_supervised, is_own, strict=True)]
    halves = batch.halves()
    in_first = len(halves[0].lengths)
    assert [half.num_own for half in halves] == [sum(own[:in_first]), sum(own[in_first:])]


def test_several_samples_of_a_prompt_are_several_rows(begun):
    of_step = begun({"samples_per_prompt": 3}).of_step(1, say)
    found = answers(of_step.batches)
    assert len(found) == of_step.measured["rollouts"] == 12
    assert len({place for place, *_ in found}) == 4
    assert len({tuple(learned) for *_, learned in found}) == 12


def test_a_row_that_comes_twice_in_a_step_is_answered_twice(begun, rows_file, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROWS[:1]))
    dataset = [
        {"_component_": "distill_tune.data.instruct", "source": str(path), "weight": weight}
        for path, weight in ((tmp_path / "one.json", 9.0), (rows_file, 1.0))
    ]
    found = answers(begun(dataset=dataset).of_step(1, say).batches)
    twice = [tuple(learned) for place, _, learned in found if place == (0, 0)]
    assert len(twice) == len(set(twice)) > 1


def test_supervised_tokens_are_counted_after_the_answers_are_written(begun):
    of_step = begun().of_step(1, say)
    counted = sum(len(batch.supervised_positions) for batch in of_step.batches)
    assert of_step.num_supervised == sum(of_step.shape.supervised) == counted
    assert sum(of_step.shape.lengths) == sum(sum(batch.lengths) for batch in of_step.batches)


def test_a_micro_batch_has_no_more_tokens_than_rows_of_the_longest_answers_would(begun):
    rows = begun({"sampling": {"max_new_tokens": 20}}, batch_size=2, gradient_accumulation_steps=8)
    most = rows._of.most_tokens
    for step in range(1, 4):
        batches = rows.of_step(step, say).batches
        assert 1 < len(batches) <= 8
        assert all(sum(batch.lengths) <= most[0] for batch in batches)
        assert all(len(batch.supervised_positions) <= most[2] for batch in batches)


def test_after_memory_ran_out_micro_batches_are_smaller(begun):
    rows = begun(batch_size=8)
    before = rows.of_step(1, say).batches
    rows._steps.plan.take_at_most([half for batch in before for half in batch.halves()])
    after = rows.of_step(1, say).batches
    assert max(sum(batch.lengths) for batch in after) < max(sum(batch.lengths) for batch in before)
    assert answers(after) == answers(before)


def test_with_max_tokens_per_batch_none_has_more(begun):
    changes = {"batch_size": None, "max_tokens_per_batch": 120, "gradient_accumulation_steps": 2}
    rows = begun({"sampling": {"max_new_tokens": 20}}, **changes)
    batches = rows.of_step(1, say).batches
    assert len(batches) > 1
    assert all(sum(batch.lengths) <= 120 for batch in batches)


def test_the_teacher_writes_the_others_where_it_is_asked_to(begun):
    rows = begun({"lmbda": 0.25, "seq_kd": True})
    of_data = {place: learned for place, _, learned in data_of(rows)}
    of_step = rows.of_step(1, say)
    assert all(learned != of_data[place] for place, _, learned in answers(of_step.batches))
    assert of_step.measured["rollouts"] == 1
    assert [len(generator.asked) for generator in (rows._answers._by_student, *rows._answers._by_teachers)] == [1, 3]


def test_the_teachers_own_prompt_is_before_the_same_answer(begun):
    rows = begun({"sampling": {"max_new_tokens": 20}}, teacher_prompt_template="{input} Know this: {output}")
    for batch in rows.of_step(1, say).batches:
        mine, its = batch, batch.for_teacher
        assert its is not mine
        assert torch.equal(mine.targets[0, mine.supervised_positions], its.targets[0, its.supervised_positions])
        assert sum(its.lengths) > sum(mine.lengths)


def test_a_teacher_that_writes_answers_its_own_prompt_and_the_student_that_of_its_own(begun):
    rows = begun({"lmbda": 0.5, "seq_kd": True}, teacher_prompt_template="{input} Answer in French.")
    of_step = rows.of_step(1, say)
    decode, generators = rows._of.built.tokenizer.decode, (rows._answers._by_student, *rows._answers._by_teachers)
    asked = [[decode(list(request.prompt)) for request in generator.asked] for generator in generators]
    assert [["French" in prompt for prompt in prompts] for prompts in asked] == [[False] * 2, [True] * 2]
    decoded = [decode(row.tolist()) for batch in of_step.batches for row in batch.tokens[0].split(batch.lengths)]
    assert not any("French" in row for row in decoded)


def test_every_rank_has_its_part_of_the_same_rows(begun):
    rows = begun({"lmbda": 0.5}, batch_size=8, gradient_accumulation_steps=2)
    plan = rows._steps.plan
    whole = answers(rows.of_step(1, say).batches)
    parts = []
    for rank in range(2):
        plan._rank, plan._num_ranks, plan._batch_size = rank, 2, 4
        of_rank = rows.of_step(1, say)
        parts.append(of_rank.batches)
        assert of_rank.num_supervised == sum(len(learned) for *_, learned in whole)
    assert len(parts[0]) == len(parts[1])
    assert sorted(answers(parts[0]) + answers(parts[1])) == whole


def test_answers_of_several_steps_are_written_at_once_and_are_the_same(begun):
    alone, ahead = begun({"lmbda": 0.5}), begun({"lmbda": 0.5, "every": 2})
    asked = []
    for step in range(2, 4):
        assert answers(ahead.of_step(step, say).batches) == answers(alone.of_step(step, say).batches)
        asked.append((len(ahead._answers._by_student.asked), len(alone._answers._by_student.asked)))
    assert asked == [(4, 2), (4, 4)]


def test_a_run_that_goes_on_among_them_has_those_that_were_written(begun, tmp_path, capsys):
    settings = {"lmbda": 0.5, "every": 3, "sampling": {"max_new_tokens": 20}}
    rows = begun(settings)
    rows.of_step(1, say)
    wanted = answers(rows.of_step(2, say).batches)
    (tmp_path / "checkpoints" / "step_2").mkdir(parents=True)
    capsys.readouterr()  # of the first, which began among them
    resumed = begun(settings)
    assert answers(resumed.of_step(2, say).batches) == wanted
    assert resumed._answers._by_student.asked == []
    assert "are not there" not in capsys.readouterr().out
    resumed.of_step(3, say)
    assert sorted(path.name for path in (tmp_path / "rollouts_ahead").iterdir()) == ["step_0.json", "step_3.json"]
    (tmp_path / "checkpoints" / "step_2").rename(tmp_path / "checkpoints" / "step_5")
    (tmp_path / "rollouts_ahead" / "step_0.json").write_text("{")
    broken = begun(settings)
    assert answers(broken.of_step(2, say).batches) == wanted
    assert "the answers to step 3 that the run has had are not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lmbda": 1.0}, r"lmbda=1.0: the answers to step 3 have been written with 0.5; set it back until step 3, or"),
        ({"seq_kd": True}, "seq_kd=True: the answers to step 3 have been written with False"),
        ({"samples_per_prompt": 2}, "samples_per_prompt=2: the answers to step 3 have been written with 1"),
        ({"sampling": {"max_new_tokens": 30}}, "sampling.max_new_tokens=30: the answers to step 3 have been written w"),
        ({"sampling": {"max_new_tokens": 20, "stop": ["x"]}}, r"sampling.stop=\['x'\]: the answers to step 3 have"),
    ],
)
def test_a_run_that_goes_on_among_them_with_other_settings_is_told_which(begun, tmp_path, capsys, change, told):
    settings = {"lmbda": 0.5, "every": 3, "sampling": {"max_new_tokens": 20}}
    begun(settings).of_step(1, say)
    with pytest.raises(UserError, match=rf"^rollouts\.{told}"):
        begun(settings | change).of_step(2, say)
    capsys.readouterr()
    (tmp_path / "rollouts_ahead" / "step_0.json").unlink()
    begun(settings | change).of_step(2, say)
    assert "it writes others" in capsys.readouterr().out


@pytest.mark.parametrize("checkpoint", ["", "step_0", ".step_1.partial", "step_9.superseded"])
def test_answers_stay_while_a_checkpoint_that_needs_them_may_still_be_written(begun, tmp_path, checkpoint):
    kept = begun({"every": 2})._answers._kept
    (tmp_path / "checkpoints" / checkpoint).mkdir(parents=True)
    found = []
    for first in (0, 2, 4):
        kept.keep({first: [None], first + 1: [None]})
        found.append({path.name for path in (tmp_path / "rollouts_ahead").iterdir()})
    assert found[1] == {"step_0.json", "step_2.json"}
    needed = {"step_0.json"} if checkpoint in ("step_0", ".step_1.partial") else set()
    assert found[2] == {"step_2.json", "step_4.json"} | needed


def test_the_cache_is_of_all_rows_that_are_answered_at_once(rows_of):
    one = rows_of().cache_bytes(1, torch.float32)
    server = {"server": {"_component_": "distill_tune.generation.Server", "url": "http://localhost:1"}}
    for settings, rows, slots in (
        ({}, 4, 4),
        ({"every": 2}, 4, 8),
        ({"every": 2}, 40, 64),
        ({"every": 1_000_000}, 1, rows_of()._steps.total_steps),
        (server, 4, 0),
    ):
        assert rows_of(settings).cache_bytes(rows, torch.float32) == slots * one, settings
    prompt = {"teacher_prompt_template": "{input} And why is that so?"}
    with_teacher = {"seq_kd": True, "sampling": {"max_new_tokens": 20}}
    short, long = (rows_of(with_teacher, **more).cache_bytes(1, torch.float32) for more in ({}, prompt))
    assert 0 < short < long  # of a teacher that has a longer prompt


@pytest.mark.parametrize("settings", [{}, {"lmbda": 0.0}])
def test_without_answers_of_the_students_nothing_is_measured(begun, settings):
    assert bool(begun(settings).of_step(1, say).measured) == (settings == {})
