"""`distill-tune export`: a student in the form that it is shipped in, checked against what it was made from."""

import argparse
import contextlib
import math
import signal
import sys
from types import FrameType
from typing import NoReturn

from distill_tune.config.files import local_path
from distill_tune.errors import UserError
from distill_tune.launch import is_heeded

_DESCRIPTION = """Write a trained student in a form for others, open it again with the tool that it is for, and compare.

  distill-tune export outputs/mine --to hf                       a Hugging Face folder, adapters merged
  distill-tune export outputs/mine --to hf --dtype bf16 --max-shard-size 2GB
  distill-tune export outputs/mine --to adapter --base-model Qwen/Qwen2.5-0.5B-Instruct
  distill-tune export outputs/mine --to torchao:int8             weights in 8 bits, for transformers
  distill-tune export outputs/mine --to gguf:Q8_0                one file for llama.cpp and Ollama

SOURCE is a run's output_dir, a checkpoint of it (checkpoints/step_N; of a run that was stopped the newest is taken), a
model's folder, an adapter's, or demo:student. What will surprise somebody (weights that
part, padding, ends that differ, rows that a quantiser cannot divide) is told first. Then token ids, chat template, end
tokens and distributions are compared with the source, on rows of the run's dataset_val or on built-in texts: where
one is not as it should be, the folder is left under a name that ends in .failed, and the exit code is 1.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write a student in a form for others",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=local_path, metavar="SOURCE")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf, adapter, torchtune, torchao:..., gguf:...")
    parser.add_argument("--output", type=local_path, help="the folder (default: exports/ and source and format)")
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp16"), help="of weights (default: the source's own)")
    parser.add_argument("--max-shard-size", default="5GB", help="of a file of weights (default: 5GB)")
    parser.add_argument("--max-kl", type=float, help="nats a token from the source, beyond which it fails")
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="how a hub calls the model the student began as")
    parser.add_argument(
        "--llama-cpp", type=local_path, metavar="DIR", help="llama.cpp's folder, for what it alone writes"
    )
    parser.set_defaults(function=_export)


def _export(options: argparse.Namespace) -> None:
    if options.max_kl is not None and not 0 <= options.max_kl < math.inf:
        raise UserError(f"--max-kl {options.max_kl}: must be 0 or more")

    with contextlib.suppress(ValueError):  # not the main thread
        for number in filter(is_heeded, (signal.SIGTERM, signal.SIGHUP)):
            signal.signal(number, _stopped)

    from distill_tune.export.ship import export
    from distill_tune.sizes import binary

    result = export(
        options.source,
        options.to,
        options.output,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        base_model=options.base_model,
        llama_cpp=options.llama_cpp,
        max_kl=options.max_kl,
    )
    print(f"opened with {result.tool}:")
    width = max(len(check.name) for check in result.checks)
    for check in result.checks:
        print(f"  {check.name:{width}}  {'ok' if check.passed else 'FAILED':6}  {check.found}")
    for name, size in result.files.items():
        print(f"  {binary(size):>12}  {name}")
    if result.bits_per_weight is not None:
        print(f"{result.bits_per_weight:.2f} bits a weight")
    if not result.passed:
        print(f"distill-tune: export {options.to}: not as its source; left in {result.folder}", file=sys.stderr)
        sys.exit(1)
    print(result.folder)


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    """As an exception, so that what is half written is taken away; ends as a shell would tell it."""
    print(f"distill-tune: export: stopped by {signal.Signals(number).name}; nothing is left of it", file=sys.stderr)
    sys.exit(128 + number)
