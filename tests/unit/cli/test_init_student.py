"""A student made of some of its teacher's layers, and the comparison of both."""

import json
from pathlib import Path

import pytest
import torch
from architectures import write_architecture
from safetensors.torch import load_file
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune.cli.main import main
from distill_tune.config.files import demo_model_folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = write_architecture(tmp_path / "teacher", "gemma3", vocab_size=400, max_position_embeddings=512)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:6]))
    return tmp_path / "rows.json"


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


@pytest.mark.parametrize(
    ("choice", "kept"), [(["--layers", "0,2,5"], [0, 2, 5]), (["--every", "3"], [0, 3, 6])], ids=["layers", "every"]
)
def test_the_chosen_layers_are_kept_with_the_kind_of_attention_that_they_had(teacher, tmp_path, rows, choice, kept):
    main(["init-student", str(teacher), str(tmp_path / "student"), *choice, "--source", str(rows), "--rows", "4"])
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    whole = json.loads((teacher / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["layer_types"] == [whole["layer_types"][layer] for layer in kept]
    found, all_weights = load_file(tmp_path / "student" / "model.safetensors"), load_file(teacher / "model.safetensors")
    for new, old in enumerate(kept):
        name = "mlp.up_proj.weight"
        assert torch.equal(found[f"model.layers.{new}.{name}"], all_weights[f"model.layers.{old}.{name}"])
    assert (tmp_path / "student" / "tokenizer.json").is_file()
    # transformers runs it as the teacher without those layers would run.
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(3, 400, (2, 40))
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList(model.model.layers[layer] for layer in kept)
    model.config.num_hidden_layers = model.model.config.num_hidden_layers = 3
    model.config.layer_types = model.model.config.layer_types = config["layer_types"]
    with torch.no_grad():
        torch.testing.assert_close(
            logits(tmp_path / "student", tokens), model(tokens, use_cache=False).logits, rtol=0, atol=1e-4
        )


def test_the_layer_that_is_left_out_is_the_one_whose_removal_leaves_the_lowest_loss(teacher, tmp_path, rows, capsys):
    perplexities = []
    for dropped in range(7):
        layers = ",".join(str(layer) for layer in range(7) if layer != dropped)
        main(["init-student", str(teacher), str(tmp_path / str(dropped)), "--layers", layers, "--source", str(rows)])
        perplexities.append(float(capsys.readouterr().out.partition("with all layers, ")[2].split()[0]))
    main(["init-student", str(teacher), str(tmp_path / "student"), "--drop", "2", "--source", str(rows)])
    lines = capsys.readouterr().out.splitlines()
    first, second, summary, *_ = lines[next(at for at, line in enumerate(lines) if line.startswith("without")) :]
    best = perplexities.index(min(perplexities))
    assert first == f"without layer {best}: perplexity {min(perplexities):.1f}"
    assert second.startswith("without layer ")
    assert summary.startswith("left out 2 of 7 layers: ")
    assert str(best) in summary
    assert json.loads((tmp_path / "student" / "config.json").read_text())["num_hidden_layers"] == 5


def test_the_teacher_of_the_demo_makes_a_student(tmp_path, rows, capsys):
    """It has tokenizer.model alone, as what tiny configs export has."""
    student = tmp_path / "student"
    line = [str(demo_model_folder("teacher")), str(student), "--every", "3"]
    main(["init-student", *line, "--source", str(rows), "--rows", "4"])
    assert (student / "tokenizer.model").is_file()
    assert "perplexity on 4 held-out rows: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["--layers", "0,9"], "there is no layer 9; the teacher's are 0 to 6"),
        (["--layers", "1,1"], "names a layer twice"),
        (["--layers", "0,1,2,3,4,5,6"], "keeps 7 of 7 layers"),
        (["--every", "1"], "--every 1: must be 2 or more"),
        (["--drop", "7"], "--drop 7: must leave some of the teacher's 7 layers"),
    ],
    ids=["absent", "twice", "all", "every 1", "drop all"],
)
def test_a_choice_that_makes_no_student_is_told(teacher, tmp_path, capsys, choice, message):
    with pytest.raises(SystemExit):
        main(["init-student", str(teacher), str(tmp_path / "student"), *choice])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_compare_prints_the_table_and_writes_it(teacher, tmp_path, rows, capsys):
    student = str(tmp_path / "student")
    main(["init-student", str(teacher), student, "--layers", "0,1,2,3,4,5", "--source", str(rows)])
    table = tmp_path / "table.md"
    line = ["compare", str(teacher), student, student, "--source", str(rows), "--rows", "4", "--output", str(table)]
    main(line)
    told = capsys.readouterr().out
    assert "perplexity" in told
    _, _, header, _, first, second, *_ = table.read_text().splitlines()
    assert header.startswith("| model | parameters | perplexity | bits per byte | KL to teacher | agreement |")
    assert first.split(" | ")[4:6] == ["-", "-"]  # nothing to hold the teacher against
    assert float(second.split(" | ")[4].split()[0]) > 0
    with pytest.raises(SystemExit):
        main(["compare", str(teacher), str(tmp_path / "nothing")])
    assert "no such folder, or it has no config.json" in capsys.readouterr().err
