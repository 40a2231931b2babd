"""Every shipped config, on folders with published dimensions: valid for both recipes, and real weights would load."""

import json
import re
from pathlib import Path

import pytest
import yaml
from on_demo_models import FEW_ROWS, FOLDERS
from published import PUBLISHED, write_published
from tiny import ROWS

from distill_tune.cli.main import main
from distill_tune.config.files import config_names, configs_folder

# Parameters as the models' pages give them.
SIZES = {
    "llama3_2/8B_to_1B_full": (1_235_814_400, 8_030_261_248),
    "qwen2_5/7B_to_0.5B_lora": (494_032_768, 7_615_616_512),
    "qwen3/8B_to_0.6B_lora": (596_049_920, 8_190_735_360),
    "gemma2/9B_to_2B_lora": (2_614_341_888, 9_241_705_984),
    "gemma3/4B_to_270M_lora": (268_098_176, 3_880_263_168),
    "smollm2/1.7B_to_135M_full": (134_515_008, 1_711_376_384),
}
# Of those that need a file of the user's.
NEEDED = {
    "signals/earlier_checkpoint": [
        *FEW_ROWS,
        "teacher_model._component_=distill_tune.teachers.EMA",
        "~teacher_model.path",
    ],
    "signals/gguf_teacher": [*FEW_ROWS, "teacher_model.path=${demo_model:teacher}"],
    "signals/mixed_datasets": ["dataset.0.num_rows=16", "dataset.0.min_characters=30", "dataset.1.num_rows=8"],
}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name in PUBLISHED:
        write_published(folder / name, name)
    return folder


def text_of(name: str) -> str:
    return (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", ["kd_single_device", "kd_distributed"])
@pytest.mark.parametrize("name", config_names())
def test_it_is_valid_and_its_models_take_the_published_weights(name, recipe, models_dir, request, tmp_path, capsys):
    of_models = [] if name.startswith(FOLDERS) else [f"models_dir={models_dir}", "device=cpu"]
    few = FEW_ROWS if "  _component_: distill_tune.data.docstrings" in text_of(name) else []
    overrides = NEEDED.get(name, [*of_models, *few])
    if name == "signals/teacher_of_each_row":
        rows = tmp_path / "rows.json"
        rows.write_text(json.dumps([row | {"teacher_id": "small"} for row in ROWS]))
        overrides = [f"dataset.source={rows}"]
    if name == "signals/served_teacher":  # without a server it is not valid
        overrides = [*few, f"teacher_model.url={request.getfixturevalue('demo_teacher_url')}"]
    main(["validate", recipe, "--config", name, *overrides])
    told = capsys.readouterr().out
    assert f"{name}: valid for {recipe}" in told
    if name in SIZES:
        student, teacher = (int(size.replace(",", "")) for size in re.findall(r"([\d,]+) parameters", told))
        adapters = int(re.findall(r"([\d,]+) trainable", told)[0].replace(",", "")) if name.endswith("lora") else 0
        assert (student - adapters, teacher) == SIZES[name]


@pytest.mark.parametrize("name", [n for n in config_names() if not n.startswith(FOLDERS)])
def test_it_begins_with_what_it_does_how_to_get_it_and_how_to_run_it(name):
    head = text_of(name).partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"distill-tune run kd_single_device --config {name}" in head
    assert "kd_distributed --config " + name in head
    assert "distill-tune download " in head
    assert "Memory" in head


@pytest.mark.parametrize("name", [n for n in config_names() if not n.startswith(FOLDERS)])
def test_it_learns_the_prompt_that_the_exported_template_writes(name):
    config = yaml.safe_load((configs_folder() / f"{name}.yaml").read_text())
    assert config["tokenizer"]["_component_"] == "distill_tune.data.hf_tokenizer"
    student = config["model"].get("path") or config["checkpointer"]["checkpoint_dir"]
    assert student.startswith(config["tokenizer"]["path"])
    assert config["dataset"]["_component_"].startswith("distill_tune.data.")


def test_validate_tells_the_weights_of_each_process(models_dir, capsys):
    line = ["validate", "--nproc_per_node", "2", "kd_distributed", "--config", "8B_to_1B_lora"]
    main([*line, f"models_dir={models_dir}", "device=cpu"])
    told = capsys.readouterr().out
    assert "teacher_model: 8,030,261,248 parameters, 0 trainable, 15.0 GiB for weights, 7.5 GiB on each of 2" in told


def test_validate_prints_sizes_even_where_nothing_is_downloaded(capsys):
    with pytest.raises(SystemExit):
        main(["validate", "--config", "llama3_2/8B_to_1B_lora", "device=cpu"])
    captured = capsys.readouterr()
    assert "teacher_model: 8,030,261,248 parameters" in captured.out
    assert "no such folder" in captured.err
