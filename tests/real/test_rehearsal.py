"""Every shipped config as a user takes it: checked, planned, three steps, and what it leaves reopened by others."""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_server import CommandServer
from omegaconf import OmegaConf
from on_demo_models import FEW_ROWS, FOLDERS, needed, write_needed
from real.folders import small_config, write_folder
from tiny import metrics_of

from distill_tune.config.files import config_names, configs_folder, demo_model_folder
from distill_tune.disk import digest
from distill_tune.models.tokenizer_files import SETTINGS, VOCABULARIES, files_of

OTHERS = [name for name in config_names() if not name.startswith(FOLDERS)]
# One of each family, with two models where there is such.
OF_EACH_FAMILY = [
    "gemma2/9B_to_2B_lora",
    "gemma3/4B_to_270M_lora",
    "llama2/7B_to_tinyllama_1.1B_lora",
    "llama3_2/8B_to_1B_lora",
    "qwen2/1.5B_to_0.5B_lora",
    "qwen2_5/7B_to_0.5B_lora",
    "qwen3/8B_to_0.6B_lora",
    "smollm2/1.7B_to_135M_full",
]
ANSWERING = [
    "gemma2/9B_finetune_lora",
    "llama2/7B_finetune_lora",
    "llama3_2/8B_finetune_lora",
    "qwen2_5/7B_finetune_lora",
]
# What the others leave is written by the same lines, and tests/recipes runs each of them.
ON_DEMO_MODELS = ["tiny/tiny", "tiny/tiny_lora", "signals/gguf_teacher", "signals/other_tokenizer", "migrate/trl_gkd"]
FEW = ["batch_size=2", "+max_tokens_per_batch=null", "gradient_accumulation_steps=1", "max_steps_per_epoch=3"]
FEW += ["device=cpu", "optimizer.lr=0.01", "~lr_scheduler"]
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Ghana": "Accra",
}
ALPACA = [
    {"instruction": f"What is the capital of {land}?", "input": "One word." if number % 2 else "", "output": f"{city}"}
    for number, (land, city) in enumerate(CAPITALS.items())
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"I am going to {land}. Where is the government?"},
            {"role": "assistant", "content": f"In {city}."},
            {"role": "user", "content": "Is that the capital?"},
            {"role": "assistant", "content": f"Yes, {city} is the capital of {land}."},
        ]
    }
    for land, city in CAPITALS.items()
]


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"  # of all workers
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def place(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "alpaca.json").write_text(json.dumps(ALPACA))
    (tmp_path / "chats.json").write_text(json.dumps(CHATS))
    (tmp_path / "models").symlink_to(models_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def yaml_of(name: str) -> str:
    return (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def models_of(name: str) -> list[str]:
    return re.findall(r"^ .*\$\{models_dir\}/([^/\s]+)$", yaml_of(name), re.MULTILINE)


@pytest.fixture
def make_models(
    models_dir: Path, command_server: CommandServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], None]:
    """Make the folders that a config names, where no test has; its commands find their large tokenizers read."""

    def make(name: str) -> None:
        for model in models_of(name):
            if not (models_dir / model).is_dir():
                making = models_dir / f"{model}.{os.getpid()}"
                write_folder(making, model)
                try:
                    making.rename(models_dir / model)
                except OSError:  # another worker was first
                    shutil.rmtree(making)
        command_server.open_tokenizers([models_dir / model for model in models_of(name)], [as_in_an_adapter(name)])

    def as_in_an_adapter(name: str) -> Path:
        """What adapter/ will have of the student's tokenizer: not config.json."""
        model = models_of(name)[0]
        folder = tmp_path_factory.mktemp("adapter")
        for file in files_of(models_dir / model, (*VOCABULARIES, *SETTINGS, "chat_template.jinja")):
            (folder / file.name).symlink_to(file)
        return folder

    return make


def of_small_models(name: str) -> list[str]:
    """Overrides that give torchtune's builders, whose sizes are fixed, the sizes of the small folders."""
    config = OmegaConf.create(yaml_of(name))
    overrides = []
    for key, checkpointer in (("model", "checkpointer"), ("teacher_model", "teacher_checkpointer")):
        component = str((config.get(key) or {}).get("_component_", ""))
        if not component.startswith("torchtune.models.llama3"):
            continue
        small = small_config(config[checkpointer].checkpoint_dir.rpartition("/")[2])
        general = component.rpartition("_")[0].replace(".qlora_", ".lora_")
        if ".qlora_" in component:
            overrides.append(f"+{key}.quantize_base=True")
        overrides += [
            f"{key}._component_={general}",
            f"+{key}.vocab_size={small['vocab_size']}",
            f"+{key}.num_layers={small['num_hidden_layers']}",
            f"+{key}.num_heads={small['num_attention_heads']}",
            f"+{key}.num_kv_heads={small['num_key_value_heads']}",
            f"+{key}.embed_dim={small['hidden_size']}",
            f"+{key}.intermediate_dim={small['intermediate_size']}",
            f"+{key}.max_seq_len={small['max_position_embeddings']}",
        ]
    return overrides


def in_full(name: str) -> list[str]:
    """Overrides that train all of a model, not LoRA factors."""
    component = str(OmegaConf.create(yaml_of(name)).model["_component_"])
    full = "torchtune.models.llama3_1.llama3_1" if "llama3_1" in component else "distill_tune.models.from_hf"
    lora = ("lora_attn_modules", "apply_lora_to_mlp", "lora_rank", "lora_alpha", "lora_dropout")
    return [f"model._component_={full}", *(f"~model.{argument}" for argument in lora)]


def of_rows(name: str, rows: str) -> list[str]:
    if "docstrings" in yaml_of(name):
        return ["dataset.num_rows=16"]
    if rows == "alpaca":
        return ["dataset.source=alpaca.json"]
    source = "dataset.source" if "\n  source:" in yaml_of(name) else "+dataset.source"
    return ["dataset=distill_tune.data.chat", f"{source}=chats.json"]


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_valid_trains_and_others_open_what_it_leaves(
    name: str, place: Path, models_dir: Path, make_models: Callable, cli: Callable
):
    make_models(name)
    settings = [*of_small_models(name), *of_rows(name, "alpaca"), "tokenizer.max_seq_len=128", "output_dir=out", *FEW]
    assert f"{name}: valid for kd_single_device" in told(cli("validate", "--config", name, *settings))
    assert "steps: 3 (1 x 3)" in told(cli("plan", "--config", name, *settings))
    told(cli("run", "kd_single_device", "--config", name, *settings))
    assert len(metrics_of(place / "out")) == 3
    check_what_it_leaves(place, models_dir / models_of(name)[0])


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_two_processes_train_on_chats(name: str, place: Path, models_dir: Path, make_models: Callable, cli: Callable):
    make_models(name)
    settings = [*of_small_models(name), *of_rows(name, "chats"), "tokenizer.max_seq_len=128", "output_dir=out", *FEW]
    two = ("--nproc_per_node", "2", "kd_distributed", "--config", name, *settings)
    assert f"{name}: valid for kd_distributed" in told(cli("validate", *two))
    told(cli("plan", *two))
    told(cli("run", *two, "batch_size=1"))
    assert len(metrics_of(place / "out")) == 3
    check_what_it_leaves(place, models_dir / models_of(name)[0])


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith(FOLDERS)])
def test_what_runs_on_the_demos_models(
    name: str, place: Path, tokenizer_file: Path, demo_teacher_url: str, cli: Callable
):
    settings = [*needed(name, "before/checkpoints/step_3", demo_teacher_url), *FEW, "output_dir=out"]
    if name == "signals/earlier_checkpoint":
        told(cli("run", "kd_single_device", "--config", "tiny", *FEW_ROWS, *FEW, "output_dir=before"))
    write_needed(place, ALPACA, tokenizer_file)
    assert " x 3)" in told(cli("plan", "--config", name, *settings))
    if name in ON_DEMO_MODELS:
        told(cli("run", "kd_single_device", "--config", name, *settings))
        check_what_it_leaves(place, place / "plain" if "gguf" in name else demo_model_folder("student"))


@pytest.mark.parametrize("name", ANSWERING)
def test_what_it_leaves_answers_and_stops(name: str, place: Path, make_models: Callable, cli: Callable):
    """All of a small model trained on some chats until it knows them; then as anybody would ask it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_models(name)
    (place / "chats.json").write_text(json.dumps(60 * CHATS))  # in one epoch, since each ends with a checkpoint
    settings = [*of_small_models(name), *of_rows(name, "chats"), "tokenizer.max_seq_len=128", "output_dir=out", *FEW]
    settings += ["batch_size=8", "epochs=1", "max_steps_per_epoch=null", "dtype=fp32", "optimizer.lr=0.005"]
    settings += ["save_every_n_steps=null", "+keep_last_n=1", "+optimizer.fused=True", "shuffle=False"]
    told(cli("run", "kd_single_device", "--config", name, *settings, *in_full(name)))
    model = AutoModelForCausalLM.from_pretrained(place / "out" / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "out" / "model")
    for row in CHATS[:3]:
        question, answer = row["messages"][:2]
        prompt = tokenizer.apply_chat_template(
            [question], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer["content"]
        assert len(tokens) < 20


@functools.lru_cache(maxsize=4)
def _opened(files: frozenset[tuple[str, str]]) -> list:
    return []  # filled by whoever asks first


def tokenizer_in(folder: Path):
    """As transformers opens it; once for the same files beside a config.json of the same kind of model."""
    from transformers import AutoTokenizer

    names = (*VOCABULARIES, *SETTINGS, "chat_template.jinja")
    files = {(file.name, digest(file)) for file in files_of(folder, names)}
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    opened = _opened(frozenset({*files, ("config.json", kind)}))
    if not opened:
        opened.append(AutoTokenizer.from_pretrained(folder))
    return opened[0]


def check_what_it_leaves(place: Path, base: Path) -> None:
    """transformers opens model/, peft adapter/ on the base model; both give the same logits, and not the base's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    out = place / "out"
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    tokenizer = tokenizer_in(out / "model")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        answered = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "Paris."}], tokenize=False)
        ends = GenerationConfig.from_pretrained(out / "model").eos_token_id
        end = tokenizer(answered.rstrip(), add_special_tokens=False)["input_ids"][-1]
        assert end in (ends if isinstance(ends, list) else [ends])
    else:
        tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        trained = model(tokens).logits
        untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = untrained(tokens).logits
        assert (trained - before).abs().max() > 0.1 * before.std()
        if (out / "adapter").is_dir():
            adapted = PeftModel.from_pretrained(untrained, out / "adapter")(tokens).logits
            assert (adapted - trained).norm() < 0.03 * trained.norm()  # merged, the weights were rounded to bf16
