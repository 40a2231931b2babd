"""`distill-tune compare`: students beside their teacher, on rows that they have not seen."""

import argparse
import dataclasses
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
    from distill_tune.evaluation import Entrant
    from distill_tune.models import Checkpoint
    from distill_tune.teachers import Teacher

_DESCRIPTION = """Compare students with a teacher on held-out rows: perplexity, agreement, divergence, speed, memory.

  distill-tune compare models/Qwen3-8B models/Qwen3-0.6B outputs/distilled/model --source held_out.json
  distill-tune compare --config mine.yaml outputs/distilled/model [overrides]

The first folder is the teacher, the second the student before training, the others what training made of it: models,
or adapters on their bases. --source takes chats, prompts and answers, or text, as what its rows are; --dataset a
config's dataset, with all its arguments. Without either the rows are docstrings of installed Python code.

With --config the teacher and the student before training are the config's own, the rows those of its dataset_val as
its tokenizer and its prompts write them (or those of --source or --dataset), and dtype, teacher_dtype,
teacher_quantizer, teacher_offload and device are heeded. Without a folder it is output_dir/model that is compared.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare students with their teacher on held-out rows",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="Hugging Face folders, teacher first")
    parser.add_argument("--config", help="measure with this config's teacher, tokenizer and dataset_val")
    add_row_options(parser, num_rows=200)
    parser.add_argument("--max-seq-len", type=int, default=512, help="rows are cut there (default: 512)")
    parser.add_argument("--output", type=local_path, help="also write the table to this file, as Markdown")
    parser.set_defaults(function=_compare)


def _compare(options: argparse.Namespace) -> None:
    if options.config:
        from distill_tune.cli.compare_run import compare_run

        comparisons, num_rows = compare_run(options)
    else:
        comparisons, num_rows = _compare_folders(options)

    from rich.console import Console

    from distill_tune import evaluation

    console = Console()
    console.print(evaluation.comparison_table(comparisons))
    of_teacher, of_base, *trained = comparisons
    sentences = [
        evaluation.gap_sentence(of_teacher, of_base, trained) if trained else "",
        evaluation.few_rows(num_rows),
    ]
    for sentence in filter(None, sentences):
        console.print(sentence, highlight=False)
    if options.output:
        table, below = evaluation.comparison_markdown(comparisons), "\n".join(filter(None, sentences))
        options.output.write_text(f"{table}\n{below}\n", encoding="utf-8")


def _compare_folders(options: argparse.Namespace) -> tuple[list[Any], int]:
    """The comparisons of the folders that are named, and on how many rows."""
    from distill_tune.models.adapter_folder import model_folder

    folders = [local_path(folder) for folder in dict.fromkeys(options.folders)]
    if len(folders) < 2:
        raise UserError("compare: name at least two folders, the teacher's first, or a config (--config)")
    require_models(folders)
    plan = held_out_plan(model_folder("compare", folders[0]), options, options.max_seq_len)
    return compare_folders({short_name(folder, folders): folder for folder in folders}, plan), plan.num_rows


def require_models(folders: Sequence[Path]) -> None:
    """
    Raises:
        UserError: one is no model's folder.
    """
    for folder in folders:
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{folder}: no such folder, or it has no config.json; name a Hugging Face model folder")


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
        folder.require_rows(first.checkpoint.folder, plan)
    device = training.find_device("auto")
    dtype = dtype_for(device)
    teacher, *others = [folder.entrant(name, device, dtype) for name, folder in opened.items()]
    common_vocab_size = min(folder.vocab_size for folder in opened.values())
    return list(evaluation.compare(teacher, others, list(plan.epoch()), device, common_vocab_size))


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
    parameters: int
    shapes: tuple[tuple[int, ...], ...]

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
        shapes = tuple(tuple(p.shape) for p in model.parameters())
        parameters = sum(p.numel() for p in model.parameters())
        vocab_size = model.tok_embeddings.weight.shape[0]
        return cls(path, component, checkpoint, vocab_size, model.max_seq_len, parameters, shapes)

    def require_rows(self, writer: Path, plan: "StepPlan") -> None:
        """
        Args:
            writer: the folder in whose tokens the rows are.

        Raises:
            UserError: this model cannot read them.
        """
        from distill_tune import models

        if self.checkpoint.folder != writer:
            models.require_one_tokenizer(writer, self.checkpoint.folder, plan.used_tokens)
        models.require_tokens(str(self.path), self.vocab_size, plan.largest_token)
        if plan.longest > self.max_seq_len:
            raise UserError(
                f"--max-seq-len: the longest row has {plan.longest} tokens, "
                f"{self.path} reads {self.max_seq_len} at most"
            )

    def entrant(self, name: str, device: "torch.device", dtype: "torch.dtype") -> "Entrant":
        """For :func:`~distill_tune.evaluation.compare`."""
        from distill_tune.evaluation import Entrant
        from distill_tune.teachers import LiveTeacher

        def load() -> "Teacher":
            return LiveTeacher(self.load(device, dtype))

        return Entrant(name, self.parameters, self.shapes, load)

    def load(self, device: Any, dtype: Any) -> Any:
        """
        Raises:
            UserError: its files cannot be read.
        """
        from distill_tune import models

        return models.load_model(self.component, self.checkpoint, dtype, device)


def short_name(folder: Path, folders: Sequence[Path]) -> str:
    """A folder's last name that tells: `outputs/distilled/model` is `distilled`."""
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    return name if [f.name for f in folders].count(name) <= 1 else str(folder)
