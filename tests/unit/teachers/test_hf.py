"""Architectures that torchtune lacks, as teachers through their hidden states and head, against their own logits."""

import importlib.util
import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from distill_tune.data.batch import joined
from distill_tune.errors import UserError
from distill_tune.losses.signals import capped
from distill_tune.teachers import HuggingFace

SHAPE = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
MORE = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=96, n_layer=2, n_embd=32, n_head=4, n_positions=64),
    "gpt_neox": transformers.GPTNeoXConfig(**SHAPE, intermediate_size=64, max_position_embeddings=64),
    "granite": transformers.GraniteConfig(**SHAPE, **MORE, logits_scaling=8.0),  # divides its logits
    "cohere": transformers.CohereConfig(**SHAPE, **MORE, logit_scale=0.25),
    "gemma2": transformers.Gemma2Config(**SHAPE, **MORE, head_dim=8, final_logit_softcapping=5.0),
    "phi": transformers.PhiConfig(
        **SHAPE, intermediate_size=64, max_position_embeddings=64
    ),  # a bias on the output layer
    "llama4": transformers.Llama4TextConfig(  # names another base than it has
        **SHAPE, **MORE, head_dim=8, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=8
    ),
}
ROWS = [torch.randint(1, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 12, 9)]


def saved(config, folder):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_head_and_hidden_states_give_the_models_own_logits(name, tmp_path):
    model = saved(CONFIGS[name], tmp_path)
    teacher = HuggingFace(str(tmp_path))
    teacher.load(None, torch.device("cpu"))
    signal = teacher(joined([(row, row) for row in ROWS]))
    n = sum(len(row) - 1 for row in ROWS)
    found = capped(signal.logits(0, n, signal.memory(n)), signal.softcap)
    with torch.no_grad():
        wanted = torch.cat([model(row[None]).logits[0, :-1] for row in ROWS])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_short_rows_are_not_padded_to_a_long_one(tmp_path):
    saved(CONFIGS["gpt2"], tmp_path)
    teacher = HuggingFace(str(tmp_path))
    teacher.load(None, torch.device("cpu"))
    rows = [torch.arange(1, 1 + n) for n in (2, 40, *[2] * 19)]
    read = []
    teacher._decoder.register_forward_pre_hook(lambda module, arguments: read.append(tuple(arguments[0].shape)))
    together = teacher(joined([(row, row) for row in rows])).hidden
    assert read == [(8, 40), (13, 2)]
    alone = torch.cat([teacher(joined([(row, row)])).hidden for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_hidden_states_that_are_asked_for_come_along(tmp_path):
    model = saved(CONFIGS["gpt2"], tmp_path)
    teacher = HuggingFace(str(tmp_path))
    teacher.load(None, torch.device("cpu"))
    teacher.keep_hidden_states([0, 2])
    signal = teacher(joined([(ROWS[0], ROWS[0])]))
    with torch.no_grad():
        wanted = model(ROWS[0][None], output_hidden_states=True).hidden_states
    for found, layer in zip(signal.layers, (0, 2), strict=True):
        torch.testing.assert_close(found, wanted[layer][0], rtol=1e-4, atol=1e-5)
    assert signal.supervised.tolist() == [0, 1, 2, 3]


def test_logits_that_are_no_product_with_the_last_hidden_state_are_refused(tmp_path, monkeypatch):
    saved(CONFIGS["gpt2"], tmp_path)
    forward = transformers.GPT2LMHeadModel.forward

    def other(self, *arguments, **options):
        out = forward(self, *arguments, **options)
        out.logits = out.logits.square()
        return out

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", other)
    with pytest.raises(UserError, match="this architecture cannot be a teacher by logits"):
        HuggingFace(str(tmp_path)).load(None, torch.device("cpu"))


def test_what_is_no_model_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"teacher_model\.path=.*: no such folder, or it has no config\.json"):
        HuggingFace(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"teacher_model\.path="):
        HuggingFace(str(tmp_path))


LLAMA = transformers.LlamaConfig(**SHAPE, **MORE)


def as_bin(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def changed(folder, change):
    """The folder with other weights, by a function of name and weight that gives a mapping."""
    weights = load_file(folder / "model.safetensors")
    weights = {k: v.contiguous() for name, w in weights.items() for k, v in change(name, w).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda n, w: {} if ".layers.1." in n else {n: w},
            "lacks model.layers.1.input_layernorm.weight, .* 6 more",
        ),
        (lambda n, w: {f"module.{n}": w}, "lacks lm_head.weight, .*has module.lm_head.weight, .*DistributedDataPar"),
        (lambda n, w: {f"_orig_mod.{n}": w}, "it has _orig_mod.lm_head.weight, .*torch.compile's"),
        (
            lambda n, w: {n: w[:8]} if "up_proj" in n else {n: w},
            r"shapes: .*up_proj.weight \[8, 32\] \(the model",
        ),
        (lambda n, w: {} if n == "lm_head.weight" else {n: w}, "lacks lm_head.weight, which would be random"),
        (lambda n, w: {n: w.to(torch.int8)} if "_proj" in n else {n: w}, "is quantised .* is torch.int8"),
        (
            lambda n, w: {n: w.to(torch.float8_e4m3fn), f"{n}_scale": w.max()} if "_proj" in n else {n: w},
            "is quantised .*weight_scale is a part of quantised weights",
        ),
    ],
    ids=["a layer missing", "prefix of DDP", "prefix of compile", "shape", "head missing", "int8", "fp8"],
)
def test_weights_that_would_be_random_are_told_before_any_is_read(tmp_path, change, message, kind):
    saved(LLAMA, tmp_path)
    changed(tmp_path, change)
    if kind == "bin":
        as_bin(tmp_path)
    with pytest.raises(UserError, match=rf"teacher_model\.path={tmp_path}: .*{message}"):
        HuggingFace(str(tmp_path))


def test_a_part_of_a_model_that_is_not_there_is_told(tmp_path):
    model = saved(LLAMA, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    first = sorted(tmp_path.glob("model-*"))[0]
    first.unlink()
    with pytest.raises(UserError, match=rf"no such file: {first.name}, which model\.safetensors\.index\.json names"):
        HuggingFace(str(tmp_path))


def test_weights_that_the_model_has_no_place_for_are_named(tmp_path, capsys):
    saved(LLAMA, tmp_path)
    changed(tmp_path, lambda n, w: {n: w, "score.weight": w[:1].clone()} if n == "lm_head.weight" else {n: w})
    HuggingFace(str(tmp_path)).load(None, torch.device("cpu"))
    assert capsys.readouterr().out.count("not read, since a LlamaForCausalLM has no such weights: score.weight") == 1


def logits_of(folder, dtype=torch.float32):
    """What the teacher gives for a row, and the row."""
    teacher = HuggingFace(str(folder))
    teacher.dtype = dtype
    teacher.load(None, torch.device("cpu"))
    signal = teacher(joined([(ROWS[0], ROWS[0])]))
    n = len(ROWS[0]) - 1
    return signal.logits(0, n, signal.memory(n)).clone()


def test_minus_infinity_where_a_token_cannot_be_is_read(tmp_path):
    saved(CONFIGS["phi"], tmp_path)
    changed(
        tmp_path, lambda n, w: {n: w.index_fill(0, torch.arange(90, 96), -torch.inf)} if n == "lm_head.bias" else {n: w}
    )
    found = logits_of(tmp_path)
    assert (found[:, 90:] == -torch.inf).all()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found[:, :90], model(ROWS[0][None]).logits[0, :-1, :90], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (LLAMA, "lm_head.weight", torch.nan),
        (LLAMA, "model.norm.weight", torch.nan),
        (CONFIGS["phi"], "lm_head.bias", torch.inf),
        (CONFIGS["phi"], "lm_head.bias", -torch.inf),
    ],
    ids=["head", "norm", "infinite bias", "no token can be"],
)
def test_logits_that_are_no_numbers_are_refused(tmp_path, config, name, value):
    saved(config, tmp_path)
    changed(tmp_path, lambda n, w: {n: torch.full_like(w, value)} if n == name else {n: w})
    teacher = HuggingFace(str(tmp_path))
    with pytest.raises(UserError, match="infinite or no numbers"):
        teacher.load(None, torch.device("cpu"))


def adapter_of(model_folder, folder, **config):
    """An adapter's folder, and the model with it."""
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(model_folder), peft.LoraConfig(**settings | config)
    ).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"use_dora": True, "use_rslora": True},
    ],
    ids=["plain", "on the head", "another head", "other embeddings", "DoRA"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_an_adapter_is_read_on_its_base(tmp_path, config, tied, capsys):
    saved(transformers.LlamaConfig(**SHAPE, **MORE, tie_word_embeddings=tied), tmp_path / "base")
    model = adapter_of(tmp_path / "base", tmp_path / "adapter", **config)
    with torch.no_grad():
        wanted = model(ROWS[0][None]).logits[0, :-1]
    torch.testing.assert_close(logits_of(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)
    assert f"adapter: read with its adapter on the model {tmp_path / 'base'}" in capsys.readouterr().out
    # A model and its adapter in one folder are the same teacher.
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, tmp_path / "base")
    torch.testing.assert_close(logits_of(tmp_path / "base"), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"),
        peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, trainable_token_indices=[1, 5]),
        peft.IA3Config(
            target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
        peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False),
    ],
    ids=["PiSSA", "tokens", "IA3", "LoHa"],
)
def test_other_kinds_of_adapters_are_those_of_peft(tmp_path, config):
    saved(LLAMA, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ROWS[0][None]).logits[0, :-1]
    torch.testing.assert_close(logits_of(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)


def test_the_language_model_of_one_that_also_sees_is_read(tmp_path, capsys):
    seeing = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing |= {"image_size": 16, "patch_size": 8, "vision_output_dim": 16}
    seeing |= {"projector_input_dim": 16, "projector_output_dim": 16}
    text = CONFIGS["llama4"].to_dict()
    model = transformers.Llama4ForConditionalGeneration(
        transformers.Llama4Config(text_config=text, vision_config=seeing)
    ).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(ROWS[0][None]).logits[0, :-1]
    torch.testing.assert_close(logits_of(tmp_path), wanted, rtol=1e-4, atol=1e-4)
    assert "not read, since a Llama4ForCausalLM has no such weights: multi_modal_projector" in capsys.readouterr().out


def test_what_is_left_of_a_merged_adapter_is_passed_over_with_a_word(tmp_path, capsys):
    saved(LLAMA, tmp_path / "base")
    wanted = logits_of(tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "base")
    torch.testing.assert_close(logits_of(tmp_path / "base"), wanted)
    assert "base: read without an adapter: adapter_config.json is there" in capsys.readouterr().out


def test_an_adapter_that_lacks_factors_or_fits_another_model_is_told(tmp_path):
    saved(LLAMA, tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = load_file(path)
    save_file({n: w for n, w in factors.items() if "layers.1.self_attn" not in n}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"adapter: for a LORA adapter it lacks .*layers\.1\.self_attn\.q_proj\.lora_A"):
        HuggingFace(str(tmp_path / "adapter"))
    save_file({n: w[:, :2].contiguous() for n, w in factors.items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"transformers cannot load it: .*size mismatch"):
        HuggingFace(str(tmp_path / "adapter"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot be read"):
        HuggingFace(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter", peft_type="PROMPT_TUNING", num_virtual_tokens=2)
    with pytest.raises(UserError, match=r"PROMPT_TUNING.* change the rows"):
        HuggingFace(str(tmp_path / "adapter"))
    path.unlink()
    with pytest.raises(UserError, match=r"has adapter_config\.json, and no adapter_model\.safetensors"):
        HuggingFace(str(tmp_path / "adapter"))


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantised(folder, **quantization):
    saved(LLAMA, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            "with gptq: .*pip install gptqmodel optimum",
        ),
        ({"quant_method": "awq", "bits": 4}, "quantised with awq: .*pip install gptqmodel accelerate"),
        ({"load_in_4bit": True}, "quantised with bitsandbytes: .*pip install bitsandbytes accelerate"),
        ({"quant_method": "mine"}, "quantised with mine, which this version of transformers does not know"),
        ({}, "quantised with an unnamed method: "),
    ],
    ids=["gptq", "awq", "bitsandbytes", "unknown", "unnamed"],
)
def test_a_quantised_folder_whose_package_is_not_here_is_told(tmp_path, monkeypatch, quantization, message):
    from transformers.quantizers import quantizer_awq, quantizer_bnb_4bit, quantizer_gptq

    monkeypatch.setattr(quantizer_awq, "is_gptqmodel_available", lambda: False)
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(quantizer_gptq, "is_optimum_available", lambda: False)
    with pytest.raises(UserError, match=f"{message}.*take the unquantised folder"):
        HuggingFace(str(quantised(tmp_path, **quantization)))


@pytest.mark.torchao
def test_a_quantised_folder_is_a_teacher_where_its_package_is_here(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    saved(LLAMA, tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig(version=2))
    )
    model.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        wanted = model(ROWS[0][None]).logits[0, :-1]
    torch.testing.assert_close(logits_of(tmp_path / "int8"), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, logits_of(tmp_path / "plain"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("package", "told"),
    [
        ("accelerate", r"pip install 'distill-tune\[hf\]'"),
        ("peft", "has an adapter, which needs peft; pip install peft"),
    ],
)
def test_a_package_that_is_not_here_is_told_with_how_to_get_it(tmp_path, monkeypatch, package, told):
    saved(LLAMA, tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(UserError, match=rf"teacher_model\.path={tmp_path / 'adapter'}: .*{told}"):
        HuggingFace(str(tmp_path / "adapter"))
