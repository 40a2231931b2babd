"""Architectures that torchtune lacks, as teachers through their hidden states and head, against their own logits."""

import pytest
import torch
import transformers

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
    assert signal.supervised.tolist() == [True] * 4 + [False]


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
