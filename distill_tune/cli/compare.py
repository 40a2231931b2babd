"""`distill-tune compare`: students beside their teacher, on rows that they have not seen."""

import argparse
from typing import TYPE_CHECKING

from distill_tune.cli.held_out import add_row_options, dataset_of, named_as_given, require_num_rows
from distill_tune.config.files import local_path, model_at
from distill_tune.disk import write_text
from distill_tune.errors import UserError

if TYPE_CHECKING:
    import torch

    from distill_tune.evaluation import Prepared

_DESCRIPTION = """Compare students with a teacher on held-out rows: perplexity, bits per byte, agreement, divergence,
speed, memory, with how far each may be off and which differences may be luck.

  distill-tune compare models/Qwen3-8B models/Qwen3-0.6B outputs/distilled --source held_out.json
  distill-tune compare --config mine.yaml [RECIPE.py] outputs/distilled/model [overrides]    in any order

The first model is the teacher, the second the student before training, the others what training made of it: models'
folders, runs, adapters on their bases, GGUF files. --source takes chats, prompts and answers, or text, as what its rows
are; --dataset a config's dataset, with all its arguments. Without either the rows are docstrings of installed Python
code. Rows are read whole, longer ones in windows.

With --config the teacher and the student before training are the config's own, the rows those of its dataset_val as
its tokenizer and its prompts write them (or those of --source or --dataset), and dtype, teacher_dtype,
teacher_quantizer, teacher_offload and device are heeded. Without a folder it is output_dir/model that is compared.

A model of another tokenizer reads the rows in its own tokens and chat template: bits per byte compare it with the
others, agreement and KL are left out. `distill-tune run evaluate` measures the same, on several devices, and has the
models answer as well.
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
    parser.add_argument("--max-seq-len", type=int, default=512, help="tokens of a row read at once (default: 512)")
    parser.add_argument("--output", type=local_path, help="also write the tables to this file, as Markdown")
    parser.set_defaults(function=lambda options: _compare(parser.parse_intermixed_args(options.arguments)))


def _compare(options: argparse.Namespace) -> None:
    require_num_rows(options)
    if options.max_seq_len < 2:
        raise UserError(f"--max-seq-len {options.max_seq_len}: must be 2 or more")
    if options.output:
        from distill_tune.training.output_check import require_writable

        require_writable("--output", str(options.output.parent))
    if options.config:
        from distill_tune.cli.compare_run import prepare_run

        prepared, device = prepare_run(options)
    else:
        prepared, device = _prepare_folders(options)

    from distill_tune import evaluation

    print(prepared.documents.told())
    found = evaluation.results(
        prepared.documents, evaluation.measure(prepared, device), prepared.teacher, prepared.base
    )
    print(evaluation.results_text(found), end="")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, evaluation.results_markdown(found))


def _prepare_folders(options: argparse.Namespace) -> "tuple[Prepared, torch.device]":
    """
    Raises:
        UserError: before any weight is read: a folder's weights are not those of its config; rows have tokens that a
            model lacks or reads otherwise.
    """
    named = list(dict.fromkeys(options.folders))
    if len(named) < 2:
        raise UserError("compare: name at least two folders, the teacher's first, or a config (--config)")

    from distill_tune import data, evaluation, training
    from distill_tune.models.adapter_folder import model_folder

    for path in named:
        evaluation.require_model("compare", path)
    device = training.find_device("auto")
    dtype = dtype_for(device)
    with named_as_given(options):
        dataset = dataset_of(options)
        tokenizer = data.hf_tokenizer(str(model_folder("compare", model_at(local_path(named[0])))))
        labels = evaluation.labels_of(named)
        opened = [
            evaluation.open_named(label, path, tokenizer, dtype, "compare")
            for label, path in zip(labels, named, strict=True)
        ]
        prepared = evaluation.prepare(
            opened,
            dataset,
            tokenizer,
            teacher=labels[0],
            base=labels[1],
            key="dataset",
            context=options.max_seq_len,
            most=options.rows or options.default_rows,
        )
    return prepared, device


def dtype_for(device: "torch.device") -> "torch.dtype":
    """bf16 on GPUs that compute in it, else fp32."""
    import torch

    from distill_tune.training.device import lacks_bf16

    return torch.bfloat16 if device.type == "cuda" and not lacks_bf16(device) else torch.float32
