"""`distill-tune compare`: students beside their teacher, on rows that they have not seen."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_tune.cli.held_out import add_row_options, held_out_plan
from distill_tune.cli.model_folder import ModelFolder, require_models, short_name
from distill_tune.config.files import local_path
from distill_tune.errors import UserError

if TYPE_CHECKING:
    import torch

    from distill_tune.data import StepPlan

_DESCRIPTION = """Compare students with a teacher on held-out rows: perplexity, agreement, divergence, speed, memory.

  distill-tune compare models/Qwen3-8B models/Qwen3-0.6B outputs/distilled/model --source held_out.json
  distill-tune compare --config mine.yaml [RECIPE.py] outputs/distilled/model [overrides]    in any order

The first folder is the teacher, the second the student before training, the others what training made of it: models,
or adapters on their bases. --source takes chats, prompts and answers, or text, as what its rows are; --dataset a
config's dataset, with all its arguments. Without either the rows are docstrings of installed Python code.

With --config the teacher and the student before training are the config's own, the rows those of its dataset_val as
its tokenizer and its prompts write them (or those of --source or --dataset), and dtype, teacher_dtype,
teacher_quantizer, teacher_offload and device are heeded. Without a folder it is output_dir/model that is compared.
Such a teacher may have another tokenizer than the students.
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
    parser.set_defaults(function=lambda options: _compare(parser.parse_intermixed_args(options.arguments)))


def _compare(options: argparse.Namespace) -> None:
    if options.config:
        from distill_tune.cli.compare_run import compare_run

        comparisons, num_rows = compare_run(options)
    else:
        comparisons, num_rows = _compare_folders(options)

    from rich.console import Console

    from distill_tune import evaluation

    console = Console()
    console.print(evaluation.comparison_table(comparisons, console))
    of_teacher, of_base, *trained = comparisons
    sentences = [
        evaluation.gap_sentence(of_teacher, of_base, trained) if trained else "",
        evaluation.other_tokens(comparisons),
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
