"""A folder that transformers opens: what is wrong with it, told before its weights are read, and the model."""

import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distill_tune.config.files import is_model_folder, no_model_at
from distill_tune.errors import UserError
from distill_tune.models.adapter_folder import adapter_file, has_adapter, has_left_over_config, model_folder
from distill_tune.models.decoder_config import read_config_json
from distill_tune.models.hf_names import not_of_the_decoder, what_it_is
from distill_tune.models.loading import some_names
from distill_tune.models.quantisation import packages_for, quantisation_of, require_plain
from distill_tune.models.weight_files import WeightFiles, weight_files

_KEY = "teacher_model.path"
_WEIGHTS = (".safetensors", ".bin")
_ADAPTER = "default"  # PEFT's name for the only one


class HuggingFaceFolder:
    """A causal language model of transformers, or an adapter of one (PEFT), which is read on its base.

    Args:
        path: the folder.
        trust_remote_code: run the folder's own Python code.

    Attributes:
        base: where the model's config.json and tokenizer are.
        files: of its weights, the adapter's among them.
        config: the model's, as transformers has it.

    Raises:
        UserError: it cannot be loaded: a config that transformers does not know, weights that are missing or of another
            shape, a package that is not here. Told from the headers of the files.
    """

    def __init__(self, path: Path, trust_remote_code: bool = False) -> None:
        import transformers

        self._path, self._trust = path, trust_remote_code
        if not is_model_folder(path):
            raise UserError(f"{_KEY}={path}: {no_model_at(path)}")
        _require_package(path, "accelerate", "loading it needs accelerate", "'distill-tune[hf]'")
        self.base = model_folder(_KEY, path)
        found = {file for part in (self.base, path) for file in part.iterdir() if file.suffix in _WEIGHTS}
        self.files = sorted(found, key=lambda file: file.name)
        self._method = quantisation_of(read_config_json(self.base, _KEY))
        with self._told():
            self.config = transformers.AutoConfig.from_pretrained(
                self.base, trust_remote_code=trust_remote_code, local_files_only=True
            )
        if self._method:
            self._require_quantiser()
        if has_adapter(path):
            adapter_file(_KEY, path)
            _require_package(path, "peft", "has an adapter, which needs peft", "peft")
        if not trust_remote_code and not self._method:
            self._load_headers()

    @property
    def is_quantised(self) -> bool:
        return bool(self._method)

    def weights_of_decoder(self) -> dict[str, torch.Tensor]:
        """As stored, as meta tensors; without those of what sees or hears."""
        headers = WeightFiles(_KEY, weight_files(_KEY, self.base)).headers()
        return {name: weight for name, weight in headers.items() if not not_of_the_decoder(name)}

    @property
    def num_parameters(self) -> int:
        """Of the model as transformers builds it of its config, however its weights are stored."""
        return sum(parameter.numel() for parameter in self._on_meta().parameters())

    def unquantised_shapes(self) -> dict[str, torch.Tensor]:
        """Of the model as transformers builds it of its config: what lies between embeddings and output layer."""
        model = self._on_meta()
        parts = model.get_input_embeddings(), model.get_output_embeddings()
        ends = [part.weight for part in parts if part is not None]
        return {name: p for name, p in model.named_parameters() if all(p is not end for end in ends)}

    def _on_meta(self) -> Any:
        from transformers import AutoModelForCausalLM

        with self._told(), _silent(bar=False), torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, trust_remote_code=self._trust)

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model in eval mode, frozen.

        Raises:
            UserError: it cannot be loaded; some of its weights would be random.
        """
        import transformers

        with self._told(), _silent(), _without_adapter(self.base) as folder:
            auto_class: Any = transformers.AutoModelForCausalLM
            model, info = auto_class.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=self._trust,
                local_files_only=True,
                output_loading_info=True,
            )
            self._require_whole(info, type(model).__name__, told_before=not self._trust and not self._method)
            if has_adapter(self._path):
                self._put_adapter_into(model)
                print(f"{_KEY}={self._path}: read with its adapter on the model {self.base}")
            elif has_left_over_config(self._path):
                print(
                    f"{_KEY}={self._path}: read without an adapter: adapter_config.json is there, its weights are not"
                )
        return model.eval().requires_grad_(False)

    def _load_headers(self) -> None:
        """Have transformers load the weights' headers into a model without memory, and say what it misses."""
        from transformers import AutoModelForCausalLM

        headers = WeightFiles(_KEY, weight_files(_KEY, self.base)).headers()
        require_plain(_KEY, self.base, {}, headers)
        with self._told(), _silent(bar=False):
            with torch.device("meta"):
                shape: Any = AutoModelForCausalLM.from_config(self.config)
            model, info = type(shape).from_pretrained(
                None,
                config=shape.config,  # of a model that also sees, the language model's alone
                state_dict=headers,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            self._require_whole(info, type(model).__name__)
            if has_adapter(self._path):
                self._put_adapter_into(model)

    def _put_adapter_into(self, model: Any) -> None:
        """Not merged, so that tied and quantised weights stay as they are; factors in float32."""
        import peft

        config = peft.PeftConfig.from_pretrained(str(self._path))
        if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
            raise UserError(
                f"{_KEY}={self._path}: adapters of this kind ({config.peft_type}) change the rows, not the "
                "model alone; that is not read here"
            )
        config.inference_mode = True
        if model.device.type == "meta" and hasattr(config, "init_lora_weights"):
            config.init_lora_weights = False  # those of PiSSA and its like follow from the base's values
        with warnings.catch_warnings():  # of tied weights, which are not merged here
            warnings.simplefilter("ignore")
            with_adapter = peft.get_peft_model(model, config, adapter_name=_ADAPTER)
            factors = dict(WeightFiles(_KEY, [adapter_file(_KEY, self._path)]).weights())
            found: Any = peft.set_peft_model_state_dict(with_adapter, factors, adapter_name=_ADAPTER)
        missing = [name for name in found.missing_keys if f".{_ADAPTER}" in name]
        told = {"missing_keys": missing, "unexpected_keys": found.unexpected_keys, "mismatched_keys": ()}
        self._require_whole(told, f"{config.peft_type.value} adapter")

    def _require_whole(self, info: Mapping[str, Any], kind: str, told_before: bool = False) -> None:
        problems = []
        if missing := sorted(info["missing_keys"]):
            problems.append(f"lacks {some_names(missing)}, which would be random")
        if differ := sorted(info["mismatched_keys"]):
            shown = [f"{name} {list(found)} (the model: {list(wanted)})" for name, found, wanted in differ]
            problems.append(f"has other shapes: {some_names(shown)}")
        unknown = sorted(info["unexpected_keys"])
        if problems:
            if unknown:
                problems.append(f"has {some_names(unknown)}{what_it_is(unknown[0])}")
            raise UserError(f"{_KEY}={self._path}: for a {kind} it {'; it '.join(problems)}")
        if unknown and not told_before:
            print(f"{_KEY}={self._path}: not read, since a {kind} has no such weights: {some_names(unknown)}")

    def _require_quantiser(self) -> None:
        from transformers.quantizers import AutoHfQuantizer

        found: Any = getattr(self.config, "quantization_config", None)
        if found is None:
            found = getattr(self.config.get_text_config(), "quantization_config", None)
        told = f"{_KEY}={self._path}: is quantised with {self._method}"
        try:
            known = AutoHfQuantizer.supports_quant_method(found)
            if known:
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                quantiser = AutoHfQuantizer.from_config(dict(found), pre_quantized=True)
                quantiser.validate_environment(device_map={"": device}, weights_only=True)
        except Exception as error:  # of whatever package the method has
            reason = " ".join(str(error).split())
            packages = packages_for(str(self._method))
            install = f"pip install {packages}, or " if packages else ""
            raise UserError(f"{told}: {reason}; {install}take the unquantised folder") from error
        if not known:
            raise UserError(f"{told}, which this version of transformers does not know; take the unquantised folder")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{_KEY}={self._path}: transformers cannot load it: {reason}") from error


def _require_package(path: Path, name: str, told: str, wanted: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{_KEY}={path}: {told}; pip install {wanted}")


@contextlib.contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """A model's folder; where an adapter or what is left of one lies in it, which transformers would load too, one of
    links to the rest."""
    if not (has_adapter(folder) or has_left_over_config(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for file in folder.resolve().iterdir():
            if not file.name.startswith("adapter_"):
                (Path(name) / file.name).symlink_to(file)
        yield Path(name)


@contextlib.contextmanager
def _silent(bar: bool = True) -> Iterator[None]:
    """No report of what is missing or not read, which is told in a line; no bar over headers."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if not bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
