"""The checkpoint that a config names: a Hugging Face folder, an adapter's, or a GGUF file."""

from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.files import local_path
from distill_tune.errors import UserError
from distill_tune.models.checkpoint import Checkpoint, has_weights
from distill_tune.models.gguf import GGUFCheckpoint


def open_checkpoint(
    model_key: str, model: DictConfig, checkpointer: DictConfig | None, needs_weights: bool = True
) -> Checkpoint:
    """The checkpoint of ``model``: what the checkpointer names, or the folder that the model is built from.

    Args:
        model_key: ``model`` or ``teacher_model``, for messages.
        needs_weights: else a folder without them has no ``files``.

    Raises:
        UserError: no checkpointer where one is needed, another kind of it, no config.json, or a broken one; files
            that are not there.
    """
    prefix = model_key.removesuffix("model")
    if checkpointer is None:
        if "path" not in model:
            raise UserError(f"{prefix}checkpointer: missing; {model['_component_']} does not know its folder")
        key, folder_key, folder = model_key, f"{model_key}.path", local_path(model["path"])
        if folder.suffix == ".gguf":
            return GGUFCheckpoint.open(key, folder)
        files, model_type = None, None
    else:
        key = f"{prefix}checkpointer"
        component = checkpointer.get("_component_", "FullModelHFCheckpointer")
        if component.rpartition(".")[2] != "FullModelHFCheckpointer":
            raise UserError(
                f"{key}._component_={component}: only Hugging Face folders are read; "
                "take torchtune.training.FullModelHFCheckpointer"
            )
        folder_key, folder = f"{key}.checkpoint_dir", Path(checkpointer["checkpoint_dir"])
        files, model_type = checkpointer.get("checkpoint_files"), checkpointer.get("model_type")
    if needs_weights or has_weights(folder):
        return Checkpoint.read(key, folder_key, folder, files, model_type)
    return Checkpoint.described(key, folder_key, folder, model_type)
