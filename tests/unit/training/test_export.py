"""What a run exports beside the weights: a folder that transformers opens, with the tokenizer of the run."""

import json

import pytest
import torch
from tiny_tokenizer import TEMPLATE, write_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distill_tune import data
from distill_tune.models import tokenizer_files
from distill_tune.training.export import write_model_folder
from distill_tune.training.exported_tokenizer import write_tokenizer as write_exported

TEXT = "hello <|im_start|>user\n 你好 there  <|im_end|>"
DATED = "{{ strftime_now('%Y') }}" + TEMPLATE
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def folder_with(folder, config=CONFIG, settings=None, template=TEMPLATE, **files):
    folder.mkdir()
    write_tokenizer(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"} | (settings or {})
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def weights():
    config = AutoConfig.for_model(**{key: value for key, value in CONFIG.items() if key != "architectures"})
    return AutoModelForCausalLM.from_config(config).state_dict()


def exported(folder, weights, base, tokenizer=None):
    config = json.loads((base / "config.json").read_text())
    write_model_folder(folder, dict(weights), config, base, torch.float32, tokenizer)
    return folder


def templates(folder) -> tuple:
    return (
        (folder / "chat_template.jinja").read_text(),
        json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
    )


def test_the_tokenizer_that_was_trained_with_is_exported_with_its_template_in_both_places(tmp_path, weights):
    base = folder_with(tmp_path / "base", template=None, settings={"eos_token": "<|im_start|>"})
    teacher = folder_with(tmp_path / "teacher", config=CONFIG | {"eos_token_id": 1})
    model = exported(tmp_path / "model", weights, base, data.hf_tokenizer(str(teacher)))
    assert templates(model) == (TEMPLATE, TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|im_end|>", TEMPLATE)
    assert tokenizer(TEXT).input_ids == AutoTokenizer.from_pretrained(teacher)(TEXT).input_ids
    assert GenerationConfig.from_pretrained(model).eos_token_id == [1, 0]
    assert AutoConfig.from_pretrained(model).eos_token_id == [1, 0]
    assert AutoModelForCausalLM.from_pretrained(model).generation_config.eos_token_id == [1, 0]


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "Qwen2Tokenizer"}, {"tokenizer_class": "LlamaTokenizer"}])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", None])
def test_the_tokenizer_of_another_architectures_folder_gives_the_same_tokens(tmp_path, settings, kind):
    teacher = folder_with(tmp_path / "teacher", CONFIG | {"model_type": kind or "mistral"}, settings)
    tokenizer = data.hf_tokenizer(str(teacher))
    for name, config in (("model", CONFIG), ("adapter", None)):
        (tmp_path / name).mkdir()
        if config:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        write_exported(tmp_path / name, tokenizer, teacher)
        opened = AutoTokenizer.from_pretrained(tmp_path / name)
        assert opened(TEXT, add_special_tokens=True).input_ids == tokenizer.transformers_tokenizer(TEXT).input_ids
        assert opened.chat_template == TEMPLATE


def test_of_the_bases_own_tokenizer_the_adapters_copy_alone_is_read_again(tmp_path, weights, monkeypatch):
    """With 250,000 tokens that takes seconds."""
    base = folder_with(tmp_path / "base", settings={"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|im_start|>"})
    tokenizer = data.hf_tokenizer(str(base))
    read, told = [], tokenizer_files._read
    monkeypatch.setattr(tokenizer_files, "_read", lambda folder: read.append(folder) or told(folder))
    (tmp_path / "adapter").mkdir()
    for _ in range(2):
        exported(tmp_path / "model", weights, base, tokenizer)
        write_exported(tmp_path / "adapter", tokenizer, base)
    assert read == [tmp_path / "adapter"]


def test_a_template_of_the_run_is_exported_and_not_the_folders(tmp_path, weights):
    base = folder_with(tmp_path / "base", chat_template__jinja="of the folder")
    (tmp_path / "mine.jinja").write_text(DATED)
    tokenizer = data.hf_tokenizer(str(base), chat_template=str(tmp_path / "mine.jinja"))
    model = exported(tmp_path / "model", weights, base, tokenizer)
    assert templates(model) == (DATED, DATED)
    assert AutoTokenizer.from_pretrained(model).chat_template == DATED


def test_several_templates_stay_several(tmp_path, weights):
    base = folder_with(tmp_path / "base", chat_template__jinja=TEMPLATE)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text(DATED)
    model = exported(tmp_path / "model", weights, base, data.hf_tokenizer(str(base)))
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": DATED}]
    assert templates(model) == (TEMPLATE, named)
    assert AutoTokenizer.from_pretrained(model).chat_template == {"default": TEMPLATE, "tools": DATED}


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_only_what_belongs_to_a_model_goes_along(tmp_path, weights, with_tokenizer):
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    base = folder_with(
        tmp_path / "base",
        CONFIG | {"auto_map": code, "quantization_config": {"quant_method": "gptq"}, "torch_dtype": "float16"},
        {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}},
        **dict.fromkeys(("adapter_config__json", "trainer_state__json", "optimizer__pt", "training_args__bin"), "{}"),
        **dict.fromkeys(("configuration_x__py", "modeling_x__py", "README__md", "results__json", "log__txt"), ""),
        model__safetensors__index__json="{}",
        LICENSE__txt="terms",
        added_tokens__json={"<|im_end|>": 1},
        generation_config__json={"eos_token_id": 0, "_from_model_config": True},
    )
    tokenizer = data.hf_tokenizer(str(base)) if with_tokenizer else None
    model = exported(tmp_path / "model", weights, base, tokenizer)
    assert sorted(file.name for file in model.iterdir()) == [
        "LICENSE.txt",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        found = json.loads((model / name).read_text())
        assert not {"auto_map", "quantization_config", "torch_dtype", "_from_model_config"} & found.keys()
    for trust in (True, False):
        AutoModelForCausalLM.from_pretrained(model, trust_remote_code=trust)
        AutoTokenizer.from_pretrained(model, trust_remote_code=trust)


def test_settings_that_transformers_does_not_save_again_stay_and_open(tmp_path, weights):
    settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "top_k": 20, "eos_token_id": 0}
    base = folder_with(tmp_path / "base", generation_config__json=settings)
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig(**settings).save_pretrained(tmp_path / "refused")
    model = exported(tmp_path / "model", weights, base, data.hf_tokenizer(str(base)))
    assert json.loads((model / "generation_config.json").read_text()) == settings | {"eos_token_id": [1, 0]}
    opened = AutoModelForCausalLM.from_pretrained(model)
    opened.save_pretrained(tmp_path / "again")
    assert GenerationConfig.from_pretrained(tmp_path / "again").temperature == 0.9


def test_without_a_tokenizer_the_bases_goes_along_and_its_ends_stay(tmp_path, weights):
    base = folder_with(tmp_path / "base")
    model = exported(tmp_path / "model", weights, base)
    assert templates(model) == (TEMPLATE, TEMPLATE)
    assert json.loads((model / "generation_config.json").read_text()) == {"eos_token_id": 0}
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == 0
