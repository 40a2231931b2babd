"""As much of llama-cpp-python as an export asks of it, by transformers."""

import types
from pathlib import Path
from types import SimpleNamespace

import gguf
import jinja2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def stand_in(shift: int = 0, scale: float = 1.0, template: str | None = None) -> types.ModuleType:
    """
    Args:
        shift: of token ids.
        scale: of logits.
        template: in place of the file's.
    """

    class Llama:
        def __init__(self, path: str, **settings: object) -> None:
            assert settings["logits_all"]
            file = Path(path)
            self._reader = gguf.GGUFReader(file)
            self._tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            self._network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            self._model = SimpleNamespace(token_get_text=self._tokenizer.convert_ids_to_tokens)
            said = self._reader.get_field("tokenizer.chat_template")
            self.metadata = {"tokenizer.chat_template": template or said.contents()}

        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
            assert add_bos
            assert special
            return [token + shift for token in self._tokenizer(text.decode())["input_ids"]]

        def token_bos(self) -> int:
            return -1

        def token_eos(self) -> int:
            return self._reader.get_field("tokenizer.ggml.eos_token_id").contents()

        def reset(self) -> None:
            self.scores = None

        @torch.no_grad()
        def eval(self, row: list[int]) -> None:
            assert self.scores is None
            self.scores = scale * self._network(torch.tensor([row])).logits[0].numpy()

    class Jinja2ChatFormatter:
        def __init__(self, template: str, eos_token: str, bos_token: str, add_generation_prompt: bool) -> None:
            self._template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
            self._given = {"eos_token": eos_token, "bos_token": bos_token}
            self._given["add_generation_prompt"] = add_generation_prompt

        def __call__(self, messages: list[dict[str, str]]) -> SimpleNamespace:
            return SimpleNamespace(prompt=self._template.render(messages=messages, **self._given))

    module = types.ModuleType("llama_cpp")
    module.__version__, module.Llama = "9.9", Llama
    module.llama_chat_format = SimpleNamespace(Jinja2ChatFormatter=Jinja2ChatFormatter)
    return module
