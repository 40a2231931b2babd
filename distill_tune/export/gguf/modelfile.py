"""A Modelfile beside a GGUF file: what Ollama makes a model of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_tune.disk import write_text
from distill_tune.errors import UserError
from distill_tune.export.gguf.tokenizer import ends_of
from distill_tune.models.tokenizer_files import read_tokenizer

# Ollama's names of what generation_config.json says.
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
}
_WITH_TEMPLATE = """\
# Prompts are written by the chat template inside the GGUF file, as Ollama does since May 2026 where a Modelfile has
# none. Ollama's own templates are another language, and an older version of it would send the text of a prompt alone.
"""
_WITHOUT_TEMPLATE = "# The model has no chat template: what is asked is sent as it stands.\n"


def write_modelfile(file: Path, folder: Path) -> Path:
    """Modelfile beside a GGUF file: the file, every text that ends an answer, the settings for sampling.

    Args:
        file: the GGUF file.
        folder: that it was made of.

    Returns:
        The Modelfile.

    Raises:
        UserError: the tokenizer cannot be read, or generation_config.json is broken.
    """
    try:
        tokenizer = read_tokenizer(folder)
    except UserError as error:
        raise UserError(f"{folder}: its tokenizer {error}") from error
    lines = [f"FROM ./{file.name}", *_parameters(folder)]
    _, ends = ends_of(folder, len(tokenizer))
    lines += [f"PARAMETER stop {_quoted(tokenizer.convert_ids_to_tokens(token))}" for token in ends]
    if not tokenizer.chat_template:
        lines.append("TEMPLATE {{ .Prompt }}")
    said = _WITH_TEMPLATE if tokenizer.chat_template else _WITHOUT_TEMPLATE
    modelfile = file.with_name("Modelfile")
    write_text(modelfile, said + "\n".join(lines) + "\n")
    return modelfile


def _parameters(folder: Path) -> Iterator[str]:
    path = folder / "generation_config.json"
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: is broken: {error}") from error
    if said.get("do_sample") is False:
        yield "PARAMETER temperature 0"
        said = {key: value for key, value in said.items() if key != "temperature"}
    for name, theirs in _PARAMETERS.items():
        if isinstance(value := said.get(name), int | float):
            yield f"PARAMETER {theirs} {value}"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
