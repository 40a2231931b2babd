"""`data` shows what of the rows is learned, from the tokenizer's files and the rows alone."""

import contextlib
import json
import re

import pytest
import tiny_tokenizer
from tiny import write_model_of_another_tokenizer

from distill_tune.cli.main import main

QUESTION, ANSWER = "你好，知识蒸馏是什么？", "一个小模型学习一个大模型。\n🙂"


@pytest.fixture
def config(tmp_path, write_config):
    """Of chats under a ChatML tokenizer, and of models that are not there."""
    (tmp_path / "tokenizer").mkdir()
    tiny_tokenizer.write_tokenizer(tmp_path / "tokenizer")
    turns = [(QUESTION, ANSWER), ("hello", "there " * 400), ("hello", ""), ("hello", "there"), ("x " * 300, "there")]
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in turns
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    missing = {"_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": "nowhere"}
    return write_config(
        tokenizer={
            "_component_": "distill_tune.data.hf_tokenizer",
            "path": str(tmp_path / "tokenizer"),
            "max_seq_len": 300,
        },
        dataset={"_component_": "distill_tune.data.chat", "source": str(tmp_path / "rows.json")},
        checkpointer=missing,
        teacher_checkpointer=missing,
    )


def told(capsys, config, *arguments):
    """What it prints; its rows are shown whatever its exit status."""
    with contextlib.suppress(SystemExit):
        main(["data", "--config", str(config), *map(str, arguments)])
    return capsys.readouterr().out


def test_it_shows_rows_with_what_is_learned_in_marks(config, capsys):
    shown = told(capsys, config, "--rows", 1)
    assert "learned: [[in such marks]]" in shown
    answer = ANSWER.replace("\n", "↵\n")
    text = f"<|im_start|>user↵\n{QUESTION}<|im_end|>↵\n<|im_start|>assistant↵\n[[{answer}<|im_end|>]]↵\n"
    assert f"rows.json, row 1: {tokens(shown)} tokens, " in shown
    assert shown.endswith(f"learned\n{text}\n")


def test_what_else_is_wrong_with_a_model_is_told(config, capsys):
    with pytest.raises(SystemExit):
        main(["data", "--config", str(config), "model.num_layer=2"])
    told_of = capsys.readouterr().err
    assert "model.num_layer: torchtune.models.llama3_2.llama3_2 has no such argument" in told_of
    assert "nowhere" not in told_of


def tokens(shown):
    return int(shown.rpartition(", row 1: ")[2].split()[0])


def test_it_counts_what_is_cut_bad_and_left_out(config, capsys):
    shown = told(capsys, config)
    assert "rows.json: 3 rows, " in shown
    assert (
        "1 bad row left out; 1 row left out whose answer max_seq_len cuts away; 1 row cut at max_seq_len=300" in shown
    )
    assert ", 1 of them without their end\n" in shown
    assert "on_bad_row=stop: a run ends at the bad rows\n" in shown
    assert "rows.json, row 3: no answer" in shown
    assert shown.count('"<|im_end|>" (id 1) in 2 rows') == 1
    least, median, most = next(line for line in shown.splitlines() if line.startswith("tokens a row")).split()[-3:]
    assert int(least) < int(median) < int(most) == 300
    assert "row 1:" in shown and "row 2:" in shown and "row 4:" in shown
    assert " characters ... " in shown  # of a long answer the middle is left out


def test_its_exit_status_is_1_where_a_run_would_end_at_bad_rows(config, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "--config", str(config)])
    assert end.value.code == 1
    main(["data", "--config", str(config), "on_bad_row=skip"])
    with pytest.raises(SystemExit) as end:
        main(["data", "--config", str(config), "--row", "2"])
    assert end.value.code == 1


def test_its_exit_status_is_1_where_rows_for_validation_are_bad(config, capsys, tmp_path):
    rows = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "good.json").write_text(json.dumps(rows[:1]))
    good, bad = tmp_path / "good.json", f"dataset_val.source={tmp_path / 'rows.json'}"
    with pytest.raises(SystemExit) as end:
        main(["data", "--config", str(config), f"dataset.source={good}", "dataset_val=distill_tune.data.chat", bad])
    assert end.value.code == 1
    assert "dataset_val: a run ends at its bad rows\n  " in (shown := capsys.readouterr().out)
    assert "rows.json, row 3: " in shown


def test_one_row_is_shown_whole(config, capsys):
    shown = told(capsys, config, "--row=2")
    assert "rows.json, row 2: 300 tokens, " in shown
    assert "there " * 100 in shown and " ... " not in shown
    assert "row 1:" not in shown and "median" not in shown


def test_what_the_teacher_reads_is_shown_where_it_differs(config, capsys):
    shown = told(capsys, config, "--row", 4, "teacher_system_prompt=你是老师")
    _, student, teacher = shown.split("tokens")[-3:]
    assert "你是老师" not in student and "[[there<|im_end|>]]" in student
    assert "<|im_start|>system↵\n你是老师<|im_end|>" in teacher and "[[there<|im_end|>]]" in teacher


def test_a_teachers_own_tokenizer_writes_the_rows_as_well(
    write_config, student_folder, tokenizer_file, tmp_path, capsys
):
    other = write_model_of_another_tokenizer(tmp_path / "other", tokenizer_file, seed=3)
    teacher = {"_component_": "distill_tune.models.from_hf", "path": str(other)}
    config = write_config(teacher_model=teacher, teacher_checkpointer=None)
    shown = told(capsys, config, "--rows", 1)
    assert "common boundaries" in shown and "method to take: " in shown
    of_student, of_teacher = shown.split("the teacher's tokenizer writes ")
    assert "[INST]" in of_student and "<|im_start|>assistant↵\n[[0 plus 0 is 0, done.<|im_end|>]]" in of_teacher
    learned = int(of_student.rpartition(" learned")[0].split()[-1])
    found = re.match(r"(\d+) tokens; of the (\d+) tokens learned (\d+) begin where one of its tokens does", of_teacher)
    assert int(found[2]) == learned >= int(found[3]) > 3
    shown = told(capsys, config, "--rows", 1, "teacher_model.path=nowhere")
    assert "the rows are shown as the student reads them; of the teacher: teacher_model.path=nowhere: has no" in shown
    assert "0 plus 0 is 0, done." in shown


def test_on_a_terminal_what_is_learned_has_a_colour(config, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[30;102mthere<|im_end|>\x1b[0m" in told(capsys, config, "--row", 4)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[there<|im_end|>]]" in told(capsys, config, "--row", 4)


def test_torchtunes_tokenizers_and_several_datasets_are_shown(write_config, rows_file, capsys):
    entry = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    shown = told(capsys, write_config(dataset=[entry, {"_component_": "torchtune.datasets.alpaca_dataset",
                                                       "source": str(rows_file)}]), "--rows", 1)  # fmt: skip
    assert "<bos>[INST] What is 0 plus 0? [/INST][[ 0 plus 0 is 0, done.<eos>]]" in shown.replace("  ", " ")
    assert shown.count("rows.json, row 1: ") == 2
    assert "### Instruction:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", 3], "--row 3: is bad, so it is not learned\n  "),
        (["--row", 9], "--row 9: there is no such row, or it is one of the 2 that are left out; 3 are learned"),
        (["--rows", "x"], "--rows x: must be a whole number of at least 1"),
        (["--row"], "--row : must be a whole number"),
        (["--line", 1], "--line: no such option"),
        (["kd_raito=1"], "kd_raito: no such key, did you mean kd_ratio?"),
        (["tokenizer.path=nowhere"], "tokenizer.path=nowhere: no such file"),
        (["dataset.source=nowhere.json"], "dataset nowhere.json: no such file"),
    ],
)
def test_mistakes_are_told(config, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["data", "--config", str(config), *map(str, arguments)])
    assert end.value.code == 2
    found = capsys.readouterr().err
    assert message in found
    assert "checkpoint_dir" not in found
