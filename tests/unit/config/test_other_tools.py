"""Configs of other tools are answered with our keys, as docs/migrate.md has them."""

import re
from pathlib import Path

import pytest

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe
from distill_tune.config.keys import KEYS
from distill_tune.config.other_tools import OURS, WITHOUT_A_KEY
from distill_tune.errors import UserError

PAGE = Path(__file__).parents[3] / "docs" / "migrate.md"
THEIRS = {
    "TRL": """
        model_name_or_path: Qwen/Qwen3-0.6B
        teacher_model_name_or_path: Qwen/Qwen3-8B
        dataset_name: trl-lib/chatbot_arena_completions
        learning_rate: 2e-5
        per_device_train_batch_size: 4
        gradient_accumulation_steps: 8
        lmbda: 0.5
        beta: 0.5
        seq_kd: false
        max_length: 1024
        num_train_epochs: 1
        bf16: true
        gradient_checkpointing: true
        logging_steps: 10
        save_steps: 100
        output_dir: gkd-model
        """,
    "axolotl": """
        base_model: NousResearch/Llama-3.2-1B
        datasets:
          - path: teknium/GPT4-LLM-Cleaned
            type: alpaca
        adapter: lora
        sequence_len: 2048
        sample_packing: true
        micro_batch_size: 2
        num_epochs: 1
        """,
}


def meant_on_the_page(theirs: str) -> set[str]:
    """The names in the right columns of the rows that have this key in the left one."""
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    ours = [row[1] for row in rows if re.search(rf"`{theirs}[`:]", row[0])]
    return {name for cell in ours for name in re.findall(r"\w+", cell)}


@pytest.mark.parametrize("theirs", OURS)
def test_the_page_has_the_key_beside_ours(theirs):
    assert set(OURS[theirs].split(".")) <= meant_on_the_page(theirs)
    assert OURS[theirs].partition(".")[0] in KEYS
    assert theirs not in KEYS


@pytest.mark.parametrize("theirs", WITHOUT_A_KEY)
def test_the_page_tells_of_what_has_no_key(theirs):
    assert meant_on_the_page(theirs)


@pytest.mark.parametrize("theirs", WITHOUT_A_KEY)
def test_what_an_answer_names_is_valid(theirs):
    named = re.search(r"config (\w+)", WITHOUT_A_KEY[theirs])
    overrides = re.findall(r"\S+=\S+", WITHOUT_A_KEY[theirs])
    checked_config(find_recipe("kd_single_device"), named[1] if named else "tiny", overrides, "all")


def test_a_model_without_lora_says_which_has_it():
    with pytest.raises(
        UserError, match=r"llama3_2 has no such argument; a model with LoRA does, as in config tiny_lora$"
    ):
        checked_config(find_recipe("kd_single_device"), "tiny", ["model.lora_rank=8"], "all")


@pytest.mark.parametrize("tool", THEIRS)
def test_a_config_of_another_tool_is_answered_with_our_keys(tool, cli, tmp_path):
    (tmp_path / "theirs.yaml").write_text(re.sub("^ {8}", "", THEIRS[tool], flags=re.MULTILINE))
    told = cli("validate", "--config", "theirs.yaml").stderr
    for key in re.findall(r"^ {8}(\w+):", THEIRS[tool], flags=re.MULTILINE):
        if key in WITHOUT_A_KEY:
            assert f"  {key}: no such key; {WITHOUT_A_KEY[key]}\n" in told
        elif key not in KEYS:
            assert f"  {key}: no such key, did you mean {OURS[key]}?\n" in told
    assert told.count("docs/migrate.md has ours beside them; configs: migrate/autotrain, migrate/hf_trainer, ") == 1
