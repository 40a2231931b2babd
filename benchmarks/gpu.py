"""A 1B-shaped student and an 8B-shaped teacher with random weights on one GPU in bf16: steps, share of peak, memory.

    python benchmarks/gpu.py                       every case, each in a fresh process
    python benchmarks/gpu.py --against torchtune   and torchtune's step on the same rows
    python benchmarks/gpu.py --sharded 2           by two processes, each with its own rows
    python benchmarks/gpu.py --device cpu --small  the same code on tiny shapes: does it run?
    python benchmarks/gpu.py --first-hour          a card from end to end: checks, tests, configs, steps, bars

Packed flash attention needs PyTorch 2.11 or newer, the head's kernel Triton. torchtune's step is its recipe's: padded
rows, both full logits in eight chunks, its two losses, adapters in bf16, where ours are in fp32.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from gpu_cases import CASES

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", help="torchtune")
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--sharded", type=int, default=0, metavar="PROCESSES")
    parser.add_argument("--in-this-process", metavar="TOOL", help=argparse.SUPPRESS)
    parser.add_argument("--first-hour", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="of --first-hour: what has one of these in its name")
    parser.add_argument("--at-once", type=int, default=1, help="of --first-hour: so many checks and runs at a time")
    parser.add_argument("--folder", type=Path, default=HERE, help="where --first-hour writes its two files")
    options = parser.parse_args()
    if options.first_hour:
        from first_hour.run import first_hour

        first_hour(options.device, options.small, options.folder, options.only, options.at_once)
        return
    if options.in_this_process:
        from gpu_step import measure

        from distill_tune.launch import stop_with_torchrun

        stop_with_torchrun()
        sharded = bool(options.sharded)
        print(json.dumps(measure(options.in_this_process, options.case, options.device, options.small, sharded)))
        return
    import torch

    print(f"{torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU'}, torch {torch.__version__}\n")
    print("| case | tool | seconds a step | tokens/s | TFLOP/s | share of a product's rate | peak memory | loss |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in options.case.split(","):
        for tool in ["ours", *(["torchtune"] if options.against and "quantizer" not in CASES[case] else [])]:
            print(line(case, tool, options), flush=True)


def line(case, tool, options):
    try:
        found = in_fresh_process(tool, case, options.device, options.small, options.sharded)
    except RuntimeError as error:
        return f"| {case} | {tool} | failed: {str(error).strip().splitlines()[-1][:120]} | | | | | |"
    rate = found["flops"] / found["seconds"]
    return (
        f"| {case} | {tool} | {found['seconds']:.3f} | {found['tokens'] / found['seconds']:,.0f} | {rate / 1e12:.1f} | "
        f"{rate / found['rate']:.0%} | {found['peak_bytes'] / 2**30:.2f} GiB | {found['loss']:.3f} |"
    )


def in_fresh_process(tool, case, device, small, ranks=0):
    """What gpu_step.measure found; with ``ranks``, the first of so many processes.

    Raises:
        RuntimeError: the process failed; its stderr.
        subprocess.TimeoutExpired: it took a quarter of an hour.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks else []
    command = [sys.executable, *launcher, str(HERE / "gpu.py"), "--in-this-process", tool, "--case", case]
    command += ["--device", device, "--sharded", str(ranks), *(["--small"] if small else [])]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.getenv('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(done.stderr or "nothing was printed")
    return json.loads(lines[-1])


if __name__ == "__main__":
    main()
