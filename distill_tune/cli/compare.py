"""`distill-tune compare`: students beside their teacher, on rows that they have not seen."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_tune.cli.held_out import add_row_options, held_out_plan
from distill_tune.config.files import local_path
from distill_tune.errors import UserError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from distill_tune.data import StepPlan
    from distill_tune.models import Checkpoint

_DESCRIPTION = """Compare students with a teacher on held-out rows: perplexity, agreement, divergence, speed, memory.

  distill-tune compare models/Qwen3-8B models/Qwen3-0.6B outputs/distilled/model --source held_out.json

The first folder is the teacher, the second the student before training, the others what training made of it: models,
or adapters on their bases. --source takes chats, prompts and answers, or text, as what its rows are; --dataset a
config's dataset, with all its arguments. Without either the rows are docstrings of installed Python code.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare students with their teacher on held-out rows",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", type=local_path, nargs="+", metavar="FOLDER", help="Hugging Face folders, teacher first"
    )
    add_row_options(parser, num_rows=200)
    parser.add_argument("--max-seq-len", type=int, default=512, help="rows are cut there (default: 512)")
    parser.add_argument("--output", type=local_path, help="also write the table to this file, as Markdown")
    parser.set_defaults(function=_compare)


def _compare(options: argparse.Namespace) -> None:
    folders = list(dict.fromkeys(options.folders))
    if len(folders) < 2:
        raise UserError("compare: name at least two folders, the teacher's first")
    for folder in folders:
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{folder}: no such folder, or it has no config.json; name a Hugging Face model folder")

    from rich.console import Console

    from distill_tune import evaluation
    from distill_tune.models.adapter_folder import model_folder

    plan = held_out_plan(model_folder("compare", folders[0]), options, options.max_seq_len)
    comparisons = compare_folders({_short(folder, folders): folder for folder in folders}, plan)
    console = Console()
    console.print(evaluation.comparison_table(comparisons))
    of_teacher, of_base, *trained = comparisons
    sentence = evaluation.gap_sentence(of_teacher, of_base, trained) if trained else ""
    console.print(sentence, highlight=False)
    if options.output:
        options.output.write_text(f"{evaluation.comparison_markdown(comparisons)}\n{sentence}\n", encoding="utf-8")


def compare_folders(folders: Mapping[str, Path], plan: "StepPlan") -> list[Any]:
    """One :class:`~distill_tune.evaluation.Comparison` a folder, the first of which is the teacher.

    Args:
        plan: of rows in the teacher's tokens.

    Raises:
        UserError: before any weight is read: a folder's weights are not those of its config; rows have tokens that a
            model lacks or reads otherwise, or are too long for it.
    """
    from distill_tune import evaluation, training

    opened = {name: ModelFolder.open(folder) for name, folder in folders.items()}
    first = next(iter(opened.values()))
    for folder in opened.values():
        folder.require_rows(first, plan)
    device = training.find_device("auto")
    dtype = dtype_for(device)
    teacher, batches = first.load(device, dtype), list(plan.epoch())
    common_vocab_size = min(folder.vocab_size for folder in opened.values())
    return [
        evaluation.compare(
            name, functools.partial(folder.load, device, dtype), teacher, batches, device, common_vocab_size
        )
        for name, folder in opened.items()
    ]


def dtype_for(device: "torch.device") -> "torch.dtype":
    """bf16 on GPUs that compute in it, else fp32."""
    import torch

    from distill_tune.training.device import lacks_bf16

    return torch.bfloat16 if device.type == "cuda" and not lacks_bf16(device) else torch.float32


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """The whole model of a Hugging Face folder, or of an adapter's and its base."""

    path: Path
    component: "DictConfig"
    checkpoint: "Checkpoint"
    vocab_size: int
    max_seq_len: int

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """
        Raises:
            UserError: it cannot be built, or the weights are not its own.
        """
        from omegaconf import OmegaConf

        from distill_tune import models

        component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(path)})
        checkpoint = models.Checkpoint.read("model", "model.path", path)
        model = models.checked_on_meta("model", component, checkpoint)
        return cls(path, component, checkpoint, model.tok_embeddings.weight.shape[0], model.max_seq_len)

    def require_rows(self, writer: "ModelFolder", plan: "StepPlan") -> None:
        """
        Args:
            writer: in whose tokens the rows are.

        Raises:
            UserError: this model cannot read them.
        """
        from distill_tune import models

        if self is not writer:
            models.require_one_tokenizer(writer.checkpoint.folder, self.checkpoint.folder, plan.used_tokens)
        models.require_tokens(str(self.path), self.vocab_size, plan.largest_token)
        if plan.longest > self.max_seq_len:
            raise UserError(
                f"--max-seq-len: the longest row has {plan.longest} tokens, "
                f"{self.path} reads {self.max_seq_len} at most"
            )

    def load(self, device: Any, dtype: Any) -> Any:
        """
        Raises:
            UserError: its files cannot be read.
        """
        from distill_tune import models

        return models.load_model(self.component, self.checkpoint, dtype, device)


def _short(folder: Path, folders: Sequence[Path]) -> str:
    """A folder's last name that tells: `outputs/distilled/model` is `distilled`."""
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    return name if [f.name for f in folders].count(name) <= 1 else str(folder)
