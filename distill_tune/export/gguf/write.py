"""A merged Hugging Face folder as a GGUF file, one tensor at a time."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from distill_tune.disk import replaced_whole, require_space
from distill_tune.errors import UserError
from distill_tune.export.gguf.metadata import add_description, architecture_of, context_length, rope_tensors, settings
from distill_tune.export.gguf.said import require_same_model
from distill_tune.export.gguf.tensors import KINDS, Tensor, Tensors, file_type
from distill_tune.export.gguf.tokenizer import Tokenizer
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.decoder_config import DecoderConfig, decoder_config
from distill_tune.sizes import binary


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        kind: of the matrices, but for those that ``tensors`` says otherwise of.
        longest: up to which length the file's reader computes what the model does.
        unsaid_ends: that end an answer and that the file has no room for.
    """

    file: Path
    kind: str
    tensors: list[Tensor]
    longest: int
    model_longest: int
    tokenizer: Tokenizer

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.num_bytes for tensor in self.tensors) / self.parameters

    def lines(self) -> list[str]:
        """What a user should know of it, a sentence a line."""
        size = binary(self.file.stat().st_size)
        told = [f"{self.file}: {self.kind}, {self.bits_per_weight:.2f} bits a weight in all, {size}"]
        others = collections.Counter(
            (tensor.kind, tensor.shape[-1])
            for tensor in self.tensors
            if tensor.kind != self.kind and len(tensor.shape) > 1
        )
        for (kind, row), count in others.items():
            why = "embeddings and output layer" if kind != "f16" else f"rows of {row}, which blocks of 32 do not divide"
            told.append(f"{count} of its matrices are {kind}: {why}")
        if self.longest < self.model_longest:
            told.append(
                f"llama.cpp leaves this model's sliding window out: it computes the same up to {self.longest} tokens, "
                f"which the file gives as its length, not {self.model_longest}"
            )
        if self.tokenizer.source_space and not self.tokenizer.add_space_prefix:
            told.append(
                "add_space_prefix is false, so that llama.cpp has the student's tokens of chats: there a text that is "
                "no chat is to begin with a space, as this tokenizer begins it by itself"
            )
        elif self.tokenizer.source_space in ("always", "first"):
            where = "a text" if self.tokenizer.source_space == "first" else "what has none"
            told.append(
                "llama.cpp puts a space before a text and behind each control token, this tokenizer only before "
                f"{where}: their tokens differ there"
            )
        if self.tokenizer.left_out:
            told.append(f"{self.tokenizer.left_out} tokens without a row in the model are left out")
        if unsaid := self.tokenizer.unsaid_ends:
            told.append(f"GGUF has room for three ends of an answer: {', '.join(unsaid)} stand in the Modelfile alone")
        return told


def write_gguf(folder: Path, file: Path, kind: str, name: str | None = None) -> Written:
    """Write the model of a folder, its tokenizer and its chat template into one file.

    Norms and biases stay float32; embeddings and output layer are at least q8_0; rows that blocks of 32 do not divide
    stay float16. It takes as much memory as the largest weight of the folder, and some 100 MB.

    Args:
        folder: config.json, weights and tokenizer, as transformers reads them; an adapter is merged.
        file: replaced whole.
        kind: one of :data:`KINDS`.
        name: of the model; by default the folder's.

    Raises:
        UserError: the package gguf is not there; a model, a tokenizer or a setting that GGUF cannot say.
    """
    if kind not in KINDS:
        raise UserError(f"gguf:{kind}: no such kind, there are {', '.join(KINDS)}; others by --llama-cpp DIR")
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(f"gguf:{kind}: GGUF is written by gguf; pip install 'distill-tune[gguf]'") from error
    checkpoint = Checkpoint.read("model", "folder", folder)
    shape = decoder_config(checkpoint.config)
    values = settings(checkpoint.config, shape)
    tokenizer = Tokenizer.of_folder(folder, shape.vocab_size)
    tensors = Tensors(checkpoint, shape, kind)
    described = _plan(tensors, shape)
    of_rope = rope_tensors(checkpoint.config, shape)
    require_same_model(values, {tensor.name: tensor.shape for tensor in described}, of_rope, shape)
    require_space("output", file, sum(tensor.num_bytes for tensor in described))
    parameters = sum(math.prod(tensor.shape) for tensor in described)
    with replaced_whole(file) as partial:
        writer = gguf.GGUFWriter(partial, architecture_of(shape))
        add_description(writer, folder, name or folder.resolve().name, parameters, "</s>" in tokenizer.tokens)
        _add_settings(writer, values)
        writer.add_file_type(file_type(kind))
        tokenizer.add_to(writer)
        _write(writer, tensors, described, of_rope)
    longest = max(shape.max_seq_len, checkpoint.config.get("max_position_embeddings") or 0)
    return Written(file, kind, described, context_length(checkpoint.config, shape), longest, tokenizer)


def _plan(tensors: Tensors, shape: DecoderConfig) -> list[Tensor]:
    described = tensors.described()
    twice = [name for name, count in collections.Counter(tensor.name for tensor in described).items() if count > 1]
    if twice:
        raise UserError(f"{tensors.checkpoint.folder}: has {twice[0]} twice")
    rows = next((tensor.shape[0] for tensor in described if tensor.name == "token_embd.weight"), None)
    if rows != shape.vocab_size:
        raise UserError(
            f"{tensors.checkpoint.folder}: config.json says vocab_size={shape.vocab_size}, the embeddings have "
            f"{rows} rows"
        )
    return described


def _add_settings(writer: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        key = f"{writer.arch}.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _write(writer: Any, tensors: Tensors, described: list[Tensor], of_rope: Mapping[str, numpy.ndarray]) -> None:
    from gguf import GGMLQuantizationType

    for tensor in described:
        kind = GGMLQuantizationType[tensor.kind.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, numpy.dtype("float32"), tensor.num_bytes, kind)
    for name, table in of_rope.items():
        writer.add_tensor_info(name, table.shape, table.dtype, table.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (stream,) = writer.fout  # by parts of a tensor, which write_tensor_data does not take
    writer.write_padding(stream, stream.tell())
    for tensor, (name, parts) in zip(described, tensors.numbers(), strict=True):
        assert tensor.name == name
        written = sum(_written(stream, part) for part in parts)
        assert tensor.num_bytes == written, tensor
        writer.write_padding(stream, written)
    for table in of_rope.values():
        writer.write_padding(stream, _written(stream, table))
    writer.close()


def _written(stream: Any, part: numpy.ndarray) -> int:
    part.tofile(stream)
    return part.nbytes
