"""Kinds of teachers, through the real command on tiny models."""

import json
import shutil
import sys

import numpy
import pytest
import torch
from tiny import ROWS, metrics_of, write_model
from tiny_gguf import write_gguf

from distill_tune.cli.main import main
from distill_tune.errors import UserError

FROM_HF = "distill_tune.models.from_hf"


@pytest.fixture
def run(tmp_path, write_config, student_folder, teacher_folder, monkeypatch):
    """Run kd_single_device with a teacher; returns its metrics."""
    monkeypatch.chdir(tmp_path)

    def go(teacher=None, *overrides, **changes):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        settings = {
            "model": {"_component_": FROM_HF, "path": str(student_folder)},
            "teacher_model": teacher or {"_component_": FROM_HF, "path": str(teacher_folder)},
            "checkpointer": None,
            "teacher_checkpointer": None,
            "max_steps_per_epoch": 2,
        }
        write_config(**settings | changes)
        monkeypatch.setattr(sys, "argv", ["distill-tune"])
        monkeypatch.setattr(sys, "path", list(sys.path))
        main(["run", "kd_single_device", "--config", "config.yaml", *overrides])
        return metrics_of(tmp_path / "out")

    return go


@pytest.fixture
def two(teacher_folder, tmp_path, tokenizer_file):
    other = write_model(tmp_path / "other", tokenizer_file, seed=3, width=48)
    return [
        {"_component_": FROM_HF, "path": str(teacher_folder), "weight": 3, "name": "maths"},
        {"_component_": FROM_HF, "path": str(other), "weight": 1, "name": "code"},
    ]


def first_kd(lines):
    return lines[0]["kd_loss"]


def test_a_teacher_twice_is_that_teacher(run, two, teacher_folder):
    alone = run()
    for combination in ("mixture", "sum"):
        twice = run([two[0], {**two[0], "name": "again"}], teacher_combination=combination)
        assert first_kd(twice) == pytest.approx(first_kd(alone), rel=1e-5)


def test_a_sum_weighs_the_divergences_and_a_mixture_is_below_it(run, two):
    each = [first_kd(run({key: entry[key] for key in ("_component_", "path")})) for entry in two]
    assert first_kd(run(two, teacher_combination="sum")) == pytest.approx(0.75 * each[0] + 0.25 * each[1], rel=1e-5)
    assert first_kd(run(two, teacher_combination="mixture")) < 0.75 * each[0] + 0.25 * each[1]


def test_each_row_follows_its_own_teacher(run, two, tmp_path):
    def rows(names):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([row | {"teacher_id": name} for row, name in zip(ROWS[:8], names, strict=True)]))
        dataset = {"_component_": "distill_tune.data.instruct", "source": str(path)}
        return {"dataset": dataset, "batch_size": 8, "teacher_combination": "by_row", "shuffle": False}

    only = [first_kd(run(two, **rows([name] * 8))) for name in ("maths", "code")]
    alone = first_kd(run(two[0] | {}, **rows(["maths"] * 8) | {"teacher_combination": None}))
    assert only[0] == pytest.approx(alone, rel=1e-5)
    mixed = first_kd(run(two, **rows(["maths", "code"] * 4)))
    assert min(only) < mixed < max(only)
    with pytest.raises(SystemExit) as ended:
        run(two, **rows(["maths"] * 7 + ["art"]))
    assert ended.value.code == 2


def test_the_row_with_an_unknown_teacher_is_named(run, two, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row | {"teacher_id": "art"} for row in ROWS[:2]]))
    with pytest.raises(SystemExit):
        run(
            two,
            dataset={"_component_": "distill_tune.data.instruct", "source": str(path)},
            teacher_combination="by_row",
        )
    assert "rows.json, row 1: teacher_id is art; teacher_model has maths, code" in capsys.readouterr().err


@pytest.mark.parametrize("combination", ["mixture", "by_row"])
def test_streamed_teachers_are_the_same(run, two, tmp_path, combination):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row | {"teacher_id": "code"} for row in ROWS[:32]]))
    changes = {
        "dataset": {"_component_": "distill_tune.data.instruct", "source": str(path)},
        "teacher_combination": combination,
    }
    assert first_kd(run(two, "teacher_offload=True", **changes)) == first_kd(run(two, **changes))


@pytest.mark.torchao
@pytest.mark.parametrize(
    ("quantizer", "most"),
    [
        ("torchao.quantization.Int8WeightOnlyConfig", 0.02),
        ("distill_tune.teachers.NF4", 0.2),
        ("torchao.quantization.Float8WeightOnlyConfig", 0.1),
    ],
)
def test_quantised_teachers_are_near(run, quantizer, most, tmp_path, tokenizer_file):
    teacher = {"_component_": FROM_HF, "path": str(write_model(tmp_path / "wide", tokenizer_file, seed=4, width=128))}
    whole, quantised = first_kd(run(teacher)), first_kd(run(teacher, teacher_quantizer={"_component_": quantizer}))
    assert 0 < abs(quantised - whole) / whole < most


def test_an_earlier_checkpoint_teaches_as_the_model_that_it_became(run, tmp_path):
    run()
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    of_folder = run({"_component_": FROM_HF, "path": "earlier/model"})
    of_checkpoint = run(
        {"_component_": "distill_tune.teachers.EarlierCheckpoint", "path": "earlier/checkpoints/step_2"}
    )
    assert first_kd(of_checkpoint) == pytest.approx(first_kd(of_folder), rel=1e-6)
    assert first_kd(of_checkpoint) > 0


def test_an_earlier_checkpoint_of_another_model_is_refused(run, tmp_path, capsys):
    run()
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    with pytest.raises(SystemExit):
        run(
            {"_component_": "distill_tune.teachers.EarlierCheckpoint", "path": "earlier/checkpoints/step_2"},
            "model._component_=distill_tune.models.lora_from_hf",
            "+model.lora_attn_modules=[q_proj]",
        )
    assert "was trained with other parameters than `model`" in capsys.readouterr().err


def test_the_students_base_model_says_what_the_student_says_before_it_has_learned(run, student_folder):
    adapters = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_dropout": 0.3}
    model = {"_component_": "distill_tune.models.lora_from_hf", "path": str(student_folder), **adapters}
    own = {"_component_": "distill_tune.teachers.BaseModel"}
    of_folder = {"_component_": FROM_HF, "path": str(student_folder)}
    lines, wanted = (run(teacher, model=model, max_steps_per_epoch=4) for teacher in (own, of_folder))
    assert [line["kd_loss"] for line in lines] == pytest.approx([line["kd_loss"] for line in wanted], rel=1e-5)
    assert lines[-1]["kd_loss"] > 0  # the student is another by now


def test_a_hugging_face_model_teaches_as_ours(run, teacher_folder):
    ours, theirs = run(), run({"_component_": "distill_tune.teachers.HuggingFace", "path": str(teacher_folder)})
    assert [line["kd_loss"] for line in theirs] == pytest.approx([line["kd_loss"] for line in ours], rel=1e-4)
    hidden = {"hidden_loss": {"_component_": "distill_tune.losses.HiddenLoss"}}
    ours = run(**hidden)
    theirs = run({"_component_": "distill_tune.teachers.HuggingFace", "path": str(teacher_folder)}, **hidden)
    assert theirs[0]["hidden_loss"] == pytest.approx(ours[0]["hidden_loss"], rel=1e-4)


@pytest.mark.parametrize(("kind", "most"), [("F32", 1e-5), ("Q8_0", 0.01), ("Q4_0", 0.3), ("Q4_1", 0.3)])
def test_a_gguf_file_teaches(run, tmp_path, tokenizer_file, kind, most):
    folder = write_model(tmp_path / "plain", tokenizer_file, seed=5, width=64)
    write_gguf(folder, tmp_path / "teacher.gguf", kind)
    plain, of_file = (run({"_component_": FROM_HF, "path": path}) for path in (str(folder), "teacher.gguf"))
    assert first_kd(of_file) == pytest.approx(first_kd(plain), rel=most)
    assert kind == "F32" or first_kd(of_file) != first_kd(plain)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_read_as_the_gguf_package_reads_them(kind):
    import gguf

    from distill_tune.models.gguf import dequantised

    weights = torch.randn(8, 96, generator=torch.Generator().manual_seed(0)).numpy()
    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    wanted = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    torch.testing.assert_close(dequantised(torch.from_numpy(raw), kind, torch.float32), wanted)


def test_a_broken_gguf_file_is_told(run, tmp_path, capsys):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(SystemExit) as ended:
        run({"_component_": FROM_HF, "path": "broken.gguf"})
    assert ended.value.code == 2
    assert "broken.gguf: cannot be read as GGUF" in capsys.readouterr().err


def test_prompt_distillation_brings_the_student_near_the_teacher_with_the_prompt(run, tmp_path, student_folder):
    """The student without the prompt learns what the same model says with it."""
    lines = run(
        {"_component_": FROM_HF, "path": str(student_folder)},
        teacher_system_prompt="Answer as a pirate would, with and so on and plus and done.",
        kd_ratio=1.0,
        epochs=8,
        max_steps_per_epoch=None,
        optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-3},
        batch_size=8,
    )
    assert lines[-1]["kd_loss"] < 0.2 * lines[0]["kd_loss"]


def test_an_answer_with_other_tokens_behind_the_teachers_prompt_is_refused(monkeypatch):
    from distill_tune.data import Reading, prepare
    from distill_tune.data.conversation import Tokens
    from distill_tune.data.sources import RowError

    student = Tokens(numpy.array([1, 2, 7, 8]), numpy.array([-100, -100, 7, 8]))
    teacher = Tokens(numpy.array([1, 2, 3, 7, 9]), numpy.array([-100, -100, -100, 7, 9]))
    source = prepare._Source(None, None, None, Reading(teacher_system_prompt="Be brief."), ())
    monkeypatch.setattr(prepare, "_source", source, raising=False)
    monkeypatch.setattr(prepare, "_read", lambda *read_by: teacher)
    told = "2 tokens behind the student's prompt and 2 behind the teacher's: they differ from token 2"
    with pytest.raises(RowError, match=told):
        prepare._cut(student, 0)


def test_a_teacher_that_needs_adapters_says_so():
    from distill_tune.teachers import BaseModel

    with pytest.raises(UserError, match="the student without its adapters, and `model` has none"):
        BaseModel().check(torch.nn.Linear(2, 2), None, None)
