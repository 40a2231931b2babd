"""A GGUF file with its Modelfile in a folder of its own, as the table of formats has it."""

import dataclasses
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill_tune.errors import UserError
from distill_tune.export import hf_folder
from distill_tune.export.beside import write_terms
from distill_tune.export.check import Check
from distill_tune.export.gguf import LlamaCpp, otherwise_said, write_gguf, write_modelfile
from distill_tune.export.gguf.by_llama_cpp import open_with_llama_cpp
from distill_tune.export.gguf.metadata import context_length, score_factor
from distill_tune.export.gguf.metadata import settings as metadata
from distill_tune.export.gguf.tokenizer import (
    around_texts,
    is_of_pieces,
    tell_space_prefix,
    texts_alike,
)
from distill_tune.export.opened import Opened, open_with_transformers
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source
from distill_tune.export.texts import LONGEST
from distill_tune.models.decoder_config import decoder_config
from distill_tune.models.gguf import gguf_ends
from distill_tune.models.gguf_config import gguf_config
from distill_tune.models.gguf_names import ARCHITECTURES
from distill_tune.models.gguf_tokenizer import around_texts_of_file
from distill_tune.models.tokenizer_files import read_tokenizer

# Nats a token, as torchao's; those of 4 bits and llama.cpp's own kinds have the last one.
_MAX_KL = {"f32": hf_folder.SAME, "f16": 0.005, "bf16": 0.005, "q8_0": 0.05, "q5_1": 0.2, "q5_0": 0.2}
_OF_FEW_BITS = 1.0
_ROOM = 3  # for the ends of an answer
_OF_MISTRAL = ("sliding_window", "layer_types")  # beyond whose length a file is not read


def check(source: Source, settings: Settings) -> list[str]:
    """
    Raises:
        UserError: a package is not installed, or the model or its tokenizer is none that GGUF can say.
    """
    if lacking := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UserError(
            "--to gguf: GGUF is written by gguf, and opened by transformers with accelerate; "
            f"{' and '.join(lacking)}: not installed; pip install 'distill-tune[gguf]'"
        )
    if settings.llama_cpp is not None:
        LlamaCpp.find(settings.llama_cpp)
        return []
    metadata(source.config(), source.decoder)
    return []


def write(source: Source, folder: Path, settings: Settings) -> list[str]:
    merged = folder.with_name(f"{folder.name}.merged")
    try:
        hf_folder.write(source, merged, settings)
        folder.mkdir(parents=True)
        file = folder / _name(source, settings)
        if settings.llama_cpp is not None:
            tell_space_prefix(merged)
            told = LlamaCpp.find(settings.llama_cpp).write(merged, file, settings.kind)
        else:
            told = write_gguf(merged, file, settings.kind, source.name).lines()
        write_modelfile(file, merged)
        write_terms(source, folder)
        return [line.replace(f"{folder}/", "") for line in told]
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    """By llama.cpp where its Python package is installed; else weights, tokenizer and chat template by transformers'
    reader. Ends, settings, and a tokenizer of SentencePiece by our own.

    Of settings transformers leaves out rope's scaling, biases, caps and more: those of the source are taken, and what
    the file says is compared with them. The ends that it has no room for stand in the Modelfile.
    """
    file = folder / _name(source, settings)
    config = gguf_config(file)
    longest = min(config["max_position_embeddings"], context_length(source.config(), source.decoder))
    opened = open_with_llama_cpp(file, min(longest, LONGEST))
    if opened is None:
        opened = open_with_transformers(folder, device, gguf_file=file.name, config=_settings_for(source))
        if is_of_pieces(file):  # transformers puts a space before a text, and none in it, whatever the file says
            opened = dataclasses.replace(opened, tokenizer=read_tokenizer(file))
    ends, room = gguf_ends(file), _ROOM
    if settings.llama_cpp is not None:  # whose converter adds the ends of a family, and leaves others to be guessed
        ends, room = ends[:1], 1
    return dataclasses.replace(
        opened,
        stops=frozenset(ends),
        room=room,
        longest=longest,
        texts=texts_alike(source.tokenizer.transformers_tokenizer, file),
        checks=(_around_texts(source, file), _compared(source, config)),
    )


def _around_texts(source: Source, file: Path) -> Check:
    """What the settings of a file put around every text, beside what the source's tokenizer does."""
    wanted, found = around_texts(source.tokenizer.transformers_tokenizer), around_texts_of_file(file)
    told = f"{_listed(found[0])} before, {_listed(found[1])} behind"
    if found != wanted:
        told += f"; it should be {_listed(wanted[0])} before, {_listed(wanted[1])} behind"
    return Check("around texts", told, found == wanted)


def _listed(tokens: Sequence[int]) -> str:
    return ", ".join(map(str, tokens)) or "nothing"


def _compared(source: Source, config: dict[str, Any]) -> Check:
    """
    Args:
        config: what the file says.
    """
    said, own = config["max_position_embeddings"], source.config().get("max_position_embeddings") or 0
    read, longest = decoder_config(config), context_length(source.config(), source.decoder)
    if said > (own := max(own, source.decoder.max_seq_len)):
        return Check("settings", f"a length of {said} tokens, not {own}", False)
    if fault := otherwise_said(source.decoder, read, min(longest, read.max_seq_len)):
        return Check("settings", fault, False)
    if said > longest:
        return Check("settings", f"the source's, up to {longest} tokens: llama.cpp leaves its windows out", True)
    return Check("settings", "the source's", True)


def max_kl(source: Source, settings: Settings) -> float:
    return _MAX_KL.get(settings.kind, _OF_FEW_BITS)


def _settings_for(source: Source) -> Any:
    """transformers' configuration for the weights of a file: Mistral's lie there as Llama's, and what llama.cpp does
    not scale as the source does is scaled in the weights."""
    from transformers import CONFIG_MAPPING

    config, shape = source.config(), source.decoder
    if ARCHITECTURES[shape.architecture] == "llama":
        config = {key: value for key, value in config.items() if key not in _OF_MISTRAL} | {"model_type": "llama"}
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = round((score_factor(shape) / shape.attention_scale) ** 2)
    return CONFIG_MAPPING[config["model_type"]].from_dict(config)


def _name(source: Source, settings: Settings) -> str:
    return f"{source.name}-{settings.kind}.gguf"
