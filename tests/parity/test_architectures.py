"""Every architecture against transformers: logits, adapters, the exported model, sharded and pickled checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, write_architecture
from omegaconf import OmegaConf

from distill_tune import models, training
from distill_tune.errors import UserError
from distill_tune.models.packed_rows import PackedRows

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 96, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_architecture(tmp_path_factory.mktemp("architectures") / request.param, request.param)


def ours(folder: Path, component: str = "from_hf", dtype: torch.dtype = torch.float32, **arguments: object):
    config = OmegaConf.create({"_component_": f"distill_tune.models.{component}", "path": str(folder), **arguments})
    checkpoint = models.open_checkpoint("model", config, None)
    model = models.checked_on_meta("model", config, checkpoint, dtype)
    models.load_weights(model, checkpoint, CPU)
    return model, checkpoint


def theirs(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    found = model(TOKENS)
    return getattr(found, "logits", found)


def train_adapters(model) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def test_logits_are_those_of_transformers(folder):
    torch.testing.assert_close(logits(ours(folder)[0]), logits(theirs(folder)), rtol=0, atol=1e-4)


def test_a_packed_row_sees_only_itself(folder):
    model, _ = ours(folder)
    row, other = TOKENS[:1, :20], TOKENS[1:, :28]
    mask = torch.block_diag(torch.ones(20, 20).tril(), torch.ones(28, 28).tril()).bool()[None]
    positions = torch.cat([torch.arange(20), torch.arange(28)])[None]
    with torch.no_grad():
        together = model(torch.cat([row, other], 1), mask=mask, input_pos=positions)
        torch.testing.assert_close(together, torch.cat([model(row), model(other)], 1), rtol=0, atol=1e-4)


def test_rows_packed_without_padding_are_the_rows_alone(folder):
    model, _ = ours(folder)
    tokens = TOKENS.reshape(1, -1)
    lengths = (1, 20, tokens.shape[1] - 21)
    rows = PackedRows(lengths, torch.device("cpu"))
    with torch.no_grad():
        alone = torch.cat([model(row) for row in tokens.split(lengths, dim=1)], 1)
        models.take_output_head(model)
        together = models.output_head(model).project(model(tokens, mask=rows, input_pos=rows.positions)[0])
    torch.testing.assert_close(together, alone[0], rtol=0, atol=1e-4)


def test_merged_export_and_adapter_open_with_transformers_and_peft(folder, tmp_path):
    from peft import PeftModel

    model, checkpoint = ours(
        folder,
        "lora_from_hf",
        lora_attn_modules=["q_proj", "v_proj", "output_proj"],
        apply_lora_to_mlp=True,
        lora_rank=4,
        lora_alpha=8,
    )
    untrained = logits(model)
    train_adapters(model)
    trained = logits(model)
    assert (trained - untrained).abs().max() > 0.05
    training.export_model(model, checkpoint, tmp_path / "model", torch.float32)
    training.export_adapter(model, checkpoint, tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs(tmp_path / "model")), trained, rtol=0, atol=1e-4)
    adapted = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), trained, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(ours(tmp_path / "model")[0]), trained, rtol=0, atol=1e-4)


def test_lora_on_the_output_layer_and_dora_export_too(tmp_path):
    from peft import PeftModel

    folder = write_architecture(tmp_path / "base", "llama2")
    for use_dora in (False, True):
        settings = {"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True, "use_dora": use_dora}
        model, checkpoint = ours(folder, "lora_from_hf", **settings)
        train_adapters(model)
        training.export_model(model, checkpoint, tmp_path / "model", torch.float32)
        training.export_adapter(model, checkpoint, tmp_path / "adapter")
        torch.testing.assert_close(logits(theirs(tmp_path / "model")), logits(model), rtol=0, atol=1e-4)
        adapted = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter")
        torch.testing.assert_close(logits(adapted), logits(model), rtol=0, atol=1e-4)


@pytest.mark.torchao
def test_qlora_is_near_the_model_that_it_quantises(tmp_path):
    folder = write_architecture(tmp_path / "base", "qwen3", hidden_size=256, intermediate_size=512, head_dim=64)
    model, _ = ours(
        folder, "lora_from_hf", dtype=torch.bfloat16, lora_attn_modules=["q_proj", "v_proj"], quantize_base=True
    )
    assert type(model.layers[0].attn.q_proj.weight.data).__name__ == "NF4Tensor"
    assert type(model.layers[0].mlp.w1.weight.data).__name__ == "NF4Tensor"
    wanted = logits(theirs(folder))
    assert torch.nn.functional.cosine_similarity(logits(model).float(), wanted, dim=-1).mean() > 0.9


def test_bf16_is_near_fp32(folder):
    found = logits(ours(folder, dtype=torch.bfloat16)[0]).float()
    assert torch.nn.functional.cosine_similarity(found, logits(theirs(folder)), dim=-1).mean() > 0.98


def test_sharded_and_pickled_checkpoints_are_read(tmp_path):
    folder = write_architecture(tmp_path / "one", "qwen2")
    model = theirs(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(folder / "config.json", pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    for other in (tmp_path / "sharded", pickled):
        torch.testing.assert_close(logits(ours(other)[0]), logits(model), rtol=0, atol=1e-4)


def test_older_spellings_of_rope_are_read(tmp_path):
    folder = write_architecture(tmp_path / "new", "llama3")
    wanted = logits(ours(folder)[0])
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    for name in ("rope_type", "type"):
        kind = rope.pop("rope_type", None) or rope.pop("type")
        config["rope_scaling"] = rope | {name: kind}
        rope[name] = kind
        (folder / "config.json").write_text(json.dumps(config))
        torch.testing.assert_close(logits(ours(folder)[0]), wanted, rtol=0, atol=0)


def test_the_language_model_of_a_checkpoint_that_also_sees_is_read(tmp_path):
    """Gemma 3 of 4B and more: text_config, a prefix before every name, a vision tower beside it."""
    from safetensors.torch import load_file, save_file

    folder = write_architecture(tmp_path / "text", "gemma3")
    wanted = logits(ours(folder)[0])
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for prefix in ("language_model.model.", "model.language_model."):
        seeing = tmp_path / prefix
        seeing.mkdir()
        whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
        (seeing / "config.json").write_text(json.dumps(whole))
        renamed = {name.replace("model.", prefix, 1): weight for name, weight in weights.items()}
        save_file(renamed | {"vision_tower.patch.weight": torch.ones(2)}, seeing / "model.safetensors")
        model, checkpoint = ours(seeing)
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=0)
        training.export_model(model, checkpoint, tmp_path / "exported", torch.float32)
        torch.testing.assert_close(logits(theirs(tmp_path / "exported")), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertModel"]}, "the architecture BertModel is not supported; there are LlamaForCausalLM"),
        ({"hidden_act": "relu"}, "the activation relu is not supported; there are silu, gelu_pytorch_tanh"),
        ({"rope_parameters": {"rope_type": "ntk"}}, "rope scaling ntk is not supported; there are default, linear"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "Missing required keys in `rope_parameters`"),
        ({"hidden_size": None}, "shapes differ"),
        ({"model_type": "mistral"}, "model_type=mistral: is not that of a LlamaForCausalLM"),
    ],
    ids=["architecture", "activation", "rope", "rope without its factor", "missing key", "another model_type"],
)
def test_a_config_json_that_cannot_be_built_says_why(tmp_path, change, message):
    folder = write_architecture(tmp_path / "base", "llama2")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        ours(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_attn_modules": ["qproj"]}, "there is no qproj; there are q_proj"),
        ({"lora_attn_modules": []}, "LoRA needs a module"),
        ({"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True}, "is tied to its embeddings"),
        ({"lora_attn_modules": ["q_proj"], "use_dora": True}, "have biases"),
        ({"lora_attn_modules": ["q_proj"], "max_seq_len": 4096}, "config.json says 128 at most"),
    ],
    ids=["module", "none", "tied output", "dora", "length"],
)
def test_lora_arguments_that_cannot_be_are_told(tmp_path, arguments, message):
    folder = write_architecture(tmp_path / "base", "qwen2")
    with pytest.raises(UserError, match=message):
        ours(folder, "lora_from_hf", **arguments)


def test_an_index_that_names_absent_files_or_files_elsewhere_is_refused(tmp_path):
    folder = write_architecture(tmp_path / "base", "llama2")
    (folder / "model.safetensors").unlink()  # which comes before an index
    index = folder / "model.safetensors.index.json"
    for names, message in [
        ({"a": "../other.safetensors"}, "names ../other.safetensors, which is no file of this folder"),
        ({"a": "model-00002.safetensors"}, "no such file"),
    ]:
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(UserError, match=message):
            ours(folder)
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json is broken"):
        ours(folder)
