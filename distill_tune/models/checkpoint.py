"""A model's checkpoint on disk: its folder, which files, their headers, their weights one tensor at a time."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill_tune.errors import UserError
from distill_tune.models.adapter_folder import (
    AdapterFolder,
    adapter_file,
    has_adapter,
    has_left_over_config,
    model_folder,
)
from distill_tune.models.decoder_config import language_model_config, read_config_json
from distill_tune.models.hf_names import Weights, canonical_name
from distill_tune.models.quantisation import require_plain
from distill_tune.models.weight_files import WeightFiles, weight_files

_EMBEDDINGS, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder, or an adapter's, which is read on its base.

    Attributes:
        key: the config's key, for messages: ``checkpointer``, ``teacher_checkpointer``, ``model`` or ``teacher_model``.
        folder: with config.json and tokenizer files; of an adapter alone, the base's.
        files: the weights, safetensors or .bin.
        model_type: torchtune's name of the family, which its builders need.
        config: config.json; whether embeddings and output layer are tied is as the weights have it.
        adapter: LoRA factors that are merged into the weights.
        given_as: the names under which a weight of the files is given, where it is not its own alone.
    """

    key: str
    folder: Path
    files: tuple[Path, ...]
    model_type: str | None
    config: dict[str, Any]
    adapter: AdapterFolder | None = None
    given_as: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def described(cls, key: str, folder_key: str, folder: Path, model_type: str | None = None) -> "Checkpoint":
        """Of a folder's config.json alone.

        Raises:
            UserError: there is none, or a broken one.
        """
        base = model_folder(folder_key, Path(os.path.expanduser(folder)))
        return cls(key, base, (), model_type, read_config_json(base, folder_key))

    @classmethod
    def read(
        cls, key: str, folder_key: str, folder: Path, names: Any = None, model_type: str | None = None
    ) -> "Checkpoint":
        """
        Args:
            folder_key: the key that names ``folder``, for messages.
            names: a list, or torchtune's ``{filename_format: model-{}-of-{}.safetensors, max_filename: "00004"}``;
                None for those that transformers takes.

        Raises:
            UserError: a file is missing, broken or something else than a model's weights; they are quantised.
        """
        folder = Path(os.path.expanduser(folder))
        base = model_folder(folder_key, folder)
        config = read_config_json(base, folder_key)
        if names is None:
            files = weight_files(folder_key, base)
        elif isinstance(names, dict | DictConfig):
            last = str(names["max_filename"])
            numbers = (str(number).zfill(len(last)) for number in range(1, int(last) + 1))
            files = [base / names["filename_format"].format(number, last) for number in numbers]
        else:
            files = [base / str(name) for name in names]
        if outside := [file for file in files if file.parent != base]:
            raise UserError(f"{key}.checkpoint_files: {outside[0]}: lies outside of {base}")
        missing = [str(file) for file in files if not os.path.isfile(file)]
        if missing:
            raise UserError(f"{key}.checkpoint_files: no such file: {', '.join(missing)}; is the download complete?")
        stored = WeightFiles(key, files)
        headers = stored.headers()
        require_plain(folder_key, base, config, headers)
        adapter = AdapterFolder.open(folder_key, folder) if has_adapter(folder) else None
        ties, given_as = _ties(config, stored, headers, adapter)
        if not ties and _says_tied(config):
            config = _untied(config)
            if adapter is None:
                print(
                    f"{folder_key}={folder}: config.json ties lm_head.weight to the embeddings, the files have another"
                )
        checkpoint = cls(key, base, tuple(files), model_type, config, adapter, given_as)
        if adapter is not None:
            adapter.check(checkpoint.headers())
            print(f"{folder_key}={folder}: read with its adapter merged into the model {base}")
        elif has_left_over_config(folder):
            print(f"{folder_key}={folder}: read without an adapter: adapter_config.json is there, its weights are not")
        return checkpoint

    @property
    def all_files(self) -> list[Path]:
        """The weights, and those of the adapter that they are read with."""
        adapter = [] if self.adapter is None else [adapter_file(self.key, self.adapter.folder)]
        return [*self.files, *adapter]

    def headers(self) -> Weights:
        """All weights as meta tensors, by their names in a causal language model of transformers."""
        return {name: weight for stored, weight in self._stored.headers().items() for name in self._names(stored)}

    def dtype(self) -> torch.dtype:
        """In which most of the weights are kept."""
        kinds = [weight.dtype for weight in self.headers().values()]
        return max(set(kinds), key=kinds.count)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weight, one after another, in the dtype of the files, or float32 where an adapter changes it.

        The tensors are views of the mapped file: what a caller does not read is not loaded, and processes on one
        machine share what they read.
        """
        for stored, weight in self._stored.weights():
            for name in self._names(stored):
                yield name, weight if self.adapter is None else self.adapter.merged(name, weight)

    @property
    def _stored(self) -> WeightFiles:
        return WeightFiles(self.key, self.files)

    def _names(self, stored: str) -> tuple[str, ...]:
        name = canonical_name(stored)
        return self.given_as.get(name, (name,))


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights, or factors of them, of its own."""
    folder = Path(os.path.expanduser(folder))
    return has_adapter(folder) or any(True for kind in ("*.safetensors", "*.bin") for _ in folder.glob(kind))


def model_config(folder: Path, key: str) -> dict[str, Any]:
    """config.json of the model in a folder, or of an adapter's base; tied or not is as the weights have it, if any.

    Args:
        key: the config's key, for messages.

    Raises:
        UserError: there is no config.json, or a broken one.
    """
    base = model_folder(key, folder)
    config = read_config_json(base, key)
    if not _says_tied(config):
        return config
    try:
        stored = WeightFiles(key, weight_files(key, base))
        adapter = AdapterFolder.open(key, folder) if has_adapter(folder) else None
        ties, _ = _ties(config, stored, stored.headers(), adapter)
    except UserError:  # which reading the checkpoint tells
        return config
    return config if ties else _untied(config)


def _ties(
    config: Mapping[str, Any], stored: WeightFiles, headers: Weights, adapter: AdapterFolder | None
) -> tuple[bool, dict[str, tuple[str, ...]]]:
    """Whether output layer and embeddings share their weight, and under which names the stored ones are given.

    As transformers 5 has it (``PreTrainedModel.tie_weights``): where config.json ties them and the files have both,
    they are tied if they are equal; where the files have one, it is both. An adapter of one of them unties them.
    """
    if not _says_tied(config):
        return False, {}
    names = {canonical_name(name): name for name in headers}
    there = [name for name in (_EMBEDDINGS, _OUTPUT) if name in names]
    if len(there) == 2 and not _equal(stored, names[_EMBEDDINGS], names[_OUTPUT]):
        return False, {}
    if not there:
        return True, {}
    if adapter is not None and adapter.unties:
        return False, {} if len(there) == 2 else {there[0]: (_EMBEDDINGS, _OUTPUT)}
    return True, {_OUTPUT: () if _EMBEDDINGS in names else (_EMBEDDINGS,)}


def _equal(stored: WeightFiles, *names: str) -> bool:
    one, other = stored.some(names).values()
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.data_ptr() == other.data_ptr():  # a .bin file keeps tied weights once
        return True
    return all(torch.equal(part, of_other) for part, of_other in zip(one.split(4096), other.split(4096), strict=True))


def _says_tied(config: Mapping[str, Any]) -> bool:
    try:
        config = language_model_config(config)
    except UserError:  # an architecture that torchtune's builders alone know
        return bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma")))
    return bool(config.get("tie_word_embeddings", False))


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    inside = {"text_config": {**text, "tie_word_embeddings": False}} if isinstance(text, Mapping) else {}
    return {**config, **inside, "tie_word_embeddings": False}
