"""`distill-tune compare`: students beside their teacher, on rows that they have not seen."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_tune.config.files import local_path
from distill_tune.errors import UserError

_DESCRIPTION = """Compare students with a teacher on held-out rows: perplexity, agreement, divergence, speed, memory.

  distill-tune compare models/Qwen3-8B models/Qwen3-0.6B outputs/distilled/model --source held_out.json

The first folder is the teacher, the second the student before training, the others what training made of it. Without
--source the rows are docstrings of installed Python code.
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
    parser.add_argument("--source", help="a file of rows with prompts and answers")
    parser.add_argument("--rows", type=int, default=200, help="how many rows (default: 200)")
    parser.add_argument("--max-seq-len", type=int, default=512, help="rows are cut there (default: 512)")
    parser.add_argument("--output", type=local_path, help="also write the table to this file, as Markdown")
    parser.set_defaults(function=_compare)


def _compare(options: argparse.Namespace) -> None:
    folders = list(dict.fromkeys(options.folders))
    if len(folders) < 2:
        raise UserError("compare: name at least two folders, the teacher's first")
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no such folder, or it has no config.json; name a Hugging Face model folder")

    from rich.console import Console

    from distill_tune import evaluation, models

    teacher, *students = folders
    for student in students:
        models.check_tokenizers(student, teacher)
    batches = held_out_batches(teacher, options.source, options.rows, options.max_seq_len)
    comparisons = compare_folders({_short(folder, folders): folder for folder in folders}, batches)
    console = Console()
    console.print(evaluation.comparison_table(comparisons))
    of_teacher, of_base, *trained = comparisons
    sentence = evaluation.gap_sentence(of_teacher, of_base, trained) if trained else ""
    console.print(sentence, highlight=False)
    if options.output:
        options.output.write_text(f"{evaluation.comparison_markdown(comparisons)}\n{sentence}\n", encoding="utf-8")


def held_out_batches(folder: Path, source: str | None, num_rows: int, max_seq_len: int) -> list[Any]:
    """Batches of rows of a file, or of docstrings, in the tokens of a model folder.

    Raises:
        UserError: the file or the folder's tokenizer cannot be read.
    """
    from omegaconf import OmegaConf

    from distill_tune import data

    tokenizer_config = OmegaConf.create(
        {"_component_": "distill_tune.data.hf_tokenizer", "path": str(folder), "max_seq_len": max_seq_len}
    )
    tokenizer = data.hf_tokenizer(str(folder), max_seq_len)
    rows = (
        {"_component_": "distill_tune.data.instruct", "source": source, "split": f"train[:{num_rows}]"}
        if source
        else {"_component_": "distill_tune.data.docstrings", "num_rows": num_rows, "held_out": True}
    )
    prepared, _ = data.prepare_rows(OmegaConf.create(rows), tokenizer, tokenizer_config)
    return list(data.StepPlan(prepared, batch_size=4, shuffle=False).epoch())


def load_folder(folder: Path, device: Any, dtype: Any) -> Any:
    """The whole model of a Hugging Face folder.

    Raises:
        UserError: it cannot be built or read.
    """
    from omegaconf import OmegaConf

    from distill_tune import models

    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})
    checkpoint = models.Checkpoint.of("model", component, None)
    return models.load_model(component, checkpoint, dtype, device)


def compare_folders(folders: Mapping[str, Path], batches: Sequence[Any]) -> list[Any]:
    """One :class:`~distill_tune.evaluation.Comparison` a folder, the first of which is the teacher."""
    import torch

    from distill_tune import evaluation, training

    device = training.find_device("auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    teacher = load_folder(next(iter(folders.values())), device, dtype)
    common_vocab_size = min(map(_vocab_size, folders.values()))
    return [
        evaluation.compare(
            name, functools.partial(load_folder, folder, device, dtype), teacher, batches, device, common_vocab_size
        )
        for name, folder in folders.items()
    ]


def _vocab_size(folder: Path) -> int:
    from distill_tune.models.decoder_config import decoder_config, read_config_json

    return decoder_config(read_config_json(folder, "model")).vocab_size


def _short(folder: Path, folders: Sequence[Path]) -> str:
    """A folder's last name that tells: `outputs/distilled/model` is `distilled`."""
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    return name if [f.name for f in folders].count(name) <= 1 else str(folder)
